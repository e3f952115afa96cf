"""The suites `weights` and `salient`, from a checkpoint to the catalog, against dense numpy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import catalog
from catalog import Catalog
from ingest.metrics import sample_tokens
from ingest.readers.weights import HeadReader
from ingest.request import IngestRequest
from ingest.run import ingest
from ingest.suites import _compositions

Array = NDArray[np.float64]
ARCHITECTURES = ["falcon", "gpt2", "llama", "qwen3_moe"]
LAYERS, HEADS = 3, 6


class Dense:
    """Whole matrices of a tiny model, in float64, from transformers' own loading."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.reader = HeadReader.of_loaded(self.model, "m")
        self.embedding = self.reader.embedding().double().numpy()
        self.unembedding = self.reader.unembedding().double().numpy()
        self.after_mlp = self.reader.first_mlp(self.reader.embedding()).double().numpy()

    def matrices(self, layer: int, head: int) -> dict[str, Array]:
        """W_Q, W_K, W_V, W_O of one query head, and its OV and QK circuits [d_model, d_model]."""
        heads = self.reader.heads(layer)
        own = {"query": head, "key": heads.kv_head(head)}
        own |= {"value": heads.kv_head(head), "output": head}
        found = {part: getattr(heads, part)[index].double().numpy() for part, index in own.items()}
        found["ov"] = found["value"] @ found["output"]
        found["qk"] = found["query"] @ found["key"].T
        return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Catalog, Dense]:
    folder = tmp_path_factory.mktemp("models") / "m"
    tiny.save(folder, request.param, seed=3)
    one = catalog.connect(f"duckdb:///{folder}/heads.duckdb", create=True)
    ingest(one, IngestRequest(model=str(folder), suites=("weights", "salient"), name="m"))
    return one, Dense(folder)


def scores(one: Catalog, metric: str) -> Array:
    rows = one.sql("SELECT value FROM scores WHERE metric = :m ORDER BY layer, head", m=metric)
    values = [np.nan if row["value"] is None else row["value"] for row in rows]
    return np.array(values, dtype=float).reshape(LAYERS, HEADS)


def each(compute: Callable[[int, int], float]) -> Array:
    return np.array([[compute(layer, head) for head in range(HEADS)] for layer in range(LAYERS)])


def test_norms_and_spectra(measured: tuple[Catalog, Dense]) -> None:
    one, dense = measured
    for circuit in ("ov", "qk"):

        def spectrum(layer: int, head: int, circuit: str = circuit) -> Array:
            sigma = np.linalg.svd(dense.matrices(layer, head)[circuit], compute_uv=False)
            return sigma.astype(np.float64)

        def effective(layer: int, head: int, circuit: str = circuit) -> float:
            sigma = spectrum(layer, head, circuit)
            share = sigma[sigma > 1e-9 * sigma[0]] / sigma.sum()
            return float(np.exp(-(share * np.log(share)).sum()))

        norms = each(lambda layer, head: float(np.sqrt((spectrum(layer, head) ** 2).sum())))
        np.testing.assert_allclose(scores(one, f"{circuit}_norm"), norms, rtol=1e-5)
        ranks = each(effective)
        np.testing.assert_allclose(scores(one, f"{circuit}_effective_rank"), ranks, rtol=1e-4)
        rows = one.sql(
            "SELECT layer, head, numbers FROM vectors WHERE metric = :m ORDER BY layer, head",
            m=f"{circuit}_singular_values",
        ).rows()
        assert len(rows) == LAYERS * HEADS
        for row in rows:
            own = spectrum(row["layer"], row["head"])[: len(row["numbers"])]
            np.testing.assert_allclose(row["numbers"], own, rtol=1e-4)


