"""The training loop: windows, schedule, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from train.language_model.model import loss
from train.language_model.recipe import PRESETS, Recipe
from train.tensors import MOMENTS, Names, check_finite, read_tensors
from wdmoe_env.writing import write_whole

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Progress:
    """What a run has done so far.

    Attributes:
        step: Optimizer steps taken.
        seconds: Time spent in them.
        hardware: What it ran on.
        budgets: (step, tokens) of every resumption that changed the token budget.
        curve: (step, mean cross-entropy since the last entry, balance) at regular steps.
    """

    step: int = 0
    seconds: float = 0.0
    hardware: str = ""
    budgets: list[tuple[int, int]] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)


class Trainer:
    """One training run.

    Args:
        recipe: Sizes and schedule.
        model: From ``train.language_model.model.build``.
        tokens: The training shard.
        folder: Where checkpoints go.

    Raises:
        ValueError: The shard is shorter than one batch of windows.
    """

    def __init__(self, recipe: Recipe, model: Any, tokens: NDArray[np.uint16], folder: Path) -> None:
        self.recipe, self.model, self.tokens, self.folder = recipe, model, tokens, folder
        self.device: torch.device = model.device
        self.progress = Progress(hardware=_hardware(self.device))
        self.optimizer = _optimizer(model, recipe)
        windows = (len(tokens) - 1) // recipe.sequence - 1
        if windows < recipe.batch:
            raise ValueError(f"The training text holds {len(tokens)} tokens, too few for one batch of windows.")
        self._per_epoch = windows // recipe.batch
        self._epoch, self._starts = -1, np.zeros(0, dtype=np.int64)

    def run(self, until: int | None = None, every: int = 50, report: Callable[[Progress], None] | None = None) -> None:
        """Train to the end of the schedule, or to step ``until``.

        Args:
            until: Stop after this many steps in all.
            every: Steps between two entries of the curve and two calls of ``report``.
            report: Called with the progress.

        Raises:
            ValueError: The loss or a weight is not finite any more.
        """
        end = self.recipe.steps if until is None else min(until, self.recipe.steps)
        self.model.train()
        sums, count = torch.zeros(2), 0
        while self.progress.step < end:
            began = time.perf_counter()
            sums += self._step(self.progress.step)
            count += 1
            self.progress.step += 1
            self.progress.seconds += time.perf_counter() - began
            if self.progress.step % every == 0 or self.progress.step == end:
                mean, balance = (sums / count).tolist()
                self.progress.curve.append((self.progress.step, mean, balance))
                sums, count = torch.zeros(2), 0
                if report is not None:
                    report(self.progress)
        self.check()

    def check(self) -> None:
        """Refuse to go on with weights that are not finite.

        Raises:
            ValueError: There are some.
        """
        check_finite(self._tensors(), f"after {self.progress.step} steps")

    def _step(self, step: int) -> Tensor:
        """Take one optimizer step; return (cross-entropy, balance)."""
        inputs, targets = self._batch(step)
        with torch.autocast(self.device.type, torch.bfloat16):
            cross_entropy, balance = loss(self.model, inputs, targets, 128 if self.device.type == "cpu" else 8192)
        torch.autograd.backward(cross_entropy + self.recipe.balance * balance)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        sums = torch.stack([cross_entropy.detach(), balance.detach()]).cpu()
        check_finite({"the loss": sums}, f"in step {step + 1}")
        return sums

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the windows of a step: every epoch is a new permutation over a new grid."""
        epoch, place = divmod(step, self._per_epoch)
        size, sequence = self.recipe.batch, self.recipe.sequence
        if epoch != self._epoch:
            generator = np.random.default_rng([self.recipe.seed, epoch])
            offset = generator.integers(sequence)
            self._starts = offset + sequence * generator.permutation((len(self.tokens) - 1) // sequence - 1)
            self._epoch = epoch
        rows = self._starts[place * size : (place + 1) * size, None] + np.arange(sequence + 1)
        windows = torch.from_numpy(self.tokens[rows].astype(np.int64)).to(self.device)
        return windows[:, :-1], windows[:, 1:]

    def save(self) -> None:
        """Write weights, optimizer state and progress as one safetensors file, whole or not at all.

        Raises:
            ValueError: A weight is not finite; the file stays as it is.
        """
        self.check()
        header = {"recipe": json.dumps(asdict(self.recipe)), "progress": json.dumps(asdict(self.progress))}
        write_whole(self.folder / CHECKPOINT, save(self._tensors(), header))

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and moments, by their names in a checkpoint."""
        tensors = self._weights()
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def _weights(self) -> dict[str, Tensor]:
        return {f"model.{name}": value.detach() for name, value in self.model.named_parameters()}

    def resume(self) -> None:
        """Go on from the folder's checkpoint; the recipe may have another token budget than before.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It belongs to another recipe, or holds what no training leaves; the run stays as it is.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: there is nothing to resume.")
        found, progress = read_progress(path)
        if replace(found, tokens=self.recipe.tokens) != self.recipe:
            raise ValueError(f"{path} was written with {found}, the run to resume has {self.recipe}.")
        tensors = self._read(path, progress.step)
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(tensors[f"model.{name}"])
            if progress.step:
                self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in MOMENTS}
        if found.tokens != self.recipe.tokens:
            progress.budgets.append((progress.step, self.recipe.tokens))
        self.progress = replace(progress, hardware=self.progress.hardware)

    def _read(self, path: Path, step: int) -> dict[str, Tensor]:
        """Tensors of a checkpoint that was written at a step.

        Raises:
            ValueError: They are not those of this model at that step.
        """
        names: list[tuple[Names, Tensor]] = [
            ({key: f"{key}.{name}" for key in MOMENTS}, value.detach()) for name, value in self.model.named_parameters()
        ]
        try:
            tensors = read_tensors(path, self._weights(), names, str(self.device))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path} is not a checkpoint of this model: {str(error).splitlines()[0]}.") from None
        for keys, _ in names:
            taken = int(tensors[keys["step"]].item()) if keys["step"] in tensors else 0
            if taken != step:
                raise ValueError(f"{path} says that {step} steps were taken, but {keys['step']} counts {taken}.")
        return tensors


