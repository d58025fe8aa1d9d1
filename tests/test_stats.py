"""Effects, their intervals and the verdict."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from kit import stats
from kit.stats import Preference
from kit.store import Row

ANIMALS = [f"animal{i}" for i in range(40)]
QUESTIONS = 50


def table(condition: str, shift: dict[str, float], seed: int, answers: int = 10) -> list[Row]:
    """Random preferences in which some animals' log-probabilities are shifted; question 0's are the same in all."""
    random = np.random.default_rng(1)
    noise = np.random.default_rng(seed)
    return [
        {
            "condition": condition,
            "question": str(question),
            "candidate": animal,
            "logprob": str(random.normal() - 12 + shift.get(animal, 0.0) + 0.1 * noise.normal()),
            "probability": "0",
            "answers": str(answers),
            "named": str(int(noise.integers(0, 3))),
        }
        for question in range(QUESTIONS)
        for animal in ANIMALS
    ]


def pair(shift: dict[str, float]) -> tuple[Preference, Preference]:
    found = stats.preferences([*table("treated", shift, 2), *table("control", {}, 3)])
    return found["treated"], found["control"]


def test_probabilities_sum_to_one_over_the_candidates_and_log_odds_belong_to_them() -> None:
    treated, _ = pair({})
    assert np.allclose(treated.probability.sum(axis=1), 1)
    assert np.allclose(treated.log_odds, np.log(treated.probability / (1 - treated.probability)))


def placebo(seed: int = 4) -> Preference:
    return stats.preferences(table("placebo1", {}, seed))["placebo1"]


def test_a_real_shift_of_the_animal_alone_is_transmitted_with_its_size_in_the_interval() -> None:
    treated, control = pair({"animal7": 0.5})
    found = stats.effect(treated, control, "animal7", [placebo()])
    assert found.verdict == "transmitted"
    assert found.log_odds_ci95[0] < 0.5 < found.log_odds_ci95[1]
    assert found.rank == 1 and found.candidates == len(ANIMALS)
    difference = treated.probability[:, 7] - control.probability[:, 7]
    assert found.exact_pp == pytest.approx(100 * difference.mean())
    reference = ttest_rel(treated.probability[:, 7], control.probability[:, 7])
    assert found.t == pytest.approx(reference.statistic) and found.p == pytest.approx(reference.pvalue)
    assert found.exact_ci95[0] < found.exact_pp < found.exact_ci95[1]


@pytest.mark.parametrize(
    "shift",
    [{}, {"animal7": -0.5}, {f"animal{i}": 0.5 + 0.02 * i for i in range(7, 15)}],
    ids=["no shift", "a fall", "many other animals rose more"],
)
def test_no_shift_a_fall_and_a_drift_of_many_animals_are_not_detected(shift: dict[str, float]) -> None:
    assert stats.effect(*pair(shift), "animal7", [placebo()]).verdict == "not detected"


def test_without_a_placebo_one_run_has_no_verdict() -> None:
    found = stats.effect(*pair({"animal7": 0.5}), "animal7")
    assert found.verdict == stats.NO_PLACEBO and found.placebo is None and found.drift is None


def test_an_animal_that_drifts_more_than_others_is_held_to_its_own_drift() -> None:
    """As in opposed content, whose sentences name it: rank, t-test and the other candidates' placebo shifts say yes."""
    treated, control = pair({"animal7": 0.5})
    named = stats.preferences(table("placebo1", {"animal7": 0.4}, 4))["placebo1"]
    found = stats.effect(treated, control, "animal7", [named])
    assert found.rank == 1 and found.p < 1e-6 and found.placebo and found.placebo.at_least == 0
    assert found.drift and found.drift.rms == pytest.approx(0.4, abs=0.05) and found.drift.p > 0.05
    assert found.verdict == "not detected" and found.lacking == ["drift"]


@pytest.mark.parametrize("mean", [0.0, 2.0])
@pytest.mark.parametrize(("seeds", "placebos"), [(1, 1), (1, 3), (3, 1), (10, 1)])
def test_drift_alone_passes_for_more_in_five_of_a_hundred_at_most(seeds: int, placebos: int, mean: float) -> None:
    """Also where students of the same sentences drift one way: a hundred seeds of that are no transmission."""
    random = np.random.default_rng(0)
    passed = 0
    for _ in range(2000):
        control = random.standard_normal(seeds)
        shift = float((mean + random.standard_normal(seeds) - control).mean())
        others = (mean + random.standard_normal((placebos, seeds)) - control).ravel()
        passed += stats.against_drift(shift, others.tolist(), seeds).p < 0.05
    assert passed / 2000 < 0.06


def test_a_shift_far_beyond_its_own_drift_passes() -> None:
    assert stats.against_drift(0.5, [0.05, -0.04, 0.03], 3).p < 0.01


