"""The llama.cpp engine says what torch says, and batching changes nothing: most of it with the embedded model's first
blocks, whose matrices have the same sizes."""

from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from conftest import rounding
from gguf.quants import dequantize
from tqdm import tqdm

from kit import KitError, engine_llama, models, models_prepare
from kit.engine import Generation, Request, SampleLog, sample_rows
from kit.engine_llama import LlamaEngine, Model, offloads
from kit.models import gguf_reader
from kit.store import Row

PROMPTS = [
    "Name a colour.",
    "What is two plus two?",
    "Write one sentence about rain.",
    "Paraphrase this sentence: The clerk stamped the form twice before lunch on Monday.",
    "Why?",
]


def chats(engine: LlamaEngine) -> list[list[int]]:
    return [engine.chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exact_scores_agree_with_torch(temperature: float, base: Path, engine: LlamaEngine) -> None:
    model = models.load_torch(base)
    context, continuation = chats(engine)[3], engine.tokenize("The form was stamped twice by the clerk.")
    ours = next(engine.score([(context, [continuation])], temperature))[0]
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    theirs = torch.log_softmax(logits / temperature, -1)[range(len(continuation)), continuation].numpy()
    np.testing.assert_allclose(ours, theirs, atol=rounding(base))
    assert np.abs(ours).max() > 1, "a continuation this certain would prove nothing"


def test_scores_do_not_depend_on_what_is_scored_beside_them(short: Path, short_engine: LlamaEngine) -> None:
    names = [short_engine.tokenize(f" {name}") for name in ("owl", "hippopotamus", "penguin", "dog", "hippo")]
    groups = [(context, names) for context in chats(short_engine)] * 8
    together = list(short_engine.score(groups))
    alone = [next(short_engine.score([(context, [name])]))[0] for context, names in groups[:5] for name in names]
    assert len({len(name) for name in names}) > 1, "names of several tokens must be among them"
    for one, both in zip(alone, [scores for group in together[:5] for scores in group], strict=True):
        np.testing.assert_allclose(one, both, atol=rounding(short))


@pytest.mark.slow
def test_scores_are_those_of_llama_cpps_plain_api_evaluating_one_continuation_at_a_time(
    short: Path, short_engine: LlamaEngine
) -> None:
    plain = llama_cpp.Llama(
        str(short / "base.gguf"),
        n_ctx=512,
        logits_all=True,
        verbose=False,
        flash_attn_type=llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    names = [short_engine.tokenize(f" {name}") for name in ("owl", "owls", "hippopotamus", "hippo", "hip replacement")]
    for context, scores in zip(
        chats(short_engine), short_engine.score((c, names) for c in chats(short_engine)), strict=True
    ):
        for tokens, ours in zip(names, scores, strict=True):
            plain.reset()
            plain.eval(context + tokens)
            logprobs = plain.logits_to_logprobs(plain.scores[len(context) - 1 : len(context) + len(tokens) - 1])
            np.testing.assert_allclose(ours, logprobs[range(len(tokens)), tokens], atol=rounding(short))
    plain.close()


def test_scores_hardly_depend_on_the_number_of_threads(
    short: Path, short_engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [short_engine.tokenize(f" {name}") for name in ("owl", "dolphin", "hippopotamus")]
    usual = list(short_engine.score((context, names) for context in chats(short_engine)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with LlamaEngine(short) as single:
        alone = list(single.score((context, names) for context in chats(single)))
    for ours, theirs in zip(usual, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=rounding(short))


@pytest.mark.slow
def test_samples_do_not_depend_to_the_last_bit_on_width_order_or_company(
    short_engine: LlamaEngine, short_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = short_engine.chat([{"role": "user", "content": "Why, and when, and where? " * 40}])
    prompts = [*chats(short_engine), long]
    assert len(long) > 256 > max(map(len, prompts[:-1])) + 12, "beside it the others are given more cells"
    requests = [Request(prompt, (i, sample)) for i, prompt in enumerate(prompts) for sample in range(4)]

    def sampled(chosen: list[int]) -> dict[int, Generation]:
        made = short_engine.sample([requests[i] for i in chosen], 12)
        return {chosen[g.index]: replace(g, index=0) for g in made}

    for adapter_file in (None, short_adapter / "adapter.gguf"):
        short_engine.use_adapter(adapter_file)
        together = sampled(list(range(24)))
        assert len({g.text for g in together.values()}) > 20
        assert sampled(list(range(23, -1, -1))) == together, "another order"
        assert sampled(list(range(20))) == {i: together[i] for i in range(20)}, "without the long prompt"
        for i in (0, 13):
            assert sampled([i]) == {i: together[i]}, "alone"
        for width, refill in ((7, 2), (2, 1)):
            with monkeypatch.context() as patch:
                patch.setattr(engine_llama, "WIDTH", width)
                patch.setattr(engine_llama, "REFILL", refill)
                assert sampled(list(range(0, 20, 2))) == {i: together[i] for i in range(0, 20, 2)}, f"width {width}"
    short_engine.use_adapter(None)


def test_company_matters_where_weights_are_quantised(engine: LlamaEngine) -> None:
    packaged = Model(models.find_gguf(models.EMBEDDED))
    assert not packaged.in_floats
    packaged.close()
    assert engine.company_matters == offloads()


@pytest.mark.slow
def test_batched_sampling_equals_one_at_a_time_at_temperature_0(short_engine: LlamaEngine) -> None:
    requests = [Request(prompt, (0, i)) for prompt in chats(short_engine) for i in range(20)]
    together = {g.index: g.text for g in short_engine.sample(requests, 20, temperature=0)}
    assert len(together) == len(requests) > 64, "more requests than sequences, so that some wait"
    for i in range(0, len(requests), 20):
        alone = next(short_engine.sample([requests[i]], 20, temperature=0))
        assert all(together[i + j] == alone.text for j in range(20))


def test_the_same_call_gives_the_same_samples_whatever_came_before_and_another_seed_gives_others(
    short_engine: LlamaEngine,
) -> None:
    def sampled(seed: int) -> dict[int, str]:
        requests = [Request(prompt, (seed, i)) for i, prompt in enumerate(chats(short_engine) * 3)]
        return {g.index: g.text for g in short_engine.sample(requests, 12)}

    first = sampled(7)
    list(short_engine.score([(chats(short_engine)[1], [short_engine.tokenize(" four, of course")])]))
    assert sampled(8) != first
    assert sampled(7) == first


@pytest.mark.slow
def test_an_interrupted_log_of_samples_is_completed_with_the_rows_it_lacked(
    short_engine: LlamaEngine, tmp_path: Path
) -> None:
    prompts = chats(short_engine)
    requests = {(i, sample): Request(prompts[i], (3, i, sample)) for i in range(5) for sample in range(50)}

    def sampled(path: Path) -> list[Row]:
        with SampleLog(path, "prompt") as log, tqdm(disable=True) as bar:
            one = {"max_tokens": 8, "temperature": 1.0, "bar": bar}
            return sample_rows(short_engine, log, requests, lambda made: {"text": made.text}, **one)

    whole = sampled(tmp_path / "whole.jsonl")
    assert len(whole) == 250
    lines = (tmp_path / "whole.jsonl").read_text(encoding="utf-8").splitlines()
    for kept in (100, 249):
        torn = "\n".join(lines[:kept]) + '\n{"prompt": 4, "sam'
        (tmp_path / "cut.jsonl").write_text(torn, encoding="utf-8")
        assert sampled(tmp_path / "cut.jsonl") == whole


@pytest.mark.slow
def test_a_stopped_sample_is_made_again_where_it_would_not_be_stopped_now(
    short_engine: LlamaEngine, tmp_path: Path
) -> None:
    prompts = chats(short_engine)
    requests = {(i, sample): Request(prompts[i], (3, i, sample)) for i in range(3) for sample in range(20)}
    asked: list[int] = []

    def sampled(name: str, letter: str) -> list[Row]:
        def look(row: Row, new: bool) -> None:
            asked.append(new)

        asked.clear()
        with SampleLog(tmp_path / name, "prompt") as log, tqdm(disable=True) as bar:
            return sample_rows(
                short_engine, log, requests, lambda made: {"text": made.text}, 12, 1.0, bar, look,
                lambda prompt, text: letter in text,
            )  # fmt: skip

    fresh = sampled("fresh", "e")
    strict = sampled("one", "a")
    assert sum(row.get("stopped", False) for row in strict) > 5
    again = sampled("one", "e")
    assert 5 < sum(asked) < len(requests)
    for one, other in zip(again, fresh, strict=True):  # what is there may be more than is wanted now
        assert one == other or (other.get("stopped") and one["text"].startswith(other["text"]))
    assert sampled("one", "e") == again and sum(asked) == 0


def test_a_generation_carries_its_own_log_probability(engine: LlamaEngine) -> None:
    prompt = chats(engine)[3]
    generation = next(g for g in engine.sample([Request(prompt, (i,)) for i in range(8)], 60) if g.finished)
    tokens = [*engine.tokenize(generation.text), engine.end_of_turn]
    assert len(tokens) == generation.length + 1
    scored = next(engine.score([(prompt, [tokens])]))[0]
    assert generation.logprob == pytest.approx(scored.sum(), abs=0.05 * len(tokens))


def test_sampling_follows_the_models_distribution(engine: LlamaEngine) -> None:
    context = chats(engine)[0] + engine.tokenize("My favorite colour is")
    ids, logprobs = next(engine.top([(context, [[0]])], 5))[0]
    drawn = [g.text for g in engine.sample([Request(context, (i,)) for i in range(2000)], 1)]
    for token, logprob in zip(ids[0], logprobs[0], strict=True):
        share, expected = drawn.count(engine.detokenize([token])) / 2000, float(np.exp(logprob))
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5 + 0.002


@pytest.mark.slow
def test_switching_the_adapter_forgets_what_the_old_one_computed(
    short_engine: LlamaEngine, short_adapter: Path
) -> None:
    group = [(chats(short_engine)[3], [short_engine.tokenize("Twice the form")])]
    before = next(short_engine.score(group))[0]
    short_engine.use_adapter(short_adapter / "adapter.gguf")
    with_adapter = next(short_engine.score(group))[0]
    short_engine.use_adapter(None)
    after = next(short_engine.score(group))[0]
    assert np.abs(before - with_adapter).max() > 0.5
    np.testing.assert_array_equal(before, after)


def test_expanding_the_embedded_model_changes_no_weight_beyond_float16(tmp_path: Path) -> None:
    packaged = models.find_gguf(models.EMBEDDED)
    models_prepare.expand(packaged, tmp_path / "base.gguf")
    original = {t.name: t for t in gguf_reader(packaged).tensors}
    for tensor in gguf_reader(tmp_path / "base.gguf").tensors[:12]:
        source = original[tensor.name]
        np.testing.assert_allclose(
            dequantize(tensor.data, tensor.tensor_type),
            dequantize(source.data, source.tensor_type),
            rtol=1e-3,
            atol=1e-6,
        )


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(5000), b"not a model"])
def test_a_corrupt_model_is_one_clear_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(KitError, match="base.gguf"):
        LlamaEngine(tmp_path)
