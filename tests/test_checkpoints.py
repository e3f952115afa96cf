"""Checkpoints as they are found: damaged, pickled, without a tokenizer, on the Hub or not there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub
import pytest
import tiny
import torch
from asking import Notes, on_relations, write
from safetensors.torch import load_file, save_file

import catalog
from catalog import Catalog
from catalog.errors import InputError, ModelError
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.request import IngestRequest
from ingest.run import ingest

Snapshot = Callable[[Catalog], dict[str, Any]]


_SEVERAL_INGESTS = """
import json, sys
from ui.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["heads", "ingest", *arguments]
    try:
        main()
    except SystemExit as end:
        print(f"ended with {end.code or 0}", file=sys.stderr)
"""


def test_a_model_from_the_hub(duckdb_url: str, tmp_path: Path, relations: Path) -> None:
    """In a process of its own: the Hub's client reads its endpoint when it is imported."""
    revisions = ("main", "step1000", "pickled")
    folders = {
        name: tiny.save(tmp_path / name, "llama", seed=seed) for seed, name in enumerate(revisions)
    }
    _pickle_only(folders["pickled"])
    catalog.connect(duckdb_url, create=True)
    asked = [[hub.MODEL], *([hub.MODEL, "--revision", one] for one in (*revisions[1:], "nowhere"))]
    measured = ["--suite", "relations", "--relations", str(relations), "--only"]
    with hub.serving(folders) as endpoint:
        environment = {
            "HEADS_DATABASE_URL": duckdb_url,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        commands = json.dumps([[*one, *measured] for one in (*asked, ["lab/none"])])
        done = subprocess.run(
            [sys.executable, "-c", _SEVERAL_INGESTS, commands],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
    rows = catalog.connect(duckdb_url).sql("SELECT * FROM models ORDER BY model").rows()
    facts = [(row["model"], row["revision"], row["source"]) for row in rows]
    assert facts == [
        ("lab/tiny", hub.commit_of(folders["main"]), "hub:lab/tiny"),
        ("lab/tiny@step1000", hub.commit_of(folders["step1000"]), "hub:lab/tiny"),
    ]
    told = re.split(r"ended with (\d+)\n", done.stderr)
    assert told[1::2] == ["0", "0", "3", "3", "3"], done.stderr
    pickled, absent, unknown = told[4::2][:3]
    assert "--allow-pickle" in pickled
    assert "the Hub does not give lab/tiny at revision 'nowhere'" in absent
    assert "lab/none" in unknown


def test_tensors_are_counted_while_a_model_is_loaded(checkpoint: Path) -> None:
    prepared, notes = loading.prepare(resolve(str(checkpoint))), Notes()
    loading.load(prepared, device="cpu", dtype="float32", progress=notes)
    assert notes.done == notes.total == len(load_file(checkpoint / "model.safetensors"))


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _encoder(folder: Path) -> None:
    _configure(folder, model_type="bert")


def _unknown_architecture(folder: Path) -> None:
    _configure(folder, model_type="frobnicator")


def _pickle_only(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _damaged_tokenizer(folder: Path) -> None:
    _truncate(folder / "tokenizer.json")


def _missing_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"], weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _wrong_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _float8(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _four_bit(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    packed = weights.pop("model.layers.0.self_attn.q_proj.weight").to(torch.int32)
    weights["model.layers.0.self_attn.q_proj.qweight"] = packed
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def _larger_tokenizer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = weights[name][:200].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _configure(folder, vocab_size=200)


def _configure(folder: Path, **facts: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | facts))


def _absent_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_config, r"tiny-llama is no model: it has no config\.json"),
        (_encoder, "'bert', which is not supported; supported are the decoders arcee, bloom"),
        (_unknown_architecture, "frobnicator"),
        (lambda f: _truncate(f / "model.safetensors"), r"model\.safetensors is truncated"),
        (_pickle_only, r"pickled weights only \(pytorch_model\.bin\).*--allow-pickle"),
        (_no_vocabulary, "the tokenizer of tiny-llama cannot be loaded"),
        (_damaged_tokenizer, "the tokenizer of tiny-llama cannot be loaded"),
        (_missing_tensor, r"tiny-llama lacks the tensor lm_head\.weight"),
        (_wrong_shape, r"v_proj\.weight with shape \[3, 3\], and its config\.json says \[30, 48\]"),
        (_float8, r"v_proj\.weight as F8_E4M3, packed or scaled numbers"),
        (_four_bit, r"is quantised \(gptq\) and holds no plain model\.layers\.0\.self_attn\.q"),
        (_larger_tokenizer, "the tokenizer of tiny-llama has 211 tokens, and the embedding 200"),
        (_absent_shard, "names model-00001-of-00002.safetensors, which is not there"),
        (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    ],
)
def test_a_bad_checkpoint_changes_nothing(
    empty_catalog: Catalog,
    checkpoint: Path,
    relations: Path,
    snapshot: Snapshot,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    other = tiny.save(checkpoint.parent / "good", "llama", seed=4)
    ingest(empty_catalog, on_relations(other, relations))
    before = snapshot(empty_catalog)
    spoil(checkpoint)
    with pytest.raises(ModelError, match=reason) as caught:
        ingest(empty_catalog, on_relations(checkpoint, relations))
    assert "\n" not in str(caught.value)
    assert snapshot(empty_catalog) == before


def test_a_damaged_head_is_undefined_with_its_reason_and_the_others_are_not(
    empty_catalog: Catalog, checkpoint: Path, relations: Path, tmp_path: Path
) -> None:
    """NaN in KV head 0 of layer 1, which query heads 0 and 1 share."""
    whole = catalog.connect(f"duckdb:///{tmp_path / 'whole.duckdb'}", create=True)
    ingest(whole, on_relations(checkpoint, relations, name="m"))
    _nan(checkpoint)
    notes = Notes()
    ingest(empty_catalog, on_relations(checkpoint, relations, name="m"), notes)
    reason = "NaN or infinite values in its value weights"
    assert f"L1H0 has no score: {reason}" in notes.noted
    query = "SELECT layer, head, metric, value FROM scores ORDER BY metric, layer, head"
    expected = [
        row | {"value": None} if (row["layer"], row["head"]) in {(1, 0), (1, 1)} else row
        for row in whole.sql(query)
    ]
    assert empty_catalog.sql(query).rows() == expected
    run = empty_catalog.sql("SELECT status, notes FROM runs").rows()[0]
    assert run["status"] == "succeeded"
    assert json.loads(run["notes"])["undefined"] == {"L1H0": reason, "L1H1": reason}
    with pytest.raises(ModelError, match=r"1 NaN or infinite values in model\.layers\.1\."):
        ingest(empty_catalog, IngestRequest(model=str(checkpoint), suites=("patterns",), name="m"))


def test_pickled_weights_are_read_when_the_user_says_so(
    empty_catalog: Catalog, checkpoint: Path, relations: Path
) -> None:
    _pickle_only(checkpoint)
    (outcome,) = ingest(empty_catalog, on_relations(checkpoint, relations, allow_pickle=True))
    assert outcome.is_new


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("/nowhere/at/all", "is no folder, no file and no Hub id"),
        ("./nowhere", "is no folder, no file and no Hub id"),
        ("absent.gguf", "is no folder, no file and no Hub id"),
    ],
)
def test_a_model_that_is_not_there(duckdb_url: str, model: str, reason: str) -> None:
    one = catalog.connect(duckdb_url, create=True)
    with pytest.raises(ModelError, match=reason):
        ingest(one, IngestRequest(model=model))


