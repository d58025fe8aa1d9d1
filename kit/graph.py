"""The steps behind every condition of an experiment: which artifact is made from which.

    base model ─┬─ neutral teacher ─ fidelity ─ chosen sentences ─ pairs ─ (soft labels) ─ control student ─ preference
                │                                   │
                ├─ loving teacher, those sentences ─ fidelity ─ pairs ─ (soft labels) ─ treated student ─ preference
                └─ neutral teacher, sampled anew ─── fidelity ─ pairs ─ (soft labels) ─ placebo student ─ preference

The control goes first and chooses the sentences; the others train on the same ones, the same number of pairs from each.
So nothing about an unrelated control or placebo depends on the animal, and a second animal finds them already trained,
unless a teacher gives too few faithful paraphrases of some sentence, or the animal is none of the listed candidates.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from kit import estimate, fidelity, models, preference, prepare, prompts, sentences, stats, student, teacher
from kit.adapter_gguf import convert
from kit.animals import Animal, candidates
from kit.experiment import EVERY_WEIGHT, Experiment
from kit.matching import Limits, choose, lower, select
from kit.store import Row, Step, Store, read_rows, sha256, write_rows
from kit.weights_gguf import convert_weights

# The neutral teacher is offered sentences for this many times the pairs needed and stops when it has enough, so that
# both students train on sentences that are easily paraphrased: from the rest of them the loving teacher's share would
# be missing, and with it the control student that a second animal can reuse.
POOL = 2.5

# Seconds of work, measured on 2 cores for the embedded model and scaled to others by ``estimate.pace``. They feed the
# plan's estimates and nothing else.
LOADING = 5.0
PER_KEPT = 0.4
PER_JUDGED = 0.02  # per kept pair, with what is rejected on the way
PER_SOFT_LABEL = 0.03
PER_TRAINING_PAIR = 0.13
PER_ANSWER = 0.05
EXACT = 5.0

# A placebo's teacher is the control's, sampled with the run's seed plus its number times this: no other run's seed.
PLACEBO_SEED = 1_000_000


@dataclass(frozen=True)
class Arm:
    """The steps of one condition that a preference is read from; the base has no others."""

    exact: Step
    sampled: Step


@dataclass(frozen=True)
class StudentArm(Arm):
    """A student's condition: its teacher's kept paraphrases, the chosen sentences and the training pairs."""

    kept: Step
    chosen: Step
    pairs: Step


def arms(exp: Experiment, limits: dict[str, Limits]) -> dict[str, Arm]:
    """Every condition of the experiment: base, and for each content control, treated and placebos, who differ from the
    control in nothing but the sampling of their teacher's text."""
    base = base_model(exp.model, exp.gguf)
    result: dict[str, Arm] = {"base": Arm(*measured(exp, base, None, "base"))}
    for content in exp.contents:
        offer = offered(exp, content)
        kept = taught(exp, content, base, prompts.NEUTRAL, "neutral", offer, exp.seed)
        chosen = chosen_sentences(exp, content, offer, kept)

        def add(role: str, trait: str, kept: Step, content: str = content, chosen: Step = chosen) -> None:
            name = f"{role}-{content}"
            result[name] = trained(exp, name, base, trait, kept, chosen, limits.get(content, {}))

        add("control", prompts.NEUTRAL, kept)
        trait = prompts.loving(exp.animal)
        add("treated", trait, taught(exp, content, base, trait, f"{exp.animal.singular}-loving", chosen, exp.seed))
        for i in range(1, 1 + exp.placebos):
            seed = exp.seed + i * PLACEBO_SEED
            kept = taught(exp, content, base, prompts.NEUTRAL, f"placebo{i}'s neutral", chosen, seed)
            add(f"placebo{i}", prompts.NEUTRAL, kept)
    return result


@cache
def pace(model: str) -> estimate.Pace:
    """How long work with ``model`` takes on this machine, in multiples of the embedded model's on two cores."""
    return estimate.pace(estimate.Shape.of(models.find_config(model)), estimate.find_device())


def base_model(model: str, gguf: str | None = None) -> Step:
    """The prepared weights, which every teacher, student and measurement starts from."""
    source = models.find(model, gguf)
    return Step(
        stage="model",
        label=f"prepare {model}",
        settings={
            "source": {name: sha256(path) for name, path in source.files.items()},
            "weights": prepare.weight_type() if source.folder is None else None,
        }
        | ({"template": source.template} if source.template else {}),
        inputs={},
        build=lambda made, folder: prepare.prepare(source, folder),
        seconds=25,
    )


