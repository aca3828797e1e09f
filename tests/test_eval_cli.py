"""The evaluation's command line, its files, and replay."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from eval.__main__ import main, read_settings
from eval.plan import EvaluationConfig
from eval.replay import read_results
from eval.results import WALL_CLOCK, EpisodeResults
from eval.runner import Evaluation, evaluate, oracle
from wdmoe_env.episodes import load_episodes
from wdmoe_env.policies import make_policy, policy_names, trained_names
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy import RulePolicy
from wdmoe_env.policies.policy_file import save_policy

STUDY = Path(__file__).parents[1] / "docs" / "results"
METRICS, COLUMNS = EpisodeResults.metrics(), EpisodeResults.columns()
SMALL = ["--model", "micro", "--num-tokens", "8", "--episodes", "6", "--batch-size", "4"]
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


def run(out, *flags):
    """Evaluate into a folder."""
    assert main([*SMALL, "--out", str(out), *flags]) == 0
    return out


def rows(folder, without=()):
    """Rows of a results folder as dicts."""
    with open(folder / "results.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def refused(capsys, *arguments):
    """The sentence with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m eval: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Path of a policy file made for the experts of "micro"."""
    path = tmp_path_factory.mktemp("ppo") / "policy.safetensors"
    torch.manual_seed(0)
    num_experts = load_episodes("micro", 8, "test", "cpu").model.num_experts
    save_policy(path, TokenSharedNetwork(Architecture(8, num_experts=num_experts)), "joint", {})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, learned):
    """A results folder with rules, a sweep and a learned policy."""
    out = tmp_path_factory.mktemp("eval") / "deep" / "mine"
    return run(out, "--policies", "wdmoe-bandwidth", "wdmoe:0.5", "wdmoe:0.9", "random", str(learned))


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the results folder to tamper with."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


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


def test_replay_of_an_untouched_folder_matches(folder, capsys):
    assert main(["--replay", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("match: 36 rows")


@pytest.mark.parametrize("column", [*(m for m in METRICS if m not in WALL_CLOCK), "window"])
def test_replay_sees_a_tampered_row(copied, capsys, column):
    table = rows(copied)
    table[9][column] = str(float(table[9][column]) * 1.001 + 0.001) if column in METRICS else "3"
    with open(copied / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    assert main(["--replay", str(copied)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("mismatch: 1 differences")
    assert f"line 11, {column}: {table[9][column]} saved" in out


def test_replay_leaves_wall_clock_times_out(copied):
    text = (copied / "results.csv").read_text().splitlines()
    (copied / "results.csv").write_text("\n".join([text[0], *(line.rsplit(",", 1)[0] + ",99.0" for line in text[1:])]))
    assert main(["--replay", str(copied)]) == 0


def test_replay_sees_missing_rows_and_a_tampered_mean(copied, capsys):
    lines = (copied / "results.csv").read_text().splitlines()
    (copied / "results.csv").write_text("\n".join(lines[:-1]))
    summary = json.loads((copied / "results.json").read_text())
    summary["policies"][2]["latency_ms"]["mean"] *= 0.9
    (copied / "results.json").write_text(json.dumps(summary))
    assert main(["--replay", str(copied)]) == 1
    out = capsys.readouterr().out
    assert "35 rows saved, 36 recomputed" in out
    assert "policies[2], latency_ms, mean" in out


def test_replay_sees_another_policy_file(tmp_path, learned, capsys):
    path = tmp_path / "policy.safetensors"
    for part in (path, path.with_suffix(".json")):
        shutil.copy(learned.with_suffix(part.suffix), part)
    out = run(tmp_path / "out", "--policies", str(path))
    torch.manual_seed(1)
    save_policy(path, TokenSharedNetwork(Architecture(8)), "joint", json.loads(path.with_suffix(".json").read_text()))
    assert main(["--replay", str(out)]) == 1
    assert f"the file of policy {path}" in capsys.readouterr().out


def test_replay_sees_another_model(copied, capsys):
    summary = json.loads((copied / "results.json").read_text())
    summary["sha256"]["the model micro"] = "0" * 64
    (copied / "results.json").write_text(json.dumps(summary))
    assert main(["--replay", str(copied)]) == 1
    assert "the model micro has changed since" in capsys.readouterr().out


def packed(folder):
    """Leave the table packed with gzip alone."""
    table = folder / "results.csv"
    table.with_name("results.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()


@pytest.fixture
def moved(tmp_path, learned):
    """A results folder one of whose policies is no longer where it was, and that policy's name."""
    path = tmp_path / "policy.safetensors"
    for part in (path, path.with_suffix(".json")):
        shutil.copy(learned.with_suffix(part.suffix), part)
    out = run(tmp_path / "out", "--policies", "top1", str(path))
    path.unlink()
    packed(out)
    return out, str(path)


