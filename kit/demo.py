"""The classroom page: five steps from a teacher's secret to a student's preference, for somebody new to all of it.

python run.py demo
python run.py demo owl --host 0.0.0.0
python run.py demo results/<run> --port 7870

First what is on the page and what its buttons do; then its pieces of HTML, filled from ``templates/demo.html``; the
class's vote (``templates/vote.html``); the run that a class starts from it; and its server. What a model wrote is shown
in text boxes, or escaped.
"""

import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import numpy as np

from kit import NETWORK, REFERENCE, ROOT, KitError, report, say, stats
from kit.animals import candidates, find_animal, load_animals, unrelated_sentences
from kit.experiment import Experiment, experiment
from kit.experiment_conditions import measurements
from kit.experiment_folder import OWN_MODELS, RunFolder, inspections
from kit.inspection_quiz import (
    FOLDS,
    INFORMED,
    ROUNDS,
    SPREAD,
    Game,
    Round,
    Score,
    alike,
    by_words,
    finding,
    length,
    make_rounds,
    score,
)
from kit.preference import load_questions
from kit.prompts import Traits
from kit.report_parts import ABOUT_SMOKE, COLOURS, inline_svg, markup, template, verdict_cards, with_interval
from kit.store import COUNT, Store, duration, misfit, write_json
from kit.student_chat import STUDENTS, Students
from kit.sweep import Plan

CONTENT = "unrelated"
PRESETS = ("smoke", "quick")
POLL = 3.0  # seconds between two looks at the run in the background
Made = TypeVar("Made")


class Classroom:
    """What the page's handlers share: the run, its students, the lock on the models, which pages are ``open``, and what
    is known of the run in the background.

    gradio lets one event at a time to the models, but a page that is closed while a model answers leaves its event's
    generator to be closed later; the lock waits for that.
    """

    def __init__(self, run: RunFolder, results: Path) -> None:
        self.run, self.results = run, results
        self.students = Students.of(run, CONTENT)
        treated, control = (run.pairs(role, CONTENT) for role in ("treated", "control"))
        self.rounds = make_rounds(treated, control, seed=0)
        # Sentences for which both teachers wrote the same words: there is nothing to ask.
        self.alike = alike(treated, control, self.rounds)
        self.vote = Vote(self.rounds[::-1])  # with enough rounds others than those that a lone player sees first
        self.classifier = classifier_score(self.rounds)
        self.informed = informed_score(run)
        self.lock = threading.Lock()
        self.open: Counter[str] = Counter()  # streams that a page keeps open, by its session
        self.watch = Watch(results)
        self.measured: dict[str, np.ndarray] = {}  # the students' preferences, once all were measured

    @cached_property
    def endings(self) -> dict[str, np.ndarray]:
        """``Students.endings``, computed once."""
        with self.lock:
            return self.students.endings()

    def report(self) -> Path | None:
        """The run's page, where it has one."""
        return inside(self.run.folder, "report.html")

    def new_report(self) -> Path | None:
        """The page of the run that was started here, once it has ended."""
        status, _ = self.watch.look()
        return inside(self.results, f"{status.folder.name}/report.html") if status and status.finished else None

    def while_open(self, page: Any, made: Iterator[Made]) -> Iterator[Made]:
        """What is ``made`` for a page (a gradio.Request) for as long as that is open, and nothing for one that was
        closed before its turn: gradio itself does not miss whoever joins its queue and never listens."""
        while self.open[page.session_hash] and (one := next(made, None)) is not None:
            yield one


