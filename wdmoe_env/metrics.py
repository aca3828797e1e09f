"""Metrics: every figure of a step and of an episode, declared once, and the rewards that are made of them.

A row of ``METRICS`` says what a figure is called, its shape and unit, what it means, how it is reduced over the blocks
of an episode, and which way is better. ``info``, the terms of the reward, the measurements of an evaluation, and the
names, units and directions in tables and pictures are read from there, so a new figure is one row; ``register_metric``
adds one from outside. A reward is a function of those metrics that are terms, a dict that also stands in ``info``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Bool, Float

REWARD_TERMS = "reward_terms"
"""Key of ``info`` under which the terms of the reward stand."""

Terms = Mapping[str, Float]
RewardFunction = Callable[[Terms], Any]


class BlockResult(NamedTuple):
    """What one decision led to in one block.

    Attributes:
        selection: (N, J, E) that ran.
        shares: (N, U) bandwidth shares that were used.
        tokens: (N, U) tokens that each device served.
        device_latency_s: (N, U).
        block_latency_s: (N,).
        vanilla_latency_s: (N,) of the model's own routing at equal shares on the same block.
        gate_weight_served: (N,) W.
        gate_weight_kept: (N,) W over that of the model's own routing.
        wlr: (N,) 1/ms, block form.
        wlr_device: (N,) 1/ms, device form.
        repaired_tokens: (N,) tokens that the action left without an expert.
        unserved_pairs: (N,) pairs of token and expert that were selected and not served; ``None`` where the experts of
            the model itself run, which serve all.
        message_bits: (N,) mean bits of an element over the messages; ``None`` where the action does not decide them.
        device_energy_j: (N, U) of the devices; ``None`` where energy was not asked for.
        radio_energy_j: (N, U) of what sends to and from each; ``None`` likewise.
        energy_per_token_j: (N,) both together over the number of tokens; ``None`` likewise.
        pair_price_s: (N, J, E) what each pair of token and expert adds to the block latency at the margin, at the
            bandwidth optimum; ``None`` where it was not asked for.
        token_price_s: (N, J) what the pairs of each token cost together; ``None`` likewise.
        replaced_pairs: (N,) chosen pairs whose device was away, which the next best expert served; ``None`` where no
            device can be away.
        unserved_tokens: (N,) tokens that went on without the block, since no expert was there; likewise.
        simulated_latency_s: (N,) what the simulator says of a block that was measured by the clock; else ``None``.
    """

    selection: Bool
    shares: Float
    tokens: Float
    device_latency_s: Float
    block_latency_s: Float
    vanilla_latency_s: Float
    gate_weight_served: Float
    gate_weight_kept: Float
    wlr: Float
    wlr_device: Float
    repaired_tokens: NDArray[np.int64]
    unserved_pairs: NDArray[np.int64] | None = None
    pair_price_s: Float | None = None
    token_price_s: Float | None = None
    simulated_latency_s: Float | None = None
    replaced_pairs: NDArray[np.int64] | None = None
    unserved_tokens: NDArray[np.int64] | None = None
    message_bits: Float | None = None
    device_energy_j: Float | None = None
    radio_energy_j: Float | None = None
    energy_per_token_j: Float | None = None

    @property
    def latency_ratio(self) -> Float:
        """(N,) block latency over that of the own routing; 1 where every device is away and neither waits."""
        waits = self.vanilla_latency_s > 0.0
        return np.where(waits, self.block_latency_s, 1.0) / np.where(waits, self.vanilla_latency_s, 1.0)


class EpisodeResult(NamedTuple):
    """What N whole episodes came to.

    Attributes:
        latency_s: (N,) sum over blocks.
        nll: (N,) nats per token.
        token_nll: (N, J) nats, 0 at padding.
        correct: (N, J) whether the most probable token was the text's; of no meaning at padding.
        next_token_accuracy: (N,) share of tokens whose most probable successor was right.
        reference_nll: (N,) NLL in nats per token of the model's own routing on the same texts; ``None`` where the
            rollout has no reference.
        reference_token_nll: (N, J) nats, of each token under the own routing, 0 at padding; ``None`` where it was not
            asked for.
        token_divergence: (N, J) nats, KL of the predictions from those of the own routing, 0 at padding; ``None``
            likewise.
        divergence: (N,) nats, its mean over the tokens; ``None`` likewise.
    """

    latency_s: Float
    nll: Float
    token_nll: Float
    correct: Bool
    next_token_accuracy: Float
    reference_nll: Float | None = None
    reference_token_nll: Float | None = None
    token_divergence: Float | None = None
    divergence: Float | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a block or of an episode.

    Attributes:
        name: the key under which it stands.
        shape: letters of the sizes of one episode's value, as in ``("J", "E")``; ``()`` is a number.
        unit: of the value; ``"-"`` for none.
        meaning: what it is, in one line.
        when: ``"block"``: known after every block; ``"episode"``: known after the last one.
        value: from the ``BlockResult`` or the ``EpisodeResult`` of N episodes to an array (N, ...) of that shape.
        over_blocks: how the values of an episode's blocks become the episode's; ``None`` where that has no meaning.
        better: which way is better; ``None`` where neither is.
        label: what tables and pictures call it; empty where none shows it.
        in_info: whether it stands in ``info``.
        in_terms: whether it is a term of the reward; a term of the episode is 0 before the last block.
        on_request: ``"token_terms"``, ``"energy"`` or ``"bits"``: it is there only under that field of ``EnvConfig``
            (``decide_bits`` for the last), or a reward that needs it; empty where it is always there.
        in_results: whether an evaluation keeps the value of every episode.

    Raises:
        ValueError: an unknown word for ``when``, ``over_blocks`` or ``better``; a result that is no number or
            only there on request; a term whose shape has other letters than J, E and U; or a result of the blocks
            without ``over_blocks``.
    """

    name: str
    shape: tuple[str, ...]
    unit: str
    meaning: str
    when: Literal["block", "episode"]
    value: Callable[[Any], Any]
    over_blocks: Literal["mean", "sum"] | None = None
    better: Literal["lower", "higher"] | None = None
    label: str = ""
    in_info: bool = True
    in_terms: bool = False
    in_results: bool = False
    on_request: str = ""

    def __post_init__(self) -> None:
        """Check the words, and that terms and results are numbers."""
        words = {
            "when": ("block", "episode"),
            "over_blocks": ("mean", "sum", None),
            "better": ("lower", "higher", None),
        }
        for field, known in words.items():
            if getattr(self, field) not in known:
                raise ValueError(f"metric {self.name}: {field} must be one of {known}, got {getattr(self, field)!r}")
        if self.in_results and (self.shape or self.on_request):
            asked = " on request" if self.on_request else ""
            raise ValueError(
                f"metric {self.name}: a result must have the shape () and be always there, got {self.shape}{asked}"
            )
        if self.in_terms and not set(self.shape) <= set("JEU"):
            raise ValueError(f"metric {self.name}: a term must have a shape of J, E and U, got {self.shape}")
        if not (self.in_info or self.in_terms):
            raise ValueError(f"metric {self.name}: expected in_info or in_terms, got neither")
        if self.in_results and self.when == "block" and self.over_blocks is None:
            raise ValueError(
                f"metric {self.name}: a result must say how blocks become an episode, got over_blocks=None"
            )

    @property
    def heading(self) -> str:
        """Label and unit, as the head of a column says them."""
        return self.label if self.unit == "-" else f"{self.label} {self.unit}"

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is, 0 where neither is."""
        return {"lower": 1, "higher": -1, None: 0}[self.better]

    def of_episode(self, blocks: Sequence[Mapping[str, Any]]) -> Float:
        """Value (N,) of whole episodes.

        Args:
            blocks: the info of each of their blocks, in order.
        """
        places = blocks if self.in_info else [info[REWARD_TERMS] for info in blocks]
        if self.when == "episode":
            return np.asarray(places[-1][self.name], dtype=np.float64)
        reduced = np.mean if self.over_blocks == "mean" else np.sum
        return np.asarray(reduced([place[self.name] for place in places], axis=0), dtype=np.float64)


def _table(*rows: Metric) -> dict[str, Metric]:
    return {row.name: row for row in rows}


# The order of the rows is that of the keys in info, of the terms, and of the columns of an evaluation.
METRICS: dict[str, Metric] = _table(
    Metric(
        name="unserved_pairs",
        shape=(),
        unit="-",
        meaning="chosen pairs of token and expert that the runner did not serve",
        when="block",
        value=attrgetter("unserved_pairs"),
        over_blocks="sum",
        better="lower",
    ),
    Metric(
        name="simulated_latency_ms",
        shape=(),
        unit="ms",
        meaning="what the simulator says of a block that a testbed measured",
        when="block",
        value=lambda block: None if block.simulated_latency_s is None else 1e3 * block.simulated_latency_s,
        over_blocks="sum",
        better="lower",
        label="simulated",
    ),
    Metric(
        name="gate_weight_served",
        shape=(),
        unit="-",
        meaning="W: gate weight of the experts that ran, summed over tokens",
        when="block",
        value=attrgetter("gate_weight_served"),
        over_blocks="sum",
        better="higher",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="block_latency_ms",
        shape=(),
        unit="ms",
        meaning="t: time until the slowest device has answered",
        when="block",
        value=lambda block: 1e3 * block.block_latency_s,
        over_blocks="sum",
        better="lower",
        label="block latency",
        in_terms=True,
    ),
    Metric(
        name="device_latency_ms",
        shape=("U",),
        unit="ms",
        meaning="t[u]: time until this device has answered",
        when="block",
        value=lambda block: 1e3 * block.device_latency_s,
        better="lower",
    ),
    Metric(
        name="load",
        shape=("U",),
        unit="-",
        meaning="tokens that this device served",
        when="block",
        value=attrgetter("tokens"),
        over_blocks="sum",
    ),
    Metric(
        name="shares",
        shape=("U",),
        unit="-",
        meaning="share of the bandwidth that this device had",
        when="block",
        value=attrgetter("shares"),
        over_blocks="mean",
    ),
    Metric(
        name="selection",
        shape=("J", "E"),
        unit="-",
        meaning="whether this expert was used for this token",
        when="block",
        value=attrgetter("selection"),
    ),
    Metric(
        name="vanilla_latency_ms",
        shape=(),
        unit="ms",
        meaning="t_vanilla: t of the model's own routing at equal shares",
        when="block",
        value=lambda block: 1e3 * block.vanilla_latency_s,
        over_blocks="sum",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="latency_ms",
        shape=(),
        unit="ms",
        meaning="sum of t over the blocks",
        when="episode",
        value=lambda episode: 1e3 * episode.latency_s,
        better="lower",
        label="latency",
        in_results=True,
    ),
    Metric(
        name="wlr",
        shape=(),
        unit="1/ms",
        meaning="equation (8): W / t, gate weight served per millisecond",
        when="block",
        value=attrgetter("wlr"),
        over_blocks="mean",
        better="higher",
        label="WLR",
        in_terms=True,
        in_results=True,
    ),
    Metric(
        name="wlr_device",
        shape=(),
        unit="1/ms",
        meaning="equation (8) by device: W[u] / t[u], summed over devices",
        when="block",
        value=attrgetter("wlr_device"),
        over_blocks="mean",
        better="higher",
        in_terms=True,
    ),
    Metric(
        name="latency_ratio",
        shape=(),
        unit="-",
        meaning="t / t_vanilla: below 1 is faster than the own routing",
        when="block",
        value=attrgetter("latency_ratio"),
        over_blocks="mean",
        better="lower",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="nll",
        shape=(),
        unit="nats",
        meaning="negative log-likelihood of the text, mean over tokens",
        when="episode",
        value=attrgetter("nll"),
        better="lower",
        label="NLL",
        in_results=True,
    ),
    Metric(
        name="token_nll",
        shape=("J",),
        unit="nats",
        meaning="negative log-likelihood of this token, 0 at padding",
        when="episode",
        value=attrgetter("token_nll"),
        better="lower",
    ),
    Metric(
        name="added_nll",
        shape=(),
        unit="nats",
        meaning="`nll` minus `reference_nll`; 0 before the last block",
        when="episode",
        value=lambda episode: episode.nll - episode.reference_nll,
        better="lower",
        label="added NLL",
        in_info=False,
        in_terms=True,
        in_results=True,
    ),
    Metric(
        name="next_token_accuracy",
        shape=(),
        unit="-",
        meaning="share of tokens whose next token the model guessed",
        when="episode",
        value=attrgetter("next_token_accuracy"),
        better="higher",
        label="accuracy",
        in_results=True,
    ),
    Metric(
        name="reference_nll",
        shape=(),
        unit="nats",
        meaning="`nll` of the model's own routing on the same window",
        when="episode",
        value=attrgetter("reference_nll"),
    ),
    Metric(
        name="gate_weight_kept",
        shape=(),
        unit="-",
        meaning="W over that of the model's own routing",
        when="block",
        value=attrgetter("gate_weight_kept"),
        over_blocks="mean",
        better="higher",
        in_results=True,
    ),
    Metric(
        name="repaired_tokens",
        shape=(),
        unit="-",
        meaning="tokens that the action left without an expert",
        when="block",
        value=attrgetter("repaired_tokens"),
        over_blocks="sum",
        in_results=True,
    ),
    Metric(
        name="replaced_pairs",
        shape=(),
        unit="-",
        meaning="chosen pairs whose device was away; the next best expert ran",
        when="block",
        value=attrgetter("replaced_pairs"),
        over_blocks="sum",
        better="lower",
    ),
    Metric(
        name="unserved_tokens",
        shape=(),
        unit="-",
        meaning="tokens that went on without the block: no expert was there",
        when="block",
        value=attrgetter("unserved_tokens"),
        over_blocks="sum",
        better="lower",
    ),
    Metric(
        name="pair_price_ms",
        shape=("J", "E"),
        unit="ms",
        meaning="what this pair adds to t at the margin, at the bandwidth optimum",
        when="block",
        value=lambda block: None if block.pair_price_s is None else 1e3 * block.pair_price_s,
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="token_price_ms",
        shape=("J",),
        unit="ms",
        meaning="what the pairs of this token cost together; they add up to t",
        when="block",
        value=lambda block: None if block.token_price_s is None else 1e3 * block.token_price_s,
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="token_divergence",
        shape=("J",),
        unit="nats",
        meaning="KL of the predictions from the own routing's; 0 before the last block",
        when="episode",
        value=attrgetter("token_divergence"),
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="divergence",
        shape=(),
        unit="nats",
        meaning="mean of `token_divergence` over the tokens; 0 before the last block",
        when="episode",
        value=attrgetter("divergence"),
        better="lower",
        label="divergence",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="reference_token_nll",
        shape=("J",),
        unit="nats",
        meaning="`token_nll` of the model's own routing; 0 before the last block",
        when="episode",
        value=attrgetter("reference_token_nll"),
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="message_bits",
        shape=(),
        unit="-",
        meaning="bits of an element on the link, mean over the messages",
        when="block",
        value=attrgetter("message_bits"),
        over_blocks="mean",
        better="lower",
        in_terms=True,
        on_request="bits",
    ),
    Metric(
        name="device_energy_j",
        shape=(),
        unit="J",
        meaning="equation (12): active power x busy time + idle power x waiting, all devices",
        when="block",
        value=lambda block: None if block.device_energy_j is None else block.device_energy_j.sum(axis=-1),
        over_blocks="sum",
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="energy",
    ),
    Metric(
        name="radio_energy_j",
        shape=(),
        unit="J",
        meaning="equation (12): transmit power x air time, down and up, all devices",
        when="block",
        value=lambda block: None if block.radio_energy_j is None else block.radio_energy_j.sum(axis=-1),
        over_blocks="sum",
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="energy",
    ),
    Metric(
        name="energy_per_token_j",
        shape=(),
        unit="J",
        meaning="`device_energy_j` and `radio_energy_j` over the number of tokens",
        when="block",
        value=attrgetter("energy_per_token_j"),
        over_blocks="sum",
        better="lower",
        label="energy per token",
        in_info=False,
        in_terms=True,
        on_request="energy",
    ),
)
"""Every metric by its name."""
_OWN = tuple(METRICS)


def register_metric(metric: Metric) -> None:
    """Add a row, which every environment and evaluation made from now on shows; a metric of your own is replaced.

    Register in the module that worker processes import too, such as that of ``gym.make("module:WDMoE-v0")``.

    Args:
        metric: the row.

    Raises:
        ValueError: a name that the package keeps for itself.
    """
    if metric.name in (*_OWN, REWARD_TERMS):
        raise ValueError(f"a metric must have a name of its own and none of {', '.join(_OWN)}, got {metric.name!r}")
    METRICS[metric.name] = metric


def result_metrics() -> tuple[Metric, ...]:
    """The metrics that an evaluation keeps of every episode, in the order of its columns."""
    return tuple(metric for metric in METRICS.values() if metric.in_results)


def results_of(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Float]:
    """What an evaluation keeps of N whole episodes: names of metrics to values (N,).

    Args:
        blocks: the info of each of their blocks, in order.
    """
    return {metric.name: metric.of_episode(blocks) for metric in result_metrics()}


def blocks_as_one(infos: Sequence[dict[str, Any]], further: Sequence[Metric] = ()) -> dict[str, Any]:
    """Info of several blocks as that of one step.

    Args:
        infos: of consecutive blocks of N episodes, in order.
        further: metrics that may be in them, beside those of ``METRICS``.

    Returns:
        That of the last one, in which every figure that adds up or averages over blocks does so over these.
    """
    if len(infos) == 1:
        return infos[0]
    info = {**infos[-1], REWARD_TERMS: dict(infos[-1][REWARD_TERMS])}
    for metric in (*METRICS.values(), *further):
        for place, many in ((info, infos), (info[REWARD_TERMS], [one[REWARD_TERMS] for one in infos])):
            if metric.over_blocks and metric.when == "block" and metric.name in place:
                reduced = np.mean if metric.over_blocks == "mean" else np.sum
                place[metric.name] = reduced([one[metric.name] for one in many], axis=0)
    return info


class MetricReader:
    """Makes the info of a step from its results, by the rows that ``METRICS`` has when the reader is made.

    Args:
        requested: which rows to read too of those that are there only on request, as ``EnvConfig.requested``.
    """

    def __init__(self, requested: tuple[str, ...] = ()) -> None:
        self._requested = requested
        rows = [one for one in METRICS.values() if one.on_request in ("", *requested)]
        self._rows = {
            kind: [_readable(one) for one in rows if one.when == when]
            for kind, when in ((BlockResult, "block"), (EpisodeResult, "episode"))
        }
        self._terms_to_come = [(one.name, one.shape) for one in rows if one.when == "episode" and one.in_terms]

    def __reduce__(self) -> tuple[type[MetricReader], tuple[tuple[str, ...]]]:
        """Rebuild from the table: a row may hold a function that cannot be pickled."""
        return MetricReader, (self._requested,)

    def read(self, result: BlockResult | EpisodeResult, info: dict[str, Any]) -> dict[str, Any]:
        """Write the figures of a result where they belong, in the order of the rows.

        Args:
            result: of N episodes, after a block or after the last one.
            info: gets the entries (N, ...), and the dict of the terms of the reward.

        Returns:
            ``info``.

        Raises:
            ValueError: a registered metric has another shape than its row says.
        """
        terms = info.get(REWARD_TERMS, {})
        for name, value, in_info, in_terms in self._rows[type(result)]:
            figure = value(result)
            if figure is None:  # such as pairs that were not served, which are unknown without a runner
                continue
            if in_info:
                info[name] = figure
            if in_terms:
                terms[name] = figure
        info.setdefault(REWARD_TERMS, terms)
        return info

    def add_terms_to_come(self, info: dict[str, Any]) -> None:
        """Add the terms of the episode before its end, where they are 0.

        Args:
            info: of a block.
        """
        (batch, tokens, experts), devices = info["selection"].shape, info["shares"].shape[-1]
        sizes = {"J": tokens, "E": experts, "U": devices}
        for name, shape in self._terms_to_come:
            info[REWARD_TERMS][name] = np.zeros((batch, *map(sizes.__getitem__, shape)))


_Readable = tuple[str, Callable[[Any], Any], bool, bool]


def _readable(metric: Metric) -> _Readable:
    """What reading a row needs; the value of one that is not of this file is checked."""
    value = metric.value if metric.name in _OWN else partial(_checked_value, metric)
    return metric.name, value, metric.in_info, metric.in_terms


def _checked_value(metric: Metric, result: BlockResult | EpisodeResult) -> Any:
    value = np.asarray(metric.value(result))
    count = len(result.wlr if isinstance(result, BlockResult) else result.nll)
    if value.ndim != 1 + len(metric.shape) or len(value) != count:
        expected = ", ".join((str(count), *metric.shape))
        raise ValueError(f"expected an array ({expected}) as the metric {metric.name}, got shape {value.shape}")
    return value


def reward_function(reward: str | RewardFunction, quality_weight: float, energy_weight: float = 0.0) -> RewardFunction:
    """The function from terms to rewards (N,).

    Args:
        reward: ``"wlr"``, ``"wlr_device"``, ``"latency_quality"``, ``"latency_divergence"``,
            ``"latency_quality_energy"`` or a function of the terms.
        quality_weight: cost of one nat of added NLL under ``"latency_quality"``, of divergence under
            ``"latency_divergence"``.
        energy_weight: cost of one joule per token under ``"latency_quality_energy"``.

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    known: dict[str, RewardFunction] = {
        "wlr": itemgetter("wlr"),
        "wlr_device": itemgetter("wlr_device"),
        "latency_quality": partial(latency_quality, quality_weight),
        "latency_divergence": partial(latency_divergence, quality_weight),
        "latency_quality_energy": partial(latency_quality_energy, quality_weight, energy_weight),
    }
    if callable(reward):
        return reward
    if reward not in known:
        raise ValueError(f"reward must be one of {', '.join(known)} or a function of the terms, got {reward!r}")
    return known[reward]


