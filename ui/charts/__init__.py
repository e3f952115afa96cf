"""Charts as values: frame in, Altair chart out, and charts as files.

Every frame is what `catalog.queries.head_labels(...).pandas()` gives.
"""

from ui.charts.categories import categorize, category_counts
from ui.charts.category_map import category_map
from ui.charts.export import save
from ui.charts.layer_bins import DEFAULT_BINS, bin_counts, layer_bins
from ui.charts.palette import label_colors

__all__ = [
    "DEFAULT_BINS",
    "bin_counts",
    "categorize",
    "category_counts",
    "category_map",
    "label_colors",
    "layer_bins",
    "save",
]
