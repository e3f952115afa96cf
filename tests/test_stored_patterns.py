"""Whole attention patterns: stored, read, replaced, deleted, on both databases."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import published
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from sqlalchemy import text

import catalog
from catalog import Catalog, pattern_files, pattern_rows, patterns, publishing
from catalog.declarations import ModelSpec, PromptPatterns, Results, RunSpec
from catalog.errors import StorageError, UsageError
from catalog.pattern_rows import MAX_ERROR
from catalog.rows import Keys

Head = tuple[int, int]
Square = NDArray[np.float32]
TOKENS = ("the", " cat", " sat", " the", " cat")


def softmaxed(seed: int, n: int = len(TOKENS)) -> Square:
    """A causal pattern of random logits."""
    logits = np.random.default_rng(seed).normal(size=(n, n)) * 3
    weights = np.exp(logits) * np.tri(n)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def packed(square: Square) -> pa.Array:
    """Row by row, by a loop: what a query may attend to."""
    numbers = [square[q, k] for q in range(len(square)) for k in range(q + 1)]
    return pa.array(np.array(numbers, np.float16))


def prompt(
    squares: Mapping[Head, Square], name: str = "p", tokens: Iterable[str] = TOKENS
) -> PromptPatterns:
    tokens = list(tokens)
    return PromptPatterns(
        prompt=name,
        token_ids=[10 + place for place in range(len(tokens))],
        tokens=tokens,
        patterns={head: packed(square) for head, square in squares.items()},
    )


def begin(one: Catalog, of: ModelSpec | None = None, dtype: str = "float32") -> int:
    spec = RunSpec(
        model=of or published.model(),
        suite=pattern_rows.SUITE,
        metrics=(),
        keyed_probes={},
        params={},
        versions={},
        device="cpu",
        dtype=dtype,
    )
    return publishing.begin(one.database, spec)


def store(one: Catalog, *prompts: PromptPatterns, of: ModelSpec | None = None) -> int:
    run_id = begin(one, of)
    publishing.publish(one.database, run_id, Results(patterns=prompts), metrics=())
    return run_id


def files(one: Catalog) -> list[Path]:
    folder = pattern_files.folder_of(one.database)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def stored_bytes(one: Catalog) -> int:
    return {row["part"]: row["bytes"] for row in patterns.size(one)}["stored patterns"]


def test_what_is_read_is_what_was_stored(empty_catalog: Catalog) -> None:
    squares = {(2, 3): softmaxed(0), (0, 1): softmaxed(1)}
    run_id = store(empty_catalog, prompt(squares))
    found = patterns.read(empty_catalog, "m", ["L2H3", "L0H1"], prompt="p")
    assert [one.name for one in found] == ["L2H3", "L0H1"]
    for one, square in zip(found, squares.values(), strict=True):
        assert one.numpy().dtype == np.float32
        assert np.abs(one.numpy() - square).max() <= one.max_error == MAX_ERROR
        assert (one.tokens, one.token_ids) == (TOKENS, (10, 11, 12, 13, 14))
        assert (one.run_id, one.prompt) == (run_id, "p")
    listed = empty_catalog.sql("SELECT * FROM stored_patterns ORDER BY layer").rows()
    # 5 tokens: 1 + 2 + 3 + 4 + 5 numbers of 2 bytes.
    assert [(row["layer"], row["head"], row["bytes"]) for row in listed] == [(0, 1, 30), (2, 3, 30)]
    facts = ("n_tokens", "dtype", "run_id", "prompt")
    assert [listed[0][name] for name in facts] == [5, "float16", run_id, "p"]
    spelled = empty_catalog.sql("SELECT token_id, token FROM prompt_tokens ORDER BY position")
    assert [tuple(row.values()) for row in spelled] == list(zip(range(10, 15), TOKENS, strict=True))


def test_no_probability_moves_by_more_than_is_stated(empty_catalog: Catalog) -> None:
    """Between 1/2 and 1 float16 has steps of 2^-11: in the middle of one the error is the bound."""
    steps = np.arange(0, 1 + 2**-12, 2**-12, dtype=np.float32)
    n = 90  # 4,095 numbers of the triangle for 4,097 values
    square = np.zeros((n, n), np.float32)
    square[np.tril_indices(n)] = steps[-n * (n + 1) // 2 :]
    store(empty_catalog, prompt({(0, 0): square}, tokens=map(str, range(n))))
    [found] = patterns.read(empty_catalog, "m")
    assert np.abs(found.numpy() - square).max() == MAX_ERROR


def test_heads_and_prompts_add_to_what_is_there(empty_catalog: Catalog) -> None:
    first = store(empty_catalog, prompt({(0, 0): softmaxed(0), (0, 1): softmaxed(1)}))
    second = store(empty_catalog, prompt({(0, 1): softmaxed(2), (1, 0): softmaxed(3)}))
    store(empty_catalog, prompt({(0, 0): softmaxed(4)}, name="q", tokens="abcde"))
    found = patterns.read(empty_catalog, "m", prompt="p")
    assert [(one.name, one.run_id) for one in found] == [
        ("L0H0", first),
        ("L0H1", second),
        ("L1H0", second),
    ]
    for one, seed in zip(found, (0, 2, 3), strict=True):
        np.testing.assert_allclose(one.numpy(), softmaxed(seed), rtol=0, atol=MAX_ERROR)
    assert [one.name for one in patterns.read(empty_catalog, "m", ["L0"], prompt="p")] == [
        "L0H0",
        "L0H1",
    ]
    if empty_catalog.database.is_duckdb:
        assert len(files(empty_catalog)) == 3
        with safe_open(max(files(empty_catalog), key=lambda path: path.stat().st_mtime), "np") as f:
            assert list(f.keys()) == ["L0H0"]
            assert f.get_tensor("L0H0").dtype == np.float16


def test_a_newer_revision_takes_the_place_of_the_older_on_its_prompts(
    empty_catalog: Catalog,
) -> None:
    both = {(0, 0): softmaxed(0), (0, 1): softmaxed(1)}
    old = store(empty_catalog, prompt(both), prompt(both, name="q"))
    new = store(empty_catalog, prompt({(0, 0): softmaxed(2)}), of=published.model(revision="r2"))
    found = empty_catalog.sql(
        "SELECT prompt, layer, head, run_id FROM stored_patterns ORDER BY prompt, head"
    )
    assert [tuple(row.values()) for row in found] == [
        ("p", 0, 0, new),
        ("q", 0, 0, old),
        ("q", 0, 1, old),
    ]


def test_other_tokens_under_the_same_name_take_the_place_of_the_former(
    empty_catalog: Catalog,
) -> None:
    store(empty_catalog, prompt({(0, 0): softmaxed(0), (0, 1): softmaxed(1)}))
    store(empty_catalog, prompt({(0, 0): softmaxed(2, 3)}, tokens=["a", "b", "c"]))
    [found] = patterns.read(empty_catalog, "m", prompt="p")
    assert found.tokens == ("a", "b", "c")
    assert len(empty_catalog.sql("SELECT * FROM prompt_tokens")) == 3


def test_what_is_known_needs_the_same_revision_tokens_and_dtype(empty_catalog: Catalog) -> None:
    one = prompt({(0, 0): softmaxed(0)})
    run_id = store(empty_catalog, one)
    database = empty_catalog.database
    assert pattern_rows.known(database, "m", "r1", "float32", one) == {(0, 0): run_id}
    assert pattern_rows.known(database, "m", "r2", "float32", one) == {}
    assert pattern_rows.known(database, "m", "r1", "bfloat16", one) == {}
    other = prompt({(0, 0): softmaxed(0)}, tokens=[*TOKENS[:-1], " dog"])
    assert pattern_rows.known(database, "m", "r1", "float32", other) == {}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({(0, 0): pa.array([1.0] * 15, pa.float32())}, "expected 15 float16 numbers"),
        ({(0, 0): pa.array(np.ones(14, np.float16))}, "got 14 of halffloat"),
        ({(0, 0): pa.array(np.full(15, np.nan, np.float16))}, "L0H0 on 'q': expected numbers"),
        ({(0, 0): pa.array(np.full(15, 1.5, np.float16))}, "expected numbers from 0 to 1"),
        ({(3, 0): packed(softmaxed(0))}, "L3H0: expected one of 3 layers of 4 heads"),
    ],
)
def test_a_run_that_breaks_off_leaves_nothing(
    empty_catalog: Catalog, broken: dict[Head, Any], reason: str
) -> None:
    store(empty_catalog, prompt({(1, 1): softmaxed(0)}))
    before = files(empty_catalog) if empty_catalog.database.is_duckdb else []
    run_id = begin(empty_catalog)
    good = prompt({(0, 0): softmaxed(1), (1, 1): softmaxed(2)})
    bad = PromptPatterns(
        prompt="q",
        token_ids=range(5),
        tokens=list("abcde"),
        patterns={(0, 1): good.patterns[0, 0], **broken},
    )
    with pytest.raises(ValueError, match=reason):
        publishing.publish(
            empty_catalog.database, run_id, Results(patterns=[good, bad]), metrics=()
        )
    publishing.fail(empty_catalog.database, run_id, "ValueError")
    [found] = patterns.read(empty_catalog, "m")
    np.testing.assert_allclose(found.numpy(), softmaxed(0), rtol=0, atol=MAX_ERROR)
    assert empty_catalog.sql("SELECT bytes FROM stored_patterns").rows() == [{"bytes": 30}]
    assert len(empty_catalog.sql("SELECT DISTINCT prompt_id FROM prompt_tokens")) == 1
    if empty_catalog.database.is_duckdb:
        assert files(empty_catalog) == before


def test_a_full_disk_leaves_nothing(duckdb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = catalog.connect(duckdb_url, create=True)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".safetensors.part"):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        store(one, prompt({(0, 0): softmaxed(0)}))
    assert files(one) == []
    assert len(one.sql("SELECT * FROM stored_patterns")) == 0


def test_leftovers_of_a_killed_run_go_with_the_next_write(duckdb_url: str) -> None:
    one = catalog.connect(duckdb_url, create=True)
    store(one, prompt({(0, 0): softmaxed(0)}))
    [kept] = files(one)
    strangers = [kept.with_name(f"{'0' * 32}.safetensors{suffix}") for suffix in ("", ".part")]
    note = kept.with_name("mine.txt")
    for path in (*strangers, note):
        path.write_bytes(b"left over")
    assert stored_bytes(one) == kept.stat().st_size + 3 * len(b"left over")
    store(one, prompt({(0, 1): softmaxed(0)}, name="q"))
    assert not any(path.exists() for path in strangers)
    assert kept.exists()
    assert note.exists()
    assert len(patterns.read(one, "m", prompt="p")) == 1


def test_a_missing_or_altered_file_is_named(duckdb_url: str) -> None:
    one = catalog.connect(duckdb_url, create=True)
    store(one, prompt({(0, 0): softmaxed(0), (0, 1): softmaxed(1)}))
    [path] = files(one)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match=f"{path} is not as the catalog wrote it"):
        patterns.read(one, "m")
    path.write_bytes(content[:-4])
    with pytest.raises(StorageError, match="is not as the catalog wrote it"):
        patterns.read(one, "m")
    path.unlink()
    with pytest.raises(StorageError, match=f"{path} is missing"):
        patterns.read(one, "m")
    # What is gone can be stored again, head by head, and deleted.
    store(one, prompt({(0, 0): softmaxed(0)}))
    assert len(patterns.read(one, "m", ["L0H0"])) == 1
    with pytest.raises(StorageError, match=f"{path} is missing"):
        patterns.read(one, "m")
    assert patterns.delete(one, "m").patterns == 2
    assert files(one) == []


def test_a_file_of_another_folder_is_out_of_reach(duckdb_url: str, tmp_path: Path) -> None:
    one = catalog.connect(duckdb_url, create=True)
    store(one, prompt({(0, 0): softmaxed(0)}))
    [path] = files(one)
    path.rename(tmp_path / path.name)
    with one.database.writing() as connection:
        connection.execute(text("UPDATE attention_pattern SET file = '../' || file"))
        connection.commit()
    with pytest.raises(StorageError, match="is missing"):
        patterns.read(one, "m")


def test_an_altered_row_is_named(new_postgresql_url: str) -> None:
    one = catalog.connect(new_postgresql_url, create=True)
    store(one, prompt({(0, 0): softmaxed(0)}))
    with one.database.writing() as connection:
        connection.execute(text("UPDATE attention_pattern SET content = set_byte(content, 0, 1)"))
        connection.commit()
    with pytest.raises(StorageError, match="L0H0 on 'p' is not as the catalog wrote it"):
        patterns.read(one, "m")


def test_deleting_frees_the_bytes(empty_catalog: Catalog) -> None:
    n = 200
    squares = {(layer, head): softmaxed(layer, n) for layer in range(3) for head in range(4)}
    empty = stored_bytes(empty_catalog)
    store(empty_catalog, prompt(squares, tokens=map(str, range(n))))
    full = stored_bytes(empty_catalog)
    each = n * (n + 1) // 2 * 2
    # PostgreSQL compresses what it can; a safetensors header takes less than 2 kB here.
    assert full - empty >= (12 * each if empty_catalog.database.is_duckdb else 6 * each)
    gone = patterns.delete(empty_catalog, "m", ["L0", "L1"])
    assert (gone.patterns, gone.n_bytes) == (8, 8 * each)
    left = patterns.read(empty_catalog, "m")
    assert [one.name for one in left] == ["L2H0", "L2H1", "L2H2", "L2H3"]
    np.testing.assert_allclose(left[3].numpy(), softmaxed(2, n), rtol=0, atol=MAX_ERROR)
    if empty_catalog.database.is_duckdb:
        assert stored_bytes(empty_catalog) < 4 * each + 2000
    patterns.delete(empty_catalog, "m", prompt="p")
    # An emptied table of a server keeps maps of its free pages, 64 kB here.
    assert stored_bytes(empty_catalog) < full / 4
    assert len(empty_catalog.sql("SELECT * FROM prompt_tokens")) == 0
    with pytest.raises(UsageError, match=r"m has no stored pattern of any head; .*nothing is "):
        patterns.delete(empty_catalog, "m")


def test_the_total_is_what_the_parts_are(empty_catalog: Catalog) -> None:
    store(empty_catalog, prompt({(0, 0): softmaxed(0)}))
    parts = {row["part"]: row["bytes"] for row in patterns.size(empty_catalog)}
    assert parts["total"] == parts["tables"] + parts["stored patterns"]
    path = empty_catalog.database.path
    if path is None:
        query = "SELECT pg_database_size(current_database()) AS n"
        assert empty_catalog.sql(query).rows() == [{"n": parts["total"]}]
    else:
        beside = [path, *files(empty_catalog)]
        assert parts["total"] == sum(one.stat().st_size for one in beside)


@pytest.mark.parametrize(
    "name",
    [
        "a\x00b",
        "one\ntwo\r\n",
        "\N{GRINNING FACE} e\u0301",
        "<script>alert(1)</script>",
        "'; --",
        " ",
    ],
)
def test_any_text_can_be_a_prompt_and_its_tokens(empty_catalog: Catalog, name: str) -> None:
    tokens = [name, "\x00", "\n", "", "\N{GRINNING FACE}"]
    store(empty_catalog, prompt({(0, 0): softmaxed(0)}, name, tokens))
    [found] = patterns.read(empty_catalog, "m", prompt=name)
    assert list(found.tokens) == [token.replace("\x00", "\u2400") for token in tokens]
    assert patterns.delete(empty_catalog, "m", prompt=name).patterns == 1


def test_what_is_missing_is_told_with_the_command_that_stores_it(empty_catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="no model 'm'"):
        patterns.read(empty_catalog, "m")
    store(empty_catalog, prompt({(0, 0): softmaxed(0)}))
    command = "heads patterns CHECKPOINT --name m --heads L1H2,L2 --prompt 'a b'"
    with pytest.raises(UsageError, match=f"no stored pattern of L1H2,L2 on 'a b'; `{command}`"):
        patterns.read(empty_catalog, "m", ["L1H2,L2"], prompt="a b")
    with pytest.raises(UsageError, match=r"of L1H2 on 'p'; .* --heads L1H2 --prompt p`"):
        patterns.read(empty_catalog, "m", ["L0H0,L1H2"])
    store(empty_catalog, prompt({(0, 0): softmaxed(0)}, name="q"))
    with pytest.raises(UsageError, match="on several prompts, 'p', 'q'; choose one with --prompt"):
        patterns.read(empty_catalog, "m")
    with pytest.raises(UsageError, match="'5' is no head"):
        patterns.read(empty_catalog, "m", ["5"])


def test_cells_are_the_pattern_with_its_tokens(empty_catalog: Catalog) -> None:
    square = softmaxed(0)
    store(empty_catalog, prompt({(0, 0): square, (1, 2): softmaxed(1)}))
    rows = patterns.cells(patterns.read(empty_catalog, "m", ["L1H2", "L0H0"])).rows()
    assert len(rows) == 2 * 15
    expected = [(q, k, TOKENS[q], TOKENS[k]) for q in range(5) for k in range(q + 1)]
    of_head = [row for row in rows if row["name"] == "L0H0"]
    named = ("query", "key", "query_token", "key_token")
    assert [tuple(row[name] for name in named) for row in of_head] == expected
    for row in of_head:
        assert abs(row["value"] - square[row["query"], row["key"]]) <= MAX_ERROR


def test_cells_of_a_part_keep_their_places(empty_catalog: Catalog) -> None:
    square = softmaxed(0)
    store(empty_catalog, prompt({(0, 0): square}))
    rows = patterns.cells(patterns.read(empty_catalog, "m"), first=2, last=3).rows()
    assert [(row["query"], row["key"], row["key_token"]) for row in rows] == [
        (2, 2, " sat"),
        (3, 2, " sat"),
        (3, 3, " the"),
    ]
    found = [row["value"] for row in rows]
    np.testing.assert_allclose(found, [square[2, 2], square[3, 2], square[3, 3]], atol=MAX_ERROR)


def test_what_there_is_of_what_was_asked_for(empty_catalog: Catalog) -> None:
    three = {(0, 0): softmaxed(0), (0, 1): softmaxed(1), (2, 3): softmaxed(2)}
    store(empty_catalog, prompt(three), prompt({(0, 0): softmaxed(3, 3)}, "q", "abc"))

    def find(*heads: str, prompt: str = "p", at_most: int = 9) -> tuple[list[str], Any, int]:
        found = patterns.find(empty_catalog, {"m": heads}, prompt=prompt, at_most=at_most)
        one = found["m"]
        return [head.name for head in one.patterns], one.absent, one.left_out

    assert find("L2H3", "L1", "L0") == (["L2H3", "L0H0", "L0H1"], [(1, None)], 0)
    assert find(at_most=2) == (["L0H0", "L0H1"], [], 1)
    assert find("L0H0", prompt="none") == ([], [(0, 0)], 0)
    with pytest.raises(UsageError, match="'5' is no head"):
        find("5")
    listed = [tuple(row.values())[:4] for row in patterns.prompts(empty_catalog)]
    assert listed == [("m", "p", 5, 3), ("m", "q", 3, 1)]
    # Another model's tokens are its own, on the same prompt.
    store(empty_catalog, prompt({(0, 0): softmaxed(4, 3)}, "p", "xyz"), of=published.model("n"))
    both = patterns.find(empty_catalog, {"n": [], "m": ["L0H1"]}, prompt="p", at_most=9)
    read = [(model, one.name, one.tokens) for model in both for one in both[model].patterns]
    assert read == [("n", "L0H0", ("x", "y", "z")), ("m", "L0H1", TOKENS)]
    for model, square in (("n", softmaxed(4, 3)), ("m", three[0, 1])):
        [one] = both[model].patterns
        np.testing.assert_allclose(one.numpy(), square, atol=MAX_ERROR)


def test_the_side_file_is_safetensors(duckdb_url: str) -> None:
    one = catalog.connect(duckdb_url, create=True)
    squares = {(0, 0): softmaxed(0), (2, 1): softmaxed(1)}
    store(one, prompt(squares))
    [path] = files(one)
    with safe_open(path, "np") as opened:
        for (layer, head), square in squares.items():
            stored = opened.get_tensor(f"L{layer}H{head}")
            np.testing.assert_array_equal(stored, packed(square).to_numpy(zero_copy_only=False))


def test_a_run_of_patterns_leaves_scores_as_they_are(empty_catalog: Catalog) -> None:
    scores = published.begin(empty_catalog)
    published.publish(empty_catalog, scores, published.uniform(0.5))
    store(empty_catalog, prompt({(0, 0): softmaxed(0)}))
    assert empty_catalog.sql("SELECT DISTINCT run_id FROM scores").rows() == [{"run_id": scores}]
    runs = empty_catalog.sql("SELECT suite, status, probe FROM runs ORDER BY run_id").rows()
    assert runs[1] == {"suite": "stored_patterns", "status": "succeeded", "probe": None}


def test_a_slice_of_numbers_is_stored_as_that_slice() -> None:
    keys = Keys(
        run_id=1, n_layers=1, n_heads=1, heads=pa.array([7]), scores={}, vectors={}, probes={}
    )
    numbers = pa.array(np.array([0.5, 0.25, 1.0, 0.125, 0.0], np.float16)).slice(1, 3)
    one = PromptPatterns(
        prompt="p", token_ids=[1, 2], tokens=["a", "b"], patterns={(0, 0): numbers}
    )
    content = pattern_rows._content(one, (0, 0), keys)
    assert np.frombuffer(content, np.float16).tolist() == [0.25, 1.0, 0.125]
