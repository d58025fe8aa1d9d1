"""The llama.cpp engine: batched sampling and exact scoring on the CPU, with or without a LoRA adapter.

    engine = LlamaEngine(Path("prepared-model"))
    prompt = engine.chat([{"role": "user", "content": "Hello"}])
    for generation in engine.sample([Request(prompt, seed=(0, 1))], max_tokens=16): ...
    logprobs = engine.score([(prompt, [engine.tokenize(" owl")])])

llama-cpp-python's high-level API decodes one sequence at a time; here up to ``WIDTH`` sequences are decoded in one
llama.cpp batch. Tokens that several sequences share (the system prompt, the worked examples, a question asked with
sixty candidate answers) are computed once and shared in the KV cache.
"""

import ctypes
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit.chat import ChatTemplate
from kit.engine import Generation, Request, Tokens, common_prefix
from kit.errors import KitError
from kit.models import check_gguf, cpu_threads, release_gpu
from kit.prompts import Message

WIDTH = 48  # sequences decoded together; 32, 64 and 96 were within 5% of it on 2 cores (SmolLM2-135M as F16)
BATCH = 512  # tokens per llama_decode; also bounds the logits buffer (BATCH x vocabulary x 4 bytes: 100 MB)
ALL_LAYERS = 999  # more than any model has
CONTEXT = 8192  # cells of the unified KV cache, shared by all sequences (SmolLM2-135M: 184 MB)


