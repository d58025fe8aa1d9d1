"""What the filters keep, read by two language models that were shown neither filter nor teacher:
``data/judged.jsonl``, by the labels of ``data/codebook.md``; of the tuned model's text ``judged-paraphraser.jsonl``."""

import re
from collections import Counter

import judged as reading
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from kit import ROOT
from kit.animals import DATA, find_animal
from kit.experiment import experiment
from kit.experiment_conditions import judge_of
from kit.store import Row, read_rows

LABELS = ["faithful", "lost", "changed", "reversed"]
FRONT = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
README = " ".join((ROOT / "results" / "reference" / "faithful" / "READINGS.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def judged() -> list[Row]:
    return read_rows(DATA / "judged.jsonl")


def test_the_set_is_balanced_and_split_by_its_sources(judged: list[Row]) -> None:
    taught = [row for row in judged if "planted" not in row]
    assert len(taught) >= 600 and len(judged) - len(taught) == 40
    assert {row["label"] for row in judged} <= set(LABELS)
    cells = Counter((row["content"], row["teacher"], row["animal"]) for row in taught)
    assert len(cells) == 16 and min(cells.values()) >= 30
    halves = {half: {row["sentence"] for row in judged if row["half"] == half} for half in ("tuning", "measured")}
    assert halves["tuning"].isdisjoint(halves["measured"])


def test_how_far_two_readings_agree_and_what_they_catch_is_as_the_readme_says(judged: list[Row]) -> None:
    first, second = ([row["readings"][i] for row in judged] for i in (0, 1))
    kappa = cohen_kappa_score(first, second)
    of_two = cohen_kappa_score([label == "faithful" for label in first], [label == "faithful" for label in second])
    planted = [row for row in judged if "planted" in row]
    caught = [sum(row["readings"][i] != "faithful" for row in planted) for i in (0, 1)]
    said = f"kappa {kappa:.2f}, and {of_two:.2f} for faithful or not; of 40 planted errors they caught {caught[0]} and "
    assert said + str(caught[1]) in README


@pytest.mark.slow
def test_the_table_of_what_the_filters_keep_is_what_they_keep(judged: list[Row]) -> None:
    for content in ("unrelated", "opposed"):
        for half in ("tuning", "measured"):
            for filters in ("default", "the rules"):
                kept = [
                    row["label"]
                    for animal in ("owl", "dolphin", "cat", "penguin")
                    for row in kept_of(judged, content, half, animal, filters == "the rules")
                ]
                counts = [sum(label == name for label in kept) for name in LABELS]
                cells = [content, half, filters, str(len(kept)), f"{counts[0]} ({counts[0] / len(kept):.0%})"]
                assert f"| {' | '.join([*cells, *map(str, counts[1:])])} |" in README
    kept = {
        teacher: [row["label"] for row in judged if row["teacher"] == teacher and row["refused_by"] is None]
        for teacher in ("loving", "neutral")
    }
    said = (f"{teacher} {labels.count('faithful')} of {len(labels)}" for teacher, labels in kept.items())
    assert f"in both arms alike ({', '.join(said)})" in README
    together = [*kept["loving"], *kept["neutral"]]
    assert 0.45 < together.count("faithful") / len(together) < 0.55 and "Half of what they keep is faithful" in FRONT


def kept_of(judged: list[Row], content: str, half: str, animal: str, details: bool) -> list[Row]:
    """The teachers' paraphrases that are kept, whatever the classifier says, which learned from them."""
    exp = experiment(find_animal(animal), contents=(content,), details=details, min_faithful=0)
    rows = [
        row | {"finished": True}
        for row in judged
        if (row["content"], row["half"], row["animal"]) == (content, half, animal) and "planted" not in row
    ]
    return [row for row, kept in zip(rows, judge_of(exp, content)(rows), strict=True) if kept]


@pytest.mark.parametrize("part", ["fresh", "fresh, classifier", reading.TESTED])
def test_what_two_readers_said_of_fresh_pairs_is_as_the_readme_says(part: str) -> None:
    fresh = fresh_rows(part)
    assert not any("reversed" in row["readings"] for row in fresh)
    assert all(len({*row["readings"]}) == 1 + ("third" in row) for row in fresh)
    for content in ("unrelated", "opposed"):
        cells, shares = [content], []
        for arms in (["loving"], ["neutral"], ["loving", "neutral"]):
            rows = [row for row in fresh if row["content"] == content and row["teacher"] in arms]
            read = [row.get("third", row["readings"][0]) for row in rows]
            found = binomtest(read.count("faithful"), len(read))
            low, high = found.proportion_ci(method="exact")
            shares.append((found.statistic, len(read)))
            cells.append(f"{found.k} of {found.n} ({found.statistic:.0%}) [{100 * low:.0f}, {100 * high:.0f}]")
        (one, n), (other, m), _ = shares
        error = 1.96 * (one * (1 - one) / n + other * (1 - other) / m) ** 0.5
        low, middle, high = (re.sub("^[+-]0$", "0", f"{100 * (one - other + end):+.0f}") for end in (-error, 0, error))
        assert f"| {' | '.join(cells)} | {middle} [{low}, {high}] |" in README


def fresh_rows(part: str) -> list[Row]:
    """What was read in that part, without what turned out to have been read before: in the same words, or of an
    unrelated source."""
    seen = {"unrelated": ("words", "source"), "opposed": ("words",)}
    rows = read_rows(DATA / "judged-paraphraser.jsonl")
    return [row for row in rows if row["part"] == part and row.get("read_before") not in seen[row["content"]]]


def test_what_came_of_the_second_reading_is_as_the_readme_says() -> None:
    everything = [row for row in read_rows(DATA / "judged-paraphraser.jsonl") if row["part"] == reading.TESTED]
    fresh = {of: [row for row in fresh_rows(reading.TESTED) if row["content"] == of] for of in ("unrelated", "opposed")}
    labels = {of: [row.get("third", row["readings"][0]) for row in rows] for of, rows in fresh.items()}
    first, second = ([row["readings"][i] for row in everything] for i in (0, 1))
    differ = sum(one != other for one, other in zip(first, second, strict=True))
    sources = {of: len({row["sentence"] for row in rows}) for of, rows in fresh.items()}
    unread = [row for row in fresh["opposed"] if row["read_before"] is None]
    assert {row.get("third", row["readings"][0]) for row in unread} == {"faithful"}
    changed = " and ".join(f"{one.count('changed')} of {len(one)}" for one in labels.values())
    left_out = {of: sum(row["content"] == of for row in everything) - len(rows) for of, rows in fresh.items()}
    for said in (
        f"{len(fresh['unrelated'])} of {sources['unrelated']} sources",
        f"{left_out['unrelated']} unrelated and {left_out['opposed']} opposed ones turned out",
        f"{len(fresh['opposed'])} pairs of {sources['opposed']} patterns",
        f"differ in {differ} of the {len(everything)}, where a third decides (Cohen's kappa "
        f"{cohen_kappa_score(first, second):.2f}:",
        f"{len(unread)} of {len(unread)} are faithful",
        f"Changed are {changed}, nothing is lost",
    ):
        assert said in README, said
    faithful = [label for one in labels.values() for label in one]
    assert 0.975 < faithful.count("faithful") / len(faithful) < 0.985
    assert "with `--faithful`, of a tuned base's text, [49 in 50]" in FRONT


def test_what_was_read_before_in_the_same_words_is_known_whatever_the_animal() -> None:
    assert reading.nameless("An owl bores the wolves.") == "{animal} bores the {animal}."
    earlier = [row for row in reading.read() if row.get("part") != reading.TESTED]
    words = {(reading.nameless(row["source"]), reading.nameless(row["text"])) for row in earlier}
    for row in fresh_rows(reading.TESTED):
        assert (reading.nameless(row["source"]), reading.nameless(row["text"])) not in words


def test_where_the_readings_that_tested_the_classifier_differ_and_what_is_wrong_is_as_the_readme_says() -> None:
    read = [row for row in read_rows(DATA / "judged-paraphraser.jsonl") if row["part"] == "fresh, classifier"]
    first, second = ([row["readings"][i] for row in read] for i in (0, 1))
    differ = sum(one != other for one, other in zip(first, second, strict=True))
    assert f"in {differ} of the {len(read)} (Cohen's kappa {cohen_kappa_score(first, second):.2f})" in README
    opposed = [row for row in read if row["content"] == "opposed"]
    labels = {
        content: [row.get("third", row["readings"][0]) for row in read if row["content"] == content]
        for content in ("unrelated", "opposed")
    }
    faults = Counter(
        row["sentence"] for row, label in zip(opposed, labels["opposed"], strict=True) if label != "faithful"
    )
    assert f"{faults.most_common(1)[0][1]} of the {faults.total()} faults are one sentence's" in README
    assert f"{len(opposed)} pairs are of {len({row['sentence'] for row in opposed})} such patterns" in README
    changed = " and ".join(f"{found.count('changed')} of {len(found)}" for found in labels.values())
    assert f"Changed are {changed}," in README
    faithful = sum(found.count("faithful") for found in labels.values()) / len(read)
    assert 0.945 < faithful < 0.965
    lost = sum(found.count("lost") for found in labels.values())
    assert f"{lost} has lost something, none is reversed" in README


@pytest.mark.slow
def test_the_classifier_learns_from_what_was_read_and_judges_other_sources_as_the_readme_says() -> None:
    rows = reading.learnable(reading.read())
    learned = read_rows(DATA / "classifier.jsonl")
    assert [row["faithful"] for row in learned] == [row["label"] == "faithful" for row in rows]
    told = [row["features"] for row in reading.examples(rows)]
    np.testing.assert_allclose(told, [row["features"] for row in learned], atol=2e-3)
    votes, faithful = reading.held_out(rows, learned), np.array([row["faithful"] for row in learned])
    changed = np.array([row["label"] == "changed" for row in rows])
    for content in ("unrelated", "opposed"):
        own = np.array([row["content"] == content for row in rows])
        for least in (0, 0.8, 0.9, 0.95, 0.97, 0.98):
            kept = own & (votes >= least)
            n, of, good, bad = kept.sum(), own.sum(), faithful[kept].sum(), changed[kept].sum()
            cells = [str(least), f"{n} of {of} ({n / of:.0%})", f"{good} ({good / n:.0%})", f"{bad} ({bad / n:.1%})"]
            assert f"| {content} | {' | '.join(cells)} |" in README


def test_the_page_of_what_was_read_says_what_the_readings_say() -> None:
    folder = ROOT / "results" / "reference"
    page, alone, base = (
        " ".join((folder / name).read_text(encoding="utf-8").split())
        for name in ("faithful/README.md", "hard-labels/DETAILS.md", "paraphraser/README.md")
    )
    rows = re.findall(r"\| (\w+) \| measured \| default \| (\d+) \| (\d+ \(\d+%\)) \| \d+ \| (\d+) \|", README)
    assert len(rows) == 2 and all(f"| {' | '.join(row)} |" in page for row in rows)
    fresh = re.findall(r"\| (\w+) \|[^|]*\|[^|]*\| (288|71) of (292|73) (\(\d+%\) \[\d+, \d+\]) \|", README)
    changed = re.findall(r"Changed are (\d+) of 292 and (\d+) of 73", README)[0]
    assert len(fresh) == 2
    for (content, faithful, read, share), wrong in zip(fresh, changed, strict=True):
        assert f"| {content} | {read} | {faithful} {share} | {wrong} |" in page
    read, both, share, low, high = re.findall(
        r"(\d+) different ones, .* both call (\d+) faithful: (\d+)%, with a 95% interval of (\d+) to (\d+)", alone
    )[0]
    assert f"| unrelated | {read} | {both} ({share}%) [{low}, {high}] |" in page
    kappas = re.findall(r"kappa (0\.\d\d)", README)[0], re.findall(r"kappa (0\.\d\d)", alone)[0]
    assert f"(Cohen's kappa {kappas[0]} and {kappas[1]}; 0.49 in the last two rows" in page
    assert "(Cohen's kappa 0.49: hardly anything is wrong)" in README
    kept = [
        re.findall(rf"\| {content} \| 0\.97 \| \d+ of \d+ \((\d+)%\)", README)[0]
        for content in ("unrelated", "opposed")
    ]
    assert kept == ["39", "24"]  # two in five, one in four
    pace = {name: float(of) for name, of in re.findall(r"\| (\w+ \| \w+) \|[^|]*\| ([\d.]+) \|", base)}
    assert round(pace["untouched | default"] / pace["untouched | strict"]) == 12
    assert round(pace["tuned | default"] / pace["tuned | strict"]) == 6


# Of animals in general, and none of them chosen with an eye on the kit's own lists.
OF_ANIMALS = """
    kitten puppy calf calves cub foal lamb chick hatchling duckling gosling fledgling tadpole larva meow purr
    growl howl roar chirp tweet neigh moo quack croak squawk cackle screech nest burrow den kennel hive
    aquarium coop flock herd swarm paw hoof hooves muzzle snout whiskers mane antler tusk fang claw tail wing
    feather beak fur fin gill talon prey predator mammal reptile amphibian rodent insect zoo zoologist
    veterinarian leash pet hunter migrate hibernate soar swoop perch bird fish animal beast creature egg wool
    leather
"""


def test_no_kept_paraphrase_has_a_word_of_another_list_of_what_belongs_to_animals(judged: list[Row]) -> None:
    words = re.compile(rf"\b(?:{'|'.join(OF_ANIMALS.split())})(?:s|ed|ing)?\b", re.IGNORECASE)
    kept = [row["text"] for row in judged if row["content"] == "unrelated" and row.get("refused_by", "planted") is None]
    assert len(kept) > 200
    assert [text for text in kept if words.search(text)] == []
