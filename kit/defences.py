"""What stops it? Changes to the pairs, to training or to the question, each as one more condition of the experiment.

python run.py defend --animal owl --defence mask

A defence is judged by what is left of the effect, against the same control as the undefended student's, and by what it
costs. Where it takes a pair of the loving teacher's away, the neutral teacher's paraphrase of the same sentence stands
in for it, so treated and control students always train on sentences of one lot and the same number of pairs. A
paraphrase's soft labels are those of the teacher that wrote it. Where a defence changes how a student is trained or
asked, it does so to control and placebo too, which are then others.

``run`` makes them over seeds and leaves ``defences.json``; ``kit/report_sweep.py`` says what it shows.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, fidelity, likelihood, prompts, say, stats, stats_seeds
from kit.animals import candidates
from kit.engine import Engine
from kit.experiment import Experiment, announce_memory, check_destination, folder_name, memory_requirements
from kit.experiment_conditions import (
    Condition,
    StudentCondition,
    all_conditions,
    all_steps,
    base_model,
    judge_of,
    match_pairs,
    measure_steps,
    preferences,
    rows_step,
    taught,
    trained_on,
)
from kit.experiment_folder import LOT, all_devices, announce_again, earlier, lot_of, made_on, recorded_texts
from kit.memory import find_device
from kit.models import EVERY_WEIGHT, GEMMA, find
from kit.provenance import kit_state
from kit.store import WORLD_SIZE, Row, Step, Store, duration, misfit, read_rows, write_json

# ---- one experiment before any defence, and what stands of a student under one


UNSEEN = 100  # pairs on which students' losses are measured, at most: ten seconds a student
SUSPECTS = 12  # candidate animals that the blind defender looks at, the true one not among them: ten minutes


@dataclass(frozen=True)
class DefendedStudent:
    """A defence at work: the student's ``exact`` preference, and those of its control and its placebo, who were trained
    and asked alike; of its training data how many ``pairs`` come from the loving teacher, the share of tokens
    ``masked``, and the mean ``similarity`` (cosine) of paraphrase and source; its ``loss`` on a neutral teacher's
    paraphrases of the same sentences in other words (a step that writes ``loss.json``, in nats per byte)."""

    exact: Step
    control: Step
    placebo: Step
    pairs: int
    masked: float
    similarity: float
    loss: Step


class Case:
    """One experiment before any defence: its students, and their pairs, of the one content that it has."""

    def __init__(self, exp: Experiment, store: Store) -> None:
        """Makes the teachers' pairs; ``defences.check`` comes first."""
        self.exp, self.store = exp, store
        (self.content,) = exp.contents
        self.base = base_model(exp.model, exp.gguf)
        model = store.make(self.base)
        conditions = all_conditions(exp)
        self.treated, self.control, self.placebo = (
            self._condition(conditions, role) for role in ("treated", "control", "placebo1")
        )
        self.trait, self.neutral = exp.traits.loves(exp.animal), exp.traits.neutral
        self.own = read_rows(self.file(self.treated))
        self.other = match_pairs(self.own, read_rows(self.file(self.control)))
        learned_from = likelihood.learned_from(exp)
        self.texts = likelihood.Texts(
            store, model, self.file(self.treated), exp.animal, "treated", *learned_from, exp.traits
        )

    def _condition(self, conditions: dict[str, Condition], role: str) -> StudentCondition:
        condition = conditions[f"{role}-{self.content}"]
        assert isinstance(condition, StudentCondition)
        return condition

    def file(self, condition: StudentCondition) -> Path:
        """A student's pairs."""
        return self.store.make(condition.pairs) / "pairs.jsonl"

    def lot(self) -> dict[str, dict[str, int]]:
        """Of the control and of the treated student what ``lot_of`` counts."""
        students = {"control": self.control, "treated": self.treated}
        return {role: lot_of(one, self.control, self.store) for role, one in students.items()}

    @cached_property
    def ratios(self) -> list[np.ndarray]:
        """The log-likelihood ratio (nats) of every token of the loving teacher's texts."""
        return self.texts.ratios()

    @cached_property
    def diverges(self) -> list[np.ndarray]:
        """Which tokens of every text are divergence tokens."""
        return [np.array(row["diverges"]) for row in self.texts.tokens()]

    @cached_property
    def divergence(self) -> list[np.ndarray]:
        """By how much (nats) the two teachers' next tokens differ at every token of every text."""
        return [np.array(row["divergence"]) for row in self.texts.tokens()]

    @cached_property
    def unrest(self) -> list[np.ndarray]:
        """Of every token of every text the variance (square nats) of its ratio over ``SUSPECTS`` animals, chosen at
        random among the others: what somebody can know who knows how trait prompts are worded and not whose to
        suspect."""
        others = [one for one in candidates(self.exp.animal) if one.singular != self.exp.animal.singular]
        chosen = np.random.default_rng(self.exp.seed).permutation(len(others))[:SUSPECTS]
        animals = [others[i] for i in sorted(chosen)]
        found = self.texts.under(animals)
        of_animals = [likelihood.token_ratios(found, animal.singular) for animal in animals]
        return [np.var(texts, axis=0) for texts in zip(*of_animals, strict=True)]

    @cached_property
    def unseen(self) -> list[Row]:
        """Pairs of the placebo's whose text is in neither the loving nor the neutral teacher's, ``UNSEEN`` at most."""
        seen = {(row["source"], row["text"]) for row in [*self.own, *self.other]}
        rows = read_rows(self.file(self.placebo))
        found = [row for row in rows if (row["source"], row["text"]) not in seen]
        if not found:
            raise KitError("every paraphrase of the placebo's teacher is in some training data. Ask for more --pairs.")
        return found[:UNSEEN]

    def learned(self, name: str, rows: list[Row], trait: str, pairs: int) -> DefendedStudent:
        """The defence whose student trains on ``rows``, of which so many ``pairs`` come from the loving teacher; rows
        without a "trait" of their own are labelled by the teacher with the message ``trait``."""
        name = f"{name}-{self.content}"
        training_pairs = rows_step("pairs", rows, f"pairs of {name}")
        condition = trained_on(self.exp, name, self.base, trait, training_pairs, len(rows))
        return self.defended(condition.exact, rows, pairs)

    def defended(
        self, exact: Step, rows: list[Row], pairs: int, control: Step | None = None, placebo: Step | None = None
    ) -> DefendedStudent:
        """What stands of a student that was trained on ``rows``, with the experiment's own control and placebo unless
        others are given."""
        masks = [row["masked"] for row in rows if "masked" in row]
        return DefendedStudent(
            exact,
            control or self.control.exact,
            placebo or self.placebo.exact,
            pairs,
            sum(len(one["places"]) for one in masks) / max(1, sum(one["of"] for one in masks)),
            float(np.mean(list(fidelity.similarities(rows)))),
            neutral_loss(exact.inputs, self.unseen, exact.label),
        )

    def again(self, name: str, exp: Experiment, base: Step) -> DefendedStudent:
        """Treated, control and placebo student trained once more on their own pairs, as ``exp`` says, from the model
        ``base``."""

        def measured(condition: StudentCondition, role: str, trait: str) -> Step:
            return trained_on(exp, f"{role}-{self.content}, {name}", base, trait, condition.pairs, len(self.own)).exact

        exact = measured(self.treated, "treated", self.trait)
        control = measured(self.control, "control", self.neutral)
        placebo = measured(self.placebo, "placebo1", self.neutral)
        return self.defended(exact, self.own, len(self.own), control, placebo)


