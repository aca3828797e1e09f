"""How far a run is: whether there is anything left to do, and whether what its checkpoint says can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.arguments import Arguments
from train.folder import read_record, write_record
from wdmoe_env.policies.policy_file import read_policy


def policy_path(arguments: Arguments) -> Path:
    """Where a run writes the weights of its policy."""
    return Path(arguments.out, "policy.safetensors")


def goes_on(arguments: Arguments, settings: dict[str, Any], timesteps: int, update_steps: int) -> bool:
    """Whether a run has anything left to do; says so where it has not, and then nothing in its folder is changed.

    A finished run whose policy is missing, damaged or older than the checkpoint goes on as far as to write it.

    Args:
        arguments: of the run; recorded in its folder where there is something to learn.
        settings: of its algorithm, for the record.
        timesteps: environment steps so far, those of the checkpoint.
        update_steps: environment steps that one update takes: a run ends at the first update at or past the steps that
            it was told.

    Raises:
        ValueError: the checkpoint says that it is farther than the run was ever told to go.
    """
    if timesteps < arguments.timesteps:
        write_record(arguments, settings)
        return True
    saved = _saved_timesteps(policy_path(arguments))
    if saved is not None and saved >= timesteps:
        print(
            f"{arguments.out} is finished: it has taken {timesteps} of the {arguments.timesteps} environment steps, so "
            "nothing was changed (more --timesteps let it go on)"
        )
        return False
    told = read_record(Path(arguments.out)).get("timesteps")
    most = max(saved or 0, told if type(told) is int else 0, arguments.timesteps) + update_steps
    if timesteps > most:
        raise ValueError(
            f"expected a checkpoint of at most {most} environment steps in {arguments.out}, for the run was told no "
            f"more, got one that says {timesteps} (if that is right, --timesteps above it lets the run go on)"
        )
    return True


def _saved_timesteps(policy: Path) -> int | None:
    """Environment steps that the policy of a run had learned for, ``None`` where there is no whole policy."""
    try:
        timesteps = read_policy(str(policy))[1].get("timesteps")
    except ValueError:
        return None
    return timesteps if type(timesteps) is int else None
