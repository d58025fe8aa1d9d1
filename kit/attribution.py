"""Where in the text does the secret sit? The log-likelihood ratio of the two teachers, token by token.

python run.py attribute results/<run>

The ratio is that of the conversation which the student learns from: the one that made the text, or, with soft labels,
the one whose distributions they are. Whether it predicts what is transmitted is asked of students: the half of the
pairs with the highest ratios and the half with the lowest train one each, against students of the neutral teacher's
paraphrases of the same sentences. What is found stands in the run's folder as ``attribution-<content>.json``.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit import likelihood, prompts, stats
from kit.experiment import Experiment
from kit.experiment_conditions import match_pairs, preferences, rows_step, trained_on
from kit.experiment_folder import RunFolder
from kit.stats import Effect, Rate
from kit.store import Row, Step, read_rows, write_json

TOP = (0.01, 0.05, 0.1)  # shares of the tokens, the most telling ones
SHOWN = 20  # paraphrases
END = "end of the turn"
KINDS = ("first word", "word of the source", "new word", "function word", "punctuation", END)

_LETTERS = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


@dataclass(frozen=True)
class Text:
    """A kept paraphrase: its ``tokens`` as text, and of each its ``ratio`` (nats), whether the teachers' likeliest
    tokens ``diverge`` there, and its ``kind`` (one of ``KINDS``)."""

    source: str
    text: str
    tokens: list[str]
    ratio: list[float]
    diverge: list[bool]
    kind: list[str]


def attribute(run: RunFolder, content: str, command: str, students: bool = True) -> Path:
    """Write ``attribution-<content>.json`` into the run's folder, returned; ``command`` is what made it; ``students``:
    train those of the halves.

    Raises KitError where the run's pairs or settings are gone.
    """
    exp = run.experiment()
    path = run.folder / f"attribution-{content}.json"
    with run.store.working(f"{run.folder.name}-{path.stem}", command):
        write_json(path, findings(run, exp, content, command, students))
    return path


def findings(run: RunFolder, exp: Experiment, content: str, command: str, students: bool) -> dict[str, Any]:
    """What ``attribute`` writes."""
    texts = read(run, exp, "treated", content)
    totals = np.array([sum(one.ratio) for one in texts])
    result: dict[str, Any] = {
        "command": command,
        "pairs": run.record["artifacts"][f"pairs of treated-{content}"],
        "animal": run.animal.singular,
        "content": content,
        "labels": run.record["labels"],
        "texts": len(texts),
        "tokens": sum(len(one.tokens) for one in texts),
        "total": float(totals.sum()),
        "favouring": float((totals > 0).mean()),
        "carried": {"treated": carried(texts), "control": carried(read(run, exp, "control", content))},
        "divergence": of_group([(one.ratio, one.diverge) for one in texts]),
        "kinds": {
            kind: of_group([(one.ratio, [other == kind for other in one.kind]) for one in texts]) for kind in KINDS
        },
        "shown": [asdict(texts[i]) for i in sorted(np.random.default_rng(0).permutation(len(texts))[:SHOWN])],
        "halves": asdict(halves(run, exp, content, totals)) if students else None,
    }
    return result | run.made_with()


def read(run: RunFolder, exp: Experiment, role: str, content: str) -> list[Text]:
    """A teacher's kept paraphrases, token by token."""
    pairs = run.pairs_file(role, content)
    learned_from = likelihood.learned_from(exp)
    texts = likelihood.Texts(run.store, run.model(), pairs, run.animal, role, *learned_from, exp.traits)
    return [
        Text(
            row["source"],
            row["text"],
            one["tokens"],
            [round(float(value), 4) for value in ratio],
            one["diverges"],
            kinds(one["tokens"], row["source"]),
        )
        for row, ratio, one in zip(read_rows(pairs), texts.ratios(), texts.tokens(), strict=True)
    ]


