"""References that ship: the same values as computed ones, for this model and this text alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.language_model import references as command
from wdmoe_env import episodes, references
from wdmoe_env.episodes import EpisodeSource, load_episodes
from wdmoe_env.references import shipped_references


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_ships_is_what_would_be_computed(split):
    source = load_episodes("tiny", 32, split, "cpu")
    shipped = shipped_references("tiny", "cpu", "float32", source.windows)
    assert shipped.shape == (len(source.windows),)
    assert shipped.dtype == np.float64
    sample = np.random.default_rng(0).choice(len(shipped), 8, replace=False)
    computed = EpisodeSource(source.model, source.windows)
    for rows in (sample, sample[:1], sample[1:2]):  # many at once, and one
        np.testing.assert_allclose(shipped[rows], computed.reference_nll(rows), rtol=0, atol=1e-6)


def test_a_first_visit_needs_no_second_forward_pass(monkeypatch):
    def never(*args):
        raise AssertionError("computed")

    load_episodes.cache_clear()
    monkeypatch.setattr(episodes, "own_scores", never)
    source = load_episodes("tiny", 32, "test", "cpu")
    assert np.isfinite(source.reference_nll(np.arange(len(source.windows)))).all()
    load_episodes.cache_clear()


@pytest.mark.parametrize("change", ["token_ids", "targets", "mask", "fewer"])
def test_another_text_has_none(change):
    windows = load_episodes("tiny", 32, "test", "cpu").windows
    if change == "fewer":
        other = replace(windows, **{name: getattr(windows, name)[1:] for name in ("token_ids", "targets", "mask")})
    else:
        array = getattr(windows, change).copy()
        array[0, 0] = not array[0, 0]
        other = replace(windows, **{change: array})
    assert shipped_references("tiny", "cpu", "float32", other) is None


def test_other_weights_have_none(monkeypatch):
    windows = load_episodes("tiny", 32, "test", "cpu").windows
    monkeypatch.setattr(references, "_model_hash", lambda: "another")
    assert shipped_references("tiny", "cpu", "float32", windows) is None


@pytest.mark.parametrize(
    "other", [("micro", "cpu", "float32"), ("tiny", "cpu", "bfloat16"), ("tiny", "cuda", "float32")]
)
def test_another_model_type_or_device_has_none(other):
    windows = load_episodes("tiny", 32, "test", "cpu").windows
    assert shipped_references(*other, windows) is None


def test_the_command_writes_what_is_found_again(tmp_path, monkeypatch):
    short = EpisodeSource(load_episodes("tiny", 32, "test", "cpu").model, short_windows())
    monkeypatch.setattr(command, "load_episodes", lambda *args: short)
    monkeypatch.setattr(command, "FILE", tmp_path / "references.npz")
    command.main()
    monkeypatch.setattr(references, "FILE", tmp_path / "references.npz")
    found = shipped_references("tiny", "cpu", "float32", short.windows)
    np.testing.assert_array_equal(found, command.compute(short))


def short_windows():
    windows = load_episodes("tiny", 32, "test", "cpu").windows
    part = {name: getattr(windows, name)[:3] for name in ("token_ids", "targets", "mask")}
    return replace(windows, **part, domains=windows.domains[:3])
