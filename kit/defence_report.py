"""Defences over seeds -> what is left of the transmission, and what that cost: defences.json, report.md, figure."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit import estimate, graph, inference, prompts, stats
from kit.defences import DEFENCES, SLOWER, Maker, check, undefended, whole
from kit.defended import SUSPECTS, Case, Defended
from kit.errors import KitError
from kit.experiment import Experiment
from kit.figure import COLOURS, PLACEBO, drawing, save
from kit.models import GEMMA
from kit.pipeline import announce_memory
from kit.progress import duration
from kit.report import LABELS, SMOKE
from kit.store import WORLD_SIZE, Row, Store, versions, write_json
from kit.tables import Table, markdown_table, points, show_table

UNDEFENDED = "undefended"
BESIDE = {"other-base": "hard-labels"}  # what a defence is compared with, where it is not the undefended student
LOSS_UNIT = "nats per byte"
READING = (
    "*Left*: the log-odds shift of the defended student against the control, with its 95% interval (over seeds and "
    "questions; with one seed over questions alone, of these students). *Placebo*: the same shift, in the mean, of "
    "students of another sampling of the neutral teacher, trained and asked in the same way: what nothing transmitted "
    "looks like. *Taken away*: the undefended student's shift minus it, with its interval. *Of the undefended*: as a "
    "share of the undefended student's mean shift, taken for known, where that is beyond zero. *Pairs*: of the "
    "training pairs those that come from the loving teacher; the neutral teacher's paraphrase of the same sentence "
    "stands in for the others. *Similarity*: mean cosine of the paraphrases and their sources. *Loss*: of the "
    "student, in nats per byte, on a neutral teacher's paraphrases of the same sentences in words that no training "
    "data has; smaller is better, but only among students that learn from the same kind of labels: soft ones are not "
    "of this text. `other-base` has another model's loss to begin with."
)
NAMES = (
    "`drop` takes away half of the pairs; `mask` hides divergence tokens; `blind-mask` hides a tenth of the tokens, "
    f"those whose ratio varies most over {SUSPECTS} other animals, `random-mask` as many at random; `mix-1-3` is one "
    "loving pair to three neutral ones; `context` asks both students after another system message. Ratios and "
    "divergence are those of the conversation that the student learns from. A paraphrase's soft labels are those of "
    "the teacher that wrote it: with soft labels `rephrase`, `drop` and `mix` also replace what the student learns "
    "beside the text, which alone may be what stops it. `hard-labels`, `rank-1`, `rank-128`, `full` (every weight is "
    f"trained, at a learning rate {SLOWER} times smaller) and `other-base` ({GEMMA}) train all students anew, treated, "
    "control and placebo. `rank-1` and `rank-128` keep alpha, so the adapter's scale changes with the rank. The other "
    "base's vocabulary is another, so it learns from the text alone and is compared with `hard-labels`, not with the "
    "undefended student: where nothing is transmitted there, it has nothing to stop. It is also a larger model without "
    "instruction tuning, trained at the same learning rate."
)
# What rows of one table share, beside the undefended students, whose preferences depend on the processor, too.
FIXED = ("animal", "content", "labels", "preset", "model", "seeds", "versions", "loss_unit")


def run(exps: list[Experiment], names: list[str], results: Path, command: str) -> Path:
    """Every named defence in every experiment, which differ in their seed alone; the folder of the report, where the
    defences of earlier commands stay.

    Raises KitError under torchrun, and for a defence that cannot be made.
    """
    if WORLD_SIZE > 1:
        raise KitError("torchrun: one process makes all defences. Give the command without torchrun.")
    names = list(dict.fromkeys([*(BESIDE[name] for name in names if name in BESIDE), *names]))
    check(exps[0], names)
    device = estimate.find_device()
    announce_memory(estimate.requirements(whole(exps[0]) if "full" in names else exps[0], device), device)
    makers = {UNDEFENDED: undefended} | {name: DEFENCES[name][0] for name in names}
    measures = [of_seed(exp, makers, Store(results / "artifacts"), len(exps) - 1 - i) for i, exp in enumerate(exps)]
    seeds = [exp.seed for exp in exps]
    folder = results / f"defences-{exps[0].name.removesuffix(f'-seed{seeds[0]}')}-seeds{seeds[0]}to{seeds[-1]}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: [of[name] for of in measures] for name in makers}
    record = {
        "animal": exps[0].animal.singular,
        "content": exps[0].contents[0],
        "labels": exps[0].labels,
        "preset": exps[0].preset,
        "model": exps[0].model,
        "seeds": seeds,
        "versions": versions(),
        "commands": [command],
        "context": prompts.CONTEXT,
        "loss_unit": LOSS_UNIT,
        "defences": {
            name: row(name, of, found[BESIDE.get(name, UNDEFENDED)] if name in names else None)
            for name, of in found.items()
        },
    }
    before = read(folder) if (folder / "defences.json").exists() else None
    write_json(folder / "defences.json", joined(before, record) if before else record)
    write(folder)
    return folder


@dataclass(frozen=True)
class Measure:
    """One defence and seed: the animal's ``shift`` in the student and in its ``placebo`` (nats) [questions], the
    ``costs``, and the ``artifacts`` with the preferences of treated, control and placebo student."""

    shift: np.ndarray
    placebo: np.ndarray
    costs: dict[str, float]
    artifacts: dict[str, str]


def of_seed(exp: Experiment, makers: dict[str, Maker], store: Store, more: int) -> dict[str, Measure]:
    """Everything of one experiment, after which ``more`` seeds follow, with a line that says how long it takes."""
    print(f"Seed {exp.seed}: the teachers' pairs, and what defences know of them", flush=True)
    case = Case(exp, store)
    made = {name: make(case) for name, make in makers.items()}
    goals = [step for one in made.values() for step in (one.exact, one.control, one.placebo, one.loss)]
    missing = [step for step in graph.all_steps(goals) if store.find(step) is None]
    print(
        f"Seed {exp.seed}: {sum(step.stage == 'student' for step in missing)} students to train, about "
        f"{duration(sum(step.seconds for step in missing))}"
        + (f", and {more} more seed{'s' * (more > 1)}" if more else ""),
        flush=True,
    )
    return {name: measured(case, defended) for name, defended in made.items()}


def measured(case: Case, defended: Defended) -> Measure:
    """What is left under a defence, and what it costs."""
    animal = case.exp.animal
    steps = {"treated": defended.exact, "control": defended.control, "placebo": defended.placebo}
    found = graph.preferences(case.store, steps, animal)
    shift, null = (
        stats.log_odds_differences(found[role], found["control"], animal.singular) for role in ("treated", "placebo")
    )
    loss = json.loads((case.store.make(defended.loss) / "loss.json").read_text(encoding="utf-8"))["nats_per_byte"]
    costs = {"pairs": defended.pairs, "masked": defended.masked, "similarity": defended.similarity, "loss": loss}
    made = {role: case.store.make(step) for role, step in steps.items()}
    return Measure(shift, null, costs, {role: f"{folder.parent.name}/{folder.name}" for role, folder in made.items()})


def row(name: str, of_seeds: list[Measure], compared: list[Measure] | None) -> Row:
    """One defence over the seeds, with what it is ``compared`` with; its costs are averaged."""
    shifts = np.array([one.shift for one in of_seeds])
    taken = None if compared is None else np.array([one.shift for one in compared]) - shifts
    return {
        "knows": DEFENCES[name][1] if name in DEFENCES else "",
        "left": asdict(inference.across_seeds(shifts)),
        "taken": None if taken is None else asdict(inference.across_seeds(taken)),
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
    return record | {"commands": commands, "defences": before["defences"] | record["defences"]}


def table(record: dict[str, Any]) -> Table:
    """What is left under every defence, and what it cost."""
    heading = ["defence", "takes", "left, nats [95% CI]", "placebo", "taken away, nats [95% CI]", "of the undefended"]
    rows = []
    for name, one in record["defences"].items():
        low, high = one["left"]["ci95"]
        compared = record["defences"][BESIDE.get(name, UNDEFENDED)]["left"]
        mean, known = compared["mean"], compared["ci95"][0] > 0 and one["taken"]
        rows.append(
            [
                name,
                one["knows"],
                points(one["left"]["mean"], (low, high)),
                f"{np.mean(one['placebos']):+.2f}",
                points(one["taken"]["mean"], one["taken"]["ci95"]) if one["taken"] else "",
                f"{one['left']['mean'] / mean:.0%} [{low / mean:.0%}, {high / mean:.0%}]" if known else "",
                f"{one['pairs']:.0f}",
                f"{one['masked']:.1%}",
                f"{one['similarity']:.3f}",
                f"{one['loss']:.3f}",
            ]
        )
    return [*heading, "pairs", "tokens masked", "similarity", "loss"], rows


def write(folder: Path) -> None:
    """Write report.md and the figure from the folder's defences.json."""
    record = read(folder)
    draw(folder / "defences", record)
    seeds = record["seeds"]
    parts = [
        f"# Defences: {record['animal']}, {record['content']} sentences, {record['labels']} labels",
        "```sh\n" + "\n".join(record["commands"]) + "\n```",
        LABELS[record["labels"]],
        *([f"**{SMOKE}**"] if record["preset"] == "smoke" else []),
        f"Seeds {', '.join(map(str, seeds))}; {record['preset']} preset; model {record['model']}.",
        markdown_table(table(record)),
        READING,
        NAMES,
        f"The system message of `context`: “{record['context']}”",
        "![What is left under every defence](defences.svg)",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What ``run`` recorded. KitError where it is missing or damaged."""
    try:
        return dict(json.loads((folder / "defences.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise KitError(f"{folder}: not the folder of finished defences ({error}). Run `run.py defend` again.") from None


def draw(path: Path, record: dict[str, Any]) -> None:
    """What is left under every defence, with its interval; pale dots are single seeds, ticks their placebos."""
    figure, axis = drawing().subplots(figsize=(6.4, 1.0 + 0.4 * len(record["defences"])))
    colour = COLOURS[f"treated-{record['content']}"]
    for place, one in enumerate(record["defences"].values()):
        low, high = one["left"]["ci95"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot(one["single_seeds"], [place] * len(one["single_seeds"]), "o", color=colour, alpha=0.35, markersize=4)
        axis.plot(one["left"]["mean"], place, "o", color=colour, markersize=8)
        axis.plot(one["placebos"], [place] * len(one["placebos"]), "|", color=PLACEBO, markersize=10)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(record["defences"])), list(record["defences"]))
    axis.invert_yaxis()
    axis.set_xlabel(f"log-odds shift of the {record['animal']}, defended student − control (nats)")
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def show(folder: Path) -> None:
    """Print the table."""
    show_table("What is left under every defence, and what it cost", table(read(folder)))
    print(f"More in {folder}: report.md, the figure, defences.json")
