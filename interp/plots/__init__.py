"""Figures and pages from results. Everything here is read offline: no figure looks anything up."""

from plotly.graph_objects import Figure

from interp.plots.attention import AttentionView
from interp.plots.registry import figure

__all__ = ["AttentionView", "Figure", "figure"]
