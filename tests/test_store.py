"""Artifacts are complete or absent, found again by what made them, and never silently damaged."""

import errno
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit import KitError, store
from kit.store import RowLog, Step, Store, logged_rows, read_rows, write_json, write_rows


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


def test_an_artifact_that_another_process_finishes_while_it_is_looked_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred experiments over four Ray nodes ended so: the driver looks while the workers rename."""
    whole = Store(tmp_path / "other").make(step(1))
    place = tmp_path / "own" / whole.relative_to(tmp_path / "other")
    exists = Path.exists

    def then_it_appears(path: Path, **options: bool) -> bool:
        found = exists(path, **options)
        if not exists(place):
            shutil.copytree(whole, place)
        return found

    monkeypatch.setattr(Path, "exists", then_it_appears)
    assert Store(tmp_path / "own").find(step(1)) is None
    assert Store(tmp_path / "own").find(step(1)) == place


def test_an_artifact_is_rebuilt_only_if_an_inputs_content_changes(tmp_path: Path) -> None:
    calls: list[int] = []
    one, also_one = step(1), Step("numbers", "another way to one", {"value": "one"}, {}, step(1).build, 1)
    first = Store(tmp_path).make(step(5, {"n": one}, calls))
    assert Store(tmp_path).make(step(5, {"n": also_one}, calls)) == first, "the input's content is the same"
    assert Store(tmp_path).make(step(5, {"n": step(2)}, calls)) != first
    assert calls == [5, 5]


def test_a_key_is_hashed_once_however_often_a_step_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    key = Step.key
    monkeypatch.setattr(Step, "key", lambda self, digests: hashed.append(self.label) or key(self, digests))
    one, made = step(1), Store(tmp_path)
    two = [step(value, {"n": one}) for value in (2, 3, 4)]
    for made_of_one in 3 * two:
        made.make(made_of_one)
        assert made.find(made_of_one)
    assert sorted(hashed) == ["number 1", "number 2", "number 3", "number 4"]


def test_what_is_left_is_estimated_by_how_long_its_stage_or_else_all_took_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 30)  # half a minute between any two looks at it
    monkeypatch.setattr(store.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(store, "slowness", lambda: 1.0)
    steps = [
        replace(step(value), stage=stage, seconds=seconds)
        for value, stage, seconds in ((1, "numbers", 10), (2, "texts", 60), (3, "numbers", 40), (4, "answers", 70))
    ]
    made = Store(tmp_path)
    with made.working("owl", "python run.py --animal owl", steps):
        for one in steps:
            made.make(one)
    said = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert said == [
        "number 1: took 30 s; about 8 min left.",  # three times as long as expected, as all so far
        "number 2: took 30 s; about 3 min left.",  # 40 x 3, and 70 x 60 / 70
        "number 3: took 30 s; about 57 s left.",  # 70 x 90 / 110
    ]


def test_of_a_step_that_was_gone_on_with_what_is_new_says_how_long_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "slowness", lambda: 1.0)
    samples, pace = replace(step(1), seconds=600), store.Pace()
    pace.count(samples, 3, 0.0)  # all were there
    assert pace.expected([samples]) == 600
    pace.count(samples, 150, 0.5)
    assert pace.expected([samples]) == pytest.approx(600 * 153 / 300)


def test_an_estimate_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.01 < store.slowness() < 1000, "measured"
    monkeypatch.setattr(store, "slowness", lambda: 3.0)
    assert replace(step(1), seconds=20).estimate == 60
    assert replace(step(1), seconds=20, pace=lambda: 0.5).estimate == 30


def test_a_command_says_at_its_end_where_its_time_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 100)  # a hundred seconds between any two looks at it
    monkeypatch.setattr(store.time, "monotonic", lambda: float(next(clock)))
    made = Store(tmp_path)
    with made.working("owl", "python run.py --animal owl"):
        made.make(step(1))
        made.make(step(2, stage="texts"))
    assert "Took 8 min: numbers 2 min, texts 2 min; all else 5 min." in capsys.readouterr().out
    with Store(tmp_path).working("owl", "python run.py --animal owl"):
        pass
    assert "Took" not in capsys.readouterr().out, "everything was there"


def test_an_interrupted_build_leaves_no_artifact_and_is_continued(tmp_path: Path) -> None:
    def build(made: dict[str, Path], folder: Path) -> None:
        if (folder / "half").exists():
            (folder / "half").rename(folder / "whole")
        else:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    interrupted = Step("texts", "text", {}, {}, build, 1, continues=True)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make(interrupted)
    assert Store(tmp_path).find(interrupted) is None
    folder = Store(tmp_path).make(interrupted)
    assert (folder / "whole").read_text() == "half" and not (folder / "half").exists()


def test_a_step_that_cannot_be_continued_starts_from_an_empty_folder(tmp_path: Path) -> None:
    def build(made: dict[str, Path], folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "config.json").write_text("half")
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt

    whole = Step("texts", "text", {}, {}, build, 1)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make(whole)
    assert Store(tmp_path).make(whole).is_dir()


# ---- whatever happens, at every call that reaches the system


class Stopped(BaseException):
    """What no code under test catches."""


class Stop:
    """A profiler that raises ``error`` in the place of the ``n``-th call that reaches the system."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.left, self.error = n, error

    def __call__(self, frame: Any, event: str, called: Any) -> None:
        owner = type(getattr(called, "__self__", None)).__module__
        of_system = {owner, getattr(called, "__module__", None)} & {"posix", "_io", "io"}
        if event == "c_call" and of_system and called.__name__ not in ("fspath", "getpid"):
            self.left -= 1
            if not self.left:
                sys.setprofile(None)
                raise self.error


