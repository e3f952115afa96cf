"""A probe's forward passes: sequences in batches, scores summed while layers run."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from catalog.errors import ModelError
from ingest.metrics import (
    CLASS_METRICS,
    PATTERN_GROUP_METRICS,
    PATTERN_METRICS,
    RETRIEVAL_METRICS,
    Sequences,
    Sums,
    class_mass,
)
from ingest.outputs import OutputSums
from ingest.probes.sequences import Encoded
from ingest.progress import Progress
from ingest.readers.attention import block_rows, has_interface, observing
from ingest.readers.loading import LoadedModel
from ingest.readers.outputs import OutputReader
from ingest.retrieval import Search
from ingest.rows import Rows
from ingest.suites._memory import if_it_fits, sized

_MAX_ACTIVATION_BYTES = 1 << 29
"""Of what a layer holds for a batch, roughly; on a GPU a quarter of what is free."""
_MAX_KEPT_BYTES = 1 << 30
"""Of what group metrics keep of all layers at once, where a group takes several batches."""


def defined(encoded: Encoded) -> list[str]:
    """The metrics of single rows that a probe is for."""
    return [
        name
        for name, metric in PATTERN_METRICS.items()
        if (encoded.period is not None or not metric.needs_period)
        and (encoded.period is None or not metric.needs_tokens)
    ]


def measure(
    loaded: LoadedModel,
    encoded: Encoded,
    probe: str,
    progress: Progress,
    *,
    with_outputs: bool = True,
) -> "PatternSums":
    """Every metric of attention patterns, and of what heads write, on one probe.

    Args:
        loaded: A model whose attention is proved to be seen as it is.
        encoded: The probe in the model's tokens.
        probe: Its name, for messages.
        progress: Told of every sequence.
        with_outputs: Whether metrics of what heads write are measured, too.

    Raises:
        ModelError: If the memory does not even hold one sequence.
    """
    sums = PatternSums(loaded, encoded, with_outputs=with_outputs)
    progress.steps(f"patterns on {probe}", len(encoded.tokens))
    # Of one length together: nothing is padded, so nothing has to be masked.
    order = sorted(range(len(encoded.tokens)), key=lambda one: len(encoded.tokens[one]))
    for length, same in groupby(order, key=lambda one: len(encoded.tokens[one])):
        group = list(same)
        size = min(_batch_size(loaded, length), len(group))
        while not sums.add_group(group, size, progress):
            size //= 2
            if not size:
                raise ModelError(
                    f"the memory does not hold {loaded.name} on one sequence of {length} tokens "
                    f"({probe})"
                )
            note = (
                f"out of memory: sequences of {length} tokens go through {size} at a time, which "
                "changes no score"
            )
            progress.note(f"{note} ({probe})")
            sums.notes.append(note)
    return sums


def _undefined(encoded: Encoded) -> dict[str, str]:
    """What a probe's tokens do not define."""
    reasons: dict[str, str] = {}
    if len({len(one) for one in encoded.tokens}) == len(encoded.tokens):
        why = "no two sequences have the same length"
        reasons |= dict.fromkeys(PATTERN_GROUP_METRICS, why)
    if all(len(set(one)) == len(one) for one in encoded.tokens):
        why = "no token occurs twice in a sequence"
        names = (name for name in defined(encoded) if PATTERN_METRICS[name].needs_tokens)
        reasons |= dict.fromkeys(names, why)
    for name, members in encoded.classes.items():
        if not any(map(any, members)):
            reasons[f"token_lift[{name}]"] = "no token is of this class"
    return reasons


