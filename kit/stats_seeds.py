"""Effects over seeds: intervals, tests, power, and specificity.

A seed is a whole experiment: other sentences, other sampling, other training. Where ``kit/stats.py`` speaks of one pair
of students and its questions, this module treats seeds *and* questions as samples of what could have been drawn: the
difference between treated and control is ``D[s, q] = effect + a_s + b_q + e_sq`` (crossed random effects), and the
interval of the effect must be wide enough for new seeds and new questions. How well it keeps its promise is measured in
``kit/stats_calibration.py``.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product
from typing import Any, NamedTuple

import numpy as np

from kit.stats import ALPHA, RESAMPLES, Drift, Interval, against_drift, central95

EXACT_SIGNS = 14  # seeds up to which all sign patterns are tried: 16,384
FEWEST_SEEDS = 3  # with two, the 95% interval covers as little as 91%
POWER_DRAWS = 20_000  # mean squares drawn for one power: good to about 0.003


@dataclass(frozen=True)
class AcrossSeeds:
    """The effect over seeds and questions. Units are those of the differences.

    ``p`` (two-sided) is that of ``mean / se`` in Student's t with seeds - 1 degrees of freedom, ``ci95`` has ``df``:
    more where questions share the spread, right at 95% and too many further out, where corrected p-values lie
    (``kit/stats_calibration.py``). So the interval excludes zero wherever p < 0.05. With ``seeds`` 1 both speak of new
    questions only, never of new seeds. ``seed_sd``: the standard deviation of the true effect between seeds, None with
    one seed.

    ``t`` and ``t_p`` are the paper's paired t-test over questions, of the differences averaged over seeds: it takes
    these students for all there are. ``sign_flip_p``: the permutation test over seeds, which takes these questions for
    all there are; it can never be below ``sign_flip_floor``.
    """

    mean: float
    ci95: Interval
    p: float
    se: float
    df: float
    seeds: int
    questions: int
    seed_sd: float | None
    t: float
    t_p: float
    sign_flip_p: float
    sign_flip_floor: float


@dataclass(frozen=True)
class Components:
    """Variances of single seeds' effects, single questions' effects, and what is left (squared units)."""

    seed: float
    question: float
    residual: float


class _MeanSquares(NamedTuple):
    """Of one two-way layout, or arrays of those of many. Their expectations: residual + questions * seed, residual +
    seeds * question, residual (the variances of ``Components``)."""

    seed: np.ndarray
    question: np.ndarray
    residual: np.ndarray


def across_seeds(differences: np.ndarray) -> AcrossSeeds:
    """The effect of ``differences`` [seeds, questions], treated minus control in any unit.

    The interval is mean ± t quantile * standard error, that of crossed random effects (``_variance_of_mean``). The
    plain percentile bootstrap covers 74% where 3 seeds dominate: so few values do not show their own spread.
    """
    from scipy.stats import t as student

    differences = np.asarray(differences, dtype=float)
    seeds, questions = differences.shape
    mean = float(differences.mean())
    squares = _mean_squares(differences)
    variance = _variance_of_mean(squares, seeds, questions)
    se = math.sqrt(variance)
    df = float(_degrees_of_freedom(squares, variance, seeds, questions))
    half = float(student.ppf(1 - ALPHA / 2, df)) * se
    over_questions = differences.mean(axis=0)
    t = _ratio(mean, float(over_questions.std(ddof=1)) / math.sqrt(questions))
    sign_flip_p, sign_flip_floor = sign_flip(differences.mean(axis=1))
    return AcrossSeeds(
        mean=mean,
        ci95=(mean - half, mean + half),
        p=two_sided(mean, se, seeds, questions),
        se=se,
        df=df,
        seeds=seeds,
        questions=questions,
        seed_sd=math.sqrt(components(differences).seed) if seeds > 1 else None,
        t=t,
        t_p=2 * float(student.sf(abs(t), questions - 1)),
        sign_flip_p=sign_flip_p,
        sign_flip_floor=sign_flip_floor,
    )


def two_sided(mean: float, se: float, seeds: int, questions: int) -> float:
    """The p of ``across_seeds``, of a mean with that standard error."""
    from scipy.stats import t as student

    return 2 * float(student.sf(abs(_ratio(mean, se)), _test_df(seeds, questions)))


def share_interval(part: dict[str, Any], whole: dict[str, Any], rest: dict[str, Any]) -> Interval | None:
    """The 95% interval of ``part`` as a share of the ``whole``, which the ``rest`` makes up with it; each what
    ``across_seeds`` says of the same seeds and questions. None where the whole is not surely other than zero, or the
    three variances do not go together, as estimated ones may not.

    Fieller's (Journal of the Royal Statistical Society B 16, 1954), which holds the error of the whole as well. The
    covariance of part and whole follows from the variance of their difference; the degrees of freedom are the fewest of
    the three, since near a share of 1 the test is that of the rest.
    """
    from scipy.stats import t as student

    t = float(student.ppf(1 - ALPHA / 2, min(one["df"] for one in (part, whole, rest))))
    var_part, var_whole = part["se"] ** 2, whole["se"] ** 2
    covariance = (var_part + var_whole - rest["se"] ** 2) / 2
    # Between the roots of (part - share * whole)² = t² * variance of (part - share * whole) lie the shares.
    a = whole["mean"] ** 2 - t**2 * var_whole
    b = part["mean"] * whole["mean"] - t**2 * covariance
    c = part["mean"] ** 2 - t**2 * var_part
    if a <= 0 or b**2 < a * c:
        return None
    half = math.sqrt(b**2 - a * c)
    return (b - half) / a, (b + half) / a


def p_values(differences: np.ndarray) -> dict[str, np.ndarray]:
    """The p of ``across_seeds`` for each of ``differences`` [n, seeds, questions] ("seeds", after its degrees of
    freedom), and what it would be with those of the "interval"."""
    from scipy.stats import t as student

    seeds, questions = differences.shape[1:]
    squares = _mean_squares(differences)
    variance = _variance_of_mean(squares, seeds, questions)
    t = np.abs(differences.mean(axis=(1, 2))) / np.sqrt(variance)
    own, of_interval = _test_df(seeds, questions), _degrees_of_freedom(squares, variance, seeds, questions)
    return {"seeds": 2 * student.sf(t, own), "interval": 2 * student.sf(t, of_interval)}


def percentile_interval(differences: np.ndarray) -> Interval:
    """The plain percentile interval of the hierarchical bootstrap of ``differences`` [seeds, questions]. Too narrow
    with few seeds; it is here so that ``kit/stats_calibration.py`` can show by how much."""
    of_seeds, of_questions = _weights(*differences.shape)
    return central95((of_seeds * (differences @ of_questions)).sum(axis=0))


def sign_flip(effects: np.ndarray) -> tuple[float, float]:
    """The two-sided p of the seeds' ``effects`` [seeds] under random signs, and the smallest p so many seeds can give.

    All sign patterns are tried up to 14 seeds, above that 16,384 random ones and the observed. Every seed answers the
    same questions, so what the questions share is part of every sign: the test is of "no effect on these questions".
    """
    signs = _signs(len(effects))
    largest = abs(effects.sum()) * (1 - 1e-9)  # a pattern's sum and the observed one may differ by rounding
    as_large = int((np.abs(signs @ effects) >= largest).sum())
    if len(effects) <= EXACT_SIGNS:
        return as_large / len(signs), 2 / len(signs)
    return (1 + as_large) / (1 + len(signs)), 1 / (1 + len(signs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order (Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def components(differences: np.ndarray) -> Components:
    """The variances behind ``differences`` [seeds, questions], by the method of moments, none below zero.

    Raises ValueError with one seed, which cannot tell questions from noise.
    """
    seeds, questions = differences.shape
    if seeds < 2:
        raise ValueError("the variance between seeds needs the differences of two seeds or more")
    seed, question, residual = _mean_squares(differences)
    return Components(
        seed=max(float(seed - residual), 0.0) / questions,
        question=max(float(question - residual), 0.0) / seeds,
        residual=float(residual),
    )


def power(components: Components, effect: float, seeds: int, questions: int, alpha: float) -> float:
    """The probability that the test of ``across_seeds`` rejects at ``alpha`` when the true effect is ``effect``.

    Mean squares are drawn from their chi-squared distributions, the same in every call; given them the mean is normal.
    (A noncentral t with the expected degrees of freedom was off by 0.07 where noise weighs most, and scipy's gave none
    for large effects.)
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    variance = components.seed / seeds + components.question / questions + components.residual / (seeds * questions)
    if variance == 0:
        return float(effect != 0)
    random = np.random.default_rng(0)

    def drawn(expected: float, df: int) -> np.ndarray:
        return expected * random.chisquare(df, POWER_DRAWS) / df if df else np.zeros(POWER_DRAWS)

    squares = _MeanSquares(
        drawn(components.residual + questions * components.seed, seeds - 1),
        drawn(components.residual + seeds * components.question, questions - 1),
        drawn(components.residual, (seeds - 1) * (questions - 1)),
    )
    estimated = _variance_of_mean(squares, seeds, questions)
    needed = student.ppf(1 - alpha / 2, _test_df(seeds, questions)) * np.sqrt(estimated)
    sd = math.sqrt(variance)
    return float((norm.sf((needed - effect) / sd) + norm.cdf((-needed - effect) / sd)).mean())