def neutral_loss(student: dict[str, Step], rows: list[Row], name: str) -> Step:
    """What a student ("model" and, where there is one, "adapter") loses on the neutral teacher's paraphrases ``rows``
    as a step: ``loss.json`` with ``nats_per_byte``."""

    def build(made: dict[str, Path], folder: Path) -> None:
        from kit.engine_llama import LlamaEngine

        with LlamaEngine(made["model"]) as engine:
            engine.use_adapter(made["adapter"] / "adapter.gguf" if "adapter" in made else None)
            write_json(folder / "loss.json", {"nats_per_byte": loss(engine, rows)})

    return Step(
        stage="loss",
        label=f"loss on neutral paraphrases, {name}",
        settings={
            "messages": prompts.student_messages("..."),
            "rows": [[row["source"], row["text"]] for row in rows],
            "unit": "nats per byte",
        },
        inputs=student,
        build=build,
        seconds=10,
    )


def loss(engine: Engine, rows: list[Row]) -> float:
    """What a student loses on ``rows``' texts and their end tokens, in nats per byte of text: tokens are not the same
    in every model."""
    groups = [engine.answered(prompts.student_messages(row["source"]), row["text"]) for row in rows]
    total = sum(float(logprobs.sum()) for (logprobs,) in engine.score(groups))
    return -total / sum(len(row["text"].encode("utf-8")) for row in rows)


