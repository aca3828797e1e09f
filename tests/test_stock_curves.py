"""Curves of stock PPO: read from the cards that the benchmark writes, and drawn."""

from __future__ import annotations

import json

from benchmarks.stock_curves import main

POINTS = [
    {"blocks": 0, "processor_s": 0.0, "against_wdmoe": None, "against_marginal-price": None},
    {"blocks": 8, "processor_s": 2.0, "against_wdmoe": 0.98, "against_marginal-price": 0.99},
    {"blocks": 16, "processor_s": 4.0, "against_wdmoe": 0.95, "against_marginal-price": 0.97},
]


def card(path, env_id, curve=POINTS):
    path.write_text(json.dumps({"env_id": env_id, "curve": curve}))
    return str(path)


def test_cards_are_gathered_by_environment_and_drawn(tmp_path, capsys):
    token = card(tmp_path / "a.json", "WDMoE-Token-v0")
    price = card(tmp_path / "b.json", "WDMoE-Serve-Price-v0", POINTS[1:])
    table, drawn = tmp_path / "stock.json", tmp_path / "stock.png"
    assert main(["--cards", token, price, "--json", str(table), "--out", str(drawn)]) == 0
    assert json.loads(table.read_text()) == {"token": POINTS, "serve-price": POINTS[1:]}
    assert drawn.read_bytes().startswith(b"\x89PNG")
    drawn.unlink()
    assert main(["--json", str(table), "--out", str(drawn)]) == 0
    assert drawn.is_file()
    other = card(tmp_path / "c.json", "WDMoE-v0")
    for cards, said in (([token, token], "one card of each environment"), ([other], "expected a card of")):
        assert main(["--cards", *cards, "--json", str(table), "--out", str(drawn)]) == 2
        assert said in capsys.readouterr().err
    table.write_text(json.dumps({"token": [{"blocks": 8}]}))
    assert main(["--json", str(table), "--out", str(drawn)]) == 2
    assert "expected curves of benchmarks.stock in" in capsys.readouterr().err