def test_a_file_that_is_no_gguf(duckdb_url: str, tmp_path: Path) -> None:
    one = catalog.connect(duckdb_url, create=True)
    path = tmp_path / "model.gguf"
    path.write_text("hello")
    with pytest.raises(ModelError, match=r"model\.gguf is no GGUF file"):
        ingest(one, IngestRequest(model=str(path)))


def test_a_model_of_few_positions(duckdb_url: str, tmp_path: Path) -> None:
    one = catalog.connect(duckdb_url, create=True)
    folder = tmp_path / "short"
    tiny.save(folder, "gpt2")
    config = json.loads((folder / "config.json").read_text()) | {"n_positions": 40}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:40].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ingest(one, IngestRequest(model=str(folder), suites=("patterns",)))
    described = one.sql("SELECT description FROM probes WHERE probe = 'random_repeat'").rows()
    assert "16 sequences of 19 distinct random tokens" in described[0]["description"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma"])
def test_a_model_without_a_tokenizer_is_measured_on_tokens(
    duckdb_url: str, tmp_path: Path, architecture: str
) -> None:
    """For all of these but llama, transformers makes a tokenizer of nothing, silently."""
    one = catalog.connect(duckdb_url, create=True)
    folder = tiny.save(tmp_path / "bare", architecture)
    _without_tokenizer(folder)
    probe = write(tmp_path / "mine.jsonl", {"tokens": [3, 4, 5], "classes": {"hash": [0, 1, 0]}})
    notes = Notes()
    ingest(one, IngestRequest(model=str(folder), probe=str(probe)), notes)
    assert [note for note in notes.noted if "tokenizer" in note] == [
        "relations: needs a tokenizer, and this model comes without one",
        "salient: needs a tokenizer, and this model comes without one",
        "dynamic: needs a tokenizer, and this model comes without one",
    ]
    found = one.sql("SELECT DISTINCT probe FROM scores").rows()
    measured = {row["probe"] for row in found}
    assert measured == {"weights", "random_repeat", "random_repeat_bos", "mine"}
    missing = "SELECT count(*) AS n FROM scores WHERE metric = 'induction' AND value IS NULL"
    assert one.sql(missing).rows() == [{"n": 0}]


def test_what_needs_a_tokenizer_is_refused_without_one(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    _without_tokenizer(checkpoint)
    for suite in ("relations", "salient"):
        with pytest.raises(ModelError, match=f"{suite}: needs a tokenizer"):
            ingest(one, IngestRequest(model=str(checkpoint), suites=(suite,)))
    texts = write(tmp_path / "texts.jsonl", {"text": "w3 w4"})
    with pytest.raises(InputError, match="line 1: this model has no tokenizer; bring"):
        ingest(one, IngestRequest(model=str(checkpoint), probe=str(texts)))
    with pytest.raises(InputError, match="--token-class is about texts of tokens, and tiny-llama"):
        ingest(one, IngestRequest(model=str(checkpoint), token_classes=("a=x",)))
    assert len(one.sql("SELECT * FROM runs")) == 0


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma", "cohere", "xglm"])
def test_a_tokenizer_that_transformers_makes_of_nothing_is_refused(
    tmp_path: Path, architecture: str
) -> None:
    folder = tiny.save(tmp_path / "bare", architecture)
    _without_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer of bare knows no word"):
        loading.prepare(resolve(str(folder)))
