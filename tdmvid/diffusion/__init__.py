"""Diffusion mathematics: processes, time grids, denoisers and samplers. Imports only torch."""
