"""Cells that serve requests: the cache, the clock, the accounts, and the two faces."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from transformers import MixtralConfig, MixtralForCausalLM

import wdmoe_env  # noqa: F401
from wdmoe_env import SERVE_IDS
from wdmoe_env.config import EnvConfig
from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.moe.runner import Service
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.serving import fits
from wdmoe_env.serving.arrivals import Draws, Requests
from wdmoe_env.serving.cache import SlotCache
from wdmoe_env.serving.cell import Cell
from wdmoe_env.serving.fits import check_serves, why_not
from wdmoe_env.serving.passes import Batch, SlotPasses
from wdmoe_env.serving.play import play as play_many
from wdmoe_env.serving.process import ServingProcess, serving_config
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.serving_config import ServingConfig

SHORT = {"slots": 2, "chunk": 4, "prompt_tokens": (3, 9), "answer_tokens": (1, 5), "requests": 4}


def make(num_envs=None, env_id="WDMoE-Serve-v0", mode="SAME_STEP", serving=None, **keywords):
    settings = {"model": "micro", "serving": {**SHORT, **(serving or {})}, **keywords}
    if num_envs is None:
        return gym.make(f"wdmoe_env:{env_id}", disable_env_checker=True, **settings)
    return gym.make_vec(f"wdmoe_env:{env_id}", num_envs=num_envs, autoreset_mode=mode, **settings)


def play(env, policy="vanilla-optimal", seed=0):
    """Rewards, terms and observations of an episode, and its last info."""
    act = make_policy(policy, env) if isinstance(policy, str) else policy
    observation, _ = env.reset(seed=seed)
    rewards, terms, seen, ended = [], [], [observation], False
    while not ended:
        action, _ = act.predict(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        terms.append(info["reward_terms"])
        seen.append(observation)
        ended = terminated or truncated
    return rewards, terms, seen, info


class Random:
    """Draws actions from a space."""

    def __init__(self, env, seed):
        self.space = env.action_space
        self.space.seed(seed)

    def predict(self, observation, **keywords):
        return self.space.sample(), None


def random_passes(model, texts, lengths, seed, poison=False, slots=3, chunk=5):
    """Logits of each text, read in random chunks in slots that are freed and taken again."""
    generator = np.random.default_rng(seed)
    cache = SlotCache(slots, texts.shape[1] + chunk)
    waiting, running, logits = list(range(len(texts))), {}, [[] for _ in texts]
    while waiting or running:
        for slot in sorted(set(range(slots)) - running.keys()):
            if waiting and generator.random() < 0.7:
                running[slot] = (waiting.pop(0), 0)
                cache.clear(np.array([slot]))
        rows = dict(sorted(running.items()))
        for slot, at, part in read_some(model, cache, texts, lengths, rows, generator, chunk):
            text = running[slot][0]
            logits[text].append(part)
            running[slot] = text, at
            if at == lengths[text]:
                del running[slot]
                fill(cache, slot, torch.nan if poison else 1.0)
    return [torch.cat(parts) for parts in logits]


def read_some(model, cache, texts, lengths, running, generator, chunk):
    """One pass over what runs: slot, tokens read since the start, and logits of the new ones."""
    if not running:
        return
    rows = np.array(list(running))
    text, start = np.array(list(running.values())).T
    count = np.minimum(generator.integers(1, chunk + 1, size=len(rows)), lengths[text] - start)
    ids = np.concatenate([texts[n, at : at + read] for n, at, read in zip(text, start, count, strict=True)])
    batch = Batch(rows, rows, start, count, ids, ids, chunk, 100 * chunk)
    parts = read_logits(model, cache, batch).split(count.tolist())
    for slot, begun, read, part in zip(rows, start, count, parts, strict=True):
        yield int(slot), int(begun + read), part


def fill(cache, slot, value):
    for both in cache.layers.values():
        for tensor in both:
            tensor[slot] = value


def read_logits(model, cache, batch):
    from wdmoe_env.moe.split import neutral_modes
    from wdmoe_env.serving.passes import read_rows

    with neutral_modes("cpu", inference=True):
        rows = read_rows(model, cache, batch.token_ids, batch.layout)
        return rows if model.output_layer is None else model.output_layer(rows)


@pytest.mark.parametrize("poison", [False, True])
def test_chunks_in_slots_give_the_logits_of_whole_forwards(poison):
    """Also where the old cache of a slot that was freed holds NaN."""
    model, generator = load_model("tiny", "cpu", "float32"), np.random.default_rng(3)
    texts = generator.integers(model.vocabulary_size, size=(9, 24))
    lengths = generator.integers(3, 25, size=9)
    found = random_passes(model, texts, lengths, seed=1, poison=poison)
    for n, length in enumerate(lengths):
        whole = model.own_logits(torch.from_numpy(texts[n : n + 1, :length]))[0]
        assert len(found[n]) == length
        assert float((found[n] - whole).abs().max()) < 1e-4


def test_paused_passes_give_the_scores_of_whole_forwards():
    env = make(3, model="tiny", serving={"chunk": 3})
    act = make_policy("vanilla", env)
    observation, _ = env.reset(seed=5)
    lost = []
    for _ in range(400):
        observation, _, terminated, _, info = env.step(act.predict(observation)[0])
        for n in np.flatnonzero(terminated):
            lost.append(info["final_info"]["request_added_nll"][n])
    assert len(lost) >= 3
    np.testing.assert_allclose(np.concatenate(lost), 0.0, atol=1e-5)


def test_answers_are_the_greedy_tokens_of_transformers():
    env = make(model="tiny", serving={"generate": True, "answer_tokens": (4, 8)})
    *_, info = play(env, "vanilla")
    texts, model = env.unwrapped.simulator.texts, load_model("tiny", "cpu", "float32")
    requests = env.unwrapped._rollout.episodes[0].cell.requests
    for n in range(4):
        prompt, answer = int(requests.prompt[n]), int(requests.answer[n])
        ids = torch.from_numpy(texts.windows.token_ids[requests.window[n], None, :prompt])
        whole = model.model.generate(ids, do_sample=False, max_new_tokens=answer, min_new_tokens=answer)
        assert info["request_said"][n, :answer].tolist() == whole[0, prompt:].tolist()
    assert np.isnan(info["request_added_nll_answer"]).all()
    assert (info["request_added_nll"] < 1e-5).all()


@pytest.mark.parametrize("horizon_s", [None, 0.15])
def test_rewards_sum_to_the_time_in_the_system(horizon_s):
    """Under random policies, also where some requests do not finish."""
    for seed in range(3):
        env = make(
            serving={"requests": 12, "load": 2.0, "horizon_s": horizon_s, "base_station_ms": 0.3}, quality_weight=0.0
        )
        rewards, terms, _, info = play(env, Random(env, seed), seed)
        system_ms = info["request_system_ms"].sum()
        assert abs(sum(term["time_in_system_ms"] for term in terms) - system_ms) < 1e-9 * max(system_ms, 1.0)
        assert abs(1e3 * sum(rewards) + system_ms) < 1e-9 * max(system_ms, 1.0)
        done = np.isfinite(info["request_e2e_ms"])
        np.testing.assert_allclose(info["request_system_ms"][done], info["request_e2e_ms"][done], rtol=1e-12)
        assert done.all() == (horizon_s is None)


def test_rewards_sum_to_what_the_text_lost():
    env = make(model="tiny", serving={"latency_scale_ms": 1e9}, quality_weight=1.0)
    rewards, *_, info = play(env, "top1")
    np.testing.assert_allclose(-sum(rewards), info["request_added_nll"].sum(), atol=1e-5)
    assert info["request_added_nll"].sum() > 0.05


def strongest(block):
    """The chooser that ``top1`` is, of whole forwards."""
    return torch.nn.functional.one_hot(block.gate_probs.argmax(-1), block.gate_probs.shape[-1]).bool()


def test_rewards_by_divergence_sum_to_that_of_whole_forwards():
    settings = {"model": "tiny", "serving": {"latency_scale_ms": 1e9}, "quality_weight": 1.0}
    env = make(**settings, reward="serving_divergence")
    rewards, terms, *_ = play(env, "top1")
    requests, texts = env.unwrapped._rollout.episodes[0].cell.requests, env.unwrapped.simulator.texts
    model, expected = load_model("tiny", "cpu", "float32"), 0.0
    for window, rows in zip(requests.window, requests.rows, strict=True):
        ids = torch.from_numpy(texts.windows.token_ids[window, None, :rows])
        with torch.no_grad():
            own, weaker = (model.logits_under(one, ids).log_softmax(-1) for one in (None, strongest))
        expected += float((own.exp() * (own - weaker)).sum(-1).mean())
    assert sum(term["divergence"] for term in terms) == pytest.approx(expected, rel=1e-4)
    assert -sum(rewards) == pytest.approx(expected, rel=1e-4)
    rewards, terms, *_ = play(make(**settings, reward="serving_divergence"), "vanilla")
    assert abs(sum(rewards)) < 1e-5
    assert "divergence" not in play(make(**settings), "vanilla")[1][0]
    with pytest.raises(ValueError, match="needs generate=False"):
        make(reward="serving_divergence", serving={"generate": True})


def test_littles_law():
    """Mean number in the system, as the policy sees it, against the arrivals' rate times the mean time in it."""
    env = make(serving={"requests": 80, "load": 0.6})
    _, terms, seen, info = play(env)
    number = sum(term["time_in_system_ms"] for term in terms) / info["duration_ms"]
    rate = 80 / info["duration_ms"]
    assert number == pytest.approx(rate * info["request_e2e_ms"].mean(), rel=1e-9)
    counted = np.array([one["queue"][:2].sum() for one in seen[:-1]])
    step_ms = np.array([term["block_latency_ms"] for term in terms])
    busy = (counted * step_ms).sum() / step_ms.sum()
    assert busy == pytest.approx(
        number * info["duration_ms"] / step_ms.sum(), rel=0.12
    )  # those who come within a block are not seen


