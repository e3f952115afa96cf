"""A verified checkpoint made ready: to be read tensor by tensor, or loaded and run."""

import contextlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from gguf import LlamaFileType
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from catalog.declarations import ModelSpec
from catalog.errors import ModelError, UsageError
from catalog.settings import load_settings
from ingest.progress import Progress, Silence
from ingest.readers.architectures import SUPPORTED, layout, sizes
from ingest.readers.source import Source
from ingest.readers.tensors import GgufTensors, SafetensorsTensors, Tensors, opened_gguf, skeleton
from ingest.readers.weights import HeadReader

_QUANTIZATION = "gguf_file_type"
_GGUF_TOKENS = "tokenizer.ggml.tokens"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""Where none of these is, the model was published without a tokenizer."""

_CUDA = re.compile(r"cuda(:\d{1,3})?")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A checkpoint whose configuration and tokenizer are loaded, and whose weights can be."""

    source: Source
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    """None where the checkpoint has no file of one."""

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        return skeleton(self.config)

    @property
    def spec(self) -> ModelSpec:
        """What the catalog keeps of a model."""
        source, config = self.source, self.config
        heads = sizes(config)
        stored = config.dtype
        return ModelSpec(
            name=source.name,
            revision=source.revision,
            architecture=config.model_type,
            n_layers=config.num_hidden_layers,
            n_heads=heads.n_heads,
            n_kv_heads=heads.n_kv_heads,
            d_model=config.hidden_size,
            d_head=heads.d_head,
            vocab_size=config.vocab_size,
            n_params=self.skeleton.num_parameters(),
            base_model=source.base_model,
            dtype=str(stored).removeprefix("torch.") if stored else None,
            quantization=getattr(config, _QUANTIZATION, None),
            source=source.location,
            content_hash=source.content_hash,
        )


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run, in evaluation mode, its weights all finite."""

    name: str
    model: PreTrainedModel

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device


def choose_device(asked: str) -> str:
    """`auto` means CUDA where there is one.

    Raises:
        UsageError: If it is no device, or a CUDA device that this machine does not have.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    if not _CUDA.fullmatch(asked):
        raise UsageError(f"--device {asked} is unknown; expected auto, cpu, cuda or cuda:NUMBER")
    if not torch.cuda.is_available():
        raise UsageError(f"--device {asked}: this machine has no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if int(asked.partition(":")[2] or 0) >= count:
        raise UsageError(f"--device {asked}: this machine has {count} CUDA devices, counted from 0")
    return asked


def choose_dtype(asked: str, device: str) -> str:
    """`auto` means float32 on a CPU and bfloat16 on a GPU.

    Raises:
        UsageError: If the name is unknown.
    """
    if asked == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    if asked not in DTYPES:
        raise UsageError(f"--dtype {asked} is unknown; expected auto, {', '.join(DTYPES)}")
    return asked


def prepare(
    source: Source, *, on_progress: Callable[[str], None] = lambda _: None
) -> PreparedModel:
    """Make a checkpoint loadable, and load its configuration and tokenizer.

    Raises:
        ModelError: If a GGUF file is damaged, the configuration or tokenizer cannot be read, or
            the architecture is not a supported decoder. To have no tokenizer is no error.
    """
    folder = _described(source, on_progress) if source.gguf else source.folder
    config = supported_config(folder, source.name)
    tokenizer = _tokenizer(folder, source.name)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer of {source.name} has {tokenizer.vocab_size} tokens, and the embedding "
            f"{config.vocab_size}: it is another model's"
        )
    return PreparedModel(source=source, config=config, tokenizer=tokenizer)


def _tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder; None where there is no file of one.

    Raises:
        ModelError: If there are files, and no tokenizer can be made of them.
    """
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    # Where the one file is missing that it reads, transformers makes many a tokenizer of nothing
    # but special tokens, and says nothing.
    if len(tokenizer) == len({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}):
        raise ModelError(
            f"the tokenizer of {name} knows no word: {type(tokenizer).__name__} reads "
            f"{' or '.join(tokenizer.vocab_files_names.values())}, and there is none with words"
        )
    return tokenizer


def reader(prepared: PreparedModel, *, device: str) -> HeadReader:
    """Open a checkpoint to be read tensor by tensor; of its weights nothing is loaded.

    Raises:
        ModelError: If the weights cannot be read.
    """
    source, model = prepared.source, prepared.skeleton
    tensors: Tensors
    if source.gguf:
        tensors = GgufTensors(source.folder / source.gguf, source.name, model)
    elif any(source.folder.glob("*.safetensors")):
        tensors = SafetensorsTensors(source.folder, source.name, model)
    else:
        loaded = load(prepared, device=device, dtype="float32")
        return HeadReader.of_loaded(loaded.model, source.name)
    return HeadReader(tensors, model, source.name, device=device)


def supported_config(folder: Path, name: str, **arguments: str) -> PreTrainedConfig:
    """The configuration in a folder, or with `gguf_file` in that file of it.

    Raises:
        ModelError: If it cannot be read, or its architecture is not supported.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, **arguments
        )
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"the configuration of {name} cannot be read: {str(error).splitlines()[0]}; "
            f"supported are the decoders {SUPPORTED}"
        ) from error
    layout(config.model_type, name)
    return config


