"""The one writer: whole files, a folder for one run at a time, and nothing that is not ours."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wdmoe_env import writing
from wdmoe_env.writing import (
    LOCK,
    check_file,
    check_folder,
    held_folder,
    is_temporary,
    try_file,
    working_folder,
    write_files,
    write_whole,
)

HOLDER = """
import sys
from pathlib import Path
from wdmoe_env.writing import held_folder
with held_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def names(folder):
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def planted(path, kind):
    """Something else than a regular file at a path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(path.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's path may have 107 bytes only
            os.close(folder)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no right to make a device")
    else:
        (path.parent / "victim").write_text("mine")
        path.symlink_to("victim" if kind == "link" else "nowhere")


KINDS = ("folder", "pipe", "socket", "device", "link", "link to nothing")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [lambda path: write_whole(path, b"new"), try_file, check_file])
def test_a_file_takes_the_place_of_nothing_but_a_file(tmp_path, kind, write):
    path = tmp_path / "there"
    planted(path, kind)
    before = path.lstat()
    with pytest.raises(ValueError, match=r"expected a place for a file, but .*there is a "):
        write(path)
    assert os.path.samestat(path.lstat(), before)
    assert not any(map(is_temporary, names(tmp_path)))
    if kind == "link":
        assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\udcff"])
@pytest.mark.parametrize("check", [check_file, check_folder, try_file, lambda path: write_whole(path, b"")])
def test_a_name_that_is_none_is_refused(tmp_path, name, check):
    with pytest.raises(ValueError, match="expected a path "):
        check(tmp_path / name)
    assert names(tmp_path) == []


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    for check in (check_folder, try_file):
        with pytest.raises(OSError, match=r"cannot write .*: File name too long"):
            check(tmp_path / ("a" * 300))


def test_a_file_is_replaced_and_missing_folders_are_made(tmp_path):
    for content in (b"", b"first", b"second" * 100_000):
        write_whole(tmp_path / "deep" / "er" / "file", content)
        assert (tmp_path / "deep" / "er" / "file").read_bytes() == content
    assert names(tmp_path / "deep" / "er") == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "deep" / "er" / "file").stat().st_mode) == 0o666 & ~mask


def test_what_lies_under_names_that_could_be_guessed_stays(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("file.part", ".file.part", f".file.{os.getpid()}.part"):
        (tmp_path / name).symlink_to(victim)
    write_whole(tmp_path / "file", b"new")
    assert victim.read_text() == "mine"
    assert all((tmp_path / name).is_symlink() for name in names(tmp_path) if "part" in name)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch, fails_at):
    before = {"a": b"1", "b": b"2", "c": b"3"}
    write_files(tmp_path, before)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    sentence = f"cannot write .*/{'abc'[fails_at]}: No space left on device; what was there is unchanged"
    with pytest.raises(OSError, match=sentence):
        write_files(tmp_path, dict.fromkeys(before, b"new"))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_place_that_cannot_be_written_to_is_found_by_trying(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*page.html: No space left"):
        try_file(tmp_path / "new" / "page.html")
    with pytest.raises(OSError, match=r"cannot write .*: No space left"), held_folder(tmp_path / "new" / "run"):
        pytest.fail("held")
    assert names(tmp_path) == []


def test_trying_leaves_no_trace(tmp_path):
    try_file(tmp_path / "a" / "b" / "page.html")
    assert names(tmp_path) == []
    (tmp_path / "page.html").write_text("mine")
    try_file(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"


def test_a_folder_is_held_by_one_alone(tmp_path):
    with held_folder(tmp_path / "run") as folder:
        with pytest.raises(ValueError, match=f"another run, process {os.getpid()}, is writing into .*run"):
            held_folder(tmp_path / "run").__enter__()
        with held_folder(tmp_path / "other"):
            write_whole(folder / "file", b"mine")
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["file"]
    with held_folder(tmp_path / "run"):
        pass


def test_a_link_to_a_folder_is_written_through_and_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with held_folder(tmp_path / "link") as folder:
        write_whole(folder / "file", b"mine")
        with pytest.raises(ValueError, match="another run"), held_folder(tmp_path / "real"):
            pytest.fail("held twice")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["file"]


@pytest.mark.parametrize("path", ["link", "link/run", "loop", "link/deep/er"])
def test_a_link_to_nothing_is_refused(tmp_path, path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"is a link to .*, which is not there"), held_folder(tmp_path / path):
        pytest.fail("held")
    with pytest.raises(ValueError, match=r"is a (symbolic )?link"):
        try_file(tmp_path / path)
    assert names(tmp_path) == ["link", "loop"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        check_folder(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write"), held_folder(tmp_path / "file" / "run"):
        pytest.fail("held")
    planted(tmp_path / "pipe", "pipe")
    with pytest.raises(ValueError, match="expected a folder, got a named pipe"):
        check_folder(tmp_path / "pipe")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_a_file_of_its_own(tmp_path, kind):
    planted(tmp_path / LOCK, kind)
    with pytest.raises(ValueError, match="expected a place for a file"), held_folder(tmp_path):
        pytest.fail("held")


def test_a_dead_process_holds_nothing_and_its_left_overs_go(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"another run, process {process.pid}, is writing into"), held_folder(run):
        pytest.fail("held twice")
    process.kill()
    process.communicate()
    (run / ".wdmoe-0123456789abcdef.part").write_bytes(b"half")
    (run / ".wdmoe-ab_cd.part").mkdir()
    (run / ".wdmoe-ab_cd.part" / "model").write_bytes(b"half")
    with held_folder(run) as folder:
        assert names(folder) == [LOCK]
    assert names(run) == []


def test_only_left_overs_of_our_own_go(tmp_path):
    kept = [".wdmoe-notes", "wdmoe-x.part", ".other.part", "file.part"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".wdmoe-link.part").symlink_to(victim)
    os.mkfifo(tmp_path / ".wdmoe-pipe.part")
    with working_folder(tmp_path) as alive:
        (alive / "file").write_text("at work")
        write_whole(tmp_path / "file", b"new")
        with held_folder(tmp_path):
            assert (alive / "file").read_text() == "at work"
    assert not alive.exists()
    assert victim.read_text() == "mine"
    assert names(tmp_path) == sorted([*kept, "victim", "file", ".wdmoe-link.part", ".wdmoe-pipe.part"])


def test_writers_do_not_take_each_others_parts_for_left_overs(tmp_path):
    failures = []

    def write(number):
        try:
            for _ in range(30):
                write_whole(tmp_path / f"file{number}", b"x" * 1000)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names(tmp_path) == [f"file{number}" for number in range(4)]


def test_files_that_belong_together_are_not_torn_by_an_interrupt(tmp_path, monkeypatch):
    real, moved = os.replace, []

    def interrupted(source, target):
        real(source, target)
        moved.append(Path(target).name)
        if len(moved) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(writing.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert names(tmp_path) == moved == ["a", "b", "c"]


def test_where_the_file_system_knows_no_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    def unknown(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(writing.fcntl, "flock", unknown)
    (tmp_path / ".wdmoe-0123456789abcdef.part").write_bytes(b"of another host")
    with held_folder(tmp_path) as folder:
        write_whole(folder / "file", b"new")
    assert names(tmp_path) == [".wdmoe-0123456789abcdef.part", "file"]
