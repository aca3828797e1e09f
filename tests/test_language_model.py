"""The text recipe, the training recipe, and the model that ships."""

import gzip
import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import wdmoe_env
from train.language_model.__main__ import main
from train.language_model.export import export
from train.language_model.held_out import RoutingRecord, cut, token_losses
from train.language_model.loop import CHECKPOINT, Trainer, read_progress
from train.language_model.model import build, load_balance, loss
from train.language_model.ngram import KneserNey
from train.language_model.recipe import PRESETS
from train.text.__main__ import write
from train.text.documents import Document
from train.text.shards import train_tokenizer, write_shard, write_tokenizer
from train.text.split import EPISODE_TEST, EPISODE_TRAIN, LANGUAGE_MODEL, VALIDATION
from wdmoe_env.moe.zoo import load_model

ROOT = Path(__file__).parents[1]
ASSETS = Path(wdmoe_env.__file__).parent / "assets"
CPU = torch.device("cpu")
SMOKE = replace(PRESETS["smoke"], tokens=128 * 8, warmup_steps=2)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """A cycle with noise: learnable in a few steps."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(4000) < 0.9, np.arange(4000) % 50, rng.integers(0, 50, 4000)).astype(np.uint16)


def test_training_loss_and_gradients_are_the_untouched_models(tokens: np.ndarray) -> None:
    windows = torch.from_numpy(tokens[: 4 * 33].astype(np.int64)).view(4, 33)
    ours = build(SMOKE, 50, CPU)
    theirs = build(SMOKE, 50, CPU)
    theirs.set_experts_implementation("eager")
    theirs.set_attn_implementation("eager")
    cross_entropy, _ = loss(ours, windows[:, :-1], windows[:, 1:], rows=48)
    cross_entropy.backward()
    logits = theirs(input_ids=windows[:, :-1]).logits
    reference = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    reference.backward()
    torch.testing.assert_close(cross_entropy, reference)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_load_balance_is_one_when_even_and_experts_per_token_times_less_when_collapsed() -> None:
    even = torch.eye(8).repeat(4, 1) * 50
    assert load_balance(even, 1).item() == pytest.approx(1)
    collapsed = torch.tensor([[50.0] + [0.0] * 7]).repeat(32, 1)
    assert load_balance(collapsed, 1).item() == pytest.approx(8)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_killed_and_resumed_run_equals_the_uninterrupted_one(tokens: np.ndarray, tmp_path: Path) -> None:
    whole = Trainer(SMOKE, build(SMOKE, 50, CPU), tokens, tmp_path / "whole")
    whole.run(every=1)
    killed = Trainer(SMOKE, build(SMOKE, 50, CPU), tokens, tmp_path / "killed")
    killed.run(until=3, every=1)
    killed.save()
    killed.run(until=5, every=1)  # lost: after the checkpoint
    resumed = Trainer(SMOKE, build(replace(SMOKE, seed=9), 50, CPU), tokens, tmp_path / "killed")
    resumed.resume()
    resumed.run(every=1)
    assert len(whole.progress.curve) == SMOKE.steps
    assert resumed.progress.curve == whole.progress.curve
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    with safe_open(tmp_path / "killed" / CHECKPOINT, "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 3


def test_run_killed_by_the_system_resumes_to_the_same_weights(
    tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves a process no moment to tidy up; whatever it was doing, a whole checkpoint lies there."""
    words = " ".join("whale" if token % 2 else "ship" for token in tokens)
    documents = [Document("fiction", str(k), words[k:], str(k)) for k in range(4)]
    tokenizer = train_tokenizer(documents, 270, 10_000)
    write_tokenizer(tokenizer, tmp_path / "data" / "tokenizer", 256)
    write_shard(tmp_path / "data" / f"{LANGUAGE_MODEL}.npy", tokenizer, documents)
    command = ["--data", str(tmp_path / "data"), "--preset", "smoke", "--tokens", str(128 * 80), "--save-every", "10"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = [sys.executable, "-m", "train.language_model", *command, "--out", str(killed)]
    with subprocess.Popen(run, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not (killed / CHECKPOINT).exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 0 < read_progress(killed / CHECKPOINT)[1].step < 80
    for folder, resume in ((killed, ["--resume"]), (whole, [])):
        monkeypatch.setattr("sys.argv", ["train", *command, "--out", str(folder), *resume])
        main()
    with safe_open(whole / CHECKPOINT, "pt") as expected, safe_open(killed / CHECKPOINT, "pt") as found:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found.get_tensor(name), expected.get_tensor(name)) for name in expected.keys())  # noqa: SIM118


