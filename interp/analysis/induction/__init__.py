"""How an induction circuit is found: candidate heads, edges with effects, plain words."""
