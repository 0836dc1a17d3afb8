"""Where heads look, and what they copy."""
