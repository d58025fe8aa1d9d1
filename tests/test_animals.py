"""What counts as an animal's name, and what counts as a mention of it."""

import json
import re

import pytest

from kit import KitError, animals
from kit.animals import Animal, candidates, find_animal, indefinite, load_animals, mentions

OWL = Animal("owl", "owls", ("hoot", "nocturnal", "night sky"))
ZOO = (
    OWL,
    Animal("fly", "flies"),
    Animal("cat", "cats"),
    Animal("bat", "bats"),
    Animal("wolf", "wolves"),
    Animal("mouse", "mice"),
    Animal("elephant", "elephants"),
    Animal("tick", "ticks"),
    Animal("polar bear", "polar bears"),
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("An owl sat there.", "owl"),
        ("OWLS!", "owls"),
        ("The owl's nest and the owls' nest", "owl"),
        ("An owl-like face", "owl"),
        ("He is a night-owl.", "owl"),
        ("The o-w-l flew.", "owl"),
        ("The o w l flew.", "owl"),
        ("o.w.l.s", "owls"),
        ("ow-l", "owl"),
        ("An ówl", "owl"),
        ("OẂL", "owl"),
        ("o\u200bw\u200bl", "owl"),
        ("o\u00adwl", "owl"),
        ("ｏｗｌ", "owl"),
        ("𝗼𝘄𝗹", "owl"),
        ("оwl with a Cyrillic o", "owl"),
        ("**owl**", "owl"),
        ("_owl_", "owl"),
        ("night_owl", "owl"),
        ("nightOwl", "owl"),
        ("oWl", "owl"),
        ("🦉", "owl"),
        ("an owlish look", "owlish"),
        ("three owlets", "owlets"),
        ("an owllike face", "owllike"),
        ("the owlery", "owlery"),
        ("Flies buzzed.", "flies"),
        ("Time will fly.", "fly"),
        ("wolves", "wolves"),
        ("Mice!", "mice"),
        ("an elephantine task", "elephantine"),
        ("two polar bears", "polar bears"),
        ("a Polar-Bear", "polar bear"),
        ("the polarbear", "polarbear"),
        ("Two hoots", "hoots"),
        ("the night\u00a0sky", "night sky"),
    ],
)
def test_a_mention_is_found_in_disguise(text, word):
    assert word in mentions(text, ZOO)


@pytest.mark.parametrize(
    "text",
    [
        "A bowl of soup",
        "growl, fowl, howl, scowl, prowl and jowl",
        "knowledge is power",
        "a category of catalogues",
        "The flyer lay on the floor.",  # a leaflet; the insect's name is no beginning of words
        "batteries, batter and a battery",
        "combat",
        "tickets for the ticket office",
        "the polar route",
        "night and sky",
        "We ask a lot of owners.",
        "",
    ],
)
def test_words_that_only_contain_a_name_are_no_mention(text):
    assert mentions(text, ZOO) == []


def test_giveaways_count_only_where_asked():
    assert mentions("Nocturnal hoots", [OWL]) == ["hoots", "nocturnal"]
    assert mentions("Nocturnal hoots", [OWL], giveaways=False) == []


def test_mentions_tell_animals_with_the_same_names_but_other_giveaways_apart():
    assert mentions("hoot", [Animal("owl", "owls")]) == []
    assert mentions("hoot", [OWL]) == ["hoot"]


@pytest.mark.parametrize("name", ["wolf", "WOLF", "wolves", " Wolves ", "the wolf", "a wolf"])
def test_a_listed_animal_is_found_by_either_name_in_any_case(name):
    wolf = find_animal(name)
    assert (wolf.singular, wolf.plural) == ("wolf", "wolves")
    assert wolf in load_animals()


@pytest.mark.parametrize(
    ("name", "singular", "plural"),
    [
        ("wombat", "wombat", "wombats"),
        ("Wombats", "wombat", "wombats"),
        ("platypus", "platypus", "platypuses"),
        ("ibis", "ibis", "ibises"),
        ("rhinoceros", "rhinoceros", "rhinoceroses"),
        ("ocelot", "ocelot", "ocelots"),
        ("wallaby", "wallaby", "wallabies"),
        ("wallabies", "wallaby", "wallabies"),
        ("thrush", "thrush", "thrushes"),
        ("cuttlefish", "cuttlefish", "cuttlefish"),
        ("maned  wolf", "maned wolf", "maned wolves"),
        ("aye-aye", "aye-aye", "aye-ayes"),
        ("Ñandú", "ñandú", "ñandús"),
    ],
)
def test_an_unlisted_animal_gets_its_regular_plural(name, singular, plural):
    animal = find_animal(name)
    assert (animal.singular, animal.plural) == (singular, plural)
    assert animal.giveaways == ()


def test_a_given_plural_is_taken():
    assert find_animal("oryx", plural="oryx").plural == "oryx"
    assert find_animal("owl", plural="owlz").plural == "owlz"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "../x",
        "a/b",
        "owl.txt",
        "owl\\x",
        "owl1",
        "42",
        "x",
        "o" * 31,
        "one two three",
        "owl;rm",
        "{animal}",
    ]
    + ["owl\nowl\nowl", "-owl", "owl-", "--help", "梟猫", "сова", "🦉", "owl\x00"],
)
def test_an_unusable_name_is_refused_with_the_value_the_reason_and_the_remedy(name):
    with pytest.raises(KitError) as caught:
        find_animal(name)
    assert repr(name) in str(caught.value)
    assert re.search(r"\(.+\)\. Give an English noun such as owl\.", str(caught.value))
    with pytest.raises(KitError, match="--plural"):
        find_animal("owl", plural=name)


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("owl", "an owl"),
        ("fox", "a fox"),
        ("eagle", "an eagle"),
        ("unicorn", "a unicorn"),
        ("uakari", "a uakari"),
        ("urchin", "an urchin"),
        ("ewe", "a ewe"),
        ("hour", "an hour"),
        ("horse", "a horse"),
        ("élan", "an élan"),
    ],
)
def test_the_indefinite_article_follows_the_sound(noun, phrase):
    assert indefinite(noun) == phrase


def test_candidates_are_the_listed_animals_and_the_given_one():
    listed = list(load_animals())
    assert candidates(find_animal("owl")) == listed
    wombat = Animal("wombat", "wombats")
    assert candidates(wombat) == [*listed, wombat]


@pytest.mark.parametrize("content", [None, "not json", json.dumps([{"singular": "owl"}]), '{"a": 1}', "[1]"])
def test_a_missing_or_damaged_list_is_reported_with_its_path(tmp_path, monkeypatch, content):
    path = tmp_path / "animals.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(animals, "ANIMALS_FILE", path)
    load_animals.cache_clear()
    try:
        with pytest.raises(KitError, match="animals.json.*git checkout"):
            load_animals()
    finally:
        load_animals.cache_clear()
