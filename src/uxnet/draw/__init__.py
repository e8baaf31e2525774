"""Pictures: slices with outlines, comparisons, training curves, box plots; and the paper's figures 3 and 4."""

from uxnet.draw.comparison import Row, comparison_figure
from uxnet.draw.page import line_colour
from uxnet.draw.plots import boxes, curves
from uxnet.draw.slices import Limits, Picture, Plane, best_slice, edge_letters, one_slice, robust_limits, slice_picture
from uxnet.paper.bands import BANDS, Band, Banded, BandPanel, banded, bands
from uxnet.paper.zoomed import RULE, Spot, ZoomedRow, most_different, zoomed_figure

__all__ = [
    "BANDS",
    "RULE",
    "Band",
    "BandPanel",
    "Banded",
    "Limits",
    "Picture",
    "Plane",
    "Row",
    "Spot",
    "ZoomedRow",
    "banded",
    "bands",
    "best_slice",
    "boxes",
    "comparison_figure",
    "curves",
    "edge_letters",
    "line_colour",
    "most_different",
    "one_slice",
    "robust_limits",
    "slice_picture",
    "zoomed_figure",
]
