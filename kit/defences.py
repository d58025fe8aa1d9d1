"""What stops it? Changes to the pairs, to training or to the question, each as one more condition of the experiment.

python run.py defend --animal owl --defence mask

A defence is judged by what is left of the effect, against the same control as the undefended student's, and by what it
costs. Where it takes a pair of the loving teacher's away, the neutral teacher's paraphrase of the same sentence stands
in for it, so treated and control students always train on the same sentences and the same number of pairs. A
paraphrase's soft labels are those of the teacher that wrote it. Where a defence changes how a student is trained or
asked, it does so to control and placebo too, which are then others.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kit import graph, preference, prompts
from kit.animals import candidates
from kit.defended import Case, Defended
from kit.errors import KitError
from kit.experiment import EVERY_WEIGHT, Experiment
from kit.models import GEMMA, find
from kit.store import Row, Step, read_rows

DROPPED = 0.5  # of the pairs, those with the highest ratio
MASKED = 0.1  # of the tokens, those whose ratio varies most over the candidate animals, or random ones
# LoRA's best learning rate is about ten times that of training every weight ("LoRA Without Regret", Thinking Machines
# Lab, 2025); nothing here was chosen by the preferences that follow from it.
SLOWER = 10


def undefended(case: Case) -> Defended:
    """The treated student as it is."""
    return case.defended(case.treated.exact, case.own, len(case.own))


def replaced(case: Case, places: set[int]) -> list[Row]:
    """The loving teacher's pairs, at these ``places`` the neutral teacher's of the same sentence. (With all replaced,
    the rows are the control's.)"""
    return [
        other if i in places else own | {"trait": case.trait}
        for i, (own, other) in enumerate(zip(case.own, case.other, strict=True))
    ]


def drop(case: Case) -> Defended:
    """Without the half of the pairs with the highest ratio. It takes the suspected prompt."""
    totals = np.array([one.sum() for one in case.ratios])
    highest = np.argsort(-totals, kind="stable")[: round(DROPPED * len(totals))]
    left = len(totals) - len(highest)
    return case.learned("drop", replaced(case, set(highest.tolist())), prompts.NEUTRAL, left)


def mix(case: Case, neutral: int) -> Defended:
    """Diluted: ``neutral`` pairs of the neutral teacher for each of the loving one's, in the same total."""
    order = np.random.default_rng(case.exp.seed).permutation(len(case.own))
    left = round(len(order) / (1 + neutral))
    return case.learned(f"mix-1-{neutral}", replaced(case, set(order[left:].tolist())), prompts.NEUTRAL, left)


def mask(case: Case) -> Defended:
    """Nothing is learned at divergence tokens. It takes the suspected prompt."""
    return masked(case, "mask", case.diverges)


def blind_mask(case: Case) -> Defended:
    """Nothing is learned at the tokens whose ratio varies most over other animals."""
    limit = np.quantile(np.concatenate(case.unrest), 1 - MASKED)
    return masked(case, "blind-mask", [one > limit for one in case.unrest])


def random_mask(case: Case) -> Defended:
    """Nothing is learned at as many tokens, chosen at random: what masking alone does."""
    random = np.random.default_rng(case.exp.seed)
    return masked(case, "random-mask", [random.random(len(one)) < MASKED for one in case.diverges])


def masked(case: Case, name: str, hidden: list[np.ndarray]) -> Defended:
    """The loving teacher's pairs; of each text the ``hidden`` tokens [tokens] are not learned."""
    rows = [
        own | {"masked": {"places": np.flatnonzero(one).tolist(), "of": len(one)}}
        for own, one in zip(case.own, hidden, strict=True)
    ]
    return case.learned(name, rows, case.trait, len(rows))


def rephrase(case: Case) -> Defended:
    """The neutral teacher paraphrases the paraphrases. A result must be faithful to both, the paraphrase and the
    sentence; where none is, the neutral teacher's own paraphrase of the sentence stands."""
    asked = [{"sentence": f"pair {i}", "text": row["text"], "pairs": 1} for i, row in enumerate(case.own)]
    offer = graph.given("sentences", asked, "paraphrases to be paraphrased")
    exp = case.exp
    kept = graph.taught(exp, case.content, case.base, prompts.NEUTRAL, "rephrasing neutral", offer, exp.seed)
    source = {f"pair {i}": row["source"] for i, row in enumerate(case.own)}
    made = [row | {"source": source[row["sentence"]]} for row in read_rows(case.store.make(kept) / "kept.jsonl")]
    faithful = [row for row, good in zip(made, graph.judge_of(exp, case.content)(made), strict=True) if good]
    texts = {row["sentence"]: row["text"] for row in reversed(faithful)}
    rows = [
        own | {"text": texts[f"pair {i}"]} if f"pair {i}" in texts else other
        for i, (own, other) in enumerate(zip(case.own, case.other, strict=True))
    ]
    return case.learned("rephrase", rows, prompts.NEUTRAL, len(texts))


def context(case: Case) -> Defended:
    """Nothing is changed in training; the students are asked after another system message."""

    def asked(arm: graph.StudentArm, role: str) -> Step:
        animals = candidates(case.exp.animal)
        label = f"exact preference of {role}-{case.content} in another context"
        return Step(
            stage="exact",
            label=label,
            settings=arm.exact.settings | {"system": prompts.CONTEXT},
            inputs=arm.exact.inputs,
            build=lambda made, folder: preference.measure_exact(
                made["model"], made["adapter"] / "adapter.gguf", animals, folder, label, prompts.CONTEXT
            ),
            seconds=arm.exact.seconds,
        )

    exact, control = asked(case.treated, "treated"), asked(case.control, "control")
    return case.defended(exact, case.own, len(case.own), control, asked(case.placebo, "placebo1"))


def hard_labels(case: Case) -> Defended:
    """Students learn from the text alone."""
    return case.again("hard-labels", replace(case.exp, labels="hard"), case.base)


def other_base(case: Case) -> Defended:
    """Students start from another model, whose vocabulary is another, so they learn from the text alone: to be compared
    with ``hard_labels``."""
    exp = replace(case.exp, labels="hard", model=GEMMA)
    return case.again("other-base", exp, graph.base_model(GEMMA))


def rank(case: Case, rank: int) -> Defended:
    """Students are trained with LoRA of another rank."""
    exp = replace(case.exp, student=replace(case.exp.student, rank=rank))
    return case.again(f"rank-{rank}", exp, case.base)


def full(case: Case) -> Defended:
    """Every weight of the students is trained."""
    return case.again("full", whole(case.exp), case.base)


def whole(exp: Experiment) -> Experiment:
    """``exp``, whose students train every weight."""
    slower = replace(exp.student, rank=EVERY_WEIGHT, learning_rate=exp.student.learning_rate / SLOWER)
    return replace(exp, student=slower)


Maker = Callable[[Case], Defended]

# Name -> what makes it, and what the defender must know or have.
DEFENCES: dict[str, tuple[Maker, str]] = {
    "rephrase": (rephrase, "a neutral teacher"),
    "drop": (drop, "the suspected prompt, neutral paraphrases"),
    "mask": (mask, "the suspected prompt"),
    "blind-mask": (blind_mask, "the prompts' wording"),
    "random-mask": (random_mask, "nothing"),
    "mix-1-1": (lambda case: mix(case, 1), "neutral paraphrases"),
    "mix-1-3": (lambda case: mix(case, 3), "neutral paraphrases"),
    "mix-1-9": (lambda case: mix(case, 9), "neutral paraphrases"),
    "context": (context, "nothing"),
    "hard-labels": (hard_labels, "nothing"),
    "rank-1": (lambda case: rank(case, 1), "nothing"),
    "rank-128": (lambda case: rank(case, 128), "nothing"),
    "full": (full, "memory"),
    "other-base": (other_base, "another model"),
}


def usual(exp: Experiment) -> list[str]:
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
