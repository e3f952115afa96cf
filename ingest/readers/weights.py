"""The matrices of every head, and what stands around them, read when they are needed."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from catalog.errors import ModelError
from ingest.heads import LayerHeads, Part
from ingest.readers.architectures import Layout, layout, sizes
from ingest.readers.tensors import LoadedTensors, Tensors

PARTS: tuple[Part, ...] = ("query", "key", "value", "output")

_LATENT = "multi-head latent attention: no matrix maps the residual stream to it, a norm is between"
_NO_HEADS = "this layer has no softmax attention"
_ROWS_AT_ONCE = 4_096


class HeadReader:
    """What a model's weights say, one layer at a time.

    Everything comes in float32 on the chosen device, whatever it is stored in.
    """

    def __init__(
        self,
        tensors: Tensors,
        model: PreTrainedModel,
        name: str,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Find the tensors by their names; none is read.

        Args:
            tensors: Where the parameters are.
            model: Its skeleton, or the model itself.
            name: What the model is called in errors.
            device: Where the matrices shall be.

        Raises:
            ModelError: If the architecture is not supported.
        """
        self.config: PreTrainedConfig = model.config
        self.device = torch.device(device)
        self._tensors, self._model, self._name = tensors, model, name
        self._layout: Layout = layout(self.config.model_type, name)
        self._layers = model.get_submodule(self._layout.layers)
        self.sizes = sizes(self.config)
        self.n_layers: int = self.config.num_hidden_layers
        self.d_model: int = self.config.hidden_size
        self._require_proved_form()

    @classmethod
    def of_loaded(cls, model: PreTrainedModel, name: str) -> "HeadReader":
        """A reader of a model that transformers has loaded; matrices are views where possible."""
        return cls(LoadedTensors(model), model, name, device=model.device)

    def verify(self, *, first_mlp: bool) -> None:
        """See that all that may be read is there and as the configuration says; reads nothing.

        Args:
            first_mlp: Whether the first block's MLP will be read.

        Raises:
            ModelError: Names the first tensor that is missing, misshapen or packed.
        """
        self._tensors.require(self._embedding_name)
        self._tensors.require(self._unembedding_name)
        for layer in range(self.n_layers):
            for part in PARTS:
                if not self._reason_of_absence(layer, part):
                    self._tensors.require(f"{self._projection_name(layer, part)}.weight")
        if first_mlp:
            for step in self._layout.mlp:
                path = f"{self._layout.layers}.0.{step}"
                for name in self._model.get_submodule(path).state_dict():
                    self._tensors.require(f"{path}.{name}")

    @property
    def bytes_read(self) -> int:
        return self._tensors.bytes_read

    def _require_proved_form(self) -> None:
        config = self.config
        if config.model_type == "opt" and not config.do_layer_norm_before:
            raise ModelError(
                f"{self._name} is an OPT with norms after its sublayers and projected embeddings "
                "(do_layer_norm_before=False), which is not supported; other OPT models are"
            )

    # --- heads ---

    def heads(self, layer: int, parts: Sequence[Part] = PARTS) -> LayerHeads:
        """Matrices and biases of one layer's heads.

        Args:
            layer: From 0.
            parts: Those to read; the others stay None.

        Raises:
            ModelError: If a tensor is missing or has another shape than the configuration says.
        """
        matrices: dict[str, Tensor | None] = {}
        absent: dict[str, str] = {}
        for part in parts:
            reason = self._reason_of_absence(layer, part)
            if reason:
                absent[part] = reason
                continue
            matrices[part], matrices[f"{part}_bias"] = self._matrices(layer, part)
        return LayerHeads(
            n_heads=self.sizes.n_heads,
            n_kv_heads=self.sizes.n_kv_heads,
            absent=absent,
            **matrices,
        )

    def gate(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """The output gate that doubles some models' query projections."""
        return self._matrices(layer, "gate")[0]

    def scaling(self, layer: int) -> float:
        """What a model multiplies query-key products with before the softmax."""
        if self._layout.unit_scaling:
            return 1.0
        scaling = 1 / self.sizes.d_head**0.5
        if getattr(self.config, "scale_attn_by_inverse_layer_idx", False):
            scaling /= layer + 1
        return scaling if getattr(self.config, "scale_attn_weights", True) else 1.0

    def _reason_of_absence(self, layer: int, part: Part) -> str | None:
        kinds = getattr(self.config, "layer_types", None)
        if kinds and kinds[layer] == "linear_attention":
            return _NO_HEADS
        if not self._layout.latent or part == "output":
            return None
        if part == "query" and self.config.q_lora_rank is None:
            return None
        return _LATENT

    def _matrices(self, layer: int, part: str) -> tuple[Tensor, Tensor | None]:
        """A part's matrices [head, input, output], or of `output` [head, d_head, d_model]; bias."""
        name = self._projection_name(layer, part)
        n_heads = self.sizes.n_kv_heads if part in ("key", "value") else self.sizes.n_heads
        bias = f"{name}.bias" if f"{name}.bias" in self._tensors else None
        if part == "output":
            weight = self._read(f"{name}.weight")
            columns = weight if self._layout.transposed else weight.T
            whole = None if bias is None else self._read(bias)
            return columns.reshape(n_heads, -1, self.d_model), whole
        rows = self._rows.get(part)
        weight = self._projection(f"{name}.weight", rows)
        matrices = weight.reshape(n_heads, -1, self.d_model).transpose(1, 2)
        if bias is None:
            return matrices, None
        biases = self._read(bias)
        chosen = biases if rows is None else biases[rows.to(self.device).flatten()]
        return matrices, chosen.reshape(n_heads, -1)

    def _projection_name(self, layer: int, part: str) -> str:
        attention = f"{self._layout.layers}.{layer}.{self._layout.attention}"
        return f"{attention}.{self._layout.projection(part)}"

    @cached_property
    def _rows(self) -> dict[str, Int[Tensor, "head d_head"]]:
        order = self._layout.rows
        return {} if order is None else dict(order(self.config, self.sizes))

    def _projection(self, name: str, rows: Tensor | None) -> Float[Tensor, "row d_model"]:
        if self._layout.transposed:
            weight = self._read(name).T
            return weight if rows is None else weight[rows.to(self.device).flatten()]
        return self._read(name, None if rows is None else _as_slice(rows.flatten()))

    # --- what stands around the heads ---

    def embedding(
        self, rows: Int[Tensor, " token"] | None = None
    ) -> Float[Tensor, "token d_model"]:
        """The token embeddings, all or those of some ids.

        Raises:
            ModelError: If a value is NaN or infinite.
        """
        return self._finite(self._embedding_name, rows).float()

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """Which direction of the residual stream means which token; in the dtype it is stored in.

        Raises:
            ModelError: If a value is NaN or infinite: no head's logits would mean anything.
        """
        return self._finite(self._unembedding_name)

    def _finite(self, name: str, rows: Tensor | None = None) -> Tensor:
        weight = self._tensors.read(name, rows).to(self.device)
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"{self._name} has NaN or infinite values in {name}; the checkpoint is damaged, "
                "fetch it again"
            )
        return weight

    def positions(self) -> Float[Tensor, "position d_model"] | None:
        """The learned position embeddings, from position 0; None where there are none."""
        if self._layout.positions is None:
            return None
        return self._read(f"{self._layout.positions}.weight")[self._layout.first_position :]

    def normalised(
        self, layer: int, x: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """What a layer's attention reads where the residual stream holds x."""
        norm = self._first_module(layer, self._layout.attention_norm)
        with torch.inference_mode():
            return x if norm is None else norm(x)

    def first_mlp(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """The first block's MLP on its own input norm, without the residual stream."""
        norm = self._first_module(0, self._layout.mlp_norm)
        steps = [self._module(f"{self._layout.layers}.0.{one}") for one in self._layout.mlp]
        out = torch.empty_like(x)
        with torch.inference_mode():
            for start in range(0, len(x), _ROWS_AT_ONCE):
                # Mixtures of experts want a batch dimension.
                y = x[None, start : start + _ROWS_AT_ONCE]
                if norm is not None:
                    y = norm(y)
                for step in steps:
                    y = _run(step, y)
                out[start : start + _ROWS_AT_ONCE] = y[0]
        return out

    @cached_property
    def _embedding_name(self) -> str:
        return self._name_of(self._model.get_input_embeddings())

    @cached_property
    def _unembedding_name(self) -> str:
        name = self._name_of(self._model.get_output_embeddings())
        tied = getattr(self.config, "tie_word_embeddings", False)
        return self._embedding_name if tied and name not in self._tensors else name

    def _name_of(self, module: nn.Module | None) -> str:
        names = {id(one): name for name, one in self._model.named_modules()}
        return f"{names[id(module)]}.weight"

    def _first_module(self, layer: int, names: Sequence[str]) -> nn.Module | None:
        block = self._layers.get_submodule(str(layer))
        for name in names:
            if getattr(block, name, None) is not None:
                return self._module(f"{self._layout.layers}.{layer}.{name}")
        return None

    def _module(self, path: str) -> nn.Module:
        """A module of the model with its parameters read."""
        module = copy.deepcopy(self._model.get_submodule(path)).eval()
        state = module.state_dict()
        if {name for name, _ in module.named_buffers()} - state.keys():
            raise TypeError(f"{path} has buffers that are in no checkpoint")
        read = {name: self._read(f"{path}.{name}") for name in state}
        module.load_state_dict(read, assign=True)
        return module

    def _read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        return self._tensors.read(name, rows).to(self.device, torch.float32)


def _as_slice(rows: Int[Tensor, " row"]) -> Tensor | slice:
    """Neighbouring rows as what they are, so that no others are touched."""
    start, end = int(rows[0]), int(rows[-1]) + 1
    return slice(start, end) if end - start == len(rows) else rows


def _run(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output, of those too that add the residual themselves or also return routing."""
    takes_residual = "residual" in module.forward.__code__.co_varnames
    out = module(x, torch.zeros_like(x)) if takes_residual else module(x)
    return out[0] if isinstance(out, tuple) else out
