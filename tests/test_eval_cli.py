"""``python -m eval``: the folder that a run leaves, and what is refused before one."""

from __future__ import annotations

import csv
import json

import gymnasium as gym
import numpy as np
import pytest
from eval_runs import COLUMNS, METRICS, SMALL, refused, rows, run

from eval.__main__ import main, read_settings
from eval.plan import EvaluationConfig
from eval.results import WALL_CLOCK
from eval.runner import Evaluation, evaluate, oracle
from wdmoe_env.episodes import load_episodes
from wdmoe_env.policies import make_policy, policy_names, trained_names
from wdmoe_env.policies.policy import RulePolicy

pytest_plugins = ("eval_folders",)

CONTRACT = (
    "latency_ms",
    "wlr",
    "nll",
    "added_nll",
    "next_token_accuracy",
    "decision_ms",
    "latency_ratio_to_vanilla",
)
FILES = ["leaderboard.csv", "pareto.png", "profiles.png", "report.md", "results.csv", "results.json"]


def test_the_list_has_a_name_a_line(capsys):
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [*policy_names(), *trained_names()]


def test_the_folder_holds_what_scripts_rely_on(folder, learned):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    summary = json.loads((folder / "results.json").read_text())
    policies = summary["policies"]
    assert [p["policy"] for p in policies] == [
        "vanilla",
        "wdmoe-bandwidth",
        "wdmoe:0.5",
        "wdmoe:0.9",
        "random",
        str(learned),
    ]
    for policy in policies:
        for key in CONTRACT:
            assert policy[key]["low"] <= policy[key]["high"]
            assert np.isfinite(policy[key]["mean"])
    assert summary["config"]["environment"]["split"] == "test"
    assert summary["config"]["seed"] == 7


def test_nothing_but_results_is_left_behind(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_a_row_per_episode_and_policy_all_on_the_same_episodes(folder):
    table = rows(folder)
    assert tuple(table[0]) == COLUMNS
    assert len(table) == 6 * 6
    episodes = [[(r["window"], r["domain"], r["seed"]) for r in table[6 * p : 6 * p + 6]] for p in range(6)]
    assert all(one == episodes[0] for one in episodes)
    assert len(set(episodes[0])) == 6


def test_means_are_those_of_the_rows(folder):
    table = rows(folder)
    policies = json.loads((folder / "results.json").read_text())["policies"]
    for n, policy in enumerate(policies):
        for metric in METRICS:
            values = [float(row[metric]) for row in table[6 * n : 6 * n + 6]]
            assert policy[metric]["mean"] == pytest.approx(np.mean(values), rel=1e-12, abs=1e-15)


def test_a_row_of_the_leaderboard_per_setting(folder):
    with open(folder / "leaderboard.csv", newline="") as file:
        board = {(row["family"], row["setting"]): row for row in csv.DictReader(file)}
    assert list(board)[2:] == [("wdmoe", "0.5"), ("wdmoe", "0.9"), ("random", ""), ("ppo", "")]
    policies = json.loads((folder / "results.json").read_text())["policies"]
    assert float(board["wdmoe", "0.9"]["latency_ms_mean"]) == pytest.approx(policies[3]["latency_ms"]["mean"], rel=1e-5)
    assert float(board["vanilla", ""]["iqm_latency_ratio_to_vanilla_high"]) == 1.0


def test_own_routing_adds_exactly_nothing(folder):
    vanilla, bandwidth = json.loads((folder / "results.json").read_text())["policies"][:2]
    assert set(vanilla["latency_ratio_to_vanilla"].values()) == {1.0}
    for own_routing in (vanilla, bandwidth):
        assert set(own_routing["added_nll"].values()) == {0.0}
        assert set(own_routing["accuracy_points_to_vanilla"].values()) == {0.0}
    assert bandwidth["latency_ratio_to_vanilla"]["high"] < 1.0


def test_vanilla_is_the_untouched_model(folder):
    table = rows(folder)[:6]
    windows = np.array([int(row["window"]) for row in table])
    untouched = load_episodes("micro", 8, "test", "cpu").reference_nll(windows)
    assert [float(row["nll"]) for row in table] == pytest.approx(untouched, abs=1e-5)


def test_the_report_names_command_versions_and_kinds_of_text(folder):
    report = (folder / "report.md").read_text()
    for part in ("python -m eval --model micro", "| torch |", "## Added NLL by kind of text", '"batch_size": 4'):
        assert part in report
    assert all(f"| {name} |" in report for name in ("vanilla", "wdmoe:0.9", "random"))


def test_the_terminal_shows_an_aligned_table_and_the_picture(tmp_path, capsys):
    out = run(tmp_path / "out", "--policies", "top1")
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0].startswith("policy")
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1].endswith(str(out / "pareto.png"))
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_rows_other_seed_other_episodes(tmp_path, folder):
    again = run(tmp_path / "again", "--policies", "wdmoe:0.5", "random")
    other = run(tmp_path / "other", "--policies", "wdmoe:0.5", "random", "--seed", "8")
    first = [r for r in rows(folder, WALL_CLOCK) if r["policy"] in ("vanilla", "wdmoe:0.5", "random")]
    assert rows(again, WALL_CLOCK) == first
    assert all(a["seed"] != b["seed"] for a, b in zip(first, rows(other), strict=True))


