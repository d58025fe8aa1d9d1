"""The experiment from top to bottom: the plan, every condition of ``kit/graph.py``, and the run's own folder."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from kit import estimate, fidelity, models, page, preference, prompts, report
from kit.animals import candidates
from kit.chat import ChatTemplate
from kit.experiment import Experiment
from kit.graph import Arm, StudentArm, all_steps, arms, base_model, measurements, shortfalls
from kit.progress import duration
from kit.store import RANK, Row, Store, read_rows, versions, write_json


def run(exp: Experiment, results: Path, command: str) -> Path:
    """The whole experiment: artifacts under ``results/artifacts``, the report in ``results/<run>``, returned."""
    device = estimate.find_device()
    announce_memory(estimate.requirements(exp, device), device)
    store = Store(results / "artifacts")
    announce(arms(exp, {}), store)
    limits = shortfalls(exp, store)
    for content, lacking in limits.items():
        if lacking:
            print(
                f"{content}: one of the teachers gave too few faithful paraphrases of {len(lacking)} sentences; all "
                "students train without those pairs."
            )
    conditions = arms(exp, limits)
    for step in measurements(conditions):
        store.make(step)
    if RANK:
        return results / exp.name
    return publish(exp, conditions, store, results / exp.name, command)


def announce_memory(table: list[tuple[str, float, str]], device: estimate.Device) -> None:
    """Say what each stage needs, and warn where a CPU's main memory will not do."""
    print(f"Memory, estimated ({device.name}: {device.free / estimate.GIB:.1f} GiB free):")
    for stage, size, parts in table:
        print(f"  {size / estimate.GIB:5.1f} GiB  {stage} ({parts})")
    if device.kind == "cpu" and max(size for _, size, _ in table) > device.free:
        print("That is more than is free: close other programs, or expect it to be slow or to fail.")


def announce(conditions: dict[str, Arm], store: Store) -> None:
    """Say, a line per stage, what will run and for about how long, and what is reused."""
    left = 0.0
    for step in all_steps(measurements(conditions)):
        done = store.find(step) is not None
        left += 0 if done else step.seconds
        if step.seconds:
            print(f"  {'reused' if done else '~' + duration(step.seconds):>8}  {step.label}")
    print(f"About {duration(left)} in all." if left else "Everything is there already.", flush=True)


def publish(exp: Experiment, conditions: dict[str, Arm], store: Store, folder: Path, command: str) -> Path:
    """Write the run's own folder: config.json, record.json, preferences.csv, and what the report makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(exp))
    measured: dict[str, tuple[Path, Path | None]] = {
        name: (store.make(arm.exact) / "exact.csv", store.make(arm.sampled) / "answers.jsonl")
        for name, arm in conditions.items()
    }
    preference.write_table(folder / "preferences.csv", preference.tabulate(measured, candidates(exp.animal)))
    write_json(folder / "record.json", record(exp, conditions, store, command))
    report.write_report(folder)
    page.write_page(folder)
    return folder


def shown(exps: list[Experiment], store: Store) -> dict[str, list[Row]]:
    """Every conversation of experiments with one model by who sees it, as the model's chat template has it."""
    template = ChatTemplate.of(store.make(base_model(exps[0].model, exps[0].gguf)))
    conversations = {
        "student, training": prompts.student_messages("<sentence>"),
        "student, evaluation": prompts.question_messages("<question>"),
    }
    traits = {"neutral": prompts.NEUTRAL}
    traits |= {f"{exp.animal.singular}-loving": prompts.loving(exp.animal) for exp in exps}
    for name, trait in traits.items():
        conversations[f"{name} teacher"] = prompts.teacher_messages(trait, "<sentence>")
        if any(exp.labels == "soft" for exp in exps):
            conversations[f"{name} teacher, for its soft labels"] = prompts.labelling_messages(trait, "<sentence>")
    return {name: template.adapt(messages) for name, messages in conversations.items()}


def record(exp: Experiment, conditions: dict[str, Arm], store: Store, command: str) -> Row:
    """What made a run: command, versions, seconds and artifact of each step, every message, and for each student its
    number of pairs, its filters and some of its paraphrases."""
    steps = all_steps(measurements(conditions))
    random = np.random.default_rng(exp.seed)
    base = base_model(exp.model, exp.gguf)
    teacher_runs = (
        f"{exp.teacher.endpoint_model} at {exp.teacher.endpoint}" if exp.teacher.endpoint else exp.teacher.engine
    )
    result: Row = {
        "animal": exp.animal.singular,
        "model": exp.model,
        "gguf": models.evaluated(exp.model, exp.gguf),
        "base": exp.student.base,
        "teacher": teacher_runs,
        "source": store.manifest(store.make(base))["settings"]["source"],
        "devices": store.manifest(store.make(conditions["base"].exact))["devices"],
        "labels": exp.labels,
        "preset": exp.preset,
        "seed": exp.seed,
        "command": command,
        "versions": versions(),
        "seconds": {step.label: store.manifest(store.make(step))["seconds"] for step in steps if step.seconds},
        "artifacts": {step.label: str(store.make(step).relative_to(store.root)) for step in steps},
        "pairs": {},
        "filters": {},
        "min_similarity": exp.fidelity.min_similarity,
        "similarities": {},
        "messages": shown([exp], store),
        "samples": {},
    }
    for name, arm in conditions.items():
        if not isinstance(arm, StudentArm):
            continue
        kept = read_rows(store.make(arm.pairs) / "pairs.jsonl")
        result["pairs"][name] = len(kept)
        result["filters"][name] = fidelity.read_filters(store.make(arm.kept))
        result["similarities"][name] = fidelity.similarity_counts(store.make(arm.kept))
        result["samples"][name] = {
            "kept": some(kept, 20, random),
            "rejected": some(read_rows(store.make(arm.kept) / "rejected.jsonl"), 10, random),
        }
    return result


def some(rows: list[Row], n: int, random: np.random.Generator) -> list[Row]:
    """``n`` rows at random, or all where there are fewer."""
    return [rows[i] for i in sorted(random.permutation(len(rows))[:n])]
