"""The selection that knows the text to come: what it is told, and its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks import knowing
from benchmarks.knowing import main, pair_damages
from wdmoe_env.config import EnvConfig
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.token_scores import divergence
from wdmoe_env.simulator import Simulator


def measured_damage(model: SplitModel, token_ids, block, token, expert) -> float:
    """Divergence in nats, the sum over the tokens of one text, where one pair is left out."""

    def leave_out(at):
        selection = at.routed.clone()
        if at.index == block:
            selection[token, expert] = False
        return selection

    with torch.no_grad():
        own = model.logits_under(None, token_ids).float().log_softmax(-1)
        return divergence(model.logits_under(leave_out, token_ids).float().log_softmax(-1), own).sum().item()


def test_damages_are_those_of_pairs_left_out_alone():
    source = Simulator(EnvConfig(num_tokens=16)).source
    token_ids, mask, _ = source.tokens(np.array([3]))
    damages = pair_damages(source.model, token_ids, mask.bool(), 64, torch.Generator().manual_seed(0))
    assert damages.shape == (1, source.model.num_blocks, 16, source.model.num_experts)
    assert (np.count_nonzero(damages, axis=-1) <= 2).all()
    small = np.argwhere((damages[0] > 1e-3) & (damages[0] < 0.1))
    chosen = small[np.random.default_rng(0).permutation(len(small))[:48]]
    told = np.array([damages[0][tuple(pair)] for pair in chosen])
    found = np.array([measured_damage(source.model, token_ids, *pair) for pair in chosen])
    assert spearmanr(told, found).statistic > 0.8
    assert 0.7 < np.median(told / found) < 1.5  # some pairs are far from small, and damage more than told


def test_tokens_that_do_not_count_bear_no_damage():
    source = Simulator(EnvConfig(num_tokens=8)).source
    token_ids, mask, _ = source.tokens(np.array([3]))
    scored = mask.bool() & (torch.arange(8) < 3)
    damages = pair_damages(source.model, token_ids, scored, 4, torch.Generator().manual_seed(0))
    assert (damages[0, :, :3] > 0).any()
    assert not damages[0, :, 3:].any()


@pytest.mark.slow
@pytest.mark.parametrize("face", ["windows", "requests"])
def test_knowing_the_text_beats_the_papers_rule(face, tmp_path, monkeypatch):
    monkeypatch.setattr(knowing, "FRONT", ("wdmoe:0.8", "wdmoe:0.97"))
    monkeypatch.setitem(knowing.PRICES, face, knowing.PRICES[face][-2:])
    words = [face, "--episodes", "3", "--draws", "8", "--seed", "5", "--out", str(tmp_path / "found")]
    assert main(words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["policy"]: row for row in found["rows"]}
    assert rows["wdmoe:0.8"]["at_equal_divergence"] == pytest.approx(1.0, abs=0.05)
    assert rows["vanilla-optimal"]["divergence"] == pytest.approx(0.0, abs=1e-6)
    told = [row for name, row in rows.items() if name.startswith("knowing")]
    latencies = [row["latency_ms"] for row in told]
    assert latencies == sorted(latencies, reverse=True)
    assert min(row["at_equal_divergence"] for row in told) < 0.95
    assert found["command"].startswith("python -m benchmarks.knowing " + face)
