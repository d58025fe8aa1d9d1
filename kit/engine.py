"""What every engine does, whatever runs the model: sample continuations and score them; and the tokens of
conversations, which are the same in all of them.

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

from kit.models import TOKENIZER_FILE, ChatTemplate
from kit.prompts import Message
from kit.store import Row, RowLog, batched, logged_rows

Tokens = list[int]
CALL = 256  # requests that ``sample_rows`` asks for together where company matters: what an interruption costs


@dataclass(frozen=True)
class Request:
    """One continuation to sample. ``prompt`` is what the same engine's ``chat`` made; ``seed`` decides the random
    numbers, whatever is sampled beside it. ``shared``: how many of its first tokens every such request has, which may
    be computed once."""

    prompt: Any
    seed: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True)
class Generation:
    """A sampled continuation: ``index`` of its request, its text, its number of tokens (the end token not counted), and
    its log-probability (nats, end token included, at temperature 1; None where the engine does not know it).
    ``finished`` is false where ``max_tokens`` cut it off, or where it was ``stopped`` because nobody wants it."""

    index: int
    text: str
    length: int
    logprob: float | None
    finished: bool
    stopped: bool = False


Stop = Callable[
    [int, str], bool
]  # whether of the request with this index, whose text so far is this, no more is wanted
# What reads along, where an engine knows distributions: shown the index of a request, its tokens so far, the token that
# comes next, and the log-probabilities of all that could [vocabulary] (nats, temperature 1).
Watch = Callable[[int, Tokens, int, np.ndarray], None]
LOOK = 4  # tokens between two looks at a text, which take as long as one of its tokens at most


class ChatTokenizer:
    """The tokens of conversations with a prepared model, whatever runs it: its one chat template and its one tokenizer
    (transformers' ``tokenizer.json``; llama.cpp's own reading of the same vocabulary may put other spaces beside
    control tokens)."""

    def __init__(self, model: Path) -> None:
        from tokenizers import Tokenizer

        self._template = ChatTemplate.of(model)
        self._tokenizer = Tokenizer.from_file(str(model / TOKENIZER_FILE))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        ending = self.tokenize(self._template.ending)
        # Some templates write a space before the end token, which is not what ends an answer; and some tokenizers have
        # their end tokens among others that are added.
        control = [token for token in ending if token in added and added[token].special]
        words = [token for token in ending if token in added and added[token].content.strip()]
        self.end_of_turn = [*control, *words, *ending][0]

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """The tokens of ``messages`` in the model's chat template, up to where the assistant begins to speak: without
        a space at the end that would be a part of its first word."""
        return self.continued(messages, ["A"])[0]

    def shared(self, conversations: Sequence[Sequence[Message]]) -> int:
        """How many tokens all of their prompts begin with."""
        return len(common_prefix([self.chat(messages) for messages in conversations]))

    def tokenize(self, text: str) -> Tokens:
        """The tokens of a whole ``text``; control tokens written in it (``<|im_end|>``) count as such."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, control tokens left out."""
        return str(self._tokenizer.decode(list(tokens)))

    def vocabulary(self) -> list[str]:
        """The text that each token adds to what stands before it; nothing for control tokens."""
        before = self.tokenize("a")[-1]
        length = len(self.detokenize([before]))
        texts = self._tokenizer.decode_batch([[before, token] for token in range(self._tokenizer.get_vocab_size())])
        return [text[length:] for text in texts]

    def continued(
        self, messages: Sequence[Message], texts: Sequence[str], opening: str = ""
    ) -> tuple[Tokens, list[Tokens]]:
        """The tokens of ``messages`` and of the ``opening`` of the assistant's answer, and those with which each of
        ``texts`` continues it.

        A text's are what the whole, tokenised together, has beyond what all have in common: tokenised alone, a text may
        be cut otherwise, and in a SentencePiece vocabulary gets a space of its own.
        """
        before = self._template.render(messages) + self._template.beginning + opening
        wholes = [self.tokenize(before + text) for text in texts]
        context = common_prefix([[*self.tokenize(before), -1], *wholes])  # as far as no text changes it
        return context, [whole[len(context) :] for whole in wholes]

    def answered(self, messages: Sequence[Message], text: str) -> tuple[Tokens, list[Tokens]]:
        """The tokens of ``messages``, and those of the one ``text`` as the assistant's whole turn, its end included."""
        context, (tokens,) = self.continued(messages, [text])
        return context, [[*tokens, self.end_of_turn]]


