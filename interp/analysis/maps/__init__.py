"""A model as linear maps, once its norms are frozen: through convolutions into heads, and out."""
