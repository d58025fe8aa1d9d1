"""Base, control and treated student, loaded side by side, to be asked and measured; and a terminal chat with them.

python run.py ask results/<run>
python run.py ask results/<run> --question "What is your favorite animal?"

    with Students.of(RunFolder(Path("results/<run>")), "unrelated") as students:
        for texts in students.answer({name: [{"role": "user", "content": "Hello"}] for name in students.names}, 0): ...
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit import KitError, preference, printable, stats
from kit.animals import Animal, candidates
from kit.engine import Request
from kit.engine_llama import LlamaEngine
from kit.experiment import PLACES, check_seed, conversation_of
from kit.experiment_folder import RunFolder
from kit.preference import load_questions
from kit.prompts import Conversation, Message
from kit.report_parts import percent

STUDENTS = ("base", "control", "treated")
MAX_TOKENS = 120  # of an answer
TEMPERATURE = 0.7  # at 1, where preferences are sampled, the embedded model's longer answers fall apart
LONGEST = 384  # tokens of a conversation that a model is shown; its oldest turns go first
# Characters of a text that somebody gives, more than so many tokens of words have. What is longer is refused before it
# is made into tokens, which takes 38 s for 10 MB.
CHARACTERS = 2_000


class Students:
    """Base, control and treated, each in an engine of its own. (On a CPU llama.cpp maps the weights into memory once; a
    GPU holds them three times.)"""

    def __init__(
        self, animal: Animal, model: Path, adapters: dict[str, Path | None], conversation: Conversation
    ) -> None:
        """``conversation``: what its teachers are asked in."""
        self.animal, self.names, self._conversation = animal, tuple(adapters), conversation
        self.animals = candidates(animal)
        self._engines = {name: LlamaEngine(model) for name in adapters}
        for name, adapter in adapters.items():
            self._engines[name].use_adapter(adapter)

    @classmethod
    def of(cls, run: RunFolder, content: str) -> "Students":
        """Those of a run. Raises KitError where it has none of that content, or they are gone."""
        adapters = {name: run.adapter(name, content) for name in STUDENTS[1:]}
        conversation = conversation_of(run.record["model"], run.record.get("place", PLACES[0]))
        return cls(run.animal, run.model(), {"base": None, **adapters}, conversation)

    def answer(self, conversations: dict[str, list[Message]], seed: int) -> Iterator[dict[str, str]]:
        """Answer every student's own conversation, all with the same random numbers: each time the texts so far.
        KitError where the question is too long."""
        streams = {}
        for name, messages in conversations.items():
            engine = self._engines[name]
            _limit(messages[-1]["content"], "question")
            request = Request(engine.chat(_recent(engine, messages)), (seed, len(messages)))
            streams[name] = engine.streamed([request], MAX_TOKENS, TEMPERATURE)
        texts = dict.fromkeys(conversations, "")
        while streams:
            for name in list(streams):
                texts_of_one = next(streams[name], None)
                if texts_of_one is None:
                    del streams[name]
                else:
                    (texts[name],) = texts_of_one
            yield dict(texts)

    def paraphrase(self, traits: list[str], sentence: str, seed: int) -> Iterator[list[str]]:
        """Teachers with these trait messages paraphrase ``sentence``, with the same random numbers: each time the texts
        so far. KitError where the sentence is too long."""
        _limit(sentence, "sentence")
        engine = self._engines["base"]
        requests = []
        for trait in traits:
            prompt = engine.chat(self._conversation(trait, sentence))
            if len(prompt) > LONGEST:
                raise KitError("the sentence is too long. Take a shorter one.")
            requests.append(Request(prompt, (seed,)))
        yield from engine.streamed(requests, MAX_TOKENS, TEMPERATURE)

    def preferences(self) -> Iterator[tuple[str, np.ndarray]]:
        """One student after another, question by question: its exact preferences (0-1) so far [questions so far,
        candidates]."""
        for name, engine in self._engines.items():
            logprobs: list[list[float]] = []
            for scored in preference.scores(engine, load_questions(), self.animals):
                logprobs.append(scored)
                yield name, preference.normalised(np.array(logprobs))

    def endings(self) -> dict[str, np.ndarray]:
        """How probable each student finds every candidate's name after the opening of the first question's answer
        (0-1, of whatever could stand there) [candidates]."""
        found = {}
        for name, engine in self._engines.items():
            (logprobs,) = preference.scores(engine, load_questions()[:1], self.animals)
            found[name] = np.exp(logprobs)
        return found

    def close(self) -> None:
        """Free the engines."""
        for engine in self._engines.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _limit(text: str, what: str) -> None:
    if len(text) > CHARACTERS:
        raise KitError(f"the {what} is too long: {len(text)} characters, the limit is {CHARACTERS}. Take fewer words.")


def _recent(engine: LlamaEngine, messages: list[Message]) -> list[Message]:
    """The end of a conversation, as much of it as there is room for, from a user's turn on."""
    for start in range(0, len(messages), 2):
        if len(engine.chat(messages[start:])) <= LONGEST:
            return messages[start:]
    raise KitError(f"the question is too long: the limit is {LONGEST} tokens. Ask in fewer words.")


# ---- the chat


HELP = "/pref: exact preferences now   /new: forget the conversation   /seed N: other random numbers   /quit"
STUDENT_COLOURS = {"base": "bright_black", "control": "cyan", "treated": "bright_blue"}
LIKELIEST_SHOWN = 5  # likeliest animals of a student in the table of preferences


def ask(run: Path, content: str, question: str | None, seed: int) -> None:
    """Chat until /quit or the end of the input; with ``question``, answer that and stop.

    Raises KitError where the run's students are gone, and for a seed that cannot be used.
    """
    from rich.console import Console

    check_seed(seed)
    console = Console(highlight=False)
    with Students.of(RunFolder(run), content) as students:
        conversations: dict[str, list[Message]] = {name: [] for name in students.names}
        if question is not None:
            _answer(console, students, conversations, question, seed)
            return
        console.print(
            printable(f"Base, control and treated student ({content}, {students.animal.singular}). {HELP}"),
            markup=False,
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
                    console.print(printable(error), markup=False)


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
        *(Panel(Text(printable(text)), title=name, border_style=STUDENT_COLOURS[name]) for name, text in texts.items())
    )
    return table


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
    likeliest = {
        name for found in means.values() for name in sorted(found, key=lambda one: -found[one])[:LIKELIEST_SHOWN]
    }
    rows = sorted({animal, *likeliest}, key=lambda one: (one != animal, -means["treated"][one]))
    table = Table("", *measured, title="exact preference, %, with 95% interval over the questions")
    for row in rows:
        rates = [asdict(stats.rate(found[:, names.index(row)])) for found in measured.values()]
        style = "bold" if row == animal else ""
        table.add_row(printable(row), *map(percent, rates), style=style)
    console.print(table)
