"""Figures of scores that the pages Metrics and Compare show, with what draws them elsewhere."""

import shlex
from collections.abc import Sequence

import pandas as pd

from catalog import Catalog, scored
from ui import charts
from ui.site import _choosing, _parts


def read(models: Sequence[str], one: _choosing.Chosen) -> str:
    """The line of Python that reads scores."""
    return f"frame = scored.values(heads, {models!r}, {one.metric!r}, {one.probe!r}).pandas()"


def command(kind: str, models: Sequence[str], one: _choosing.Chosen, *more: str) -> str:
    return shlex.join([kind, *models, "--metric", one.metric, "--probe", one.probe, *more])


def show_distribution(catalog: Catalog, models: Sequence[str], one: _choosing.Chosen) -> None:
    frame = scored.values(catalog, models, one.metric, one.probe).pandas()
    _parts.figure(
        charts.metric_histogram(frame, title=one.title, lower=one.lower, upper=one.upper),
        frame,
        "distribution",
        code=f"{_choosing.IMPORT}\n{read(models, one)}\n"
        f"chart = charts.metric_histogram(frame, title={one.title!r}, "
        f"lower={one.lower}, upper={one.upper})",
        command=command("histogram", models, one),
        alt_text=f"Number of heads by {one}, of {', '.join(models)}",
    )


def show_depth(
    catalog: Catalog,
    models: Sequence[str],
    one: _choosing.Chosen,
    *,
    bins: int = scored.DEPTH_BINS,
    with_all: bool = False,
) -> None:
    """By relative depth, in so many bins; beside all models of the catalog together if wanted."""
    ask = f"scored.depth_profile(heads, {one.metric!r}, {one.probe!r}, bins={bins}"
    lines = [f"frame = {ask}, models={models!r}).pandas()"]
    frame = scored.depth_profile(catalog, one.metric, one.probe, models=models, bins=bins).pandas()
    if with_all:
        together = scored.depth_profile(catalog, one.metric, one.probe, bins=bins).pandas()
        frame = pd.concat([frame, together])
        lines += ["import pandas as pd", f"frame = pd.concat([frame, {ask}).pandas()])"]
    more = ["--bins", str(bins), *(["--all-models"] if with_all else [])]
    _parts.figure(
        charts.depth_profile(frame, title=one.title),
        frame,
        "by_depth",
        code="\n".join(
            [
                _choosing.IMPORT,
                *lines,
                f"chart = charts.depth_profile(frame, title={one.title!r})",
            ]
        ),
        command=command("depth", models, one, *more),
        alt_text=f"Mean {one} by relative depth, of {', '.join(models)}",
    )
