"""What users bring, and what is shipped: probes, relations, classes of tokens, requests."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from asking import Notes, on_probe, on_relations, write

import catalog
from catalog import Catalog
from catalog.errors import InputError, UsageError
from ingest.readers.loading import choose_device, choose_dtype
from ingest.request import IngestRequest
from ingest.run import ingest


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
    probe = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(InputError, match=reason):
        ingest(one, on_probe(checkpoint, probe))
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_a_probe_of_texts_and_repeated_tokens(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    texts = write(tmp_path / "texts.jsonl", {"text": "w3 w4 w5"}, {"text": "w9 w9", "name": "x"})
    repeated = write(tmp_path / "again.jsonl", REPEAT, {"tokens": [3, 4, 5, 3, 4, 5]})
    for probe in (texts, repeated):
        ingest(one, on_probe(checkpoint, probe))
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
        ingest(one, on_relations(checkpoint, folder))
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_names_of_what_is_shipped_are_not_taken_by_others(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    probe = write(tmp_path / "plain.jsonl", {"tokens": [3, 4]})
    with pytest.raises(InputError, match="rename the file"):
        ingest(one, IngestRequest(model=str(checkpoint), probe=str(probe), only=True))
    folder = tiny.relations(tmp_path / "shipped")
    with pytest.raises(InputError, match="rename the folder"):
        ingest(one, on_relations(checkpoint, folder))


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


def test_other_classes_of_tokens_are_measured_again(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    probe = write(tmp_path / "texts.jsonl", {"text": "w3 w4 w5"})

    def is_new(*token_classes: str) -> bool:
        asked = on_probe(checkpoint, probe, token_classes=token_classes)
        (outcome,) = ingest(one, asked)
        return outcome.is_new

    assert is_new()
    assert is_new("odd=w[0-9]*[13579]")
    assert not is_new("odd=w[0-9]*[13579]")
    assert is_new("odd=w3")


def test_without_the_first_mlp_all_layers_read_embeddings(
    duckdb_url: str, checkpoint: Path, relations: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    scores = "SELECT layer, head, metric, value FROM scores ORDER BY metric, layer, head"
    ingest(one, on_relations(checkpoint, relations))
    with_mlp = one.sql(scores).rows()
    (outcome,) = ingest(one, on_relations(checkpoint, relations, first_mlp=False))
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
    ingest(one, on_probe(checkpoint, probe))
    assert len(one.sql("SELECT DISTINCT probe FROM scores")) == 1


def test_requests_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="no suite 'songs'"):
        IngestRequest(model="m", suites=("songs",))
    with pytest.raises(UsageError, match="--only needs"):
        IngestRequest(model="m", only=True)
    with pytest.raises(InputError, match="token class hash comes with the project"):
        IngestRequest(model="m", token_classes=("hash=x",))


def test_a_device_or_dtype_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="cuda: this machine has no CUDA device; use --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="cuda:2: this machine has 2 CUDA devices, counted from 0"):
        choose_device("cuda:2")
    for asked in ("gpu", "cpu:0", "cuda0", "cuda:"):
        with pytest.raises(UsageError, match=f"{asked} is unknown; expected auto, cpu, cuda or"):
            choose_device(asked)
    with pytest.raises(UsageError, match="--dtype float8 is unknown"):
        choose_dtype("float8", "cpu")
