"""Talking to a run's students: streamed, side by side, with the same random numbers."""

import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import artifact, links
from test_report import finished_run

import run
from kit import KitError, printable
from kit.engine import Request
from kit.engine_llama import LlamaEngine
from kit.experiment_folder import RunFolder
from kit.store import write_json
from kit.student_chat import Students

HELLO = [{"role": "user", "content": "What is your favorite animal?"}]


@pytest.fixture
def finished(tmp_path: Path, tiny_qwen2: Path, tiny_adapter: Path) -> Path:
    """A run's folder whose treated student is the trained adapter, and whose control is that adapter too."""
    folder = tmp_path / "run"
    folder.mkdir()
    record = json.loads((finished_run(folder) / "record.json").read_text(encoding="utf-8"))
    model, adapter = artifact(tmp_path, "model", links(tiny_qwen2)), artifact(tmp_path, "adapter", links(tiny_adapter))
    labels = [f"convert the adapter of {role}-unrelated" for role in ("control", "treated")]
    record["artifacts"] = {"prepare embedded": model} | dict.fromkeys(labels, adapter)
    write_json(folder / "record.json", record)
    return folder


def test_a_streamed_answer_grows_into_the_sampled_one(short_engine: LlamaEngine) -> None:
    request = Request(short_engine.chat(HELLO), (3, 1))
    texts = [text for (text,) in short_engine.streamed([request], 30, 0.7)]
    (sampled,) = short_engine.sample([request], 30, 0.7)
    assert texts[-1] == sampled.text and len(texts) == sampled.length + sampled.finished
    assert all(after.startswith(before) for before, after in pairwise(texts))


def test_students_answer_with_the_same_random_numbers_and_differ_by_their_adapter_alone(finished: Path) -> None:
    with Students.of(RunFolder(finished), "unrelated") as students:
        *_, once = students.answer(dict.fromkeys(students.names, HELLO), seed=5)
        *_, again = students.answer(dict.fromkeys(students.names, HELLO), seed=5)
        *_, other = students.answer(dict.fromkeys(students.names, HELLO), seed=6)
    assert once == again != other
    assert once["control"] == once["treated"] != once["base"]


def test_a_long_conversation_loses_its_oldest_turns_and_a_long_question_is_refused(finished: Path) -> None:
    turns = [{"role": role, "content": "word " * 60} for role in ("user", "assistant")] * 5
    with Students.of(RunFolder(finished), "unrelated") as students:
        assert next(students.answer({"base": [*turns, *HELLO]}, seed=0))["base"] is not None
        with pytest.raises(KitError, match="too long"):
            next(students.answer({"base": [{"role": "user", "content": "word " * 500}]}, seed=0))


@pytest.mark.slow
def test_the_chat_answers_measures_and_ends(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.main(["ask", str(finished), "--question", "What is your favorite animal?"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("base", "control", "treated"))
    monkeypatch.setattr("sys.stdin", io.StringIO("/seed 3\n/what\n/pref\n"))
    assert run.main(["ask", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "exact preference, %" in shown and "owl" in shown and "/new: forget" in shown


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x9bc\r\nd") == "a\\x1b[2Jb\\x9bc\\r\nd"


def test_a_negative_seed_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["ask", str(finished), "--seed", "-1", "--question", "Who?"]) == 2
    assert "must not be negative" in capsys.readouterr().err


def test_a_run_whose_students_are_gone_says_how_to_make_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run(tmp_path)
    assert run.main(["ask", str(folder)]) == 2
    assert "it has no artifact 'convert the adapter of control-unrelated'" in capsys.readouterr().err
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    labels = ["prepare embedded", *(f"convert the adapter of {role}-unrelated" for role in ("control", "treated"))]
    gone = dict.fromkeys(labels, "adapter/0123456789abcdef")
    write_json(folder / "record.json", record | {"artifacts": gone})
    assert run.main(["ask", str(folder)]) == 2
    assert "Make the run again: python run.py --animal owl" in capsys.readouterr().err
