"""What every engine does, whatever runs the model: sample continuations and score them.

``kit/engine_llama.py`` runs llama.cpp, ``kit/engine_torch.py`` transformers on a GPU (or a CPU), and
``kit/engine_endpoint.py`` asks a server and can only sample. No stage knows which one it has.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from kit.prompts import Message
from kit.store import Row, RowLog, batched

Tokens = list[int]
CALL = 256  # requests that ``sample_rows`` asks for together where company matters: what an interruption costs


@dataclass(frozen=True)
class Request:
    """One continuation to sample. ``prompt`` is what the same engine's ``chat`` made; ``seed`` decides the random
    numbers, whatever is sampled beside it."""

    prompt: Any
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """A sampled continuation: ``index`` of its request, its text, its number of tokens (the end token not counted), and
    its log-probability (nats, end token included, at temperature 1; None where the engine does not know it).
    ``finished`` is false where ``max_tokens`` cut it off."""

    index: int
    text: str
    length: int
    logprob: float | None
    finished: bool


class Sampler(Protocol):
    """An engine that samples."""

    # Whether a request's result may differ in its last digits, and then in a token, with what is sampled beside it:
    # such requests are made in the same groups again after an interruption.
    company_matters: bool

    def chat(self, messages: Sequence[Message]) -> Any:
        """The prompt of ``messages``, up to where the assistant begins to speak."""

    def sample(self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes, not in order; temperature 0 takes the likeliest token."""

    def close(self) -> None:
        """Free what the engine holds."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Sampler, Protocol):
    """An engine that also scores; its prompts are tokens."""

    end_of_turn: int  # the token that ends an assistant's turn in the model's chat template

    def tokenize(self, text: str) -> Tokens:
        """The tokens of ``text``; control tokens written in it (``<|im_end|>``) count as such."""

    def score(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], temperature: float = 1.0
    ) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probability (nats) of every token of every continuation, where it
        is sampled at that temperature."""

    def top(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], k: int
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """For each (context, continuations): the ``k`` likeliest tokens at every position of every continuation, as
        (ids int32 [length, k], log-probabilities float32 [length, k])."""


def completion(engine: Engine, text: str) -> Tokens:
    """``text`` as the assistant's whole turn: its tokens and the end token."""
    return [*engine.tokenize(text), engine.end_of_turn]


def common_prefix(prompts: Sequence[Tokens]) -> Tokens:
    """The tokens that all prompts begin with, at least one token short of every prompt (its last one must be computed
    with its sequence, for its logits)."""
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    n = 0
    while n < limit and low[n] == high[n]:
        n += 1
    return low[:n]


def sample_rows(
    engine: Sampler,
    log: RowLog,
    kind: str,
    requests: dict[tuple[Any, int], Request],
    columns: Callable[[Any, Generation], Row],
    max_tokens: int,
    temperature: float,
    bar: Any,
) -> None:
    """Sample what ``log`` lacks of ``requests``, whose keys are (name, sample), and append it.

    A row is ``kind``: name, "sample": sample, and ``columns(name, generation)``. Where company matters to the engine,
    requests go to it in the same groups of ``CALL`` whatever the log holds already, so that an interrupted call,
    continued, ends with the same rows; else only what is missing is asked for, and kept as soon as it is there.
    """
    have = {(row[kind], row["sample"]) for row in log.rows}
    tokens, started = 0, time.monotonic()

    def sampled(keys: list[tuple[Any, int]]) -> Iterator[Row]:
        nonlocal tokens
        for made in engine.sample([requests[key] for key in keys], max_tokens, temperature):
            name, sample = keys[made.index]
            tokens += made.length + made.finished
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
            bar.update()
            if (name, sample) not in have:
                yield {kind: name, "sample": sample, **columns(name, made)}

    if engine.company_matters:
        for keys in batched(requests, CALL):
            if have.issuperset(keys):
                bar.update(len(keys))
            else:
                log.append(list(sampled(keys)))
    else:
        missing = [key for key in requests if key not in have]
        bar.update(len(requests) - len(missing))
        for row in sampled(missing):
            log.append([row])