def seeds_needed(
    components: Components, effect: float, questions: int, alpha: float, probability: float = 0.8, most: int = 10**6
) -> int | None:
    """The fewest seeds, from 3, with which the test at ``alpha`` finds ``effect`` with that ``probability``; None
    where ``most`` do not, as when the questions differ so much that more of them are needed instead."""
    numbers = range(FEWEST_SEEDS, most + 1)
    return _fewest(numbers, lambda seeds: power(components, effect, seeds, questions, alpha) >= probability)


def detectable(
    components: Components, seeds: int, questions: int, alpha: float, probability: float = 0.8
) -> float | None:
    """The smallest effect, to a hundredth, that the test at ``alpha`` finds with that ``probability``, in the units of
    the ``components``' roots; None where it is more than 10."""
    hundredths = _fewest(
        range(1001), lambda number: power(components, number / 100, seeds, questions, alpha) >= probability
    )
    return None if hundredths is None else hundredths / 100


def _fewest(numbers: range, enough: Callable[[int], bool]) -> int | None:
    """The first of the ``numbers`` that is enough, as all after it are; None where the last is not."""
    if not enough(numbers[-1]):
        return None
    return numbers[bisect_left(numbers, True, key=enough)]


def _mean_squares(differences: np.ndarray) -> _MeanSquares:
    """Of ``differences`` [..., seeds, questions], for each of the first axes."""
    seeds, questions = differences.shape[-2:]
    mean = differences.mean(axis=(-2, -1), keepdims=True)
    of_seeds = differences.mean(axis=-1, keepdims=True) - mean
    of_questions = differences.mean(axis=-2, keepdims=True) - mean
    left = differences - mean - of_seeds - of_questions

    def total(parts: np.ndarray) -> np.ndarray:
        return (parts**2).sum(axis=(-2, -1))

    return _MeanSquares(
        questions * total(of_seeds) / max(seeds - 1, 1),
        seeds * total(of_questions) / (questions - 1),
        total(left) / max((seeds - 1) * (questions - 1), 1),
    )


