"""``python -m eval --replay``: what was measured comes again, and what was changed is seen."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from eval_runs import COLUMNS, METRICS, refused, rows, run

from eval.__main__ import main
from eval.replay import read_results
from eval.results import WALL_CLOCK
from eval.runner import Evaluation
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy

pytest_plugins = ("eval_folders",)

STUDY = Path(__file__).parents[1] / "docs" / "results"


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
