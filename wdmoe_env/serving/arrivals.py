"""Requests of an episode: when each arrives, what it asks, and how long its answer is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import shown
from wdmoe_env.physics.latency import Float
from wdmoe_env.reading import numbered_lines, read_text, shown_path
from wdmoe_env.serving_config import MOST_REQUESTS, ServingConfig, arrivals_of

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """R requests in the order of their arrival.

    Attributes:
        arrival_s: (R,) seconds from the beginning of the episode.
        window: (R,) which window of text each is about.
        prompt: (R,) tokens of the prompt.
        answer: (R,) tokens to generate.
    """

    arrival_s: Float
    window: Whole
    prompt: Whole
    answer: Whole

    @property
    def rows(self) -> Whole:
        """(R,) tokens of each that the model reads, all but the last of its answer."""
        return self.prompt + self.answer - 1


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests of a file.

    Attributes:
        arrival_s: (R,) seconds from the first arrival, not falling.
        prompt: (R,) tokens of the prompt.
        answer: (R,) tokens to generate.
    """

    arrival_s: Float
    prompt: Whole
    answer: Whole

    @property
    def rate_hz(self) -> float:
        """Requests a second over the time from the first to the last."""
        return (len(self.arrival_s) - 1) / float(self.arrival_s[-1])


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws requests of episodes by a configuration.

    Attributes:
        config: how requests arrive.
        num_windows: windows of text there are.

    Raises:
        ValueError, OSError: the file of a trace cannot be read, or does not fit.
    """

    config: ServingConfig
    num_windows: int

    @property
    def trace(self) -> Trace | None:
        """The first R requests of the file, where there is one."""
        kind, argument = arrivals_of(self.config.arrivals)
        return read_trace(Path(argument).expanduser(), self.config) if kind == "trace" else None

    def draw(self, generator: np.random.Generator) -> Requests:
        """Requests whose gaps are 1 s in the mean, but for those of a trace; see ``Draws.at_rate``.

        Args:
            generator: of the episode; it advances alike whatever the rate is.
        """
        config, count = self.config, self.config.requests
        window = generator.integers(self.num_windows, size=count)
        prompt = generator.integers(*config.prompt_tokens, size=count, endpoint=True)
        answer = generator.integers(*config.answer_tokens, size=count, endpoint=True)
        trace = self.trace
        if trace is not None:
            return Requests(trace.arrival_s, window, trace.prompt, trace.answer)
        kind, argument = arrivals_of(config.arrivals)
        shape = float(argument) if kind == "gamma" else 1.0
        gaps = generator.gamma(shape, 1.0 / shape, size=count)
        return Requests(np.cumsum(gaps), window, prompt, answer)

    def at_rate(self, requests: Requests, capacity_hz: float) -> Requests:
        """The same requests at the rate that the configuration says.

        Args:
            requests: as ``draw`` gave them.
            capacity_hz: requests a second that the episode's channel sustains.
        """
        config, trace = self.config, self.trace
        wanted = config.arrival_rate_hz
        if trace is None:
            scale = 1.0 / (config.load * capacity_hz if wanted is None else wanted)
        elif wanted is None or len(trace.arrival_s) < 2 or not trace.arrival_s[-1]:
            scale = 1.0
        else:
            scale = trace.rate_hz / wanted
        return Requests(requests.arrival_s * scale, requests.window, requests.prompt, requests.answer)

    def rows_of_passes(self) -> tuple[Float, float]:
        """What a slot that is never empty reads: how likely a pass reads 1 to C tokens of it, and passes a request.

        Returns:
            Probabilities (C,) of 1 to C tokens, and the mean number of passes of a request.
        """
        config, trace = self.config, self.trace
        if trace is None:
            prompts = np.arange(config.prompt_tokens[0], config.prompt_tokens[1] + 1)
            answer = sum(config.answer_tokens) / 2
        else:
            prompts, answer = trace.prompt, float(trace.answer.mean())
        counts = np.zeros(config.chunk)
        counts[-1] = (prompts // config.chunk).mean()
        rest = prompts % config.chunk
        counts += np.bincount(rest[rest > 0] - 1, minlength=config.chunk) / len(prompts)
        counts[0] += answer - 1
        return counts / counts.sum(), float(counts.sum())


def read_trace(path: Path, config: ServingConfig) -> Trace:
    """The first R requests of a file with lines ``input_toks,output_toks,arrival_time_ns``; further fields are ignored.

    Args:
        path: of the file; a first line of names is passed over.
        config: how many requests, and how long they may be.

    Raises:
        ValueError: a line is no request, comes before the one above it in time, or is longer than the configuration
            allows; or there are too few. The message names the line.
        OSError: the file cannot be read.
    """
    return _read_trace(path, config.requests, config.prompt_tokens[1], config.answer_tokens[1])


@lru_cache(maxsize=8)
def _read_trace(path: Path, count: int, most_prompt: int, most_answer: int) -> Trace:
    found: list[tuple[int, int, float]] = []
    for number, line in numbered_lines(read_text(path)):
        if number == 1 and "input_toks" in line:
            continue
        try:
            found.append(_request(line, most_prompt, most_answer))
            if len(found) > 1 and found[-1][2] < found[-2][2]:
                raise ValueError(f"expected arrivals in the order of time, got {found[-1][2]:g} after {found[-2][2]:g}")
        except ValueError as error:
            raise ValueError(f"{shown_path(path)}, line {number}: {error}") from None
        if len(found) == min(count, MOST_REQUESTS):
            break
    if len(found) < count:
        raise ValueError(f"expected {count} requests (requests) in {shown_path(path)}, got {len(found)}")
    prompt, answer, arrival_ns = zip(*found, strict=True)
    arrival_s = (np.array(arrival_ns, dtype=np.float64) - arrival_ns[0]) * 1e-9
    return Trace(arrival_s, np.array(prompt, dtype=np.int64), np.array(answer, dtype=np.int64))


def _request(line: str, most_prompt: int, most_answer: int) -> tuple[int, int, float]:
    """Prompt, answer and time in ns of a line.

    Raises:
        ValueError: it is none, or too long.
    """
    fields = line.split(",")
    try:
        prompt, answer, time_ns = int(fields[0]), int(fields[1]), float(fields[2])
    except (ValueError, IndexError):
        raise ValueError(f"expected input_toks,output_toks,arrival_time_ns, got {shown(line)}") from None
    if prompt < 1 or answer < 1 or not (math.isfinite(time_ns) and time_ns >= 0):
        raise ValueError(f"expected a token or more both ways and a time of at least 0, got {shown(line)}")
    if prompt > most_prompt or answer > most_answer:
        raise ValueError(
            f"expected at most {most_prompt} tokens of prompt and {most_answer} of answer (prompt_tokens, "
            f"answer_tokens), got {prompt} and {answer}"
        )
    return prompt, answer, time_ns
