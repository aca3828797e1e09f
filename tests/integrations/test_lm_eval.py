"""EleutherAI's harness on a split model: accuracy item by item, rolling texts, generation, and its command line."""

from __future__ import annotations

import json
import random
import re
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'wdmoe-env[lm-eval]'")

import datasets
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from eval.lm_eval import main
from eval.lm_eval_model import NamedPolicyLM
from eval.suite import evaluate_suite
from wdmoe_env.integrations.lm_eval import WDMoELM
from wdmoe_env.integrations.lm_eval_suite import TAG
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.text.suite import FORMATS, load_suite

ITEMS, SEED, TOKENS = 48, 5, 128
POLICIES = ["vanilla", "top1", "wdmoe:0.9", "straight-through-10"]
MICRO = {"model": "micro", "num_tokens": 64}
TINY = resources.files("wdmoe_env") / "assets" / "tiny"
SPACES = ["", "", " ", "  ", "\n", "\n\n", " \n    ", "\t", "\u00a0"]


@pytest.fixture(autouse=True)
def _data_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Folder with the suite as tasks: the items and channels of ``ours``."""
    folder = tmp_path_factory.mktemp("tasks")
    assert main(["suite", "--out", str(folder), "--suite-items", str(ITEMS), "--seed", str(SEED)]) == 0
    return folder


@pytest.fixture(scope="module")
def ours():
    """What ``python -m eval --suite`` says."""
    return evaluate_suite(POLICIES, suite_items=ITEMS, seed=SEED, progress=False)


def run(folder, **keywords):
    manager = TaskManager(include_path=str(folder))
    return simple_evaluate("wdmoe", tasks=[TAG], task_manager=manager, bootstrap_iters=0, **keywords)


def instance(*arguments, kind="loglikelihood", doc=None):
    return Instance(kind, doc or {}, arguments, 0, ("a task", 0, 1))


@pytest.fixture(scope="module", params=["without BOS", "with BOS"])
def folder(request, tmp_path_factory):
    """Folder of "tiny", also with a tokenizer that puts BOS before every text."""
    folder = tmp_path_factory.mktemp("model") / request.param
    shutil.copytree(str(TINY), folder)
    if request.param == "with BOS":
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        bos, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def harness(folder: Path, max_length: int):
    """The harness's own model of transformers."""
    pytest.importorskip("accelerate", reason="pip install 'wdmoe-env[accelerate]'")
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=16, max_length=max_length)


@pytest.fixture(scope="module")
def hf_64():
    return harness(TINY, 64)


@pytest.fixture(scope="module")
def lm_64():
    return WDMoELM(model="tiny", num_tokens=64)


def random_pairs(count):
    """Contexts of the suite, which end anywhere and in any white space, and what follows them."""
    draw = random.Random(3)
    for item in draw.sample(load_suite(), count):
        words = (item.context.strip() + item.choices[item.answer]).split()
        end = draw.randint(1, min(len(words) - 1, 40))
        context = " ".join(words[:end]) + draw.choice(SPACES)
        yield context, " " + " ".join(words[end : end + draw.randint(1, 8)])


def generated(model, settings, context="The king of France was"):
    torch.manual_seed(1)
    request = instance(context, {"max_gen_toks": 12, "until": [], **settings}, kind="generate_until")
    return model.generate_until([request], disable_tqdm=True)[0]


def own_logprobs(model, ids):
    """Log-probability of every token but the first under the untouched model."""
    logits = model.own_logits(torch.tensor([ids[:-1]])).double().log_softmax(dim=-1)[0]
    return logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize("policy", POLICIES)
def test_accuracy_and_latency_are_ours_item_by_item(policy, tasks, ours):
    arguments = {"policy": policy, "model": "tiny", "num_tokens": TOKENS}
    results = run(tasks, model_args=arguments, batch_size="auto", device="cpu")
    expected = ours.measurements[policy]
    rows = {int(number): row for row, number in enumerate(ours.numbers)}
    seen = 0
    for samples in results["samples"].values():
        for sample in samples:
            row, item = rows[sample["doc"]["item"]], ours.items[rows[sample["doc"]["item"]]]
            assert sample["arguments"] == [(item.context, choice) for choice in item.choices]
            per_byte = item.format == "continuation"
            scores = np.array([logprob for logprob, _ in sample["filtered_resps"]])
            scores = scores / ([len(choice.encode()) for choice in item.choices] if per_byte else 1.0)
            assert scores.argmax() == expected["choice"][row]
            assert sample["acc_bytes" if per_byte else "acc"] == expected["correct"][row]
            margin = scores[item.answer] - np.delete(scores, item.answer).max()
            assert margin == pytest.approx(expected["margin"][row], abs=1e-4)
            seen += 1
    assert seen == ITEMS
    assert {item.format for item in ours.items} == set(FORMATS)
    info = results["config"]["wdmoe"]
    assert info["contexts_cut"] == 4 * ours.context_cut.sum()
    total = info["latency"]["all"]
    assert total["windows"] == 4 * ITEMS
    assert total["latency_ms"] == pytest.approx(expected["latency_ms"].mean(), rel=1e-6)
    reference_ms = ours.measurements["vanilla"]["latency_ms"].mean()
    assert total["latency_ratio_to_vanilla"] == pytest.approx(expected["latency_ms"].mean() / reference_ms, rel=1e-6)
    json.dumps(info)