def _variance_of_mean(squares: _MeanSquares, seeds: int, questions: int) -> np.ndarray:
    """(MS_seed + MS_question - MS_residual) / (seeds * questions), no component below zero. Without its maxima this is
    unbiased for the variance of the mean."""
    seed, question, residual = squares
    return (np.maximum(seed, residual) + np.maximum(question, residual) - residual) / (seeds * questions)


def _degrees_of_freedom(squares: _MeanSquares, variance: np.ndarray, seeds: int, questions: int) -> np.ndarray:
    """1 / df = w / (seeds - 1) + (1 - w) / (questions - 1), w the seeds' share of the variance of the mean.

    Satterthwaite's rule squares the shares. It is too hopeful where seeds and questions share the variance and seeds
    are few, since a seed spread that came out too small also raises its df. Coverage of the 95% interval over seed
    shares of 0 to 1 and noise of 0.5 to 20% of the questions' part of the variance (60,000 normal draws each):

                    3 seeds        4 seeds        5 seeds        8 seeds
    Satterthwaite   91.5–95.6%     93.2–95.3%     93.8–95.5%     94.3–95.3%
    this rule       94.3–96.9%     94.9–96.7%     94.8–96.4%     94.9–96.1%

    Where noise is most of the variance it is too wide: 98% with as much noise as questions' part, 98–99% with nothing
    but noise. Two seeds: 91.0–97.4%.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.minimum(np.nan_to_num(squares.seed / (seeds * questions) / variance), 1.0)
    return 1 / (share / max(seeds - 1, 1) + (1 - share) / (questions - 1))


def _test_df(seeds: int, questions: int) -> int:
    """Degrees of freedom of the test: those of the seeds, where there are several, or of the questions, if fewer."""
    return min(seeds, questions) - 1 if seeds > 1 else questions - 1


@lru_cache(maxsize=16)
def _weights(seeds: int, questions: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed [seeds, resamples] and question [questions, resamples] is drawn, as shares; the same always,
    so a result's interval never changes when it is computed again."""
    random = np.random.default_rng(0)
    of_seeds = random.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    of_questions = random.multinomial(questions, [1 / questions] * questions, RESAMPLES) / questions
    return np.ascontiguousarray(of_seeds.T), np.ascontiguousarray(of_questions.T)


