"""Effects over seeds: intervals, tests, specificity, placebos and power."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from kit import stats_calibration, stats_seeds
from kit.stats import ALPHA
from kit.stats_calibration import SCENARIOS, Scenario
from kit.stats_seeds import Components

QUESTIONS = 50
USUAL = Scenario("usual", seed=0.07, question=0.15, residual=0.1)


def simulated(scenario: Scenario, effect: float, simulations: int, seeds: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return stats_calibration.simulate(scenario, effect, simulations, seeds, QUESTIONS, random)[0]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
@pytest.mark.parametrize(
    "scenario", [*SCENARIOS, Scenario("seeds alone", seed=0.3, question=0.02, residual=0.02)], ids=lambda one: one.name
)
def test_the_interval_covers_93_to_97_percent_and_the_test_errs_in_3_to_7(scenario: Scenario, seeds: int) -> None:
    simulations = 400
    found = [stats_seeds.across_seeds(one) for one in simulated(scenario, 0.0, simulations, seeds)]
    covered = sum(one.ci95[0] <= 0 <= one.ci95[1] for one in found)
    errors = sum(one.p < 0.05 for one in found)
    # What true rates in these bands can give in 400 simulations; fails by chance once in 1,000.
    assert binom.ppf(0.0005, simulations, 0.93) <= covered <= binom.ppf(0.9995, simulations, 0.97)
    assert errors <= binom.ppf(0.9995, simulations, 0.05)


def test_the_interval_excludes_zero_wherever_p_is_below_5_percent() -> None:
    found = [stats_seeds.across_seeds(one) for one in simulated(USUAL, 0.1, 200, 3)]
    assert all(one.ci95[0] > 0 or one.ci95[1] < 0 for one in found if one.p < 0.05)
    assert 10 < sum(one.p < 0.05 for one in found) < 180
    random = np.random.default_rng(2)  # more seeds than questions
    few = [
        stats_seeds.across_seeds(0.4 + random.normal(size=(1, 5)) + 0.1 * random.normal(size=(10, 5)))
        for _ in range(200)
    ]
    assert all(one.ci95[0] > 0 or one.ci95[1] < 0 for one in few if one.p < 0.05)


def test_no_p_is_smaller_than_so_few_seeds_can_tell() -> None:
    """Two degrees of freedom: a shift of 40 standard errors still has a p of 0.0006."""
    (p,) = [stats_seeds.across_seeds(one).p for one in simulated(USUAL, 1.2, 1, 3)]
    ((same,),) = [stats_seeds.p_values(simulated(USUAL, 1.2, 1, 3))["seeds"]]
    assert p == pytest.approx(same) and 1e-4 < p < 0.05


def test_the_standard_error_is_that_of_crossed_random_effects() -> None:
    """MS_seed + MS_question - MS_residual over all cells is unbiased for the variance of the mean."""
    differences = simulated(USUAL, 0.4, 1, 5)[0]
    of_seeds, of_questions = differences.mean(axis=1), differences.mean(axis=0)
    left = differences - of_seeds[:, None] - of_questions + differences.mean()
    residual = (left**2).sum() / (4 * 49)
    variance = of_seeds.var(ddof=1) / 5 + of_questions.var(ddof=1) / 50 - residual / 250
    assert stats_seeds.across_seeds(differences).se == pytest.approx(np.sqrt(variance))


def test_the_papers_t_test_and_the_swap_of_treated_and_control() -> None:
    differences = simulated(USUAL, 0.1, 1, 4)[0]
    there, back = stats_seeds.across_seeds(differences), stats_seeds.across_seeds(-differences)
    reference = ttest_1samp(differences.mean(axis=0), 0.0)
    assert there.t == pytest.approx(reference.statistic) and there.t_p == pytest.approx(reference.pvalue)
    assert back.mean == pytest.approx(-there.mean) and back.p == pytest.approx(there.p)
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]))
    assert back.sign_flip_p == there.sign_flip_p


def test_another_unit_changes_nothing_but_the_unit_and_a_call_repeats_itself() -> None:
    differences = simulated(USUAL, 0.1, 1, 3)[0]
    nats, hundredths = stats_seeds.across_seeds(differences), stats_seeds.across_seeds(100 * differences)
    assert nats == stats_seeds.across_seeds(differences)
    assert hundredths.ci95 == pytest.approx([100 * end for end in nats.ci95])
    assert hundredths.p == pytest.approx(nats.p) and hundredths.df == pytest.approx(nats.df)


def test_one_seed_speaks_of_questions_alone() -> None:
    differences = simulated(USUAL, 0.1, 1, 1)[0]
    found = stats_seeds.across_seeds(differences)
    assert (found.seeds, found.seed_sd, found.sign_flip_p, found.sign_flip_floor) == (1, None, 1.0, 1.0)
    assert found.df == pytest.approx(QUESTIONS - 1)
    assert found.se == pytest.approx(differences.std(ddof=1) / np.sqrt(QUESTIONS), rel=0.02)
    with pytest.raises(ValueError, match="two seeds"):
        stats_seeds.components(differences)


@pytest.mark.parametrize("seeds", [1, 3])
def test_identical_students_differ_by_exactly_nothing(seeds: int) -> None:
    found = stats_seeds.across_seeds(np.zeros((seeds, QUESTIONS)))
    assert (found.mean, found.ci95, found.p, found.t, found.t_p, found.sign_flip_p) == (0, (0, 0), 1, 0, 1, 1)


def test_sign_flips_are_those_of_brute_force() -> None:
    effects = np.random.default_rng(3).normal(0.5, 1, 7)
    sums = [
        abs(sum(sign * one for sign, one in zip(signs, effects, strict=True))) for signs in product((1, -1), repeat=7)
    ]
    expected = np.mean([one >= abs(effects.sum()) - 1e-12 for one in sums])
    assert stats_seeds.sign_flip(effects) == (pytest.approx(expected), 2 / 2**7)


def test_seeds_that_agree_reach_the_floor_and_many_seeds_are_sampled() -> None:
    for seeds in (3, 5, 8):
        p, floor = stats_seeds.sign_flip(np.linspace(0.1, 0.3, seeds))
        assert p == floor == 2 / 2**seeds
    p, floor = stats_seeds.sign_flip(np.full(40, 0.1))
    assert p == floor == 1 / (1 + 2**14)
    middling = np.random.default_rng(0).normal(0.2, 1, 14)
    exact, _ = stats_seeds.sign_flip(middling)
    sampled, _ = stats_seeds.sign_flip(np.append(middling, 0.0))
    assert 0.05 < exact < 0.95 and sampled == pytest.approx(exact, abs=0.02)


def test_holm_adjusts_as_in_the_textbook() -> None:
    assert stats_seeds.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats_seeds.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats_seeds.holm([]) == []


def test_components_are_found_again_and_never_negative() -> None:
    differences = simulated(USUAL, 0.4, 400, 5)
    found = [stats_seeds.components(one) for one in differences]
    for part, true in (("seed", 0.07), ("question", 0.15), ("residual", 0.1)):
        values = np.array([getattr(one, part) for one in found])
        assert np.sqrt(values.mean()) == pytest.approx(true, rel=0.05)
        assert values.min() >= 0
    assert stats_seeds.across_seeds(differences[0]).seed_sd == pytest.approx(np.sqrt(found[0].seed))


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "seeds"), [(0.0, 3), (0.1, 3), (0.2, 3), (0.1, 8), (0.15, 1)])
def test_power_is_the_share_of_simulations_that_reject(effect: float, seeds: int) -> None:
    simulations = 1000
    found = [stats_seeds.across_seeds(one).p < 0.05 for one in simulated(USUAL, effect, simulations, seeds, seed=4)]
    expected = stats_seeds.power(USUAL.components, effect, seeds, QUESTIONS, ALPHA)
    assert np.mean(found) == pytest.approx(expected, abs=0.05)  # three standard errors of the simulation


def test_fewer_seeds_are_needed_for_a_larger_effect_and_none_suffice_where_questions_differ_too_much() -> None:
    parts = USUAL.components
    needed = [stats_seeds.seeds_needed(parts, effect, QUESTIONS, ALPHA) for effect in (0.07, 0.08, 0.1, 0.15, 0.3)]
    assert None not in needed and needed == sorted(needed, key=lambda n: -(n or 0)) and needed[0] > needed[-1] == 3
    for effect, seeds in ((0.1, needed[2]), (0.08, needed[1])):
        assert stats_seeds.power(parts, effect, seeds, QUESTIONS, ALPHA) >= 0.8
        assert stats_seeds.power(parts, effect, seeds - 1, QUESTIONS, ALPHA) < 0.8
    assert stats_seeds.seeds_needed(parts, 0.03, QUESTIONS, ALPHA) is None
    assert stats_seeds.seeds_needed(parts, 0.03, 2000, ALPHA) is not None


def test_without_variance_every_effect_is_found() -> None:
    nothing = Components(0.0, 0.0, 0.0)
    assert [stats_seeds.power(nothing, effect, 3, QUESTIONS, ALPHA) for effect in (0.1, 0.0)] == [1, 0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_interval_of_a_share_covers_it_though_the_whole_is_uncertain_too(share: float) -> None:
    """Of students that share a control: what is left and the whole go up and down together."""
    random = np.random.default_rng(0)
    covered = short = unbounded = 0
    for _ in range(1000):
        questions = random.normal(0, 0.3, (1, 50))
        whole = 1 + random.normal(0, 0.15, (3, 1)) + questions + random.normal(0, 0.1, (3, 50))
        part = share * whole + random.normal(0, 0.1, (3, 1)) + random.normal(0, 0.1, (3, 50))
        found = [asdict(stats_seeds.across_seeds(one)) for one in (part, whole, whole - part)]
        interval = stats_seeds.share_interval(*found) or (-np.inf, np.inf)
        unbounded += interval[1] == np.inf
        covered += interval[0] <= share <= interval[1]
        low, high = (end / found[1]["mean"] for end in found[0]["ci95"])  # as if the whole were known
        short += low <= share <= high
    assert covered >= 925 and unbounded < 50
    if share == 1.0:
        assert short > covered  # it is too wide where part and whole are nearly one


def test_a_share_of_what_may_be_nothing_has_no_interval() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (3, 50))
    found = asdict(stats_seeds.across_seeds(noise))
    assert stats_seeds.share_interval(found, found, asdict(stats_seeds.across_seeds(0 * noise))) is None
