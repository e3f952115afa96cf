"""Patterns of running models into the catalog, and out of it again as figure three."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import commands
import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import catalog
from catalog import Catalog, patterns
from catalog.errors import InputError, ModelError, UsageError
from catalog.pattern_rows import MAX_ERROR
from ingest import capture
from ingest.capture import Captured, CaptureRequest
from ingest.readers import loading
from ingest.readers.source import resolve

PROMPT = "w3 w4 w5 w6 w7 w3 w4 w5 w6 w7"
TOKENS = [3, 4, 5, 6, 7] * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def take(one: Catalog, folder: Path, heads: str, *prompts: str, force: bool = False) -> Captured:
    request = CaptureRequest(model=str(folder), heads=heads, prompts=prompts, force=force)
    return capture.capture(one, request)


def own(folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    """The model's own attention [layer, head, query, key], by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        found = model(torch.tensor([tokens]), output_attentions=True).attentions
    values: NDArray[np.float32] = torch.cat(found).numpy()
    return values


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "bloom", "gpt_oss"])
def test_what_is_stored_is_the_models_own_attention(
    duckdb_url: str, tmp_path: Path, architecture: str
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    folder = tiny.save(tmp_path / "m", architecture)
    done = take(one, folder, "L2H3,L0H0,L1", PROMPT)
    expected = own(folder, TOKENS)
    found = patterns.read(one, "m", ["L2H3", "L0H0", "L1"], prompt=PROMPT)
    n_heads = expected.shape[1]
    assert done == Captured(model="m", stored=2 + n_heads, known=0, run_ids=(1,))
    assert [head.name for head in found[:2]] == ["L2H3", "L0H0"]
    assert [head.name for head in found[2:]] == [f"L1H{head}" for head in range(n_heads)]
    for head in found:
        np.testing.assert_allclose(
            head.numpy(), expected[head.layer, head.head], rtol=0, atol=MAX_ERROR + 1e-6
        )
        assert head.tokens == tuple(PROMPT.split())


def test_the_same_again_does_nothing_and_more_is_added(
    empty_catalog: Catalog, checkpoint: Path
) -> None:
    first = take(empty_catalog, checkpoint, "L0H0,L0H1", PROMPT)
    again = take(empty_catalog, checkpoint, "L0H1,L0H0", PROMPT)
    assert (again.stored, again.known, again.run_ids) == (0, 2, first.run_ids)
    assert len(empty_catalog.sql("SELECT * FROM runs")) == 1
    more = take(empty_catalog, checkpoint, "L0H1,L2H5", PROMPT, "w9 w8")
    assert (more.stored, more.known, more.run_ids) == (3, 1, (1, 2))
    forced = take(empty_catalog, checkpoint, "L0H0", PROMPT, force=True)
    assert (forced.stored, forced.known, forced.run_ids) == (1, 0, (3,))
    rows = empty_catalog.sql(
        "SELECT prompt, layer, head, run_id FROM stored_patterns ORDER BY prompt, layer, head"
    )
    assert [tuple(row.values()) for row in rows] == [
        (PROMPT, 0, 0, 3),
        (PROMPT, 0, 1, 1),
        (PROMPT, 2, 5, 2),
        ("w9 w8", 0, 1, 2),
        ("w9 w8", 2, 5, 2),
    ]
    run = empty_catalog.sql("SELECT * FROM runs WHERE run_id = 1").rows()[0]
    assert (run["suite"], run["status"], run["device"]) == ("stored_patterns", "succeeded", "cpu")
    assert json.loads(run["params"]) == {
        "patterns": [{"prompt": PROMPT, "heads": ["L0H0", "L0H1"]}]
    }
    assert json.loads(run["versions"])["torch"]


def test_prompts_of_a_file(duckdb_url: str, checkpoint: Path, tmp_path: Path) -> None:
    one = catalog.connect(duckdb_url, create=True)
    lines = [
        {"probe": {"kind": "text"}},
        {"text": PROMPT},
        {"tokens": [1, 20, 21, 210]},
        {"text": "w5 w6", "name": "a pair"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    capture.capture(one, CaptureRequest(model=str(checkpoint), heads="L0H0", prompt_file=str(file)))
    found = {
        name: patterns.read(one, "llama", prompt=name)[0].token_ids
        for name in (PROMPT, "mine:2", "a pair")
    }
    assert found == {PROMPT: tuple(TOKENS), "mine:2": (1, 20, 21, 210), "a pair": (5, 6)}


@pytest.mark.parametrize(
    ("heads", "prompts", "error", "reason"),
    [
        ("L3H0", [PROMPT], UsageError, "llama has 3 layers of 6 heads, counted from 0, and no L3H"),
        ("L0H6", [PROMPT], UsageError, "and no L0H6"),
        ("L7", [PROMPT], UsageError, "and no L7"),
        ("", [PROMPT], UsageError, "'' is no head"),
        ("L0H0;L1", [PROMPT], UsageError, "is no head; write them like L5H3,L6H9"),
        ("L0H0", [], UsageError, "no prompt is given"),
        ("L0H0", [""], InputError, "prompt '' has 0 tokens; a pattern needs at least 2"),
        ("L0H0", ["w3"], InputError, "prompt 'w3' has 1 tokens"),
        ("L0H0", ["w3 " * 257], InputError, "has 257 tokens; the model's context is 256"),
        ("L0H0", ["\ud800 w3"], InputError, "the tokenizer cannot take it|no Unicode"),
        ("L0H0", ["w3 w4", "w3\x00 w4", "w3\u2400 w5"], None, ""),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    duckdb_url: str,
    checkpoint: Path,
    heads: str,
    prompts: list[str],
    error: type[Exception] | None,
    reason: str,
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    if error is None:
        assert take(one, checkpoint, heads, *prompts).stored == len(prompts)
        return
    with pytest.raises(error, match=reason):
        take(one, checkpoint, heads, *prompts)
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_two_prompts_of_one_name_are_refused(
    duckdb_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"tokens": [3, 4], "name": "a"}\n{"tokens": [3, 5], "name": "a"}')
    request = CaptureRequest(model=str(checkpoint), heads="L0H0", prompt_file=str(file))
    with pytest.raises(InputError, match="two prompts of different tokens have the name 'a'"):
        capture.capture(one, request)


def test_layers_without_softmax_heads_are_refused(duckdb_url: str, tmp_path: Path) -> None:
    one = catalog.connect(duckdb_url, create=True)
    folder = tiny.save(tmp_path / "m", "qwen3_next")
    with pytest.raises(UsageError, match="layer 0 of m has no softmax attention; layers 1, 2 have"):
        take(one, folder, "L0H0", PROMPT)
    take(one, folder, "L1H0", PROMPT)
    [found] = patterns.read(one, "m")
    # transformers' tuple has the layers with softmax attention only.
    np.testing.assert_allclose(found.numpy(), own(folder, TOKENS)[0, 0], rtol=0, atol=MAX_ERROR)


def test_a_head_that_is_nan_stores_nothing(
    empty_catalog: Catalog, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = capture.attention_patterns

    def spoiled(loaded, tokens, heads):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        found = true(loaded, tokens, heads)
        found[1, 2] = found[1, 2].index_fill(0, torch.tensor([3]), torch.nan)
        return found

    monkeypatch.setattr(capture, "attention_patterns", spoiled)
    with pytest.raises(ModelError, match="the attention of L1H2 of llama is NaN on 'w3 w4 w5"):
        take(empty_catalog, checkpoint, "L0H0,L1H2", PROMPT)
    assert len(empty_catalog.sql("SELECT * FROM stored_patterns")) == 0
    assert len(empty_catalog.sql("SELECT * FROM prompt_tokens")) == 0
    [run] = empty_catalog.sql("SELECT status, error FROM runs").rows()
    assert run["status"] == "failed"
    assert "L1H2" in run["error"]


def test_a_prompt_that_memory_does_not_hold_is_named(
    duckdb_url: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(capture, "attention_patterns", too_much)
    one = catalog.connect(duckdb_url, create=True)
    with pytest.raises(ModelError, match=r"hold llama on 'w3 .*', 10 tokens; a shorter prompt"):
        take(one, checkpoint, "L0H0", PROMPT)
    assert len(one.sql("SELECT * FROM stored_patterns")) == 0


def test_the_capture_keeps_only_what_is_asked_for(checkpoint: Path) -> None:
    prepared = loading.prepare(resolve(str(checkpoint)))
    loaded = loading.load(prepared, device="cpu", dtype="float32")
    found = capture.attention_patterns(loaded, TOKENS, [(2, 1), (0, 5)])
    assert list(found) == [(2, 1), (0, 5)]
    for (layer, head), pattern in found.items():
        expected = own(checkpoint, TOKENS)[layer, head]
        torch.testing.assert_close(pattern, torch.from_numpy(expected), rtol=0, atol=1e-6)


Heads = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    """Runs the command in an empty folder, whose `heads.duckdb` is then the default catalog."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(arguments, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"})

    return run


def test_from_a_checkpoint_to_the_figure_and_away(heads: Heads, tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        tiny.save(tmp_path / name, name)
        done = heads("patterns", name, "--heads", "L0H3,L2", "--prompt", PROMPT)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert f"{name}: 7 patterns stored (run" in done.stderr
    again = heads("patterns", "llama", "--heads", "L0H3", "--prompt", PROMPT)
    assert "llama: 0 patterns stored, 1 there already (run 1)" in again.stderr
    listed = json.loads(heads("patterns-list", "gpt2", "-f", "json").stdout)
    # 10 tokens: 55 numbers of 2 bytes.
    assert [(row["name"], row["bytes"]) for row in listed] == [
        ("L0H3", 110),
        *((f"L2H{head}", 110) for head in range(6)),
    ]
    shown = json.loads(heads("patterns-show", "llama", "--heads", "L0H3", "-f", "json").stdout)
    expected = own(tmp_path / "llama", TOKENS)[0, 3]
    assert len(shown) == 55
    for row in shown:
        assert abs(row["value"] - expected[row["query"], row["key"]]) <= MAX_ERROR + 1e-6

    drawn = heads("chart", "grid", "gpt2", "llama", "-o", "grid.svg", "--heads", "L2H1,L0H3")
    assert drawn.returncode == 0, drawn.stderr
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "grid.svg").read_text())
    titles = [word for word in texts if re.fullmatch(r"L\dH\d|gpt2|llama", word)]
    # A grid's own title comes after those of its panels.
    assert titles == ["L2H1", "L0H3", "gpt2", "L2H1", "L0H3", "llama"]
    for suffix in ("png", "html"):
        assert heads("chart", "grid", "llama", "-o", f"grid.{suffix}").returncode == 0
    part = heads("chart", "grid", "llama", "-o", "part.svg", "--tokens", "1-3", "--columns", "1")
    assert part.returncode == 0
    absent = heads("chart", "grid", "llama", "--heads", "L1H0", "-o", "no.png")
    assert absent.returncode == 2
    command = f"heads patterns CHECKPOINT --name llama --heads L1H0 --prompt '{PROMPT}'"
    assert command in absent.stderr
    wrong = (
        ("chart", "grid", "llama", "-o", "no.png", "--bins", "3"),
        ("chart", "grid", "llama", "-o", "no.png", "--tokens", "3-1"),
        ("chart", "map", "llama", "-o", "no.png", "--columns", "2"),
        ("chart", "map", "llama", "-o", "no.png", "--heads", "L1"),
        ("chart", "grid", "llama", "-o", "no.png", "--heads", "L0", "--heads", "L1"),
    )
    for arguments in wrong:
        assert heads(*arguments).returncode == 2
    assert not (tmp_path / "no.png").exists()

    # By its name the catalog's model is found where it was.
    for name, said in (("llama", "1 patterns stored (run"), ("mine", "0 patterns stored, 1 there")):
        more = heads("patterns", name, "--name", "mine", "--heads", "L0H3", "--prompt", PROMPT)
        assert f"mine: {said}" in more.stderr

    before = json.loads(heads("db", "size", "-f", "json").stdout)
    gone = heads("patterns-delete", "llama", "--heads", "L2")
    assert "llama: 6 patterns deleted, 660 bytes" in gone.stderr
    after = json.loads(heads("db", "size", "-f", "json").stdout)
    assert before[1]["bytes"] - after[1]["bytes"] >= 660
    assert heads("patterns-delete", "llama", "--heads", "L2").returncode == 2
