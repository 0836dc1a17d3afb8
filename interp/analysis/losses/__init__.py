"""How well the next token is predicted: by position, on repeats, late against early."""
