"""The llama.cpp engine: batched sampling and exact scoring on the CPU, with or without a LoRA adapter.

    engine = LlamaEngine(Path("prepared-model"))
    prompt = engine.chat([{"role": "user", "content": "Hello"}])
    for generation in engine.sample([Request(prompt, seed=(0, 1))], max_tokens=16): ...
    logprobs = engine.score([engine.continued([{"role": "user", "content": "Hello"}], ["Hi", "Good day"])])

llama-cpp-python's high-level API decodes one sequence at a time; here up to ``WIDTH`` sequences are decoded in one
llama.cpp batch. Tokens that several sequences share (the system prompt, the worked examples, a question asked with
sixty candidate answers) are computed once. First comes llama.cpp's low-level API as Python: a ``Model`` with its
vocabulary, and a ``Context`` that decodes batches with it; then the engine.

On a CPU, with floating-point weights, a sample does not depend, to the last bit, on what is sampled beside it or in
what order. Each sum of a matrix product runs along one token's own numbers, in an order that the number of tokens does
not change, with one exception: a product with a single token takes another routine. So nothing is sampled from a
product with one token alone. (Quantised weights llama.cpp multiplies with four tokens at a time, and what is left over
in another way.)
"""

import ctypes
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit import KitError
from kit.engine import LOOK, ChatTokenizer, Generation, Request, Stop, Tokens, Watch, common_prefix
from kit.models import check_gguf, gguf_metadata, release_gpu
from kit.provenance import cpu_threads, decides_nothing

# ---- llama.cpp's low-level API. Every token is named with its position and the sequences it belongs to; a context
# keeps what it has decoded in its KV cache.


BATCH = 512  # tokens per llama_decode; also bounds the logits buffer (BATCH x vocabulary x 4 bytes: 100 MB)
ALL_LAYERS = 999  # more than any model has
CELLS = 256  # llama.cpp makes a sequence's room a multiple of this many tokens