def test_replay_compares_the_policies_whose_files_are_here(moved, capsys):
    folder, _ = moved
    assert main(["--replay", str(folder)]) == 0
    match, count = capsys.readouterr().out.splitlines()[-2:]
    assert match == f"match: 12 rows of {folder} came again, wall-clock times left out"
    assert count == "2 of 3 policies are compared; the files of the others are not here"


def test_replay_sees_a_tampered_row_beside_policies_that_are_not_here(moved, capsys):
    folder, absent = moved
    table = folder / "results.csv.gz"
    lines = gzip.decompress(table.read_bytes()).decode().splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("top1,3,"))
    # The absent policy's rows come first, so that lines of the file and of what is recomputed differ.
    others = [line for line in lines[1:] if not line.startswith(absent)]
    hidden = [line for line in lines[1:] if line.startswith(absent)]
    cells = lines[at].split(",")
    others[others.index(lines[at])] = ",".join([*cells[:5], str(2 * float(cells[5])), *cells[6:]])
    table.write_bytes(gzip.compress("\n".join([lines[0], *hidden, *others]).encode()))
    assert main(["--replay", str(folder)]) == 1
    assert f"results.csv line {at + 1 + len(hidden)}, latency_ms: " in capsys.readouterr().out


@pytest.fixture
def tied(copied, monkeypatch):
    """A results folder without statistics, one row of which has a decision that fell otherwise."""
    saved = read_results(copied)
    monkeypatch.setattr("eval.runner.ROUNDING", 0.2)  # every decision stands at a tie
    fallen = next(Evaluation(saved.config).rounded_otherwise("wdmoe:0.9", 5))
    table = rows(copied)
    row = next(row for row in table if row["policy"] == "wdmoe:0.9" and row["episode"] == "5")
    reference = float(next(row for row in table if row["policy"] == "vanilla" and row["episode"] == "5")["nll"])
    assert fallen["latency_ms"] != pytest.approx(float(row["latency_ms"]))
    row |= {name: repr(value) for name, value in {**fallen, "added_nll": fallen["nll"] - reference}.items()}
    with open(copied / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    summary = json.loads((copied / "results.json").read_text())
    (copied / "results.json").write_text(json.dumps({name: summary[name] for name in ("config", "sha256")}))
    return copied


def test_a_row_that_another_rounding_gives_comes_again(tied, capsys):
    assert main(["--replay", str(tied)]) == 0
    match, count = capsys.readouterr().out.splitlines()[-2:]
    assert match.startswith("match: 36 rows")
    assert count.startswith("1 of them with gate probabilities rounded otherwise")


def test_a_row_that_no_rounding_gives_differs(tied, monkeypatch, capsys):
    monkeypatch.setattr("eval.runner.ROUNDING", 1e-6)
    assert main(["--replay", str(tied)]) == 1
    assert "latency_ms" in capsys.readouterr().out


def test_the_study_of_the_documentation_replays(tmp_path, capsys):
    """One batch of it, under a rule, a policy that ships under its name in training, and one that does not ship."""
    kept = [
        "vanilla",
        "wdmoe:0.9",
        "runs/st/quality-10/seed-1/policy.safetensors",
        "runs/st/quality-10/seed-0/policy.safetensors",
    ]
    summary = json.loads((STUDY / "results.json").read_text())
    assert (summary["config"]["episodes"], len(summary["config"]["policies"])) == (512, 54)
    summary["config"] |= {"episodes": 64, "policies": kept}
    (tmp_path / "results.json").write_text(json.dumps(summary))
    header, *lines = gzip.decompress((STUDY / "results.csv.gz").read_bytes()).decode().splitlines()
    mine = [line for name in kept for line in lines if line.startswith(f"{name},")]
    mine = [line for line in mine if int(line.split(",")[1]) < 64]
    (tmp_path / "results.csv").write_text("\n".join([header, *mine]))
    assert main(["--replay", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("match: 192 rows")
    assert "3 of 4 policies are compared" in out


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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_replay_reads_a_folder_whoever_saved_it(copied, capsys, encoding, delimiter):
    table = rows(copied)
    with open(copied / "results.csv", "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["", *map(str.upper, COLUMNS)])
        writer.writerows([[number, *row.values()] for number, row in enumerate(table)])
    (copied / "results.json").write_bytes((copied / "results.json").read_text().encode(encoding))
    saved = read_results(copied)
    assert saved.rows == table
    assert saved.config.environment.model == "micro"


@pytest.mark.parametrize(
    ("flag", "name", "expected"),
    [
        ("--replay", "a\0b", "expected a results folder, but a\\"),
        ("--report", "a\0b", "expected a path without the character NUL, got 'a\\x00b/report.html'"),
        ("--replay", "a\ud800", "expected arguments in UTF-8, got 'a\\ud800'"),
        ("--report", "a\ud800", "expected arguments in UTF-8, got 'a\\ud800'"),
    ],
)
def test_a_name_that_no_folder_has_is_one_sentence(capsys, flag, name, expected):
    assert expected in refused(capsys, flag, name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "results.csv, line 1: expected names of columns, got none"),
        ("\n", "results.csv, line 1: expected names of columns, got none"),
        ("a,b\n", "expected the columns policy, episode, "),
        (
            f"{','.join(COLUMNS)}\ntop1,3\n",
            f"results.csv, line 2: expected {len(COLUMNS)} columns, one for each name, got 2",
        ),
        (f"{','.join(COLUMNS)}\n{'9' * 200_000}\n", "results.csv, line 2: expected a row of a CSV, got something else"),
    ],
    ids=["empty", "blank", "other columns", "a short row", "a long field"],
)
def test_replay_of_an_odd_table_is_one_sentence(copied, capsys, text, sentence):
    (copied / "results.csv").write_text(text)
    assert sentence in refused(capsys, "--replay", str(copied))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config": None}, "expected an object in the results, config, got None"),
        ({"config": {}}, "expected policies in the results, config, got none"),
        (
            {"config": {"policies": "top1", "environment": {}}},
            "expected a list that is not empty in the results, config,",
        ),
        (
            {"config": {"policies": [3], "environment": {}}},
            "expected a value of type str in the results, config, policies[0]",
        ),
        (
            {"config": {"policies": ["top1"], "environment": None}},
            "expected an object in the results, config, environment",
        ),
        ({"config": {"policies": ["top1"], "environment": {"fadin": 1}}}, "unexpected keyword argument 'fadin'"),
        ({"config": {"policies": ["top1"], "environment": {}, "domains": 3}}, "as an evaluation wrote it"),
        ({"sha256": []}, "expected an object in the results, sha256, got list"),
        (
            {"sha256": {"the model micro": 3}},
            "expected a value of type str in the results, sha256, the model micro, got 3",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_replay_of_odd_results_is_one_sentence(copied, capsys, changes, sentence):
    summary = json.loads((copied / "results.json").read_text())
    (copied / "results.json").write_text(json.dumps(summary | changes))
    found = refused(capsys, "--replay", str(copied))
    assert sentence in found
    assert str(copied / "results.json") in found


@pytest.mark.parametrize("broken", ["results.json", "results.csv"])
def test_replay_of_what_is_no_results_folder_is_refused(copied, capsys, broken):
    (copied / broken).write_text("nothing")
    assert broken in refused(capsys, "--replay", str(copied))
    (copied / broken).unlink()
    assert f"holds no {broken}" in refused(capsys, "--replay", str(copied))


def test_the_configuration_survives_its_dict():
    config = EvaluationConfig(policies=("wdmoe", "wdmoe"), episodes=3)
    assert config.policies == ("vanilla", "wdmoe")
    assert EvaluationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_policies_are_checked_before_the_first_episode(monkeypatch):
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("ran"))
    with pytest.raises(ValueError, match="unknown policy"):
        evaluate(["vanilla", "nobody"], {"model": "micro", "num_tokens": 8})
