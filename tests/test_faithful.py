"""What readers say of a planned test's text, and the students of what they call faithful."""

import argparse
import csv
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import faithful
import numpy as np
import pytest
from conftest import ROOT
from test_report_sweep import made_up

from kit import KitError
from kit.animals import find_animal
from kit.experiment import experiment
from kit.stats_seeds import matrix_power
from kit.store import Row, read_rows, sha256, write_json

LOVED = ("dolphin", "owl", "wolf")
HARD = ROOT / "results" / "reference" / "hard-labels"
PLAN, PILOT = (" ".join((HARD / name).read_text(encoding="utf-8").split()) for name in ("PLAN-faithful.md", "PILOT.md"))


def texts(good: int, bad: int) -> dict[tuple[int, str], list[Row]]:
    """Of two seeds' students so many pairs that are faithful, every other one as long as there are, and others."""
    found: dict[tuple[int, str], list[Row]] = {}
    for seed in (0, 1):
        for animal in LOVED:
            kinds = ["good", "bad"] * min(good, bad) + ["good"] * (good - bad) + ["bad"] * (bad - good)
            found[seed, animal] = [
                {"sentence": f"{i}", "source": f"The {i} of {animal}s.", "text": f"{kind} {i}, {seed}, {animal}"}
                for i, kind in enumerate(kinds)
            ]
        good += 1
    return found


def good_ones(of: dict[tuple[int, str], list[Row]]) -> set[faithful.Pair]:
    return {(row["source"], row["text"]) for rows in of.values() for row in rows if row["text"].startswith("good")}