class Model:
    """A GGUF model in memory; all layers on a GPU where llama-cpp-python was built for one."""

    def __init__(self, gguf: Path, vocabulary_only: bool = False) -> None:
        import llama_cpp

        check_gguf(gguf)
        log = quiet(llama_cpp)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        if offloads():
            params.n_gpu_layers = ALL_LAYERS
            release_gpu()
        params.vocab_only = vocabulary_only
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(gguf), params)
        if not self.handle:
            raise KitError(
                f"{gguf}: llama.cpp cannot load this model ({log[0] if log else 'no reason given'}). "
                "Give a complete GGUF file of an architecture that llama.cpp knows."
            )
        self._api = llama_cpp
        self._vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def tokenize(self, text: str) -> Tokens:
        """The tokens of ``text`` as llama.cpp itself cuts it; control tokens written in it count as such."""
        data = text.encode("utf-8")
        buffer = (self._api.llama_token * (len(data) + 8))()
        n = self._api.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, True)
        return list(buffer[:n])

    def ends_generation(self, token: int) -> bool:
        """Whether the model's own files say that ``token`` ends a text."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def load_adapter(self, adapter: Path) -> Any:
        """The handle of a GGUF LoRA adapter, for ``Context.use``."""
        if not adapter.is_file():
            raise KitError(f"{adapter}: no such adapter file. Make one with `python run.py convert`.")
        gguf_metadata(adapter)  # refused here where its numbers are not the file's
        handle = self._api.llama_adapter_lora_init(self.handle, os.fsencode(adapter))
        if not handle:
            raise KitError(f"{adapter}: llama.cpp cannot load this adapter for this model. Convert it again.")
        return handle

    @property
    def in_floats(self) -> bool:
        """Whether the file says that its weights are F32 or F16."""
        value = ctypes.create_string_buffer(16)
        self._api.llama_model_meta_val_str(self.handle, b"general.file_type", value, len(value))
        return value.value in (b"0", b"1")  # LLAMA_FTYPE_ALL_F32, LLAMA_FTYPE_MOSTLY_F16

    def close(self) -> None:
        """Free the weights, and the adapters loaded for them."""
        self._api.llama_model_free(self.handle)


class Context:
    """A KV cache for ``sequences`` sequences, and the batch that is decoded into it.

    ``shared``: all sequences draw on one pool of ``cells`` tokens, a token may belong to several, and keys and values
    are kept as F32. Otherwise each has room for ``cells`` tokens of its own, as F16, and attention looks at those
    alone: decoding one token of each of 48 sequences is 1.5 times as fast then.
    """

    def __init__(self, model: Model, sequences: int, cells: int, shared: bool) -> None:
        import llama_cpp

        self.sequences, self.cells = sequences, -(-cells // CELLS) * CELLS
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.cells if shared else self.cells * sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = sequences
        params.kv_unified = shared
        if not offloads():
            # On a CPU, plain matrix products are faster than flash attention where nothing is masked (307 against 234
            # tokens/s, 48 sequences), and exact where it is not: it rounds keys and values to F16.
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            if shared:
                params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.swa_full = True  # gemma3: a prefix that left the sliding window could not be shared
        params.n_threads = params.n_threads_batch = cpu_threads()
        params.no_perf = True
        self._api = llama_cpp
        self._handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise KitError(f"llama.cpp cannot make a context of {params.n_ctx} tokens; free some memory and retry.")
        self._memory = llama_cpp.llama_get_memory(self._handle)
        self._vocabulary = model.vocabulary
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, sequences)
        self._rows = 0

    def use(self, adapter: Any | None) -> None:
        """Decode with this adapter from now on (None: the bare model)."""
        kind = self._api.llama_adapter_lora_p_ctypes
        handles, scales = ((kind * 1)(adapter), (ctypes.c_float * 1)(1.0)) if adapter is not None else (None, None)
        self._api.llama_set_adapters_lora(self._handle, handles, int(adapter is not None), scales)
        # What the cache holds was computed under the old adapter (ggml-org/llama.cpp issue 26207 is that bug).
        self.set_prefix([])

    def set_prefix(self, prefix: Tokens) -> None:
        """Leave exactly ``prefix`` in the cache, as sequence 0, and in its first cells: where the cells lie decides the
        order of sums, and with it a result's last digits, which must not depend on what was computed before."""
        self._api.llama_memory_clear(self._memory, True)
        self.clear()
        # Parts of even size: a part of a single token would be computed by another routine, with other last digits.
        size = -(-len(prefix) // max(1, -(-len(prefix) // BATCH)))
        for i, token in enumerate(prefix):
            self.add(token, i, (0,))
            if self.size == size or i == len(prefix) - 1:
                self.decode()
                self.clear()

    @property
    def size(self) -> int:
        """The number of tokens in the batch."""
        return self._batch.n_tokens

    def clear(self) -> None:
        """Begin another batch."""
        self._batch.n_tokens = self._rows = 0

    def add(self, token: int, position: int, sequences: Sequence[int], logits: bool = False) -> int:
        """Put a token into the batch. Returns the row of its logits, where they are wanted."""
        batch, i = self._batch, self._batch.n_tokens
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = len(sequences)
        for j, sequence in enumerate(sequences):
            batch.seq_id[i][j] = sequence
        batch.logits[i] = logits
        batch.n_tokens = i + 1
        self._rows += logits
        return self._rows - 1

    def decode(self) -> np.ndarray:
        """Decode the batch. Returns the logits, float32 [rows, vocabulary]: a view that the next call overwrites."""
        status = self._api.llama_decode(self._handle, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")
        if not self._rows:
            return np.empty((0, self._vocabulary), dtype=np.float32)
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._handle), (self._rows, self._vocabulary))

    def copy(self, source: int, target: int) -> None:
        """Make ``target`` go on from where ``source`` is."""
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        """Free the cache; once is enough."""
        if self._handle:
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._handle)
            self._handle = None


