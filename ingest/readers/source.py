"""From what a user calls a model to files that can be trusted to be one.

Everything that can be wrong with a checkpoint is found here, before anything is loaded or
written to a catalog.
"""

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.errors import ModelError, UsageError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]{0,254}", re.ASCII)
"""The Hub's client makes a file of this name."""
_PICKLES = "pytorch_model*.bin"
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""All that a model is made of; a README can change without making another model."""

_GGUF_MAGIC = b"GGUF"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASHED_WHOLE = 8 << 30
"""Bytes of a model up to which every one of them is hashed."""
_SAMPLES, _SAMPLE = 64, 1 << 17
"""Of larger models: blocks per file, evenly spaced from the header to the end, and their size."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint on this machine.

    `folder` holds it; for GGUF, `gguf` names the file in it. `revision` is the Hub's commit, or
    elsewhere the content hash.
    """

    name: str
    folder: Path
    gguf: str | None
    revision: str
    content_hash: str
    location: str
    base_model: str | None = None
    allow_pickle: bool = False


def resolve(
    model: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Source:
    """Find a model and verify its files.

    Args:
        model: A folder with config.json and safetensors, a .gguf file, or a Hub id.
        name: What the catalog shall call it; by default the Hub id (with the revision, where one
            is asked for) or the name of the folder or file.
        revision: Branch, tag or commit on the Hub.
        allow_pickle: Load pickled weights where there are no others.
        on_progress: Told what is being done.

    Raises:
        ModelError: If there is no such model, or its files are incomplete or damaged.
        UsageError: If `revision` is given for something that is not on the Hub.
    """
    path = Path(model).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        if revision is not None and not _REVISION.fullmatch(revision):
            raise UsageError(f"--revision {revision!r} is no branch, tag or commit")
        on_progress(f"fetching {model} from the Hub")
        folder, commit, base_model = _from_hub(model, revision, allow_pickle=allow_pickle)
        _verify_folder(folder, model, allow_pickle=allow_pickle)
        label = f"{model}@{revision}" if revision else model
        return Source(
            name=name or label,
            folder=folder,
            gguf=None,
            revision=commit,
            content_hash=_content_hash(folder),
            location=f"hub:{model}",
            base_model=base_model,
            allow_pickle=allow_pickle,
        )
    if revision:
        raise UsageError(
            f"--revision is for models on the Hub; {model} is not one, and its revision is the "
            "hash of its contents"
        )
    if not path.exists():
        raise ModelError(f"{model} is no folder, no file and no Hub id (ORGANISATION/NAME)")
    path = path.resolve()
    on_progress(f"checking {path.name}")
    is_gguf = path.is_file()
    verify(path, allow_pickle=allow_pickle)
    content_hash = _content_hash(path)
    return Source(
        name=name or (path.stem if is_gguf else path.name),
        folder=path.parent if is_gguf else path,
        gguf=path.name if is_gguf else None,
        revision=content_hash,
        content_hash=content_hash,
        location=f"{'gguf' if is_gguf else 'folder'}:{path}",
        allow_pickle=allow_pickle,
    )


def verify(path: Path, *, allow_pickle: bool = False) -> None:
    """Refuse a folder or .gguf file that is no whole checkpoint; its weights are not read.

    Raises:
        ModelError: If files are missing or damaged.
    """
    if path.is_file():
        _verify_gguf(path)
    else:
        _verify_folder(path, str(path), allow_pickle=allow_pickle)


def _from_hub(
    model: str, revision: str | None, *, allow_pickle: bool
) -> tuple[Path, str, str | None]:
    """Fetch a model's files; returns their folder, the commit and the model it is based on."""
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - slow, seldom needed
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    at = f" at revision {revision!r}" if revision else ""
    try:
        info = HfApi().model_info(model, revision=revision)
        files = [file.rfilename for file in info.siblings or ()]
        require_safetensors(model, files, allow_pickle=allow_pickle)
        folder = snapshot_download(
            model,
            revision=info.sha,
            allow_patterns=[*_FILES, *([_PICKLES] if allow_pickle else [])],
            ignore_patterns=["*/*"],
        )
    except (HFValidationError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the Hub does not give {model}{at}: {reason}") from error
    except ModelError:
        raise
    except Exception as error:  # the client lets its transport's own errors through
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{model} is no local folder or file, and the Hub cannot be reached for it: {reason}"
        ) from error
    if info.sha is None:
        raise ModelError(f"the Hub names no commit for {model}{at}; give --revision")
    base = getattr(info.card_data, "base_model", None)
    return Path(folder), info.sha, ", ".join(base) if isinstance(base, list) else base