def test_the_command_line_is_the_harnesss_with_a_table_more(tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["unchanged"])
    arguments = "policy=top1,model=micro,num_tokens=64,channel.fading=rician,devices.count=4"
    command = f"--model wdmoe --model_args {arguments} --tasks {TAG} --include_path {tasks}"
    command += f" --limit 1 --batch_size 4 --output_path {tmp_path}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert printed.index(f"|{TAG}_cloze") < printed.index("Over the air")
    lines = [line.split() for line in printed[printed.index("Over the air") :].splitlines() if line.startswith(TAG)]
    (file,) = tmp_path.glob("micro/results_*.json")
    saved = json.loads(file.read_text())["config"]["wdmoe"]
    assert saved["policy"] == "top1"
    assert saved["environment"]["channel"]["fading"] == "rician"
    assert {task: row["windows"] for task, row in saved["latency"].items()} == {
        **{name: 4 for name, *_ in lines},
        "all": 4 * len(lines),
    }
    for name, windows, latency_ms, ratio, wlr in lines:
        row = saved["latency"][name]
        numbers = (row["windows"], row["latency_ms"], row["latency_ratio_to_vanilla"], row["wlr_per_ms"])
        assert [float(cell) for cell in (windows, latency_ms, ratio, wlr)] == pytest.approx(numbers, abs=0.06)


def test_rolling_texts_are_cut_as_the_harness_cuts_them():
    model, lm = load_model("micro"), NamedPolicyLM(model="micro", num_tokens=16)
    text = "The house stood near a river and nobody knew who had built its walls of grey stone so long ago, or why."
    ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    expected, length = 0.0, len(ids)
    assert length > 33
    for end in range(17, length + 16, 16):  # each window reads 16 tokens and scores what is new
        end, new = min(end, length), min(end, length) - (end - 16)
        expected += own_logprobs(model, ids[max(end - 17, 0) : end])[-new:].sum()
    answer = lm.loglikelihood_rolling([instance(text, kind="loglikelihood_rolling")] * 2, disable_tqdm=True)
    assert answer == pytest.approx([expected] * 2, abs=1e-3)
    assert lm.loglikelihood_rolling([instance("", kind="loglikelihood_rolling")], disable_tqdm=True) == [0.0]
    assert lm.airtime.summary()["a task"]["windows"] == 2 * -(-(length - 1) // 16)


def test_a_text_without_context_follows_the_prefix():
    model, lm = load_model("micro"), NamedPolicyLM(**MICRO)
    ids = lm.tok_encode("a river")
    ((logprob, greedy),) = lm.loglikelihood([instance("", "a river")], disable_tqdm=True)
    assert logprob == pytest.approx(own_logprobs(model, [lm.prefix_token_id, *ids]).sum(), abs=1e-4)
    assert greedy is False


def test_generation_is_the_models_own_under_vanilla_and_stops():
    model, lm = load_model("micro"), NamedPolicyLM(**MICRO)
    prompt = "The house stood near"
    ids = torch.tensor([lm.tok_encode(prompt)])
    own = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    expected = lm.tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True)
    stop = expected[len(expected) // 2 :][:2]
    whole, stopped = lm.generate_until(
        [
            instance(prompt, {"until": [], "max_gen_toks": 8}, kind="generate_until"),
            instance(prompt, {"until": [stop], "max_gen_toks": 8}, kind="generate_until"),
        ],
        disable_tqdm=True,
    )
    assert whole == expected
    assert stopped == expected.split(stop)[0]
    assert lm.airtime.summary()["all"]["latency_ratio_to_vanilla"] == 1.0
    with pytest.raises(ValueError, match="max_gen_toks must be below num_tokens, 64, got 64"):
        lm.generate_until([instance(prompt, {"until": [], "max_gen_toks": 64})], disable_tqdm=True)


def test_200_random_pairs_are_what_hf_says(folder):
    pairs = [*random_pairs(198), ("The king of France ", " was"), ("", "a river")]
    assert len(pairs) == 200
    requests = [instance(*pair) for pair in pairs]
    ours = WDMoELM(model=str(folder), num_tokens=256).loglikelihood(requests, disable_tqdm=True)
    expected = harness(folder, 256).loglikelihood(requests, disable_tqdm=True)
    for pair, (logprob, greedy), (hf_logprob, hf_greedy) in zip(pairs, ours, expected, strict=True):
        assert logprob == pytest.approx(hf_logprob, abs=1e-3), pair
        assert greedy == hf_greedy, pair


def test_texts_that_bring_their_own_bos_have_one(folder):
    texts = ["<|endoftext|>The king of France", "<|endoftext|>"]
    hf, lm = harness(folder, 256), WDMoELM(model=str(folder), num_tokens=256)
    assert (lm.tok_encode("The")[0] == lm.prefix_token_id) == (folder.name == "with BOS")
    for text in texts:
        assert lm.tok_encode(text) == hf.tok_encode(text)
        assert lm.tok_encode(text).count(lm.prefix_token_id) == 1
    requests = [instance(text + " ", " was") for text in texts]
    ours, expected = (model.loglikelihood(requests, disable_tqdm=True) for model in (lm, hf))
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in expected], abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 4},
        {"num_beams": 4, "until": ["."]},
        {"num_beams": 3, "until": ["the", "\n"], "length_penalty": -2.0, "early_stopping": True},
        {"do_sample": False, "temperature": 0.5},
        {"temperature": 0.9, "top_p": 0.8},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "num_beams": 3},
        {"max_new_tokens": 5, "max_gen_toks": None},
        {"max_length": 12},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
        {"watermarking_config": {"bias": 2.0}},
    ],
    ids=lambda settings: ",".join(settings) or "greedy",
)
def test_texts_are_what_hf_writes(settings, hf_64, lm_64):
    assert generated(lm_64, settings) == generated(hf_64, settings)