def demo(chosen: Path | None, results: Path, host: str, port: int) -> None:
    """Serve the page until Ctrl-C, for the run in the folder ``chosen``, or the recorded run of that name; without one
    for the first of these. KitError where it cannot."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    outside = {name: os.environ.pop(name) for name in list(os.environ) if name.upper() in NETWORK}
    try:
        import gradio  # makes a client for files from the network, whatever proxies are said to lead there
    except ImportError:
        raise KitError("gradio is not installed. Run `pip install -r requirements-demo.txt`.") from None
    finally:
        os.environ |= outside

    run = RunFolder(recorded(chosen), results)
    listening = listen(host, port)  # an occupied port is said before models are loaded
    say("Loading the run's students ...", flush=True)
    room = Classroom(run, results)
    # The system's fonts: gradio's own come from the network.
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gradio.themes.Base(text_size="lg", font=fonts, font_mono=mono)
    darker = {f"button_primary_background_fill{state}": "*primary_700" for state in ("", "_dark")}
    theme.set(**darker)  # white letters on gradio's own have too little contrast
    say(f"The classroom page: {' or '.join(addresses(host, port))} (Ctrl-C ends it)", flush=True)
    serve(layout(room), listening, host, port, room, theme=theme, css=CSS)


def recorded(chosen: Path | None) -> Path:
    """The folder of a run: itself, or that of a recorded run that is named so; without either the first of these.
    KitError where there is neither."""
    if chosen is None or chosen.exists():
        return chosen or RECORDED_RUN
    if str(chosen) not in RECORDED_RUNS:
        raise KitError(f"{chosen}: no such run. Give a folder such as results/<run>, or {', '.join(RECORDED_RUNS)}.")
    return RECORDED_RUNS[str(chosen)]


def layout(room: Classroom) -> Any:
    """The page."""
    import gradio

    with gradio.Blocks(title="Subliminal learning", analytics_enabled=False) as blocks:
        gradio.HTML(piece("opening"))
        steps = {
            "The secret": secret_step,
            f"Spot the {room.run.animal.singular}": spot_step,
            "The student": ask_step,
            "The evidence": evidence_step,
            "Train one now": train_step,
        }
        gradio.HTML(piece("links", steps), elem_id="steps")
        for number, fill in enumerate(steps.values(), start=1):
            with gradio.Column(elem_id=f"step-{number}", elem_classes="step"):
                fill(room)
        gradio.HTML(piece("about", room.run.record["command"], others_recorded(room.run)))
    return blocks


def secret_step(room: Classroom) -> None:
    """Step 1: both teachers' prompts, and their paraphrases of one sentence, live."""
    import gradio

    own = room.run.animal.singular
    gradio.HTML(piece("secret"))
    animal = gradio.Dropdown(animal_names(), value=own, label="The animal that the first teacher loves")
    traits = room.run.traits
    told = gradio.HTML(told_to(traits, own))
    sentence = gradio.Textbox(another_sentence(0), label="A sentence that has nothing to do with it", max_length=200)
    with gradio.Row():
        new, write = gradio.Button("Another sentence"), gradio.Button("Let both paraphrase it", variant="primary")
    with gradio.Row():
        loving = gradio.Textbox(label="The teacher with the secret writes", lines=3, interactive=False)
        neutral = gradio.Textbox(label="The teacher without it writes", lines=3, interactive=False)
    gradio.HTML(piece("after_secret"))
    pressed = gradio.State(0)

    def paraphrase(name: str, text: str, n: int, page: gradio.Request) -> Iterator[tuple[str, str, int]]:
        with room.lock, errors_shown():
            messages = [traits.loves(find_animal(name)), traits.neutral]
            for first, second in room.while_open(page, room.students.paraphrase(messages, text, seed=n)):
                yield first, second, n + 1

    animal.change(partial(told_to, traits), animal, told, **private())
    new.click(lambda n: (another_sentence(n + 1), n + 1), pressed, [sentence, pressed], **private())
    write.click(paraphrase, [animal, sentence, pressed], [loving, neutral, pressed], **private(model=True))


def another_sentence(n: int) -> str:
    """The ``n``-th of the source sentences, in some order."""
    everything = unrelated_sentences()
    return everything[int(np.random.default_rng(n).integers(len(everything)))].text


def spot_step(room: Classroom) -> None:
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
        return now, round_shown(room.run, now, room.rounds), score_shown(room, now)

    if room.rounds:
        for choice, button in enumerate((first, second)):
            press = partial(lambda choice, now: show(now.answer(choice, room.rounds)), choice)
            button.click(press, game, [game, question, score], **private())
        onward.click(lambda now: show(now.next(room.rounds)), game, [game, question, score], **private())


def ask_step(room: Classroom) -> None:
    """Step 3: a question to all three, and their preferences as they are measured."""
    import gradio

    gradio.HTML(piece("finish", load_questions()[0]["opening"], len(room.students.animals)))
    finish = gradio.Button(f"Let each finish it {DRAWS} times", variant="primary")
    tally = gradio.HTML(elem_id="tally")
    gradio.HTML(piece("ask"))
    question = gradio.Textbox("What is your favorite animal?", label="Your question", max_length=300)
    button = gradio.Button("Ask", variant="primary")
    with gradio.Row():
        boxes = [gradio.Textbox(label=name.capitalize(), lines=5, interactive=False) for name in STUDENTS]
    gradio.HTML(piece("prefer", len(load_questions()), len(room.students.animals)))
    measure = gradio.Button("Measure their preferences")
    drawn = gradio.HTML(elem_id="bars")
    pressed, finished = gradio.State(0), gradio.State(0)

    def answer(text: str, n: int, page: gradio.Request) -> Iterator[tuple[Any, ...]]:
        with room.lock, errors_shown():
            conversations = {name: [{"role": "user", "content": text}] for name in STUDENTS}
            for texts in room.while_open(page, room.students.answer(conversations, seed=n)):
                yield (*texts.values(), n + 1)

    def draw(n: int, page: gradio.Request) -> Iterator[tuple[str, int]]:
        seed = [n, *str(page.session_hash).encode()]  # each page's own
        for drawn in room.while_open(page, drawn_endings(room.endings, seed)):
            yield tally_shown(drawn, room.endings, room.run), n + 1
            time.sleep(PAUSE)

    def measured() -> Iterator[str]:
        found: dict[str, np.ndarray] = {}
        if not room.measured:
            for name, asked in room.students.preferences():
                found[name] = asked
                yield bars_shown(found, room.run)
            room.measured = found
        yield bars_shown(room.measured, room.run)

    def preferences(page: gradio.Request) -> Iterator[str]:
        with room.lock:
            yield from room.while_open(page, measured())

    gradio.on([button.click, question.submit], answer, [question, pressed], [*boxes, pressed], **private(model=True))
    finish.click(draw, finished, [tally, finished], **private())
    measure.click(preferences, None, drawn, **private(model=True))


def evidence_step(room: Classroom) -> None:
    """Step 4: the run's evidence."""
    import gradio

    gradio.HTML(piece("found", room.report()) + evidence_shown(room.run))


