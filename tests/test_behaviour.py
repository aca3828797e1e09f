"""What policies drop where requests are served: shares by hand, and the command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from eval import behaviour
from eval.behaviour import SYSTEM, Watched
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config

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
    assert told["by_link"]["bins"] == ["0 to 0.95", "0.95 to 1.05", "1.05 to 1.25", *told["by_link"]["bins"][3:]]
    assert told["by_link"]["pairs"] == [2, 1, 0, 0, 0, 0, 0]  # 2 ms and 5 ms, where the median is 5
    assert told["by_link"]["kept"][:2] == [0.5, 1.0]
    assert told["other_experts"] == pytest.approx(1 / 3)
    assert told["prices"] is None
    assert told["by_system"]["prompt"]["bins"] == ["1", "2", "3", "4 to 5", "6 to 7", "8 and more"]


def test_prices_of_passes_are_those_that_the_agent_set(monkeypatch) -> None:
    """Each pass of two cells counts once, at its first block."""
    config = serving_config({"model": "tiny", "devices": "paper", "serving": {"requests": 1}}, {})
    process = ServingProcess(config)
    policy = make_policy("serve-paper-price", process)
    set_prices = []
    chosen = policy._prices_of

    def prices_of(block, batch):
        prices = chosen(block, batch)
        begins = block.index == 0
        set_prices.extend(prices[begins, 0])
        return prices

    monkeypatch.setattr(policy, "_prices_of", prices_of)
    watched = Watched(policy, process.codec, devices=8)
    play(process, watched, [1, 2], 1)
    told = watched.told()["prices"]
    assert len(set(set_prices)) > 10
    for name in ("by_system", "by_link"):
        means, passes = np.array(told[name]["mean"]), np.array(told[name]["passes"])
        assert passes.sum() == len(set_prices)
        assert means @ passes == pytest.approx(np.sum(set_prices))
    assert told["by_system"]["passes"][1:] == [0] * (len(SYSTEM) - 1)  # a request alone


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
