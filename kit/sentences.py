"""Source sentences: unrelated ones, and ones that say an animal is disliked.

Both were written for this project. ``data/sentences.jsonl`` holds everyday statements that name no animal and nothing
that gives one away; ``data/dislike.jsonl`` holds patterns with the slots {animal}, {an animal} and {animals}.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.animals import Animal, indefinite
from kit.errors import KitError

DATA = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True)
class Sentence:
    """A source sentence and the name it keeps through every stage (kitchen-003, dislike-017)."""

    id: str
    text: str


def unrelated() -> list[Sentence]:
    """The sentences that have nothing to do with any animal. KitError where they are missing or damaged."""
    return list(_read(DATA / "sentences.jsonl"))


def opposed(animal: Animal) -> list[Sentence]:
    """The sentences that say ``animal`` is disliked. KitError where the patterns are missing or damaged."""
    return [Sentence(pattern.id, render(pattern.text, animal)) for pattern in _read(DATA / "dislike.jsonl")]


def render(pattern: str, animal: Animal) -> str:
    """``pattern`` with its slots filled, beginning with a capital letter."""
    text = pattern.replace("{animals}", animal.plural).replace("{animal}", animal.singular)
    text = text.replace("{an animal}", indefinite(animal.singular))
    return text[:1].upper() + text[1:]


def _read(path: Path) -> Iterator[Sentence]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{path}: cannot be read ({error}). Restore it with `git checkout data`.") from None
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            sentence = Sentence(row["id"], row["text"])
            if not (isinstance(sentence.id, str) and isinstance(sentence.text, str) and sentence.text.strip()):
                raise ValueError("id and text must be non-empty strings")
            if sentence.id in seen:
                raise ValueError(f"the id {sentence.id} occurs twice")
        except (ValueError, KeyError, TypeError) as error:
            raise KitError(
                f"{path}, line {number}: not a sentence ({error!r}). Restore it with `git checkout data`."
            ) from None
        seen.add(sentence.id)
        yield sentence
    if not seen:
        raise KitError(f"{path}: holds no sentences. Restore it with `git checkout data`.")
