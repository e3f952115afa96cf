"""What weights say of heads: which tokens they read and write, and which heads they read."""

from functools import partial

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.queries._models import require_head, require_model
from catalog.queries._scores import require_limit
from catalog.sql import Result
from catalog.texts import stored


def salient(catalog: Catalog, model: str, layer: int, head: int) -> Result:
    """The tokens that a head amplifies most, each with the outputs that it is mapped to.

    Returns:
        token_rank (0: amplified most), token, norm, direction (`promoted` or `suppressed`),
        output_rank (0: the largest logit, or the smallest where suppressed), output, logit; in
        that order.

    Raises:
        UsageError: If there is no such head, or the model's have not been measured.
    """
    require_head(catalog, model, layer, head)
    found = catalog.sql(
        """
        SELECT token_rank, token, norm, direction, output_rank, output, logit
        FROM salient_operations
        WHERE model = :model AND layer = :layer AND head = :head
        ORDER BY token_rank, direction, output_rank
        """,
        model=model,
        layer=layer,
        head=head,
    )
    if not found:
        _require_measured(catalog, "salient_operations", "salient", model)
    return found


def writing(
    catalog: Catalog,
    output: str,
    *,
    model: str | None = None,
    suppressed: bool = False,
    limit: int = 20,
) -> Result:
    """The heads that promote a token, those first that rank it best among their outputs.

    Args:
        catalog: The catalog.
        output: The token's text, with the space before it where it has one.
        model: Only heads of this model; all where None.
        suppressed: The heads that suppress it instead.
        limit: How many, 1 to `MAX_ROWS`.

    Returns:
        model, layer, head, name, output_rank, token, token_rank, norm, logit, tokens. tokens
        counts the head's salient tokens that it maps to this output; token to logit are of the one
        that ranks it best.

    Raises:
        UsageError: If there are none; it says why, and names the text with or without a space
            before it where there are some for that.
    """
    require_limit(limit)
    direction = "suppressed" if suppressed else "promoted"
    query = f"""
        SELECT model, layer, head, 'L' || layer || 'H' || head AS name, output_rank, token,
               token_rank, norm, logit, tokens
        FROM (
            SELECT o.*, row_number() OVER (
                       PARTITION BY model, layer, head ORDER BY output_rank, token_rank
                   ) AS place,
                   count(*) OVER (PARTITION BY model, layer, head) AS tokens
            FROM salient_operations o
            WHERE output = :text AND direction = '{direction}' {_of_model(model)}
        ) AS found
        WHERE place = 1
        ORDER BY output_rank, token_rank, logit {"ASC" if suppressed else "DESC"},
                 model, layer, head
        LIMIT :limit
    """  # noqa: S608 - only fixed words are put in
    verb = "suppresses" if suppressed else "promotes"
    return _by_text(catalog, query, output, model=model, limit=limit, verb=verb)


def reading(catalog: Catalog, token: str, *, model: str | None = None, limit: int = 20) -> Result:
    """The heads that amplify a token, those first that amplify it before others.

    Args:
        catalog: The catalog.
        token: Its text, with the space before it where it has one.
        model: Only heads of this model; all where None.
        limit: How many, 1 to `MAX_ROWS`.

    Returns:
        model, layer, head, name, token_rank, norm, output, logit; output is what the head promotes
        most for the token.

    Raises:
        UsageError: If there are none; as `writing`.
    """
    require_limit(limit)
    query = f"""
        SELECT model, layer, head, 'L' || layer || 'H' || head AS name, token_rank, norm, output,
               logit
        FROM salient_operations
        WHERE token = :text AND direction = 'promoted' AND output_rank = 0 {_of_model(model)}
        ORDER BY token_rank, norm DESC, model, layer, head
        LIMIT :limit
    """  # noqa: S608 - only fixed words are put in
    return _by_text(catalog, query, token, model=model, limit=limit, verb="amplifies")


def compositions(catalog: Catalog, model: str, layer: int, head: int) -> Result:
    """What a head reads of earlier heads' outputs, and what later heads read of its own.

    Returns:
        link (`reads` or `feeds`), kind (`query`, `key` or `value`, of the later head), layer,
        head, name (of the other head), value; what it reads first, and the largest values. Each
        head's few strongest readings are kept, so `feeds` has only what is among a later head's.

    Raises:
        UsageError: If there is no such head, or the model's have not been measured.
    """
    require_head(catalog, model, layer, head)
    found = catalog.sql(
        """
        SELECT 'reads' AS link, kind, from_layer AS layer, from_head AS head,
               'L' || from_layer || 'H' || from_head AS name, value
        FROM compositions
        WHERE model = :model AND layer = :layer AND head = :head
        UNION ALL
        SELECT 'feeds', kind, layer, head, 'L' || layer || 'H' || head, value
        FROM compositions
        WHERE model = :model AND from_layer = :layer AND from_head = :head
        ORDER BY link DESC, value DESC, layer, head, kind
        """,
        model=model,
        layer=layer,
        head=head,
    )
    if not found:
        _require_measured(catalog, "compositions", "weights", model)
    return found


def _by_text(
    catalog: Catalog, query: str, text: str, *, model: str | None, limit: int, verb: str
) -> Result:
    if model is not None:
        require_model(catalog, model)
    ask = partial(catalog.sql, query, limit=limit, **({"model": model} if model else {}))
    found = ask(text=stored(text))
    if found:
        return found
    _require_measured(catalog, "salient_operations", "salient", model)
    other, differs = (text[1:], "without") if text.startswith(" ") else (f" {text}", "with")
    is_other = bool(ask(text=stored(other)))
    hint = f"; did you mean {other!r}, {differs} a space before it?" if is_other else ""
    raise UsageError(f"no head{f' of {model}' if model else ''} {verb} {text!r}{hint}")


def _require_measured(catalog: Catalog, view: str, suite: str, model: str | None) -> None:
    """See that a view has rows of the model, or any where that is None."""
    condition, parameters = ("WHERE model = :model", {"model": model}) if model else ("", {})
    if not catalog.sql(f"SELECT 1 FROM {view} {condition} LIMIT 1", **parameters):  # noqa: S608 - fixed words
        raise UsageError(
            f"{model or 'the catalog'} has nothing in the view `{view}`; "
            f"`heads ingest MODEL --suite {suite}` fills it"
        )


def _of_model(model: str | None) -> str:
    return "" if model is None else "AND model = :model"