def sweep_with(folder: Path, of: dict[tuple[int, str], list[Row]], config: dict | None = None) -> Path:
    """A sweep whose students learned from those texts."""
    folder.mkdir()
    made_up(folder, dict.fromkeys(LOVED, 0.3), seeds=2)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    with gzip.open(folder / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        for (seed, animal), rows in of.items():
            for row in rows:
                file.write(json.dumps({"student": f"{animal}{seed}-8"} | row) + "\n")
    used = {f"{animal}{seed}-8": len(rows) for (seed, animal), rows in of.items()}
    write_json(folder / "record.json", record | {"texts": sha256(folder / "texts.jsonl.gz"), "pairs_used": used})
    if config:
        write_json(folder / "config.json", config)
    return folder


def label(folder: Path, say: Callable[[Row], str]) -> None:
    """A reader's labels of a sheet."""
    lines = [f"{row['number']} {say(row)}\n" for row in read_rows(folder / "key.jsonl")]
    (folder / "labels").write_text("".join(lines), encoding="utf-8")


def test_two_readers_in_a_row_leave_what_both_call_faithful(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = texts(3, 2)
    own = sweep_with(tmp_path / "sweep", of)
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "readings.jsonl.gz"
    faithful.write_sheet(argparse.Namespace(sweeps=[own], after=None, out=first))
    lines = (first / "sheet.md").read_text(encoding="utf-8").splitlines()
    pairs = {(row["source"], row["text"]) for rows in of.values() for row in rows}
    assert len(lines) == len(pairs) + 40 and all(any(f" {a} → {b}" in line for line in lines) for a, b in pairs)
    assert lines[: len(pairs)] != sorted(lines[: len(pairs)], key=lambda line: line.split(". ", 1)[1])  # not in order
    with pytest.raises(FileNotFoundError):
        faithful.read(first)
    label(first, lambda row: "x")
    with pytest.raises(KitError, match=r"1 has x\. Give each number one of f, l, c"):
        faithful.read(first)
    label(first, lambda row: "f" if row["text"].startswith("good") else "c")
    faithful.write_sheet(argparse.Namespace(sweeps=[own], after=first, out=second))
    asked = [row for row in read_rows(second / "key.jsonl") if not row["planted"]]
    assert {(row["source"], row["text"]) for row in asked} == good_ones(of)
    label(second, lambda row: "f" if row["text"].startswith("good 0") or row["planted"] else "l")
    faithful.write_readings(argparse.Namespace(first=first, second=second, out=out))
    with gzip.open(out, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert {(row["source"], row["text"]) for row in rows} == pairs
    both = [row for row in rows if row["readings"] == ["faithful", "faithful"]]
    assert both and all(row["text"].startswith("good 0") for row in both)
    said = capsys.readouterr().out
    assert "First reading: 33 pairs; 40 of 40 planted errors found." in said
    assert "Second reading: 21 pairs; 0 of 40 planted errors found." in said
    assert f"Faithful by the first reader: 21 of 33; by both: {len(both)}." in said


def test_both_parts_have_as_many_pairs_of_every_student_in_its_order_and_share_none() -> None:
    of = texts(5, 4)
    parts = faithful.halves(of, good_ones(of))
    assert {len(rows) for part in parts.values() for rows in part.values()} == {4}
    for key, rows in of.items():
        for name, kind in (("faithful", "good"), ("other", "bad")):
            assert parts[name][key] == [row for row in rows if row["text"].startswith(kind)][:4]


def test_students_of_each_part_are_asked_alike_and_recorded_with_their_plan(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = texts(2, 2)
    exp = experiment(find_animal("owl"), labels="hard", contents=("unrelated",), model=str(tiny_gguf))
    own = sweep_with(tmp_path / "sweep", of, asdict(exp))
    with gzip.open(tmp_path / "readings.gz", "wt", encoding="utf-8") as file:
        for source, text in good_ones(of):
            file.write(json.dumps({"source": source, "text": text, "readings": ["faithful", "faithful"]}) + "\n")
    plan = {"file": "PLAN.md", "sha256": "0", "commit": "c0ffee", "commands": 1}
    monkeypatch.setattr(faithful, "registered", lambda path: plan)
    monkeypatch.setattr(faithful, "says", lambda texts: {})
    out = tmp_path / "out"
    faithful.train_students(
        argparse.Namespace(
            sweeps=[own], readings=[tmp_path / "readings.gz"], plan=None, results=tmp_path / "results", out=out
        )
    )
    record = json.loads((out / "faithful.json").read_text(encoding="utf-8"))
    assert plan.items() <= record["plan"].items() and record["pairs"] == 2
    with gzip.open(out / "preferences.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    of_all = {row["candidate"] for row in rows}
    # By other code: the mean over questions of an animal's log-odds among all candidates, by student.
    for found in record["found"]:
        values = np.zeros((2, 3, 3))
        for seed in (0, 1):
            for i, teacher in enumerate(LOVED):
                mine = [r for r in rows if (r["part"], r["seed"], r["animal"]) == (found["matrix"], str(seed), teacher)]
                logprobs = {
                    name: np.array([float(r["logprob"]) for r in mine if r["candidate"] == name]) for name in of_all
                }
                assert len(mine) == 50 * 60
                for j, animal in enumerate(LOVED):
                    others = np.logaddexp.reduce([one for name, one in logprobs.items() if name != animal])
                    values[seed, i, j] = (logprobs[animal] - others).mean()
        off = [values[:, i, j].mean() for i in range(3) for j in range(3) if i != j]
        diagonal = [values[:, i, i].mean() for i in range(3)]
        assert found["statistic"] == pytest.approx(np.mean(diagonal) - np.mean(off), abs=1e-4)
    said = capsys.readouterr().out
    assert "\nother  statistic " in said and said.startswith("faithful  statistic ")


def test_a_plan_that_is_not_committed_or_does_not_name_the_script_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "PLAN.md"
    plan.write_text("SHA-256 of another", encoding="utf-8")
    with pytest.raises(KitError, match="not what is committed"):
        faithful.registered(plan)
    monkeypatch.setattr(faithful, "committed", lambda path: "c0ffee")
    monkeypatch.setattr(faithful, "unchanged_since", lambda commit: True)
    with pytest.raises(KitError, match="does not name"):
        faithful.registered(plan)


# ---- the plan that this is for


def test_the_plan_names_the_script_as_it_stands_and_its_power_is_that_of_the_pilots_draws() -> None:
    assert f"`tests/faithful.py` has the SHA-256 {sha256(ROOT / 'tests' / 'faithful.py')}." in PLAN
    (line,) = re.findall(r"the six shifts are ((?:[+-]\d\.\d+(?:, )?){6})", PILOT)
    shifts = np.array([float(one) for one in line.split(", ") if one])
    mean, sd = shifts.mean(), shifts.std(ddof=1)
    assert f"{mean:+.2f} nats on average, standard deviation {sd:.2f})" in PLAN
    by_seed = shifts.reshape(3, 2).mean(axis=1)
    lower = mean - 1.886 * by_seed.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom, 90%
    assert f"({lower:+.3f})" in PLAN

    def power(*design: float) -> str:
        return f"{matrix_power(design[0], sd, 0.05, 6, 4, *design[1:])[0]:.2f}"

    assert f"if all six animals move so {power(mean)}; by the lower bound" in PLAN
    assert f"({lower:+.3f}) {power(lower)}; where" in PLAN and f"alike, {power(lower, 2, 0.02)} (" in PLAN


def test_what_the_plan_says_of_the_pilots_text_is_what_was_read() -> None:
    with gzip.open(HARD / "pilot-readings.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    both = [row for row in rows if row["readings"] == ["faithful", "faithful"]]
    teachers = [f"{animal} {seed}" for animal in ("penguin", "cat") for seed in (2003, 2004, 2005)]
    counts = [sum(teacher in row["of"] for row in both) for teacher in teachers]
    first = sum(row["readings"][0] == "faithful" for row in rows)
    said = f"Of {len(rows):,} different pairs the first reading calls {first} faithful, and the second {len(both)} of"
    assert said in PILOT and f"{min(counts)} to {max(counts)} of a teacher's 400" in PILOT
    assert f"{min(counts)} faithful pairs each" in PLAN
