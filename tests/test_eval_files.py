"""What an evaluation writes, where it refuses to, and the inputs whose change a replay names."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_runs import refused
from interrupted import interrupted

from eval import lm_eval
from eval.__main__ import main
from eval.folder import UNPLACED
from eval.plan import MOST_EPISODES
from eval.runner import Evaluation
from eval.tables import indented, markdown, plain
from wdmoe_env.episodes import load_suite_windows
from wdmoe_env.physics.recording_file import read_recording
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy
from wdmoe_env.writing import held_folder

QUICK = ["--model", "micro", "--num-tokens", "8", "--episodes", "2", "--batch-size", "2", "--policies", "top1"]
FILES = {"leaderboard.csv", "pareto.png", "profiles.png", "report.md", "results.csv", "results.json"}
ROOT = Path(__file__).parents[1]


def names(folder):
    """What a folder holds."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def never(monkeypatch):
    """No episode may run."""
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("ran"))


def while_it_runs(monkeypatch, act):
    """Do something in the middle of the evaluation."""
    real = Evaluation.run

    def run(self, *arguments):
        act()
        return real(self, *arguments)

    monkeypatch.setattr(Evaluation, "run", run)


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("nothing", "is a link to"),
        ("nothing/run", "is a link to"),
        ("a\0b", "expected a path without the character NUL"),
        ("a\udcff", "expected arguments in UTF-8"),
        ("a" * 300, "File name too long"),
        ("file", "expected a folder, got the file"),
        ("file/run", "Not a directory"),
        ("pipe", "expected a folder, got a named pipe"),
        ("held", "is writing into held"),
        ("taken", "taken/results.csv is a folder"),
        ("foreign", "holds notes.txt"),
    ],
)
@pytest.mark.usefixtures("never")
def test_a_place_that_takes_no_results_is_refused_before_the_first_episode(here, capsys, out, sentence):
    (here / "nothing").symlink_to(here / "gone")
    (here / "file").write_text("mine")
    os.mkfifo(here / "pipe")
    (here / "taken" / "results.csv").mkdir(parents=True)
    (here / "foreign").mkdir()
    (here / "foreign" / "notes.txt").write_text("mine")
    with held_folder(here / "held"):
        before = names(here)
        assert sentence in refused(capsys, *QUICK, "--overwrite", "--out", out)
        assert names(here) == before
    assert names(here / "foreign") == {"notes.txt"}


@pytest.mark.usefixtures("never")
def test_a_full_disk_is_found_before_the_first_episode(here, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot write" in refused(capsys, *QUICK, "--out", "deep/run")
    assert names(here) == set()


def test_a_disk_that_fills_up_names_the_file_and_keeps_what_there_was(here, monkeypatch, capsys):
    assert main([*QUICK, "--out", "run"]) == 0
    before = {name: (here / "run" / name).read_bytes() for name in FILES}

    def fill():
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)

    while_it_runs(monkeypatch, fill)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*QUICK, "--out", "run", "--overwrite", "--seed", "8"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "results.csv: No space left on device; what was there is unchanged" in captured.err
    assert "top1" in captured.out  # the table is what is left of the run
    assert {name: (here / "run" / name).read_bytes() for name in names(here / "run")} == before


@pytest.mark.parametrize("out", [".", "link", "new/er"])
def test_results_go_into_the_folder_that_is_named(here, out):
    (here.parent / "real").mkdir()
    if out == "link":
        (here / "link").symlink_to(here.parent / "real")
    assert main([*QUICK, "--out", out]) == 0
    assert names(here.parent / "real" if out == "link" else here / out) == FILES
    assert (here / "link").is_symlink() == (out == "link")