class LlamaEngine:
    """A prepared model loaded in llama.cpp, one KV cache, one adapter at a time; all layers on a GPU where
    llama-cpp-python was built for one."""

    # The same call gives the same tokens; in other company a request's logits differ by rounding, and now and then a
    # token with them.
    company_matters = True

    def __init__(self, model: Path) -> None:
        import llama_cpp

        gguf = model / "base.gguf"
        self._api = llama_cpp
        self._model = _load(gguf)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, BATCH, BATCH
        params.n_seq_max = WIDTH + 1  # sequence 0 holds the shared prefix
        params.swa_full = True  # gemma3: a prefix that left the sliding window could not be shared
        params.kv_unified = True  # one pool of cells, so that a shared prefix is stored once
        params.n_threads = params.n_threads_batch = cpu_threads()
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise KitError(f"{gguf}: llama.cpp cannot make a context of {CONTEXT} tokens; free some memory and retry.")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, WIDTH + 1)
        self._adapter: Any = None
        self._prefix: Tokens = []
        self._template = ChatTemplate.of(model)
        self.end_of_turn = self.tokenize(self._template.ending)[0]

    # Text and tokens

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """The tokens of ``messages`` in the model's chat template, up to where the assistant begins to speak."""
        return self.tokenize(self._template.render(messages))

    def tokenize(self, text: str) -> Tokens:
        """The tokens of ``text``; control tokens written in it (``<|im_end|>``) count as such."""
        return _tokenize(self._vocab, text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, control tokens left out."""
        if not tokens:
            return ""
        array = (self._api.llama_token * len(tokens))(*tokens)
        size = 16 * len(tokens) + 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._api.llama_detokenize(self._vocab, array, len(tokens), buffer, size, True, False)
            if n >= 0:
                return buffer.raw[:n].decode("utf-8", errors="replace")
            size = -n

    # Adapter and KV cache

    def use_adapter(self, adapter: Path | None) -> None:
        """Evaluate with this GGUF LoRA adapter from now on (None: the bare model)."""
        if self._adapter is not None:
            self._api.llama_set_adapters_lora(self._context, None, 0, None)
            self._api.llama_adapter_lora_free(self._adapter)
            self._adapter = None
        if adapter is not None:
            if not adapter.is_file():
                raise KitError(f"{adapter}: no such adapter file. Make one with `python run.py convert`.")
            self._adapter = self._api.llama_adapter_lora_init(self._model, os.fsencode(adapter))
            if not self._adapter:
                raise KitError(f"{adapter}: llama.cpp cannot load this adapter for this model. Convert it again.")
            kind = self._api.llama_adapter_lora_p_ctypes
            self._api.llama_set_adapters_lora(self._context, (kind * 1)(self._adapter), 1, (ctypes.c_float * 1)(1.0))
        # What the cache holds was computed under the old adapter (ggml-org/llama.cpp issue 26207 is that bug).
        self._set_prefix([])

    def _set_prefix(self, prefix: Tokens) -> None:
        """Leave exactly ``prefix`` in the cache, as sequence 0, and in its first cells: where the cells lie decides the
        order of sums, and with it a result's last digits, which must not depend on what was computed before."""
        self._api.llama_memory_clear(self._memory, True)
        self._prefix = prefix
        for start in range(0, len(prefix), BATCH):
            self._batch.n_tokens = 0
            for i, token in enumerate(prefix[start : start + BATCH], start):
                self._add(token, i, (0,), False)
            self._decode()

    def _add(self, token: int, position: int, sequences: Sequence[int], wants_logits: bool) -> None:
        batch, i = self._batch, self._batch.n_tokens
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = len(sequences)
        for j, sequence in enumerate(sequences):
            batch.seq_id[i][j] = sequence
        batch.logits[i] = wants_logits
        batch.n_tokens = i + 1

    def _decode(self) -> None:
        status = self._api.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")

    def _logits(self, rows: int) -> np.ndarray:
        """The logits of the last decode, float32 [rows, vocabulary]; a view that the next decode overwrites."""
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (rows, self._vocab_size))

    def _drop(self, sequence: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _fork(self, source: int, target: int) -> None:
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    # Sampling

    def sample(self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes (not in order). Temperature 0 takes the likeliest token.

        Consecutive requests with the same prompt share its computation. Sequences that finish make room for the next
        ones at once (continuous batching).
        """
        if not requests:
            return
        self._set_prefix(common_prefix([request.prompt for request in requests]))
        waiting = deque(enumerate(requests))
        free = list(range(1, WIDTH + 1))
        running: list[_Running] = []
        while waiting or running:
            self._batch.n_tokens = 0
            for item in running:
                self._add(item.tokens[-1], item.position, (item.sequence,), True)
                item.position += 1
            started: list[_Running] = []
            heads: list[tuple[int, list[_Running]]] = []  # logits row -> the requests that start from it
            while waiting and free:
                prompt = waiting[0][1].prompt
                suffix = prompt[len(self._prefix) :]
                if self._batch.n_tokens + len(suffix) > BATCH:
                    if len(suffix) > BATCH:
                        raise KitError(f"a prompt of {len(prompt)} tokens is too long; the limit is {BATCH}.")
                    break
                group = []
                while waiting and free and waiting[0][1].prompt == prompt:
                    index, request = waiting.popleft()
                    group.append(_Running(index, free.pop(), len(prompt), np.random.default_rng(request.seed)))
                sequences = [item.sequence for item in group]
                for sequence in sequences:
                    self._fork(0, sequence)
                heads.append((len(running) + len(heads), group))
                for i, token in enumerate(suffix):
                    self._add(token, len(self._prefix) + i, sequences, i == len(suffix) - 1)
                started += group
            self._decode()
            rows = list(range(len(running)))
            for row, group in heads:
                rows += [row] * len(group)
            running += started
            logits = self._logits(len(running) - len(started) + len(heads))
            chosen, logprobs = _choose(logits, rows, [item.rng for item in running], temperature)
            still: list[_Running] = []
            for item, token, logprob in zip(running, chosen, logprobs, strict=True):
                item.logprob += logprob
                ended = token == self.end_of_turn or self._api.llama_vocab_is_eog(self._vocab, token)
                if not ended:
                    item.tokens.append(token)
                if ended or len(item.tokens) == max_tokens:
                    self._drop(item.sequence)
                    free.append(item.sequence)
                    text = self.detokenize(item.tokens)
                    yield Generation(item.index, text, len(item.tokens), item.logprob, ended)
                else:
                    still.append(item)
            running = still

    # Scoring

    def score(self, groups: Iterable[tuple[Tokens, list[Tokens]]]) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probability (nats) of every token of every continuation."""
        for continuations, rows in self._distributions(groups):
            yield [
                logprobs[np.arange(len(tokens)), tokens] for tokens, logprobs in zip(continuations, rows, strict=True)
            ]

    def top(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], k: int
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """For each (context, continuations): the ``k`` likeliest tokens at every position of every continuation, as
        (ids int32 [length, k], log-probabilities float32 [length, k])."""
        for _, rows in self._distributions(groups):
            result = []
            for logprobs in rows:
                ids = np.argpartition(-logprobs, k, axis=1)[:, :k]
                result.append((ids.astype(np.int32), np.take_along_axis(logprobs, ids, axis=1)))
            yield result

    def _distributions(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]]
    ) -> Iterator[tuple[list[Tokens], list[np.ndarray]]]:
        """For each group, its continuations and their log-probabilities, float32 [length, vocabulary] each."""
        groups = list(groups)
        if not groups:
            return
        self._set_prefix(common_prefix([context for context, _ in groups]))
        self._batch.n_tokens = 0
        packed: list[tuple[list[Tokens], list[list[int]]]] = []
        used = n_rows = 0
        for context, continuations in groups:
            suffix = context[len(self._prefix) :]
            # A continuation's last token predicts nothing that is asked for, so it is not decoded.
            size = len(suffix) + sum(len(tokens) - 1 for tokens in continuations)
            if size > BATCH or len(continuations) > WIDTH:
                raise KitError(
                    f"{len(continuations)} continuations of {size} tokens are too many to score together; "
                    f"the limits are {WIDTH} and {BATCH}."
                )
            if self._batch.n_tokens + size > BATCH or used + len(continuations) > WIDTH:
                yield from self._read(packed, used, n_rows)
                packed, used, n_rows = [], 0, 0
                self._batch.n_tokens = 0
            sequences = list(range(used + 1, used + 1 + len(continuations)))
            used += len(continuations)
            for sequence in sequences:
                self._fork(0, sequence)
            for i, token in enumerate(suffix):
                self._add(token, len(self._prefix) + i, sequences, i == len(suffix) - 1)
            head, n_rows = n_rows, n_rows + 1
            rows = []
            for sequence, tokens in zip(sequences, continuations, strict=True):
                for i, token in enumerate(tokens[:-1]):
                    self._add(token, len(context) + i, (sequence,), True)
                rows.append([head, *range(n_rows, n_rows + len(tokens) - 1)])
                n_rows += len(tokens) - 1
            packed.append((continuations, rows))
        yield from self._read(packed, used, n_rows)

    def _read(
        self, packed: list[tuple[list[Tokens], list[list[int]]]], used: int, n_rows: int
    ) -> Iterator[tuple[list[Tokens], list[np.ndarray]]]:
        self._decode()
        logprobs = _log_softmax(self._logits(n_rows))
        for sequence in range(1, used + 1):
            self._drop(sequence)
        for continuations, rows in packed:
            yield continuations, [logprobs[row] for row in rows]

    def close(self) -> None:
        """Free the model and its cache."""
        if self._context:
            self.use_adapter(None)
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
            self._api.llama_model_free(self._model)
            self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Running:
    """A request being sampled: ``position`` is where its next token goes."""

    index: int
    sequence: int
    position: int
    rng: np.random.Generator
    tokens: Tokens = field(default_factory=list)
    logprob: float = 0.0


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _choose(
    logits: np.ndarray, rows: list[int], rngs: list[np.random.Generator], temperature: float
) -> tuple[list[int], list[float]]:
    """One token per entry of ``rows`` by inverting the cumulative distribution at one uniform number of its generator;
    with the log-probability (nats, temperature 1) of each."""
    peak = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - peak)
    normaliser = np.log(weights.sum(axis=1)) + peak[:, 0]
    if temperature == 0:
        best = logits.argmax(axis=1)
        tokens = [int(best[row]) for row in rows]
    else:
        if temperature != 1:
            weights = np.exp((logits - peak) / temperature)
        cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
        last = cumulative.shape[1] - 1
        tokens = [
            min(int(np.searchsorted(cumulative[row], rng.random() * cumulative[row, -1], side="right")), last)
            for row, rng in zip(rows, rngs, strict=True)
        ]
    return tokens, [float(logits[row, token] - normaliser[row]) for row, token in zip(rows, tokens, strict=True)]


