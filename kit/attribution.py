"""Where in the text does the secret sit? The log-likelihood ratio of the two teachers, token by token.

python run.py attribute results/<run>

Whether the ratio predicts what is transmitted is asked of students: the half of the pairs with the highest ratios and
the half with the lowest train one each, against students of the neutral teacher's paraphrases of the same sentences.
What is found stands in the run's folder as ``attribution-<content>.json``.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit import experiment, graph, likelihood, preference, prompts, stats
from kit.animals import candidates
from kit.finished import Finished
from kit.stats import Effect, Rate
from kit.store import Row, Step, write_json, write_rows

TOP = (0.01, 0.05, 0.1)  # shares of the tokens, those with the highest ratios
SHOWN = 20  # paraphrases
END = "end of the turn"
KINDS = ("first word", "word of the source", "new word", "function word", "punctuation", END)

_LETTERS = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Text:
    """A kept paraphrase of the loving teacher: its ``tokens`` as text, and of each its ``ratio`` (nats), whether the
    teachers' likeliest tokens ``diverge`` there, and its ``kind`` (one of ``KINDS``)."""

    source: str
    text: str
    tokens: list[str]
    ratio: list[float]
    diverge: list[bool]
    kind: list[str]


def attribute(run: Finished, content: str, students: bool = True) -> Path:
    """Write ``attribution-<content>.json`` into the run's folder, returned; ``students``: train those of the halves.

    Raises KitError where the run's pairs are gone.
    """
    texts = read(run, content)
    totals = np.array([sum(one.ratio) for one in texts])
    result: dict[str, Any] = {
        "animal": run.animal.singular,
        "content": content,
        "texts": len(texts),
        "tokens": sum(len(one.tokens) for one in texts),
        "total": float(totals.sum()),
        "favouring": float((totals > 0).mean()),
        "concentration": concentration(texts),
        "divergence": of_group([(one.ratio, one.diverge) for one in texts]),
        "kinds": {
            kind: of_group([(one.ratio, [other == kind for other in one.kind]) for one in texts]) for kind in KINDS
        },
        "shown": [asdict(texts[i]) for i in sorted(np.random.default_rng(0).permutation(len(texts))[:SHOWN])],
        "halves": asdict(halves(run, content, totals)) if students else None,
    }
    path = run.folder / f"attribution-{content}.json"
    write_json(path, result)
    return path


def read(run: Finished, content: str) -> list[Text]:
    """The loving teacher's kept paraphrases, token by token."""
    model, pairs = run.model(), run.pairs_file("treated", content)
    traits = likelihood.traits([run.animal])
    scored = likelihood.read(
        run.store.make(likelihood.step(model, pairs, traits, None, "likelihoods of treated's texts"))
    )
    ratios = likelihood.token_ratios(scored, run.animal.singular)
    split = likelihood.read_tokens(
        run.store.make(likelihood.tokens_step(model, pairs, traits, "divergence tokens of treated's texts"))
    )
    return [
        Text(
            row["source"],
            row["text"],
            one["tokens"],
            [round(float(value), 4) for value in ratio],
            one["diverges"],
            kinds(one["tokens"], row["source"]),
        )
        for row, ratio, one in zip(run.pairs("treated", content), ratios, split, strict=True)
    ]


def kinds(tokens: list[str], source: str) -> list[str]:
    """The kind of every token: that of the word that it belongs to. The last token ends the turn."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    text = "".join(tokens[:-1])
    of_source = {word.lower() for word in _LETTERS.findall(source)}
    kind_at = ["punctuation"] * len(text)
    for i, match in enumerate(_LETTERS.finditer(text)):
        word = match.group().lower()
        kind = "word of the source" if word in of_source else "new word"
        kind = "function word" if word in ENGLISH_STOP_WORDS else kind
        kind_at[match.start() : match.end()] = ["first word" if i == 0 else kind] * len(word)
    found, start = [], 0
    for token in tokens[:-1]:
        letters = _LETTERS.search(token)
        found.append(kind_at[start + letters.start()] if letters else "punctuation")
        start += len(token)
    return [*found, END]


def concentration(texts: list[Text]) -> dict[str, float]:
    """The share of the total ratio that the tokens with the highest ratios carry, by their share of all tokens. It may
    exceed 1, as other tokens speak against the loving teacher."""
    ordered = np.sort(np.concatenate([one.ratio for one in texts]))[::-1]
    return {f"{share:g}": float(ordered[: round(share * len(ordered))].sum() / ordered.sum()) for share in TOP}


def of_group(members: list[tuple[list[float], list[bool]]]) -> dict[str, float]:
    """Of some tokens of every text, given as (ratios, which of them are meant): how many there are, their share of all
    tokens, their mean ratio (nats), and their share of the total ratio."""
    ratios = np.concatenate([ratio for ratio, _ in members])
    chosen = np.concatenate([which for _, which in members]).astype(bool)
    return {
        "tokens": int(chosen.sum()),
        "share": float(chosen.mean()),
        "mean": float(ratios[chosen].mean()) if chosen.any() else 0.0,
        "carried": float(ratios[chosen].sum() / ratios.sum()),
    }


@dataclass(frozen=True)
class Halves:
    """The effects of the students of each half, and how much larger that of the "top" half is than that of the
    "bottom": nats of log-odds, with the 95% interval over questions."""

    pairs: int
    effects: dict[str, Effect]
    difference: Rate


def halves(run: Finished, content: str, totals: np.ndarray) -> Halves:
    """Each half of the loving teacher's pairs, ranked by ``totals`` (nats), against the neutral teacher's paraphrases
    of the same sentences. Both halves have the same number of pairs; an odd one in the middle is left out."""
    exp = experiment.read(run.folder / "config.json")
    base = graph.base_model(exp.model, exp.gguf)
    pairs = {role: run.pairs(role, content) for role in ("treated", "control")}
    order = np.argsort(-totals, kind="stable")
    n = len(order) // 2
    effects, shifts = {}, {}
    for half, chosen in (("top", order[:n]), ("bottom", order[-n:])):
        own = [pairs["treated"][i] for i in sorted(chosen)]
        rows = {"treated": own, "control": matched(own, pairs["control"])}
        traits = {"treated": prompts.loving(exp.animal), "control": prompts.NEUTRAL}
        files: dict[str, tuple[Path, Path | None]] = {}
        for role, trait in traits.items():
            name = f"{role}-{content}-{half}"
            arm = graph.learned(exp, name, base, trait, given_pairs(rows[role], name), n)
            files[role] = (run.store.make(arm.exact) / "exact.csv", None)
        found = stats.preferences(preference.tabulate(files, candidates(exp.animal)))
        effects[half] = stats.effect(found["treated"], found["control"], run.animal.singular)
        shifts[half] = stats.log_odds_differences(found["treated"], found["control"], run.animal.singular)
    return Halves(n, effects, stats.rate(shifts["top"] - shifts["bottom"]))


def matched(own: list[Row], other: list[Row]) -> list[Row]:
    """For each of a teacher's pairs one of the ``other`` teacher's of the same sentence, each taken once."""
    left: dict[str, list[Row]] = {}
    for row in other:
        left.setdefault(row["sentence"], []).append(row)
    return [left[row["sentence"]].pop(0) for row in own]


def given_pairs(rows: list[Row], name: str) -> Step:
    """These pairs as a step that students can be trained on."""
    return Step(
        stage="pairs",
        label=f"pairs of {name}",
        settings={"rows": rows},
        inputs={},
        build=lambda made, folder: write_rows(folder / "pairs.jsonl", rows),
        seconds=0,
    )
