"""The mathematics: processes, time grids, denoisers, samplers. Knows torch only."""
