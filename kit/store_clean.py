"""What no run refers to, with its size; deleted when told to.

A run refers to what its records name and to all that this was made of, the logs of samples included; a command that was
begun and not finished refers to what it has made.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import KitError
from kit.store import BEGUN, CLEANING, MANIFEST, PARTIAL, Store, held

RECORDS = ("record.json", "defences.json", "inspection-*.json", "attribution-*.json")  # in a result's folder
GONE = ".deleting"  # ends the name of a folder whose deletion was interrupted


@dataclass(frozen=True)
class Leftover:
    """A folder under ``artifacts/`` that nothing refers to: what it is for people, and its size in bytes."""

    folder: Path
    label: str
    size: int


@dataclass(frozen=True)
class Begun:
    """A command that was begun and is not finished: the file that says so, and the size in bytes of what it made and
    no run refers to."""

    file: Path
    command: str
    size: int


def leftovers(results: Path) -> tuple[list[Leftover], list[Begun]]:
    """What nothing refers to, and what is kept for commands that are not finished. Raises KitError where a record
    cannot be read: nobody knows then what it refers to."""
    store = Store(results / "artifacts")
    if not store.root.is_dir():
        raise KitError(f"--results {results}: it has no artifacts. Give the folder that runs were written to.")
    begun = [(path, _read(path)) for path in sorted((store.root / BEGUN).glob("*.json"))]
    named = {name for path in _records(results) for name in _artifacts(path)}
    begun_names = {name for path, _ in begun for name in _artifacts(path)}
    begun_names |= {name.removesuffix(PARTIAL) for name in begun_names}
    of_runs = store.history(named).keys()
    kept = of_runs | store.history(begun_names).keys()
    found = []
    for folder in sorted(path for path in store.root.glob("*/*") if path.is_dir() and path.parent.name != BEGUN):
        name = store.name(folder)
        if folder.suffix == GONE:
            found.append(Leftover(folder, "half deleted", _size(folder)))
        elif folder.suffix == PARTIAL and name not in begun_names and not held(folder.with_suffix(".lock")):
            found.append(Leftover(folder, "begun and given up", _size(folder)))
        elif not folder.suffix and (folder / MANIFEST).exists() and name not in kept:
            found.append(Leftover(folder, str(_read(folder / MANIFEST).get("label")), _size(folder)))
    waiting = []
    for path, record in begun:
        own = store.history(_artifacts(path)).keys() - of_runs
        waiting.append(Begun(path, str(record.get("command")), sum(_size(store.root / name) for name in own)))
    return found, waiting


def clean(results: Path) -> list[Leftover]:
    """Delete what nothing refers to, returned. Raises KitError while a command is at work there."""
    from filelock import FileLock, Timeout

    leftovers(results)  # says what is wrong with the folder before it writes there
    root = results / "artifacts"
    try:
        with FileLock(root / CLEANING, timeout=0):  # a command that starts now waits
            for lock in (root / BEGUN).glob("*.lock"):
                if held(lock):
                    raise KitError(f"--results {results}: a command is at work there. Wait until it has ended.")
                lock.unlink(missing_ok=True)  # of one that was killed
            found, _ = leftovers(results)
            for one in found:
                aside = one.folder.with_suffix(GONE)  # so that nothing half-deleted is taken for an artifact
                if aside.exists():  # left by an interrupted call
                    shutil.rmtree(aside)
                if one.folder.is_symlink():
                    one.folder.unlink()
                elif one.folder.exists():
                    one.folder.rename(aside)
                    shutil.rmtree(aside)
            return found
    except Timeout:
        raise KitError(f"--results {results}: another command is just starting there. Try again.") from None


def _records(results: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise _unknown(Path(error.filename or results), error)

    seen: set[Path] = set()  # a link may lead back
    for folder, inner, _ in os.walk(results, onerror=fail, followlinks=True):
        if Path(folder) == results and "artifacts" in inner:
            inner.remove("artifacts")
        if Path(folder).resolve() in seen:
            inner.clear()
            continue
        seen.add(Path(folder).resolve())
        for pattern in RECORDS:
            yield from sorted(Path(folder).glob(pattern))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unknown(path, error) from None


def _unknown(path: Path, error: Exception) -> KitError:
    return KitError(f"{path}: cannot be read ({error}), so what it refers to is not known. Mend it, or delete it.")


def _artifacts(path: Path) -> set[str]:
    """What a record names as "stage/key"."""
    record, found = _read(path), set()
    try:
        named = record.get("artifacts", [])
        if not isinstance(named, dict | list):
            raise TypeError("its artifacts are no list")
        found |= set(named.values() if isinstance(named, dict) else named)
        for row in record.get("comparisons", []):  # a sweep's, whose students are named by their exact preference's key
            found |= {f"exact/{key}" for key in _students(row)}
        for defence in record.get("defences", {}).values():
            found |= {name for of_seed in defence.get("artifacts", []) for name in of_seed.values()}
        if not all(isinstance(one, str) for one in found):
            raise TypeError("an artifact's name is no text")
    except (KeyError, TypeError, AttributeError) as error:
        raise _unknown(path, error) from None
    return found


def _students(row: dict[str, Any]) -> list[str]:
    return [row["control"], row["treated"], *row["placebos"], *row.get("loving", {}).values()]


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