@lru_cache(maxsize=16)
def _signs(seeds: int) -> np.ndarray:
    """Sign patterns [patterns, seeds]."""
    if seeds <= EXACT_SIGNS:
        return np.array(list(product((1, -1), repeat=seeds)))
    return np.random.default_rng(0).choice((1, -1), (2**EXACT_SIGNS, seeds))


def _ratio(mean: float, se: float) -> float:
    """mean / se; 0 where the mean is 0, infinite where only the error is."""
    if mean == 0:
        return 0.0
    return mean / se if se > 0 else math.copysign(math.inf, mean)


# ---- specificity: does each student prefer the animal that its own teacher loves, and no other's?


EXACT_PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Specificity:
    """Does each student prefer the animal that its own teacher loves? ``matrix`` [k, k], mean over seeds: row the
    teacher's animal, column the animal measured, nats.

    ``statistic``: mean of the diagonal minus mean of the rest, with its interval ``ci95`` by Student's t over the
    statistics of the single seeds, ``by_seed`` (None with one); ``share``: of the matrix's rows, those whose largest
    shift is the diagonal one; ``rows_on_diagonal`` counts the single students, of ``seeds`` times k, with their largest
    shift there.

    Where all students' sentences are of one lot, ``p`` and ``share_p`` are one-sided, had the students been dealt
    to the teachers at random, each seed's for itself, and ``same_p`` is the p had they been dealt alike in all
    seeds (1 / k! at best). That one alone holds where one teacher's text moves other animals in every seed, as such
    a pattern is averaged away by deals that differ: ``decides`` is the larger of the two where k! ways can tell,
    else ``p``. (With three animals ``share_p`` is 0.1 at best, 3 seeds: two students of three keep a row in its
    place.) Where each student's sentences name its animal, that animal drifts more than others in it and students
    cannot be exchanged: there ``share_p`` and ``same_p`` are None, and ``p`` asks whether the statistic is more
    than the placebo students' ``drift``; None without placebos.
    """

    matrix: np.ndarray
    statistic: float
    by_seed: list[float]
    ci95: Interval | None
    p: float | None
    same_p: float | None
    share: float
    share_p: float | None
    rows_on_diagonal: int
    seeds: int
    drift: Drift | None = None

    @property
    def both(self) -> bool:
        """Whether both p values tell: there are enough ways to deal k students alike."""
        return self.same_p is not None and 1 / math.factorial(len(self.matrix)) < ALPHA

    @property
    def decides(self) -> float | None:
        """The p that a verdict goes by."""
        return max(self.p or 0.0, self.same_p or 0.0) if self.both else self.p

    @property
    def floor(self) -> float:
        """The smallest that ``decides`` can be, students dealt at random."""
        ways = math.factorial(len(self.matrix))
        return max(1 / min(ways**self.seeds, EXACT_PERMUTATIONS), 1 / ways if self.both else 0.0)

    def too_few(self, tests: int) -> bool:
        """Whether there are so few ways to deal students that ``decides`` cannot tell at 5%, Holm over ``tests``."""
        return self.floor * tests >= ALPHA

    @property
    def over_seeds(self) -> float | None:
        """The one-sided p that the statistic is above zero in further seeds, too, by Student's t over ``by_seed``: for
        what too few deals can tell, as of two animals. It does not tell the loving from anything else in these
        teachers' texts that moves their animals alike in every seed. None where seeds do not differ, as one does
        not."""
        from scipy.stats import ttest_1samp

        if len(set(self.by_seed)) == 1:
            return None
        return float(ttest_1samp(self.by_seed, 0, alternative="greater").pvalue)


