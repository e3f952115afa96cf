"""How a metric declares itself: a pure function and the facts that users see beside its scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.rows import Rows
from ingest.signatures import Anchors
from ingest.written import HeadOutputs


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What a metric may assume of the token sequences behind a batch of patterns.

    All sequences of a batch have the same length.
    """

    bos: int = 0
    """1 where a BOS token stands first, else 0."""
    period: int | None = None
    """Length of the repeated block where the sequences are one block repeated once, else None."""
    tokens: Int[Tensor, "batch position"] | None = None
    """Their ids, where metrics ask for them."""
    classes: Mapping[str, Bool[Tensor, "batch position"]] = field(default_factory=dict)
    """Which positions hold a token of a named class."""


@dataclass(frozen=True, kw_only=True)
class ModelMatrices:
    """What metrics of a layer's weights need besides its heads; None where there is no such."""

    gram: Float[Tensor, "d_model d_model"] | None = None
    """unembedding^T embedding, from `gram_matrix`; the same for all layers."""
    positions: Float[Tensor, "position d_model"] | None = None
    """Learned position embeddings after the layer's own input norm."""
    scaling: float = 1.0
    """What the layer multiplies q k^T with before the softmax."""
    anchors: Anchors | None = None
    """What the layer's heads read and write of the words that all models share."""


PatternFunction = Callable[[Rows, Sequences], Float[Tensor, "batch head position"]]
Sums = Mapping[str, Tensor]
GroupFunction = Callable[[Rows], Sums]
Finish = Callable[[Sums, int], tuple[Float[Tensor, " head"], Float[Tensor, " head"]]]
Quotient = tuple[Float[Tensor, "batch head position"], Float[Tensor, "batch one position"]]
ClassFunction = Callable[
    [Float[Tensor, "batch head query"], Float[Tensor, "batch one query"], Rows], Quotient
]
RankFunction = Callable[[Int[Tensor, "head pair"], int], Float[Tensor, "head pair"]]
WeightFunction = Callable[[LayerHeads, ModelMatrices], Float[Tensor, " head"]]
VectorFunction = Callable[[LayerHeads, ModelMatrices], Float[Tensor, "head n"]]
RetrievalFunction = Callable[
    [Int[Tensor, "head answer"], Bool[Tensor, " answer"]], Float[Tensor, " head"]
]
OutputFunction = Callable[[HeadOutputs], Float[Tensor, "batch position head"]]
CompositionFunction = Callable[[Float[Tensor, "*head n"]], Float[Tensor, "*head"]]
F = TypeVar("F", bound=Callable[..., Tensor | Sums | Quotient])


@dataclass(frozen=True, kw_only=True)
class Declared(Generic[F]):
    """A metric: what it is called, what it means, and the function that computes it."""

    name: str
    version: int
    unit: str
    range: tuple[float | None, float | None]
    source: str
    description: str
    compute: F
    needs_period: bool = False
    of_negated: bool = False
    with_context: bool = True
    """Of dynamic metrics: in an ordinary run, or with attention forced onto the source."""
    needs: tuple[str, ...] = ()
    """Of metrics of weights the parts of `LayerHeads` and fields of `ModelMatrices` without which
    all heads are undefined; of output metrics, the fields of `HeadOutputs` that they read."""
    finish: Finish | None = None
    """Of group metrics: what the sums over a group of sequences come to."""
    needs_tokens: bool = False
    """Whether the metric is of which tokens are the same, in texts."""


class Facts(TypedDict):
    """What is to be said of a metric; the first line of its docstring describes it."""

    name: str
    version: int
    """Raised whenever a change moves numbers."""
    unit: str
    range: tuple[float | None, float | None]
    source: str
    """The paper, and the formula where the paper leaves some of it open."""


