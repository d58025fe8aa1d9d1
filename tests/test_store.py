"""Artifacts are complete or absent, found again by what made them, and never silently damaged."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit import KitError
from kit.store import RowLog, Step, Store, logged_rows, read_rows, write_rows


def step(
    value: int, inputs: dict[str, Step] | None = None, calls: list[int] | None = None, stage: str = "numbers"
) -> Step:
    def build(made: dict[str, Path], folder: Path) -> None:
        if calls is not None:
            calls.append(value)
        total = value + sum(int((path / "n.txt").read_text()) for path in made.values())
        (folder / "n.txt").write_text(str(total))

    return Step(stage, f"number {value}", {"value": value}, inputs or {}, build, 1)


def test_an_artifact_is_built_once_and_found_by_its_settings(tmp_path: Path) -> None:
    calls: list[int] = []
    first = Store(tmp_path).make(step(1, calls=calls))
    again = Store(tmp_path).make(step(1, calls=calls))
    assert first == again and calls == [1]
    assert Store(tmp_path).make(step(2, calls=calls)) != first


def test_an_artifact_is_rebuilt_only_if_an_inputs_content_changes(tmp_path: Path) -> None:
    calls: list[int] = []
    one, also_one = step(1), Step("numbers", "another way to one", {"value": "one"}, {}, step(1).build, 1)
    first = Store(tmp_path).make(step(5, {"n": one}, calls))
    assert Store(tmp_path).make(step(5, {"n": also_one}, calls)) == first, "the input's content is the same"
    assert Store(tmp_path).make(step(5, {"n": step(2)}, calls)) != first
    assert calls == [5, 5]


def test_an_interrupted_build_leaves_no_artifact_and_is_continued(tmp_path: Path) -> None:
    def build(made: dict[str, Path], folder: Path) -> None:
        if (folder / "half").exists():
            (folder / "half").rename(folder / "whole")
        else:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    interrupted = Step("texts", "text", {}, {}, build, 1)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make(interrupted)
    assert Store(tmp_path).find(interrupted) is None
    folder = Store(tmp_path).make(interrupted)
    assert (folder / "whole").read_text() == "half" and not (folder / "half").exists()


def test_a_failure_on_a_full_disk_is_reported_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(message: str) -> Step:
        def build(made: dict[str, Path], folder: Path) -> None:
            raise RuntimeError(message)

        return Step("texts", "text", {}, {}, build, 1)

    def check_full(message: str) -> None:
        with pytest.raises(OSError) as full:
            Store(tmp_path).make(failing(message))
        assert full.value.errno == errno.ENOSPC and ".partial" in full.value.filename

    with pytest.raises(RuntimeError, match="PytorchStreamWriter"):
        Store(tmp_path).make(failing("PytorchStreamWriter failed"))
    check_full("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    check_full("PytorchStreamWriter failed")


@pytest.mark.parametrize("harm", ["edit", "delete", "manifest", "no manifest"])
def test_an_artifact_damaged_by_hand_is_named_and_never_used(tmp_path: Path, harm: str) -> None:
    folder = Store(tmp_path).make(step(1))
    target = folder / ("n.txt" if harm in ("edit", "delete") else "manifest.json")
    if harm in ("edit", "manifest"):
        target.write_text("{")
    else:
        target.unlink()
    with pytest.raises(KitError, match=f"{folder.name}.*Delete the folder"):
        Store(tmp_path).make(step(1))


def test_a_manifest_says_what_made_the_artifact(tmp_path: Path) -> None:
    manifest = json.loads((Store(tmp_path).make(step(3, {"n": step(1)})) / "manifest.json").read_text())
    assert manifest["settings"] == {"value": 3}
    assert {"stage", "label", "inputs", "versions", "seconds", "files"} <= set(manifest)
    assert str(tmp_path) not in json.dumps(manifest), "a manifest must mean the same on another machine"


def test_two_runs_do_not_build_one_artifact_at_once(tmp_path: Path) -> None:
    def build(made: dict[str, Path], folder: Path) -> None:
        with pytest.raises(KitError, match="another run"):
            Store(tmp_path).make(outer)

    outer = Step("texts", "text", {}, {}, build, 1)
    Store(tmp_path).make(outer)


def test_a_row_log_drops_a_torn_last_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowLog(path) as log:
        log.append([{"n": 1}, {"n": 2}])
    with path.open("a") as file:
        file.write('{"n": 3, "te')
    with RowLog(path) as log:
        assert log.rows == [{"n": 1}, {"n": 2}]
        log.append([{"n": 3}])
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("strange", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_character_that_some_call_a_line_break_breaks_no_row(strange: str, tmp_path: Path) -> None:
    rows = [{"text": f"a{strange}b"}, {"text": "c"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    with RowLog(tmp_path / "log.jsonl") as log:
        log.append(rows)
    with RowLog(tmp_path / "log.jsonl") as log:
        assert log.rows == rows == logged_rows(tmp_path / "log.jsonl")
