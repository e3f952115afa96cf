"""Value and output matrices of every query head, and the first layer's MLP, from a loaded model."""

from typing import Protocol, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ingest.readers.architectures import Layout, layout


class _Projection(Protocol):
    weight: Tensor


class WeightReader:
    """The matrices that say what a head writes, as views of the model's own parameters.

    Row vectors throughout: a head maps a token's embedding e to e @ W_V @ W_O, and that to logits
    by @ W_U. Biases are not part of it, and nothing is folded or centred.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        """Find the modules.

        Raises:
            ModelError: If the architecture is not supported.
        """
        config = model.config
        self._layout: Layout = layout(config.model_type, name)
        self._layers = _decoder_layers(model)
        self.n_layers = len(self._layers)
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.embedding: Float[Tensor, "vocab d_model"] = _weight(model.get_input_embeddings())
        self.unembedding: Float[Tensor, "vocab d_model"] = _weight(model.get_output_embeddings())

    def first_mlp(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """The first block's MLP on its own input norm, without the residual stream."""
        block = self._layers[0]
        # A StableLM with parallel residuals has one norm for both, and None in the other's place.
        norm = getattr(block, self._layout.mlp_norm) or block.input_layernorm
        return cast("Tensor", getattr(block, self._layout.mlp)(cast("nn.Module", norm)(x)))

    def values(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """W_V of every KV head; query head h uses that of h // (n_heads / n_kv_heads)."""
        weight = _weight(self._module(layer, self._layout.value))
        heads = self.n_kv_heads
        match self._layout.fusion:
            case "separate":
                rows = weight
            case "gpt2":
                rows = weight.chunk(3, dim=1)[2].T
            case "neox":
                per_head = weight.reshape(self.n_heads, 3, -1, weight.shape[-1])
                rows = per_head[:, 2].reshape(-1, weight.shape[-1])
            case "phi3":
                d_head = weight.shape[0] // (self.n_heads + 2 * heads)
                rows = weight[-heads * d_head :]
        return rows.reshape(heads, -1, rows.shape[-1]).transpose(1, 2)

    def outputs(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of every query head."""
        weight = _weight(self._module(layer, self._layout.output))
        columns = weight if self._layout.fusion == "gpt2" else weight.T
        return columns.reshape(self.n_heads, -1, columns.shape[-1])

    def _module(self, layer: int, name: str) -> nn.Module:
        attention = getattr(self._layers[layer], self._layout.attention)
        return cast("nn.Module", getattr(attention, name))


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    decoder = model.base_model
    for name in ("layers", "h"):
        layers = getattr(decoder, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise TypeError(f"{type(decoder).__name__} keeps its layers under no name known here")


def _weight(module: nn.Module | None) -> Tensor:
    if module is None:
        raise TypeError("the model has no such module")
    return cast("_Projection", module).weight.detach()
