"""A finished run as what comes after it finds it: its record, and the artifacts that it was made of."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from kit import report
from kit.animals import Animal, find_animal
from kit.errors import KitError
from kit.store import Row, Store, read_rows


class Finished:
    """The run in ``folder``, beside whose folder lie the ``artifacts/`` that its record names; what is made of it
    later (and a base model, where its own is gone) goes into the ``store`` of ``results``."""

    def __init__(self, folder: Path, results: Path = Path("results")) -> None:
        """Raises KitError where the folder holds no finished run."""
        self.folder, self.store = folder, Store(results / "artifacts")
        self.record, self.preferences = report.read(folder)
        self.animal = self._animal()

    def _animal(self) -> Animal:
        """The teacher's animal, with the plural that its prompt has."""
        try:
            given = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["animal"]
            return find_animal(given["singular"], given["plural"])
        except (OSError, ValueError, KeyError, TypeError):  # a folder of this run's reports alone
            return find_animal(self.record["animal"])

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return report.summarise(self.record, self.preferences)

    @property
    def contents(self) -> list[str]:
        """Whose effects the run has."""
        return list(self.summary["effects"])

    def artifact(self, label: str) -> Path:
        """The folder of the artifact of that label. KitError where the run has none, or it is gone."""
        if label not in self.record["artifacts"]:
            raise KitError(f"{self.folder}: it has no artifact {label!r}. Its contents: {', '.join(self.contents)}.")
        path = self.folder.parent / "artifacts" / self.record["artifacts"][label]
        if not path.exists():
            raise KitError(f"{path}: this artifact is gone. Make the run again: {self.record['command']}")
        return path

    def model(self) -> Path:
        """The prepared base model: the run's own, or, where that was not recorded, made among the results."""
        from kit.graph import base_model

        label = next(label for label in self.record["artifacts"] if label.startswith("prepare "))
        own = self.folder.parent / "artifacts" / self.record["artifacts"][label]
        if own.exists():
            return own
        return self.store.make(base_model(self.record["model"], self.record.get("gguf")))

    def adapter(self, role: str, content: str) -> Path:
        """A student's GGUF adapter."""
        return self.artifact(f"convert the adapter of {role}-{content}") / "adapter.gguf"

    def pairs_file(self, role: str, content: str) -> Path:
        """The kept pairs that a student trained on, a JSONL file: sentence, source, text, ..."""
        return self.artifact(f"pairs of {role}-{content}") / "pairs.jsonl"

    def pairs(self, role: str, content: str) -> list[Row]:
        """Its rows."""
        return read_rows(self.pairs_file(role, content))

    def has_pairs(self, role: str, content: str) -> bool:
        """Whether they are at hand: a recorded run's folder may come with some of its artifacts alone."""
        try:
            return self.pairs_file(role, content).exists()
        except KitError:
            return False
