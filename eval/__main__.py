"""Command line: ``python -m eval --help``."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wdmoe_env.command import Parser, end_with, say_mistake

EXAMPLES = """
examples:
  python -m eval                                              # every rule, 256 windows of held-out text
  python -m eval --list                                       # names of the policies
  python -m eval --policies vanilla wdmoe runs/ppo/policy.safetensors --episodes 512 --out runs/eval/mine
  python -m eval --policies wdmoe:0.3 wdmoe:0.5 wdmoe:0.7     # a sweep, joined by a line in the picture
  python -m eval --num-tokens 64 --config radio.json          # {"channel": {"fading": "rician"}}
  python -m eval --suite --policies top1 wdmoe                # accuracy on the multiple-choice suite
  python -m eval --transfer --policies wdmoe:0.8 runs/ppo/policy.safetensors --out runs/eval/transfer
  python -m eval --serve --load 0.7 0.95 --policies wdmoe:0.8 # requests that wait for each other, at two loads
  python -m eval --testbed hosts.toml --policies vanilla wdmoe:0.8     # latency by the clock, see docs/testbed.md
  python -m eval --report runs/eval/mine runs/eval/suite      # one HTML page of results folders
  python -m eval --replay runs/eval/mine                      # recompute a result: match (0) or mismatch (1)

The results folder holds results.csv (a row per episode and policy), results.json (means with 95 % intervals),
leaderboard.csv (a row per setting, over its training seeds), report.md, pareto.png and profiles.png; with --suite the
first two are suite.csv (a row per item and policy) and suite.json, and the last is missing.
Every policy runs the same episodes or items; `vanilla` is the reference and always among them.
Exit code 2: a mistake in the command, named in one sentence, and nothing was written. Exit code 130: interrupted.
At most 100,000 episodes: the intervals keep about 50 kB of memory for each.
"""


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
    add("--episodes", type=int, help="windows of text, each with a channel of its own (256)")
    suite = "score the multiple-choice suite instead, the one that ships or one of your own (.jsonl, .jsonl.gz)"
    add("--suite", nargs="?", const="suite", metavar="FILE", help=suite)
    add("--suite-items", type=int, metavar="N", help="items, from each format and domain in proportion (all)")
    add("--seed", type=int, default=7, help="of episodes or items, policies and intervals (7)")
    add(
        "--split",
        type=split_of_texts,
        help="where windows come from: train, test, shifted or text:PATH (test)",
    )
    add("--out", type=Path, help="results folder (runs/eval/TIME), or the page (DIR/report.html)")
    add("--overwrite", action="store_true", help="replace earlier results in --out")
    add("--model", help="tiny, micro, or the folder of a transformers mixture of experts (tiny)")
    add("--num-tokens", type=int, help="tokens of a window (32; with --suite 128)")
    add("--batch-size", type=int, help="windows in one forward pass (64), or cells with --serve (64)")
    add("--testbed", type=Path, metavar="FILE", help="run on the devices of an inventory, and measure latency")
    add("--config", type=Path, metavar="FILE", help="JSON of the environment's settings; flags go before it")
    add("--domains", nargs="+", metavar="NAME", help="kinds of text that the windows come from (all)")
    add("--transfer", nargs="*", metavar="CONDITION", help="evaluate under other conditions, one table of all")
    add("--resample", help="what intervals draw anew: windows, or documents, whose windows are alike (windows)")
    add("--serve", action="store_true", help="serve requests that arrive, wait and generate, in place of windows")
    add("--load", type=float, nargs="+", metavar="LOAD", help="arrivals by what own routing sustains (0.95)")
    add("--list", action="store_true", help="print the names of the policies and exit")
    add("--replay", type=Path, metavar="DIR", help="recompute a results folder and compare")
    add("--report", type=Path, nargs="+", metavar="DIR", help="write one HTML page of results folders")
    return result


def split_of_texts(value: str) -> str:
    """A split that is not the suite.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    from wdmoe_env.text.windows import DOCUMENT_SPLITS

    if value not in DOCUMENT_SPLITS and not value.startswith("text:"):
        raise argparse.ArgumentTypeError(f"invalid choice: {value!r}, expected train, test, shifted or text:PATH")
    return value


def main(argv: list[str] | None = None) -> int:
    """Evaluate, list or replay; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    with exit_at_mistakes():
        check_text(arguments)
    try:
        if options.list:
            return print_names()
        if options.replay:
            return replay(options.replay)
        if options.report:
            return report(options.report, options.out)
        run = evaluate if options.transfer is None else transfer
        if options.serve:
            run = serve
        elif options.load:
            print("python -m eval: --load goes with --serve alone", file=sys.stderr)
            return 2
        return run(options, shlex.join(["python", "-m", "eval", *arguments]))
    except FloatingPointError as error:  # a model that hands out NaN
        return say_mistake("python -m eval", error)


def check_text(arguments: Sequence[str]) -> None:
    """Refuse an argument that no report could name.

    Raises:
        ValueError: it is not UTF-8.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ValueError(f"expected arguments in UTF-8, got {argument!r}") from None


