"""Charts as values: frame in, Altair chart out, and charts as files.

Frames are what `catalog.queries` gives as `.pandas()`: `head_labels(...)`, unless a chart says
otherwise; of patterns, what `catalog.patterns.cells(...).pandas()` does.
"""

from ui.charts.categories import categorize, category_counts
from ui.charts.category_map import category_map
from ui.charts.export import save
from ui.charts.layer_bins import DEFAULT_BINS, bin_counts, layer_bins
from ui.charts.palette import class_colors, label_colors
from ui.charts.pattern_grid import pattern_grid
from ui.charts.token_bars import DEFAULT_CLASSES, UNITS, overlaps, spread_layers, token_bars

__all__ = [
    "DEFAULT_BINS",
    "DEFAULT_CLASSES",
    "UNITS",
    "bin_counts",
    "categorize",
    "category_counts",
    "category_map",
    "class_colors",
    "label_colors",
    "layer_bins",
    "overlaps",
    "pattern_grid",
    "save",
    "spread_layers",
    "token_bars",
]
