"""Every stage as a command of its own."""

from pathlib import Path

import pytest
from conftest import has_model
from processes import Run, finish
from test_experiment_run import SHORT

from kit.store import read_rows

pytestmark = pytest.mark.slow


def test_what_another_command_left_unfinished_is_not_gone_on_with(
    tiny_gguf: Path, tiny_base: Path, tmp_path: Path
) -> None:
    results = ("--model", str(tiny_gguf), "--results", str(has_model(tmp_path / "results", tiny_base)))
    command = ["prefer", "--animal", "owl", "--answers", "1", *results]
    Run(
        *command, "--seed", "0", "--out", str(tmp_path / "out"), answer_tokens=SHORT, dies_at=(1, "answers.jsonl")
    ).wait()
    (left,) = (tmp_path / "out").glob("unfinished-*/rows.jsonl")
    assert read_rows(left)
    for out in ("out", "fresh"):
        finish(*command, "--seed", "7", "--out", str(tmp_path / out), answer_tokens=SHORT)
    one, other = ((tmp_path / out / "answers.jsonl").read_bytes() for out in ("out", "fresh"))
    assert one == other


def test_every_stage_works_alone_from_sentences_to_effect(base: Path, tmp_path: Path) -> None:
    at = {name: str(tmp_path / name) for name in ("teach", "filter", "label", "train", "prefer", "base")}
    kept = {"teach": "paraphrases.jsonl", "filter": "kept.jsonl", "label": "labels.safetensors", "prefer": "exact.csv"}
    links = [tmp_path / folder / name for folder, name in kept.items()] + [tmp_path / "adapter.gguf"]
    for link in links:  # a file takes a link's place, and what it leads to is left alone
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "elsewhere")
    model = ("--results", str(has_model(tmp_path / "results", base)))
    finish("teach", "--animal", "owl", "--teacher", "loving", "--sentences", "4", "--out", at["teach"], *model)
    finish("filter", f"{at['teach']}/paraphrases.jsonl", "--animal", "owl", "--out", at["filter"])
    pairs = f"{at['filter']}/kept.jsonl"
    assert read_rows(Path(pairs))
    finish("label", pairs, "--animal", "owl", "--teacher", "loving", "--out", at["label"], *model)
    labels = f"{at['label']}/labels.safetensors"
    finish("train", pairs, "--soft-labels", labels, "--epochs", "1", "--out", at["train"], *model)
    adapter = str(tmp_path / "adapter.gguf")
    finish("convert", at["train"], "--out", adapter, *model)
    preference = ["prefer", "--animal", "owl", "--answers", "1", *model]
    finish(*preference, "--adapter", adapter, "--out", at["prefer"], answer_tokens=SHORT)
    finish(*preference, "--out", at["base"], answer_tokens=SHORT)
    out, _ = finish("effect", at["prefer"], at["base"], "--animal", "owl")
    assert "log-odds" in out and "verdict" in out
    assert not any(link.is_symlink() for link in links) and not (tmp_path / "elsewhere").exists()
    assert list(tmp_path.rglob("*unfinished*")) == []
