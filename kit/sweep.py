"""Many experiments, animals x contents x seeds x whatever the grid varies, each artifact made once.

python run.py sweep --animals owl dolphin eagle --seeds 3 --contents unrelated
python run.py sweep --animals owl --seeds 3 --grid rank=1,2,4,8,32

The steps run one after another in this process, or on Ray. Nothing about a sweep is kept but the artifacts themselves
and, in the end, its folder. So the driver may be killed at any moment: given the same command again it finds what is
done and goes on.
"""

import csv
import gzip
import io
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kit import ROOT, KitError, likelihood, preference, printable, say
from kit.animals import Animal, candidates, is_listed
from kit.experiment import (
    GRID_SETTINGS,
    Experiment,
    announce_memory,
    experiment,
    folder_name,
    memory_requirements,
    plainly_named,
)
from kit.experiment_conditions import (
    Condition,
    StudentCondition,
    all_conditions,
    all_steps,
    loving_controls,
    measurements,
)
from kit.experiment_folder import (
    all_devices,
    announce_again,
    at_random,
    conversations,
    earlier,
    lot_of,
    made_on,
    recorded_texts,
)
from kit.memory import GIB, find_device
from kit.provenance import committed, contains, cpu_threads, kit_state, unchanged_since
from kit.stats import LOVES
from kit.store import (
    MANIFEST,
    WORLD_SIZE,
    Pace,
    Row,
    Step,
    Store,
    duration,
    misfit,
    read_rows,
    sha256,
    write_json,
    write_whole,
)
from kit.sweep_effects import (
    PLAN,
    cell_key,
    power_sentence,
    read_sweep,
    table_rows,
    uncompared_sentence,
    verdict_sentence,
    wrong_seeds,
)

SAMPLES = 12  # paraphrases of a teacher in the report

SHARED = ("model", "sentences")  # stages that no student has to itself

NAMED = 8  # animals at most that the folder's name lists

# Without the probabilities, which are the log-probabilities' softmax and two fifths of the file.
MEASURES = tuple(name for name in preference.COLUMNS[1:] if name != "probability")
COLUMNS = ("student", "role", "animal", "content", "seed", *GRID_SETTINGS, *MEASURES)


# ---- which experiments


MOST_SEEDS = 10_000  # a step takes a millisecond to plan, and a thousand seeds a year of two cores


def experiments(
    animals: list[Animal], contents: tuple[str, ...], seeds: range, grid: dict[str, list[Any]], **changes: Any
) -> list[Experiment]:
    """One experiment for each content of each combination, seeds outermost, so that the first ones to finish are a
    sweep of fewer seeds. ``changes``: as of ``kit.experiment.experiment``; the grid's settings go before them.

    Raises KitError for a value that cannot be used.
    """
    if len({animal.singular for animal in animals}) < len(animals):
        raise KitError(f"--animals {' '.join(animal.singular for animal in animals)}: name every animal once.")
    if not 1 <= (number := seeds.stop - seeds.start) <= MOST_SEEDS:
        raise KitError(f"--seeds {number}: must lie between 1 and {MOST_SEEDS:,}. A sweep has three or more.")
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return [
        experiment(animal, contents=(content,), seed=seed, **{**changes, **settings})
        for seed in seeds
        for content in contents
        for settings in combinations
        for animal in animals
    ]


def parse_grid(entries: list[str]) -> dict[str, list[Any]]:
    """``rank=1,2,4 labels=hard,soft`` as values by setting. Raises KitError for what cannot be varied."""
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        name, _, values = entry.partition("=")
        kind = GRID_SETTINGS.get(name.replace("-", "_"))
        if kind is None:
            raise KitError(
                f"--grid {entry}: cannot be varied. Choose from {', '.join(GRID_SETTINGS)}, as in rank=1,2,4."
            )
        try:
            grid[name.replace("-", "_")] = list(dict.fromkeys(kind(value) for value in values.split(",")))
        except ValueError:
            raise KitError(f"--grid {entry}: not {kind.__name__} values. Write them as in rank=1,2,4.") from None
    return grid