def load(
    prepared: PreparedModel, *, device: str, dtype: str, progress: Progress | None = None
) -> LoadedModel:
    """Load a checkpoint's weights.

    Args:
        prepared: From `prepare`.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: A key of `DTYPES`.
        progress: Told what is being done, and of each tensor that is read.

    Raises:
        ModelError: If the weights cannot be loaded, or one is NaN or infinite; nothing is to be
            measured on such a model.
    """
    source, progress = prepared.source, progress or Silence()
    folder = _dequantised(source, progress.stage) if source.gguf else source.folder
    progress.stage(f"loading {source.name}")
    try:
        with _quiet(), _counted(progress, f"loading {source.name}: tensors"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                dtype=DTYPES[dtype],
                use_safetensors=None if source.allow_pickle else True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the weights of {source.name} cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        # transformers would go on with random values in their place.
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{source.name} lacks the tensor {missing[0]}{more}; the checkpoint is incomplete, or "
            f"not of a {prepared.config.model_type} language model"
        )
    _require_finite(model, source.name)
    placed = cast("nn.Module", model).to(device).eval()
    return LoadedModel(name=source.name, model=cast("PreTrainedModel", placed))


def _require_finite(model: nn.Module, name: str) -> None:
    for parameter, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} has {count} NaN or infinite values in {parameter}; "
                "the checkpoint is damaged, fetch it again"
            )


def _described(source: Source, on_progress: Callable[[str], None]) -> Path:
    """A folder with the configuration and tokenizer of a GGUF file, made once."""
    folder = _cache(source, "described")
    if folder.is_dir():
        return folder
    assert source.gguf is not None  # noqa: S101 - narrows the type
    on_progress(f"checking {source.gguf}")
    opened = opened_gguf(source.folder / source.gguf)
    field = opened.get_field("general.file_type")
    config = supported_config(source.folder, source.name, gguf_file=source.gguf)
    if field is not None:
        file_type = LlamaFileType(field.contents()).name.removeprefix("MOSTLY_")
        setattr(config, _QUANTIZATION, file_type)
    with _made_once(folder) as room, _quiet():
        config.save_pretrained(room)
        if opened.get_field(_GGUF_TOKENS) is None:
            return folder
        on_progress(f"reading the tokenizer of {source.gguf} (kept for the next time)")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source.folder, gguf_file=source.gguf, trust_remote_code=False
            )
        except Exception as error:
            raise ModelError(
                f"the tokenizer of {source.name} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error
        tokenizer.save_pretrained(room)
    return folder


def _dequantised(source: Source, on_progress: Callable[[str], None]) -> Path:
    """A folder with the float32 weights of a GGUF file, made once per content and release."""
    folder = _cache(source, "dequantised")
    if folder.is_dir():
        return folder
    on_progress(f"dequantising {source.gguf} (kept for the next time)")
    with _made_once(folder) as room, _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.folder,
                gguf_file=source.gguf,
                dtype=torch.float32,
                trust_remote_code=False,
            )
        except Exception as error:
            raise ModelError(
                f"{source.name} cannot be dequantised: {str(error).splitlines()[0]}"
            ) from error
        # The weights are plain floats now; transformers would refuse to save them as a GGUF.
        vars(model).update(hf_quantizer=None, is_quantized=False)
        del model.config.quantization_config
        model.save_pretrained(room)
    return folder


def _cache(source: Source, what: str) -> Path:
    key = source.content_hash.rpartition(":")[2]
    folder = load_settings().work_dir / "gguf"
    return folder / f"{key}-{what}-transformers-{transformers.__version__}"


@contextlib.contextmanager
def _made_once(folder: Path) -> Iterator[Path]:
    """A room whose contents become `folder` when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as room:
        yield Path(room)
        # Another process may have been faster; what it left is the same.
        with contextlib.suppress(OSError):
            Path(room).rename(folder)


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Silence transformers' own progress bars: ours are the ones that users asked for."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


@contextlib.contextmanager
def _counted(progress: Progress, text: str) -> Iterator[None]:
    """Count as steps what transformers would draw bars of."""

    def steps(of: Collection[Any]) -> Iterator[Any]:
        progress.steps(text, len(of))
        for one in of:
            yield one
            progress.advance()

    def watch(bar: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        is_counted = arguments and isinstance(arguments[0], Collection)
        return steps(arguments[0]) if is_counted else bar(*arguments, **options)

    before = transformers.utils.logging.set_tqdm_hook(watch)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)
