"""What is recorded, made again: the tables of every question from its records, and records from nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest

import run
from kit import REFERENCE, reproduce, store
from kit.experiment import PRESETS, StudentSettings
from kit.store import write_json

QUESTIONS = [page.parent.name for page in sorted(REFERENCE.glob("*/README.md"))]
WITHOUT_RECORD = {"faithful", "speed"}
SUMMARISED = {*QUESTIONS} - WITHOUT_RECORD - {"defences", "calibration"}
QUICK = {"six-animals", "defences", "calibration", "inspection"}


def command(*arguments: str) -> int:
    return run.main(["reproduce", *arguments])


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one question's records, which may be changed."""
    monkeypatch.setattr(reproduce, "REFERENCE", tmp_path / "reference")
    return shutil.copytree(REFERENCE / "ranks", tmp_path / "reference/ranks")


def test_every_question_is_listed_with_the_hours_of_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert {name for name in QUESTIONS if lines[name][-1].endswith("?")} == {*QUESTIONS}
    assert lines["ranks"][:2] == ["1.5", "h"] and lines["speed"][0] == "How"


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in QUESTIONS
        if name not in WITHOUT_RECORD
    ],
)
def test_the_tables_of_a_question_are_made_again_and_are_the_recorded_ones(
    question: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(question, "--results", str(tmp_path)) == 0
    said = rf"{question}: ([\d,]+) recorded numbers, computed again, and ([\d,]+) rows of tables came out the same"
    ((numbers, count),) = re.findall(said, capsys.readouterr().out)

    def rows(report: Path) -> list[str]:
        return [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("|")]

    for report in (REFERENCE / question).rglob("report.md"):
        assert rows(report) == rows(tmp_path / "reproduced" / report.relative_to(REFERENCE)), report
    kept = sum(report.read_text(encoding="utf-8").count("\n|") for report in (REFERENCE / question).rglob("report.md"))
    assert int(count.replace(",", "")) == kept and (int(numbers.replace(",", "")) > 20) == (question in SUMMARISED)


def test_a_number_that_is_not_what_the_records_give_is_named_and_the_records_stay(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((recorded / "summary.json").read_text(encoding="utf-8"))
    effect = summary["cells"][0]["effects"]["owl"]["log_odds"]
    told = effect["mean"]
    effect["mean"] += 0.01
    write_json(recorded / "summary.json", summary)
    before = {path: path.read_bytes() for path in recorded.iterdir()}
    assert command("ranks", "--results", str(tmp_path / "results")) == 2
    said = capsys.readouterr()
    assert f"cells/0/effects/owl/log_odds/mean was {effect['mean']}, is {told}" in said.out
    assert "ranks: 1 of " in said.err
    assert {path: path.read_bytes() for path in recorded.iterdir()} == before


def test_what_an_earlier_time_left_is_no_part_of_the_tables(recorded: Path, tmp_path: Path) -> None:
    left = tmp_path / "results/reproduced/ranks/inspection-unrelated.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}", encoding="utf-8")
    assert command("ranks", "--results", str(tmp_path / "results")) == 0
    assert not left.exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["owls"], "owls: no recorded question. There are calibration, "),
        (["speed"], "speed: no command has left a record there. Read its README.md"),
        (["ranks", "--dry-run"], "--dry-run: tables take seconds"),
        (["calibration", "--from-nothing"], "calibration: its record names no command"),
    ],
)
def test_what_cannot_be_made_again_is_refused(
    arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments, "--results", str(tmp_path)) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["{", "[]", '{"seconds": [1]}', '{"seconds": {"a": "x"}}', "[" * 100_000, "\udcff"])
