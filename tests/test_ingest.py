"""Ingest from a checkpoint to published scores, and everything that can be wrong with one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import catalog
from catalog import Catalog, HeadsError
from catalog.errors import InputError, ModelError, UsageError
from ingest.progress import Silence
from ingest.run import IngestRequest, ingest

Snapshot = Callable[[Catalog], dict[str, Any]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny-llama", "llama")


@pytest.fixture
def relations(tmp_path: Path) -> Path:
    return tiny.relations(tmp_path / "words")


def request(checkpoint: Path, relations: Path, **options: Any) -> IngestRequest:
    """Everything on the tiny model; the shipped relations know none of its words."""
    return IngestRequest(
        model=str(checkpoint),
        suites=options.pop("suites", ("relations",)),
        relations=str(relations),
        only=True,
        **options,
    )


class Notes(Silence):
    """Progress that remembers what was noted."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def note(self, text: str) -> None:
        self.noted.append(text)


def test_patterns_equal_the_models_eager_attention(
    empty_catalog: Catalog, checkpoint: Path, tmp_path: Path
) -> None:
    """Users' own sequences, of two lengths, against loops over the model's own attention."""
    generator = torch.Generator().manual_seed(3)
    sequences = [
        torch.randint(3, tiny.VOCABULARY, (n,), generator=generator).tolist() for n in (17, 17, 30)
    ]
    probe = tmp_path / "mine.jsonl"
    probe.write_text("\n".join(json.dumps({"tokens": tokens}) for tokens in sequences))
    ingest(
        empty_catalog,
        IngestRequest(model=str(checkpoint), suites=("patterns",), probe=str(probe), only=True),
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    previous: list[np.ndarray[Any, Any]] = []
    entropy: list[np.ndarray[Any, Any]] = []
    for tokens in sequences:
        with torch.no_grad():
            attention = model(torch.tensor([tokens]), output_attentions=True).attentions
        p = torch.stack(attention)[:, 0].double().numpy()
        for q in range(len(tokens)):
            if q:
                previous.append(p[:, :, q, q - 1])
            row = p[:, :, q, : q + 1]
            entropy.append(-(row * np.log(row)).sum(-1))
    for metric, expected in (
        ("previous_token", np.mean(previous, axis=0)),
        ("entropy", np.mean(entropy, axis=0)),
    ):
        rows = empty_catalog.sql(
            "SELECT layer, head, value, probe FROM scores WHERE metric = :m", m=metric
        ).rows()
        assert len(rows) == 18
        for found in rows:
            assert found["probe"] == "mine"
            assert found["value"] == pytest.approx(
                expected[found["layer"], found["head"]], abs=1e-6
            )


def test_shipped_probes_with_and_without_bos(empty_catalog: Catalog, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "with-bos", "gpt2", adds_bos=True)
    ingest(empty_catalog, IngestRequest(model=str(folder), suites=("patterns",)))
    probes = empty_catalog.sql("SELECT DISTINCT probe FROM scores ORDER BY probe").rows()
    assert [row["probe"] for row in probes] == [
        "markdown",
        "markdown_no_bos",
        "needle",
        "needle_no_bos",
        "plain",
        "plain_no_bos",
        "random_repeat",
        "random_repeat_no_bos",
    ]
    rows = empty_catalog.sql(
        "SELECT probe, count(*) AS n FROM scores WHERE metric = 'induction' GROUP BY probe"
    ).rows()
    assert {row["probe"]: row["n"] for row in rows} == {
        "random_repeat": 18,
        "random_repeat_no_bos": 18,
    }
    differ = empty_catalog.sql(
        "SELECT max(abs(a.value - b.value)) AS d FROM scores a JOIN scores b "
        "USING (model, layer, head, metric) WHERE a.metric = 'first_token' "
        "AND a.probe = 'random_repeat' AND b.probe = 'random_repeat_no_bos'"
    ).rows()[0]["d"]
    assert differ > 0.001


@pytest.mark.parametrize(
    "architecture", ["bloom", "falcon", "gpt2", "gemma2", "gpt_neox", "mixtral", "phi3", "qwen3"]
)
def test_relation_scores_equal_the_dense_method(
    architecture: str, duckdb_url: str, tmp_path: Path, relations: Path
) -> None:
    """The paper's way, from the checkpoint's model: e W_V W_O W_U formed whole, per head."""
    folder = tiny.save(tmp_path / architecture, architecture, seed=5)
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, request(folder, relations))
    from ingest.readers.weights import HeadReader

    model = AutoModelForCausalLM.from_pretrained(folder)
    reader = HeadReader.of_loaded(model, architecture)
    pairs = json.loads((relations / "successor.json").read_text())
    source, target = (torch.tensor([int(pair[i][1:]) for pair in pairs]) for i in (0, 1))
    with torch.no_grad():
        embedded = reader.embedding(source)
        later = reader.first_mlp(embedded).double()
        unembedding = reader.unembedding().double()
        for layer in range(3):
            x = embedded.double() if layer == 0 else later
            heads = reader.heads(layer)
            for head in range(6):
                value, output = heads.part("value")[heads.kv_head(head)], heads.part("output")[head]
                w_vo = value.double() @ output.double()
                logits = x @ w_vo @ unembedding.T
                own = logits.gather(1, target[:, None])
                rank, low = (logits > own).sum(1), (logits < own).sum(1)
                expected = {
                    "relation_score": (rank < 10).double().mean(),
                    "relation_suppression": (low < 10).double().mean(),
                    "relation_hits_1": (rank < 1).double().mean(),
                    "relation_hits_25": (rank < 25).double().mean(),
                }
                for metric, value in expected.items():
                    found = one.sql(
                        "SELECT value FROM scores WHERE metric = :m AND layer = :l AND head = :h",
                        m=f"{metric}[successor]",
                        l=layer,
                        h=head,
                    ).rows()
                    assert found == [{"value": pytest.approx(float(value), abs=1e-12)}]


