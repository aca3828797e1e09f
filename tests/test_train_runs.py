"""Runs of `python -m train` as others find them: folders, checkpoints, records, and what Ctrl-C leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from interrupted import interrupted
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stable_baselines3.common.logger import KVWriter
from train_runs import assert_weights, flags, gradient_flags, stock, use_small_settings, weights

from train import agent, sb3
from train.__main__ import left, main
from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.folder import Curves, open_run
from train.progress import goes_on
from wdmoe_env.command import end_with
from wdmoe_env.writing import held_folder, is_temporary

ROOT = Path(__file__).parents[1]


KINDS = {"ppo": 48, "sb3-ppo": 32, "straight-through": 48, "sac": 160}
"""Algorithms, and the environment steps of a short run in which each has learned."""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_small_settings(monkeypatch)


def run_of(kind, out, *more):
    env_id = "WDMoE-v0" if kind == "sac" else "WDMoE-Selection-v0"
    return main(flags(out, "--algorithm", kind, "--env-id", env_id, "--timesteps", str(KINDS[kind]), *more))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def finished(kind, tmp_path, capsys):
    """The folder of a run that has ended."""
    assert run_of(kind, tmp_path / "run") == 0
    capsys.readouterr()
    return tmp_path / "run"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(path, change, **header):
    """Write a checkpoint anew with other tensors or another header."""
    with safe_open(path, "pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**told, "tensors": str(len(tensors)), **header})


def nothing(tensors):
    pass


def test_a_finished_run_is_not_touched_and_says_so(kind, finished, capsys):
    before = contents(finished)
    for steps in (KINDS[kind], 1):
        assert run_of(kind, finished, "--resume", "--timesteps", str(steps)) == 0
        assert f"{finished} is finished: it has taken {KINDS[kind]} of the" in capsys.readouterr().out
        assert contents(finished) == before
    (finished / "policy.safetensors").unlink()
    assert run_of(kind, finished, "--resume") == 0
    assert (finished / "policy.safetensors").read_bytes() == before[Path("policy.safetensors")]
    assert (finished / "arguments.json").read_bytes() == before[Path("arguments.json")]


def test_a_run_killed_before_its_policy_was_written_writes_it(tmp_path):
    main(gradient_flags(tmp_path / "whole", "--timesteps", "96"))
    run = tmp_path / "run"
    main(gradient_flags(run))
    old = contents(run)
    main(gradient_flags(run, "--timesteps", "96", "--resume"))
    for name in ("policy.safetensors", "policy.json"):
        (run / name).write_bytes(next(value for path, value in old.items() if path.name == name))
    assert main(gradient_flags(run, "--timesteps", "96", "--resume")) == 0
    assert_weights(weights(run), weights(tmp_path / "whole"), same=False)  # another schedule
    assert json.loads((run / "policy.json").read_text())["timesteps"] == 96
    assert main(gradient_flags(run, "--timesteps", "96", "--resume")) == 0


def spoil(value):
    def change(tensors):
        name = next(name for name in sorted(tensors) if name.endswith((".weight", ".mu.bias")))
        tensors[name].view(-1)[-1] = value

    return change


def of_moments(change):
    def apply(tensors):
        name = next(name for name in sorted(tensors) if name.endswith(".exp_avg"))
        change(tensors, name)

    return apply


@of_moments
def without_moments(tensors, name):
    first = name.split(".")[0]
    for key in [key for key in tensors if key.startswith(f"{first}.")]:
        del tensors[key]


@of_moments
def whole_numbers(tensors, name):
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (spoil(float("nan")), {}, "holds NaN or infinity"),
        (whole_numbers, {}, "exp_avg is of type torch.int32 in place of torch.float32"),
        (without_moments, {}, "it has no moments of"),
        (nothing, {"timesteps": "1000000000"}, "expected a checkpoint of at most"),
    ],
    ids=["nan", "integer moments", "no moments", "timesteps"],
)
def test_a_checkpoint_that_no_training_leaves_is_refused_and_nothing_is_lost(
    finished, kind, capsys, change, header, message
):
    rewrite(finished / "checkpoint.safetensors", change, **header)
    before = contents(finished)
    for steps in (KINDS[kind], 4 * KINDS[kind]):
        assert run_of(kind, finished, "--resume", "--timesteps", str(steps)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert contents(finished) == before


@pytest.mark.parametrize("after", [0, 1])
def test_weights_that_are_not_finite_end_the_training_and_keep_what_was_saved(
    finished, kind, capsys, monkeypatch, after
):
    """A rate at which the first update overflows, or weights that are lost one update later."""
    before = contents(finished)
    settings = agent.hyperparameters
    if after:
        lose_weights_after(monkeypatch, kind, after)
    else:
        monkeypatch.setattr(agent, "hyperparameters", lambda *names: settings(*names) | {"learning_rate": 1e38})
    more = ("--resume", "--timesteps", str(4 * KINDS[kind]), "--checkpoint-every", "1000000")
    assert run_of(kind, finished, *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match("python -m train: the (training stops since .* is|policy's [a-z -]* are) NaN or infinite", error)
    kept = contents(finished)
    assert all(kept[name] == content for name, content in before.items() if name.name != "arguments.json")


def lose_weights_after(monkeypatch, kind, updates):
    """Make an algorithm's update leave NaN in one weight of its actor."""
    owner, name = {
        "ppo": ("train.ppo.Trainer", "update"),
        "sb3-ppo": ("train.sb3_ppo.PPO", "train"),
        "sac": ("train.sac.SAC", "train"),
        "straight-through": ("train.straight_through.Trainer", "update"),
    }[kind]
    module, _, cls = owner.rpartition(".")
    target = getattr(__import__(module, fromlist=[cls]), cls)
    real, count = getattr(target, name), []

    def update(self, *args, **keywords):
        result = real(self, *args, **keywords)
        count.append(1)
        if len(count) > updates:
            network = getattr(self, "network", None) or self.policy
            with torch.no_grad():
                list(network.parameters())[-1].view(-1)[0] = float("nan")
        return result

    monkeypatch.setattr(target, name, update)


