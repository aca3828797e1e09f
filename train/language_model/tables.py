"""The tables of the model card."""

from __future__ import annotations

from collections.abc import Sequence

from eval.statistics import Interval
from train.language_model.ablation import Effect
from train.language_model.evaluate import Evaluation
from train.language_model.specialisation import Specialisation
from train.text.sources import SOURCES

Summary = dict[str, dict[str, dict[str, float]]]
Cells = list[dict[str, str | float]]

PARTS = {"lm-train": "learned", "lm-validation": "validation", "train": "episodes, train", "test": "episodes, test"}


def text_table(summary: Summary) -> str:
    """Documents and kilobytes of each part, and the overlap of the environment's text, per domain."""
    rows = []
    for domain in summary["lm-train"]:
        cells = [summary[part][domain] for part in PARTS]
        sizes = [f"{cell['documents']:.0f} ({cell['bytes'] / 1000:,.0f} kB)" for cell in cells]
        shared = [f"{cell['overlap_with_lm_train']:.2%}" for cell in cells[2:]]
        rows.append([domain, *sizes, " / ".join(shared)])
    return _table(["documents (kB)", *PARTS.values(), "overlap, train / test"], rows)


def source_table() -> str:
    """Packages, where they come from, and their licences."""
    rows = [[f"{s.name} {s.version}", s.registry, ", ".join(s.domains), s.licence] for s in SOURCES]
    return _table(["package", "registry", "domains", "licence of the text"], rows)


def loss_table(evaluation: Evaluation) -> str:
    """Bits per byte and nats per token of the model, of its top-1 and of the n-grams, per domain."""
    rows = []
    for domain, result in evaluation.domains.items():
        bits, nats = (
            [f"{loss:.3f}" for loss in (losses.model, losses.top1, losses.kneser_ney)]
            for losses in (result.bits_per_byte, result.nats_per_token)
        )
        rows.append([domain, f"{result.tokens:,}", *bits, *nats])
    names = ("model", "top-1", "KN-5")
    head = ["domain", "tokens", *(f"{name}, bits/byte" for name in names), *(f"{name}, nats/token" for name in names)]
    return _table(head, rows)


def load_table(load: list[list[float]]) -> str:
    """Share of assignments per block and expert, in percent."""
    rows = [[str(block), *(f"{100 * share:.1f}" for share in shares)] for block, shares in enumerate(load)]
    return _table(["block", *(f"expert {expert}" for expert in range(len(load[0])))], rows)


def effect_table(effects: list[Effect]) -> str:
    """Added loss and suite points with their intervals."""
    rows = [[e.change, e.against, _interval(e.nats, 3), _interval(e.points, 2)] for e in effects]
    return _table(["change", "against", "added nats per token", "suite, points"], rows)


def specialisation_table(found: dict[str, Specialisation]) -> str:
    """What each domain and the others lose without its most used experts."""
    rows = []
    for domain, result in found.items():
        experts = ", ".join(f"{block}:{expert}" for block, expert in result.experts)
        rows.append([domain, experts, f"{result.own:+.3f}", f"{result.others:+.3f}"])
    return _table(["domain", "block:expert", "added nats, the domain", "added nats, mean of the others"], rows)


def suite_table(cells: Cells) -> str:
    """Accuracy in every format and domain, in percent."""
    names = ("chance", "trigram", "model")
    rows = []
    for cell in cells:
        accuracies = [f"{100 * float(cell[name]):.1f}" for name in names]
        rows.append([str(cell["format"]), str(cell["domain"]), str(cell["items"]), *accuracies])
    return _table(["format", "domain", "items", *names], rows)


def _interval(interval: Interval, digits: int) -> str:
    mean, low, high = (f"{value:+.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"


def _table(head: Sequence[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
