"""A GIF of two policies side by side on the same episode: ``python -m eval.gif --help``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from pathlib import Path

from wdmoe_env.checks import check_number, check_seed
from wdmoe_env.command import Parser, end_with
from wdmoe_env.config import DEVICE_SETS, EnvConfig
from wdmoe_env.optional import optional
from wdmoe_env.rendering.canvas import Picture
from wdmoe_env.writing import try_file, write_whole

EXAMPLES = """
examples:
  python -m eval.gif --policies straight-through-10 wdmoe:0.9 --window 3 --seed 0 --out docs/episode.gif
  python -m eval.gif --policies vanilla runs/ppo/policy.safetensors --num-tokens 16 --out mine.gif
  python -m eval.gif --serve --policies straight-through-10 wdmoe:0.9 --seed 3 --out docs/serving.gif

Both policies meet the same text, devices and channel. `python -m eval --list` has the names.
Exit code 2: a mistake in the command, named in one sentence, and nothing was written.
"""
LAST_HELD = 3
"""The last picture, which has the text's figures, stays so many times as long."""
SECONDS_OF_A_BLOCK, SECONDS_OF_A_MOMENT = 2.5, 0.15
MOST_SECONDS = 200.0
"""A GIF counts in two bytes how many hundredths of a second a picture stays."""


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="python -m eval.gif",
        description="Draw two policies side by side on the same episode, a picture for each block, as a GIF.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--policies", nargs=2, required=True, metavar="POLICY", help="two names, NAME:PARAMETER or files")
    add("--window", type=int, help="index of the text within its split (0)")
    add("--serve", action="store_true", help="one cell that serves requests, in time, in place of a window's blocks")
    add("--load", type=float, help="with --serve: arrivals by what own routing sustains (0.95)")
    add("--devices", choices=tuple(DEVICE_SETS), help="with --serve: set of devices (boards)")
    add("--seed", type=int, default=0, help="of devices, shadowing and fading (0)")
    add(
        "--split",
        choices=("train", "test", "shifted"),
        default="test",
        help="documents that the window comes from (test)",
    )
    add("--model", default="tiny", help="tiny, micro, or the folder of a transformers mixture of experts (tiny)")
    add("--num-tokens", type=int, help="tokens of the window (32)")
    stays = f"that a picture stays, the last {LAST_HELD} times as long (2.5; with --serve 0.15)"
    add("--seconds", type=float, help=stays)
    add("--out", type=Path, default=Path("episode.gif"), help="the file, which is replaced (episode.gif)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run both policies and write the file; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        write(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        command.error(" ".join(str(error).split()))
    print(f"picture: {options.out}")
    return 0


def write(options: argparse.Namespace) -> None:
    """Run both policies and write the file.

    Raises:
        ValueError, TypeError: a policy or a setting is wrong.
        OSError: the file cannot be written.
        ImportError: Pillow is not installed.
    """
    if options.out.suffix != ".gif":
        raise ValueError(f"--out must end with .gif, got {str(options.out)!r}")
    seconds = options.seconds
    if seconds is None:
        seconds = SECONDS_OF_A_MOMENT if options.serve else SECONDS_OF_A_BLOCK
    check_number("--seconds", seconds, above=0.0)
    if seconds > MOST_SECONDS:
        raise ValueError(f"--seconds must be at most {MOST_SECONDS:g}, got {seconds:g}")
    try_file(options.out)
    write_whole(options.out, encoded(_served(options) if options.serve else _windows(options), seconds))


def _windows(options: argparse.Namespace) -> Iterable[Picture]:
    for name in ("load", "devices"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} goes with --serve alone")
    num_tokens = 32 if options.num_tokens is None else options.num_tokens
    config = EnvConfig(model=options.model, num_tokens=num_tokens, split=options.split)
    from eval.film import pictures, takes  # only here: torch takes seconds to import

    return pictures(takes(tuple(options.policies), config, options.window or 0, options.seed))


def _served(options: argparse.Namespace) -> Iterable[Picture]:
    for name in ("window", "num_tokens"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --serve")
    from eval.serve_film import pictures, timelines
    from wdmoe_env.serving.process import serving_config

    given = {"model": options.model, "split": options.split, "devices": options.devices}
    settings = {name: value for name, value in given.items() if value is not None}
    serving = {} if options.load is None else {"load": options.load}
    config = serving_config({**settings, "serving": serving}, {}, EnvConfig)
    return pictures(timelines(tuple(options.policies), config, check_seed(options.seed) or 0))


def encoded(pictures: Iterable[Picture], seconds: float) -> bytes:
    """A GIF of pictures, over and over.

    Args:
        pictures: (H, W, 3) each.
        seconds: that each stays, the last ``LAST_HELD`` times as long.

    Raises:
        ImportError: Pillow is not installed.
    """
    with optional("pillow", extra="render"):
        from PIL import Image
    frames = [
        Image.fromarray(picture).quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        for picture in pictures
    ]
    milliseconds = [round(1e3 * seconds)] * len(frames)
    milliseconds[-1] *= LAST_HELD
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return content.getvalue()


if __name__ == "__main__":
    end_with("python -m eval.gif", main)
