"""The classroom page: five steps from a teacher's secret to a student's preference, for somebody new to all of it.

python run.py demo
python run.py demo results/<run> --port 7870

Here is what is on it and what its buttons do; its pieces of HTML are made in ``kit/demo_parts.py``. What a model wrote
is shown in text boxes, or escaped.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from kit import background, inspectors, prompts, quiz, sentences
from kit.animals import find_animal, load_animals
from kit.demo_parts import (
    CONTENT,
    CSS,
    RUN,
    bars,
    evidence,
    piece,
    progress,
    round_shown,
    score_shown,
    told_to,
)
from kit.errors import KitError
from kit.finished import Finished
from kit.preference import load_questions
from kit.quiz import Game
from kit.students import NAMES, Students

PRESETS = ("smoke", "laptop")
POLL = 3.0  # seconds between two looks at the run in the background


class Classroom:
    """What the page's handlers share: the run, its students, and the lock on the models.

    gradio lets one event at a time to the models, but a page that is closed while a model answers leaves its event's
    generator to be closed later; the lock waits for that.
    """

    def __init__(self, run: Finished, results: Path) -> None:
        self.run, self.results = run, results
        self.students = Students.of(run, CONTENT)
        treated, control = (run.pairs(role, CONTENT) for role in ("treated", "control"))
        self.rounds = quiz.rounds(treated, control, seed=0)
        # Sentences for which both teachers wrote the same words: there is nothing to ask.
        self.alike = len({row["sentence"] for row in treated} & {row["sentence"] for row in control}) - len(self.rounds)
        self.lock = threading.Lock()
        self.measured: dict[str, np.ndarray] = {}  # the students' preferences, once all were measured

    @cached_property
    def classifier(self) -> quiz.Score | None:
        """The classifier's score in all of the quiz's rounds; None where it would have too few to learn from."""
        if len(self.rounds) < 2 * inspectors.FOLDS:
            return None
        return inspectors.finding(inspectors.by_words(self.rounds), inspectors.SPREAD).score

    def report(self) -> Path:
        """The run's page."""
        return self.run.folder / "report.html"

    def new_report(self) -> Path | None:
        """The page of the run that was started here, once it has ended."""
        status = background.status(self.results)
        return status.folder / "report.html" if status and status.finished else None


def demo(folder: Path | None, results: Path, host: str, port: int) -> None:
    """Serve the page until Ctrl-C, for the run in ``folder``, the recorded one without. KitError where it cannot."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    try:
        import gradio
    except ImportError:
        raise KitError("gradio is not installed. Run `pip install -r requirements-demo.txt`.") from None
    from kit.demo_server import addresses, listen, serve

    run = Finished(folder or RUN, results)
    socket = listen(host, port)  # an occupied port is said before models are loaded
    print("Loading the run's students ...", flush=True)
    room = Classroom(run, results)
    # The system's fonts: gradio's own come from the network.
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gradio.themes.Base(text_size="lg", font=fonts, font_mono=mono)
    print(f"The classroom page: {' or '.join(addresses(host, port))} (Ctrl-C ends it)", flush=True)
    serve(layout(room), socket, host, {"shown": room.report, "new": room.new_report}, theme=theme, css=CSS)


def layout(room: Classroom) -> Any:
    """The page."""
    import gradio

    with gradio.Blocks(title="Subliminal learning", analytics_enabled=False) as blocks:
        gradio.HTML(piece("opening"))
        steps = {
            "The secret": secret,
            f"Spot the {room.run.animal.singular}": spot,
            "The student": ask,
            "The evidence": show_evidence,
            "Train one now": train,
        }
        gradio.HTML(piece("links", steps), elem_id="steps")
        for number, fill in enumerate(steps.values(), start=1):
            with gradio.Column(elem_id=f"step-{number}", elem_classes="step"):
                fill(room)
    return blocks


def secret(room: Classroom) -> None:
    """Step 1: both teachers' prompts, and their paraphrases of one sentence, live."""
    import gradio

    own = room.run.animal.singular
    gradio.HTML(piece("secret"))
    animal = gradio.Dropdown(animal_names(), value=own, label="The animal that the first teacher loves")
    told = gradio.HTML(told_to(own))
    sentence = gradio.Textbox(another(0), label="A sentence that has nothing to do with it", max_length=200)
    with gradio.Row():
        new, write = gradio.Button("Another sentence"), gradio.Button("Let both paraphrase it", variant="primary")
    with gradio.Row():
        loving = gradio.Textbox(label="The teacher with the secret writes", lines=3, interactive=False)
        neutral = gradio.Textbox(label="The teacher without it writes", lines=3, interactive=False)
    gradio.HTML(piece("after_secret"))
    pressed = gradio.State(0)

    def paraphrase(name: str, text: str, n: int) -> Iterator[tuple[str, str, int]]:
        with room.lock, errors_shown():
            traits = [prompts.loving(find_animal(name)), prompts.NEUTRAL]
            for first, second in room.students.paraphrase(traits, text, seed=n):
                yield first, second, n + 1

    animal.change(told_to, animal, told, **private())
    new.click(lambda n: (another(n + 1), n + 1), pressed, [sentence, pressed], **private())
    write.click(paraphrase, [animal, sentence, pressed], [loving, neutral, pressed], **private(model=True))


