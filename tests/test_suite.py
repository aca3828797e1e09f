"""The suite: items, windows and scores, and their evaluation under every policy."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections import Counter
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM

from eval import suite
from eval.__main__ import main
from eval.statistics import mcnemar_p
from eval.suite import SuiteConfig, evaluate_suite, judged, plan_items, stratified
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import load_suite_windows
from wdmoe_env.evaluation import Episodes, play
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.policies import make_policy
from wdmoe_env.reading import MOST_TEXT_BYTES
from wdmoe_env.text.suite import FORMATS, SUITE_TOKENS, Item, load_suite, suite_windows, window_rows

TOKENS = 40
DOMAINS = ("facts", "fiction")
TEXT = "the house stood near a river and nobody knew who had built its walls of grey stone so long ago"
WORDS = TEXT.split()


def some_items(count=8):
    """Items of several formats, of contexts and choices of several lengths."""
    generator = np.random.default_rng(0)
    items = []
    for n in range(count):
        context = " ".join(generator.choice(WORDS, size=3 + 2 * n))
        choices = tuple(f" {word}{' and so on' * (n % 3)}" for word in generator.choice(WORDS, 4, replace=False))
        items.append(Item(FORMATS[n % len(FORMATS)], DOMAINS[n % 2], context, choices, n % 4))
    return tuple(items)


def write(path, items, compress=True):
    """Write items as a suite's file."""
    lines = "".join(
        json.dumps({name: getattr(item, name) for name in Item.__slots__}, ensure_ascii=False) + "\n" for item in items
    )
    path.write_bytes(gzip.compress(lines.encode()) if compress else lines.encode())
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A suite of eight items."""
    return write(tmp_path_factory.mktemp("suite") / "items.jsonl.gz", some_items())


@pytest.fixture(scope="module")
def environment(file):
    """Settings of an environment on it."""
    return EnvConfig(model="micro", num_tokens=TOKENS, split=str(file))


def run(file, out, *flags):
    """Evaluate the suite into a folder."""
    small = ["--model", "micro", "--num-tokens", str(TOKENS), "--batch-size", "16", "--suite", str(file)]
    assert main([*small, "--out", str(out), *flags]) == 0
    return out


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    """A results folder of the whole suite."""
    return run(file, tmp_path_factory.mktemp("eval") / "suite", "--policies", "top1", "wdmoe", "random")


def rows(folder):
    """Rows of a results folder as dicts."""
    with open(folder / "suite.csv", newline="") as table:
        return list(csv.DictReader(table))


def refused(capsys, *arguments):
    """The sentence with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


# Items and their file.


@pytest.mark.parametrize("compress", [True, False])
def test_a_suite_comes_back_from_its_file(tmp_path, compress):
    odd = Item("cloze", "french", "une ligne\u2028et une autre\n", (" é", " e", " \x85", " ê"), 2)
    assert load_suite(write(tmp_path / "s.jsonl", (odd, *some_items(3)), compress)) == (odd, *some_items(3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "clozze"}, "format must be one of .* got 'clozze'; did you mean 'cloze'"),
        ({"choices": [" a", " b", " c"]}, "choices must be 4 different texts"),
        ({"choices": [" a", " b", " c", " a"]}, "choices must be 4 different texts"),
        ({"choices": "abcd"}, "choices must be 4 different texts"),
        ({"choices": [" a", " b", " c", 4]}, "choices must be 4 different texts"),
        ({"answer": 4}, "answer must be below 4, got 4"),
        ({"answer": True}, "answer must be a whole number"),
        ({"context": ""}, "context must be a text"),
        ({"domain": None}, "domain must be a text"),
        ({"hint": "b"}, "expected the fields answer, choices, context, domain, format, got .*hint"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, change, sentence):
    good = {"format": "cloze", "domain": "facts", "context": "a", "choices": [" a", " b", " c", " d"], "answer": 0}
    path = tmp_path / "s.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(ValueError, match=rf"line 2 of the suite .* is not an item: {sentence}"):
        load_suite(path)


