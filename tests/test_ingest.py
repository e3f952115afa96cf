"""The course of an ingest, from a checkpoint to published scores."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from asking import Notes, on_probe, on_relations, write
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import catalog
from catalog import Catalog
from ingest import streaming
from ingest.progress import Silence
from ingest.readers.weights import HeadReader
from ingest.run import _told, ingest
from ingest.suites.relations import RelationPlan

Snapshot = Callable[[Catalog], dict[str, Any]]


def test_patterns_equal_the_models_eager_attention(
    empty_catalog: Catalog, checkpoint: Path, tmp_path: Path
) -> None:
    """Users' own sequences, of two lengths, against loops over the model's own attention."""
    generator = torch.Generator().manual_seed(3)
    sequences = [
        torch.randint(3, tiny.VOCABULARY, (n,), generator=generator).tolist() for n in (17, 17, 30)
    ]
    probe = write(tmp_path / "mine.jsonl", *({"tokens": tokens} for tokens in sequences))
    ingest(empty_catalog, on_probe(checkpoint, probe))
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


@pytest.mark.parametrize(
    "architecture", ["bloom", "falcon", "gpt2", "gemma2", "gpt_neox", "mixtral", "phi3", "qwen3"]
)
def test_relation_scores_equal_the_dense_method(
    architecture: str, duckdb_url: str, tmp_path: Path, relations: Path
) -> None:
    """The paper's way, from the checkpoint's model: e W_V W_O W_U formed whole, per head."""
    folder = tiny.save(tmp_path / architecture, architecture, seed=5)
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, on_relations(folder, relations))
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
    first = ingest(empty_catalog, on_relations(checkpoint, relations))
    assert [outcome.is_new for outcome in first] == [True]
    before = snapshot(empty_catalog)
    second = ingest(empty_catalog, on_relations(checkpoint, relations))
    assert [(outcome.is_new, outcome.run_ids) for outcome in second] == [(False, (1,))]
    assert snapshot(empty_catalog) == before
    third = ingest(empty_catalog, on_relations(checkpoint, relations, force=True))
    assert [(outcome.is_new, outcome.run_ids) for outcome in third] == [(True, (2,))]
    scores = "SELECT layer, head, metric, probe, value FROM scores"
    rows = sorted(map(str, empty_catalog.sql(scores)))
    assert len(rows) == len(set(rows)) == len(before["scores"])


def test_changed_weights_are_a_new_revision(
    empty_catalog: Catalog, checkpoint: Path, relations: Path
) -> None:
    ingest(empty_catalog, on_relations(checkpoint, relations))
    tiny.model("llama", seed=9).save_pretrained(checkpoint)
    (outcome,) = ingest(empty_catalog, on_relations(checkpoint, relations))
    assert outcome.is_new
    revisions = empty_catalog.sql("SELECT DISTINCT revision FROM score_runs").rows()
    assert len(revisions) == 2
    assert len(empty_catalog.sql("SELECT * FROM models")) == 1


def test_provenance_stands_beside_the_scores(
    empty_catalog: Catalog, checkpoint: Path, relations: Path
) -> None:
    notes = Notes()
    ingest(empty_catalog, on_relations(checkpoint, relations), notes)
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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("the disk is on fire"), "RuntimeError: the disk is on fire"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_run_that_fails_keeps_its_reason(
    empty_catalog: Catalog,
    checkpoint: Path,
    relations: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    told: str,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(RelationPlan, "measure", broken)
    with pytest.raises(type(error)):
        ingest(empty_catalog, on_relations(checkpoint, relations))
    assert empty_catalog.sql("SELECT status, error FROM runs").rows() == [
        {"status": "failed", "error": told}
    ]
    assert len(empty_catalog.sql("SELECT * FROM models")) == 0
    monkeypatch.undo()
    (outcome,) = ingest(empty_catalog, on_relations(checkpoint, relations))
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
    (outcome,) = ingest(again, on_relations(checkpoint, relations))
    assert outcome.is_new
    assert len(again.sql("SELECT * FROM scores")) > 0


def test_a_room_that_a_run_of_the_same_clears_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADS_WORK_DIR", str(tmp_path))
    n_cleared = 0

    def cleared_before(*args: Any, **kwargs: Any) -> None:
        nonlocal n_cleared
        if n_cleared < 2:
            n_cleared += 1
            streaming.Workroom("same").clear()
        save_file(*args, **kwargs)

    monkeypatch.setattr(streaming, "save_file", cleared_before)

    def work(layer: int) -> streaming.Kept:
        return streaming.Kept(tensors={"t": torch.tensor([float(layer)])})

    done = streaming.Workroom("same").layers("w", 3, work, Silence())
    assert [float(kept.tensors["t"]) for kept in done] == [0, 1, 2]
    assert n_cleared == 2
    assert not list(tmp_path.rglob("*.part"))


def test_heads_without_a_score_are_told_one_by_one_and_metrics_together() -> None:
    unmet = {f"token_lift[{name}]": "no token is of this class on plain" for name in ("a", "b")}
    assert _told({"undefined": {"L1H2": "NaN in its attention on plain"} | unmet}) == [
        "token_lift[a], token_lift[b] have no score: no token is of this class on plain",
        "L1H2 has no score: NaN in its attention on plain",
    ]
    others = unmet | {"token_lift[b]": "no token is of this class on mine"}
    assert _told({"undefined": others}) == [
        "token_lift[a], token_lift[b] have no score: why is in the run's notes"
    ]
    assert _told({"undefined": {"token_lift[a]": "no token is of this class on mine"}}) == [
        "token_lift[a] has no score: no token is of this class on mine"
    ]


def test_a_killed_ingest_goes_on_at_the_layer_where_it_stopped(
    duckdb_url: str, checkpoint: Path, relations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        ingest(one, on_relations(checkpoint, relations))
    assert len(one.sql("SELECT * FROM scores")) == 0
    ingest(one, on_relations(checkpoint, relations))
    assert read == [0, 1, 1, 2]
    monkeypatch.undo()
    query = "SELECT layer, head, metric, value FROM scores ORDER BY metric, layer, head"
    resumed = one.sql(query).rows()
    ingest(one, on_relations(checkpoint, relations, force=True))
    assert one.sql(query).rows() == resumed


def test_a_changed_tokenizer_is_another_revision(
    duckdb_url: str, checkpoint: Path, relations: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, on_relations(checkpoint, relations))
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "other"}))
    (outcome,) = ingest(one, on_relations(checkpoint, relations))
    assert outcome.is_new
