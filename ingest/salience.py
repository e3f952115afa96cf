"""Which tokens a head acts on most, and what it makes of them, from its weights alone.

Source: Elhelo and Geva 2024, arXiv:2412.11965 (salient operations). A token's salience is the norm
of what the head writes of it, |x W_V W_O|; the logits of what is written, x W_V W_O W_U, say what
the head maps it to. No biases, no norms, nothing folded or centred.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from catalog.declarations import SALIENT
from ingest.heads import LayerHeads

N_TOKENS = 30
N_OUTPUTS = 5
DIRECTIONS = ("promoted", "suppressed")
_MAX_ELEMENTS = 1 << 24
"""Of any float32 temporary: 64 MB."""


@dataclass(frozen=True, kw_only=True)
class Salient:
    """The most salient tokens of one layer's heads, the most salient first, on the CPU.

    `direction` is as in DIRECTIONS: the outputs with the largest logits, the largest first, and
    those with the smallest, the smallest first. Of equal norms or logits lower ids come first.
    """

    tokens: Int[Tensor, "head token"]
    norms: Float[Tensor, "head token"]
    outputs: Int[Tensor, "head token direction output"]
    logits: Float[Tensor, "head token direction output"]


def salient(
    heads: LayerHeads,
    sources: Float[Tensor, "vocab d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    *,
    allowed: Int[Tensor, " id"],
    n_tokens: int = N_TOKENS,
    n_outputs: int = N_OUTPUTS,
) -> Salient:
    """Find each head's most salient tokens, and the largest and smallest logits of each.

    Args:
        heads: With values and outputs.
        sources: What the heads read of every token; any dtype.
        unembedding: The vocabulary's directions; any dtype.
        allowed: Ids, ascending, that count as tokens and as outputs: no special tokens, and no
            rows that only pad the vocabulary.
        n_tokens: Tokens per head, fewer where fewer are allowed.
        n_outputs: Outputs per token and direction, likewise.
    """
    norms = _norms(heads, sources, allowed)
    chosen = _largest(norms, n_tokens)
    tokens = allowed[chosen]
    written = torch.stack(
        [
            sources[tokens[head]].float() @ heads.part("value")[heads.kv_head(head)] @ output
            for head, output in enumerate(heads.part("output"))
        ]
    )
    outputs, logits = _extremes(written.flatten(0, 1), unembedding, allowed, n_outputs)
    return Salient(
        tokens=tokens.cpu(),
        norms=norms.gather(1, chosen).cpu(),
        outputs=outputs.unflatten(0, tokens.shape).cpu(),
        logits=logits.unflatten(0, tokens.shape).cpu(),
    )


def table(layers: Sequence[Salient | None], decode: Callable[[int], str]) -> pa.Table:
    """Rows for every layer, head, token and output.

    Layers whose matrices are missing are None, and have no rows; neither have tokens of norm 0,
    of which heads of zeros have nothing else.
    """
    tables = [_table(layer, one, decode) for layer, one in enumerate(layers) if one is not None]
    return pa.concat_tables([SALIENT.empty_table(), *tables])


def _table(layer: int, one: Salient, decode: Callable[[int], str]) -> pa.Table:
    shape = one.outputs.shape
    head, token, direction, output = (place.ravel() for place in np.indices(shape))
    token_id, norm = one.tokens.numpy()[head, token], one.norms.numpy()[head, token]
    output_id = one.outputs.numpy().ravel()
    words = {int(id_): decode(int(id_)) for id_ in np.union1d(token_id, output_id)}
    full = pa.table(
        {
            "layer": np.full(len(head), layer),
            "head": head,
            "token_rank": token,
            "token_id": token_id,
            "token": [words[id_] for id_ in token_id.tolist()],
            "norm": norm,
            "direction": np.array(DIRECTIONS)[direction],
            "output_rank": output,
            "output_id": output_id,
            "output": [words[id_] for id_ in output_id.tolist()],
            "logit": one.logits.numpy().ravel(),
        },
        schema=SALIENT,
    )
    return full.filter(pa.array(norm > 0))


def _norms(
    heads: LayerHeads, sources: Float[Tensor, "vocab d_model"], allowed: Int[Tensor, " id"]
) -> Float[Tensor, "head id"]:
    """|x W_V W_O| = |x W_V R^T|, R the triangle of W_O^T: d_head^2 operations a token and head."""
    values = heads.part("value")
    triangles = heads.triangle("output").float().unflatten(0, (len(values), -1)).flatten(1, 2)
    step = max(1, _MAX_ELEMENTS // sources.shape[1])
    chunks = []
    for ids in allowed.split(step):
        read = sources[ids].float()
        written = [read @ value @ own.T for value, own in zip(values, triangles, strict=True)]
        chunks.append(
            torch.cat([one.unflatten(1, (heads.group, -1)).norm(dim=2).T for one in written])
        )
    return torch.cat(chunks, dim=1)


def _extremes(
    written: Float[Tensor, "row d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    allowed: Int[Tensor, " id"],
    n: int,
) -> tuple[Int[Tensor, "row direction output"], Float[Tensor, "row direction output"]]:
    """Ids and logits of the `n` largest and `n` smallest logits of every row."""
    step = max(1, _MAX_ELEMENTS // max(unembedding.shape[1], len(written)))
    ids = torch.empty(len(written), 2, 0, dtype=torch.long, device=written.device)
    logits = written.new_empty(len(written), 2, 0)
    for columns in allowed.split(step):
        own = written @ unembedding[columns].float().T
        found = torch.stack([_largest(own, n), _largest(-own, n)], dim=1)
        logits = torch.cat([logits, own[:, None].expand(-1, 2, -1).gather(2, found)], dim=2)
        ids = torch.cat([ids, columns[found]], dim=2)
        # Lower ids stand first among equals already, so that places decide as ids would.
        best = torch.stack([_largest(logits[:, 0], n), _largest(-logits[:, 1], n)], dim=1)
        ids, logits = ids.gather(2, best), logits.gather(2, best)
    return ids, logits


def _largest(values: Float[Tensor, "row column"], n: int) -> Int[Tensor, "row place"]:
    """Columns of the `n` largest values of every row, of equal ones the first columns.

    What topk does with equal values depends on the device and on the number of columns.
    """
    width = values.shape[1]
    if width <= n:
        return values.argsort(dim=1, descending=True, stable=True)
    top, columns = values.topk(n + 1, dim=1)
    columns = columns[:, :n].sort(dim=1).values
    order = values.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # Equal values on both sides of the cut: which of them topk took is chance.
    cut = (top[:, n - 1] == top[:, n]).nonzero().squeeze(1)
    columns[cut] = values[cut].argsort(dim=1, descending=True, stable=True)[:, :n]
    return columns
