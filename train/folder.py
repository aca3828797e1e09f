"""The folder of a run: what it was told, its curves, and whether it may be written or resumed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, make_output_format

from train.arguments import CHECKPOINT, Arguments
from wdmoe_env import __version__
from wdmoe_env.reading import read_json
from wdmoe_env.writing import check_file, uninterrupted, write_whole

RECORD = "arguments.json"
FILES = (RECORD, CHECKPOINT, "policy.json", "policy.safetensors")
"""What a run writes, beside its curves."""

# What a run may change half-way.
FREE_ON_RESUME = ("timesteps", "out", "checkpoint_every", "resume", "progress", "env_runners", "address")


def open_run(arguments: Arguments) -> Path:
    """Refuse a run folder in use, and one to resume that holds no checkpoint or that of another run.

    Args:
        arguments: of the run.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: as above, or something else than a file stands where the run will write one.
    """
    run = Path(arguments.out)
    for name in FILES:
        check_file(run / name)
    checkpoint = run / CHECKPOINT
    if checkpoint.exists() and not arguments.resume:
        raise ValueError(f"{run} holds a run already: pass --resume to go on with it, or another --out")
    if arguments.resume and not checkpoint.is_file():
        raise ValueError(f"expected a checkpoint to resume in {checkpoint}, but there is none")
    if arguments.resume:
        began = read_record(run)
        defaults = {field.name: field.default for field in dataclasses.fields(arguments)}
        for name, value in dataclasses.asdict(arguments).items():
            before = began.get(name, defaults[name])  # a run of before there was such an argument
            if name not in FREE_ON_RESUME and before != value:
                raise ValueError(f"{run} was begun with {name}={before!r}, got {value!r}")
    return checkpoint


def read_record(run: Path) -> dict[str, Any]:
    """What a run was told when it began or went on.

    Raises:
        ValueError: the record is missing or damaged.
    """
    record = run / RECORD
    try:
        return read_json(record)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the arguments of the run to resume in {record}, but there are none: {error}"
        ) from None


def write_record(arguments: Arguments, settings: dict[str, Any]) -> None:
    """Write what a run was told.

    Args:
        arguments: of the run.
        settings: of its algorithm.
    """
    made_by = {"hyperparameters": settings, "version": __version__, "commit": commit()}
    told = {**dataclasses.asdict(arguments), **made_by}
    write_whole(Path(arguments.out, RECORD), (json.dumps(told, indent=2) + "\n").encode())


def curves(run: Path, timesteps: int) -> Logger:
    """Curves as CSV and for TensorBoard; those of a resumed run lie beside the earlier ones.

    Raises:
        ValueError: no file of ours can stand where the CSV goes.
    """
    suffix = f"-{timesteps}" if timesteps else ""
    check_file(run / f"progress{suffix}.csv")
    return Curves(str(run), [make_output_format(name, str(run), suffix) for name in ("csv", "tensorboard")])


class Curves(Logger):
    """Curves whose points are written whole: Ctrl-C waits for the end of one.

    TensorBoard hands its events to a thread through a queue. An interrupt in the middle of that leaves the queue's
    count wrong, and the thread dies with a traceback.
    """

    def dump(self, step: int = 0) -> None:
        """Write a point."""
        with uninterrupted():
            super().dump(step)

    def close(self) -> None:
        """End the files."""
        with uninterrupted():
            super().close()


def card(arguments: Arguments, settings: dict[str, Any], timesteps: int, result: dict[str, Any]) -> dict[str, Any]:
    """What a policy's JSON says of its training, the same for every algorithm."""
    return {
        "family": arguments.algorithm,
        "env_id": arguments.env_id,
        "timesteps": timesteps,
        **result,
        "command": command(arguments),
        "arguments": dataclasses.asdict(arguments),
        "hyperparameters": settings,
        "version": __version__,
        "commit": commit(),
    }


def command(arguments: Arguments) -> str:
    """The command line of a run: its arguments where they are not the defaults."""
    words = ["python", "-m", "train"]
    for field in dataclasses.fields(Arguments):
        value, flag = getattr(arguments, field.name), "--" + field.name.replace("_", "-")
        if value == field.default or field.name in ("resume", "progress"):
            continue
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def commit() -> str | None:
    """The commit of this checkout, ``None`` outside one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
