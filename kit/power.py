"""How many seeds and pairs an effect needs, from the variances that a recorded sweep shows.

python run.py power results/reference/<sweep> --effect 0.1
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kit import evidence, inference, stats
from kit.errors import KitError
from kit.inference import Components
from kit.report import Table, show_table
from kit.stats import Preference
from kit.store import Row

EFFECTS = (0.05, 0.1, 0.2, 0.4)  # nats: the smallest that a default run's placebos leave room for, to half of an owl's


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
    show_table(f"Seeds that find an effect with probability {power:g}", table(record, students, effects, power))
    print(
        "Effects are log-odds shifts in nats, tested at 5% over seeds and questions. “more questions”: these differ "
        "so much that no number of seeds will do. The variances are those of the recorded seeds, and as uncertain."
    )


def table(record: Row, students: dict[str, Preference], effects: Sequence[float], power: float) -> Table:
    """A row per content and setting: the mean effect over its animals, the standard deviations between seeds and
    between questions (nats, the mean of the animals' variances), and the seeds for its own effect and for ``effects``.
    """
    cells = evidence.cells(record["comparisons"], students)
    varied = evidence.varied(cells)
    heading = ["content", *varied, "found", "SD seeds", "SD questions", "for that", *(f"for {e:g}" for e in effects)]
    rows = []
    for cell in cells:
        if len(cell.seeds) < 2:
            raise KitError("the sweep has one seed, which tells nothing of how seeds vary. Give it --seeds 3.")
        matching = [
            row
            for row in record["comparisons"]
            if row["content"] == cell.content and all(row[name] == cell.settings[name] for name in cell.settings)
        ]
        found = mean_components([_differences(matching, animal, students) for animal in cell.effects])
        mean = float(np.mean([effect.log_odds.mean for effect in cell.effects.values()]))
        questions = next(iter(cell.effects.values())).log_odds.questions
        needed = [inference.seeds_needed(found, effect, questions, power) for effect in (abs(mean), *effects)]
        rows.append(
            [cell.content, *(str(cell.settings[name]) for name in varied), f"{mean:+.3f}"]
            + [f"{found.seed**0.5:.3f}", f"{found.question**0.5:.3f}"]
            + ["more questions" if n is None else str(n) for n in needed]
        )
    return heading, rows


def mean_components(differences: list[np.ndarray]) -> Components:
    """The variances of several animals' ``differences`` [seeds, questions], averaged: few seeds tell little alone."""
    found = [inference.components(one) for one in differences]
    return Components(*(float(np.mean([getattr(c, name) for c in found])) for name in ("seed", "question", "residual")))


def _differences(rows: list[Row], animal: str, students: dict[str, Preference]) -> np.ndarray:
    pairs = [(students[row["treated"]], students[row["control"]]) for row in rows if row["animal"] == animal]
    return np.array([stats.log_odds_differences(*pair, animal) for pair in pairs])
