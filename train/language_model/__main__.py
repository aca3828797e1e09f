"""``python -m train.language_model``: train the small mixture of experts that ships."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from train.language_model.card import card
from train.language_model.evaluate import evaluate
from train.language_model.export import FILES, export
from train.language_model.loop import CHECKPOINT, Progress, Trainer, read_progress
from train.language_model.model import build
from train.language_model.pictures import loss_picture, routing_picture
from train.language_model.recipe import PRESETS, Recipe
from train.text.shards import read_shard
from train.text.split import LANGUAGE_MODEL, VALIDATION
from wdmoe_env.checks import check_integer
from wdmoe_env.command import end_with
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.reading import parse_json, read_json, read_text
from wdmoe_env.writing import held_folder, write_whole

SUITE = "suite.json"
"""What `python -m train.suite --measure` leaves in the folder of a run."""

HELP = """Train a Mixtral-like mixture of experts on the shards of `python -m train.text`.

  python -m train.language_model --data data --out runs/tiny
  python -m train.language_model --data data --out runs/tiny --resume       after a kill
  python -m train.language_model --data data --out runs/big --device cuda --batch 128 --tokens 400000000

A run is one schedule of --tokens tokens. It saves a checkpoint and an exported model
(OUT/model, for from_pretrained) every --save-every steps and at the end. A resumed run
gives the weights that the uninterrupted one would have given, unless --tokens is changed.

  python -m train.language_model --data data --evaluate runs/tiny
measures OUT/model on the validation documents, against a Kneser-Ney 5-gram model of the
training tokens and against itself with experts dropped or exchanged, there and on the
multiple-choice suite. It writes OUT/evaluation.json and, into OUT/model, MODEL_CARD.md with
its pictures. `python -m train.suite --measure OUT` before it adds the suite to the card. The
model that ships is OUT/model copied to wdmoe_env/assets/tiny."""


def main() -> None:
    """Parse the command line and train."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = replace(PRESETS[options.preset], seed=options.seed)
    given = {name: getattr(options, name) for name in ("tokens", "batch") if getattr(options, name) is not None}
    try:
        for name, value in given.items():
            check_integer(name, value, at_least=1)
        recipe = replace(recipe, **given)
        with held_folder(options.out if options.evaluate is None else options.evaluate):
            if options.evaluate is not None:
                report(options.evaluate, options.data, options.suite, device)
            else:
                train(recipe, options.data, options.out, device, options.resume, options.save_every)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def train(recipe: Recipe, data: Path, out: Path, device: torch.device, resume: bool, save_every: int) -> None:
    """Train, with a progress bar, and leave the exported model in ``out/model``.

    The model is exported before the checkpoint is written: a finished checkpoint has its model beside it.
    """
    tokens, _ = read_shard(data / f"{LANGUAGE_MODEL}.npy")
    tokenizer = data / "tokenizer"
    vocabulary = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    trainer = Trainer(recipe, build(recipe, vocabulary, device), tokens, out)
    if resume:
        trainer.resume()
    elif (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds a checkpoint: add --resume to go on with it, or choose another --out.")
    if trainer.progress.step >= recipe.steps:
        if not all((out / "model" / name).is_file() for name in FILES):
            export(trainer.model, tokenizer, out / "model")
        print(f"{out} is finished: it has taken {trainer.progress.step} of {recipe.steps} steps, and learns no more")
        return
    step_tokens = recipe.sequence * recipe.batch
    begun = trainer.progress.step * step_tokens
    with tqdm(total=recipe.steps * step_tokens, initial=begun, unit="token", unit_scale=True) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.step * step_tokens - bar.n)
            _, mean, balance = progress.curve[-1]
            bar.set_postfix(nats=f"{mean:.3f}", balance=f"{balance / recipe.blocks:.3f}")

        while trainer.progress.step < recipe.steps:
            trainer.run(until=trainer.progress.step + save_every, report=show)
            export(trainer.model, tokenizer, out / "model")
            trainer.save()


def report(run: Path, data: Path, suite: Path | None, device: torch.device) -> None:
    """Evaluate a run's exported model, and write its figures, card and pictures."""
    recipe, progress = read_progress(run / CHECKPOINT)
    training, _ = read_shard(data / f"{LANGUAGE_MODEL}.npy")
    summary = read_json(data / "summary.json")
    evaluation = evaluate(run / "model", training, read_shard(data / f"{VALIDATION}.npy"), suite, device)
    write_whole(run / "evaluation.json", json.dumps(asdict(evaluation), indent=1).encode() + b"\n")
    cells = parse_json(read_text(run / SUITE)) if (run / SUITE).exists() else None
    model = load_model(str(run / "model"), str(device))
    counts = {
        "parameters": model.model.num_parameters(),
        "vocabulary": model.vocabulary_size,
        "corpus": len(training),
    }
    text = card(recipe, progress, evaluation, summary, cells, counts)
    write_whole(run / "model" / "loss.png", loss_picture(progress, recipe))
    write_whole(run / "model" / "routing.png", routing_picture(evaluation.load))
    write_whole(run / "model" / "MODEL_CARD.md", text.encode())
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m train.language_model", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of `python -m train.text`")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of checkpoints and model")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny", help="sizes (default: tiny)")
    parser.add_argument("--tokens", type=int, help="tokens of the whole run (default: the preset's)")
    parser.add_argument("--batch", type=int, help="windows per step (default: the preset's; a GPU takes 128 as easily)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: 500)")
    parser.add_argument("--evaluate", type=Path, metavar="RUN", help="measure a run and write its card, do not train")
    parser.add_argument("--suite", type=Path, help="multiple-choice items of --evaluate (default: those that ship)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser


if __name__ == "__main__":
    end_with("python -m train.language_model", main)
