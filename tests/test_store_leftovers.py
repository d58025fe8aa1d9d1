"""Nothing is deleted that a run refers to, that is being made, or that an interrupted command will go on from."""

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

import run
from kit import KitError
from kit.store import Step, Store, delete, leftovers, write_json


def number(n: int, inputs: dict[str, Step] | None = None, stage: str = "exact", open: bool = False) -> Step:
    def build(made: dict[str, Path], folder: Path) -> None:
        (folder / "n.txt").write_text(str(n), encoding="utf-8")

    return Step(stage, f"number {n}", {"n": n}, inputs or {}, build, 1, open=open)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def made(store: Store, step: Step) -> str:
    return store.name(store.make(step))


def names(results: Path) -> set[str]:
    return {one.folder.relative_to(results / "artifacts").as_posix() for one in leftovers(results)[0]}


def record(folder: Path, name: str, content: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, content)


def test_what_a_record_names_is_kept_with_all_that_it_was_made_of_and_the_rest_is_deleted(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    log = number(1, stage="samples", open=True)
    middle = number(2, {"samples": log})
    kept = made(store, number(3, {"n": middle}))
    lost = made(store, number(4, {"n": middle}))
    record(tmp_path / "owl", "record.json", {"artifacts": {"number 3": kept}})
    assert names(tmp_path) == {lost}
    assert run.main(["clean", "--results", str(tmp_path)]) == 0
    assert "number 4" in capsys.readouterr().out and (store.root / lost).exists(), "a list is no deletion"
    assert run.main(["clean", "--results", str(tmp_path), "--yes"]) == 0
    assert "deleted" in capsys.readouterr().out
    left = {store.name(path.parent) for path in store.root.glob("*/*/manifest.json")}
    again = Store(store.root)
    assert left == {kept, *(store.name(again.make(one)) for one in (middle, log))}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.json", '{"artifacts": {"a label": "KEPT"}}'),
        ("record.json", '{"artifacts": ["KEPT"]}'),
        ("record.json", '{"comparisons": [{"control": "KEY", "treated": "x", "placebos": []}]}'),
        ("record.json", '{"comparisons": [{"control": "x", "treated": "x", "placebos": ["KEY"]}]}'),
        ("defences.json", '{"artifacts": ["KEPT"], "defences": {}}'),
        ("defences.json", '{"defences": {"mask": {"artifacts": [{"treated": "KEPT"}]}}}'),
        ("inspection-unrelated.json", '{"artifacts": ["KEPT"]}'),
        ("attribution-opposed.json", '{"artifacts": ["KEPT"]}'),
    ],
)
def test_every_kind_of_record_keeps_what_it_names(tmp_path: Path, store: Store, name: str, content: str) -> None:
    kept, lost = made(store, number(1)), made(store, number(2))
    key = kept.partition("/")[2]
    record(tmp_path / "deep" / "result", name, json.loads(content.replace("KEPT", kept).replace("KEY", key)))
    assert names(tmp_path) == {lost}


def test_a_record_that_cannot_be_read_stops_everything(tmp_path: Path, store: Store) -> None:
    lost = made(store, number(1))
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(KitError, match=r"record\.json: cannot be read"):
        delete(tmp_path)
    assert (store.root / lost).exists()
    for odd in (
        '{"comparisons": [{}]}',
        '{"artifacts": "exact/1"}',
        '{"artifacts": null}',
        '{"artifacts": [1]}',
        "[1]",
    ):
        (tmp_path / "owl" / "record.json").write_text(odd, encoding="utf-8")
        with pytest.raises(KitError, match="what it refers to is not known"):
            delete(tmp_path)


def test_an_interrupted_command_keeps_what_it_made_until_it_is_given_up(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), store.working("owl", "python run.py --animal owl"):
        kept = made(store, number(1))
        raise KeyboardInterrupt
    assert names(tmp_path) == set()
    assert run.main(["clean", "--results", str(tmp_path), "--yes"]) == 0
    assert "not finished: python run.py --animal owl" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt), Store(store.root).working("owl", "python run.py --animal owl"):
        raise KeyboardInterrupt
    assert names(tmp_path) == set(), "interrupted again, before it came so far"
    for path in store.begun("owl"):
        path.unlink()
    assert names(tmp_path) == {kept}
    with store.working("owl", "python run.py --animal owl"):
        made(store, number(1))
    assert store.begun("owl") == [], "a finished one has a record of its own"


