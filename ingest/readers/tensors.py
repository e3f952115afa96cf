"""A checkpoint's tensors, each read when it is needed, under transformers' names for them.

What a checkpoint calls its tensors, how it packs experts and what llama.cpp permutes is known to
transformers; a model on the meta device, which has names and shapes and no weights, is what it all
is mapped to.
"""

import copy
import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

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

READABLE = ("F64", "F32", "F16", "BF16")
"""Types of safetensors that are numbers as they stand, not packed or scaled ones."""


class Tensors(Protocol):
    """The parameters of one model."""

    bytes_read: int
    """Of what was asked for, as it is stored."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        """A parameter, or some rows of it, in the dtype that it is stored in.

        Raises:
            ModelError: If it is missing, has another shape than the configuration says, or is
                stored in a way that cannot be read.
        """


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with all its modules, names and shapes, and no weights."""
    # Instantiating a model writes into its configuration.
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return model.eval()


class LoadedTensors:
    """The parameters of a model that transformers has loaded."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the model's parameters as they are."""
        self.bytes_read = 0
        self._tensors = model.state_dict()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        whole = self._tensors[name].detach()
        return whole if rows is None else whole[rows]


class SafetensorsTensors:
    """Memory-mapped safetensors, one or sharded.

    A file is mapped while something is read from it, and no longer: pages that stay mapped count
    as resident memory until the kernel wants them back.
    """

    def __init__(self, folder: Path, name: str, model: PreTrainedModel) -> None:
        """Find out what is where; no tensor is read.

        Args:
            folder: Where the shards are, verified to be there.
            name: What the model is called in errors.
            model: Its skeleton.
        """
        self.bytes_read = 0
        self._name = name
        self._model = model
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        self._files = _files_of_keys(folder)
        mapping = get_model_conversion_mapping(model)
        self._converters = [one for one in mapping if isinstance(one, WeightConverter)]
        self._sources: dict[str, list[tuple[str, str | None]]] = {}
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        for key in sorted(self._files, key=_natural):
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

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        if name not in self._sources:
            raise _missing(self._name, name)
        sources = self._sources[name]
        if sources[0][1] is None:
            return self._stored(sources[0][0], rows, expected=self._shapes[name])
        whole = self._converted(name, sources)
        return whole if rows is None else whole[rows]

    def _converted(self, name: str, sources: list[tuple[str, str | None]]) -> Tensor:
        """What transformers makes of several stored tensors, such as one per expert."""
        rule = next(one for one in self._converters if sources[0][1] in one.source_patterns)
        # A converter collects what it converts.
        converter = copy.deepcopy(rule)
        for key, pattern in sources:
            converter.add_tensor(name, key, pattern, self._stored(key, None))
        converted = converter.convert(name, model=self._model, config=self._model.config)
        value = converted[name]
        whole: Tensor = value[0] if isinstance(value, list) else value
        self._require_shape(name, tuple(whole.shape), self._shapes[name])
        return whole

    def _stored(
        self, key: str, rows: Tensor | slice | None, expected: tuple[int, ...] | None = None
    ) -> Tensor:
        path = self._files[key]
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.get_slice(key)
                if facts.get_dtype() not in READABLE:
                    raise ModelError(
                        f"{self._name} stores {key} as {facts.get_dtype()}, packed or scaled "
                        f"numbers that are not read here; readable are safetensors in "
                        f"{', '.join(READABLE)}, and GGUF files in whatever quantization"
                    )
                if expected is not None:
                    self._require_shape(key, tuple(facts.get_shape()), expected)
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
        self._name = name
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        with opened_gguf(path) as reader:
            architecture = str(reader.fields["general.architecture"].contents())
            self._stored = {tensor.name: tensor for tensor in reader.tensors}
            processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
            self._processor: TensorProcessor = processor(config=model.config.to_dict())
            try:
                self._names = get_gguf_hf_weights_map(model, self._processor)
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

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        if name not in self._sources:
            raise _missing(self._name, name)
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
                collected[name] = torch.from_numpy(np.ascontiguousarray(result.weights))
            _release(tensor.data)
        whole = collected[name]
        if tuple(whole.shape) != self._shapes[name]:
            raise ModelError(
                f"{self._name} holds {name} with shape {list(whole.shape)}, and its metadata say "
                f"{list(self._shapes[name])}; the file is damaged or not of this architecture"
            )
        return whole if rows is None else whole[rows]


@contextmanager
def opened_gguf(path: Path) -> Iterator[GGUFReader]:
    """A GGUF file's reader.

    Raises:
        ModelError: If the file is truncated or damaged.
    """
    try:
        reader = GGUFReader(path)
    except Exception as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    if not reader.tensors:
        raise ModelError(f"{path} holds no tensors; fetch it again")
    yield reader


def _release(data: Any) -> None:
    """Let go of a mapped file's pages, which would count as resident memory."""
    base = data
    while not isinstance(base, mmap.mmap):
        base = base.base
    base.madvise(mmap.MADV_DONTNEED)


def _files_of_keys(folder: Path) -> Mapping[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: folder / file for key, file in listed.items()}
    keys = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys |= dict.fromkeys(file.keys(), path)
    return keys


def _natural(key: str) -> list[tuple[int, str]]:
    """So that expert 10 comes after expert 9: converters stack what they get in order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _missing(model: str, name: str) -> ModelError:
    return ModelError(
        f"{model} lacks the tensor {name}; the checkpoint is incomplete, or not of the "
        "architecture that its configuration says"
    )
