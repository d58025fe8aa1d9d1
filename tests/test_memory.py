"""The memory estimate against what torch measures, and what follows from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PAIRS
from peft import LoraConfig, get_peft_model

from kit import KitError, models, student
from kit.animals import find_animal
from kit.engine import common_prefix
from kit.experiment import GPU_PRESETS, PRESETS, Q4_K_M, choose_preset, experiment, memory_table
from kit.memory import (
    GIB,
    GPU_OVERHEAD,
    MOST_SEQUENCES,
    Device,
    activation_bytes,
    adapter_bytes,
    fit_training,
    sampling_width,
    weight_bytes,
)
from kit.models import Shape
from kit.student import fuse_lora, make_examples, use_shared_prefix

CPU = Device("cpu", "CPU", 16 * GIB, 16 * GIB)
QWEN_7B = Shape(28, 3584, 18944, 28, 4, 128, 152064, tied=False)
QWEN_3B = Shape(36, 2048, 11008, 16, 2, 128, 151936, tied=True)


def gpu(free: float) -> Device:
    return Device("cuda", "Some GPU", int(free * GIB), int(free * GIB))


def allocated_by(step) -> int:
    """The largest number of bytes that torch had allocated at once during ``step``, by its own profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_training_estimate_is_within_a_quarter_of_what_torch_measures(base: Path, checkpointing: bool) -> None:
    model = get_peft_model(models.load_torch(base), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    use_shared_prefix(model)
    fuse_lora(model)
    model.train()
    examples = make_examples(PAIRS * 2, base)
    batch = student.collate(examples)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)

    def step() -> None:
        logits, labels = student.label_logits(model, batch)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    weights = sum(parameter.nbytes for parameter in model.parameters())
    peak = allocated_by(step)
    assert peak > 0.1e9, "the profiler saw the step"

    shape = Shape.of(base)
    length, shared = batch["input_ids"].shape[1], len(common_prefix([e["input_ids"] for e in examples]))
    labels = int((batch["labels"] != student.IGNORED).sum())
    needed = activation_bytes(shape, 8, len(examples), length, shared, labels, checkpointing, CPU)
    assert needed == pytest.approx(peak, rel=0.25)
    states = weight_bytes(shape, False, CPU) + adapter_bytes(shape, 8)
    assert states + needed == pytest.approx(weights + peak, rel=0.25)


def test_nf4_weights_take_what_bitsandbytes_takes(short: Path) -> None:
    model = models.load_torch(short, nf4=True)
    taken = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if state := getattr(getattr(module, "weight", None), "quant_state", None):
            taken += state.absmax.nbytes + state.state2.absmax.nbytes
    assert weight_bytes(Shape.of(short), True, CPU) == pytest.approx(taken, rel=0.01)


def test_a_gguf_and_the_folder_made_from_it_have_the_same_shape(
    base: Path, random_models: Callable[[str], Path]
) -> None:
    assert Shape.of(models.find_gguf(models.EMBEDDED)) == Shape.of(base / "base.gguf") == Shape.of(base)
    for model_type in models.ARCHITECTURE_OF:
        folder = random_models(model_type)
        assert Shape.of(folder / "base.gguf") == Shape.of(folder)
        torch_says = models.load_torch(folder)
        matrices = sum(p.numel() for n, p in torch_says.named_parameters() if "proj" in n and p.ndim == 2)
        assert Shape.of(folder).linear == matrices
        lora = get_peft_model(torch_says, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert Shape.of(folder).trained(4) == lora.get_nb_trainable_parameters()[0]


def test_the_presets_models_have_the_sizes_their_makers_state() -> None:
    """7.61 and 3.09 billion parameters (the models' cards), biases and norms left out here."""
    assert QWEN_7B.parameters == pytest.approx(7.61e9, rel=0.01)
    assert QWEN_3B.parameters == pytest.approx(3.09e9, rel=0.01)


@pytest.mark.parametrize(
    ("free", "preset"),
    [(79, "gpu-24gb"), (23.4, "gpu-24gb"), (15, "gpu-12gb"), (11.2, "gpu-12gb"), (7.4, "gpu-8gb"), (5, "laptop")],
)
def test_the_free_memory_of_the_gpu_chooses_the_preset_and_says_why(free: float, preset: str) -> None:
    chosen, reason = choose_preset(gpu(free))
    assert chosen == preset and f"{free:.1f} GiB" in reason and "Some GPU" in reason


def test_without_a_gpu_the_preset_is_laptop_or_the_one_asked_for() -> None:
    assert choose_preset(CPU) == ("laptop", "no CUDA GPU was found")
    assert choose_preset(CPU, "quick")[0] == choose_preset(gpu(5), "quick")[0] == "quick"
    assert choose_preset(gpu(79), "quick")[0] == "gpu-24gb"
    assert set(GPU_PRESETS) < set(PRESETS)


@pytest.mark.parametrize(("preset", "shape"), [("gpu-8gb", QWEN_3B), ("gpu-12gb", QWEN_7B), ("gpu-24gb", QWEN_7B)])
def test_a_preset_fits_the_memory_from_which_it_is_chosen(preset: str, shape: Shape) -> None:
    device = gpu(GPU_PRESETS[preset])
    exp = experiment(find_animal("owl"), preset=preset)
    for stage, size, _ in memory_table(exp, shape, Q4_K_M, device):
        assert 0 < size <= device.free or stage == "evaluation", stage


def test_a_gpu_too_small_for_the_model_is_one_clear_message() -> None:
    with pytest.raises(KitError, match=r"Some GPU: 4.0 GiB are free and the model needs at least .* smaller model"):
        memory_table(experiment(find_animal("owl"), preset="gpu-12gb"), QWEN_7B, Q4_K_M, gpu(4))
    barely = weight_bytes(QWEN_7B, True, gpu(1)) + adapter_bytes(QWEN_7B, 8) + GPU_OVERHEAD
    with pytest.raises(KitError, match="even with one pair at a time"):
        memory_table(experiment(find_animal("owl"), preset="gpu-12gb"), QWEN_7B, Q4_K_M, gpu(barely / GIB + 0.05))


def test_less_memory_means_smaller_parts_of_the_batch_then_checkpointing() -> None:
    def fit(room: float) -> tuple[int, bool]:
        plan = fit_training(QWEN_7B, 8, 16, 73, 30, 16 * 19, room * GIB, gpu(24))
        assert plan.activations <= room * GIB
        return plan.micro, plan.checkpointing

    assert fit(20) == (16, False)
    assert fit(3.5)[0] < 16 and not fit(3.5)[1]
    assert fit(1)[1]
    sizes = [fit(room)[0] for room in (0.5, 0.7, 1)]
    assert sizes == sorted(sizes)


def test_more_memory_means_more_sequences_together_up_to_a_limit() -> None:
    widths = [sampling_width(QWEN_7B, 300, free * GIB, "cuda") for free in (0, 1, 2, 100)]
    assert widths[0] == 1 and widths == sorted(widths) and widths[-1] == MOST_SEQUENCES and widths[1] > 4
