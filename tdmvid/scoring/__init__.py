"""Score the samples of a student and its teacher, with confidence intervals. Uses torch and scipy,
no model.
"""
