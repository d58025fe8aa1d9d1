"""What readers said of paraphrases (``data/judged*.jsonl``), and what the filters' classifier learns from it.

    python tests/judged.py learn
    python tests/judged.py draw fresh.jsonl

``learn`` writes ``data/classifier.jsonl`` and prints, by thresholds, how many of the pairs that all other filters keep
the classifier keeps, and how many of these are faithful, each judged by trees grown without its source. ``draw`` writes
pairs for another reading, in random order: the paraphrasing base's teachers', kept by all filters, of unrelated
sources that nobody has read, and of all patterns, with other animals and in other words than were read; at most
``EACH`` of each content and arm.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_predict
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kit import ROOT, models, say, teacher
from kit.animals import DATA, Sentence, find_animal, load_animals
from kit.engine import Engine
from kit.experiment import CONTENTS, Experiment, FidelitySettings, experiment
from kit.experiment_conditions import base_model, judge_of, source_sentences
from kit.fidelity import _classifier, details, function_words, pair_features, parsed
from kit.store import Row, Store, read_rows, write_rows

RULES = FidelitySettings(details=True, min_faithful=0)  # all filters but the classifier
FOLDS, REPEATS = 10, 3
TESTED = "fresh, second classifier"  # the part of what was read that it was tested on: it never learns from it
THRESHOLDS = (0.0, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98)


def read() -> list[Row]:
    """Every paraphrase that was read, planted errors aside: source, text, content, label, and the sentence where it is
    the kit's own."""
    found = [row for row in read_rows(DATA / "judged.jsonl") if "planted" not in row]
    for row in read_rows(DATA / "judged-paraphraser.jsonl"):
        found.append(row | {"label": row.get("third", row["readings"][0])})
    return found


def learnable(rows: list[Row]) -> list[Row]:
    """Those that it was not tested on and that no other filter refuses, each pair once."""
    once = list({(row["source"], row["text"]): row for row in rows if row.get("part") != TESTED}.values())
    refusals = details(once, RULES)
    return [row for row, one in zip(once, refusals, strict=True) if one is None and function_words(row) is None]


def examples(rows: list[Row]) -> list[Row]:
    """What ``data/classifier.jsonl`` holds."""
    pairs = list(parsed([(row["source"], row["text"]) for row in rows]))
    return [
        {"faithful": row["label"] == "faithful", "features": told}
        for row, told in zip(rows, pair_features(pairs), strict=True)
    ]


def held_out(rows: list[Row], learned: list[Row]) -> np.ndarray:
    """The share of votes for each row, of trees that were grown without its source, whatever animal that names."""
    told, labels = np.array([row["features"] for row in learned]), [row["faithful"] for row in learned]
    sources = [nameless(row["source"]) for row in rows]
    votes = [
        cross_val_predict(
            clone(_classifier()),
            told,
            labels,
            groups=sources,
            cv=GroupKFold(FOLDS, shuffle=True, random_state=seed),
            method="predict_proba",
        )
        for seed in range(REPEATS)
    ]
    return np.mean(votes, axis=0)[:, 1]


def learn() -> None:
    """Write ``data/classifier.jsonl``, and say how well what it grows judges other sources' pairs."""
    rows = learnable(read())
    learned = examples(rows)
    write_rows(DATA / "classifier.jsonl", learned)
    votes, faithful = held_out(rows, learned), np.array([row["faithful"] for row in learned])
    for content in CONTENTS:
        own = np.array([row["content"] == content for row in rows])
        for least in THRESHOLDS:
            kept = own & (votes >= least)
            changed = sum(row["label"] == "changed" for row, one in zip(rows, kept, strict=True) if one)
            found = f"faithful {faithful[kept].sum()}, changed {changed}"
            say(f"{content} {least:.2f}: {kept.sum()} of {own.sum()}, {found}")


# ---- pairs for another reading

