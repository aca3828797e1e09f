"""How commands end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from wdmoe_env.command import end_with


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