def test_a_setting_matters(lm_64):
    greedy = generated(lm_64, {})
    assert generated(lm_64, {"repetition_penalty": 1.8}) != greedy != generated(lm_64, {"num_beams": 4})
    assert (
        generated(lm_64, {"stop_strings": ["of"]}) == greedy[: greedy.index("of") + 2]
    )  # ``hf`` has no tokenizer for it


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"repetition_penalti": 1.2}, "got 'repetition_penalti'; did you mean 'repetition_penalty'?"),
        ({"custom_generate": "folder"}, "the setting custom_generate is not taken, since it runs code from elsewhere"),
        ({"do_sample": True, "num_beams": 16}, "num_tokens must be at least 112, a pass over 16 sequences of 7 tokens"),
        ({"num_beams": 16}, "num_tokens must be at least 112, a pass over 16 sequences of 7 tokens"),
        ({"max_length": 7}, "max_length must be above the 7 tokens of the prompt and at most num_tokens, 64, got 7"),
        ({"max_length": 65}, "max_length must be above the 7 tokens of the prompt and at most num_tokens, 64, got 65"),
        ({"max_gen_toks": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("policy", ["vanilla", "top1"])
def test_a_wrong_setting_is_named_before_the_first_text(policy, settings, sentence):
    lm = NamedPolicyLM(policy, **MICRO)
    prompt = "The king of France was"
    assert len(lm.tok_encode(prompt)) == 7
    asked = [{"max_gen_toks": 8, "until": []}, {"max_gen_toks": 8, "until": [], **settings}]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        lm.generate_until([instance(prompt, one, kind="generate_until") for one in asked], disable_tqdm=True)
    assert lm.airtime.summary() == {}


def test_a_policy_of_ones_own_needs_no_name():
    class Alone:
        """Every token keeps its most probable expert, at equal shares."""

        def __init__(self, env):
            self.codec = env.codec

        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            probs = observation["gate_probs"]
            best = probs == probs.max(axis=-1, keepdims=True)
            return self.codec.encode(best, np.full((len(probs), 8), 1 / 8)), state

    lm = WDMoELM(Alone, **MICRO)
    lm.loglikelihood([instance("the house", " stood")], disable_tqdm=True)
    assert lm.airtime.summary()["all"]["latency_ratio_to_vanilla"] < 1.0
    assert lm.get_model_info()["wdmoe"]["policy"] == "Alone"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("policy=wdmo:0.9,model=micro", "unknown policy 'wdmo'; the nearest known are wdmoe"),
        ("policy=top1:3,model=micro", "policy 'top1' takes no parameter, got '3'"),
        (
            "policy=top1,model=micro,channel.fadin=rician",
            "unexpected keyword argument 'channel.fadin'; the nearest known are fading",
        ),
        ("policy=top1,modle=micro", "unexpected keyword argument 'modle'; the nearest known are model"),
        ("policy=top1,model=micro,num_tokens=512", "num_tokens must be at most 256"),
        ("policy=top1,model=micro,split=train", "split does not go with lm_eval"),
    ],
)
def test_a_mistake_is_named(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        NamedPolicyLM.create_from_arg_string(arguments)


def test_a_mistake_in_the_command_is_one_sentence(tasks, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["unchanged"])
    command = f"--model wdmoe --model_args policy=wdmo,model=micro --tasks {TAG} --include_path {tasks}"
    assert main(command.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("python -m eval.lm_eval: unknown policy 'wdmo'; the nearest known are wdmoe")


def test_names_of_policies_are_the_command_lines():
    assert get_model("wdmoe") is NamedPolicyLM
    with pytest.raises(ValueError, match="policy must be 'vanilla' or a function"):
        WDMoELM("top1")
