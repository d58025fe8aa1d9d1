"""The pieces of HTML of the classroom page, filled from ``templates/demo.html``, which escapes what a model wrote."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kit import background, figure, page, page_figures, prompts, quiz, report, stats, sweep_page, tables
from kit.animals import candidates, find_animal
from kit.finished import Finished
from kit.preference import load_questions
from kit.progress import duration
from kit.quiz import Game, Round
from kit.schedule import ROOT

REFERENCE = ROOT / "results" / "reference"
RUN = REFERENCE / "owl-both-soft-laptop-seed0"
SWEEP = REFERENCE / "sweep-owl-dolphin-eagle-cat-penguin-wolf-unrelated-soft-laptop-seeds0to2"
CONTENT = background.CONTENT
BARS = 6  # animals of which preferences are drawn, beside the teacher's
COLOURS = {
    "base": figure.COLOURS["base"],
    **{name: figure.COLOURS[f"{name}-{CONTENT}"] for name in ("control", "treated")},
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
.figures > div { overflow-x: auto; }
.figures svg { width: 100%; min-width: 34rem; max-width: 60rem; height: auto; }
.figures .paper svg { background: #fff; }
#steps { position: sticky; top: 0; z-index: 9; background: var(--body-background-fill); padding: .4rem 0; }
#steps nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
.step { border-top: 3px solid #8a8a8a; margin-top: 2rem; padding-top: 1rem; scroll-margin-top: 6rem; }
"""


def piece(name: str, *filled: Any) -> str:
    """A macro of the page's template, filled."""
    return str(getattr(page.template("demo.html").module, name)(*filled))


def told_to(animal: str) -> str:
    """Both teachers' trait messages."""
    return piece("told", prompts.loving(find_animal(animal)), prompts.NEUTRAL)


def round_shown(run: Finished, game: Game, rounds: list[Round]) -> str:
    """The round on the screen; after the answer with its solution."""
    if not rounds:
        return piece("no_rounds")
    number = game.played + (game.choice is None)
    return piece("round", game.shown(rounds), number, min(quiz.ROUNDS, len(rounds)), game.choice, run.animal.singular)


def score_shown(run: Finished, game: Game, rounds: list[Round], classifier: quiz.Score | None) -> str:
    """The class's score, and, when the game is over, the classifier's and what the student learned."""
    if not game.played:
        return ""
    theirs = classifier if game.over(rounds) else None
    effect, conditions = run.summary["effects"][CONTENT], run.summary["conditions"]
    control, treated = (100 * conditions[f"{role}-{CONTENT}"]["exact"]["rate"] for role in ("control", "treated"))
    points = tables.points(effect["exact_pp"], effect["exact_ci95"])
    yours = quiz.score(game.right, game.played)
    return piece(
        "scores", yours, game.over(rounds), theirs, run.animal.singular, control, treated, points, run.record["labels"]
    )


def bars(found: dict[str, np.ndarray], run: Finished) -> str:
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
    return piece("bars", means, rows, animal, longest, COLOURS, asked_of, questions, intervals)


def evidence(run: Finished) -> str:
    """A run's verdicts and figures, and what they do not prove."""
    record = run.record
    return piece(
        "evidence",
        [] if record["preset"] == "smoke" else page.verdicts(run.summary),
        report.SMOKE if record["preset"] == "smoke" else "",
        [page.figure(drawn) for drawn in figures(run)],
        page.figure(sweep_page.inline(SWEEP / "effects.svg")) if run.folder.resolve() == RUN else None,
        record["labels"],
        record["model"] == "embedded",
    )


def figures(run: Finished) -> list[str]:
    """The run's preferences, and every animal's shift, as SVG."""
    animal = run.animal.singular
    treated, control = (run.preferences[f"{role}-{CONTENT}"] for role in ("treated", "control"))
    placebos = stats.placebos(run.preferences, CONTENT)
    return [
        page_figures.preference(run.preferences, animal, report.paper(animal, run.contents)),
        page_figures.shifts(treated, control, placebos, animal, CONTENT, "How far every animal moved"),
    ]


def progress(results: Path) -> str:
    """The run in the background, stage by stage, and its evidence when it has ended."""
    status = background.status(results)
    if status is None:
        return piece("nothing_started")
    done = sum(stage.state == "done" for stage in status.stages)
    shown = piece("progress", status, done, duration(status.left))
    if status.finished:
        shown += _evidence(status.folder, (status.folder / "record.json").stat().st_mtime)
    return shown


@lru_cache(maxsize=1)
def _evidence(folder: Path, changed: float) -> str:
    """The evidence of the run in ``folder``, whose record ``changed`` at that time; every open page asks for it."""
    return evidence(Finished(folder))