def chain(continues: bool) -> Step:
    """Two steps, of which the second hashes what the first left; files in a folder, one written in two goes, one gone
    in the end."""

    def build(made: dict[str, Path], folder: Path) -> None:
        (folder / "deep").mkdir(exist_ok=True)
        with RowLog(folder / "rows.jsonl") as log:
            for row in range(len(log.rows), 2):
                log.append([{"row": row}])
        write_json(folder / "deep" / "numbers.json", log.rows)
        (folder / "rows.jsonl").unlink()

    def read(made: dict[str, Path], folder: Path) -> None:
        names = [path.relative_to(made["first"]).as_posix() for path in sorted(made["first"].rglob("*"))]
        write_json(folder / "names.json", names)

    first = Step("numbers", "first", {}, {}, build, 1, continues=continues)
    return Step("texts", "second", {}, {"first": first}, read, 1, continues=continues)


def kept(root: Path) -> dict[str, Any]:
    """The files of every artifact with their checksums, and whatever else lies beside them that is not empty."""
    made = {
        path.parent.relative_to(root).as_posix(): json.loads(path.read_text())
        for path in root.glob("*/*/manifest.json")
    }
    found = {name: manifest["files"] for name, manifest in made.items()}
    found |= {
        path.relative_to(root).as_posix(): "left" for path in root.rglob("*.*") if path.suffix not in (".json", ".lock")
    }
    return found


def stops_survived(root: Path, make: Callable[[], BaseException], continues: bool) -> int:
    """Make the chain and stop it by such an error, once at every call that reaches the system; given again, it leaves
    what an undisturbed one leaves. Returns how often."""
    Store(root / "whole").make(chain(continues))
    for n in itertools.count(1):
        goal, error = chain(continues), make()
        stop = Stop(n, error)
        assert goal.identity  # which reads the code, no part of this
        try:
            sys.setprofile(stop)
            Store(root / str(n)).make(goal)
        except type(error) as raised:
            assert error in (raised, raised.__cause__, raised.__context__)
        finally:
            sys.setprofile(None)
        if stop.left > 0:
            return n - 1
        Store(root / str(n)).make(chain(continues))
        assert kept(root / str(n)) == kept(root / "whole"), f"stopped at call {n}"
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("continues", [True, False])
def test_a_step_stopped_at_any_call_of_the_system_ends_with_the_same_key_and_files(
    tmp_path: Path, continues: bool
) -> None:
    assert stops_survived(tmp_path, Stopped, continues) > 200


