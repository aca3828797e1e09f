"""The command line of ``lm_eval`` with the model ``wdmoe``; ``suite`` writes the suite as tasks of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.tables import aligned
from wdmoe_env.command import Parser, end_with, say_mistake
from wdmoe_env.integrations.airtime import Airtime
from wdmoe_env.optional import optional

PROG = "python -m eval.lm_eval"
SUITE = "suite"
EXAMPLES = """
The rest is lm_eval's own command line, in which --model wdmoe is known:

  python -m eval.lm_eval --model wdmoe --model_args policy=wdmoe:0.9,model=PATH,channel.fading=rician \\
      --tasks arc_easy piqa mmlu --batch_size auto --output_path runs/lm_eval
  python -m eval.lm_eval run --help
"""


def main(argv: list[str] | None = None) -> int:
    """Write the suite's tasks, or hand over to ``lm_eval``; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return write_suite(arguments[1:]) if arguments[:1] == [SUITE] else hand_over(arguments)


def hand_over(arguments: list[str]) -> int:
    """Run ``lm_eval``'s own command line, and print how long its requests took over the air."""
    try:
        with optional("lm-eval", extra="lm-eval"):
            from lm_eval.__main__ import cli_evaluate
        from eval.lm_eval_model import NamedPolicyLM
    except ImportError as error:
        return say_mistake(PROG, error)
    made = NamedPolicyLM.made
    made.clear()
    sys.argv = ["lm-eval", *arguments]  # where lm_eval reads them
    try:
        cli_evaluate()
    except (ValueError, TypeError, OSError) as error:
        if made:  # the model was ready: no mistake in the command
            raise
        return say_mistake(PROG, error)
    for airtime in filter(Airtime.summary, made):
        print(f"\nOver the air, means over windows:\n\n{aligned(airtime.table())}")
    return 0


def write_suite(arguments: list[str]) -> int:
    """Write the tasks: the items and channels of ``python -m eval --suite`` under the same options."""
    from eval.suite import plan_items
    from wdmoe_env.episodes import suite_path
    from wdmoe_env.integrations.lm_eval_suite import write_suite_tasks
    from wdmoe_env.text.suite import load_suite
    from wdmoe_env.writing import check_folder

    options = parser().parse_args(arguments)
    try:
        check_folder(options.out)
        items = load_suite(suite_path(options.suite))
        numbers, seeds = plan_items(items, options.suite_items, options.seed)
        names = write_suite_tasks(options.out, [items[number] for number in numbers], numbers.tolist(), seeds.tolist())
    except (ValueError, OSError) as error:
        return say_mistake(PROG, error)
    print(f"{len(numbers)} items in {options.out}: {', '.join(names)}")
    return 0


def parser() -> Parser:
    """The command line of ``suite``."""
    result = Parser(
        prog=f"{PROG} {SUITE}",
        description="Write the multiple-choice suite as tasks of lm_eval, all under the tag wdmoe_suite.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--out", type=Path, required=True, help="folder for the tasks, what --include_path takes")
    add("--suite", default="suite", metavar="FILE", help="a suite of your own (.jsonl, .jsonl.gz)")
    add("--suite-items", type=int, metavar="N", help="items, from each format and domain in proportion (all)")
    add("--seed", type=int, default=7, help="of items and channels, as of python -m eval --suite (7)")
    return result


if __name__ == "__main__":
    end_with("python -m eval.lm_eval", main)
