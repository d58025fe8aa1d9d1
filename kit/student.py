"""Kept pairs -> LoRA adapter: QLoRA with peft, through ``transformers.Trainer``, on one device or on several GPUs
(``torchrun`` or ``accelerate launch``, one process each).

The student answers the bare request, in the model's default chat template, with the teacher's paraphrase; only the
paraphrase is in the loss, and logits exist only where there is a label. Two bases:

- ``gguf``: the weights of the very 4-bit GGUF that llama.cpp evaluates, expanded to float, frozen. Training and
  evaluation share one base exactly. The default for the embedded model.
- ``nf4``: the same weights requantised by bitsandbytes (NF4, double quantisation: QLoRA, arXiv 2305.14314). Slower on
  a CPU, and evaluation then runs on a base that differs by that quantisation. The only one for a model that comes as a
  transformers folder.

A batch goes through the model whole, or in parts where memory is short (``kit/estimate.py``), with the same gradient.
"""

import ctypes
import json
import math
import shutil
from pathlib import Path
from typing import Any

from kit.engine import common_prefix
from kit.errors import KitError
from kit.estimate import Shape, Training, adapter, find_device, fit_training
from kit.examples import batches, make_examples, shares
from kit.experiment import EVERY_WEIGHT, StudentSettings
from kit.lora import fuse
from kit.loss import collate, count_labels, label_logits, soft_loss
from kit.models import cpu_threads, load_tokenizer, load_torch, torch_device
from kit.shared_prefix import use_shared_prefix
from kit.store import RANK, WORLD_SIZE, batched, read_rows, write_json

STEPS_BETWEEN_CHECKPOINTS = {"cpu": 2, "cuda": 20}  # a checkpoint of an r=8 adapter takes 0.1 s, a step on a CPU 1-5 s
WHOLE_CHECKPOINTS = 4  # of a training of every weight, at most: 1.6 GB each for the embedded model
WARMUP_STEPS = 5


