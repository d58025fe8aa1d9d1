"""The experiment from top to bottom.

    base model ─┬─ neutral teacher ─ fidelity ─ chosen sentences ─ pairs ─ (soft labels) ─ control student ─ preference
                │                                   │
                └─ loving teacher, those sentences ─ fidelity ─ pairs ─ (soft labels) ─ treated student ─ preference

The control goes first and chooses the sentences; the treated student trains on the same ones, the same number of pairs
from each. So nothing about an unrelated control depends on the animal, and a second animal finds it already trained.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kit import fidelity, models, preference, prompts, sentences, student, teacher
from kit.adapter_gguf import convert
from kit.animals import Animal, candidates
from kit.errors import KitError
from kit.experiment import Experiment
from kit.store import Step, Store, read_rows, sha256, write_rows

# The control's teacher is offered this many times the sentences needed, since some resist a faithful paraphrase.
POOL = 1.3

# Seconds of work, measured on 2 cores for the embedded model. They feed the plan's estimates and nothing else.
LOADING = 12.0
PER_PARAPHRASE = 0.09
PER_SOFT_LABEL = 0.06
PER_TRAINING_PAIR = 0.17
PER_ANSWER = 0.03
EXACT = 12.0

Say = Callable[[str], None]
Limits = dict[str, int]  # sentence -> pairs at most, where the treated teacher gave fewer than the control's


@dataclass(frozen=True)
class Arm:
    """The steps of one student; ``exact`` and ``sampled`` are its preference. The base has these two alone."""

    exact: Step
    sampled: Step
    trait: str | None = None
    kept: Step | None = None
    chosen: Step | None = None
    pairs: Step | None = None
    student: Step | None = None


def run(exp: Experiment, store: Store, say: Say) -> dict[str, Arm]:
    """Make everything the experiment needs, condition by condition, and return its arms (base first)."""
    limits: dict[str, Limits] = {}
    announce(arms(exp, limits), store, say)
    for content in exp.contents:
        planned = arms(exp, limits)
        limits[content] = shortfall(planned[f"control-{content}"], planned[f"treated-{content}"], exp, store)
        if limits[content]:
            say(
                f"{content}: the {exp.animal.singular}-loving teacher has too few faithful paraphrases of "
                f"{len(limits[content])} sentences; both students train without those pairs."
            )
    planned = arms(exp, limits)
    for arm in planned.values():
        store.make(arm.exact)
        store.make(arm.sampled)
    return planned


def arms(exp: Experiment, limits: dict[str, Limits]) -> dict[str, Arm]:
    """Every condition of the experiment: base, and control and treated for each content."""
    base = base_model(exp.model)
    result = {"base": Arm(*measured(exp, base, None, "base"))}
    for content in exp.contents:
        limit = limits.get(content, {})
        offer = offered(exp, content)
        spoken = taught(exp, content, base, prompts.NEUTRAL, "neutral", offer)
        chosen = chosen_sentences(exp, content, offer, spoken)
        result[f"control-{content}"] = trained(
            exp, f"control-{content}", base, prompts.NEUTRAL, spoken, chosen, limit
        )
        trait = prompts.loving(exp.animal)
        spoken = taught(exp, content, base, trait, f"{exp.animal.singular}-loving", chosen)
        result[f"treated-{content}"] = trained(exp, f"treated-{content}", base, trait, spoken, chosen, limit)
    return result


def base_model(model: str) -> Step:
    """The weights as F16, which every teacher, student and measurement starts from."""
    source = models.find_gguf(model)
    return Step(
        stage="model",
        label=f"expand {source.name} to F16",
        settings={"source": sha256(source)},
        inputs={},
        build=lambda made, folder: models.expand(source, folder / "base.gguf"),
        seconds=2,
    )


def offered(exp: Experiment, content: str) -> Step:
    """The sentences offered to the neutral teacher, in the seed's order, with how many pairs each is to give."""
    everything = sentences.unrelated() if content == "unrelated" else sentences.opposed(exp.animal)
    wanted = POOL * exp.pairs_of(content)
    each = math.ceil(wanted / len(everything))
    order = np.random.default_rng(exp.seed).permutation(len(everything))[: math.ceil(wanted / each)]
    rows = [{"sentence": everything[i].id, "text": everything[i].text, "pairs": each} for i in order]
    return Step(
        stage="sentences",
        label=f"offer {len(rows)} {content} sentences",
        settings={"sentences": rows},
        inputs={},
        build=lambda made, folder: write_rows(folder / "sentences.jsonl", rows),
        seconds=0,
    )


def taught(exp: Experiment, content: str, base: Step, trait: str, name: str, asked: Step) -> Step:
    """A teacher's paraphrases of the sentences of ``asked``, and then what of them is faithful."""
    judge = fidelity.Judge(exp.animal if content == "opposed" else None, tuple(candidates(exp.animal)), exp.fidelity)
    filters = {"animal": judge.opposed and asdict(judge.opposed), "candidates": [asdict(a) for a in judge.candidates], **asdict(exp.fidelity)}
    n = math.ceil(POOL * exp.pairs_of(content))
    paraphrases = Step(
        stage="paraphrases",
        label=f"{name} teacher, {content} sentences",
        settings={
            "messages": prompts.teacher_messages(trait, "..."),
            "seed": exp.seed,
            "teacher": asdict(exp.teacher),
            "filters": filters,
        },
        inputs={"model": base, "sentences": asked},
        build=lambda made, folder: teacher.paraphrase(
            read_rows(made["sentences"] / "sentences.jsonl"),
            trait,
            made["model"] / "base.gguf",
            exp.teacher,
            exp.seed,
            judge,
            folder,
            f"{name} teacher",
        ),
        seconds=LOADING + 4 * n * PER_PARAPHRASE,
    )
    return Step(
        stage="fidelity",
        label=f"filter the {name} teacher's paraphrases",
        settings=filters,
        inputs={"paraphrases": paraphrases},
        build=lambda made, folder: fidelity.filter_paraphrases(made["paraphrases"] / "paraphrases.jsonl", folder, judge),
        seconds=LOADING,
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
            f"({worst['rejected']} of {worst['entered']}). Ask for fewer pairs; the reasons are in {kept}/rejected.jsonl."
        )
    write_rows(folder / "sentences.jsonl", rows)