def test_copying_in_vocabulary_space(measured: tuple[Catalog, Dense]) -> None:
    """Eigenvalues of the whole [vocab, vocab] map, which the suite never forms."""
    one, dense = measured

    def eigenvalues(layer: int, head: int) -> NDArray[np.complex128]:
        ov = dense.matrices(layer, head)["ov"]
        found = np.linalg.eigvals(dense.embedding @ ov @ dense.unembedding.T)
        size = len(dense.matrices(layer, head)["output"])
        return found[np.argsort(-np.abs(found))][:size]

    def copying(layer: int, head: int) -> float:
        found = eigenvalues(layer, head)
        return float((found.sum() / np.abs(found).sum()).real)

    np.testing.assert_allclose(scores(one, "ov_copying"), each(copying), atol=1e-4)
    positive = each(lambda layer, head: float((eigenvalues(layer, head).real > 0).mean()))
    np.testing.assert_allclose(scores(one, "ov_positive_eigenvalues"), positive, atol=1e-9)


def test_copied_tokens(measured: tuple[Catalog, Dense]) -> None:
    one, dense = measured
    sample = sample_tokens(list(range(3, tiny.VOCABULARY))).numpy()

    def ranks(layer: int, head: int, sign: int) -> NDArray[np.int64]:
        written = dense.embedding[sample] @ dense.matrices(layer, head)["ov"]
        logits = sign * written @ dense.unembedding.T
        own = logits[np.arange(len(sample)), sample]
        return np.count_nonzero(logits > own[:, None], axis=1)

    for metric, k, sign in (
        ("copying_hits_1", 1, 1),
        ("copying_hits_10", 10, 1),
        ("copying_suppression_10", 10, -1),
    ):
        expected = [
            [float((ranks(layer, head, sign) < k).mean()) for head in range(HEADS)]
            for layer in range(LAYERS)
        ]
        np.testing.assert_allclose(scores(one, metric), expected, atol=1e-9)


def compositions(dense: Dense) -> dict[tuple[str, int, int, int, int], float]:
    """Of all pairs, from whole matrices: |A B| / (|A| |B|)."""
    found = {}
    every = {(lay, h): dense.matrices(lay, h) for lay in range(LAYERS) for h in range(HEADS)}
    for (layer, head), reads in every.items():
        for (from_layer, from_head), writes in every.items():
            if from_layer >= layer:
                continue
            for kind, b in (("query", reads["qk"]), ("key", reads["qk"].T), ("value", reads["ov"])):
                a = writes["ov"]
                value = np.linalg.norm(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
                found[kind, layer, head, from_layer, from_head] = float(value)
    return found


def test_compositions_are_the_strongest_of_all_pairs(
    measured: tuple[Catalog, Dense], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, dense = measured
    every = compositions(dense)
    kept = {
        (row["kind"], row["layer"], row["head"], row["from_layer"], row["from_head"]): row["value"]
        for row in one.sql("SELECT * FROM compositions")
    }
    expected = set()
    for side in (slice(1, 3), slice(3, 5)):
        groups: dict[Any, list[Any]] = {}
        for key, value in every.items():
            groups.setdefault((key[0], key[side]), []).append((value, key))
        for group in groups.values():
            expected |= {key for _, key in sorted(group, reverse=True)[: _compositions.STRONGEST]}
    assert kept.keys() == expected
    for key, value in kept.items():
        assert value == pytest.approx(every[key], abs=1e-5)
    for kind in ("query", "key", "value"):
        largest = np.full((LAYERS, HEADS), np.nan)
        for (one_kind, layer, head, _, _), value in every.items():
            if one_kind == kind:
                largest[layer, head] = np.fmax(largest[layer, head], value)
        np.testing.assert_allclose(scores(one, f"{kind}_composition"), largest, atol=1e-5)

    # A block a layer, as a model of many layers has them, keeps the same.
    monkeypatch.setattr(_compositions, "_BLOCK_BYTES", 1)
    again = catalog.connect(f"duckdb:///{tmp_path}/again.duckdb", create=True)
    folder = dense.model.config._name_or_path
    ingest(again, IngestRequest(model=folder, suites=("weights",), name="m"))
    query = "SELECT * EXCLUDE (run_id) FROM compositions ORDER BY ALL"
    assert again.sql(query).rows() == one.sql(query).rows()


def test_salient_operations(measured: tuple[Catalog, Dense]) -> None:
    one, dense = measured
    ordinary = np.arange(3, tiny.VOCABULARY)
    rows = one.sql("SELECT * FROM salient_operations").rows()
    assert len(rows) == LAYERS * HEADS * 30 * 2 * 5
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["layer"], row["head"]), []).append(row)
    for (layer, head), own in found.items():
        sources = dense.embedding if layer == 0 else dense.after_mlp
        written = sources @ dense.matrices(layer, head)["ov"]
        norms = np.linalg.norm(written, axis=1)
        most = ordinary[np.argsort(-norms[ordinary])][:30]
        assert {row["token_id"] for row in own} == set(most.tolist())
        for row in own:
            assert row["token"] == f"w{row['token_id']}"
            assert row["norm"] == pytest.approx(norms[row["token_id"]], rel=1e-4)
            logits = written[row["token_id"]] @ dense.unembedding.T
            sign = 1 if row["direction"] == "promoted" else -1
            order = ordinary[np.argsort(-sign * logits[ordinary])]
            expected = logits[order[row["output_rank"]]]
            assert row["logit"] == pytest.approx(expected, abs=1e-3 * np.abs(logits).max())


