"""Every MoE architecture of the installed transformers, tiny and random, split against untouched.

``python -m tests.architectures`` writes what it finds into ``docs/architectures.md``. The architectures are read out of
transformers' sources: one that is new is tried with the sizes of ``tiny_configs.json``, and fails by name where it
needs others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers.utils import logging

from wdmoe_env.moe.hook import install_hook
from wdmoe_env.moe.routing import GATE_SCORES
from wdmoe_env.moe.runner import LocalRunner
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.serving.fits import attention_window, why_not

MODELS = Path(transformers.__file__).parent / "models"
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
MARKERS = ("<!-- table -->", "<!-- end of table -->")

DECORATED = re.compile(r"^@use_experts_implementation.*\nclass (\w+)", re.MULTILINE)
UNDECORATED = re.compile(r"^class (\w*(?:Experts|MoE|Moe))\(nn\.Module", re.MULTILINE)
CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)

# Sizes for every configuration that knows the name, in groups; by folder, what these leave open or what it wants
# otherwise; and by experts class, the model's class where it is neither ...ForCausalLM nor ...TextModel.
TINY = json.loads(Path(__file__).with_name("tiny_configs.json").read_text(encoding="utf-8"))
SMALL = {name: value for group in TINY["small"].values() for name, value in group.items()}
TOKENS = (2, 8)


@dataclass(frozen=True)
class Architecture:
    """One experts class of transformers.

    Attributes:
        folder: of its source, below transformers/models.
        experts: name of the class.
        decorated: whether it is in transformers' experts registry.
    """

    folder: str
    experts: str
    decorated: bool

    def __str__(self) -> str:
        return self.experts

    @property
    def model_class(self) -> Any:
        """The smallest class that makes text of text: causal language model, else the text model inside another."""
        module = importlib.import_module(f"transformers.models.{self.folder}.modeling_{self.folder}")
        names = CLASS.findall(Path(module.__file__).read_text())
        likely = [name for ending in ("ForCausalLM", "TextModel") for name in names if name.endswith(ending)]
        return getattr(module, TINY["model_classes"].get(self.experts) or likely[0])


@cache
def architectures() -> list[Architecture]:
    """Every architecture with experts, by folder."""
    found = []
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        decorated = DECORATED.findall(source)
        names = decorated or UNDECORATED.findall(source)[:1]
        found += [Architecture(path.parent.name, name, bool(decorated)) for name in names]
    return found


def random_model(architecture: Architecture, seed: int = 0) -> Any:
    """An untouched model: stock eager experts, every weight random, gate logits of a few units."""
    kind = architecture.model_class
    known = {one.name for one in dataclasses.fields(kind.config_class)}
    sizes = {name: value for name, value in SMALL.items() if name in known}
    config = kind.config_class(**copy.deepcopy(sizes | TINY["own"].get(architecture.folder, {})))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind._from_config(config, experts_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("tid2eid"):  # a table from tokens to experts
                tensor.copy_(torch.rand(len(tensor), 8, generator=generator).argsort(dim=1)[:, : tensor.shape[1]])
            elif name.endswith(("bias", "biases")):
                tensor.normal_(0.0, 0.1, generator=generator)
            elif tensor.dim() > 1 and isinstance(tensor, torch.nn.Parameter):
                gain = 2.0 if re.search(r"(gate|router|classifier)\.weight$", name) else 1.0
                tensor.normal_(0.0, gain * SMALL["hidden_size"] ** -0.5, generator=generator)
            elif isinstance(tensor, torch.nn.Parameter):  # norms and scales
                tensor.mul_(1.0 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@dataclass
class Finding:
    """What came of splitting one architecture.

    Attributes:
        architecture: which.
        model: name of the model's class.
        refusal: what the split says where it does not take the model.
        rule: the score that its own weights follow, and what their sum over a token is.
        beside: modules of a block that are always on, and stay with the attention.
        num_blocks: MoE blocks that text meets.
        difference: largest of the outputs' from the untouched model's, own selection.
        change: largest that dropping the best expert of every token brings.
        tokens: those that the untouched and the split model generate, where they do.
        slots: whether its requests can be served side by side, see ``wdmoe_env.serving.fits``.
    """

    architecture: Architecture
    model: str = ""
    refusal: str = ""
    rule: str = ""
    beside: list[str] = field(default_factory=list)
    num_blocks: int = 0
    difference: float = float("nan")
    change: float = float("nan")
    tokens: tuple[list[Any], list[Any]] | None = None
    slots: str = ""


@cache
def examine(architecture: Architecture) -> Finding:
    """Split a model of an architecture and compare it with the same weights, untouched."""
    untouched, model = random_model(architecture), random_model(architecture)
    finding = Finding(architecture, type(model).__name__)
    try:
        split = _split(model, finding)
    except ValueError as error:
        finding.refusal = str(error)
        return finding
    finding.beside = _always_on(model, split.experts[0])
    finding.num_blocks = split.num_blocks
    ids = torch.randint(SMALL["vocab_size"], TOKENS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = _outputs(untouched(input_ids=ids))
    sums = _sums_of_own_weights(split, ids)
    finding.rule = f"{finding.rule}, {_describe(sums)}"
    finding.difference = _distance(_run(split, ids, lambda block: block.routed), expected)
    finding.change = _distance(_run(split, ids, _without_the_best), expected)
    if model.can_generate():
        finding.tokens = (_generate(untouched, ids), _generate(model, ids))
    window = attention_window(model.config.get_text_config()) is not None
    finding.slots = "within its window" if window else "no" if why_not(split, 16) else "yes"
    return finding


def _split(model: Any, finding: Finding) -> SplitModel:
    """The model, split; the score that was found goes into the finding."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not hasattr(model.config.get_text_config(), "vocab_size"):  # a model of images
            install_hook(model, LocalRunner(), torch.zeros(1, 1, dtype=torch.long))
        split = SplitModel(model)
    score = split.experts[0]._split_block.gate_score
    finding.rule = next(name for name, known in GATE_SCORES.items() if known is score)
    if any("follow no known score" in str(warning.message) for warning in caught):
        finding.rule = "none of ours"
    return split


