"""All that is written passes here: files whole or not at all, and one run at a time in a folder.

Only regular files and folders are written. No symbolic link stands in a file's place, and no temporary name can be
guessed. A run holds its folder by a lock that ends with its process, so what a killed run left over is known by being
unlocked: the next writer in that folder removes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any

try:
    fcntl: Any = import_module("fcntl")
except ImportError:  # Windows has no such locks: nothing is held there, and nothing left over is removed
    fcntl = None

_MARK, _PART = ".wdmoe-", ".part"
LOCK = f"{_MARK}lock"
"""The file in a folder that a run holds; gone when the run is over, unless it was killed."""

_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that a killed run leaves the old one or the new.

    Args:
        path: of the file; missing folders are made.
        content: all of it.

    Raises:
        ValueError: something else than a regular file stands there, or no file can have this name.
        OSError: it cannot be written; the message names the file, and what was there is unchanged.
    """
    write_files(path.parent, {path.name: content})


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of one folder: none takes its place before all are written, in the order given.

    Args:
        folder: missing ones are made.
        contents: name to all of the file.

    Raises:
        ValueError, OSError: see ``write_whole``.
    """
    for name in contents:
        check_file(folder / name)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_over(folder)
    with ExitStack() as parts:
        written = [(parts.enter_context(_part(folder / name, content)), name) for name, content in contents.items()]
        with uninterrupted():
            for (part, file), name in written:
                if fcntl is None:
                    file.close()  # Windows moves no open file
                with naming(folder / name):
                    os.replace(part, folder / name)


def check_file(path: Path) -> None:
    """Refuse a path where no file of our own can stand, without touching it.

    Raises:
        ValueError: a link, folder, device, pipe or socket is there, or no file can have this name.
        OSError: the folders before it cannot be read.
    """
    _check_name(path)
    _check_links(path.parent)
    with naming(path):
        try:
            kind = stat.S_IFMT(path.lstat().st_mode)
        except FileNotFoundError:
            return
    if kind != stat.S_IFREG:
        raise ValueError(f"expected a place for a file, but {path} is {_KINDS.get(kind, 'no regular file')}")


def try_file(path: Path) -> None:
    """Check, before the work that will fill it, that a file can be written: a small one is, beside it, and removed.

    Raises:
        ValueError, OSError: see ``write_whole``.
    """
    check_file(path)
    with _made(path.parent), _part(path, b"\n"):
        pass


@contextmanager
def held_folder(path: Path) -> Iterator[Path]:
    """A folder for this process alone until the body ends, which is tried before the body begins.

    Where the body leaves nothing in it, a folder that was made for it is removed.

    Args:
        path: of the folder, or a link to one; made where there is none.

    Yields:
        The folder itself, without links.

    Raises:
        ValueError: no folder, a link to nothing, a name that no folder can have, or another process holds it.
        OSError: nothing can be written there.
    """
    check_folder(path)
    folder = path.resolve()
    with _made(folder), _locked(folder, path):
        _remove_left_over(folder)
        with _part(folder / "trial", b"\n"):
            pass
        yield folder


def check_folder(path: Path) -> None:
    """Refuse a path that is no folder and cannot become one, without touching it.

    Raises:
        ValueError: a file, a link to nothing, or a name that no folder can have.
        OSError: the folders before it cannot be read.
    """
    _check_name(path)
    _check_links(path)
    with naming(path):
        is_other = path.exists() and not path.is_dir()
    if is_other:
        kind = stat.S_IFMT(path.stat().st_mode)
        raise ValueError(f"expected a folder, got {_KINDS.get(kind, 'the file')} {path}")


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` for what others write; removed at the end, or by the next writer after a kill."""
    with naming(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(parent)
        made = Path(tempfile.mkdtemp(prefix=_MARK, suffix=_PART, dir=parent))
    try:
        with _held_open(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def move_whole(source: Path, path: Path) -> None:
    """Put a finished file of a ``working_folder`` in its place.

    Raises:
        ValueError, OSError: see ``write_whole``.
    """
    check_file(path)
    with naming(path):
        os.replace(source, path)


def is_temporary(name: str) -> bool:
    """Whether this module gave a name: to a lock, or to a file that is still being written."""
    return name == LOCK or (name.startswith(_MARK) and name.endswith(_PART))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system say in one sentence which file could not be written.

    Raises:
        OSError: instead of one that may not name it, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it has its sentence
            raise
        kept = "; what was there is unchanged" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OSError(f"cannot write {path}: {error.strerror}{kept}") from error


def _check_name(path: Path) -> None:
    name = os.fspath(path)
    if "\0" in name:
        raise ValueError(f"expected a path without the character NUL, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected a path in UTF-8, got {name!r}") from None


def _check_links(path: Path) -> None:
    """Refuse a link to nothing in a path, which would be made somewhere that nobody named."""
    with naming(path):
        broken = next((part for part in (path, *path.parents) if part.is_symlink() and not part.exists()), None)
    if broken is not None:
        target = os.readlink(broken)
        raise ValueError(f"expected a place to write to, but {broken} is a link to {target}, which is not there")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those before it; at the end remove those of them that are empty."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # not empty: the first that is kept keeps those before it
            for part in missing:
                part.rmdir()


@contextmanager
def _part(path: Path, content: bytes) -> Iterator[tuple[Path, FileIO]]:
    """A finished and locked file beside ``path``, under a new name; gone at the end where it was not moved."""
    with naming(path):
        name, file = _new_part(path.parent)
    try:
        with file:
            with naming(path):
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            yield name, file
    finally:
        name.unlink(missing_ok=True)


def _new_part(folder: Path) -> tuple[Path, FileIO]:
    while True:
        name = folder / f"{_MARK}{secrets.token_hex(8)}{_PART}"
        file = FileIO(name, "xb", opener=_not_following)
        # Before it is locked another writer may take it for a left-over, and remove it.
        if _lock(file.fileno()) and _is_at(name, file.fileno()):
            return name, file
        file.close()


def _not_following(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_FOLLOW, 0o666)


@contextmanager
def _held_open(folder: Path) -> Iterator[None]:
    """Lock a folder itself, so that it is no left-over while this process lives."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | _NO_FOLLOW)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path, told: Path) -> Iterator[None]:
    """Hold a folder's lock.

    Raises:
        ValueError: another process holds it, or something else than a file has its name.
    """
    lock = folder / LOCK
    with naming(lock):
        descriptor = _taken(lock, told)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _taken(lock: Path, told: Path) -> int:
    while True:
        check_file(lock)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
        if not _lock(descriptor):
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise ValueError(
                f"another run, process {holder}, is writing into {told}: wait for it, or take another folder"
            )
        if _is_at(lock, descriptor):  # and not removed by the run that held it until now
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder; False where another process has it. Without locks in the file system, True."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_left_over(folder: Path) -> None:
    """Remove the unfinished files that killed runs of this user left in a folder; those of a live run are locked."""
    if fcntl is None:
        return
    for name in os.listdir(folder):
        if name != LOCK and is_temporary(name):
            with suppress(OSError):
                _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    about = path.lstat()
    is_folder = stat.S_ISDIR(about.st_mode)
    if about.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(about.st_mode)):
        return
    descriptor = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | _NO_FOLLOW)
    try:
        # Not by ``_lock``: where the file system has no locks, the owner may be alive.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the body is over: files that belong together take their places together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, Any]] = []
    before: Callable[[int, Any], Any] | int | None = signal.signal(
        signal.SIGINT, lambda number, frame: caught.append((number, frame))
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(*caught[0])