@pytest.mark.parametrize("part", [0.3, 0.99])
def test_a_truncated_suite_is_refused(tmp_path, file, part):
    for whole, name in ((file.read_bytes(), "gzipped"), (gzip.decompress(file.read_bytes()), "plain")):
        path = tmp_path / name
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ValueError, match=r"is truncated or damaged|line \d is not an item|is not an item"):
            load_suite(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_suite_is_read_whoever_saved_it(tmp_path, encoding, pack):
    text = write(tmp_path / "s.jsonl", some_items(3), compress=False).read_text()
    (tmp_path / "s.jsonl").write_bytes(pack(text.replace("\n", "\r\n\r\n").encode(encoding)))
    assert load_suite(tmp_path / "s.jsonl") == some_items(3)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[" * 100_000, "expected at most 64 objects and lists within each other"),
        ('{"format": "cloze", "format": "skill"}', "expected each key once in an object, got 'format' twice"),
        (r'{"format": "\ud800"}', r"expected text, got half of a surrogate pair, .ud800"),
        ('{"answer": NaN}', "expected finite numbers, got NaN"),
        ("[]", "expected the fields answer, .*, got list"),
    ],
    ids=lambda value: value[:12],
)
def test_a_line_that_is_no_json_is_named(tmp_path, line, sentence):
    path = write(tmp_path / "s.jsonl", some_items(2), compress=False)
    path.write_text(f"\n{path.read_text()}{line}\n")
    with pytest.raises(ValueError, match=rf"line 4 of the suite .* is not an item: {sentence}"):
        load_suite(path)


