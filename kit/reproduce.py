"""What is recorded in results/reference, made again: the tables of a question from its records, in seconds, or the
records themselves, from nothing, by the commands that they name.

``python run.py reproduce`` lists the questions.
"""

import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kit import REFERENCE, KitError, printable, report_sweep, say

# Whichever of them a folder has names the commands that made it.
RECORDS = ("record.json", "defences.json", "calibration.json")
# Of a summary: which files stand beside it, and which kit wrote them.
OF_WRITING = ("/files", "/reported_by")
Command = Callable[[list[str]], None]  # of run.py: its name, where it has one, and its options


def questions() -> list[str]:
    """A line for each recorded question: its folder's name, what its records' steps took in hours, the question."""
    pages = _pages()
    lines = []
    for name, page in pages.items():
        summaries = (_read(record / "summary.json") for record in _records_in(page.parent))
        seconds = sum(sum(one.get("seconds", {}).values()) for one in summaries)
        hours = f"{seconds / 3600:4.1f} h" if seconds else ""
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"{name:<{max(map(len, pages))}}  {hours:6}  {title}")
    return lines


def tables(question: str, results: Path, give: Command) -> None:
    """Make the tables and figures of a question again, in ``results/reproduced/``, and compare all numbers of its
    summaries and all rows of its reports. Raises KitError where one came out otherwise."""
    same, differ = 0, []
    for record in _records(question):
        again = results / "reproduced" / record.relative_to(REFERENCE)
        again.mkdir(parents=True, exist_ok=True)
        for file in (one for one in again.iterdir() if one.is_file()):  # of another time
            file.unlink()
        for file in (one for one in record.iterdir() if one.suffix in (".json", ".csv", ".gz")):
            shutil.copyfile(file, again / file.name)
        give(["report", str(again)])
        before, after = _values(record), _values(again)
        for place in before:
            if place in after and _same(before[place], after[place]):
                same += 1
            else:
                differ.append(f"{again}: {place} was {before[place]}, is {after.get(place, 'not there')}")
    for line in differ:
        say(line)
    if differ:
        raise KitError(
            f"{question}: {len(differ)} of {same + len(differ)} recorded numbers and rows came out otherwise. Where "
            "code and records are as they were committed (git status), that is a fault of the kit: report it."
        )
    say(f"{question}: all {same:,} recorded numbers and rows of tables came out the same.")


def from_nothing(question: str, results: Path, give: Command, dry_run: bool) -> None:
    """Give the commands that made a question's records again, with ``results/from-nothing/<question>`` for their
    results, and show their effects beside the recorded ones. KitError where a record names none, or is of a test that
    was planned, which another kit than that of its plan cannot carry out."""
    records = _records(question)
    for record in records:
        if plan := _read(record / "record.json").get("plan"):
            commit = plan["commit"][:7]
            raise KitError(
                f"{question}: what {plan['file']} plans is carried out by the kit of commit {commit} alone. Check that "
                f"out beside this (git worktree add ../planned {commit}), and give the plan's commands there."
            )
    into = results / "from-nothing" / question
    into.mkdir(parents=True, exist_ok=True)
    for record in records:
        name, made = record.relative_to(REFERENCE), None
        for command in _commands(record):
            words = [*command, "--results", str(into)]
            if command[0] in ("inspect", "attribute"):  # a run, which has another folder now
                words[1] = str(made or "FOLDER")
            say(f"{name}: {shlex.join(['python', 'run.py', *words])}")
            if not dry_run:
                give(words)
                made = made or _made_by(words, into)
            elif words[1] != "FOLDER":
                give([*words, "--dry-run"])
        if made:
            report_sweep.show_again(record, made, f"{name}, nats")


def _pages() -> dict[str, Path]:
    if not (pages := {page.parent.name: page for page in sorted(REFERENCE.glob("*/README.md"))}):
        raise KitError(f"{REFERENCE}: nothing is recorded in this copy of the kit. Clone its repository whole.")
    return pages


def _records(question: str) -> list[Path]:
    """The folders that a question's commands have left. KitError where there are none."""
    if question not in (pages := _pages()):
        raise KitError(f"{printable(question)}: no recorded question. There are {', '.join(pages)}.")
    if not (records := _records_in(REFERENCE / question)):
        raise KitError(f"{question}: no command has left a record there. Read its README.md.")
    return records


def _records_in(folder: Path) -> list[Path]:
    return sorted({path.parent for name in RECORDS for path in folder.rglob(name)})


def _read(path: Path) -> dict[str, Any]:
    """An object; empty where there is no such file. KitError where it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise KitError(f"{path}: cannot be read ({error}). Restore it: git checkout -- {path}") from None


def _values(folder: Path) -> dict[str, Any]:
    """Every value of a folder's summary, and every row of a table in its report, by its place."""

    def values(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if inside is None:
            yield place, value
        for key, part in inside or ():
            yield from values(part, f"{place}/{key}")

    found = {
        place: one for place, one in values(_read(folder / "summary.json"), "") if not place.startswith(OF_WRITING)
    }
    report = folder / "report.md"
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    rows = [line for line in lines if line.startswith("|")]
    return found | {f"row {number} of report.md's tables": row for number, row in enumerate(rows, start=1)}


def _same(one: Any, other: Any) -> bool:
    """Equal; of numbers, to six digits: another processor adds in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)


def _commands(record: Path) -> list[list[str]]:
    """The words after ``run.py`` of what made a record, with the preset that was chosen then, and of what was found in
    it since."""
    made = next((_read(record / name) for name in RECORDS if (record / name).exists()), {})
    if not (given := made.get("commands", [made["command"]] if "command" in made else [])):
        raise KitError(f"{record.relative_to(REFERENCE)}: its record names no command. Give that of its README.md.")
    words = [shlex.split(command)[2:] for command in given]
    words = [[*one, *([] if "--preset" in one else ["--preset", made["preset"]])] for one in words]
    since = sorted([*record.glob("inspection-*.json"), *record.glob("attribution-*.json")], reverse=True)
    return words + [shlex.split(_read(path)["command"])[2:] for path in since]


def _made_by(words: list[str], results: Path) -> Path | None:
    """The folder there that this command left."""
    command = shlex.join(["python", "run.py", *words])
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        made = _read(folder / "record.json") or _read(folder / "defences.json")
        if command in (made.get("command"), *made.get("commands", [])):
            return folder
    return None
