"""Accuracy of the model's own routing, and of the trigram, in every cell of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from train.language_model.packed_suite import right_items
from train.suite.trigram import CachedTrigram
from train.text.shards import read_shard
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.text.suite import NUM_CHOICES, SUITE_TOKENS, Item, suite_windows

CHARACTERS_PER_DOMAIN = 4_500_000
VALIDATION_DOCUMENTS = 3


@dataclass(frozen=True)
class Cell:
    """Accuracies of one format in one domain.

    Attributes:
        format: See ``wdmoe_env.text.suite.FORMATS``.
        domain: Kind of text.
        items: How many.
        chance: Accuracy of guessing.
        trigram: Accuracy of the cached trigram.
        model: Accuracy of the language model with its own routing.
    """

    format: str
    domain: str
    items: int
    chance: float
    trigram: float
    model: float


def model_is_right(folder: Path, items: Sequence[Item]) -> NDArray[np.bool_]:
    """Whether the language model of a folder chooses each item's answer with its own routing, (M,)."""
    model = load_model(str(folder))
    suite = suite_windows(items, model.tokenizer.encode, SUITE_TOKENS)
    return right_items(model, suite, np.arange(len(items)), policy=None, label="model")


def trigram_is_right(data: Path, items: Sequence[Item]) -> NDArray[np.bool_]:
    """Whether trigrams of the language model's training text choose each item's answer, (M,)."""
    trigram = CachedTrigram(domain_texts(data, "lm-train", CHARACTERS_PER_DOMAIN))
    trigram.fit_cache(domain_texts(data, "lm-validation", CHARACTERS_PER_DOMAIN, VALIDATION_DOCUMENTS))
    scores = [trigram.scores(item) for item in tqdm(items, desc="trigram", unit="item")]
    return np.array([score.argmax() for score in scores]) == [item.answer for item in items]


def domain_texts(data: Path, part: str, characters: int, documents: int = 1 << 40) -> list[str]:
    """Documents of a shard as text, up to so many characters and documents of each domain."""
    tokenizer = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    ids, index = read_shard(data / f"{part}.npy")
    used: dict[str, int] = {}
    count: dict[str, int] = {}
    texts = []
    for domain, _, start, length, size in index:
        if used.get(domain, 0) < characters and count.get(domain, 0) < documents:
            texts.append(tokenizer.decode(ids[start + 1 : start + length].tolist()))
            used[domain] = used.get(domain, 0) + size
            count[domain] = count.get(domain, 0) + 1
    return texts


def cells(items: Sequence[Item], model: NDArray[np.bool_], trigram: NDArray[np.bool_]) -> list[Cell]:
    """Accuracies per format and domain, in the order of the items."""
    keys = [(item.format, item.domain) for item in items]
    found = []
    for key in dict.fromkeys(keys):
        rows = np.array([other == key for other in keys])
        right = (float(trigram[rows].mean()), float(model[rows].mean()))
        found.append(Cell(*key, int(rows.sum()), 1 / NUM_CHOICES, *right))
    return found


def table(found: Sequence[Cell]) -> str:
    """The cells as aligned text, and in how many the model is above the trigram."""
    rows = [f"{'format':14}{'domain':15}{'items':>6}{'chance':>8}{'trigram':>9}{'model':>7}"]
    for cell in found:
        numbers = f"{cell.items:6}{cell.chance:8.2f}{cell.trigram:9.3f}{cell.model:7.3f}"
        rows.append(f"{cell.format:14}{cell.domain:15}{numbers}{'' if cell.model > cell.trigram else '  not above'}")
    above = sum(cell.model > cell.trigram for cell in found)
    total = sum(cell.items for cell in found)
    means = [sum(getattr(cell, name) * cell.items for cell in found) / total for name in ("trigram", "model")]
    rows.append(f"all: {total} items, trigram {means[0]:.3f}, model {means[1]:.3f}")
    rows.append(f"the model is above the trigram in {above} of {len(found)} cells ({above / len(found):.0%})")
    return "\n".join(rows)


def as_records(found: Sequence[Cell]) -> list[dict[str, object]]:
    """The cells, ready for JSON."""
    return [asdict(cell) for cell in found]
