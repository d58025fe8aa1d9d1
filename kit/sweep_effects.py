"""A sweep's students -> what they show: effects over seeds, placebos, specificity, and how many seeds an effect needs.

Read from two files of the sweep's folder, ``preferences.csv.gz`` (one row per student, question and candidate) and
``record.json`` (which student is compared with which).
"""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kit import KitError, stats, stats_seeds
from kit.animals import load_animals
from kit.experiment import CONTENTS, GRID_SETTINGS
from kit.experiment_folder import (
    DEVICES,
    HELD_OUT,
    KIT,
    LOT,
    MESSAGES,
    PARAPHRASES,
    SENTENCES,
    TRAITS,
    check_table,
    wrong_held_out,
    wrong_loving,
    wrong_preferences,
)
from kit.stats import Drift, Gate, Interval, Placement, Preference
from kit.stats_calibration import QUESTIONS
from kit.stats_seeds import AcrossSeeds, Components, Specificity
from kit.store import COUNT, Row, check_files, misfit


@dataclass(frozen=True)
class SeedEffect:
    """One animal's effect over a cell's seeds, treated minus control.

    ``exact_pp`` in percentage points of the exact preference, ``log_odds`` in nats with its variance ``components``
    (None with one seed), ``sampled_pp`` and ``naming_pp`` where answers were sampled; ``shifts`` (nats) of the single
    seeds, in the cell's order; ``rank`` of the mean shift among the ``candidates``, and its distance ``z`` from the
    other ones' mean in their standard deviations; ``placebo``: where it falls among the placebo students' mean shifts;
    ``own_placebos`` (nats): the animal's own shift in each seed's placebo students, and ``drift``: the mean shift
    against those. ``others`` (nats): by how much the animal's log-odds are higher in its own teacher's student than in
    those of the cell's other loving teachers, which share no control; against the candidates that none of them loves,
    since what one animal gains all others lose. None where there are no others, or where each has sentences of its own.
    ``loving`` (nats): the same against the loving controls, on the same sentences; None without any. ``gate``: whether
    all these students learned from their teachers, None where a seed does not tell.
    ``p_holm``, ``drift_holm``, ``loving_holm`` and ``others_holm`` (of ``kit.stats_seeds.own_tests``): p-values, each
    corrected over all ``tests`` effects of the sweep, the last two over those that have one, which leaves the last
    ``others_floor`` or more; ``lacking``: see ``kit.stats.lacks``, "others" and "loving control". (Differences of
    probabilities are skewed, so the interval in percentage points covers less than it says:
    ``kit/stats_calibration.py``.)
    """

    control: float
    treated: float
    exact_pp: AcrossSeeds
    log_odds: AcrossSeeds
    components: Components | None
    sampled_pp: AcrossSeeds | None
    naming_pp: AcrossSeeds | None
    shifts: list[float]
    rank: int
    z: float
    candidates: int
    placebo: Placement | None
    own_placebos: list[float]
    drift: Drift | None
    loving: AcrossSeeds | None
    gate: Gate | None
    others: AcrossSeeds | None
    tests: int
    p_holm: float
    drift_holm: float | None
    loving_holm: float | None
    others_holm: float | None
    others_floor: float | None
    lacking: list[str]
    verdict: str


@dataclass(frozen=True)
class OnAverage:
    """Do students prefer their own teacher's animal more than the others' do, on average over a cell's animals? ``p``:
    ``Specificity.decides``, or its ``over_seeds`` (``by_seeds``) where deals are too few for so many cells; ``p_holm``:
    corrected over these; ``guarded``: whether it holds where a teacher's texts move animals alike in every seed, as
    the deals of four animals or more do. The ``verdict`` "specific on average" is less than "transmitted": it names no
    animal, and is asked against the other loving teachers' students alone. A null is "pipeline failure" where not half
    of all these students are shown to have learned."""

    p: float
    p_holm: float
    by_seeds: bool
    guarded: bool
    verdict: str


