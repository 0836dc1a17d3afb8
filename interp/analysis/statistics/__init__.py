"""Means that keep no samples, intervals over a few runs, windows of a curve."""