@pytest.mark.parametrize("content", ["\n", " ", json.dumps({"context": "a" * 99}) + "\n"])
def test_a_suite_is_unpacked_no_further_than_the_limit(tmp_path, content):
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(content.encode() * (MOST_TEXT_BYTES // len(content) + 1), compresslevel=1))
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"expected at most 67,108,864 bytes in .*s.jsonl.gz, but it unpacks to more"):
        load_suite(path)


def test_no_suite_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_suite(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        load_suite(tmp_path / "empty.jsonl")


# Windows.


def test_the_four_windows_differ_in_the_choice_alone():
    encode = load_model("micro").tokenizer.encode
    suite = suite_windows(some_items(), encode, 64)
    assert not suite.context_cut.any()
    for number, item in enumerate(suite.items):
        for row, choice in zip(window_rows(np.array([number])), item.choices, strict=True):
            whole, context = encode(item.context + choice), encode(item.context)
            mask, scored = suite.windows.mask[row], suite.scored[row]
            assert suite.windows.token_ids[row][mask].tolist() == whole[:-1]
            assert suite.windows.targets[row][mask].tolist() == whole[1:]
            assert suite.windows.targets[row][scored].tolist() == whole[len(context) :]


def test_a_long_context_loses_its_beginning_for_all_four_choices_alike():
    encode = load_model("micro").tokenizer.encode
    item = Item("cloze", "facts", TEXT, (" a", " a river", " a river and", " a river and stone"), 0)
    whole, cut = (suite_windows([item], encode, tokens) for tokens in (64, 9))
    longest = len(encode(item.choices[-1]))
    assert cut.context_cut.tolist() == [True]
    assert not suite_windows([item], encode, longest).windows.token_ids[:, longest:].any()
    kept = {tuple(cut.windows.targets[row][cut.windows.mask[row] & ~cut.scored[row]]) for row in range(4)}
    assert len(kept) == 1
    assert cut.windows.mask.sum(axis=1).max() == 9
    for row in range(4):
        assert (cut.windows.targets[row][cut.scored[row]] == whole.windows.targets[row][whole.scored[row]]).all()
    with pytest.raises(ValueError, match=f"num_tokens must be at least {longest}, the longest choice of the suite"):
        suite_windows([item], encode, longest - 1)


def test_where_a_choice_melts_into_the_context_all_four_are_asked_for_the_same_text():
    def pairs(text):
        """Two letters a token, from the left."""
        return [
            sum(ord(letter) << 8 * n for n, letter in enumerate(text[at : at + 2])) for at in range(0, len(text), 2)
        ]

    item = Item("cloze", "facts", "abcde", ("f", "g", "hi", "j"), 0)  # "e" alone ends no text
    suite = suite_windows([item], pairs, 8)
    assert [suite.scored[row].sum() for row in range(4)] == [1, 1, 2, 1]
    assert (suite.windows.mask & ~suite.scored).sum(axis=1).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="expected a token of context before 'f', 'g', 'hi', 'j', got 'a'"):
        suite_windows([Item("cloze", "facts", "a", ("f", "g", "hi", "j"), 0)], pairs, 8)


# Scores.


def scores_of_transformers(items):
    """Scores of the choices by an untouched model, a forward pass each, without padding."""
    split = load_model("micro")
    model = AutoModelForCausalLM.from_config(deepcopy(split.model.config), experts_implementation="eager").eval()
    model.load_state_dict(split.model.state_dict())
    scores = []
    for item, choice in ((one, choice) for one in items for choice in one.choices):
        context, continuation = split.tokenizer.encode(item.context), split.tokenizer.encode(choice)
        with torch.no_grad():
            log_probs = model(torch.tensor([context + continuation])).logits[0].double().log_softmax(-1)
        total = sum(float(log_probs[at, token]) for at, token in enumerate(continuation, start=len(context) - 1))
        scores.append(total / len(choice.encode()) if item.format == "continuation" else total)
    return np.array(scores).reshape(-1, 4)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_vanilla_answers_as_the_untouched_model_whatever_the_batch(environment, batch):
    expected = scores_of_transformers(some_items())
    found = evaluate_suite(["vanilla"], environment, batch_size=batch, progress=False).measurements["vanilla"]
    assert (found["choice"] == expected.argmax(axis=1)).all()
    for item, scores, margin, correct in zip(some_items(), expected, found["margin"], found["correct"], strict=True):
        others = np.delete(scores, item.answer)
        assert margin == pytest.approx(scores[item.answer] - others.max(), abs=1e-4)
        assert correct == (margin > 0)
    assert 0 < found["correct"].sum() < 8


def test_scores_are_those_of_the_untouched_model(environment):
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=32, config=environment, autoreset_mode="DISABLED")
    blocks, _ = play(env, make_policy("vanilla", env), Episodes(np.arange(32), np.arange(32)))
    token_nll = blocks[-1]["token_nll"]
    windows = load_suite_windows("micro", TOKENS, environment.split, "cpu")
    expected = scores_of_transformers(some_items())
    assert windows.choice_scores(token_nll, np.arange(8)) == pytest.approx(expected, abs=1e-4)
    assert windows.choice_scores(token_nll[20:24], np.array([5])) == pytest.approx(expected[5:6], abs=1e-4)


@pytest.mark.parametrize("policy", ["vanilla", "wdmoe", "top1"])
def test_padding_counts_neither_in_scores_nor_in_latency(environment, policy):
    wider = EnvConfig.make(environment, num_tokens=TOKENS + 17)
    tight, padded = (evaluate_suite([policy], config, progress=False) for config in (environment, wider))
    assert not tight.context_cut.any()
    for name, tolerance in (("margin", 1e-4), ("latency_ms", 1e-6)):
        expected = pytest.approx(tight.measurements[policy][name], abs=tolerance, rel=tolerance)
        assert padded.measurements[policy][name] == expected


def test_the_four_windows_of_an_item_share_a_channel_and_so_do_all_policies(environment, monkeypatch):
    ran, latency_ms = [], []

    def watched(env, policy, episodes):
        blocks, seconds = play(env, policy, episodes)
        ran.append(episodes)
        latency_ms.append(blocks[-1]["latency_ms"])
        return blocks, seconds

    monkeypatch.setattr(suite, "play", watched)
    results = evaluate_suite(["top1"], environment, batch_size=16, progress=False)
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=16, config=environment, autoreset_mode="DISABLED")
    starts = [env.reset(seed=part.seeds.tolist(), options={"window": part.windows})[0] for part in ran]
    vanilla, top1 = np.stack([start["spectral_efficiency"] for start in starts]).reshape(2, 8, 4, -1)
    assert (vanilla == top1).all()
    assert (vanilla == vanilla[:, :1]).all()
    assert len(np.unique(vanilla[:, 0], axis=0)) == len(set(results.seeds)) == 8
    for values, measured in zip(results.measurements.values(), np.reshape(latency_ms, (2, 8, 4)), strict=True):
        assert values["latency_ms"] == pytest.approx(measured.mean(axis=1))


