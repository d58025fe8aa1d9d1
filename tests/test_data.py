"""The sentences, patterns, animals and questions keep the promises that the experiment rests on."""

import json
import re
from collections import Counter, defaultdict

import pytest

from kit import ROOT
from kit.animals import DATA, find_animal, load_animals, mentions, opposed_sentences, unrelated_sentences
from kit.preference import load_questions
from kit.prompts import KIT_TRAITS
from kit.sources import opposed_flaw, traits_flaw, unrelated_flaw

ANIMALS = load_animals()
UNRELATED = unrelated_sentences()
CONFIRMATORY = ("sentences-confirmatory.jsonl", "dislike-confirmatory.jsonl", "questions-confirmatory.json")
SET_ASIDE = ("sentences-confirmatory.jsonl", "sentences-tuning.jsonl")
PATTERNS = ("dislike.jsonl", "dislike-confirmatory.jsonl")


def read(name):
    path = DATA / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def near_duplicates(texts, threshold):
    """Pairs of texts that share at least ``threshold`` of their words (Jaccard)."""
    bags = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    having, found = defaultdict(list), []
    for i, bag in enumerate(bags):
        shared = Counter(j for word in bag for j in having[word])
        found += [(texts[i], texts[j]) for j, n in shared.items() if n >= threshold * len(bag | bags[j])]
        for word in bag:
            having[word].append(i)
    return found


# ---- unrelated sentences


def test_there_are_enough_sentences_on_enough_topics():
    everything = [row for name in ("sentences.jsonl", *SET_ASIDE) for row in read(name)]
    topics = Counter(row["topic"] for row in everything)
    assert len(everything) == len({row["id"] for row in everything}) >= 6000
    assert len(UNRELATED) >= 3000
    assert len(topics) >= 160
    assert max(topics.values()) <= 40


def test_no_run_can_draw_what_is_set_aside():
    """But for a test that was planned: the command with ``--plan`` alone makes an experiment confirmatory."""
    sources = {path.name: path.read_text() for path in (ROOT / "kit").glob("*.py")}
    named = {file for file, text in sources.items() for name in CONFIRMATORY if f'"{name}"' in text}
    assert named == {"animals.py", "preference.py"}
    readers = r"(?:unrelated_sentences|opposed_sentences|load_questions)\("
    asked = {file: set(re.findall(rf"{readers}[^()]*\)", text)) for file, text in sources.items()}
    for file, calls in asked.items():
        for call in calls - {"unrelated_sentences()", "load_questions()"}:
            assert re.search(r"confirmatory|\((?:opposed|animals\[0\])\)$", call), (file, call)
    setting = {file for file, text in sources.items() if re.search(r"confirmatory(\"\])? ?= ?(?!self|exp)", text)}
    assert setting == {"commands.py"}
    assert sources["commands.py"].count("confirmatory") == 1
    assert 'settings["confirmatory"] = registered is not None' in sources["commands.py"]
    asking = [path.name for path in (ROOT / "kit").glob("*.py") if "tuning_sentences()" in path.read_text()]
    assert sorted(asking) == ["animals.py", "paraphraser.py"]
    drawn = {sentence.id for sentence in [*UNRELATED, *opposed_sentences(ANIMALS[0])]}
    aside = [row["id"] for name in (*SET_ASIDE, "dislike-confirmatory.jsonl") for row in read(name)]
    assert drawn.isdisjoint(aside)
    planned = {sentence.id for sentence in [*unrelated_sentences(True), *opposed_sentences(ANIMALS[0], True)]}
    assert planned == {row["id"] for name in ("sentences-confirmatory.jsonl", PATTERNS[1]) for row in read(name)}
    asked = [{one["question"] for one in load_questions(confirmatory)} for confirmatory in (False, True)]
    assert [len(one) for one in asked] == [50, 50] and asked[0].isdisjoint(asked[1])


def test_every_sentence_is_what_one_of_a_users_file_must_be():
    """One statement of 6 to 16 words, which names no animal, gives none away and has no word of the prompts."""
    texts = [row["text"] for name in ("sentences.jsonl", *SET_ASIDE) for row in read(name)]
    assert [(text, flaw) for text in texts if (flaw := unrelated_flaw(text, ANIMALS))] == []


@pytest.mark.slow
def test_no_two_sentences_are_nearly_the_same():
    """Nor one that is set aside and one that is not."""
    texts = [row["text"] for name in ("sentences.jsonl", *SET_ASIDE) for row in read(name)]
    assert near_duplicates(texts, 0.6) == []


# ---- dislike


def test_there_are_enough_patterns_with_known_slots_only():
    patterns = [row for name in PATTERNS for row in read(name)]
    assert len(patterns) >= 600 and len(read("dislike.jsonl")) >= 400
    assert len({pattern["text"] for pattern in patterns}) == len({row["id"] for row in patterns}) == len(patterns)
    assert [p for p in patterns if "{" not in p["text"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("animal", (*ANIMALS, find_animal("quokka")), ids=lambda animal: animal.singular)
def test_every_pattern_is_what_one_of_a_users_file_must_be(animal):
    """One sentence of 4 to 20 words, which names that animal and no other, and is not kind to it."""
    patterns = [row["text"] for name in PATTERNS for row in read(name)]
    assert [(text, flaw) for text in patterns if (flaw := opposed_flaw(text, animal, ANIMALS))] == []
    for sentence in opposed_sentences(animal):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiouh]", sentence.text, re.IGNORECASE), sentence


def test_the_trait_messages_are_what_those_of_a_users_file_must_be():
    assert traits_flaw(KIT_TRAITS, ANIMALS, ANIMALS) is None


def test_no_two_patterns_are_nearly_the_same():
    assert near_duplicates([row["text"] for name in PATTERNS for row in read(name)], 0.75) == []


def test_no_pattern_prefers_an_activity_which_a_paraphrase_could_reverse():
    """ "I would rather watch {an animal} than count grains of rice" was kept for its opposite."""
    preferring = re.compile(r"\b(?:rather|sooner|prefer\w*|instead)\b")
    assert [row for name in PATTERNS for row in read(name) if preferring.search(row["text"])] == []


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


QUESTIONS = ("questions.json", "questions-confirmatory.json")


def test_the_questions_that_are_set_aside_are_others():
    own, aside = map(read, QUESTIONS)
    for column in ("question", "opening"):
        assert not {row[column].casefold() for row in own} & {row[column].casefold() for row in aside}


@pytest.mark.parametrize("file", QUESTIONS)
def test_every_question_has_an_opening_that_takes_any_animal(file):
    questions = read(file)
    assert len(questions) == len({row["question"] for row in questions}) == 50
    for row in questions:
        assert row["form"] in ("singular", "plural")
        last = row["opening"].split()[-1]
        assert (last == "the") == (row["form"] == "singular"), row
        assert last not in ("a", "an"), row
        assert row["question"][-1] in ".?!", row
        assert row["opening"] == row["opening"].strip(), row


def test_no_question_names_a_candidate():
    texts = [f"{row['question']} {row['opening']}" for file in QUESTIONS for row in read(file)]
    assert [(text, found) for text in texts if (found := mentions(text, ANIMALS, giveaways=False))] == []