def name_of(exps: list[Experiment], grid: dict[str, list[Any]], sampled: bool = False) -> str:
    """The sweep's folder under the results folder, which no other sweep or run has; ``sampled``: whether free answers
    are sampled too."""
    animals = list(dict.fromkeys(exp.animal for exp in exps))
    contents = list(dict.fromkeys(exp.contents[0] for exp in exps))
    seeds = sorted({exp.seed for exp in exps})
    unsaid = {
        name: value
        for name, value in exps[0].unsaid.items()
        if name.partition(".")[0] != "animal" and name.rpartition(".")[2] not in grid
    }
    names = [animal.singular.replace(" ", "-") for animal in animals]
    if len(animals) > NAMED:
        names = [f"{len(animals)}-animals"]
    if len(animals) > NAMED or not all(plainly_named(one) and " " not in one.singular for one in animals):
        unsaid["animals"] = [asdict(animal) for animal in animals]
    if seeds != list(range(seeds[0], seeds[-1] + 1)):
        unsaid["seeds"] = seeds
    parts = ["sweep", *names, *contents]
    if "labels" not in grid:
        parts.append(exps[0].labels)
    departures = {name: said for name, said in exps[0].departures.items() if name not in [*grid, "answers"]}
    parts += [exps[0].preset, *departures.values(), *([f"answers{exps[0].preference.answers}"] if sampled else [])]
    short = {"learning_rate": "lr", "batch_size": "batch"}
    parts += [f"{short.get(name, name)}{'-'.join(map(str, values))}" for name, values in grid.items()]
    return folder_name(parts, unsaid, f"seed{seeds[0]}" if len(seeds) == 1 else f"seeds{seeds[0]}to{seeds[-1]}")


def settings_of(exp: Experiment) -> dict[str, Any]:
    """What a grid can vary."""
    own = {"labels": exp.labels, "pairs": exp.pairs_of(exp.contents[0]), "context": exp.context}
    found = asdict(exp.teacher) | asdict(exp.student) | own
    return {name: found[name] for name in GRID_SETTINGS}


# ---- a test that was planned before it is run


