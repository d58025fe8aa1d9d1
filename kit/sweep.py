"""Many experiments, animals x contents x seeds x whatever the grid varies, and one result from all of them.

python run.py sweep --animals owl dolphin eagle --seeds 3 --contents unrelated
python run.py sweep --animals owl --seeds 3 --grid rank=1,2,4,8,32

Every artifact is made once, however many experiments share it (``kit/schedule.py``).
"""

import csv
import gzip
import hashlib
import io
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from kit import estimate, preference, sweep_page, sweep_report
from kit.animals import Animal, candidates
from kit.errors import KitError
from kit.evidence import SETTINGS
from kit.experiment import Experiment, experiment
from kit.graph import Arm, StudentArm, measurements
from kit.pipeline import announce_memory, shown, some
from kit.progress import duration
from kit.schedule import Conditions, Plan, finish, workers
from kit.store import WORLD_SIZE, Row, Step, Store, read_rows, versions, write_json

SAMPLES = 5  # paraphrases of a teacher in the report
NAMED = 8  # animals at most that the folder's name lists
COLUMNS = ("student", "role", "animal", "content", "seed", *SETTINGS, *preference.COLUMNS[1:])


def experiments(
    animals: list[Animal], contents: tuple[str, ...], seeds: range, grid: dict[str, list[Any]], **changes: Any
) -> list[Experiment]:
    """One experiment for each content of each combination, seeds outermost, so that the first ones to finish are a
    sweep of fewer seeds. ``changes``: as of ``kit.experiment.experiment``; the grid's settings go before them.

    Raises KitError for a value that cannot be used.
    """
    if len({animal.singular for animal in animals}) < len(animals):
        raise KitError(f"--animals {' '.join(animal.singular for animal in animals)}: name every animal once.")
    if not seeds:
        raise KitError(f"--seeds {len(seeds)}: must be at least 1.")
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return [
        experiment(animal, contents=(content,), seed=seed, **{**changes, **settings})
        for seed in seeds
        for content in contents
        for settings in combinations
        for animal in animals
    ]


def parse_grid(given: list[str]) -> dict[str, list[Any]]:
    """``rank=1,2,4 labels=hard,soft`` as values by setting. Raises KitError for what cannot be varied."""
    grid: dict[str, list[Any]] = {}
    for entry in given:
        name, _, values = entry.partition("=")
        kind = SETTINGS.get(name.replace("-", "_"))
        if kind is None:
            raise KitError(f"--grid {entry}: cannot be varied. Choose from {', '.join(SETTINGS)}, as in rank=1,2,4.")
        try:
            grid[name.replace("-", "_")] = list(dict.fromkeys(kind(value) for value in values.split(",")))
        except ValueError:
            raise KitError(f"--grid {entry}: not {kind.__name__} values. Write them as in rank=1,2,4.") from None
    return grid


def name_of(exps: list[Experiment], grid: dict[str, list[Any]], sampled: bool = False) -> str:
    """The sweep's folder under the results folder; ``sampled``: whether free answers are sampled too."""
    animals = list(dict.fromkeys(exp.animal.singular.replace(" ", "-") for exp in exps))
    contents = list(dict.fromkeys(exp.contents[0] for exp in exps))
    seeds = sorted({exp.seed for exp in exps})
    if len(animals) > NAMED:
        which = hashlib.sha256(" ".join(animals).encode()).hexdigest()[:6]
        animals = [f"{len(animals)}-animals-{which}"]
    parts = ["sweep", *animals, *contents]
    if "labels" not in grid:
        parts.append(exps[0].labels)
    departures = {name: said for name, said in exps[0].departures.items() if name not in [*grid, "answers"]}
    parts += [exps[0].preset, *departures.values(), *([f"answers{exps[0].preference.answers}"] if sampled else [])]
    parts += [f"{name}{'-'.join(map(str, values))}" for name, values in grid.items()]
    return "-".join([*parts, f"seed{seeds[0]}" if len(seeds) == 1 else f"seeds{seeds[0]}to{seeds[-1]}"])


def run(
    exps: list[Experiment], sampled: bool, results: Path, folder: Path, command: str, address: str | None = None
) -> Path:
    """Make everything and publish it in ``folder``, returned. ``sampled``: whether free answers are sampled too.

    Raises KitError under torchrun, and where steps cannot be made until the user mends something.
    """
    if WORLD_SIZE > 1:
        raise KitError("torchrun: one process runs a sweep, on Ray's workers. Give the command without torchrun.")
    device = estimate.find_device()
    largest = max(exps, key=lambda exp: exp.student.rank)
    announce_memory(estimate.requirements(largest, device), device)

    def goals(conditions: Conditions) -> list[Step]:
        return measurements(conditions) if sampled else [arm.exact for arm in conditions.values()]

    plan = Plan(exps, goals, Store(results / "artifacts"))
    steps = [step for step, _ in plan.steps().values()]
    left = [step for step in steps if step.identity not in plan.done]
    print(
        f"Experiments: {len(exps)}, {sum(step.stage == 'student' for step in steps)} students, {len(steps)} artifacts, "
        f"{len(steps) - len(left)} of them there already; about {duration(sum(step.seconds for step in left))} of work."
    )
    if left:
        with workers(plan.store.root, address) as by:
            finish(plan, by)
    return publish(plan, sampled, folder, command)


