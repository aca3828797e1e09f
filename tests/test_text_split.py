"""Texts of one's own, ``split="text:PATH"``: what is read, what is refused, and that evaluations know the files."""

from __future__ import annotations

import gzip
import json
import re

import gymnasium as gym
import numpy as np
import pytest

from eval.__main__ import main
from eval.suite import SuiteConfig
from wdmoe_env.config import EnvConfig
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.reading import MOST_TEXT_BYTES
from wdmoe_env.text import own

LONG = "The ships wait in the harbour for the wind, and nobody knows when it will come again. " * 4
SHORT = "A shepherd and his dog."
IDS = ("WDMoE-v0", "WDMoE-Selection-v0", "WDMoE-Bandwidth-v0", "WDMoE-MO-v0")


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def make(path, env_id="WDMoE-v0", **keywords):
    return gym.make(f"wdmoe_env:{env_id}", model="micro", split=f"text:{path}", num_tokens=16, **keywords).unwrapped


def windows_of(path):
    return make(path).simulator.source.windows


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines(packed, tmp_path):
    content = lines({"text": LONG, "domain": "sea", "number": 3}, {"text": SHORT}).encode()
    path = tmp_path / ("letters.jsonl.gz" if packed else "letters.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    windows, ids = windows_of(path), load_model("micro").tokenizer.encode(LONG)
    whole = (len(ids) - 1) // 16
    assert windows.domains == ("sea",) * whole + ("letters",) * (len(windows) - whole)
    np.testing.assert_array_equal(windows.token_ids[:whole].ravel(), ids[: 16 * whole])
    np.testing.assert_array_equal(windows.targets[:whole].ravel(), ids[1 : 16 * whole + 1])


@pytest.mark.parametrize("name", ["essay.txt", "essay", "essay.md", "essay.txt.gz"])
def test_a_plain_text_is_one_document(name, tmp_path):
    path, content = tmp_path / name, LONG.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    windows = windows_of(path)
    assert set(windows.domains) == {"essay"}
    assert windows.mask.all()


def test_a_folder_holds_files_of_both_kinds(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text(LONG)
    (tmp_path / "a.jsonl").write_text(lines({"text": LONG}, {"text": LONG, "domain": "sea"}))
    (tmp_path / "deep" / "c.txt").write_text(LONG)
    (tmp_path / ".hidden").write_bytes(b"\xff\xfe\x00")
    assert list(dict.fromkeys(windows_of(tmp_path).domains)) == ["a", "sea", "b", "c"]


@pytest.mark.parametrize("env_id", IDS)
def test_every_id_takes_texts(env_id, tmp_path):
    (tmp_path / "sea.txt").write_text(LONG)
    env = make(tmp_path / "sea.txt", env_id)
    env.reset(seed=0)
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(env.action_space.sample())
    assert np.isfinite(info["nll"])


def test_a_batch_and_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sea.txt").write_text(LONG)
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=2, model="micro", split="text:~/sea.txt", num_tokens=16)
    observation, info = env.reset(seed=0)
    assert observation["token_mask"].all()
    assert (info["window"] < len(env.unwrapped.simulator.source.windows)).all()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("short.txt", b"A", "expected at least one document of two tokens or more"),
        ("none.jsonl", b"\n\n", "expected at least one document of two tokens or more"),
        ("blank.jsonl", lines({"text": ""}).encode(), "expected at least one document of two tokens or more"),
        (
            "bad.jsonl",
            lines({"text": LONG}, {"text": 3}).encode(),
            "bad.jsonl, line 2: expected text to be a string, got 3",
        ),
        (
            "bad.jsonl",
            lines({"text": "a", "domain": None}).encode(),
            "line 1: expected domain to be a string, got",
        ),
        (
            "bad.jsonl",
            lines({"texts": "a"}).encode(),
            "line 1: expected an object with the field 'text', got the",
        ),
        ("bad.jsonl", b"[1]\n", "line 1: expected an object with the field 'text', got [1]"),
        ("bad.jsonl", b"{\n", "bad.jsonl, line 1: "),
        ("bad.txt", b"\xff\xfa", "bad.txt: expected text in UTF-8"),
        ("bad.txt.gz", gzip.compress(LONG.encode(), mtime=0)[:-9], "expected a whole gzip file, but"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file(name, content, sentence, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        make(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"expected a file or a folder of texts, but there is none at {tmp_path}/no"):
        make(tmp_path / "no")
    with pytest.raises(ValueError, match=f"there is no file in {tmp_path}"):
        make(tmp_path)
    with pytest.raises(ValueError, match="split must name a file or a folder behind 'text:', got nothing"):
        EnvConfig(split="text:")


def test_texts_are_bounded(tmp_path, monkeypatch):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(LONG)
    monkeypatch.setattr(own, "MOST_TEXT_BYTES", int(1.5 * len(LONG)))
    with pytest.raises(ValueError, match=f"bytes of text in {tmp_path}, got more"):
        own.load_texts(tmp_path)
    monkeypatch.setattr(own, "MOST_TEXT_BYTES", MOST_TEXT_BYTES)
    monkeypatch.setattr(own, "MOST_FILES", 1)
    with pytest.raises(ValueError, match="expected at most 1 files"):
        own.load_texts(tmp_path)


def test_texts_are_no_suite(tmp_path):
    with pytest.raises(ValueError, match="split must be 'suite' or the file of a suite, got 'text:"):
        SuiteConfig(policies=("top1",), environment=EnvConfig(split=f"text:{tmp_path / 'mine.jsonl'}"))


def test_an_evaluation_keeps_where_the_texts_are_and_their_hash(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "sea.jsonl"
    text.write_text(lines({"text": LONG, "domain": "sea"}))
    small = ["--policies", "top1", "--episodes", "2", "--model", "micro", "--num-tokens", "16", "--out", "out"]
    assert main([*small, "--split", "text:sea.jsonl", "--domains", "sea"]) == 0
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert summary["config"]["environment"]["split"] == f"text:{text}"
    assert f"the text {text}" in summary["sha256"]
    assert main(["--replay", "out"]) == 0
    text.write_text(lines({"text": LONG + SHORT, "domain": "sea"}))
    capsys.readouterr()
    assert main(["--replay", "out"]) == 1
    assert f"the text {text} has changed since" in capsys.readouterr().out
