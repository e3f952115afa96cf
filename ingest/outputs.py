"""Sums of output metrics over batches of sequences, taken while the model runs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ingest.metrics import OUTPUT_METRICS
from ingest.readers.outputs import OutputReader, Written
from ingest.written import HeadOutputs

_MAX_BYTES = 1 << 24
"""Of one float32 temporary of a layer; metrics hold a few at a time."""


@dataclass
class _Layer:
    """What one batch has left of one layer."""

    totals: dict[str, Float[Tensor, " head"]]
    counts: dict[str, Float[Tensor, " head"]]
    unscaled: dict[str, list[Float[Tensor, "batch few head"]]]
    """By metric, what waits for the final norm's scale, in order of position."""
    damaged: Bool[Tensor, " head"]
    is_added_damaged: bool


class _Counted:
    """What all batches that have ended come to."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Nothing has ended."""
        self.totals = {name: torch.zeros(shape, dtype=torch.float64) for name in OUTPUT_METRICS}
        self.counts = {name: torch.zeros(shape, dtype=torch.float64) for name in OUTPUT_METRICS}
        self.undefined: dict[str, str] = {}
        self.damaged = torch.zeros(shape, dtype=torch.bool)
        self.damaged_layers = torch.zeros(shape[0], dtype=torch.bool)


