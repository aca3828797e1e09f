"""What a user of lm_eval writes, and channels of documents; the harness itself is not needed."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from eval.lm_eval import main
from wdmoe_env.integrations.airtime import Airtime
from wdmoe_env.integrations.lm_eval_arguments import batch_size_of, device_of, document_seed, nested
from wdmoe_env.integrations.lm_eval_suite import TAG, write_suite_tasks
from wdmoe_env.text.suite import FORMATS, load_suite


def test_dotted_names_are_nested_settings():
    settings = {"model": "tiny", "channel.fading": "rician", "channel.rician_k_db": 3.0}
    assert nested(settings) == {"model": "tiny", "channel": {"fading": "rician", "rician_k_db": 3.0}}
    with pytest.raises(ValueError, match="expected channel as a whole or field by field, got both"):
        nested({"channel.fading": "rician", "channel": "trace:gains.csv"})


def test_batch_sizes_as_the_harness_writes_them():
    assert [batch_size_of(value) for value in ("auto", "auto:4", 8, "8")] == [None, None, 8, 8]
    for wrong in (0, "many", 1.5):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            batch_size_of(wrong)


def test_without_cuda_the_harnesss_default_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device_of(device) for device in (None, "cuda:0", "cpu", "mps")] == ["cpu", "cpu", "cpu", "mps"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("cuda:0") == "cuda:0"


def test_a_document_has_one_channel():
    first = document_seed({"question": "a", "choices": ["b", "c"]}, "task", 7)
    assert first == document_seed({"choices": ["b", "c"], "question": "a"}, "task", 7)
    others = [({"question": "d"}, "task", 7), ({"question": "a"}, "other", 7), ({"question": "a"}, "task", 8)]
    assert len({first, *(document_seed(*other) for other in others)}) == 4
    assert document_seed({"question": "a", "channel_seed": 11}, "task", 7) == 11


@dataclass
class Question:
    """A document as a task's own code may make it."""

    text: str
    answers: Any
    notes: list[str] = field(default_factory=list, repr=False)


class Pair(NamedTuple):
    """A tuple with a ``repr`` of its own."""

    first: Any
    second: Any


class Plain:
    """An object whose ``repr`` is its address."""

    def __init__(self, **held):
        vars(self).update(held)


STABLE = {
    "json": {"question": "a", "choices": ["b", "c"], "label": 1, "none": None, "nan": float("nan"), "é": "\ud800"},
    "nested": [OrderedDict(b=1, a=[2, (3, "4")]), Counter("hello"), Pair("a", 2)],
    "numbers": {3, 1, 2, 8, 16, 0},
    "numbers of many kinds": {1.5, Decimal("2.5"), Fraction(1, 3), (3, (4, 5)), frozenset({9, 1})},
    "one text": {"alone"},
    "one text, frozen": frozenset({"alone"}),
    "no text": set(),
    "dates": [datetime.date(2026, 1, 2), datetime.timedelta(hours=3)],
    "bytes": b"\x00a",
    "paths": Path("a folder/a file"),
    "arrays": [np.arange(3), np.float32(0.5), np.array(["a", "b"])],
    "a dataclass": Question("what?", {"b": [1, ("c",)], "a": {5}}, ["unseen"]),
    "a namespace": SimpleNamespace(b=1, a=["c", {"d": None}]),
    "a type": Question,
    "text like an address": ["<a at 0x7f0000000000>", Decimal(1)],
    "slices": slice(1, 2),
}

UNSTABLE = {
    "texts": lambda words: set(words),
    "frozen texts": lambda words: {"answers": frozenset(words)},
    "texts and numbers": lambda words: {1, 2.5, None, *words},
    "tuples": lambda words: {(word, number) for number, word in enumerate(words)},
    "sets of sets": lambda words: {frozenset(words[:2]), frozenset(words[2:])},
    "dates": lambda words: {datetime.date(2026, 1, len(word)) for word in words},
    "a set in a named tuple": lambda words: Pair(set(words), 2),
    "a set in a dataclass": lambda words: Question("what?", {"right": set(words)}),
    "a set in a namespace": lambda words: SimpleNamespace(answers=[(set(words),)]),
    "an object": lambda words: Plain(words=words),
    "a set in an object": lambda words: [Plain(answers=set(words), other=Plain())],
    "objects in a set": lambda words: {Plain(word=word) for word in words},
    "a function": lambda words: [lambda: words, len, words.append],
    "an object that holds itself": lambda words: circle(words),
}