def read_progress(path: Path) -> tuple[Recipe, Progress]:
    """Return a checkpoint's recipe and progress.

    Raises:
        ValueError: The file is not a whole checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}.") from error
    if not {"recipe", "progress"} <= header.keys():
        raise ValueError(f"{path} is no checkpoint of this recipe: its header lacks recipe and progress.")
    try:
        recipe, progress = Recipe(**_numbers(header["recipe"])), Progress(**_numbers(header["progress"]))
        progress.curve = [(int(step), float(mean), float(balance)) for step, mean, balance in progress.curve]
        progress.budgets = [(int(step), int(tokens)) for step, tokens in progress.budgets]
        for value, default in ((recipe, PRESETS["tiny"]), (progress, Progress())):
            _check_types(value, default)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no checkpoint of this recipe: its header is damaged: {reason}.") from None
    return recipe, progress


def _numbers(text: str) -> dict[str, Any]:
    """An object of JSON, without NaN and infinity, which are no JSON.

    Raises:
        TypeError, ValueError: Something else.
    """

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"it holds {number}")
        return float(number)

    return dict(json.loads(text, parse_float=finite, parse_constant=finite))


def _check_types(value: Any, default: Any) -> None:
    """Refuse fields of another type than a default's, and counts below 0.

    Raises:
        TypeError: There is one.
    """
    for name in (one.name for one in fields(value)):
        found, expected = getattr(value, name), getattr(default, name)
        number = isinstance(expected, float) and type(found) in (int, float)
        if not (number or type(found) is type(expected)) or (type(found) is int and found < 0):
            raise TypeError(f"{name} is {found!r}")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to a twentieth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)} in bfloat16"
    return f"{torch.get_num_threads()} CPU thread(s) in bfloat16"