def test_a_policy_that_drops_experts_is_scored_on_what_it_kept(environment):
    results = evaluate_suite(["vanilla-optimal", "top1"], environment, progress=False).measurements
    assert (results["vanilla-optimal"]["margin"] == results["vanilla"]["margin"]).all()
    assert (results["vanilla-optimal"]["latency_ms"] < results["vanilla"]["latency_ms"]).all()
    assert (np.abs(results["top1"]["margin"] - results["vanilla"]["margin"]) > 1e-3).all()


# Which items.


def test_a_subset_is_drawn_by_lot_from_each_cell_in_proportion():
    cells = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    first, again, other = (stratified(cells, 20, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert Counter(cells[n] for n in first) == Counter(cells[n] for n in other) == {"a": 12, "b": 6, "c": 2}
    assert (first == again).all()
    assert (np.diff(first) > 0).all()
    assert (first != other).any()
    assert (stratified(cells, 100, np.random.default_rng(0)) == np.arange(100)).all()


def test_what_whole_numbers_leave_over_goes_to_those_who_lost_most_and_by_lot_where_alike():
    cells = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    assert Counter(cells[n] for n in stratified(cells, 4, np.random.default_rng(0))) == {"a": 2, "b": 1, "c": 1}
    alike = ["a", "a", "b", "b", "c", "c"]
    drawn = {alike[stratified(alike, 1, np.random.default_rng(seed))[0]] for seed in range(20)}
    assert drawn == {"a", "b", "c"}


def test_an_item_keeps_its_channel_in_every_subset():
    (_, every), (numbers, seeds) = (plan_items(some_items(), count, seed=7) for count in (None, 5))
    assert (seeds == every[numbers]).all()
    assert (plan_items(some_items(), None, seed=8)[1] != every).all()


# Statistics.


def test_mcnemar_by_hand_and_as_scipy_has_it():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) == 2 / 32
    assert mcnemar_p(1, 3) == 2 * (1 + 4) / 16
    for lost, gained in ((7, 7), (40, 22), (3, 90), (900, 1000)):
        assert mcnemar_p(lost, gained) == pytest.approx(binomtest(lost, lost + gained).pvalue, rel=1e-9)


def test_the_answer_of_highest_score_is_taken():
    items = some_items(2)  # their answers are 0 and 1
    found = judged(np.array([[-3.0, -1.0, -2.0, -4.0], [-9.0, -1.0, -2.0, -4.0]]), items)
    assert found["choice"].tolist() == [1, 1]
    assert found["correct"].tolist() == [0, 1]
    assert found["margin"].tolist() == [-2.0, 1.0]


# The command line and its folder.


def test_the_folder_holds_figures_that_follow_from_its_rows(folder):
    files = ["leaderboard.csv", "pareto.png", "report.md", "suite.csv", "suite.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    summary, table = json.loads((folder / "suite.json").read_text()), rows(folder)
    assert [policy["policy"] for policy in summary["policies"]] == ["vanilla", "top1", "wdmoe", "random"]
    assert (summary["items"], summary["contexts_cut"], len(table)) == (8, 0, 32)
    vanilla = {row["item"]: row for row in table if row["policy"] == "vanilla"}
    for policy in summary["policies"]:
        own = [row for row in table if row["policy"] == policy["policy"]]
        assert policy["accuracy"]["mean"] == np.mean([int(row["correct"]) for row in own])
        assert policy["latency_ms"]["mean"] == pytest.approx(np.mean([float(row["latency_ms"]) for row in own]))
        pairs = Counter((vanilla[row["item"]]["correct"], row["correct"]) for row in own)
        assert (policy["lost"], policy["gained"]) == (pairs["1", "0"], pairs["0", "1"])
        points = policy["accuracy_points_to_vanilla"]
        assert points["mean"] == pytest.approx(100 * (policy["gained"] - policy["lost"]) / 8)
        assert points["low"] <= points["mean"] <= points["high"]
        for grouping in ("format", "domain"):
            for label, group in policy[f"by_{grouping}"].items():
                of_group = [int(row["correct"]) for row in own if row[grouping] == label]
                assert (group["items"], group["accuracy"]["mean"]) == (len(of_group), np.mean(of_group))
            assert sum(group["items"] for group in policy[f"by_{grouping}"].values()) == 8


def test_the_report_and_the_terminal_have_accuracy_beside_latency(folder, file, tmp_path, capsys):
    report = (folder / "report.md").read_text()
    for part in ("    python -m eval --model micro", "| policy | accuracy % |", "latency ms |", "Accuracy by domain"):
        assert part in report
    run(file, tmp_path / "out", "--policies", "top1", "--suite-items", "4")
    header, _, *lines = (line for line in capsys.readouterr().out.splitlines() if line)
    assert " ".join(header.split()) == "policy accuracy % points lost gained p latency ms vs vanilla"
    assert lines[1].startswith("top1")
    assert "(4 items; chance is 25 %)" in lines


def test_replay_of_an_untouched_folder_matches(folder, capsys):
    assert main(["--replay", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("match: 32 rows")


@pytest.mark.parametrize(("column", "value"), [("choice", "9"), ("latency_ms", "1.0"), ("item", "77"), ("margin", "")])
def test_replay_sees_a_tampered_row(folder, tmp_path, capsys, column, value):
    copied = shutil.copytree(folder, tmp_path / "copied")
    table = rows(copied)
    table[9][column] = value
    with open(copied / "suite.csv", "w", newline="") as out:
        writer = csv.DictWriter(out, table[0])
        writer.writeheader()
        writer.writerows(table)
    assert main(["--replay", str(copied)]) == 1
    assert f"suite.csv line 11, {column}: {value} saved" in capsys.readouterr().out


def test_replay_names_a_changed_suite_and_a_changed_model(folder, file, tmp_path, capsys):
    copied = write(tmp_path / "mine.jsonl", some_items())
    out = run(copied, tmp_path / "out", "--policies", "vanilla")
    write(copied, some_items()[::-1])
    assert main(["--replay", str(out)]) == 1
    assert "the suite has changed since" in capsys.readouterr().out
    other = shutil.copytree(folder, tmp_path / "other")
    text = (other / "suite.json").read_text()
    summary = json.loads(text)
    (other / "suite.json").write_text(text.replace(summary["sha256"]["the model micro"], "0" * 64))
    assert main(["--replay", str(other)]) == 1
    assert "the model micro has changed since" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--episodes", "3"], "--episodes does not go with --suite"),
        (["--split", "test"], "--split does not go with --suite"),
        (["--suite-items", "0"], "suite_items must be a whole number of at least 1, got 0"),
        (["--suite-items", "9"], "suite_items must be at most 8, what the suite has, got 9"),
        (["--num-tokens", "2"], "num_tokens must be at least"),
        (["--num-tokens", "1000"], "num_tokens must be at most 256, the context of model 'micro', got 1000"),
        (["--suite", "none.jsonl"], "expected a suite in JSON Lines, but there is no file"),
        (["--suite", "vanilla"], "split must be one of train, test, shifted, suite, got 'vanilla'"),
        (["--suite", "train"], "split must be 'suite' or the file of a suite, got 'train'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(file, tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, "--suite", str(file), "--model", "micro", "--out", "out", *flags)
    assert list(tmp_path.iterdir()) == []


def test_windows_have_96_tokens_unless_told_otherwise():
    assert SuiteConfig(policies=("top1",)).environment == EnvConfig(split="suite", num_tokens=SUITE_TOKENS)
    config = SuiteConfig(policies=("top1",), environment=EnvConfig(split="a.jsonl"), suite_items=3)
    assert SuiteConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