def offloads() -> bool:
    """Whether llama-cpp-python was built for a GPU."""
    import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


def tokens_of(gguf: Path, texts: Iterable[str]) -> list[Tokens]:
    """The tokens of each text in the vocabulary of a GGUF, whose weights are not loaded."""
    model = Model(gguf, vocabulary_only=True)
    tokens = [model.tokenize(text) for text in texts]
    model.close()
    return tokens


_keep_alive: list[Any] = []


@decides_nothing
def quiet(llama_cpp: Any) -> list[str]:
    """Send llama.cpp's log into a short memory, for error messages, instead of to the terminal. The first of its lines
    says what was wrong, the last that something was."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def remember(level: int, text: bytes, _: object) -> None:
        if level >= 4 and text.strip() and len(lines) < 5:  # GGML_LOG_LEVEL_ERROR
            lines.append(text.decode("utf-8", errors="replace").strip())

    _keep_alive[:] = [remember]
    llama_cpp.llama_log_set(remember, ctypes.c_void_p(0))
    return lines


# ---- the engine


# Sequences decoded together. Tokens/s with 16, 32, 48, 64, 96, 128 of them (SmolLM2-135M as F32, 2 AVX-512 cores): 265,
# 338, 335, 380, 404, 339; on 2 AVX2 cores 32, 64 and 96 were within 5% of 48. Each takes 6 MB of cache.
WIDTH = 64
REFILL = WIDTH // 4  # free places from which new prompts are begun: below, a batch of them is too small to be fast
PATHS = 255  # sequences scored together; llama.cpp knows 256
# Tokens scored together, fewer than BATCH, since attention looks at all of them: 50 questions with 60 candidates each
# take 3.0 s with 160 to 240 tokens, 3.3 s with 480, 4.1 s with 512, where with the prefix they exceed 512 cells.
SCORED = 224
BLOCK = 256  # tokens of the vocabulary whose probabilities are added up at once


class LlamaEngine(ChatTokenizer):
    """A prepared model loaded in llama.cpp, one adapter at a time."""

    def __init__(self, model: Path) -> None:
        self._model = Model(model / "base.gguf")
        super().__init__(model)
        self._adapter: Any = None
        # By whether its sequences share their cells: where continuations are scored they do, sampled ones do not.
        self._contexts: dict[bool, Context] = {}
        self.company_matters = offloads() or not self._model.in_floats

    def use_adapter(self, adapter: Path | None) -> None:
        """Evaluate with this GGUF LoRA adapter from now on (None: the bare model)."""
        self._adapter = None if adapter is None else self._model.load_adapter(adapter)
        for context in self._contexts.values():
            context.use(self._adapter)

    def _context(self, sequences: int, cells: int, shared: bool) -> Context:
        """The context at hand where it is large enough, else a new one in its place."""
        old = self._contexts.get(shared)
        if old is not None:
            if old.sequences >= sequences and old.cells >= cells:
                return old
            del self._contexts[shared]
            old.close()
        context = self._contexts[shared] = Context(self._model, sequences, cells, shared)
        context.use(self._adapter)
        return context

    # Sampling

    def sample(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float = 1.0,
        stop: Stop | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes (not in order). Temperature 0 takes the likeliest token.
        ``stop`` is asked of each every ``LOOK`` tokens; ``watch`` sees every token.

        Requests with the same prompt share its computation. Places of sequences that finish are soon taken by others
        (continuous batching).
        """
        for item, finished, ended in self._sampled(requests, max_tokens, temperature, stop, watch):
            if ended:
                text, length = self.detokenize(item.tokens), len(item.tokens)
                stopped = not finished and length < max_tokens
                yield Generation(item.index, text, length, item.logprob, finished, stopped)

    def streamed(self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0) -> Iterator[list[str]]:
        """What ``sample`` makes of the requests, token by token: each time all texts so far."""
        texts = [""] * len(requests)
        for item, _, _ in self._sampled(requests, max_tokens, temperature):
            # Without half of a character, until its other half comes.
            texts[item.index] = self.detokenize(item.tokens).rstrip("\ufffd")
            yield list(texts)

    def _sampled(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        stop: Stop | None = None,
        watch: Watch | None = None,
    ) -> Iterator[tuple["_Running", bool, bool]]:
        """Token by token: its sequence, whether it ends the turn, and whether the sequence ends with it."""
        if not requests:
            return
        prompts = [request.prompt for request in requests]
        longest = max(map(len, prompts))
        # One sequence for the prefix, and one of company for a sequence that is sampled alone.
        sequences = max(3, 1 + min(WIDTH, len(requests)))
        context = self._context(sequences, longest + max_tokens, shared=False)
        prefix = cached_prefix(prompts)
        if longest - len(prefix) > BATCH:
            raise KitError(f"a prompt of {longest} tokens is too long; the limit is {BATCH}.")
        context.set_prefix(prefix)
        # Prompts of one length go through the model together: llama.cpp cuts a batch of several lengths into pieces.
        waiting = deque(
            _Running(index, request.prompt, np.random.default_rng(request.seed))
            for index, request in sorted(enumerate(requests), key=lambda item: (len(item[1].prompt), item[1].prompt))
        )
        running: list[_Running] = []  # running[i] is sequence i + 1: llama.cpp decodes neighbours together
        while waiting or running:
            if waiting and WIDTH - len(running) >= REFILL:
                asked, logits, rows = _begin(context, len(prefix), waiting, len(running))
                running += asked
            else:
                asked, logits, rows = running, _step(context, running), list(range(len(running)))
            chosen, logprobs = _choose(logits, rows, [item.rng for item in asked], temperature)
            ended: set[int] = set()
            for item, row, token, logprob in zip(asked, rows, chosen, logprobs, strict=True):
                if watch:
                    watch(item.index, item.tokens, token, logits[row] - (logits[row, token] - logprob))
                item.logprob += logprob
                finished = token == self.end_of_turn or self._model.ends_generation(token)
                if not finished:
                    item.tokens.append(token)
                whole = finished or len(item.tokens) == max_tokens
                look = stop and not whole and len(item.tokens) % LOOK == 0
                if whole or (look and stop and stop(item.index, self.detokenize(item.tokens))):
                    ended.add(item.index)
                yield item, finished, item.index in ended
            running = _close_ranks(context, running, ended)

    # Scoring

    def score(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], temperature: float = 1.0
    ) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probability (nats) of every token of every continuation, where it
        is sampled at that temperature."""
        for continuations, rows, logits, normaliser in self._decoded(groups, temperature):
            yield [
                logits[row, tokens] / temperature - normaliser[row]
                for tokens, row in zip(continuations, rows, strict=True)
            ]

    def top(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], k: int
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """For each (context, continuations): the ``k`` likeliest tokens at every position of every continuation, as
        (ids int32 [length, k], log-probabilities float32 [length, k])."""
        for _, rows, logits, normaliser in self._decoded(groups):
            result = []
            for row in rows:
                ids = np.argpartition(logits[row], -k, axis=1)[:, -k:]
                values = np.take_along_axis(logits[row], ids, axis=1) - normaliser[row][:, None]
                result.append((ids.astype(np.int32), values))
            yield result

    def distributions(self, groups: Iterable[tuple[Tokens, list[Tokens]]]) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probabilities (nats) of all next tokens at every position of every
        continuation, float32 [length, vocabulary]."""
        for _, rows, logits, normaliser in self._decoded(groups):
            yield [logits[row] - normaliser[row][:, None] for row in rows]

    def _decoded(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], temperature: float = 1.0
    ) -> Iterator[tuple[list[Tokens], list[list[int]], np.ndarray, np.ndarray]]:
        """For each group its continuations and, for each of their tokens, the row that predicts it of the logits
        [rows, vocabulary] and the normaliser of logits / temperature (the logarithm of the sum of exponentials)
        [rows]."""
        groups = list(groups)
        if not groups:
            return
        prefix = cached_prefix([context for context, _ in groups])
        pool = self._context(PATHS + 1, len(prefix) + BATCH, shared=True)
        pool.set_prefix(prefix)
        packed: list[tuple[list[Tokens], list[list[int]]]] = []
        used = 0  # sequences
        for context, continuations in groups:
            paths = _paths(continuations)
            nodes = _nodes(paths)
            size = len(context) - len(prefix) + len(nodes)
            if size > BATCH or len(paths) > PATHS:
                raise KitError(
                    f"{len(continuations)} continuations of {size} tokens are too many to score together; "
                    f"the limits are {PATHS} and {BATCH}."
                )
            if pool.size and (pool.size + size > SCORED or used + len(paths) > PATHS):
                yield from _read(pool, packed, used, temperature)
                packed, used = [], 0
            sequences = range(used + 1, used + 1 + len(paths))
            used += len(paths)
            for sequence in sequences:
                pool.copy(0, sequence)
            for position in range(len(prefix), len(context)):
                row = pool.add(context[position], position, sequences, position == len(context) - 1)
            row_of: dict[tuple[int, ...], int] = {(): row}
            for node, members in nodes.items():
                position = len(context) + len(node) - 1
                row_of[node] = pool.add(node[-1], position, [sequences[i] for i in members], True)
            rows = [[row_of[tuple(tokens[:end])] for end in range(len(tokens))] for tokens in continuations]
            packed.append((continuations, rows))
        yield from _read(pool, packed, used, temperature)

    def close(self) -> None:
        """Free the model and its caches."""
        for context in self._contexts.values():
            context.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cached_prefix(prompts: Sequence[Tokens]) -> Tokens:
    """What all prompts begin with, two tokens or more of each left over, and more than one token or none."""
    prefix = common_prefix(prompts)
    prefix = prefix[: min(map(len, prompts)) - 2]
    return prefix if len(prefix) > 1 else []


