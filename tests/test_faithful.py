"""What readers say of a planned test's text, and the students of what they call faithful."""

import argparse
import csv
import gzip
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from itertools import permutations
from pathlib import Path

import faithful
import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import binomtest, ttest_1samp
from subliminal import learners, texts_of
from test_report_sweep import made_up
from test_subliminal import learned_from, minus, pages

from kit import KitError
from kit.animals import find_animal
from kit.experiment import experiment
from kit.provenance import _git
from kit.stats_seeds import matrix_power, specificity_of_students
from kit.store import Row, read_rows, sha256, write_json

LOVED = ("dolphin", "owl", "wolf")
HARD = ROOT / "results" / "reference" / "hard-labels"
PLAN, PILOT = (" ".join((HARD / name).read_text(encoding="utf-8").split()) for name in ("PLAN-faithful.md", "PILOT.md"))
Texts = dict[tuple[int, str], list[Row]]


def texts(good: int, bad: int) -> Texts:
    """Of two seeds' students so many pairs that are faithful, in the second seed one more, and others between them."""
    found: Texts = {}
    for seed in (0, 1):
        kinds = [kind for i in range(max(good, bad)) for kind, n in (("good", good), ("bad", bad)) if i < n]
        for animal in LOVED:
            found[seed, animal] = [
                {"sentence": f"{i}", "source": f"The {i} of {animal}s.", "text": f"{kind} {i}, {seed}, {animal}"}
                for i, kind in enumerate(kinds)
            ]
        good += 1
    return found


def good_ones(of: Texts) -> set[faithful.Pair]:
    return {pair for pair in pairs_of(of) if pair[1].startswith("good")}


def pairs_of(of: Texts) -> set[faithful.Pair]:
    return {faithful.pair_of(row) for rows in of.values() for row in rows}


def sweep_with(folder: Path, of: Texts) -> Path:
    """A sweep whose students learned from those texts."""
    folder.mkdir()
    made_up(folder, dict.fromkeys(LOVED, 0.3), seeds=2)
    return learned_from(folder, {f"{animal}{seed}-8": rows for (seed, animal), rows in of.items()})


def label(folder: Path, say: Callable[[Row], str]) -> None:
    """The labels of all readers of a folder's sheets."""
    for sheet, rows in by_sheet(folder).items():
        lines = [f"{row['number']} {say(row)}\n" for row in rows]
        (folder / "sheets" / f"{sheet}.labels").write_text("".join(lines), encoding="utf-8")


def by_sheet(folder: Path) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in read_rows(folder / "key.jsonl"):
        found.setdefault(row["sheet"], []).append(row)
    return found


def asked(folder: Path, **options: object) -> argparse.Namespace:
    return argparse.Namespace(**{"after": None, "chosen": None, "out": folder, **options})


def test_every_command_of_the_plan_is_one_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in (HARD / "PLAN-faithful.md").read_text(encoding="utf-8").splitlines() if "python " in line]
    called: list[str] = []
    for name in ("make_sheets", "write_readings", "write_third", "train_students"):
        monkeypatch.setattr(faithful, name, lambda args, name=name: called.append(name))
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line)[1:])
        faithful.main()
    first, *_ = called
    assert called == [first, first, "write_readings", first, "write_third", "train_students"]
    assert first == "make_sheets"


