"""The model card: every figure in it is measured."""

from __future__ import annotations

from typing import Any

from train.language_model.evaluate import Evaluation
from train.language_model.loop import Progress
from train.language_model.recipe import Recipe
from train.text.sources import SOURCES

Summary = dict[str, dict[str, dict[str, float]]]

CARD = """# Model card: tiny

A small mixture-of-experts language model ({architecture}), trained from random weights on
public text so that `wdmoe_env` has a real model and a quality to lose. It is a research
instrument. It is not meant to write text for people.

- Architecture: {blocks} blocks of {experts} experts, {experts_per_token} used per token; hidden width
  {hidden}, expert width {expert_hidden}, {heads} attention heads, byte-level BPE of {vocabulary} tokens, tied
  embeddings; {parameters} parameters. Stored as float16; figures below are for float32 arithmetic on these weights.
- Context: {positions} tokens, the longest that it was trained on.
- Training: {trained} tokens ({epochs:.1f} passes), {done} of {steps} steps of {batch} x {sequence} tokens, AdamW,
  peak learning rate {learning_rate}, warm-up and cosine, load-balance loss {balance} per block, seed {seed};
  {minutes:.0f} minutes ({rate:.0f} tokens/s) on {hardware}. Last training loss {last:.3f} nats/token.{budgets}
- Licence: Apache-2.0 for the weights; the text keeps its own terms, below.

Made by `python -m train.text --out data`, then
`python -m train.language_model --data data --out runs/tiny --tokens {budget}`;
the figures by `python -m train.language_model --data data --evaluate runs/tiny`, which also writes this card.

## Text

Split by document, the translations by chapter over all languages at once, before anything was
learned. Long repeated lines are dropped within a domain. The environment's episode text
(`assets/text/train.jsonl.gz`, `test.jsonl.gz`) is disjoint from what the model learned from; the
overlap column is the share of its 13-word sequences that also occur in the learned text.

{text}

Sources:

{sources}

## Held-out loss

On the validation documents, which neither the model nor the n-grams saw. Windows of {positions} tokens;
every token but a document's leading end-of-text mark is predicted once, from its own window. Unigram:
absolute discounting. Bigram: interpolated Kneser-Ney. Both are counted on the same {corpus} tokens that
the model learned from. Nats per token; the last column is the model's loss in bits per byte.

{losses}

"top-1" keeps the weights and gives each token its most probable expert only.

## Routing

Share of (token, expert) assignments per block on the validation documents, in percent; even would be {even:.1f}.

{load}

The two most used experts of each domain (share in percent):

{preferred}

## Limits

- {parameters} parameters: grammar and vocabulary of the domains, no dependable facts. No
  instruction tuning, no safety tuning.
- Much of the text is old: speeches since 1790, a novel of 1851, Bible translations of 1905 to 1910. It holds dated
  and offensive views on peoples, religion and the sexes, and the model repeats them.
- French, Spanish and German come from one book each; the model knows their biblical register only.
- The Factbook text dates from one snapshot, and its long lists of numbers make its loss look low.
- Losses compare policies on this model. They say nothing about how a large model reacts to a lost expert.
"""

BUDGET = """
  At step {step} the run was resumed with a new budget of {tokens:,} tokens, so a rerun will not give
  these exact weights."""


def card(recipe: Recipe, progress: Progress, evaluation: Evaluation, summary: Summary, counts: dict[str, int]) -> str:
    """Return the model card as Markdown.

    Args:
        recipe: What was trained.
        progress: How the training went.
        evaluation: The figures.
        summary: Documents and bytes per part and domain, from the text recipe.
        counts: ``"parameters"``, ``"vocabulary"`` and ``"corpus"`` (training tokens in the shard).
    """
    trained = progress.step * recipe.sequence * recipe.batch
    return CARD.format(
        **vars(recipe),
        architecture="transformers' `MixtralForCausalLM`",
        steps=recipe.steps,
        done=progress.step,
        budget=recipe.tokens,
        trained=f"{trained:,}",
        epochs=trained / counts["corpus"],
        minutes=progress.seconds / 60,
        rate=trained / progress.seconds,
        hardware=progress.hardware,
        budgets="".join(BUDGET.format(step=step, tokens=tokens) for step, tokens in progress.budgets),
        last=progress.curve[-1][1],
        parameters=f"{counts['parameters']:,}",
        vocabulary=counts["vocabulary"],
        corpus=f"{counts['corpus']:,}",
        text=_text_table(summary),
        sources=_table(
            ["package", "registry", "domains", "licence of the text"],
            [[f"{s.name} {s.version}", s.registry, ", ".join(s.domains), s.licence] for s in SOURCES],
        ),
        losses=_loss_table(evaluation),
        even=100 / recipe.experts,
        load=_load_table(evaluation.load["all"]),
        preferred=_preferred_table(evaluation.load),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _text_table(summary: Summary) -> str:
    """Documents and kilobytes of each part, and the overlap of the environment's text, per domain."""
    parts = {"lm-train": "learned", "lm-validation": "validation", "train": "episodes, train", "test": "episodes, test"}
    rows = []
    for domain in summary["lm-train"]:
        cells = [summary[part][domain] for part in parts]
        sizes = [f"{cell['documents']:.0f} ({cell['bytes'] / 1000:,.0f} kB)" for cell in cells]
        shared = [f"{cell['overlap_with_lm_train']:.2%}" for cell in cells[2:]]
        rows.append([domain, *sizes, " / ".join(shared)])
    return _table(["documents (kB)", *parts.values(), "overlap, train / test"], rows)


def _loss_table(evaluation: Evaluation) -> str:
    head = ["domain", "tokens", "unigram", "bigram", "model", "model, top-1", "bits per byte"]
    rows = []
    for domain, result in evaluation.domains.items():
        losses = [result.unigram, result.bigram, result.model, result.top1, result.bits_per_byte]
        rows.append([domain, f"{result.tokens:,}", *(f"{loss:.3f}" for loss in losses)])
    return _table(head, rows)


def _load_table(load: list[list[float]]) -> str:
    rows = [[str(block), *(f"{100 * share:.1f}" for share in shares)] for block, shares in enumerate(load)]
    return _table(["block", *(f"expert {expert}" for expert in range(len(load[0])))], rows)


def _preferred_table(load: dict[str, list[list[float]]]) -> str:
    blocks = range(len(load["all"]))
    rows = [[domain, *(_top_two(load[domain][block]) for block in blocks)] for domain in load if domain != "all"]
    return _table(["domain", *(f"block {block}" for block in blocks)], rows)


def _top_two(shares: list[float]) -> str:
    ranked: list[Any] = sorted(range(len(shares)), key=lambda expert: -shares[expert])
    return ", ".join(f"{expert} ({100 * shares[expert]:.0f})" for expert in ranked[:2])