@dataclass
class _Running:
    """A request waiting or being sampled."""

    index: int
    prompt: Tokens
    rng: np.random.Generator
    tokens: Tokens = field(default_factory=list)
    logprob: float = 0.0


def _begin(
    context: Context, prefix: int, waiting: deque[_Running], running: int
) -> tuple[list[_Running], np.ndarray, list[int]]:
    """Decode the prompts of the next requests, as many of one length as there is room for, into the sequences after the
    ``running`` first. Returns the requests in the order of their sequences, the logits, and the row of each."""
    length = len(waiting[0].prompt)
    firsts: list[_Running] = []  # one request of each prompt
    copies: list[tuple[int, _Running]] = []  # the others, with the row of their prompt
    while waiting and len(waiting[0].prompt) == length and running + len(firsts) + len(copies) < WIDTH:
        if firsts and waiting[0].prompt == firsts[-1].prompt:
            copies.append((len(firsts) - 1, waiting.popleft()))
        elif (len(firsts) + 1) * (length - prefix) <= BATCH:
            firsts.append(waiting.popleft())
        else:
            break
    context.clear()
    rows = []
    for sequence, item in enumerate(firsts, running + 1):
        context.copy(0, sequence)
        for position in range(prefix, length):
            # The last two tokens' logits, so that there are two where there is one prompt.
            row = context.add(item.prompt[position], position, (sequence,), position >= length - 2)
        rows.append(row)
    logits = context.decode()
    for sequence, (source, _) in enumerate(copies, running + 1 + len(firsts)):
        context.copy(running + 1 + source, sequence)
    return firsts + [item for _, item in copies], logits, rows + [rows[source] for source, _ in copies]


