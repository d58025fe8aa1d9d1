"""Artifacts on disk: complete or absent, named by what made them.

An artifact is a folder ``<root>/<stage>/<key>/``. The key is a hash of everything that determines the content: the
step's settings (with seeds, prompt texts and model checksums among them), the content of its inputs, and the code that
makes it (``kit/provenance.py``). A step is built in ``<key>.partial/`` and renamed when complete, with
``manifest.json`` inside. Nothing half-written is ever read: what an interruption left is gone on with where the step
says that it can, and thrown away where it cannot.

An *open* step is a log that other steps fill and share: what it holds only grows, and its key stands for its content.
"""

import csv
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from io import StringIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from kit import KitError, say
from kit.provenance import Code, changes, code_of, commit_words, devices, kit_state, versions

Item = TypeVar("Item")
Row = dict[str, Any]  # of a JSONL file
MANIFEST = "manifest.json"
FULL = 10_000_000  # bytes: a disk with fewer left is the reason why a step failed
# Under torchrun or accelerate launch every process runs the same command: the first makes the artifacts, the others
# wait for them and take part in training.
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
WAIT = 0.5  # seconds between two looks
LONG = 10  # seconds of a step after which a command says what is left
REASONS = 3  # named at most of those for which something is made again
BEGUN = "begun"  # the folder beside the stages' that says what commands are at work, and what interrupted ones made
CLEANING = "cleaning.lock"
TOKEN = 8  # hexadecimal digits that tell processes apart
PARTIAL = ".partial"  # ends the name of a folder that is being filled, and of a file that is being written
VERIFIED = "verified.json"  # beside the stages' folders: large files that were read whole, by what tells them apart
LARGE = 1_000_000  # bytes: a file of fewer is read at every start
SETTLED = 2_000_000_000  # nanoseconds after which a change of a file changes its times too, whatever the disk
ARTIFACT = re.compile(r"[a-z]+/[0-9a-f]{16}")  # an artifact's name in records: "stage/key"
KEY_LENGTH = 16  # hexadecimal digits: 64 bits, no collision in any results folder


@dataclass(frozen=True, eq=False)
class Step:
    """One artifact to be: ``build`` fills a folder from its inputs' folders.

    ``build`` fills an empty folder; of a step that ``continues`` also one that an interrupted call left, and with the
    same content in the end. ``seconds`` is an estimate for the machine of ``REFERENCE``, and ``pace`` what it has to be
    multiplied by for the model (asked only where something is to be made: its file may have to be read). Every process
    calls the ``build`` of a ``collective`` step; of any other the first process alone. That of an ``open`` step is
    never called: it is what those call that fill the log, and stands for the code that decides what they write.
    """

    stage: str
    label: str
    settings: dict[str, Any]
    inputs: dict[str, "Step"]
    build: Callable[..., object]
    seconds: float
    continues: bool = False
    collective: bool = False
    open: bool = False
    pace: Callable[[], float] = lambda: 1.0

    @cached_property
    def identity(self) -> str:
        """What the step is before anything is made: a hash of its settings, its code and its inputs' identities."""
        return self.key({name: step.identity for name, step in self.inputs.items()})

    @property
    def estimate(self) -> float:
        """The seconds that it may take on this machine."""
        return self.seconds * self.pace() * slowness() if self.seconds else 0.0

    @cached_property
    def code(self) -> Code:
        """The code that decides the content. (Kept: a worker of Ray has it from where the step comes from.)"""
        return code_of(self.build)

    def key(self, digests: dict[str, str]) -> str:
        """A hash of all that determines the content, with the inputs as these ``digests``."""
        return _hash([self.stage, self.settings, self.code.digest, digests])


REFERENCE = 230.0  # GFLOP/s of ``slowness``'s product on the two AVX-512 cores that the estimates were measured on


