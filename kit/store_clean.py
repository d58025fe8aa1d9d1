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
from kit.store import BEGUN, CLEANING, MANIFEST, Store

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
    """A command that was begun and is not finished: the file that says so, and the size in bytes of what it made."""

    file: Path
    command: str
    size: int


def leftovers(results: Path) -> tuple[list[Leftover], list[Begun]]:
    """What nothing refers to, and what is kept for commands that are not finished. Raises KitError where a record
    cannot be read: nobody knows then what it refers to."""
    store = Store(results / "artifacts")
    begun = [(path, _read(path)) for path in sorted((store.root / BEGUN).glob("*.json"))]
    named = {name for path in _records(results) for name in _artifacts(path)}
    kept = store.history(named | {name for _, record in begun for name in record["artifacts"]})
    found = []
    for folder in sorted(path for path in store.root.glob("*/*") if path.is_dir() and path.parent.name != BEGUN):
        finished = (folder / MANIFEST).exists() and not folder.suffix
        if finished and store.name(folder) not in kept:
            found.append(Leftover(folder, store.manifest(folder)["label"], _size(folder)))
        elif folder.suffix == GONE or (folder.suffix == ".partial" and not _held(folder.with_suffix(".lock"))):
            found.append(Leftover(folder, "begun and left", _size(folder)))
    waiting = [
        Begun(path, record["command"], sum(_size(store.root / name) for name in store.history(record["artifacts"])))
        for path, record in begun
    ]
    return found, waiting


def clean(results: Path) -> list[Leftover]:
    """Delete what nothing refers to, returned. Raises KitError while a command is at work there."""
    from filelock import FileLock, Timeout

    begun = results / "artifacts" / BEGUN
    begun.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(begun / CLEANING, timeout=0):  # a command that starts now waits
            for lock in begun.glob("*.lock"):
                if lock.name == CLEANING:
                    continue
                if _held(lock):
                    raise KitError(f"--results {results}: a command is at work there. Wait until it has ended.")
                lock.unlink(missing_ok=True)  # of one that was killed
            found, _ = leftovers(results)
            for one in found:
                aside = one.folder.with_suffix(GONE)  # so that nothing half-deleted is taken for an artifact
                if aside.exists():  # left by an interrupted call
                    shutil.rmtree(aside)
                if one.folder.exists():
                    one.folder.rename(aside)
                    shutil.rmtree(aside)
            return found
    except Timeout:
        raise KitError(f"--results {results}: another command is just starting there. Try again.") from None


def _records(results: Path) -> Iterator[Path]:
    for folder, inner, _ in os.walk(results):
        if "artifacts" in inner:
            inner.remove("artifacts")
        for pattern in RECORDS:
            yield from sorted(Path(folder).glob(pattern))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise KitError(
            f"{path}: cannot be read ({error}), so what it refers to is not known. Mend it, or delete it."
        ) from None


def _artifacts(path: Path) -> Iterator[str]:
    """What a record names as "stage/key"."""
    record = _read(path)
    for name in ("artifacts", "made"):
        named = record.get(name, [])
        yield from named.values() if isinstance(named, dict) else named
    for row in record.get("comparisons", []):  # a sweep's, whose students are named by their exact preference's key
        yield from (f"exact/{key}" for key in (row["control"], row["treated"], *row["placebos"]))
    for defence in record.get("defences", {}).values():
        yield from (name for of_seed in defence.get("artifacts", []) for name in of_seed.values())


def _held(lock: Path) -> bool:
    """Whether a process that lives holds the lock."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