def test_a_second_ingest_does_nothing_and_force_repeats(
    empty_catalog: Catalog, checkpoint: Path, relations: Path, snapshot: Snapshot
) -> None:
    first = ingest(empty_catalog, request(checkpoint, relations))
    assert [outcome.is_new for outcome in first] == [True]
    before = snapshot(empty_catalog)
    second = ingest(empty_catalog, request(checkpoint, relations))
    assert [(outcome.is_new, outcome.run_ids) for outcome in second] == [(False, (1,))]
    assert snapshot(empty_catalog) == before
    third = ingest(empty_catalog, request(checkpoint, relations, force=True))
    assert [(outcome.is_new, outcome.run_ids) for outcome in third] == [(True, (2,))]
    scores = "SELECT layer, head, metric, probe, value FROM scores"
    rows = sorted(map(str, empty_catalog.sql(scores)))
    assert len(rows) == len(set(rows)) == len(before["scores"])


def test_changed_weights_are_a_new_revision(
    empty_catalog: Catalog, checkpoint: Path, relations: Path
) -> None:
    ingest(empty_catalog, request(checkpoint, relations))
    tiny.model("llama", seed=9).save_pretrained(checkpoint)
    (outcome,) = ingest(empty_catalog, request(checkpoint, relations))
    assert outcome.is_new
    revisions = empty_catalog.sql("SELECT DISTINCT revision FROM score_runs").rows()
    assert len(revisions) == 2
    assert len(empty_catalog.sql("SELECT * FROM models")) == 1


