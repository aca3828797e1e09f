"""``WDMoE-v0``: a split mixture-of-experts model under a fading channel, one episode at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from wdmoe_env.actions import BandwidthPart, Decided, ExpertsPart
from wdmoe_env.checks import check_options, check_seed, plain_array
from wdmoe_env.config import EnvConfig
from wdmoe_env.observations import Observation
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.process import DecisionProcess, Info, Turn, in_turn, window_config
from wdmoe_env.rendering import RENDER_FPS, RENDER_MODES, Picture, Renderer
from wdmoe_env.rollout.rollout import Rollout


class WDMoEEnv(gym.Env[Observation, Any]):
    """Which experts should each token use, and who gets the bandwidth?

    ## Description
    A base station runs a mixture-of-experts language model whose experts sit on mobile devices. At each MoE
    block it sends every token's hidden state over a fading downlink to the devices that hold the token's
    chosen experts; they compute and answer over the uplink; the block ends when the slowest device has
    answered. The agent chooses the experts of each token and divides the bandwidth. The model is real: a
    dropped expert changes the hidden states that the next block sees, and the text that the model predicts.

    One episode is one pass of a window of J tokens through the I blocks; one step is one block.

    `WDMoE-v0` takes both decisions. In `WDMoE-Selection-v0` the action is the selection and the bandwidth is
    solved exactly; in `WDMoE-Bandwidth-v0` the action is the shares and the selection is the model's own.
    `WDMoE-Precision-v0` takes both, and the bits of what crosses the link.
    `WDMoE-MO-v0` takes both and has the reward (latency, quality), unweighted.

    ## Action Space
    One `Box(-1, 1, (J * E + U,), float32)`; with the defaults, J = 32, E = 8, U = 8.

    | Index     | Action                                                                | Min | Max | Unit |
    |-----------|-----------------------------------------------------------------------|-----|-----|------|
    | j * E + e | score of expert e for token j; above 0 the expert is chosen           | -1  | 1   | -    |
    | J * E + u | logit of device u's share: a softmax of 4 x logits; -1 is no share    | -1  | 1   | -    |

    `WDMoE-Selection-v0` has the first J * E alone, `WDMoE-Bandwidth-v0` the last U alone.
    `WDMoE-Precision-v0` appends one number for each device, or under `decide_bits="token"` for each token: [-1, 1] is
    cut into equal pieces, one for each of `bits_choices`, (16, 8, 4), the first lowest. In a dict action `"bits"` is a
    `MultiDiscrete` of numbers of choices. `encode_action` takes the bits themselves, and 16 where it is given none.
    With `action_type="dict"` the action is `{"experts": MultiBinary((J, E)), "bandwidth": Box(0, 1, (U,))}`, each
    half where the environment takes it. `encode_action` and `decode_action` translate.

    A token left without an expert gets its most probable one (counted in `info`), and a device that serves a
    token never has less than `min_share`.

    ## Observation Space
    A `Dict` of float32 boxes.

    | Key                   | Shape  | Meaning                                                | Min | Max | Unit     |
    |-----------------------|--------|--------------------------------------------------------|-----|-----|----------|
    | `gate_probs`          | (J, E) | the router's score of each expert, 0 at padding        | 0   | 1e3 | -        |
    | `routed`              | (J, E) | 1 where the model itself would use the expert          | 0   | 1   | -        |
    | `spectral_efficiency` | (2, U) | downlink and uplink at equal shares                    | 0   | 128 | bit/s/Hz |
    | `compute_latency`     | (U,)   | time of one expert on one token                        | 0   | 1e9 | ms       |
    | `weights_latency`     | (U,)   | time of one expert's weights; 0 under `"flops"`        | 0   | 1e9 | ms       |
    | `unit_latency`        | (U,)   | radio time of one token, both ways, at equal shares    | 0   | 1e9 | ms       |
    | `placement`           | (E, U) | 1 where the device holds the expert in this block      | 0   | 1   | -        |
    | `token_mask`          | (J,)   | 1 where there is a token, 0 at padding                 | 0   | 1   | -        |
    | `block`               | (1,)   | blocks done over I                                     | 0   | 1   | -        |
    | `availability`        | (U,)   | 1 where the device is there; only where it can be away | 0   | 1   | -        |
    | `hidden_states`       | (J, H) | only with `observe_hidden_states=True`                 |     |     | -        |

    ## Rewards
    | `reward`                   | Each step                                                                 |
    |----------------------------|---------------------------------------------------------------------------|
    | `"wlr"` (default)          | W / t in 1/ms: gate weight served per millisecond that attention waits    |
    | `"wlr_device"`             | sum over loaded devices of W[u] / t[u] in 1/ms                            |
    | `"latency_quality"`        | -t / t_vanilla, and at the last step -`quality_weight` x added NLL        |
    | `"latency_divergence"`     | -t / t_vanilla, and at the last step -`quality_weight` x divergence       |
    | `"latency_quality_energy"` | as `"latency_quality"`, and at each step -`energy_weight` x J per token   |
    | a function                 | of the terms below                                                        |

    Shares can game the device form: those that maximise it starve slow devices (`docs/optimizer.md`: 659 ms where
    equal shares take 112, at a higher value), so the block form is the default.

    All terms stand in `info["reward_terms"]` at every step, whatever the reward is.

    | Term                 | Meaning                                                    | Unit |
    |----------------------|------------------------------------------------------------|------|
    | `gate_weight_served` | W: gate weight of the experts that ran, summed over tokens | -    |
    | `block_latency_ms`   | t: time until the slowest device has answered              | ms   |
    | `vanilla_latency_ms` | t_vanilla: t of the model's own routing at equal shares    | ms   |
    | `wlr`                | equation (8): W / t, gate weight served per millisecond    | 1/ms |
    | `wlr_device`         | equation (8) by device: W[u] / t[u], summed over devices   | 1/ms |
    | `latency_ratio`      | t / t_vanilla: below 1 is faster than the own routing      | -    |
    | `added_nll`          | `nll` minus `reference_nll`; 0 before the last block       | nats |

    With `token_terms=True`, or the reward `"latency_divergence"`, there are terms for credit per token too. They cost
    a pass of the own routing at the first visit of a window, and some time in every block. With `energy=True`, or the
    reward `"latency_quality_energy"`, there are those in J.

    | Requested term        | Shape  | Meaning                                                              | Unit |
    |-----------------------|--------|----------------------------------------------------------------------|------|
    | `pair_price_ms`       | (J, E) | what this pair adds to t at the margin, at the bandwidth optimum     | ms   |
    | `token_price_ms`      | (J,)   | what the pairs of this token cost together; they add up to t         | ms   |
    | `token_divergence`    | (J,)   | KL of the predictions from the own routing's; 0 before the last block | nats |
    | `divergence`          | ()     | mean of `token_divergence` over the tokens; 0 before the last block  | nats |
    | `reference_token_nll` | (J,)   | `token_nll` of the model's own routing; 0 before the last block      | nats |
    | `message_bits`        | ()     | bits of an element on the link, mean over the messages               | -    |
    | `device_energy_j`     | ()     | equation (12): active power x busy time + idle power x waiting, all devices | J |
    | `radio_energy_j`      | ()     | equation (12): transmit power x air time, down and up, all devices   | J    |
    | `energy_per_token_j`  | ()     | `device_energy_j` and `radio_energy_j` over the number of tokens     | J    |

    ## Starting State
    A window of text drawn uniformly from the split, or `options={"window": index}`; devices, shadowing and
    fading drawn anew. `info["window"]` is the index.

    ## Episode End
    Terminated after the last of the I blocks. Never truncated.

    ## Information
    What is known after every block comes with every step, what is known after the episode with the last one.
    `message_bits` is there only where the action decides bits.
    `unserved_pairs` is there only where a runner of your own runs the experts, which may fail to serve some, and
    `replaced_pairs` and `unserved_tokens` only where devices can be away (`devices={"outage_mean_s": ...}`), and
    `simulated_latency_ms` only on a testbed, where all other latencies but that of the own routing are measured.

    | Key                   | Shape  | When    | Meaning                                                        | Unit |
    |-----------------------|--------|---------|----------------------------------------------------------------|------|
    | `window`              | ()     | reset   | index of the window                                            | -    |
    | `unserved_pairs`      | ()     | block   | chosen pairs of token and expert that the runner did not serve | -    |
    | `simulated_latency_ms`| ()     | block   | what the simulator says of a block that a testbed measured     | ms   |
    | `block_latency_ms`    | ()     | block   | t: time until the slowest device has answered                  | ms   |
    | `device_latency_ms`   | (U,)   | block   | t[u]: time until this device has answered                      | ms   |
    | `load`                | (U,)   | block   | tokens that this device served                                 | -    |
    | `shares`              | (U,)   | block   | share of the bandwidth that this device had                    | -    |
    | `selection`           | (J, E) | block   | whether this expert was used for this token                    | -    |
    | `wlr`                 | ()     | block   | equation (8): W / t, gate weight served per millisecond        | 1/ms |
    | `wlr_device`          | ()     | block   | equation (8) by device: W[u] / t[u], summed over devices       | 1/ms |
    | `gate_weight_kept`    | ()     | block   | W over that of the model's own routing                         | -    |
    | `repaired_tokens`     | ()     | block   | tokens that the action left without an expert                  | -    |
    | `replaced_pairs`      | ()     | block   | chosen pairs whose device was away; the next best expert ran   | -    |
    | `unserved_tokens`     | ()     | block   | tokens that went on without the block: no expert was there     | -    |
    | `message_bits`        | ()     | block   | bits of an element on the link, mean over the messages         | -    |
    | `reward_terms`        | dict   | block   | the terms of the reward                                        | -    |
    | `latency_ms`          | ()     | episode | sum of t over the blocks                                       | ms   |
    | `nll`                 | ()     | episode | negative log-likelihood of the text, mean over tokens          | nats |
    | `token_nll`           | (J,)   | episode | negative log-likelihood of this token, 0 at padding            | nats |
    | `next_token_accuracy` | ()     | episode | share of tokens whose next token the model guessed             | -    |
    | `reference_nll`       | ()     | episode | `nll` of the model's own routing on the same window            | nats |

    ## Arguments
    Every field of `wdmoe_env.config.EnvConfig` is a keyword, plain or nested:

    ```python
    import gymnasium as gym
    env = gym.make("wdmoe_env:WDMoE-v0", num_tokens=16, channel={"fading": "rician"}, reward="latency_quality")
    ```

    An unknown keyword is a `TypeError` that names the nearest fields, a value out of its range a `ValueError`.

    `render_mode="rgb_array"` draws the last block, `"human"` shows it in a window, `"ansi"` writes it as text; see
    `docs/rendering.md`.

    ## Vectorized environment
    `gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=64)` runs 64 windows through one forward pass.

    ## Threads
    `reset` and `step` may be called from different threads, one after the other, with the same results. A paused
    forward pass can go on only in the thread that started it, so a new thread first runs the episode's blocks up to
    the present one again: keep an environment on one thread where speed matters. A call while another one is under
    way is a `RuntimeError`.

    ## Version History
    * v0: initial version

    ## References
    Xue et al., "WDMoE: Wireless Distributed Mixture of Experts for Large Language Models", arXiv 2411.06681.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **keywords: Any,
    ) -> None:
        self._process = self._process_of(config, keywords)
        self.config = self._process.config
        self.render_mode = render_mode
        self.renderer = None if render_mode is None else Renderer(render_mode)
        self.simulator = self._process.simulator
        self.codec = self._process.codec
        self.observation_space: gym.Space[Any] = self._process.observation_space
        self.action_space = self.codec.space
        self._rollout: Rollout | None = None
        self._turn = Turn()

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Any:
        """The process behind this face, which has its spaces, codec and step; environments of other ids have others."""
        return DecisionProcess(window_config(config, keywords))

    @in_turn
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode.

        Args:
            seed: seeds the environment's generator, a whole number of at least 0; ``None`` goes on with it.
            options: ``{"window": index}`` takes that window of the split.

        Returns:
            The observation of the first block, and info with the ``window``.

        Raises:
            ValueError: no such window, another option, or no seed.
            TypeError: ``options`` is no dict.
            RuntimeError: another thread is in ``reset`` or ``step``.
        """
        window = check_options(options, ("window",)).get("window")
        windows = None if window is None else plain_array("window", [window])
        super().reset(seed=check_seed(seed))
        self._end_episode()
        rollout = self.simulator.start([self.np_random], windows)
        if self.renderer is not None:
            self.renderer.begin(rollout)
        self._rollout = rollout
        return only(self._process.observe(rollout.block)), {"window": int(rollout.windows[0])}

    @in_turn
    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Run the block under an action and go on to the next block.

        Whatever is raised once the block has run, by a function as reward say, ends the episode. Another thread than
        that of ``reset`` may step; the blocks that have run are then run again, once for each change of thread.

        Args:
            action: of the action space, or what ``encode_action`` gives.

        Returns:
            The next observation, reward, whether this was the last block, False (never truncated), and info.

        Raises:
            gymnasium.error.ResetNeeded: no episode is under way.
            ValueError, TypeError: not an action of this environment; the episode can go on.
            RuntimeError: another thread is in ``reset`` or ``step``; the episode can go on.
        """
        rollout = self._rollout
        if rollout is None or rollout.done:
            raise gym.error.ResetNeeded("expected reset() before step(): no episode is under way")
        decided = self.codec.decode_one(action)
        blocks_done = rollout.blocks_done
        try:
            return self._run_block(rollout, decided)
        except BaseException:
            if rollout.blocks_done > blocks_done:  # the result of the block is lost, and the block cannot run again
                self._end_episode()
            raise

    def _run_block(self, rollout: Rollout, decided: Decided) -> tuple[Observation, float, bool, bool, Info]:
        transition = self._process.step(rollout, decided, None if self.renderer is None else self.renderer.add)
        observation, info = only(transition.observation), only(transition.info)
        return observation, float(transition.reward[0]), transition.terminated, False, info

    def render(self) -> Picture | str | None:
        """The block of the last step, or the first before it.

        Returns:
            A picture (720, 1120, 3) uint8 under ``rgb_array``, a text under ``ansi``; ``None`` under ``human``, whose
            window draws at every step, and without a render mode.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
            ImportError: the libraries of the extra ``render`` are not installed.
        """
        return None if self.renderer is None else self.renderer.render()[0]

    @property
    def num_blocks(self) -> int:
        """I, steps of an episode."""
        return self.simulator.sizes.num_blocks

    def encode_action(self, selection: Bool | None = None, shares: Float | None = None, **others: Any) -> Any:
        """Action of a selection (..., J, E), shares (..., U) and others; see ``ActionCodec.encode``."""
        return self.codec.encode(selection, shares, **others)

    def decode_action(self, action: Any) -> tuple[Any, ...]:
        """Selection (..., J, E) and shares (..., U) of an action, and bits where it decides them."""
        decided = self.codec.decode(action, self.codec.batch_of(action))
        others = [value for name, value in decided.items() if name not in (ExpertsPart.name, BandwidthPart.name)]
        return decided.get(ExpertsPart.name), decided.get(BandwidthPart.name), *others

    def close(self) -> None:
        """End the episode under way and close the window."""
        self._end_episode()
        if self.renderer is not None:
            self.renderer.close()

    def _end_episode(self) -> None:
        if self._rollout is not None:
            self._rollout.close()
            self._rollout = None


def single(batched: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the only episode; arrays (1,) become Python numbers."""
    one: dict[str, Any] = only(dict(batched))
    return one


def only(value: Any) -> Any:
    """The entry of the only episode, of an array (1, ...) or of a dict of such."""
    if not isinstance(value, dict):
        return value.item() if value.ndim == 1 else value[0]
    one = {}
    for name, entry in value.items():
        one[name] = only(entry)
    return one
