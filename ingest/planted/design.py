"""How planted heads are made: the residual stream, the roles, and the scores that make them sharp.

The residual stream. Every token x has the code c_x, one dimension of its own. The stream is a sum
of parts that are orthogonal to each other, each turned into random directions by one rotation, so
that nothing lies along an axis:

- `token`: c_x from the embedding. The first MLP adds it once more.
- `one`: the same direction for all tokens, from the embedding. The first MLP takes a quarter away.
- `position`: of GPT-2 only, (cos w_f i, sin w_f i) for each frequency.
- `previous`: what the previous-token head has written, the code of the token before.
- `output`: what copiers, induction and relation heads write; token u is unembedded along c_u of
  this part.
- `ladder`: one direction, along which token u is also unembedded, by l_u = 2 u / (V - 1) - 1. Every
  head writes `LADDER` times it, whatever it reads, so that no two of its logits are equal.

Norms. RMSNorm divides by the root mean square, which is the same for all tokens and positions,
since the parts have constant lengths: codes have length 1, and heads before the last stage write
either a constant or the code of the one token that they attend to. LayerNorm also subtracts the
mean, which is 0: all parts are orthogonal to the vector of ones. So a norm is a known factor, which
weights divide out.

Queries and keys. All heads of a layer have the same keys: content, the token's code (or, in the
second layer, what `previous` holds less the token's code), and a clock, the same for all tokens. A
role is in its query. KV heads differ in the order and signs of their dimensions only, so that one
taken for another makes no sense of any query. In rotary layouts (see `ingest.planted.clock`) the
clock takes the fastest pairs of dimensions, content those that do not turn or hardly so; with
learned positions, the key's clock is the `position` part.

Sharpness. G = ln(context / EPSILON): where the wanted key's score is above all others by G, they
share at most EPSILON of the attention. K_d is the clock's kernel with its peak at distance d, gap_d
the distance to its second largest value, span_d that to its smallest. Scores of query q, key k:

- previous token: b K_1, b = G / gap_1. Writes the code that it reads into `previous`.
- current token: b K_0, b = G / gap_0.
- duplicate token: A [x_k = x_q] - b K_0, b = G / gap_0, A = G + b span_0. An earlier x_q has at
  least b gap_0 more than q itself, which has at least A - b span_0 more than any other token:
  without a duplicate, the head attends to its own position.
- induction (Olsson et al. 2022, arXiv:2209.11895): A c_q . (previous_k - token_k) + b K_1,
  b = G / gap_1, A = G + b span_1. By K-composition a key after an earlier x_q has A; without one,
  the head attends to the position before. The token's own code is subtracted since at position 0,
  where the previous-token head has only itself to attend to, previous is the token.
- first token: b sin(w (q - k) - pi/4), b = G / gap, which rises towards position 0.
- token class: G [x_k in the class]: uniform over the class, and over all keys where it has none.
- uniform, and what writes into `output`: no query, hence score 0 everywhere.

What is written, of a token's code c_x and of `one`, beside the ladder:

- copier and induction: c_x into `output`; suppressor: -c_x; relation: c_t for the pairs (x, t),
  else nothing.
- all others: nothing.

So the induction head copies what it attends to. While a needle is said again it is the retrieval
head (Wu et al. 2024, arXiv:2404.15574), and the model says the token that it copies unless the
ladder lifts another higher.
"""

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch

from ingest.planted.clock import Clock, Kernel

SPECIAL = ("<pad>", "<s>", "</s>")
_WORDS = string.ascii_letters + string.digits + string.punctuation
"""Single bytes: a byte-level tokenizer knows them without merges."""
EPSILON = 1e-6
"""Attention that a sharp head leaves to all keys but the wanted, at most."""
LADDER = 0.1
NORM_EPSILON = 1e-6
MLP_TOKEN, MLP_ONE = 1.0, -0.25
"""How much the first MLP adds of a token's code and of `one`.

Of different signs, so that an embedding in place of the MLP's output turns the ladder round.
"""


class Role(StrEnum):
    """What a planted head does."""

    PREVIOUS = "previous token"
    CURRENT = "current token"
    DUPLICATE = "duplicate token"
    CLASS = "token class"
    INDUCTION = "induction"
    FIRST = "first token"
    UNIFORM = "uniform"
    COPIER = "copier"
    SUPPRESSOR = "suppressor"
    RELATION = "relation"


