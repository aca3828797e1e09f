"""What policies drop where requests are served: shares by hand, and the command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from eval import behaviour
from eval.behaviour import SYSTEM, Watched

SELECTION = np.array([[[True, False], [True, True], [False, False]]])


def test_shares_by_hand() -> None:
    """Three rows of two experts: a prompt's, an answer's, and padding; the second expert's device is the fastest."""
    observation = {
        "queue": np.array([[1.0, 2.0, 0.0, 0.0]]),  # three in the system
        "row_phase": np.array([[0.0, 1.0, 0.0]]),
        "token_mask": np.array([[1.0, 1.0, 0.0]]),
        "routed": np.array([[[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]]),
        "unit_latency": np.array([[5.0, 2.0, 9.0]]),
        "placement": np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]),
    }
    acts = SimpleNamespace(predict=lambda *_: (SELECTION, None))
    codec = SimpleNamespace(decode=lambda actions, _: {"experts": actions})
    watched = Watched(acts, codec, devices=3)
    watched.predict(observation)
    told = watched.told()
    at = SYSTEM.index(3)
    for phase, pairs, kept in (("prompt", 2, 0.5), ("answer", 1, 1.0)):
        shares = told["by_system"][phase]
        assert shares["bins"][at] == "3"
        assert shares["pairs"] == [pairs if place == at else 0 for place in range(len(SYSTEM))]
        assert shares["kept"][at] == kept
    assert told["by_rank"]["pairs"] == [2, 1, 0]
    assert told["by_rank"]["kept"] == [0.5, 1.0, 0.0]
    assert told["other_experts"] == pytest.approx(1 / 3)


def test_the_command_writes_shares_and_a_picture(tmp_path) -> None:
    """Own routing keeps all, a price drops some."""
    arguments = [
        "--policies",
        "vanilla-optimal",
        "marginal-price:2",
        "--model",
        "micro",
        "--episodes",
        "1",
        "--requests",
        "2",
    ]
    assert behaviour.main([*arguments, "--devices", "paper", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "behaviour.json").read_text())
    own, price = (found[name]["by_rank"] for name in ("vanilla-optimal", "marginal-price:2"))
    assert [kept for kept, pairs in zip(own["kept"], own["pairs"], strict=True) if pairs] == [1.0] * 8
    assert min(price["kept"]) < 1.0
    assert (tmp_path / "behaviour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "said"), [(["--policies", "nobody"], "nobody"), (["--policies", "vanilla", "--load", "0"], "load")]
)
def test_mistakes_are_said(wrong: list[str], said: str, tmp_path, capsys) -> None:
    assert behaviour.main([*wrong, "--model", "micro", "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
