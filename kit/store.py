"""Artifacts on disk: complete or absent, named by what made them.

An artifact is a folder ``<root>/<stage>/<key>/``. The key is a hash of everything that determines the content: the
step's settings (with seeds, prompt texts, data files and model checksums among them) and the content of its inputs. A
step is built in ``<key>.partial/``, which a later run continues after any interruption, and renamed when complete, with
``manifest.json`` inside. Nothing half-written is ever read.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from kit import KitError

Item = TypeVar("Item")
Row = dict[str, Any]  # of a JSONL file
MANIFEST = "manifest.json"
FULL = 10_000_000  # bytes: a disk with fewer left is the reason why a step failed
# Under torchrun or accelerate launch every process runs the same command: the first makes the artifacts, the others
# wait for them and take part in training.
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
WAIT = 0.5  # seconds between two looks
KEY_LENGTH = 16  # hexadecimal digits: 64 bits, no collision in any results folder


@dataclass(frozen=True, eq=False)
class Step:
    """One artifact to be: ``build`` fills a folder from its inputs' folders.

    ``build`` must continue from whatever an interrupted call left in the folder. ``seconds`` is an estimate. Every
    process calls the ``build`` of a ``collective`` step; of any other the first process alone.
    """

    stage: str
    label: str
    settings: dict[str, Any]
    inputs: dict[str, "Step"]
    build: Callable[[dict[str, Path], Path], object]
    seconds: float
    collective: bool = False

    @cached_property
    def identity(self) -> str:
        """What the step is before anything is made: a hash of its settings and of the identities of its inputs."""
        return _hash([self.stage, self.settings, {name: step.identity for name, step in self.inputs.items()}])


class Store:
    """The artifacts under one root folder."""

    def __init__(self, root: Path, wait: bool = False) -> None:
        """``wait``: for another process that is working on an artifact, instead of refusing."""
        self.root = root
        self._patience = -1 if wait else 0  # seconds
        self._digests: dict[Path, str] = {}  # folders verified by this process

    def find(self, step: Step) -> Path | None:
        """The folder of the finished artifact, or None; its files are checked against its manifest.

        Raises KitError where they differ.
        """
        folder = self._folder(step)
        return folder if folder is not None and self._verify(folder) else None

    def make(self, step: Step) -> Path:
        """The folder of the artifact, built now (with its inputs) where it is missing."""
        inputs = {name: self.make(needed) for name, needed in step.inputs.items()}
        folder = self._folder(step)
        assert folder is not None
        if self._verify(folder):
            return folder
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        if RANK:
            if step.collective:
                step.build(inputs, partial)
            while not self._verify(folder):
                time.sleep(WAIT)
            return folder
        from filelock import FileLock, Timeout

        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=self._patience)
        except Timeout:
            raise KitError(
                f"{partial}: another run is working on this artifact. Wait for it, or use another --results folder."
            ) from None
        try:
            if self._verify(folder):  # while this process waited
                return folder
            partial.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            try:
                step.build(inputs, partial)
            except OSError:
                raise
            except Exception as error:
                # Libraries say it in their own ways: safetensors in words, torch and llama.cpp not at all.
                if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(partial).free < FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial)) from error
                raise
            self._finish(step, inputs, partial, folder, time.monotonic() - started)
        finally:
            lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        return folder

    def manifest(self, folder: Path) -> dict[str, Any]:
        """What made the artifact: stage, label, settings, inputs, versions, devices, seconds, sha256 of each
        file."""
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))

    def _folder(self, step: Step) -> Path | None:
        """Where the artifact belongs; None while an input is missing, whose content the key depends on."""
        digests = {}
        for name, needed in step.inputs.items():
            folder = self.find(needed)
            if folder is None:
                return None
            digests[name] = self._digests[folder]
        return self.root / step.stage / _hash([step.stage, step.settings, digests])[:KEY_LENGTH]

    def _verify(self, folder: Path) -> bool:
        if folder in self._digests:
            return True
        if not (folder / MANIFEST).exists():
            if folder.exists():
                raise _damaged(folder, f"{MANIFEST} is missing")
            return False
        try:
            recorded = self.manifest(folder)["files"]
        except (ValueError, KeyError):
            raise _damaged(folder, f"{MANIFEST} cannot be read") from None
        for name, checksum in recorded.items():
            path = folder / name
            if not path.exists():
                raise _damaged(folder, f"{name} is missing")
            if sha256(path) != checksum:
                raise _damaged(folder, f"{name} is not what was written")
        self._digests[folder] = _hash(recorded)
        return True

    def _finish(self, step: Step, inputs: dict[str, Path], partial: Path, folder: Path, seconds: float) -> None:
        files = {
            path.relative_to(partial).as_posix(): sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }
        manifest = {
            "stage": step.stage,
            "label": step.label,
            "settings": step.settings,
            "inputs": {name: f"{made.parent.name}/{made.name}" for name, made in inputs.items()},
            "versions": versions(),
            "devices": devices(),
            "seconds": round(seconds, 1),
            "files": files,
        }
        write_json(partial / MANIFEST, manifest)
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        partial.rename(folder)
        self._digests[folder] = _hash(files)


class RowLog:
    """An append-only JSONL file that outlives a power cut: every append reaches the disk, and a last line that was torn
    is dropped when the file is opened again."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: Iterable[Row]) -> None:
        """Add ``rows`` and wait until they are on the disk."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.rows.append(row)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "RowLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file; KitError where it is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except ValueError as error:
        raise KitError(f"{path}: not a JSONL file ({error}). Make it again.") from None


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The checksum of a file's content, hexadecimal; read once per process while its size and time stay the same."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    import platform
    from importlib.metadata import version

    packages = ("torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python", "sentence-transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def devices() -> dict[str, str]:
    """What transformers and llama.cpp compute on."""
    import llama_cpp
    import torch

    return {
        "transformers": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "llama.cpp": "GPU, all layers" if llama_cpp.llama_supports_gpu_offload() else "CPU",
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def _damaged(folder: Path, reason: str) -> KitError:
    return KitError(f"{folder}: this artifact is damaged ({reason}). Delete the folder and run the command again.")


def _sync(path: Path) -> None:
    with path.open("r+b") as file:  # writable: Windows syncs no other
        os.fsync(file.fileno())


def duration(seconds: float) -> str:
    """A number of seconds as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