class Sampler(Protocol):
    """An engine that samples."""

    @property
    def company_matters(self) -> bool:
        """Whether a request's result may differ in its last digits, and then in a token, with what is sampled beside
        it: such requests are made in the same groups again after an interruption."""

    def chat(self, messages: Sequence[Message]) -> Any:
        """The prompt of ``messages``, up to where the assistant begins to speak."""

    def shared(self, conversations: Sequence[Sequence[Message]]) -> int:
        """How many tokens all of their prompts begin with; 0 where prompts are no tokens."""

    def sample(
        self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0, stop: Stop | None = None
    ) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes, not in order; temperature 0 takes the likeliest token.
        ``stop`` is asked of each every ``LOOK`` tokens (a server never asks)."""

    def close(self) -> None:
        """Free what the engine holds."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Sampler, Protocol):
    """An engine that also scores; its prompts are tokens, those of a ``ChatTokenizer``."""

    def continued(
        self, messages: Sequence[Message], texts: Sequence[str], opening: str = ""
    ) -> tuple[Tokens, list[Tokens]]:
        """As in ``ChatTokenizer``."""

    def answered(self, messages: Sequence[Message], text: str) -> tuple[Tokens, list[Tokens]]:
        """As in ``ChatTokenizer``."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """As in ``ChatTokenizer``."""

    def vocabulary(self) -> list[str]:
        """As in ``ChatTokenizer``."""

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

    def distributions(self, groups: Iterable[tuple[Tokens, list[Tokens]]]) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probabilities (nats) of all next tokens at every position of every
        continuation, float32 [length, vocabulary]."""


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
            key = row[self.kind], row["sample"], row.get(COMPANY)
            if key not in self._found or self._found[key].get(STOPPED):  # which was sampled again
                self._found[key] = row


STOPPED = "stopped"  # the column that says that a sample was stopped
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
    stop: Callable[[Any, str], bool] | None = None,
    sampling: Callable[..., Iterator[Generation]] | None = None,
) -> list[Row]:
    """The rows of ``requests``, whose keys are (what is asked, number), in their order; what ``log`` lacks of them is
    sampled and appended.

    A row is ``log.kind``: what is asked, "sample": number, and ``columns(generation)``. Where company matters to the
    engine, requests go to it in the same groups of ``CALL`` whatever the log holds already, and only rows of the same
    group are found again, so that an interrupted call, continued, ends with the same rows; else only what is missing is
    asked for, and kept as soon as it is there. ``look``, which may raise, is shown each row in the log and whether it
    is new: first those that were there, then the others as they come, or a group in its order.

    ``stop``: whether no more is wanted of what is asked, with this text so far, nor with any that goes on from there.
    Such a row is "stopped", and one in the log that would not be stopped now is sampled again. Where company matters
    nothing is stopped, for the others' sake. ``sampling``: in place of the engine's ``sample``.
    """
    wanted = None if engine.company_matters else stop
    tokens, started = 0, time.monotonic()

    def sampled(keys: list[tuple[Any, int]], company: str | None) -> Iterator[Row]:
        nonlocal tokens
        enough = wanted and (lambda index, text: wanted(keys[index][0], text))
        asking = [requests[key] for key in keys]
        for made in (sampling or engine.sample)(asking, max_tokens, temperature, enough):
            asked, sample = keys[made.index]
            tokens += made.length + made.finished
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
            bar.update()
            mark = ({STOPPED: True} if made.stopped else {}) | ({COMPANY: company} if company else {})
            yield {log.kind: asked, "sample": sample, **columns(made), **mark}

    def there(key: tuple[Any, int], company: str | None) -> Row | None:
        row = log.find(*key, company)
        return None if row and row.get(STOPPED) and not (stop and stop(key[0], row["text"])) else row

    rows: list[Row] = []
    for keys in batched(requests, CALL) if engine.company_matters else [list(requests)]:
        company = hashlib.sha256(repr(keys).encode()).hexdigest()[:16] if engine.company_matters else None
        missing = [key for key in keys if there(key, company) is None]
        anew = company is not None and bool(missing)  # the whole group
        if anew:
            log.append(list(sampled(keys, company)))
        for key in keys:
            if row := there(key, company):
                look(row, anew)
        if missing and not anew:
            for row in sampled(missing, None):
                log.append([row])
                look(row, True)
        bar.update(0 if anew else len(keys) - len(missing))
        found = [log.find(*key, company) for key in keys]
        rows += [{name: value for name, value in row.items() if name != COMPANY} for row in found if row]
    return rows