def test_the_programmatic_entry_measures_the_same(folder):
    results = evaluate(["random"], {"model": "micro", "num_tokens": 8, "split": "test"}, 6, 7, 4, progress=False)
    mine = [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in results.rows()]
    assert mine == [r for r in rows(folder, WALL_CLOCK) if r["policy"] in ("vanilla", "random")]


def test_a_file_of_settings_stands_below_flags(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"num_tokens": 16, "split": "train", "channel": {"fading": "none"}}))
    out = run(tmp_path / "out", "--policies", "vanilla", "--config", str(path))
    environment = json.loads((out / "results.json").read_text())["config"]["environment"]
    assert environment["num_tokens"] == 8
    assert environment["split"] == "train"
    assert environment["channel"]["fading"] == "none"


def test_documents_are_resampled_whole(tmp_path):
    flags = ("--policies", "top1", "--episodes", "48", "--num-tokens", "8")
    tables = [run(tmp_path / name, *flags, "--resample", name) for name in ("windows", "documents")]
    one, other = (json.loads((table / "results.json").read_text())["policies"][1]["latency_ms"] for table in tables)
    assert one["mean"] == other["mean"]
    assert (one["low"], one["high"]) != (other["low"], other["high"])
    assert "documents, all episodes of one together" in (tables[1] / "report.md").read_text()


def test_windows_of_named_domains_alone(tmp_path, capsys):
    out = run(tmp_path / "out", "--policies", "vanilla", "--domains", "speeches", "code")
    assert {row["domain"] for row in rows(out)} == {"speeches", "code"}
    assert main(["--replay", str(out)]) == 0


def test_no_policy_beats_the_oracle_on_any_first_block(tmp_path):
    out = run(tmp_path / "out", "--policies", "oracle", "fractional", "wdmoe", "top1")
    assert {row["policy"] for row in rows(out)} == {"vanilla", "oracle", "fractional", "wdmoe", "top1"}
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=6, config={"model": "micro", "num_tokens": 8, "min_share": 1e-9})
    observation, _ = env.reset(seed=0)
    for name in ("fractional", "wdmoe", "top1", "marginal-price:0.5"):
        observation, _ = env.reset(seed=0)
        wlr = env.step(make_policy(name, env).predict(observation)[0])[4]["wlr"]
        observation, _ = env.reset(seed=0)
        best = env.step(RulePolicy(oracle, env.codec).predict(observation)[0])[4]["wlr"]
        assert (best >= wlr * (1 - 1e-6)).all()


