"""One run in the background, started from the classroom page: it goes on when the page, or its server, is closed.

What runs is the command line itself; what is known of it is read from disk, so that whoever asks later finds it.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.animals import find_animal
from kit.errors import KitError
from kit.experiment import Experiment, experiment
from kit.graph import measurements
from kit.schedule import ROOT, Plan
from kit.store import Store, write_json

FILE, OUTPUT = "background.json", "background.txt"
CONTENT = "unrelated"
TAIL = 2000  # characters of what the run printed
# Seconds by which a process may seem to have begun at another time: a clock that is set moves every beginning.
CLOCK = 60.0


@dataclass(frozen=True)
class Stage:
    """A step of the run, and whether it is ``done``, ``running`` or ``waiting``."""

    label: str
    state: str


@dataclass(frozen=True)
class Status:
    """The run that was started last: whether it still goes on (``alive``) or ended with a report (``finished``), its
    folder and stages, the seconds that what is ``left`` should take, the end of what it printed, and of that the
    ``latest`` line, where a stage's progress bar is."""

    animal: str
    preset: str
    title: str
    folder: Path
    alive: bool
    finished: bool
    stages: list[Stage]
    left: float
    output: str
    latest: str


def start(animal: str, preset: str, results: Path) -> None:
    """Start a run on unrelated sentences. KitError while another one goes on, and for values that cannot be used."""
    found = _read(results)
    if found and _alive(found):
        raise KitError("a run is going on. Wait until it ends, or stop it.")
    exp = _experiment(animal, preset)
    command = ["run.py", "--animal", animal, "--content", CONTENT, "--preset", preset]
    results.mkdir(parents=True, exist_ok=True)
    _report(results, exp).unlink(missing_ok=True)  # the end of this run makes it again
    with (results / OUTPUT).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--results", str(results.resolve())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = {"pid": process.pid, "started": _born(process.pid), "animal": animal, "preset": preset}
    write_json(results / f"{FILE}.new", started)
    os.replace(results / f"{FILE}.new", results / FILE)


def stop(results: Path) -> None:
    """End the run, where one goes on; started again it goes on where it stopped."""
    import psutil

    found = _read(results)
    if found and _alive(found):
        process = psutil.Process(found["pid"])
        ended = [*process.children(recursive=True), process]
        for one in ended:
            one.terminate()
        psutil.wait_procs(ended, timeout=10)


def status(results: Path) -> Status | None:
    """What is known of the run started last; None where none was."""
    found = _read(results)
    if found is None:
        return None
    exp, alive = _experiment(found["animal"], found["preset"]), _alive(found)
    plan = Plan([exp], measurements, Store(results / "artifacts"))
    begun = {step.identity for step, _ in plan.ready()[:1]} if alive else set()
    steps = {key: step for key, (step, _) in plan.steps().items() if step.seconds}
    stages = [
        Stage(step.label, "done" if key in plan.done else "running" if key in begun else "waiting")
        for key, step in steps.items()
    ]
    left = sum(step.seconds for key, step in steps.items() if key not in plan.done)
    report = _report(results, exp)
    finished = not alive and report.exists()
    output = (results / OUTPUT).read_text(encoding="utf-8", errors="replace")[-TAIL:]
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    return Status(
        animal=found["animal"],
        preset=found["preset"],
        title=f"{exp.title}, {exp.preset} preset",
        folder=report.parent,
        alive=alive,
        finished=finished,
        stages=stages,
        left=left,
        output=output,
        latest=lines[-1] if lines else "",
    )


def _experiment(animal: str, preset: str) -> Experiment:
    return experiment(find_animal(animal), preset, contents=(CONTENT,))


def _report(results: Path, exp: Experiment) -> Path:
    return results / exp.name / "report.html"


def _read(results: Path) -> dict[str, Any] | None:
    """What was started last; None where nothing was, or what is written of it cannot be read."""
    try:
        return json.loads((results / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _alive(found: dict[str, Any]) -> bool:
    """Whether the process is still that run, and no later one that was given its number."""
    born, started = _born(found["pid"]), found["started"]
    return born is not None and started is not None and abs(born - started) < CLOCK


def _born(pid: int) -> float | None:
    """When the process began; None where it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
