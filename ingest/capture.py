"""Storing the whole attention patterns of chosen heads on chosen prompts."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from catalog import Catalog, pattern_rows, patterns, publishing
from catalog.declarations import PromptPatterns, Results, RunSpec
from catalog.errors import InputError, ModelError, UsageError
from catalog.texts import readable
from ingest.probes import files
from ingest.probes.classes import TokenClasses
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress, Silence
from ingest.provenance import device_name, forget_peak_memory, peak_memory, versions
from ingest.readers.attention import attention_modules, observing, prove
from ingest.readers.loading import LoadedModel, PreparedModel
from ingest.request import CaptureRequest
from ingest.rows import Rows
from ingest.run import Publisher, running
from ingest.suites import OpenModel, if_it_fits

__all__ = ["CaptureRequest", "Captured", "attention_patterns", "capture"]

Head = tuple[int, int]
"""Layer and head, from 0."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What became of a request: how many patterns are new, and the runs that have them all."""

    model: str
    stored: int
    known: int
    run_ids: tuple[int, ...]


def capture(
    catalog: Catalog,
    request: CaptureRequest,
    progress: Progress | None = None,
    *,
    publish: Publisher = publishing.publish,
) -> Captured:
    """Run a model once on each prompt, and keep the patterns of the heads asked for.

    What is stored already, of the same model revision, tokens and dtype, is not measured again
    unless the request has `force`.

    Args:
        catalog: Where to publish.
        request: Which heads, on what.
        progress: Told what is being done.
        publish: Makes patterns visible; a worker's does so only while the job is its own.

    Raises:
        ModelError: If the model cannot be read, a head's pattern is undefined (NaN), or the memory
            does not hold a prompt; nothing is stored then.
        InputError: If a prompt cannot be used.
        UsageError: If the model has no such head.
    """
    progress = progress or Silence()
    model = OpenModel.of(request, progress)
    heads = _heads(model.prepared, request.heads)
    prompts = _prompts(model.prepared, request)
    revision = model.prepared.source.revision
    done = [
        pattern_rows.known(catalog.database, model.name, revision, model.dtype, one)
        for one in prompts
    ]
    todo = [
        (one, [head for head in heads if request.force or head not in known])
        for one, known in zip(prompts, done, strict=True)
    ]
    todo = [(one, left) for one, left in todo if left]
    count = sum(len(left) for _, left in todo)
    runs = {known[head] for known in done for head in heads if head in known and not request.force}
    if todo:
        loaded = model.loaded
        progress.stage("proving that attention is read as the model computes it")
        prove(loaded.model, loaded.name)
        spec = RunSpec(
            model=model.prepared.spec,
            suite=pattern_rows.SUITE,
            metrics=(),
            keyed_probes={},
            params={
                "patterns": [
                    {"prompt": one.prompt, "heads": [_name(head) for head in left]}
                    for one, left in todo
                ]
            },
            versions=versions(),
            device=device_name(model.device),
            dtype=model.dtype,
        )
        runs.add(_run(catalog, loaded, spec, todo, progress, publish))
    return Captured(
        model=model.name,
        stored=count,
        known=len(heads) * len(prompts) - count,
        run_ids=tuple(sorted(runs)),
    )


def attention_patterns(
    loaded: LoadedModel, tokens: Sequence[int], heads: Collection[Head]
) -> dict[Head, Float[Tensor, "query key"]]:
    """The whole patterns of some heads on one sequence, in float32, in the main memory."""
    found = {place: torch.zeros(len(tokens), len(tokens)) for place in heads}

    def keep(layer: int, rows: Rows) -> None:
        for place in heads:
            if place[0] == layer:
                shown = found[place][rows.first : rows.stop, rows.first_key : rows.stop]
                shown.copy_(rows.patterns[0, place[1]])

    with torch.inference_mode(), observing(loaded.model, keep):
        loaded.model.base_model(torch.tensor([list(tokens)], device=loaded.device), use_cache=False)
    return found


def _run(
    catalog: Catalog,
    loaded: LoadedModel,
    spec: RunSpec,
    todo: Sequence[tuple[PromptPatterns, Sequence[Head]]],
    progress: Progress,
    publish: Publisher,
) -> int:
    device = str(loaded.device)
    forget_peak_memory(device)
    with running(catalog.database, spec) as run_id:
        progress.steps("patterns of prompts", len(todo))
        measured = []
        for one, heads in todo:
            measured.append(replace(one, patterns=_measured(loaded, one, heads)))
            progress.advance()
        progress.stage("publishing patterns")
        publish(
            catalog.database,
            run_id,
            Results(patterns=measured),
            metrics=(),
            taxonomies=(),
            notes={},
            peak_memory=peak_memory(device),
        )
    return run_id