def test_a_request_alone_takes_the_sum_of_its_blocks():
    env = make(
        serving={"requests": 1, "chunk": 4, "prompt_tokens": (9, 9), "answer_tokens": (5, 5), "base_station_ms": 0.5}
    )
    _, terms, _, info = play(env)
    blocks = env.unwrapped.num_blocks
    step_ms = np.array([term["block_latency_ms"] + 0.5 for term in terms])
    assert len(step_ms) == (3 + 4) * blocks  # chunks of 4, 4 and 1 token, then four more tokens
    assert info["request_ttft_ms"][0] == pytest.approx(step_ms[: 3 * blocks].sum())
    assert info["request_tpot_ms"][0] == pytest.approx(step_ms[3 * blocks :].sum() / 4)
    assert info["request_e2e_ms"][0] == pytest.approx(step_ms.sum())
    assert info["request_queue_ms"][0] == 0.0


def test_two_requests_by_hand():
    """One slot, chunks of two: the worked case of the page on serving."""
    requests = Requests(np.array([1.0, 1.5]), np.zeros(2, int), np.array([3, 2]), np.array([2, 1]))
    cell = Cell(requests, ServingConfig(slots=1, chunk=2, requests=2))
    system_s, counts = 0.0, []
    while not cell.done:
        rows, _ = cell.begin_pass()
        counts.append(int(rows.count[0]))
        system_s += cell.advance(0.4)
        cell.end_pass(rows)
    assert counts == [2, 1, 1, 2]
    np.testing.assert_allclose(cell.first_token_s, [1.8, 2.6])
    np.testing.assert_allclose(cell.finish_s, [2.2, 2.6])
    np.testing.assert_allclose(cell.start_s, [1.0, 2.2])
    assert system_s == pytest.approx((2.2 - 1.0) + (2.6 - 1.5))


