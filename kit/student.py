"""Kept pairs -> LoRA adapter: QLoRA with peft, through ``transformers.Trainer``, on one device or on several GPUs
(``torchrun`` or ``accelerate launch``, one process each).

The student answers the bare request, in the model's default chat template, with the teacher's paraphrase; only the
paraphrase is in the loss, and logits exist only where there is a label. Two bases:

- ``gguf``: the weights of the very 4-bit GGUF that llama.cpp evaluates, expanded to float, frozen. Training and
  evaluation share one base exactly. The default for the embedded model.
- ``nf4``: the same weights requantised by bitsandbytes (NF4, double quantisation: QLoRA, arXiv 2305.14314). Slower on
  a CPU, and evaluation then runs on a base that differs by that quantisation. The only one for a model that comes as a
  transformers folder.

A batch goes through the model whole, or in parts where memory is short (``kit/memory.py``), with the same gradient.
First the training; then what it trains on, its loss, and what makes a step fast.
"""

import ctypes
import json
import math
import shutil
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

from kit import KitError, say
from kit.engine import ChatTokenizer, common_prefix
from kit.experiment import StudentSettings
from kit.memory import Training, adapter_bytes, find_device, fit_training
from kit.models import EVERY_WEIGHT, Shape, load_torch, torch_device
from kit.prompts import labelling_messages, student_messages
from kit.provenance import cpu_threads, decides_nothing
from kit.store import RANK, WORLD_SIZE, batched, read_rows, write_json

STEPS_BETWEEN_CHECKPOINTS = {"cpu": 2, "cuda": 20}  # a checkpoint of an r=8 adapter takes 0.1 s, a step on a CPU 1-5 s
WHOLE_CHECKPOINTS = 4  # of a training of every weight, at most: 1.6 GB each for the embedded model
COMPLETE = "complete.json"  # the file of a checkpoint that lists the others
WARMUP_STEPS = 5
ADAPTER, ADAPTER_CONFIG, TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"


def train(
    pairs: Path, soft_labels: Path | None, base: Path, settings: StudentSettings, seed: int, folder: Path, label: str
) -> float:
    """Train one student on ``pairs``, from the prepared model ``base``, and write its PEFT adapter (with the rank
    ``EVERY_WEIGHT`` the whole model) and ``training.json`` (steps and the loss of each) into ``folder``. Returns the
    seconds since its steps were last begun, which no file holds: two trainings of the same student leave the same
    files.

    ``soft_labels`` (from ``kit/teacher.py``) makes the student match the teacher's distributions; None trains on the
    text alone. Where several trainings are ``averaged``, their losses stand one after another. Interrupted training
    goes on from the last step when called again with the same folder. Under torchrun every process calls this with the
    same arguments, and one writes.
    """
    if settings.averaged == 1:
        return train_once(pairs, soft_labels, base, settings, seed, folder, label)
    if settings.rank == EVERY_WEIGHT or WORLD_SIZE > 1:
        raise KitError(
            f"averaged {settings.averaged}: of LoRA adapters, trained by one process each. Leave it out, or give a "
            "rank of 1 or more, without torchrun."
        )
    runtime, parts = 0.0, [folder / f"part{number}" for number in range(settings.averaged)]
    for number, part in enumerate(parts):
        if not (part / TRAINING).exists():
            # The first as if it were the only one; 32 bits, as transformers wants them.
            own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) if number else seed
            name = f"{label}, {number + 1} of {len(parts)}"
            runtime += train_once(pairs, soft_labels, base, settings, own, part, name)
    average(parts, folder)
    for part in parts:
        (part / TRAINING).unlink()  # first, so that a part that is half gone is not taken for a whole one
        shutil.rmtree(part)
    return runtime