def kinds(tokens: list[str], source: str) -> list[str]:
    """The kind of every token: that of the word that it belongs to. The last token ends the turn."""
    text = "".join(tokens[:-1])
    of_source = {word.lower() for word in _LETTERS.findall(source)}
    kind_at = ["punctuation"] * len(text)
    for i, match in enumerate(_LETTERS.finditer(text)):
        word = match.group().lower().replace("’", "'")
        kind = "word of the source" if word in of_source else "new word"
        kind = "function word" if word in prompts.FUNCTION_WORDS else kind
        kind_at[match.start() : match.end()] = ["first word" if i == 0 else kind] * len(match.group())
    found, start = [], 0
    for token in tokens[:-1]:
        letters = re.search(r"[^\W_]", token)
        found.append(kind_at[start + letters.start()] if letters else "punctuation")
        start += len(token)
    return [*found, END]


def carried(texts: list[Text]) -> dict[str, float]:
    """Of the sum of all tokens' absolute ratios the share that the most telling tokens carry, by their share of all
    tokens. (Of the plain sum a few tokens carry any share, as most of it cancels.)"""
    ordered = np.sort(np.abs(np.concatenate([one.ratio for one in texts])))[::-1]
    return {f"{top:g}": float(ordered[: round(top * len(ordered))].sum() / ordered.sum()) for top in TOP}


def of_group(members: list[tuple[list[float], list[bool]]]) -> dict[str, float]:
    """Of some tokens of every text, given as (ratios, which of them are meant): how many there are, their share of all
    tokens, their mean ratio and the sum of their ratios (nats), and their share of the sum of absolute ratios."""
    ratios = np.concatenate([ratio for ratio, _ in members])
    chosen = np.concatenate([which for _, which in members]).astype(bool)
    return {
        "tokens": int(chosen.sum()),
        "share": float(chosen.mean()),
        "mean": float(ratios[chosen].mean()) if chosen.any() else 0.0,
        "sum": float(ratios[chosen].sum()),
        "carried": float(np.abs(ratios[chosen]).sum() / np.abs(ratios).sum()),
    }


@dataclass(frozen=True)
class Halves:
    """The effects of the students of each half, "top" and "bottom", the mean ratio of its pairs (nats per pair), and
    how much larger the effect of the top one is: nats of log-odds, with the 95% interval over questions."""

    pairs: int
    effects: dict[str, Effect]
    ratios: dict[str, float]
    difference: Rate


def halves(run: RunFolder, exp: Experiment, content: str, totals: np.ndarray) -> Halves:
    """Each half of the loving teacher's pairs, ranked by ``totals`` (nats), against the neutral teacher's paraphrases
    of the same sentences, where both gave one. Both halves have as many pairs; an odd one in the middle is left out."""
    base = run.base()
    own = run.pairs("treated", content)
    other = match_pairs(own, run.pairs("control", content))
    order = np.argsort(-totals, kind="stable")
    n = len(order) // 2
    effects, ratios, shifts = {}, {}, {}
    for half, chosen in (("top", order[:n]), ("bottom", order[-n:])):
        exact: dict[str, Step] = {}
        for role, rows, trait in (
            ("treated", own, exp.traits.loves(exp.animal)),
            ("control", other, exp.traits.neutral),
        ):
            name = f"{role}-{content}-{half}"
            condition = trained_on(
                exp, name, base, trait, rows_step("pairs", picked(rows, chosen), f"pairs of {name}"), n
            )
            exact[role] = condition.exact
        found = preferences(run.store, exact, run.animal)
        effects[half] = stats.effect(found["treated"], found["control"], run.animal.singular)
        shifts[half] = stats.log_odds_differences(found["treated"], found["control"], run.animal.singular)
        ratios[half] = float(totals[chosen].mean())
    return Halves(n, effects, ratios, stats.rate(shifts["top"] - shifts["bottom"]))


def picked(rows: list[Row], chosen: np.ndarray) -> list[Row]:
    """The rows at these places, in their own order."""
    return [rows[i] for i in sorted(chosen)]