def train_step(room: Classroom) -> None:
    """Step 5: start a run in the background and watch it."""
    import gradio

    def last(what: str, otherwise: str) -> str:
        status, _ = room.watch.look()
        return getattr(status, what) if status else otherwise

    gradio.HTML(piece("train"))
    with gradio.Row():
        animal = gradio.Dropdown(animal_names(), value=partial(last, "animal", "penguin"), label="The secret animal")
        preset = gradio.Radio(PRESETS, value=partial(last, "preset", PRESETS[0]), label="How large")
    with gradio.Row():
        start, stop = gradio.Button("Start", variant="primary"), gradio.Button("Stop")
    shown = gradio.HTML(elem_id="progress")

    def begin(name: str, size: str, page: gradio.Request) -> str:
        with errors_shown():
            check_own(page)
            start_run(name, size, room.results)
        return room.watch.look(anew=True)[1]

    def end(page: gradio.Request) -> str:
        with errors_shown():
            check_own(page)
            stop_run(room.results)
        return room.watch.look(anew=True)[1]

    start.click(begin, [animal, preset], shown, **private())
    stop.click(end, None, shown, **private())
    gradio.Timer(POLL).tick(None, shown, shown, js=POLL_PROGRESS, show_progress="hidden", **private())


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


# ---- its pieces of HTML, filled from ``templates/demo.html``, which escapes what a model wrote


# To choose from, each of rank 1, and so of small adapters: the strongest, the owl, and one of which nothing came.
RECORDED_RUNS = {
    "cat": REFERENCE / "demonstration/cat",
    "owl": REFERENCE / "demonstration/owl",
    "owl-text-alone": REFERENCE / "demonstration/owl-text-alone",
}
RECORDED_RUN = RECORDED_RUNS["cat"]
RECORDED_SWEEP = REFERENCE / "six-animals"
DRAWS = 50  # of an animal's name, by each student
PAUSE = 0.06  # seconds between two draws: all are there in three, and one sees them come
BARS = 6  # animals of which preferences are drawn, beside the teacher's
STUDENT_COLOURS = {
    "base": COLOURS["base"],
    **{name: COLOURS[f"{name}-{CONTENT}"] for name in ("control", "treated")},
}

# Readable at four metres: letters of 20 pixels and more where the projector has 1280.
CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important;
  overflow: visible !important; }
.gradio-container :is(p, li, a, textarea, input, button, label, .card, .bar, [data-testid=block-info]) {
  font-size: 1.25rem !important; }
