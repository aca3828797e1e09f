"""Two pictures for the model card: how training went, and where each domain's tokens go."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from train.language_model.loop import Progress
from train.language_model.recipe import Recipe

DOTS_PER_INCH = 110
COLOURS = 128


def loss_picture(progress: Progress, recipe: Recipe) -> bytes:
    """Training loss and balance against tokens, as PNG."""
    from matplotlib.figure import Figure

    step, loss, balance = np.array(progress.curve).T
    millions = step * recipe.sequence * recipe.batch / 1e6
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(millions, loss, lw=1)
    above.set_ylim(max(0.0, np.min(loss) - 0.2), np.quantile(loss, 0.98) + 0.2)
    above.set_ylabel("training loss\n(nats per token)")
    below.plot(millions, balance / recipe.blocks, lw=1, color="C1")
    below.axhline(1, color="0.6", lw=0.8, ls="--")
    below.set_ylabel("balance per block\n(1 is even)")
    below.set_xlabel("tokens (millions)")
    for axes in (above, below):
        axes.grid(color="0.9", lw=0.6)
    return _png(figure)


def routing_picture(load: dict[str, list[list[float]]]) -> bytes:
    """Share of each domain's assignments that each expert gets, one panel a block, as PNG.

    Args:
        load: Per domain (and ``"all"``) the shares (blocks, experts), rows sum to 1.
    """
    from matplotlib.figure import Figure

    shares = 100 * np.array(list(load.values())).transpose(1, 0, 2)  # (blocks, domains, experts)
    blocks, rows, experts = shares.shape
    columns = min(3, blocks)
    lines = -(-blocks // columns)
    figure = Figure(figsize=(1.2 + 3.3 * columns, 0.8 + (0.5 + 0.25 * rows) * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for block, axes in enumerate(panels[:blocks]):
        drawn = axes.imshow(shares[block], cmap="viridis", vmin=0, vmax=shares.max(), aspect="auto")
        for row in range(rows):
            for expert in range(experts):
                bright = shares[block, row, expert] > 0.6 * shares.max()
                text = f"{shares[block, row, expert]:.0f}"
                axes.text(expert, row, text, ha="center", va="center", size=7, color="black" if bright else "white")
        axes.set_title(f"block {block}", size=10)
        axes.set_xticks(range(experts))
        axes.set_yticks(range(rows), list(load))
        axes.tick_params(labelsize=8, length=0)
    for axes in panels[blocks:]:
        axes.set_axis_off()
    figure.supxlabel("expert", size=10)
    label = f"share of the domain's assignments (%); even is {100 / experts:g}"
    figure.colorbar(drawn, ax=list(panels), shrink=0.6, pad=0.01).set_label(label, size=9)
    return _png(figure)


def _png(figure: Any) -> bytes:
    """The figure with a palette of few colours, which is a quarter of the size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    FigureCanvasAgg(figure)
    drawn, stream = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(stream, format="png", optimize=True)
    return stream.getvalue()
