"""Pictures: slices with outlines, comparisons, training curves, box plots."""

from uxnet.draw.comparison import Row, comparison_figure
from uxnet.draw.page import line_colour
from uxnet.draw.plots import boxes, curves
from uxnet.draw.slices import Limits, Picture, Plane, best_slice, edge_letters, one_slice, robust_limits, slice_picture

__all__ = [
    "Limits",
    "Picture",
    "Plane",
    "Row",
    "best_slice",
    "boxes",
    "comparison_figure",
    "curves",
    "edge_letters",
    "line_colour",
    "one_slice",
    "robust_limits",
    "slice_picture",
]