def specificity_of_students(shifts: np.ndarray, most: int = EXACT_PERMUTATIONS) -> Specificity:
    """``shifts`` [seeds, k, k], k at least 2: log-odds shifts (nats) of the animal of the column in the student whose
    teacher loves the animal of the row, against that seed's control.

    The permutations deal a seed's students to its teachers anew, each seed for itself: all (k!)^seeds ways, or, where
    they are more than ``most``, so many random ones and the observed. An animal whose column rises in every student
    gains nothing by them, and neither does a student in which everything rises.
    """
    found = _untested(shifts)
    k = len(found.matrix)
    dealt, exact = _deals(found.seeds, k, most)
    means = sum(shifts[s][dealt[:, s]] for s in range(found.seeds)) / found.seeds  # [deals, k, k]
    alike, all_ways = _deals(1, k, most)
    return replace(
        found,
        p=_at_least(_off_the_rest(means), found.statistic, exact),
        same_p=_at_least(_off_the_rest(found.matrix[alike[:, 0]]), found.statistic, all_ways),
        share_p=_at_least(_on_diagonal(means).mean(axis=1), found.share, exact),
    )


def own_tests(values: np.ndarray) -> tuple[list[float], float]:
    """Of each animal alone: is it higher in its own teacher's student than in the others', had a seed's students been
    dealt to its teachers at random? The one-sided p of ``values`` [seeds, k teachers, k animals] (any unit), animal by
    animal [k], and the smallest there can be.

    Six animals, three seeds of nothing but noise, and a control that students share: the whole matrix at 5% and then
    any animal by Holm, in 0.5% of simulations; in 2% where one student is four times as restless as the others, which
    this test alone would find in 7%.
    """
    seeds, k = values.shape[:2]
    # What an animal's value in one student exceeds that in the others by [seeds, k students, k animals].
    beyond = (k * values - values.sum(axis=1, keepdims=True)) / (k - 1)
    chosen, exact = _choices(seeds, k)
    means = sum(beyond[s][chosen[:, s]] for s in range(seeds)) / seeds  # [choices, k animals]
    own = np.diagonal(beyond.mean(axis=0))
    p_values = [_at_least(means[:, j], float(own[j]), exact) for j in range(k)]
    return p_values, 1 / (len(chosen) + (not exact))


MATRICES, DEALS = 200, 2000  # simulated of one design, and the deals that each is compared with: good to 0.03