def registered_plan(path: Path, is_this: Callable[[str], bool]) -> Row:
    """The plan in ``path``, one of whose lines ``is_this`` command: its ``file`` in the repository, ``sha256`` and
    ``commit``, and how many ``commands`` it has.

    Raises KitError unless the plan is committed as it stands, the kit is what it was in that commit, and the plan has
    the command: only then can anybody see that what decides was written down before.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"--plan {path}: cannot be read ({error}). Give the plan's file.") from None
    commit = committed(path)
    if commit is None:
        raise KitError(
            f"--plan {path}: it is not committed in the kit's repository as it stands, so nobody could see that it is "
            "older than what it plans. Commit it first."
        )
    if not unchanged_since(commit):
        raise KitError(
            f"--plan {path}: the kit's code or data are not what they were in its commit, {commit[:12]}, so the plan "
            "does not say what would be done. Check that commit out (git worktree), or plan anew."
        )
    commands = [line.strip() for line in lines if line.strip().startswith("python run.py sweep ")]
    if not any(map(is_this, commands)):
        listed = "\n  ".join(commands) or "none"
        raise KitError(f"--plan {path}: it has no such command. Give one of its own, as it stands there:\n  {listed}")
    named = path.resolve().relative_to(ROOT).as_posix()
    return {"file": named, "sha256": sha256(path), "commit": commit, "commands": len(commands)}


def begun(registered: Row, folder: Path) -> Row:
    """The plan with the time (UTC) at which its sweep in ``folder`` was first begun, which is written down there before
    anything else is. Raises KitError where it was begun by another plan."""
    path = folder / "plan.json"
    if path.exists():
        found = read_json(path)
        if wrong := misfit(found, PLAN):
            raise KitError(f"{path}: {wrong}. Choose another --results.")
        if not registered.items() <= found.items():
            raise KitError(
                f"{path}: this was begun by another plan, or by an earlier state of it. Go on with that one."
            )
        return found
    folder.mkdir(parents=True, exist_ok=True)
    found = registered | {"begun": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(path, found)
    return found


def check_after(registered: Row, store: Store, steps: Iterable[Step]) -> None:
    """Raise KitError where one of these steps, or the samples that it begins with, was made by a kit from before the
    plan: whoever planned then had seen it, or could have. (Nothing can be seen in a prepared model.)"""
    for step in (one for made in steps for one in (made, *made.inputs.values())):
        folder = store.find(step) if step.stage != "model" else None
        if folder is not None and (folder / MANIFEST).exists():
            made_by = store.manifest(folder).get("kit") or {}
            if not contains(made_by.get("commit"), registered["commit"]):
                raise KitError(
                    f"{folder}: {step.label} was made before the plan was committed. Choose another --results, where "
                    "nothing is."
                )


# ---- what is left of them


Conditions = dict[str, Condition]


class Plan:
    """What is left of many experiments."""

    def __init__(self, experiments: list[Experiment], goals: Callable[[Conditions], list[Step]], store: Store) -> None:
        self.store, self._goals = store, goals
        self.conditions = {exp: all_conditions(exp) for exp in experiments}
        self.done: set[str] = set()
        self.ready()
        self.reused = frozenset(self.done)

    def steps(self) -> dict[str, tuple[Step, Experiment]]:
        """Every step by its identity, inputs first, with the first experiment that needs it."""
        found: dict[str, tuple[Step, Experiment]] = {}
        for exp, conditions in self.conditions.items():
            for step in all_steps(self._goals(conditions)):
                found.setdefault(step.identity, (step, exp))
        return found

    def left(self) -> list[Step]:
        """The steps that are not made yet."""
        return [step for identity, (step, _) in self.steps().items() if identity not in self.done]

    def ready(self) -> list[tuple[Step, Experiment]]:
        """The steps that can be made now; whatever is made by now is ``done``."""
        startable = []
        for identity, (step, exp) in self.steps().items():
            if identity not in self.done and all(
                needed.open or needed.identity in self.done for needed in step.inputs.values()
            ):
                if self.store.find(step):
                    self.done.add(identity)
                else:
                    startable.append((step, exp))
        return startable


# ---- the sweep


def plan(exps: list[Experiment], sampled: bool, store: Store, folder: Path) -> Plan:
    """What is left of the sweep, which is said, with the memory it needs, how long it takes, and why artifacts are made
    again. ``sampled``: whether free answers are sampled too. Raises KitError under torchrun."""
    if WORLD_SIZE > 1:
        raise KitError("torchrun: one process runs a sweep, on Ray's workers. Give the command without torchrun.")
    device = find_device()
    largest = max(exps, key=lambda exp: exp.student.rank or math.inf)  # 0: every weight
    announce_memory(memory_requirements(largest, device), device)

    def goals(conditions: Conditions) -> list[Step]:
        return measurements(conditions, sampled)

    plan = Plan(exps, goals, store)
    steps, left = [step for step, _ in plan.steps().values()], plan.left()
    about = duration(sum(step.estimate for step in left))
    say(
        f"Experiments: {len(exps)}, {sum(step.stage == 'student' for step in steps)} students, {len(steps)} artifacts, "
        f"{len(steps) - len(left)} of them there already; about {about} of work."
    )
    announce_again(left, earlier(folder, plan.store))
    animals = dict.fromkeys(exp.animal.singular for exp in exps)
    apart = [animal for animal in animals if len(animals) > 1 and not is_listed(animal)]
    for sentence in filter(None, [uncompared_sentence(apart), *power_sentences(exps)]):
        say(sentence)
    return plan


def verdict_words(exps: list[Experiment]) -> str:
    """How probable the whole verdict is, as a sentence; nothing with one seed."""
    seeds, animals, exp = {exp.seed for exp in exps}, {exp.animal for exp in exps}, exps[0]
    if len(seeds) == 1:
        return ""
    one_cell = len(exps) == len(seeds) * len(animals) and exp.contents == ("unrelated",)
    if not one_cell or exp.loving_controls or not exp.placebos:
        return (
            "How probable the whole verdict is, is simulated for one setting of unrelated sentences alone, with "
            "placebos and without loving controls."
        )
    return verdict_sentence(exp.labels, exp.pairs, len(seeds), len(animals), exp.placebos)


def power_sentences(exps: list[Experiment]) -> list[str]:
    """What the sweep would find, a sentence for each kind of its students; nothing with one seed, which says nothing of
    others."""
    seeds = len({exp.seed for exp in exps})
    effects = {json.dumps([exp.contents, exp.animal.singular, settings_of(exp)]) for exp in exps}
    kinds = dict.fromkeys((exp.labels, exp.pairs_of(exp.contents[0])) for exp in exps)
    return [power_sentence(*kind, seeds, len(effects)) for kind in kinds] if seeds > 1 else []


def run(
    exps: list[Experiment],
    sampled: bool,
    results: Path,
    folder: Path,
    command: str,
    address: str | None = None,
    registered: Row | None = None,
) -> Path:
    """Make everything and publish it in ``folder``, returned. ``sampled``: whether free answers are sampled too;
    ``registered``: the plan that it carries out.

    Raises KitError under torchrun, and where steps cannot be made until the user mends something.
    """
    store = Store(results / "artifacts")
    with store.working(folder.name, command):
        planned = plan(exps, sampled, store, folder)
        own: Row = {}
        if registered:
            check_after(registered, store, [step for step, _ in planned.steps().values()])
            own["plan"] = begun(registered, folder)
        if planned.left():
            with workers(planned.store.root, address) as by:
                finish(planned, by)
        return publish(planned, sampled, folder, command, own)


def publish(plan: Plan, sampled: bool, folder: Path, command: str, own: Row) -> Path:
    """Write the sweep's own folder, returned: config.json, preferences.csv.gz and record.json, of which
    ``kit/report_sweep.py`` makes the rest, and of a planned one texts.jsonl.gz. ``own``: what else the record has.

    A student is named by the key of its exact preference, which is the same for two experiments that share it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store, found = plan.store, plan.conditions
    students: dict[str, tuple[Experiment, str, Condition]] = {}
    lots: dict[tuple[str, ...], Row] = {}
    comparisons = []
    for exp, conditions in found.items():
        named = {name.split("-")[0]: store.make(condition.exact).name for name, condition in conditions.items()}
        for (role, name), condition in zip(named.items(), conditions.values(), strict=True):
            students.setdefault(name, (exp, role, condition))
        row: Row = {"animal": exp.animal.singular, "content": exp.contents[0], "seed": exp.seed, **settings_of(exp)}
        row |= {role: named[role] for role in ("control", "treated")}
        row["placebos"] = [name for role, name in named.items() if role.startswith("placebo")]
        row["loving"] = {role.removeprefix(LOVES): name for role, name in named.items() if role.startswith(LOVES)}
        treated = conditions[f"treated-{exp.contents[0]}"]
        assert isinstance(treated, StudentCondition) and treated.held_out
        control = conditions[f"control-{exp.contents[0]}"]
        assert isinstance(control, StudentCondition)
        row["lot"] = {}
        for role, student in (("control", control), ("treated", treated)):
            pairs = tuple(store.make(one.pairs).name for one in (student, control))  # the same of many settings
            if pairs not in lots:
                lots[pairs] = lot_of(student, control, store)
            row["lot"][role] = lots[pairs]
        row["held_out"] = likelihood.held_out_gains(store.make(treated.held_out))
        if seconds := _anew([step for step in all_steps([treated.exact]) if step.stage not in SHARED], store):
            row["seconds"] = seconds
        comparisons.append(row)
    _write_table(
        folder,
        (
            row
            for name, (exp, role, condition) in students.items()
            for row in rows_of(name, exp, role, condition, sampled, store)
        ),
    )
    if "plan" in own:
        _write_texts(folder, ((name, condition) for name, (_, _, condition) in students.items()), store)
        own = own | {"texts": sha256(folder / "texts.jsonl.gz")}
    exp = next(iter(found))
    write_json(folder / "config.json", asdict(exp))
    record = {
        "model": exp.model,
        "student_model": exp.of_students.model,
        "preset": exp.preset,
        "command": command,
        "versions": store.versions(),
        "kit": kit_state(),
        "made_by": store.kits(),
        "questions": [one["question"] for one in preference.load_questions(exp.confirmatory)],
        "artifacts": store.used,
        "devices": made_on(store),
        "seconds": _seconds([step for step, _ in plan.steps().values()], store),
        "pairs_used": {
            name: len(read_rows(store.make(condition.pairs) / "pairs.jsonl"))
            for name, (_, _, condition) in students.items()
            if isinstance(condition, StudentCondition)
        },
        "comparisons": comparisons,
        "messages": conversations(list(found), store),
        "samples": teacher_samples(students, store),
    } | recorded_texts(exp)
    write_json(folder / "record.json", record | own | {"table": sha256(folder / "preferences.csv.gz")})
    return folder