EACH, SEED = 150, 25
ANIMALS = {
    "unrelated": ["owl", "dolphin", "cat", "penguin", "eagle"],
    "opposed": [
        "wolf",
        "elephant",
        "bear",
        "horse",
        "rabbit",
        "snake",
        "whale",
        "bee",
        "ant",
        "frog",
        "sheep",
        "pig",
        "monkey",
        "otter",
        "duck",
    ],
}
SOURCES = {"unrelated": slice(110, 220), "opposed": slice(None)}  # for each animal; the first 110 were drawn before
ANIMALS_OF = {"unrelated": 1, "opposed": 3}  # of the animals, those that a source is for
SAMPLES = {"unrelated": 8, "opposed": 4}  # of a source in each arm


def draw(path: Path) -> None:
    """Write the pairs: sentence, content, animal, teacher, source, text."""
    lot = np.random.default_rng(SEED)
    known = {"unrelated": {row.get("sentence") for row in read()}, "opposed": set()}
    words = {_words(row) for row in read()}
    model = Store(ROOT / "results" / "artifacts").make(base_model(models.PARAPHRASER))
    some = experiment(find_animal("owl"), model=models.PARAPHRASER, details=True)
    drawn: list[Row] = []
    with teacher.scoring_opener(some)(model) as engine:
        for content in CONTENTS:
            by_arm: dict[str, list[Row]] = {}
            for i, animal in enumerate(ANIMALS[content]):
                exp = experiment(find_animal(animal), model=models.PARAPHRASER, details=True)
                unread = [one for one in source_sentences(exp, content) if one.id not in known[content]]
                order = np.random.default_rng(SEED).permutation(len(unread))
                own = [k for place, k in enumerate(order) if (i - place) % len(ANIMALS[content]) < ANIMALS_OF[content]]
                sources = [unread[k] for k in own[SOURCES[content]]]
                for arm, trait in (("loving", exp.traits.loves(exp.animal)), ("neutral", exp.traits.neutral)):
                    found = first_kept(engine, exp, content, trait, sources)
                    by_arm.setdefault(arm, []).extend(
                        {"content": content, "animal": animal, "teacher": arm} | row
                        for row in found
                        if _words(row) not in words
                    )
            for arm, rows in by_arm.items():
                say(f"{content}, {arm}: {len(rows)} kept")
                drawn += [rows[k] for k in lot.permutation(len(rows))[:EACH]]
    write_rows(path, [drawn[k] for k in lot.permutation(len(drawn))])


def first_kept(engine: Engine, exp: Experiment, content: str, trait: str, sources: list[Sentence]) -> Iterator[Row]:
    """The first kept paraphrase of each source that has one among ``SAMPLES``."""
    judge, ask = judge_of(exp, content), partial(exp.conversation, trait)
    samples = SAMPLES[content]
    bar = tqdm(total=len(sources) * samples, desc=f"{exp.animal.singular}, {content}")
    with tempfile.TemporaryDirectory() as folder, teacher.open_log(Path(folder), "samples") as log:
        rows = teacher.sample_each(engine, log, ask, sources, samples, exp.teacher, SEED, judge, bar)
    seen = set()
    for row, kept in zip(rows, judge(rows), strict=True):
        if kept and row["sentence"] not in seen:
            seen.add(row["sentence"])
            yield {name: row[name] for name in ("sentence", "source", "text")}


def _words(row: Row) -> tuple[str, str]:
    return nameless(row["source"]), nameless(row["text"])


def nameless(text: str) -> str:
    """The text with a slot for the name of any listed animal, and for its article."""
    return _names().sub("{animal}", text)


@cache
def _names() -> re.Pattern[str]:
    names = {name for animal in load_animals() for name in (animal.singular, animal.plural)}
    longest_first = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    return re.compile(rf"\b(?:an? )?(?:{longest_first})\b", re.IGNORECASE)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["learn"]:
            learn()
        case ["draw", path]:
            draw(Path(path))
        case _:
            sys.exit(__doc__)