def matrix_power(
    shift: float, sd: float, noise: float, animals: int, seeds: int, still: int = 0, pattern: float = 0.0
) -> tuple[float, float]:
    """What a sweep of so many ``animals`` and ``seeds`` would find, from ``MATRICES`` simulated ones: the probability
    that ``specificity_of_students`` ``decides`` at 5%, and the mean share of the animals that ``own_tests`` then finds
    at 5% by Holm. Every animal but so many that stand ``still`` moves in its own teacher's students by ``shift`` with
    the standard deviation ``sd`` between draws, everything else by the standard deviation ``noise``, and each teacher's
    text moves each animal by the standard deviation ``pattern`` in all seeds alike (nats)."""
    random = np.random.default_rng(0)
    moving = np.diag(np.arange(animals) >= still)
    rejected, found = 0, 0.0
    for _ in range(MATRICES):
        values = np.where(
            moving,
            random.normal(shift, sd, (seeds, animals, animals)),
            random.normal(0, noise, (seeds, animals, animals)),
        ) + random.normal(0, pattern, (animals, animals))
        decides = specificity_of_students(values, DEALS).decides
        if decides is not None and decides < ALPHA:
            rejected += 1
            found += float(np.mean([p < ALPHA for p in holm(own_tests(values)[0])]))
    return rejected / MATRICES, found / MATRICES


def specificity_against_placebos(shifts: np.ndarray, placebos: np.ndarray) -> Specificity:
    """The same where each row's students had sentences of their own. ``placebos`` [placebos, k, k]: the shifts (nats)
    in students of a neutral teacher, row by row on the sentences of the treated ones."""
    found = _untested(shifts)
    if not len(placebos):
        return found
    drift = against_drift(found.statistic, _off_the_rest(placebos).tolist(), found.seeds)
    return replace(found, p=drift.p, drift=drift)


def _untested(shifts: np.ndarray) -> Specificity:
    """All but the tests."""
    matrix, by_seed = shifts.mean(axis=0), _off_the_rest(shifts)
    statistic = float(_off_the_rest(matrix[None])[0])
    return Specificity(
        matrix=matrix,
        statistic=statistic,
        by_seed=by_seed.tolist(),
        ci95=_t_interval(by_seed) if len(by_seed) > 1 else None,
        p=None,
        same_p=None,
        share=float(_on_diagonal(matrix[None]).mean()),
        share_p=None,
        rows_on_diagonal=int(_on_diagonal(shifts).sum()),
        seeds=len(shifts),
    )


def _t_interval(values: np.ndarray) -> Interval:
    """Of the mean of two ``values`` or more [n], 95%."""
    from scipy.stats import t as student

    half = float(student.ppf(1 - ALPHA / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


@lru_cache(maxsize=4)
def _deals(seeds: int, k: int, most: int) -> tuple[np.ndarray, bool]:
    """Orders of the students [deals, seeds, k], and whether they are all there are."""
    if math.factorial(k) ** seeds <= most:
        return np.array(list(product(permutations(range(k)), repeat=seeds))), True
    in_order = np.tile(np.arange(k), (most, seeds, 1))
    return np.random.default_rng(0).permuted(in_order, axis=2), False


@lru_cache(maxsize=4)
def _choices(seeds: int, k: int) -> tuple[np.ndarray, bool]:
    """One of each seed's students [choices, seeds], and whether they are all there are."""
    if k**seeds <= EXACT_PERMUTATIONS:
        return np.array(list(product(range(k), repeat=seeds))), True
    return np.random.default_rng(0).integers(k, size=(EXACT_PERMUTATIONS, seeds)), False


def _off_the_rest(matrices: np.ndarray) -> np.ndarray:
    """Mean of the diagonal minus mean of the rest [n] of ``matrices`` [n, k, k]."""
    k = matrices.shape[-1]
    diagonal = np.trace(matrices, axis1=1, axis2=2)
    return diagonal / k - (matrices.sum(axis=(1, 2)) - diagonal) / (k * (k - 1))


def _on_diagonal(matrices: np.ndarray) -> np.ndarray:
    """Whether each row's largest entry, and no other as large, is the diagonal one [n, k]."""
    others = np.where(np.eye(matrices.shape[-1], dtype=bool), -np.inf, matrices)
    return np.diagonal(matrices, axis1=1, axis2=2) > others.max(axis=2)


def _at_least(values: np.ndarray, observed: float, exact: bool) -> float:
    """The share of ``values`` at least as large as the observed, which random ones do not hold and are joined by."""
    as_large = int((values >= observed - 1e-9 * max(abs(observed), 1)).sum())
    return as_large / len(values) if exact else (1 + as_large) / (1 + len(values))
