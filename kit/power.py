"""How many seeds and pairs an effect needs, from the variances that a recorded sweep shows.

python run.py power results/reference/<sweep> --effect 0.1
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kit import evidence, inference
from kit.errors import KitError
from kit.evidence import Cell
from kit.inference import Components
from kit.stats import ALPHA
from kit.tables import Table, show_table

EFFECTS = (0.05, 0.1, 0.2, 0.4)  # nats: from what placebo shifts reach to half of an owl's


def show(sweep: Path, effects: Sequence[float], power: float) -> None:
    """Print, for every content and setting of the sweep, its effect, its variances and the seeds needed.

    ``effects``: log-odds shifts in nats; ``power``: the wanted probability that the test over seeds rejects. Raises
    KitError for values that make no sense, and where the sweep has one seed.
    """
    if not 0 < power < 1:
        raise KitError(f"--power {power}: must lie between 0 and 1. 0.8 is usual.")
    if any(effect <= 0 for effect in effects):
        raise KitError(f"--effect {' '.join(map(str, effects))}: must be positive, in nats. Try 0.1.")
    record, students = evidence.read(sweep)
    cells = evidence.cells(record["comparisons"], students)
    show_table(f"Seeds that find an effect with probability {power:g}", table(cells, effects, power))
    tests = sum(len(cell.effects) for cell in cells)
    among = f" / {tests}, what Holm's correction asks of the first of this sweep's {tests} effects" if tests > 1 else ""
    print(
        f"Effects are log-odds shifts in nats, tested over seeds and questions at 5%{among}. “more questions”: these "
        "differ so much that no number of seeds will do. A verdict asks for more than this test: rank, placebos and "
        "drift. The variances are those of the recorded seeds, and as uncertain."
    )


def table(cells: list[Cell], effects: Sequence[float], power: float) -> Table:
    """A row per content and setting: the mean effect over its animals, the standard deviations between seeds and
    between questions (nats, the mean of the animals' variances), and the seeds for its own effect and for ``effects``.
    """
    varied = evidence.varied(cells)
    alpha = ALPHA / sum(len(cell.effects) for cell in cells)
    heading = ["content", *varied, "found", "SD seeds", "SD questions", "for that", *(f"for {e:g}" for e in effects)]
    rows = []
    for cell in cells:
        components = mean_components([effect.components for effect in cell.effects.values()])
        mean = float(np.mean([effect.log_odds.mean for effect in cell.effects.values()]))
        questions = next(iter(cell.effects.values())).log_odds.questions
        rows.append(
            [cell.content, *(str(cell.settings[name]) for name in varied), f"{mean:+.3f}"]
            + [f"{components.seed**0.5:.3f}", f"{components.question**0.5:.3f}"]
            + [_seeds(components, effect, questions, alpha, power) for effect in (mean, *effects)]
        )
    return heading, rows


def _seeds(components: Components, effect: float, questions: int, alpha: float, power: float) -> str:
    if effect <= 0:
        return "–"
    needed = inference.seeds_needed(components, effect, questions, alpha, power)
    return "more questions" if needed is None else str(needed)


def mean_components(found: list[Components | None]) -> Components:
    """The variances of several animals, averaged: few seeds tell little alone. KitError where there is one seed."""
    several = [components for components in found if components is not None]
    if not several:
        raise KitError("the sweep has one seed, which tells nothing of how seeds vary. Give it --seeds 3.")
    return Components(*(float(np.mean([getattr(c, name) for c in several])) for name in Components.__annotations__))
