"""The model card: every figure in it is measured."""

from __future__ import annotations

from train.language_model.evaluate import NGRAM_ORDER, SUITE_TOKENS, Evaluation
from train.language_model.loop import Progress
from train.language_model.recipe import Recipe
from train.language_model.specialisation import LOST_EXPERTS
from train.language_model.tables import (
    Cells,
    Summary,
    effect_table,
    load_table,
    loss_table,
    source_table,
    specialisation_table,
    suite_table,
    text_table,
)

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

![Training loss and balance](loss.png)

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

On the validation documents, which neither the model nor the n-grams saw. The model reads windows of {positions}
tokens; every token but a document's leading end-of-text mark is predicted once, from its own window. KN-{order} is
an interpolated modified Kneser-Ney {order}-gram model counted on the same {corpus} tokens that the model learned
from, and reads across windows. "top-1" keeps the weights and gives each token its most probable expert only.

{losses}

The model is below KN-{order} in {below} of {domains} domains.

## Routing

Share of (token, expert) assignments per block on the validation documents, in percent; even would be {even:.1f}.
The least used expert has {least:.2f} times its even share, the most used one {most:.2f} times.

{load}

![Share of each domain's assignments per expert](routing.png)

### Specialisation

The {lost} (block, expert) pairs with the largest share of a domain's assignments leave the selection; a token that
loses all experts of a block gets its most probable remaining one, and the weights are renormalised. The domain
loses more than the others do on average in {specialised} of {domains} cases.

{specialisation}

## What an expert is worth

Against own routing on the same tokens and the same {items:,} items of the multiple-choice suite (accuracy with own
routing {accuracy:.1%}; windows of {suite_tokens} tokens). Paired differences with 95 % bootstrap intervals.
A wrong expert is drawn evenly from those that the token was not routed to.

{ablation}

### Sensitivity per block

The second expert is dropped in one block alone; the points are those of a sample of the suite, drawn from each
format and domain in proportion.

{sensitivity}
{suite}
## Limits

- {parameters} parameters: grammar and vocabulary of the domains; of facts only those of the atlas, and these
  undependably. No instruction tuning, no safety tuning.
- Much of the text is old: speeches since 1790, novels of the nineteenth century, old Bible translations. It holds
  dated and offensive views on peoples, religion and the sexes, and the model repeats them.
- Each language but English comes from one book; the model knows its biblical register only.
- The documentation describes the services of one vendor. The skills are synthetic sentences of a few forms.
- The facts date from one snapshot, and long lists of numbers make their loss look low.
- Losses compare policies on this model. They say nothing about how a large model reacts to a lost expert.
"""

SUITE = """
## Multiple-choice suite

Accuracy in percent with own routing, against chance and a word trigram with a cache, counted on the learned text.
The model is above the trigram in {above} of {cells} cells. A cloze choice is the missing word and the next one,
and an answer ends with its line, since tokens alone do not say where a word ends; this form was settled on a
half-trained model.

{table}
"""

BUDGET = """
  At step {step} the run was resumed with a new budget of {tokens:,} tokens, so a rerun will not give
  these exact weights."""


def card(
    recipe: Recipe,
    progress: Progress,
    evaluation: Evaluation,
    summary: Summary,
    cells: Cells | None,
    counts: dict[str, int],
) -> str:
    """Return the model card as Markdown.

    Args:
        recipe: What was trained.
        progress: How the training went.
        evaluation: The figures.
        summary: Documents and bytes per part and domain, from the text recipe.
        cells: Accuracy per format and domain of the suite, if measured.
        counts: ``"parameters"``, ``"vocabulary"`` and ``"corpus"`` (training tokens in the shard).
    """
    return CARD.format(
        **vars(recipe),
        **_training(recipe, progress, counts["corpus"]),
        **_figures(recipe, evaluation),
        architecture="transformers' `MixtralForCausalLM`",
        parameters=f"{counts['parameters']:,}",
        vocabulary=counts["vocabulary"],
        corpus=f"{counts['corpus']:,}",
        text=text_table(summary),
        sources=source_table(),
        suite=_suite(cells) if cells else "",
    )


def _training(recipe: Recipe, progress: Progress, corpus: int) -> dict[str, object]:
    trained = progress.step * recipe.sequence * recipe.batch
    return {
        "steps": recipe.steps,
        "done": progress.step,
        "budget": recipe.tokens,
        "trained": f"{trained:,}",
        "epochs": trained / corpus,
        "minutes": progress.seconds / 60,
        "rate": trained / progress.seconds,
        "hardware": progress.hardware,
        "budgets": "".join(BUDGET.format(step=step, tokens=tokens) for step, tokens in progress.budgets),
        "last": progress.curve[-1][1],
    }


def _figures(recipe: Recipe, evaluation: Evaluation) -> dict[str, object]:
    domains = {domain: result for domain, result in evaluation.domains.items() if domain != "all"}
    relative = [recipe.experts * share for shares in evaluation.load["all"] for share in shares]
    return {
        "order": NGRAM_ORDER,
        "losses": loss_table(evaluation),
        "below": sum(r.bits_per_byte.model < r.bits_per_byte.kneser_ney for r in domains.values()),
        "domains": len(domains),
        "even": 100 / recipe.experts,
        "least": min(relative),
        "most": max(relative),
        "load": load_table(evaluation.load["all"]),
        "lost": LOST_EXPERTS,
        "specialised": sum(result.own > result.others for result in evaluation.specialisation.values()),
        "specialisation": specialisation_table(evaluation.specialisation),
        "items": evaluation.suite_items,
        "accuracy": evaluation.suite_accuracy,
        "suite_tokens": SUITE_TOKENS,
        "ablation": effect_table(evaluation.ablation),
        "sensitivity": effect_table(evaluation.sensitivity),
    }


def _suite(cells: Cells) -> str:
    above = sum(float(cell["model"]) > float(cell["trigram"]) for cell in cells)
    return SUITE.format(above=above, cells=len(cells), table=suite_table(cells))