def print_names() -> int:
    """Print the names of the rules and of the learned policies that ship, one a line."""
    from wdmoe_env.policies import policy_names, trained_names

    print("\n".join((*policy_names(), *trained_names())))
    return 0


def evaluate(options: argparse.Namespace, command: str) -> int:
    """Check everything, run, write the folder, print the table."""
    from eval.folder import results_folder, write_results
    from eval.kinds import SUITE, WINDOWS, Kind

    kind: Kind = SUITE if options.suite else WINDOWS
    out = results_path(options)
    with ExitStack() as held:
        with exit_at_mistakes():
            folder = held.enter_context(results_folder(out, options.overwrite))
            evaluation = kind.evaluation(kind.config(**run_settings(options)))
        results = evaluation.run()
        summary = kind.json(results, command)
        print(f"\n{kind.terminal(summary)}\n")  # first: it is what is left where a disk is full
        with exit_at_mistakes():
            write_results(kind, results, summary, folder)
    print(f"report:  {out / 'report.md'}\npicture: {out / 'pareto.png'}")
    return 0


def serve(options: argparse.Namespace, command: str) -> int:
    """Evaluate on cells that serve requests, and write the folder; what an earlier run has measured stands."""
    from eval.provenance import code_hash
    from eval.serve import ServeEvaluation, plan_of, summary_of
    from eval.serve_parts import Parts
    from eval.serve_report import files_of, terminal
    from wdmoe_env.writing import check_folder, held_folder, is_temporary, write_files

    out = results_path(options)
    with ExitStack() as held:
        with exit_at_mistakes():
            check_folder(out)
            folder = held.enter_context(held_folder(out))
            evaluation = ServeEvaluation(plan_of(options, read_settings(options.config)))
            parts = Parts(folder, evaluation.plan.to_dict(), evaluation.sha256 | {"the code": code_hash()})
            others = {path for path in folder.iterdir() if not is_temporary(path.name)} - parts.paths
            if others and not options.overwrite:
                raise ValueError(f"expected a new or empty folder for the results, got {out} (--overwrite replaces)")
            runs = evaluation.run(parts)
        summary = summary_of(evaluation, runs, command)
        print(f"\n{terminal(summary)}\n")
        with exit_at_mistakes():
            write_files(folder, files_of(summary, runs, evaluation.timelines, command))
            parts.remove()
    print(f"report:  {out / 'report.md'}")
    return 0


def results_path(options: argparse.Namespace) -> Path:
    """Where results go: what ``--out`` says, or a folder named by the time."""
    return options.out or Path("runs", "eval", time.strftime("%Y%m%d-%H%M%S"))


def transfer(options: argparse.Namespace, command: str) -> int:
    """Evaluate under every condition, each into a folder of its own, and write one table."""
    from eval import transfer
    from eval.folder import results_folder, write_results
    from eval.kinds import WINDOWS
    from eval.plan import EvaluationConfig
    from eval.tables import aligned
    from wdmoe_env.writing import check_file, held_folder, write_files

    names = options.transfer or list(transfer.CONDITIONS)
    out = results_path(options)
    with ExitStack() as held:
        with exit_at_mistakes():
            if options.suite:
                raise ValueError("--transfer does not go with --suite")
            evaluations = transfer.evaluations(EvaluationConfig(**run_settings(options)), names)
            whole = held.enter_context(held_folder(out))
            for name in (transfer.TABLE, transfer.REPORT):
                check_file(whole / name)
            folders = {name: held.enter_context(results_folder(out / name, options.overwrite)) for name in evaluations}
        summaries, measured = {}, {}
        for name, evaluation in evaluations.items():
            results = measured[name] = evaluation.run()
            summaries[name] = WINDOWS.json(results, command)
            with exit_at_mistakes():
                write_results(WINDOWS, results, summaries[name], folders[name])
        rows = transfer.transfer_rows(summaries)
        print(f"\n{aligned(transfer.transfer_table(rows))}\n")
        costs = transfer.cost_table(measured)
        if costs is not None:
            print(f"{aligned(costs)}\n")
        table, text = transfer.transfer_csv(rows), transfer.transfer_report(rows, costs, command)
        with exit_at_mistakes():
            write_files(whole, {transfer.TABLE: table.encode(), transfer.REPORT: text.encode()})
    print(f"report: {out / transfer.REPORT}")
    return 0