@pytest.mark.slow
@pytest.mark.parametrize("continues", [True, False])
def test_a_disk_that_is_full_at_any_call_of_the_system_leaves_nothing_wrong(tmp_path: Path, continues: bool) -> None:
    def full() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert stops_survived(tmp_path, full, continues) > 200


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


def test_a_run_waits_for_an_artifact_that_another_is_making_and_says_for_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, begun, may_end = [], threading.Event(), threading.Event()

    def build(made: dict[str, Path], folder: Path) -> None:
        calls.append(folder)
        begun.set()
        assert may_end.wait(10)
        (folder / "text.txt").write_text("made")

    one = Step("texts", "a long text", {}, {}, build, 1)
    first = threading.Thread(target=lambda: Store(tmp_path).make(one))
    first.start()
    assert begun.wait(10)
    threading.Timer(1, may_end.set).start()
    assert (Store(tmp_path).make(one) / "text.txt").read_text() == "made"
    first.join()
    assert len(calls) == 1 and "another run is at work on: a long text" in capsys.readouterr().out


def test_a_large_file_is_read_once_and_again_as_soon_as_it_may_be_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(made: dict[str, Path], folder: Path) -> None:
        (folder / "large").write_bytes(bytes(store.LARGE))

    monkeypatch.setattr(store, "SETTLED", -1)  # at once
    large = Step("texts", "text", {}, {}, build, 1)
    file = Store(tmp_path).make(large) / "large"
    assert Store(tmp_path).find(large)
    read: list[Path] = []
    real = store.sha256
    monkeypatch.setattr(store, "sha256", lambda path: read.append(path) or real(path))
    assert Store(tmp_path).find(large) and not read
    shutil.copytree(tmp_path, tmp_path.with_name("copied"))
    assert Store(tmp_path.with_name("copied")).find(large) and [path.name for path in read] == ["large"]
    times = file.stat()
    file.write_bytes(b"x" + bytes(store.LARGE - 1))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(KitError, match="not what was written"):
        Store(tmp_path).find(large)


@pytest.mark.parametrize("name", ["../numbers/0123456789abcdef", "/etc/0123456789abcdef", "numbers/x", "numbers"])
def test_a_record_names_artifacts_of_its_own_folder_alone(name: str, tmp_path: Path) -> None:
    Store(tmp_path).make(step(1))
    with pytest.raises(KitError, match="names no artifact"):
        Store(tmp_path).read(name)


def test_an_artifact_is_read_only_with_the_files_that_are_asked_for(tmp_path: Path) -> None:
    folder = Store(tmp_path).make(step(1))
    name = Store(tmp_path).name(folder)
    assert Store(tmp_path).read(name, "n.txt") == folder
    with pytest.raises(KitError, match="adapter.gguf is missing"):
        Store(tmp_path).read(name, "adapter.gguf")
    with pytest.raises(KitError, match="gone"):
        Store(tmp_path).read("numbers/0123456789abcdef")
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"files": {}})
    with pytest.raises(KitError, match="names no files"):
        Store(tmp_path).read(name)


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


def test_what_was_there_already_names_the_kit_that_made_it(tmp_path: Path) -> None:
    made = Step("numbers", "a number", {}, {}, lambda made, folder: (folder / "n").write_text("1"), 1)
    for commit in ("a", "b"):
        store = Store(tmp_path, kit={"commit": commit * 40, "edited": commit == "a", "fingerprint": commit})
        store.make(made)
        assert store.kits() == [f"{'a' * 16}, edited (a)"]
