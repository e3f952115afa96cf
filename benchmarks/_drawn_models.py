"""The models of a catalog drawn from a seed: names and layouts of real ones."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from catalog.declarations import ModelSpec


@dataclass(frozen=True)
class Family:
    """Models of one maker: (layers, heads, KV heads, width, millions of parameters) by size."""

    name: str
    architecture: str
    vocabulary: int
    sizes: dict[str, tuple[int, int, int, int, int]]
    tuned: tuple[str, ...]


FAMILIES = (
    Family(
        "meta-llama/Llama-3.1-{}",
        "llama",
        128_256,
        {
            "70B": (80, 64, 8, 8_192, 70_554),
            "8B": (32, 32, 8, 4_096, 8_030),
            "1B": (16, 32, 8, 2_048, 1_236),
            "3B": (28, 24, 8, 3_072, 3_213),
        },
        ("-Instruct", "-Code", "-Math"),
    ),
    Family(
        "EleutherAI/pythia-{}",
        "gpt_neox",
        50_304,
        {
            "70m": (6, 8, 8, 512, 70),
            "160m": (12, 12, 12, 768, 162),
            "410m": (24, 16, 16, 1_024, 405),
            "1b": (16, 8, 8, 2_048, 1_012),
            "1.4b": (24, 16, 16, 2_048, 1_415),
            "2.8b": (32, 32, 32, 2_560, 2_775),
            "6.9b": (32, 32, 32, 4_096, 6_857),
        },
        ("-deduped", "-seed1", "-seed2", "-seed3"),
    ),
    Family(
        "HuggingFaceTB/SmolLM2-{}",
        "llama",
        49_152,
        {
            "135M": (30, 9, 3, 576, 135),
            "360M": (32, 15, 5, 960, 362),
            "1.7B": (24, 32, 32, 2_048, 1_711),
        },
        ("-Instruct", "-SFT", "-DPO"),
    ),
    Family(
        "Qwen/Qwen3-{}",
        "qwen3",
        151_936,
        {
            "0.6B": (28, 16, 8, 1_024, 596),
            "1.7B": (28, 16, 8, 2_048, 1_721),
            "4B": (36, 32, 8, 2_560, 4_022),
            "8B": (36, 32, 8, 4_096, 8_191),
        },
        ("-Instruct", "-Coder", "-Math"),
    ),
    Family(
        "openai-community/gpt2-{}",
        "gpt2",
        50_257,
        {
            "small": (12, 12, 12, 768, 124),
            "medium": (24, 16, 16, 1_024, 355),
            "large": (36, 20, 20, 1_280, 774),
            "xl": (48, 25, 25, 1_600, 1_558),
        },
        ("-code", "-stories", "-dialogue"),
    ),
    Family(
        "google/gemma-3-{}",
        "gemma3_text",
        262_144,
        {"270m": (18, 4, 1, 640, 268), "1b": (26, 4, 1, 1_152, 1_000)},
        ("-it", "-sft"),
    ),
    Family(
        "allenai/OLMo-2-{}",
        "olmo2",
        100_352,
        {"1B": (16, 16, 16, 2_048, 1_485), "7B": (32, 32, 32, 4_096, 7_299)},
        ("-SFT", "-DPO", "-Instruct"),
    ),
)


def models_of(count: int) -> Iterator[ModelSpec]:
    """Base models and what was tuned from them, then further seeds of all, until there are enough.

    The first is the largest, with 80 x 64 = 5,120 heads, and the only one of its size.
    """
    plain = [(one, size, "") for one in FAMILIES for size in one.sizes]
    rest = [(one, size, suffix) for one, size, _ in plain[1:] for suffix in one.tuned]
    made = [(*one, "") for one in (*plain, *rest)]
    for step in itertools.count(1):
        if len(made) >= count:
            break
        made += [(*one, f"-step{step}000") for one in (*plain[1:], *rest)]
    for one, size, suffix, step_suffix in made[:count]:
        base = one.name.format(size)
        name = f"{base}{suffix}{step_suffix}"
        n_layers, n_heads, n_kv_heads, width, millions = one.sizes[size]
        yield ModelSpec(
            name=name,
            revision=digest(name)[:40],
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            architecture=one.architecture,
            d_model=width,
            d_head=width // n_heads,
            vocab_size=one.vocabulary,
            n_params=millions * 1_000_000,
            base_model=base if name != base else None,
            dtype="bfloat16",
            source=f"hub:{name}",
            content_hash=f"sha256:{digest(name)}",
        )


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
