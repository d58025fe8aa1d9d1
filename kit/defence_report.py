"""Defences over seeds -> what is left of the transmission, and what that cost: defences.json, report.md, figure."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kit import graph, inference, prompts, stats
from kit.defences import DEFENCES, SLOWER, SUSPECTS, Case, Defended, check, placebo, undefended
from kit.errors import KitError
from kit.experiment import Experiment
from kit.figure import COLOURS, drawing, save
from kit.models import GEMMA
from kit.progress import duration
from kit.report import LABELS, SMOKE
from kit.store import WORLD_SIZE, Row, Store, versions, write_json
from kit.tables import Table, markdown_table, points, show_table

UNDEFENDED, PLACEBO = "undefended", "placebo"
INSTANT = 3.0  # seconds: in fewer, a defence was found made
READING = (
    "*Left*: the log-odds shift of the defended student against the control, with its 95% interval (over seeds and "
    "questions; with one seed over questions alone, of these students). *Taken away*: the undefended student's shift "
    "minus it, the same way. *Of the undefended*: as a share of the undefended student's mean shift, taken for known, "
    "where that is beyond zero. *Placebo*: what nothing transmitted looks like. *Pairs*: of the training pairs those "
    "that come from the loving teacher; the neutral teacher's paraphrase of the same sentence stands in for the "
    "others. *Similarity*: mean cosine of the paraphrases and their sources. *Loss*: of the student, in nats per byte, "
    "on a neutral teacher's paraphrases of the same sentences in words that no training data has; smaller is better, "
    "and `other-base` has another model's to begin with."
)
NAMES = (
    "`drop` takes away half of the pairs; `mask` hides divergence tokens; `blind-mask` hides a tenth of the tokens, "
    f"those whose ratio varies most over {SUSPECTS} other animals, `random-mask` as many at random; `mix-1-3` is one "
    "loving pair to three neutral ones; `context` asks both students after another system message. Ratios and "
    "divergence are those of the conversation that the student learns from. A paraphrase's soft labels are those of "
    "the teacher that wrote it: with soft labels `rephrase`, `drop` and `mix` also replace what the student learns "
    "beside the text, which alone may be what stops it. `hard-labels`, `rank-1`, `rank-128`, `full` (every weight is "
    f"trained, at a learning rate {SLOWER} times smaller) and `other-base` ({GEMMA}, to be compared with "
    "`hard-labels`: its vocabulary is another, so it learns from the text alone) train both students anew, treated "
    "and control."
)
FIXED = ("animal", "content", "labels", "preset", "model", "seeds", "versions")  # what rows of one table share


def run(exps: list[Experiment], names: list[str], results: Path, command: str) -> Path:
    """Every named defence in every experiment, which differ in their seed alone; the folder of the report, where the
    defences of earlier commands stay.

    Raises KitError under torchrun, and for a defence that cannot be made.
    """
    if WORLD_SIZE > 1:
        raise KitError("torchrun: one process makes all defences. Give the command without torchrun.")
    check(exps[0], names)
    makers = {UNDEFENDED: undefended, PLACEBO: placebo} | {name: DEFENCES[name][0] for name in names}
    shifts: dict[str, list[np.ndarray]] = {name: [] for name in makers}
    costs: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
    taken: list[float] = []  # seconds of each that was not there already
    for i, exp in enumerate(exps):
        print(f"Seed {exp.seed}: the teachers' pairs", flush=True)
        case = Case(exp, Store(results / "artifacts"))
        for j, (name, make) in enumerate(makers.items()):
            left = (len(exps) - i) * len(makers) - j
            estimate = f", about {duration(left * float(np.mean(taken)))} left" if taken else ""
            print(f"Seed {exp.seed}: {name}, {j + 1} of {len(makers)}{estimate}", flush=True)
            started = time.monotonic()
            shift, cost = measured(case, make(case))
            if (seconds := time.monotonic() - started) > INSTANT:
                taken.append(seconds)
            shifts[name].append(shift)
            costs[name].append(cost)
    seeds = [exp.seed for exp in exps]
    folder = results / f"defences-{exps[0].name.removesuffix(f'-seed{seeds[0]}')}-seeds{seeds[0]}to{seeds[-1]}"
    folder.mkdir(parents=True, exist_ok=True)
    whole = np.array(shifts[UNDEFENDED])
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
        "defences": {name: row(name, np.array(shifts[name]), whole, costs[name]) for name in makers},
    }
    if (folder / "defences.json").exists():
        before = read(folder)
        if all(before[name] == record[name] for name in FIXED):
            record["commands"] = list(dict.fromkeys([*before["commands"], command]))
            record["defences"] = before["defences"] | record["defences"]
    write_json(folder / "defences.json", record)
    write(folder)
    return folder


def measured(case: Case, defended: Defended) -> tuple[np.ndarray, dict[str, float]]:
    """The shift of the animal (nats) [questions], and the costs, of one defence and seed."""
    treated, control = graph.compared(case.store, defended.exact, defended.control, case.exp.animal)
    loss = json.loads((case.store.make(defended.loss) / "loss.json").read_text(encoding="utf-8"))["nats_per_byte"]
    costs = {"pairs": defended.pairs, "masked": defended.masked, "similarity": defended.similarity, "loss": loss}
    return stats.log_odds_differences(treated, control, case.exp.animal.singular), costs


def row(name: str, shifts: np.ndarray, whole: np.ndarray, costs: list[dict[str, float]]) -> Row:
    """One defence over the seeds: its ``shifts`` and the undefended student's, ``whole`` [seeds, questions], in nats,
    and its costs, averaged."""
    return {
        "knows": DEFENCES[name][1] if name in DEFENCES else "",
        "left": asdict(inference.across_seeds(shifts)),
        "taken": asdict(inference.across_seeds(whole - shifts)) if name in DEFENCES else None,
        "single_seeds": shifts.mean(axis=1).tolist(),
        **{cost: float(np.mean([one[cost] for one in costs])) for cost in costs[0]},
    }


def table(record: dict[str, Any]) -> Table:
    """What is left under every defence, and what it cost."""
    whole = record["defences"][UNDEFENDED]["left"]
    heading = ["defence", "takes", "left, nats [95% CI]", "taken away, nats [95% CI]", "of the undefended"]
    rows = []
    for name, one in record["defences"].items():
        low, high = one["left"]["ci95"]
        mean, known = whole["mean"], whole["ci95"][0] > 0 and name != UNDEFENDED
        rows.append(
            [
                name,
                one["knows"],
                points(one["left"]["mean"], (low, high)),
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
    """What is left under every defence, with its interval; pale dots are single seeds."""
    figure, axis = drawing().subplots(figsize=(6.4, 1.0 + 0.4 * len(record["defences"])))
    colour = COLOURS[f"treated-{record['content']}"]
    for place, one in enumerate(record["defences"].values()):
        low, high = one["left"]["ci95"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot(one["single_seeds"], [place] * len(one["single_seeds"]), "o", color=colour, alpha=0.35, markersize=4)
        axis.plot(one["left"]["mean"], place, "o", color=colour, markersize=8)
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
