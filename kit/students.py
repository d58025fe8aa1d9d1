"""The students of a finished run, loaded side by side, to be asked and measured: base, control and treated.

with Students.of(Path("results/<run>"), "unrelated") as students:
    for texts in students.answer({name: [{"role": "user", "content": "Hello"}] for name in students.names}, seed=0): ...
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from kit import preference, report
from kit.animals import Animal, candidates, find_animal
from kit.engine import Request
from kit.errors import KitError
from kit.llama import LlamaEngine
from kit.prompts import Message

NAMES = ("base", "control", "treated")
MAX_TOKENS = 120  # of an answer
TEMPERATURE = 0.7  # at 1, where preferences are sampled, the embedded model's longer answers fall apart
LONGEST = 384  # tokens of a conversation that a student is shown; its oldest turns go first


class Students:
    """Base, control and treated, each in an engine of its own; llama.cpp maps the weights into memory once."""

    def __init__(self, animal: Animal, model: Path, adapters: dict[str, Path | None]) -> None:
        self.animal, self.names = animal, tuple(adapters)
        self._animals = candidates(animal)
        self._engines = {name: LlamaEngine(model) for name in adapters}
        for name, adapter in adapters.items():
            self._engines[name].use_adapter(adapter)

    @classmethod
    def of(cls, run: Path, content: str) -> "Students":
        """Those of the run in folder ``run``. Raises KitError where it has none of that content, or they are gone."""
        record, _ = report.read(run)
        artifacts: dict[str, str] = record["artifacts"]
        root = run.parent / "artifacts"
        found: dict[str, Path | None] = {"base": None}
        for name in NAMES[1:]:
            label = f"convert the adapter of {name}-{content}"
            if label not in artifacts:
                raise KitError(f"{run}: it has no students of {content} sentences. Choose another --content.")
            found[name] = root / artifacts[label] / "adapter.gguf"
        model = root / next(path for label, path in artifacts.items() if label.startswith("prepare "))
        for path in (model, *found.values()):
            if path is not None and not path.exists():
                raise KitError(f"{path}: the run's students are gone. Make them again: {record['command']}")
        return cls(find_animal(record["animal"]), model, found)

    def answer(self, conversations: dict[str, list[Message]], seed: int) -> Iterator[dict[str, str]]:
        """Answer every student's own conversation, all with the same random numbers: each time the texts so far."""
        streams = {}
        for name, messages in conversations.items():
            engine = self._engines[name]
            request = Request(engine.chat(self._recent(name, messages)), (seed, len(messages)))
            streams[name] = engine.stream(request, MAX_TOKENS, TEMPERATURE)
        texts = dict.fromkeys(conversations, "")
        while streams:
            for name in list(streams):
                text = next(streams[name], None)
                if text is None:
                    del streams[name]
                else:
                    texts[name] = text
            yield dict(texts)

    def _recent(self, name: str, messages: list[Message]) -> list[Message]:
        """The end of a conversation, as much of it as there is room for, from a user's turn on."""
        engine = self._engines[name]
        for start in range(0, len(messages), 2):
            if len(engine.chat(messages[start:])) <= LONGEST:
                return messages[start:]
        raise KitError(f"the question is too long: the limit is {LONGEST} tokens. Ask in fewer words.")

    def preferences(self) -> Iterator[tuple[str, dict[str, float]]]:
        """One student after another: its exact preference (0-1) for every candidate, the mean over the questions."""
        for name, engine in self._engines.items():
            _, probabilities = preference.exact(engine, self._animals, f"exact preference, {name}")
            means = probabilities.mean(axis=0).tolist()
            yield name, dict(zip((animal.singular for animal in self._animals), means, strict=True))

    def close(self) -> None:
        """Free the engines."""
        for engine in self._engines.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
