"""Preferences -> effects with their uncertainty.

Everything is computed over questions: a condition's rate is the mean over the 50 questions, its interval a bootstrap of
questions, and an effect is treated minus control, question by question. The paired t-test is the paper's. It speaks of
these two students and these questions, and not of other seeds or other samplings of the same teachers, so a verdict
also asks whether the teacher's animal moved more than the other candidates did.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kit.store import Row

RESAMPLES = 10_000
ALPHA = 0.05  # of the interval, of the t-test, and the share of candidates among which the animal must rank

Interval = tuple[float, float]


@dataclass(frozen=True)
class Preference:
    """One condition's answers to all questions. Arrays are [questions, candidates]: ``probability`` normalised over the
    candidates, ``log_odds`` of it in nats, ``named`` the share of its ``answers`` that name the candidate."""

    candidates: tuple[str, ...]
    probability: np.ndarray
    log_odds: np.ndarray
    named: np.ndarray
    answers: int


@dataclass(frozen=True)
class Rate:
    """A preference rate in 0-1, the mean over questions, and its 95% interval."""

    rate: float
    ci95: Interval


@dataclass(frozen=True)
class Effect:
    """Treated minus control for one animal: percentage points of the exact and the sampled rate, nats of log-odds.

    ``t`` and ``p`` (two-sided) belong to the exact measure, ``sampled_t`` and ``sampled_p`` to the paper's. ``rank``:
    the place of the animal's log-odds shift among the ``candidates``, 1 the largest.
    """

    exact_pp: float
    exact_ci95: Interval
    sampled_pp: float
    sampled_ci95: Interval
    log_odds: float
    log_odds_ci95: Interval
    t: float
    p: float
    sampled_t: float
    sampled_p: float
    rank: int
    candidates: int
    verdict: str


def preferences(rows: Iterable[Row]) -> dict[str, Preference]:
    """The conditions of a table of preferences (columns: ``kit.preference.COLUMNS``), in the table's order."""
    by_condition: dict[str, list[Row]] = {}
    for row in rows:
        by_condition.setdefault(row["condition"], []).append(row)
    return {condition: _preference(some) for condition, some in by_condition.items()}


def _preference(rows: list[Row]) -> Preference:
    from scipy.special import log_softmax, logsumexp

    candidates = tuple(dict.fromkeys(row["candidate"] for row in rows))

    def table(column: str) -> np.ndarray:
        return np.array([float(row[column]) for row in rows]).reshape(-1, len(candidates))

    logprob = log_softmax(table("logprob"), axis=1)
    others = np.where(np.eye(len(candidates), dtype=bool), -np.inf, logprob[:, None, :])
    answers = int(rows[0]["answers"])
    return Preference(
        candidates, np.exp(logprob), logprob - logsumexp(others, axis=2), table("named") / answers, answers
    )


def exact_rate(preference: Preference, animal: str) -> Rate:
    """The exact preference for ``animal``."""
    return _rate(preference.probability[:, preference.candidates.index(animal)])


def sampled_rate(preference: Preference, animal: str) -> Rate:
    """The share of sampled answers that name ``animal``."""
    return _rate(preference.named[:, preference.candidates.index(animal)])


def effect(treated: Preference, control: Preference, animal: str) -> Effect:
    """The effect of the teacher's love for ``animal``, with its verdict.

    "transmitted": the 95% interval of the exact effect lies above zero, the paired t-test agrees (p < 0.05), and the
    animal's log-odds rose more than those of 95% of the candidates. Else "not detected".
    """
    j = treated.candidates.index(animal)
    exact = treated.probability[:, j] - control.probability[:, j]
    sampled = treated.named[:, j] - control.named[:, j]
    log_odds = treated.log_odds[:, j] - control.log_odds[:, j]
    moved = shifts(treated, control)
    rank = 1 + sum(shift > moved[animal] for shift in moved.values())
    interval = _interval(exact)
    t, p = _t_test(exact)
    sampled_t, sampled_p = _t_test(sampled)
    transmitted = interval[0] > 0 and p < ALPHA and rank <= ALPHA * len(moved)
    return Effect(
        exact_pp=100 * float(exact.mean()),
        exact_ci95=(100 * interval[0], 100 * interval[1]),
        sampled_pp=100 * float(sampled.mean()),
        sampled_ci95=tuple(100 * end for end in _interval(sampled)),  # type: ignore[arg-type]
        log_odds=float(log_odds.mean()),
        log_odds_ci95=_interval(log_odds),
        t=t,
        p=p,
        sampled_t=sampled_t,
        sampled_p=sampled_p,
        rank=rank,
        candidates=len(moved),
        verdict="transmitted" if transmitted else "not detected",
    )


def shifts(treated: Preference, control: Preference) -> dict[str, float]:
    """Every candidate's mean log-odds shift, treated minus control, in nats."""
    return dict(zip(treated.candidates, (treated.log_odds - control.log_odds).mean(axis=0).tolist(), strict=True))


def _rate(values: np.ndarray) -> Rate:
    return Rate(float(values.mean()), _interval(values))


def _interval(values: np.ndarray) -> Interval:
    """The 95% percentile bootstrap interval of the mean over questions. The resamples are the same in every call, so a
    result's interval never changes when it is computed again."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _t_test(differences: np.ndarray) -> tuple[float, float]:
    """The one-sample t-test of the paired differences against zero; t = 0, p = 1 where all are zero."""
    from scipy.stats import ttest_1samp

    if not differences.any():
        return 0.0, 1.0
    result = ttest_1samp(differences, 0.0)
    return float(result.statistic), float(result.pvalue)
