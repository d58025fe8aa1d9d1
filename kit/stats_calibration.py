"""Does the interval over seeds cover, and does its test reject as often as it says? Simulated preferences tell.

python run.py calibrate --out results/calibration

The truth is known, since it is drawn: every scenario fixes how much seeds, questions and the rest vary. Beside the
procedure of ``kit/stats_seeds.py`` stand those that take these students or these questions for all there are.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit import KitError, stats_seeds
from kit.provenance import kit_state, versions
from kit.stats import ALPHA, Interval, wilson
from kit.stats_seeds import Components
from kit.store import write_json

CALIBRATION_FILE = "calibration.json"
MEASURES = (
    *("coverage", "coverage_pp", "percentile_coverage", "false_positives"),
    *("sign_flip_false_positives", "sign_flip_new_questions", "t_test_false_positives"),
)
FURTHER_OUT = "further_out"
LEVELS = (ALPHA, ALPHA / 6, ALPHA / 30)  # of one effect, and of the first of several that Holm's correction judges
MORE = 50  # times as many simulations of those, which need no bootstrap
SEEDS = (3, 5, 8)
QUESTIONS = 50
EFFECT = 0.9  # nats; the owl's shift on unrelated sentences was 0.84 to 0.97 (three seeds)
CONTROL = (-4.5, 1.0)  # mean and sd over questions of a control's log-odds: -4.6 to -4.4 and 0.8 to 1.5 in eight runs


@dataclass(frozen=True)
class Scenario:
    """Standard deviations in nats. ``skewed``: question effects as of an exponential distribution (skewness 2)."""

    name: str
    seed: float
    question: float
    residual: float
    skewed: bool = False

    @property
    def components(self) -> Components:
        return Components(self.seed**2, self.question**2, self.residual**2)


# Three owl runs on unrelated sentences: seeds 0.07, questions 0.13, residual 0.06, skewness of questions 0.6 to 0.9.
SCENARIOS = (
    Scenario("calm seeds", seed=0.02, question=0.2, residual=0.1),
    Scenario("usual", seed=0.07, question=0.15, residual=0.1),
    Scenario("restless seeds", seed=0.15, question=0.15, residual=0.1),
    Scenario("uneven questions", seed=0.07, question=0.3, residual=0.1, skewed=True),
    # Square roots of the mean components of 60 animals' shifts between a placebo and a control student, three seeds.
    Scenario("placebos, soft labels", seed=0.034, question=0.007, residual=0.032),
    Scenario("placebos, hard labels", seed=0.177, question=0.025, residual=0.162),
)


def simulate(
    scenario: Scenario, effect: float, simulations: int, seeds: int, questions: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds differences [simulations, seeds, questions] in nats, treated minus control, when ``effect`` is the truth
    for seeds and questions in general, and the truth for the questions drawn [simulations]."""
    of_seeds = scenario.seed * random.standard_normal((simulations, seeds, 1))
    if scenario.skewed:
        of_questions = scenario.question * (random.standard_exponential((simulations, 1, questions)) - 1)
    else:
        of_questions = scenario.question * random.standard_normal((simulations, 1, questions))
    residual = scenario.residual * random.standard_normal((simulations, seeds, questions))
    return effect + of_seeds + of_questions + residual, effect + of_questions.mean(axis=(1, 2))


def calibrate(simulations: int, seed: int) -> list[dict]:
    """A row for each scenario and number of seeds; each measure as its ``share`` of the simulations and the ``ci95``.

    ``coverage`` and ``percentile_coverage`` are of the effect in nats, from the simulations that gave
    ``false_positives``. ``coverage_pp`` is new simulations with an effect of 0.9 nats, measured in percentage points of
    preference, where questions are skewed. A question's own effect is no error of the sign-flip test, so its rate is
    given for both meanings of "no effect". ``further_out``: false positives at ``LEVELS``, of the test and of what it
    would be with the interval's degrees of freedom.
    """
    random = np.random.default_rng(seed)
    return [_row(scenario, seeds, simulations, random) for scenario in SCENARIOS for seeds in SEEDS]