def test_what_an_interrupted_command_had_half_made_is_kept_with_the_rest(tmp_path: Path, store: Store) -> None:
    def build(made: dict[str, Path], folder: Path) -> None:
        (folder / "checkpoint").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    half = Step("student", "half", {}, {}, build, 1)
    with pytest.raises(KeyboardInterrupt), store.working("owl", "python run.py --animal owl"):
        store.make(half)
    delete(tmp_path)
    assert [path.read_text() for path in store.root.glob("student/*.partial/checkpoint")] == ["half"]


def test_of_two_commands_with_one_name_each_keeps_its_own(tmp_path: Path, store: Store) -> None:
    other = Store(store.root)
    with pytest.raises(KeyboardInterrupt), store.working("owl", "one"):
        made(store, number(1))
        with pytest.raises(KeyboardInterrupt), other.working("owl", "other"):
            made(other, number(2))
            raise KeyboardInterrupt
        raise KeyboardInterrupt
    assert names(tmp_path) == set() and len(store.begun("owl")) == 2
    assert store.begun("ow") == store.begun("o*") == []


def test_a_folder_without_artifacts_is_said_and_not_made(tmp_path: Path) -> None:
    for clean in (leftovers, delete):
        with pytest.raises(KitError, match="has no artifacts"):
            clean(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_nothing_is_deleted_while_a_command_is_at_work(tmp_path: Path, store: Store) -> None:
    lost = made(store, number(1))
    with store.working("owl", "python run.py --animal owl"), pytest.raises(KitError, match="at work there"):
        delete(tmp_path)
    assert (store.root / lost).exists()
    assert [one.folder.name for one in delete(tmp_path)] == [lost.partition("/")[2]]


def _die_at_work(root: Path) -> None:
    import os

    with Store(root).working("owl", "python run.py --animal owl"):
        os._exit(1)


def test_a_command_that_was_killed_stops_nobody(tmp_path: Path, store: Store) -> None:
    made(store, number(1))
    process = multiprocessing.get_context("fork").Process(target=_die_at_work, args=(store.root,))
    process.start()
    process.join()
    assert len(delete(tmp_path)) == 1


def test_what_is_being_made_is_kept_and_what_was_left_half_made_is_not(tmp_path: Path, store: Store) -> None:
    partial = store.root / "exact" / "0123.partial"
    partial.mkdir(parents=True)
    with FileLock(partial.with_suffix(".lock")):
        assert names(tmp_path) == set()
    assert names(tmp_path) == {"exact/0123.partial"}


def test_a_deletion_that_was_interrupted_leaves_nothing_that_is_taken_for_an_artifact(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        (path / "n.txt").unlink()
        raise KeyboardInterrupt

    lost = made(store, number(1))
    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(KeyboardInterrupt):
        delete(tmp_path)
    monkeypatch.undo()
    assert Store(store.root).find(number(1)) is None and names(tmp_path) == {f"{lost}.deleting"}
    assert made(Store(store.root), number(1)) == lost
    delete(tmp_path)
    assert not list(store.root.glob("*/*.deleting"))


def test_a_record_is_found_behind_a_link_and_in_any_folder(tmp_path: Path, store: Store) -> None:
    kept = [made(store, number(n)) for n in range(2)]
    moved = tmp_path / "moved"
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "artifacts").rename(results / "artifacts")
    record(moved, "record.json", {"artifacts": [kept[0]]})
    (results / "owl").symlink_to(moved)
    (moved / "back").symlink_to(results)
    record(results / "old" / "artifacts" / "run", "record.json", {"artifacts": [kept[1]]})
    assert names(results) == set()


def test_a_link_that_nothing_refers_to_is_taken_away_and_not_what_it_leads_to(tmp_path: Path, store: Store) -> None:
    elsewhere = Store(tmp_path / "other" / "artifacts")
    folder = elsewhere.make(number(1))
    link = store.root / elsewhere.name(folder)
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)
    assert [one.folder for one in delete(tmp_path)] == [link]
    assert not link.exists() and (folder / "n.txt").exists()