def test_provenance_stands_beside_the_scores(
    empty_catalog: Catalog, checkpoint: Path, relations: Path
) -> None:
    notes = Notes()
    ingest(empty_catalog, request(checkpoint, relations), notes)
    assert notes.noted == [
        "skipped relation few of words: 7 usable pairs of 104, at least 30 are needed"
    ]
    run = empty_catalog.sql("SELECT * FROM runs").rows()[0]
    versions = json.loads(run["versions"])
    assert {"torch", "transformers", "head-catalog", "commit", "metrics"} <= set(versions)
    assert versions["metrics"]["relation_score"] == 1
    assert (run["device"], run["dtype"], run["status"]) == ("cpu", "float32", "succeeded")
    assert run["peak_memory"] > 1e7
    model = empty_catalog.sql("SELECT * FROM models").rows()[0]
    assert model["revision"].startswith("sha256:")
    assert (model["n_layers"], model["n_heads"], model["n_kv_heads"]) == (3, 6, 3)
    assert (model["d_head"], model["vocab_size"]) == (10, tiny.VOCABULARY)
    assert model["source"] == f"folder:{checkpoint}"


def test_a_run_that_fails_keeps_its_reason(
    empty_catalog: Catalog,
    checkpoint: Path,
    relations: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ingest.suites.relations import RelationPlan

    def broken(*_: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(RelationPlan, "measure", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        ingest(empty_catalog, request(checkpoint, relations))
    assert empty_catalog.sql("SELECT status, error FROM runs").rows() == [
        {"status": "failed", "error": "RuntimeError: the disk is on fire"}
    ]
    assert len(empty_catalog.sql("SELECT * FROM models")) == 0
    monkeypatch.undo()
    (outcome,) = ingest(empty_catalog, request(checkpoint, relations))
    assert outcome.is_new


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_an_ingest_that_is_killed_leaves_nothing_and_can_be_repeated(
    empty_url: str, checkpoint: Path, relations: Path, end: signal.Signals, snapshot: Snapshot
) -> None:
    """The real command, killed while its run is under way."""
    one = catalog.connect(empty_url, create=True)
    slow = (
        "import time, ingest.ranks as r, ingest.suites.relations as s; rank = r.target_ranks\n"
        "def slowly(*a, **k): time.sleep(20); return rank(*a, **k)\n"
        "s.target_ranks = slowly\n"
        "from ui.cli.main import main; main()"
    )
    arguments = ["ingest", str(checkpoint), "--suite", "relations", "--relations", str(relations)]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "--db", empty_url, *arguments, "--only"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not len(one.sql("SELECT * FROM runs WHERE status = 'running'")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.2)
    process.send_signal(end)
    process.wait(timeout=60)
    again = catalog.connect(empty_url)
    seen = snapshot(again)
    assert [seen[view] for view in ("models", "heads", "scores", "labels")] == [[]] * 4
    run = again.sql("SELECT status, error FROM runs").rows()[0]
    assert run["status"] == "failed"
    assert run["error"]
    (outcome,) = ingest(again, request(checkpoint, relations))
    assert outcome.is_new
    assert len(again.sql("SELECT * FROM scores")) > 0


def test_a_model_from_the_hub(empty_catalog: Catalog, tmp_path: Path, relations: Path) -> None:
    """In a process of its own: the Hub's client reads its endpoint when it is imported."""
    main = tiny.save(tmp_path / "main", "llama", seed=1)
    step = tiny.save(tmp_path / "step", "llama", seed=2)
    url = empty_catalog.database.url.render_as_string(hide_password=False)
    with hub.serving({"main": main, "step1000": step}) as endpoint:
        environment = os.environ | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }

        measured = ["--suite", "relations", "--relations", str(relations), "--only"]

        def heads(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "ui.cli", "--db", url, "ingest", *arguments, *measured],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        done = heads(hub.MODEL)
        assert done.returncode == 0, done.stderr
        done = heads(hub.MODEL, "--revision", "step1000")
        assert done.returncode == 0, done.stderr
        absent = heads(hub.MODEL, "--revision", "nowhere")
        _pickle_only(step)
        pickled = heads(hub.MODEL, "--revision", "step1000")
        unknown = heads("lab/none")
    rows = empty_catalog.sql("SELECT model, revision, source FROM models ORDER BY model").rows()
    assert rows == [
        {"model": "lab/tiny", "revision": hub.commit_of(main), "source": "hub:lab/tiny"},
        {"model": "lab/tiny@step1000", "revision": hub.commit_of(step), "source": "hub:lab/tiny"},
    ]
    assert (pickled.returncode, "--allow-pickle" in pickled.stderr) == (3, True)
    assert absent.returncode == unknown.returncode == ModelError.exit_code
    assert "the Hub does not give lab/tiny at revision 'nowhere'" in absent.stderr
    assert "lab/none" in unknown.stderr


# --- bad input: one clear sentence, and a catalog as it was ---


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
    ingest(empty_catalog, request(other, relations))
    before = snapshot(empty_catalog)
    spoil(checkpoint)
    with pytest.raises(ModelError, match=reason) as caught:
        ingest(empty_catalog, request(checkpoint, relations))
    assert "\n" not in str(caught.value)
    assert snapshot(empty_catalog) == before


def test_a_damaged_head_is_undefined_with_its_reason_and_the_others_are_not(
    empty_catalog: Catalog, checkpoint: Path, relations: Path, tmp_path: Path
) -> None:
    """NaN in KV head 0 of layer 1, which query heads 0 and 1 share."""
    whole = catalog.connect(f"duckdb:///{tmp_path / 'whole.duckdb'}", create=True)
    ingest(whole, request(checkpoint, relations, name="m"))
    _nan(checkpoint)
    notes = Notes()
    ingest(empty_catalog, request(checkpoint, relations, name="m"), notes)
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


def test_a_killed_ingest_goes_on_at_the_layer_where_it_stopped(
    duckdb_url: str, checkpoint: Path, relations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest.readers.weights import HeadReader

    one = catalog.connect(duckdb_url, create=True)
    read: list[int] = []
    heads = HeadReader.heads

    def counted(self: HeadReader, layer: int, parts: Any) -> Any:
        read.append(layer)
        if read == [0, 1]:
            raise KeyboardInterrupt
        return heads(self, layer, parts)

    monkeypatch.setattr(HeadReader, "heads", counted)
    with pytest.raises(KeyboardInterrupt):
        ingest(one, request(checkpoint, relations))
    assert len(one.sql("SELECT * FROM scores")) == 0
    ingest(one, request(checkpoint, relations))
    assert read == [0, 1, 1, 2]
    monkeypatch.undo()
    query = "SELECT layer, head, metric, value FROM scores ORDER BY metric, layer, head"
    resumed = one.sql(query).rows()
    ingest(one, request(checkpoint, relations, force=True))
    assert one.sql(query).rows() == resumed


def test_pickled_weights_are_read_when_the_user_says_so(
    empty_catalog: Catalog, checkpoint: Path, relations: Path
) -> None:
    _pickle_only(checkpoint)
    (outcome,) = ingest(empty_catalog, request(checkpoint, relations, allow_pickle=True))
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


def _write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


REPEAT = {"probe": {"kind": "random_repeat", "period": 3, "bos": 0}}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["not json"], "line 1 is not JSON"),
        ([], "holds no sequence"),
        ([{"tokens": [3, 4, 999]}], "line 1: token 999 is not in the vocabulary of 211"),
        ([{"tokens": [3, "4"]}], "list of whole numbers"),
        ([{"tokens": [3]}], "has 1 tokens; a pattern needs at least 2"),
        ([{"text": "w3 w4"}, {"text": ""}], "line 2: has 0 tokens; a pattern needs at least 2"),
        ([{"tokens": [3, 4], "classes": {"hash": [1]}}], "class hash has 1 numbers for 2 tokens"),
        ([{"tokens": [3, 4], "needle": [0, 1]}], "line 1: has no answer"),
        ([{"tokens": [3] * 300}], "has 300 tokens; the model's context is 256"),
        ([{"words": "x"}], "expected tokens, text or messages"),
        ([{"text": "w3 \ud800"}], "line 1: the tokenizer cannot take it"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([{"messages": [{"role": "user", "content": "w3"}]}], "no chat template"),
        ([{"probe": 3}, {"tokens": [3, 4]}], "probe is 3; expected an object"),
        ([{"probe": {"bos": [1]}}, {"tokens": [3, 4]}], r"bos is \[1\]; expected 0 or 1"),
        ([{"probe": {"kind": "song"}}, {"tokens": [3, 4]}], "kind is 'song'"),
        ([{"probe": {"kind": "random_repeat"}}, {"tokens": [3, 4]}], "needs a period"),
        ([REPEAT, {"tokens": [3, 4, 5, 3, 4, 6]}], "sequence 1: expected 0 BOS and a block of 3"),
    ],
)
def test_a_bad_probe_changes_nothing(
    duckdb_url: str, checkpoint: Path, tmp_path: Path, lines: list[object], reason: str
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    probe = _write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(InputError, match=reason):
        ingest(
            one,
            IngestRequest(model=str(checkpoint), suites=("patterns",), probe=str(probe), only=True),
        )
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_a_probe_of_texts_and_repeated_tokens(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    texts = _write(tmp_path / "texts.jsonl", {"text": "w3 w4 w5"}, {"text": "w9 w9", "name": "x"})
    repeated = _write(tmp_path / "again.jsonl", REPEAT, {"tokens": [3, 4, 5, 3, 4, 5]})
    for probe in (texts, repeated):
        ingest(
            one,
            IngestRequest(model=str(checkpoint), suites=("patterns",), probe=str(probe), only=True),
        )
    found = one.sql("SELECT DISTINCT metric, probe FROM scores").rows()
    assert {row["probe"] for row in found} == {"texts", "again"}
    assert {row["probe"] for row in found if row["metric"] == "induction"} == {"again"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "is not JSON"),
        ('{"pairs": [["a"]]}', r"list of \[source, target\]"),
        ('{"pairs": [["a", "b"]], "k": 0}', "k is 0"),
        ('{"pairs": [["a", "b"]], "k": 99999999999}', "expected a whole number from 1 to 1000"),
        ('[["a", "\\ud800"]]', r"list of \[source, target\]"),
        ('{"pairs": [["a", "b"]], "category": 3}', "category is 3"),
        ('[["w3", "w4"]]', r"nothing that this tokenizer can use \(bad: 1 usable pairs of 1"),
    ],
)
def test_a_bad_relation_set_changes_nothing(
    duckdb_url: str, checkpoint: Path, tmp_path: Path, content: str, reason: str
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "bad.json").write_text(content)
    with pytest.raises(InputError, match=reason):
        ingest(one, request(checkpoint, folder))
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_names_of_what_is_shipped_are_not_taken_by_others(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    probe = _write(tmp_path / "plain.jsonl", {"tokens": [3, 4]})
    with pytest.raises(InputError, match="rename the file"):
        ingest(one, IngestRequest(model=str(checkpoint), probe=str(probe), only=True))
    folder = tiny.relations(tmp_path / "shipped")
    with pytest.raises(InputError, match="rename the folder"):
        ingest(one, request(checkpoint, folder))


def test_shipped_relations_that_a_tokenizer_cannot_use_do_not_hinder_the_rest(
    duckdb_url: str, checkpoint: Path
) -> None:
    """Their words are all unknown to this tokenizer: one token each, and none of them usable."""
    one = catalog.connect(duckdb_url, create=True)
    notes = Notes()
    outcomes = ingest(one, IngestRequest(model=str(checkpoint)), notes)
    assert [outcome.suite for outcome in outcomes] == ["weights", "salient", "patterns"]
    assert all(outcome.is_new for outcome in outcomes)
    assert [note for note in notes.noted if "shipped" in note] == [
        f"{suite}: this tokenizer can use nothing of what is shipped"
        for suite in ("relations", "dynamic")
    ]


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
    probe = _write(tmp_path / "mine.jsonl", {"tokens": [3, 4, 5], "classes": {"hash": [0, 1, 0]}})
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
    texts = _write(tmp_path / "texts.jsonl", {"text": "w3 w4"})
    with pytest.raises(InputError, match="line 1: this model has no tokenizer; bring"):
        ingest(one, IngestRequest(model=str(checkpoint), probe=str(texts)))
    with pytest.raises(InputError, match="--token-class is about texts of tokens, and tiny-llama"):
        ingest(one, IngestRequest(model=str(checkpoint), token_classes=("a=x",)))
    assert len(one.sql("SELECT * FROM runs")) == 0


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma", "cohere", "xglm"])
def test_a_tokenizer_that_transformers_makes_of_nothing_is_refused(
    tmp_path: Path, architecture: str
) -> None:
    from ingest.readers import loading
    from ingest.readers.source import resolve

    folder = tiny.save(tmp_path / "bare", architecture)
    _without_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer of bare knows no word"):
        loading.prepare(resolve(str(folder)))


def test_other_classes_of_tokens_are_measured_again(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    probe = _write(tmp_path / "texts.jsonl", {"text": "w3 w4 w5"})

    def is_new(*token_classes: str) -> bool:
        asked = IngestRequest(
            model=str(checkpoint),
            suites=("patterns",),
            probe=str(probe),
            only=True,
            token_classes=token_classes,
        )
        (outcome,) = ingest(one, asked)
        return outcome.is_new

    assert is_new()
    assert is_new("odd=w[0-9]*[13579]")
    assert not is_new("odd=w[0-9]*[13579]")
    assert is_new("odd=w3")


def test_a_changed_tokenizer_is_another_revision(
    duckdb_url: str, checkpoint: Path, relations: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, request(checkpoint, relations))
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "other"}))
    (outcome,) = ingest(one, request(checkpoint, relations))
    assert outcome.is_new