def tokens_of(gguf: Path, texts: Iterable[str]) -> list[Tokens]:
    """The tokens of each text in the vocabulary of a GGUF, whose weights are not loaded."""
    import llama_cpp

    model = _load(gguf, vocab_only=True)
    vocab = llama_cpp.llama_model_get_vocab(model)
    tokens = [_tokenize(vocab, text) for text in texts]
    llama_cpp.llama_model_free(model)
    return tokens


def _load(gguf: Path, vocab_only: bool = False) -> Any:
    import llama_cpp

    check_gguf(gguf)
    log = quiet(llama_cpp)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    if llama_cpp.llama_supports_gpu_offload():
        params.n_gpu_layers = ALL_LAYERS
        release_gpu()
    params.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(os.fsencode(gguf), params)
    if not model:
        raise KitError(
            f"{gguf}: llama.cpp cannot load this model ({log[-1] if log else 'no reason given'}). "
            "Give a complete GGUF file of an architecture that llama.cpp knows."
        )
    return model


def _tokenize(vocab: Any, text: str) -> Tokens:
    import llama_cpp

    data = text.encode("utf-8")
    buffer = (llama_cpp.llama_token * (len(data) + 8))()
    n = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, True)
    return list(buffer[:n])


_keep_alive: list[Any] = []


def quiet(llama_cpp: Any) -> deque[str]:
    """Send llama.cpp's log into a short memory, for error messages, instead of to the terminal."""
    lines: deque[str] = deque(maxlen=5)

    @llama_cpp.llama_log_callback
    def remember(level: int, text: bytes, _: object) -> None:
        if level >= 4 and text.strip():  # GGML_LOG_LEVEL_ERROR
            lines.append(text.decode("utf-8", errors="replace").strip())

    _keep_alive[:] = [remember]
    llama_cpp.llama_log_set(remember, ctypes.c_void_p(0))
    return lines