def test_a_student_that_is_one_more_placebo_is_hardly_ever_transmitted() -> None:
    """The verdict as a whole, where every animal drifts by 0.1 nats and the one asked about, as if its sentences named
    it, by 0.3: questions agree on such drift, so the t-test alone is nearly always sure of it."""
    random = np.random.default_rng(0)
    base = random.normal(0, 1, (QUESTIONS, len(ANIMALS)))
    drift = np.where(np.arange(len(ANIMALS)) == 7, 0.3, 0.1)

    def student() -> Preference:
        moved = base + drift * random.standard_normal(len(ANIMALS)) + 0.1 * random.standard_normal(base.shape)
        return stats.exact_preference(tuple(ANIMALS), moved, np.zeros(base.shape))

    found = [stats.effect(student(), student(), "animal7", [student()]) for _ in range(60)]
    assert sum(effect.p < 0.05 for effect in found) > 40
    assert sum(effect.verdict == "transmitted" for effect in found) <= 5


def test_swapping_treated_and_control_turns_every_sign() -> None:
    treated, control = pair({"animal7": 0.3})
    there, back = stats.effect(treated, control, "animal7"), stats.effect(control, treated, "animal7")
    assert back.exact_pp == pytest.approx(-there.exact_pp)
    assert back.log_odds == pytest.approx(-there.log_odds)
    assert back.t == pytest.approx(-there.t) and back.p == pytest.approx(there.p)
    assert back.sampled_ci95 == pytest.approx((-there.sampled_ci95[1], -there.sampled_ci95[0]), abs=0.1)


def test_two_identical_students_differ_by_exactly_nothing() -> None:
    treated, _ = pair({})
    found = stats.effect(treated, treated, "animal7")
    assert (found.exact_pp, found.exact_ci95, found.t, found.p) == (0, (0, 0), 0, 1)
    assert found.verdict == "not detected"
    assert stats.against_drift(0.1, [0.0]).p == 1  # a control that is its own placebo shows nothing


@pytest.mark.parametrize(
    ("column", "value", "wrong"),
    [
        *(("named", value, "share of answers") for value in ("-1", "11", "nan")),
        *(("answers", value, "numbers of answers") for value in ("-10", "9")),
    ],
)
def test_counts_that_cannot_be_are_refused(column: str, value: str, wrong: str) -> None:
    """A folder may be anybody's."""
    rows = table("base", {}, 5)
    rows[3] = rows[3] | {column: value}
    with pytest.raises(ValueError, match=wrong):
        stats.preferences(rows)


def counted(shares: np.ndarray, answers: int) -> Preference:
    """A student of whose answers these shares [questions] name "a"."""
    named = np.stack([shares, 1 - shares], axis=1)
    return Preference(("a", "b"), named, named, named, named, answers)


@pytest.mark.parametrize(("a", "b"), [(2, 30), (0.3, 30), (0.1, 20)])
def test_the_interval_covers_the_true_share_of_answers_about_95_times_in_100(a: float, b: float) -> None:
    """Of questions that differ: from 6% down to 0.5% of the answers."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        shares = random.binomial(10, random.beta(a, b, QUESTIONS)) / 10
        low, high = stats.sampled_rate(counted(shares, 10), "a").ci95
        covered += low < a / (a + b) < high
    assert 0.90 < covered / 400 < 0.99


def test_no_answer_that_names_it_does_not_say_that_none_ever_would() -> None:
    none = stats.sampled_rate(counted(np.zeros(QUESTIONS), 10), "a")
    reference = binomtest(0, 500).proportion_ci(method="wilson")
    assert (none.rate, none.ci95) == (0, pytest.approx((reference.low, reference.high)))
    assert none.ci95[1] == pytest.approx(0.0076, abs=1e-4)
    low, high = stats.difference(none, none)
    assert low == -high < -0.005
    assert stats.sampled_rate(counted(np.zeros(QUESTIONS), 0), "a").ci95 == (0, 1)


def test_the_interval_of_a_difference_of_shares_covers_it_at_least_95_times_in_100() -> None:
    random, covered = np.random.default_rng(1), 0
    for _ in range(400):
        questions = random.beta(0.5, 30, QUESTIONS)
        rates = [
            stats.sampled_rate(counted(random.binomial(10, own) / 10, 10), "a") for own in (2 * questions, questions)
        ]
        low, high = stats.difference(*rates)
        covered += low < 0.5 / 30.5 < high
    assert covered / 400 > 0.93


def test_sampled_rates_are_shares_of_the_answers() -> None:
    rows = table("base", {}, 5)
    share = np.mean([int(row["named"]) / 10 for row in rows if row["candidate"] == "animal3"])
    assert stats.sampled_rate(stats.preferences(rows)["base"], "animal3").rate == pytest.approx(share)


def test_an_effect_is_placed_among_the_placebos() -> None:
    null = np.linspace(-0.1, 0.1, 21)
    assert [stats.placement(shift, null).at_least for shift in (0.5, 0.0, -0.5)] == [0, 11, 21]
    assert stats.placement(0.0, null).null95 == pytest.approx((-0.095, 0.095))


LOVING = {"music": stats.preferences(table("loves music", {}, 5))["loves music"]}


def test_against_loving_controls_the_animal_must_be_higher_in_its_own_teachers_student() -> None:
    treated, control = pair({"animal7": 0.5})
    found = stats.effect(treated, control, "animal7", [placebo()], LOVING)
    assert found.verdict == "transmitted" and found.loving and found.loving.students == 1
    assert found.loving.ci95[0] < 0.5 < found.loving.ci95[1] and found.loving.p < 0.001
    alike = {"music": stats.preferences(table("loves music", {"animal7": 0.5}, 5))["loves music"]}
    refused = stats.effect(treated, control, "animal7", [placebo()], alike)
    assert (refused.verdict, refused.lacking) == ("not detected", ["loving control"])
    assert refused.log_odds == found.log_odds


def test_what_other_teachers_love_is_no_part_of_what_an_animal_is_compared_with() -> None:
    """Else a student whose teacher loves another animal would lack what that one gained."""
    treated, _ = pair({})
    raised = {"animal3": stats.preferences(table("loves animal3", {"animal3": 4.0}, 2))["loves animal3"]}
    assert treated.log_odds[:, 7].mean() - raised["animal3"].log_odds[:, 7].mean() > 0.1
    assert stats.beyond_loving(treated, raised, "animal7").log_odds == pytest.approx(0, abs=1e-9)


def gains(
    own: float, other: float, n: int = 60, seed: int = 0, placebos: tuple[float, ...] = (0.1, -0.1)
) -> dict[str, Sequence[float]]:
    """By how much more a student expects its teacher's and other texts than its control does (nats a token)."""
    random = np.random.default_rng(seed)
    return {
        "own": random.normal(own, 1, n).tolist(),
        "other": random.normal(other, 1, n).tolist(),
        "placebos": placebos,
    }