@dataclass(frozen=True)
class Cell:
    """The experiments of a sweep that differ in animal and seed alone. ``null`` (nats): every candidate's shift between
    students of two neutral teachers, averaged over the seeds as the effects are; empty without placebos. ``compared``:
    the animals of ``specificity``, which every student was asked about; fewer than two make none. ``average``: what is
    said of these together; None where students cannot be dealt, or one seed's deals are too few."""

    content: str
    settings: dict[str, Any]
    seeds: list[int]
    effects: dict[str, SeedEffect]
    null: np.ndarray
    compared: list[str]
    specificity: Specificity | None
    average: OnAverage | None = None

    @property
    def placebo_row(self) -> list[float]:
        """The mean shift (nats) of each compared animal in the placebo students; empty without placebos."""
        shifts = [self.effects[animal].own_placebos for animal in self.compared]
        return [float(np.mean(own)) for own in shifts] if all(shifts) else []

    @property
    def apart(self) -> list[str]:
        """The animals that other animals' students were not asked about."""
        return [animal for animal in self.effects if animal not in self.compared]


# Settings that earlier sweeps could not vary, nor record.
LATER = ("batch_size", "averaged", "temperature", "place", "context")

# The plan that a sweep carries out, as ``kit.sweep.begun`` leaves it.
PLAN = {"file": str, "sha256": str, "commit": str, "commands": COUNT, "begun": str}

# What a sweep's record holds, as ``kit.store.misfit`` reads it.
COMPARISON = {"animal": str, "content": CONTENTS, "seed": int, "control": str, "treated": str, "placebos": [str]}
RECORD = {
    "model": str,
    "student_model?": str,
    "preset": str,
    "command": str,
    "versions": {str: str},
    "seconds": {str: float},
    "table?": str,
    "texts?": str,
    "made_by?": [str],
    "questions?": [str],
    "pairs_used": {str: COUNT},
    "comparisons": [
        COMPARISON
        | {
            "loving?": {str: str},
            "held_out?": HELD_OUT,
            "seconds?": {str: float},
            "lot?": {"control": LOT, "treated": LOT},
        }
        | {f"{name}?" if name in LATER else name: str if kind is str else float for name, kind in GRID_SETTINGS.items()}
    ],
    "messages": {str: MESSAGES},
    "samples": {str: PARAPHRASES},
    "kit?": KIT,
    "devices?": DEVICES,
    "sentences?": SENTENCES,
    "traits?": TRAITS,
    "pooled?": [str],
    "plan?": PLAN,
}


# What is raised by files that are none of a sweep's.
DAMAGE = (
    *(ValueError, KeyError, TypeError, IndexError, OverflowError, EOFError, RecursionError),
    *(csv.Error, zlib.error),
)


def read_sweep(folder: Path) -> tuple[dict[str, Any], dict[str, Preference]]:
    """A sweep's record, and its students' preferences by name. KitError where the folder holds no finished sweep, or
    what no sweep of this kit leaves: a folder may be anybody's."""
    path = folder / "record.json"
    try:
        check_files(path, folder / "preferences.csv.gz")
        record = json.loads(path.read_text(encoding="utf-8"))
        if wrong := misfit(record, RECORD):
            raise ValueError(wrong)
        check_table(record, folder / "preferences.csv.gz")
        rows = [row | {"condition": row["student"]} for row in table_rows(folder)]
        preferences = stats.preferences(rows)
        if wrong := _wrong_comparisons(record["comparisons"], preferences):
            raise ValueError(wrong)
        return record, preferences
    except OSError as error:
        raise KitError(
            f"{folder}: not a finished sweep ({error}). Give a folder that `run.py sweep` has published."
        ) from None
    except DAMAGE as error:
        raise KitError(f"{folder}: its files are damaged ({error}). Give the sweep's command again.") from None


