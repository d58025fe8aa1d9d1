"""Could anybody tell? A finished run's kept paraphrases before everybody who might look at them.

python run.py inspect results/<run>

``kit/inspection_quiz.py`` has the inspectors, ``kit/report.py`` what the reports say of them. What is found stands in
the run's folder as ``inspection-<content>.json``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, likelihood, prompts
from kit.animals import Animal, candidates, mentions, unrelated_sentences
from kit.experiment_folder import RunFolder
from kit.inspection_quiz import (
    FOLDS,
    KNOWS,
    SPREAD,
    Finding,
    Posterior,
    Round,
    WordShift,
    alike,
    association,
    by_embeddings,
    by_words,
    comparing,
    finding,
    guessing,
    heaviest,
    keywords,
    make_rounds,
    margins_of,
    nearest,
    posterior,
    surface,
    word_shifts,
)
from kit.store import Row, Step, write_json

BLIND = 100  # pairs of each teacher that the blind inspector reads under every candidate's prompt: ten minutes
FEWEST = 4 * FOLDS  # sentences of which two teachers must have written different paraphrases
PER_ROUND = 0.6  # seconds, of a judge, embedded model, two cores


@dataclass(frozen=True)
class Rounds:
    """The sentences of which two teachers wrote different paraphrases, those of which they wrote the same (``alike``),
    and how likely the two texts of each round are: their log-likelihood ratios (nats), in the order of
    ``texts_of``."""

    played: list[Round]
    alike: int
    ratios: np.ndarray


def inspect(run: RunFolder, content: str, command: str, blind: int = BLIND) -> Path:
    """Write ``inspection-<content>.json`` into the run's folder, returned; ``command`` is what made it.

    The placebo's paraphrases against the control's are put to the same inspectors, where they are at hand: two
    samplings of one teacher, which nobody can tell apart. Raises KitError where the pairs are gone, and for too few.
    """
    path = run.folder / f"inspection-{content}.json"
    with run.store.working(f"{run.folder.name}-{path.stem}", command):
        write_json(path, findings_of(run, content, command, blind))
    return path


def findings_of(run: RunFolder, content: str, command: str, blind: int) -> dict[str, Any]:
    """What ``inspect`` writes."""
    pairs = {role: run.pairs(role, content) for role in ("control", "treated")}
    if run.has_pairs("placebo1", content):
        pairs["placebo1"] = run.pairs("placebo1", content)
    played = {role: make_rounds(pairs[role], pairs["control"], seed=0) for role in list(pairs)[1:]}
    if len(played["treated"]) < FEWEST:
        raise KitError(
            f"{run.folder}: both teachers' kept paraphrases differ of {len(played['treated'])} {content} sentences; an "
            f"inspection takes {FEWEST}. Give a run of a larger preset."
        )
    model, exp = run.model(), run.experiment()
    conversation, temperature = exp.conversation, exp.teacher.temperature
    likelihoods = {
        role: likelihood.Texts(
            run.store, model, run.pairs_file(role, content), run.animal, role, conversation, temperature, exp.traits
        )
        for role in pairs
    }
    ratios = {role: np.array([one.sum() for one in of.ratios()]) for role, of in likelihoods.items()}
    compared = {
        role: Rounds(rounds, alike(pairs[role], pairs["control"], rounds), in_order(rounds, pairs, ratios, role))
        for role, rounds in played.items()
        if len(rounds) >= FEWEST
    }
    findings = {role: everybody(run, model, role, of) for role, of in compared.items()}
    texts = {role: [row["text"] for row in rows] for role, rows in pairs.items()}
    result: dict[str, Any] = {
        "command": command,
        "pairs": run.record["artifacts"][f"pairs of treated-{content}"],
        "animal": run.animal.singular,
        "content": content,
        "temperature": temperature,
        "texts": {role: len(rows) for role, rows in pairs.items()},
        "sentences": {role: {"differ": len(of.played), "alike": of.alike} for role, of in compared.items()},
        "inspectors": {name: asdict(found) for name, found in findings["treated"].items()},
        "placebo": {name: asdict(found) for name, found in findings.get("placebo1", {}).items()},
        "mentions": {role: sum(bool(mentions(text, (run.animal,))) for text in own) for role, own in texts.items()},
        "nearest": {role: nearest(texts[role], run.animal) for role in ("treated", "control")},
        "words": [asdict(one) for one in shifted_words(texts)[:20]],
        "features": heaviest(compared["treated"].played),
        "surface": {name: asdict(found) for name, found in surface(compared["treated"].played).items()},
        "informed": {role: asdict(informed(ratios[role], role)) for role in ("treated", "control")},
        "blind": {role: unmasked(likelihoods[role], blind) for role in ("treated", "control")},
        "messages": judges(run.animal),
    }
    return result | run.made_with()


def in_order(played: list[Round], pairs: dict[str, list[Row]], ratios: dict[str, np.ndarray], role: str) -> np.ndarray:
    """The ratios (nats) of the rounds' texts, in the order of ``texts_of``."""
    of_text = {
        (row["source"], row["text"]): ratio
        for name in (role, "control")
        for row, ratio in zip(pairs[name], ratios[name], strict=True)
    }
    return np.array([of_text[one.source, text] for one in played for text in one.texts])


