"""Could anybody tell? A finished run's kept paraphrases before everybody who might look at them.

python run.py inspect results/<run> --with results/<another run>

``kit/inspection_quiz.py`` has the inspectors, ``kit/report.py`` what the reports say of them. What is found stands in
the run's folder as ``inspection-<content>.json``.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, likelihood, prompts, student
from kit.animals import Animal, candidates, mentions, unrelated_sentences
from kit.experiment import StudentSettings
from kit.experiment_conditions import PER_TRAINING_PAIR, match_pairs
from kit.experiment_folder import RunFolder
from kit.inspection_quiz import (
    FOLDS,
    KNOWS,
    PERMUTATIONS,
    SPREAD,
    Finding,
    Posterior,
    Round,
    WordShift,
    association,
    by_embeddings,
    by_words,
    comparing,
    finding,
    folds,
    guessing,
    heaviest,
    keywords,
    margins_of,
    nearest,
    posterior,
    surface,
    texts_of,
    word_shifts,
)
from kit.store import Row, Step, write_json, write_rows
from kit.student_gguf import convert_adapter

BLIND = 100  # pairs of each teacher that the blind inspector reads under every candidate's prompt: ten minutes
FEWEST = 4 * FOLDS  # sentences of which two teachers must have written different paraphrases
PER_ROUND = 0.6  # seconds, of a judge, embedded model, two cores
WHOSE = ("loving", "neutral")  # what a reader that is fine-tuned answers
READER_HALVES, READER_EPOCHS, READER_BATCH = 2, 4, 8


@dataclass(frozen=True)
class Rounds:
    """All texts of two teachers, one of each in a round, of the same sentence where both have it (``one_sentence``: how
    many); pairs of which they wrote the same are left out (``alike``). How likely the two texts of each round are:
    their log-likelihood ratios (nats), in the order of ``texts_of``. ``more``: those of other runs, to learn from."""

    played: list[Round]
    alike: int
    ratios: np.ndarray
    more: list[Round]

    @property
    def one_sentence(self) -> int:
        """In how many rounds both texts paraphrase one sentence."""
        return sum(one.second is None for one in self.played)


def all_rounds(own: list[Row], other: list[Row], seed: int) -> list[Round]:
    """Every pair of a student's against one of the other's, as many as both have, in random order; none of two equal
    texts."""
    random, own = np.random.default_rng(seed), own[: len(other)]
    found = []
    for row, against in zip(own, match_pairs(own, other), strict=True):
        if row["text"] != against["text"]:
            loving = int(random.integers(2))
            first, second = (row, against) if loving == 0 else (against, row)
            apart = second["source"] if second["source"] != first["source"] else None
            found.append(Round(first["source"], (first["text"], second["text"]), loving, apart))
    return [found[i] for i in random.permutation(len(found))]


def inspect(run: RunFolder, content: str, command: str, others: Sequence[RunFolder] = (), blind: int = BLIND) -> Path:
    """Write ``inspection-<content>.json`` into the run's folder, returned; ``command`` is what made it.

    What learns from texts with the answers learns from those of ``others``, too: runs of other seeds or animals. The
    placebo's paraphrases against the control's are put to the same inspectors, where they are at hand: two samplings of
    one teacher, which nobody can tell apart. Raises KitError where the pairs are gone, and for too few.
    """
    path = run.folder / f"inspection-{content}.json"
    with run.store.working(f"{run.folder.name}-{path.stem}", command):
        write_json(path, findings_of(run, content, command, others, blind))
    return path


def findings_of(run: RunFolder, content: str, command: str, others: Sequence[RunFolder], blind: int) -> dict[str, Any]:
    """What ``inspect`` writes."""
    pairs = {role: run.pairs(role, content) for role in ("control", "treated")}
    if run.has_pairs("placebo1", content):
        pairs["placebo1"] = run.pairs("placebo1", content)
    played = {role: all_rounds(pairs[role], pairs["control"], seed=0) for role in list(pairs)[1:]}
    if len(played["treated"]) < FEWEST:
        raise KitError(
            f"{run.folder}: {len(played['treated'])} of its {content} pairs differ from the control's; an inspection "
            f"takes {FEWEST}. Give a run of a larger preset."
        )
    of_others = [all_rounds(one.pairs("treated", content), one.pairs("control", content), seed=0) for one in others]
    more = {"treated": [one for rounds in of_others for one in rounds]}
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
        role: Rounds(rounds, len(pairs[role]) - len(rounds), in_order(rounds, pairs, ratios, role), more.get(role, []))
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
        "others": [one.folder.name for one in others],
        "sentences": {
            role: {"differ": len(of.played), "alike": of.alike, "shared": of.one_sentence}
            for role, of in compared.items()
        },
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
    return np.array([of_text[key] for one in played for key in zip(one.sources, one.texts, strict=True)])


def everybody(run: RunFolder, model: Path, role: str, of: Rounds) -> dict[str, Finding]:
    """What every inspector makes of the rounds of ``role`` against the control, by its name."""
    margins = {name: judged(run, model, name, role, of.played) for name in judges(run.animal)} | {
        "word list": keywords(of.played, run.animal),
        "association": association(of.played, run.animal),
        "likelihood ratio": margins_of(of.ratios, of.played),
    }
    found = {name: finding(one) for name, one in margins.items()}
    for name, classifier in (("words, TF-IDF", by_words), ("embeddings, MiniLM", by_embeddings)):
        own, *permuted = classifier(of.played, of.more, PERMUTATIONS)
        found[name] = finding(own, SPREAD, permuted)
    found["the model, fine-tuned"] = finding(fine_tuned(run, role, of), SPREAD)
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


def fine_tuned(run: RunFolder, role: str, of: Rounds) -> np.ndarray:
    """The margins [rounds] of the base model that learned from one half of the texts whose they are, by LoRA as a
    student does, and says of the other half how likely (nats) that is, kept as an artifact: ten minutes' work."""
    settings = StudentSettings(base=run.experiment().student.base, epochs=READER_EPOCHS, batch_size=READER_BATCH)
    rows = [
        {"source": text, "text": WHOSE[i != one.loving]}
        for one in [*of.played, *of.more]
        for i, text in enumerate(one.texts)
    ]

    def read(model: Path, number: int, learned: np.ndarray, asked: np.ndarray, half: Path) -> None:
        from kit.engine_llama import LlamaEngine

        half.mkdir(exist_ok=True)
        write_rows(half / "pairs.jsonl", [rows[i] for i in learned])
        label = f"reader {number + 1} of {READER_HALVES}, {role}"
        student.train(half / "pairs.jsonl", None, model, settings, number, half / "adapter", label)
        convert_adapter(half / "adapter", model, half / "adapter.gguf")
        met = [of.played[i] for i in asked]
        with LlamaEngine(model) as engine:
            engine.use_adapter(half / "adapter.gguf")
            groups = [engine.continued(prompts.student_messages(text), WHOSE) for text in texts_of(met)]
            odds = [loving.sum() - neutral.sum() for loving, neutral in engine.score(groups)]
        write_json(half / "margins.json", margins_of(odds, met).tolist())

    def build(made: dict[str, Path], folder: Path) -> None:
        margins = np.zeros(len(of.played))
        for number, (learned, asked) in enumerate(folds(of.played, of.more, READER_HALVES)):
            half = folder / f"half{number}"
            if not (half / "margins.json").exists():
                read(made["model"], number, learned, asked, half)
            margins[asked] = json.loads((half / "margins.json").read_text(encoding="utf-8"))
        write_json(folder / "margins.json", margins.tolist())
        for half in folder.glob("half*"):
            shutil.rmtree(half)

    step = Step(
        stage="judged",
        label=f"the model, fine-tuned, on {role}'s paraphrases and control's",
        settings={
            "messages": prompts.student_messages("..."),
            "whose": WHOSE,
            "rounds": [asdict(one) for one in of.played],
            "more": [asdict(one) for one in of.more],
            **asdict(settings),
        },
        inputs={"model": run.base()},
        build=build,
        seconds=len(rows) * READER_EPOCHS * PER_TRAINING_PAIR,
        continues=True,
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