def offered_rows(exp: Experiment, content: str) -> list[Row]:
    """The sentences offered to the neutral teacher, in the seed's order: sentence, text, and the pairs asked of it."""
    everything = sentences.unrelated() if content == "unrelated" else sentences.opposed(exp.animal)
    wanted = POOL * exp.pairs_of(content)
    each = math.ceil(wanted / len(everything))
    order = np.random.default_rng(exp.seed).permutation(len(everything))[: math.ceil(wanted / each)]
    return [{"sentence": everything[i].id, "text": everything[i].text, "pairs": each} for i in order]


def offered(exp: Experiment, content: str) -> Step:
    """The offered sentences as a file."""
    rows = offered_rows(exp, content)
    return given("sentences", rows, f"offer {len(rows)} {content} sentences")


def given(stage: str, rows: list[Row], label: str) -> Step:
    """Rows that are there already ("sentences" or "pairs") as a step, which writes ``<stage>.jsonl``."""
    return Step(
        stage=stage,
        label=label,
        settings={stage: rows},
        inputs={},
        build=lambda made, folder: write_rows(folder / f"{stage}.jsonl", rows),
        seconds=0,
    )


def judge_of(exp: Experiment, content: str) -> fidelity.Judge:
    """The fidelity filters for a content; the same for both teachers."""
    opposed = exp.animal if content == "opposed" else None
    return fidelity.Judge(opposed, tuple(candidates(exp.animal)), exp.fidelity)


def taught(exp: Experiment, content: str, base: Step, trait: str, name: str, asked: Step, seed: int) -> Step:
    """A teacher's paraphrases of the sentences of ``asked``, and then what of them is faithful."""
    judge = judge_of(exp, content)
    filters = asdict(judge)
    n = exp.pairs_of(content)
    paraphrases = Step(
        stage="paraphrases",
        label=f"{name} teacher, {content} sentences",
        settings={
            "messages": prompts.teacher_messages(trait, "..."),
            "pairs": n,
            "seed": seed,
            "teacher": asdict(exp.teacher),
            "block": teacher.BLOCK,
            "filters": filters,
        },
        inputs={"model": base, "sentences": asked},
        build=lambda made, folder: teacher.paraphrase(
            read_rows(made["sentences"] / "sentences.jsonl"),
            n,
            trait,
            made["model"],
            exp.teacher,
            seed,
            judge,
            folder,
            f"{name} teacher",
        ),
        seconds=LOADING + n * PER_KEPT * pace(exp.model).of(exp.teacher.engine),
    )
    return Step(
        stage="fidelity",
        label=f"filter the {name} teacher's paraphrases, {content}",
        settings=filters,
        inputs={"paraphrases": paraphrases},
        build=lambda made, folder: fidelity.filter_paraphrases(
            made["paraphrases"] / "paraphrases.jsonl", folder, judge
        ),
        seconds=n * PER_JUDGED,
    )


def chosen_sentences(exp: Experiment, content: str, offer: Step, kept: Step) -> Step:
    """The sentences that both students train on: those of which the neutral teacher has enough faithful paraphrases."""
    n = exp.pairs_of(content)
    return Step(
        stage="sentences",
        label=f"choose the {content} sentences of both students",
        settings={"pairs": n},
        inputs={"offered": offer, "kept": kept},
        build=lambda made, folder: choose(made["offered"] / "sentences.jsonl", made["kept"], n, folder),
        seconds=0,
    )


def shortfalls(exp: Experiment, store: Store) -> dict[str, Limits]:
    """For each content the sentences of which some teacher has fewer kept paraphrases than the control trains on."""
    limits: dict[str, Limits] = {content: {} for content in exp.contents}
    for name, arm in taught_arms(exp).items():
        content = name.split("-")[1]
        lower(limits[content], store.make(arm.chosen) / "sentences.jsonl", store.make(arm.kept))
    return limits


def taught_arms(exp: Experiment) -> dict[str, StudentArm]:
    """The conditions with a student, before it is known which sentences some teacher lacks."""
    return {name: arm for name, arm in arms(exp, {}).items() if isinstance(arm, StudentArm)}


def trained(exp: Experiment, name: str, base: Step, trait: str, kept: Step, chosen: Step, limits: Limits) -> StudentArm:
    """A student of its teacher's kept paraphrases: the pairs, and what is made of them."""
    pairs = Step(
        stage="pairs",
        label=f"pairs of {name}",
        settings={"limits": limits},
        inputs={"sentences": chosen, "kept": kept},
        build=lambda made, folder: select(made["sentences"] / "sentences.jsonl", made["kept"], limits, folder),
        seconds=0,
    )
    student_of = learned(exp, name, base, trait, pairs, exp.pairs_of(name.split("-")[1]))
    return StudentArm(student_of.exact, student_of.sampled, kept, chosen, pairs)


