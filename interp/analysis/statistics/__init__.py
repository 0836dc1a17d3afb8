"""Means and what was sampled, intervals over a few runs, windows of a curve."""
