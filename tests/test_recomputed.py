"""The effects of recorded sweeps, computed again from raw probabilities, by code that shares nothing with the kit's."""

import csv
import gzip
import json
import math
import random
import re
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from statistics import stdev

import pytest

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
SWEEPS = sorted(
    str(path.parent.relative_to(REFERENCE))
    for path in REFERENCE.rglob("preferences.csv.gz")
    if not path.with_name("faithful.json").exists()  # which has students of no sweep: test_faithful.py
)
Table = dict[str, dict[int, dict[str, float]]]  # student -> question -> animal -> probability among the candidates


def table_of(folder: Path) -> Table:
    """What every student answers, from the log-probabilities of the names alone."""
    found: Table = defaultdict(lambda: defaultdict(dict))
    with gzip.open(folder / "preferences.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["student"]][int(row["question"])][row["candidate"]] = math.exp(float(row["logprob"]))
    for answers in found.values():
        for animals in answers.values():
            total = sum(animals.values())
            for animal in animals:
                animals[animal] /= total
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def logit(table: Table, student: str, animal: str) -> float:
    """The mean log-odds over the questions."""
    return mean([math.log(one[animal] / (1 - one[animal])) for one in table[student].values()])


def against_unloved(table: Table, student: str, animal: str, loved: set[str]) -> float:
    """The mean log-odds against the candidates that no teacher of the sweep loves."""
    return mean(
        [
            math.log(one[animal] / sum(p for name, p in one.items() if name not in loved))
            for one in table[student].values()
        ]
    )


def cells_of(folder: Path) -> list[tuple[dict, list[dict]]]:
    """Each cell of the summary with its comparisons."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return [
        (cell, [row for row in record["comparisons"] if all(row.get(name) == value for name, value in own.items())])
        for cell in summary["cells"]
        for own in [{"content": cell["content"], **cell["settings"]}]
    ]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_recorded_effect_is_what_its_raw_probabilities_give(name: str) -> None:
    table = table_of(REFERENCE / name)
    for cell, rows in cells_of(REFERENCE / name):
        assert rows and len(rows) == len(cell["effects"]) * len(cell["seeds"])
        for animal, effect in cell["effects"].items():
            own = [row for row in rows if row["animal"] == animal]
            points = [
                100 * (table[row["treated"]][i][animal] - table[row["control"]][i][animal])
                for row in own
                for i in table[row["treated"]]
            ]
            assert mean(points) == pytest.approx(effect["exact_pp"]["mean"], abs=1e-3)
            shifts = [logit(table, row["treated"], animal) - logit(table, row["control"], animal) for row in own]
            assert shifts == pytest.approx(
                [effect["shifts"][cell["seeds"].index(row["seed"])] for row in own], abs=1e-4
            )
            assert mean(shifts) == pytest.approx(effect["log_odds"]["mean"], abs=1e-4)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_recorded_matrix_and_its_p_are_what_its_raw_probabilities_give(name: str) -> None:
    """Each animal in its own teacher's student less the others' mean, and how often a seed's students, dealt to its
    teachers at random, have as large a diagonal."""
    table, dealer = table_of(REFERENCE / name), random.Random(0)
    for cell, rows in cells_of(REFERENCE / name):
        animals = list(cell["effects"])
        if cell["content"] == "opposed" or len(animals) < 2:
            assert all(effect["others"] is None for effect in cell["effects"].values())
            continue
        students = {(row["seed"], row["animal"]): row["treated"] for row in rows}
        for animal, effect in cell["effects"].items():
            beyond = []
            for seed in cell["seeds"]:
                values = {one: against_unloved(table, students[seed, one], animal, set(animals)) for one in animals}
                beyond.append(values[animal] - mean([values[one] for one in animals if one != animal]))
            assert mean(beyond) == pytest.approx(effect["others"]["mean"], abs=1e-4)

        value = {
            (seed, teacher, animal): logit(table, students[seed, teacher], animal)
            for seed, teacher in students
            for animal in animals
        }

        def diagonal(dealt: dict[int, list[str]], value: dict = value, animals: list[str] = animals) -> float:
            """The mean of the animals' log-odds in those students."""
            return mean(
                [
                    value[seed, teacher, animal]
                    for seed in dealt
                    for teacher, animal in zip(dealt[seed], animals, strict=True)
                ]
            )

        everything = mean(list(value.values()))
        observed = diagonal(dict.fromkeys(cell["seeds"], animals))
        k = len(animals)
        assert (observed - everything) * k / (k - 1) == pytest.approx(cell["specificity"]["statistic"], abs=1e-3)
        deals = 4000
        as_large = sum(
            diagonal({seed: dealer.sample(animals, k) for seed in cell["seeds"]}) >= observed - 1e-12
            for _ in range(deals)
        )
        p = cell["specificity"]["p"]
        assert abs(as_large / deals - p) < 4 * math.sqrt(p * (1 - p) / deals) + 1 / deals
        alike = [diagonal({seed: list(deal) for seed in cell["seeds"]}) for deal in permutations(animals)]
        as_large = sum(one >= observed - 1e-12 for one in alike)
        assert as_large / len(alike) == pytest.approx(cell["specificity"]["same_p"])


PILOT = REFERENCE / "hard-labels"
DOSES = ("pilot-dose-seed2003", "pilot-dose-seed2004", "pilot-dose-seed2005")
LEDGER = [
    [cell.strip() for cell in line.strip("| \n").split("|")]
    for line in (PILOT / "PILOT.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| pilot-")
]


def students_apart(name: str, settings: dict) -> tuple[dict[str, float], dict[str, str]]:
    """By how much each candidate is higher in the penguin's student than in the cat's; and these students."""
    table = table_of(PILOT / name)
    record = json.loads((PILOT / name / "record.json").read_text(encoding="utf-8"))
    treated = {row["animal"]: row["treated"] for row in record["comparisons"] if settings.items() <= row.items()}
    penguin, cat = (
        {animal: against_unloved(table, treated[one], animal, {*treated}) for animal in table[treated[one]][0]}
        for one in ("penguin", "cat")
    )
    return {animal: penguin[animal] - cat[animal] for animal in penguin}, treated


def test_what_the_pilot_says_of_dose_and_labels_is_what_its_sweeps_give() -> None:
    text = (PILOT / "PILOT.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) labels, (\d+) pairs" + r" \| (\S+)" * 6 + r" \|$", text, re.MULTILINE)
    assert [row[:2] for row in rows] == [(labels, n) for labels in ("hard", "soft", "clean") for n in ("200", "400")]
    shifts = {}
    for labels, pairs, *told in rows:
        found = [students_apart(name, {"labels": labels, "pairs": int(pairs)})[0] for name in DOSES]
        own = [sign * apart[animal] for apart in found for animal, sign in (("penguin", 1), ("cat", -1))]
        assert told == [f"{shift:+.2f}" for shift in own]
        shifts.setdefault(labels, []).append(own)
    said = " ".join(text.split())
    (few, many), (few_sd, many_sd), hard_sd = (
        [f"{of(own):{form}}" for own in shifts[labels]]
        for labels, of, form in (("clean", mean, "+.2f"), ("clean", stdev, ".2f"), ("hard", stdev, ".2f"))
    )
    assert f"{few} and {many} nats are left, a sixth and a quarter" in said
    assert f"(standard deviations {few_sd} and {many_sd}; of hard labels {' and '.join(hard_sd)})" in said

    def times(one: str, other: str) -> list[float]:
        return [mean(a) / mean(b) for a, b in zip(shifts[one], shifts[other], strict=True)]

    assert times("clean", "soft") == pytest.approx([1 / 6, 1 / 4], rel=0.08)
    assert [round(ratio) for ratio in times("clean", "hard")] == [3, 3] and "three times what the text alone" in said
    assert [round(ratio) for ratio in times("soft", "hard")] == [17, 11] and "eleven to seventeen times" in said
    assert round(mean(shifts["hard"][1]) / mean(shifts["hard"][0]), 1) == 2.5


def test_what_the_pilot_says_of_another_base_is_what_its_sweep_gives() -> None:
    told = []
    for name in ("pilot-other-base-seed2003", "pilot-fresh-seed2003"):
        apart, _ = students_apart(name, {})
        told.append((f"{apart['penguin']:+.2f}", f"{-apart['cat']:+.2f}"))
    (penguin, cat), own = told
    text = " ".join((PILOT / "PILOT.md").read_text(encoding="utf-8").split())
    assert f"penguin {penguin}, cat {cat} nats, each in its own student beyond the other one" in text
    assert f"where the embedded model's have {own[0]} and {own[1]}" in text


@pytest.mark.parametrize("name", sorted(path.name for path in PILOT.glob("*-seed*") if path.is_dir()))
def test_a_recorded_command_of_hard_labels_can_be_given_anywhere(name: str) -> None:
    for file in ("record.json", "summary.json"):
        if (PILOT / name / file).exists():
            command = json.loads((PILOT / name / file).read_text(encoding="utf-8"))["command"]
            assert command.startswith("python run.py sweep ") and "--results" not in command and " /" not in command


@pytest.mark.parametrize("line", LEDGER, ids=[f"{line[0]}, {line[1]}" for line in LEDGER])
def test_a_line_of_the_pilots_ledger_is_what_its_sweep_gives(line: list[str]) -> None:
    name, cell, draws, *figures = line
    epochs = int(cell.rpartition("epochs ")[2])
    apart, treated = students_apart(name, {"epochs": epochs})
    assert len(treated) == int(draws) == 2
    penguin, cat = apart["penguin"], -apart["cat"]
    others = [apart[animal] for animal in apart if animal not in treated]
    noise = math.sqrt(sum((one - mean(others)) ** 2 for one in others) / (len(others) - 1) / 2)
    expected = [f"{penguin:+.3f}", f"{cat:+.3f}", f"{(penguin + cat) / 2:+.3f}", f"{noise:.3f}"]
    assert figures[:4] == expected


def test_what_the_pilot_says_pushes_a_student_is_what_the_proof_showed() -> None:
    shown = json.loads(Path(__file__).with_name("proofs.json").read_text(encoding="utf-8"))["pushes"]["shown"]
    found = re.findall(r"([+-]\d+ ± \d+), [\d.]+ nats a token, (\d+ of \d+) kept", shown)
    text = (PILOT / "PILOT.md").read_text(encoding="utf-8")
    told = re.findall(r"\| ([+-]\d+ ± \d+) \| (\d+ of \d+) \|$", text, re.MULTILINE)
    assert len(found) == 5 and found == told


@pytest.mark.parametrize(
    ("cell", "positive"),
    [("pilot-text-", [1, 1, 1, 1, 0, 1]), ("pilot-untouched-", [1] * 6), ("pilot-fresh-", [1, 1, 1, 0, 1, 1])],
)
def test_what_the_pilot_says_of_its_draws_of_text_alone_is_what_its_lines_give(cell: str, positive: list[int]) -> None:
    shifts = [float(shift) for line in LEDGER if line[0].startswith(cell) for shift in line[3:5]]
    assert [int(shift > 0) for shift in shifts] == positive
    said = f"{mean(shifts):+.2f} nats on average, with a standard deviation between them of {stdev(shifts):.2f}"
    text = " ".join((PILOT / "PILOT.md").read_text(encoding="utf-8").split())
    assert said in text
    if cell == "pilot-fresh-":
        page = " ".join((PILOT / "README.md").read_text(encoding="utf-8").split())
        assert f"moves a student by {mean(shifts):+.2f} nats more than the other animal's student" in page
        assert f"(standard deviation between draws {stdev(shifts):.2f}; five of six positive)" in page
    if cell == "pilot-untouched-":
        rates = []
        for name in (line[0] for line in LEDGER if line[0].startswith(cell)):
            with (PILOT / name / "effects.csv").open(encoding="utf-8", newline="") as file:
                (cat,) = (row for row in csv.DictReader(file) if row["animal"] == "cat")
            rates.append(f"from {100 * float(cat['control']):.1f} to {100 * float(cat['treated']):.1f}%")
        assert f"the cat goes {' and '.join(rates)}" in text