def latency_quality_energy(quality_weight: float, energy_weight: float, terms: Terms) -> Float:
    """Rewards (N,) of ``latency_quality``, less the weighted energy of each token in every block, in J."""
    return latency_quality(quality_weight, terms) - energy_weight * terms["energy_per_token_j"]


def latency_quality(quality_weight: float, terms: Terms) -> Float:
    """Rewards (N,): -t / t_vanilla in every block, and after the last less the weighted loss of quality in nats."""
    return -terms["latency_ratio"] - quality_weight * terms["added_nll"]


def latency_divergence(quality_weight: float, terms: Terms) -> Float:
    """Rewards (N,): as ``latency_quality``, with the divergence of the predictions in place of the added NLL.

    Both have the same aim. The NLL is that of the one text that came, the divergence its mean over all texts that the
    own routing expects; so it carries less noise.
    """
    return -terms["latency_ratio"] - quality_weight * terms["divergence"]


def evaluate_reward(function: RewardFunction, terms: Terms) -> Float:
    """Rewards (N,) of the terms.

    Raises:
        ValueError: the function gave another shape, or a value that is not finite.
    """
    rewards = np.asarray(function(terms), dtype=np.float64)
    expected = terms["wlr"].shape
    if rewards.shape != expected or not np.isfinite(rewards).all():
        raise ValueError(f"expected finite rewards of shape {expected}, got {rewards!r}")
    return rewards
