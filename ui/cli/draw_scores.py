"""Charts of scores for `chart`: as map, distribution, scatter, by depth, and as difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catalog import Catalog, queries, scored
from catalog.errors import UsageError
from catalog.explore import Measured
from ui.cli.common import require

METRIC, HISTOGRAM, SCATTER, DEPTH, DIFFERENCE = (
    "metric",
    "histogram",
    "scatter",
    "depth",
    "difference",
)


@dataclass(frozen=True)
class Asked:
    """Metrics and probes as the options name them."""

    metric: str | None
    probe: str | None
    against: str | None
    against_probe: str | None


def drawn(
    catalog: Catalog,
    kind: str,
    models: Sequence[str],
    asked: Asked,
    *,
    bins: int | None,
    stretch: bool,
    all_models: bool,
) -> Any:
    """The chart of a kind; options that are not for it are left aside.

    Raises:
        UsageError: If a metric is missing or not there, or the models are too few or many.
    """
    if asked.metric is None:
        raise UsageError(f"{kind} needs --metric; `heads metrics` lists what there is")
    one = _measured(catalog, asked.metric, asked.probe)
    if kind == SCATTER:
        if asked.against is None:
            raise UsageError("scatter needs --against, the metric to draw the other by")
        return _scatter(
            catalog, models, one, _measured(catalog, asked.against, asked.against_probe)
        )
    if kind == DEPTH:
        return _depth(catalog, models, one, bins=bins, all_models=all_models)
    if kind == DIFFERENCE:
        return _difference(catalog, models, one)
    return _map_or_histogram(catalog, kind, models, one, stretch=stretch)


def _measured(catalog: Catalog, metric: str, probe: str | None) -> Measured:
    there = queries.probes_of(catalog, metric)
    if probe is not None and probe not in there:
        raise UsageError(f"{metric} is not measured on {probe!r}, but on {', '.join(there)}")
    return Measured(metric, probe or there[0])


def _declared(catalog: Catalog, one: Measured) -> dict[str, Any]:
    return next(row for row in queries.metrics(catalog) if row["metric"] == one.metric)


def _title(catalog: Catalog, one: Measured) -> str:
    return one.title(_declared(catalog, one)["unit"])


def _map_or_histogram(
    catalog: Catalog, kind: str, models: Sequence[str], one: Measured, *, stretch: bool
) -> Any:
    charts = require("ui.charts", "ui")
    frame = scored.values(catalog, models, one.metric, one.probe).pandas()
    declared = _declared(catalog, one)
    lower, upper = (None, None) if stretch else (declared["lower"], declared["upper"])
    draw = charts.metric_map if kind == METRIC else charts.metric_histogram
    return draw(frame, title=one.title(declared["unit"]), lower=lower, upper=upper)


def _difference(catalog: Catalog, models: Sequence[str], one: Measured) -> Any:
    charts = require("ui.charts", "ui")
    try:
        first, second = models
    except ValueError:
        raise UsageError(f"difference needs two models, got {len(models)}") from None
    frame = scored.differences(catalog, first, second, one.metric, one.probe).pandas()
    return charts.difference_map(frame, title=f"Difference of {_title(catalog, one)}")


def _scatter(catalog: Catalog, models: Sequence[str], one: Measured, other: Measured) -> Any:
    charts = require("ui.charts", "ui")
    against = (other.metric, other.probe)
    frame = scored.values(catalog, models, one.metric, one.probe, against=against).pandas()
    return charts.metric_scatter(frame, x=_title(catalog, one), y=_title(catalog, other))


def _depth(
    catalog: Catalog, models: Sequence[str], one: Measured, *, bins: int | None, all_models: bool
) -> Any:
    charts = require("ui.charts", "ui")
    pandas = require("pandas", "ui")
    asked, bins = (one.metric, one.probe), bins or scored.DEPTH_BINS
    frames = [scored.depth_profile(catalog, *asked, models=models, bins=bins).pandas()]
    if all_models:
        frames.append(scored.depth_profile(catalog, *asked, bins=bins).pandas())
    return charts.depth_profile(pandas.concat(frames), title=_title(catalog, one))
