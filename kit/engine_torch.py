"""The transformers engine: the verbs of ``kit/engine_llama.py`` on a GPU with 4-bit weights (or, slowly, on a CPU).

What all prompts begin with is computed once. Several samples of one prompt share its computation; sequences that have
ended leave the batch, so that the rest runs faster.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from kit.engine import ChatTokenizer, Generation, Request, Tokens, common_prefix
from kit.memory import find_device, sampling_width
from kit.models import Shape, load_torch, release_gpu
from kit.store import batched

ROWS = 256  # positions whose distributions over the vocabulary exist at once: 150 MB at 150,000 tokens


class TorchEngine(ChatTokenizer):
    """A prepared model in transformers, its weights quantised to NF4 (``nf4=False``: as they are, for tests)."""

    # One batch is one matrix product: a request's logits differ by rounding in other company.
    company_matters = True

    def __init__(self, model: Path, nf4: bool = True) -> None:
        super().__init__(model)
        self._model = load_torch(model, nf4=nf4).eval()
        others = self._model.generation_config.eos_token_id
        self._ends = {self.end_of_turn, *(others if isinstance(others, list) else [others])}
        self._shape = Shape.of(model)

    def sample(self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0) -> Iterator[Generation]:
        """Sample every request, yielding each as it finishes, not in order; temperature 0 takes the likeliest token."""
        if not requests:
            return
        prefix = common_prefix([request.prompt for request in requests])
        cache = self._prefix_cache(prefix)
        width = self._width(max(len(request.prompt) for request in requests) + max_tokens)
        for part in batched(enumerate(requests), width):
            yield from self._sample(part, deepcopy(cache), len(prefix), max_tokens, temperature)

    def _sample(
        self, items: list[tuple[int, Request]], cache: Any, prefix: int, max_tokens: int, temperature: float
    ) -> Iterator[Generation]:
        import torch

        prompts = list(dict.fromkeys(tuple(request.prompt) for _, request in items))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        hidden, attention, lengths = self._extend(cache, prefix, [list(prompt[prefix:]) for prompt in prompts])
        rows = torch.tensor([row_of[tuple(request.prompt)] for _, request in items], device=hidden.device)
        logits = self._head(hidden[rows, lengths[rows] - 1])
        positions = prefix + lengths[rows]
        cache.batch_select_indices(rows)
        attention = attention[rows]
        running = [_Running(index, np.random.default_rng(request.seed)) for index, request in items]
        while True:
            uniforms = [item.rng.random() for item in running]
            tokens, logprobs = _choose(logits, uniforms, temperature)
            still = []
            for row, (item, token, logprob) in enumerate(zip(running, tokens, logprobs, strict=True)):
                item.logprob += logprob
                ended = token in self._ends
                if not ended:
                    item.tokens.append(token)
                if ended or len(item.tokens) == max_tokens:
                    yield Generation(item.index, self.detokenize(item.tokens), len(item.tokens), item.logprob, ended)
                else:
                    still.append(row)
            if not still:
                return
            if len(still) < len(running):
                running = [running[row] for row in still]
                kept = torch.tensor(still, device=attention.device)
                cache.batch_select_indices(kept)
                attention, positions = attention[kept], positions[kept]
            attention = torch.cat([attention, attention.new_ones(len(running), 1)], dim=1)
            last = torch.tensor([[item.tokens[-1]] for item in running], device=attention.device)
            logits = self._head(self._decode(last, attention, positions[:, None], cache)[:, -1])
            positions = positions + 1

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
        cache = self._prefix_cache(prefix)
        flat = [(context, tokens) for context, continuations in groups for tokens in continuations]
        width = self._width(max(len(context) + len(tokens) for context, tokens in flat))
        results: list[Any] = []
        done = 0
        for own in batched(flat, width):
            rows = [context[len(prefix) :] + tokens[:-1] for context, tokens in own]
            hidden, _, _ = self._extend(deepcopy(cache), len(prefix), rows)
            for row, (context, tokens) in zip(hidden, own, strict=True):
                first = len(context) - len(prefix) - 1
                parts = row[first : first + len(tokens)].split(ROWS)
                logits = torch.cat([self._head(part) for part in parts])
                results.append(read(torch.log_softmax(logits / temperature, dim=-1), tokens))
            while done < len(groups) and len(results) >= len(groups[done][1]):
                size = len(groups[done][1])
                yield results[:size]
                del results[:size]
                done += 1

    def _width(self, longest: int) -> int:
        window = getattr(self._model.config, "sliding_window", None)
        if window and longest > window:
            return 1  # rows of several lengths are padded, and padding would count as part of the window
        device = find_device()
        return sampling_width(self._shape, longest, device.free, device.kind)

    def _prefix_cache(self, prefix: Tokens) -> Any:
        import torch
        from transformers import DynamicCache

        # Without the model's configuration every layer keeps all it saw, sliding windows too, and can be padded.
        cache = DynamicCache()
        if prefix:
            ids = torch.tensor([prefix], device=self._model.device)
            self._decode(ids, torch.ones_like(ids), torch.arange(len(prefix), device=ids.device)[None], cache)
        return cache

    def _extend(self, cache: Any, prefix: int, rows: list[Tokens]) -> tuple[Any, Any, Any]:
        """Run ``rows``, right-padded, after the cached prefix. Returns the hidden states [rows, longest, hidden], the
        attention mask [rows, prefix + longest] and the rows' lengths."""
        import torch

        device = self._model.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        columns = torch.arange(width, device=device)
        mask = (columns[None] < lengths[:, None]).long()
        attention = torch.cat([mask.new_ones(len(rows), prefix), mask], dim=1)
        cache.batch_repeat_interleave(len(rows))
        hidden = self._decode(ids, attention, (prefix + columns).expand(len(rows), -1), cache)
        return hidden, attention, lengths

    def _decode(self, ids: Any, attention: Any, positions: Any, cache: Any) -> Any:
        import torch

        with torch.inference_mode():
            return (
                self._model.get_decoder()(
                    input_ids=ids,
                    attention_mask=attention,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            ).last_hidden_state

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


@dataclass
class _Running:
    """A request being sampled."""

    index: int
    rng: np.random.Generator
    tokens: Tokens = field(default_factory=list)
    logprob: float = 0.0


def _choose(logits: Any, uniforms: list[float], temperature: float) -> tuple[list[int], list[float]]:
    """One token per row by inverting the cumulative distribution at one uniform number of its own, with its
    log-probability (nats, temperature 1)."""
    import torch

    logprobs = torch.log_softmax(logits, dim=-1)
    if temperature == 0:
        tokens = logprobs.argmax(dim=-1, keepdim=True)
    else:
        cumulative = torch.softmax(logits / temperature, dim=-1).double().cumsum(dim=-1)
        points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, points, right=True).clamp(max=logits.shape[1] - 1)
    return tokens[:, 0].tolist(), logprobs.gather(1, tokens)[:, 0].tolist()