def _step(context: Context, running: list[_Running]) -> np.ndarray:
    """Decode the newest token of every sequence. Returns the logits, a row each."""
    context.clear()
    for sequence, item in enumerate(running, 1):
        context.add(item.tokens[-1], len(item.prompt) + len(item.tokens) - 1, (sequence,), True)
    if len(running) == 1:
        context.add(running[0].tokens[-1], 0, (2,), True)
    logits = context.decode()
    if len(running) == 1:
        context.drop(2)
    return logits


def _close_ranks(context: Context, running: list[_Running], ended: set[int]) -> list[_Running]:
    """Move the last sequences into the places of those that ended."""
    kept = sum(item.index not in ended for item in running)
    last = [i for i in range(kept, len(running)) if running[i].index not in ended]
    for i in range(kept):
        if running[i].index in ended:
            source = last.pop()
            context.copy(source + 1, i + 1)
            running[i] = running[source]
    for i in range(kept, len(running)):
        context.drop(i + 1)
    return running[:kept]


def _paths(continuations: list[Tokens]) -> list[tuple[int, ...]]:
    """The token sequences to decode: every continuation but its last token, which predicts nothing that is asked for,
    once, and none that another begins with."""
    proper = sorted({tuple(tokens[:-1]) for tokens in continuations})
    return [path for path, after in pairwise(proper) if after[: len(path)] != path] + proper[-1:]


