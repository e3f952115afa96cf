"""A real pretrained model, against computations that share no code with the reader.

Relation scores are computed by the dense method over the GGUF file's own tensors; pattern metrics
by loops over transformers' eager attention.
"""

import json
from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

import catalog
from catalog import Catalog
from catalog.errors import ModelError
from ingest.probes import relations
from ingest.probes.relations import MIN_USABLE, RelationSet
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.request import IngestRequest
from ingest.run import ingest

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model")]


@pytest.fixture(scope="module")
def published_scores(
    smollm2: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Catalog:
    """SmolLM2 on the published relation sets, read by the path that users' sets take."""
    folder = tmp_path_factory.mktemp("published")
    one = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}", create=True)
    ingest(
        one,
        IngestRequest(
            model=str(smollm2),
            suites=("relations",),
            relations=str(shared / "data" / "maps_relations"),
            only=True,
        ),
    )
    return one


def test_published_relation_sets_load_by_the_path_that_users_have(
    published_scores: Catalog,
) -> None:
    rows = published_scores.sql(
        "SELECT probe, count(DISTINCT metric) AS relations FROM scores "
        "WHERE metric LIKE 'relation_score%' GROUP BY probe"
    ).rows()
    assert rows == [{"probe": "maps_relations", "relations": 16}]
    notes = json.loads(published_scores.sql("SELECT notes FROM runs").rows()[0]["notes"])
    assert sum(notes["usable_pairs"]["maps_relations"].values()) == 2065
    skipped = notes["skipped"]["maps_relations"]["year_to_following"]
    assert skipped.startswith("0 usable pairs of 700")


def test_shipped_relation_scores_equal_the_dense_method(measured: Catalog, smollm2: Path) -> None:
    _compare_with_dense(measured, relations.shipped("llama", 49_152), "shipped", smollm2, layer=23)


def test_published_relation_scores_equal_the_dense_method(
    published_scores: Catalog, smollm2: Path, shared: Path
) -> None:
    chosen = relations.from_folder(shared / "data" / "maps_relations")
    _compare_with_dense(published_scores, chosen, "maps_relations", smollm2, layer=0)


def _compare_with_dense(
    one: Catalog, chosen: RelationSet, probe: str, gguf: Path, *, layer: int
) -> None:
    """Every hit rate of a layer lies between those of the dense method with ties for and against.

    Ties are logits that float32 cannot tell apart; without any, the two are equal.
    """
    tokenizer = loading.prepare(resolve(str(gguf))).tokenizer
    assert tokenizer is not None
    found = {
        (row["metric"], row["head"]): row["value"]
        for row in one.sql(
            "SELECT metric, head, value FROM scores WHERE layer = :layer AND probe = :probe",
            layer=layer,
            probe=probe,
        )
    }
    tensors = dense.Tensors(gguf)
    compared = decided = 0
    for relation in chosen.relations:
        pairs = relations.usable(
            relation, lambda text: tokenizer.encode(text, add_special_tokens=False)
        )
        # The larger sets take this method minutes.
        if not MIN_USABLE <= len(pairs.sources) <= 150:
            continue
        sought = (pairs.sources, pairs.targets)
        both = dense.ranks(tensors, layer, sought, heads=9, kv_heads=3, activation=dense.silu)
        for head, (larger, smaller) in enumerate(both):
            expected = {
                "relation_score": (larger, relation.k),
                "relation_suppression": (smaller, relation.k),
                "relation_hits_1": (larger, 1),
                "relation_hits_25": (larger, 25),
            }
            for metric, (rank, k) in expected.items():
                low, high = (rank.most < k).mean(), (rank.least < k).mean()
                value = found[f"{metric}[{relation.name}]", head]
                assert low - 1e-12 <= value <= high + 1e-12
                compared += 1
                decided += low == high
    assert decided > 0.99 * compared
    assert compared >= 5 * 9 * 4


