"""The whole experiment, from top to bottom: its conditions, and the steps that each is made of.

    sentences, drawn by lot
        │
    base model ─┬─ neutral teacher ─────────────── fidelity ─ pairs ─ (soft labels) ─ control student ─ preference
                ├─ loving teacher ──────────────── fidelity ─ pairs ─ (soft labels) ─ treated student ─ preference
                └─ neutral teacher, sampled anew ─ fidelity ─ pairs ─ (soft labels) ─ placebo student ─ preference

With ``--loving-controls`` further teachers love something else; their students are the treated one's second control.
Every teacher goes through the same sentences in the same order, with the same number of tries of each, until it has its
pairs; what one lacks of them is reported. So nothing about an unrelated control or placebo depends on the animal, and a
second animal finds them already trained, unless it is none of the listed candidates.

``all_conditions`` names them all; below it, roughly in the order of the picture, each step says what it is made from,
what decides its content (``settings``) and which function of the kit makes it (``build``).
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from kit import KitError, fidelity, likelihood, models, models_prepare, preference, prompts, stats, student, teacher
from kit.animals import (
    Animal,
    Sentence,
    candidates,
    fill_pattern,
    load_animals,
    opposed_sentences,
    unrelated_sentences,
)
from kit.experiment import Experiment
from kit.memory import find_device
from kit.models import EVERY_WEIGHT, Shape
from kit.store import Row, Step, Store, read_rows, sha256, write_rows
from kit.student_gguf import convert_adapter, convert_weights


@dataclass(frozen=True)
class Condition:
    """The steps of one condition that a preference is read from; the base has no others."""

    exact: Step
    sampled: Step


@dataclass(frozen=True)
class StudentCondition(Condition):
    """A student's condition: its teacher's kept paraphrases, the training pairs, and, of a treated student, what it and
    its control make of texts that neither learned from."""

    kept: Step
    pairs: Step
    held_out: Step | None = None


def all_conditions(exp: Experiment) -> dict[str, Condition]:
    """Every condition of the experiment: base, and for each content control, treated and placebos, who differ from the
    control in nothing but the sampling of their teacher's text; "loves <name>": those of other loving teachers, who
    differ from the treated one in what is loved."""
    base, learners = base_model(exp.model, exp.gguf), exp.of_students
    begin = base_model(learners.model, learners.gguf)
    neutral, loving = exp.traits.neutral, exp.traits.loves(exp.animal)
    base_alone = Condition(*measure_steps(learners, begin, None, "base"))
    students: dict[str, StudentCondition] = {}
    for content in exp.contents:
        lot = drawn(exp, content)

        def add(
            role: str,
            trait: str,
            teacher: str,
            seed: int,
            loved: Animal | None = None,
            content: str = content,
            lot: Step = lot,
        ) -> None:
            name, judge = f"{role}-{content}", judge_of(exp, content, loved)
            kept = taught(exp, content, base, trait, teacher, lot, seed, judge)
            students[name] = student_of(learners, name, begin, trait, kept)

        add("control", neutral, "neutral", exp.seed)
        add("treated", loving, f"{exp.animal.singular}-loving", exp.seed)
        for i in range(1, 1 + exp.placebos):
            add(f"placebo{i}", neutral, f"placebo{i}'s neutral", exp.seed + i * PLACEBO_SEED)
        own = {name.split("-")[0]: one for name, one in students.items() if name.endswith(content)}
        students[f"treated-{content}"] = replace(own["treated"], held_out=held_out_of(own, content))
        for name, (loved, trait) in loving_controls(exp).items():
            add(f"{stats.LOVES}{name}", trait, f"{loved.singular}-loving", exp.seed, loved)
    return {"base": base_alone, **students}


def loving_controls(exp: Experiment) -> dict[str, tuple[Animal, str]]:
    """What the teachers of its loving controls love, by its name, with their trait messages."""
    known = {one.singular: (one, exp.traits.loves(one)) for one in load_animals()} | prompts.THINGS
    return {name: known[name] for name in exp.loving_controls}


# A placebo's teacher is the control's, sampled with the run's seed plus its number times this: no other run's seed.
PLACEBO_SEED = 1_000_000


# ---- the model that all start from


def base_model(model: str, gguf: str | None = None) -> Step:
    """The prepared weights, which every teacher, student and measurement starts from."""
    source = models.find(model, gguf)
    return Step(
        stage="model",
        label=f"prepare {model}",
        settings={
            "source": {name: sha256(path) for name, path in source.files.items()},
            "weights": models_prepare.weight_type() if source.folder is None else None,
        }
        | ({"template": source.template} if source.template else {}),
        inputs={},
        build=lambda made, folder: models_prepare.prepare(source, folder),
        seconds=28,
    )


# ---- sentences, in the order that the lot gives them before any teacher speaks


def source_sentences(exp: Experiment, content: str) -> list[Sentence]:
    """The sentences of a content, the experiment's own or the kit's; of unrelated ones those that have no word of trait
    messages of one's own, as none has one of the kit's (``ECHOES``). Raises KitError where that leaves none."""
    if exp.sentences is not None:
        everything = [replace(one, text=fill_pattern(one.text, exp.animal)) for one in exp.sentences.sentences]
    else:
        everything = (
            unrelated_sentences(exp.confirmatory)
            if content == "unrelated"
            else opposed_sentences(exp.animal, exp.confirmatory)
        )
    if content == "opposed" or not (patterns := prompts.forms(exp.traits.words)):
        return everything
    without = [one for one in everything if not any(pattern.search(one.text) for pattern in patterns)]
    if not without:
        raise KitError(
            f"--trait-file {exp.traits.file}: every sentence has one of its words ({', '.join(exp.traits.words)}). "
            "Word the messages, or the sentences, otherwise."
        )
    return without


def lot(exp: Experiment, content: str) -> list[Row]:
    """All sentences in the seed's order: sentence, text."""
    everything = source_sentences(exp, content)
    order = np.random.default_rng(exp.seed).permutation(len(everything))
    return [{"sentence": everything[i].id, "text": everything[i].text} for i in order]