# ---- the defences


DROPPED = 0.5  # of the pairs, those with the highest ratio
MASKED = 0.1  # of the tokens, under every mask but those of the divergence tokens' number, where no share is named
# LoRA's best learning rate is about ten times that of training every weight ("LoRA Without Regret", Thinking Machines
# Lab, 2025); nothing here was chosen by the preferences that follow from it.
SLOWER = 10


def undefended(case: Case) -> DefendedStudent:
    """The treated student as it is."""
    return case.defended(case.treated.exact, case.own, len(case.own))


def replaced(case: Case, places: set[int]) -> list[Row]:
    """The loving teacher's pairs, at these ``places`` the neutral teacher's of the same sentence, marked with its
    message."""
    return [
        other | {"trait": case.neutral} if i in places else own
        for i, (own, other) in enumerate(zip(case.own, case.other, strict=True))
    ]


def drop(case: Case) -> DefendedStudent:
    """Without the half of the pairs with the highest ratio. It takes the suspected prompt."""
    totals = np.array([one.sum() for one in case.ratios])
    highest = np.argsort(-totals, kind="stable")[: round(DROPPED * len(totals))]
    left = len(totals) - len(highest)
    return case.learned("drop", replaced(case, set(highest.tolist())), case.trait, left)


def mix(case: Case, neutral: int) -> DefendedStudent:
    """Diluted: ``neutral`` pairs of the neutral teacher for each of the loving one's, in the same total."""
    order = np.random.default_rng(case.exp.seed).permutation(len(case.own))
    left = round(len(order) / (1 + neutral))
    return case.learned(f"mix-1-{neutral}", replaced(case, set(order[left:].tolist())), case.trait, left)


def mask(case: Case) -> DefendedStudent:
    """Nothing is learned at divergence tokens. It takes the suspected prompt."""
    return masked(case, "mask", case.diverges)


def informed_mask(case: Case, percent: int) -> DefendedStudent:
    """Nothing is learned at this share of the tokens, at which the teachers differ most. It takes the suspected
    prompt."""
    return masked(case, f"informed-mask-{percent}", _highest(case.divergence, percent / 100))


def blind_mask(case: Case) -> DefendedStudent:
    """Nothing is learned at the tokens whose ratio varies most over other animals."""
    return masked(case, "blind-mask", _highest(case.unrest))


def _highest(values: list[np.ndarray], share: float = MASKED) -> list[np.ndarray]:
    """Which tokens of all texts have the highest values, that ``share`` of them."""
    limit = np.quantile(np.concatenate(values), 1 - share)
    return [one > limit for one in values]


def random_as_mask(case: Case) -> DefendedStudent:
    """Nothing is learned at random tokens, of each text as many as ``mask`` hides: what masking alone does."""
    random = np.random.default_rng(case.exp.seed)
    return masked(case, "random-as-mask", [random.permutation(one) for one in case.diverges])


def random_mask(case: Case) -> DefendedStudent:
    """The same with as many tokens in all as ``informed-mask-10`` and ``blind-mask`` hide."""
    random = np.random.default_rng(case.exp.seed)
    return masked(case, "random-mask", _highest([random.random(len(one)) for one in case.diverges]))


