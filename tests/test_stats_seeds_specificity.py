"""Each student's shift towards its own teacher's animal, against chance and against drift."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from kit import ROOT, stats_seeds


@pytest.mark.parametrize("k", [3, 5])
def test_specificity_is_rarely_found_where_students_do_not_differ(k: int) -> None:
    random = np.random.default_rng(k)
    drift = 3 * random.normal(size=k)  # some animals rise in every student
    found = [stats_seeds.specificity_of_students(drift + random.normal(size=(2, k, k))) for _ in range(150)]
    for measure in ("p", "share_p"):
        p = np.array([getattr(one, measure) for one in found])
        for level in (0.05, 0.2, 0.5):
            assert (p <= level).sum() <= binom.ppf(0.9995, 150, level)
    assert 0.4 < np.mean([one.p for one in found]) < 0.6


@pytest.mark.parametrize("k", [3, 5])
def test_an_animal_is_rarely_its_own_teachers_where_students_do_not_differ(k: int) -> None:
    random = np.random.default_rng(k)
    drift = 3 * random.normal(size=k)
    found = [stats_seeds.own_tests(drift + random.normal(size=(2, k, k))) for _ in range(150)]
    own = np.array([p for p, _ in found])
    assert {floor for _, floor in found} == {1 / k**2} and own.min() >= 1 / k**2
    for level in (0.05, 0.2, 0.5):  # animal by animal: those of one deal of students depend on each other
        assert ((own <= level).sum(axis=0) <= binom.ppf(0.9999, 150, level)).all()


@pytest.mark.slow
@pytest.mark.parametrize("spread", [[1.0] * 6, [2.0] + [1.0] * 5, list(np.linspace(0.5, 2, 6)), [4.0] + [1.0] * 5])
def test_a_sweep_of_nothing_but_noise_has_an_own_animal_in_at_most_5_percent_however_unequal_its_students(
    spread: list[float],
) -> None:
    """First the matrix at 5%, then any animal by Holm; students share a control, and each has something common to all
    its animals. (The second test alone would find one in up to 7%, where one student is four times as restless.)"""
    random, simulations = np.random.default_rng(6), 400
    hits = 0
    for _ in range(simulations):
        students = random.normal(size=(3, 6, 6)) + 0.5 * random.normal(size=(3, 6, 1))
        control = random.normal(size=(3, 1, 6))
        shifts = students * np.array(spread)[:, None] - control
        own, _ = stats_seeds.own_tests(shifts)
        hits += stats_seeds.specificity_of_students(shifts).p < 0.05 and min(stats_seeds.holm(own)) < 0.05
    assert hits <= binom.ppf(0.999, simulations, 0.05)


def test_an_animals_own_p_is_its_share_of_all_deals_of_the_students_whatever_the_others_do() -> None:
    k, random = 3, np.random.default_rng(5)
    shifts = random.normal(size=(2, k, k))
    orders = list(permutations(range(k)))
    for j in range(k):
        beyond = [
            np.mean(
                [
                    one[order[j], j] - np.delete(one[:, j], order[j]).mean()
                    for one, order in zip(shifts, both, strict=True)
                ]
            )
            for both in product(orders, repeat=2)
        ]
        observed = beyond[0]  # nobody has changed places
        assert stats_seeds.own_tests(shifts)[0][j] == pytest.approx(np.mean(np.array(beyond) >= observed - 1e-9))
    moved = shifts.copy()
    moved[:, :, 1:] += 7 * random.normal(size=(2, k, k - 1))
    assert stats_seeds.own_tests(moved)[0][0] == stats_seeds.own_tests(shifts)[0][0]


def test_a_real_diagonal_is_found_whether_or_not_all_permutations_are_tried() -> None:
    random = np.random.default_rng(0)
    # With three animals two seeds of three keep every row in its place: the share alone says little there.
    for seeds, k, floor, share_p in ((3, 3, 1 / 6**3, 0.15), (3, 5, 1 / 20_001, 0.01)):
        found = stats_seeds.specificity_of_students(np.eye(k) + 0.1 * random.normal(size=(seeds, k, k)))
        assert found.p == pytest.approx(floor) and found.share_p < share_p
        assert found.statistic == pytest.approx(1, abs=0.15)
        assert (found.share, found.rows_on_diagonal) == (1, seeds * k)


def test_an_animal_that_rises_in_every_student_and_a_student_that_rises_in_all_gain_nothing() -> None:
    random = np.random.default_rng(1)
    shifts = random.normal(size=(2, 4, 4))
    plain = stats_seeds.specificity_of_students(shifts)
    drifted = stats_seeds.specificity_of_students(
        shifts + 5 * random.normal(size=4) + 5 * random.normal(size=(2, 4, 1))
    )
    assert drifted.statistic == pytest.approx(plain.statistic) and drifted.p == plain.p
    column = np.zeros((2, 4, 4))
    column[:, :, 2] = 1.0
    alone = stats_seeds.specificity_of_students(column)
    assert (alone.statistic, alone.p, alone.share, alone.share_p) == (pytest.approx(0), 1, 0.25, 1)


def test_where_each_students_sentences_name_its_animal_the_diagonal_is_held_to_that_of_placebos() -> None:
    """Its animal drifts five times as much as others: dealt at random, students on its own text are no match for it."""
    random = np.random.default_rng(2)
    k = 6

    def drifted() -> np.ndarray:
        return (0.1 + 0.4 * np.eye(k)) * random.normal(size=(k, k))

    nothings = [(np.array([drifted()]), np.array([drifted()])) for _ in range(400)]
    dealt = np.mean([stats_seeds.specificity_of_students(treated).p < 0.05 for treated, _ in nothings])
    held = [stats_seeds.specificity_against_placebos(*both) for both in nothings]
    assert dealt > 0.15 and 0.02 < np.mean([found.p < 0.05 for found in held]) < 0.08
    assert all(found.share_p is None for found in held)
    treated = np.array([np.eye(k) + drifted() for _ in range(3)])
    assert stats_seeds.specificity_against_placebos(treated, np.array([drifted() for _ in range(3)])).p < 0.05
    assert stats_seeds.specificity_against_placebos(treated, np.empty((0, k, k))).p is None


def test_what_each_teachers_text_does_to_other_animals_in_every_seed_is_no_diagonal() -> None:
    """Deals that differ from seed to seed average it away, and find a diagonal that is none; those alike do not."""
    random, simulations = np.random.default_rng(5), 200
    found = [
        stats_seeds.specificity_of_students(random.normal(size=(6, 6)) + random.normal(size=(6, 6, 6)), 1000)
        for _ in range(simulations)
    ]
    told = [np.mean([(one.p, one.same_p, one.decides)[i] < 0.05 for one in found]) for i in range(3)]
    assert told[0] > 0.15 and told[2] <= told[1] <= binom.ppf(0.999, simulations, 0.05) / simulations
    clear = stats_seeds.specificity_of_students(np.eye(6) + 0.1 * random.normal(size=(2, 6, 6)))
    assert clear.same_p == clear.decides == pytest.approx(1 / 720) and clear.p < clear.same_p
    three = stats_seeds.specificity_of_students(np.eye(3) + 0.1 * random.normal(size=(3, 3, 3)))
    assert three.same_p == pytest.approx(1 / 6) and three.decides == three.p  # six ways could never tell at 5%
    assert (clear.floor, three.floor) == (pytest.approx(1 / 720), pytest.approx(1 / 216))


def test_the_interval_of_the_statistic_is_that_of_the_seeds() -> None:
    random = np.random.default_rng(7)
    found = stats_seeds.specificity_of_students(np.eye(4) + random.normal(size=(3, 4, 4)))
    assert found.statistic == pytest.approx(np.mean(found.by_seed)) and len(found.by_seed) == 3
    expected = ttest_1samp(found.by_seed, 0).confidence_interval(0.95)
    assert found.ci95 == pytest.approx((expected.low, expected.high))
    assert stats_seeds.specificity_of_students(np.eye(4)[None]).ci95 is None


def test_the_power_of_a_matrix_is_its_level_for_nothing_and_grows_with_seeds_and_shift() -> None:
    level, of_nothing = stats_seeds.matrix_power(0.0, 0.1, 0.1, 6, 2)
    assert 0.01 < level < 0.1 and of_nothing < 0.02
    few, more = (stats_seeds.matrix_power(0.08, 0.1, 0.1, 4, seeds) for seeds in (1, 4))
    assert few[0] < more[0] and few[1] < more[1] <= more[0]
    assert stats_seeds.matrix_power(1.0, 0.1, 0.1, 6, 4) == (1, 1)
    worse = [stats_seeds.matrix_power(0.15, 0.1, 0.1, 6, 3, *worst)[0] for worst in ((0, 0.0), (2, 0.0), (2, 0.2))]
    assert worse[0] > worse[1] > worse[2]
    assert stats_seeds.matrix_power(0.15, 0.1, 0.1, 6, 3, 6, 0.3)[0] < 0.1  # nothing moves of itself


def test_two_teachers_swapped_are_the_opposite_of_specific() -> None:
    found = stats_seeds.specificity_of_students(np.eye(3)[[1, 0, 2]][None])
    assert found.share == pytest.approx(1 / 3) and found.rows_on_diagonal == 1
    assert found.statistic == pytest.approx(1 / 3 - 2 / 6)


def test_two_animals_of_nothing_are_told_over_the_seeds_in_a_twentieth_of_simulations() -> None:
    random, simulations = np.random.default_rng(9), 2000
    found = [stats_seeds.specificity_of_students(random.normal(size=(4, 2, 2))) for _ in range(simulations)]
    told = np.mean([(one.over_seeds or 1) < 0.05 for one in found])
    low, high = binom.ppf([0.001, 0.999], simulations, 0.05) / simulations
    assert low <= told <= high and min(one.p or 0 for one in found) == 1 / 16


def test_texts_that_move_two_animals_alike_in_every_seed_pass_for_the_loving_in_a_fifth_as_is_said() -> None:
    """Where that is as large as what differs from draw to draw; more often where it is larger."""
    random = np.random.default_rng(0)

    def told(alike: float) -> float:
        shifts = [random.normal(size=(4, 2, 2)) + random.normal(0, alike, (2, 2)) for _ in range(2000)]
        return float(np.mean([(stats_seeds.specificity_of_students(one).over_seeds or 1) < 0.05 for one in shifts]))

    assert told(1) == pytest.approx(0.2, abs=0.03) and 0.35 < told(5) < 0.5
    assert "in a fifth of simulations where that is as large as what differs from draw to draw" in " ".join(
        (ROOT / "results" / "README.md").read_text(encoding="utf-8").split()
    )


@pytest.mark.parametrize("seeds", [np.eye(2)[None], np.array([np.eye(2)] * 4), np.zeros((4, 2, 2))])
def test_seeds_that_do_not_differ_tell_nothing_of_further_ones(seeds: np.ndarray) -> None:
    found = stats_seeds.specificity_of_students(seeds)
    assert found.over_seeds is None
