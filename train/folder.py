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
from wdmoe_env.writing import check_file, write_whole

FILES = ("arguments.json", CHECKPOINT, "policy.json", "policy.safetensors")
"""What a run writes, beside its curves."""

# What a run may change half-way.
FREE_ON_RESUME = ("timesteps", "out", "checkpoint_every", "resume", "progress", "env_runners", "address")


def open_run(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Refuse a run folder in use, and one to resume that holds no checkpoint or that of another run; else write it.

    Args:
        arguments: of the run.
        settings: of its algorithm, for the record.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: as above, or something else than a file stands where the run will write one.
    """
    run = Path(arguments.out)
    for name in FILES:
        check_file(run / name)
    checkpoint, record = run / CHECKPOINT, run / "arguments.json"
    if checkpoint.exists() and not arguments.resume:
        raise ValueError(f"{run} holds a run already: pass --resume to go on with it, or another --out")
    if arguments.resume and not checkpoint.is_file():
        raise ValueError(f"expected a checkpoint to resume in {checkpoint}, but there is none")
    told = dataclasses.asdict(arguments)
    if arguments.resume:
        began = _record(record)
        for name in told.keys() - set(FREE_ON_RESUME):
            if began.get(name) != told[name]:
                raise ValueError(f"{run} was begun with {name}={began.get(name)!r}, got {told[name]!r}")
    made_by = {"hyperparameters": settings, "version": __version__, "commit": commit()}
    write_whole(record, (json.dumps({**told, **made_by}, indent=2) + "\n").encode())
    return checkpoint


def _record(path: Path) -> dict[str, Any]:
    """What a run wrote of its arguments.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"expected the arguments of the run in {path}, which cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected the arguments of the run in {path}, got {type(record).__name__}")
    return record


def curves(run: Path, timesteps: int) -> Logger:
    """Curves as CSV and for TensorBoard; those of a resumed run lie beside the earlier ones.

    Raises:
        ValueError: no file of ours can stand where the CSV goes.
    """
    suffix = f"-{timesteps}" if timesteps else ""
    check_file(run / f"progress{suffix}.csv")
    return Logger(str(run), [make_output_format(name, str(run), suffix) for name in ("csv", "tensorboard")])


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