PATTERN_METRICS: dict[str, Declared[PatternFunction]] = {}
PATTERN_GROUP_METRICS: dict[str, Declared[GroupFunction]] = {}
CLASS_METRICS: dict[str, Declared[ClassFunction]] = {}
RELATION_METRICS: dict[str, Declared[RankFunction]] = {}
DYNAMIC_METRICS: dict[str, Declared[RankFunction]] = {}
COPYING_METRICS: dict[str, Declared[RankFunction]] = {}
WEIGHT_METRICS: dict[str, Declared[WeightFunction]] = {}
VECTOR_METRICS: dict[str, Declared[VectorFunction]] = {}
OUTPUT_METRICS: dict[str, Declared[OutputFunction]] = {}
RETRIEVAL_METRICS: dict[str, Declared[RetrievalFunction]] = {}
COMPOSITION_METRICS: dict[str, Declared[CompositionFunction]] = {}
VERSIONS: dict[str, int] = {}
"""Of every metric that is declared."""


def pattern_metric(
    *,
    needs_period: bool = False,
    needs_tokens: bool = False,
    **facts: Unpack[Facts],
) -> Callable[[PatternFunction], PatternFunction]:
    """Declare a metric of attention patterns.

    The function maps some rows of one layer's softmaxed patterns to the metric's value at every
    position among them over which it is averaged, NaN where it is undefined there. The score of a
    head is the plain mean over these positions and all sequences, summed in float64; it is
    undefined where no position is defined. Rows are finite, and must be left as they are. What a
    sink that is a parameter took of a row is no key's: it is missing from the row and counts
    nowhere.
    """
    return _into(
        PATTERN_METRICS,
        needs_period=needs_period,
        needs_tokens=needs_tokens,
        **facts,
    )


def pattern_group_metric(
    *,
    finish: Finish,
    **facts: Unpack[Facts],
) -> Callable[[GroupFunction], GroupFunction]:
    """Declare a metric of attention patterns that compares sequences of one length.

    The function gives sums over a batch's sequences for some rows, float64, which are added up
    over batches; `finish` makes of the sums of a group and its number of sequences, at least two,
    these rows' numerator and denominator per head. The score is the quotient of their sums over
    all rows and groups (lengths); undefined where it is 0 / 0.
    """
    return _into(
        PATTERN_GROUP_METRICS,
        finish=finish,
        **facts,
    )


def class_metric(
    **facts: Unpack[Facts],
) -> Callable[[ClassFunction], ClassFunction]:
    """Declare a metric of the attention that a class of tokens gets.

    The function maps the attention that keys of the class get of some rows, and the share of the
    keys that a query may attend to which are of the class, to a numerator and a denominator at
    every position that counts. The score is the quotient of their sums over positions and
    sequences, in float64; undefined where it is 0 / 0.
    """
    return _into(CLASS_METRICS, **facts)


def relation_metric(
    *, name: str, version: int, source: str, of_negated: bool = False
) -> Callable[[RankFunction], RankFunction]:
    """Declare a metric of the ranks that a head gives to a relation's targets.

    The function maps ranks (0: no logit is larger; capped, so that larger ranks are equal) and
    the relation's k to a value per pair; the score is its mean over the relation's pairs.
    """
    return _into(
        RELATION_METRICS,
        name=name,
        version=version,
        unit="share of pairs",
        range=(0.0, 1.0),
        source=source,
        of_negated=of_negated,
    )


def dynamic_metric(
    *, name: str, version: int, of_negated: bool = False, with_context: bool = True
) -> Callable[[RankFunction], RankFunction]:
    """Declare a metric of the ranks that a head's output gives to targets at the end of prompts.

    As for relations, of what the head writes in a run. With context, that is an ordinary one;
    without, the head's attention at the last position is all on the source, and all else as in
    the ordinary run.
    """
    return _into(
        DYNAMIC_METRICS,
        name=name,
        version=version,
        unit="share of pairs",
        range=(0.0, 1.0),
        source="Elhelo and Geva 2024, arXiv:2412.11965 (dynamic relation scores)",
        of_negated=of_negated,
        with_context=with_context,
    )


