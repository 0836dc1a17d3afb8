"""What a logit is the sum of, by writer and by path, and layer by layer."""
