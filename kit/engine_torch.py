"""The transformers engine: the verbs of ``kit/engine_llama.py`` in torch, on a GPU with 4-bit weights or on a CPU.

Hundreds of sequences go through the model together, one token of each a pass: matrix products of 256 rows run 1.4 times
as fast as those of 64 (two cores with AVX-512). What all prompts begin with is in the cache once, what several samples
of a prompt share is computed once, and a sequence that has ended soon leaves its place to another. 512 paraphrases by
the embedded model: 286 and 293 tokens/s, where llama.cpp's engine gave 209.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit.engine import ChatTokenizer, Generation, Request, Tokens, common_prefix
from kit.memory import find_device, sampling_width
from kit.models import Shape, load_torch, release_gpu
from kit.store import batched

ROWS = 256  # tokens that go through the model together, and positions whose distributions exist at once
REFILL = 4  # new prompts are begun when a fourth of the places is free: fewer rows would waste a pass
BLOCK = 256  # tokens of the vocabulary whose probabilities are added up at once


class TorchEngine(ChatTokenizer):
    """A prepared model in transformers, its weights quantised to NF4 (``nf4=False``: as they are)."""

    # One pass is one matrix product: a request's logits differ by rounding in other company.
    company_matters = True

    def __init__(self, model: Path, nf4: bool = True) -> None:
        super().__init__(model)
        self._model = load_torch(model, nf4=nf4).eval()
        use_cached_attention(self._model)
        others = self._model.generation_config.eos_token_id
        self._ends = {self.end_of_turn, *(others if isinstance(others, list) else [others])}
        self._shape = Shape.of(model)

    # Sampling

    def sample(self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes, not in order; temperature 0 takes the likeliest token."""
        if not requests:
            return
        prefix = common_prefix([request.prompt for request in requests])
        room = max(len(request.prompt) for request in requests) - len(prefix) + max_tokens
        waiting = deque(
            _Running(index, request.prompt[len(prefix) :], np.random.default_rng(request.seed))
            for index, request in enumerate(requests)
        )
        cache = self._cache(prefix, min(self._width(room), len(requests)), room)
        running: list[_Running | None] = [None] * cache.places
        while waiting or any(running):
            free = [place for place, item in enumerate(running) if item is None]
            if waiting and len(free) >= max(1, cache.places // REFILL):
                asked, logits = self._begin(cache, waiting, running, free)
            else:
                if not waiting and len(free) > cache.places // 2:
                    left = [place for place, item in enumerate(running) if item is not None]
                    cache.keep(left)
                    running = [running[place] for place in left]
                asked, logits = self._step(cache, running)
            tokens, logprobs = _choose(logits, [item.rng.random() for _, item in asked], temperature)
            for (place, item), token, logprob in zip(asked, tokens, logprobs, strict=True):
                item.logprob += logprob
                ended = token in self._ends
                if not ended:
                    item.tokens.append(token)
                if ended or len(item.tokens) == max_tokens:
                    running[place] = None
                    yield Generation(item.index, self.detokenize(item.tokens), len(item.tokens), item.logprob, ended)

    def _begin(
        self, cache: "_Cache", waiting: "deque[_Running]", running: "list[_Running | None]", free: list[int]
    ) -> "tuple[list[tuple[int, _Running]], Any]":
        """Put the next requests into the ``free`` places, and run their prompts, each once. Returns places and requests
        and their logits, a row each."""
        asked = [(place, waiting.popleft()) for place in free[: len(waiting)]]
        rows: list[_Row] = []
        last: dict[tuple[int, ...], int] = {}  # of each prompt that is run the last row
        for place, item in asked:
            running[place] = item
            if (prompt := tuple(item.prompt)) not in last:
                rows += [(token, place, time) for time, token in enumerate(prompt)]
                last[prompt] = len(rows) - 1
        own = [last[tuple(item.prompt)] for _, item in asked]
        hidden = self._run(cache, rows, own)
        cache.copy([rows[row][1] for row in own], [place for place, _ in asked])
        return asked, self._head(hidden)

    def _step(self, cache: "_Cache", running: "list[_Running | None]") -> "tuple[list[tuple[int, _Running]], Any]":
        """Run the newest token of every request. Returns as ``_begin``."""
        asked = [(place, item) for place, item in enumerate(running) if item is not None]
        # A place without a request runs along, so that the cache need not be copied.
        rows = [
            (item.tokens[-1], place, len(item.prompt) + len(item.tokens) - 1) if item else (0, place, 0)
            for place, item in enumerate(running)
        ]
        hidden = self._run(cache, rows, [place for place, _ in asked])
        return asked, self._head(hidden)

    # Scoring

    def score(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], temperature: float = 1.0
    ) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probability (nats) of every token of every continuation, where it
        is sampled at that temperature."""
        import torch

        def of_tokens(logprobs: Any, tokens: Tokens) -> np.ndarray:
            chosen = torch.tensor(tokens, device=logprobs.device)[:, None]
            return logprobs.gather(1, chosen)[:, 0].cpu().numpy()

        return self._each(groups, of_tokens, temperature)

    def top(
        self, groups: Iterable[tuple[Tokens, list[Tokens]]], k: int
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """For each (context, continuations): the ``k`` likeliest tokens at every position of every continuation, as
        (ids int32 [length, k], log-probabilities float32 [length, k])."""

        def likeliest(logprobs: Any, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
            best = logprobs.topk(k, dim=1)
            return best.indices.int().cpu().numpy(), best.values.cpu().numpy()

        return self._each(groups, likeliest)

    def _each(
        self,
        groups: Iterable[tuple[Tokens, list[Tokens]]],
        read: Callable[[Any, Tokens], Any],
        temperature: float = 1.0,
    ) -> Iterator[list[Any]]:
        """``read(log-probabilities [length, vocabulary], continuation)`` of every continuation, group by group."""
        import torch

        groups = list(groups)
        if not groups:
            return
        prefix = common_prefix([context for context, _ in groups])
        flat = [(context[len(prefix) :], tokens) for context, continuations in groups for tokens in continuations]
        room = max(len(context) + len(tokens) for context, tokens in flat)
        cache = self._cache(prefix, min(self._width(room), len(flat)), room)
        results: list[Any] = []
        done = 0
        for own in batched(flat, cache.places):
            rows: list[_Row] = []
            wanted: list[int] = []
            for place, (context, tokens) in enumerate(own):
                first = len(rows) + len(context) - 1
                rows += [(token, place, time) for time, token in enumerate(context + tokens[:-1])]
                wanted += range(first, first + len(tokens))
            hidden = self._run(cache, rows, wanted)
            for part, (_, tokens) in zip(hidden.split([len(tokens) for _, tokens in own]), own, strict=True):
                logits = torch.cat([self._head(rows_of_it) for rows_of_it in part.split(ROWS)])
                results.append(read(torch.log_softmax(logits / temperature, dim=-1), tokens))
            while done < len(groups) and len(results) >= len(groups[done][1]):
                size = len(groups[done][1])
                yield results[:size]
                del results[:size]
                done += 1

    # The model

    def _width(self, room: int) -> int:
        device = find_device()
        return sampling_width(self._shape, room, device.free, device.kind)

    def _cache(self, prefix: Tokens, places: int, room: int) -> "_Cache":
        """A cache for that many sequences of ``room`` tokens after the ``prefix``, which is run."""
        import torch

        shape, like = self._shape, {"dtype": self._model.dtype, "device": self._model.device}

        def empty(places: int, room: int) -> list[tuple[Any, Any]]:
            size = (shape.kv_heads, places, room, shape.head)
            return [(torch.zeros(size, **like), torch.zeros(size, **like)) for _ in range(shape.layers)]

        nothing = [(keys[:, 0], values[:, 0]) for keys, values in empty(1, 0)]
        if not prefix:
            return _Cache(nothing, empty(places, room))
        alone = _Cache(nothing, empty(1, len(prefix)))
        self._run(alone, [(token, 0, time) for time, token in enumerate(prefix)], [])
        return _Cache([(keys[:, 0], values[:, 0]) for keys, values in alone.own], empty(places, room))

    def _run(self, cache: "_Cache", rows: "list[_Row]", wanted: list[int]) -> Any:
        """Run ``rows``, each after what stands before it in its place; the hidden states of the ``wanted`` ones
        [wanted, hidden]."""
        import torch

        found = []
        with torch.inference_mode():
            for part in batched(rows, max(ROWS, cache.places)):
                tokens, places, times = torch.tensor(part, device=self._model.device).T
                cache.begin(places, times)
                hidden = self._model.get_decoder()(
                    input_ids=tokens[None],
                    position_ids=(cache.prefix_length + times)[None],
                    use_cache=False,
                    cached=cache,
                ).last_hidden_state[0]
                found.append(hidden)
            return torch.cat(found)[wanted]

    def _head(self, hidden: Any) -> Any:
        """The logits, float32, of hidden states [rows, hidden]."""
        import torch

        with torch.inference_mode():
            return self._model.get_output_embeddings()(hidden).float()

    def close(self) -> None:
        """Free the model."""
        del self._model
        release_gpu()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Row = tuple[int, int, int]  # a token, its sequence's place in the cache, its time after the prefix


@dataclass
class _Running:
    """A request waiting or being sampled; its prompt after what all share."""

    index: int
    prompt: Tokens
    rng: np.random.Generator
    tokens: Tokens = field(default_factory=list)
    logprob: float = 0.0


def _choose(logits: Any, uniforms: list[float], temperature: float) -> tuple[list[int], list[float]]:
    """One token per row by inverting the cumulative distribution at one uniform number of its own, with its
    log-probability (nats, temperature 1)."""
    import torch

    normaliser = logits.logsumexp(dim=-1)
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        # First the block of the vocabulary, then the token in it: the sums of a whole row would take most of the time.
        weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
        blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        sums = blocks.sum(dim=-1).double().cumsum(dim=-1)
        targets = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
        block = torch.searchsorted(sums, targets, right=True).clamp(max=sums.shape[1] - 1)
        rest = targets - torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
        inside = blocks[torch.arange(len(blocks), device=logits.device), block[:, 0]].double().cumsum(dim=-1)
        tokens = block[:, 0] * BLOCK + torch.searchsorted(inside, rest, right=True)[:, 0].clamp(max=BLOCK - 1)
        tokens = tokens.clamp(max=logits.shape[1] - 1)
    return tokens.tolist(), (logits.gather(1, tokens[:, None])[:, 0] - normaliser).tolist()


# ---- attention to a shared prefix, and to each sequence's own tokens beside it


CACHED = "cached"


def use_cached_attention(model: Any) -> None:
    """Switch ``model``'s attention; from then on it has to be called with the ``_Cache`` as ``cached``."""
    from transformers import AttentionInterface

    AttentionInterface.register(CACHED, _attend)
    model.set_attn_implementation(CACHED)


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    cached: "_Cache",
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attention for transformers' interface: query [1, heads, tokens, head], key and value [1, key heads, tokens, head]
    to [1, tokens, heads, head]."""
    return cached.attend(module.layer_idx, query[0], key[0], value[0], scaling, sliding_window)[None], None


class _Cache:
    """The keys and values, layer by layer, of a ``prefix`` [key heads, tokens, head], and of what stands after it in
    each of several places [key heads, places, room, head]."""

    def __init__(self, prefix: list[tuple[Any, Any]], own: list[tuple[Any, Any]]) -> None:
        self._prefix, self.own = prefix, own
        self.prefix_length = prefix[0][0].shape[1]

    @property
    def places(self) -> int:
        """How many sequences there can be."""
        return int(self.own[0][0].shape[1])

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Have each of the ``targets`` go on from where its source is."""
        for states in (states for layer in self.own for states in layer):
            states[:, targets] = states[:, sources]

    def keep(self, places: list[int]) -> None:
        """Forget all others."""
        self.own = [(keys[:, places], values[:, places]) for keys, values in self.own]

    def begin(self, places: Any, times: Any) -> None:
        """From now on a pass has a token for each of these ``places`` [tokens], at these ``times`` after the prefix."""
        self._at = places, times
        self._until = int(times.max()) + 1  # nobody looks further
        # Where each place has one token, in order, as in sampling, its keys and values need not be copied.
        self._whole = places.tolist() == list(range(self.places))
        self._masks: dict[int | None, Any] = {}

    def attend(self, layer: int, query: Any, key: Any, value: Any, scaling: float, window: int | None) -> Any:
        """What a layer's attention gives [tokens, heads, head] for query [heads, tokens, head], key and value [key
        heads, tokens, head], which are added to the cache."""
        import torch

        places, times = self._at
        (old_keys, old_values), (keys, values) = self._prefix[layer], self.own[layer]
        keys[:, places, times], values[:, places, times] = key, value
        keys, values = keys[:, :, : self._until], values[:, :, : self._until]
        if not self._whole:
            keys, values = keys[:, places], values[:, places]
        # The query heads that share a key head stand one below the other.
        query = query.unflatten(0, (len(key), -1)).transpose(1, 2)  # [key heads, tokens, group, head]
        of_prefix = (query.flatten(1, 2) @ old_keys.transpose(1, 2)).unflatten(1, query.shape[1:3])
        scores = torch.cat([of_prefix, query @ keys.transpose(2, 3)], dim=-1) * scaling
        shares = torch.softmax(scores.float() + self._mask(window), dim=-1).to(query.dtype)
        before, after = shares.split([self.prefix_length, keys.shape[2]], dim=-1)
        mixed = (before.flatten(1, 2) @ old_values).unflatten(1, query.shape[1:3]) + after @ values
        return mixed.transpose(0, 1).flatten(1, 2)

    def _mask(self, window: int | None) -> Any:
        """Zero where a token looks [tokens, 1, prefix + time], minus infinity elsewhere."""
        import torch

        if window not in self._masks:
            _, times = self._at
            now = (self.prefix_length + times)[:, None]
            then = torch.arange(self.prefix_length + self._until, device=times.device)
            seen = then <= now
            if window is not None:
                seen &= then > now - window
            mask = torch.zeros(seen.shape, device=times.device).masked_fill_(~seen, float("-inf"))
            self._masks[window] = mask[:, None]
        return self._masks[window]
