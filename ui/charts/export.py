"""Charts as files: PNG, SVG, PDF, and HTML that needs no network."""

import io
import json
import uuid
from pathlib import Path
from typing import Any

import altair as alt

from catalog.errors import UsageError

_SUFFIXES = (".png", ".svg", ".pdf", ".html")


class _InScript(json.JSONEncoder):
    """JSON that can stand in a <script>: a model named `</script>` must not end it."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def save(chart: alt.TopLevelMixin, path: Path | str) -> None:
    """Write a chart as what the suffix says: .png, .svg, .pdf or .html.

    A PNG has two pixels per unit of the chart, a PDF one point, its text as text.

    The file appears complete or not at all, also in place of a former one.

    Raises:
        UsageError: If the suffix is another, the folder does not exist, or the file cannot be
            written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(
            f"{path} has the suffix {suffix or 'of no format'!r}; expected {', '.join(_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    content = render(chart, suffix)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def render(chart: alt.TopLevelMixin, suffix: str) -> bytes:
    """A file's contents: `.png`, `.svg`, `.pdf` or `.html`, as `save` writes them."""
    if suffix == ".html":
        return chart.to_html(inline=True, json_kwds={"cls": _InScript}).encode()
    if suffix == ".svg":
        drawing = io.StringIO()
        chart.save(drawing, format="svg")
        return drawing.getvalue().encode()
    drawn = io.BytesIO()
    if suffix == ".pdf":
        chart.save(drawn, format="pdf")
    else:
        chart.save(drawn, format="png", scale_factor=2)
    return drawn.getvalue()
