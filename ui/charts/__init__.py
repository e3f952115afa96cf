"""Charts as values: frame in, Altair chart out, and charts as files.

Frames are what `catalog.queries` gives as `.pandas()`: `head_labels(...)`, unless a chart says
otherwise; of patterns, what `catalog.patterns.cells(...).pandas()` does.
"""

from ui.charts.categories import categorize, category_counts, relabel
from ui.charts.category_map import category_map
from ui.charts.export import render, save
from ui.charts.layer_bins import DEFAULT_BINS, bin_counts, layer_bins
from ui.charts.metric_map import difference_map, metric_map
from ui.charts.metric_plots import BRUSH, depth_profile, metric_histogram, metric_scatter
from ui.charts.palette import class_colors, label_colors
from ui.charts.pattern_grid import pattern_grid
from ui.charts.result_chart import RESULT_KINDS, result_chart
from ui.charts.token_bars import DEFAULT_CLASSES, UNITS, overlaps, spread_layers, token_bars

__all__ = [
    "BRUSH",
    "DEFAULT_BINS",
    "DEFAULT_CLASSES",
    "RESULT_KINDS",
    "UNITS",
    "bin_counts",
    "categorize",
    "category_counts",
    "category_map",
    "class_colors",
    "depth_profile",
    "difference_map",
    "label_colors",
    "layer_bins",
    "metric_histogram",
    "metric_map",
    "metric_scatter",
    "overlaps",
    "pattern_grid",
    "relabel",
    "render",
    "result_chart",
    "save",
    "spread_layers",
    "token_bars",
]
