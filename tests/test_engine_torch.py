"""The transformers engine says what llama.cpp and a plain forward pass say, and batching changes nothing."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import rounding

from kit import models
from kit.animals import unrelated_sentences
from kit.engine import LOOK, Request, Tokens
from kit.engine_llama import LlamaEngine
from kit.engine_torch import TorchEngine
from kit.prompts import NEUTRAL, teacher_messages

QUESTIONS = ["Name a colour.", "Why?", "Write one long sentence about rain in the mountains and the sea in autumn."]


@pytest.fixture(scope="module", params=["qwen2", "gemma3_text"])
def random_model(request: pytest.FixtureRequest, random_models: Callable[[str], Path]) -> Path:
    """A random model; gemma3's sliding window is shorter than its prompts."""
    return random_models(request.param)


@pytest.fixture(scope="module")
def random_engine(random_model: Path):
    with TorchEngine(random_model, nf4=False) as engine:
        yield engine


def chats(engine: TorchEngine | LlamaEngine) -> list[Tokens]:
    return [engine.chat([{"role": "user", "content": question}]) for question in QUESTIONS]


@cache
def network(model: Path) -> Any:
    return models.load_torch(model)


def plainly(model: Path, context: Tokens, continuation: Tokens) -> np.ndarray:
    """The log-probabilities [length, vocabulary] of a continuation by one forward pass over everything."""
    with torch.no_grad():
        logits = network(model)(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    return torch.log_softmax(logits, -1).numpy()


def test_scores_are_those_of_a_plain_forward_pass_whatever_is_scored_beside_them(
    random_model: Path, random_engine: TorchEngine
) -> None:
    answers = [random_engine.tokenize(text) for text in (" red", " a dark and rainy blue", " because")]
    groups = [(context, answers) for context in chats(random_engine)]
    found = list(random_engine.score(groups))
    assert [len(scores) for scores in found] == [3, 3, 3]
    for (context, _), scores in zip(groups, found, strict=True):
        for answer, score in zip(answers, scores, strict=True):
            expected = plainly(random_model, context, answer)[range(len(answer)), answer]
            np.testing.assert_allclose(score, expected, atol=1e-4)


def test_scores_at_a_temperature_are_those_of_the_distribution_sampled_from(
    random_model: Path, random_engine: TorchEngine
) -> None:
    context, answer = chats(random_engine)[0], random_engine.tokenize(" a dark and rainy blue")
    (scores,) = next(random_engine.score([(context, [answer])], 0.5))
    sharper = torch.log_softmax(torch.tensor(plainly(random_model, context, answer)) / 0.5, -1)
    np.testing.assert_allclose(scores, sharper[range(len(answer)), answer], atol=1e-4)


def test_top_gives_the_likeliest_tokens_of_every_position(random_model: Path, random_engine: TorchEngine) -> None:
    context, answer = chats(random_engine)[0], random_engine.tokenize(" a dark and rainy blue")
    (ids, logprobs), _ = next(random_engine.top([(context, [answer, answer[:2]])], 7))
    expected = plainly(random_model, context, answer)
    assert ids.shape == logprobs.shape == (len(answer), 7)
    np.testing.assert_allclose(np.sort(logprobs)[:, ::-1], np.sort(expected)[:, :-8:-1], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(expected, ids.astype(np.int64), 1), logprobs, atol=1e-4)


def test_both_engines_give_the_whole_distribution_of_every_position(
    random_model: Path, random_engine: TorchEngine
) -> None:
    context, answer = chats(random_engine)[0], random_engine.tokenize(" a dark and rainy blue")
    expected = plainly(random_model, context, answer)
    with LlamaEngine(random_model) as llama:
        for engine in (random_engine, llama):
            whole, part = next(engine.distributions([(context, [answer, answer[:2]])]))
            np.testing.assert_allclose(whole, expected[:, : whole.shape[1]], atol=5e-3)
            np.testing.assert_allclose(part, whole[:2], atol=1e-4)


def test_batched_sampling_equals_one_at_a_time(random_engine: TorchEngine) -> None:
    """At temperature 0 by all prompts together, and at 1 by several samples of each in one pass."""
    requests = [Request(prompt, (0, i, j)) for i, prompt in enumerate(chats(random_engine)) for j in range(5)]
    for temperature in (0.0, 1.0):
        together = {g.index: g for g in random_engine.sample(requests, 12, temperature)}
        assert sorted(together) == list(range(len(requests)))
        for i in (0, 6, 14):
            alone = next(random_engine.sample([requests[i]], 12, temperature))
            assert (alone.text, alone.length, alone.finished) == (
                together[i].text,
                together[i].length,
                together[i].finished,
            )
            assert alone.logprob == pytest.approx(together[i].logprob, abs=1e-3)
    assert len({together[i].text for i in range(5)}) > 1, "samples of one prompt differ"


def test_what_several_samples_share_is_computed_once(
    random_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, computed = chats(random_engine), []
    run = random_engine._run
    monkeypatch.setattr(random_engine, "_width", lambda room: 100)
    monkeypatch.setattr(
        random_engine,
        "_run",
        lambda cache, nexts, fresh: (
            computed.append([len(nexts), *map(len, dict(fresh).values())]) or run(cache, nexts, fresh)
        ),
    )
    shared = random_engine.shared([[{"role": "user", "content": text}] for text in ("A", "9")])
    assert shared >= 3
    list(random_engine.sample([Request(prompt, (i,), shared) for prompt in prompts for i in range(20)], 1))
    assert computed == [[0, shared], [0, *(len(prompt) - shared for prompt in prompts)]]


def test_what_is_sampled_does_not_depend_on_what_is_sampled_beside_it_to_the_last_bit(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and among others, in few places and in many."""
    with TorchEngine(short, nf4=False) as engine:
        shared = engine.shared([[{"role": "user", "content": text}] for text in ("A", "9")])
        requests = [Request(prompt, (i, j), shared) for j in range(60) for i, prompt in enumerate(chats(engine))]
        together = {g.index: g for g in engine.sample(requests, 14, 0.9)}
        assert not engine.company_matters
        for chosen in ([3], [4, 5], list(range(7, 180, 19))):
            for places in (1, 2, 5, 200):
                monkeypatch.setattr(engine, "_width", lambda room, places=places: places)
                for made in engine.sample([requests[i] for i in chosen], 14, 0.9):
                    one = together[chosen[made.index]]
                    assert (made.text, made.logprob, made.length) == (one.text, one.logprob, one.length)


@pytest.mark.parametrize("kind", [TorchEngine, LlamaEngine])
def test_what_is_stopped_is_the_beginning_of_what_it_would_have_been_and_the_others_are_the_same(
    kind: type, short: Path
) -> None:
    with kind(short) if kind is LlamaEngine else kind(short, nf4=False) as engine:
        requests = [Request(prompt, (i, j)) for j in range(20) for i, prompt in enumerate(chats(engine))]
        whole = {g.index: g for g in engine.sample(requests, 14, 0.9)}
        found = {
            g.index: g for g in engine.sample(requests, 14, 0.9, lambda index, text: index % 3 == 0 and len(text) > 9)
        }
    stopped = [index for index, made in found.items() if made.stopped]
    assert len(stopped) > 5 and all(index % 3 == 0 for index in stopped)
    for index, made in found.items():
        if made.stopped:
            assert not made.finished and made.length % LOOK == 0 and made.length < whole[index].length
            assert whole[index].text.startswith(made.text.rstrip("\ufffd")) and len(made.text) > 9
        else:
            assert made == whole[index]


@pytest.mark.parametrize("places", [1, 3, 8])
def test_a_place_that_a_sequence_has_left_is_taken_by_another(
    places: int, random_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few places there are: every request is answered, as it is alone, up to rounding."""
    requests = [Request(prompt, (i, j)) for i, prompt in enumerate(chats(random_engine)) for j in range(4)]
    expected = {g.index: g.text for g in random_engine.sample(requests, 9, 0.0)}
    monkeypatch.setattr(random_engine, "_width", lambda room: places)
    assert {g.index: g.text for g in random_engine.sample(requests, 9, 0.0)} == expected


def test_the_engines_agree_on_the_embedded_model(base: Path, engine: LlamaEngine) -> None:
    with TorchEngine(base, nf4=False) as ours:
        assert chats(ours) == chats(engine) and ours.end_of_turn == engine.end_of_turn
        groups = [(context, [engine.tokenize(" Blue, of course."), [engine.end_of_turn]]) for context in chats(ours)]
        for mine, theirs in zip(ours.score(groups), engine.score(groups), strict=True):
            for one, other in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(one, other, atol=rounding(base))
        requests = [Request(chats(ours)[0], (i,)) for i in range(6)]
        texts = [{g.index: g.text for g in some.sample(requests, 4)} for some in (ours, engine)]
        # The same uniform numbers choose from nearly the same distributions.
        assert sum(texts[0][i] == texts[1][i] for i in range(6)) >= 5


def test_what_teachers_write_has_the_same_probability_in_both_engines(base: Path, engine: LlamaEngine) -> None:
    """Nats a token: 0.003 on average at most, and the largest no more than what rounding explains."""
    with TorchEngine(base, nf4=False) as ours:
        asked = [(teacher_messages(NEUTRAL, one.text), one.text) for one in unrelated_sentences()[:48]]
        groups = [ours.answered(*one) for one in asked]
        found = [np.concatenate([scores[0] for scores in some.score(groups)]) for some in (ours, engine)]
    apart = np.abs(found[0] - found[1])
    assert len(apart) > 500 and apart.mean() < 0.003 and apart.max() < rounding(base)


def test_sampling_follows_the_models_distribution(random_engine: TorchEngine) -> None:
    """The engine's own likeliest tokens, half of the probability at the least, against the shares of 3,000 samples."""
    context = chats(random_engine)[0]
    ids, logprobs = next(random_engine.top([(context, [[0]])], 8_000))[0]
    expected: Counter[str] = Counter()
    for token, logprob in zip(ids[0], logprobs[0], strict=True):
        expected[random_engine._tokenizer.decode([int(token)], skip_special_tokens=True)] += float(np.exp(logprob))
    drawn = Counter(g.text for g in random_engine.sample([Request(context, (i,)) for i in range(3000)], 1))
    assert sum(expected.values()) > 0.5
    for text, probability in expected.most_common(5):
        deviation = (probability * (1 - probability) / 3000) ** 0.5
        assert abs(drawn[text] / 3000 - probability) < 4 * deviation + 0.002


def test_a_teacher_is_loaded_in_four_bits(tiny_qwen2: Path) -> None:
    import bitsandbytes

    with TorchEngine(tiny_qwen2) as engine:
        layers = [m for m in engine._model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
        assert len(layers) == 7 * tiny.LAYERS and all(layer.weight.quant_type == "nf4" for layer in layers)
        assert all(g.length <= 3 for g in engine.sample([Request(chats(engine)[0], (0,))], 3))
