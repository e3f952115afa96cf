"""A checkpoint's tensors, each read when it is needed, under transformers' names for them.

What a checkpoint calls its tensors, how it packs experts and what llama.cpp permutes is known to
transformers; a model on the meta device, which has names and shapes and no weights, is what it all
is mapped to.
"""

import copy
import functools
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from catalog.errors import ModelError

# transformers makes the table of all names, which grows with the layers, once per module.
gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)

READABLE = ("F64", "F32", "F16", "BF16")
"""Types of safetensors that are numbers as they stand, not packed or scaled ones."""


class Tensors(Protocol):
    """The parameters of one model."""

    bytes_read: int
    """Of what was asked for, as it is stored."""

    def __contains__(self, name: str) -> bool: ...

    def require(self, name: str) -> None:
        """See that a parameter can be read, without reading it.

        Raises:
            ModelError: If it is missing, has another shape than the configuration says, or is
                stored in a way that cannot be read.
        """

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        """A parameter, or some rows of it, in the dtype that it is stored in.

        Raises:
            ModelError: As `require`.
        """


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with all its modules, names and shapes, and no weights."""
    # Instantiating a model writes into its configuration.
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=False
        )
    return model.eval()


class LoadedTensors:
    """The parameters of a model that transformers has loaded."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the model's parameters as they are."""
        self.bytes_read = 0
        self._tensors = model.state_dict()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def require(self, name: str) -> None: ...  # transformers has seen to it

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        whole = self._tensors[name].detach()
        return whole if rows is None else whole[rows]