class PatternSums:
    """One probe's scores in the making."""

    def __init__(self, loaded: LoadedModel, encoded: Encoded, *, with_outputs: bool) -> None:
        """Nothing is seen yet."""
        self._loaded = loaded
        self._encoded = encoded
        self._reader = OutputReader(loaded.model) if with_outputs else None
        self._outputs = OutputSums(self._reader) if self._reader else None
        config = loaded.config
        self._shape = (config.num_hidden_layers, config.num_attention_heads)
        self._totals = _Totals(self._shape)
        self.damaged = torch.zeros(self._shape, dtype=torch.bool)
        """Heads whose attention has a NaN."""
        self.left_out = _undefined(encoded)
        """Metrics that no head has, and why."""
        self.notes: list[str] = []
        """What happened on the way."""
        self._n_told = 0

    def add_group(self, group: Sequence[int], size: int, progress: Progress) -> bool:
        """Run the model on some sequences of one length, `size` at a time.

        Returns:
            Whether there was memory enough; else nothing is added.
        """
        one = _Group(self._loaded, self._encoded, group, size)
        outputs = OutputSums(self._reader) if self._reader else None
        n_before = self._n_told
        with (
            torch.inference_mode(),
            observing(self._loaded.model, one.observe, n_rows=one.n_rows),
            outputs.watching() if outputs else contextlib.nullcontext(),
        ):
            for start in range(0, len(group), size):
                tokens = one.begin(group[start : start + size])
                if outputs:
                    outputs.begin(tokens)
                run = partial(self._loaded.model.base_model, tokens, use_cache=False)
                ran = if_it_fits(run, self._loaded.device)
                if ran is None:
                    return False
                one.end(ran[0])
                if outputs:
                    outputs.end()
                for _ in range(self._n_told, n_before + start + len(tokens)):
                    progress.advance()
                    self._n_told += 1
        one.finish()
        self._totals.add(one.totals)
        self.damaged |= one.damaged
        self.left_out |= one.left_out
        if self._outputs and outputs:
            self._outputs.add(outputs)
        return True

    def scores(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Every metric's; NaN where it is undefined."""
        # No defined position, or no heads in the layer: 0 / 0, which is NaN.
        scores = self._totals.quotients(self._names())
        for name, values in scores.items():
            values[self.damaged] = torch.nan
            if name in self.left_out:
                values[:] = torch.nan
        return scores | (self._outputs.scores() if self._outputs else {})

    @property
    def undefined(self) -> dict[str, str]:
        """Why heads (L3H1), all heads of a layer (L3), or all heads in a metric have no score."""
        told = dict(self._outputs.undefined) if self._outputs else {}
        for layer, heads in enumerate(self.damaged):
            places = [f"L{layer}"] if heads.all() else []
            places = places or [f"L{layer}H{int(head)}" for head in heads.nonzero()]
            told |= dict.fromkeys(places, "NaN in its attention")
        return told | self._uncounted() | self.left_out | self._unsaid()

    def _names(self) -> list[str]:
        encoded = self._encoded
        names = [*defined(encoded), *PATTERN_GROUP_METRICS]
        names += [f"{metric}[{one}]" for one in encoded.classes for metric in CLASS_METRICS]
        return names + (list(RETRIEVAL_METRICS) if encoded.needles else [])

    def _uncounted(self) -> dict[str, str]:
        empty = (name for name in self._names() if not self._totals.of[name][1].any())
        return dict.fromkeys(empty, "the sequences have no position that counts")

    def _unsaid(self) -> dict[str, str]:
        if not self._encoded.needles or self._totals.of["retrieval"][1].any():
            return {}
        return dict.fromkeys(RETRIEVAL_METRICS, "the model says nothing of any needle")


class _Totals:
    """Numerators and denominators of scores, by metric."""

    def __init__(self, shape: tuple[int, int]) -> None:
        def zeros() -> Float[Tensor, "part layer head"]:
            return torch.zeros(2, *shape, dtype=torch.float64)

        self.of: defaultdict[str, Tensor] = defaultdict(zeros)

    def count(self, name: str, layer: int, numerator: Tensor, denominator: Tensor) -> None:
        """Add one layer's: [head] and [head] or a number."""
        total = self.of[name]
        total[0, layer] += numerator.cpu()
        total[1, layer] += denominator.cpu()

    def add(self, other: "_Totals") -> None:
        for name, total in other.of.items():
            self.of[name] += total

    def quotients(self, names: Sequence[str]) -> dict[str, Float[Tensor, "layer head"]]:
        return {name: self.of[name][0] / self.of[name][1] for name in names}


class _Group:
    """Sequences of one length: their sums, while the model runs on them."""

    def __init__(
        self, loaded: LoadedModel, encoded: Encoded, group: Sequence[int], size: int
    ) -> None:
        """See what of group metrics the memory allows, `size` sequences at a time."""
        self._encoded = encoded
        self._device = loaded.device
        self._unembed = loaded.model.get_output_embeddings()
        self._names = defined(encoded)
        self._count, self._is_split = len(group), size < len(group)
        self._kept: dict[tuple[int, int, str], Sums] = {}
        length = len(encoded.tokens[group[0]])
        config = loaded.config
        shape = (config.num_hidden_layers, config.num_attention_heads)
        self.n_rows = block_rows(size * shape[1] * length, self._device)
        self.totals = _Totals(shape)
        self.damaged = torch.zeros(shape, dtype=torch.bool)
        self.left_out: dict[str, str] = {}
        kept = shape[0] * shape[1] * length**2 * 8
        # In one batch a group is finished block by block; else sums of all layers have to be kept.
        if self._is_split and kept > _MAX_KEPT_BYTES:
            reason = f"the mean over sequences of {length} tokens would take {kept / 2**30:.1f} GiB"
            self.left_out = dict.fromkeys(PATTERN_GROUP_METRICS, reason)

    def begin(self, batch: Sequence[int]) -> Int[Tensor, "batch token"]:
        """These sequences follow; returns their tokens."""
        encoded = self._encoded
        tokens = torch.tensor([encoded.tokens[one] for one in batch], device=self._device)
        needles = [encoded.needles[one] for one in batch] if encoded.needles else []
        self._search = Search(needles, tokens)
        self._facts = Sequences(
            bos=encoded.bos,
            period=encoded.period,
            tokens=tokens,
            classes={
                name: torch.tensor([members[one] for one in batch], device=self._device)
                for name, members in encoded.classes.items()
            },
        )
        return tokens

    def end(self, stream: Float[Tensor, "batch token d_model"]) -> None:
        """The model has run on them, and reads this into logits."""
        for found, said in self._search.results(stream, self._unembed):
            if not said.any():
                continue
            for name, metric in RETRIEVAL_METRICS.items():
                for layer, places in found.items():
                    values = metric.compute(places, said)
                    self.totals.count(name, layer, values, torch.ones_like(values))

    def observe(self, layer: int, rows: Rows) -> None:
        """Add some rows of a layer."""
        for name in self._names:
            values = PATTERN_METRICS[name].compute(rows, self._facts)
            is_defined = ~values.isnan()
            total = values.double().nansum(dim=(0, 2))
            self.totals.count(name, layer, total, is_defined.sum(dim=(0, 2)))
        for token_class, (mass, share) in class_mass(rows, self._facts).items():
            for metric in CLASS_METRICS.values():
                some, per = metric.compute(mass, share, rows)
                self.totals.count(
                    f"{metric.name}[{token_class}]",
                    layer,
                    some.double().sum(dim=(0, 2)),
                    per.double().sum(),
                )
        for name, group_metric in PATTERN_GROUP_METRICS.items():
            if name not in self.left_out and self._count > 1:
                self._add(layer, rows.first, name, group_metric.compute(rows))
        self._search.observe(layer, rows)
        self.damaged[layer] |= rows.largest.isnan().any(dim=2).any(dim=0).cpu()

    def finish(self) -> None:
        """All sequences have been seen."""
        for (layer, _, name), sums in self._kept.items():
            self._count_group(layer, name, sums)

    def _add(self, layer: int, first: int, name: str, sums: Sums) -> None:
        if not self._is_split:
            self._count_group(layer, name, sums)
            return
        kept = self._kept.get((layer, first, name))
        self._kept[layer, first, name] = {
            key: value.cpu() + kept[key] if kept else value.cpu() for key, value in sums.items()
        }

    def _count_group(self, layer: int, name: str, sums: Sums) -> None:
        finish = PATTERN_GROUP_METRICS[name].finish
        assert finish is not None  # noqa: S101 - narrows the type
        self.totals.count(name, layer, *finish(sums, self._count))


def _batch_size(loaded: LoadedModel, length: int) -> int:
    """How many sequences go through the model at a time."""
    config, device = loaded.config, loaded.device
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # Residual stream, norm, queries, keys, values and outputs; then the MLP's gate, up and product.
    of_token = (8 * config.hidden_size + 3 * inner) * loaded.model.dtype.itemsize
    room = _MAX_ACTIVATION_BYTES
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] // 4
    room = sized(room)
    size = room // (of_token * length)
    if not has_interface(loaded.model):
        # Such a layer makes its patterns whole.
        size = min(size, room // (8 * config.num_attention_heads * length**2))
    return max(1, size)