def average(parts: list[Path], folder: Path) -> None:
    """Write into ``folder`` the mean of the adapters in ``parts``: their matrices one below the other, of a rank as
    many times as large, with the same alpha, which peft divides by that rank."""
    import torch
    from safetensors.torch import load_file, save_file

    adapters = [load_file(part / ADAPTER) for part in parts]
    together = {name: torch.cat([one[name] for one in adapters], dim=int("lora_B" in name)) for name in adapters[0]}
    save_file(together, folder / ADAPTER, metadata={"format": "pt"})
    config = json.loads((parts[0] / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    write_json(folder / ADAPTER_CONFIG, config | {"r": len(parts) * config["r"]})
    trainings = [json.loads((part / TRAINING).read_text(encoding="utf-8")) for part in parts]
    losses = [loss for training in trainings for loss in training["loss"]]
    write_json(folder / TRAINING, trainings[0] | {"steps": len(losses), "loss": losses})


def train_once(
    pairs: Path, soft_labels: Path | None, base: Path, settings: StudentSettings, seed: int, folder: Path, label: str
) -> float:
    """``train``, once whatever is averaged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, TrainingArguments

    rows = read_rows(pairs)
    if not rows:
        raise KitError(f"{pairs}: no pairs to train on. Generate more paraphrases, or loosen the fidelity filters.")
    torch.set_num_threads(cpu_threads())
    examples = make_examples(rows, base, soft_labels)
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
        fuse_lora(model)  # LoRA's layers, where there are any
        keep_freed_memory()
    checkpoints = folder / "checkpoints"
    dataset = deal(batches(examples, settings, seed))
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
    trainer.micro = plan.micro
    trainer.remove_callback(PrinterCallback)
    runtime = trainer.train(resume_from_checkpoint=_last_complete(checkpoints)).metrics["train_runtime"]
    trainer.accelerator.wait_for_everyone()
    if RANK:
        return runtime
    model.save_pretrained(folder)
    if not whole:
        config = folder / ADAPTER_CONFIG  # peft writes a set in it, in any order
        written = json.loads(config.read_text(encoding="utf-8"))
        write_json(config, written | {"target_modules": sorted(written["target_modules"])})
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    training = {"steps": len(losses), "loss": losses, "loss_unit": "nats per label token"}
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card, a form to be filled in
    shutil.rmtree(checkpoints)
    write_json(folder / TRAINING, training)
    return runtime


@decides_nothing
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


@decides_nothing
def _plan(base: Path, examples: list[dict[str, Any]], settings: StudentSettings) -> Training:
    """How a batch of the longest pairs fits into what is free, the weights being there already."""
    device, shape = find_device(), Shape.of(base)
    longest = max(example["length"] for example in examples)
    labels = max(count_labels([example]) for example in examples)
    shared = len(common_prefix([example["input_ids"] for example in examples]))
    share = -(-settings.batch_size // WORLD_SIZE)
    room = 0.9 * device.free - adapter_bytes(shape, settings.rank)
    return fit_training(shape, settings.rank, share, longest, shared, share * labels, room, device)


def _trainer_class() -> type:
    """Trainer with the losses below (a function because importing transformers' Trainer takes seconds)."""
    import torch
    from transformers import Trainer

    class StudentTrainer(Trainer):
        micro: int  # pairs that go through the model at once

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
                    batch = self._prepare_inputs(collate(part))
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
                say(f"out of memory: from here {self.micro} pairs at a time, with the same batch", flush=True)
                return None
            return total

    return StudentTrainer


@decides_nothing
def _callback(label: str) -> Any:
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """One bar per student, and in every checkpoint that was written to its end a list of its files."""

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
            if not RANK:  # whose process writes the weights
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                write_json(checkpoint / COMPLETE, _sizes(checkpoint))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Progress()


def _last_complete(checkpoints: Path) -> str | None:
    """The newest checkpoint that is whole; those that were not written, or not removed, to the end are removed."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if _is_whole(path)]
    for path in set(found) - set(whole):
        shutil.rmtree(path, ignore_errors=RANK > 0)
    return str(whole[-1]) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        listed = dict(json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False
    return listed.items() <= _sizes(checkpoint).items()  # other processes add files of their own


def _sizes(checkpoint: Path) -> dict[str, int]:
    """The sizes in bytes of a checkpoint's files."""
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


# ---- what a student is trained on: token ids with labels, and the batches of all epochs in their order


def make_examples(rows: list[dict[str, Any]], base: Path, soft_labels: Path | None = None) -> list[dict[str, Any]]:
    """Token ids of each pair: ``input_ids``, ``labels`` (IGNORED over the prompt), ``length``; with soft labels also
    ``top_ids`` and ``top_logprobs`` [label tokens, k]. Tokens of its paraphrase that a row has ``masked``
    ({"places", "of": all its tokens}) are shown to the student and not learned."""
    tokenizer = ChatTokenizer(base)
    examples: list[dict[str, Any]] = []
    for row in rows:
        asked = student_messages(row["source"])
        if "system" in row:
            asked = labelling_messages(row["system"], row["source"])
        prompt, (completion,) = tokenizer.answered(asked, row["text"])
        examples.append(
            {
                "input_ids": prompt + completion,
                "labels": [IGNORED] * len(prompt) + completion,
                "length": len(prompt) + len(completion),
            }
        )
    if soft_labels is not None:
        _attach_soft_labels(examples, soft_labels)
    for row, example in zip(rows, examples, strict=True):
        if "masked" in row:
            _mask(example, row["masked"])
    return [example for example in examples if count_labels([example])]


def _mask(example: dict[str, Any], masked: dict[str, Any]) -> None:
    """Take the tokens at these places of the paraphrase out of the loss."""
    tokens = count_labels([example])
    if tokens != masked["of"] or not set(masked["places"]) <= set(range(tokens)):
        raise KitError(
            f"masked tokens {masked['places']} of {masked['of']}: the paraphrase has {tokens} in the student's "
            "tokenizer. Mask them for this model."
        )
    for place in masked["places"]:
        example["labels"][place - tokens] = IGNORED
    if "top_ids" in example:
        left = [place for place in range(tokens) if place not in masked["places"]]
        example["top_ids"], example["top_logprobs"] = example["top_ids"][left], example["top_logprobs"][left]


def _attach_soft_labels(examples: list[dict[str, Any]], soft_labels: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(soft_labels)
    completions = [[token for token in example["labels"] if token != IGNORED] for example in examples]
    if tensors["tokens"].tolist() != [token for completion in completions for token in completion]:
        raise KitError(
            f"--soft-labels {soft_labels}: they are of other pairs, or of another model. Make them of these pairs with "
            "`python run.py label`."
        )
    lengths = [len(completion) for completion in completions]
    distributions = zip(tensors["ids"].split(lengths), tensors["logprobs"].split(lengths), strict=True)
    for example, (ids, logprobs) in zip(examples, distributions, strict=True):
        example["top_ids"], example["top_logprobs"] = ids.long(), logprobs.float()


def batches(examples: list[dict[str, Any]], settings: StudentSettings, seed: int) -> list[list[dict[str, Any]]]:
    """The batches of all epochs: examples of similar length together, in random order."""
    random = np.random.default_rng(seed)
    size, result = settings.batch_size, []
    for _ in range(settings.epochs):
        shuffled = [examples[i] for i in random.permutation(len(examples))]
        # Padding is wasted work: 9% of the tokens grouped by length, 28% shuffled.
        ordered = sorted(shuffled, key=lambda example: example["length"])
        groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        result += [groups[i] for i in random.permutation(len(groups))]
    return result


def deal(whole: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The data set in the order in which Trainer deals it to WORLD_SIZE processes: of each batch, every process's
    ``examples``, with the number of ``label_tokens`` in the whole batch, by which all divide their loss."""
    result = []
    for batch in whole:
        label_tokens = count_labels(batch)
        result += [{"examples": batch[rank::WORLD_SIZE], "label_tokens": label_tokens} for rank in range(WORLD_SIZE)]
    return result


# ---- what it minimises: the loss of its text, or of the teacher's distributions


IGNORED = -100  # torch's cross_entropy leaves these labels out


def count_labels(examples: list[dict[str, Any]]) -> int:
    """The label tokens of ``examples``."""
    return sum(token != IGNORED for example in examples for token in example["labels"])


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch, right-padded with a token that nothing looks at; soft labels, where the examples have them,
    concatenated in the examples' order."""
    import torch

    width = max(example["length"] for example in examples)

    def padded(name: str, filler: int) -> Any:
        return torch.tensor([e[name] + [filler] * (width - e["length"]) for e in examples])

    result = {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
    }
    for name in ("top_ids", "top_logprobs"):
        if name in examples[0]:
            result[name] = torch.cat([example[name] for example in examples])
    return result


def label_logits(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """The logits where there is a label, float [label tokens, vocabulary], and those labels.

    ``model`` attends by ``forward_shared_prefix``: the system prompt and the request's first words are half of all
    tokens and the same in every row.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    tokens, labels = batch["input_ids"], batch["labels"]
    first_label = int((labels != IGNORED).int().argmax(1).min())
    shared = min(
        len(common_prefix(tokens.tolist())), first_label - 1
    )  # every label and what predicts it are a row's own
    # Nothing asks what follows the last token. (Of shorter rows, padding is cut off.)
    hidden = forward_shared_prefix(causal.get_decoder(), tokens[:, :-1], shared)
    labels = labels[:, shared + 1 :]
    mask = labels != IGNORED
    return causal.get_output_embeddings()(hidden[mask]).float(), labels[mask]


def soft_loss(logits: Any, top_ids: Any, top_logprobs: Any) -> Any:
    """KL(teacher || student) in nats per label token, over the teacher's k likeliest tokens and the rest as one.

    Merging the rest into one outcome can only lower the divergence; it stays zero when the two agree.
    """
    import torch

    student = torch.log_softmax(logits, dim=-1).gather(1, top_ids)
    kept = (top_logprobs.exp() * (top_logprobs - student)).sum(1)
    smallest = 1e-7  # float32 resolves no smaller tail
    teacher_tail = (1 - top_logprobs.exp().sum(1)).clamp_min(smallest)
    student_tail = (1 - student.exp().sum(1)).clamp_min(smallest)
    return (kept + teacher_tail * (teacher_tail.log() - student_tail.log())).mean()


# ---- a batch whose rows begin alike, sent through the model as one sequence: the shared beginning once, then the rest
# of every row. Only attention knows about rows. So every matrix product has all of the batch's tokens, and gradients
# flow back through the shared keys and values by themselves. For a student's batches, where half of all tokens are
# shared, a step takes 0.6 of the time of padded rows, with the same numbers.


SHARED_PREFIX = "shared_prefix"


def use_shared_prefix(model: Any) -> None:
    """Switch ``model``'s attention; from then on only ``forward_shared_prefix`` may call it."""
    from transformers import AttentionInterface

    AttentionInterface.register(SHARED_PREFIX, _attend_shared_prefix)
    model.set_attn_implementation(SHARED_PREFIX)


def forward_shared_prefix(decoder: Any, tokens: Any, prefix: int) -> Any:
    """The hidden states [rows, width - prefix, hidden] that a decoder gives for ``tokens`` [rows, width] after their
    first ``prefix``, which all rows share. Rows may be padded on the right: nothing looks ahead."""
    import torch

    rows, width = tokens.shape
    flat = torch.cat([tokens[0, :prefix], tokens[:, prefix:].flatten()])
    positions = torch.arange(width, device=tokens.device)
    positions = torch.cat([positions[:prefix], positions[prefix:].repeat(rows)])
    output = decoder(
        input_ids=flat[None], position_ids=positions[None], use_cache=False, shared_prefix=prefix, shared_by=rows
    )
    return output.last_hidden_state[0, prefix:].unflatten(0, (rows, width - prefix))


def _attend_shared_prefix(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    shared_prefix: int = 0,
    shared_by: int = 1,
    **_: Any,
) -> tuple[Any, None]:
    """Attention for transformers' interface: query [1, heads, tokens, head], key and value [1, key heads, tokens, head]
    to [1, tokens, heads, head]; every row attends to the shared prefix and to itself."""
    import torch

    groups = query.shape[1] // key.shape[1]
    width = (query.shape[2] - shared_prefix) // shared_by

    def own(states: Any) -> Any:
        return states[0, :, shared_prefix:].unflatten(1, (shared_by, width)).transpose(0, 1)

    def whole(states: Any) -> Any:
        shared = states[:, :, :shared_prefix]
        return torch.cat([shared.expand(shared_by, -1, -1, -1), own(states)], dim=2)

    def attend(query: Any, key: Any, value: Any) -> Any:
        of, to = query.shape[2], key.shape[2]
        mask = torch.ones(of, to, dtype=torch.bool, device=query.device).tril(to - of)
        if sliding_window is not None:
            mask = mask.triu(to - of - sliding_window + 1)
        # The query heads that share a key head stand one below the other: no copies of keys and values.
        query = query.unflatten(1, (-1, groups)).flatten(2, 3)
        mask = mask.repeat(groups, 1)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return output.unflatten(2, (groups, of)).flatten(1, 2).transpose(1, 2)

    first = attend(*(states[:, :, :shared_prefix] for states in (query, key, value)))
    rest = attend(own(query), whole(key), whole(value))
    return torch.cat([first, rest.flatten(0, 1)[None]], dim=1), None


# ---- LoRA's forward and backward pass on a CPU, with the sums done inside the matrix products. peft adds ``scaling *
# B(A(x))`` to a layer's output in passes of its own over memory, and autograd adds their gradients in more of them. On
# two AVX-512 cores a student's step takes 1.6 s this way, 1.85 s peft's way (SmolLM2-135M, rank 8, batch 16), with the
# same numbers. ``torch.compile`` had not made its first step after three minutes there, longer than the whole training
# of the laptop preset.


def fuse_lora(model: Any) -> None:
    """Give every LoRA layer of a peft model that has plain float weights the passes below."""
    import torch
    from peft.tuners.lora.layer import Linear

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
            inner = x @ a.t()
            output = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
            context.save_for_backward(x, inner, weight, a, b)
            context.scaling = scaling
            return output.addmm_(inner, b.t(), alpha=scaling)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            x, inner, weight, a, b = context.saved_tensors
            of_b = (gradient.t() @ inner).mul_(context.scaling)
            of_inner = (gradient @ b).mul_(context.scaling)
            of_x = (gradient @ weight).addmm_(of_inner, a) if context.needs_input_grad[0] else None
            return of_x, None, None, of_inner.t() @ x, of_b, None

    def forward(layer: Any, x: Any) -> Any:
        if layer.disable_adapters:
            return layer.base_layer(x)
        (name,) = layer.active_adapters
        output = Fused.apply(
            x.reshape(-1, x.shape[-1]),
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            layer.scaling[name],
        )
        return output.view(*x.shape[:-1], -1)

    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear:
            layer.forward = MethodType(forward, layer)