def test_one_cell_is_a_row_of_many():
    """A fixed policy gives the same at N = 1 and N = 16."""
    many = make(16, model="tiny", mode="DISABLED")
    act = make_policy("top1", many)
    observation, _ = many.reset(seed=7)
    found, live = {}, np.ones(16, dtype=bool)
    while live.any():
        observation, _, terminated, _, info = many.step(act.predict(observation)[0])
        for n in np.flatnonzero(terminated):
            found[n] = {name: info[name][n].copy() for name in ("request_e2e_ms", "request_added_nll")}
            live[n] = False
        if terminated.any() and live.any():
            observation, _ = many.reset(options={"reset_mask": terminated})
    for n in (0, 11):
        *_, info = play(make(model="tiny"), "top1", seed=7 + n)
        for name, values in found[n].items():
            np.testing.assert_allclose(values, info[name], rtol=1e-6, atol=1e-5)


def rewards_of(env, steps, act, observation):
    rewards = []
    for _ in range(steps):
        observation, reward, *_ = env.step(act.predict(observation)[0])
        rewards.append(reward)
    return rewards


def test_copies_pickles_and_threads_go_on_alike():
    env = make(2)
    act = make_policy("top1", env)
    observation, _ = env.reset(seed=1)
    for _ in range(5):
        observation, *_ = env.step(act.predict(observation)[0])
    others = copy.deepcopy(env), pickle.loads(pickle.dumps(env))
    expected = rewards_of(env, 40, act, observation)
    for other in others:
        np.testing.assert_allclose(rewards_of(other, 40, act, observation), expected, rtol=1e-9)
    third = make(2)
    observation, _ = third.reset(seed=1)
    for _ in range(5):
        observation, *_ = third.step(act.predict(observation)[0])
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(rewards_of, third, 40, act, observation).result()
    np.testing.assert_allclose(there, expected, rtol=1e-9)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_autoreset_modes(mode):
    """Episodes are the same ones in every mode; a cell is a step behind where it waits for its reset."""
    env = make(3, mode=mode)
    act = make_policy("vanilla-optimal", env)
    observation, _ = env.reset(seed=4)
    ends, returns, so_far, waiting = [], [], np.zeros(3), np.zeros(3, dtype=bool)
    while len(returns) < 7:
        assert all(env.observation_space[name].contains(value) for name, value in observation.items())
        observation, reward, terminated, truncated, info = env.step(act.predict(observation)[0])
        so_far += np.where(waiting, 0.0, reward)
        assert not truncated.any()
        final = info["final_info"] if mode == "SAME_STEP" and terminated.any() else info
        for n in np.flatnonzero(terminated):
            ends.append(n)
            returns.append((n, so_far[n], -final["request_system_ms"][n].sum()))
            so_far[n] = 0.0
        waiting = terminated & (mode == "NEXT_STEP")
        if mode == "DISABLED" and terminated.any():
            observation, _ = env.reset(options={"reset_mask": terminated})
    for _, total, system_ms in returns:
        assert total <= system_ms / 1e3 + 1e-9 or total == pytest.approx(system_ms / 1e3, abs=0.5)
    if mode != "DISABLED":
        assert len(env.unwrapped._cohorts) <= env.unwrapped.num_blocks


