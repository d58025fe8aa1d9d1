"""Could anybody tell? A finished run's kept paraphrases before everybody who might look at them.

python run.py inspect results/<run>

``kit/inspectors.py`` has the inspectors, ``kit/inspection_report.py`` what the reports say of them. What is found
stands in the run's folder as ``inspection-<content>.json``.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit import inspectors, likelihood, quiz, sentences
from kit.animals import candidates
from kit.errors import KitError
from kit.finished import Finished
from kit.inspectors import Finding
from kit.quiz import Round
from kit.store import Row, write_json

BLIND = 100  # pairs of each teacher that the blind inspector reads under every candidate's prompt: ten minutes


@dataclass(frozen=True)
class Rounds:
    """The sentences of which two teachers wrote different paraphrases, those of which they wrote the same (``alike``),
    and how likely the two texts of each round are: their log-likelihood ratios (nats), in the order of
    ``inspectors.texts_of``."""

    played: list[Round]
    alike: int
    ratios: np.ndarray


def inspect(run: Finished, content: str, blind: int = BLIND) -> Path:
    """Write ``inspection-<content>.json`` into the run's folder, returned.

    The placebo's paraphrases against the control's are put to the same inspectors, where they are at hand: two
    samplings of one teacher, which nobody can tell apart. Raises KitError where the pairs are gone, and for too few.
    """
    model = run.model()
    roles = ["control", "treated", *(["placebo1"] if run.has_pairs("placebo1", content) else [])]
    pairs = {role: run.pairs(role, content) for role in roles}
    prompts = likelihood.traits([run.animal])
    ratios = {}
    for role in roles:
        step = likelihood.step(model, run.pairs_file(role, content), prompts, None, f"likelihoods of {role}'s texts")
        totals = likelihood.totals(likelihood.read(run.store.make(step)))
        ratios[role] = totals[run.animal.singular] - totals["neutral"]
    compared = {role: rounds(pairs[role], pairs["control"], ratios[role], ratios["control"]) for role in roles[1:]}
    if len(compared["treated"].played) < 4 * inspectors.FOLDS:
        raise KitError(
            f"{run.folder}: both teachers' kept paraphrases differ of {len(compared['treated'].played)} {content} "
            f"sentences; an inspection takes {4 * inspectors.FOLDS}. Give a run of a larger preset."
        )
    findings = {role: everybody(run, model, of) for role, of in compared.items()}
    texts = {role: [row["text"] for row in rows] for role, rows in pairs.items()}
    played = compared["treated"].played
    result = {
        "animal": run.animal.singular,
        "content": content,
        "texts": {role: len(rows) for role, rows in pairs.items()},
        "sentences": {role: {"differ": len(of.played), "alike": of.alike} for role, of in compared.items()},
        "inspectors": {name: asdict(found) for name, found in findings["treated"].items()},
        "placebo": {name: asdict(found) for name, found in findings.get("placebo1", {}).items()},
        "mentions": {
            role: sum(bool(inspectors.mentions(text, (run.animal,))) for text in some) for role, some in texts.items()
        },
        "nearest": inspectors.nearest(texts["treated"], run.animal),
        "words": [asdict(one) for one in shifted_words(texts)[:20]],
        "features": inspectors.heaviest(played),
        "surface": {name: asdict(found) for name, found in inspectors.surface(played).items()},
        "informed": asdict(informed(ratios["treated"])),
        "blind": {role: unmasked(run, model, role, content, blind) for role in ("treated", "control")},
    }
    path = run.folder / f"inspection-{content}.json"
    write_json(path, result)
    return path


def rounds(own: list[Row], other: list[Row], own_ratios: np.ndarray, other_ratios: np.ndarray) -> Rounds:
    """The quiz's rounds of two teachers' pairs, with the ratios of their texts."""
    played = quiz.rounds(own, other, seed=0)
    shared = len({row["sentence"] for row in own} & {row["sentence"] for row in other})
    ratio = {
        (row["source"], row["text"]): one for row, one in zip([*own, *other], [*own_ratios, *other_ratios], strict=True)
    }
    of_texts = [ratio[one.source, text] for one in played for text in one.texts]
    return Rounds(played, shared - len(played), np.array(of_texts))


def everybody(run: Finished, model: Path, of: Rounds) -> dict[str, Finding]:
    """What every inspector makes of the rounds, by its name."""
    from kit.llama import LlamaEngine

    with LlamaEngine(model) as engine:
        judged = [judge(engine, of.played, run.animal) for judge in (inspectors.comparing, inspectors.guessing)]
    found = [
        inspectors.finding(inspectors.keywords(of.played, run.animal)),
        inspectors.finding(inspectors.association(of.played, run.animal)),
        *map(inspectors.finding, judged),
        inspectors.finding(inspectors.by_words(of.played), inspectors.SPREAD),
        inspectors.finding(inspectors.by_embeddings(of.played), inspectors.SPREAD),
        inspectors.finding(inspectors.margins_of(of.ratios, of.played)),
    ]
    return dict(zip(inspectors.KNOWS, found, strict=True))


def informed(ratios: np.ndarray) -> inspectors.Posterior:
    """What somebody who knows both prompts makes of the loving teacher's texts alone, of these log-likelihood ratios
    (nats) [texts]."""
    return inspectors.posterior({"loving": ratios, "neutral": np.zeros_like(ratios)}, "loving")


def unmasked(run: Finished, model: Path, role: str, content: str, most: int) -> dict[str, Any]:
    """What somebody makes of a teacher's texts who knows the shape of the prompts but not the animal: each candidate,
    and no animal at all, is as likely as any other beforehand."""
    hypotheses = likelihood.traits(candidates(run.animal))
    label = f"{role}'s texts under {len(hypotheses)} prompts"
    step = likelihood.step(model, run.pairs_file(role, content), hypotheses, most, label)
    found = likelihood.read(run.store.make(step))
    truth = run.animal.singular if role == "treated" else "neutral"
    return asdict(
        inspectors.posterior({name: np.array([one.sum() for one in of]) for name, of in found.items()}, truth)
    )


def shifted_words(texts: dict[str, list[str]]) -> list[inspectors.WordShift]:
    """The words that the loving teacher uses more or less often than the neutral one."""
    background = [one.text for one in sentences.unrelated()]
    return inspectors.word_shifts(texts["treated"], texts["control"], background)
