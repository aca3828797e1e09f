"""Settings of a cell that serves requests: ``EnvConfig.serving``, of the ids ``WDMoE-Serve-*``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wdmoe_env.checks import check_integer, check_number, items_of, plain, shown
from wdmoe_env.fields import put

ARRIVALS = "'poisson', 'gamma:BURSTINESS' or 'trace:FILE'"
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 2**20

_RANGES = {
    "load": (1e-6, 1e3),
    "arrival_rate_hz": (1e-9, 1e9),
    "horizon_s": (1e-6, 1e9),
    "base_station_ms": (0.0, 1e6),
    "ttft_limit_ms": (1e-6, 1e9),
    "tpot_limit_ms": (1e-6, 1e9),
    "latency_scale_ms": (1e-6, 1e9),
}
_OPTIONAL = ("arrival_rate_hz", "horizon_s")


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """How requests arrive, how long they are, and how many run at once.

    Attributes:
        slots: requests S that run at once.
        chunk: tokens C of a prompt that a pass reads at most; a pass has J = S x C rows.
        prompt_tokens: least and greatest length of a prompt; drawn uniformly.
        answer_tokens: least and greatest number of tokens to generate; drawn uniformly.
        arrivals: ``"poisson"``, ``"gamma:BURSTINESS"`` (gaps of a Gamma law of that shape, so that 1 is Poisson and
            less is bursty), or ``"trace:FILE"`` (lines ``input_toks,output_toks,arrival_time_ns``, in the order of
            time).
        load: arrivals in units of what own routing with optimal shares sustains on the episode's channel.
        arrival_rate_hz: requests a second in place of ``load``; ``None`` takes the load. The times of a trace are its
            own, unless a rate is given, to which they are then scaled.
        requests: requests R of an episode.
        horizon_s: simulated time after which an episode is truncated; ``None`` waits for all requests.
        base_station_ms: the base station's own time for each block.
        generate: whether the tokens of the answer are those that the model says, greedily, rather than the document's.
        ttft_limit_ms: a request is good if its first token takes no longer, and also:
        tpot_limit_ms: each further token takes no longer in the mean. Both are MLPerf's interactive limits of
            Llama3.1-8B.
        latency_scale_ms: time in the system that costs a reward of 1 under ``reward="serving"``.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field of another type.
    """

    slots: int = 4
    chunk: int = 8
    prompt_tokens: tuple[int, int] = (16, 48)
    answer_tokens: tuple[int, int] = (8, 32)
    arrivals: str = "poisson"
    load: float = 0.95
    arrival_rate_hz: float | None = None
    requests: int = 16
    horizon_s: float | None = None
    base_station_ms: float = 0.0
    generate: bool = False
    ttft_limit_ms: float = 500.0
    tpot_limit_ms: float = 30.0
    latency_scale_ms: float = 1000.0

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        for name, most in (("slots", 4096), ("chunk", 65536), ("requests", MOST_REQUESTS)):
            put(self, name, check_integer(name, getattr(self, name), at_least=1, at_most=most))
        for name in ("prompt_tokens", "answer_tokens"):
            put(self, name, _range(name, getattr(self, name)))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                put(self, name, check_number(name, value, at_least=low, at_most=high))
        put(self, "generate", plain(self.generate))
        if not isinstance(self.generate, bool):
            raise TypeError(f"generate must be a bool, got {shown(self.generate)}")
        put(self, "arrivals", plain(self.arrivals))
        if not isinstance(self.arrivals, str):
            raise TypeError(f"arrivals must be {ARRIVALS}, got {shown(self.arrivals)}")
        arrivals_of(self.arrivals)

    @property
    def num_rows(self) -> int:
        """J = S x C, rows of a pass."""
        return self.slots * self.chunk

    @property
    def longest(self) -> int:
        """Tokens of the longest request that the model reads: all but the last of its answer."""
        return self.prompt_tokens[1] + self.answer_tokens[1] - 1


def arrivals_of(arrivals: str) -> tuple[str, str]:
    """Kind and argument of a law of arrivals.

    Raises:
        ValueError: no such law, or an argument that it does not take.
    """
    kind, colon, argument = arrivals.partition(":")
    if kind == "gamma" and colon:
        try:
            check_number("burstiness", float(argument), at_least=1e-3, at_most=1e6)
        except ValueError:
            raise ValueError(
                f"arrivals 'gamma:BURSTINESS' must have a number of 0.001 to 1e6, got {argument!r}"
            ) from None
    elif not (arrivals == "poisson" or (kind == "trace" and argument)):
        raise ValueError(f"arrivals must be {ARRIVALS}, got {shown(arrivals)}")
    return kind, argument


def _range(name: str, value: Any) -> tuple[int, int]:
    items = items_of(value)
    if items is None or len(items) != 2:
        raise ValueError(f"{name} must be (least, greatest), got {shown(value)}")
    low, high = (check_integer(name, item, at_least=1, at_most=MOST_TOKENS) for item in items)
    if low > high:
        raise ValueError(f"{name} must be (least, greatest) with least <= greatest, got {shown(value)}")
    return low, high
