"""Virtual weights: what a head reads and writes, as maps between tokens, positions and heads."""
