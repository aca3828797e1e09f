"""Text that people save: what is unambiguous is read, whoever saved it; all else is one sentence about the file."""

from __future__ import annotations

import gzip
import json

import pytest

from train import search
from wdmoe_env import reading
from wdmoe_env.reading import numbered_lines, parse_json, read_bytes, read_json, read_rows, read_text, shown_path

SETTINGS = {"channel": {"fading": "rician"}, "name": "Zürich \u2028 日本 🛰"}


@pytest.fixture
def path(tmp_path):
    """Where a file is saved."""
    return tmp_path / "saved"


def refused(read, path, match):
    """The sentence with which a file is refused; it names the file."""
    with pytest.raises(ValueError, match=match) as raised:
        read(path)
    sentence = str(raised.value)
    assert shown_path(path) in sentence
    assert "\n" not in sentence
    return sentence


# Text.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_encoding_that_says_what_it_is_is_read(encoding, pack, path):
    text = json.dumps(SETTINGS, ensure_ascii=False, indent=1) + "\r\n"
    path.write_bytes(pack(text.encode(encoding)))
    assert read_text(path) == text
    assert read_json(path) == SETTINGS


@pytest.mark.parametrize("mark", ["utf-16-be", "utf-32-be"])
def test_the_order_of_bytes_is_that_of_the_mark(mark, path):
    path.write_bytes(("\ufeff" + '{"a": 1}').encode(mark))
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{\n"a":\n"\xe9"}', "expected text in UTF-8, or in UTF-16 with a byte-order mark; line 3: .*0xe9"),
        ('{\n"a": 1}'.encode("utf-16-le"), "got a NUL in line 1"),
        (b'{\n"a": "\0"}', "got a NUL in line 2"),
        ('{"a": 1}'.encode("utf-16")[:-1], "expected text in UTF-8, .* line 1: 'utf-16.*truncated data"),
        ("{\n".encode("utf-16") + b"\x00\xd8", "expected text in UTF-8, .* line 2: 'utf-16"),
        (b'{"a": "\xed\xa0\x80"}', "expected text in UTF-8, .* line 1: 'utf-8'"),
    ],
    ids=["latin-1", "UTF-16 without a mark", "NUL", "half of a UTF-16", "half of a pair", "a surrogate in UTF-8"],
)
def test_bytes_that_are_no_text_are_named_by_their_line(content, match, path):
    path.write_bytes(content)
    refused(read_text, path, match)


@pytest.mark.parametrize("kept", [0.3, 0.9, -1])
def test_a_truncated_gzip_is_one_sentence(kept, path):
    whole = gzip.compress(bytes(range(256)) * 9)
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(read_text, path, "expected a whole gzip file, but .* is truncated or damaged")


def test_a_size_is_known_before_the_content(path, monkeypatch):
    path.write_bytes(b"x" * 101)
    refused(lambda one: read_text(one, 100), path, "expected at most 100 bytes in .*, got 101")
    assert len(read_text(path, 101)) == 101
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no place
    refused(read_text, path, "expected at most 67,108,864 bytes in .*, got 1,099,511,627,776")


def test_gzip_is_unpacked_no_further_than_the_limit(path, monkeypatch):
    asked, whole = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or whole(self, size))
    path.write_bytes(gzip.compress(b"\n" * 1_000_000))
    refused(lambda one: read_text(one, 10_000), path, "expected at most 10,000 bytes in .*, but it unpacks to more")
    assert asked == [10_001]


def test_what_is_no_file_is_one_sentence(tmp_path):
    for name in (tmp_path, tmp_path / "gone", tmp_path / "a\0b", tmp_path / "a\ud800"):
        with pytest.raises(FileNotFoundError, match="expected a file, found none at") as raised:
            read_bytes(name, 1)
        assert str(raised.value).isprintable()


def test_lines_have_their_numbers_and_blank_ones_are_passed_over():
    text = "\n\na\u2028b\r\n  \n\x85c\n\n\nd"
    assert list(numbered_lines(text)) == [(3, "a\u2028b\r"), (5, "\x85c"), (8, "d")]
    assert list(numbered_lines("")) == []