def test_what_appears_during_the_run_stays(here, monkeypatch):
    def appear():
        for path in (here / "run" / "notes.txt", here / "run" / "deep" / "notes.txt"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")

    while_it_runs(monkeypatch, appear)
    assert main([*QUICK, "--out", "run"]) == 0
    assert names(here / "run") == {*FILES, "notes.txt", "deep"}
    assert (here / "run" / "deep" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_results_whose_place_was_taken_during_the_run_lie_beside_it(here, monkeypatch, capsys, kind):
    def appear():
        place = here / "run" / "results.json"
        if kind == "file":
            place.write_text("mine")
        elif kind == "link":
            place.symlink_to("elsewhere")
        else:
            place.mkdir()

    while_it_runs(monkeypatch, appear)
    with pytest.raises(SystemExit):
        main([*QUICK, "--out", "run"])
    assert "results.json appeared in run while the evaluation ran" in capsys.readouterr().err
    assert names(here / "run") == {"results.json", UNPLACED}
    assert names(here / "run" / UNPLACED) == FILES
    assert kind != "file" or (here / "run" / "results.json").read_text() == "mine"


def test_results_of_another_kind_are_replaced_whole(here):
    assert main([*QUICK, "--out", "run"]) == 0
    suite = ["--suite", "--suite-items", "2", "--model", "micro", "--num-tokens", "64", "--policies", "top1"]
    assert main([*suite, "--out", "run", "--overwrite"]) == 0
    assert names(here / "run") == {"leaderboard.csv", "pareto.png", "report.md", "suite.csv", "suite.json"}


@pytest.mark.parametrize("kind", ["device", "link", "pipe", "folder", "guessed"])
def test_a_page_takes_the_place_of_nothing_but_a_page(here, capsys, kind):
    assert main([*QUICK, "--out", "run"]) == 0
    place, victim = here / "run" / "report.html", here / "victim"
    victim.write_text("mine")
    if kind == "device":
        try:
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no right to make a device")
    elif kind == "link":
        place.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.with_name("report.html.part").symlink_to(victim)
        assert main(["--report", "run"]) == 0
    if kind != "guessed":
        before = place.lstat()
        assert "expected a place for a file" in refused(capsys, "--report", "run")
        assert os.path.samestat(place.lstat(), before)
    assert victim.read_text() == "mine"


def test_a_transfer_holds_its_folder_and_checks_its_tables_first(here, capsys, never):
    transfer = ["--transfer", "rician", *QUICK, "wdmoe:0.5", "--out", "run"]
    with held_folder(here / "run"):
        assert "is writing into run" in refused(capsys, *transfer)
    with held_folder(here / "run" / "rician"):
        assert "is writing into run/rician" in refused(capsys, *transfer)
    (here / "run" / "transfer.csv").mkdir(parents=True)
    assert "transfer.csv is a folder" in refused(capsys, *transfer)
    assert names(here / "run") == {"transfer.csv"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--episodes", "999999999"], "episodes must be at most 100,000, got 999999999: their intervals would take"),
        (["--episodes", str(MOST_EPISODES + 1)], "5 GB of memory"),
        (["--batch-size", str(2**70)], f"batch_size must be at most 100,000, got {2**70}"),
        (["--batch-size", str(MOST_EPISODES + 1)], "batch_size must be at most"),
        # The length of the windows of another test, which are kept: to cut the suite takes long.
        (["--suite", "--num-tokens", "64", "--suite-items", str(10**12)], "suite_items must be at most"),
    ],
)
@pytest.mark.usefixtures("never")
def test_absurd_counts_are_refused(here, capsys, flags, sentence):
    small = ["--model", "micro", "--policies", "top1"]
    assert sentence in refused(capsys, *small, *flags, "--out", "run")
    assert names(here) == set()


def test_replay_refuses_an_absurd_count(here, capsys):
    assert main([*QUICK, "--out", "run"]) == 0
    path = here / "run" / "results.json"
    summary = json.loads(path.read_text())
    for name, value in (("episodes", 10**12), ("batch_size", 2**70), ("files", ["a"]), ("files", {"top1": 3})):
        changed = {**summary, "config": {**summary["config"], name: value}}
        path.write_text(json.dumps(changed))
        assert name in refused(capsys, "--replay", "run")


def learned(path, seed=0):
    """A policy file for the experts of "micro"."""
    torch.manual_seed(seed)
    save_policy(path, TokenSharedNetwork(Architecture(8)), "joint", {})


def trace(path, seed=0):
    """A recorded channel of eight devices, the same size for every seed."""
    generator = np.random.default_rng(seed)
    np.savez(path, gain=10.0 ** generator.uniform(-9, -8, size=(2, 3, 8)))


def suite(path, answer=0):
    """A suite of two items, the same size for every answer."""
    asked = {"format": "cloze", "domain": "a<b>", "choices": [" a", " b", " c", " d"], "answer": answer}
    items = [{**asked, "context": f"{number} The"} for number in range(2)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


@pytest.fixture
def inputs(here):
    """A results folder of a learned policy on a recorded channel, all named by relative paths."""
    (here / "mine").mkdir()
    learned(here / "mine" / "policy.safetensors")
    trace(here / "gains.npz")
    (here / "radio.json").write_text(json.dumps({"channel": "trace:gains.npz"}))
    assert main([*QUICK, "mine/policy.safetensors", "--config", "radio.json", "--out", "run"]) == 0
    return here


def test_inputs_are_named_by_absolute_paths_and_policies_as_they_were_told(inputs):
    summary = json.loads((inputs / "run" / "results.json").read_text())
    assert summary["config"]["files"] == {"mine/policy.safetensors": str(inputs / "mine" / "policy.safetensors")}
    assert summary["config"]["environment"]["channel"]["source"] == f"trace:{inputs / 'gains.npz'}"
    assert [one["policy"] for one in summary["policies"]] == ["vanilla", "top1", "mine/policy.safetensors"]
    assert summary["settings"][-1]["policies"] == ["mine/policy.safetensors"]
    assert set(summary["sha256"]) == {
        "the model micro",
        "the file of policy mine/policy.safetensors",
        "the description of policy mine/policy.safetensors",
        f"the trace {inputs / 'gains.npz'}",
    }


def test_replay_matches_from_another_folder(inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs.parent)
    assert main(["--replay", "here/run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("match: 6 rows")


@pytest.mark.parametrize("changed", ["trace", "weights", "description"])
def test_replay_names_the_input_that_changed(inputs, monkeypatch, capsys, changed):
    policy = inputs / "mine" / "policy.safetensors"
    if changed == "trace":
        about = (inputs / "gains.npz").stat()
        trace(inputs / "gains.npz", seed=1)
        os.utime(inputs / "gains.npz", ns=(about.st_atime_ns, about.st_mtime_ns))
        assert (inputs / "gains.npz").stat().st_mtime_ns == about.st_mtime_ns
    elif changed == "weights":
        learned(policy, seed=1)
    else:
        policy.with_suffix(".json").write_text(policy.with_suffix(".json").read_text() + "\n")
    monkeypatch.chdir(inputs.parent)
    capsys.readouterr()
    assert main(["--replay", "here/run"]) == 1
    named = {
        "trace": f"the trace {inputs / 'gains.npz'}",
        "weights": "the file of",
        "description": "the description of",
    }
    out = capsys.readouterr().out
    assert out.startswith("mismatch: 1 differences")
    assert f"  {named[changed]}" in out


def test_a_trace_that_changes_within_its_size_and_time_is_read_again(here):
    trace(here / "gains.npz")
    about, first = (here / "gains.npz").stat(), read_recording(here / "gains.npz")
    trace(here / "gains.npz", seed=1)
    os.utime(here / "gains.npz", ns=(about.st_atime_ns, about.st_mtime_ns))
    after = (here / "gains.npz").stat()
    assert (after.st_size, after.st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert not np.array_equal(read_recording(here / "gains.npz").gain, first.gain)


def test_replay_names_a_suite_that_changed(here, monkeypatch, capsys):
    suite(here / "mine.jsonl")
    flags = ["--suite", "mine.jsonl", "--model", "micro", "--num-tokens", "16", "--policies", "top1"]
    assert main([*flags, "--out", "run"]) == 0
    assert json.loads((here / "run" / "suite.json").read_text())["config"]["environment"]["split"] == str(
        here / "mine.jsonl"
    )
    report = (here / "run" / "report.md").read_text()
    assert "| a&lt;b&gt; |" in report
    monkeypatch.chdir(here.parent)
    assert main(["--replay", "here/run"]) == 0
    suite(here / "mine.jsonl", answer=1)
    load_suite_windows.cache_clear()
    assert main(["--replay", "here/run"]) == 1
    assert "the suite has changed since" in capsys.readouterr().out


def test_results_of_before_absolute_paths_are_replayed_where_they_were_made(inputs, capsys):
    path = inputs / "run" / "results.json"
    summary = json.loads(path.read_text())
    del summary["config"]["files"]
    summary["config"]["environment"]["channel"]["source"] = "trace:gains.npz"
    kept = ("the model micro", "the file of policy mine/policy.safetensors")
    summary["sha256"] = {name: summary["sha256"][name] for name in kept}
    path.write_text(json.dumps(summary))
    capsys.readouterr()
    assert main(["--replay", "run"]) == 0
    learned(inputs / "mine" / "policy.safetensors", seed=1)
    assert main(["--replay", "run"]) == 1
    assert "the file of policy mine/policy.safetensors has changed since" in capsys.readouterr().out


def test_the_model_of_a_folder_is_named_by_its_absolute_path_with_its_tokenizer(here, monkeypatch, capsys):
    shutil.copytree(ROOT / "wdmoe_env" / "assets" / "tiny", here / "model")
    flags = [*QUICK[2:], "--model", "model"]
    assert main([*flags, "--out", "run"]) == 0
    hashes = json.loads((here / "run" / "results.json").read_text())["sha256"]
    parts = {f"{part} of the model {here / 'model'}" for part in ("config.json", "tokenizer.json")}
    assert set(hashes) == {f"the model {here / 'model'}", *parts}
    (here / "model" / "config.json").write_text((here / "model" / "config.json").read_text() + "\n")
    monkeypatch.chdir(here.parent)
    assert main(["--replay", "here/run"]) == 1
    assert f"config.json of the model {here / 'model'} has changed since" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('<img src=x onerror="alert(1)">', '&lt;img src=x onerror="alert(1)"&gt;'),
        ("![x](https://here/x.png)", "![x]&#40;https://here/x.png)"),
        ("a|b", "a&#124;b"),
        ("a\n\n<b>\r\n# c", "a  &lt;b&gt; # c"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("0.5 [0.4, 0.6]", "0.5 [0.4, 0.6]"),
    ],
)
def test_a_name_in_a_report_is_text(name, shown):
    assert plain(name) == shown
    assert f"| {shown} | 1 |" in markdown([["policy", "x"], [name, "1"]])
    assert all(line.startswith("    ") for line in indented(name).splitlines())


def test_a_report_shows_the_name_of_a_policy_as_text(here):
    folder = here / "<script>alert(1)<"
    folder.mkdir()
    learned(folder / "policy.safetensors")
    assert main([*QUICK, "<script>alert(1)</policy.safetensors", "--out", "run"]) == 0
    report = (here / "run" / "report.md").read_text()
    outside = "\n".join(line for line in report.splitlines() if not line.startswith("    "))
    outside = outside.partition("```json")[0] + outside.rpartition("```")[2]
    assert "<" not in outside
    assert "| &lt;script&gt;alert(1)&lt; |" in outside
    with open(here / "run" / "results.csv", newline="") as file:
        assert {row["policy"] for row in csv.DictReader(file)} == {
            "vanilla",
            "top1",
            "<script>alert(1)</policy.safetensors",
        }


def test_the_tasks_of_the_suite_go_into_a_folder(here, capsys):
    (here / "file").write_text("mine")
    assert lm_eval.main(["suite", "--out", "file", "--suite-items", "2"]) == 2
    assert "expected a folder, got the file" in capsys.readouterr().err
    assert lm_eval.main(["suite", "--out", "tasks", "--suite-items", "2"]) == 0
    assert {path.suffix for path in (here / "tasks").iterdir()} == {".jsonl", ".yaml"}


def test_ctrl_c_is_one_line_and_nothing_half_done(here):
    def is_held():
        assert (here / "deep" / "run").is_dir()

    arguments = ["eval", "--model", "micro", "--num-tokens", "8", "--policies", "top1", "--batch-size", "1"]
    arguments += ["--episodes", str(MOST_EPISODES), "--out", str(here / "deep" / "run")]
    code, out, err = interrupted(arguments, "vanilla", is_held)  # the bar: episodes are running
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1] == "python -m eval: interrupted; what was not complete is not written"
    assert "Traceback" not in err
    assert names(here) == set()