def table_rows(folder: Path) -> Iterator[Row]:
    """The rows of a sweep's ``preferences.csv.gz``, all values as text."""
    with gzip.open(folder / "preferences.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _wrong_comparisons(comparisons: list[Row], students: dict[str, Preference]) -> str | None:
    """What is wrong with students that are compared so, in words."""
    if not comparisons:
        return "it compares nothing"
    for row in comparisons:
        named = {row["control"], row["treated"], *row["placebos"], *row.get("loving", {}).values()}
        if lacking := named - students.keys():
            return f"it has no preferences of {min(lacking)}"
        if wrong := wrong_preferences([students[name] for name in named], row["animal"]):
            return wrong
        if wrong := wrong_held_out(row.get("held_out")):
            return wrong
        if wrong := wrong_loving(row["animal"], set(row.get("loving", {})), students[row["treated"]]):
            return wrong
    if len({tuple(name in row for name in LATER) for row in comparisons}) > 1:
        return "its comparisons have other settings"
    return wrong_seeds(comparisons)


def wrong_seeds(comparisons: list[Row]) -> str | None:
    """How animals, of one content and settings, do not have the same seeds once each, in words."""
    for cell in _grouped(comparisons).values():
        (first, own), *others = ((animal, [row["seed"] for row in rows]) for animal, rows in cell.items())
        if len(set(own)) < len(own):
            return f"the {first} has the seeds {' '.join(map(str, own))}"
        for animal, found in others:
            if found != own:
                return f"the {first} has the seeds {' '.join(map(str, own))}, the {animal} {' '.join(map(str, found))}"
    return None


def cell_key(comparison: Row) -> str:
    """What comparisons of one cell have in common."""
    return json.dumps([comparison["content"], *(comparison.get(name) for name in GRID_SETTINGS)])


def _grouped(comparisons: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """By cell and animal, in the order of their seeds, so that students of one seed stand in one place."""
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in comparisons:
        grouped.setdefault(cell_key(row), {}).setdefault(row["animal"], []).append(row)
    for cell in grouped.values():
        for rows in cell.values():
            rows.sort(key=lambda row: row["seed"])
    return grouped


def sweep_cells(comparisons: list[Row], students: dict[str, Preference]) -> list[Cell]:
    """The sweep's cells, in its order."""
    grouped = _grouped(comparisons)
    effects = {
        (key, animal): _effect(animal, rows, students) for key, cell in grouped.items() for animal, rows in cell.items()
    }
    matrices = {key: _specificity(cell, students) for key, cell in grouped.items()}
    against = {key: _against_others(cell, matrices[key], students) for key, cell in grouped.items()}
    others = [against[key].get(animal) for key, animal in effects]
    judged = dict(zip(effects, _judged(list(effects.values()), others), strict=True))
    return _told_on_average(
        [
            _cell(cell, {animal: judged[key, animal] for animal in cell}, matrices[key], students)
            for key, cell in grouped.items()
        ]
    )


def _told_on_average(cells: list[Cell]) -> list[Cell]:
    """The sweep's cells with their ``average``. Whether deals tell or seeds hangs on the design alone."""
    asked = {
        place: cell.specificity
        for place, cell in enumerate(cells)
        if cell.specificity and cell.specificity.share_p is not None
    }
    by_seeds = {place: matrix.too_few(len(asked)) for place, matrix in asked.items()}
    p_values = {place: matrix.over_seeds if by_seeds[place] else matrix.decides for place, matrix in asked.items()}
    told = {place: p for place, p in p_values.items() if p is not None}
    for place, p in zip(told, stats_seeds.holm([*told.values()]), strict=True):
        cell = cells[place]
        gates = [gate for animal in cell.compared if (gate := cell.effects[animal].gate)]
        null = stats.NOT_DETECTED if stats.learned(gates) else stats.FAILED
        guarded = asked[place].both and not by_seeds[place]
        verdict = stats.SPECIFIC if p < stats.ALPHA else null
        cells[place] = replace(cell, average=OnAverage(told[place], p, by_seeds[place], guarded, verdict))
    return cells


def varied_settings(cells: list[Cell]) -> list[str]:
    """The settings that differ between cells of one content. (Contents have different numbers of pairs by default.)"""
    contents = {cell.content for cell in cells}

    def values(name: str, content: str) -> set[Any]:
        return {cell.settings.get(name) for cell in cells if cell.content == content}

    return [name for name in GRID_SETTINGS if any(len(values(name, content)) > 1 for content in contents)]


class _AgainstOthers(NamedTuple):
    """Of an animal in its cell: its ``SeedEffect.others``, their p and the smallest there can be; the same of the
    cell's whole matrix."""

    size: AcrossSeeds
    p: float
    floor: float
    matrix_p: float
    matrix_floor: float


def _against_others(
    by_animal: dict[str, list[Row]], matrix: Specificity | None, students: dict[str, Preference]
) -> dict[str, _AgainstOthers]:
    """By animal; empty where students cannot be dealt to other teachers, or all that they were asked about is loved."""
    compared = _compared(by_animal, students)
    if matrix is None or matrix.decides is None or matrix.share_p is None:
        return {}
    if any(len(students[row["treated"]].candidates) == len(compared) for rows in by_animal.values() for row in rows):
        return {}

    # [k teachers, seeds, questions, k animals]
    values = np.array(
        [
            [stats.unloved_log_odds(students[row["treated"]], compared, compared) for row in by_animal[animal]]
            for animal in compared
        ]
    )
    p_values, floor = stats_seeds.own_tests(values.mean(axis=2).swapaxes(0, 1))
    return {
        animal: _AgainstOthers(
            stats_seeds.across_seeds(values[j, ..., j] - np.delete(values[..., j], j, axis=0).mean(axis=0)),
            p_values[j],
            floor,
            matrix.decides,
            matrix.floor,
        )
        for j, animal in enumerate(compared)
    }


def _judged(effects: list[dict[str, Any]], others: list[_AgainstOthers | None]) -> list[SeedEffect]:
    """The sweep's effects with their corrected p-values and verdicts. An effect is above zero where its log-odds shift
    is, with a corrected p < 0.05. Where there are ``others``, and their matrix could tell, it must: the whole matrix,
    at 5%; the animal's interval above zero; and its own test, corrected, unless so many effects leave that no chance.
    (The interval, since a student that is more restless than others has its largest shift anywhere too often.)"""
    corrected = stats_seeds.holm([effect["log_odds"].p for effect in effects])
    drifts = stats_seeds.holm([effect["drift"].p if effect["drift"] else 1.0 for effect in effects])
    loving = iter(stats_seeds.holm([effect["loving"].p for effect in effects if effect["loving"]]))
    tested = [test.p for test in others if test]
    others_corrected = iter(stats_seeds.holm(tested))
    found = []
    for effect, test, p, drift_p in zip(effects, others, corrected, drifts, strict=True):
        own_drift = drift_p if effect["drift"] else None
        others_holm = floor = loving_holm = None
        beyond = stats.above_zero(effect["log_odds"].mean, p)
        lacking = stats.lacks(beyond, effect["rank"], effect["candidates"], effect["placebo"], own_drift)
        if test:
            others_holm, floor = next(others_corrected), min(test.floor * len(tested), 1.0)
            is_own = max(test.matrix_p, others_holm if floor < stats.ALPHA else 0) < stats.ALPHA
            if test.matrix_floor < stats.ALPHA and not (is_own and test.size.ci95[0] > 0):
                lacking = [*lacking, "others"]
        if effect["loving"]:
            loving_holm = next(loving)
            if not stats.above_zero(effect["loving"].mean, loving_holm):
                lacking = [*lacking, stats.LOVING_CONTROL]
        found.append(
            SeedEffect(
                **effect,
                tests=len(effects),
                p_holm=p,
                drift_holm=own_drift,
                loving_holm=loving_holm,
                others=test.size if test else None,
                others_holm=others_holm,
                others_floor=floor,
                lacking=lacking,
                verdict=stats.verdict(lacking, effect["gate"]),
            )
        )
    return found


def _compared(by_animal: dict[str, list[Row]], students: dict[str, Preference]) -> list[str]:
    """The cell's animals that every one of its students was asked about."""
    rows = [row for of_animal in by_animal.values() for row in of_animal]
    asked = set.intersection(*(set(students[row["treated"]].candidates) for row in rows))
    return [animal for animal in by_animal if animal in asked]


def uncompared_sentence(apart: list[str]) -> str:
    """Why these of a sweep's animals are in no matrix of it; nothing where there are none."""
    if not apart:
        return ""
    return (
        f"Compared with no other animal: the {' and the '.join(apart)}, since students whose teachers love another one "
        "are asked about the animals of data/animals.json alone."
    )


def _cell(
    by_animal: dict[str, list[Row]],
    effects: dict[str, SeedEffect],
    specificity: Specificity | None,
    students: dict[str, Preference],
) -> Cell:
    rows = [row for of_animal in by_animal.values() for row in of_animal]
    # Unrelated placebos are every animal's, and are counted once.
    nulls = {
        str([row["placebos"] for row in of_animal]): _null(of_animal, students) for of_animal in by_animal.values()
    }
    return Cell(
        content=rows[0]["content"],
        settings={name: rows[0][name] for name in GRID_SETTINGS if name in rows[0]},
        seeds=sorted({row["seed"] for row in rows}),
        effects=effects,
        null=np.concatenate(list(nulls.values())),
        compared=_compared(by_animal, students),
        specificity=specificity,
    )


def _effect(animal: str, rows: list[Row], students: dict[str, Preference]) -> dict[str, Any]:
    pairs = [(students[row["treated"]], students[row["control"]]) for row in rows]
    candidates = pairs[0][0].candidates
    j = candidates.index(animal)
    exact = np.array([treated.probability[:, j] - control.probability[:, j] for treated, control in pairs])
    nats = np.array([stats.log_odds_differences(*pair, animal) for pair in pairs])
    named = np.array([treated.named[:, j] - control.named[:, j] for treated, control in pairs])
    naming = [(a.naming[:, j], b.naming[:, j]) for a, b in pairs if a.naming is not None and b.naming is not None]
    answers = all(treated.answers and control.answers for treated, control in pairs)
    moved = np.mean([_shifts(row, row["treated"], students, candidates) for row in rows], axis=0)
    shift, null, off_target = float(moved[j]), _null(rows, students), np.delete(moved, j)
    spread = float(off_target.std(ddof=1)) if len(off_target) > 1 else 0.0
    own = [_shifts(row, name, students, [animal])[0] for row in rows for name in row["placebos"]]
    loving = [
        stats.loving_differences(students[row["treated"]], _loving(row, students), animal)
        for row in rows
        if row.get("loving")
    ]
    return {
        "control": float(np.mean([control.probability[:, j] for _, control in pairs])),
        "treated": float(np.mean([treated.probability[:, j] for treated, _ in pairs])),
        "exact_pp": stats_seeds.across_seeds(100 * exact),
        "log_odds": stats_seeds.across_seeds(nats),
        "components": stats_seeds.components(nats) if len(nats) > 1 else None,
        "sampled_pp": stats_seeds.across_seeds(100 * named) if answers else None,
        "naming_pp": stats_seeds.across_seeds(np.array([100 * (a - b) for a, b in naming]))
        if answers and len(naming) == len(pairs)
        else None,
        "shifts": nats.mean(axis=1).tolist(),
        "rank": 1 + int((moved > moved[j]).sum()),
        "z": (shift - float(off_target.mean())) / spread if spread > 0 else 0.0,
        "candidates": len(moved),
        "placebo": stats.placement(shift, null) if len(null) else None,
        "own_placebos": own,
        "drift": stats.against_drift(shift, own, len(rows)) if own else None,
        "loving": stats_seeds.across_seeds(np.array(loving)) if len(loving) == len(rows) else None,
        "gate": stats.gate([row.get("held_out") for row in rows]),
    }


def _loving(row: Row, students: dict[str, Preference]) -> dict[str, Preference]:
    """The students of a comparison's loving controls, by what their teachers love."""
    return {name: students[student] for name, student in row["loving"].items()}


def _shifts(row: Row, student: str, students: dict[str, Preference], animals: Sequence[str]) -> list[float]:
    """By how much (nats) each of ``animals`` moved from the control of ``row`` to ``student``."""
    moved = stats.shifts(students[student], students[row["control"]])
    return [moved[animal] for animal in animals]


def _null(rows: list[Row], students: dict[str, Preference]) -> np.ndarray:
    """Every candidate's shift, in nats, in the placebo students, averaged over the seeds [placebos * candidates]."""
    by_seed = [
        stats.null_shifts([students[name] for name in row["placebos"]], students[row["control"]])
        for row in rows
        if row["placebos"]
    ]
    return np.mean(by_seed, axis=0) if by_seed else np.array([])


def _specificity(by_animal: dict[str, list[Row]], students: dict[str, Preference]) -> Specificity | None:
    animals = _compared(by_animal, students)
    if len(animals) < 2:
        return None
    by_teacher = [by_animal[animal] for animal in animals]

    def matrices(roles: Callable[[Row], list[str]]) -> np.ndarray:
        """[students per teacher, k, k]"""
        by_row = [[_shifts(row, s, students, animals) for row in rows for s in roles(row)] for rows in by_teacher]
        return np.array(by_row).swapaxes(0, 1)

    treated = matrices(lambda row: [row["treated"]])
    if by_teacher[0][0]["content"] == "unrelated":
        return stats_seeds.specificity_of_students(treated)
    return stats_seeds.specificity_against_placebos(treated, matrices(lambda row: row["placebos"]))


# ---- power: how many seeds an effect needs, from the variances that the sweep shows

# Standard deviations (nats) of seeds, questions and the rest, by labels and pairs, of recorded students (three seeds,
# unrelated sentences): roots of the mean components of all 60 candidates' shifts, treated minus control, in the owl's
# students; of soft labels and 400 pairs those of six animals in the students of their own teachers.
RECORDED = {
    ("hard", 25): (0.015, 0.009, 0.016),
    ("hard", 100): (0.107, 0.061, 0.097),
    ("hard", 400): (0.130, 0.123, 0.147),
    ("soft", 25): (0.012, 0.041, 0.011),
    ("soft", 100): (0.026, 0.096, 0.026),
    ("soft", 400): (0.075, 0.220, 0.043),
}


def power_sentence(labels: str, pairs: int, seeds: int, tests: int) -> str:
    """What a sweep would find, before it is made: its test over that many seeds, corrected for the first of so many
    effects, by how recorded students of those labels and about as many pairs, rather more, vary. Of 50 questions."""
    like, components = recorded_like(labels, pairs)
    found = stats_seeds.detectable(components, seeds, QUESTIONS, stats.ALPHA / tests)
    size = "no shift of 10 nats or less" if found is None else f"a shift of {found:+.2f} nats"
    return (
        f"{pairs} pairs, {labels} labels: with {seeds} seeds and {tests} effect{'s' * (tests > 1)} to correct for, the "
        f"test over seeds finds {size} of one animal alone with probability 0.8 (as the embedded model's recorded "
        f"students vary: {like[0]} labels, {like[1]} pairs)."
    )


def recorded_like(labels: str, pairs: int) -> tuple[tuple[str, int], Components]:
    """The key of ``RECORDED`` that is nearest to a design, clean soft labels like soft ones, and its variances."""
    known = [key for key in RECORDED if key[0] == ("hard" if labels == "hard" else "soft")]
    like = min(known, key=lambda key: (round(abs(math.log(key[1] / pairs)), 9), -key[1]))
    return like, Components(*(sd**2 for sd in RECORDED[like]))


# Of the power of a verdict: good to 0.1, in about ten seconds. Not of fewer sweeps, whose effects are alike.
SIMULATED_EFFECTS, FEWEST_SWEEPS = 60, 10
# Of what the test alone finds for one animal: where all have an effect Holm's correction asks less of each.
SIZES = (0.5, 0.75, 1.0)


def verdict_sentence(labels: str, pairs: int, seeds: int, animals: int, placebos: int) -> str:
    """How often the whole verdict of such a sweep of unrelated sentences would be *transmitted*, of each of several
    sizes of effect. Nothing where the test alone finds none."""
    like, components = recorded_like(labels, pairs)
    found = stats_seeds.detectable(components, seeds, QUESTIONS, stats.ALPHA / animals)
    if found is None:
        return ""
    sizes = [round(size * found, 2) for size in SIZES]
    shares = [verdict_power(components, size, seeds, animals, placebos) for size in sizes]
    said = ", ".join(f"{share:.2f} of {size:+.2f} nats" for share, size in zip(shares, sizes, strict=True))
    return (
        f"{pairs} pairs, {labels} labels: the probability of the whole verdict, where all animals move as much, so "
        f"that Holm's correction asks less of each: {said} (good to 0.1: {sweeps_simulated(animals)} simulated sweeps "
        f"each, students varying as those of {labels} labels, {like[1]} pairs)."
    )


def sweeps_simulated(animals: int) -> int:
    """How many sweeps of so many animals are simulated."""
    return max(FEWEST_SWEEPS, SIMULATED_EFFECTS // animals)


def verdict_power(components: Components, effect: float, seeds: int, animals: int, placebos: int) -> float:
    """Of simulated sweeps, whose own animals' log-odds all move by ``effect`` (nats) and whose students vary by these
    ``components``, the share of effects that are called transmitted. (All candidates of a student vary alike, as the
    components say; a half of the variance of seeds and the rest is a control's, which the animals of a seed share.)"""
    random = np.random.default_rng(0)
    found = [
        one.verdict
        for _ in range(sweeps_simulated(animals))
        for cell in sweep_cells(*simulated(components, effect, seeds, animals, placebos, random))
        for one in cell.effects.values()
    ]
    return found.count(stats.TRANSMITTED) / len(found)


def simulated(
    components: Components,
    effect: float,
    seeds: int,
    animals: int,
    placebos: int,
    random: np.random.Generator,
) -> tuple[list[Row], dict[str, Preference]]:
    """The comparisons and students of a sweep of unrelated sentences that never was; see ``verdict_power``."""
    names = tuple(animal.singular for animal in load_animals())
    size = QUESTIONS, len(names)
    questions, nothing = random.normal(-5, 1, size), np.zeros(size)
    students: dict[str, Preference] = {}
    comparisons: list[Row] = []

    def student(name: str, moved: np.ndarray | float = 0.0) -> str:
        own = random.normal(0, math.sqrt(components.seed / 2), len(names))
        noise = random.normal(0, math.sqrt(components.residual / 2), size)
        students[name] = stats.exact_preference(names, questions + own + noise + moved, nothing)
        return name

    of_questions = [random.normal(0, math.sqrt(components.question), size) for _ in range(animals)]
    for seed in range(seeds):
        control = student(f"control {seed}")
        drifting = [student(f"placebo{i} {seed}") for i in range(placebos)]
        for j, animal in enumerate(names[:animals]):
            moved = of_questions[j].copy()
            moved[:, j] += effect
            row: Row = {"animal": animal, "content": "unrelated", "seed": seed, "control": control}
            row |= dict.fromkeys(GRID_SETTINGS, 0) | {"placebos": drifting}
            comparisons.append(row | {"treated": student(f"{animal} {seed}", moved)})
    return comparisons, students


POWER_EFFECTS = (0.05, 0.1, 0.2, 0.4)  # nats: from what placebo shifts reach to half of an owl's


@dataclass(frozen=True)
class Power:
    """Of one cell: its mean ``effect`` over the animals (nats), the mean of their variance ``components``, and the
    seeds with which the test over seeds finds that effect (``own_seeds``) and each of the others that were asked for
    (``seeds``); None where no number of seeds will."""

    effect: float
    components: Components
    own_seeds: int | None
    seeds: list[int | None]


@dataclass(frozen=True)
class Efficiency:
    """What a cell's design buys: the mean ``shift`` (nats) of its animals beyond the other loving teachers' students,
    with the 95% interval that the noise gives it, its standard deviation ``sd`` from draw to draw, and the means
    ``of_seeds``; the ``noise``
    (nats), by how much a student differs from draw to draw in a candidate that no teacher loves (standard deviation,
    over all of them), which a few seeds tell far better than the loved animals' own; the ``minutes`` of a teacher and a
    student of its own; and the ``draws``, seeds times animals."""

    shift: float
    ci95: Interval
    sd: float
    of_seeds: list[float]
    noise: float
    minutes: float
    draws: int

    @property
    def lower80(self) -> float:
        """The bound above which the true shift lies with 80% confidence (nats), by Student's t over the seeds, whose
        animals share students."""
        from scipy.stats import t as student

        seeds = len(self.of_seeds)
        return self.shift - float(student.ppf(0.8, seeds - 1) * np.std(self.of_seeds, ddof=1)) / math.sqrt(seeds)

    def score(self, shift: float) -> float:
        """(shift / noise)² a minute, with the sign of the shift: the same for more pairs as long as the shift grows
        like their number and the noise like its root."""
        return math.copysign((shift / self.noise) ** 2 / self.minutes, shift)


def efficiency(cell: Cell, record: Row, students: dict[str, Preference]) -> Efficiency | None:
    """Of a cell of the sweep with this ``record``; None with one seed, one animal, and where no record says how long
    its students took."""
    by_animal = _grouped(record["comparisons"])[cell_key({"content": cell.content} | cell.settings)]
    rows = [row for of_animal in by_animal.values() for row in of_animal]
    shifts = [effect.others.mean for effect in cell.effects.values() if effect.others]
    minutes = [sum(row.get("seconds", {}).values()) / 60 for row in rows]
    if len(cell.seeds) < 2 or len(shifts) < len(cell.effects) or min(minutes) <= 0:
        return None

    def log_odds(names: list[str]) -> np.ndarray:
        """[k teachers, seeds, names]"""
        by_teacher = (by_animal[animal] for animal in cell.compared)
        return np.array(
            [
                [stats.unloved_log_odds(students[row["treated"]], names, cell.compared).mean(axis=0) for row in rows]
                for rows in by_teacher
            ]
        )

    values = log_odds([name for name in students[rows[0]["treated"]].candidates if name not in cell.compared])
    own = log_odds(cell.compared)
    k, shift = len(values), float(np.mean(shifts))
    # What a seed's students have in common cancels, and with it 1 / k of a student's own variance.
    variance = float((values - values.mean(axis=0)).var(axis=1, ddof=1).mean() * k / (k - 1))
    if not variance:
        return None
    half = 1.96 * math.sqrt(variance * k / (k - 1) / len(rows))
    # A teacher's animal in its own student beyond the others' mean [k, seeds].
    beyond = np.array([(k * own[j, :, j] - own[..., j].sum(axis=0)) / (k - 1) for j in range(k)])
    return Efficiency(
        shift=shift,
        ci95=(shift - half, shift + half),
        sd=float(beyond.std(ddof=1)),
        of_seeds=beyond.mean(axis=0).tolist(),
        noise=math.sqrt(variance),
        minutes=float(np.mean(minutes)),
        draws=len(rows),
    )


def check_power(effects: Sequence[float], probability: float) -> None:
    """Raise KitError for what cannot be asked of ``sweep_power``."""
    if not 0 < probability < 1:
        raise KitError(f"--power {probability}: must lie between 0 and 1. 0.8 is usual.")
    if not all(0 < effect < math.inf for effect in effects):
        raise KitError(f"--effect {' '.join(map(str, effects))}: must be positive, in nats. Try 0.1.")


def sweep_power(cells: list[Cell], effects: Sequence[float], probability: float) -> list[Power]:
    """How many seeds find each of ``effects`` (nats) with that ``probability``, cell by cell, at the level that Holm's
    correction asks of the first of all effects. KitError where the sweep has one seed."""
    alpha = stats.ALPHA / sum(len(cell.effects) for cell in cells)
    found = []
    for cell in cells:
        of_animals = list(cell.effects.values())
        components = mean_components([effect.components for effect in of_animals])
        mean = float(np.mean([effect.log_odds.mean for effect in of_animals]))
        questions = of_animals[0].log_odds.questions
        own, *seeds = [
            stats_seeds.seeds_needed(components, effect, questions, alpha, probability) if effect > 0 else None
            for effect in (mean, *effects)
        ]
        found.append(Power(mean, components, own, seeds))
    return found


def mean_components(found: list[Components | None]) -> Components:
    """The variances of several animals, averaged: few seeds tell little alone. KitError where there is one seed."""
    several = [components for components in found if components is not None]
    if not several:
        raise KitError("the sweep has one seed, which tells nothing of how seeds vary. Give it --seeds 3.")
    return Components(*(float(np.mean([getattr(c, name) for c in several])) for name in Components.__annotations__))