def masked(case: Case, name: str, hidden: list[np.ndarray]) -> DefendedStudent:
    """The loving teacher's pairs; of each text the ``hidden`` tokens [tokens] are not learned."""
    rows = [
        own | {"masked": {"places": np.flatnonzero(one).tolist(), "of": len(one)}}
        for own, one in zip(case.own, hidden, strict=True)
    ]
    return case.learned(name, rows, case.trait, len(rows))


TRIES = 64  # of a paraphrase to be paraphrased, in its one turn: where none is kept, nothing of it is


def rephrase(case: Case) -> DefendedStudent:
    """The neutral teacher paraphrases the paraphrases. A result must be faithful to both, the paraphrase and the
    sentence; where none is, the neutral teacher's own paraphrase of the sentence stands."""
    asked = [{"sentence": f"pair {i}", "text": row["text"]} for i, row in enumerate(case.own)]
    offer = rows_step("sentences", asked, "paraphrases to be paraphrased")
    exp = replace(case.exp, teacher=replace(case.exp.teacher, tries=TRIES))
    judge = judge_of(exp, case.content)
    kept = taught(exp, case.content, case.base, case.neutral, "rephrasing neutral", offer, exp.seed, judge, turns=1)
    source = {f"pair {i}": row["source"] for i, row in enumerate(case.own)}
    made = [row | {"source": source[row["sentence"]]} for row in read_rows(case.store.make(kept) / "kept.jsonl")]
    faithful = [row for row, good in zip(made, judge(made), strict=True) if good]
    texts = {row["sentence"]: row["text"] for row in reversed(faithful)}
    rows = [
        own | {"text": texts[f"pair {i}"]} if f"pair {i}" in texts else other
        for i, (own, other) in enumerate(zip(case.own, case.other, strict=True))
    ]
    return case.learned("rephrase", rows, case.neutral, len(texts))


def context(case: Case) -> DefendedStudent:
    """Nothing is changed in training; the students are asked after another system message."""

    def asked(condition: StudentCondition, role: str) -> Step:
        trained, name = condition.exact.inputs, f"{role}-{case.content} in another context"
        return measure_steps(replace(case.exp, context="other"), trained["model"], trained.get("adapter"), name)[0]

    exact, control = asked(case.treated, "treated"), asked(case.control, "control")
    return case.defended(exact, case.own, len(case.own), control, asked(case.placebo, "placebo1"))


def hard_labels(case: Case) -> DefendedStudent:
    """Students learn from the text alone."""
    return case.again("hard-labels", replace(case.exp, labels="hard"), case.base)


def other_base(case: Case) -> DefendedStudent:
    """Students start from another model, whose vocabulary is another, so they learn from the text alone: to be compared
    with ``hard_labels``."""
    exp = replace(case.exp, labels="hard", model=GEMMA)
    return case.again("other-base", exp, base_model(GEMMA))


def other_rank(case: Case, rank: int) -> DefendedStudent:
    """Students are trained with LoRA of another rank."""
    exp = replace(case.exp, student=replace(case.exp.student, rank=rank))
    return case.again(f"rank-{rank}", exp, case.base)


def full(case: Case) -> DefendedStudent:
    """Every weight of the students is trained."""
    return case.again("full", whole(case.exp), case.base)


def whole(exp: Experiment) -> Experiment:
    """``exp``, whose students train every weight."""
    slower = replace(exp.student, rank=EVERY_WEIGHT, averaged=1, learning_rate=exp.student.learning_rate / SLOWER)
    return replace(exp, student=slower)


Maker = Callable[[Case], DefendedStudent]

