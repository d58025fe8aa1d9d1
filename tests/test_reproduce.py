"""What is recorded, made again: the tables of every question from its records, and a record from nothing."""

import json
import shutil
from pathlib import Path

import pytest
from processes import finish

import run
from kit import commands
from kit.store import write_json

QUESTIONS = [page.parent.name for page in sorted(commands.REFERENCE.glob("*/README.md"))]
WITHOUT_RECORD = {"faithful", "speed"}


def reproduce(*arguments: str) -> int:
    return run.main(["reproduce", *arguments])


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the records of one question, of one sweep, which may be changed."""
    monkeypatch.setattr(commands, "REFERENCE", tmp_path / "reference")
    return shutil.copytree(Path("results/reference/ranks"), tmp_path / "reference/ranks")


def test_every_question_is_listed_with_the_hours_of_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce() == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert {name for name in QUESTIONS if lines[name][-1].endswith("?")} == {*QUESTIONS}
    assert lines["ranks"][:2] == ["1.5", "h"] and lines["speed"][0] == "How"


@pytest.mark.parametrize("question", ["six-animals", "default-run", "defences", "calibration", "inspection"])
def test_the_tables_of_a_question_are_made_again_and_are_the_recorded_ones(
    question: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(question, "--results", str(tmp_path)) == 0
    assert f"{question}: every figure is what was recorded" in capsys.readouterr().out
    for report in (commands.REFERENCE / question).rglob("report.md"):
        again = tmp_path / "reproduced" / report.relative_to(commands.REFERENCE)
        assert [line for line in again.read_text(encoding="utf-8").splitlines() if line.startswith("| ")] == [
            line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
        ]


def test_a_figure_that_is_not_what_the_records_give_is_named(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((recorded / "summary.json").read_text(encoding="utf-8"))
    effect = summary["cells"][0]["effects"]["owl"]["log_odds"]
    told = effect["mean"]
    effect["mean"] += 0.01
    write_json(recorded / "summary.json", summary)
    before = {path: path.read_bytes() for path in recorded.iterdir()}
    assert reproduce("ranks", "--results", str(tmp_path / "results")) == 0
    said = capsys.readouterr().out
    assert f"cells/0/effects/owl/log_odds/mean was {effect['mean']}, is {told}" in said
    assert "ranks: 1 figures are not what was recorded" in said
    assert {path: path.read_bytes() for path in recorded.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["owls"], "owls: no recorded question. There are calibration, "),
        (["speed"], "speed: no command has left its record there"),
        (["ranks", "--dry-run"], "--dry-run: tables take seconds"),
        (["calibration", "--from-nothing"], "calibration: its record names no command"),
    ],
)
def test_what_cannot_be_made_again_is_refused(
    arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(*arguments, "--results", str(tmp_path)) == 2
    assert why in capsys.readouterr().err


def test_from_nothing_gives_the_commands_of_the_records(tmp_path: Path) -> None:
    out, _ = finish("reproduce", "default-run", "--from-nothing", "--dry-run", "--results", str(tmp_path))
    assert out.count("python run.py --animal owl\n") == 2 and "min in all" in out
    assert not (tmp_path / "from-nothing" / "default-run" / "artifacts").exists()