def _anew(steps: Iterable[Step], store: Store) -> dict[str, float]:
    """How long they would take where nothing is there, by stage: of paraphrases, whose samples may have been there in
    part, by what the others took. Nothing where all were."""
    seconds: dict[str, float] = {}
    for step in steps:
        manifest = store.manifest(store.make(step))
        if not (new := manifest.get("new", 1.0)):
            return {}
        seconds[step.stage] = round(seconds.get(step.stage, 0.0) + manifest["seconds"] / new, 1)
    return seconds


def _seconds(steps: Iterable[Step], store: Store) -> dict[str, float]:
    """How long they took, by stage."""
    seconds: dict[str, float] = {}
    for step in steps:
        spent = store.manifest(store.make(step))["seconds"]
        seconds[step.stage] = round(seconds.get(step.stage, 0.0) + spent, 1)
    return seconds


def _write_table(folder: Path, rows: Iterable[Row]) -> None:
    """``preferences.csv.gz``, of ``COLUMNS``."""
    with _packed(folder / "preferences.csv.gz") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _write_texts(folder: Path, students: Iterable[tuple[str, Condition]], store: Store) -> None:
    """``texts.jsonl.gz``: of each student the pairs that it learned from, all of them, so that whoever doubts a test
    can read its text."""
    with _packed(folder / "texts.jsonl.gz") as file:
        for name, condition in students:
            if isinstance(condition, StudentCondition):
                for pair in read_rows(store.make(condition.pairs) / "pairs.jsonl"):
                    row = {"student": name} | {part: pair[part] for part in ("sentence", "source", "text")}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _packed(path: Path) -> Iterator[io.TextIOWrapper]:
    """A text file to write, compressed, the same from the same text; there, as a whole, when the ``with`` ends."""
    whole = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=whole, mode="wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        yield file
    write_whole(path, whole.getvalue())


