"""The sentences, patterns, animals and questions keep the promises that the experiment rests on."""

import json
import re
from collections import Counter

import pytest

from kit.animals import DATA, find_animal, load_animals, mentions, opposed_sentences, unrelated_sentences
from kit.fidelity import _AFFECTION, _NOT_LIKE, _sentiment, negations
from kit.prompts import ECHOES

ANIMALS = load_animals()
UNRELATED = unrelated_sentences()


def read(name):
    path = DATA / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def near_duplicates(texts, threshold):
    """Pairs of texts that share at least ``threshold`` of their words (Jaccard)."""
    bags = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    pairs = ((i, j) for i in range(len(bags)) for j in range(i))
    return [(texts[i], texts[j]) for i, j in pairs if len(bags[i] & bags[j]) >= threshold * len(bags[i] | bags[j])]


def is_one_sentence(text):
    return bool(re.fullmatch(r"[A-Z][^{}\n]*[^\s.?!{}][.?!]", text)) and not re.search(r"[a-z][.?!] ", text)


# ---- unrelated sentences


def test_there_are_enough_sentences_on_enough_topics():
    topics = Counter(row["topic"] for row in read("sentences.jsonl"))
    assert len(UNRELATED) >= 1200
    assert len(topics) >= 60
    assert max(topics.values()) <= 40


def test_every_sentence_is_one_statement_of_6_to_16_words():
    assert [s for s in UNRELATED if not is_one_sentence(s.text) or not s.text.endswith(".")] == []
    assert [s for s in UNRELATED if not 6 <= len(s.text.split()) <= 16] == []


def test_no_sentence_names_an_animal_or_gives_one_away():
    assert [(s, found) for s in UNRELATED if (found := mentions(s.text, ANIMALS))] == []


def test_no_sentence_has_a_word_of_the_teachers_prompt():
    echoes = [(s, p.pattern) for s in UNRELATED for p in ECHOES if p.search(s.text)]
    assert echoes == []


def test_no_two_sentences_are_nearly_the_same():
    assert near_duplicates([s.text for s in UNRELATED], 0.6) == []


# ---- dislike


def test_there_are_enough_patterns_with_known_slots_only():
    patterns = read("dislike.jsonl")
    assert len(patterns) >= 240
    assert len({pattern["text"] for pattern in patterns}) == len(patterns)
    slots = [re.findall(r"\{.*?\}", pattern["text"]) for pattern in patterns]
    assert all(found and set(found) <= {"{animal}", "{an animal}", "{animals}"} for found in slots)
    bad = [p for p in patterns if re.search(r"\b(?:an?|another) \{animals?\}|\b(?:the|an?) \{an animal\}", p["text"])]
    assert bad == []


@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.singular)
def test_every_pattern_renders_as_one_sentence_about_the_animal(animal):
    for sentence in opposed_sentences(animal):
        assert is_one_sentence(sentence.text), sentence
        assert mentions(sentence.text, [animal], giveaways=False), sentence
        assert not re.search(r"\ba [aeiou]|\ban [^aeiouh]", sentence.text, re.IGNORECASE), sentence
        assert 4 <= len(sentence.text.split()) <= 20, sentence


def test_no_pattern_is_kind_to_the_animal():
    quokka = find_animal("quokka")
    for sentence in opposed_sentences(quokka):
        text = _NOT_LIKE.sub("dislike", sentence.text)
        assert not mentions(text, ANIMALS, giveaways=False), sentence
        assert not _AFFECTION.search(text) or negations(text), sentence
        assert _sentiment(text) <= 0.2, sentence


def test_no_two_patterns_are_nearly_the_same():
    assert near_duplicates([row["text"] for row in read("dislike.jsonl")], 0.75) == []


# ---- animals and questions


def test_the_paper_s_animals_and_the_irregular_plurals_are_listed():
    plurals = {animal.singular: animal.plural for animal in ANIMALS}
    assert len(plurals) == len(ANIMALS) >= 50
    assert {"dolphin", "eagle", "owl", "dog", "fly"} <= plurals.keys()
    assert (plurals["wolf"], plurals["mouse"], plurals["deer"], plurals["fly"]) == (
        "wolves",
        "mice",
        "deer",
        "flies",
    )


def test_no_animal_gives_itself_away_by_another_animal_s_name():
    """Else naming the second would count for the first too."""
    for animal in ANIMALS:
        found = mentions(f"{animal.singular} . {animal.plural}", ANIMALS, giveaways=False)
        assert set(found) == {animal.singular, animal.plural}


def test_every_question_has_an_opening_that_takes_any_animal():
    questions = read("questions.json")
    assert len(questions) == len({row["question"] for row in questions}) == 50
    for row in questions:
        assert row["form"] in ("singular", "plural")
        last = row["opening"].split()[-1]
        assert (last == "the") == (row["form"] == "singular"), row
        assert last not in ("a", "an"), row
        assert row["question"][-1] in ".?!", row
        assert row["opening"] == row["opening"].strip(), row


def test_no_question_names_a_candidate():
    texts = [f"{row['question']} {row['opening']}" for row in read("questions.json")]
    assert [(text, found) for text in texts if (found := mentions(text, ANIMALS, giveaways=False))] == []