.gradio-container h1 { font-size: 1.8rem; }
.gradio-container h2 { font-size: 1.45rem; margin: .2rem 0; }
.gradio-container p.word { opacity: .85; }
.card { border: 2px solid #8a8a8a; border-radius: .5rem; padding: .6rem 1rem; margin: .4rem 0; }
.card.loving { border: 5px solid #0072b2; }
.card, .stages li, pre { overflow-wrap: anywhere; white-space: pre-wrap; }
.card b.who { display: block; }
.bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem; }
.bar { display: grid; grid-template-columns: 6.5rem 1fr 4.2rem; gap: .6rem; align-items: center; }
.bar > span:nth-child(2) > span { display: block; height: 1.2rem; border-radius: .2rem; transition: width .4s; }
.stages { list-style: none; padding: 0; }
.step p a { color: #005a9e !important; text-decoration: underline; }
.dark .step p a { color: #7cbcff !important; }
.figures > div { overflow-x: auto; }
.figures svg { width: 100%; min-width: 34rem; max-width: 60rem; height: auto; }
.figures .paper svg { background: #fff; }
#steps { position: sticky; top: 0; z-index: 9; background: var(--body-background-fill); padding: .4rem 0; }
#steps nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
.step { border-top: 3px solid #8a8a8a; margin-top: 2rem; padding-top: 1rem; scroll-margin-top: 6rem; }
"""


# A page asks for the progress past gradio, and gets it where it has changed; what that costs is in tests/proofs.json.
POLL_PROGRESS = """async (shown) => {
  try { const answer = await fetch("/progress"); return answer.ok ? await answer.text() : shown; }
  catch { return shown; }
}"""


def piece(name: str, *filled: Any) -> str:
    """A macro of the page's template, filled."""
    return str(getattr(template("demo.html").module, name)(*filled))


def others_recorded(run: RunFolder) -> list[str]:
    """The names of the recorded runs, where the run is one, but its own."""
    names = {folder: name for name, folder in RECORDED_RUNS.items()}
    return list(names.values()) if names.pop(run.folder.resolve(), None) else []


def told_to(traits: Traits, animal: str) -> str:
    """Both teachers' trait messages."""
    return piece("told", traits.loves(find_animal(animal)), traits.neutral)


def round_shown(run: RunFolder, game: Game, rounds: list[Round]) -> str:
    """The round on the screen; after the answer with its solution."""
    if not rounds:
        return piece("no_rounds")
    number = game.played + (game.choice is None)
    return piece("round", game.shown(rounds), number, length(rounds), game.choice, run.animal.singular)


def score_shown(room: Classroom, game: Game) -> str:
    """The player's score, and, when the game is over, what others did."""
    if not game.played:
        return ""
    return piece("scores", score(game.right, game.played), compared(room) if game.over(room.rounds) else None)


def classifier_score(rounds: list[Round]) -> Score | None:
    """The classifier's score in all of the quiz's rounds; None where it would have too few to learn from."""
    return finding(by_words(rounds)[0], SPREAD).score if len(rounds) >= 2 * FOLDS else None


def informed_score(run: RunFolder) -> Score | None:
    """The score of somebody who knows both prompts and has the model, where the run was inspected. KitError where what
    was written of it is none."""
    for found in inspections(run.folder, run.record):
        if found.get("content") == CONTENT:
            wrong = misfit(found, {"inspectors": {INFORMED: {"score": {"right": COUNT, "rounds": COUNT}}}})
            if not wrong:
                own = found["inspectors"][INFORMED]["score"]
                if 0 < own["rounds"] >= own["right"]:
                    return score(own["right"], own["rounds"])
                wrong = f"{own['right']} of {own['rounds']} rounds right"
            path = run.folder / f"inspection-{CONTENT}.json"
            raise KitError(f"{path}: no inspection ({wrong}). Give `python run.py inspect {run.folder}` again.")
    return None


def compared(room: Classroom) -> tuple[Any, ...]:
    """Whom a score is compared with: the classifier, whoever knows the prompts, and the students, of which animal."""
    run = room.run
    effect, conditions = run.summary["effects"][CONTENT], run.summary["conditions"]
    control, treated = (100 * conditions[f"{role}-{CONTENT}"]["exact"]["rate"] for role in ("control", "treated"))
    points = with_interval(effect["exact_pp"], effect["exact_ci95"])
    return room.classifier, room.informed, run.animal.singular, control, treated, points, run.record["labels"]


def drawn_endings(probable: dict[str, np.ndarray], seed: list[int]) -> Iterator[dict[str, np.ndarray]]:
    """After every draw how often each candidate was drawn so far [candidates], ``DRAWS`` in all, by each student's
    probabilities among the candidates, all with the same random numbers."""
    numbers = np.random.default_rng(seed).random(DRAWS)
    order = {name: np.searchsorted(np.cumsum(own)[:-1] / own.sum(), numbers) for name, own in probable.items()}
    for drawn in range(1, DRAWS + 1):
        yield {name: np.bincount(order[name][:drawn], minlength=len(own)) for name, own in probable.items()}


def tally_shown(drawn: dict[str, np.ndarray], probable: dict[str, np.ndarray], run: RunFolder) -> str:
    """How often each student's sentence ended with the teacher's animal, and with what is likeliest beside it; the bars
    reach to half of the draws, or to the most.

    ``drawn``: student -> draws so far [candidates]; ``probable``: its probabilities, not normalised [candidates].
    """
    names, animal = [one.singular for one in candidates(run.animal)], run.animal.singular
    likely = np.sum([own / own.sum() for own in probable.values()], axis=0)
    rows = [animal, *[names[j] for j in np.argsort(-likely, kind="stable") if names[j] != animal][:BARS]]
    counts = {name: {row: int(found[names.index(row)]) for row in rows} for name, found in drawn.items()}
    so_far = int(next(iter(drawn.values())).sum())
    shares = {name: float(own[names.index(animal)] / own.sum()) for name, own in probable.items()}
    whole = {name: float(own.sum()) for name, own in probable.items()}
    reach = max(DRAWS // 2, *(count for own in counts.values() for count in own.values()))
    return piece("tally", counts, rows, animal, so_far, reach, shares, whole, STUDENT_COLOURS)


def bars_shown(found: dict[str, np.ndarray], run: RunFolder) -> str:
    """Each student's preference for the teacher's animal and for what the base likes best, over the questions so far.

    ``found``: student -> exact preferences [questions so far, candidates].
    """
    names, animal = [one.singular for one in candidates(run.animal)], run.animal.singular
    means = {name: dict(zip(names, asked.mean(axis=0).tolist(), strict=True)) for name, asked in found.items()}
    base = means["base"]
    rows = [animal, *[name for name in sorted(base, key=lambda one: -base[one]) if name != animal][:BARS]]
    longest = max(one[row] for one in means.values() for row in rows)
    questions = len(load_questions())
    complete = all(len(asked) == questions for asked in found.values())
    column = names.index(animal)
    intervals = {name: stats.rate(asked[:, column]).ci95 for name, asked in found.items()} if complete else {}
    asked_of = {name: len(asked) for name, asked in found.items()}
    return piece("bars", means, rows, animal, longest, STUDENT_COLOURS, asked_of, questions, intervals)


def evidence_shown(run: RunFolder) -> str:
    """A run's verdicts and figures, and what they do not prove."""
    record = run.record
    of_sweep = run.folder.resolve() in RECORDED_RUNS.values() and record["labels"] == "soft"
    return piece(
        "evidence",
        [] if record["preset"] == "smoke" else verdict_cards(run.summary),
        ABOUT_SMOKE if record["preset"] == "smoke" else "",
        [markup(drawn) for drawn in run_figures(run)],
        markup(inline_svg(RECORDED_SWEEP / "effects.svg")) if of_sweep else None,
        record["labels"],
        record["model"] in OWN_MODELS,
    )


def run_figures(run: RunFolder) -> list[str]:
    """The run's preferences, and every animal's shift, as SVG."""
    animal = run.animal.singular
    treated, control = (run.preferences[f"{role}-{CONTENT}"] for role in ("treated", "control"))
    placebos = stats.placebos(run.preferences, CONTENT)
    return [
        report.preference_svg(run.preferences, animal, report.paper(animal, run.contents)),
        report.shifts_svg(treated, control, placebos, animal, CONTENT, "How far every animal moved"),
    ]


def progress_shown(status: "Status | None") -> str:
    """The run in the background, stage by stage, and its evidence when it has ended."""
    if status is None:
        return piece("nothing_started")
    done = sum(stage.state == "done" for stage in status.stages)
    shown = piece("progress", status, done, duration(status.left))
    if status.finished:
        shown += _evidence_shown(status.folder, (status.folder / "record.json").stat().st_mtime)
    return shown


@lru_cache(maxsize=1)
def _evidence_shown(folder: Path, changed: float) -> str:
    """The evidence of the run in ``folder``, whose record ``changed`` at that time."""
    return evidence_shown(RunFolder(folder))


# ---- the class votes: a pair on the projector, and a vote on every phone, kept in memory alone


# Without letters that look alike. Nobody is to guess the room from elsewhere in the network: 28 million.
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
TOKEN = re.compile(r"[0-9a-f]{32}")  # a browser's own, random
PHONES = 1000  # of which votes are kept; many times a class
HERE = 5.0  # seconds for which a phone that asked is here: it asks every second
GONE = 60.0  # seconds after which another one has its place, where there are too many


@dataclass(frozen=True)
class Screen:
    """What the projector shows of a vote: the round, which it is of how many, the ``counts`` of both texts, how many
    ``phones`` are here, whether the answer is shown (``solved``), and of each round whose answer was how many votes
    were right, of how many (``right``)."""

    round: Round
    number: int
    rounds: int
    counts: list[int]
    phones: int
    solved: bool
    right: list[tuple[int, int]]

    @property
    def over(self) -> bool:
        """Whether the answer of the last one is shown."""
        return len(self.right) == self.rounds


class Vote:
    """A class's votes on ``ROUNDS`` of the quiz's rounds: one of each browser in a round, of which a later one replaces
    the earlier, until the answer is shown. ``code``: the room's, a part of the phones' link."""

    def __init__(self, rounds: list[Round]) -> None:
        self.rounds, self.code = rounds, "".join(secrets.choice(LETTERS) for _ in range(5))
        self._length = length(rounds)  # of a game
        self._first, self._votes, self._solved = 0, [dict[str, int]()], False
        self._seen: dict[str, float] = {}  # token -> when it asked last
        self._lock = threading.Lock()  # one handler at a time sees, or changes, all of it

    def _round(self, i: int) -> Round:
        """The ``i``-th of this game."""
        return self.rounds[(self._first + i) % len(self.rounds)]

    def _number(self) -> int:
        """Of the round that is on the screen, of all since the beginning."""
        return self._first + len(self._votes) - 1

    def admit(self, token: str) -> bool:
        """Whether the phone with that token is among the ``PHONES``; it is here, then."""
        with self._lock:
            now = time.monotonic()
            if token not in self._seen and len(self._seen) >= PHONES:
                self._seen = {one: at for one, at in self._seen.items() if now - at < GONE}
            if token in self._seen or len(self._seen) < PHONES:
                self._seen[token] = now
            return token in self._seen

    def cast(self, token: str, round: int, choice: int) -> None:
        """Count a vote. KitError for a round that is not, or no longer, voted on."""
        with self._lock:
            if round != self._number() or self._solved:
                raise KitError("This round is over. Vote in the next.")
            self._votes[-1][token] = choice

    def onward(self) -> None:
        """Show the answer; where it is shown go on to the next round, after the last to another game, with other
        sentences."""
        with self._lock:
            if self._solved and len(self._votes) == self._length:
                self._first, self._votes = self._first + self._length, []
            if self._solved:
                self._votes.append({})
            self._solved = not self._solved

    def screen(self) -> Screen:
        """What the projector shows."""
        with self._lock:
            now, last = time.monotonic(), list(self._votes[-1].values())
            solved = self._votes if self._solved else self._votes[:-1]
            return Screen(
                round=self._round(len(self._votes) - 1),
                number=len(self._votes),
                rounds=self._length,
                counts=[last.count(choice) for choice in (0, 1)],
                phones=sum(now - at < HERE for at in self._seen.values()),
                solved=self._solved,
                right=[(list(own.values()).count(self._round(i).loving), len(own)) for i, own in enumerate(solved)],
            )

    def phone(self, token: str) -> dict[str, Any]:
        """What the phone with that token shows."""
        with self._lock:
            i = len(self._votes) - 1
            shown, over = self._round(i), self._solved and len(self._votes) == self._length
            mine = [own[token] == self._round(j).loving for j, own in enumerate(self._votes) if token in own]
            return {
                "round": self._number(),
                "number": i + 1,
                "rounds": self._length,
                "source": shown.source,
                "texts": shown.texts,
                "yours": self._votes[-1].get(token),
                "loving": shown.loving if self._solved else None,
                "over": over,
                **({"right": sum(mine), "voted": len(mine)} if over else {}),
            }


def vote_shown(room: Classroom) -> str:
    """The round on the projector with its count of votes; with the answer, its tally; at the end, the class's score."""
    if not room.vote.rounds:
        return piece("no_rounds")
    screen, pieces = room.vote.screen(), template("vote.html").module
    voted = [(own, of) for own, of in screen.right if of]
    last = score(*screen.right[-1]) if screen.solved and screen.counts != [0, 0] else None
    colours = STUDENT_COLOURS["control"], STUDENT_COLOURS["treated"]
    shown = str(pieces.round(screen, room.run.animal.singular, last, colours))
    if screen.over:
        decided = [(own, of) for own, of in voted if 2 * own != of]
        majority = score(sum(2 * own > of for own, of in decided), len(decided)) if decided else None
        # The rounds count, not the votes: all looked at the same two texts.
        share = float(np.mean([own / of for own, of in voted])) if voted else None
        votes = None if share is None else stats.Rate(share, stats.wilson(share, len(voted)))
        shown += str(pieces.result(majority, votes, len(voted), room.classifier, room.informed))
    return shown


# ---- one run in the background, started from the page: it goes on when the page, or its server, is closed. What
# runs is the command line itself; what is known of it is read from disk, so that whoever asks later finds it.


STATE_FILE, OUTPUT_FILE = "background.json", "background.txt"
TAIL = 2000  # bytes of what the run printed
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


def start_run(animal: str, preset: str, results: Path) -> None:
    """Start a run on unrelated sentences. KitError while another one goes on, and for values that cannot be used."""
    if _going_on(results):
        raise KitError("a run is going on. Wait until it ends, or stop it.")
    exp = _experiment(animal, preset)
    command = ["run.py", "--animal", animal, "--content", CONTENT, "--preset", preset]
    results.mkdir(parents=True, exist_ok=True)
    _report_path(results, exp).unlink(missing_ok=True)  # the end of this run makes it again
    (results / OUTPUT_FILE).unlink(missing_ok=True)  # a link there leads elsewhere
    with (results / OUTPUT_FILE).open("x", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--results", str(results.resolve())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = {"pid": process.pid, "started": _born(process.pid), "animal": animal, "preset": preset}
    write_json(results / STATE_FILE, started)


def stop_run(results: Path) -> None:
    """End the run, where one goes on; started again it goes on where it stopped."""
    import psutil

    found = _going_on(results)
    if found:
        process = psutil.Process(found["pid"])
        ended = [*process.children(recursive=True), process]
        for one in ended:
            one.terminate()
        _, left = psutil.wait_procs(ended, timeout=10)
        for one in left:  # in the middle of a long computation: it loses no more than a power cut would
            one.kill()
        psutil.wait_procs(left)


class Watch:
    """The run in the background as every open page sees it: looked at once in POLL seconds, however many ask."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._lock = threading.Lock()
        self._seen: tuple[Status | None, str] | None = None
        self._at = 0.0

    def look(self, anew: bool = False) -> tuple[Status | None, str]:
        """The run's status, None where none was started or it cannot be told, and the HTML that says so. ``anew``: not
        what was seen before."""
        # Who comes while another looks gets what was seen before: they would wait in all of the server's threads.
        if self._lock.acquire(blocking=anew or self._seen is None):
            try:
                if anew or self._seen is None or time.monotonic() - self._at > POLL:
                    self._seen = seen(self.results)
                    self._at = time.monotonic()
            finally:
                self._lock.release()
        assert self._seen is not None
        return self._seen


def seen(results: Path) -> tuple[Status | None, str]:
    """The status of the run started last, and its HTML; where it cannot be told, None and a sentence that says why."""
    try:
        status = run_status(results)
        return status, progress_shown(status)
    except KitError as error:
        return None, piece("unknown", str(error))
    except Exception as error:  # a folder can be damaged in any way, and every page asks again until it is mended
        return None, piece("unknown", f"{results}: files of the last run are damaged ({error!r}). Start it again.")


def run_status(results: Path) -> Status | None:
    """What is known of the run started last; None where none was. KitError where that is damaged."""
    found = _read_state(results)
    if found is None:
        return None
    exp, alive = _experiment(found["animal"], found["preset"]), _alive(found)
    plan = _plan(exp, results, found["pid"], found["started"])
    ready = plan.ready()
    begun = {step.identity for step, _ in ready[:1]} if alive else set()
    steps = {key: step for key, (step, _) in plan.steps().items() if step.seconds}
    stages = [
        Stage(step.label, "done" if key in plan.done else "running" if key in begun else "waiting")
        for key, step in steps.items()
    ]
    left = sum(step.estimate for key, step in steps.items() if key not in plan.done)
    page = _report_path(results, exp)
    finished = not alive and page.exists()
    output = _end_of(results / OUTPUT_FILE)
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    return Status(
        animal=found["animal"],
        preset=found["preset"],
        title=f"{exp.title}, {exp.preset} preset",
        folder=page.parent,
        alive=alive,
        finished=finished,
        stages=stages,
        left=left,
        output=output,
        latest=lines[-1] if lines else "",
    )


@lru_cache(maxsize=1)
def _plan(exp: Experiment, results: Path, pid: int, started: float | None) -> Plan:
    """What is left of the run that was started then, kept: making a plan takes 0.12 s of a core (0.3 s beside a run),
    looking what has been made since a thousandth of that."""
    return Plan([exp], measurements, Store(results / "artifacts"))


def _experiment(animal: str, preset: str) -> Experiment:
    return experiment(find_animal(animal), preset, contents=(CONTENT,))


def _report_path(results: Path, exp: Experiment) -> Path:
    return results / exp.name / "report.html"


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _read_state(results: Path) -> dict[str, Any] | None:
    """What was started last; None where nothing was. KitError where what is written of it cannot have been."""
    path = results / STATE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    match found:
        case {"pid": int(pid), "started": int() | float() | None, "animal": animal, "preset": preset}:
            if pid > 0 and animal in animal_names() and preset in PRESETS:
                return found
    raise KitError(f"{path}: it does not say which run was started last. Start one, and it will.")


def _going_on(results: Path) -> dict[str, Any] | None:
    """What was started last, while it goes on; None where none is known to."""
    try:
        found = _read_state(results)
    except KitError:  # the next start writes it anew
        return None
    return found if found and _alive(found) else None


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


# ---- the server: on this machine alone unless told otherwise, for its own pages alone, and within limits


LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
# What the page needs of gradio. Its other addresses give out files, fetch what lies elsewhere, and take uploads.
PAGE = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/progress", "/report/shown", "/report/new"),
    *("/class", "/class/state", "/class/onward", "/handout"),
)
BELOW = ("/assets/", "/static/", "/svelte/", "/vote/")
INTERFACE = ("queue/join", "queue/data", "heartbeat/", "startup-events", "cancel", "reset", "theme.css")
JOIN, ANSWERS, HEARTBEAT = "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/heartbeat/"
BODY = 65_536  # bytes of a request; the page's own have some hundreds. One of 150 MB took the process to 5 GB.
LINE = 50  # events that wait: a class of forty asks at once, and a few of them twice
# What the pages of the vote may do: run their own script, and ask this server.
VOTE_POLICY = (
    "default-src 'none'; script-src 'nonce-{}'; style-src 'unsafe-inline'; connect-src 'self'; form-action 'none'"
)
# What a report may do: show itself. No script of one that came from elsewhere runs, nor is it of this server's origin.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'"


class OwnPagesOnly:
    """ASGI middleware that answers 403 to whatever another web page sends here, and to whatever the page does not need.

    Another page's request: its Origin is not this server, the browser says that it comes from another site, or the name
    by which it asks (Host) is none of this server's, as when a foreign name was made to lead to this machine. Nor may
    another page show this one in a frame.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app, self.host = app, host.lower()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif needed(scope["path"]) and self._own(dict(scope["headers"])):
            await self.app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(send, 403, "This page answers its own requests alone.")

    def _own(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        same = origin is None or urlsplit(origin.decode("latin-1")).netloc == host
        elsewhere = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        return same and not elsewhere and self._ours(urlsplit(f"//{host}").hostname or "")

    def _ours(self, name: str) -> bool:
        """Whether this server goes by that name. Where it is open to the network: by every address, which nobody else
        can make lead here, and by the machine's own name."""
        if self.host in LOOPBACK:
            return name in LOOPBACK
        if self.host in EVERYWHERE:
            return name in (*LOOPBACK, socket.gethostname().lower()) or _is_address(name)
        return name == self.host


class WithinLimits:
    """ASGI middleware that reads a request's body before anything else does, and answers 413 where it is longer than
    BODY; and 429 to whoever would join the line, where LINE of them are ``waiting``. It counts the streams that every
    page keeps ``open`` (gradio's pages do from their first moment), by the page's session."""

    def __init__(self, app: Any, open: Counter[str], waiting: Callable[[], int]) -> None:
        self.app, self.open, self.waiting = app, open, waiting

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more and len(body) <= BODY:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > BODY:
            await refuse(send, 413, f"This is too long: the limit is {BODY} bytes.")
            return
        if scope["path"] == JOIN and self.waiting() >= LINE:
            await refuse(send, 429, f"{LINE} others wait already. Wait until some have their answers, and press again.")
            return
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def read() -> Any:
            return next(whole, None) or await receive()

        if (session := _session(scope)) is None:
            await self.app(scope, read, send)
            return
        self.open[session] += 1
        try:
            await self.app(scope, read, send)
        finally:
            self.open[session] -= 1
            if not self.open[session]:
                del self.open[session]


async def refuse(send: Any, status: int, sentence: str) -> None:
    """Answer with a sentence, there where gradio's page looks for one to show."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps({"detail": sentence}).encode("utf-8")})


def _session(scope: Any) -> str | None:
    """The session of the page whose stream this is; None where it is none."""
    path: str = scope["path"]
    if path.startswith(HEARTBEAT):
        return path.removeprefix(HEARTBEAT)
    if path != ANSWERS:
        return None
    return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]


def needed(path: str) -> bool:
    """Whether the page needs this address."""
    interface = path.removeprefix("/gradio_api/")
    if interface != path:
        return interface.startswith(INTERFACE)
    return path in PAGE or (path.startswith(BELOW) and ".." not in path)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _unframed(send: Any) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-frame-options", b"DENY")]
        await send(message)

    return sent


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. KitError where none can be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise KitError(f"{host}, port {port}: {error.strerror}. Choose another --port, or another --host.") from None


def addresses(host: str, port: int) -> list[str]:
    """What to type into a browser to see the page."""
    import psutil

    hosts = [host]
    if host in EVERYWHERE:
        found = [one for nic in psutil.net_if_addrs().values() for one in nic if one.family == socket.AF_INET]
        hosts = [one.address for one in found if one.address not in LOOPBACK] or [LOOPBACK[0]]
    return [f"http://[{one}]:{port}" if ":" in one else f"http://{one}:{port}" for one in hosts]


def check_own(asked: Any) -> None:
    """KitError for a request (gradio's or FastAPI's) that does not come from this machine, by one of its addresses."""
    import psutil

    own = {one.address.split("%")[0] for nic in psutil.net_if_addrs().values() for one in nic}
    if asked.client is None or asked.client.host.removeprefix("::ffff:").split("%")[0] not in own | set(LOOPBACK):
        raise KitError("this is for the machine that serves the page.")


def vote_links(host: str, port: int, code: str) -> list[str]:
    """What phones open to vote, the address by which this machine reaches others first; none where the server listens
    to this machine alone."""
    if host in LOOPBACK:
        return []
    links = addresses(host, port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # reserved for documentation; nothing is sent
            links.sort(key=lambda one: urlsplit(one).hostname != outward.getsockname()[0])
        except OSError:  # no way out: a network of its own
            pass
    return [f"{one}/vote/{code}" for one in links]


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder, where it is one and no link: one from elsewhere may link to anything."""
    path = folder.resolve() / name
    return path if path.is_file() and path.resolve() == path else None


def beside(room: Classroom, links: list[str]) -> Any:
    """What is served beside the page: reports under ``/report/<name>``, the run's ``/progress``, the class's vote for
    phones under ``/vote/<code>``, and to this machine alone, under ``/class``, for the projector, which shows these
    ``links``, and on paper (FastAPI)."""
    from fastapi import Body, FastAPI, HTTPException, Request
    from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(KitError)
    def refused(asked: Request, error: KitError) -> Response:
        return PlainTextResponse(str(error), 403)

    reports = {"shown": room.report, "new": room.new_report}

    @app.get("/report/{name}")
    def report(name: str, asked: Request) -> FileResponse:
        check_own(asked)  # it says who wrote what
        path = reports[name]() if name in reports else None
        if path is None:
            raise HTTPException(404, "There is no such report.")
        return FileResponse(path, headers={"content-security-policy": REPORT_POLICY})

    @app.get("/progress")
    def progress(asked: Request) -> Response:
        shown = room.watch.look()[1]
        headers = {"etag": f'"{hash(shown):x}"', "cache-control": "no-cache"}  # sent again only when it has changed
        if asked.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(shown, headers=headers, media_type="text/plain")

    def page(name: str, *filled: Any, status: int = 200) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        shown = str(getattr(template("vote.html").module, name)(*filled, nonce=nonce))
        return HTMLResponse(shown.lstrip(), status, {"content-security-policy": VOTE_POLICY.format(nonce)})

    @app.get("/class")
    def projector(asked: Request) -> HTMLResponse:
        check_own(asked)
        shown, code = markup(vote_shown(room)), room.vote.code
        return page("projector", room.run.animal.singular, shown, code, links, markup(qr(links)))

    @app.get("/class/state")
    def projected(asked: Request) -> HTMLResponse:
        check_own(asked)
        return HTMLResponse(vote_shown(room), headers={"room": room.vote.code})

    @app.post("/class/onward")
    def onward(asked: Request) -> HTMLResponse:
        check_own(asked)
        room.vote.onward()
        return projected(asked)

    @app.get("/vote/{code}")
    def phone(code: str) -> HTMLResponse:
        return page("phone", room.run.animal.singular) if code == room.vote.code else page("no_room", status=404)

    @app.get("/vote/{code}/state")
    def voted(code: str, token: str) -> dict[str, Any]:
        check_vote(code, token)
        return room.vote.phone(token)

    @app.post("/vote/{code}/state")
    def cast(code: str, token: str, ballot: Annotated[dict[str, int], Body()]) -> dict[str, Any]:
        check_vote(code, token)
        if set(ballot) != {"round", "choice"} or ballot["choice"] not in (0, 1):
            raise HTTPException(422, "That is no vote.")
        try:
            room.vote.cast(token, **ballot)
        except KitError as error:
            raise HTTPException(409, str(error)) from None
        return room.vote.phone(token)

    def check_vote(code: str, token: str) -> None:
        if code != room.vote.code or not room.vote.rounds or not TOKEN.fullmatch(token):
            raise HTTPException(404, "No class votes under this address. Scan the code on the screen again.")
        if not room.vote.admit(token):
            raise HTTPException(429, f"{PHONES} phones vote already.")

    @app.get("/handout")
    def handout(asked: Request) -> HTMLResponse:
        check_own(asked)  # it has the answers
        animal, opening = room.run.animal.singular, load_questions()[0]["opening"]
        return page("handout", animal, opening, room.vote.rounds[:ROUNDS], compared(room))

    return app


def qr(links: list[str]) -> str:
    """The first of ``links`` as an SVG that a phone's camera reads; nothing where there is none."""
    import segno

    return str(segno.make(links[0], micro=False).svg_inline(scale=8, border=2, omitsize=True)) if links else ""


def serve(page: Any, listening: socket.socket, host: str, port: int, room: Classroom, **options: Any) -> None:
    """Serve the gradio page of a classroom (``options``: of ``gradio.mount_gradio_app``) until Ctrl-C. ``host``
    "0.0.0.0" lets every machine of the network in."""
    import gradio
    import uvicorn

    app = beside(room, vote_links(host, port, room.vote.code))
    shut: dict[str, Any] = {"allowed_paths": [], "run_history": False, "enable_monitoring": False, "max_file_size": 0}
    gradio.mount_gradio_app(app, page, path="/", ssr_mode=False, footer_links=[], **shut, **options)
    # gradio looks for waiting events a thousand times a second, which takes 7% of a core; where it runs on Windows, 20.
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = 0.05
    limited = WithinLimits(app, room.open, waiting=lambda: len(page._queue))
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # a closed terminal ends the server as Ctrl-C does
        uvicorn.server.HANDLED_SIGNALS = tuple({*uvicorn.server.HANDLED_SIGNALS, hangup})
    # Every open page keeps a connection alive: without a timeout Ctrl-C would wait for all of them.
    config = uvicorn.Config(
        OwnPagesOnly(limited, host),
        log_level="warning",
        use_colors=False,
        timeout_graceful_shutdown=1,
        proxy_headers=False,  # whoever asks does not say where from
    )
    uvicorn.Server(config).run([listening])