STAGES: tuple[tuple[Role, ...], ...] = (
    (Role.PREVIOUS, Role.CURRENT, Role.DUPLICATE, Role.CLASS),
    (Role.INDUCTION, Role.FIRST, Role.UNIFORM),
    (Role.COPIER, Role.SUPPRESSOR, Role.RELATION),
)
"""Roles of the first layer, the second, and the last; heads that are left are as `UNIFORM`."""
WRITERS = STAGES[2]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is particular about an architecture, as far as planting goes."""

    rotary_share: float = 1.0
    """Of a head's dimensions; 0 with learned positions."""
    theta: float = 1e12
    """Base of rotary frequencies: so large that the slower half does not turn within a context."""
    centred: bool = False
    """LayerNorm, rather than RMSNorm."""
    biased: bool = False
    """Queries and keys have biases: constants go there, rather than through `one`."""
    grouped: bool = False
    decoupled: bool = False
    """d_head need not be d_model / n_heads."""


LAYOUTS: Mapping[str, Layout] = {
    "gpt2": Layout(rotary_share=0, theta=1e4, centred=True, biased=True),
    "gpt_neox": Layout(rotary_share=0.25, theta=1e4, centred=True, biased=True),
    "llama": Layout(grouped=True, decoupled=True),
    "qwen2": Layout(grouped=True, decoupled=True, biased=True),
}
ARCHITECTURES = tuple(LAYOUTS)
_LEARNED_FREQUENCIES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Sizes, and the numbers that follow from them; no weights. Equal to itself alone."""

    architecture: str
    vocabulary: int
    context: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    token_class: tuple[int, ...]
    pairs: Mapping[int, int]
    """What the relation head maps to what."""
    clock: Clock
    clock_dims: tuple[tuple[int, int], ...]
    """Of a head, by frequency: the dimensions of cosine and sine."""
    content_dims: tuple[int, ...]
    """Of a head, by token; the last is for `one`, which only values have."""

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.architecture]

    @property
    def words(self) -> tuple[str, ...]:
        """What tokens stand for, by id: special tokens, then characters."""
        return (*SPECIAL, *_WORDS)[: self.vocabulary]

    @property
    def learned(self) -> bool:
        return self.layout.rotary_share == 0

    @property
    def sharpness(self) -> float:
        """G."""
        return math.log(self.context / EPSILON)

    def kernel(self, role: Role) -> tuple[float, Kernel] | None:
        """Amplitude b and kernel K of a role; None for one that does not tell positions."""
        if role is Role.FIRST:
            kernel = self.clock.ramp()
        elif role in (Role.PREVIOUS, Role.INDUCTION):
            kernel = self.clock.peak(1)
        elif role in (Role.CURRENT, Role.DUPLICATE):
            kernel = self.clock.peak(0)
        else:
            return None
        b = self.sharpness / kernel.gap
        return (-b if role is Role.DUPLICATE else b), kernel

    def match(self, role: Role) -> float:
        """A: what a matching token is worth; 0 for roles that do not match tokens."""
        if role not in (Role.DUPLICATE, Role.INDUCTION):
            return 0.0
        b, kernel = self.kernel(role) or (0.0, self.clock.peak(0))
        return self.sharpness + abs(b) * kernel.span

    def residual(self, layer: int) -> dict[str, float]:
        """Length of each part of the residual stream that a layer's attention reads."""
        return {
            "token": 1 + MLP_TOKEN if layer else 1.0,
            "one": 1 + MLP_ONE if layer else 1.0,
            "position": 1.0 if self.learned else 0.0,
            "previous": 1.0 if layer else 0.0,
            "output": 1.0 if layer > 1 else 0.0,
            "ladder": layer * self.n_heads * LADDER,
        }

    def factor(self, lengths: Mapping[str, float]) -> float:
        """What the norm multiplies a stream with, given its parts' lengths."""
        square = sum(length**2 for length in lengths.values())
        return 1 / math.sqrt(square / self.d_model + NORM_EPSILON)

    def read(self, layer: int) -> dict[str, float]:
        """What a layer's weights multiply normalised parts with to make their length 1."""
        lengths = self.residual(layer)
        factor = self.factor(lengths)
        return {name: 1 / (factor * length) for name, length in lengths.items() if length}

    def ladder(self, token: int) -> float:
        return 2 * token / (self.vocabulary - 1) - 1