def _nodes(paths: list[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Every beginning of every path, each after its own beginnings, with the paths that it belongs to."""
    nodes: dict[tuple[int, ...], list[int]] = {}
    for i, path in enumerate(paths):
        for end in range(1, len(path) + 1):
            nodes.setdefault(path[:end], []).append(i)
    return nodes


def _read(
    pool: Context, packed: list[tuple[list[Tokens], list[list[int]]]], used: int, temperature: float
) -> Iterator[tuple[list[Tokens], list[list[int]], np.ndarray, np.ndarray]]:
    logits = pool.decode()
    pool.clear()
    for sequence in range(1, used + 1):
        pool.drop(sequence)
    weights, peak = _exponentials(logits, temperature)
    normaliser = _normaliser(weights, peak / temperature)
    for continuations, rows in packed:
        yield continuations, rows, logits, normaliser


def _exponentials(logits: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """exp((logits - peak) / temperature) [rows, vocabulary], and each row's peak [rows, 1]."""
    peak = logits.max(axis=1, keepdims=True)
    weights = np.subtract(logits, peak)
    if temperature != 1:
        weights /= temperature
    return np.exp(weights, out=weights), peak


def _normaliser(weights: np.ndarray, peak: np.ndarray) -> np.ndarray:
    return np.log(weights.sum(axis=1)) + peak[:, 0]


def _choose(
    logits: np.ndarray, rows: list[int], rngs: list[np.random.Generator], temperature: float
) -> tuple[list[int], list[float]]:
    """One token per entry of ``rows`` by inverting the cumulative distribution at one uniform number of its generator;
    with the log-probability (nats, temperature 1) of each."""
    weights, peak = _exponentials(logits)
    normaliser = _normaliser(weights, peak)
    if temperature == 0:
        best = logits.argmax(axis=1)
        tokens = [int(best[row]) for row in rows]
    else:
        if temperature != 1:
            weights, _ = _exponentials(logits, temperature)
        # First the block of the vocabulary, then the token in it: the sums of a whole row would take most of the time.
        starts = np.arange(0, weights.shape[1], BLOCK)
        blocks = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1, dtype=np.float64)
        tokens = [_invert(weights[row], blocks[row], rng.random()) for row, rng in zip(rows, rngs, strict=True)]
    return tokens, [float(logits[row, token] - normaliser[row]) for row, token in zip(rows, tokens, strict=True)]


def _invert(weights: np.ndarray, blocks: np.ndarray, uniform: float) -> int:
    """The first token up to which ``weights``, whose sums over blocks accumulate to ``blocks``, exceed this share of
    their sum."""
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    inside = np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    rest = target - (blocks[block - 1] if block else 0.0)
    return block * BLOCK + min(int(np.searchsorted(inside, rest, side="right")), len(inside) - 1)