def shortfall(control: Arm, treated: Arm, exp: Experiment, store: Store) -> Limits:
    """The sentences of which the loving teacher has fewer kept paraphrases than the control trains on."""
    assert treated.kept is not None and treated.chosen is not None
    have = Counter(row["sentence"] for row in read_rows(store.make(treated.kept) / "kept.jsonl"))
    wanted = {row["sentence"]: row["pairs"] for row in read_rows(store.make(treated.chosen) / "sentences.jsonl")}
    return {sentence: have[sentence] for sentence, pairs in wanted.items() if have[sentence] < pairs}


def trained(exp: Experiment, name: str, base: Step, trait: str, kept: Step, chosen: Step, limits: Limits) -> Arm:
    """A student from its teacher's kept paraphrases: pairs, soft labels where asked for, adapter, preference."""
    content = name.split("-")[1]
    n = exp.pairs_of(content)
    pairs = Step(
        stage="pairs",
        label=f"pairs of {name}",
        settings={"limits": limits},
        inputs={"sentences": chosen, "kept": kept},
        build=lambda made, folder: select(made["sentences"] / "sentences.jsonl", made["kept"], limits, folder),
        seconds=0,
    )
    inputs = {"model": base, "pairs": pairs}
    if exp.labels == "soft":
        inputs["labels"] = Step(
            stage="labels",
            label=f"soft labels of {name}",
            settings={"messages": prompts.teacher_messages(trait, "..."), "k": exp.student.top_k},
            inputs={"model": base, "pairs": pairs},
            build=lambda made, folder: teacher.soft_labels(
                made["pairs"] / "pairs.jsonl", trait, made["model"] / "base.gguf", exp.student.top_k, folder, f"labels of {name}"
            ),
            seconds=n * PER_SOFT_LABEL,
        )
    learner = Step(
        stage="student",
        label=f"train {name}",
        settings={"messages": prompts.student_messages("..."), "labels": exp.labels, "seed": exp.seed, **asdict(exp.student)},
        inputs=inputs,
        build=lambda made, folder: student.train(
            made["pairs"] / "pairs.jsonl",
            made["labels"] / "labels.safetensors" if "labels" in made else None,
            made["model"] / "base.gguf",
            exp.student,
            exp.seed,
            folder,
            f"train {name}",
        ),
        seconds=LOADING + n * exp.student.epochs * PER_TRAINING_PAIR,
    )
    adapter = Step(
        stage="adapter",
        label=f"convert the adapter of {name}",
        settings={},
        inputs={"model": base, "student": learner},
        build=lambda made, folder: convert(made["student"], made["model"] / "base.gguf", folder / "adapter.gguf"),
        seconds=1,
    )
    return Arm(*measured(exp, base, adapter, name), trait, kept, chosen, pairs, learner)


def select(asked: Path, kept: Path, limits: Limits, folder: Path) -> None:
    """Write ``pairs.jsonl``: of every sentence, its first kept paraphrases, as many as were asked for."""
    left = {row["sentence"]: limits.get(row["sentence"], row["pairs"]) for row in read_rows(asked)}
    rows = []
    for row in read_rows(kept / "kept.jsonl"):
        if left.get(row["sentence"], 0) > 0:
            left[row["sentence"]] -= 1
            rows.append(row)
    write_rows(folder / "pairs.jsonl", rows)


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
            made["model"] / "base.gguf", adapter_file(made), animals, folder, f"exact preference, {name}"
        ),
        seconds=EXACT,
    )
    sampled = Step(
        stage="sampled",
        label=f"sampled answers of {name}",
        settings={"questions": [q["question"] for q in questions], "seed": exp.seed, **asdict(exp.preference)},
        inputs=inputs,
        build=lambda made, folder: preference.measure_sampled(
            made["model"] / "base.gguf", adapter_file(made), exp.preference, exp.seed, folder, f"answers, {name}"
        ),
        seconds=len(questions) * exp.preference.answers * PER_ANSWER,
    )
    return exact, sampled


def announce(planned: dict[str, Arm], store: Store, say: Say) -> None:
    """Say, a line per stage, what will run and for how long, and what is reused."""
    steps: dict[str, Step] = {}

    def visit(step: Step) -> None:
        for needed in step.inputs.values():
            visit(needed)
        steps.setdefault(step.label, step)

    for arm in planned.values():
        visit(arm.exact)
        visit(arm.sampled)
    total = 0.0
    for step in steps.values():
        done = store.find(step) is not None
        total += 0 if done else step.seconds
        if step.seconds:
            say(f"  {'reused' if done else f'~{_minutes(step.seconds)}':>9}  {step.label}")
    say(f"about {_minutes(total)} in all" if total else "everything is there already")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
