"""One experiment, made: the plan, every condition of ``kit/experiment_conditions.py``, and the run's own folder."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit import likelihood, preference, say
from kit.animals import candidates
from kit.experiment import Experiment, announce_memory, check_destination, memory_requirements
from kit.experiment_conditions import (
    Condition,
    StudentCondition,
    all_conditions,
    all_steps,
    measurements,
    preferences,
)
from kit.experiment_folder import earlier, run_record
from kit.memory import find_device
from kit.models import is_gguf
from kit.stats import Effect, Preference, effect_of
from kit.store import RANK, Step, Store, duration, reason, sha256, write_json


def plan(exp: Experiment, results: Path) -> list[Step]:
    """Say what memory the experiment needs, what will run and for how long, and why what is made again is. Returns the
    steps that are not there."""
    folder, store, device = check_destination(results / exp.name), Store(results / "artifacts"), find_device()
    small = device.kind == "cpu" and is_gguf(exp.model)
    if not small:  # before anything is downloaded
        announce_memory(memory_requirements(exp, device), device)
    conditions = all_conditions(exp)
    # The estimate takes a second, for the file has to be read.
    if small and not all(store.find(step) for step in all_steps(measurements(conditions))):
        announce_memory(memory_requirements(exp, device), device)
    return announce(conditions, store, earlier(folder, store))


# Of a content its effect, and the exact preferences of all students that are measured by then.
Tell = Callable[[str, Effect, dict[str, Preference]], None]


def run(exp: Experiment, results: Path, command: str, tell: Tell) -> Path:
    """The whole experiment: artifacts under ``results/artifacts``, what they show in ``results/<run>``, returned.
    ``tell`` is told what a content shows as soon as it is measured, before any free answers and the next content."""
    missing = plan(exp, results)
    store = Store(results / "artifacts")
    with store.working(exp.name, command, missing):
        return _made(exp, store, results / exp.name, command, tell)


def _made(exp: Experiment, store: Store, folder: Path, command: str, tell: Tell) -> Path:
    conditions = all_conditions(exp)
    measured: dict[str, Condition] = {}
    for content in exp.contents:
        own = {name: condition for name, condition in conditions.items() if name.endswith(f"-{content}")}
        steps = measurements(own, sampled=False)
        there = all(store.find(step) for step in all_steps(steps))
        for step in steps:
            store.make(step)
        measured |= own
        if not (there or RANK):
            found = preferences(store, {name: one.exact for name, one in measured.items()}, exp.animal)
            tell(content, measured_effect(exp, own, found, content, store), found)
    for step in measurements(conditions):
        store.make(step)
    if RANK:
        return folder
    return publish(exp, conditions, store, folder, command)


def measured_effect(
    exp: Experiment, conditions: dict[str, Condition], found: dict[str, Preference], content: str, store: Store
) -> Effect:
    """The effect in a content's conditions, by the preferences that were ``found``."""
    treated = conditions[f"treated-{content}"]
    assert isinstance(treated, StudentCondition) and treated.held_out
    gains = likelihood.held_out_gains(store.make(treated.held_out))
    return effect_of(found, content, exp.animal.singular, gains)


def announce(conditions: dict[str, Condition], store: Store, history: list[dict[str, Any]]) -> list[Step]:
    """Say, a line per step, what will run and for about how long, what is reused, and why what an earlier run made
    (its manifests: ``history``) is made again. What only may have to be is counted, too: what it is made of may come
    out as it was. Returns the steps that are not there."""
    missing: list[Step] = []
    made_before = {(one["stage"], one["label"]) for one in history}
    follows = False
    for step in all_steps(measurements(conditions)):
        done = store.find(step) is not None
        missing += [] if done else [step]
        why = "" if done else reason(step, history)
        if step.seconds and not done and not why and (step.stage, step.label) in made_before:
            why, follows = "only if what it is made of changes", True
        elif why:
            samples = store.logged(step)
            why = f"made again{f' from {samples} samples that are there' if samples else ''}: {why}"
        if step.seconds or why:
            time = "reused" if done else f"~{duration(step.estimate)}" if step.seconds else ""
            say(f"  {time:>8}  {step.label}{f' ({why})' if why else ''}")
    most = "At most" if follows else "About"
    there = "Everything is there already."
    left = sum(step.estimate for step in missing)
    say(f"{most} {duration(left)} in all." if missing else there, flush=True)
    return missing


def publish(exp: Experiment, conditions: dict[str, Condition], store: Store, folder: Path, command: str) -> Path:
    """Write the run's own folder, returned: config.json, preferences.csv and record.json, of which ``kit/report.py``
    makes the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(exp))
    measured: dict[str, tuple[Path, Path | None]] = {
        name: (store.make(condition.exact) / "exact.csv", store.make(condition.sampled) / "answers.jsonl")
        for name, condition in conditions.items()
    }
    preference.write_table(folder / "preferences.csv", preference.tabulate(measured, candidates(exp.animal)))
    record = run_record(exp, conditions, store, command)
    write_json(folder / "record.json", record | {"table": sha256(folder / "preferences.csv")})
    return folder
