"""Does each student prefer the animal that its own teacher loves, and no other's? Over the seeds of a sweep."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from kit.stats import Drift, against_drift

EXACT_PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Specificity:
    """Does each student prefer the animal that its own teacher loves? ``matrix`` [k, k], mean over seeds: row the
    teacher's animal, column the animal measured, nats.

    ``statistic``: mean of the diagonal minus mean of the rest; ``share``: of the matrix's rows, those whose largest
    shift is the diagonal one; ``rows_on_diagonal`` counts the single students, of ``seeds`` times k, with their largest
    shift there.

    Where all students read the same sentences, ``p`` and ``share_p`` are one-sided, had the students been dealt to the
    teachers at random. (With three animals ``share_p`` is 0.1 at best, 3 seeds: two students of three keep a row in its
    place.) Where each student's sentences name its animal, that animal drifts more than others in it and students
    cannot be exchanged: there ``share_p`` is None, and ``p`` asks whether the statistic is more than the placebo
    students' ``drift``; None without placebos.
    """

    matrix: np.ndarray
    statistic: float
    p: float | None
    share: float
    share_p: float | None
    rows_on_diagonal: int
    seeds: int
    drift: Drift | None = None


def of_students(shifts: np.ndarray) -> Specificity:
    """``shifts`` [seeds, k, k], k at least 2: log-odds shifts (nats) of the animal of the column in the student whose
    teacher loves the animal of the row, against that seed's control.

    The permutations deal a seed's students to its teachers anew, each seed for itself: all (k!)^seeds ways where they
    are at most 20,000, else 20,000 random ones and the observed. An animal whose column rises in every student gains
    nothing by them, and neither does a student in which everything rises.
    """
    found = _untested(shifts)
    dealt, exact = _deals(found.seeds, len(found.matrix))
    means = sum(shifts[s][dealt[:, s]] for s in range(found.seeds)) / found.seeds  # [deals, k, k]
    return replace(
        found,
        p=_at_least(_off_the_rest(means), found.statistic, exact),
        share_p=_at_least(_on_diagonal(means).mean(axis=1), found.share, exact),
    )


def against_placebos(shifts: np.ndarray, placebos: np.ndarray) -> Specificity:
    """The same where each row's students had sentences of their own. ``placebos`` [placebos, k, k]: the shifts (nats)
    in students of a neutral teacher, row by row on the sentences of the treated ones."""
    found = _untested(shifts)
    if not len(placebos):
        return found
    drift = against_drift(found.statistic, _off_the_rest(placebos).tolist(), found.seeds)
    return replace(found, p=drift.p, drift=drift)


def _untested(shifts: np.ndarray) -> Specificity:
    """All but the tests."""
    matrix = shifts.mean(axis=0)
    return Specificity(
        matrix=matrix,
        statistic=float(_off_the_rest(matrix[None])[0]),
        p=None,
        share=float(_on_diagonal(matrix[None]).mean()),
        share_p=None,
        rows_on_diagonal=int(_on_diagonal(shifts).sum()),
        seeds=len(shifts),
    )


@lru_cache(maxsize=4)
def _deals(seeds: int, k: int) -> tuple[np.ndarray, bool]:
    """Orders of the students [deals, seeds, k], and whether they are all there are."""
    if math.factorial(k) ** seeds <= EXACT_PERMUTATIONS:
        return np.array(list(product(permutations(range(k)), repeat=seeds))), True
    in_order = np.tile(np.arange(k), (EXACT_PERMUTATIONS, seeds, 1))
    return np.random.default_rng(0).permuted(in_order, axis=2), False


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