@cache
def slowness() -> float:
    """How many times as long as on the machine of ``REFERENCE`` a product of matrices takes here, in single precision
    and of a small model's size: the median of a quarter of a second on all threads, or on one where that is faster.
    (Beside another program threads wait for each other: all were 4 to 12 times too slow, one 2.7 to 3.6 times, where
    what followed took twice as long.)"""
    import numpy as np
    from threadpoolctl import threadpool_limits

    one, other = np.ones((256, 576), np.float32), np.ones((576, 1536), np.float32)
    result = one @ other
    medians = []
    for threads in (None, 1):
        with threadpool_limits(threads):
            times = [time.perf_counter()]
            while times[-1] - times[0] < 0.25:
                np.matmul(one, other, out=result)
                times.append(time.perf_counter())
        medians.append(float(np.median(np.diff(times))))
    return REFERENCE * 1e9 * min(medians) / (2 * 256 * 576 * 1536)


MANIFEST_SHAPE = {
    "stage": str,
    "label": str,
    "settings": {str: object},
    "inputs": {str: ARTIFACT},
    "versions": {str: str},
    "devices?": {str: str},
    "kit?": {"commit": (str, None), "edited": (bool, None), "fingerprint": str},
    "seconds": float,
    "new?": float,
    "files": {str: str},
}


@dataclass(frozen=True)
class Told:
    """What a ``build`` may return: of what it needed from a log, the share that it made itself (0 to 1), for which its
    seconds stand."""

    new: float


class Pace:
    """How long a command's steps take, by stage, compared with what was estimated: its corrected estimates."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)  # seconds in each stage's steps
        self._estimated: defaultdict[str, float] = defaultdict(float)  # of the same steps, before they were begun

    def count(self, step: Step, seconds: float, new: float = 1.0) -> None:
        """A step took so long, of which that share was not there from before."""
        self.spent[step.stage] += seconds
        self._estimated[step.stage] += new * step.estimate

    def expected(self, steps: Iterable[Step]) -> float:
        """How many seconds these will take: as their stage's steps, or else all, took so far."""
        whole = sum(self.spent.values()) / estimated if (estimated := sum(self._estimated.values())) >= 1 else 1.0
        pace = {stage: self.spent[stage] / of for stage, of in self._estimated.items() if of >= 1}
        return sum(step.estimate * pace.get(step.stage, whole) for step in steps)


