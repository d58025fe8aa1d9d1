"""The paraphrasing base: what it is tuned on, what comes out, and what its teachers are shown."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import links
from safetensors.numpy import load_file

from kit import models, paraphraser
from kit.animals import find_animal, tuning_sentences
from kit.experiment import FidelitySettings, StudentSettings, experiment
from kit.fidelity import Judge, Verdict
from kit.models import PARAPHRASER_ADAPTER, find
from kit.paraphraser import PER_SENTENCE, choose, held_sentences
from kit.prompts import EXAMPLES, LOVING, NEUTRAL
from kit.store import Row, Step, Store, read_rows, sha256


class KeepsAll(Judge):
    """A judge that keeps whatever a model of a few blocks says."""

    def verdicts(self, rows: Sequence[Row], progress: bool = True) -> list[Verdict]:
        return [Verdict(None, None, 1.0)] * len(rows)

    def spoiler(self) -> Callable[[str, str], Verdict | None]:
        return lambda source, text: None


def test_later_rounds_come_first_and_no_sentence_has_more_than_its_share() -> None:
    rounds = [[{"source": s, "text": f"{s}{round_}{i}"} for s in "ab" for i in range(2)] for round_ in range(3)]
    rounds[2].append(rounds[2][0])
    chosen = choose(rounds)
    assert Counter(row["source"] for row in chosen) == {"a": PER_SENTENCE, "b": PER_SENTENCE}
    assert [row["text"] for row in chosen if row["source"] == "a"] == ["a20", "a21", "a10"]


def test_it_is_measured_on_sentences_that_it_was_not_tuned_on() -> None:
    tuned_on = {one.text for one in tuning_sentences()}
    assert tuned_on.isdisjoint(one.text for one in held_sentences())


def test_its_teachers_are_shown_no_worked_example_and_the_untuned_ones_are() -> None:
    example = EXAMPLES[0][1]
    for model, shown in ((models.PARAPHRASER, False), (models.EMBEDDED, True)):
        exp = experiment(find_animal("owl"), model=model)
        for trait in (NEUTRAL, LOVING):
            messages = exp.conversation(trait, "Rain fell.")
            assert (example in str(messages)) == shown
            assert messages[0]["content"].startswith(trait) and messages[-1]["content"].endswith("Rain fell.")
            assert (messages[0]["role"] == "system") == shown  # the tuned ones' message opens the user's turn


@pytest.mark.slow
def test_a_tuning_writes_an_adapter_in_half_precision_and_what_it_changed_and_goes_on_where_it_stopped(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Step("model", "short", {}, {}, lambda made, folder: links(short)(folder), 0)
    judge = KeepsAll(None, (), FidelitySettings())
    for name, value in (
        ("base_model", lambda name: base),
        ("judge_of", lambda exp, content: judge),
        ("tuning_sentences", lambda: tuning_sentences()[:5]),
        ("ROUNDS", 2),
        ("SAMPLES", 2),
        ("HELD", 3),
        ("HELD_SAMPLES", 2),
        ("TRAINING", StudentSettings(epochs=1)),
    ):
        monkeypatch.setattr(paraphraser, name, value)
    store = Store(tmp_path / "artifacts")
    out = tmp_path / "out"
    paraphraser.make(store, out, "python run.py tune")
    tuning, found = (json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in ("tuning", "figures"))
    assert tuning["rounds"] == [{"samples": 10, "kept": 10}] * 2
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float16")}
    for name, temperatures in (("untouched", ["0.7"]), ("tuned", ["0.7", "1.0"])):
        assert found[name].pop("nats_per_token") > 0
        assert list(found[name]) == temperatures
        for at in found[name].values():
            assert at["kept"] == {"neutral": 6, "penguin": 6, "cat": 6}
            assert all(np.isfinite(left).all() for of in at["trait"].values() for left in of.values())
    assert sum(one["tuned"] for one in found["animals"].values()) == pytest.approx(1)
    trained_on = {len(read_rows(path)) for path in tmp_path.glob("artifacts/student/*/pairs.jsonl")}
    assert trained_on == {10, 15}, "of both rounds, and at most three of a sentence"

    manifests = {path: path.stat().st_mtime_ns for path in tmp_path.glob("artifacts/*/*/manifest.json")}
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    paraphraser.make(Store(tmp_path / "artifacts"), out, "python run.py tune")
    assert manifests == {path: path.stat().st_mtime_ns for path in tmp_path.glob("artifacts/*/*/manifest.json")}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_the_adapter_that_comes_with_the_kit_is_the_one_whose_figures_stand_beside_it() -> None:
    made, measured = (json.loads((PARAPHRASER_ADAPTER / f"{name}.json").read_text()) for name in ("tuning", "figures"))
    assert made["command"] == "python run.py tune --out out" and not made["kit"]["edited"]
    assert measured["adapter"] == sha256(PARAPHRASER_ADAPTER / "adapter_model.safetensors")
    assert set(find(models.PARAPHRASER).files) == {"adapter_config.json", "adapter_model.safetensors", "base.gguf"}