def test_a_cell_that_leaves_a_pass_does_not_touch_the_others():
    """Resets in the middle of a pass."""
    reference, env = (make(3, mode="DISABLED", serving={"requests": 20}) for _ in range(2))
    act = make_policy("top1", env)
    one, two = reference.reset(seed=2)[0], env.reset(seed=2)[0]
    for step in range(30):
        if step == 3:
            two, _ = env.reset(seed=[None, 50, None], options={"reset_mask": np.array([False, True, False])})
        one, expected, *_ = reference.step(act.predict(one)[0])
        two, found, *_ = env.step(act.predict(two)[0])
        # A batch of other rows rounds otherwise, in nats, whatever a reward comes to.
        np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env_id", SERVE_IDS)
def test_gymnasiums_checker(env_id):
    env = gym.make(f"wdmoe_env:{env_id}", model="micro", serving=SHORT)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space["queue"].shape == (4,)
    assert env.observation_space["row_phase"].shape == (8,)


def test_rules_and_trained_policies_of_windows_run_unchanged():
    env = gym.make(
        "wdmoe_env:WDMoE-Serve-v0", disable_env_checker=True, serving={"requests": 2}, observe_hidden_states=True
    )
    assert env.unwrapped.config.num_tokens == 32
    for policy in ("wdmoe:0.8", "marginal-price", "straight-through-10"):
        *_, info = play(env, policy)
        assert np.isfinite(info["request_e2e_ms"]).all()


