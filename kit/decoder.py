"""llama.cpp's low-level API as Python: a loaded model with its vocabulary, and contexts that decode batches with it.

``kit/llama.py`` samples and scores with these. Every token is named with its position and the sequences it belongs to;
a context keeps what it has decoded in its KV cache.
"""

import ctypes
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kit.engine import Tokens
from kit.errors import KitError
from kit.models import check_gguf, cpu_threads, release_gpu

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
                f"{gguf}: llama.cpp cannot load this model ({log[-1] if log else 'no reason given'}). "
                "Give a complete GGUF file of an architecture that llama.cpp knows."
            )
        self._api = llama_cpp
        self._vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def tokenize(self, text: str) -> Tokens:
        """The tokens of ``text``; control tokens written in it (``<|im_end|>``) count as such."""
        data = text.encode("utf-8")
        buffer = (self._api.llama_token * (len(data) + 8))()
        n = self._api.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, True)
        return list(buffer[:n])

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

    def ends_generation(self, token: int) -> bool:
        """Whether the model's own files say that ``token`` ends a text."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def load_adapter(self, adapter: Path) -> Any:
        """The handle of a GGUF LoRA adapter, for ``Context.use``."""
        if not adapter.is_file():
            raise KitError(f"{adapter}: no such adapter file. Make one with `python run.py convert`.")
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
