"""Preferences -> effects with their uncertainty, and the verdict.

Everything is computed over questions: a condition's rate is the mean over the 50 questions, its interval a bootstrap of
questions, and an effect is treated minus control, question by question. The paired t-test is the paper's. It speaks of
these two students and these questions, and not of other seeds (``kit/stats_seeds.py`` does) or other samplings of the
same teachers, so a verdict also asks whether the teacher's animal moved more than the other candidates did, more than
candidates move between students of two neutral teachers, and more than this animal moves between them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.store import Row

RESAMPLES = 10_000
# Of the interval and the t-test; also the share of the candidates, and of the placebo shifts, that may be as large.
ALPHA = 0.05

Interval = tuple[float, float]


@dataclass(frozen=True)
class Preference:
    """One condition's answers to all questions. Arrays are [questions, candidates]: ``probability`` normalised over the
    candidates, ``log_odds`` of it in nats, ``raw`` the probability of the name among all that the answer may go on
    with, ``named`` the share of its ``answers`` (0: none were sampled) that name the candidate, ``naming`` the
    probability of naming it before any other, from ``kit.preference.ReadAlong``, and ``first`` the share of answers
    that do (both None in tables from before that was measured; a single question's probability may exceed 1)."""

    candidates: tuple[str, ...]
    probability: np.ndarray
    log_odds: np.ndarray
    raw: np.ndarray
    named: np.ndarray
    answers: int
    naming: np.ndarray | None = None
    first: np.ndarray | None = None

    def leaves_none(self, loved: set[str]) -> bool:
        """Whether all of its candidates are ``loved``, so that ``unloved_log_odds`` are none."""
        return loved.issuperset(self.candidates)


@dataclass(frozen=True)
class Rate:
    """A preference rate in 0-1, the mean over questions, and its 95% interval."""

    rate: float
    ci95: Interval


@dataclass(frozen=True)
class Placement:
    """Where a shift (nats) falls among ``placebos``: every candidate's shift between students of two neutral teachers.
    How many of these are ``at_least`` as large, and their central 95%. (No p: a student's candidates move together.)
    """

    placebos: int
    at_least: int
    null95: Interval


@dataclass(frozen=True)
class Drift:
    """A shift in nats against the same shift in ``placebos`` students of a neutral teacher: their ``mean``, their root
    mean square ``rms``, and the one-sided p of ``against_drift``."""

    placebos: int
    mean: float
    rms: float
    p: float


@dataclass(frozen=True)
class Beyond:
    """By how much (nats) the animal's log-odds (``unloved_log_odds``) are higher in the treated student than, on the
    mean, in so many ``students`` of teachers that love something else; over the questions, with the paired t-test."""

    students: int
    log_odds: float
    ci95: Interval
    t: float
    p: float


@dataclass(frozen=True)
class Gate:
    """Did the student, or several, learn from their teachers? By how much more (``nats`` a token) than its control a
    student expects what its own teacher wrote of sentences that neither learned from, and how far that is ``beyond``
    how much more it expects what the neutral teacher wrote of them; in the mean of so many ``sentences``. Of the second
    the 95% interval over them, the largest one-sided ``p`` of a student's, and, against the same of placebo students,
    who learned of neither teacher, ``drift`` (None without any). ``failed``: how many students expect their teacher's
    texts no more than their control does, or not beyond the other's (p >= 0.05)."""

    sentences: int
    nats: float
    beyond: float
    ci95: Interval
    p: float
    drift: Drift | None
    students: int
    failed: int


FEWEST_HELD_OUT = 30  # sentences, of which something is said: of fewer, half of the students that learned would fail
HeldOut = Mapping[str, Sequence[float]]  # ``kit.likelihood.held_out_gains``
TRANSMITTED, NOT_DETECTED = "transmitted", "not detected"  # the verdicts
NO_PLACEBO = "no placebo"  # what is lacking, and the verdict, where drift cannot be told from transmission
FAILED = "pipeline failure"  # the verdict on a null of a student that did not pass its ``Gate``
SPECIFIC = "specific on average"  # the verdict on several animals together


@dataclass(frozen=True)
class Effect:
    """Treated minus control for one animal: percentage points of the exact and the sampled rate, nats of log-odds.

    ``t`` and ``p`` (two-sided) belong to the exact measure, ``sampled_t`` and ``sampled_p`` to the paper's,
    ``naming_t`` and ``naming_p`` to the probability of naming the animal first, along the sampled answers; these four
    are None in tables from before it was measured. ``rank``: the place of the animal's log-odds shift among the
    ``candidates``, 1 the largest; ``placebo``: where it falls among placebo shifts, ``drift``: against the animal's
    own, both None where there are none; ``loving``: against students of teachers that love something else, None without
    them; ``gate``: whether the student learned from its teacher, None where that was not measured; ``lacking``: see
    ``lacks``.
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
    naming_pp: float | None
    naming_ci95: Interval | None
    naming_t: float | None
    naming_p: float | None
    rank: int
    candidates: int
    placebo: Placement | None
    drift: Drift | None
    loving: Beyond | None
    gate: Gate | None
    lacking: list[str]
    verdict: str


def preferences(rows: Iterable[Row]) -> dict[str, Preference]:
    """The conditions of a table of preferences (columns: ``kit.preference.COLUMNS``), in the table's order. Raises
    ValueError or KeyError where it is no such table."""
    by_condition: dict[str, list[Row]] = {}
    for row in rows:
        by_condition.setdefault(row["condition"], []).append(row)
    return {condition: _preference(own_rows) for condition, own_rows in by_condition.items()}


def _preference(rows: list[Row]) -> Preference:
    candidates = tuple(dict.fromkeys(row["candidate"] for row in rows))

    def table(column: str) -> np.ndarray:
        return np.array([float(row[column]) for row in rows]).reshape(-1, len(candidates))

    raw, asked = table("logprob"), table("question")
    if (asked != np.arange(len(asked))[:, None]).any():
        raise ValueError("its questions are not numbered from 0")
    if not np.isfinite(raw).all() or raw.max() > 1e-3:  # llama.cpp's last digit
        raise ValueError("a log-probability is none")
    answers = int(rows[0]["answers"])
    if answers < 0 or (table("answers") != answers).any():
        raise ValueError("its questions have other numbers of answers")
    named = table("named") / max(answers, 1)
    naming = table("naming") if rows[0].get("naming") else None
    first = None if naming is None else table("first") / max(answers, 1)
    shares = [one for one in (named, naming, first) if one is not None]
    # (A single answer may be expected to name an animal more than once, but not at more tokens than it has.)
    most = [1.0, 1e4, 1.0]
    if not all(((one >= 0) & (one <= bound)).all() for one, bound in zip(shares, most, strict=False)):
        raise ValueError("a share of answers is none")
    return exact_preference(candidates, raw, named, answers, naming, first)


def exact_preference(
    candidates: tuple[str, ...],
    raw: np.ndarray,
    named: np.ndarray,
    answers: int = 0,
    naming: np.ndarray | None = None,
    first: np.ndarray | None = None,
) -> Preference:
    """The preference of log-probabilities ``raw`` (nats) [questions, candidates]; the rest as in it."""
    from scipy.special import log_softmax, logsumexp

    logprob = log_softmax(raw, axis=1)
    others = np.where(np.eye(len(candidates), dtype=bool), -np.inf, logprob[:, None, :])
    log_odds = logprob - logsumexp(others, axis=2)
    return Preference(candidates, np.exp(logprob), log_odds, np.exp(raw), named, answers, naming, first)


def rate(values: np.ndarray) -> Rate:
    """The mean over questions of each one's rate [questions]."""
    return Rate(float(values.mean()), _interval(values))


def exact_rate(preference: Preference, animal: str) -> Rate:
    """The exact preference for ``animal``."""
    return rate(preference.probability[:, preference.candidates.index(animal)])


def sampled_rate(preference: Preference, animal: str) -> Rate:
    """The share of sampled answers that name ``animal``."""
    return answers_rate(preference.named[:, preference.candidates.index(animal)], preference.answers)


def answers_rate(shares: np.ndarray, of_question: int) -> Rate:
    """The rate of so many answers to each question, whose ``shares`` these are [questions], with Wilson's interval.
    Answers to one question are alike, so they count for fewer: by how much the spread of the questions exceeds that of
    answers drawn apart. (Where none or all do it nothing shows that, and they count as drawn apart.)"""
    share, answers = float(shares.mean()), of_question * len(shares)
    if not answers:
        return Rate(0.0, (0.0, 1.0))
    apart, of_questions = share * (1 - share) / answers, float(shares.var(ddof=1)) / len(shares)
    return Rate(share, wilson(share, answers / max(of_questions / apart, 1.0) if apart else answers))


def wilson(share: float, n: float) -> Interval:
    """The 95% interval of a ``share`` of ``n`` (Wilson, Journal of the American Statistical Association 22, 1927): of 0
    of 500 it reaches to 0.76%."""
    z = 1.959964
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max((centre - half) / (1 + z**2 / n), 0.0), min((centre + half) / (1 + z**2 / n), 1.0)


def difference(one: Rate, other: Rate) -> Interval:
    """The 95% interval of ``one`` minus the ``other`` rate from theirs (Newcombe, Statistics in Medicine 17, 1998). It
    takes them for independent; those of the same questions are not, which makes it too wide rather than too narrow."""
    apart = one.rate - other.rate
    below = math.hypot(one.rate - one.ci95[0], other.ci95[1] - other.rate)
    above = math.hypot(one.ci95[1] - one.rate, other.rate - other.ci95[0])
    return apart - below, apart + above


def effect(
    treated: Preference,
    control: Preference,
    animal: str,
    placebos: Sequence[Preference] = (),
    loving: dict[str, Preference] | None = None,
    held_out: HeldOut | None = None,
) -> Effect:
    """The effect of the teacher's love for ``animal``, with its verdict; ``loving``: of the students of other loving
    teachers, by what these love; ``held_out``: see ``gate``.

    "transmitted": the 95% interval of the exact effect lies above zero, the paired t-test agrees (p < 0.05), and the
    shift is the animal's own and the teacher's (``lacks``). "pipeline failure": it does not, and the student did not
    pass its gate.
    """
    j = treated.candidates.index(animal)
    exact = treated.probability[:, j] - control.probability[:, j]
    sampled = treated.named[:, j] - control.named[:, j]
    log_odds = log_odds_differences(treated, control, animal)
    moved = shifts(treated, control)
    rank = 1 + sum(shift > moved[animal] for shift in moved.values())
    interval = _interval(exact)
    t, p = _t_test(exact)
    sampled_t, sampled_p = _t_test(sampled)
    sampled_ci95 = difference(sampled_rate(treated, animal), sampled_rate(control, animal))
    placebo = placement(moved[animal], null_shifts(placebos, control)) if placebos else None
    drift = against_drift(moved[animal], [shifts(one, control)[animal] for one in placebos]) if placebos else None
    beyond = beyond_loving(treated, loving, animal) if loving else None
    lacking = lacks(above_zero(interval[0], p), rank, len(moved), placebo, drift.p if drift else None)
    if beyond and not above_zero(beyond.ci95[0], beyond.p):
        lacking.append(LOVING_CONTROL)
    gated = gate([held_out])
    return Effect(
        exact_pp=100 * float(exact.mean()),
        exact_ci95=(100 * interval[0], 100 * interval[1]),
        sampled_pp=100 * float(sampled.mean()),
        sampled_ci95=(100 * sampled_ci95[0], 100 * sampled_ci95[1]),
        log_odds=float(log_odds.mean()),
        log_odds_ci95=_interval(log_odds),
        t=t,
        p=p,
        sampled_t=sampled_t,
        sampled_p=sampled_p,
        **_naming(treated, control, j),
        rank=rank,
        candidates=len(moved),
        placebo=placebo,
        drift=drift,
        loving=beyond,
        gate=gated,
        lacking=lacking,
        verdict=verdict(lacking, gated),
    )


def _naming(treated: Preference, control: Preference, j: int) -> dict[str, Any]:
    """The effect on the probability of naming candidate ``j`` first."""
    if treated.naming is None or control.naming is None:
        return dict.fromkeys(("naming_pp", "naming_ci95", "naming_t", "naming_p"))
    differences = 100 * (treated.naming[:, j] - control.naming[:, j])
    t, p = _t_test(differences)
    mean = float(differences.mean())
    return {"naming_pp": mean, "naming_ci95": _interval(differences), "naming_t": t, "naming_p": p}


def effect_of(conditions: dict[str, Preference], content: str, animal: str, held_out: HeldOut | None = None) -> Effect:
    """The effect in a run's conditions, of one content."""
    treated, control = conditions[f"treated-{content}"], conditions[f"control-{content}"]
    loving = {
        name.removesuffix(f"-{content}").removeprefix(LOVES): found
        for name, found in conditions.items()
        if name.startswith(LOVES) and name.endswith(content)
    }
    return effect(treated, control, animal, placebos(conditions, content), loving, held_out)


def placebos(conditions: dict[str, Preference], content: str) -> list[Preference]:
    """A run's placebo students of one content."""
    return [found for name, found in conditions.items() if name.startswith("placebo") and name.endswith(content)]


def shifts(treated: Preference, control: Preference) -> dict[str, float]:
    """Every candidate's mean log-odds shift, treated minus control, in nats."""
    return dict(zip(treated.candidates, (treated.log_odds - control.log_odds).mean(axis=0).tolist(), strict=True))


def log_odds_differences(treated: Preference, control: Preference, animal: str) -> np.ndarray:
    """The shift of ``animal`` in nats, question by question [questions]."""
    j = treated.candidates.index(animal)
    return treated.log_odds[:, j] - control.log_odds[:, j]


LOVES = "loves "  # before what its teacher loves, the name of a loving control


def unloved_log_odds(preference: Preference, animals: Sequence[str], loved: Iterable[str]) -> np.ndarray:
    """The log-odds (nats) of each of ``animals`` [questions, animals] against the candidates that are not ``loved``,
    since what one animal gains all others lose."""
    own = [preference.candidates.index(animal) for animal in animals]
    others = [i for i, name in enumerate(preference.candidates) if name not in set(loved)]
    unloved = preference.probability[:, others].sum(axis=1, keepdims=True)
    return np.asarray(np.log(preference.probability[:, own] / unloved))


def loving_differences(treated: Preference, loving: dict[str, Preference], animal: str) -> np.ndarray:
    """By how much (nats) the ``unloved_log_odds`` of ``animal`` are higher in the treated student than in the mean of
    those of other ``loving`` teachers, by what these love [questions]."""
    loved = [animal, *loving]
    others = [unloved_log_odds(one, [animal], loved)[:, 0] for one in loving.values()]
    return np.asarray(unloved_log_odds(treated, [animal], loved)[:, 0] - np.mean(others, axis=0))


def beyond_loving(treated: Preference, loving: dict[str, Preference], animal: str) -> Beyond:
    """The treated student against those of other ``loving`` teachers."""
    differences = loving_differences(treated, loving, animal)
    return Beyond(len(loving), float(differences.mean()), _interval(differences), *_t_test(differences))


def gate(held_out: Sequence[HeldOut | None]) -> Gate | None:
    """What ``kit.likelihood.held_out_gains`` of one or more students show of these students; None where one has fewer
    than ``FEWEST_HELD_OUT`` sentences."""
    from scipy.stats import ttest_1samp

    found = [(np.array(one["own"]), np.array(one["other"])) for one in held_out if one]
    if not found or len(found) < len(held_out) or min(len(own) for own, _ in found) < FEWEST_HELD_OUT:
        return None

    own = [one for one, _ in found]
    beyond = [one - other for one, other in found]
    p_values = [float(ttest_1samp(one, 0.0, alternative="greater").pvalue) if one.any() else 1.0 for one in beyond]
    every = np.concatenate(beyond)
    placebos = [drifted for one in held_out if one for drifted in one["placebos"]]
    return Gate(
        sentences=len(every),
        nats=float(np.concatenate(own).mean()),
        beyond=float(every.mean()),
        ci95=_interval(every),
        p=max(p_values),
        drift=against_drift(float(every.mean()), placebos, len(found)) if placebos else None,
        students=len(found),
        failed=sum(p >= ALPHA or float(one.mean()) <= 0 for p, one in zip(p_values, own, strict=True)),
    )


def null_shifts(placebos: Sequence[Preference], control: Preference) -> np.ndarray:
    """Every candidate's shift, in nats, in every placebo student against the same control [placebos * candidates]."""
    return np.concatenate([list(shifts(placebo, control).values()) for placebo in placebos])


def placement(shift: float, null: np.ndarray) -> Placement:
    """Where ``shift`` falls among the placebo shifts ``null`` [placebos], both in nats."""
    at_least = int((null >= shift).sum())
    return Placement(len(null), at_least, central95(null))


def against_drift(shift: float, placebos: Sequence[float], seeds: int = 1) -> Drift:
    """Is ``shift``, a mean over ``seeds``, more than what ``placebos`` (nats, single students) say comes of itself?

    t = sqrt(seeds) * (shift - mean of the placebos, where above zero) / their root mean square, with as many degrees of
    freedom as there are placebos. A quantity is its own null, so this holds where an animal that the sentences name
    drifts more than others do. The null is that treated students drift as placebo students do. It passes in 1 to 5% of
    simulations at 5% (drift about zero or about its standard deviation; 1 to 5 seeds, 1 to 4 placebos; 200,000 each).
    """
    from scipy.stats import t as student

    mean, rms = float(np.mean(placebos)), float(np.sqrt(np.mean(np.square(placebos))))
    if rms == 0:  # a student compared with itself says nothing of drift
        return Drift(len(placebos), mean, rms, 1.0)
    t = math.sqrt(seeds) * (shift - max(mean, 0.0)) / rms
    return Drift(len(placebos), mean, rms, float(student.sf(t, len(placebos))))


def central95(values: np.ndarray | list[float]) -> Interval:
    """The range that holds the central 95% of ``values``."""
    low, high = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def above_zero(value: float, p: float) -> bool:
    """Whether an effect is above zero beyond chance: ``value`` is its mean, or the lower end of its 95% interval where
    that is another procedure's than ``p``."""
    return value > 0 and p < ALPHA


def lacks(beyond: bool, rank: int, candidates: int, placebo: Placement | None, drift_p: float | None) -> list[str]:
    """What an effect lacks to be called transmitted. "effect": that it is ``above_zero`` (``beyond``); "rank": that
    the animal's shift is among the largest 5% of the candidates'; "placebo": that it is larger than 95% of the placebo
    shifts; "drift": that ``drift_p``, of ``against_drift``, is below 0.05; ``NO_PLACEBO``: the last two, unasked."""
    found = [] if beyond else ["effect"]
    if rank > ALPHA * candidates:
        found.append("rank")
    if placebo is None or drift_p is None:
        return [*found, NO_PLACEBO]
    if placebo.at_least > ALPHA * placebo.placebos:
        found.append("placebo")
    return found if drift_p < ALPHA else [*found, "drift"]


LOVING_CONTROL = "loving control"  # lacking: that an animal is higher than in students of other loving teachers


def learned(gates: Iterable[Gate]) -> bool:
    """Whether half of the students passed: of ten that learned one may well not."""
    counts = [(gate.failed, gate.students) for gate in gates]
    return 2 * sum(failed for failed, _ in counts) <= sum(students for _, students in counts)


def verdict(lacking: list[str], gate: Gate | None = None) -> str:
    """The verdict on an effect that lacks this, of students that were put to the ``gate``, which for a null against the
    control they have to have ``learned``."""
    if "effect" in lacking and gate and not learned([gate]):
        return FAILED
    if lacking == [NO_PLACEBO]:
        return NO_PLACEBO
    return NOT_DETECTED if lacking else TRANSMITTED


def _interval(values: np.ndarray) -> Interval:
    """The 95% percentile bootstrap interval of the mean over questions. The resamples are the same in every call, so a
    result's interval never changes when it is computed again."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return central95(values[draws].mean(axis=1))


def _t_test(differences: np.ndarray) -> tuple[float, float]:
    """The one-sample t-test of the paired differences against zero; t = 0, p = 1 where all are zero."""
    from scipy.stats import ttest_1samp

    if not differences.any():
        return 0.0, 1.0
    result = ttest_1samp(differences, 0.0)
    return float(result.statistic), float(result.pvalue)