def test_a_damaged_record_is_named_with_what_restores_it(
    damage: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded / "summary.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    for arguments in ([], ["ranks", "--results", str(tmp_path / "results")]):
        if arguments and "seconds" in damage:  # which tables do not ask for
            continue
        assert command(*arguments) == 2
        assert f"git checkout -- {recorded / 'summary.json'}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [{"command": 5}, {"command": "python run.py 'sweep"}, {"preset": None, "plan": "x"}])
def test_a_record_whose_command_cannot_be_read_is_named(
    damage: dict, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((recorded / "record.json").read_text(encoding="utf-8"))
    write_json(recorded / "record.json", record | damage)
    assert command("ranks", "--from-nothing", "--results", str(tmp_path / "results")) == 2
    assert f"git checkout -- {recorded}" in capsys.readouterr().err


def test_where_nothing_is_recorded_nothing_is_called_the_same(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("summary.json", "report.md"):
        (recorded / name).unlink()
    assert command("ranks", "--results", str(tmp_path / "results")) == 2
    assert "neither summary.json nor report.md" in capsys.readouterr().err
    shutil.rmtree(recorded)
    assert command() == 2 and "nothing is recorded" in capsys.readouterr().err


def test_what_a_planned_test_left_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[list[str]] = []
    reproduce.from_nothing("hard-labels", tmp_path, given.append, True)
    assert "hard-labels/test-seed1000: passed over" in (said := capsys.readouterr().out)
    assert "git worktree add ../planned 3a8a473" in said
    assert given and all("--plan" not in words and words[-1] == "--dry-run" for words in given)


def test_from_nothing_gives_each_command_with_the_preset_of_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "slowness", lambda: 1.0)
    assert command("default-run", "--from-nothing", "--dry-run", "--results", str(tmp_path)) == 0
    out = capfd.readouterr().out
    into = tmp_path / "from-nothing" / "default-run"
    for preset in ("laptop", "quick"):
        assert f"default-run/{preset}: python run.py --animal owl --preset {preset} --results {into}\n" in out
    assert out.count("min in all") == 2 and not (into / "artifacts").exists()


def given_for(question: str, results: Path) -> dict[str, list[str]]:
    """What from nothing gives for each of its records, by the record's folder."""
    given: list[list[str]] = []
    reproduce.from_nothing(question, results, given.append, True)
    names = [path.parent.name for path in sorted((REFERENCE / question).rglob("record.json"))]
    return dict(zip(names, given, strict=True))


def test_from_nothing_gives_what_was_a_default_when_it_was_recorded_and_is_none_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tuned base's teachers were once told by a system message; the others are as if a later kit's ``quick`` had
    other labels and learned from fewer pairs for longer."""
    then = given_for("paraphraser", tmp_path)
    assert "--place system" in " ".join(then["laptop"]) and "--place" not in then["quick"]
    assert not {"--place", "--labels", "--pairs"} & {*given_for("demonstration", tmp_path)["owl"]}

    later = {"labels": "clean", "pairs": 50, "opposed_pairs": 50, "student": StudentSettings(epochs=4)}
    monkeypatch.setitem(PRESETS, "quick", PRESETS["quick"] | later)
    then = given_for("demonstration", tmp_path)
    quick = ["--preset", "quick", "--rank", "1"]
    added = ["--pairs", "100", "--learning-rate", "0.001", "--epochs", "2", "--dry-run"]
    without = [word for word in then["cat"] if not word.startswith(str(tmp_path)) and word != "--results"]
    assert without == ["--animal", "cat", "--content", "unrelated", *quick, "--labels", "soft", *added]
    assert then["owl-text-alone"].count("--labels") == 1
    rank_of_the_grid = given_for("ranks", tmp_path)["ranks"]
    assert "--rank" not in rank_of_the_grid


def test_what_was_found_in_a_run_since_is_found_again_in_the_one_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[list[str]] = []
    reference, made = REFERENCE / "inspection", tmp_path / "from-nothing/inspection/owl"

    def give(words: list[str]) -> None:
        given.append(words)
        shutil.copytree(reference, made, dirs_exist_ok=True)
        record = json.loads((made / "record.json").read_text(encoding="utf-8"))
        write_json(made / "record.json", record | {"command": " ".join(["python run.py", *given[0]])})
        settings = json.loads((made / "config.json").read_text(encoding="utf-8"))
        assert "context" not in settings  # which earlier kits had not, as today's has
        write_json(made / "config.json", settings | {"pairs": 100, "context": "training"})

    reproduce.from_nothing("inspection", tmp_path, give, False)
    assert [words[0] for words in given] == ["--animal", "inspect", "attribute"]
    assert given[1][1] == given[2][1] == str(made)
    said = capsys.readouterr().out
    assert "Other settings than the recorded ones: pairs." in said
    assert len(re.findall(r"\+0\.39\s+\[\+0\.37,", said)) == 2
    for name, value in (
        ("likelihood ratio, right", r"66\.3%\s+\[58\.9%,\s+72\.9%\]"),
        ("carried by the top 10%", "42%"),
    ):
        assert name in " ".join(said.split()) and len(re.findall(value, said)) == 2