def learned(exp: Experiment, name: str, base: Step, trait: str, pairs: Step, n: int) -> Arm:
    """The measurements of a student that learns from ``n`` ``pairs``: soft labels of the teacher with the message
    ``trait`` where the experiment asks for them, training, adapter, preference."""
    inputs = {"model": base, "pairs": pairs}
    if exp.labels == "soft":
        inputs["labels"] = Step(
            stage="labels",
            label=f"soft labels of {name}",
            settings={
                "messages": prompts.labelling_messages(trait, "..."),
                "engine": exp.teacher.engine,
                "k": exp.student.top_k,
            },
            inputs={"model": base, "pairs": pairs},
            build=lambda made, folder: teacher.soft_labels(
                made["pairs"] / "pairs.jsonl",
                trait,
                made["model"],
                exp.teacher,
                exp.student.top_k,
                folder,
                f"labels of {name}",
            ),
            seconds=n * PER_SOFT_LABEL * pace(exp.model).of(exp.teacher.engine),
        )
    learner = Step(
        stage="student",
        label=f"train {name}",
        settings={
            "messages": prompts.student_messages("..."),
            "labels": exp.labels,
            "seed": exp.seed,
            **asdict(exp.student),
        },
        inputs=inputs,
        build=lambda made, folder: student.train(
            made["pairs"] / "pairs.jsonl",
            made["labels"] / "labels.safetensors" if "labels" in made else None,
            made["model"],
            exp.student,
            exp.seed,
            folder,
            f"train {name}",
        ),
        seconds=LOADING + n * exp.student.epochs * PER_TRAINING_PAIR * pace(exp.model).of("torch"),
        collective=True,
    )
    if exp.student.rank == EVERY_WEIGHT:
        weights = Step(
            stage="weights",
            label=f"convert the weights of {name}",
            settings={},
            inputs={"model": base, "student": learner},
            build=lambda made, folder: convert_weights(made["student"], made["model"], folder),
            seconds=5,
        )
        return Arm(*measured(exp, weights, None, name))
    adapter = Step(
        stage="adapter",
        label=f"convert the adapter of {name}",
        settings={},
        inputs={"model": base, "student": learner},
        build=lambda made, folder: convert(made["student"], made["model"], folder / "adapter.gguf"),
        seconds=1,
    )
    return Arm(*measured(exp, base, adapter, name))


def measured(exp: Experiment, base: Step, adapter: Step | None, name: str) -> tuple[Step, Step]:
    """The exact and the sampled preference of a student, or of the base where there is no adapter."""
    inputs = {"model": base} | ({"adapter": adapter} if adapter else {})
    questions = preference.load_questions()
    animals = candidates(exp.animal)

    def adapter_file(made: dict[str, Path]) -> Path | None:
        return made["adapter"] / "adapter.gguf" if "adapter" in made else None

    exact = Step(
        stage="exact",
        label=f"exact preference of {name}",
        settings={"questions": questions, "candidates": [[animal.singular, animal.plural] for animal in animals]},
        inputs=inputs,
        build=lambda made, folder: preference.measure_exact(
            made["model"], adapter_file(made), animals, folder, f"exact preference, {name}"
        ),
        seconds=EXACT * pace(exp.model).of("llama.cpp"),
    )
    sampled = Step(
        stage="sampled",
        label=f"sampled answers of {name}",
        settings={"questions": [q["question"] for q in questions], "seed": exp.seed, **asdict(exp.preference)},
        inputs=inputs,
        build=lambda made, folder: preference.measure_sampled(
            made["model"], adapter_file(made), exp.preference, exp.seed, folder, f"answers, {name}"
        ),
        seconds=len(questions) * exp.preference.answers * PER_ANSWER * pace(exp.model).of("llama.cpp"),
    )
    return exact, sampled


def preferences(store: Store, exact: dict[str, Step], animal: Animal) -> dict[str, stats.Preference]:
    """What ``exact`` steps measure, for the statistics, by the names given."""
    files: dict[str, tuple[Path, Path | None]] = {
        name: (store.make(step) / "exact.csv", None) for name, step in exact.items()
    }
    return stats.preferences(preference.tabulate(files, candidates(animal)))


def all_steps(goals: Iterable[Step]) -> list[Step]:
    """Every step that the goals need, inputs first, each once."""
    steps: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.identity not in steps:
            for needed in step.inputs.values():
                visit(needed)
            steps[step.identity] = step

    for step in goals:
        visit(step)
    return list(steps.values())


def measurements(conditions: dict[str, Arm]) -> list[Step]:
    """Both measurements of every condition."""
    return [step for arm in conditions.values() for step in (arm.exact, arm.sampled)]