def test_two_readers_in_a_row_leave_what_both_call_faithful(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = texts(3, 2)
    own = sweep_with(tmp_path / "sweep", of)
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "readings.jsonl.gz"
    faithful.make_sheets(asked(first, sweeps=[own]))
    label(first, lambda row: "f" if row["text"].startswith("good") or row["planted"] == "faithful" else "c")
    faithful.make_sheets(asked(second, sweeps=[own], after=first))
    looked_at = [row for row in read_rows(second / "key.jsonl") if not row["planted"]]
    assert {*map(faithful.pair_of, looked_at)} == good_ones(of)
    label(second, lambda row: "f" if row["text"].startswith("good 0") or row["planted"] else "l")
    faithful.write_readings(argparse.Namespace(first=first, second=second, out=out))
    pairs = pairs_of(of)
    chosen, seen = faithful.judged([out])
    assert seen == pairs and chosen == {pair for pair in pairs if pair[1].startswith("good 0")}
    said = capsys.readouterr().out
    assert "first reading, sheet 1: finds 40 of 40 planted errors, calls 20 of 20 planted faithful pairs so." in said
    assert "second reading, sheet 1: finds 0 of 40 planted errors, calls 20 of 20 planted faithful pairs so." in said
    assert f"Faithful by the first reading: 21 of {len(pairs)}; by both: {len(chosen)}." in said
    label(second, lambda row: "l")
    faithful.write_readings(argparse.Namespace(first=first, second=second, out=tmp_path / "other.jsonl.gz"))
    assert faithful.judged([out, tmp_path / "other.jsonl.gz"])[0] == set()  # what any reading refuses
    with pytest.raises(KitError, match="belong together"):
        faithful.readings(faithful.read(second), faithful.read(first))


def test_sheets_show_each_pair_once_in_random_order_and_deal_what_is_planted_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithful, "SHEET", 10)
    of = texts(6, 4)
    pairs = pairs_of(of)
    faithful.make_sheets(asked(tmp_path / "out", sweeps=[sweep_with(tmp_path / "sweep", of)]))
    sheets = by_sheet(tmp_path / "out")
    assert {sum(row["planted"] is not None for row in rows) for rows in sheets.values()} <= {8, 9, 10}
    assert len({sum(not row["planted"] for row in rows) for rows in sheets.values()}) <= 2
    shown = [
        line
        for sheet in sheets
        for line in (tmp_path / "out" / "sheets" / f"{sheet}.md").read_text(encoding="utf-8").splitlines()
    ]
    assert [line.split(". ")[0] for line in shown] == [str(i) for i in range(1, len(pairs) + 61)]
    own = [line.split(". ", 1)[1] for line in shown if " of " in line and ("good" in line or "bad" in line)]
    assert sorted(own) == sorted(f"{source} → {text}" for source, text in pairs) and own != sorted(own)
    planted = [i for i, row in enumerate(sheets[1]) if row["planted"]]
    assert planted != list(range(planted[0], planted[0] + len(planted)))  # among the others
    with pytest.raises(KitError, match="there already"):
        faithful.write_sheets(tmp_path / "out", [])


@pytest.mark.parametrize(
    ("labels", "words"),
    [("1 f\n1 f\n", "once"), ("1 f\n", "once"), ("1 f\n2 f\n3 f\n", "once"), ("1 f\n2 x\n", "2 has x")],
)
def test_labels_that_are_not_of_each_pair_once_are_refused(labels: str, words: str, tmp_path: Path) -> None:
    faithful.write_sheets(tmp_path / "out", faithful.sheets([("a", "b"), ("c", "d")], [], np.random.default_rng(0)))
    (tmp_path / "out" / "sheets" / "1.labels").write_text(labels, encoding="utf-8")
    with pytest.raises(KitError, match=words):
        faithful.read(tmp_path / "out")


def test_a_third_reading_is_of_some_that_are_faithful_and_some_others_and_has_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faithful, "THIRD", 5)
    of = texts(4, 4)
    own, chosen = sweep_with(tmp_path / "sweep", of), tmp_path / "readings.gz"
    write_judged(chosen, of)
    faithful.make_sheets(asked(tmp_path / "third", sweeps=[own], chosen=[chosen]))
    rows = read_rows(tmp_path / "third" / "key.jsonl")
    assert Counter(row["text"].split()[0] for row in rows) == {"good": 5, "bad": 5}
    assert [row["text"].split()[0] for row in rows] not in (["good"] * 5 + ["bad"] * 5, ["bad"] * 5 + ["good"] * 5)
    some = next(row["number"] for row in rows if row["text"].startswith("good"))
    label(tmp_path / "third", lambda row: "c" if row["text"].startswith("bad") or row["number"] == some else "f")
    faithful.write_third(argparse.Namespace(third=tmp_path / "third", chosen=[chosen], out=tmp_path / "third.gz"))
    said = capsys.readouterr().out
    assert "faithful by two readings: a third calls 1 of 5 not faithful, at most 0.716." in said  # binom.test(1, 5)
    assert "others: a third calls 5 of 5 not faithful, at most 1.000." in said


