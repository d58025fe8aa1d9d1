"""What the classifier of ``kit/fidelity.py`` learns from, and how well.

    python tests/judged.py

Writes ``data/classifier.jsonl`` from what was read (``data/judged*.jsonl``), and prints how many of the pairs that all
other filters keep it keeps, by thresholds, and how many of these are faithful: each judged by a forest that was grown
without its source.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_predict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kit import say
from kit.animals import DATA
from kit.experiment import FidelitySettings
from kit.fidelity import _classifier, details, function_words, pair_features, parsed
from kit.store import Row, read_rows, write_rows

RULES = FidelitySettings(details=True, min_faithful=0)  # all filters but the classifier
FOLDS, REPEATS = 10, 3
THRESHOLDS = (0.0, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def read() -> list[Row]:
    """The pairs that were read and that no other filter refuses: source, text, content, set, label."""
    rows = [row | {"set": "untouched"} for row in read_rows(DATA / "judged.jsonl") if "planted" not in row]
    for row in read_rows(DATA / "judged-paraphraser.jsonl"):
        rows.append(row | {"set": row["part"], "label": row.get("third", row["readings"][0])})
    refusals = details(rows, RULES)
    kept, seen = [], set()
    for row, refusal in zip(rows, refusals, strict=True):
        pair = row["source"], row["text"]
        if pair not in seen and refusal is None and function_words(row) is None:
            seen.add(pair)
            kept.append(row)
    return kept


def examples(rows: list[Row]) -> list[Row]:
    """What ``data/classifier.jsonl`` holds."""
    pairs = list(parsed([(row["source"], row["text"]) for row in rows]))
    return [
        {"faithful": row["label"] == "faithful", "features": told}
        for row, told in zip(rows, pair_features(pairs), strict=True)
    ]


def held_out(rows: list[Row], learned: list[Row]) -> np.ndarray:
    """The share of votes for each row, of forests that were grown without its source."""
    found = []
    for seed in range(REPEATS):
        folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
        votes = cross_val_predict(
            clone(_classifier()),
            np.array([row["features"] for row in learned]),
            [row["faithful"] for row in learned],
            groups=[row["source"] for row in rows],
            cv=folds,
            method="predict_proba",
        )
        found.append(votes[:, 1])
    return np.mean(found, axis=0)


if __name__ == "__main__":
    rows = read()
    learned = examples(rows)
    write_rows(DATA / "classifier.jsonl", learned)
    votes, faithful = held_out(rows, learned), np.array([row["faithful"] for row in learned])
    for content in ("unrelated", "opposed"):
        own = np.array([row["content"] == content for row in rows])
        for least in THRESHOLDS:
            kept = own & (votes >= least)
            say(f"{content} {least:.2f}: {kept.sum()} of {own.sum()}, faithful {faithful[kept].sum()}")