@pytest.fixture
def small_checkpoint(tmp_path):
    """A layer that Adam has moved, one that it has not, and their checkpoint."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "idle": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.Adam(network.parameters())
    network["used"](torch.randn(4, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, network, {"adam": optimizer}, 640)
    return path, network, optimizer


def test_a_checkpoint_keeps_parameters_that_were_never_moved(small_checkpoint):
    path, network, optimizer = small_checkpoint
    assert load_checkpoint(path, network, {"adam": optimizer}) == 640
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]
    rewrite(path, nothing)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, {"timesteps": "640"})  # as earlier versions wrote it
    assert load_checkpoint(path, network, {"adam": optimizer}) == 640


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


def cast(dtype, name="policy.used.weight"):
    return lambda tensors: tensors.__setitem__(name, tensors[name].to(dtype))


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (put("policy.used.bias", torch.tensor([1.0, float("inf")])), {}, "policy.used.bias holds NaN or infinity"),
        (put("adam.0.exp_avg", torch.full((2, 3), float("nan"))), {}, "adam.0.exp_avg holds NaN or infinity"),
        (put("adam.0.exp_avg_sq", torch.full((2, 3), -1.0)), {}, "adam.0.exp_avg_sq is negative"),
        (put("adam.0.exp_avg", torch.zeros(2)), {}, "adam.0.exp_avg has shape [2] in place of [2, 3]"),
        (put("adam.0.step", torch.tensor(-1.0)), {}, "adam.0.step is -1 in place of a number of updates"),
        (put("adam.0.step", torch.tensor(0.5)), {}, "adam.0.step is 0.5 in place of a number of updates"),
        (put("adam.0.step", torch.tensor(1)), {}, "adam.0.step is of type torch.int64 in place of torch.float32"),
        (put("adam.9.step", torch.tensor(1.0)), {}, "adam.9.step is in the file, but not in what is trained"),
        (put("other", torch.zeros(1)), {}, "other is in the file, but not in what is trained"),
        (lambda tensors: tensors.pop("adam.1.exp_avg"), {}, "adam.1.exp_avg has shape None in place of [2]"),
        (lambda tensors: tensors.pop("policy.idle.bias"), {}, "policy.idle.bias has shape None in place of [2]"),
        *((cast(kind), {}, f"policy.used.weight is of type {kind}") for kind in (torch.int8, torch.bool, torch.half)),
        (cast(torch.complex64), {}, "policy.used.weight is of type torch.complex64 in place of torch.float32"),
        (nothing, {"tensors": "99"}, "it holds 10 tensors in place of the 99 it was written with"),
        *(
            (nothing, {"timesteps": text}, "its timesteps are")
            for text in ("-1", "1e3", "", "1_0", "9" * 5000, "\u0663")
        ),
    ],
)
def test_what_no_checkpoint_holds_is_named_and_changes_nothing(small_checkpoint, change, header, message):
    path, network, optimizer = small_checkpoint
    rewrite(path, change, **header)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="expected a checkpoint of this policy in") as caught:
        load_checkpoint(path, network, {"adam": optimizer})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_weights(state, network.state_dict(), same=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["weights", "moments"])
def test_no_checkpoint_of_values_that_are_not_finite_is_written(small_checkpoint, part, value):
    path, network, optimizer = small_checkpoint
    before = path.read_bytes()
    spoilt = network["used"].weight if part == "weights" else optimizer.state[network["used"].weight]["exp_avg"]
    with torch.no_grad():
        spoilt[0, 0] = value
    with pytest.raises(ValueError, match="is NaN or infinite after 1280 environment steps: nothing was saved"):
        save_checkpoint(path, network, {"adam": optimizer}, 1280)
    assert path.read_bytes() == before


@pytest.mark.parametrize("record", ["", "[]", "{", "[" * 100_000, None])
def test_a_run_without_its_record_is_not_resumed(tmp_path, record):
    arguments = Arguments(out=str(tmp_path), resume=True, timesteps=64)
    (tmp_path / "checkpoint.safetensors").touch()
    if record is not None:
        (tmp_path / "arguments.json").write_text(record)
    with pytest.raises(ValueError, match="expected the arguments of the run to resume in"):
        open_run(arguments)
    with pytest.raises(ValueError, match="expected the arguments of the run to resume in"):
        goes_on(arguments, {}, timesteps=64, update_steps=8)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "policy.safetensors", "arguments.json", "progress.csv"])
def test_a_run_writes_over_nothing_but_files(tmp_path, capsys, name):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "victim").write_text("mine")
    (run / name).symlink_to(tmp_path / "victim")
    assert main(flags(run, "--timesteps", "32")) == 2
    error = capsys.readouterr().err
    assert "expected a place for a file" in error or "holds a run already" in error
    assert (tmp_path / "victim").read_text() == "mine"
    assert (run / name).is_symlink()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("nothing", "is a link to"),
        ("nothing/run", "is a link to"),
        ("a\0b", "expected a path without the character NUL"),
        ("a\udcff", "expected a path in UTF-8"),
        ("file", "expected a folder, got the file"),
        ("held", "is writing into"),
    ],
)
def test_a_place_that_takes_no_run_is_refused_before_it(tmp_path, capsys, monkeypatch, out, sentence):
    (tmp_path / "nothing").symlink_to("gone")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setitem(agent.TRAINERS, "ppo", lambda *_: pytest.fail("trained"))
    with held_folder(tmp_path / "held"):
        assert main(flags(tmp_path / out)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nothing"]


def test_a_run_goes_into_the_folder_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert main(flags(tmp_path / "link", "--timesteps", "32")) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "policy.safetensors").is_file()
    assert not any(is_temporary(path.name) for path in (tmp_path / "real").iterdir())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--timesteps", str(10**13)), "timesteps must be at most 1,000,000,000,000"),
        (("--seed", str(2**70)), "seed must be below 2**64"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path, capsys, more, sentence):
    assert main(flags(tmp_path / "run", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_arguments_that_cannot_be_read_are_named(tmp_path, capsys, text):
    run = tmp_path / "run"
    main(flags(run, "--timesteps", "32"))
    (run / "arguments.json").write_text(text)
    capsys.readouterr()
    assert main(flags(run, "--timesteps", "64", "--resume")) == 2
    assert f"expected the arguments of the run to resume in {run / 'arguments.json'}" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_named_and_leaves_the_checkpoint(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    main(stock(run, "--timesteps", "32"))
    before = {name: (run / name).read_bytes() for name in ("checkpoint.safetensors", "policy.safetensors")}

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a curve, which names no file

    monkeypatch.setattr(sb3.Checkpoints, "_on_step", full)
    capsys.readouterr()
    assert main(stock(run, "--timesteps", "64", "--resume")) == 2
    error = capsys.readouterr().err
    assert f"cannot write in {run}: No space left on device" in error
    assert {name: (run / name).read_bytes() for name in before} == before


def test_ctrl_c_lets_a_point_of_the_curves_end(tmp_path):
    written = []

    class Interrupted(KVWriter):
        def write(self, key_values, key_excluded, step=0):
            os.kill(os.getpid(), signal.SIGINT)
            written.append(step)  # in TensorBoard's writer, this is where a count of events is kept

        def close(self):
            written.append("closed")

    log = Curves(str(tmp_path), [Interrupted(), Interrupted()])
    log.record("train/loss", 1.0)
    with pytest.raises(KeyboardInterrupt):
        log.dump(7)
    assert written == [7, 7]
    log.close()
    assert written == [7, 7, "closed", "closed"]


def test_ctrl_c_before_a_checkpoint_says_that_there_is_none(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(agent, "train", interrupted)
    monkeypatch.setattr("sys.argv", ["train", *flags(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        end_with("python -m train", main, left)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "python -m train: interrupted; there was no checkpoint yet\n"


def test_ctrl_c_is_one_line_and_leaves_the_last_checkpoint(tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "--algorithm", "straight-through", "--timesteps", str(10**9), "--model", "micro"]
    arguments += ["--num-tokens", "8", "--out", str(run), "--checkpoint-every", "16"]
    code, out, err = interrupted(arguments, "_loss=")  # the bar's first figures: some updates are over
    assert code == 130
    assert out == ""
    assert "Traceback" not in err
    told = f"--resume goes on from the last checkpoint in {run}"
    assert err.splitlines()[-1] == f"python -m train: interrupted; {told}"
    assert not any(is_temporary(path.name) for path in run.iterdir())
    assert load_file(run / "checkpoint.safetensors")