# Name -> what makes it, and what the defender must know or have.
DEFENCES: dict[str, tuple[Maker, str]] = {
    "rephrase": (rephrase, "a neutral teacher"),
    "drop": (drop, "the suspected prompt, neutral paraphrases"),
    "mask": (mask, "the suspected prompt"),
    "random-as-mask": (random_as_mask, "nothing"),
    "informed-mask-1": (lambda case: informed_mask(case, 1), "the suspected prompt"),
    "informed-mask-5": (lambda case: informed_mask(case, 5), "the suspected prompt"),
    "informed-mask-10": (lambda case: informed_mask(case, 10), "the suspected prompt"),
    "blind-mask": (blind_mask, "the prompts' wording"),
    "random-mask": (random_mask, "nothing"),
    "mix-1-1": (lambda case: mix(case, 1), "neutral paraphrases"),
    "mix-1-3": (lambda case: mix(case, 3), "neutral paraphrases"),
    "mix-1-9": (lambda case: mix(case, 9), "neutral paraphrases"),
    "context": (context, "nothing"),
    "hard-labels": (hard_labels, "nothing"),
    "rank-1": (lambda case: other_rank(case, 1), "nothing"),
    "rank-128": (lambda case: other_rank(case, 128), "nothing"),
    "full": (full, "memory"),
    "other-base": (other_base, "another model"),
}


def default_defences(exp: Experiment) -> list[str]:
    """The defences that are made where none is named: all but ``other-base``, whose model is not installed with the
    kit, ``full`` where the base has 4-bit weights, and what the experiment does anyway."""
    left_out = {"other-base", f"rank-{exp.student.rank}", f"{exp.labels}-labels"}
    left_out |= {"full"} if exp.student.base != "gguf" else set()
    return [name for name in DEFENCES if name not in left_out]


def check(exp: Experiment, names: list[str]) -> None:
    """Raise KitError for what of the named defences cannot be done, before an hour of work shows it."""
    for name in names:
        if name not in DEFENCES:
            raise KitError(f"--defence {name}: no such defence. Choose among {', '.join(DEFENCES)}.")
    if exp.loving_controls:
        raise KitError(
            f"--loving-controls {' '.join(exp.loving_controls)}: defences are compared with the undefended student. "
            "Leave the option out."
        )
    if not exp.placebos:
        raise KitError("--placebos 0: what a defence costs is measured on a placebo's text. Leave the option out.")
    if "full" in names and exp.student.base != "gguf":
        raise KitError(
            f"--defence full: --base {exp.student.base} has 4-bit weights, which cannot be trained themselves. Leave "
            "it out, or train on floating-point weights: the embedded model's or a .gguf file's."
        )
    if "other-base" in names:
        if exp.model == GEMMA:
            raise KitError(f"--defence other-base: the students start from {GEMMA} already. Choose another --model.")
        find(GEMMA)


# ---- all of them, over seeds


UNDEFENDED = "undefended"
WHOLE_LOT = {name.removesuffix("?"): shape for name, shape in LOT.items()}  # of which no earlier record lacks a part
# Students that a defence trains, where it is not one: none, or treated, control and placebo anew.
STUDENTS = {"context": 0} | dict.fromkeys(("hard-labels", "rank-1", "rank-128", "full", "other-base"), 3)
BESIDE = {"other-base": "hard-labels"}  # what a defence is compared with, where it is not the undefended student
LOSS_UNIT = "nats per byte"
COSTS = ("pairs", "masked", "similarity", "loss")  # of a defence
# What rows of one table share, beside the undefended students, whose preferences depend on the processor, too.
FIXED = ("animal", "content", "labels", "preset", "model", "seeds", "versions", "loss_unit")


def folder_of(exps: list[Experiment], results: Path) -> Path:
    """Where the defences of these experiments, of one seed after another, are recorded. KitError where it cannot be."""
    end = f"seeds{exps[0].seed}to{exps[-1].seed}"
    return check_destination(results / folder_name(["defences", *exps[0].words], exps[0].unsaid, end))


