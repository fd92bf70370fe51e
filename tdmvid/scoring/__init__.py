"""What samples are worth: scores of a student beside its teacher, with intervals; knows torch and
scipy, no model.
"""