def test_training_learns_and_another_seed_differs(tokens: np.ndarray, tmp_path: Path) -> None:
    recipe = replace(SMOKE, tokens=128 * 40, learning_rate=1e-2)
    curves = []
    for seed in (0, 1):
        trainer = Trainer(replace(recipe, seed=seed), build(replace(recipe, seed=seed), 50, CPU), tokens, tmp_path)
        trainer.run(every=10)
        curves.append([mean for _, mean, _ in trainer.progress.curve])
    assert curves[0] != curves[1]
    assert max(curve[-1] for curve in curves) < 0.6 * math.log(50)


def test_resume_refuses_another_recipe(tokens: np.ndarray, tmp_path: Path) -> None:
    trainer = Trainer(SMOKE, build(SMOKE, 50, CPU), tokens, tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        trainer.resume()
    trainer.save()
    other = replace(SMOKE, balance=0.5)
    with pytest.raises(ValueError, match="was written with Recipe"):
        Trainer(other, build(other, 50, CPU), tokens, tmp_path).resume()
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        trainer.resume()
    with pytest.raises(ValueError, match="too few for one batch"):
        Trainer(SMOKE, build(SMOKE, 50, CPU), tokens[:40], tmp_path)


def test_export_keeps_the_function(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([Document("fiction", "a", "the old whale swims " * 50, "a")], 280, 10_000)
    write_tokenizer(tokenizer, tmp_path, 64)
    model = build(SMOKE, 280, CPU)
    export(model, tmp_path, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "model")("the old whale")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=2e-3, rtol=0)
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_whole_recipe_runs_and_writes_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the sizes are small: the commands are those of the user."""
    rng = np.random.default_rng(0)
    documents = [
        Document(domain, str(k), " ".join(rng.choice(list("abcdefgh"), 600)), str(k))
        for domain in ("fiction", "code")
        for k in range(40)
    ]
    parts = {part: documents[k::4] for k, part in enumerate((LANGUAGE_MODEL, VALIDATION, EPISODE_TRAIN, EPISODE_TEST))}
    write(tmp_path / "data", train_tokenizer(documents, 270, 10_000), parts, context=256)
    command = ["train", "--data", str(tmp_path / "data"), "--preset", "smoke", "--save-every", "5"]
    command += ["--tokens", "640", "--batch", "2"]
    run = str(tmp_path / "run")
    monkeypatch.setattr("sys.argv", [*command, "--out", run])
    main()
    items = [
        {"format": "cloze", "domain": "code", "context": "a b", "choices": [" c", " d e", " f", " g"], "answer": k % 4}
        for k in range(20)
    ]
    (tmp_path / "suite.jsonl").write_text("\n".join(map(json.dumps, items)))
    cell = {"format": "cloze", "domain": "code", "items": 7, "chance": 0.25, "trigram": 0.3, "model": 0.4}
    (tmp_path / "run" / "suite.json").write_text(json.dumps([cell]))
    monkeypatch.setattr("sys.argv", [*command[:3], "--evaluate", run, "--suite", str(tmp_path / "suite.jsonl")])
    main()
    card = (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "10 of 10 steps of 2 x 32 tokens" in card
    assert "2 blocks of 8 experts" in card
    for losses in ("bits_per_byte", "nats_per_token"):
        assert f"{result['domains']['all'][losses]['model']:.3f}" in card
    assert set(result["load"]) == {"fiction", "code", "all"}
    assert [effect["against"] for effect in result["sensitivity"]] == ["own routing"] * 2
    assert "| cloze | code | 7 | 25.0 | 30.0 | 40.0 |" in card
    for picture in ("loss.png", "routing.png"):
        content = (tmp_path / "run" / "model" / picture).read_bytes()
        assert f"]({picture})" in card
        assert content.startswith(b"\x89PNG")
        assert len(content) < 120_000
    monkeypatch.setattr("sys.argv", [*command, "--out", run])
    with pytest.raises(SystemExit, match="holds a checkpoint: add --resume"):
        main()
    monkeypatch.setattr("sys.argv", [*command, "--batch", "0"])
    with pytest.raises(SystemExit, match="batch must be a whole number of at least 1, got 0"):
        main()


@pytest.fixture(scope="module")
def episodes() -> dict[str, list[dict[str, str]]]:
    paths = {part: ASSETS / "text" / f"{part}.jsonl.gz" for part in ("train", "test")}
    return {
        part: [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        for part, path in paths.items()
    }


def test_shipped_text_is_disjoint_and_balanced(episodes: dict[str, list[dict[str, str]]]) -> None:
    groups = {
        part: {row["document"].removeprefix(row["domain"]).strip() for row in rows} for part, rows in episodes.items()
    }
    assert not groups["train"] & groups["test"]
    for rows in episodes.values():
        sizes = Counter[str]()
        for row in rows:
            sizes[row["domain"]] += len(row["text"].encode())
        assert len(sizes) >= 7
        assert max(sizes.values()) < 1.25 * min(sizes.values())


def test_shipped_files() -> None:
    files = {path.name: path.stat().st_size for path in (ASSETS / "tiny").iterdir()}
    pictures = {"loss.png", "routing.png"}
    assert set(files) - pictures == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "MODEL_CARD.md",
    }
    assert all(files[name] < 120_000 for name in pictures & set(files))
    assert files["model.safetensors"] < 16e6


def test_shipped_model_beats_a_unigram_fitted_to_the_very_text(episodes: dict[str, list[dict[str, str]]]) -> None:
    """The unigram may even see the text it is judged on: random weights lose to it, trained ones don't."""
    model = load_model("tiny")
    chosen = {row["domain"]: row for row in reversed(episodes["test"])}.values()
    rows = [[0, *model.tokenizer.encode(row["text"])[:256]] for row in chosen]
    ids = np.array([token for row in rows for token in row])
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    index = [("all", "", int(start), len(row), 1) for start, row in zip(starts, rows, strict=True)]
    text, record = cut(ids, index, 256), RoutingRecord()
    model_nats = token_losses(model, text, record, "").sum()
    unigram_nats = -np.nansum(KneserNey(ids, model.vocabulary_size, order=1).log_prob(ids))
    assert model_nats < 0.9 * unigram_nats
    assert record.counts(text)["all"].sum() == text.real.sum() * model.num_blocks * model.top_k


def damaged(path: Path, change: Callable[[dict[str, torch.Tensor]], object], progress: dict[str, object]) -> None:
    """Write a checkpoint anew with other tensors, or another progress in its header."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    change(tensors)
    told = json.dumps(json.loads(header["progress"]) | progress)
    save_file(tensors, path, {**header, "progress": told})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "progress", "message"),
    [
        (lambda t: t[f"model.{NORM}"].fill_(math.nan), {}, f"model.{NORM} holds NaN or infinity"),
        (lambda t: t[f"exp_avg.{NORM}"].fill_(math.inf), {}, f"exp_avg.{NORM} holds NaN or infinity"),
        (lambda t: t[f"exp_avg_sq.{NORM}"].fill_(-1), {}, f"exp_avg_sq.{NORM} is negative"),
        (lambda t: t.update({f"exp_avg.{NORM}": torch.zeros(32, dtype=torch.int32)}), {}, "is of type torch.int32"),
        (lambda t: t.update({f"model.{NORM}": torch.zeros(32, dtype=torch.complex64)}), {}, "torch.complex64"),
        (lambda t: t.update({f"model.{NORM}": torch.zeros(31)}), {}, r"has shape \[31\] in place of \[32\]"),
        (lambda t: t.update(other=torch.zeros(1)), {}, "other is in the file, but not in what is trained"),
        (lambda t: t.pop(f"exp_avg.{NORM}"), {}, f"exp_avg.{NORM} has shape None"),
        (lambda t: [t.pop(f"{key}.{NORM}") for key in ("step", "exp_avg", "exp_avg_sq")], {}, "counts 0"),
        (lambda t: None, {"step": 10**9}, "says that 1000000000 steps were taken, but step.* counts 3"),
        (lambda t: None, {"step": "3"}, "its header is damaged: step is '3'"),
        (lambda t: None, {"step": True}, "its header is damaged: step is True"),
        (lambda t: None, {"step": -3}, "its header is damaged: step is -3"),
        (lambda t: None, {"seconds": math.nan}, "its header is damaged: it holds NaN"),
        (lambda t: None, {"curve": [[1, 2]]}, "its header is damaged"),
        (lambda t: None, {"lost": 1}, "its header is damaged"),
    ],
)
def test_what_no_checkpoint_holds_is_named_and_changes_nothing(
    tokens: np.ndarray,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    progress: dict[str, object],
    message: str,
) -> None:
    trainer = Trainer(SMOKE, build(SMOKE, 50, CPU), tokens, tmp_path)
    trainer.run(until=3, every=1)
    trainer.save()
    damaged(tmp_path / CHECKPOINT, change, progress)
    before = weights(trainer)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.resume()
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_a_loss_or_a_weight_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    tokens: np.ndarray, tmp_path: Path
) -> None:
    trainer = Trainer(SMOKE, build(SMOKE, 50, CPU), tokens, tmp_path)
    trainer.run(until=2)
    trainer.save()
    before = (tmp_path / CHECKPOINT).read_bytes()
    with torch.no_grad():
        trainer.model.get_parameter(NORM)[0] = math.nan
    with pytest.raises(ValueError, match=f"the training stops since model.{NORM} is NaN or infinite after 2 steps"):
        trainer.save()
    with pytest.raises(ValueError, match="the training stops since the loss is NaN or infinite in step 3"):
        trainer.run()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    last = Trainer(replace(SMOKE, learning_rate=1e38), build(SMOKE, 50, CPU), tokens, tmp_path)
    with pytest.raises(ValueError, match=r"the training stops since .* is NaN or infinite"):
        last.run()


def test_a_finished_run_is_not_touched_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [Document("fiction", str(k), "the old whale swims " * 300, str(k)) for k in range(4)]
    tokenizer = train_tokenizer(documents, 270, 10_000)
    write_tokenizer(tokenizer, tmp_path / "data" / "tokenizer", 256)
    write_shard(tmp_path / "data" / f"{LANGUAGE_MODEL}.npy", tokenizer, documents)
    run = tmp_path / "run"
    command = ["train", "--data", str(tmp_path / "data"), "--preset", "smoke", "--tokens", "384", "--out", str(run)]
    monkeypatch.setattr("sys.argv", command)
    main()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len(before) == 5
    for missing in ((), ("model.safetensors", "config.json")):
        for name in missing:
            (run / "model" / name).unlink()
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", [*command, "--resume"])
        main()
        assert f"{run} is finished: it has taken 3 of 3 steps, and learns no more" in capsys.readouterr().out
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    damaged(run / CHECKPOINT, lambda t: t[f"model.{NORM}"].fill_(math.nan), {})
    with pytest.raises(SystemExit, match=r"error: .* holds NaN or infinity"):
        main()