def _sums_of_own_weights(split: SplitModel, ids: torch.Tensor) -> torch.Tensor:
    sums: list[torch.Tensor] = []
    handles = [
        experts.register_forward_pre_hook(lambda module, args: sums.append(args[2].float().sum(dim=1)))
        for experts in split.experts
    ]
    with torch.no_grad():
        split.model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return torch.cat(sums)


def _describe(sums: torch.Tensor) -> str:
    """What the weights of a token add up to."""
    if float(sums.max() - sums.min()) > 1e-4:
        return "sum varies"
    return f"sum {float(sums.mean()):.3g}"


def _run(split: SplitModel, ids: torch.Tensor, choose: Any) -> torch.Tensor:
    forward = split.forward(ids)
    indices = []
    while forward.block is not None:
        indices.append(forward.block.index)
        forward.resume(choose(forward.block))
    assert indices == list(range(split.num_blocks))
    return _outputs(forward.result)


def _without_the_best(block: Any) -> torch.Tensor:
    best = (block.gate_probs * block.routed).argmax(dim=1)
    return block.routed & ~functional.one_hot(best, block.routed.shape[1]).bool()


def _outputs(result: Any) -> torch.Tensor:
    outputs: torch.Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return outputs


def _distance(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    return float((outputs - expected).abs().max())


def _generate(model: Any, ids: torch.Tensor) -> list[Any]:
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
    return tokens.tolist()


def _always_on(model: torch.nn.Module, experts: Any) -> list[str]:
    """Modules beside the experts, or beside their block, that every token goes through."""
    path = next(name for name, module in model.named_modules() if module is experts).split(".")
    found: list[str] = []
    for depth in (1, 2):
        parent = model.get_submodule(".".join(path[:-depth]))
        own = path[-depth]
        found += [name for name, _ in parent.named_children() if name != own and re.search("shared|^mlps?$", name)]
    return list(dict.fromkeys(found))


NOTES = {
    "deepseek_v4": "the first blocks choose by token, not by score",
    "ernie4_5_vl_moe": "the experts of images are another set, which text does not meet",
    "longcat_flash": "patched; identity experts stay at the base station",
    "muse_spark": "a latent state crosses the link",
    "nemotron_h": "a latent state crosses the link where `moe_latent_size` is set",
    "phimoe": "other selections than its own are weighted by softmax",
    "step3p7": "patched",
    "zaya": "a token that skips the block counts for expert 0, with weight 0",
}
TOLERANCE = 1e-5
MEASURED = 4  # the column that may differ from machine to machine


def table() -> str:
    """Every architecture: works, exactly or within what; or does not, and why."""
    findings = [examine(one) for one in architectures()]
    works = [one for one in findings if not one.refusal]
    lines = [
        f"transformers {transformers.__version__}: {len(works)} of {len(findings)} architectures work.",
        "",
        "| architecture | class | weights | always on | own routing | `generate` | served in slots | note |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(one) for one in works),
        "",
        "| refused | class | why |",
        "|---|---|---|",
        *(
            f"| {one.architecture.folder} | `{one.model}` | {one.refusal.partition(': ')[2]} |"
            for one in findings
            if one.refusal
        ),
    ]
    return "\n".join(lines)


def _row(finding: Finding) -> str:
    folder = finding.architecture.folder
    exact = "exact" if finding.difference == 0 else f"within {TOLERANCE:.0e}".replace("e-0", "e-")
    beside = ", ".join(f"`{name}`" for name in finding.beside) or "-"
    generate = "same" if finding.tokens else "-"
    note = NOTES.get(folder, "")
    found = f"{finding.rule} | {beside} | {exact} | {generate} | {finding.slots}"
    return f"| {folder} | `{finding.model}` | {found} | {note} |"


def committed() -> str:
    """The table of the page."""
    return PAGE.read_text(encoding="utf-8").partition(MARKERS[0])[2].partition(MARKERS[1])[0].strip()


def main() -> None:
    """Write the table into the page."""
    argparse.ArgumentParser(prog="python -m tests.architectures", description=main.__doc__).parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    PAGE.write_text(f"{before}{MARKERS[0]}\n\n{table()}\n\n{MARKERS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
