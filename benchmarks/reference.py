"""The environment as one would write it first: a hook on each gate, a loop over experts, SciPy's SLSQP at each step.

It decides like ``WDMoE-Selection-v0`` and draws the same episodes from the same seed, so that its results can be
compared with those of the library. It knows Mixtral alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch.nn import functional

from wdmoe_env.config import EnvConfig
from wdmoe_env.physics.latency import BlockLinks, Float, Load, device_latency_s, device_load
from wdmoe_env.simulator import Simulator


class ReferenceEnv:
    """One episode at a time; the selection is the action.

    Args:
        model: an untouched transformers Mixtral.
        **keywords: fields of ``EnvConfig``, for windows, channel and devices.
    """

    def __init__(self, model: Any, **keywords: Any) -> None:
        self.model = model
        self.simulator = Simulator(EnvConfig.make(decision="selection", **keywords))
        self.logits: torch.Tensor
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(self._keep_logits)

    def _keep_logits(self, gate: Any, args: Any, output: Any) -> None:
        self.logits = output[0]

    @torch.no_grad()
    def reset(self, seed: int) -> NDArray[np.bool_]:
        """Draw an episode, run to the first block, and return the model's own choice (J, E)."""
        generator, _ = seeding.np_random(seed)
        source = self.simulator.source
        window = np.array([generator.integers(len(source.windows))])
        trace = self.simulator.channel.sample([generator])
        self.links = [one.links for one in self.simulator.view(window, trace).radio.conditions]
        token_ids, self.mask, self.targets = source.tokens(window)
        self.hidden = self.model.model.embed_tokens(token_ids)
        positions = torch.arange(token_ids.shape[1])[None]
        self.rotary = self.model.model.rotary_emb(self.hidden, positions)
        future = torch.full((token_ids.shape[1],) * 2, -torch.inf).triu(1)
        self.causal = future + torch.where(self.mask, 0.0, -torch.inf)[:, None, None, :]
        self.block, self.latency_s = 0, 0.0
        return self._run_to_block()

    @torch.no_grad()
    def step(self, selection: NDArray[np.bool_]) -> tuple[NDArray[np.bool_] | None, float, bool, dict[str, float]]:
        """Run the experts, solve the shares, and run to the next block."""
        links = self.links[self.block]
        latency_s = slsqp_latency_s(links, device_load(selection[None], links))
        self.latency_s += latency_s
        self.hidden = self.hidden + self._experts(torch.from_numpy(selection))[None]
        self.block += 1
        info = {"block_latency_ms": 1e3 * latency_s}
        if self.block < len(self.model.model.layers):
            return self._run_to_block(), -latency_s, False, info
        logits = self.model.lm_head(self.model.model.norm(self.hidden))
        nll = functional.cross_entropy(logits[0], self.targets[0], reduction="none")[self.mask[0]].mean()
        return None, -latency_s, True, {**info, "latency_ms": 1e3 * self.latency_s, "nll": float(nll)}

    def _run_to_block(self) -> NDArray[np.bool_]:
        layer = self.model.model.layers[self.block]
        normed = layer.input_layernorm(self.hidden)
        attended, _ = layer.self_attn(normed, position_embeddings=self.rotary, attention_mask=self.causal)
        self.hidden = self.hidden + attended
        self.normed = layer.post_attention_layernorm(self.hidden)[0]
        layer.mlp.gate(self.normed)
        chosen = self.logits.topk(self.model.config.num_experts_per_tok, dim=-1).indices
        routed = torch.zeros(self.logits.shape, dtype=torch.bool).scatter_(1, chosen, True)
        return (routed & self.mask[0][:, None]).numpy()

    def _experts(self, selection: torch.Tensor) -> torch.Tensor:
        experts = self.model.model.layers[self.block].mlp.experts
        weights = torch.where(selection, self.logits.float().softmax(dim=-1), 0.0)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        outputs = torch.zeros_like(self.normed)
        for expert in range(selection.shape[1]):
            tokens = selection[:, expert].nonzero().flatten()
            if not len(tokens):
                continue
            gate, up = functional.linear(self.normed[tokens], experts.gate_up_proj[expert]).chunk(2, dim=-1)
            output = functional.linear(functional.silu(gate) * up, experts.down_proj[expert])
            outputs[tokens] += weights[tokens, expert, None] * output
        return outputs


def slsqp_latency_s(links: BlockLinks, load: Load) -> float:
    """Block latency of one instance by SLSQP; NaN where it fails."""
    return 1e-3 * float(_slsqp(links, load)[-1])


def slsqp_shares(links: BlockLinks, load: Load) -> Float:
    """Shares (U,) of one instance by SLSQP; equal ones where it fails."""
    shares = _slsqp(links, load)[:-1]
    return shares / shares.sum() if np.isfinite(shares).all() else np.full(len(shares), 1.0 / len(shares))


def _slsqp(links: BlockLinks, load: Load) -> Float:
    """Shares, then latency in ms, (U + 1,), NaN where SLSQP fails."""
    num_devices = links.num_devices

    def slack_ms(x: Float) -> Float:
        return np.asarray(x[-1] - 1e3 * device_latency_s(links, load, x[None, :-1])[0])

    start = np.full(num_devices, 1.0 / num_devices)
    worst_ms = 1e3 * device_latency_s(links, load, start[None]).max()
    result: Any = minimize(
        lambda x: x[-1],
        np.append(start, worst_ms),
        method="SLSQP",
        bounds=[(1e-6, 1.0)] * num_devices + [(0.0, None)],
        constraints=[{"type": "eq", "fun": lambda x: x[:-1].sum() - 1.0}, {"type": "ineq", "fun": slack_ms}],
        options={"ftol": 1e-10, "maxiter": 300},
    )
    return np.asarray(result.x if result.success else np.full(num_devices + 1, np.nan))