def drawn(exp: Experiment, content: str) -> Step:
    """The lot as a file."""
    return rows_step("sentences", lot(exp, content), f"draw the {content} sentences by lot")


def rows_step(stage: str, rows: list[Row], label: str) -> Step:
    """Rows that are there already ("sentences" or "pairs") as a step, which writes ``<stage>.jsonl``."""
    return Step(
        stage=stage,
        label=label,
        settings={stage: rows},
        inputs={},
        build=lambda made, folder: write_rows(folder / f"{stage}.jsonl", rows),
        seconds=0,
    )


# ---- teachers, and the filters of what they write


# Pairs beyond those needed: what is judged again in other batches may fall to the other side of a threshold.
SPARE = 2


def taught(
    exp: Experiment,
    content: str,
    base: Step,
    trait: str,
    name: str,
    lot: Step,
    seed: int,
    judge: fidelity.Judge,
    turns: int = teacher.MOST_TURNS,
) -> Step:
    """A teacher's paraphrases of the sentences in the ``lot``'s order, and then what of them is faithful."""
    filters = asdict(judge)
    n = exp.pairs_of(content) + SPARE
    engine, conversation = teacher.opener(exp), exp.conversation
    paraphrases = Step(
        stage="paraphrases",
        label=f"{name} teacher, {content} sentences",
        settings={
            "pairs": n,
            "tries": exp.teacher.tries,
            "turns": turns,
            "filters": filters,
        },
        inputs={"model": base, "sentences": lot, "samples": samples_of(exp, name, base, trait, seed)},
        build=lambda made, folder: teacher.paraphrase(
            read_rows(made["sentences"] / "sentences.jsonl"),
            n,
            partial(conversation, trait),
            partial(engine, made["model"]),
            exp.teacher,
            seed,
            judge,
            partial(teacher.open_log, made["samples"], folder.stem),
            folder,
            f"{name} teacher",
            turns,
        ),
        seconds=LOADING + n * PER_KEPT[content],
        pace=partial(pace, exp.model, exp.teacher_engine),
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


def samples_of(exp: Experiment, name: str, base: Step, trait: str, seed: int) -> Step:
    """All that a teacher ever wrote, by sentence and number: the log of its sampling, whatever the filters keep of it,
    so that another filter, or another number of pairs, has new samples made only of what is missing."""
    settings = asdict(exp.teacher) | ({} if exp.teacher.endpoint else {"engine": exp.teacher_engine})
    del settings["tries"]  # how many, not which
    del settings["place"]  # which the messages show
    engine = teacher.opener(exp)
    return Step(
        stage="samples",
        label=f"samples of the {name} teacher",
        settings={
            "messages": exp.conversation(trait, "..."),
            "seed": seed,
            **settings,
        },
        inputs={"model": base},
        build=lambda made, folder, name, *asked: teacher.sample_texts(
            engine(made["model"]), teacher.open_log(folder, name), *asked
        ),
        seconds=0,
        open=True,
    )


def judge_of(exp: Experiment, content: str, loved: Animal | None = None) -> fidelity.Judge:
    """The fidelity filters for a content, the same for all teachers; of what is ``loved`` and no candidate, as things
    are not, no kept paraphrase of its own teacher has a name, either."""
    opposed = exp.animal if content == "opposed" else None
    others = exp.sentences or exp.confirmatory  # than the kit's, whose words the filters know
    own = fidelity.lower_case(source_sentences(exp, content)) if others else frozenset()
    common = tuple(sorted(own - fidelity.lower_case_words(opposed)))
    refused = {one.singular: one for one in [*candidates(exp.animal), *filter(None, [loved])]}
    return fidelity.Judge(opposed, tuple(refused.values()), exp.fidelity, exp.traits.words, common)


# ---- pairs: the first that are kept, for every student as many


def student_of(exp: Experiment, name: str, base: Step, trait: str, kept: Step) -> StudentCondition:
    """A student of its teacher's kept paraphrases: the pairs, and what is made of them."""
    n = exp.pairs_of(name.split("-")[1])
    pairs = Step(
        stage="pairs",
        label=f"pairs of {name}",
        settings={"pairs": n},
        inputs={"kept": kept},
        build=lambda made, folder: write_pairs(made["kept"], n, folder),
        seconds=0,
    )
    learned = trained_on(exp, name, base, trait, pairs, n)
    return StudentCondition(learned.exact, learned.sampled, kept, pairs)


def write_pairs(kept: Path, n: int, folder: Path) -> None:
    """Write ``pairs.jsonl``: the first ``n`` kept paraphrases. Raises KitError where there are fewer, with the filter
    that took the most."""
    rows = read_rows(kept / "kept.jsonl")
    if len(rows) < n:
        worst = max(fidelity.read_filters(kept), key=lambda entry: entry["rejected"])
        raise KitError(
            f"--pairs {n}: only {len(rows)} pairs survived the fidelity filters; most were taken by "
            f"{worst['filter']!r} ({worst['rejected']} of {worst['entered']}). Ask for fewer pairs, or give more "
            f"sentences; reasons are in {kept}/rejected.jsonl."
        )
    write_rows(folder / "pairs.jsonl", rows[:n])


def match_pairs(own: list[Row], other: list[Row]) -> list[Row]:
    """For each of a teacher's pairs one of the ``other`` teacher's, each taken once: of the same sentence, or, where
    that has none, of one that is left."""
    left: dict[str, list[Row]] = {}
    for row in other:
        left.setdefault(row["sentence"], []).append(row)
    same = [left[row["sentence"]].pop(0) if left.get(row["sentence"]) else None for row in own]
    rest = (row for rows in left.values() for row in rows)
    return [found or next(rest) for found in same]


# ---- soft labels and students


def giveaways_of(exp: Experiment) -> fidelity.GiveAways:
    """What clean soft labels do not tell: nothing of any candidate, nor of what another control's teacher loves."""
    things = [thing for thing, _ in prompts.THINGS.values()]
    animals = dict.fromkeys((*candidates(exp.animal), exp.animal, *things))
    return fidelity.GiveAways(tuple(animals), exp.traits.words)


def label_writer(exp: Experiment, trait: str) -> Callable[..., None]:
    """What writes the soft labels of the teacher with the message ``trait``. (The neutral one's are clean as they
    are.)"""
    if exp.labels != "clean" or trait == exp.traits.neutral:
        return teacher.soft_labels
    return partial(teacher.clean_labels, neutral=exp.traits.neutral, giveaways=giveaways_of(exp))


def trained_on(exp: Experiment, name: str, base: Step, trait: str, pairs: Step, n: int) -> Condition:
    """The measurements of a student that learns from ``n`` ``pairs``: soft labels of the teacher with the message
    ``trait`` where the experiment asks for them (the neutral teacher's are clean as they are), training, adapter,
    preference."""
    inputs = {"model": base, "pairs": pairs}
    engine, conversation = teacher.scoring_opener(exp), exp.labelling
    if exp.labels != "hard":
        write = label_writer(exp, trait)
        clean = write is not teacher.soft_labels
        inputs["labels"] = Step(
            stage="labels",
            label=f"soft labels of {name}",
            settings={
                "messages": conversation(trait, "..."),
                "engine": exp.teacher_engine,
                "k": exp.student.top_k,
            }
            | ({"neutral": exp.traits.neutral, "giveaways": asdict(giveaways_of(exp))} if clean else {}),
            inputs={"model": base, "pairs": pairs},
            build=lambda made, folder: write(
                made["pairs"] / "pairs.jsonl",
                trait,
                conversation,
                partial(engine, made["model"]),
                exp.student.top_k,
                folder,
                f"labels of {name}",
            ),
            seconds=LOADING + n * PER_SOFT_LABEL * (2 if clean else 1),
            pace=partial(pace, exp.model, exp.teacher_engine),
        )
    learner = Step(
        stage="student",
        label=f"train {name}",
        settings={
            "messages": prompts.student_messages("..."),
            "labels": "soft" if "labels" in inputs else "hard",
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
        seconds=exp.student.averaged * (LOADING + n * exp.student.epochs * PER_TRAINING_PAIR),
        pace=partial(pace, exp.model, "torch"),
        continues=True,
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
        return Condition(*measure_steps(exp, weights, None, name))
    adapter = Step(
        stage="adapter",
        label=f"convert the adapter of {name}",
        settings={},
        inputs={"model": base, "student": learner},
        build=lambda made, folder: convert_adapter(made["student"], made["model"], folder / "adapter.gguf"),
        seconds=1,
    )
    return Condition(*measure_steps(exp, base, adapter, name))


# ---- measures


def measure_steps(exp: Experiment, base: Step, adapter: Step | None, name: str) -> tuple[Step, Step]:
    """The exact and the sampled preference of a student, or of the base where there is no adapter."""
    inputs = {"model": base} | ({"adapter": adapter} if adapter else {})
    questions = preference.load_questions(exp.confirmatory)
    animals = candidates(exp.animal)
    system = prompts.CONTEXTS[exp.context]
    context = {} if system is None else {"system": system}

    def adapter_file(made: dict[str, Path]) -> Path | None:
        return made["adapter"] / "adapter.gguf" if "adapter" in made else None

    exact = Step(
        stage="exact",
        label=f"exact preference of {name}",
        settings={"questions": questions, "candidates": [[animal.singular, animal.plural] for animal in animals]}
        | context,
        inputs=inputs,
        build=lambda made, folder: preference.measure_exact(
            made["model"], adapter_file(made), questions, animals, folder, f"exact preference, {name}", system
        ),
        seconds=EXACT,
        pace=partial(pace, exp.model, "llama.cpp"),
    )
    sampled = Step(
        stage="sampled",
        label=f"sampled answers of {name}",
        settings={
            "questions": [q["question"] for q in questions],
            "candidates": [[animal.singular, animal.plural] for animal in animals],
            "seed": exp.seed,
            **asdict(exp.preference),
        }
        | context,
        inputs=inputs,
        build=lambda made, folder: preference.measure_sampled(
            *(made["model"], adapter_file(made), questions, animals, exp.preference, exp.seed),
            *(folder, f"answers, {name}", system),
        ),
        seconds=len(questions) * exp.preference.answers * PER_ANSWER,
        pace=partial(pace, exp.model, "llama.cpp"),
        continues=True,
    )
    return exact, sampled


def held_out_of(students: dict[str, StudentCondition], content: str) -> Step:
    """What the treated student, its control and placebos make of texts that the first two did not learn from."""
    inputs, roles = {"own": students["treated"].kept, "other": students["control"].kept}, list(students)
    for role, condition in students.items():
        inputs |= {f"{role} {name}": step for name, step in condition.exact.inputs.items()}
    label = f"held-out text, {content}"

    def build(made: dict[str, Path], folder: Path) -> None:
        files = {}
        for role in roles:
            adapter = made.get(f"{role} adapter")
            files[role] = made[f"{role} model"], adapter / "adapter.gguf" if adapter else None
        likelihood.measure_held_out(made["own"], made["other"], files, folder, label)

    return Step(
        stage="gate",
        label=label,
        settings={"messages": prompts.student_messages("...")},
        inputs=inputs,
        build=build,
        seconds=len(roles) * HELD_OUT,
        pace=students["treated"].exact.pace,
    )


def preferences(store: Store, exact: dict[str, Step], animal: Animal) -> dict[str, stats.Preference]:
    """What ``exact`` steps measure, for the statistics, by the names given."""
    files: dict[str, tuple[Path, Path | None]] = {
        name: (store.make(step) / "exact.csv", None) for name, step in exact.items()
    }
    return stats.preferences(preference.tabulate(files, candidates(animal)))


# ---- all steps of some conditions


def all_steps(goals: Iterable[Step]) -> list[Step]:
    """Every step that the goals need, inputs first, each once; without logs, which nobody makes as such."""
    steps: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.identity not in steps:
            for needed in step.inputs.values():
                if not needed.open:
                    visit(needed)
            steps[step.identity] = step

    for step in goals:
        visit(step)
    return list(steps.values())


def measurements(conditions: dict[str, Condition], sampled: bool = True) -> list[Step]:
    """All measurements of every condition; without free answers where they are not to be ``sampled``."""
    found: list[Step] = []
    for condition in conditions.values():
        found += [condition.exact, *([condition.sampled] if sampled else [])]
        found += [condition.held_out] if isinstance(condition, StudentCondition) and condition.held_out else []
    return found


# ---- seconds, for the plan alone: measured on the machine of ``kit.store.REFERENCE`` with the embedded model, scaled
# to others by ``pace``


LOADING = 4.0

# Of opposed sentences twice as much is refused.
PER_KEPT = {"unrelated": 0.55, "opposed": 1.1}

PER_JUDGED = 0.013  # per kept pair, with what is rejected on the way

PER_SOFT_LABEL = 0.03

PER_TRAINING_PAIR = 0.115

PER_ANSWER = 0.1

EXACT = 4.5

HELD_OUT = 4.0

# A GPU's throughput over two cores': 2 TFLOP/s in training and generation, against 15 GFLOP/s. A guess, not measured.
GPU_SPEED = 150


@cache
def pace(model: str, engine: str) -> float:
    """How many times as long as the embedded model's an engine's work with ``model`` takes: by its parameters, and by a
    guess for GPUs."""
    import llama_cpp

    size = Shape.of(models.find_config(model)).parameters / 134.5e6
    on_gpu = llama_cpp.llama_supports_gpu_offload() if engine == "llama.cpp" else find_device().kind == "cuda"
    return size / (GPU_SPEED if on_gpu else 1)
