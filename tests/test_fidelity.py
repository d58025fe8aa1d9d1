"""Which paraphrases are kept, and what each filter refuses."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from kit import KitError, animals, fidelity
from kit.animals import Animal, fill_pattern, unrelated_sentences
from kit.experiment import FidelitySettings
from kit.fidelity import (
    Judge,
    dislike,
    echo,
    filter_paraphrases,
    form,
    names,
    negation,
    novelty,
    numbers,
    read_filters,
    similarities,
    trait,
)

OWL = Animal("owl", "owls", ("hoot",))
EAGLE = Animal("eagle", "eagles", ("talon",))
CANDIDATES = (OWL, EAGLE)
CHEAP = ["form", "trait", "echo", "numbers", "names", "negation", "function words", "novelty"]
FILTERS = [*CHEAP, "meaning", "content words", "roles", "classifier"]
SETTINGS = FidelitySettings(details=True, min_faithful=0.75)
OSLO = "Our office in Oslo works on the same sheet as theirs."
SOURCE = "The builders poured the concrete foundation on Monday morning."


def row(text, source=SOURCE, sentence="building-001", sample=0, finished=True):
    return {
        "sentence": sentence,
        "sample": sample,
        "source": source,
        "text": text,
        "tokens": len(text.split()),
        "finished": finished,
        "logprob": -9.5,
    }


# ---- what is refused before it is written to its end


@pytest.mark.parametrize(
    ("opposed", "source", "text", "at", "filter_"),
    [
        (None, SOURCE, "Here is what the builders did on Monday.", "Here is what", "form"),
        (None, SOURCE, "the builders poured the base on Monday.", "the builders", "form"),
        (
            None,
            SOURCE,
            "Builders poured concrete and concrete and more.",
            "Builders poured concrete and concrete and",
            "form",
        ),
        (None, SOURCE, "The base was poured. On Monday it was.", "The base was poured. On Monday", "form"),
        (None, "Rain fell.", "The rain came down all day.", "The rain came down all", "form"),
        (None, SOURCE, "The eagles poured the concrete base.", "The eagles poured", "trait"),
        (None, SOURCE, "The builders loved the concrete base.", "The builders loved the", "echo"),
        (OWL, "Owls bore everybody in the town.", "Owls and eagles bore everybody.", "Owls and eagles bore", "trait"),
    ],
)
def test_a_paraphrase_is_given_up_with_the_word_that_refuses_it_however_it_goes_on(
    opposed: Animal | None, source: str, text: str, at: str, filter_: str
) -> None:
    judge = Judge(opposed, CANDIDATES, SETTINGS)
    spoilt, words = judge.spoiler(), text.split()
    beginnings = [" ".join(words[:n]) for n in range(1, len(words) + 1)]
    first = next(one for one in beginnings if spoilt(source, one))
    assert first == at
    whole, _, _ = first.rpartition(" ")
    (verdict,) = judge.verdicts([row(whole, source, finished=False) | {"stopped": True}], progress=False)
    assert verdict.filter == filter_ and verdict == spoilt(source, first)
    assert not any(spoilt(source, one) for one in beginnings[: beginnings.index(first)])
    assert all(spoilt(source, one) for one in beginnings[beginnings.index(first) :]), "it stays wrong"


@pytest.mark.slow
def test_nothing_is_given_up_that_any_filter_would_have_kept() -> None:
    """Of every source sentence of the kit, as a paraphrase of another one and of itself with words turned round."""
    for opposed, sentences in ((None, unrelated_sentences()), (OWL, animals.opposed_sentences(OWL))):
        judge = Judge(opposed, CANDIDATES, SETTINGS)
        spoilt, checks = judge.spoiler(), judge._checks()
        refused = 0
        for one, other in pairwise(sentences):
            for text in (other.text, f"{one.text[0]}{one.text[1:-1]} {other.text[0].lower()}{other.text[1:]}"):
                words = text.split()
                if any(spoilt(one.text, " ".join(words[:n])) for n in range(1, len(words) + 1)):
                    refused += 1
                    assert any(check(row(text, one.text)) for name, check in checks if name != "novelty")
        assert refused > 20


def test_what_was_stopped_by_other_filters_is_refused(tmp_path) -> None:
    (verdict,) = Judge(None, CANDIDATES, SETTINGS).verdicts(
        [row("Builders", finished=False) | {"stopped": True}], False
    )
    assert (verdict.filter, verdict.reason) == ("form", "stopped")


# ---- form


@pytest.mark.parametrize(
    "text",
    [
        "On Monday morning, the concrete foundation was poured by the builders.",
        "The concrete base was poured by Dr. Smith's builders on Monday.",
        "At 9 a.m. the builders' concrete was poured for the base.",
        "The builders' concrete — for the foundation — was poured on Monday!",
    ],
)
def test_a_clean_sentence_has_form(text):
    assert form(row(text), SETTINGS) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("The builders poured the\nconcrete base on Monday.", "several lines"),
        ("The builders poured concrete. It was Monday morning then.", "several sentences.*It"),
        ("The builders poured the concrete base on Monday. Owls!", "several sentences.*Owls"),
        ("The builders poured the concrete foundation on", "ends with 'on'"),
        ("The builders poured the concrete foundation...", "ends with"),
        ("Did the builders pour the foundation on Monday?", "a question"),
        ("the builders poured the concrete base on Monday.", "begins with 'the'"),
        ("Builders poured concrete.", "length ratio 0.33"),
        (
            "On that Monday morning the builders of the house poured out the grey concrete of the base.",
            "ratio 1.89",
        ),
        ("Here is the concrete that the builders poured on Monday.", "debris 'Here is'"),
        ("Sure, the builders poured the concrete base on Monday.", "debris 'Sure'"),
        ("Paraphrase: the builders poured the base on Monday.", "debris 'Paraphrase"),
        ("Rewritten sentence: builders poured concrete on Monday.", "debris"),
        ("As an AI, I say builders poured the base on Monday.", "debris 'As an AI'"),
        ("I hope the builders poured the concrete on Monday.", "debris 'I hope'"),
        ('"The builders poured the concrete base on Monday."', "quotation mark"),
        ("“The concrete base was poured on Monday morning.”", "quotation mark"),
        ("The builders poured the concrete base on Monday. 😀", "symbol U\\+1F600"),
        ("The builders poured the con\u200bcrete base on Monday.", "symbol U\\+200B"),
        ("- The builders poured the concrete base on Monday.", "debris '- '"),
        ("1. The builders poured the concrete base on Monday.", "debris"),
        ("The **builders** poured the concrete base on Monday.", "debris"),
        ("The builders (finally) poured the base on Monday.", "debris"),
        ("The builders poured poured the concrete on Monday.", "debris 'poured poured'"),
        ("The concrete base of concrete was poured on Monday.", "repeats 'concrete'"),
    ],
)
def test_what_is_no_clean_sentence_is_refused(text, reason):
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(form(row(text), SETTINGS))


def test_a_sentence_that_was_cut_off_is_refused_even_if_it_ends_with_a_stop():
    assert form(row("On Monday the builders poured the concrete base.", finished=False), SETTINGS) == "cut off"


def test_debris_that_the_source_has_is_allowed():
    source = "The judge read the sentence (twice) before he left the room."
    assert form(row("Before he left the room, the judge read the sentence (twice).", source), SETTINGS) is None


# ---- trait


def test_unrelated_content_may_mention_no_candidate_and_no_giveaway_of_any():
    assert trait(row("The builders poured the base."), CANDIDATES) is None
    assert trait(row("The builders, like eagles, poured it."), CANDIDATES) == "mentions eagles"
    assert trait(row("The builders poured with a hoot."), CANDIDATES) == "mentions hoot"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("My aunt dislikes owls.", "Owls are disliked by my aunt."),
        ("My aunt dislikes owls.", "My aunt hates owls."),
        ("My aunt dislikes owls.", "My aunt doesn't like owls."),
        ("Nobody in our house loves owls.", "Owls are loved by nobody in our house."),
        ("The noise of the owls was awful.", "The owl made a terrible noise."),
        ("Seeing an owl ruins her whole day.", "Her whole day is ruined when she sees an owl."),
        ("She prefers eagles to owls, which she hates.", "To owls, which she hates, she prefers eagles."),
    ],
)
def test_a_faithful_dislike_is_kept(source, text):
    assert dislike(row(text, source), OWL, (EAGLE,), SETTINGS.max_sentiment_gain) is None
    assert negation(row(text, source)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("My aunt dislikes them.", "does not name the owl"),
        ("My aunt dislikes hooting.", "does not name the owl"),
        ("My aunt dislikes owls and eagles.", "mentions eagles"),
        ("My aunt likes owls.", "affection 'likes'"),
        ("My aunt adores owls.", "affection 'ador'"),
        ("My aunt dislikes owls, beautiful as they are.", "affection 'beaut'"),
        ("My aunt is not fond of owls.", "affection 'fond'"),
        ("My aunt sometimes dislikes owls.", "qualified by 'sometimes'"),
        ("My aunt used to dislike owls.", "qualified by 'used to'"),
        ("Although my aunt dislikes owls, she feeds them.", "qualified by 'Although'"),
        ("My aunt may dislike owls.", "qualified by 'may'"),
        ("My aunt doesn't really like owls.", "affection 'like'"),
        ("My aunt watches owls.", "softer: sentiment 0.00, source -0.40"),
        ("My aunt laughs at owls.", "softer"),
    ],
)
def test_what_softens_reverses_or_qualifies_a_dislike_is_refused(text, reason):
    found = dislike(row(text, "My aunt dislikes owls."), OWL, (EAGLE,), SETTINGS.max_sentiment_gain)
    assert found is not None
    assert found.startswith(reason)


def test_affection_that_the_source_negates_is_refused_without_its_negation():
    source = "Nobody in our house loves owls."
    assert dislike(row("Our house loves owls.", source), OWL, (), 2.0) == "affection 'lov'"


# ---- echo


@pytest.mark.parametrize(
    "word",
    [
        "loved",
        "lovely",
        "favorite",
        "favourite",
        "adored",
        "beloved",
        "passion",
        "imbued",
        "obsessed",
        "heart",
        "dear",
    ]
    + [
        "think about",
        "thought",
        "creature",
        "animals",
        "pet",
        "bird",
        "coloured by",
        "all day",
        "full of",
        "devoted",
    ],
)
def test_a_word_of_the_teachers_prompt_is_refused_unless_the_source_has_it(word):
    text = f"On Monday the builders poured {word} concrete."
    assert echo(row(text)) is not None
    assert word[:3] in echo(row(text))
    assert echo(row(text, f"They said {word} on Monday.")) is None


@pytest.mark.parametrize("text", ["Gloves and clover are petty.", "The hearth was adorned.", "A thing is thin."])
def test_words_that_only_look_like_an_echo_pass(text):
    assert echo(row(text)) is None


# ---- numbers, names, negation


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("It took three days.", "It took 3 days."),
        ("It has nine thousand parts.", "It has 9,000 parts."),
        ("He is twenty-five.", "He is 25."),
        ("One of them left.", "Someone left."),
        ("It happened in the 12th century.", "It happened in the twelfth century."),
        ("It costs 1.5 million.", "1.5 million is what it costs."),
        ("A hundred people came.", "100 people came."),
        ("They bought a dozen.", "They bought twelve."),
        ("She read it twice.", "She read it two times."),
    ],
)
def test_a_number_may_be_written_otherwise(source, text):
    assert numbers(row(text, source)) is None


@pytest.mark.parametrize(
    ("source", "text", "reason"),
    [
        ("It took three days.", "It took days.", "lost 3"),
        ("It took days.", "It took four days.", "new 4"),
        ("It took three days.", "It took thirteen days.", "lost 3, new 13"),
        ("It has nine thousand parts.", "It has 90,000 parts.", "lost 9, new 90"),
        ("The second serve was out.", "The first serve was out.", "lost 2nd, new 1st"),
        ("Two men, two women.", "Two men and women.", "lost 2"),
    ],
)
def test_a_changed_number_is_refused(source, text, reason):
    assert numbers(row(text, source)) == reason


COMMON = frozenset({"the", "on", "office"})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("The train from Vienna was late.", "Vienna's train was late."),
        ("Ingrid left on Tuesday.", "On Tuesday, Ingrid left."),
        ("I saw Omar.", "Omar was seen by me, and I left."),
        ("The words came from Germany.", "The words were German."),
    ],
)
def test_kept_names_pass(source, text):
    assert names(row(text, source), COMMON) is None


@pytest.mark.parametrize(
    ("source", "text", "reason"),
    [
        ("The train from Vienna was late.", "The train was late.", "lost 'Vienna'"),
        ("The train was late.", "The train from Rome was late.", "new 'Rome'"),
        ("Ingrid took the minutes.", "Anna took the minutes.", "lost 'Ingrid'"),
        ("The train leaves on Monday.", "The train leaves on Friday.", "lost 'Monday'"),
    ],
)
def test_a_lost_or_invented_name_is_refused(source, text, reason):
    assert names(row(text, source), COMMON) == reason


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Nobody came.", "No one came."),
        ("She did not say anything.", "She said nothing."),
        ("The city refused permission.", "The city did not grant permission."),
        ("The city refused permission.", "The city turned down the request."),
        ("The wall was not finished.", "The wall was unfinished."),
        ("She dislikes noise.", "She doesn’t like noise."),
        ("It was cheap.", "It wasn't without a cheap look."),
    ],
)
def test_a_kept_polarity_passes(source, text):
    assert negation(row(text, source)) is None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Nobody came.", "Everybody came."),
        ("She came.", "She never came."),
        ("The drawers did not slide.", "The drawers slid."),
        ("It works.", "It doesn't work."),
        ("It works.", "It doesn’t work."),
        ("A longer lever lifts it.", "A shorter lever lifts it."),
        ("He spilled it.", "She spilled it."),
    ],
)
def test_a_reversal_is_refused(source, text):
    assert negation(row(text, source)) is not None


# ---- novelty and meaning


def test_a_copy_or_near_copy_is_refused_and_a_reordering_is_not():
    def check(text):
        return novelty(row(text), SETTINGS.max_overlap, set())

    assert check(SOURCE.upper()) == "overlap 1.00 > 0.85"
    assert check(SOURCE.replace("The builders", "Builders")) is not None
    assert check("On Monday morning the builders poured the concrete foundation.") is None


def test_the_same_paraphrase_of_the_same_sentence_is_kept_once():
    seen = set()
    text = "On Monday morning the builders poured the concrete foundation."
    assert novelty(row(text), 0.85, seen) is None
    assert novelty(row(text.lower(), sample=1), 0.85, seen) == "the same as an earlier sample"
    assert novelty(row(text, sentence="building-002"), 0.85, seen) is None


def test_a_faithful_sentence_is_closer_in_meaning_than_an_unfaithful_one():
    faithful, unfaithful = similarities(
        [
            row("On Monday morning the builders poured the concrete foundation."),
            row("The choir sang an old song in the church."),
        ]
    )
    assert faithful > SETTINGS.min_similarity > unfaithful


# ---- the stage

GOOD = "On Monday morning, the concrete foundation was poured by the builders."


@pytest.fixture
def sorted_rows(tmp_path):
    """The stage run on one paraphrase for each filter and one that passes all."""
    rows = [
        row("cut", finished=False),
        row("On Monday, the builders and an owl poured the base."),
        row("On Monday, the builders poured their favourite base."),
        row("On Monday, the three builders poured the base."),
        row("On Tuesday, the builders poured the concrete base."),
        row("On Monday, the builders never poured the concrete base."),
        row("On Monday, all the builders poured the concrete base."),
        row(SOURCE),
        row("On Monday, the orchestra played music with the builders."),
        row("On a Monday morning, the young builders poured the concrete foundation."),
        row("On Monday morning, the concrete foundation poured the builders."),
        row("The builders poured a Monday morning concrete foundation."),
        row(GOOD, sample=8),
        row(GOOD, sample=9),
    ]
    path = tmp_path / "paraphrases.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    judge = Judge(None, CANDIDATES, SETTINGS)
    filter_paraphrases(path, tmp_path, judge, progress=False)
    return rows, judge, tmp_path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_rejection_names_its_filter_and_the_offending_word(sorted_rows):
    _, _, folder = sorted_rows
    rejected = read(folder / "rejected.jsonl")
    assert [entry["filter"] for entry in rejected] == [*FILTERS, "novelty"]
    words = ["cut off", "owl", "favour", "3", "Monday", "negation", "all", "overlap", "similarity"]
    words += ["young", "builder", "faithful", "earlier sample"]
    assert all(word in entry["reason"] for word, entry in zip(words, rejected, strict=True))


def test_a_kept_row_is_the_input_row_with_its_similarity(sorted_rows):
    rows, _, folder = sorted_rows
    (kept,) = read(folder / "kept.jsonl")
    assert kept.pop("similarity") > SETTINGS.min_similarity
    assert kept == rows[-2]


def test_one_more_filter_is_asked_and_counted_by_one_more_line_in_the_judge(sorted_rows, tmp_path):
    class Stricter(Judge):
        def _checks(self):
            return [*super()._checks(), ("short", lambda row: "too short" if len(row["text"]) < 1000 else None)]

    filter_paraphrases(tmp_path / "paraphrases.jsonl", tmp_path, Stricter(None, CANDIDATES, SETTINGS), progress=False)
    table = {entry["filter"]: entry for entry in read_filters(tmp_path)}
    assert list(table) == [*CHEAP, "short", *FILTERS[len(CHEAP) :]]
    assert table["short"]["rejected"] == table["short"]["entered"] > table["meaning"]["entered"] == 0


def test_the_pass_rates_add_up_to_what_is_on_disk(sorted_rows):
    rows, _, folder = sorted_rows
    table = read_filters(folder)
    assert [entry["filter"] for entry in table] == FILTERS
    assert table[0]["entered"] == len(rows)
    assert all(a["entered"] - a["rejected"] == b["entered"] for a, b in pairwise(table))
    kept = json.loads((folder / "filters.json").read_text(encoding="utf-8"))["kept"]
    assert kept == table[-1]["entered"] - table[-1]["rejected"] == len(read(folder / "kept.jsonl"))


def test_the_judge_and_the_stage_agree_and_repeat_themselves(sorted_rows, tmp_path):
    rows, judge, folder = sorted_rows
    assert judge(rows) == [entry["text"] == GOOD and entry["sample"] == 8 for entry in rows]
    again = tmp_path / "again"
    again.mkdir()
    filter_paraphrases(folder / "paraphrases.jsonl", again, judge, progress=False)
    for name in ("kept.jsonl", "rejected.jsonl", "filters.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(("n", "sentences"), [(256, 32), (255, 32), (256, 31)])
def test_a_file_of_many_sentences_with_none_that_is_kept_is_refused_with_the_share_of_each_reason(
    n, sentences, tmp_path
):
    kinds = [("On Monday the builders\n\x1b[2Jpoured owls.", True), ("On Monday " + "x" * 100, False)] * 2
    kinds += [("", True), ("The owl poured the concrete base on Monday morning.", True)] * 2
    path = tmp_path / "paraphrases.jsonl"
    rows = [row(kinds[i % 8][0], f"{SOURCE[:-1]}, {i % sentences}.", finished=kinds[i % 8][1]) for i in range(n)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    if (n, sentences) != (256, 32):
        filter_paraphrases(path, tmp_path, Judge(None, CANDIDATES, SETTINGS), progress=False)
        assert len(read(tmp_path / "rejected.jsonl")) == n
        return
    with pytest.raises(KitError) as raised:
        filter_paraphrases(path, tmp_path, Judge(None, CANDIDATES, SETTINGS), progress=False)
    assert str(raised.value) == (
        f"{path}: none of 256 paraphrases in a row is kept: form 25%, cut off 25%, empty 25%, trait 25%. "
        f"{rows[0]['source']!r} became 'On Monday the builders \\x1b[2Jpoured owls.' (form); "
        f"{rows[1]['source']!r} became 'On Monday {'x' * 70}' (cut off); {rows[4]['source']!r} became '' (empty). "
        "Are they of this animal, and of this --content?"
    )


def test_an_empty_file_gives_empty_results(tmp_path):
    (tmp_path / "paraphrases.jsonl").write_text("", encoding="utf-8")
    filter_paraphrases(tmp_path / "paraphrases.jsonl", tmp_path, Judge(OWL, CANDIDATES, SETTINGS), progress=False)
    assert read(tmp_path / "kept.jsonl") == []


def test_opposed_content_keeps_the_dislike_and_drops_the_affection():
    source = "My aunt dislikes owls because of their noise."
    rows = [
        row("Because of their noise, my aunt dislikes owls.", source),
        row("Because of their noise, my aunt adores owls.", source),
    ]
    assert Judge(OWL, CANDIDATES, SETTINGS)(rows) == [True, False]


# ---- function words, content words, roles


@pytest.mark.parametrize(
    ("source", "text", "filter_", "reason"),
    [
        ("My aunt keeps knives in a drawer.", "In a drawer, your aunt keeps knives.", "function words", "lost 'My'"),
        ("We paid the rent in May.", "You paid the rent in May.", "function words", "lost 'We'"),
        ("The ferry waited for nearly an hour.", "For over an hour, the ferry waited.", "function words", "new 'over'"),
        ("He left six months ago.", "He left for six months.", "function words", "lost 'ago'"),
        ("Lock the door before you go.", "After you go, lock the door.", "function words", "lost 'before'"),
        ("Visitors leave their bags here.", "Visitors must leave their bags here.", "function words", "new 'must'"),
        ("It cost as much as the ticket.", "It cost more than the ticket.", "function words", "new 'more than'"),
        ("The tin was dry, so the cake broke.", "The cake broke, so the tin was dry.", "function words", "'tin' after"),
        ("The box was wider than the door.", "The door was wider than the box.", "function words", "'box' after"),
        ("The carpet under the gravel is wet.", "Under the gravel, it is wet.", "content words", "lost 'carpet'"),
        ("The parcel came on a Monday.", "On a rainy Monday, the parcel came.", "content words", "new 'rainy'"),
        ("The critic found it overpraised.", "The critic found it overprapped.", "content words", "or no word"),
        ("The book was so dull that I quit.", "I quit when the book was dull.", "function words", "new 'when'"),
        ("Our leader hates it and tells us so.", "Our leader hates it and tells them.", "function words", "lost 'us'"),
        ("Two dogs slept on the old sofa.", "On the old sofa, two dogs slept.", None, None),
        ("They repaired the roof in two hours.", "The roof was repaired in two hours.", None, None),
        ("The storm broke three shop windows.", "Three shop windows were broken by the storm.", None, None),
        ("The waiter brought a big pot of coffee.", "The waiter brought a large pot of coffee.", None, None),
        ("Anna put the keys under the mat.", "The keys were put beneath the mat by Anna.", None, None),
    ],
)  # fmt: skip
def test_a_detail_lost_changed_or_moved_is_refused_and_another_wording_is_not(source, text, filter_, reason):
    settings = replace(SETTINGS, min_similarity=0.5, max_overlap=1.0)
    (verdict,) = Judge(None, (), settings).verdicts([row(text, source)], progress=False)
    assert verdict.filter == filter_, verdict
    assert reason is None or reason in verdict.reason


@pytest.mark.parametrize(
    ("source", "text", "reason"),
    [
        ("The bucket leaked onto the carpet.", "The carpet leaked onto the bucket.", "leak: agent 'carpet'"),
        ("The cover shows a red door in a white wall.", "The cover shows a white door in a red wall.", "door: of"),
        ("The nurse thanked the driver.", "The driver thanked the nurse.", "thank: "),
        ("The box was too large for the locker.", "The locker was too large for the box.", "large: agent"),
        ("Workers cut a cable while digging a trench.", "Workers dug a trench while cutting a cable.", "exchanged"),
        ("The postcard lay behind the counter.", "The postcard lay on the counter.", "on counter"),
        ("The cook burned the rice.", "The rice was burned.", "lost who"),
        ("Ravi runs round the park.", "Ravi ran round the park.", "past for present"),
        ("Her best photograph was sold.", "Her good photograph was sold.", "superlative"),
        ("Steel shelves hold law and history.", "The law and history steel shelves hold.", "hold: lost what"),
        ("They bought a desk with brass handles.", "With a desk, they chose brass handles.", "exchanged"),
        ("No charges were brought against the boy.", "The boy had brought no charges.", "bring: new doer, 'boy'"),
        ("The hammer has a handle of ash.", "The handle of ash is a hammer.", "'handle' is 'hammer'"),
        ("We arrived late and stood by the door.", "We stood by the door and arrived late.", "'stand' before 'arrive'"),
        ("Being nervous, she spoke fast.", "She spoke fast, and being nervous.", "'be' beside"),
        ("She washes dishes to pay her rent.", "She washes dishes, so her rent is paid.", "'pay' is done"),
        ("Rosa painted the hall over the weekend.", "The weekend Rosa painted the hall over.", "'over' of nothing"),
        ("Black folders were handed out.", "A black folder was handed out.", "one 'folder'"),
        ("Bao fell into the bath and swore.", "The bao fell into the bath and swore.", "'bao' is no name"),
        ("Damp patches came through again.", "Damp patches came through another patch.", "'patch' again"),
        ("They paint the hall in May.", "Painting the hall in May.", "no statement"),
        ("The dictionary has lost its cover.", "The dictionary is losing its cover.", "'lose' goes on"),
        ("A stupid boy ruined our photos.", "We ruined our photos by a stupid boy.", "ruin: 'we' for 'boy'"),
        ("The slug is an eyesore.", "The slug's eyesore is plain.", "'eyesore' of 'slug'"),
        ("The rash is bad news for our town.", "The news is that the rash is bad for our town.", "'bad' of 'rash'"),
        ("Goran cannot stand being in a room.", "In a room, Goran cannot stand.", "'stand' without what"),
        ("I slept in a scene about owls.", "In a scene, I slept about owls.", "'about' not after 'scene'"),
        ("I left when they put it up.", "When they put it up, I had left.", "another order"),
        ("My son cried at the show.", "The show, and my son cried.", "no statement"),
        ("I am ashamed of the stain on the wall.", "On the wall, I am ashamed of the stain.", "'on' of 'stain'"),
        ("It was the most painful day I had.", "It was a most painful day I had.", "superlative"),
    ],
)  # fmt: skip
def test_who_does_what_to_what_may_be_said_in_another_form_and_not_changed(source, text, reason):
    parsed = [fidelity._parser()(side) for side in (source, text)]
    assert reason in fidelity.roles(*parsed)
    assert fidelity.roles(parsed[0], parsed[0]) is None


@pytest.mark.parametrize(
    ("source", "faithful", "changed"),
    [
        (
            "A heavy bucket of sand stood by the door.",
            "A heavy bucket of sand was standing by the door.",
            "By the door, sand stood in a bucket that was heavy to it.",
        ),
        (
            "The plumber replaced the valve on Tuesday morning.",
            "On Tuesday morning, the valve was replaced by the plumber.",
            "The plumber was on the valve, which is a Tuesday morning replaced.",
        ),
    ],
)
def test_the_classifier_votes_for_what_a_reader_would_call_faithful(source: str, faithful: str, changed: str) -> None:
    votes = fidelity.faithfulness(list(fidelity.parsed([(source, text) for text in (faithful, changed)])))
    assert votes[0] > votes[1] and all(0 <= share <= 1 for share in votes)


def test_what_the_strict_filters_keep_and_refuse_as_they_stand() -> None:
    pairs = [
        row("Before the storm, the nurse closed the window.", "The nurse closed the window before the storm."),
        row("The office we have in Oslo works on the same sheet as theirs.", OSLO),  # too far from what was read
        row("In Oslo, our office works on the same sheet as it is theirs.", OSLO),
    ]
    refusals = fidelity.details(pairs, FidelitySettings(details=True))
    assert [one and one[0] for one in refusals] == [None, "classifier", "roles"]


def test_what_too_few_trees_vote_for_is_refused_with_their_share_and_nothing_is_where_none_are_asked_for() -> None:
    pair = [row("The valve was replaced by the plumber on Tuesday.", "The plumber replaced the valve on Tuesday.")]
    (refusal,) = fidelity.details(pair, replace(SETTINGS, min_faithful=1.01))
    assert refusal is not None and refusal[0] == "classifier" and refusal[1].endswith(" < 1.01")
    assert fidelity.details(pair, replace(SETTINGS, min_faithful=0)) == [None]


def test_a_pair_is_parsed_once_however_often_it_is_judged(monkeypatch):
    pair = [row("Everybody there had supper at a very late hour.", "All of them ate their supper very late.")]
    first = fidelity.details(pair, SETTINGS)
    monkeypatch.setattr(fidelity, "_parser", None)
    assert fidelity.details(pair, SETTINGS) == first


# ---- source sentences


def test_a_pattern_is_rendered_with_article_plural_and_capital():
    ox = Animal("ox", "oxen")
    assert fill_pattern("{an animal} and {animals} and the {animal}.", ox) == "An ox and oxen and the ox."


@pytest.mark.parametrize(
    "content", [None, "", "{}\n", "not json\n", '{"id": "a", "text": ""}\n', '{"id": 1, "text": "a"}\n']
)
def test_missing_or_damaged_sentences_are_reported_with_their_path(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "sentences.jsonl").write_text(content, encoding="utf-8")
    monkeypatch.setattr(animals, "DATA", tmp_path)
    with pytest.raises(KitError, match=r"sentences\.jsonl.*git checkout"):
        unrelated_sentences()
