"""Command line: ``python -m train --help``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from train.arguments import CHECKPOINT, Arguments
from wdmoe_env.command import end_with

EXAMPLES = """
examples:
  python -m train                                             # selection, reward "wlr", into runs/ppo
  python -m train --settings rollouts=8,critic=none --out runs/changed # settings of train/hyperparameters.yml
  python -m train --reward latency_quality --quality-weight 20 --out runs/quality
  python -m train --env-id WDMoE-v0 --out runs/joint          # learns the bandwidth shares too
  python -m train --algorithm straight-through --hidden-states --reward latency_quality --out runs/gradient
  python -m train --start runs/gradient/policy.safetensors --hidden-states --reward latency_quality --out runs/both
  python -m train --env-id WDMoE-Serve-v0 --hidden-states --extra-experts 1 --start straight-through-30 \
      --quality-weight 2 --timesteps 8192 --out runs/serve      # requests that wait for each other
  python -m train --out runs/joint --env-id WDMoE-v0 --resume # goes on after a kill
  python -m train --backend rllib --address auto --env-runners 8 --out runs/rllib # over a Ray cluster
  tensorboard --logdir runs                                   # curves

The run folder holds the policy (policy.safetensors and policy.json), progress*.csv (curves), arguments.json and
checkpoint.safetensors. Compare it with the optimizer: python -m eval --policies vanilla wdmoe RUN/policy.safetensors
Exit code 2: a mistake, named in one sentence. Exit code 130: interrupted; the last checkpoint stays.
The language model has recipes of its own: python -m train.text --help, python -m train.language_model --help.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m train",
        description="Train a policy on the batched WDMoE environment: PPO by tokens, the gradient, or stock.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(result)
    return result


def add_arguments(target: argparse.ArgumentParser) -> None:
    """Add a flag for every field of ``Arguments``."""
    for field in dataclasses.fields(Arguments):
        flag = "--" + field.name.replace("_", "-")
        options: dict[str, Any] = {"default": field.default, "help": f"{field.metadata['help']} ({field.default})"}
        kind = type(field.default)
        options |= {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        target.add_argument(flag, **options)


def arguments_of(argv: list[str] | None = None) -> Arguments:
    """What the command line says."""
    return Arguments(**vars(parser().parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code."""
    arguments = arguments_of(argv)
    try:
        from train.agent import train  # only here: it takes seconds to import, in which Ctrl-C may come too

        path = train(arguments)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"python -m train: {sentence(error, arguments)}", file=sys.stderr)
        return 2
    print(f"policy: {path}")
    return 0


def sentence(error: Exception, arguments: Arguments) -> str:
    """What an error says, and where, for one of a full disk names no file where a curve is written."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return f"cannot write in {arguments.out}: {error.strerror}; the last checkpoint, if any, is unchanged"
    return " ".join(str(error).split())


def left() -> str:
    """What is left of a run that Ctrl-C ended."""
    out = arguments_of().out
    if Path(out, CHECKPOINT).is_file():
        return f"--resume goes on from the last checkpoint in {out}"
    return "there was no checkpoint yet"


if __name__ == "__main__":
    end_with("python -m train", main, left)
