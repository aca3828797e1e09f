"""How commands end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from benchmarks import knowing, stock
from wdmoe_env.command import end_with, mistakes_in_one_sentence


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("main", "left", "code", "said"),
    [
        (lambda: 2, None, 2, ""),
        (lambda: None, None, None, ""),
        (interrupted, None, 130, "python -m one: interrupted\n"),
        (interrupted, lambda: "nothing was written", 130, "python -m one: interrupted; nothing was written\n"),
    ],
)
def test_the_exit_code_is_that_of_the_command_and_130_where_it_is_interrupted(main, left, code, said, capsys):
    with pytest.raises(SystemExit) as ended:
        end_with("python -m one", main, left)
    assert ended.value.code == code
    assert capsys.readouterr().err == said


def test_an_interrupted_process_says_one_line():
    program = (
        "import time; from wdmoe_env.command import end_with\n"
        "end_with('one', lambda: (print(1, flush=True), time.sleep(60)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "1\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "one: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize("error", [ValueError("expected 1,\n  got 2"), OSError("no disk"), FloatingPointError("NaN")])
def test_a_mistake_is_one_sentence_and_the_code_2(error, capsys):
    @mistakes_in_one_sentence("python -m one")
    def main(argv):
        raise error

    assert main(["--out"]) == 2
    assert capsys.readouterr().err == f"python -m one: {' '.join(str(error).split())}\n"


def test_what_is_no_mistake_of_the_user_is_raised():
    @mistakes_in_one_sentence("python -m one")
    def main(code):
        return code or {}["missing"]

    assert main(3) == 3
    with pytest.raises(KeyError):
        main(0)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (knowing.main, ["windows", "--policies", "nobody"], "nobody"),
        (knowing.main, ["windows", "--episodes", "0"], "episodes must be"),
        (knowing.main, ["requests", "--load", "0"], "load must be"),
        (stock.main, ["token", "--split", "nowhere"], "nowhere"),
        (stock.main, ["token", "--every", "0"], "every must be"),
    ],
)
def test_benchmarks_name_a_mistake_before_they_begin(main, flags, message, tmp_path, capsys):
    assert main([*flags, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