def design(
    architecture: str,
    *,
    vocabulary: int = 67,
    context: int = 160,
    n_layers: int = 3,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    d_head: int = 128,
    n_class: int = 8,
    n_pairs: int = 32,
) -> Design:
    """Sizes that fit each other.

    Args:
        architecture: One of ARCHITECTURES.
        vocabulary: Rows of the embedding: three special tokens, then up to 94 ordinary ones.
        context: Positions, at least 2.
        n_layers: At least 3.
        n_heads: At least 4.
        n_kv_heads: By default two query heads share one where the layout knows groups.
        d_head: Even; has to hold every token's code, and the clock.
        n_class: Tokens of the class that the token-class head attends to, the first ordinary ones.
        n_pairs: Of the relation, from the first ordinary tokens to those right after these.

    Raises:
        ValueError: If a size is too small; says which.
    """
    if architecture not in LAYOUTS:
        raise ValueError(f"no layout {architecture!r}; there are {', '.join(ARCHITECTURES)}")
    layout = LAYOUTS[architecture]
    n_kv_heads = n_kv_heads or (n_heads // 2 if layout.grouped else n_heads)
    if n_layers < len(STAGES) or n_heads < max(map(len, STAGES)):
        raise ValueError(f"{n_layers} layers of {n_heads} heads; expected at least 3 of 4")
    if n_heads % n_kv_heads or (n_kv_heads != n_heads and not layout.grouped):
        raise ValueError(f"{architecture}: {n_kv_heads} KV heads for {n_heads} heads")
    n_ordinary = vocabulary - len(SPECIAL)
    if n_ordinary < max(n_class, 2 * n_pairs):
        raise ValueError(
            f"{n_ordinary} ordinary tokens; expected at least {max(n_class, 2 * n_pairs)}"
        )
    if n_ordinary > len(_WORDS):
        raise ValueError(f"{n_ordinary} ordinary tokens; expected at most {len(_WORDS)}")
    clock, clock_dims, content_dims = _head_dims(layout, vocabulary, context, d_head)
    ordinary = range(len(SPECIAL), vocabulary)
    # Three codes, `one`, the ladder, and the direction that LayerNorm takes.
    parts = 3 * vocabulary + 3 + (2 * len(clock_dims) if layout.rotary_share == 0 else 0)
    # Configurations want a multiple of the heads even where d_head is another number.
    step = math.lcm(32, n_heads)
    d_model = -(-parts // step) * step if layout.decoupled else n_heads * d_head
    if d_model < parts:
        raise ValueError(f"d_model {d_model} has no room for {parts} directions; add heads")
    return Design(
        architecture=architecture,
        vocabulary=vocabulary,
        context=context,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_model=d_model,
        token_class=tuple(ordinary[:n_class]),
        pairs=dict(zip(ordinary[:n_pairs], ordinary[n_pairs : 2 * n_pairs], strict=True)),
        clock=clock,
        clock_dims=clock_dims,
        content_dims=content_dims,
    )


def _head_dims(
    layout: Layout, vocabulary: int, context: int, d_head: int
) -> tuple[Clock, tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Share a head's dimensions out: the fastest pairs to the clock, the rest to content.

    Of the turning dimensions content gets the slowest first, and one of each pair before the other
    of any: a class of few tokens, of low ids, then lies in pairs of its own.
    """
    n_turning = round(d_head * layout.rotary_share)
    half = n_turning // 2 or _LEARNED_FREQUENCIES
    still = range(2 * half, d_head)
    n_slow = max(0, -(-(vocabulary + 1 - len(still)) // 2)) if n_turning else 0
    n_clock = half - n_slow
    if n_clock < 1 or vocabulary + 1 > len(still) + 2 * n_slow:
        raise ValueError(
            f"heads of {d_head} dimensions cannot hold {vocabulary} tokens and a clock"
        )
    frequencies = layout.theta ** (-torch.arange(half, dtype=torch.float64) / half)
    slow = range(half - 1, n_clock - 1, -1)
    return (
        Clock(frequencies=frequencies[:n_clock], context=context),
        tuple((f, f + half) for f in range(n_clock)),
        (*still, *slow, *(f + half for f in slow))[: vocabulary + 1],
    )
