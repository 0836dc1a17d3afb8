"""Synthetic sequences from a seed, and what a result says of where it was measured."""