def test_a_transfer_has_a_folder_per_condition_and_one_table(tmp_path, capsys):
    out = tmp_path / "transfer"
    policies = ["--policies", "vanilla-optimal", "wdmoe:0.5", "marginal-price:0.5", "marginal-price:2"]
    conditions = ["devices-4", "bandwidth-double", "tokens-8"]
    assert main([*SMALL, "--transfer", *conditions, *policies, "--out", str(out)]) == 0
    with open(out / "transfer.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["condition"] for row in table] == conditions
    settings = [json.loads((out / name / "results.json").read_text()) for name in conditions]
    environments = [one["config"]["environment"] for one in settings]
    assert environments[0]["devices"]["count"] == 4
    assert environments[1]["channel"]["bandwidth_hz"] == 2 * environments[2]["channel"]["bandwidth_hz"]
    for row, one in zip(table, settings, strict=True):
        assert float(row["reference_latency_ms"]) == pytest.approx(one["policies"][2]["latency_ms"]["mean"], rel=1e-5)
    assert "What a condition costs" not in (out / "transfer.md").read_text()
    capsys.readouterr()
    assert main(["--replay", str(out)]) == 0
    assert capsys.readouterr().out.count("match: 30 rows") == 3
    assert main(["--report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in text for name in conditions)


def test_a_transfer_says_what_faults_cost_each_policy(tmp_path, capsys):
    out = tmp_path / "faults"
    policies = ["--policies", "top1", "wdmoe:0.5"]
    assert main([*SMALL, "--transfer", "unchanged", "csi-off", "throttling", *policies, "--out", str(out)]) == 0
    row = next(line for line in (out / "transfer.md").read_text().splitlines() if line.startswith("| top1 "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    latency = {}
    for name in ("unchanged", "csi-off", "throttling"):
        with open(out / name / "results.csv", newline="") as file:
            table = [line for line in csv.DictReader(file) if line["policy"] == "top1"]
        latency[name] = np.mean([float(line["latency_ms"]) for line in table])
    assert cells[1] == f"{latency['unchanged']:.1f}"
    for at, name in ((3, "csi-off"), (5, "throttling")):
        assert cells[at].startswith(f"{latency[name] / latency['unchanged']:.3f} [")
        assert cells[at + 1].startswith("+0.0000 [")
    assert latency["throttling"] > latency["csi-off"] > latency["unchanged"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--policies", "wdmo"], "unknown policy 'wdmo'; the nearest known are wdmoe"),
        (["--policies", "missing.safetensors"], "missing.safetensors"),
        (["--policies", "vanilla:3"], "takes no parameter"),
        (["--model", "micra"], "unknown model 'micra'; the nearest known are micro"),
        (["--num-tokens", "100000"], "num_tokens must be at most"),
        (["--episodes", "0"], "episodes must be a whole number of at least 1, got 0"),
        (["--episodes", "many"], "invalid int value: 'many'"),
        (["--batch-size", "-1"], "batch_size must be a whole number of at least 1, got -1"),
        (["--split", "all"], "invalid choice: 'all'"),
        (["--config", "missing.json"], "there is no missing.json"),
        (["--suite-items", "3"], "--suite-items goes with --suite alone"),
        (["--domains", "poems"], "expected domains among code, "),
        (["--policies", "oracle", "--num-tokens", "9"], "num_tokens must be at most 8, got 9"),
        (["--transfer", "moon", "--policies", "wdmoe:0.5"], "expected conditions among unchanged, "),
        (["--transfer", "rician", "--policies", "wdmoe"], "expected thresholds of wdmoe to compare with"),
        (["--report", "missing"], "expected a results folder, but missing holds no results.json"),
        (["--episode-length", "3"], "unrecognized arguments"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *SMALL, "--out", "out", *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "expected JSON in"),
        ("[1]", "expected a JSON object in"),
        ('{"fadin": 1}', "unexpected keyword argument 'fadin'"),
        ('{"decision": "bandwidth"}', "decision must be 'joint' in an evaluation"),
        ('{"seed\\u0000": 1}', r"unexpected keyword argument 'seed\x00'"),
        ('{"num_tokens": 8, "num_tokens": 16}', "expected each key once in an object, got 'num_tokens' twice"),
        ('{"model": "\\ud800"}', r"expected text, got half of a surrogate pair, \ud800"),
        ('{"placement": ' + "[" * 9_000, "expected at most 64 objects and lists within each other, got more"),
        ('{"quality_weight": NaN}', "expected finite numbers, got NaN"),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path, capsys, text, sentence):
    path = tmp_path / "settings.json"
    path.write_text(text)
    assert sentence in refused(capsys, *SMALL, "--out", str(tmp_path / "out"), "--config", str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_are_read_whoever_saved_them(tmp_path, encoding):
    path = tmp_path / "settings.json"
    path.write_bytes(json.dumps({"channel": {"fading": "none"}}).encode(encoding))
    assert read_settings(path) == {"channel": {"fading": "none"}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\0b.json", "expected a file of settings behind --config, but there is no a\\"),
        ("a\ud800.json", "expected arguments in UTF-8, got 'a\\ud800.json'"),
        ("a\nb.json", "expected a file of settings behind --config, but there is no a\\"),
    ],
)
def test_a_name_of_settings_that_no_file_has_is_one_sentence(tmp_path, capsys, name, expected):
    sentence = refused(capsys, *SMALL, "--out", str(tmp_path / "out"), "--config", name)
    assert expected in sentence


def test_domains_and_transfer_are_not_of_the_suite(tmp_path, capsys):
    for flags in (["--domains", "code"], ["--transfer"]):
        assert "does not go with --suite" in refused(capsys, "--suite", "--out", str(tmp_path / "out"), *flags)
    assert not (tmp_path / "out").exists()


def test_earlier_results_and_other_files_are_kept(tmp_path, copied, capsys):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert "--overwrite replaces them" in refused(capsys, *SMALL, "--out", str(copied))
    (copied / "notes.txt").write_text("mine")
    assert "holds notes.txt" in refused(capsys, *SMALL, "--out", str(copied), "--overwrite")
    (tmp_path / "file").write_text("mine")
    assert "got the file" in refused(capsys, *SMALL, "--out", str(tmp_path / "file"))
    assert {name: (copied / name).read_bytes() for name in before} == before


def test_overwrite_replaces_earlier_results(copied):
    run(copied, "--policies", "top1", "--overwrite")
    assert {row["policy"] for row in rows(copied)} == {"vanilla", "top1"}
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_earlier_results_and_no_parts(copied, monkeypatch, failure):
    before = (copied / "results.csv").read_bytes()

    def fail(*_):
        raise failure

    monkeypatch.setattr("eval.plots.plot_windows_pareto", fail)
    arguments = [*SMALL, "--out", str(copied), "--policies", "vanilla", "--overwrite"]
    with pytest.raises(failure):
        main(arguments)
    assert (copied / "results.csv").read_bytes() == before
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_the_configuration_survives_its_dict():
    config = EvaluationConfig(policies=("wdmoe", "wdmoe"), episodes=3)
    assert config.policies == ("vanilla", "wdmoe")
    assert EvaluationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_policies_are_checked_before_the_first_episode(monkeypatch):
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("ran"))
    with pytest.raises(ValueError, match="unknown policy"):
        evaluate(["vanilla", "nobody"], {"model": "micro", "num_tokens": 8})