class OutputSums:
    """Every output metric of a model on one probe, in the making.

    A batch counts once it has ended. One that was begun and not ended, because the memory did not
    hold it, is forgotten when the next begins.

    Of a layer no more is kept than what it gives each token's logit, until the final norm's scale
    is known: a number per token and head.
    """

    def __init__(self, reader: OutputReader) -> None:
        """Nothing is seen yet."""
        self._reader = reader
        shape = (reader.n_layers, reader.n_heads)
        self.counted = _Counted(shape)
        self._names = list(OUTPUT_METRICS)
        if self._reader.no_attribution:
            self._leave_out(self._reader.no_attribution)
            self._names = [name for name in OUTPUT_METRICS if not _is_of_logits(name)]
        self._layers: dict[int, _Layer] = {}
        self._scale: Tensor | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See every run of the model inside this context; each is one batch."""
        with self._reader.watching(self._see, self._see_scale):
            yield

    def begin(self, tokens: Int[Tensor, "batch token"]) -> None:
        """The model runs next on these sequences; nothing is padded."""
        self._tokens = tokens
        self._layers, self._scale = {}, None

    def end(self) -> None:
        """The run is over: count it."""
        if self._scale is not None and not self._scale.isfinite().all():
            self._leave_out("NaN or infinite values in the residual stream before the unembedding")
        for layer, seen in self._layers.items():
            self._count(layer, seen)
        self._layers, self._scale = {}, None

    def add(self, other: "OutputSums") -> None:
        """Count what another has counted of the same model on other sequences."""
        for name in OUTPUT_METRICS:
            self.counted.totals[name] += other.counted.totals[name]
            self.counted.counts[name] += other.counted.counts[name]
        self.counted.undefined |= other.counted.undefined
        self.counted.damaged |= other.counted.damaged
        self.counted.damaged_layers |= other.counted.damaged_layers

    def scores(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Every metric's mean, float64; NaN where it is undefined."""
        # No defined position, or no heads in the layer: 0 / 0, which is NaN.
        scores = {
            name: self.counted.totals[name] / self.counted.counts[name] for name in OUTPUT_METRICS
        }
        for name, values in scores.items():
            values[self.counted.damaged] = torch.nan
            if "added" in OUTPUT_METRICS[name].needs:
                values[self.counted.damaged_layers] = torch.nan
            if name in self.counted.undefined:
                values[:] = torch.nan
        return scores

    @property
    def undefined(self) -> dict[str, str]:
        """Why metrics (by name), layers or heads (L3, L3H1) have no score or not all of them."""
        told = dict(self.counted.undefined)
        if self._reader.projections and not any(
            self._is_counted("targets", layer) for layer in self._reader.projections
        ):
            reason = "no sequence has a second token"
            told = {name: reason for name in OUTPUT_METRICS if _is_of_logits(name)} | told
        for layer, heads in enumerate(self.counted.damaged):
            if self.counted.damaged_layers[layer]:
                told[f"L{layer}"] = "NaN or infinite values in the attention's update: no shares"
            elif layer in self._reader.projections and not self._is_counted("added", layer):
                told[f"L{layer}"] = "its attention adds nothing: no shares"
            places = [f"L{layer}"] if heads.all() else []
            places = places or [f"L{layer}H{int(head)}" for head in heads.nonzero()]
            told |= dict.fromkeys(places, "NaN or infinite values in what it writes")
        return told

    def _is_counted(self, need: str, layer: int) -> bool:
        names = [name for name in OUTPUT_METRICS if need in OUTPUT_METRICS[name].needs]
        return all(bool(self.counted.counts[name][layer].all()) for name in names)

    def _leave_out(self, reason: str) -> None:
        self.counted.undefined |= {name: reason for name in OUTPUT_METRICS if _is_of_logits(name)}

    def _see(self, layer: int, written: Written) -> None:
        reader = self._reader
        output = reader.matrices(layer)
        gram = torch.stack([one @ one.mT for one in (head.double() for head in output)])
        z = written.z
        seen = _Layer(
            totals=dict.fromkeys(self._names, torch.zeros(reader.n_heads, dtype=torch.float64)),
            counts=dict.fromkeys(self._names, torch.zeros(reader.n_heads, dtype=torch.float64)),
            unscaled={name: [] for name in self._names if _is_of_logits(name)},
            # Not finite where one of them is not, and cheaper to know.
            damaged=~z.sum(dim=(0, 1, 3), dtype=torch.float32).isfinite().cpu(),
            is_added_damaged=not written.added.sum(dtype=torch.float32).isfinite().item(),
        )
        n_sequences, length = self._tokens.shape
        widest = max(reader.d_model, z.shape[2] * z.shape[3])
        step = max(1, _MAX_BYTES // (4 * widest * n_sequences))
        for start in range(0, length, step):
            here = slice(start, start + step)
            outputs = HeadOutputs(
                z=z[:, here].float(),
                output=output,
                gram=gram,
                added=written.added[:, here].float(),
                norm=reader.norms.get(layer),
                scale=None if written.scale is None else written.scale[:, here],
                **self._targets(start, step),
            )
            self._add(seen, outputs)
        self._layers[layer] = seen

    def _targets(self, start: int, step: int) -> dict[str, Tensor]:
        if self._reader.no_attribution:
            return {}
        tokens = self._tokens[:, 1:][:, start : start + step]
        different, following = tokens.unique(return_inverse=True)
        return {
            "targets": self._reader.targets(different),
            "following": following,
            "mean_target": self._reader.mean_target,
        }

    def _add(self, seen: _Layer, outputs: HeadOutputs) -> None:
        for name in self._names:
            values = OUTPUT_METRICS[name].compute(outputs)
            if name in seen.unscaled:
                seen.unscaled[name].append(values)
                continue
            total, count = values.double().nansum(dim=(0, 1)), (~values.isnan()).sum(dim=(0, 1))
            seen.totals[name] = seen.totals[name] + total.cpu()
            seen.counts[name] = seen.counts[name] + count.cpu()

    def _see_scale(self, scale: Float[Tensor, "batch token"]) -> None:
        self._scale = scale.double()

    def _count(self, layer: int, seen: _Layer) -> None:
        for name, parts in seen.unscaled.items():
            values = torch.cat(parts, dim=1).double()
            assert self._scale is not None  # noqa: S101 - narrows the type
            scaled = values * self._scale[:, : values.shape[1], None]
            seen.totals[name] = scaled.sum(dim=(0, 1)).cpu()
            seen.counts[name] = torch.full_like(seen.totals[name], scaled[..., 0].numel())
        for name in self._names:
            self.counted.totals[name][layer] += seen.totals[name]
            self.counted.counts[name][layer] += seen.counts[name]
        self.counted.damaged[layer] |= seen.damaged
        self.counted.damaged_layers[layer] |= seen.is_added_damaged


def _is_of_logits(name: str) -> bool:
    return "targets" in OUTPUT_METRICS[name].needs