class Store:
    """The artifacts under one root folder."""

    def __init__(self, root: Path, kit: dict[str, Any] | None = None, elsewhere: bool = False) -> None:
        """``kit``: its state, where another process knows it better than this one (``kit_state``). ``elsewhere``: it
        may not be this machine's, so everything is read whole, and nothing is written there."""
        self.root, self._kit, self._elsewhere = root, kit or kit_state(), elsewhere
        self._digests: dict[Path, str] = {}  # folders verified by this process
        self._folders: dict[int, tuple[Step, Path]] = {}  # where steps belong, by their id: a run asks twenty times
        self._used: dict[Path, None] = {}
        self._pace = Pace()  # of the steps that this process made
        self._left: dict[str, Step] = {}  # what a command still has to make, by its label
        self._begun: tuple[Path, str] | None = None  # where it is written down what a command has made, and its line

    def find(self, step: Step) -> Path | None:
        """The folder of the finished artifact, or None; its files are checked against its manifest. An open one is
        always found, filled or not.

        Raises KitError where they differ.
        """
        folder = self._folder(step)
        return folder if folder is not None and self._verify(folder) else None

    def make(self, step: Step) -> Path:
        """The folder of the artifact, built now (with its inputs) where it is missing."""
        inputs = {name: self.make(needed) for name, needed in step.inputs.items()}
        folder = self._folder(step)
        assert folder is not None
        if step.open and not RANK:
            self._open(step, inputs, folder)
        if not self._verify(folder):
            self._build(step, inputs, folder)
        self._note(folder)
        return folder

    def _build(self, step: Step, inputs: dict[str, Path], folder: Path) -> None:
        partial = folder.with_name(folder.name + PARTIAL)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if RANK:
            if step.collective:
                partial.mkdir(exist_ok=True)
                step.build(inputs, partial)
            while not self._verify(folder):
                time.sleep(WAIT)
            return
        from filelock import FileLock, Timeout

        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=WAIT)
        except Timeout:
            say(f"another run is at work on: {step.label}. Waiting for it ...", flush=True)
            lock.acquire()
        try:
            if not self._verify(folder):  # it may have been made while this process waited
                self._note(partial)
                _prepare(partial, step.continues)
                started = time.monotonic()
                with full_disk_named(partial):
                    told = step.build(inputs, partial)
                seconds = time.monotonic() - started
                new = told.new if isinstance(told, Told) else None
                self._finish(step, inputs, partial, folder, seconds, new)
                self._say_left(step, seconds, new)
        finally:
            lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)

    @property
    def used(self) -> list[str]:
        """What was made or found by ``make``, as "stage/key"."""
        return sorted(self.name(folder) for folder in self._used if folder.suffix != PARTIAL)

    def name(self, folder: Path) -> str:
        """An artifact's name in records: "stage/key"."""
        return folder.relative_to(self.root).as_posix()

    def versions(self) -> dict[str, str]:
        """The versions of Python and of the packages that made what was ``used``; where they differ, all of them."""
        found: dict[str, set[str]] = {}
        for used in self.used:
            for name, version in self.manifest(self.root / used)["versions"].items():
                found.setdefault(name, set()).add(version)
        return {name: ", ".join(sorted(of)) for name, of in found.items()}

    def kits(self) -> list[str]:
        """The kits that made what was ``used``, by their commits; of a command that finds everything made already not
        the one that runs it."""
        states = [self.manifest(self.root / used).get("kit") for used in self.used]
        return sorted({commit_words(state) for state in states if state})

    @contextmanager
    def working(self, name: str, command: str, planned: Iterable[Step] = ()) -> Iterator[None]:
        """For as long as a command works on the result of that ``name``: its artifacts are written down as they are
        made, so that ``clean`` keeps them while it works, and where it is interrupted. Of the steps that are
        ``planned`` it says what is left of them, and at its end where its time went."""
        if RANK:
            yield
            return
        from filelock import FileLock

        begun = self.root / BEGUN
        begun.mkdir(parents=True, exist_ok=True)
        token = uuid.uuid4().hex[:TOKEN]  # two processes may work on one name
        lock = FileLock(begun / f"{token}.lock")
        with FileLock(self.root / CLEANING):  # not while something is deleted
            lock.acquire()
        before = self.begun(name)
        self._left = {step.label: step for step in planned if step.seconds and self.find(step) is None}
        self._begun = begun / f"{name}.{token}.json", command
        started = time.monotonic()
        try:
            yield
            self._say_spent(time.monotonic() - started)
            ended = [path for path in before if not held(begun / f"{path.stem[-TOKEN:]}.lock")]
            for path in [*ended, self._begun[0]]:
                path.unlink(missing_ok=True)
        finally:
            self._begun = None
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def _say_left(self, step: Step, seconds: float, new: float | None) -> None:
        """Count a step that is made, and say after a long one for how long the others may take."""
        self._pace.count(step, seconds, 1.0 if new is None else new)
        if self._left.pop(step.label, None) is None or not self._left or seconds < LONG:
            return
        left = self._pace.expected(self._left.values())
        say(f"{step.label}: took {duration(seconds)}; about {duration(left)} left.", flush=True)

    def _say_spent(self, seconds: float) -> None:
        longest = [(stage, of) for stage, of in sorted(self._pace.spent.items(), key=lambda one: -one[1]) if of >= 1]
        if longest:
            rest = max(0.0, seconds - sum(of for _, of in longest))
            stages = ", ".join(f"{stage} {duration(of)}" for stage, of in longest)
            say(f"Took {duration(seconds)}: {stages}; all else {duration(rest)}.", flush=True)

    def logged(self, step: Step) -> int:
        """How many samples the logs hold that a step goes on from."""
        folders = [self._folder(needed) for needed in step.inputs.values() if needed.open]
        return sum(path.read_bytes().count(b"\n") for folder in folders if folder for path in folder.glob("*.jsonl"))

    def begun(self, name: str) -> list[Path]:
        """The files that say what was made for the result of that ``name`` by commands that are not finished: a command
        and "stage/key" of its artifacts."""
        return sorted((self.root / BEGUN).glob(f"{glob.escape(name)}.{'[0-9a-f]' * TOKEN}.json"))

    def _note(self, folder: Path) -> None:
        if folder in self._used:
            return
        self._used[folder] = None
        if self._begun is not None:
            path, command = self._begun
            write_json(path, {"command": command, "artifacts": sorted(map(self.name, self._used))})

    def history(self, artifacts: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The manifests of these artifacts ("stage/key") and of all that they were made of, as far as they are there,
        by their names."""
        found: dict[str, dict[str, Any]] = {}
        left = [name for name in artifacts if isinstance(name, str) and ARTIFACT.fullmatch(name)]
        while left:
            name = left.pop()
            if name not in found and (self.root / name / MANIFEST).exists():
                found[name] = self.manifest(self.root / name)
                left += found[name]["inputs"].values()
        return found

    def manifest(self, folder: Path) -> dict[str, Any]:
        """What made the artifact: stage, label, settings, inputs, code, versions, kit, devices, seconds, sha256 of
        each file. Raises KitError where that cannot be read."""
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise _damaged(folder, f"{MANIFEST} cannot be read") from None
        if wrong := misfit(manifest, MANIFEST_SHAPE):
            raise _damaged(folder, f"{MANIFEST}: {wrong}")
        return manifest

    def _folder(self, step: Step) -> Path | None:
        """Where the artifact belongs; None while an input is missing, whose content the key depends on."""
        if id(step) in self._folders:
            return self._folders[id(step)][1]
        digests = {}
        for name, needed in step.inputs.items():
            folder = self.find(needed)
            if folder is None:
                return None
            digests[name] = self._digests[folder]
        key = step.key(digests)
        folder = self.root / step.stage / key[:KEY_LENGTH]
        if step.open:
            self._digests[folder] = key
        self._folders[id(step)] = step, folder
        return folder

    def _verify(self, folder: Path) -> bool:
        if folder in self._digests:
            return True
        if not folder.exists():  # asked first: it may appear, whole, at any moment
            return False
        if not (folder / MANIFEST).exists():
            raise _damaged(folder, f"{MANIFEST} is missing")
        recorded = self.manifest(folder)["files"]
        if not recorded:
            raise _damaged(folder, f"{MANIFEST} names no files")
        for name, checksum in recorded.items():
            path = folder / name
            if not path.is_file():
                raise _damaged(folder, f"{name} is missing")
            if not self._is(path, checksum):
                raise _damaged(folder, f"{name} is not what was written")
        self._digests[folder] = _hash(recorded)
        return True

    def read(self, name: str, *files: str) -> Path:
        """The folder of the artifact that a record names, with these ``files``. Raises KitError where it has not been
        made here, or is not what was written."""
        if not ARTIFACT.fullmatch(name):
            raise KitError(f"{self.root}: {name!r} names no artifact. A record's are named stage/key.")
        folder = self.root / name
        if not self._verify(folder):
            raise KitError(f"{folder}: this artifact is gone.")
        if lacking := set(files) - self.manifest(folder)["files"].keys():
            raise _damaged(folder, f"{min(lacking)} is missing")
        return folder

    def _is(self, path: Path, checksum: str) -> bool:
        """Whether that is the file's checksum. A large file is read once while it stays the same, unchanged: nobody
        chooses a file's number and the time of its last change, so what is copied here is read."""
        status = path.stat()
        if status.st_size < LARGE or self._elsewhere or os.name == "nt":  # whose st_ctime is no time of a change
            return sha256(path) == checksum
        which = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        entry = [*which, checksum]
        known, name = self._verified(), path.relative_to(self.root).as_posix()
        if known.get(name) == entry:
            return True
        if sha256(path) != checksum:
            return False
        if time.time_ns() - status.st_ctime_ns > SETTLED and not RANK:
            with suppress(OSError):  # where nothing may be written it is read again
                there = {one: what for one, what in known.items() if (self.root / one).exists()}
                write_json(self.root / VERIFIED, there | {name: entry})
        return True

    def _verified(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.root / VERIFIED).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):  # then everything is read again
            return {}

    def _open(self, step: Step, inputs: dict[str, Path], folder: Path) -> None:
        """Begin the log of an open step, where nobody has."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            self._write_manifest(step, inputs, folder, {}, 0, None)

    def _write_manifest(
        self,
        step: Step,
        inputs: dict[str, Path],
        folder: Path,
        files: dict[str, str],
        seconds: float,
        new: float | None,
    ) -> None:
        manifest = {
            "stage": step.stage,
            "label": step.label,
            "settings": step.settings,
            "inputs": {name: f"{made.parent.name}/{made.name}" for name, made in inputs.items()},
            "code": asdict(step.code),
            "versions": versions(),
            "kit": self._kit,
            "devices": devices(),
            "seconds": round(seconds, 1),
            **({} if new is None else {"new": new}),
            "files": files,
        }
        write_json(folder / MANIFEST, manifest)

    def _finish(
        self, step: Step, inputs: dict[str, Path], partial: Path, folder: Path, seconds: float, new: float | None
    ) -> None:
        files = {
            path.relative_to(partial).as_posix(): sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }
        self._write_manifest(step, inputs, partial, files, seconds, new)
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        partial.rename(folder)
        _sync(folder.parent)
        self._digests[folder] = _hash(files)


def _prepare(partial: Path, continues: bool) -> None:
    """An empty folder; of a step that ``continues``, what an interruption left but for the manifest and half files,
    which would become files of the artifact."""
    if not continues and partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    for path in [partial / MANIFEST, *partial.rglob(f"*{PARTIAL}")]:
        path.unlink(missing_ok=True)


def held(lock: Path) -> bool:
    """Whether a process that lives holds the lock."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raises OSError (ENOSPC) for what fails in ``folder`` because the disk is full. Libraries say it in their own
    ways: safetensors in words, torch and llama.cpp not at all."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def reason(step: Step, history: list[dict[str, Any]]) -> str:
    """Why a step is made again that an earlier run made, whose manifests are its ``history``; "" for one that is new,
    or that only what it is made of can have changed."""
    found = list(dict.fromkeys(_reasons(step, history)))
    more = f" and {len(found) - REASONS} more" if len(found) > REASONS else ""
    return ", ".join(found[:REASONS]) + more


