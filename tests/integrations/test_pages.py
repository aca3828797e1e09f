"""Each program of ``docs/integrations`` runs from an empty folder with the wheel, and what it prints holds."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest

from benchmarks import integrations
from benchmarks.pages import INDEX, Outcome, Page, pages
from integrations.conftest import RAN
from wdmoe_env.policies import make_policy

PAGES = pages()
EPISODES = 32
# The scalar environment that an id with another reward comes to under its page's wrapper.
SCALAR = {
    "WDMoE-MO-v0": ("WDMoE-v0", {"reward": "latency_quality"}),
    "WDMoE-Price-v0": ("WDMoE-Selection-v0", {"reward": "latency_divergence"}),
    "WDMoE-Token-v0": ("WDMoE-Selection-v0", {"reward": "latency_divergence"}),
}


def vanilla_return(env_id):
    """Mean return of the model's own routing at equal shares, by the batched environment and the agents' rule."""
    name, keywords = SCALAR.get(env_id.rpartition(":")[2], (env_id.rpartition(":")[2], {}))
    env = gym.make_vec(f"wdmoe_env:{name}", num_envs=EPISODES, autoreset_mode="DISABLED", **keywords).unwrapped
    policy = make_policy("vanilla", env)  # at optimal shares where the action holds none
    observation, _ = env.reset(seed=0)
    total = np.zeros(EPISODES)
    for _ in range(env.num_blocks):
        observation, rewards, *_ = env.step(policy.predict(observation)[0])
        total += rewards
    return total.mean()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_program_runs_and_learns(page, site, tmp_path, record_property):
    if page.missing:
        pytest.skip(page.missing)
    printed = page.run(site, tmp_path)
    library, outcome = f"{page.title} {page.version}".strip(), Outcome.of(printed)
    if outcome is None:
        assert "return:" not in page.program
        record_property(RAN, f"{library}: ran")
        return
    record_property(RAN, f"{library}: {printed.strip().splitlines()[-1]}")
    assert outcome.vanilla == pytest.approx(vanilla_return(page.env_id), abs=2e-3)
    assert outcome.after > outcome.before
    assert outcome.best_fixed is None or outcome.after > outcome.best_fixed
    assert outcome.steps > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_says_what_a_user_needs(page):
    assert page.title
    assert len(re.findall("^```python\n", page.text, flags=re.MULTILINE)) == 1
    assert page.addition
    assert not page.extra or page.requirements


def test_no_page_is_left_out_of_the_index():
    index = INDEX.read_text(encoding="utf-8")
    assert all(f"]({page.name}.md)" in index for page in PAGES)


def test_only_the_protocols_last_line_is_an_outcome():
    line = "return: before -1.5, after 2.25, vanilla 3; 64 steps"
    assert Outcome.of(f"training\n{line}\n") == Outcome(-1.5, 2.25, 3.0, 64)
    assert Outcome.of(line.replace("3;", "3, best fixed 2.5;")) == Outcome(-1.5, 2.25, 3.0, 64, 2.5)
    assert Outcome.of(f"{line}\ndone") is None
    assert Outcome.of("return: before nan, after 2.25, vanilla 3; 64 steps") is None
    assert Outcome.of("") is None


def test_the_table_keeps_what_was_not_run_again(monkeypatch, tmp_path, capsys):
    index = tmp_path / "index.md"
    index.write_text("before\n\n<!-- table -->\n| [B](b.md) | old |\n<!-- end -->\n\nafter\n")
    known = [
        Page("a", "# A\n```python\n# WDMoE-v0\nprint(1)\n```\n**You add:** a\nline. Not more.\n"),
        Page("b", "# B\n"),
    ]
    monkeypatch.setattr(integrations, "INDEX", index)
    monkeypatch.setattr(integrations, "pages", lambda: known)
    monkeypatch.setattr(integrations, "install_wheel", lambda folder: folder)
    assert integrations.main(["a"]) == 0
    lines = index.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    gymnasium = f"| {gym.__version__} |"
    assert lines[6] == f"| [A](a.md) |  {gymnasium} `WDMoE-v0` |  |  |  |  |  | a line |"
    assert lines[7] == "| [B](b.md) | old |"
    assert lines[6] in capsys.readouterr().out