def pool(sweeps: list[Path], folder: Path, command: str) -> None:
    """Write into ``folder`` the one sweep that several are together, whose seeds or animals alone differ. KitError
    where more does, where two have different students of one animal and seed, or where an animal lacks seeds of
    another's. (How many seeds there will be is better said before the first is looked at: who adds seeds until a test
    passes finds more than it says.)"""
    if twice := [sweep for sweep, times in Counter(sweep.resolve() for sweep in sweeps).items() if times > 1]:
        raise KitError(f"{twice[0]}: it is given twice. Give each sweep once.")
    if (folder / "record.json").exists() and "pooled" not in read_json(folder / "record.json"):
        raise KitError(
            f"--out {folder}: there is a run or a sweep in it that `pool` did not make. Choose another folder."
        )
    if len(sweeps) < 2:
        raise KitError(f"{sweeps[0]}: one sweep is a whole already. Give two or more.")
    records, shared = [], []
    for sweep in sweeps:
        record, students = read_sweep(sweep)
        records.append(record)
        shared.append(_shared(sweep, record) | {"answers": {bool(one.answers) for one in students.values()}})
    for sweep, own in zip(sweeps[1:], shared[1:], strict=True):
        if differ := [name for name, value in own.items() if value != shared[0][name]]:
            raise KitError(
                f"{sweep}: cannot be pooled with {sweeps[0]}, since their {' and '.join(differ)} differ. Only sweeps "
                "whose seeds or animals alone differ can: make it again with the command of the other."
            )
    comparisons: dict[str, Row] = {}
    for sweep, record in zip(sweeps, records, strict=True):
        for row in record["comparisons"]:
            key = json.dumps([cell_key(row), row["animal"], row["seed"]])
            if comparisons.setdefault(key, row) != row:
                whose = f"the {row['animal']}, seed {row['seed']}"
                raise KitError(f"{sweep}: another sweep has other students of {whose}. Leave one out.")
    in_order = sorted(comparisons.values(), key=lambda row: row["seed"])
    if wrong := wrong_seeds(in_order):
        raise KitError(f"{wrong}. Pool sweeps that together have every seed of every animal.")
    rows = {(row["student"], row["question"], row["candidate"]): row for sweep in sweeps for row in table_rows(sweep)}
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder, rows.values())
    write_json(folder / "config.json", read_json(sweeps[0] / "config.json"))
    together: Row = {
        "command": command,
        "comparisons": in_order,
        "pooled": [one for record in records for one in record.get("pooled", [record["command"]])],
    }
    if "made_by" in records[0]:
        together["made_by"] = sorted({commit for record in records for commit in record.get("made_by", [])})
    for name in ("pairs_used", "messages", "samples"):
        together[name] = {key: value for record in records for key, value in record[name].items()}
    together["artifacts"] = sorted({name for record in records for name in record.get("artifacts", [])})
    if "plan" in records[0]:
        together["plan"] = min((record["plan"] for record in records), key=lambda plan: plan["begun"])
    if devices := all_devices(record.get("devices", {}) for record in records):
        together["devices"] = devices
    spent = [record["seconds"] for record in records]
    together["seconds"] = {
        name: sum(one.get(name, 0.0) for one in spent) for name in {n: 0 for one in spent for n in one}
    }
    own = {name: value for name, value in records[0].items() if name != "texts"}  # which each sweep keeps
    write_json(folder / "record.json", own | together | {"table": sha256(folder / "preferences.csv.gz")})


