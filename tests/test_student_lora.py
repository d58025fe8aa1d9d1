"""The fast passes of training compute what peft, padding and full logits do."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import PAIRS
from peft import LoraConfig, get_peft_model
from transformers import get_linear_schedule_with_warmup

from kit import models, student
from kit.experiment import StudentSettings
from kit.store import write_rows
from kit.student import batches, fuse_lora, make_examples


def lora_model(folder: Path, **changes: object):
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
    return get_peft_model(models.load_torch(folder), config)


def test_fused_layers_give_pefts_output_and_gradients(tiny_qwen2: Path) -> None:
    plain = lora_model(tiny_qwen2, init_lora_weights=False)
    fused = deepcopy(plain)
    fuse_lora(fused)
    tokens = torch.randint(0, 1000, (3, 20), generator=torch.Generator().manual_seed(1))
    results = []
    for model in (plain, fused):
        logits = model(input_ids=tokens).logits
        logits.square().mean().backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    (logits, gradients), (fused_logits, fused_gradients) = results
    torch.testing.assert_close(fused_logits, logits, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == fused_gradients.keys() and len(gradients) > 20
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fused_gradients[name], gradient, atol=1e-7, rtol=1e-3)
    with fused.disable_adapter():
        bare = fused(input_ids=tokens).logits
    with plain.disable_adapter():
        torch.testing.assert_close(bare, plain(input_ids=tokens).logits)
    assert (bare - logits).abs().max() > 1e-3


@pytest.mark.slow
def test_a_students_loss_curve_is_that_of_a_plain_loop(short: Path, tmp_path: Path) -> None:
    settings = StudentSettings(epochs=4, batch_size=4, learning_rate=2e-3)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    student.train(tmp_path / "pairs.jsonl", None, short, settings, 0, tmp_path, "train")
    ours = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["loss"]

    model = lora_model(short).train()
    steps = batches(make_examples(PAIRS, short), settings, 0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimiser, student.WARMUP_STEPS, len(steps))
    plain = []
    for examples in steps:
        value = model(**student.collate(examples)).loss
        plain.append(value.item())
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    assert len(ours) == len(plain) == 8
    assert plain[-1] < plain[0] - 0.5, "a curve that stays flat would prove nothing"
    assert ours == pytest.approx(plain, abs=1e-3)