def test_pattern_metrics_equal_loops_over_eager_attention(
    measured: Catalog, smollm2: Path, tmp_path: Path
) -> None:
    """Other sequences than the shipped ones, through --probe."""
    period = 20
    rows = torch.randperm(40_000, generator=torch.Generator().manual_seed(11))[: 3 * period]
    blocks = (rows + 100).reshape(3, period).tolist()
    probe = tmp_path / "others.jsonl"
    lines: list[Any] = [{"probe": {"kind": "random_repeat", "period": period, "bos": 1}}]
    even = [0] + [int(place % 2 == 0) for place in range(2 * period)]
    lines += [{"tokens": [1, *block, *block], "classes": {"even": even}} for block in blocks]
    probe.write_text("\n".join(map(json.dumps, lines)))
    ingest(
        measured,
        IngestRequest(model=str(smollm2), suites=("patterns",), probe=str(probe), only=True),
    )
    prepared = loading.prepare(resolve(str(smollm2)))
    model = loading.load(prepared, device="cpu", dtype="float32").model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(
            torch.tensor([[1, *block, *block] for block in blocks]), output_attentions=True
        ).attentions
    p = torch.stack(attention).double().numpy()  # layer, batch, head, query, key
    n = 1 + 2 * period
    second = range(1 + period, n)
    reach = np.arange(n)[:, None] - np.arange(n)
    free = p[..., 1:, 1:] * reach[1:, 1:]
    mass = (p * even).sum(-1)[..., 1:].mean(axis=(1, 3))
    share = np.mean([np.mean(even[: q + 1]) for q in range(1, n)])
    uniform = np.tri(n) / np.arange(1, n + 1)[:, None]
    apart = ((p - p.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 3, 4))
    expected = {
        "induction": np.mean([p[..., q, q - period + 1] for q in second], axis=(0, 2)),
        "duplicate_token": np.mean([p[..., q, q - period] for q in second], axis=(0, 2)),
        "current_token": np.mean([p[..., q, q] for q in range(1, n)], axis=(0, 2)),
        "previous_token": np.mean([p[..., q, q - 1] for q in range(1, n)], axis=(0, 2)),
        "first_token": p[..., 1:, 0].mean(axis=(1, 3)),
        "token_mass[even]": mass,
        "token_lift[even]": mass / share,
        "positional": 1 - apart / ((p - uniform) ** 2).sum(axis=(1, 3, 4)),
        "distance": (p * reach).sum(-1)[..., 1:].mean(axis=(1, 3)),
        "distance_sink_free": (free.sum(-1) / p[..., 1:, 1:].sum(-1)).mean(axis=(1, 3)),
        "entropy": -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1).mean(axis=(1, 3)),
    }
    for metric, values in expected.items():
        found = measured.sql(
            "SELECT layer, head, value FROM scores WHERE metric = :m AND probe = 'others'",
            m=metric,
        ).rows()
        assert len(found) == 270
        for row in found:
            value = values[row["layer"], row["head"]]
            assert row["value"] == pytest.approx(value, abs=1e-6, rel=1e-6)


def test_the_real_model_has_heads_of_the_kinds_that_one_expects(measured: Catalog) -> None:
    top = measured.sql(
        "SELECT layer, head, value FROM scores "
        "WHERE metric = 'induction' AND probe = 'random_repeat' ORDER BY value DESC LIMIT 5"
    ).rows()
    assert (top[0]["layer"], top[0]["head"]) == (18, 6)
    assert top[0]["value"] > 0.8
    labels = measured.sql("SELECT DISTINCT label FROM labels WHERE taxonomy = 'role'").rows()
    assert {"induction", "previous-token", "sink"} <= {row["label"] for row in labels}


def test_a_bos_token_moves_scores_and_both_are_kept(measured: Catalog) -> None:
    rows = measured.sql(
        "SELECT max(abs(a.value - b.value)) AS d FROM scores a JOIN scores b "
        "USING (model, layer, head, metric) WHERE a.metric = 'induction' "
        "AND a.probe = 'random_repeat' AND b.probe = 'random_repeat_bos'"
    ).rows()
    assert rows[0]["d"] > 0.02


def test_a_truncated_gguf_file_changes_nothing(
    smollm2: Path, duckdb_url: str, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2.read_bytes()[:60_000_000])
    with pytest.raises(ModelError, match=r"cut\.gguf is truncated"):
        ingest(one, IngestRequest(model=str(cut)))
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_an_encoder_is_refused_by_name(minilm: Path, duckdb_url: str) -> None:
    one = catalog.connect(duckdb_url, create=True)
    with pytest.raises(ModelError, match="'bert', which is not supported"):
        ingest(one, IngestRequest(model=str(minilm)))
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_a_gguf_without_a_tokenizer_is_prepared_without_one(smollm2: Path, tmp_path: Path) -> None:
    whole = GGUFReader(smollm2)
    writer = GGUFWriter(tmp_path / "bare.gguf", "llama")
    for field in whole.fields.values():
        if not field.name.startswith(("GGUF.", "tokenizer.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    prepared = loading.prepare(resolve(str(tmp_path / "bare.gguf")))
    assert prepared.tokenizer is None
    assert prepared.config.vocab_size == 49152
    loading.reader(prepared, device="cpu").verify(first_mlp=True)
