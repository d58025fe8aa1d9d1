"""The same sentences for every student, and of each the same number of pairs: which kept paraphrases are trained on.

The control's teacher chooses the sentences (``choose``); where another teacher has fewer faithful paraphrases of one,
all students get as many as that (``lower``); of what is left each takes its first (``select``).
"""

from collections import Counter
from pathlib import Path

from kit import fidelity
from kit.errors import KitError
from kit.store import Row, read_rows, write_rows

Limits = dict[str, int]  # sentence -> pairs at most, where another teacher gave fewer than the control's


def choose(offer: Path, kept: Path, n: int, folder: Path) -> None:
    """Write ``sentences.jsonl``: of the offered sentences, in their order, as many as give ``n`` kept pairs.

    Raises KitError where the kept pairs are too few, with the filter that took the most.
    """
    have = Counter(row["sentence"] for row in read_rows(kept / "kept.jsonl"))
    rows, total = [], 0
    for row in read_rows(offer):
        pairs = min(row["pairs"], have[row["sentence"]], n - total)
        if pairs:
            rows.append({**row, "pairs": pairs})
            total += pairs
    if total < n:
        table = fidelity.read_filters(kept)
        worst = max(table, key=lambda entry: entry["rejected"])
        raise KitError(
            f"--pairs {n}: only {total} pairs survived the fidelity filters; most were taken by {worst['filter']!r} "
            f"({worst['rejected']} of {worst['entered']}). Ask for fewer pairs; reasons are in {kept}/rejected.jsonl."
        )
    write_rows(folder / "sentences.jsonl", rows)


def lower(limits: Limits, asked: Path, kept: Path) -> None:
    """Lower the ``limits`` of a content to what a teacher has ``kept`` of the sentences ``asked`` of it."""
    have = Counter(row["sentence"] for row in read_rows(kept / "kept.jsonl"))
    for row in read_rows(asked):
        name = row["sentence"]
        if have[name] < row["pairs"]:
            limits[name] = min(have[name], limits.get(name, have[name]))


def select(asked: Path, kept: Path, limits: Limits, folder: Path) -> None:
    """Write ``pairs.jsonl``: of every sentence, its first kept paraphrases, as many as were asked for."""
    left: Limits = {row["sentence"]: row["pairs"] for row in read_rows(asked)} | limits
    rows = []
    for row in read_rows(kept / "kept.jsonl"):
        if left.get(row["sentence"], 0) > 0:
            left[row["sentence"]] -= 1
            rows.append(row)
    write_rows(folder / "pairs.jsonl", rows)


def matched(own: list[Row], other: list[Row]) -> list[Row]:
    """For each of a teacher's pairs one of the ``other`` teacher's of the same sentence, each taken once."""
    left: dict[str, list[Row]] = {}
    for row in other:
        left.setdefault(row["sentence"], []).append(row)
    return [left[row["sentence"]].pop(0) for row in own]