def run_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of the kind's configuration: flags before ``--config``, that before the defaults.

    Raises:
        ValueError, TypeError: a setting is wrong, unknown, or of the other kind.
    """
    from eval.provenance import located_environment, located_policies
    from eval.suite import DEFAULTS
    from wdmoe_env.config import EnvConfig
    from wdmoe_env.policies import policy_names

    for name in ("episodes", "split", "domains", "resample") if options.suite else ("suite_items",):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} does not go with --suite" if options.suite else f"{flag} goes with --suite alone")
    flags = {"model": options.model, "num_tokens": options.num_tokens, "split": options.suite or options.split}
    settings = {**(DEFAULTS if options.suite else {"split": "test"}), **read_settings(options.config)}
    given = {name: value for name, value in flags.items() if value is not None}
    elsewhere = options.testbed is not None
    environment = on_testbed(options, settings | given) if elsewhere else EnvConfig.make(settings, **given)
    policies = tuple(options.policies or policy_names())
    amounts = {"episodes": options.episodes, "suite_items": options.suite_items, "domains": options.domains}
    amounts["resample"] = options.resample
    return {
        "policies": policies,
        "files": located_policies(policies),
        "environment": located_environment(environment),
        "seed": options.seed,
        "batch_size": 1 if elsewhere else 64 if options.batch_size is None else options.batch_size,
        **{name: value for name, value in amounts.items() if value is not None},
    }


def on_testbed(options: argparse.Namespace, settings: dict[str, Any]) -> Any:
    """The environment on a testbed.

    Raises:
        ValueError: the suite or a transfer, or an inventory that cannot be used.
        TypeError: an unknown setting.
        OSError: the inventory cannot be read.
    """
    from wdmoe_env.testbed.env import config_of

    if options.suite or options.transfer is not None:
        raise ValueError("--testbed measures windows of text, and goes with neither --suite nor --transfer")
    return config_of(options.testbed, settings)


def read_settings(path: Path | None) -> dict[str, Any]:
    """The JSON object of a file, or nothing.

    Raises:
        ValueError: no such file, or not a JSON object.
    """
    from wdmoe_env.reading import read_json, shown_path

    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"expected a file of settings behind --config, but there is no {shown_path(path)}")
    return read_json(path)


def replay(folder: Path) -> int:
    """Recompute a results folder, or those of a transfer; 0 where all matches, 1 where not."""
    conditions = sorted(path.parent for path in folder.glob("*/results.json")) if folder.is_dir() else []
    return max(map(replay_one, conditions)) if conditions else replay_one(folder)


def replay_one(folder: Path) -> int:
    """Recompute a results folder; 0 where it matches, 1 where not."""
    from eval.provenance import is_measured
    from eval.replay import changed_inputs, compare, read_results
    from eval.serve_replay import is_serving, replay_serving

    with exit_at_mistakes():
        serving = is_serving(folder)
        if serving:
            differences, count = replay_serving(folder)
    if serving:
        if differences:
            return mismatch(folder, differences)
        print(f"match: {count} policies of {folder} came again, wall-clock times left out")
        return 0
    with exit_at_mistakes():
        saved = read_results(folder)
        if is_measured(saved.config.environment):
            raise ValueError(f"latency in {folder} was measured by a clock, which does not come again")
        evaluation = saved.kind.evaluation(saved.config_here)
    changed = changed_inputs(saved, evaluation.sha256)
    if changed:
        return mismatch(folder, changed)
    compared = compare(saved, evaluation)
    if compared.differences:
        return mismatch(folder, compared.differences)
    print(f"match: {compared.rows} rows of {folder} came again, wall-clock times left out")
    if compared.ties:
        print(f"{compared.ties} of them with gate probabilities rounded otherwise: a decision stands at a tie")
    if saved.absent:
        policies = saved.config.policies
        here = len(policies) - len(saved.absent)
        print(f"{here} of {len(policies)} policies are compared; the files of the others are not here")
    return 0


def mismatch(folder: Path, differences: list[str]) -> int:
    """Print how many differences there are and the first of them; returns the exit code."""
    print(f"mismatch: {len(differences)} differences in {folder}, wall-clock times left out; the first:")
    print("\n".join(f"  {difference}" for difference in differences[:5]))
    return 1


def report(folders: list[Path], out: Path | None) -> int:
    """Write the HTML page of results folders."""
    from eval.kinds import PAGE
    from eval.page.write import write_page
    from wdmoe_env.writing import try_file

    out = out or folders[0] / PAGE
    with exit_at_mistakes():
        try_file(out)
        write_page(folders, out)
    print(f"page: {out}")
    return 0


@contextmanager
def exit_at_mistakes() -> Iterator[None]:
    """Exit with 2 and one sentence where the body meets a user's mistake."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise SystemExit(say_mistake("python -m eval", error)) from None


if __name__ == "__main__":
    end_with("python -m eval", main, lambda: "what was not complete is not written")
