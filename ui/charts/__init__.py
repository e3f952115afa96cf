"""Charts as values: frame in, Altair chart out, and charts as files.

Frames are what `catalog.queries.head_labels(...).pandas()` gives; of patterns, what
`catalog.patterns.cells(...).pandas()` does.
"""

from ui.charts.categories import categorize, category_counts
from ui.charts.category_map import category_map
from ui.charts.export import save
from ui.charts.layer_bins import DEFAULT_BINS, bin_counts, layer_bins
from ui.charts.palette import label_colors
from ui.charts.pattern_grid import pattern_grid

__all__ = [
    "DEFAULT_BINS",
    "bin_counts",
    "categorize",
    "category_counts",
    "category_map",
    "label_colors",
    "layer_bins",
    "pattern_grid",
    "save",
]
