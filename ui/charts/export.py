"""Charts as files: PNG, SVG, and HTML that needs no network."""

import io
import json
import uuid
from pathlib import Path
from typing import Any

import altair as alt

from catalog.errors import UsageError

_SUFFIXES = (".png", ".svg", ".html")


class _InScript(json.JSONEncoder):
    """JSON that can stand in a <script>: a model named `</script>` must not end it."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def save(chart: alt.TopLevelMixin, path: Path | str) -> None:
    """Write a chart as what the suffix says: .png (two pixels per unit), .svg or .html.

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
    content = _render(chart, suffix)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _render(chart: alt.TopLevelMixin, suffix: str) -> bytes:
    if suffix == ".html":
        return chart.to_html(inline=True, json_kwds={"cls": _InScript}).encode()
    if suffix == ".svg":
        drawing = io.StringIO()
        chart.save(drawing, format="svg")
        return drawing.getvalue().encode()
    pixels = io.BytesIO()
    chart.save(pixels, format="png", scale_factor=2)
    return pixels.getvalue()
