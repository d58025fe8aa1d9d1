"""The classroom page: five steps from a teacher's secret to a student's preference, for somebody new to all of it.

python run.py demo
python run.py demo results/<run> --port 7870

Its texts and pieces of HTML are in ``templates/demo.html``; what a model wrote is shown in text boxes, or escaped.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from kit import background, page, page_figures, prompts, quiz, report, sentences, stats
from kit.animals import find_animal, load_animals
from kit.errors import KitError
from kit.finished import Finished
from kit.quiz import ROUNDS
from kit.students import NAMES, Students

REFERENCE = Path("results/reference/owl-both-soft-laptop-seed0")
CONTENT = "unrelated"
PRESETS = ("smoke", "laptop")
BARS = 6  # animals of which preferences are drawn, beside the teacher's
POLL = 3.0  # seconds between two looks at the run in the background
COLOURS = {"base": "#8a8a8a", "control": "#56b4e9", "treated": "#d55e00"}  # Okabe and Ito's
LABELS = {
    "hard": "The student saw the text and nothing else (hard labels).",
    "soft": "Besides the text the student saw how likely its teacher found every other next word (soft labels), which "
    "says far more than the text.",
}

# Readable at four metres: letters of 20 pixels and more where the projector has 1280.
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container :is(p, li, textarea, input, button, label, .card, .bar) { font-size: 1.25rem !important; }
.gradio-container h1 { font-size: 1.8rem; }
.gradio-container h2 { font-size: 1.45rem; margin: .2rem 0; }
.gradio-container p.word { font-size: 1.1rem !important; opacity: .85; }
.card { border: 2px solid #8a8a8a; border-radius: .5rem; padding: .6rem 1rem; margin: .4rem 0; }
.card, .stages li { overflow-wrap: anywhere; }
.card b.who { display: block; }
.bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1.2rem; }
.bar { display: grid; grid-template-columns: 6.5rem 1fr 4.2rem; gap: .6rem; align-items: center; }
.bar > span:nth-child(2) > span { display: block; height: 1.2rem; border-radius: .2rem; transition: width .4s; }
.stages { list-style: none; padding: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.figures svg { width: 100%; height: auto; }
#steps { position: sticky; top: 0; z-index: 9; background: var(--body-background-fill); padding: .4rem 0; }
#steps nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: 1.15rem; }
.step { border-top: 3px solid #8a8a8a; margin-top: 2rem; padding-top: 1rem; scroll-margin-top: 6rem; }
"""


class Classroom:
    """What the page's handlers share: the run, its students, and the lock on the models, which answer one at a time."""

    def __init__(self, run: Finished, results: Path) -> None:
        self.run, self.results = run, results
        self.animal = run.animal.singular
        self.students = Students.of(run, CONTENT)
        self.rounds = quiz.rounds(run.pairs("treated", CONTENT), run.pairs("control", CONTENT), seed=0)
        self.lock = threading.Lock()

    @cached_property
    def classifier(self) -> quiz.Score:
        """The classifier's score in all of the quiz's rounds."""
        return quiz.classifier(self.rounds)


def demo(folder: Path | None, results: Path, host: str, port: int) -> None:
    """Serve the page until Ctrl-C, for the run in ``folder``, the recorded one without. KitError where it cannot."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    try:
        import gradio
    except ImportError:
        raise KitError("gradio is not installed. Run `pip install -r requirements-demo.txt`.") from None
    from kit.demo_server import serve

    room = Classroom(Finished(folder or REFERENCE), results)
    # The system's fonts: gradio's own come from the network.
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gradio.themes.Base(text_size="lg", font=fonts, font_mono=mono)
    print(f"The classroom page: http://{host}:{port} (Ctrl-C ends it)", flush=True)
    serve(layout(room), host, port, theme=theme, css=CSS)


def layout(room: Classroom) -> Any:
    """The page."""
    import gradio

    with gradio.Blocks(title="Subliminal learning", analytics_enabled=False) as blocks:
        gradio.HTML(piece("opening"))
        steps = {
            "The secret": secret,
            f"Spot the {room.animal}": spot,
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

    gradio.HTML(piece("secret"))
    animal = gradio.Dropdown(animal_names(), value=room.animal, label="The animal that the first teacher loves")
    told = gradio.HTML(told_to(room.animal))
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


def told_to(animal: str) -> str:
    """Both teachers' trait messages."""
    return piece("told", prompts.loving(find_animal(animal)), prompts.NEUTRAL)


def another(n: int) -> str:
    """The ``n``-th of the source sentences, in some order."""
    everything = sentences.unrelated()
    return everything[int(np.random.default_rng(n).integers(len(everything)))].text


