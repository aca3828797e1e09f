"""Command line: ``python -m eval --help``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

EXAMPLES = """
examples:
  python -m eval                                              # every rule, 256 windows of held-out text
  python -m eval --list                                       # names of the rules
  python -m eval --policies vanilla wdmoe runs/ppo/policy.safetensors --episodes 512 --out runs/eval/mine
  python -m eval --policies wdmoe:0.3 wdmoe:0.5 wdmoe:0.7     # a sweep, joined by a line in the picture
  python -m eval --num-tokens 64 --config radio.json          # {"channel": {"fading": "rician"}}
  python -m eval --replay runs/eval/mine                      # recompute a result: match (0) or mismatch (1)

The results folder holds results.csv (a row per episode and policy), results.json (means with 95 % intervals),
report.md and pareto.png. Every policy runs the same episodes; `vanilla` is the reference and always among them.
Exit code 2: a mistake in the command, named in one sentence, and nothing was written.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence alone and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="python -m eval",
        description="Compare policies on the same episodes: latency, quality and decision time, with intervals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--policies", nargs="+", metavar="POLICY", help="names, NAME:PARAMETER or files (every rule)")
    add("--episodes", type=int, default=256, help="windows of text, each with a channel of its own (256)")
    add("--seed", type=int, default=7, help="of episodes, policies and intervals (7)")
    add("--split", choices=("train", "test"), help="documents that the windows come from (test)")
    add("--out", type=Path, help="results folder (runs/eval/TIME)")
    add("--overwrite", action="store_true", help="replace earlier results in --out")
    add("--model", help="tiny, micro, or the folder of a transformers mixture of experts (tiny)")
    add("--num-tokens", type=int, help="tokens of a window (32)")
    add("--batch-size", type=int, default=64, help="episodes in one forward pass (64)")
    add("--config", type=Path, metavar="FILE", help="JSON of the environment's settings; flags go before it")
    add("--list", action="store_true", help="print the names of the rules and exit")
    add("--replay", type=Path, metavar="DIR", help="recompute a results folder and compare")
    return result


def main(argv: list[str] | None = None) -> int:
    """Evaluate, list or replay; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    try:
        if options.list:
            return print_names()
        if options.replay:
            return replay(options.replay)
        return evaluate(options, shlex.join(["python", "-m", "eval", *arguments]))
    except KeyboardInterrupt:
        print("python -m eval: interrupted; nothing was written", file=sys.stderr)
        return 130


def print_names() -> int:
    """Print the names of the rules, one a line."""
    from agents import policy_names

    print("\n".join(policy_names()))
    return 0


def evaluate(options: argparse.Namespace, command: str) -> int:
    """Check everything, run, write the folder, print the table."""
    from eval.folder import check_folder, write_results
    from eval.report import aligned, results_table
    from eval.runner import Evaluation
    from eval.summary import results_json

    out = options.out or Path("runs", "eval", time.strftime("%Y%m%d-%H%M%S"))
    with mistakes_as_one_sentence():
        check_folder(out, options.overwrite)
        evaluation = Evaluation(evaluation_config(options))
    results = evaluation.run()
    summary = results_json(results, command)
    with mistakes_as_one_sentence():
        write_results(results, summary, out)
    print(f"\n{aligned(results_table(summary['policies'], intervals=False))}\n")
    print(f"report:  {out / 'report.md'}\npicture: {out / 'pareto.png'}")
    return 0


def evaluation_config(options: argparse.Namespace) -> Any:
    """The evaluation of a command line: flags before ``--config``, that before the defaults.

    Raises:
        ValueError, TypeError: a setting is wrong or unknown.
    """
    from agents import policy_names
    from eval.plan import EvaluationConfig
    from wdmoe_env.config import EnvConfig

    flags = {name: getattr(options, name) for name in ("model", "num_tokens", "split")}
    settings = {"split": "test", **read_settings(options.config)}
    environment = EnvConfig.make(settings, **{name: value for name, value in flags.items() if value is not None})
    policies = tuple(options.policies or policy_names())
    return EvaluationConfig(policies, environment, options.episodes, options.seed, options.batch_size)


def read_settings(path: Path | None) -> dict[str, Any]:
    """The JSON object of a file, or nothing.

    Raises:
        ValueError: no such file, or not a JSON object.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"expected a file of settings behind --config, but there is no {path}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got something else: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(settings).__name__}")
    return settings


def replay(folder: Path) -> int:
    """Recompute a results folder; 0 where it matches, 1 where not."""
    from eval.replay import changed_policy_files, differences, read_results
    from eval.runner import Evaluation

    with mistakes_as_one_sentence():
        saved = read_results(folder)
        found = changed_policy_files(saved)
        evaluation = None if found else Evaluation(saved.config)
    if evaluation is not None:
        found = list(differences(saved, evaluation.run()))
    if found:
        print(f"mismatch: {len(found)} differences in {folder}, wall-clock times left out; the first:")
        print("\n".join(f"  {difference}" for difference in found[:5]))
        return 1
    print(f"match: {len(saved.rows)} rows of {folder} came again, wall-clock times left out")
    return 0


@contextmanager
def mistakes_as_one_sentence() -> Iterator[None]:
    """Exit with 2 and one sentence where the body meets a user's mistake."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        print(f"python -m eval: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    sys.exit(main())