# JSON.


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "Expecting value: line 1 column 1"),
        ('{"a": 1,\n}', "line 2 column 1"),
        ("[" * 100_000, "expected at most 64 objects and lists within each other, got more"),
        ('{"a":' * 100_000, "expected at most 64 objects and lists within each other, got more"),
        ("[" * 65 + "]" * 65, "expected at most 64 objects and lists within each other, got more"),
        ('{"a": NaN}', "expected finite numbers, got NaN"),
        ('{"a": [-Infinity]}', "expected finite numbers, got -Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "expected each key once in an object, got 'a' twice"),
        (r'{"a": "\ud800"}', r"expected text, got half of a surrogate pair, \\ud800"),
        (r'{"\uDFFF": 1}', r"expected text, got half of a surrogate pair, \\udfff"),
        ("1" * 5_000, "Exceeds the limit"),
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_json_is_one_sentence(text, match, path):
    path.write_text(text)
    refused(read_json, path, f"expected JSON in .*, got something else: .*{match}")


@pytest.mark.parametrize(("text", "kind"), [("[1]", "list"), ("null", "NoneType"), ('"a"', "str"), ("3", "int")])
def test_a_value_that_is_no_object_is_named(text, kind, path):
    path.write_text(text)
    refused(read_json, path, f"expected a JSON object in .*, got {kind}")


def test_json_at_the_limits_is_read(monkeypatch):
    deep = "[" * 64 + "]" * 64
    assert json.dumps(parse_json(deep)) == deep
    assert parse_json(r'["\ud83d\udef0", "\\ud800", []]' + " " * 9) == ["🛰", r"\ud800", []]
    assert len(parse_json("[" + ",".join(["[]"] * 100) + "]")) == 100
    monkeypatch.setattr(reading, "MOST_JSON_CHARACTERS", 9)
    assert parse_json("[1, 2, 3]") == [1, 2, 3]
    with pytest.raises(ValueError, match="expected at most 9 characters, got 10"):
        parse_json("[1, 2, 30]")


# CSV.

ROWS = [{"policy": "top1", "answer": "a,b;c\td"}, {"policy": 'say "x"\nagain', "answer": ""}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("index", [None, 0, 1])
def test_a_csv_is_read_whoever_saved_it(encoding, delimiter, index, path):
    lines = [["Policy", '"ANSWER"'], ["top1", '"a,b;c\td"'], ['"say ""x""\nagain"', '""']]
    if index is not None:
        lines = [[first, *line] for first, line in zip(['""', index, index + 1], lines, strict=True)]
    text = "\r\n".join(delimiter.join(map(str, line)) for line in lines) + "\r\n\r\n"
    path.write_bytes(text.encode(encoding))
    assert read_rows(path) == (["policy", "answer"], ROWS)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1: expected names of columns, got none"),
        ("\npolicy,answer\n", "line 1: expected names of columns, got none"),
        ("policy,answer\ntop1,1\ntop1\n", "line 3: expected 2 columns, one for each name, got 1"),
        ("policy,answer\n\ntop1,1,2\n", "line 3: expected 2 columns, one for each name, got 3"),
        ("policy;answer,seed\n", "line 1: expected names with commas, semicolons or tabs between them"),
        (
            "policy,answer\ntop1," + "9" * 200_000 + "\n",
            "line 2: expected a row of a CSV, .*field larger than field limit",
        ),
        ("p" * 200_000 + ",answer\n", "line 1: expected names of columns, .*field larger than field limit"),
        ('policy,answer\ntop1,"1\n', "line 2: expected a row of a CSV, got something else: unexpected end of data"),
        ('policy,answer\n"top"1,1\n', "line 2: expected a row of a CSV, got something else"),
    ],
    ids=["empty", "no header", "short", "long", "two delimiters", "long field", "long name", "open quote", "odd quote"],
)
def test_what_is_no_csv_is_named_by_its_line(text, match, path):
    path.write_text(text)
    assert len(refused(read_rows, path, match)) < 500


def test_a_first_column_that_counts_no_rows_is_kept(path):
    path.write_text(",answer\n3,1\n4,1\n")
    assert read_rows(path)[0] == ["", "answer"]


# YAML, on the command line of train.search.


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("64", 64), ("true", True), ("[", "["), ("a: b: c", "a: b: c"), ("\0", "\0")]
)
def test_an_entry_of_the_grid_that_is_no_yaml_is_a_word(text, value):
    assert search.parsed(f"name={text}") == ("name", [value])