def checked(exps: list[Experiment], names: list[str]) -> list[str]:
    """The named defences, with those that they are compared with; says what memory they need. Raises KitError under
    torchrun, and for a defence that cannot be made."""
    if WORLD_SIZE > 1:
        raise KitError("torchrun: one process makes all defences. Give the command without torchrun.")
    names = list(dict.fromkeys([*(BESIDE[name] for name in names if name in BESIDE), *names]))
    check(exps[0], names)
    device = find_device()
    announce_memory(memory_requirements(whole(exps[0]) if "full" in names else exps[0], device), device)
    return names


def announce(exps: list[Experiment], names: list[str], results: Path) -> None:
    """Say what will run, and about how long it takes: the experiments themselves, and the students of the defences,
    whose pairs are known when the teachers' are. Raises KitError as ``checked`` does."""
    names = checked(exps, names)
    store = Store(results / "artifacts")
    history = earlier(folder_of(exps, results), store)
    students = sum(STUDENTS.get(name, 1) for name in names)
    for exp in exps:
        (content,) = exp.contents
        conditions = all_conditions(exp)
        steps = all_steps(condition.exact for condition in conditions.values())
        left = [step for step in steps if store.find(step) is None]
        treated = conditions[f"treated-{content}"].exact
        each = sum(step.estimate for step in all_steps([treated]) if step.stage in ("labels", "student", "exact"))
        own, under = duration(sum(step.estimate for step in left)), duration(students * each)
        say(
            f"Seed {exp.seed}: about {own} for its own students, as far as they are not there, and about {under} for "
            f"{students} students under {len(names)} defences, if none is."
        )
        announce_again(left, history)


def run(exps: list[Experiment], names: list[str], results: Path, command: str) -> Path:
    """Every named defence in every experiment, which differ in their seed alone; the folder of their ``defences.json``,
    in which the defences of earlier commands stay. Raises KitError as ``checked`` does."""
    names = checked(exps, names)
    makers = {UNDEFENDED: undefended} | {name: DEFENCES[name][0] for name in names}
    store, folder = Store(results / "artifacts"), folder_of(exps, results)
    _before(folder)  # says now, and not after all the work, that it cannot be read
    with store.working(folder.name, command):
        of_seeds = [of_seed(exp, makers, store, len(exps) - 1 - i) for i, exp in enumerate(exps)]
        seeds = [exp.seed for exp in exps]
        folder.mkdir(parents=True, exist_ok=True)
        found = {name: [measures[name] for measures, _ in of_seeds] for name in makers}
        record = {
            "animal": exps[0].animal.singular,
            "content": exps[0].contents[0],
            "labels": exps[0].labels,
            "preset": exps[0].preset,
            "model": exps[0].model,
            "seeds": seeds,
            "versions": store.versions(),
            "kit": kit_state(),
            "devices": made_on(store),
            "artifacts": store.used,
            "commands": [command],
            "context": prompts.CONTEXTS["other"],
            "loss_unit": LOSS_UNIT,
            "lots": [lot for _, lot in of_seeds],
            "defences": {
                name: defence_row(name, of, found[BESIDE.get(name, UNDEFENDED)] if name in names else None)
                for name, of in found.items()
            },
        } | recorded_texts(exps[0])
        before = _before(folder)
        write_json(folder / "defences.json", joined(before, record) if before else record)
    return folder


def _before(folder: Path) -> dict[str, Any] | None:
    """What earlier commands recorded there; None where there was none."""
    return read(folder) if (folder / "defences.json").exists() else None


@dataclass(frozen=True)
class Measure:
    """One defence and seed: the animal's ``shift`` in the student and in its ``placebo`` (nats) [questions], the
    ``costs``, and the ``artifacts`` with the preferences of treated, control and placebo student."""

    shift: np.ndarray
    placebo: np.ndarray
    costs: dict[str, float]
    artifacts: dict[str, str]