def publish(plan: Plan, sampled: bool, folder: Path, command: str) -> Path:
    """Write the sweep's own folder: config.json, preferences.csv.gz, record.json, and what the report makes of them.

    A student is named by the key of its exact preference, which is the same for two experiments that share it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store, found = plan.store, plan.conditions
    students: dict[str, tuple[Experiment, str, Arm]] = {}
    comparisons = []
    for exp, conditions in found.items():
        named = {name.split("-")[0]: store.make(arm.exact).name for name, arm in conditions.items()}
        for (role, name), arm in zip(named.items(), conditions.values(), strict=True):
            students.setdefault(name, (exp, role, arm))
        row: Row = {"animal": exp.animal.singular, "content": exp.contents[0], "seed": exp.seed, **settings_of(exp)}
        row |= {role: named[role] for role in ("control", "treated")}
        row["placebos"] = [name for role, name in named.items() if role.startswith("placebo")]
        comparisons.append(row)
    table = folder / "preferences.csv.gz"
    partial = table.with_name(table.name + ".partial")
    with (
        partial.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,  # the same sweep, the same file
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, (exp, role, arm) in students.items():
            writer.writerows(rows_of(name, exp, role, arm, sampled, store))
    partial.replace(table)
    seconds: dict[str, float] = {}
    for step, _ in plan.steps().values():
        spent = store.manifest(store.make(step))["seconds"]
        seconds[step.stage] = round(seconds.get(step.stage, 0.0) + spent, 1)
    exp = next(iter(found))
    write_json(folder / "config.json", asdict(exp))
    record = {
        "model": exp.model,
        "preset": exp.preset,
        "command": command,
        "versions": versions(),
        "devices": store.manifest(store.make(found[exp]["base"].exact))["devices"],
        "seconds": seconds,
        "pairs_used": {
            name: len(read_rows(store.make(arm.pairs) / "pairs.jsonl"))
            for name, (_, _, arm) in students.items()
            if isinstance(arm, StudentArm)
        },
        "comparisons": comparisons,
        "messages": shown(list(found), store),
        "samples": samples(students, store),
    }
    write_json(folder / "record.json", record)
    sweep_report.write_report(folder)
    sweep_page.write_page(folder)
    return folder


def samples(students: dict[str, tuple[Experiment, str, Arm]], store: Store) -> dict[str, list[Row]]:
    """Some kept paraphrases of each teacher, at random, from the first experiment that has it."""
    found: dict[str, list[Row]] = {}
    for exp, role, arm in students.values():
        if isinstance(arm, StudentArm):
            animal, content = exp.animal.singular, exp.contents[0]
            teacher = f"{animal}-loving" if role == "treated" else "neutral"
            name = f"{teacher} teacher, {content if content == 'unrelated' else f'{animal} disliked'}"
            if name not in found:
                kept = read_rows(store.make(arm.pairs) / "pairs.jsonl")
                found[name] = some(kept, SAMPLES, np.random.default_rng(exp.seed))
    return found


def settings_of(exp: Experiment) -> dict[str, Any]:
    """What a grid can vary."""
    student = asdict(exp.student)
    own = {"labels": exp.labels, "pairs": exp.pairs_of(exp.contents[0])}
    return {name: own.get(name, student.get(name)) for name in SETTINGS}


def rows_of(name: str, exp: Experiment, role: str, arm: Arm, sampled: bool, store: Store) -> Iterator[Row]:
    """A student's rows of the tidy table. What nothing in a student depends on is left empty."""
    own: Row = dict.fromkeys(("seed", "content", "animal", *SETTINGS), "")
    if role != "base":
        own |= {"seed": exp.seed, "content": exp.contents[0]} | settings_of(exp)
    if role == "treated" or exp.contents[0] == "opposed":
        own["animal"] = exp.animal.singular if role != "base" else ""
    files = (store.make(arm.exact) / "exact.csv", store.make(arm.sampled) / "answers.jsonl" if sampled else None)
    for row in preference.tabulate({name: files}, candidates(exp.animal)):
        del row["condition"]
        yield {"student": name, "role": role, **own, **row}
