"""What turns texts into tokens of one model, and tokens into what they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from catalog.errors import ModelError

_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokens of one model; without a tokenizer, ids that stand for nothing known."""

    tokenizer: PreTrainedTokenizerBase | None
    size: int
    """Rows of the embedding; the tokenizer may know fewer tokens, or more."""
    context: int | None
    """Longest sequence that the model's positions allow."""
    configured: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Ids that the configuration calls `bos`, `eos` or `pad`; used where there is no tokenizer."""

    @classmethod
    def of(
        cls, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None
    ) -> "Vocabulary":
        """That of a model."""
        context = getattr(config, "max_position_embeddings", None)
        return cls(
            tokenizer=tokenizer,
            size=config.vocab_size,
            # What MPT calls its context; a longer sequence would break its ALiBi.
            context=context or getattr(config, "max_seq_len", None),
            configured={name: _configured(config, name) for name in ("bos", "eos", "pad")},
        )

    def require_tokenizer(self, what: str) -> PreTrainedTokenizerBase:
        """The tokenizer, for what cannot be done without one.

        Raises:
            ModelError: If the model has none.
        """
        if self.tokenizer is None:
            raise ModelError(f"{what}: needs a tokenizer, and this model comes without one")
        return self.tokenizer

    @property
    def bos(self) -> int | None:
        if self.tokenizer is None:
            return min((t for t in self.configured.get("bos", ()) if t < self.size), default=None)
        token: int | None = self.tokenizer.bos_token_id
        return token

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts its BOS token first by itself."""
        if self.tokenizer is None or self.bos is None:
            return False
        return self.tokenizer("a").input_ids[:1] == [self.bos]

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that no text is made of: BOS, EOS, those of chat templates ..."""
        if self.tokenizer is None:
            return frozenset().union(*self.configured.values())
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(
            {*self.tokenizer.all_special_ids, *(token for token, one in added if one.special)}
        )

    @cached_property
    def ordinary_tokens(self) -> list[int]:
        """Tokens that text is made of, ascending: no special or added ones, and no padding rows.

        Without a tokenizer nothing tells padding rows from others.
        """
        if self.tokenizer is None:
            left_out, known = set(self.special_tokens), self.size
        else:
            left_out = {*self.special_tokens, *self.tokenizer.added_tokens_decoder}
            known = min(len(self.tokenizer), self.size)
        return [token for token in range(known) if token not in left_out]

    def encode(self, text: str) -> list[int | None]:
        """Tokens of a text without special ones; None for what the model has no embedding of.

        Without a tokenizer no text has tokens.
        """
        if self.tokenizer is None:
            return []
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        return [t if t < self.size and t != unknown else None for t in tokens]

    def text_of(self, token: int) -> str:
        """What a token stands for in the middle of a text, the space before it included.

        Part of a character is U+FFFD; a row of the embedding that no token has is nothing.
        """
        tokenizer = self.require_tokenizer("texts of tokens")
        piece = cast("str | None", tokenizer.convert_ids_to_tokens(token))
        if piece is None:
            return ""
        # Decoding a SentencePiece token alone loses its space, as at the start of a text.
        if _SENTENCEPIECE_SPACE in piece:
            return piece.replace(_SENTENCEPIECE_SPACE, " ")
        return cast("str", tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _configured(config: PreTrainedConfig, name: str) -> frozenset[int]:
    """The ids of a kind that the configuration names; some models end in several ways."""
    named = getattr(config, f"{name}_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return frozenset(token for token in ids if token is not None and 0 <= token < config.vocab_size)