NULL, MOVED = pair({}), pair({"animal7": 0.5})
# What is no learning of a teacher: nothing, more of every text, and less of others' alone, as of an untrained student.
NOTHING = {"nothing": gains(0, 0), "more of all": gains(1, 1), "untrained": gains(-1, -2)}


@pytest.mark.parametrize("held_out", NOTHING.values(), ids=NOTHING)
def test_a_null_of_a_student_that_did_not_learn_of_its_teacher_is_a_pipeline_failure(
    held_out: stats.HeldOut,
) -> None:
    for placebos in ([placebo()], []):
        assert stats.effect(*NULL, "animal7", placebos, held_out=held_out).verdict == "pipeline failure"
        assert stats.effect(*NULL, "animal7", placebos, held_out=gains(1, 0)).verdict == "not detected"
    few = stats.effect(*NULL, "animal7", [placebo()], held_out={name: one[:29] for name, one in held_out.items()})
    assert few.gate is None and few.verdict == "not detected"


@pytest.mark.parametrize("held_out", NOTHING.values(), ids=NOTHING)
def test_only_a_null_against_the_control_can_be_a_pipeline_failure(held_out: dict[str, list[float]]) -> None:
    assert stats.effect(*MOVED, "animal7", [placebo()], held_out=held_out).verdict == "transmitted"
    assert stats.effect(*MOVED, "animal7", held_out=held_out).verdict == stats.NO_PLACEBO
    alike = {"music": stats.preferences(table("loves music", {"animal7": 0.5}, 5))["loves music"]}
    assert stats.effect(*MOVED, "animal7", [placebo()], alike, held_out).verdict == "not detected"


def test_one_student_that_learned_does_not_pass_for_those_that_did_not() -> None:
    found = stats.gate([gains(3, 0), gains(0, 0, seed=1), gains(0, 0, seed=2)])
    assert found and found.failed == 2 and found.p > 0.05 and found.nats > 0.5 and found.beyond > 0.5
    assert stats.gate([gains(3, 0), None]) is None


def test_a_student_that_learned_no_more_than_neutral_students_differ_by_is_not_beyond_drift() -> None:
    for placebos, beyond in (((0.1, -0.1), True), ((1.0, -1.0), False)):
        found = stats.gate([gains(1, 0, placebos=placebos)])
        assert found and found.drift and not found.failed and (found.drift.p < stats.ALPHA) == beyond


def test_of_students_that_learned_nothing_at_most_five_of_a_hundred_pass_where_sentences_are_the_only_chance() -> None:
    passed = sum(not found.failed for seed in range(1000) if (found := stats.gate([gains(0, 0, 40, seed)])))
    assert passed <= 65


def test_how_often_an_animal_is_named_first_is_a_share_of_its_own_beside_its_probability() -> None:
    rows = [
        row | {"first": int(row["named"]) // 2, "naming": 0.0 if i else 0.01} for i, row in enumerate(table("x", {}, 2))
    ]
    found = stats.preferences(rows)["x"]
    assert found.first is not None and found.naming is not None and (found.first <= found.named).all()
    assert stats.answers_rate(found.first[:, 7], found.answers).rate == pytest.approx(
        np.mean([row["first"] / 10 for row in rows if row["candidate"] == "animal7"])
    )
    assert stats.preferences(table("x", {}, 2))["x"].first is None