def _row(scenario: Scenario, seeds: int, simulations: int, random: np.random.Generator) -> dict:
    from scipy.stats import ttest_1samp

    differences, here = simulate(scenario, 0.0, simulations, seeds, QUESTIONS, random)
    found = [stats_seeds.across_seeds(one) for one in differences]
    flips = [stats_seeds.sign_flip(one.mean(axis=1) - truth)[0] for one, truth in zip(differences, here, strict=True)]
    percentile = [stats_seeds.percentile_interval(one) for one in differences]
    points, truth = _percentage_points(scenario, simulations, seeds, random)
    hits = {
        "coverage": [_covers(one.ci95, 0.0) for one in found],
        "coverage_pp": [_covers(stats_seeds.across_seeds(one).ci95, truth) for one in points],
        "percentile_coverage": [_covers(interval, 0.0) for interval in percentile],
        "false_positives": [one.p < ALPHA for one in found],
        "sign_flip_false_positives": [p < ALPHA for p in flips],
        "sign_flip_new_questions": [one.sign_flip_p < ALPHA for one in found],
        "t_test_false_positives": ttest_1samp(differences[:, 0], 0.0, axis=1).pvalue < ALPHA,
    }
    return {
        "scenario": scenario.name,
        "seeds": seeds,
        "questions": QUESTIONS,
        "seed_sd": scenario.seed,
        "question_sd": scenario.question,
        "residual_sd": scenario.residual,
        "skewed": scenario.skewed,
        "simulations": simulations,
        FURTHER_OUT: _further_out(scenario, seeds, MORE * simulations, random),
    } | {measure: _share(int(np.sum(hit)), simulations) for measure, hit in hits.items()}


def _further_out(scenario: Scenario, seeds: int, simulations: int, random: np.random.Generator) -> dict:
    differences, _ = simulate(scenario, 0.0, simulations, seeds, QUESTIONS, random)
    p_values = stats_seeds.p_values(differences)
    levels = [
        {"level": level} | {name: _share(int((p < level).sum()), simulations) for name, p in p_values.items()}
        for level in LEVELS
    ]
    return {"simulations": simulations, "levels": levels}


def _percentage_points(
    scenario: Scenario, simulations: int, seeds: int, random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Differences of preference rates [simulations, seeds, questions] when log-odds rise by 0.9 nats, and their true
    mean, from a million questions each answered by a pair of students of its own."""

    def points(differences: np.ndarray) -> np.ndarray:
        mean, sd = CONTROL
        control = random.normal(mean, sd, (len(differences), 1, differences.shape[2]))
        return 100 / (1 + np.exp(-control - differences)) - 100 / (1 + np.exp(-control))

    population, _ = simulate(scenario, EFFECT, 1_000_000, 1, 1, random)
    differences, _ = simulate(scenario, EFFECT, simulations, seeds, QUESTIONS, random)
    return points(differences), float(points(population).mean())


def run(folder: Path, simulations: int) -> None:
    """Calibrate with seed 0 and leave ``calibration.json`` in ``folder``."""
    rows = calibrate(simulations, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CALIBRATION_FILE, {"versions": versions(), "kit": kit_state(), "rows": rows})


def read(folder: Path) -> list[dict]:
    """The rows that ``run`` left. KitError where there are none, or they cannot be read."""
    try:
        saved = json.loads((folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
        rows = list(saved["rows"] if isinstance(saved, dict) else saved)  # earlier ones are their rows alone
        lacking = {
            name for row in rows for name in {"scenario", "seeds", "simulations", *MEASURES, FURTHER_OUT} - row.keys()
        }
        if lacking or not rows:
            raise ValueError(f"it lacks {', '.join(sorted(lacking)) or 'rows'}")
        return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KitError(f"{folder}: not a calibration's folder ({error}). Run `run.py calibrate` again.") from None


def _covers(interval: Interval, truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _share(hits: int, n: int) -> dict:
    return {"share": hits / n, "ci95": list(wilson(hits / n, n))}
