"""A terminal chat with base, control and treated student side by side.

python run.py ask results/<run>
python run.py ask results/<run> --question "What is your favorite animal?"
"""

import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kit import stats, tables
from kit.errors import KitError
from kit.finished import Finished
from kit.preference import load_questions
from kit.prompts import Message
from kit.students import Students

HELP = "/pref: exact preferences now   /new: forget the conversation   /seed N: other random numbers   /quit"
COLOURS = {"base": "bright_black", "control": "cyan", "treated": "bright_blue"}
SHOWN = 5  # likeliest animals of a student in the table of preferences


def ask(run: Path, content: str, question: str | None, seed: int) -> None:
    """Chat until /quit or the end of the input; with ``question``, answer that and stop.

    Raises KitError where the run's students are gone, and for a negative seed.
    """
    from rich.console import Console

    if seed < 0:
        raise KitError(f"--seed {seed}: it must not be negative. Take 0 or more.")
    console = Console(highlight=False)
    with Students.of(Finished(run), content) as students:
        conversations: dict[str, list[Message]] = {name: [] for name in students.names}
        if question is not None:
            _answer(console, students, conversations, question, seed)
            return
        console.print(
            f"Base, control and treated student ({content}, {students.animal.singular}). {HELP}", markup=False
        )
        while True:
            try:
                said = console.input("[bold]you:[/bold] ").strip()
            except EOFError:
                return
            command, _, argument = said.partition(" ")
            if command == "/quit":
                return
            if command == "/pref":
                _preferences(console, students)
            elif command == "/new":
                conversations = {name: [] for name in students.names}
            elif command == "/seed" and argument.isdecimal():
                seed = int(argument)
            elif said.startswith("/"):
                console.print(HELP, markup=False)
            elif said:
                try:
                    _answer(console, students, conversations, said, seed)
                except KitError as error:
                    console.print(str(error), markup=False)


def _answer(
    console: Any, students: Students, conversations: dict[str, list[Message]], question: str, seed: int
) -> None:
    """Stream the answers and add them to the conversations."""
    from rich.live import Live

    asked = {name: [*messages, {"role": "user", "content": question}] for name, messages in conversations.items()}
    texts = dict.fromkeys(students.names, "")
    with Live(_columns(texts), console=console, refresh_per_second=8) as live:
        for texts in students.answer(asked, seed):
            live.update(_columns(texts))
    for name, text in texts.items():
        conversations[name] = [*asked[name], {"role": "assistant", "content": text}]


def _columns(texts: dict[str, str]) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(expand=True)
    for _ in texts:
        table.add_column(ratio=1)
    table.add_row(
        *(Panel(Text(printable(text)), title=name, border_style=COLOURS[name]) for name, text in texts.items())
    )
    return table


def printable(text: str) -> str:
    """``text`` without the control characters by which it could steer the terminal."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")


def _preferences(console: Any, students: Students) -> None:
    """Measure and print every student's preference for the run's animal and for what it prefers most."""
    from rich.progress import track
    from rich.table import Table

    animal, names = students.animal.singular, [one.singular for one in students.animals]
    measured: dict[str, np.ndarray] = {}
    asked = len(students.names) * len(load_questions())
    for name, found in track(students.preferences(), "measuring", asked, console=console, transient=True):
        measured[name] = found
    means = {name: dict(zip(names, found.mean(axis=0), strict=True)) for name, found in measured.items()}
    likeliest = {name for found in means.values() for name in sorted(found, key=lambda one: -found[one])[:SHOWN]}
    rows = sorted({animal, *likeliest}, key=lambda one: (one != animal, -means["treated"][one]))
    table = Table("", *measured, title="exact preference, %, with 95% interval over the questions")
    for row in rows:
        rates = [asdict(stats.rate(found[:, names.index(row)])) for found in measured.values()]
        style = "bold" if row == animal else ""
        table.add_row(row, *map(tables.percent, rates), style=style)
    console.print(table)
