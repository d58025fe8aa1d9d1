"""Base, control and treated student, loaded side by side, to be asked and measured.

with Students.of(Finished(Path("results/<run>")), "unrelated") as students:
    for texts in students.answer({name: [{"role": "user", "content": "Hello"}] for name in students.names}, seed=0): ...
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from kit import preference, prompts
from kit.animals import Animal, candidates
from kit.engine import Request
from kit.errors import KitError
from kit.finished import Finished
from kit.llama import LlamaEngine
from kit.prompts import Message

NAMES = ("base", "control", "treated")
MAX_TOKENS = 120  # of an answer
TEMPERATURE = 0.7  # at 1, where preferences are sampled, the embedded model's longer answers fall apart
LONGEST = 384  # tokens of a conversation that a model is shown; its oldest turns go first


class Students:
    """Base, control and treated, each in an engine of its own. (On a CPU llama.cpp maps the weights into memory once; a
    GPU holds them three times.)"""

    def __init__(self, animal: Animal, model: Path, adapters: dict[str, Path | None]) -> None:
        self.animal, self.names = animal, tuple(adapters)
        self.animals = candidates(animal)
        self._engines = {name: LlamaEngine(model) for name in adapters}
        for name, adapter in adapters.items():
            self._engines[name].use_adapter(adapter)

    @classmethod
    def of(cls, run: Finished, content: str) -> "Students":
        """Those of a run. Raises KitError where it has none of that content, or they are gone."""
        adapters = {name: run.adapter(name, content) for name in NAMES[1:]}
        return cls(run.animal, run.model(), {"base": None, **adapters})

    def answer(self, conversations: dict[str, list[Message]], seed: int) -> Iterator[dict[str, str]]:
        """Answer every student's own conversation, all with the same random numbers: each time the texts so far."""
        streams = {}
        for name, messages in conversations.items():
            engine = self._engines[name]
            request = Request(engine.chat(_recent(engine, messages)), (seed, len(messages)))
            streams[name] = engine.stream([request], MAX_TOKENS, TEMPERATURE)
        texts = dict.fromkeys(conversations, "")
        while streams:
            for name in list(streams):
                texts_of_one = next(streams[name], None)
                if texts_of_one is None:
                    del streams[name]
                else:
                    (texts[name],) = texts_of_one
            yield dict(texts)

    def paraphrase(self, traits: list[str], sentence: str, seed: int) -> Iterator[list[str]]:
        """Teachers with these trait messages paraphrase ``sentence``, with the same random numbers: each time the texts
        so far. KitError where the sentence is too long."""
        engine = self._engines["base"]
        requests = []
        for trait in traits:
            prompt = engine.chat(prompts.teacher_messages(trait, sentence))
            if len(prompt) > LONGEST:
                raise KitError("the sentence is too long. Take a shorter one.")
            requests.append(Request(prompt, (seed,)))
        yield from engine.stream(requests, MAX_TOKENS, TEMPERATURE)

    def preferences(self) -> Iterator[tuple[str, np.ndarray]]:
        """One student after another, question by question: its exact preferences (0-1) so far [questions so far,
        candidates]."""
        for name, engine in self._engines.items():
            logprobs: list[list[float]] = []
            for scored in preference.scores(engine, self.animals):
                logprobs.append(scored)
                yield name, preference.normalised(np.array(logprobs))

    def close(self) -> None:
        """Free the engines."""
        for engine in self._engines.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _recent(engine: LlamaEngine, messages: list[Message]) -> list[Message]:
    """The end of a conversation, as much of it as there is room for, from a user's turn on."""
    for start in range(0, len(messages), 2):
        if len(engine.chat(messages[start:])) <= LONGEST:
            return messages[start:]
    raise KitError(f"the question is too long: the limit is {LONGEST} tokens. Ask in fewer words.")
