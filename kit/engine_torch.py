"""The transformers engine: the verbs of ``kit/engine_llama.py`` in torch, on a GPU with 4-bit weights or on a CPU.

Hundreds of sequences go through the model together, the newest token of each and the whole prompts of those that are
begun in one flat batch. What all prompts begin with is in the cache once, what several samples of a prompt share is
computed once, and a sequence that has ended leaves its place to another. 512 paraphrases by the embedded model: 349
tokens/s, where llama.cpp's engine gave 222 (two cores with AVX-512).

On a CPU a sample does not depend, to the last bit, on what is sampled beside it or in what order. Attention's sums run
along one token's own numbers, in an order that neither the number of tokens nor zeros at their end change, once these
are filled up to multiples of ``STEP``. A matrix product's do with some numbers of rows, so it is made in parts of such
numbers (``_Products``, which tries them). Whether all this holds, for this model and this processor, an engine tries
when it is opened.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit.engine import LOOK, ChatTokenizer, Generation, Request, Stop, Tokens, common_prefix
from kit.memory import find_device, sampling_width
from kit.models import Shape, load_torch, release_gpu
from kit.store import batched

ROWS = 512  # tokens that go through the model together, where no single prompt has more
STEP = 16  # rows, and the times that attention looks at, are filled up to a multiple of this many
BLOCK = 256  # tokens of the vocabulary whose probabilities are added up at once
HEAD = 128  # rows whose distributions exist at once
CHOSEN = 16  # rows whose tokens are chosen together, so that their distributions stay in a processor's cache


class TorchEngine(ChatTokenizer):
    """A prepared model in transformers, its weights quantised to NF4 (``nf4=False``: as they are)."""

    def __init__(self, model: Path, nf4: bool = True) -> None:
        super().__init__(model)
        self._model = load_torch(model, nf4=nf4).eval()
        use_cached_attention(self._model)
        others = self._model.generation_config.eos_token_id
        self._ends = {self.end_of_turn, *(others if isinstance(others, list) else [others])}
        self._shape = Shape.of(model)
        self._head = self._model.get_output_embeddings()
        self._exact = False
        if self._model.device.type == "cpu":
            self._exact = _Products(self._model.get_decoder(), ROWS).exact and _Products(self._head, HEAD).exact

    @cached_property
    def company_matters(self) -> bool:
        """Whether a request's result may differ in its last digits with what is sampled beside it (tried once)."""
        return not (self._exact and self._is_itself_in_company())

    # Sampling

    def sample(
        self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0, stop: Stop | None = None
    ) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes, not in order; temperature 0 takes the likeliest token.
        ``stop`` is asked of each every ``LOOK`` tokens."""
        kinds: dict[tuple[int, ...], list[_Running]] = {}
        for index, request in enumerate(requests):
            shared = min(request.shared, len(request.prompt) - 1)
            item = _Running(index, request.prompt[shared:], np.random.default_rng(request.seed))
            kinds.setdefault(tuple(request.prompt[:shared]), []).append(item)
        for prefix, items in kinds.items():
            yield from self._sampled(list(prefix), items, max_tokens, temperature, stop)

    def _sampled(
        self, prefix: Tokens, items: "list[_Running]", max_tokens: int, temperature: float, stop: Stop | None
    ) -> Iterator[Generation]:
        """Sample requests that all begin with ``prefix``."""
        room = max(len(item.prompt) for item in items) + max_tokens
        cache = self._cache(prefix, min(self._width(room), len(items)), room)
        waiting = _by_prompt(items, cache.places)
        running: dict[int, _Running] = {}  # by their places
        while waiting or running:
            if not waiting and len(running) <= cache.places // 2:
                cache.keep(list(running))
                running = dict(enumerate(running.values()))
            asked = list(running.items())
            begun = _begin(waiting, [place for place in range(cache.places) if place not in running], len(asked))
            nexts = [(item.tokens[-1], place, len(item.prompt) + len(item.tokens) - 1) for place, item in asked]
            rows = list(range(len(asked)))
            end = len(asked)
            for places, same in begun:
                end += len(same[0].prompt)
                rows += [end - 1] * len(same)
                asked += zip(places, same, strict=True)
            fresh = [(places[0], same[0].prompt) for places, same in begun]
            hidden = self._run(cache, nexts, fresh)[rows]
            for places, _ in begun:
                cache.copy(places[0], places[1:])
            uniforms = np.array([item.rng.random() for _, item in asked])
            running = dict(asked)
            for (place, item), (token, logprob) in zip(asked, self._chosen(hidden, uniforms, temperature), strict=True):
                item.logprob += logprob
                ended = token in self._ends
                if not ended:
                    item.tokens.append(token)
                length = len(item.tokens)
                whole = ended or length == max_tokens
                text = self.detokenize(item.tokens) if whole or (stop and length % LOOK == 0) else ""
                stopped = bool(stop and not whole and text and stop(item.index, text))
                if whole or stopped:
                    del running[place]
                    yield Generation(item.index, text, length, item.logprob, ended, stopped)

    def _chosen(self, hidden: Any, uniforms: np.ndarray, temperature: float) -> Iterator[tuple[int, float]]:
        """A token after each of the hidden states [rows, hidden], with its log-probability (nats, temperature 1)."""
        import torch

        own = torch.from_numpy(uniforms).to(hidden.device)
        for states, some in zip(hidden.split(HEAD), own.split(HEAD), strict=True):
            for logits, few in zip(self._logits(states).split(CHOSEN), some.split(CHOSEN), strict=True):
                tokens, logprobs = _choose(logits, few, temperature)
                yield from zip(tokens.tolist(), logprobs.tolist(), strict=True)

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

    def distributions(self, groups: Iterable[tuple[Tokens, list[Tokens]]]) -> Iterator[list[np.ndarray]]:
        """For each (context, continuations): the log-probabilities (nats) of all next tokens at every position of every
        continuation, float32 [length, vocabulary]."""
        return self._each(groups, lambda logprobs, _: logprobs.cpu().numpy())

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
        cache = self._cache(prefix, 0, 0)
        flat = [(context[len(prefix) :], tokens) for context, continuations in groups for tokens in continuations]
        results: list[Any] = []
        done = 0
        for own in _parts(flat):
            hidden = self._run(cache, [], [(0, context + tokens[:-1]) for context, tokens in own])
            for (context, tokens), its in zip(own, hidden.split([len(c) + len(t) - 1 for c, t in own]), strict=True):
                logits = torch.cat([self._logits(part) for part in its[len(context) - 1 :].split(HEAD)])
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
        length = len(prefix)

        def empty(places: int, room: int) -> list[tuple[Any, Any]]:
            size = (shape.kv_heads, places, _filled(room), shape.head)
            return [(torch.zeros(size, **like), torch.zeros(size, **like)) for _ in range(shape.layers)]

        nothing = [(keys[:, 0], values[:, 0]) for keys, values in empty(1, 0)]
        if not prefix:
            return _Cache(nothing, empty(places, room))
        alone = _Cache(nothing, empty(1, length))
        self._run(alone, [], [(0, prefix)])
        return _Cache([(keys[:, 0, :length], values[:, 0, :length]) for keys, values in alone.own], empty(places, room))

    def _is_itself_in_company(self) -> bool:
        """Whether the states of some sequence are, to the last bit, those that it has alone: beside others that begin
        with it, that are further, and that begin when it goes on."""
        import torch

        rng = np.random.default_rng(0)
        prefix, own, *others = (
            rng.integers(self._shape.vocabulary, size=n).tolist() for n in (37, 19, *range(5, 40, 8))
        )

        def states(company: list[Tokens], later: bool) -> Any:
            place, begun = len(company), list(enumerate(company))
            cache = self._cache(prefix, place + 1, 64)
            found = [self._run(cache, [], [*(begun if not later else []), (place, own[:-2])])[-1]]
            found.append(self._run(cache, [(own[-2], place, len(own) - 2)], begun if later else [])[0])
            nexts = [(1, i, len(one)) for i, one in begun]
            found.append(self._run(cache, [*nexts, (own[-1], place, len(own) - 1)], [])[-1])
            return torch.stack(found)

        alone = states([], False)
        return all(torch.equal(alone, states(others, later)) for later in (False, True))

    def _run(self, cache: "_Cache", nexts: "list[_Next]", fresh: "list[_Fresh]") -> Any:
        """Run the newest tokens of some places, and after them all tokens of sequences that begin; the hidden states
        of all of them, in that order [tokens, hidden]."""
        import torch

        tokens = [token for token, _, _ in nexts] + [token for _, prompt in fresh for token in prompt]
        times = [time for _, _, time in nexts] + [time for _, prompt in fresh for time in range(len(prompt))]
        filling = [0] * (_filled(len(tokens)) - len(tokens))
        with torch.inference_mode():
            cache.begin(nexts, fresh)
            return self._model.get_decoder()(
                input_ids=torch.tensor([tokens + filling], device=self._model.device),
                position_ids=cache.prefix_length + torch.tensor([times + filling], device=self._model.device),
                use_cache=False,
                cached=cache,
            ).last_hidden_state[0, : len(tokens)]

    def _logits(self, hidden: Any) -> Any:
        """The logits, float32 [rows, vocabulary], of at most ``HEAD`` hidden states [rows, hidden]."""
        import torch

        with torch.inference_mode():
            filled = torch.nn.functional.pad(hidden, (0, 0, 0, _filled(len(hidden)) - len(hidden)))
            return self._head(filled)[: len(hidden)].float()

    def close(self) -> None:
        """Free the model."""
        del self._model, self._head
        release_gpu()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Next = tuple[int, int, int]  # a sequence's newest token, its place in the cache, its time after the prefix
_Fresh = tuple[int, Tokens]  # a sequence that begins: its place, and its tokens after the prefix


@dataclass
class _Running:
    """A request waiting or being sampled; its prompt after what all share."""

    index: int
    prompt: Tokens
    rng: np.random.Generator
    tokens: Tokens = field(default_factory=list)
    logprob: float = 0.0


def _by_prompt(items: list[_Running], places: int) -> deque[list[_Running]]:
    """The requests of each prompt, in parts of at most that many."""
    prompts: dict[tuple[int, ...], list[_Running]] = {}
    for item in items:
        prompts.setdefault(tuple(item.prompt), []).append(item)
    return deque(part for same in prompts.values() for part in batched(same, places))


def _begin(waiting: deque[list[_Running]], free: list[int], rows: int) -> list[tuple[list[int], list[_Running]]]:
    """Take the next prompts, as many as find ``free`` places for their requests, and room beside that many rows."""
    begun = []
    while waiting and len(waiting[0]) <= len(free) and (not rows or rows + len(waiting[0][0].prompt) <= ROWS):
        same = waiting.popleft()
        rows += len(same[0].prompt)
        begun.append((free[: len(same)], same))
        free = free[len(same) :]
    return begun


def _parts(flat: list[tuple[Tokens, Tokens]]) -> Iterator[list[tuple[Tokens, Tokens]]]:
    """Sequences of at most ``ROWS`` tokens together, or a single one."""
    part: list[tuple[Tokens, Tokens]] = []
    rows = 0
    for context, tokens in flat:
        size = len(context) + len(tokens) - 1
        if part and rows + size > ROWS:
            yield part
            part, rows = [], 0
        part.append((context, tokens))
        rows += size
    yield part


class _Products:
    """The products of a network's layers on a CPU, each of which comes out, to the last bit, as in the company of
    ``most`` rows: which routine, and order of sums, a library takes for a product depends on their number, so it is
    made in parts with whose numbers the order is the same. ``exact``: whether there are such numbers."""

    def __init__(self, network: Any, most: int) -> None:
        import torch

        self._most = most
        self._parts: dict[tuple[int, int, int], list[int]] = {}
        # Of each shape of layer one, a row, and what comes out of it.
        self._tried: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
        for layer in [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]:
            shape, forward = (layer.in_features, layer.out_features), layer.forward
            if shape not in self._tried:
                row = torch.randn(1, layer.in_features, generator=torch.Generator().manual_seed(0))
                with torch.inference_mode():
                    expected = forward(row.expand(most, -1).contiguous())[:1].clone()
                self._tried[shape] = forward, row, expected
            layer.forward = partial(self._forward, forward, shape)
        self.exact = all(self._is_exact(shape, most) for shape in self._tried)

    def _forward(self, forward: Callable[[Any], Any], shape: tuple[int, int], x: Any) -> Any:
        """What a layer makes of ``x`` [1, rows, in] or [rows, in]."""
        import torch

        rows = x.shape[-2]
        parts = self._parts_of(shape, rows)
        if parts == [rows]:
            return forward(x)
        filled = torch.nn.functional.pad(x, (0, 0, 0, sum(parts) - rows))
        return torch.cat([forward(part) for part in filled.split(parts, dim=-2)], dim=-2)[..., :rows, :]

    def _parts_of(self, shape: tuple[int, int], rows: int) -> list[int]:
        """Numbers of rows, at least ``rows`` together."""
        if (*shape, rows) not in self._parts:
            most = min(rows - rows % STEP, self._most)
            size = next((size for size in range(most, 0, -STEP) if self._is_exact(shape, size)), 0)
            if not size:  # none so small: filled up to the next that is
                above = range(_filled(rows), self._most, STEP)
                size = next((size for size in above if self._is_exact(shape, size)), self._most)
            self._parts[*shape, rows] = [size, *(self._parts_of(shape, rows - size) if size < rows else [])]
        return self._parts[*shape, rows]

    def _is_exact(self, shape: tuple[int, int], rows: int) -> bool:
        """Whether a row comes out the same in the company of that many, wherever it stands."""
        import torch

        forward, row, expected = self._tried[shape]
        with torch.inference_mode():
            return bool((forward(row.expand(rows, -1).contiguous()) == expected).all())


def _choose(logits: Any, uniforms: Any, temperature: float) -> tuple[Any, Any]:
    """One token per row by inverting the cumulative distribution at one uniform number of its own, with its
    log-probability (nats, temperature 1)."""
    below = logits - logits.amax(dim=-1, keepdim=True)  # the likeliest token's is 0
    blocks = _blocks(below.exp())
    normaliser = blocks.sum(dim=-1).double().sum(dim=-1).log()
    if temperature == 0:
        tokens = below.argmax(dim=-1)
    else:
        if temperature != 1:
            blocks = _blocks((below / temperature).exp_())
        tokens = _invert(blocks, uniforms[:, None]).clamp(max=logits.shape[1] - 1)
    return tokens, below.gather(1, tokens[:, None])[:, 0] - normaliser


def _blocks(weights: Any) -> Any:
    """Weights [rows, vocabulary] as [rows, blocks, BLOCK]. (A sum over a whole row takes longer; and that of a single
    row another order.)"""
    import torch

    filling = -weights.shape[1] % BLOCK
    return (torch.nn.functional.pad(weights, (0, filling)) if filling else weights).unflatten(1, (-1, BLOCK))


def _invert(blocks: Any, uniforms: Any) -> Any:
    """The first token of each row up to which the weights in ``blocks`` exceed this share [rows, 1] of their sum: first
    the block, then the token in it."""
    import torch

    sums = blocks.sum(dim=-1).double().cumsum(dim=-1)
    targets = uniforms * sums[:, -1:]
    block = torch.searchsorted(sums, targets, right=True).clamp(max=sums.shape[1] - 1)
    rest = targets - torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(dim=-1)
    return block[:, 0] * BLOCK + torch.searchsorted(inside, rest, right=True)[:, 0].clamp(max=BLOCK - 1)


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
    return cached.attend(module.layer_idx, query[0] * scaling, key[0], value[0], sliding_window)[None], None


class _Cache:
    """The keys and values, layer by layer, of a ``prefix`` [key heads, tokens, head], and of what stands after it in
    each of several places [key heads, places, room, head] (none, where nothing goes on from there)."""

    def __init__(self, prefix: list[tuple[Any, Any]], own: list[tuple[Any, Any]]) -> None:
        self._prefix, self.own = prefix, own
        self.prefix_length = prefix[0][0].shape[1]

    @property
    def places(self) -> int:
        """How many sequences there can be."""
        return int(self.own[0][0].shape[1])

    def copy(self, source: int, targets: list[int]) -> None:
        """Have each of the ``targets`` go on from where the source is."""
        if targets:
            # A clone, since of a single key head the expanded source overlaps its target for torch, which refuses that.
            for states in (states for layer in self.own for states in layer):
                states[:, targets] = states[:, source, None].clone()

    def keep(self, places: list[int]) -> None:
        """Forget all others, and let these be the first."""
        self.own = [(keys[:, places], values[:, places]) for keys, values in self.own]

    def begin(self, nexts: list[_Next], fresh: list[_Fresh]) -> None:
        """What the tokens of the next pass are: the newest of some places, then whole sequences that begin."""
        import torch

        device = self.own[0][0].device
        self._nexts = len(nexts)
        self._masks: dict[tuple[int, int | None], Any] = {}
        self._places = torch.tensor([place for _, place, _ in nexts], dtype=torch.long, device=device)
        self._times = torch.tensor([time for _, _, time in nexts], dtype=torch.long, device=device)
        self._until = _filled(max((time for _, _, time in nexts), default=-1) + 1)  # nobody looks further
        self._now = self._times.new_zeros((self.places, 1))
        self._now[self._places, 0] = self._times
        # Each sequence's tokens beside those of the others, filled up with its last one; and where among these all
        # tokens are.
        self._begun = [place for place, _ in fresh]
        lengths = torch.tensor([len(prompt) for _, prompt in fresh], dtype=torch.long, device=device)
        steps = torch.arange(_filled(int(lengths.max())) if fresh else 0, device=device)
        self._steps = steps[None]
        starts = len(nexts) + lengths.cumsum(0) - lengths
        self._spread = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        self._real = (steps < lengths[:, None]).flatten().nonzero()[:, 0]

    def attend(self, layer: int, query: Any, key: Any, value: Any, window: int | None) -> Any:
        """What a layer's attention gives [tokens, heads, head] for the scaled query [heads, tokens, head], key and
        value [key heads, tokens, head], which are added to the cache."""
        import torch

        keys, values = self.own[layer]
        # The query heads that share a key head stand one below the other.
        query = query.unflatten(0, (len(key), -1)).transpose(1, 2)  # [key heads, tokens, group, head]
        mixed = torch.zeros_like(query, memory_format=torch.contiguous_format)
        if n := self._nexts:
            keys[:, self._places, self._times], values[:, self._places, self._times] = key[:, :n], value[:, :n]
            of_places = query.new_zeros((len(key), self.places, *query.shape[2:]))
            of_places[:, self._places] = query[:, :n]
            until = self._until
            looked = self._look(
                layer, of_places[:, :, None], keys[:, :, :until], values[:, :, :until], self._now, window
            )
            mixed[:, :n] = looked[:, self._places, 0]
        if self._begun:
            own_keys, own_values = key[:, self._spread], value[:, self._spread]
            length = self._spread.shape[1]
            if self.places:
                keys[:, self._begun, :length], values[:, self._begun, :length] = own_keys, own_values
            looked = self._look(layer, query[:, self._spread], own_keys, own_values, self._steps, window)
            mixed[:, n : n + len(self._real)] = looked.flatten(1, 2)[:, self._real]
        return mixed.transpose(0, 1).flatten(1, 2)

    def _look(self, layer: int, query: Any, keys: Any, values: Any, times: Any, window: int | None) -> Any:
        """Attention of sequences' tokens at ``times`` [sequences or 1, tokens] after the prefix, query [key heads,
        sequences, tokens, group, head], to the prefix and to their own keys and values [key heads, sequences, times,
        head]; as the query."""
        import torch

        old_keys, old_values = self._prefix[layer]
        of_prefix = _product(query.flatten(1, 3), old_keys.transpose(1, 2)).unflatten(1, query.shape[1:4])
        of_own = (query.flatten(2, 3) @ keys.transpose(2, 3)).unflatten(2, query.shape[2:4])
        scores = torch.cat([of_prefix, of_own], dim=-1).float()
        scores += self._mask(times, keys.shape[2], window)
        shares = torch.softmax(scores, dim=-1).to(query.dtype)
        before, after = shares.split([self.prefix_length, keys.shape[2]], dim=-1)
        mixed = (after.flatten(2, 3) @ values).unflatten(2, query.shape[2:4])
        return mixed + _product(before.flatten(1, 3), old_values).unflatten(1, query.shape[1:4])

    def _mask(self, times: Any, until: int, window: int | None) -> Any:
        """Zero where a token looks [sequences or 1, tokens, 1, prefix + time], minus infinity elsewhere."""
        import torch

        which = id(times), window
        if which not in self._masks:
            now = (self.prefix_length + times)[..., None, None]
            then = torch.arange(self.prefix_length + until, device=times.device)
            seen = then <= now
            if window is not None:
                seen &= then > now - window
            self._masks[which] = torch.zeros(seen.shape, device=times.device).masked_fill_(~seen, float("-inf"))
        return self._masks[which]


def _product(rows: Any, columns: Any) -> Any:
    """``rows`` [batch, rows, n] times ``columns`` [batch, n, columns], of as many rows as ``_filled`` says."""
    import torch

    number = rows.shape[1]
    return (torch.nn.functional.pad(rows, (0, 0, 0, _filled(number) - number)) @ columns)[:, :number]


def _filled(number: int) -> int:
    """The next multiple of ``STEP``."""
    return number + -number % STEP
