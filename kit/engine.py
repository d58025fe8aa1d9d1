"""What every engine does, whatever runs the model: sample continuations and score them.

``kit/engine_llama.py`` runs llama.cpp, ``kit/engine_torch.py`` transformers on a GPU (or a CPU), and
``kit/engine_endpoint.py`` asks a server and can only sample. No stage knows which one it has.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from kit.prompts import Message
from kit.store import Row, RowLog, batched, logged_rows

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


class SampleLog(RowLog):
    """Sampled rows in a log, found by what was asked (the column ``kind``) and their number (``sample``). ``others``:
    logs of the same sampling that other steps fill; what they hold need not be sampled again."""

    def __init__(self, path: Path, kind: str, others: Iterable[Path] = ()) -> None:
        super().__init__(path)
        self.kind = kind
        self._found: dict[tuple[Any, ...], Row] = {}
        for rows in [self.rows, *map(logged_rows, others)]:
            self._index(rows)

    def append(self, rows: Iterable[Row]) -> None:
        """Add ``rows`` and wait until they are on the disk."""
        new = list(rows)
        super().append(new)
        self._index(new)

    def find(self, asked: Any, sample: int, company: str | None) -> Row | None:
        """The row, where it is there; of those that were made in some ``company`` the one of that company."""
        return self._found.get((asked, sample, company))

    def _index(self, rows: list[Row]) -> None:
        for row in rows:
            self._found.setdefault((row[self.kind], row["sample"], row.get(COMPANY)), row)


COMPANY = "company"  # the column that says beside which others a row was sampled, where that matters


def sample_rows(
    engine: Sampler,
    log: SampleLog,
    requests: dict[tuple[Any, int], Request],
    columns: Callable[[Generation], Row],
    max_tokens: int,
    temperature: float,
    bar: Any,
    look: Callable[[Row, bool], object] = lambda row, new: None,
) -> list[Row]:
    """The rows of ``requests``, whose keys are (what is asked, number), in their order; what ``log`` lacks of them is
    sampled and appended.

    A row is ``log.kind``: what is asked, "sample": number, and ``columns(generation)``. Where company matters to the
    engine, requests go to it in the same groups of ``CALL`` whatever the log holds already, and only rows of the same
    group are found again, so that an interrupted call, continued, ends with the same rows; else only what is missing is
    asked for, and kept as soon as it is there. ``look``, which may raise, is shown each row in the log and whether it
    is new: first those that were there, then the others as they come, or a group in its order.
    """
    tokens, started = 0, time.monotonic()

    def sampled(keys: list[tuple[Any, int]], company: str | None) -> Iterator[Row]:
        nonlocal tokens
        for made in engine.sample([requests[key] for key in keys], max_tokens, temperature):
            asked, sample = keys[made.index]
            tokens += made.length + made.finished
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
            bar.update()
            mark = {COMPANY: company} if company else {}
            yield {log.kind: asked, "sample": sample, **columns(made), **mark}

    rows: list[Row] = []
    for keys in batched(requests, CALL) if engine.company_matters else [list(requests)]:
        company = hashlib.sha256(repr(keys).encode()).hexdigest()[:16] if engine.company_matters else None
        missing = [key for key in keys if log.find(*key, company) is None]
        if missing and company:
            log.append(list(sampled(keys, company)))
        for row in [log.find(*key, company) for key in keys]:
            if row:
                look(row, bool(missing and company))
        if missing and not company:
            for row in sampled(missing, None):
                log.append([row])
                look(row, True)
        bar.update(len(keys) - len(missing) if not company or not missing else 0)
        found = [log.find(*key, company) for key in keys]
        rows += [{name: value for name, value in row.items() if name != COMPANY} for row in found if row]
    return rows
