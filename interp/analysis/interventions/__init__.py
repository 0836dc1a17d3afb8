"""How interventions are written down, made and measured, all in one pass."""