def everybody(run: RunFolder, model: Path, role: str, of: Rounds) -> dict[str, Finding]:
    """What every inspector makes of the rounds of ``role`` against the control, by its name."""
    margins = {name: judged(run, model, name, role, of.played) for name in judges(run.animal)} | {
        "word list": keywords(of.played, run.animal),
        "association": association(of.played, run.animal),
        "likelihood ratio": margins_of(of.ratios, of.played),
    }
    found = {name: finding(one) for name, one in margins.items()} | {
        "words, TF-IDF": finding(by_words(of.played), SPREAD),
        "embeddings, MiniLM": finding(by_embeddings(of.played), SPREAD),
    }
    return {name: found[name] for name in KNOWS}


def judges(animal: Animal) -> dict[str, list[prompts.Message]]:
    """What the model is asked as a judge, by the inspector's name."""
    return {
        "the model, A or B": prompts.comparing_messages(animal, "<paraphrase>", "<paraphrase>"),
        "the model, guessing the animal": [
            *prompts.guessing_messages("<paraphrase>"),
            {"role": "assistant", "content": f"{prompts.GUESS} <animal>"},
        ],
    }


def judged(run: RunFolder, model: Path, name: str, role: str, played: list[Round]) -> np.ndarray:
    """The margins [rounds] of the model as the judge of that ``name``, kept as an artifact: two minutes' work."""
    judge = {"the model, A or B": comparing, "the model, guessing the animal": guessing}[name]

    def build(made: dict[str, Path], folder: Path) -> None:
        from kit.engine_llama import LlamaEngine

        with LlamaEngine(model) as engine:
            write_json(folder / "margins.json", judge(engine, played, run.animal).tolist())

    step = Step(
        stage="judged",
        label=f"{name}, on {role}'s paraphrases and control's",
        settings={
            "messages": judges(run.animal)[name],
            "candidates": [one.singular for one in candidates(run.animal)],
            "rounds": [asdict(one) for one in played],
            "model": likelihood.checksums(model),
        },
        inputs={},
        build=build,
        seconds=len(played) * PER_ROUND,
    )
    return np.array(json.loads((run.store.make(step) / "margins.json").read_text(encoding="utf-8")))


def informed(ratios: np.ndarray, role: str) -> Posterior:
    """What somebody who knows both prompts makes of one teacher's texts alone, of these log-likelihood ratios (nats)
    [texts]."""
    loglikelihoods = {"loving": ratios, "neutral": np.zeros_like(ratios)}
    return posterior(loglikelihoods, "loving" if role == "treated" else "neutral")


def unmasked(texts: likelihood.Texts, most: int) -> dict[str, Any]:
    """What somebody makes of a teacher's texts who knows the wording of the prompts but not the animal: each candidate,
    and the neutral prompt, is as likely as any other beforehand."""
    found = texts.under(candidates(texts.animal), most)
    truth = texts.animal.singular if texts.name == "treated" else "neutral"
    return asdict(posterior(likelihood.totals(found), truth))


def shifted_words(texts: dict[str, list[str]]) -> list[WordShift]:
    """The words that the loving teacher uses more or less often than the neutral one."""
    background = [one.text for one in unrelated_sentences()]
    return word_shifts(texts["treated"], texts["control"], background)