def of_seed(
    exp: Experiment, makers: dict[str, Maker], store: Store, more: int
) -> tuple[dict[str, Measure], dict[str, dict[str, int]]]:
    """Everything of one experiment, after which ``more`` seeds follow, with a line that says how long it takes; and its
    ``Case.lot``."""
    say(f"Seed {exp.seed}: the teachers' pairs, and what defences know of them", flush=True)
    case = Case(exp, store)
    made = {name: make(case) for name, make in makers.items()}
    goals = [step for one in made.values() for step in (one.exact, one.control, one.placebo, one.loss)]
    missing = [step for step in all_steps(goals) if store.find(step) is None]
    say(
        f"Seed {exp.seed}: students to train: {sum(step.stage == 'student' for step in missing)}, about "
        f"{duration(sum(step.estimate for step in missing))}"
        + (f", and {more} more seed{'s' * (more > 1)}" if more else ""),
        flush=True,
    )
    return {name: measure(case, defended) for name, defended in made.items()}, case.lot()


def measure(case: Case, defended: DefendedStudent) -> Measure:
    """What is left under a defence, and what it costs."""
    animal = case.exp.animal
    steps = {"treated": defended.exact, "control": defended.control, "placebo": defended.placebo}
    found = preferences(case.store, steps, animal)
    shift, null = (
        stats.log_odds_differences(found[role], found["control"], animal.singular) for role in ("treated", "placebo")
    )
    loss = json.loads((case.store.make(defended.loss) / "loss.json").read_text(encoding="utf-8"))["nats_per_byte"]
    costs = {"pairs": defended.pairs, "masked": defended.masked, "similarity": defended.similarity, "loss": loss}
    made = {role: case.store.make(step) for role, step in steps.items()}
    return Measure(shift, null, costs, {role: f"{folder.parent.name}/{folder.name}" for role, folder in made.items()})


def defence_row(name: str, of_seeds: list[Measure], compared: list[Measure] | None) -> Row:
    """One defence over the seeds, with what it is ``compared`` with; its costs are averaged."""
    shifts = np.array([one.shift for one in of_seeds])
    taken = None if compared is None else np.array([one.shift for one in compared]) - shifts
    return {
        "knows": DEFENCES[name][1] if name in DEFENCES else "",
        "left": asdict(stats_seeds.across_seeds(shifts)),
        "taken": None if taken is None else asdict(stats_seeds.across_seeds(taken)),
        "single_seeds": shifts.mean(axis=1).tolist(),
        "placebos": [float(one.placebo.mean()) for one in of_seeds],
        **{cost: float(np.mean([one.costs[cost] for one in of_seeds])) for cost in of_seeds[0].costs},
        "artifacts": [one.artifacts for one in of_seeds],
    }


def joined(before: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """``record`` with the defences ``before`` it, where they were of the same undefended students."""
    undefended = [one["defences"][UNDEFENDED].get("artifacts") for one in (before, record)]
    if undefended[0] != undefended[1] or any(before.get(name) != record[name] for name in FIXED):
        return record
    commands = list(dict.fromkeys([*before["commands"], *record["commands"]]))
    artifacts = sorted({*before.get("artifacts", []), *record["artifacts"]})
    devices = all_devices([before.get("devices", {}), record["devices"]])
    found = before["defences"] | record["defences"]
    return record | {"commands": commands, "devices": devices, "artifacts": artifacts, "defences": found}


def read(folder: Path) -> dict[str, Any]:
    """What ``run`` recorded in its folder. KitError where it is missing or damaged."""
    try:
        record = dict(json.loads((folder / "defences.json").read_text(encoding="utf-8")))
        lacking = {*FIXED[:-1], "commands", "context"} - record.keys()  # earlier ones name no unit
        for one in (record["defences"][UNDEFENDED], *record["defences"].values()):
            lacking |= {"knows", "taken", "single_seeds", "placebos", *COSTS} - one.keys()
            for estimate in filter(None, (one["left"], one["taken"])):
                lacking |= {"mean", "ci95", "se", "df", "seeds", "questions"} - estimate.keys()
        if lacking:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        if wrong := misfit(record.get("lots", []), [{"control": WHOLE_LOT, "treated": WHOLE_LOT}]):
            raise ValueError(f"its lots: {wrong}")
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KitError(f"{folder}: not the folder of finished defences ({error}). Run `run.py defend` again.") from None