def require_safetensors(model: str, files: Sequence[str], *, allow_pickle: bool) -> None:
    """Refuse a model without weights, or with pickled ones only, from the names of its files."""
    if fnmatch.filter(files, "*.safetensors"):
        return
    pickles = fnmatch.filter(files, _PICKLES)
    if not pickles:
        raise ModelError(f"{model} holds no weights: expected *.safetensors")
    if not allow_pickle:
        raise ModelError(
            f"{model} holds pickled weights only ({pickles[0]}), and unpickling can run any "
            "code; convert them to safetensors, or pass --allow-pickle if you trust their maker"
        )


def _verify_folder(folder: Path, model: str, *, allow_pickle: bool) -> None:
    if not (folder / "config.json").is_file():
        hint = next(folder.glob("*.gguf"), None)
        instead = f"; did you mean the file {hint}?" if hint else ""
        raise ModelError(f"{model} is no model: it has no config.json{instead}")
    read_json(folder / "config.json")
    shards = _shards(folder)
    if shards:
        for shard in shards:
            _verify_safetensors(shard)
    else:
        names = [path.name for path in folder.iterdir()]
        require_safetensors(model, names, allow_pickle=allow_pickle)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(map(_is_file_name, named.values())):
        raise ModelError(f"{index} has no weight_map of tensors to files beside it")
    listed = sorted({folder / name for name in named.values()})
    for shard in listed:
        if not shard.is_file():
            raise ModelError(f"{index} names {shard.name}, which is not there; fetch it again")
    return listed


def _is_file_name(name: object) -> bool:
    """Whether a name is of a file in the same folder, and leads to no other."""
    return isinstance(name, str) and Path(name).name == name and name != ".."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        ModelError: If the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object, so it describes no model")
    return content


def _verify_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - needs torch beside it

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); fetch it again") from error


def _verify_gguf(path: Path) -> None:
    # Whether all tensors are there is found when they are dequantised, which is done once.
    with path.open("rb") as file:
        if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise ModelError(
                f"{path} is no GGUF file; expected a .gguf file or a folder with config.json"
            )


def _content_hash(path: Path) -> str:
    """Of a file's bytes, or of a folder's configuration, weights and tokenizer with their names.

    Weights of many gigabytes are known by their headers, sizes and some blocks: to read them whole
    would take longer than to measure them.
    """
    if path.is_file():
        files, base = [path], path
    else:
        files = sorted(file for pattern in (*_FILES, _PICKLES) for file in path.glob(pattern))
        base = None
    is_sampled = sum(file.stat().st_size for file in files) > _HASHED_WHOLE
    kind = "sha256-sampled" if is_sampled else "sha256"
    if base is not None:
        return f"{kind}:{_file_hash(base, is_sampled=is_sampled)}"
    digest = hashlib.sha256()
    for one in files:
        digest.update(one.name.encode())
        digest.update(bytes.fromhex(_file_hash(one, is_sampled=is_sampled)))
    return f"{kind}:{digest.hexdigest()}"


def _file_hash(path: Path, *, is_sampled: bool) -> str:
    # The Hub's cache keeps large files under the hash of their contents.
    stored = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(stored):
        return stored
    size = path.stat().st_size
    with path.open("rb") as file:
        if not is_sampled or size <= _SAMPLES * _SAMPLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(_SAMPLES):
            file.seek(i * (size - _SAMPLE) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