def test_without_the_first_mlp_all_layers_read_embeddings(
    duckdb_url: str, checkpoint: Path, relations: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    scores = "SELECT layer, head, metric, value FROM scores ORDER BY metric, layer, head"
    ingest(one, request(checkpoint, relations))
    with_mlp = one.sql(scores).rows()
    (outcome,) = ingest(one, request(checkpoint, relations, first_mlp=False))
    assert outcome.is_new
    without = one.sql(scores).rows()
    differing = {a["layer"] for a, b in zip(with_mlp, without, strict=True) if a != b}
    assert differing == {1, 2}


def test_text_with_line_separators_inside(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    probe = tmp_path / "lines.jsonl"
    probe.write_text(json.dumps({"text": "w3\u2028w4 w5"}, ensure_ascii=False))
    ingest(
        one,
        IngestRequest(model=str(checkpoint), suites=("patterns",), probe=str(probe), only=True),
    )
    assert len(one.sql("SELECT DISTINCT probe FROM scores")) == 1


def test_requests_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="no suite 'songs'"):
        IngestRequest(model="m", suites=("songs",))
    with pytest.raises(UsageError, match="--only needs"):
        IngestRequest(model="m", only=True)
    with pytest.raises(InputError, match="token class hash comes with the project"):
        IngestRequest(model="m", token_classes=("hash=x",))


def test_a_device_that_is_not_there(duckdb_url: str, checkpoint: Path, relations: Path) -> None:
    one = catalog.connect(duckdb_url, create=True)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            ingest(one, request(checkpoint, relations, device="cuda"))
    with pytest.raises(HeadsError, match="--dtype float8 is unknown"):
        ingest(one, request(checkpoint, relations, dtype="float8"))
    shutil.rmtree(checkpoint)