def test_what_is_not_linear_is_null_and_says_why(duckdb_url: str, tmp_path: Path) -> None:
    """Latent attention has W_O alone; a linear attention layer has no heads at all."""
    one = catalog.connect(duckdb_url, create=True)
    for architecture in ("deepseek_v3", "qwen3_next"):
        folder = tiny.save(tmp_path / architecture, architecture)
        ingest(one, IngestRequest(model=str(folder), suites=("weights", "salient")))
    rows = one.sql(
        "SELECT model, layer, count(value) AS n FROM scores WHERE metric = 'ov_norm' "
        "GROUP BY model, layer ORDER BY model, layer"
    ).rows()
    assert [row["n"] for row in rows] == [0, 0, 0, 0, 6, 6]
    notes = [json.loads(row["notes"])["undefined"] for row in one.sql("SELECT * FROM runs")]
    for metric in ("ov_norm", "qk_norm", "copying_hits_1", "key_composition"):
        assert "latent attention" in notes[0][metric]
    assert notes[2]["L0"] == "this layer has no softmax attention"
    assert notes[2]["L1 key_composition"] == "it reads no earlier head whose output is known"
    assert not unexplained(one)
    salient = "SELECT DISTINCT model, layer FROM salient_operations ORDER BY layer"
    assert [row["layer"] for row in one.sql(salient)] == [1, 2]
    positional = scores_of(one, "deepseek_v3", "positional_previous_token")
    assert positional == [None] * 18


def unexplained(one: Catalog) -> list[tuple[str, ...]]:
    """What is NULL without a reason in its run's notes."""
    notes = {row["run_id"]: row["notes"] for row in one.sql("SELECT run_id, notes FROM runs")}
    missing = "SELECT DISTINCT run_id, metric, layer, head FROM"
    null = one.sql(f"{missing} scores WHERE value IS NULL").rows()
    null += one.sql(f"{missing} vectors WHERE numbers IS NULL").rows()
    assert null
    found: list[tuple[str, ...]] = []
    for row in null:
        layer, name = f"L{row['layer']}", row["metric"]
        head = f"{layer}H{row['head']}"
        places = (head, layer, f"{head} {name}", f"{layer} {name}", name)
        reasons = json.loads(notes[row["run_id"]])["undefined"]
        if not any(place in reasons for place in places):
            found.append(places)
    return found


def scores_of(one: Catalog, model: str, metric: str) -> list[float | None]:
    query = "SELECT value FROM scores WHERE model = :n AND metric = :m ORDER BY layer, head"
    return [row["value"] for row in one.sql(query, n=model, m=metric)]