PRINT_SEEDS = "import json; from test_lm_eval_arguments import unstable_seeds; print(json.dumps(unstable_seeds()))"


def unstable_seeds():
    words = ["stone", "river", "a", "horse's", "five"]
    return {name: document_seed(make(words), "task", 7) for name, make in UNSTABLE.items()}


def circle(words):
    result = Plain(words=words)
    result.itself = result
    return result


@pytest.mark.parametrize("document", STABLE.values(), ids=STABLE.keys())
def test_a_document_keeps_the_seed_of_its_text(document):
    """The seed of earlier versions, which took ``str`` of whatever JSON lacks."""
    named = json.dumps([7, "task", document], sort_keys=True, default=str)
    expected = int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big") // 2
    assert document_seed(document, "task", 7) == expected


def test_a_seed_is_the_same_in_every_process():
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": paths}
    command = [sys.executable, "-c", PRINT_SEEDS]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == unstable_seeds()
    assert len(set(unstable_seeds().values())) == len(UNSTABLE)


@pytest.mark.parametrize("name", [name for name in UNSTABLE if name not in ("a function", "dates")])
def test_another_text_in_a_set_is_another_seed(name):
    words = ["stone", "river", "a", "horse's", "five"]
    assert document_seed(UNSTABLE[name](words), "task", 7) != document_seed(UNSTABLE[name](words[:-1]), "task", 7)


def test_airtime_is_a_mean_over_windows():
    airtime = Airtime()
    airtime.add(["a", "b", "a"], *map(floats, ([1.0, 10.0, 3.0], [4.0, 20.0, 4.0], [1.0, 1.0, 2.0])))
    assert airtime.summary() == {
        "a": {"windows": 2, "latency_ms": 2.0, "latency_ratio_to_vanilla": 0.5, "wlr_per_ms": 1.5},
        "b": {"windows": 1, "latency_ms": 10.0, "latency_ratio_to_vanilla": 0.5, "wlr_per_ms": 1.0},
        "all": {"windows": 3, "latency_ms": 14 / 3, "latency_ratio_to_vanilla": 0.5, "wlr_per_ms": 4 / 3},
    }
    assert airtime.table()[1] == ["a", "2", "2.0", "0.500", "1.50"]
    alone = Airtime()
    alone.add(["a"], *map(floats, ([1.0], [float("nan")], [1.0])))
    assert alone.summary()["a"]["latency_ratio_to_vanilla"] is None
    assert alone.table()[1] == ["a", "1", "1.0", "", "1.00"]
    assert Airtime().summary() == {}


def floats(values):
    return torch.tensor(values, dtype=torch.float64).numpy()


def test_the_suite_is_a_task_for_each_format(tmp_path):
    items = load_suite()[::50]
    names = write_suite_tasks(tmp_path, items, seeds=range(len(items)))
    assert {name.removeprefix(f"{TAG}_").replace("_", "-") for name in names} == set(FORMATS)
    written = {}
    for name in names:
        task = json.loads((tmp_path / f"{name}.yaml").read_text())
        assert task["metric_list"][0]["metric"] == ("acc_bytes" if name.endswith("continuation") else "acc")
        lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").split("\n")
        written |= {document["item"]: document for document in map(json.loads, filter(None, lines))}
    for number, item in enumerate(items):
        document = written[number]
        assert document["channel_seed"] == number
        assert (document["context"], document["choices"], document["answer"]) == (
            item.context,
            list(item.choices),
            item.answer,
        )


def test_tasks_need_items(tmp_path):
    for items, seeds in (([], None), (load_suite()[:2], [1])):
        with pytest.raises(ValueError, match="expected items, and a number and a seed for each"):
            write_suite_tasks(tmp_path, items, seeds=seeds)


def test_a_missing_harness_is_one_sentence(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "lm_eval.__main__", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["--model", "wdmoe"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("python -m eval.lm_eval: expected lm-eval, got ")
    assert said.endswith("pip install 'wdmoe-env[lm-eval]' brings it\n")


def test_mistakes_in_suite_are_one_sentence(tmp_path, capsys):
    assert main(["suite", "--out", str(tmp_path), "--suite", "nowhere.jsonl"]) == 2
    said = "python -m eval.lm_eval: expected a suite in JSON Lines, but there is no file nowhere.jsonl\n"
    assert capsys.readouterr().err == said
    assert main(["suite", "--out", str(tmp_path), "--suite-items", "7000"]) == 2
    assert "suite_items must be at most 6360, what the suite has, got 7000" in capsys.readouterr().err
