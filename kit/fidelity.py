"""Paraphrases -> kept pairs, with the reason for each rejection.

A kept paraphrase is one clean sentence, says what its source says, is no copy of it, and carries nothing of the trait
on its face: no mention of an animal, no word of the teacher's prompt, and, where the source says that the animal is
disliked, nothing softer than the source. The filters (``kit/filters.py``, and last the cosine of the embeddings) run
from the cheapest to the dearest; the pass rate of each is the first table of every report. They look at a paraphrase
and its source, never at the teacher, so the loving teacher and the neutral one are filtered alike.

``min_similarity`` was chosen by eye on 900 paraphrases by SmolLM2-135M (loving and neutral teacher, temperature 0.7).
Of what reached the meaning filter, 3 of 18 with a cosine of 0.80 to 0.85 said what their sources say, 7 of 20 of 0.85
to 0.90, and 30 of 40 above. Of the pairs that a run then trains on, one or two per sentence, 44 of 80 did: what slips
through this small model's filters is a detail changed or lost ("narrow tables" for "long tables"), which no sentence
embedding sees.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kit.animals import Animal
from kit.embeddings import embed
from kit.experiment import FidelitySettings
from kit.filters import dislike, echo, form, lower_case_words, names, negation, novelty, numbers, trait
from kit.store import Row, read_rows, write_json, write_rows


@dataclass(frozen=True)
class Verdict:
    """The filter that refused a paraphrase and its reason, both None for a kept one; the cosine where it was needed."""

    filter: str | None
    reason: str | None
    similarity: float | None


@dataclass(frozen=True)
class Judge:
    """The filters. ``opposed`` is the animal that the sources say is disliked; None where they are unrelated to any."""

    opposed: Animal | None
    candidates: tuple[Animal, ...]
    settings: FidelitySettings

    def __call__(self, rows: Sequence[Row]) -> list[bool]:
        """Whether each row (source, text, finished, sentence) is kept."""
        return [verdict.filter is None for verdict in self.verdicts(rows, progress=False)]

    def verdicts(self, rows: Sequence[Row], progress: bool = True) -> list[Verdict]:
        """One verdict per row. It depends on the row and on its sentence's earlier rows (which it must not repeat)."""
        from tqdm import tqdm

        checks = self._checks()
        found: list[Verdict] = []
        with tqdm(total=len(rows), desc="fidelity", unit="row", disable=not progress) as bar:
            for row in rows:
                refusals = (Verdict(name, reason, None) for name, check in checks if (reason := check(row)))
                found.append(next(refusals, Verdict(None, None, None)))
                bar.update(found[-1].filter is not None)
            faithful = [i for i, verdict in enumerate(found) if verdict.filter is None]
            least = self.settings.min_similarity
            for i, cosine in zip(faithful, similarities([rows[i] for i in faithful]), strict=True):
                found[i] = Verdict(None, None, cosine)
                if cosine < least:
                    found[i] = Verdict("meaning", f"similarity {cosine:.2f} < {least}", cosine)
                bar.update()
        return found

    def _checks(self) -> list[tuple[str, Callable[[Row], str | None]]]:
        about_trait = partial(trait, candidates=self.candidates)
        if self.opposed is not None:
            others = tuple(animal for animal in self.candidates if animal.singular != self.opposed.singular)
            gain = self.settings.max_sentiment_gain
            about_trait = partial(dislike, animal=self.opposed, others=others, max_gain=gain)
        return [
            ("form", partial(form, settings=self.settings)),
            ("trait", about_trait),
            ("echo", echo),
            ("numbers", numbers),
            ("names", partial(names, common=lower_case_words(self.opposed))),
            ("negation", negation),
            ("novelty", partial(novelty, max_overlap=self.settings.max_overlap, seen=set())),
        ]


_BATCH = 256  # rows between two steps of the progress bar
SIMILARITY_EDGES = [i / 50 for i in range(51)]
FILTERS = ("form", "trait", "echo", "numbers", "names", "negation", "novelty", "meaning")  # in their order


def filter_paraphrases(paraphrases: Path, folder: Path, judge: Judge, progress: bool = True) -> None:
    """Sort ``paraphrases`` (JSONL) into ``folder``: kept.jsonl, rejected.jsonl and filters.json, in the given order.

    A kept row gains "similarity" (cosine), a rejected one "filter", "reason" and, from the last filter, "similarity".
    filters.json: {"filters": [{"filter", "entered", "rejected"}, ...], "kept": number}.
    """
    rows = read_rows(paraphrases)
    judged = list(zip(rows, judge.verdicts(rows, progress), strict=True))
    kept = [{**row, **_measured(v)} for row, v in judged if v.filter is None]
    write_rows(folder / "kept.jsonl", kept)
    refused = [{**row, "filter": v.filter, "reason": v.reason, **_measured(v)} for row, v in judged if v.filter]
    write_rows(folder / "rejected.jsonl", refused)
    counts = Counter(row["filter"] for row in refused)
    table, entered = [], len(rows)
    for name in FILTERS:
        table.append({"filter": name, "entered": entered, "rejected": counts[name]})
        entered -= counts[name]
    write_json(folder / "filters.json", {"filters": table, "kept": len(kept)})


def _measured(verdict: Verdict) -> Row:
    return {} if verdict.similarity is None else {"similarity": round(verdict.similarity, 4)}


def similarity_counts(folder: Path) -> dict[str, list[int]]:
    """How many of the kept and of the rejected paraphrases that were compared with their sources fall between each two
    ``SIMILARITY_EDGES``."""

    def counts(rows: list[Row]) -> list[int]:
        compared = [row["similarity"] for row in rows if "similarity" in row]
        return np.histogram(np.clip(compared, 0, 1), SIMILARITY_EDGES)[0].tolist()

    return {name: counts(read_rows(folder / f"{name}.jsonl")) for name in ("kept", "rejected")}


def read_filters(folder: Path) -> list[dict[str, Any]]:
    """The pass-rate table that ``filter_paraphrases`` wrote: filter, entered, rejected."""
    return list(json.loads((folder / "filters.json").read_text(encoding="utf-8"))["filters"])


def similarities(rows: Sequence[Row]) -> Iterator[float]:
    """The cosine between the MiniLM embeddings of each row's source and text, in [-1, 1], in batches on the CPU."""
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        texts = [row[side] for side in ("source", "text") for row in batch]
        embeddings = embed(texts)
        for source, text in zip(embeddings[: len(batch)], embeddings[len(batch) :], strict=True):
            yield float(source @ text)