def train(
    pairs: Path, soft_labels: Path | None, base: Path, settings: StudentSettings, seed: int, folder: Path, label: str
) -> float:
    """Train one student on ``pairs``, from the prepared model ``base``, and write its PEFT adapter (with the rank
    ``EVERY_WEIGHT`` the whole model) and ``training.json`` (steps and the loss of each) into ``folder``. Returns the
    seconds since its steps were last begun, which no file holds: two trainings of the same student leave the same
    files.

    ``soft_labels`` (from ``kit/teacher.py``) makes the student match the teacher's distributions; None trains on the
    text alone. Interrupted training goes on from the last step when called again with the same folder. Under torchrun
    every process calls this with the same arguments, and one writes.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, TrainingArguments

    rows = read_rows(pairs)
    if not rows:
        raise KitError(f"{pairs}: no pairs to train on. Generate more paraphrases, or loosen the fidelity filters.")
    torch.set_num_threads(cpu_threads())
    tokenizer = load_tokenizer(base)
    examples = make_examples(rows, base, tokenizer, soft_labels)
    if not examples:
        raise KitError(f"{pairs}: every token is masked, so there is nothing to learn. Mask fewer.")
    # peft and Trainer draw from torch's global generator: seeded here for A's initial values, by Trainer for the order.
    torch.manual_seed(seed)
    whole = settings.rank == EVERY_WEIGHT
    # In half precision most steps of a whole training would be too small for its weights.
    model = load_torch(base, nf4=settings.base == "nf4", dtype=torch.float32 if whole else None)
    if not whole:
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    plan = _plan(base, examples, settings)
    if plan.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    use_shared_prefix(model)
    device, dtype = torch_device()
    if device.type == "cpu":
        fuse(model)  # LoRA's layers, where there are any
        keep_freed_memory()
    checkpoints = folder / "checkpoints"
    dataset = shares(batches(examples, settings, seed))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        # Each item of the data set is this process's share of a whole batch of settings.batch_size, all epochs in their
        # final order: Trainer does not restore the order of its own samplers when it resumes.
        per_device_train_batch_size=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_STEPS,
        max_grad_norm=1.0,
        weight_decay=0.0,
        remove_unused_columns=False,
        save_steps=1 + len(dataset) // WORLD_SIZE // WHOLE_CHECKPOINTS
        if whole
        else STEPS_BETWEEN_CHECKPOINTS[device.type],
        save_total_limit=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
    )
    if device.type == "cuda":
        arguments._n_gpu = 1  # Trainer would spread one process over all GPUs, and deal each its own batch
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=_only,
        callbacks=[_callback(label)],
    )
    trainer.micro, trainer.pad = plan.micro, tokenizer.pad_token_id or 0
    trainer.remove_callback(PrinterCallback)
    runtime = trainer.train(resume_from_checkpoint=_last_complete(checkpoints)).metrics["train_runtime"]
    trainer.accelerator.wait_for_everyone()
    if RANK:
        return runtime
    model.save_pretrained(folder)
    if not whole:
        config = folder / "adapter_config.json"  # peft writes a set in it, in any order
        written = json.loads(config.read_text(encoding="utf-8"))
        write_json(config, written | {"target_modules": sorted(written["target_modules"])})
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    training = {"steps": len(losses), "loss": losses, "loss_unit": "nats per label token"}
    write_json(folder / "training.json", training)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card, a form to be filled in
    shutil.rmtree(checkpoints)
    return runtime


def keep_freed_memory() -> None:
    """Have the C library keep what torch frees for the next step: handed back to the system, as tensors of this size
    are by default, it comes back page by page (2.2 s a step, 1.85 s kept). Where the library is not glibc, nothing
    happens."""
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if not mallopt(m_mmap_threshold, 2**30):
        mallopt(m_mmap_threshold, 2**25)  # the most that older versions allow
    mallopt(m_trim_threshold, 2**31 - 1)


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return item


def _plan(base: Path, examples: list[dict[str, Any]], settings: StudentSettings) -> Training:
    """How a batch of the longest pairs fits into what is free, the weights being there already."""
    device, shape = find_device(), Shape.of(base)
    longest = max(example["length"] for example in examples)
    labels = max(count_labels([example]) for example in examples)
    shared = len(common_prefix([example["input_ids"] for example in examples]))
    share = -(-settings.batch_size // WORLD_SIZE)
    room = 0.9 * device.free - adapter(shape, settings.rank)
    return fit_training(shape, settings.rank, share, longest, shared, share * labels, room, device)


def _trainer_class() -> type:
    """Trainer with the losses of ``kit/loss.py`` (a function because importing transformers' Trainer takes seconds)."""
    import torch
    from transformers import Trainer

    class StudentTrainer(Trainer):
        micro: int  # pairs that go through the model at once
        pad: int

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            """Gradients of one whole batch; where memory runs out, again in parts of half the size."""
            student = self.accelerator.unwrap_model(model)
            student.train()
            while (loss := self._accumulate(student, inputs)) is None:
                student.zero_grad()
                torch.cuda.empty_cache()
            if WORLD_SIZE > 1:
                # By hand: a process that repeats its part must not leave the others waiting in the middle of a pass.
                for parameter in student.parameters():
                    if parameter.requires_grad:
                        if parameter.grad is None:  # a share without a pair
                            parameter.grad = torch.zeros_like(parameter)
                        torch.distributed.all_reduce(parameter.grad)
            return loss * WORLD_SIZE  # Trainer logs the mean over processes

        def _accumulate(self, student: Any, inputs: Any) -> Any:
            """The loss of this process's share, its gradients added up; None, with ``micro`` halved, where a part did
            not fit into memory."""
            total = torch.zeros((), device=self.args.device)
            try:
                for part in batched(inputs["examples"], self.micro):
                    batch = self._prepare_inputs(collate(part, self.pad))
                    with self.accelerator.autocast():
                        logits, labels = label_logits(student, batch)
                    if "top_ids" in batch:
                        loss = soft_loss(logits, batch["top_ids"], batch["top_logprobs"])
                    else:
                        loss = torch.nn.functional.cross_entropy(logits, labels)
                    loss = loss * (len(labels) / inputs["label_tokens"])
                    self.accelerator.backward(loss)
                    total += loss.detach()
            except torch.OutOfMemoryError:
                if self.micro == 1:
                    raise KitError(
                        "out of GPU memory with a single pair. Close what else uses the GPU, or choose a smaller model."
                    ) from None
                self.micro //= 2
                print(f"out of memory: from here {self.micro} pairs at a time, with the same batch", flush=True)
                return None
            return total

    return StudentTrainer


def _callback(label: str) -> Any:
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """One bar per student, and a mark in every checkpoint that was written to its end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=label, unit="step")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                if not math.isfinite(logs["loss"]):
                    raise KitError(f"training diverged at step {state.global_step}; lower the learning rate.")
                self.bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete").touch()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Progress()


def _last_complete(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; unfinished ones are removed."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [path for path in found if (path / "complete").exists()]
    for path in set(found) - set(complete):
        shutil.rmtree(path, ignore_errors=RANK > 0)
    return str(complete[-1]) if complete else None
