"""Which documents the language model learns from, and which it never sees."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import replace

from train.text.documents import Document
from train.text.prose import BIBLES

LANGUAGE_MODEL, VALIDATION, EPISODE_TRAIN, EPISODE_TEST = "lm-train", "lm-validation", "train", "test"
HELD_OUT_BYTES = {EPISODE_TEST: 118_000, EPISODE_TRAIN: 118_000, VALIDATION: 40_000}
"""Text that each held-out part gets per domain."""

PASSAGE_BYTES = 8_000
"""A held-out document gives at most one passage of about this size, so that many documents take part."""

CAP_BYTES = {
    "speeches": 8_000_000,
    "facts": 8_500_000,
    "dictionary": 6_000_000,
    "documentation": 5_000_000,
    "code": 6_000_000,
} | dict.fromkeys(BIBLES, 3_000_000)
"""The most that the language model learns from per domain, so that no domain drowns the others."""


def split(documents: Iterable[Document], seed: int = 0) -> dict[str, list[Document]]:
    """Divide documents into four disjoint parts; parallel documents stay together.

    In the order of a seeded hash, each pool's groups fill the held-out parts up to
    ``HELD_OUT_BYTES``, then the language model's training part up to ``CAP_BYTES``.
    Held-out documents are cut to a passage. Documents whose ``learned`` is set keep to it.

    Args:
        documents: All documents; pools are domains, the translations together being one.
        seed: Another seed gives another division.

    Returns:
        The documents of each part.
    """
    parts: dict[str, list[Document]] = {part: [] for part in (LANGUAGE_MODEL, *HELD_OUT_BYTES)}
    pools: dict[str, dict[str, list[Document]]] = {}
    for document in documents:
        pool = "translations" if document.domain in BIBLES else document.domain
        pools.setdefault(pool, {}).setdefault(document.group, []).append(document)
    for pool, groups in pools.items():
        names = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {pool} {name}".encode()).digest())
        _fill(parts, [groups[name] for name in names])
    return parts


def _fill(parts: dict[str, list[Document]], groups: list[list[Document]]) -> None:
    """Give one pool's groups, in order, to the parts."""
    domains = {document.domain for group in groups for document in group}
    used = dict.fromkeys(parts, 0)
    for group in groups:
        part = next((name for name in HELD_OUT_BYTES if used[name] < HELD_OUT_BYTES[name] * len(domains)), "")
        if not part or group[0].learned:
            part = LANGUAGE_MODEL
            cap = sum(CAP_BYTES.get(domain, 1 << 40) for domain in domains)
            if used[part] > cap or group[0].learned is False:
                continue
        kept = group if part == LANGUAGE_MODEL else [passage(document) for document in group]
        used[part] += sum(len(document.text.encode()) for document in kept)
        parts[part] += kept


def passage(document: Document, size: int = PASSAGE_BYTES) -> Document:
    """Cut a document to about ``size`` characters that begin at a line, at a place its name decides."""
    text = document.text
    if len(text) > size:
        start = random.Random(document.name).randrange(len(text) - size + 1)
        start = text.rfind("\n", 0, start) + 1
        text = text[start : start + size]
        end = max(text.rfind("\n", size // 2), text.find(". ", size - size // 8) + 1)
        text = text[: end if end > 0 else size].strip()
    return replace(document, text=text)


def without_repeats(documents: Iterable[Document], min_characters: int = 80) -> list[Document]:
    """Drop documents seen before, and long lines seen before in the domain (code keeps its lines).

    Args:
        documents: In a fixed order: the first occurrence stays.
        min_characters: Shorter lines may repeat.
    """
    seen: set[tuple[str, str]] = set()
    kept = []
    for document in documents:
        lines = document.text.split("\n")
        if document.domain != "code":
            new = [line for line in lines if len(line) < min_characters or (document.domain, line) not in seen]
            seen.update((document.domain, line) for line in lines)
            lines = new
        text = "\n".join(lines)
        key = (document.domain, re.sub(r"\s+", " ", text))
        if len(text) >= 400 and key not in seen:
            seen.add(key)
            kept.append(replace(document, text=text))
    return kept


def overlap(reference: Iterable[Document], others: Iterable[Document], n: int = 13) -> dict[str, float]:
    """Return per domain the share of ``others``' word n-grams that occur in ``reference``."""
    known = {gram for document in reference for gram in _grams(document.text, n)}
    hits: dict[str, list[int]] = {}
    for document in others:
        counts = hits.setdefault(document.domain, [0, 0])
        for gram in _grams(document.text, n):
            counts[0] += gram in known
            counts[1] += 1
    return {domain: found / max(total, 1) for domain, (found, total) in hits.items()}


def _grams(text: str, n: int) -> Iterable[int]:
    words = re.findall(r"\w+", text.lower())
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))
