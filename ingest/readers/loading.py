"""Loading a verified checkpoint with transformers."""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
import transformers
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
from ingest.readers.architectures import SUPPORTED, layout
from ingest.readers.source import Source

_QUANTIZATION = "gguf_file_type"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A checkpoint whose tokenizer is loaded and whose weights can be loaded."""

    source: Source
    folder: Path
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run, in evaluation mode, its weights all finite."""

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stored_dtype: str | None
    """Of the checkpoint; the model may run in another."""

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device


def choose_device(asked: str) -> str:
    """`auto` means CUDA where there is one.

    Raises:
        UsageError: If CUDA is asked for and there is none.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {asked}: this machine has no CUDA device; use --device cpu")
    if asked != "cpu" and not asked.startswith("cuda"):
        raise UsageError(f"--device {asked} is unknown; expected auto, cpu or cuda")
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


def model_spec(loaded: LoadedModel) -> ModelSpec:
    """What the catalog keeps of a model."""
    source, config = loaded.source, loaded.model.config
    n_heads = config.num_attention_heads
    return ModelSpec(
        name=source.name,
        revision=source.revision,
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_model=config.hidden_size,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        vocab_size=config.vocab_size,
        n_params=loaded.model.num_parameters(),
        base_model=source.base_model,
        dtype=loaded.stored_dtype,
        quantization=getattr(config, _QUANTIZATION, None),
        source=source.location,
        content_hash=source.content_hash,
    )


def prepare(
    source: Source, *, on_progress: Callable[[str], None] = lambda _: None
) -> PreparedModel:
    """Make a checkpoint loadable, and load its configuration and tokenizer.

    Raises:
        ModelError: If a GGUF file is damaged, the configuration or tokenizer cannot be read, or
            the architecture is not a supported decoder.
    """
    folder = _dequantised(source, on_progress) if source.gguf else source.folder
    config = _supported_config(folder, source.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {source.name} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    return PreparedModel(source=source, folder=folder, config=config, tokenizer=tokenizer)


def _supported_config(folder: Path, name: str, **arguments: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **arguments)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"the configuration of {name} cannot be read: {str(error).splitlines()[0]}; "
            f"supported are the decoders {SUPPORTED}"
        ) from error
    layout(config.model_type, name)
    return config


def load(
    prepared: PreparedModel,
    *,
    device: str,
    dtype: str,
    on_progress: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """Load a checkpoint's weights.

    Args:
        prepared: From `prepare`.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: A key of `DTYPES`.
        on_progress: Told what is being done.

    Raises:
        ModelError: If the weights cannot be loaded, or one is NaN or infinite; nothing is to be
            measured on such a model.
    """
    source = prepared.source
    on_progress(f"loading {source.name}")
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                prepared.folder,
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
    stored = prepared.config.dtype
    return LoadedModel(
        source=source,
        model=cast("PreTrainedModel", placed),
        tokenizer=prepared.tokenizer,
        stored_dtype=str(stored).removeprefix("torch.") if stored else None,
    )


def _require_finite(model: nn.Module, name: str) -> None:
    for parameter, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} has {count} NaN or infinite values in {parameter}; "
                "the checkpoint is damaged, fetch it again"
            )


def _dequantised(source: Source, on_progress: Callable[[str], None]) -> Path:
    """A folder with the float32 weights of a GGUF file, made once per content and release."""
    key = source.content_hash.removeprefix("sha256:")
    cache = platformdirs.user_cache_path("head-catalog") / "gguf"
    folder = cache / f"{key}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    assert source.gguf is not None  # noqa: S101 - narrows the type
    on_progress(f"checking {source.gguf}")
    file_type = _verified_file_type(source.folder / source.gguf)
    _supported_config(source.folder, source.name, gguf_file=source.gguf)
    on_progress(f"dequantising {source.gguf} (kept for the next time)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as room:
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf)
                model = AutoModelForCausalLM.from_pretrained(
                    source.folder, gguf_file=source.gguf, dtype=torch.float32
                )
        except Exception as error:
            raise ModelError(
                f"{source.name} cannot be dequantised: {str(error).splitlines()[0]}"
            ) from error
        # The weights are plain floats now; transformers would refuse to save them as a GGUF.
        vars(model).update(hf_quantizer=None, is_quantized=False)
        del model.config.quantization_config
        setattr(model.config, _QUANTIZATION, file_type)
        model.save_pretrained(room)
        tokenizer.save_pretrained(room)
        # Another process may have been faster; what it left is the same.
        with contextlib.suppress(OSError):
            Path(room).rename(folder)
    return folder


def _verified_file_type(path: Path) -> str | None:
    """A whole GGUF file's quantization, such as Q4_1.

    Raises:
        ModelError: If the file is truncated or damaged.
    """
    from gguf import GGUFReader, LlamaFileType  # noqa: PLC0415 - slow, and needed once a file

    try:
        reader = GGUFReader(path)
    except Exception as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    if not reader.tensors:
        raise ModelError(f"{path} holds no tensors; fetch it again")
    field = reader.get_field("general.file_type")
    return None if field is None else LlamaFileType(field.contents()).name.removeprefix("MOSTLY_")


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
