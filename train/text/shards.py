"""Tokenizer, token shards and episode text: written whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from train.text.documents import Document
from wdmoe_env.writing import write_whole

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[Document], vocabulary: int, characters_per_domain: int) -> Tokenizer:
    """Train a byte-level BPE on an equal share of every domain.

    Args:
        documents: The language model's training documents.
        vocabulary: Number of tokens, the end-of-text token (id 0) and the 256 bytes included.
        characters_per_domain: How much text of each domain is looked at.
    """
    left: dict[str, int] = {}
    texts = []
    for document in documents:
        room = left.setdefault(document.domain, characters_per_domain)
        if room > 0:
            texts.append(document.text[:room])
            left[document.domain] = room - len(texts[-1])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write the two files that ``AutoTokenizer.from_pretrained`` reads."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_whole(folder / "tokenizer_config.json", json.dumps(settings, indent=2).encode() + b"\n")


def write_shard(path: Path, tokenizer: Tokenizer, documents: Sequence[Document]) -> int:
    """Write documents as one row of token ids, each begun by the end-of-text token.

    The index beside it, ``<path>.json``, lists each document's domain, name, first
    token, tokens and bytes; it is written last, so a shard without one is not complete.

    Returns:
        Number of tokens.
    """
    rows = [[0, *encoding.ids] for encoding in tokenizer.encode_batch([d.text for d in documents])]
    index, start = [], 0
    for document, row in zip(documents, rows, strict=True):
        index.append([document.domain, document.name, start, len(row), len(document.text.encode())])
        start += len(row)
    stream = io.BytesIO()
    np.save(stream, np.array([token for row in rows for token in row], dtype=np.uint16), allow_pickle=False)
    index_path = path.with_name(path.name + ".json")
    index_path.unlink(missing_ok=True)
    write_whole(path, stream.getvalue())
    write_whole(index_path, json.dumps(index).encode())
    return start


def read_shard(path: Path) -> tuple[NDArray[np.uint16], list[tuple[str, str, int, int, int]]]:
    """Return the token ids and the index (domain, name, first token, tokens, bytes) of a shard.

    Raises:
        FileNotFoundError: The shard is missing or was not completed.
        ValueError: The shard is truncated, or disagrees with its index.
    """
    index_path = path.with_name(path.name + ".json")
    if not (path.exists() and index_path.exists()):
        raise FileNotFoundError(f"{path} is missing or incomplete: run `python -m train.text` first.")
    index = [(str(d), str(n), int(s), int(t), int(b)) for d, n, s, t, b in json.loads(index_path.read_text())]
    expected = sum(row[3] for row in index)
    try:
        tokens = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is truncated or no shard ({expected} tokens were expected): {error}") from error
    if len(tokens) != expected:
        raise ValueError(f"{path} holds {len(tokens)} tokens, its index expects {expected}.")
    return tokens, index


def write_episode_text(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as gzipped JSON Lines; the same documents give the same bytes."""
    lines = (
        json.dumps({"domain": d.domain, "document": d.name, "text": d.text}, ensure_ascii=False) + "\n"
        for d in documents
    )
    write_whole(path, gzip.compress("".join(lines).encode(), mtime=0))
