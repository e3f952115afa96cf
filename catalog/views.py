"""The views that users may rely on: what each is, and what its columns hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """A view and its columns in order, each with what it holds."""

    description: str
    columns: dict[str, str]


_HEAD = {
    "model": "name of the model",
    "layer": "from 0",
    "head": "query head, from 0",
}
_RUN = {"run_id": "the run that it comes from, in runs"}
_MEASURED = {
    **_HEAD,
    "metric": "name of the metric, in metrics",
    "probe": "what the model was shown, in probes",
}

VIEWS: dict[str, View] = {
    "models": View(
        "Models, one row each",
        {
            "model": "name of the model",
            "revision": "commit or content hash",
            "architecture": "as its configuration says",
            "n_layers": "layers",
            "n_heads": "query heads of a layer",
            "n_kv_heads": "key and value heads of a layer",
            "d_model": "width of the residual stream",
            "d_head": "width of a head",
            "vocab_size": "tokens of the vocabulary",
            "n_params": "parameters",
            "base_model": "the model that it was tuned from",
            "dtype": "of its weights",
            "quantization": "of its file, such as Q4_1",
            "source": "where it was read from",
            "added_at": "when it came into the catalog",
            "content_hash": "of its files",
        },
    ),
    "heads": View(
        "Heads of all models, one row each",
        {
            **_HEAD,
            "kv_head": "the key and value head that it uses",
            "depth": "0 in the first layer, 1 in the last",
            "name": "such as L5H3",
        },
    ),
    "metrics": View(
        "What has been measured, one row for each metric",
        {
            "metric": "name, a parameter in brackets",
            "version": "rises when numbers change",
            "suite": "what is measured in the same pass",
            "unit": "of its values",
            "lower": "smallest possible value; NULL: none",
            "upper": "largest possible value; NULL: none",
            "description": "what it is",
            "source": "paper or definition",
            "family": "name without parameter",
            "parameter": "what stands in brackets",
            "is_vector": "a list of numbers for every head, in vectors",
        },
    ),
    "scores": View(
        "Published scores, one row for each head, metric and probe",
        {**_MEASURED, "value": "NULL is undefined", **_RUN},
    ),
    "coverage": View(
        "What was measured of which model: one row for each run, metric and probe",
        {
            "model": "name of the model",
            "metric": "name of the metric, in metrics",
            "probe": "what the model was shown, in probes",
            "heads": "with a row in scores",
            "defined": "of these, with a value",
            **_RUN,
        },
    ),
    "vectors": View(
        "Published lists of numbers, one row for each head, metric and probe",
        {**_MEASURED, "numbers": "the list", **_RUN},
    ),
    "compositions": View(
        "The few earlier heads that each head reads most",
        {
            **_HEAD,
            "from_layer": "of the earlier head",
            "from_head": "of the earlier head",
            "kind": "query, key or value",
            "value": "composition score",
            **_RUN,
        },
    ),
    "salient_operations": View(
        "The tokens that a head amplifies most, and what it maps each to",
        {
            **_HEAD,
            "token": "what it reads",
            "token_rank": "0 is amplified most",
            "norm": "how much it is amplified",
            "direction": "promoted or suppressed",
            "output": "what it maps the token to",
            "output_rank": "0 first",
            "logit": "of the output",
            **_RUN,
            "token_id": "of the token",
            "output_id": "of the output",
        },
    ),
    "stored_patterns": View(
        "Which whole attention patterns are stored",
        {
            **_HEAD,
            "prompt": "name of the prompt",
            "n_tokens": "its length",
            "dtype": "of what is stored",
            "bytes": "of what is stored",
            "max_error": "largest difference from what was measured",
            **_RUN,
            "added_at": "when it was stored",
            "prompt_id": "of the prompt, in prompt_tokens",
        },
    ),
    "prompt_tokens": View(
        "The tokens of prompts with stored patterns",
        {
            "prompt": "name of the prompt",
            "position": "from 0",
            "token_id": "of the tokenizer",
            "token": "its text",
            "prompt_id": "of the prompt",
        },
    ),
    "relation_correlations": View(
        "Relation scores of weights against those of runs",
        {
            "model": "name of the model",
            "relation": "such as country_to_capital",
            "probe": "the relation set",
            "template": "of the prompts; all: over all of them",
            "context": "with or without",
            "direction": "promoted or suppressed",
            "pearson": "correlation over heads; NULL is undefined",
            "points": "heads and templates that it is over",
        },
    ),
    "labels": View(
        "Labels of heads, one row each",
        {
            **_HEAD,
            "taxonomy": "the family of the label",
            "label": "what the head is called",
            "source": "rule, human, model or published",
            "confidence": "0 to 1; NULL: not said",
            "run_id": "of labels by rule",
            "reason": "why",
            "added_at": "when it was given",
        },
    ),
    "taxonomies": View(
        "Taxonomies, one row for each of their labels",
        {
            "taxonomy": "name",
            "version": "of its rules",
            "description": "what it is",
            "rules": "which scores give which label",
            "label": "one of its labels",
        },
    ),
    "runs": View(
        "Measurements: each suite on each model",
        {
            "run_id": "number of the run",
            "model": "name of the model",
            "suite": "what is measured in one pass",
            "probe": "what the model was shown; several with commas",
            "status": "running, succeeded or failed",
            "params": "how it was measured",
            "started_at": "when it began",
            "finished_at": "when it ended",
            "seconds": "how long it took",
            "peak_memory": "bytes",
            "device": "such as cpu or cuda:0",
            "dtype": "of the computation",
            "versions": "of the packages",
            "error": "why it failed",
            "revision": "of the model",
            "notes": "what could not be measured, and why",
        },
    ),
    "probes": View(
        "What models are shown",
        {
            "probe": "name",
            "version": "rises with its contents",
            "kind": "such as text or random_repeat",
            "content_hash": "of its contents",
            "seed": "where it is random",
            "description": "what it is",
        },
    ),
    "relations": View(
        "Relations of each relation set",
        {
            "probe": "name of the set",
            "relation": "such as country_to_capital",
            "category": "such as Knowledge",
            "k": "how many first places count as a hit",
            "n_pairs": "pairs of words",
        },
    ),
    "score_runs": View(
        "As scores, with what a later run has replaced",
        {
            "model": "name of the model",
            "revision": "of the model",
            "layer": "from 0",
            "head": "query head, from 0",
            "metric": "name of the metric, in metrics",
            "probe": "what the model was shown, in probes",
            "value": "NULL is undefined",
            **_RUN,
            "is_published": "false: a later run has replaced it",
        },
    ),
}