def test_pictures_and_texts_are_drawn():
    for mode in ("ansi", "rgb_array"):
        env = make(render_mode=mode)
        observation, _ = env.reset(seed=0)
        act = make_policy("vanilla", env)
        for _ in range(3):
            observation, *_ = env.step(act.predict(observation)[0])
        assert env.render() is not None


def test_the_estimate_of_what_a_channel_sustains_is_that_of_a_saturated_queue():
    serving = {"slots": 4, "chunk": 8, "prompt_tokens": (8, 24), "answer_tokens": (4, 12), "requests": 60}
    env = gym.make(
        "wdmoe_env:WDMoE-Serve-v0", disable_env_checker=True, model="tiny", serving={**serving, "load": 20.0}
    )
    *_, info = play(env, "vanilla-optimal", seed=3)
    sustained_hz = 60 / (1e-3 * info["duration_ms"])
    assert sustained_hz == pytest.approx(info["capacity_hz"], rel=0.12)


def test_arrivals(tmp_path):
    config = ServingConfig(requests=4000, arrivals="gamma:0.25")
    gaps = np.diff(Draws(config, 10).draw(np.random.default_rng(0)).arrival_s)
    assert gaps.mean() == pytest.approx(1.0, rel=0.1)
    assert gaps.std() == pytest.approx(2.0, rel=0.1)  # 1 / sqrt(shape)
    trace = tmp_path / "trace.csv"
    trace.write_text("input_toks,output_toks,arrival_time_ns\n5,3,2000000000\n7,2,2500000000,9\n4,1,4000000000\n")
    draws = Draws(ServingConfig(requests=3, arrivals=f"trace:{trace}"), 10)
    requests = draws.at_rate(draws.draw(np.random.default_rng(0)), 1.0)
    assert requests.arrival_s.tolist() == [0.0, 0.5, 2.0]
    assert requests.prompt.tolist() == [5, 7, 4]
    assert requests.rows.tolist() == [7, 8, 4]
    faster = Draws(ServingConfig(requests=3, arrivals=f"trace:{trace}", arrival_rate_hz=2.0), 10)
    assert faster.at_rate(requests, 1.0).arrival_s.tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": 0}, "slots must be a whole number of at least 1"),
        ({"load": 0}, "load must be a finite number at least 1e-06"),
        ({"arrival_rate_hz": 0.0}, "arrival_rate_hz must be"),
        ({"arrivals": "gamma:0"}, "gamma:BURSTINESS"),
        ({"arrivals": "uniform"}, "arrivals must be 'poisson'"),
        ({"prompt_tokens": (9, 3)}, "least <= greatest"),
        ({"answer_tokens": 8}, "answer_tokens must be .least, greatest."),
        ({"prompt_tokens": (100, 200), "answer_tokens": (1, 100)}, "the context of model"),
        ({"arrivals": "trace:/nowhere.csv"}, "nowhere"),
        ({"slots": 4096, "chunk": 65536}, r"slots and chunk must fit the memory of .* GiB: 1 x 4096 slots"),
        ({"slots": 5000}, "slots must be .*4,?096"),
        ({"horizon_s": 0.0}, "horizon_s must be"),
        ({"load": float("inf")}, "load must be a finite number"),
        ({"generate": 1}, "generate must be a bool"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message) as raised:
        make(model="tiny", serving=settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("5,3,20\n5,3,10\n", "line 2: expected arrivals in the order of time"),
        ("5,3\n", "line 1: expected input_toks,output_toks,arrival_time_ns"),
        ("5,30,1\n", "at most 9 tokens of prompt and 5 of answer"),
        ("5,3,1\n", "expected 2 requests"),
        ("0,3,1\n", "a token or more both ways"),
        ("5,3,-1\n", "a time of at least 0"),
        ("5,3,nan\n", "a time of at least 0"),
        ("", "expected 2 requests"),
    ],
)
def test_wrong_traces_name_the_line(tmp_path, lines, message):
    (tmp_path / "trace.csv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        make(serving={"arrivals": f"trace:{tmp_path / 'trace.csv'}", "requests": 2})


def test_settings_of_other_ids():
    with pytest.raises(ValueError, match="WDMoE-Serve-v0"):
        gym.make("wdmoe_env:WDMoE-v0", model="micro", serving={})
    with pytest.raises(TypeError, match=r"serving\.slot"):
        make(serving={"slot": 3})
    with pytest.raises(ValueError, match="num_tokens must be 8, slots x chunk"):
        make(num_tokens=20)
    with pytest.raises(ValueError, match="reward must be one of serving, serving_divergence, wlr"):
        make(reward="nothing")
    config = EnvConfig.make(model="micro", serving=SHORT)
    assert EnvConfig.make(config.to_dict()) == config
    assert (
        gym.make("wdmoe_env:WDMoE-Serve-v0", disable_env_checker=True, config=config).unwrapped.config.reward == "wlr"
    )


def test_a_pass_has_a_row_for_each_token_where_half_would_be_padding():
    """Worked by hand: a chunk of four tokens beside two answers of one, and beside another chunk."""
    begun, rows = np.array([0, 5, 7]), np.array([2, 4, 6])
    mixed = Batch(rows, rows, begun, np.array([4, 1, 1]), np.arange(6), np.arange(6), 4, 32)
    assert mixed.layout.slot.tolist() == [0, 0, 0, 0, 1, 2]
    assert mixed.layout.row.tolist() == [2, 2, 2, 2, 4, 6]
    assert mixed.layout.start.tolist() == mixed.position.tolist() == [0, 1, 2, 3, 5, 7]
    assert mixed.among_rows.tolist() == [8, 9, 10, 11, 16, 24]
    chunks = Batch(rows, rows, begun, np.array([4, 4, 1]), np.arange(9), np.arange(9), 4, 32)
    assert chunks.layout.count.tolist() == [4, 4, 1]
    assert chunks.layout.filled.sum() == 9


def test_pairs_that_fail_are_counted_for_their_slot():
    """In a pass with a row for each token."""

    class Fails:
        def open(self, model):
            pass

        def close(self):
            pass

        def run(self, call):
            called.append(call.episodes.tolist())
            raise ConnectionError

    called, model = [], load_model("micro", "cpu", "float32")
    rows, ids = np.arange(3), np.arange(1, 7)
    batch = Batch(rows, rows, np.array([0, 5, 7]), np.array([4, 1, 1]), ids, ids, 4, 12)
    passes = SlotPasses(model, SlotCache(3, 12), batch, Service(Fails(), ()))
    passes.resume(None)
    assert called[0] == [0, 0, 0, 0, 1, 2]
    assert passes.unserved_pairs().tolist() == [4 * model.top_k, model.top_k, model.top_k]
    passes.close()


def test_passes_keep_to_their_protocol():
    model = load_model("micro", "cpu", "float32")
    ids = np.array([1, 2])
    batch = Batch(np.array([1]), np.array([1]), np.array([0]), np.array([2]), ids, ids, 3, 6)
    passes = SlotPasses(model, SlotCache(2, 8), batch)
    block = passes.blocks[0]
    assert block.routed.any(dim=1).tolist() == [False, False, False, True, True, False]
    while passes.blocks:
        passes.resume(None)
    assert passes.scores().nll.shape == (1, 2)
    passes.close()


def test_models_whose_attention_takes_no_slots_are_refused():
    """By a window shorter than a request, and by layers that keep no keys and values."""
    config = MixtralConfig(
        **{"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "sliding_window": 12},
    )
    model = SplitModel(MixtralForCausalLM(config))
    assert why_not(model, 12) == ""
    with pytest.raises(ValueError, match="looks back 12 tokens, and a request may have 13"):
        check_serves(model, 13)
    model.model.model.forward = lambda **keywords: 1 / 0
    fits._found.clear()
    with pytest.raises(ValueError, match="its attention does not take a cache of slots"):
        check_serves(model, 12)


def test_memory_is_refused_by_the_number_of_cells(monkeypatch):
    monkeypatch.setattr(fits, "memory_bytes", lambda: 200_000)
    make()
    with pytest.raises(ValueError, match="100 x 2 slots with chunks of 4 tokens take"):
        make(100)


def test_texts_said_by_cells_that_end_together_have_one_shape():
    """However long their answers were."""
    serving = {"generate": True, "requests": 1, "prompt_tokens": (4, 4), "answer_tokens": (1, 5)}
    env = make(8, serving=serving)
    act = make_policy("vanilla", env)
    observation, _ = env.reset(seed=0)
    for _ in range(3 * env.unwrapped.num_blocks):
        observation, *_, info = env.step(act.predict(observation)[0])
        if "final_info" in info:
            assert info["final_info"]["request_said"].shape == (8, 1, 5)


def test_many_requests_leave_nothing_behind():
    """Neither passes nor cells nor tensors, but for the own predictions of texts, whose bytes are bounded."""
    process = ServingProcess(serving_config({"model": "micro", "serving": {**SHORT, "requests": 15}}, {}))
    policy, kept = make_policy("top1", process), process.simulator.source.own_predictions._kept

    def left(seeds):
        play_many(process, policy, seeds, at_once=2)
        gc.collect()
        found = [sum(isinstance(one, kind) for one in gc.get_objects()) for kind in (PassRollout, Cell, SlotPasses)]
        return [*found, sum(isinstance(one, torch.Tensor) for one in gc.get_objects()) - len(kept)]

    before = left(range(2))
    assert left(range(2, 6)) == before


@pytest.mark.parametrize("env_id", SERVE_IDS)
def test_stable_baselines3_sees_a_vec_env(env_id):
    env = SB3VecEnv(make(3, env_id=env_id))
    alone = make(env_id=env_id)
    env.action_space.seed(0)
    assert env.seed(11) == [11, 12, 13]
    observation, expected = env.reset(), alone.reset(seed=12)[0]
    assert {name: value.shape for name, value in observation.items()} == {
        name: (3, *value.shape) for name, value in expected.items()
    }
    ended, total = False, 0.0
    while not ended:
        actions = np.stack([env.action_space.sample() for _ in range(3)])
        _, rewards, dones, infos = env.step(actions)
        _, reward, ended, _, info = alone.step(actions[1])
        total += reward
        assert rewards[1] == pytest.approx(reward, rel=1e-4, abs=1e-6)
        assert bool(dones[1]) == ended
    assert infos[1]["episode"]["r"] == pytest.approx(total, rel=1e-4)
    assert infos[1]["terminal_observation"].keys() == expected.keys()
    np.testing.assert_allclose(infos[1]["request_e2e_ms"], info["request_e2e_ms"], rtol=1e-4)