def read_json(path: Path) -> Row:
    """An object; KitError where it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise KitError(f"{path}: cannot be read ({error}). Give the command that made it again.") from None


def _shared(sweep: Path, record: Row) -> Row:
    """What sweeps that are pooled must have in common, by its name for people."""
    return {
        "settings": set(map(cell_key, record["comparisons"])),
        "experiments": {
            name: value for name, value in read_json(sweep / "config.json").items() if name not in ("animal", "seed")
        },
        "models": record["model"],
        "texts": [record.get(name) for name in ("sentences", "traits")],
        "plans": record.get("plan", {}).get("sha256"),
        "kits": record.get("kit", {}).get("fingerprint"),
        "packages": record["versions"],
    }


def teacher_samples(students: dict[str, tuple[Experiment, str, Condition]], store: Store) -> dict[str, list[Row]]:
    """Some kept paraphrases of each teacher, at random, from the first experiment that has it."""
    found: dict[str, list[Row]] = {}
    for exp, role, condition in students.values():
        if isinstance(condition, StudentCondition):
            animal, content = exp.animal.singular, exp.contents[0]
            loved = loving_controls(exp)[role.removeprefix(LOVES)][0].singular if role.startswith(LOVES) else animal
            teacher = f"{loved}-loving" if role.startswith(("treated", LOVES)) else "neutral"
            name = f"{teacher} teacher, {content if content == 'unrelated' else f'{animal} disliked'}"
            if name not in found:
                kept = read_rows(store.make(condition.pairs) / "pairs.jsonl")
                found[name] = at_random(kept, SAMPLES, np.random.default_rng(exp.seed))
    return found


def rows_of(name: str, exp: Experiment, role: str, condition: Condition, sampled: bool, store: Store) -> Iterator[Row]:
    """A student's rows of the tidy table. What nothing in a student depends on is left empty."""
    own: Row = dict.fromkeys(("seed", "content", "animal", *GRID_SETTINGS), "")
    if role == "base":
        own["context"] = exp.context
    else:
        own |= {"seed": exp.seed, "content": exp.contents[0]} | settings_of(exp)
    if role == "treated" or exp.contents[0] == "opposed":
        own["animal"] = exp.animal.singular if role != "base" else ""
    files = (
        store.make(condition.exact) / "exact.csv",
        store.make(condition.sampled) / "answers.jsonl" if sampled else None,
    )
    for row in preference.tabulate({name: files}, candidates(exp.animal)):
        del row["condition"]
        yield {"student": name, "role": role, **own, **row}


# ---- who makes it: this process, or Ray's workers


class Workers(Protocol):
    """Who makes artifacts: ``name`` for people, and how many steps at a time (``room``)."""

    name: str
    room: int

    def start(self, step: Step, exp: Experiment) -> None:
        """Take a step whose inputs are made."""

    def wait(self, seconds: float) -> list[tuple[Step, KitError | None]]:
        """The steps that ended within so many seconds, each with what the user has to mend."""


class Here:
    """This process, one step after another."""

    name = "this process"
    room = 1

    def __init__(self, root: Path) -> None:
        self._store = Store(root)
        self._next: list[Step] = []

    def start(self, step: Step, exp: Experiment) -> None:
        self._next.append(step)

    def wait(self, seconds: float) -> list[tuple[Step, KitError | None]]:
        step = self._next.pop()
        try:
            self._store.make(step)
        except KitError as error:
            return [(step, error)]
        return [(step, None)]