class SafetensorsTensors:
    """Memory-mapped safetensors, one or sharded.

    A file is mapped while something is read from it, and no longer: pages that stay mapped count
    as resident memory until the kernel wants them back.
    """

    def __init__(self, folder: Path, name: str, model: PreTrainedModel) -> None:
        """Read the headers: what is where, in which shape and type.

        Args:
            folder: Where the shards are, verified to be there.
            name: What the model is called in errors.
            model: Its skeleton.
        """
        self.bytes_read = 0
        self._name = name
        self._model = model
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        self._stored = _stored(folder)
        mapping = get_model_conversion_mapping(model)
        self._converters = [one for one in mapping if isinstance(one, WeightConverter)]
        self._sources: dict[str, list[tuple[str, str | None]]] = {}
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        for key in sorted(self._stored, key=_natural):
            parameter, pattern = self._parameter(key, renamings)
            self._sources.setdefault(parameter, []).append((key, pattern))

    def _parameter(self, key: str, renamings: list[WeightRenaming]) -> tuple[str, str | None]:
        """What transformers calls this, and by which rule of conversion."""
        prefix = self._model.base_model_prefix
        for rules in ((renamings, self._converters), ([], [])):
            renamed, pattern = rename_source_key(key, *rules, prefix, self._shapes)
            if renamed in self._shapes:
                return renamed, pattern
        return key, None

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def require(self, name: str) -> None:
        if name not in self._sources:
            raise _missing(self._name, name, self._model.config)
        for key, pattern in self._sources[name]:
            stored = self._stored[key]
            if stored.dtype not in READABLE:
                raise ModelError(
                    f"{self._name} stores {key} as {stored.dtype}, packed or scaled numbers that "
                    f"are not read here; readable are safetensors in {', '.join(READABLE)}, and "
                    "GGUF files of any quantization that the gguf package dequantises"
                )
            if pattern is None:
                self._require_shape(key, stored.shape, self._shapes[name])

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        self.require(name)
        sources = self._sources[name]
        if sources[0][1] is None:
            return self._taken(sources[0][0], rows)
        whole = self._converted(name, sources)
        return whole if rows is None else whole[rows]

    def _converted(self, name: str, sources: list[tuple[str, str | None]]) -> Tensor:
        """What transformers makes of several stored tensors, such as one per expert."""
        rule = next(one for one in self._converters if sources[0][1] in one.source_patterns)
        # A converter collects what it converts; tensors do as well as futures of them.
        converter: Any = copy.deepcopy(rule)
        for key, pattern in sources:
            converter.add_tensor(name, key, pattern, self._taken(key, None))
        converted = converter.convert(name, model=self._model, config=self._model.config)
        value = converted[name]
        whole: Tensor = value[0] if isinstance(value, list) else value
        self._require_shape(name, tuple(whole.shape), self._shapes[name])
        return whole

    def _taken(self, key: str, rows: Tensor | slice | None) -> Tensor:
        path = self._stored[key].path
        try:
            with safe_open(path, framework="pt") as file:
                whole: Tensor = file.get_tensor(key)
                taken = whole if rows is None else whole[rows]
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is truncated or damaged at {key} ({error}); fetch it again"
            ) from error
        self.bytes_read += taken.numel() * taken.element_size()
        return taken

    def _require_shape(self, key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ModelError(
                f"{self._name} holds {key} with shape {list(found)}, and its config.json says "
                f"{list(expected)}; the weights are not of this configuration"
            )


class GgufTensors:
    """Tensors of a GGUF file, dequantised one by one, llama.cpp's permutations undone."""

    def __init__(self, path: Path, name: str, model: PreTrainedModel) -> None:
        """Find out what is where; no tensor is read.

        Raises:
            ModelError: If the file is truncated or damaged, or holds an architecture that
                transformers cannot map.
        """
        self.bytes_read = 0
        self._name, self._config = name, model.config
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        reader = opened_gguf(path)
        architecture = str(reader.fields["general.architecture"].contents())
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self._processor = processor(config=model.config.to_dict())
        try:
            self._names: dict[str, str] = get_gguf_hf_weights_map(model, self._processor)
        except NotImplementedError as error:
            raise ModelError(f"{name}: {error}") from error
        self._sources: dict[str, list[str]] = {}
        for stored in self._stored:
            # Experts are mapped without the suffix.
            parameter = self._names.get(stored) or self._names.get(stored.removesuffix(".weight"))
            if parameter:
                self._sources.setdefault(parameter, []).append(stored)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def require(self, name: str) -> None:
        if name not in self._sources:
            raise _missing(self._name, name, self._config)
        # A processor may transpose, and experts come in several tensors: the size is what is known.
        size = sum(int(self._stored[stored].n_elements) for stored in self._sources[name])
        if size != math.prod(self._shapes[name]):
            raise ModelError(
                f"{self._name} holds {name} with {size} numbers, and its metadata say "
                f"{list(self._shapes[name])}; the file is damaged or not of this architecture"
            )

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        self.require(name)
        collected: dict[str, Tensor] = {}
        for stored in self._sources[name]:
            tensor = self._stored[stored]
            self.bytes_read += tensor.n_bytes
            result = self._processor.process(
                weights=dequantize(tensor.data, tensor.tensor_type),
                name=stored,
                tensor_key_mapping=self._names,
                parsed_parameters={"tensors": collected},
            )
            if result.name is not None:
                collected[name] = torch.from_numpy(np.array(result.weights))
            _release(tensor.data)
        whole = collected[name].reshape(self._shapes[name])
        return whole if rows is None else whole[rows]


class _Reader(GGUFReader):
    """Looks at the mapped file as a plain array: cutting a vocabulary out of a memmap is slow."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)


def opened_gguf(path: Path) -> GGUFReader:
    """A GGUF file, its tensors mapped and not read.

    Raises:
        ModelError: If the file is truncated or damaged.
    """
    try:
        reader = _Reader(path)
    except Exception as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    if not reader.tensors:
        raise ModelError(f"{path} holds no tensors; fetch it again")
    return reader


def _release(data: Any) -> None:
    """Let go of a mapped file's pages, which would count as resident memory."""
    base = data
    while not isinstance(base, mmap.mmap):
        base = base.base
    base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    path: Path
    dtype: str
    shape: tuple[int, ...]


def _stored(folder: Path) -> dict[str, _Stored]:
    """What the headers of a checkpoint's files say; of files beside the index's nothing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        paths = sorted({folder / name for name in listed})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    found = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not iterable otherwise
                facts = file.get_slice(key)
                found[key] = _Stored(
                    path=path, dtype=facts.get_dtype(), shape=tuple(facts.get_shape())
                )
    return found


def _natural(key: str) -> list[tuple[int, str]]:
    """So that expert 10 comes after expert 9: converters stack what they get in order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _missing(model: str, name: str, config: PreTrainedConfig) -> ModelError:
    packing = getattr(config, "quantization_config", None)
    if packing:
        method = packing.get("quant_method") if isinstance(packing, dict) else packing.quant_method
        return ModelError(
            f"{model} is quantised ({method}) and holds no plain {name}; packed weights are not "
            f"read here: use the checkpoint in {', '.join(READABLE)}, or a GGUF file"
        )
    return ModelError(
        f"{model} lacks the tensor {name}; the checkpoint is incomplete, or not of a "
        f"{config.model_type} language model"
    )