def _measured(
    loaded: LoadedModel, prompt: PromptPatterns, heads: Sequence[Head]
) -> Mapping[Head, pa.Array]:
    measure = partial(attention_patterns, loaded, prompt.token_ids, heads)
    found = if_it_fits(measure, loaded.device)
    if found is None:
        raise ModelError(
            f"the memory does not hold {loaded.name} on {prompt.prompt[:60]!r}, "
            f"{len(prompt.token_ids)} tokens; a shorter prompt takes less"
        )
    for head, pattern in found.items():
        if not pattern.isfinite().all():
            raise ModelError(
                f"the attention of {_name(head)} of {loaded.name} is NaN on {prompt.prompt!r}; "
                "such a pattern cannot be stored, leave the head out"
            )
    query, key = torch.tril_indices(len(prompt.token_ids), len(prompt.token_ids))
    return {head: pa.array(pattern[query, key].half().numpy()) for head, pattern in found.items()}


def _heads(prepared: PreparedModel, text: str) -> list[Head]:
    spec = prepared.spec
    with_heads = attention_modules(prepared.skeleton)
    found: list[Head] = []
    for layer, head in patterns.places(text):
        if layer >= spec.n_layers or (head or 0) >= spec.n_heads:
            named = f"L{layer}" if head is None else _name((layer, head))
            raise UsageError(
                f"{spec.name} has {spec.n_layers} layers of {spec.n_heads} heads, counted from 0, "
                f"and no {named}"
            )
        if layer not in with_heads:
            raise UsageError(
                f"layer {layer} of {spec.name} has no softmax attention; "
                f"layers {', '.join(map(str, with_heads))} have"
            )
        found += [(layer, one) for one in (range(spec.n_heads) if head is None else [head])]
    return list(dict.fromkeys(found))


def _prompts(prepared: PreparedModel, request: CaptureRequest) -> list[PromptPatterns]:
    vocabulary = Vocabulary.of(prepared.config, prepared.tokenizer)
    named = [(text, _tokens(text, vocabulary)) for text in request.prompts]
    if request.prompt_file:
        named += _from_file(Path(request.prompt_file), vocabulary)
    found: dict[str, list[int]] = {}
    for name, tokens in ((readable(name), tokens) for name, tokens in named):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name!r} cannot be the name of a prompt: it is not Unicode"
            ) from None
        if found.setdefault(name, tokens) != tokens:
            raise InputError(f"two prompts of different tokens have the name {name!r}; rename one")
    return [
        PromptPatterns(
            prompt=name,
            token_ids=tokens,
            tokens=[_text(token, vocabulary) for token in tokens],
            patterns={},
        )
        for name, tokens in found.items()
    ]


def _tokens(text: str, vocabulary: Vocabulary) -> list[int]:
    tokenizer = vocabulary.require_tokenizer(f"the prompt {text!r}")
    try:
        tokens: list[int] = tokenizer(text).input_ids
    except Exception as error:  # what a tokenizer refuses, and how, differs from one to the next
        raise InputError(f"prompt {text!r}: the tokenizer cannot take it: {error}") from error
    if len(tokens) < 2:  # noqa: PLR2004 - one token attends to itself alone
        raise InputError(f"prompt {text!r} has {len(tokens)} tokens; a pattern needs at least 2")
    if vocabulary.context is not None and len(tokens) > vocabulary.context:
        raise InputError(
            f"prompt {text[:60]!r}... has {len(tokens)} tokens; the model's context is "
            f"{vocabulary.context}"
        )
    return tokens


def _from_file(path: Path, vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Names and tokens: a text without a name is its own, other lines are `STEM:1` and so on."""
    tokens = files.from_file(path, TokenClasses()).encode(vocabulary).tokens
    if path.suffix == ".txt":
        return [(f"{path.stem}:{number}", one) for number, one in enumerate(tokens, 1)]
    content = path.read_text("utf-8-sig")
    lines = [json.loads(line) for line in content.split("\n") if line.strip()]
    named = []
    for number, (line, encoded) in enumerate(zip(lines[-len(tokens) :], tokens, strict=True), 1):
        own = line.get("text") if "tokens" not in line else None
        name = line.get("name", own or f"{path.stem}:{number}")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}, sequence {number}: the name is {name!r}; expected a text")
        named.append((name, encoded))
    return named


def _text(token: int, vocabulary: Vocabulary) -> str:
    """A token's text; of a row of the embedding that the tokenizer does not know, its number."""
    known = 0 if vocabulary.tokenizer is None else len(vocabulary.tokenizer)
    return vocabulary.text_of(token) if token < known else f"<{token}>"


def _name(head: Head) -> str:
    return f"L{head[0]}H{head[1]}"
