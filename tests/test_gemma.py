"""Gemma 3: a real model with sliding windows, and heads whose size is not d_model / n_heads."""

import json
from pathlib import Path

import dense
import numpy as np
import pytest
import torch

import catalog
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.request import IngestRequest
from ingest.run import ingest

pytestmark = pytest.mark.model
FREQUENT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all"
)


def test_gemma_3_with_windows_and_its_own_head_size(
    gemma: Path, duckdb_url: str, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    text = tmp_path / "long.jsonl"
    long = (torch.arange(560) * 37 % 50_000 + 300).tolist()
    text.write_text(json.dumps({"tokens": [2, *long]}))
    words = tmp_path / "words"
    words.mkdir()
    pairs = [[word, word] for word in FREQUENT.split()]
    (words / "copy.json").write_text(json.dumps({"pairs": pairs, "k": 1}))
    ingest(
        one,
        IngestRequest(
            model=str(gemma),
            suites=("relations", "patterns"),
            relations=str(words),
            probe=str(text),
            only=True,
        ),
    )

    row = one.sql("SELECT n_layers, n_heads, n_kv_heads, d_head, d_model FROM models").rows()[0]
    assert row == {"n_layers": 18, "n_heads": 4, "n_kv_heads": 1, "d_head": 256, "d_model": 640}
    prepared = loading.prepare(resolve(str(gemma)))
    model = loading.load(prepared, device="cpu", dtype="float32").model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(torch.tensor([[2, *long]]), output_attentions=True).attentions
    p = torch.stack(attention)[:, 0].double().numpy()
    found = {
        (r["metric"], r["layer"], r["head"]): r["value"]
        for r in one.sql("SELECT metric, layer, head, value FROM scores")
    }
    for layer in range(18):
        allowed = (p[layer] > 0).any(axis=0).sum(axis=-1)
        assert allowed.max() == (561 if layer % 6 == 5 else 512)
        for head in range(4):
            one_head = p[layer, head]
            assert found["first_token", layer, head] == pytest.approx(
                one_head[1:, 0].mean(), abs=1e-6
            )
            rows = -np.where(
                one_head > 0, one_head * np.log(np.where(one_head > 0, one_head, 1)), 0
            )
            normalized = rows.sum(-1)[1:] / np.log(allowed[1:])
            assert found["entropy_normalized", layer, head] == pytest.approx(
                normalized.mean(), abs=1e-6
            )
    tokenizer = prepared.tokenizer
    assert tokenizer is not None
    ids = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word, _ in pairs]
    tensors = dense.Tensors(gemma)
    both = dense.ranks(tensors, 9, (ids, ids), heads=4, kv_heads=1, activation=dense.gelu)
    for head, (larger, _) in enumerate(both):
        value = found["relation_score[copy]", 9, head]
        assert (larger.most < 1).mean() <= value <= (larger.least < 1).mean()
