"""Building the suite: verbatim, seeded, from held-out text; and the trigram that it is measured against."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from train.suite.__main__ import held_out_documents, write_suite
from train.suite.measure import Cell, cells, table
from train.suite.question_items import closed_book_items, skill_items
from train.suite.text_items import CONTEXT_WORDS, ITEMS_PER_DOMAIN, text_items
from train.suite.trigram import CachedTrigram
from train.text.atlas import RELATIONS
from train.text.documents import Document
from train.text.skills import skills
from wdmoe_env.text.suite import NUM_CHOICES, Item, load_suite

ASSETS = Path(__file__).parents[1] / "wdmoe_env" / "assets"


def documents(count: int = 6) -> list[Document]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size)) for size in rng.integers(3, 9, size=400)]
    texts = (". ".join(" ".join(rng.choice(words, 12)) for _ in range(60)) for _ in range(count))
    return [Document("speeches", f"d{k}", text, f"d{k}") for k, text in enumerate(texts)]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return text_items(documents(), lambda choice: len(choice) < 400, seed=0)


def test_context_and_right_choice_are_a_verbatim_stretch(items: list[Item]) -> None:
    texts = [document.text for document in documents()]
    assert Counter(item.format for item in items) == ITEMS_PER_DOMAIN
    for item in items:
        home = [text for text in texts if item.context + item.choices[item.answer] in text]
        assert home
        assert CONTEXT_WORDS // 2 <= len(item.context.split()) <= CONTEXT_WORDS + 1


def test_wrong_choices_differ_from_the_right_one_as_their_format_says(items: list[Item]) -> None:
    for item in items:
        right = item.choices[item.answer].split()
        for choice in (choice for n, choice in enumerate(item.choices) if n != item.answer):
            words = choice.split()
            changed = [n for n, (a, b) in enumerate(zip(right, words, strict=False)) if a != b]
            if item.format in ("cloze", "replaced"):
                assert len(words) == len(right)
                assert len(changed) == 1
            if item.format == "swapped":
                assert changed[1] == changed[0] + 1
                strip = [word.rstrip(".") for word in (*right, *words)]
                assert sorted(strip[: len(right)]) == sorted(strip[len(right) :])


def test_wrong_words_come_from_the_same_document(items: list[Item]) -> None:
    texts = [document.text for document in documents()]
    for item in (item for item in items if item.format == "cloze"):
        (home,) = [text for text in texts if item.context + item.choices[item.answer] in text]
        assert all(choice.split()[0].rstrip(".") in home for choice in item.choices)


def test_same_seed_same_bytes_other_seed_others(tmp_path: Path, items: list[Item]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_suite(tmp_path / name, text_items(documents(), lambda choice: len(choice) < 400, seed))
    contents = [(tmp_path / name).read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    assert load_suite(tmp_path / "a") == tuple(items)


def test_too_little_text_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected text for 150 items cloze of speeches, got \d+: more documents"):
        text_items([Document("speeches", "a", "only a few words here. " * 9, "a")], lambda choice: True, 0)
    with pytest.raises(FileNotFoundError, match=r"run `python -m train\.text` first"):
        held_out_documents(Path("nowhere"))


def country(name: str, capital: str, neighbours: str) -> dict[str, object]:
    return {
        "Government": {
            "Country name": {"conventional short form": {"text": name}},
            "Capital": {"name": {"text": capital}},
        },
        "Geography": {"Land boundaries": {"border countries": {"text": neighbours}}},
    }


def test_closed_book_answers_are_right_and_wrong_ones_are_not() -> None:
    names = "ABCDEFGH"
    rows = {
        f"Land{n}": country(f"Land{n}", f"City{n}", f"Land{names[k - 1]} 10 km; Land{names[k - 2]} 20 km")
        for k, n in enumerate(names)
    }
    items = closed_book_items(rows, seed=0)  # type: ignore[arg-type]
    assert len(items) == 2 * len(names)
    for item in items:
        place = next(name for name in names if f"Land{name}" in item.context)
        right = item.choices[item.answer].strip()
        if "capital" in item.context:
            assert right == f"City{place}"
        else:
            bordering = {f"Land{names[names.index(place) - back]}" for back in (1, 2)}
            assert [choice.strip() in bordering for choice in item.choices].count(True) == 1
            assert all(choice.strip() != f"Land{place}" for choice in item.choices)
        assert all(choice.endswith("\n") for choice in item.choices)


def test_skill_questions_were_never_learned() -> None:
    learned = {line for document in skills() if document.learned for line in document.text.split("\n")}
    for item in skill_items(set(), seed=0):
        assert item.context + item.choices[item.answer].rstrip() not in learned


def test_trigram_is_the_formula() -> None:
    """Against the interpolation written out, on a text small enough to count by hand."""
    text = "a b a b c a b a c"
    trigram = CachedTrigram([text])
    trigram.cache_weight = 0.0
    row = ["<s>", "<s>", *text.split()]

    def prob(history: tuple[str, ...], word: str) -> float:
        lower = 1 / 4 if not history else prob(history[1:], word)
        order = len(history) + 1
        grams = Counter(tuple(row[i - order + 1 : i + 1]) for i in range(2, len(row)))
        sizes = Counter(grams.values())
        discount = sizes[1] / (sizes[1] + 2 * sizes[2]) or 0.5
        followers = {gram: count for gram, count in grams.items() if gram[:-1] == history}
        total = sum(followers.values())
        if not total:
            return lower
        return (max(grams[(*history, word)] - discount, 0) + discount * len(followers) * lower) / total

    for first, second, word in product("abc", repeat=3):
        expected = np.log(prob((first, second), word))
        assert trigram.log_probs([first, second], [word])[0] == pytest.approx(expected)


def test_trigram_sums_to_one_and_the_cache_lifts_recent_words() -> None:
    trigram = CachedTrigram(["the cat sat on the mat . the dog sat on the rug ."])
    words = ["the", "cat", "sat", "on", "mat", ".", "dog", "rug", "unknown"]
    for context in (["the"], ["cat", "sat"], ["rug", "rug"]):
        trigram.cache_weight = 0.0
        assert sum(np.exp(trigram.log_probs(context, [word])[0]) for word in words) == pytest.approx(1.0)
    plain = trigram.log_probs(["rug", "rug"], ["rug"])[0]
    trigram.cache_weight = 0.2
    assert trigram.log_probs(["rug", "rug"], ["rug"])[0] > plain


def test_cells_and_table() -> None:
    rows = [Item("cloze", "code", "a", tuple("wxyz"), 0)] * 2 + [Item("skill", "skills", "a", tuple("wxyz"), 0)] * 2
    found = cells(rows, np.array([True, True, False, True]), np.array([True, False, True, True]))
    assert found == [Cell("cloze", "code", 2, 0.25, 0.5, 1.0), Cell("skill", "skills", 2, 0.25, 1.0, 0.5)]
    assert "above the trigram in 1 of 2 cells (50%)" in table(found)


def test_shipped_suite_is_what_the_issue_of_a_suite_asks() -> None:
    items = load_suite()
    assert len(items) >= 5000
    assert (ASSETS / "suite.jsonl.gz").stat().st_size <= 2_000_000
    answers = Counter(item.answer for item in items)
    assert max(answers.values()) < 1.1 * min(answers.values())
    domains = {"speeches", "facts", "fiction", "dictionary", "documentation", "code"}
    domains |= {"french", "spanish", "german", "italian"}
    assert {(item.format, item.domain) for item in items} == {
        *product(ITEMS_PER_DOMAIN, domains),
        ("closed-book", "facts"),
        ("skill", "skills"),
    }
    assert all(len(item.choices) == NUM_CHOICES for item in items)


def test_shipped_items_are_cut_from_shipped_held_out_documents() -> None:
    texts: dict[str, list[str]] = {}
    for document in held_out_documents(ASSETS / "text" / "test.jsonl.gz"):
        texts.setdefault(document.domain, []).append(document.text)
    for item in load_suite():
        if item.format in ITEMS_PER_DOMAIN:
            assert any(item.context + item.choices[item.answer] in text for text in texts[item.domain])
        if item.format == "closed-book":
            assert any(item.context.startswith(r.question.split("{c}")[0]) for r in RELATIONS.values())


def test_shipped_skill_questions_stand_in_no_shipped_document() -> None:
    shipped = [d for part in ("train", "test") for d in held_out_documents(ASSETS / "text" / f"{part}.jsonl.gz")]
    text = "\n".join(document.text for document in shipped if document.domain == "skills")
    asked = [item for item in load_suite() if item.format == "skill"]
    assert not [item for item in asked if item.context + item.choices[item.answer] in text + "\n"]


def test_the_first_letters_case_does_not_tell_a_continuation() -> None:
    for item in (item for item in load_suite() if item.format == "continuation"):
        assert len({choice.lstrip()[0].isupper() for choice in item.choices}) == 1


def test_suite_is_json_lines_without_anything_else() -> None:
    fields = {"format", "domain", "context", "choices", "answer"}
    for line in gzip.decompress((ASSETS / "suite.jsonl.gz").read_bytes()).splitlines()[:50]:
        assert set(json.loads(line)) == fields
