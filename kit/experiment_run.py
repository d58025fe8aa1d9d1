"""One experiment, made: the plan, every condition of ``kit/experiment_conditions.py``, and the run's own folder."""

from dataclasses import asdict
from pathlib import Path

from kit import preference
from kit.animals import candidates
from kit.experiment import Experiment, announce_memory, memory_requirements
from kit.experiment_conditions import Condition, all_conditions, all_steps, measurements, shortfalls
from kit.experiment_folder import run_record
from kit.memory import find_device
from kit.store import RANK, Store, duration, write_json


def run(exp: Experiment, results: Path, command: str) -> Path:
    """The whole experiment: artifacts under ``results/artifacts``, what they show in ``results/<run>``, returned."""
    device = find_device()
    announce_memory(memory_requirements(exp, device), device)
    store = Store(results / "artifacts")
    announce(all_conditions(exp, {}), store)
    limits = shortfalls(exp, store)
    for content, lacking in limits.items():
        if lacking:
            print(
                f"{content}: one of the teachers gave too few faithful paraphrases of {len(lacking)} sentences; all "
                "students train without those pairs."
            )
    conditions = all_conditions(exp, limits)
    for step in measurements(conditions):
        store.make(step)
    if RANK:
        return results / exp.name
    return publish(exp, conditions, store, results / exp.name, command)


def announce(conditions: dict[str, Condition], store: Store) -> None:
    """Say, a line per stage, what will run and for about how long, and what is reused."""
    left = 0.0
    for step in all_steps(measurements(conditions)):
        done = store.find(step) is not None
        left += 0 if done else step.seconds
        if step.seconds:
            print(f"  {'reused' if done else '~' + duration(step.seconds):>8}  {step.label}")
    print(f"About {duration(left)} in all." if left else "Everything is there already.", flush=True)


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
    write_json(folder / "record.json", run_record(exp, conditions, store, command))
    return folder