def copying_metric(
    *, name: str, version: int, source: str, of_negated: bool = False
) -> Callable[[RankFunction], RankFunction]:
    """Declare a metric of the ranks that a head gives to tokens when it reads these tokens.

    As for relations, with the pairs (t, t) of `sample_tokens`, tokens read as their embedding in
    every layer. k is fixed by the metric; the argument is not used.
    """
    return _into(
        COPYING_METRICS,
        needs=("value", "output"),
        name=name,
        version=version,
        unit="share of tokens",
        range=(0.0, 1.0),
        source=source,
        of_negated=of_negated,
    )


def weight_metric(
    *,
    needs: tuple[str, ...],
    **facts: Unpack[Facts],
) -> Callable[[WeightFunction], WeightFunction]:
    """Declare a metric of one layer's weights: float64 per head, NaN where it is undefined.

    What is declared answers NaN for all heads where one of `needs` is None. Weights must be finite;
    a head of zeros is one without a direction, and must spoil no other.
    """
    return _into(
        WEIGHT_METRICS,
        _where_possible(needs, ()),
        needs=needs,
        **facts,
    )


def vector_metric(
    *,
    needs: tuple[str, ...],
    **facts: Unpack[Facts],
) -> Callable[[VectorFunction], VectorFunction]:
    """Declare a metric that is a list of numbers per head, otherwise as `weight_metric`.

    Undefined is a row with a NaN: [head, 1] of them where one of `needs` is None.
    """
    return _into(
        VECTOR_METRICS,
        _where_possible(needs, (1,)),
        needs=needs,
        **facts,
    )


def retrieval_metric(
    **facts: Unpack[Facts],
) -> Callable[[RetrievalFunction], RetrievalFunction]:
    """Declare a metric of a needle in a haystack that is asked for and said again.

    Of one sequence, the function is told for each token of the answer which of the needle's tokens
    each head attends to most of all keys while that answer token is to be said, where it is the
    same token (else -1), and whether the model finds it the likeliest. The score is the mean over
    sequences in which the model says at least one; undefined without such a sequence.
    """
    return _into(RETRIEVAL_METRICS, **facts)


def output_metric(
    *,
    needs: tuple[str, ...],
    **facts: Unpack[Facts],
) -> Callable[[OutputFunction], OutputFunction]:
    """Declare a metric of what one layer's heads write while the model runs.

    The function gives the metric's value at every position over which it is averaged, NaN where it
    is undefined there; the score is the plain mean over these positions and all sequences, summed
    in float64. Values of what needs `targets` are multiplied by the final norm's scale at their
    position before that.
    """
    return _into(
        OUTPUT_METRICS,
        needs=needs,
        **facts,
    )


def composition_metric(
    *, name: str, version: int, source: str, needs: tuple[str, ...]
) -> Callable[[CompositionFunction], CompositionFunction]:
    """Declare what is kept of a head's composition scores with many others, NaN among them."""
    return _into(
        COMPOSITION_METRICS,
        name=name,
        version=version,
        unit="share of the product of norms",
        range=(0.0, 1.0),
        source=source,
        needs=needs,
    )


def _into(
    registry: dict[str, Declared[F]],
    wrap: Callable[[F], F] = lambda function: function,
    **facts: Any,
) -> Callable[[F], F]:
    def declare(function: F) -> F:
        if not function.__doc__:
            raise ValueError(f"metric function {function.__name__} needs a docstring")
        metric = Declared(
            description=function.__doc__.splitlines()[0], compute=wrap(function), **facts
        )
        if metric.name in VERSIONS:
            raise ValueError(f"metric {metric.name} is declared twice")
        VERSIONS[metric.name] = metric.version
        registry[metric.name] = metric
        return function

    return declare


def _where_possible(
    needs: tuple[str, ...], shape: tuple[int, ...]
) -> Callable[[WeightFunction], WeightFunction]:
    def wrap(function: WeightFunction) -> WeightFunction:
        def compute(heads: LayerHeads, model: ModelMatrices) -> Tensor:
            has = {**vars(heads), **vars(model)}
            if any(has[name] is None for name in needs):
                return torch.full((heads.n_heads, *shape), torch.nan, dtype=torch.float64)
            return function(heads, model).double().cpu()

        return compute

    return wrap
