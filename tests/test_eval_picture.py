"""Names in the picture: short, apart, and beside what they name."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from eval.members import point_label, short_names
from eval.plots import place_labels


def test_files_go_by_what_tells_them_apart():
    names = short_names(["wdmoe", "wdmoe:0.5", "runs/a/policy.safetensors", "runs/b/policy.json", "x/b.json", "y/c"])
    assert names == {
        "wdmoe": "wdmoe",
        "wdmoe:0.5": "wdmoe:0.5",
        "runs/a/policy.safetensors": "a",
        "runs/b/policy.json": "runs/b",
        "x/b.json": "x/b",
        "y/c": "c",
    }


def test_a_file_named_like_a_rule_keeps_its_folder():
    assert short_names(["wdmoe", "runs/wdmoe.safetensors"])["runs/wdmoe.safetensors"] == "runs/wdmoe"


def test_points_of_a_drawn_family_go_by_their_setting():
    rule = {"name": "wdmoe:0.5", "setting": "0.5"}
    assert [point_label(rule, swept) for swept in (True, False)] == ["0.5", "wdmoe:0.5"]
    assert point_label({"name": "ppo quality 5", "setting": "quality 5"}, True) == "5"
    assert point_label({"name": "wdmoe", "setting": ""}, True) == "wdmoe"


def test_labels_of_crowded_points_do_not_overlap():
    figure = Figure(figsize=(9, 6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlim=(0, 100), ylim=(0, 1))
    points = np.random.default_rng(0).normal([50.0, 0.5], [4.0, 0.05], (14, 2))
    labels = [f"policy-{n}" for n in range(14)]
    place_labels(axes, labels, points, np.zeros((0, 2)), ["black"] * 14)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the leaders
    assert [text.get_text() for text in axes.texts] == labels
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert not any(box.contains(*point) for box in boxes for point in axes.transData.transform(points))
    assert all(axes.get_window_extent().contains(*corner) for box in boxes for corner in (box.p0, box.p1))
