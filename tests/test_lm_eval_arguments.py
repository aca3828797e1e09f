"""What a user of lm_eval writes, and channels of documents; the harness itself is not needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