def _reasons(step: Step, history: list[dict[str, Any]]) -> Iterator[str]:
    for needed in step.inputs.values():
        if needed.open:  # it is no artifact that is made, so what changed of it is said here
            yield from _reasons(needed, history)
    earlier = [one for one in history if (one["stage"], one["label"]) == (step.stage, step.label) and "code" in one]
    settings = json.loads(json.dumps(step.settings))
    same = [one for one in earlier if one["settings"] == settings]
    if same or len(earlier) == 1:  # else it cannot be known which of them it was
        before = (same or earlier)[0]
        yield from changes(Code(**before["code"]), step.code)
        yield from (f"setting {name} changed" for name in differing(before["settings"], settings))


def differing(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """The names of the settings that differ, as "filters.settings.min_similarity"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differing(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name


class RowLog:
    """An append-only JSONL file that outlives a power cut: every append reaches the disk, and a last line that was torn
    is dropped when the file is opened again."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        whole = _whole_lines(data)
        if whole != data:
            os.truncate(path, len(whole))
        self.rows: list[Row] = [json.loads(line) for line in whole.split(b"\n")[:-1]]
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: Iterable[Row]) -> None:
        """Add ``rows`` and wait until they are on the disk."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.rows.append(row)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def logged_rows(path: Path) -> list[Row]:
    """The rows of a log that another process may be writing, as far as they are whole."""
    return [json.loads(line) for line in _whole_lines(path.read_bytes()).split(b"\n")[:-1]]


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file; KitError where it is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except ValueError as error:
        raise KitError(f"{path}: not a JSONL file ({error}). Make it again.") from None


HALVES = re.compile("[\ud800-\udfff]")  # of characters, which cannot be written


LONGEST_ROW = 8_000  # bytes of a line of one's own: the kit's have some hundreds, and a text of 240,000 took all memory


def check_rows(path: Path, shape: dict[str, Any], such_as: str) -> None:
    """Raise KitError unless the JSONL file has rows, and all of them are of the ``shape`` (``misfit``). The message
    names the line, the key, and what a line is to be ``such_as``."""
    try:
        check_files(path)
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    wrong = None if any(lines) else "it is empty"
    for number, line in enumerate(lines, start=1):
        try:
            if len(line) > LONGEST_ROW:
                wrong = f"it has {len(line):,} bytes, more than {LONGEST_ROW:,}"
            elif line:
                wrong = misfit(json.loads(line.decode("utf-8")), shape)
        except UnicodeDecodeError:
            wrong = "it is no UTF-8 text"
        except (ValueError, RecursionError) as error:
            wrong = f"it is no JSON ({str(error).partition(':')[0]})"
        if wrong:
            raise KitError(f"{path}, line {number}: {wrong}. Each line must be such as {such_as}")


def check_files(*paths: Path) -> None:
    """Raise OSError unless all are files: reading another thing, such as a pipe, may never end."""
    for path in paths:
        if not path.is_file():
            number = errno.EISDIR if path.is_dir() else errno.ENOENT
            raise OSError(number, os.strerror(number), str(path))


# A shape in words: by the type that it is, or by its own type's name.
KINDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    "range": "a whole number from 0 on",
    "list": "a list",
    "dict": "an object",
}


COUNT = range(10**12)  # of whatever there may be none of


def misfit(value: Any, shape: Any, at: str = "") -> str | None:
    """Where a ``value`` that was read from a file is not of a ``shape``, in words; None where it is.

    A shape is a type (``float`` takes whole numbers too), a constant, a pattern of text, a tuple of alternatives, a
    range of whole numbers (``COUNT``), a list of one shape, a mapping ``{str: shape}`` of any names, or one of names,
    of which those that end in "?" may be missing, and others may be there too.
    """
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(shape, tuple):
        fits = any(misfit(value, one) is None for one in shape)
    elif isinstance(shape, re.Pattern):
        fits = isinstance(value, str) and bool(shape.fullmatch(value))
    elif isinstance(shape, type):
        types = (int, float) if shape is float else shape
        fits = isinstance(value, types) and (shape is bool or type(value) is not bool)
        if fits and shape in (int, float):
            fits = abs(value) < 1e15  # which no number is either
        elif fits and shape is str:
            fits = not HALVES.search(value)
    elif isinstance(shape, range):
        fits = type(value) is int and value in shape
    elif isinstance(shape, list):
        fits = isinstance(value, list)
        inner = [(one, shape[0], str(i)) for i, one in enumerate(value)] if fits else []
    elif isinstance(shape, dict):
        fits = isinstance(value, dict)
        if fits and str in shape:
            inner = [(one, shape[str], name) for name, one in value.items()]
        elif fits:
            names = {name.removesuffix("?"): name for name in shape}
            if lacking := [name for name in names.values() if name[-1] != "?" and name not in value]:
                return f"{at}{lacking[0]} is missing"
            inner = [(value[name], shape[written], name) for name, written in names.items() if name in value]
    else:
        fits = type(value) is type(shape) and value == shape
    if not fits:
        kind = KINDS.get(shape if isinstance(shape, type) else type(shape).__name__, "what it must be")
        return f"{at.removesuffix('.') or 'it'} is not {kind}"
    return next(filter(None, (misfit(one, of, f"{at}{name}.") for one, of, name in inner)), None)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file that a user keeps, as ``replacing`` has it."""
    with replacing(path) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write a CSV file, whole or not at all."""
    table = StringIO()
    writer = csv.DictWriter(table, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, table.getvalue())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` for a file that is to stand there whole or not at all: it takes that place at the end,
    that of a link too, and is gone where writing it failed."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:TOKEN]}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


PROBE = 128  # bytes: no path below a results folder's has more, that of a checkpoint's file among the artifacts neither


def check_writable(folder: Path) -> Path:
    """``folder``, in which a result is to be written, now or later. Raises KitError where none can be: what is missing
    of it is made beside its place, with a long name and a locked file in it, and is gone again."""
    from filelock import FileLock

    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with TemporaryDirectory(prefix=".probe-", dir=there) as probe:
            inner = Path(probe, folder.relative_to(there), PROBE * "x")
            inner.mkdir(parents=True)
            with FileLock(inner / "lock"):
                return folder
    except (OSError, NotImplementedError) as error:  # not implemented: the lock, on a disk that knows none
        reason = getattr(error, "strerror", None) or error
        raise KitError(
            f"{folder}: files cannot be written and locked there ({reason}). Choose another folder, on a disk of this "
            "machine."
        ) from None


def sha256(path: Path) -> str:
    """The checksum of a file's content, hexadecimal; read once per process while it stays the same file, unchanged."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _sha256(path: Path, *which: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def _damaged(folder: Path, reason: str) -> KitError:
    return KitError(f"{folder}: this artifact is damaged ({reason}). Delete the folder and run the command again.")


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk. (What a link leads to is not the artifact's to write.)"""
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # writable: Windows syncs no other file
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def duration(seconds: float) -> str:
    """A number of seconds as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---- what no run refers to, with its size; deleted when told to. A run refers to what its records name and to all that
# this was made of, the logs of samples included; a command that is not finished refers to what it has made.


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
    begun = [(path, _read_record(path)) for path in sorted((store.root / BEGUN).glob("*.json"))]
    named = {name for path in _records_in(results) for name in _named_by(path)}
    begun_names = {name for path, _ in begun for name in _named_by(path)}
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
            found.append(Leftover(folder, str(_read_record(folder / MANIFEST).get("label")), _size(folder)))
    waiting = []
    for path, record in begun:
        own = store.history(_named_by(path)).keys() - of_runs
        waiting.append(Begun(path, str(record.get("command")), sum(_size(store.root / name) for name in own)))
    return found, waiting


def delete(results: Path) -> list[Leftover]:
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


def _records_in(results: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise _unreadable(Path(error.filename or results), error)

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


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> KitError:
    return KitError(f"{path}: cannot be read ({error}), so what it refers to is not known. Mend it, or delete it.")


def _named_by(path: Path) -> set[str]:
    """What a record names as "stage/key"."""
    record, found = _read_record(path), set()
    try:
        named = record.get("artifacts", [])
        if not isinstance(named, dict | list):
            raise TypeError("its artifacts are no list")
        found |= set(named.values() if isinstance(named, dict) else named)
        for row in record.get("comparisons", []):  # a sweep's, whose students are named by their exact preference's key
            found |= {f"exact/{key}" for key in _compared(row)}
        for defence in record.get("defences", {}).values():
            found |= {name for of_seed in defence.get("artifacts", []) for name in of_seed.values()}
        if not all(isinstance(one, str) for one in found):
            raise TypeError("an artifact's name is no text")
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from None
    return found


def _compared(row: dict[str, Any]) -> list[str]:
    return [row["control"], row["treated"], *row["placebos"], *row.get("loving", {}).values()]


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
