"""What pages let choose alike: labels of models, and a metric on a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from catalog import Catalog, queries
from catalog.errors import UsageError
from catalog.explore import Measured
from ui.site import _page
from ui.site._texts import plain, short

IMPORT = "from catalog import scored"
NO_PARAMETER = "(none)"


@dataclass(frozen=True)
class Labelled:
    """Models whose heads a reader sees by what a taxonomy calls them."""

    models: list[str]
    taxonomy: str
    labels: list[str]
    """All labels of the taxonomy, whichever models have them."""
    frame: pd.DataFrame
    """As `catalog.queries.head_labels` gives it."""


def choose_labels(page: _page.Page, catalog: Catalog) -> Labelled:
    """Models and a taxonomy.

    Raises:
        NothingToShowError: If there is none, or no model is chosen.
    """
    models_place, taxonomy_place = st.columns([3, 1])
    with models_place:
        models = _choose_models(page, catalog)
    with taxonomy_place:
        taxonomy = _choose_taxonomy(page, catalog, models)
    frame = queries.head_labels(catalog, models, taxonomy).pandas()
    if frame["label"].isna().all():
        st.info(
            f"No head of the chosen models has a label of the taxonomy {plain(taxonomy)}. "
            "Bring labels with `heads labels import FILE.csv`; "
            "`heads ingest MODEL` gives labels by rule."
        )
    return Labelled(models, taxonomy, queries.taxonomy_labels(catalog, taxonomy), frame)


def _choose_models(page: _page.Page, catalog: Catalog) -> list[str]:
    rows = queries.models(catalog).rows()
    if not rows:
        raise _page.NothingToShowError(_page.NO_MODEL)
    names = [row["model"] for row in rows]
    labelled = [row["model"] for row in rows if row["labelled_heads"]]

    def missing(name: str) -> str:
        try:
            queries.require_model(catalog, name)
        except UsageError as error:
            return str(error)
        return f"{name!r} has only now come into the catalog"

    return page.choose_several(
        "model",
        names,
        default=(labelled or names)[:1],
        label="Models",
        at_most=_page.MAX_MODELS,
        missing=missing,
    )


def _choose_taxonomy(page: _page.Page, catalog: Catalog, models: Sequence[str]) -> str:
    heads = {row["taxonomy"]: row["heads"] for row in queries.taxonomies(catalog, *models)}
    if not heads:
        raise _page.NothingToShowError(
            "No head in the catalog has a label yet. Bring labels with "
            "`heads labels import FILE.csv`; `heads ingest MODEL` gives labels by rule."
        )
    return page.choose_one(
        "taxonomy",
        sorted(heads),
        default=queries.usual_taxonomy(heads),
        missing=lambda name: f"no head in the catalog has a label of the taxonomy {name!r}",
    )


@dataclass(frozen=True)
class Chosen:
    """A metric on a probe, with what is declared of it."""

    metric: str
    probe: str
    lower: float | None
    upper: float | None
    unit: str
    about: str

    def __str__(self) -> str:
        return str(Measured(self.metric, self.probe))

    @property
    def title(self) -> str:
        return Measured(self.metric, self.probe).title(self.unit)


def choose_metric(page: _page.Page, there: Sequence[dict[str, Any]], *, before: str = "") -> Chosen:
    """A metric by its family, its parameter and its probe.

    Args:
        page: Where it is chosen.
        there: Rows of `catalog.scored.choices`; one at least.
        before: Stands before the names in the URL, where a page has several metrics.
    """
    family_place, parameter_place, probe_place = st.columns(3)
    with family_place:
        families = list(dict.fromkeys(row["family"] for row in there))
        family = page.choose_one(f"{before}metric", families, default=families[0])
    of_family = [row for row in there if row["family"] == family]
    with parameter_place:
        parameters = list(dict.fromkeys(row["parameter"] or NO_PARAMETER for row in of_family))
        parameter = _of_family(page, f"{before}parameter", parameters)
    alike = [row for row in of_family if (row["parameter"] or NO_PARAMETER) == parameter]
    with probe_place:
        probe = _of_family(page, f"{before}probe", [row["probe"] for row in alike])
    row = next(row for row in alike if row["probe"] == probe)
    about = f"{short(row['metric'])}: {row['description']} ({row['unit']}; {row['source']})"
    return Chosen(row["metric"], probe, row["lower"], row["upper"], row["unit"], about)


def _of_family(page: _page.Page, name: str, possible: Sequence[str]) -> str:
    # A link that asks for what is not there is told so; another family chosen by hand is not.
    return page.choose_one(name, possible, default=possible[0], complain=page.is_new(name))