def test_positions_alone(duckdb_url: str, tmp_path: Path) -> None:
    """GPT-2: the pattern of normalised position embeddings, by loops."""
    one = catalog.connect(duckdb_url, create=True)
    folder = tiny.save(tmp_path / "m", "gpt2")
    ingest(one, IngestRequest(model=str(folder), suites=("weights",), name="m"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    positions = model.transformer.wpe.weight
    expected = []
    with torch.no_grad():
        for block in model.transformer.h:
            mixed = block.attn.c_attn(block.ln_1(positions))
            query, key = (mixed[:, i * 48 : (i + 1) * 48].reshape(-1, 6, 8) for i in (0, 1))
            for head in range(6):
                total = 0.0
                logits = (query[:, head] @ key[:, head].T).double().numpy() / np.sqrt(8)
                for q in range(1, len(positions)):
                    row = np.exp(logits[q, : q + 1] - logits[q, : q + 1].max())
                    total += row[q - 1] / row.sum()
                expected.append(total / (len(positions) - 1))
    found = scores_of(one, "m", "positional_previous_token")
    np.testing.assert_allclose(np.array(found, dtype=float), expected, atol=1e-5)


def test_a_damaged_head_has_no_weights_scores_and_the_others_have(
    empty_catalog: Catalog, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "m", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][15, 4] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ingest(empty_catalog, IngestRequest(model=str(folder), suites=("weights", "salient")))
    missing = empty_catalog.sql(
        "SELECT DISTINCT metric, layer, head FROM scores WHERE value IS NULL AND NOT "
        "(layer = 0 AND metric LIKE '%composition') AND metric <> 'positional_previous_token'"
    ).rows()
    assert {(row["layer"], row["head"]) for row in missing} == {(1, 1)}
    assert {"ov_norm", "qk_norm", "key_composition"} <= {row["metric"] for row in missing}
    notes = empty_catalog.sql("SELECT notes FROM runs WHERE suite = 'weights'").rows()[0]["notes"]
    reason = "NaN or infinite values in its query weights"
    assert json.loads(notes)["undefined"] == {
        "L1H1": reason,
        "positional_previous_token": "the model has no learned positions",
        "ov_signature": "none of the words to compare is one token of the model",
        **{f"L0 {kind}_composition": "no layer is before it" for kind in ("query", "key", "value")},
    }
    assert not unexplained(empty_catalog)
    found = empty_catalog.sql("SELECT DISTINCT layer, head FROM salient_operations").rows()
    assert len(found) == 18  # what it writes is not damaged


def test_a_head_that_writes_nothing_ranks_nothing(duckdb_url: str, tmp_path: Path) -> None:
    """Zero weights make every token tie with every other, which is no perfect score."""
    one = catalog.connect(duckdb_url, create=True)
    folder = tiny.save(tmp_path / "m", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.self_attn.o_proj.weight"][:, 30:40] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = tiny.relations(tmp_path / "words")
    ingest(one, IngestRequest(model=str(folder), suites=("weights", "salient")))
    ingest(
        one,
        IngestRequest(model=str(folder), suites=("relations",), relations=str(words), only=True),
    )
    null = one.sql(
        "SELECT DISTINCT layer, head FROM scores WHERE value IS NULL "
        "AND (metric LIKE 'relation%' OR metric LIKE 'copying%' OR metric = 'ov_copying')"
    ).rows()
    assert null == [{"layer": 2, "head": 3}]
    norm = "SELECT value FROM scores WHERE metric = 'ov_norm' AND layer = 2 AND head = 3"
    assert one.sql(norm).rows() == [{"value": 0.0}]
    assert not unexplained(one)
    notes = one.sql("SELECT notes FROM runs WHERE suite = 'weights'").rows()[0]["notes"]
    why = json.loads(notes)["undefined"]["L2H3 copying_hits_1"]
    assert why == "it writes nothing: its output weights are zero"
    notes = one.sql("SELECT notes FROM runs WHERE suite = 'relations'").rows()[0]["notes"]
    reason = "it writes nothing: its output weights are zero"
    assert json.loads(notes)["undefined"] == {"L2H3": reason}

    weights["model.layers.0.mlp.down_proj.weight"][:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ingest(
        one,
        IngestRequest(model=str(folder), suites=("relations",), relations=str(words), only=True),
    )
    defined = one.sql(
        "SELECT DISTINCT layer FROM scores WHERE value IS NOT NULL AND metric LIKE 'relation%'"
    )
    assert defined.rows() == [{"layer": 0}]