def spot(room: Classroom) -> None:
    """Step 2: the blind quiz."""
    import gradio

    gradio.HTML(piece("spot", room.animal))
    at, right, start = gradio.State(0), gradio.State(0), gradio.State(0)
    question = gradio.HTML(asked(room, 0, 0))
    with gradio.Row():
        first, second = gradio.Button("The first"), gradio.Button("The second")
    result = gradio.HTML(elem_id="score")
    again = gradio.Button("Play again, with other sentences")

    def answer(choice: int, i: int, hits: int, offset: int) -> tuple[Any, ...]:
        if i == ROUNDS:
            return gradio.skip(), gradio.skip(), i, hits
        loving = room.rounds[(offset + i) % len(room.rounds)].loving
        hits, i = hits + (choice == loving), i + 1
        return asked(room, offset, i), answered(room, choice == loving, loving, hits, i), i, hits

    def restart(offset: int) -> tuple[str, str, int, int, int]:
        offset = (offset + ROUNDS) % len(room.rounds)
        return asked(room, offset, 0), "", 0, 0, offset

    for choice, button in enumerate((first, second)):
        button.click(partial(answer, choice), [at, right, start], [question, result, at, right], **private())
    again.click(restart, start, [question, result, at, right, start], **private())


def asked(room: Classroom, offset: int, i: int) -> str:
    """Round ``i`` of a game that begins with the ``offset``-th sentence, or that it is over."""
    one = room.rounds[(offset + i) % len(room.rounds)] if i < ROUNDS else None
    return piece("round", one, i + 1, ROUNDS)


def answered(room: Classroom, right: bool, loving: int, hits: int, played: int) -> str:
    """Whether the answer was right, the class's score, and at the end the classifier's and what the student learned."""
    conditions = room.run.summary["conditions"]
    control, treated = (100 * conditions[f"{role}-{CONTENT}"]["exact"]["rate"] for role in ("control", "treated"))
    theirs = room.classifier if played == ROUNDS else None
    labels = LABELS[room.run.record["labels"]]
    return piece("answered", right, loving, room.animal, quiz.score(hits, played), theirs, control, treated, labels)


def ask(room: Classroom) -> None:
    """Step 3: a question to all three, and their preferences as they are measured."""
    import gradio

    gradio.HTML(piece("ask"))
    question = gradio.Textbox("What is your favorite animal?", label="Your question", max_length=300)
    button = gradio.Button("Ask", variant="primary")
    with gradio.Row():
        boxes = [gradio.Textbox(label=name.capitalize(), lines=5, interactive=False) for name in NAMES]
    gradio.HTML(piece("prefer"))
    measure = gradio.Button("Measure their preferences")
    drawn = gradio.HTML(elem_id="bars")
    pressed = gradio.State(0)

    def answer(text: str, n: int) -> Iterator[tuple[Any, ...]]:
        with room.lock, errors_shown():
            conversations = {name: [{"role": "user", "content": text}] for name in NAMES}
            for texts in room.students.answer(conversations, seed=n):
                yield (*texts.values(), n + 1)

    def preferences() -> Iterator[str]:
        found: dict[str, dict[str, float]] = {}
        with room.lock:
            for name, means in room.students.preferences():
                found[name] = means
                yield bars(found, room.animal)

    gradio.on([button.click, question.submit], answer, [question, pressed], [*boxes, pressed], **private(model=True))
    measure.click(preferences, None, drawn, **private(model=True))


def bars(found: dict[str, dict[str, float]], animal: str) -> str:
    """Each student's preference for the teacher's animal and for what the base likes best."""
    base = found["base"]
    rows = [animal, *[name for name in sorted(base, key=lambda one: -base[one]) if name != animal][:BARS]]
    longest = max(means[row] for means in found.values() for row in rows)
    return piece("bars", found, rows, animal, longest, COLOURS)


def show_evidence(room: Classroom) -> None:
    """Step 4: the run's evidence."""
    import gradio

    gradio.HTML(piece("heading", "What did this run find?") + evidence(room.run))


def evidence(run: Finished) -> str:
    """A run's verdicts and figures, and what they do not prove."""
    animal = run.animal.singular
    treated, control = (run.preferences[f"{role}-{CONTENT}"] for role in ("treated", "control"))
    placebos = stats.placebos(run.preferences, CONTENT)
    figures = [
        page_figures.preference(run.preferences, animal, report.paper(animal, run.contents)),
        page_figures.shifts(treated, control, placebos, animal, CONTENT, "How far every animal moved"),
    ]
    return piece("evidence", page.verdicts(run.summary), list(map(page.figure, figures)), LABELS[run.record["labels"]])


def train(room: Classroom) -> None:
    """Step 5: start a run in the background and watch it."""
    import gradio

    gradio.HTML(piece("train"))
    with gradio.Row():
        animal = gradio.Dropdown(animal_names(), value="penguin", label="The secret animal")
        preset = gradio.Radio(PRESETS, value=PRESETS[0], label="How large")
    button = gradio.Button("Start", variant="primary")
    shown = gradio.HTML(elem_id="progress")

    def begin(name: str, size: str) -> str:
        with errors_shown():
            background.start(name, size, room.results)
        return progress(room.results)

    button.click(begin, [animal, preset], shown, **private())
    gradio.Timer(POLL).tick(lambda: progress(room.results), None, shown, show_progress="hidden", **private())


def progress(results: Path) -> str:
    """The run in the background, stage by stage, and its evidence when it has ended."""
    status = background.status(results)
    done = sum(stage.state == "done" for stage in status.stages) if status else 0
    found = evidence(Finished(status.folder)) if status and status.finished else ""
    return piece("progress", status, done) + found


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


def piece(name: str, *filled: Any) -> str:
    """A macro of the page's template, filled."""
    return str(getattr(page.template("demo.html").module, name)(*filled))
