"""Figures and pages from results. Everything here is read offline: no figure looks anything up."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Figure

    from interp.plots.attention import AttentionView as AttentionView
    from interp.plots.figures import figure as figure
else:
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