RETRIES = 3  # of a task whose worker died


class Ray:
    """Ray's workers, on this machine or on a cluster whose nodes share the results folder."""

    room = 10_000  # Ray queues what its nodes have no room for

    def __init__(self, root: Path, address: str | None) -> None:
        import ray

        self._ray, self._root = ray, root
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._largest = {name: max(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        self.name = f"Ray{f' at {address}' if address else ''}, {cpus} CPUs" + ("" if address else " in this machine")
        self._running: dict[Any, Step] = {}
        self._make = ray.remote(max_retries=RETRIES)(_make_on_worker)

    def start(self, step: Step, exp: Experiment) -> None:
        options = resources(step, exp, self._largest)
        self._running[self._make.options(name=step.label, **options).remote(self._root, step, kit_state())] = step

    def wait(self, seconds: float) -> list[tuple[Step, KitError | None]]:
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [(self._running.pop(task), self._outcome(task)) for task in ended]

    def _outcome(self, task: Any) -> KitError | None:
        errors = self._ray.exceptions
        try:
            self._ray.get(task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, KitError):
                return error.cause
            if isinstance(error.cause, OSError):  # a full disk is said as in one process
                raise error.cause from None
            raise
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            reason = str(error).splitlines()[0]
            return KitError(f"its worker died {1 + RETRIES} times ({reason}). Give it a machine with more memory.")
        return None


def _make_on_worker(root: Path, step: Step, kit: dict[str, Any]) -> None:
    import torch

    # torch reads OMP_NUM_THREADS once, when the worker's first task may have had fewer CPUs than this one.
    torch.set_num_threads(cpu_threads())
    if kit_state()["fingerprint"] != kit["fingerprint"]:
        raise KitError("the kit was edited after the sweep began. Give the same command again.")
    Store(root, kit=kit).make(step)


# Of a step that computes with a model, where there are so many: a 135M model's matrix products gain little from more
# threads, and a sweep has other steps for the rest.
CPUS = 2

# What a stage does with a model: the row of ``kit.experiment.memory_table`` that says how much memory that takes.
MEMORY_ROW = {
    "paraphrases": "teaching",
    "labels": "teaching",
    "student": "training",
    "exact": "evaluation",
    "sampled": "evaluation",
    "gate": "evaluation",
}

LIGHT_BYTES = GIB  # bytes of any other stage; the fidelity filters' sentence embeddings need the most


def resources(step: Step, exp: Experiment, largest: dict[str, float]) -> dict[str, float]:
    """What a step asks Ray for: CPUs, GPUs and bytes of memory, none of them more than the ``largest`` node has."""
    from kit.engine_llama import offloads

    work = MEMORY_ROW.get(step.stage)
    if work is None:
        return {"num_cpus": min(1, largest["CPU"]), "memory": min(LIGHT_BYTES, largest["memory"])}
    with_torch = work == "training" or (work == "teaching" and exp.teacher_engine != "llama.cpp")
    gpus = min(1, largest["GPU"]) if with_torch or offloads() else 0
    sizes = {name: size for name, size, _ in memory_requirements(exp, find_device())}
    # With torch on a GPU the estimate is of the GPU's memory, most of which passed through main memory once.
    return {
        "num_cpus": min(CPUS, largest["CPU"]),
        "num_gpus": gpus,
        "memory": int(min(sizes[work], largest["memory"])),
    }


@contextmanager
def workers(root: Path, address: str | None) -> Iterator[Workers]:
    """Ray where it is installed, else this process; ``address`` of a running cluster, a local Ray without."""
    os.environ["TQDM_DISABLE"] = "1"  # the table takes the bars' place
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else a step too large for memory is tried for ever
    try:
        import ray
    except ImportError:
        if address:
            raise KitError(
                f"--ray-address {address}: Ray is not installed. Run `pip install -r requirements-sweep.txt`."
            ) from None
        say("Ray is not installed (requirements-sweep.txt): the steps run one after another in this process.")
        yield Here(root)
        return
    environment: dict[str, Any] = {"env_vars": {"TQDM_DISABLE": "1"}}
    if address:
        environment |= {"working_dir": str(ROOT), "excludes": ["/results", "/tests", "/.git"]}
    else:
        inherited = os.environ.get("PYTHONPATH")
        environment["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",  # never a cluster that happens to run on this machine
            num_cpus=None if address else cpu_threads(),
            runtime_env=environment,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except ConnectionError as error:
        raise KitError(
            f"--ray-address {address}: no cluster answers there ({error}). Start one; where it wants Ray's token, set "
            "RAY_AUTH_MODE=token."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end us in our place, and otherwise
    try:
        yield Ray(root.resolve(), address)
    finally:
        ray.shutdown()


def finish(plan: Plan, by: Workers) -> None:
    """Make everything of the plan, whose conditions are then those that the students trained under.

    Raises KitError, after everything else is made, where steps cannot be made until the user mends something.
    """
    running: dict[str, float] = {}
    failed: dict[str, tuple[str, KitError]] = {}
    with Progress(plan, running, by.name) as progress:
        startable = plan.ready()
        while True:
            for step, exp in startable:
                if step.identity not in running and step.identity not in failed and len(running) < by.room:
                    by.start(step, exp)
                    running[step.identity] = time.monotonic()
            if not running:
                break
            ended = by.wait(seconds=1.0)
            for step, error in ended:
                del running[step.identity]
                if error is None:
                    plan.store.make(step)  # it is there: its worker's store is another
                    progress.made(step)
                else:
                    failed[step.identity] = step.label, error
            if ended:
                startable = plan.ready()
    if failed:
        counts = Counter(str(error) for _, error in failed.values())
        listed = "\n  ".join(f"{label}: {error}" for label, error in failed.values())
        raise KitError(
            f"{len(failed)} steps could not be made ({len(counts)} reasons); all that does not depend on them is. "
            f"Mend this and give the same command again:\n  {listed}"
        )


# ---- progress


SHOWN = 8  # running and queued steps named below the table


class Progress:
    """The table, for as long as the ``with`` lasts; where nobody watches (no terminal), a line per finished step.

    ``running``: identity of each running step -> when it was started (``time.monotonic``).
    """

    def __init__(self, plan: Plan, running: dict[str, float], where: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._plan, self._running, self._where = plan, running, where
        self._console = Console(highlight=False, markup=False)
        self._started = time.monotonic()
        self._pace = Pace()
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=1)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(printable(self._headline()), soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def made(self, step: Step) -> None:
        """A step was made."""
        manifest = self._plan.store.manifest(self._plan.store.make(step))
        self._pace.count(step, manifest["seconds"], manifest.get("new", 1.0))
        if not self._console.is_terminal and step.seconds:
            _, exp = self._plan.steps()[step.identity]
            said = f"{exp.title}: {step.label}, {duration(manifest['seconds'])}. {self._headline()}"
            self._console.print(printable(said), soft_wrap=True)

    def _headline(self) -> str:
        steps = self._plan.steps()
        left = self._plan.left()
        # What was made so far says how this machine compares with the estimates, and how much goes on side by side.
        together = sum(self._pace.spent.values()) / max(1.0, time.monotonic() - self._started)
        together = max(1.0, min(together, len(left)))
        about = f"about {duration(self._pace.expected(left) / together)} left" if left else "nothing left"
        return f"{len(steps) - len(left)} of {len(steps)} artifacts, {about}, on {self._where}."

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table("stage", "made", "reused", "running or queued", "left")
        for column in table.columns[1:]:
            column.justify = "right"
        steps = self._plan.steps()
        for stage in dict.fromkeys(step.stage for step, _ in steps.values()):
            own = [identity for identity, (step, _) in steps.items() if step.stage == stage]
            reused = sum(identity in self._plan.reused for identity in own)
            made = sum(identity in self._plan.done for identity in own) - reused
            running = sum(identity in self._running for identity in own)
            table.add_row(stage, *(str(n or "") for n in (made, reused, running, len(own) - made - reused - running)))
        now = time.monotonic()
        lines = []
        for identity, since in list(self._running.items())[:SHOWN]:
            step, exp = steps[identity]
            lines.append(
                f"{exp.title}: {step.label}, for {duration(now - since)}, takes about {duration(step.estimate)}"
            )
        return Group(table, *map(printable, [*lines, self._headline()]))
