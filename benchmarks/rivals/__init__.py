"""What the benchmarks compare with: the same model elsewhere, timed in turns."""