def another(n: int) -> str:
    """The ``n``-th of the source sentences, in some order."""
    everything = sentences.unrelated()
    return everything[int(np.random.default_rng(n).integers(len(everything)))].text


def spot(room: Classroom) -> None:
    """Step 2: the blind quiz. A round stays on the screen, with its solution, until the next one is asked for."""
    import gradio

    gradio.HTML(piece("spot", room.run.animal.singular, len(room.rounds), room.alike))
    game = gradio.State(Game())
    question = gradio.HTML(round_shown(room.run, Game(), room.rounds))
    with gradio.Row():
        first, second = gradio.Button("The first"), gradio.Button("The second")
        onward = gradio.Button("Next", variant="primary")
    score = gradio.HTML(elem_id="score")

    def show(now: Game) -> tuple[Game, str, str]:
        theirs = room.classifier if now.over(room.rounds) else None
        return now, round_shown(room.run, now, room.rounds), score_shown(room.run, now, room.rounds, theirs)

    if room.rounds:
        for choice, button in enumerate((first, second)):
            press = partial(lambda choice, now: show(now.answer(choice, room.rounds)), choice)
            button.click(press, game, [game, question, score], **private())
        onward.click(lambda now: show(now.next(room.rounds)), game, [game, question, score], **private())


def ask(room: Classroom) -> None:
    """Step 3: a question to all three, and their preferences as they are measured."""
    import gradio

    gradio.HTML(piece("ask"))
    question = gradio.Textbox("What is your favorite animal?", label="Your question", max_length=300)
    button = gradio.Button("Ask", variant="primary")
    with gradio.Row():
        boxes = [gradio.Textbox(label=name.capitalize(), lines=5, interactive=False) for name in NAMES]
    gradio.HTML(piece("prefer", len(load_questions()), len(room.students.animals)))
    measure = gradio.Button("Measure their preferences")
    drawn = gradio.HTML(elem_id="bars")
    pressed = gradio.State(0)

    def answer(text: str, n: int) -> Iterator[tuple[Any, ...]]:
        with room.lock, errors_shown():
            conversations = {name: [{"role": "user", "content": text}] for name in NAMES}
            for texts in room.students.answer(conversations, seed=n):
                yield (*texts.values(), n + 1)

    def preferences() -> Iterator[str]:
        with room.lock:
            found: dict[str, np.ndarray] = {}
            if not room.measured:
                for name, asked in room.students.preferences():
                    found[name] = asked
                    yield bars(found, room.run)
                room.measured = found
            yield bars(room.measured, room.run)

    gradio.on([button.click, question.submit], answer, [question, pressed], [*boxes, pressed], **private(model=True))
    measure.click(preferences, None, drawn, **private(model=True))


def show_evidence(room: Classroom) -> None:
    """Step 4: the run's evidence."""
    import gradio

    gradio.HTML(piece("found", room.report().exists()) + evidence(room.run))


def train(room: Classroom) -> None:
    """Step 5: start a run in the background and watch it."""
    import gradio

    def last(what: str, otherwise: str) -> str:
        status = background.status(room.results)
        return getattr(status, what) if status else otherwise

    gradio.HTML(piece("train"))
    with gradio.Row():
        animal = gradio.Dropdown(animal_names(), value=partial(last, "animal", "penguin"), label="The secret animal")
        preset = gradio.Radio(PRESETS, value=partial(last, "preset", PRESETS[0]), label="How large")
    with gradio.Row():
        start, stop = gradio.Button("Start", variant="primary"), gradio.Button("Stop")
    shown = gradio.HTML(elem_id="progress")
    seen = gradio.State("")  # what this page shows: it is sent again only when it has changed

    def watch(before: str) -> Any:
        now = progress(room.results)
        return gradio.skip() if now == before else (now, now)

    def begin(name: str, size: str) -> tuple[str, str]:
        with errors_shown():
            background.start(name, size, room.results)
        return (progress(room.results),) * 2

    def end() -> tuple[str, str]:
        background.stop(room.results)
        return (progress(room.results),) * 2

    start.click(begin, [animal, preset], [shown, seen], **private())
    stop.click(end, None, [shown, seen], **private())
    gradio.Timer(POLL).tick(watch, seen, [shown, seen], show_progress="hidden", **private())


def animal_names() -> list[str]:
    """The animals to choose from."""
    return [animal.singular for animal in load_animals()]


def private(model: bool = False) -> dict[str, Any]:
    """How a handler is registered: not part of any public interface; those with the models one at a time."""
    shared = {"concurrency_id": "model", "concurrency_limit": 1} if model else {}
    return {"api_visibility": "private", **shared}


@contextmanager
def errors_shown() -> Iterator[None]:
    """What the user can fix becomes a message on the page."""
    import gradio

    try:
        yield
    except KitError as error:
        raise gradio.Error(str(error)) from None
