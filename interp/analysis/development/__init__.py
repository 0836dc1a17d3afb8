"""Any analysis over the checkpoints of a run: curves, phase changes, comparisons of runs."""