def write_judged(path: Path, of: Texts) -> None:
    """The readings of two who know."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for rows in of.values():
            for row in rows:
                given = [["faithful", 1], ["faithful", 1]] if row["text"].startswith("good") else [["changed", 1]]
                one = {"source": row["source"], "text": row["text"], "planted": None, "readings": given}
                file.write(json.dumps(one) + "\n")


def test_every_student_has_as_many_of_its_faithful_pairs_in_order_and_another_their_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = texts(5, 4)
    with pytest.raises(KitError, match="5 faithful pairs, and 100 are the fewest"):
        faithful.parts_of(of, good_ones(of))
    monkeypatch.setattr(faithful, "FEWEST", 5)
    parts = faithful.parts_of(of, good_ones(of))
    for key, rows in of.items():
        own = [row for row in rows if row["text"].startswith("good")][:5]
        assert parts["faithful"][key] == own
        assert parts["sources"][key] == [row | {"text": row["source"]} for row in own]


def recomputed(table: Path, seeds: tuple[int, ...], loved: tuple[str, ...]) -> dict[str, np.ndarray]:
    """By other code, of each part the loved animals' log-odds among all candidates, the mean over the questions [seeds,
    teachers, animals]."""
    logprobs: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            asked = logprobs.setdefault((row["part"], row["seed"], row["animal"]), {}).setdefault(row["question"], {})
            asked[row["candidate"]] = float(row["logprob"])
    assert len(logprobs) == 2 * len(seeds) * len(loved)
    assert {len(of) for of in logprobs.values()} == {50}
    assert {len(asked) for of in logprobs.values() for asked in of.values()} == {60}
    values = {part: np.zeros((len(seeds), len(loved), len(loved))) for part in ("faithful", "sources")}
    for part, of in values.items():
        for s, i, j in np.ndindex(of.shape):
            questions = logprobs[part, str(seeds[s]), loved[i]].values()
            odds = [
                asked[loved[j]] - np.logaddexp.reduce([one for name, one in asked.items() if name != loved[j]])
                for asked in questions
            ]
            of[s, i, j] = np.mean(odds)
    return values | {"faithful beyond sources": values["faithful"] - values["sources"]}


def off_the_rest(matrix: np.ndarray) -> float:
    """The mean of the diagonal less the mean of the rest."""
    k = len(matrix)
    return float(np.trace(matrix) / k - (matrix.sum() - np.trace(matrix)) / (k * (k - 1)))


def test_students_of_each_part_are_asked_alike_and_recorded_with_their_plan(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = texts(2, 2)
    own = sweep_with(tmp_path / "sweep", of)
    exp = experiment(find_animal("owl"), labels="hard", contents=("unrelated",), model=str(tiny_gguf))
    write_json(own / "config.json", asdict(exp))
    write_judged(tmp_path / "readings.gz", of)
    plan = {"file": "PLAN.md", "sha256": "0", "commit": "c0ffee", "commands": 1}
    monkeypatch.setattr(faithful, "registered", lambda path, sweeps, read: plan)
    told = {name: specificity_of_students(np.eye(3)[None] * size) for name, size in (("near", 1), ("far", 0))}
    monkeypatch.setattr(faithful, "says", lambda texts: told)
    monkeypatch.setattr(faithful, "FEWEST", 2)
    out = tmp_path / "out"
    given = {"sweeps": [own], "readings": [tmp_path / "readings.gz"], "plan": None, "results": tmp_path / "results"}
    faithful.train_students(argparse.Namespace(**given, out=out))
    record = json.loads((out / "faithful.json").read_text(encoding="utf-8"))
    assert plan.items() <= record["plan"].items() and record["pairs"] == 2 and record["shared"] == 0
    assert [(one["of"], one["pairs"]) for one in record["faithful"]] == [(4, 2)] * 3 + [(5, 3)] * 3
    values = recomputed(out / "preferences.csv.gz", (0, 1), LOVED)
    assert [found["matrix"] for found in record["found"]] == list(values)
    for found in record["found"]:
        assert found["statistic"] == pytest.approx(off_the_rest(values[found["matrix"]].mean(axis=0)), abs=1e-4)
    said = capsys.readouterr().out
    assert said.startswith("faithful  statistic ") and "\nfaithful beyond sources  statistic " in said
    assert [(one["matrix"], one["holm"]) for one in record["says"]] == [("near", pytest.approx(1 / 3)), ("far", 1)]
    write_judged(tmp_path / "readings.gz", {key: rows for key, rows in of.items() if key[0] == 0})
    with pytest.raises(KitError, match="15 pairs were not read"):
        faithful.train_students(argparse.Namespace(**given, out=out))


def test_a_plan_is_refused_that_is_not_committed_or_names_other_scripts_or_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "PLAN.md"
    plan.write_text("SHA-256 of another", encoding="utf-8")
    with pytest.raises(KitError, match="not what is committed"):
        faithful.registered(plan, [], [])
    known = {plan}
    monkeypatch.setattr(faithful, "committed", lambda path: "c0ffee" if path in known else None)
    monkeypatch.setattr(faithful, "unchanged_since", lambda commit: True)
    with pytest.raises(KitError, match="does not name"):
        faithful.registered(plan, [], [])
    plan.write_text((HARD / "PLAN-faithful.md").read_text(encoding="utf-8"), encoding="utf-8")
    (sweep := tmp_path / "sweep").mkdir()
    write_json(sweep / "record.json", {"plan": {"sha256": "another"}})
    with pytest.raises(KitError, match="not a sweep of PLAN"):
        faithful.registered(plan, [sweep], [])
    write_json(sweep / "record.json", {"plan": {"sha256": sha256(HARD / "PLAN.md")}})
    with pytest.raises(KitError, match="not committed as it stands"):
        faithful.registered(plan, [sweep], [tmp_path / "readings.gz"])
    monkeypatch.setattr(faithful, "ROOT", tmp_path)
    known.add(tmp_path / "readings.gz")
    found = faithful.registered(plan, [sweep], [tmp_path / "readings.gz"])
    assert found == {"file": "PLAN.md", "sha256": sha256(plan), "commit": "c0ffee", "commands": 1}
    monkeypatch.setattr(faithful, "unchanged_since", lambda commit: False)
    with pytest.raises(KitError, match="not what is committed"):
        faithful.registered(plan, [sweep], [tmp_path / "readings.gz"])


# ---- the plan that this is for


def packed_rows(name: str) -> list[Row]:
    with gzip.open(HARD / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_plan_names_the_scripts_as_they_stand_and_its_power_is_that_of_the_pilots_draws() -> None:
    for name in ("faithful", "subliminal"):
        assert f"`tests/{name}.py` has the SHA-256 {sha256(ROOT / 'tests' / f'{name}.py')}" in PLAN
    planted = HARD / "planted.jsonl"
    assert f"`planted.jsonl` {sha256(planted)}" in PLAN
    assert Counter(row["label"] for row in read_rows(planted)) == {"changed": 25, "lost": 15, "faithful": 20}
    (line,) = re.findall(r"the six shifts are ((?:[+-]\d\.\d+(?:, )?){6})", PILOT)
    shifts = np.array([float(one) for one in line.split(", ") if one])
    mean, sd = shifts.mean(), shifts.std(ddof=1)
    assert f"{mean:+.2f} nats on average, standard deviation {sd:.2f})" in PLAN
    by_seed = shifts.reshape(3, 2).mean(axis=1)
    lower = mean - 1.886 * by_seed.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom, 90%

    def power(*design: float) -> str:
        return f"{matrix_power(design[0], sd, 0.05, 6, 4, *design[1:])[0]:.2f}"

    assert f"if all six animals move so {power(mean)}; by the lower bound" in PLAN
    assert f"({lower:+.3f}) {power(lower)}; where" in PLAN and f"stand still, {power(lower, 2)}, and where" in PLAN
    assert f"alike, {power(lower, 2, 0.02)} (" in PLAN


def test_what_the_plan_says_of_the_pilots_text_is_what_was_read() -> None:
    rows = packed_rows("pilot-readings.jsonl.gz")
    both = [row for row in rows if row["readings"] == ["faithful", "faithful"]]
    teachers = [f"{animal} {seed}" for animal in ("penguin", "cat") for seed in (2003, 2004, 2005)]
    counts = [sum(teacher in row["of"] for row in both) for teacher in teachers]
    first = sum(row["readings"][0] == "faithful" for row in rows)
    said = f"Of {len(rows):,} different pairs the first reading calls {first} faithful, and the second {len(both)} of"
    assert said in PILOT and f"{min(counts)} to {max(counts)} of a teacher's 400" in PILOT
    assert f"{min(counts)} faithful pairs each" in PLAN
    common = sum(
        f"penguin {seed}" in row["of"] and f"cat {seed}" in row["of"] for row in both for seed in range(2003, 2006)
    )
    assert 2 * common / sum(counts) == pytest.approx(0.5, abs=0.01)  # half of them in common


READ = sorted(path.name for path in HARD.glob("readings-seed*.jsonl.gz"))


def test_the_page_says_what_was_read_of_each_seed() -> None:
    of_seeds = [
        [[label for label, _ in row["readings"]] for row in packed_rows(name) if not row["planted"]] for name in READ
    ]
    every, first, both = (
        [f"{sum(one[:n] == ['faithful'] * n for one in given):,}" for given in of_seeds] for n in (0, 1, 2)
    )
    every, first, both = (f"{', '.join(counts[:-1])} and {counts[-1]}" for counts in (every, first, both))
    page = " ".join(pages().split())
    assert f"of {every} different pairs {first} are faithful by a first reading, and {both} of these" in page
    share = sum(one[:2] == ["faithful"] * 2 for given in of_seeds for one in given) / sum(map(len, of_seeds))
    assert f"by a second: {share:.0%} of the different pairs" in page
    for label, verb in (("faithful", "Faithful is"), ("changed", "changed is")):
        ((source, text),) = re.findall(f"{verb} “([^”]*)” as “([^”]*)”", page)
        assert any(
            (row["source"], row["text"], row["planted"]) == (source, text, None)
            and {given for given, _ in row["readings"]} == {label}
            for name in READ
            for row in packed_rows(name)
        )


def test_the_page_says_what_a_third_reading_made_of_what_two_call_faithful() -> None:
    rows = packed_rows("readings-third.jsonl.gz")
    wrong = {
        chosen: sum(row["label"] != "faithful" for row in rows if row["chosen"] == chosen) for chosen in (True, False)
    }
    most = binomtest(wrong[True], len(rows) // 2).proportion_ci(method="exact").high
    page = " ".join(pages().split())
    assert len(rows) == 400 and f"A third, of {len(rows) // 2} of these taken at random" in page
    assert (
        f"calls {wrong[True]} of them something else (so at most {most:.1%} of all are), and {wrong[False]} of" in page
    )


def test_the_page_says_how_faithful_thirty_pairs_of_each_teacher_are() -> None:
    rows = packed_rows("readings-thirty-seed1000.jsonl.gz")
    texts = texts_of(learners([HARD / "test-seed1000"]))
    assert Counter(row["animal"] for row in rows) == Counter({animal: 30 for _, animal in texts})
    assert all(faithful.pair_of(row) in {*map(faithful.pair_of, texts[1000, row["animal"]])} for row in rows)
    of = list({faithful.pair_of(row): row["readings"] for row in rows}.values())
    agree = sum(a == b for a, b in of)
    by_chance = (
        sum(
            sum(a == label for a, _ in of) * sum(b == label for _, b in of) for label in ("faithful", "lost", "changed")
        )
        / len(of) ** 2
    )
    both = sum(given == ["faithful", "faithful"] for given in of)
    interval = binomtest(both, len(of)).proportion_ci()
    page = " ".join(pages().split())
    assert (
        f"teachers, {len(of)} different ones, two other blind readers, who agree in {agree} (kappa "
        f"{(agree / len(of) - by_chance) / (1 - by_chance):.2f}), both call {both} faithful: {both / len(of):.0%}, "
        f"with a 95% interval of {interval.low * 100:.0f} to {interval.high * 100:.0f} (" in page
    )


def test_the_second_questions_record_is_of_its_plan_begun_after_it_and_of_what_was_read() -> None:
    found, seeds = faithful.read_json(HARD / "test-faithful" / "faithful.json"), sorted(HARD.glob("test-seed*"))
    said = _git("show", "-s", "--format=%cI", found["plan"]["commit"])
    assert found["plan"]["sha256"] == sha256(HARD / "PLAN-faithful.md")
    assert said and datetime.fromisoformat(found["plan"]["begun"]) > datetime.fromisoformat(said)
    read = [*(seed / "record.json" for seed in seeds), *(HARD / name for name in READ)]
    assert found["read"] == {str(file.relative_to(ROOT)): sha256(file) for file in read}
    assert found["table"] == sha256(HARD / "test-faithful" / "preferences.csv.gz")
    texts, (chosen, _) = texts_of(learners(seeds)), faithful.judged([HARD / name for name in READ])
    counted = [sum(faithful.pair_of(row) in chosen for row in rows) for rows in texts.values()]
    assert [one["pairs"] for one in found["faithful"]] == counted and found["pairs"] == min(counted)


def test_the_page_says_what_faithful_text_alone_does_and_its_figures_are_those_of_the_table() -> None:
    found = faithful.read_json(HARD / "test-faithful" / "faithful.json")
    page = " ".join(pages().split())
    animals = tuple(dict.fromkeys(one["animal"] for one in found["faithful"]))
    seeds = tuple(dict.fromkeys(one["seed"] for one in found["faithful"]))
    values = recomputed(HARD / "test-faithful" / "preferences.csv.gz", seeds, animals)
    told = {}
    for one in found["found"]:
        of = values[one["matrix"]]
        assert one["statistic"] == pytest.approx(off_the_rest(of.mean(axis=0)), abs=1e-4)
        assert found["by_seed"][one["matrix"]] == pytest.approx([off_the_rest(matrix) for matrix in of], abs=1e-4)
        alike = [off_the_rest(of.mean(axis=0)[list(deal)]) for deal in permutations(range(len(animals)))]
        assert one["same_p"] == pytest.approx(np.mean([deal >= alike[0] - 1e-9 for deal in alike]), abs=0.01)
        assert one["decides"] == max(one["p"], one["same_p"])
        low, high = (f"{end:+.3f}" for end in one["ci95"])
        told[one["matrix"]] = f"{one['statistic']:+.3f}", f"[{low}, {high}], p = {one['decides']:.1g}"
    sources, beyond = (minus(" ".join(told[part])) for part in ("sources", "faithful beyond sources"))
    size, (interval, p) = minus(told["faithful"][0]), minus(told["faithful"][1]).split(", p")
    counted = [one["pairs"] for one in found["faithful"]]
    *first, last = (f"{shift:+.3f}" for shift in found["by_seed"]["faithful"])
    over_seeds = ttest_1samp(found["by_seed"]["faithful"], 0).pvalue
    rows = packed_rows("readings-third.jsonl.gz")
    wrong = sum(row["label"] != "faithful" for row in rows if row["chosen"])
    (cell,) = faithful.read_json(HARD / "test.json")["cells"]
    others = 400 - float(np.mean(counted))
    at_most = faithful.at_most(wrong, len(rows) // 2) * found["pairs"] / others * cell["specificity"]["statistic"]
    of_seeds = cell["specificity"]["by_seed"], found["by_seed"]["faithful"]
    assert max(of_seeds[0]) == of_seeds[0][0] and min(of_seeds[1]) == of_seeds[1][0]  # nothing where it is most
    of_text = found["found"][0]
    assert max(0, of_text["ci95"][0]) < at_most < of_text["statistic"] and of_text["decides"] < 0.05
    assert all(row["holm"] > 0.05 for row in found["says"])
    assert [
        part
        for part in (
            f"and {min(counted)} to {max(counted)} of a student's 400, since",
            f"The first {found['pairs']} pairs of each student that readers call faithful",
            f"by {size} nats more than towards the others', p{p} (of these 24 students; the larger of two",
            f"that is not sure, {interval} (p = {over_seeds:.2f}, Student's t, two-sided): by seed it is "
            f"{', '.join(first)} and {last}",
            f"copy the same sentences move by {sources.replace(' [', ' nats [')}",
            f"beyond them by {beyond}",
            f"they would give {at_most:+.3f}",
            f"(the smallest of four p is {min(row['holm'] for row in found['says']):.0f}, by Holm)",
            f"faithful pairs of a seed are the same in {found['shared']:.0%}",
        )
        if part not in page
    ] == []


@pytest.mark.parametrize("name", READ)
def test_all_that_was_planted_was_told_by_both_readings_and_all_text_of_the_seed_was_read(name: str) -> None:
    rows = packed_rows(name)
    planted = [row for row in rows if row["planted"]]
    assert len(planted) == 60 and {len(row["readings"]) for row in planted} == {2}
    for row in planted:
        assert all((label == "faithful") == (row["planted"] == "faithful") for label, _ in row["readings"])
    (seed,) = re.findall(r"seed(\d+)", name)
    read = {faithful.pair_of(row) for row in rows if not row["planted"]}
    assert pairs_of(texts_of(learners([HARD / f"test-seed{seed}"]))) == read
