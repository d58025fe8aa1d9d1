"""What is recorded in results/reference, made again: the tables of a question from its records, in seconds, or the
records themselves, from nothing, by the commands that they name.

``python run.py reproduce`` lists the questions.
"""

import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit import REFERENCE, KitError, printable, report_sweep, say
from kit.experiment import Experiment, experiment, read_experiment

# Whichever of them a folder has names the commands that made it.
RECORDS = ("record.json", "defences.json", "calibration.json")
Give = Callable[[list[str]], None]  # does what the words after run.py say


def questions() -> list[str]:
    """A line for each recorded question: its folder's name, what its records' steps took in hours, the question."""
    pages = _pages()
    lines = []
    for name, page in pages.items():
        seconds = 0.0
        for record in _records_in(page.parent):
            with _damaged(record / "summary.json"):
                seconds += sum(_read(record / "summary.json").get("seconds", {}).values())
        with _damaged(page):
            title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        hours = f"{seconds / 3600:4.1f} h" if seconds else ""
        lines.append(f"{name:<{max(map(len, pages))}}  {hours:6}  {title}")
    return lines


def tables(question: str, results: Path, give: Give) -> None:
    """Make the tables and figures of a question again, in ``results/reproduced/``, and compare all numbers of its
    summaries and all rows of its reports' tables. Raises KitError where one came out otherwise, or none is recorded."""
    numbers, rows, differ = 0, 0, []
    for record in _records(question):
        again = results / "reproduced" / record.relative_to(REFERENCE)
        again.mkdir(parents=True, exist_ok=True)
        for file in (one for one in again.iterdir() if one.is_file()):  # of another time
            file.unlink()
        for file in (one for one in record.iterdir() if one.suffix in (".json", ".csv", ".gz")):
            if file.name != "summary.json":  # which is made again
                shutil.copyfile(file, again / file.name)
        give(["report", str(again)])
        with _damaged(record / "summary.json"):
            of_summary, of_report = (_numbers(record), _numbers(again)), (_rows(record), _rows(again))
        if not of_summary[0] and not of_report[0]:
            raise KitError(
                f"{record}: it has neither summary.json nor report.md. Restore them: git checkout -- {record}"
            )
        numbers, rows = numbers + len(of_summary[0]), rows + len(of_report[0])
        for before, after in (of for of in (of_summary, of_report) if of[0]):
            differ += [
                f"{again}: {place} was {before.get(place)}, is {after.get(place)}"
                for place in {**before, **after}
                if not _same(before.get(place), after.get(place))
            ]
    for line in differ:
        say(line)
    if differ:
        raise KitError(
            f"{question}: {len(differ)} of {numbers:,} numbers and {rows:,} rows came out otherwise. Where code and "
            "records are as they were committed (git status), that is a fault of the kit: report it."
        )
    say(f"{question}: {numbers:,} recorded numbers, computed again, and {rows:,} rows of tables came out the same.")


def from_nothing(question: str, results: Path, give: Give, dry_run: bool) -> None:
    """Give the commands that made a question's records again, with ``results/from-nothing/<question>`` for their
    results, and show their effects beside the recorded ones. What a planned test left is passed over: no other kit than
    that of its plan can carry it out. KitError where nothing else is there, or a record names no command."""
    given = {}
    for record in _records(question):
        with _damaged(record):
            if plan := _read(record / "record.json").get("plan"):
                say(
                    f"{record.relative_to(REFERENCE)}: passed over. What {plan['file']} plans the kit of its commit "
                    f"alone carries out: git worktree add ../planned {plan['commit'][:7]}, and there its commands."
                )
            else:
                given[record] = _commands(record)
    if not given:
        raise KitError(f"{question}: nothing else is there to be made again.")
    into = results / "from-nothing" / question
    for record, commands in given.items():
        name, made = record.relative_to(REFERENCE), None
        for command in commands:
            words = [*command, "--results", str(into)]
            since = command[0] in ("inspect", "attribute")  # of a run, which has another folder now
            if since:
                words[1] = str(made or "<the run's folder>")
            say(f"{name}: {shlex.join(['python', 'run.py', *words])}")
            if dry_run:
                if not since:
                    give([*words, "--dry-run"])
                continue
            give(words)
            if not since:
                made = _made_by(words, into)
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


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Of what stands in a record: whatever is not as a command leaves it is a KitError."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise KitError(f"{path}: damaged ({error!r}). Restore it: git checkout -- {path}") from None


def _read(path: Path) -> dict[str, Any]:
    """An object; empty where there is no such file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict):
        raise TypeError("no object")
    return found


def _numbers(folder: Path) -> dict[str, float]:
    """What a folder's summary counts and computes, by its place: all numbers but how long steps took."""

    def numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in inside:
            yield from numbers(part, f"{place}/{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield place, value

    found = _read(folder / "summary.json").items()
    return {place: one for name, part in found if name != "seconds" for place, one in numbers(part, name)}


def _rows(folder: Path) -> dict[str, str]:
    """The rows of a report's tables, by their number."""
    report = folder / "report.md"
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    rows = [line for line in lines if line.startswith("|")]
    return {f"row {number} of the tables": row for number, row in enumerate(rows, start=1)}


def _same(one: Any, other: Any) -> bool:
    """Equal; of numbers, to six digits: another processor adds in another order."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)


def _commands(record: Path) -> list[list[str]]:
    """The words after ``run.py`` of what made a record, with the preset that was chosen then and what defaults were
    others then, and of what was found in it since."""
    made = next(_read(record / name) for name in RECORDS if (record / name).exists())
    if not (given := made.get("commands", [made["command"]] if "command" in made else [])):
        raise KitError(f"{record.relative_to(REFERENCE)}: its record names no command. Give that of its README.md.")
    words = [shlex.split(command)[2:] for command in given]
    words = [[*one, *([] if "--preset" in one else ["--preset", made["preset"]])] for one in words]
    if (record / "config.json").exists():
        exp = read_experiment(record / "config.json")
        words = [[*one, *_other_defaults(exp, one)] for one in words]
    since = [path for what in ("inspection", "attribution") for path in sorted(record.glob(f"{what}-*.json"))]
    return words + [shlex.split(_read(path)["command"])[2:] for path in since]


def _other_defaults(exp: Experiment, words: list[str]) -> list[str]:
    """The options that give a command what it had by default when it made this experiment, and today has not."""
    today = experiment(exp.animal, exp.preset, model=exp.model)
    options: list[str] = []
    for name, value, default in (
        ("labels", exp.labels, today.labels),
        ("place", exp.teacher.place, today.teacher.place),
        ("pairs", exp.pairs, today.pairs),
        ("rank", exp.student.rank, today.student.rank),
        ("learning_rate", exp.student.learning_rate, today.student.learning_rate),
        ("epochs", exp.student.epochs, today.student.epochs),
    ):
        option = f"--{name.replace('_', '-')}"
        in_grid = any(word.partition("=")[0] in (name, option[2:]) for word in words if "=" in word)
        if value != default and option not in words and not in_grid:
            options += [option, str(value)]
    return options


def _made_by(words: list[str], results: Path) -> Path:
    """The folder there that this command left."""
    command = shlex.join(["python", "run.py", *words])
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        made = _read(folder / "record.json") or _read(folder / "defences.json")
        if command in (made.get("command"), *made.get("commands", [])):
            return folder
    raise AssertionError(f"{command} left nothing in {results}")
