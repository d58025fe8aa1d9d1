"""How much memory each stage needs, before anything is loaded; and what follows: preset, batch, checkpointing, width.

The training estimate counts what autograd keeps for the backward pass, tensor by tensor; on a CPU a test holds it to
within a quarter of torch's own measurement. On a GPU it is the same formula with the sizes of mixed precision, not
measured.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.errors import KitError
from kit.experiment import EVERY_WEIGHT, Experiment
from kit.models import cpu_threads, find_config, gguf_metadata, is_gguf, read_config

GIB = 2**30
Q4_K_M = 4.85  # bits of a weight in what llama.cpp evaluates for a transformers folder
# The CUDA context and libraries, bitsandbytes' expanded matrix and the allocator's gaps.
GPU_OVERHEAD = 0.9 * GIB
CPU_OVERHEAD = 0.6 * GIB  # python, torch and transformers, once imported
# Tokens of a training pair before any exists: its longest measured over all source sentences, the beginning that all
# pairs share, and the paraphrase with its end token (SmolLM2's tokens; other vocabularies are no smaller).
LENGTH, SHARED, LABELS = 73, 30, 19
PROMPT = 200  # tokens of a teacher's conversation (SmolLM2's: 135 to 150)
MOST_SEQUENCES = {"cuda": 128, "cpu": 48}  # sampled together by transformers

# A GPU's throughput over two cores': 2 TFLOP/s in training and generation, against 15 GFLOP/s. A guess, not measured.
GPU_SPEED = 150

# Free GPU memory (GiB) from which a preset is chosen, the largest first.
GPU_PRESETS = {"gpu-24gb": 20.0, "gpu-12gb": 10.0, "gpu-8gb": 6.3}


@dataclass(frozen=True)
class Device:
    """Where transformers runs: ``kind`` is cuda or cpu; ``free`` and ``total`` bytes of its memory."""

    kind: str
    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. ``linear`` parameters lie in the layers' matrices, ``dense`` ones in embeddings and
    output layer, which bitsandbytes leaves as they are."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, path: Path) -> "Shape":
        """The shape of a GGUF file or a transformers folder."""
        if path.suffix == ".gguf":
            metadata = gguf_metadata(path)
            name = metadata["general.architecture"]
            heads = int(metadata[f"{name}.attention.head_count"])
            hidden = int(metadata[f"{name}.embedding_length"])
            return cls(
                layers=int(metadata[f"{name}.block_count"]),
                hidden=hidden,
                inner=int(metadata[f"{name}.feed_forward_length"]),
                heads=heads,
                kv_heads=int(metadata.get(f"{name}.attention.head_count_kv", heads)),
                head=int(metadata.get(f"{name}.attention.key_length", hidden // heads)),
                vocabulary=metadata["tokens"],
                tied=not metadata["output"],
            )
        config = read_config(path)
        try:
            heads = config.num_attention_heads
            return cls(
                layers=config.num_hidden_layers,
                hidden=config.hidden_size,
                inner=config.intermediate_size,
                heads=heads,
                kv_heads=config.num_key_value_heads,
                head=getattr(config, "head_dim", None) or config.hidden_size // heads,
                vocabulary=config.vocab_size,
                tied=config.tie_word_embeddings,
            )
        except AttributeError as error:
            raise KitError(f"{path}: config.json is not a text model's ({error}). Choose another model.") from None

    @property
    def parameters(self) -> int:
        return self.linear + self.dense

    @property
    def linear(self) -> int:
        return self.layers * sum(into * out for into, out in self.matrices.values())

    @property
    def dense(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def trained(self, rank: int) -> int:
        """Parameters that training changes: a LoRA adapter's on every linear layer, or with ``EVERY_WEIGHT`` all."""
        lora = self.layers * rank * sum(into + out for into, out in self.matrices.values())
        return self.parameters if rank == EVERY_WEIGHT else lora

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a block, by its name in a GGUF."""
        attention, kv = self.heads * self.head, self.kv_heads * self.head
        return {
            "attn_q": (self.hidden, attention),
            "attn_k": (self.hidden, kv),
            "attn_v": (self.hidden, kv),
            "attn_output": (attention, self.hidden),
            "ffn_gate": (self.hidden, self.inner),
            "ffn_up": (self.hidden, self.inner),
            "ffn_down": (self.inner, self.hidden),
        }


def find_device() -> Device:
    """This process's GPU (LOCAL_RANK chooses among several), else the CPU with its main memory."""
    if (
        os.name == "nt" or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    ):  # else torch's import is in vain
        import torch

        if torch.cuda.is_available():
            index = int(os.environ.get("LOCAL_RANK", "0"))
            free, total = torch.cuda.mem_get_info(index)
            kept = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(
                index
            )  # torch's own, to be used again
            return Device("cuda", torch.cuda.get_device_name(index), free + kept, total)
    import psutil

    memory = psutil.virtual_memory()
    return Device("cpu", "CPU", memory.available, memory.total)


def choose_preset(device: Device) -> tuple[str, str]:
    """The preset for ``device``, and the reason in words."""
    if device.kind == "cpu":
        return "laptop", "no CUDA GPU was found"
    free = f"{device.free / GIB:.1f} GiB are free on {device.name}"
    for preset, needed in GPU_PRESETS.items():
        if device.free >= needed * GIB:
            return preset, f"{free}, it needs {needed:g}"
    return "laptop", f"{free}, too little for {list(GPU_PRESETS)[-1]}"


@dataclass(frozen=True)
class Training:
    """How a student's batch goes through the model: ``micro`` pairs at a time, with or without gradient checkpointing;
    ``activations`` bytes."""

    micro: int
    checkpointing: bool
    activations: float


def weights(shape: Shape, nf4: bool, device: Device) -> float:
    """Bytes of the weights in transformers. NF4 with double quantisation: half a byte, an 8-bit scale per 64 and a
    float32 per 256 of those (QLoRA, arXiv 2305.14314, section 3)."""
    full = 2 if device.kind == "cuda" else 4
    return shape.linear * (0.5 + 1 / 64 + 4 / (64 * 256) if nf4 else full) + shape.dense * full


def adapter(shape: Shape, rank: int) -> float:
    """Bytes that training adds to a model: of a LoRA adapter its weights, gradients and AdamW's two moments in float32;
    where every weight is trained, the last two."""
    return shape.trained(rank) * (12.0 if rank == EVERY_WEIGHT else 16.0)


def activations(
    shape: Shape, rank: int, pairs: int, length: int, shared: int, labels: int, checkpointing: bool, device: Device
) -> float:
    """Bytes that one forward and backward pass over ``pairs`` of ``length`` tokens holds at its peak.

    ``shared``: the tokens that all begin with, computed once; ``labels``: label tokens of all pairs together.
    """
    compute, attention = (2 if device.kind == "cuda" else 4), shape.heads * shape.head
    tokens = shared + pairs * (length - shared)
    # Normalisation keeps its input in float32; every pair has its own copy of the shared keys and values.
    layer = (
        tokens * (2 * 4 * shape.hidden + compute * (2 * shape.hidden + 2 * attention + 4 * shape.inner + 7 * rank))
        + compute * pairs * length * 2 * shape.kv_heads * shape.head
    )
    kept = layer + shape.layers * tokens * shape.hidden * compute if checkpointing else layer * shape.layers
    return kept + 3 * 4.0 * labels * shape.vocabulary  # logits, their log-softmax, its gradient


def fit_training(
    shape: Shape, rank: int, batch: int, length: int, shared: int, labels: int, room: float, device: Device
) -> Training:
    """The largest part of ``batch`` whose activations fit into ``room`` bytes; with gradient checkpointing, which costs
    a second forward pass, where fewer than four pairs would fit without. Raises KitError where not even one does."""
    for checkpointing in (False, True):
        for micro in halvings(batch):
            if not checkpointing and micro < min(4, batch):
                break
            size = activations(shape, rank, micro, length, shared, -(-labels * micro // batch), checkpointing, device)
            if size <= room:
                return Training(micro, checkpointing, size)
    raise KitError(
        f"{device.name}: {device.free / GIB:.1f} GiB are free, and training needs {_gib(size - room)} more even "
        "with one pair at a time. Free memory, or choose a smaller model with --model or a smaller --preset."
    )


def halvings(number: int) -> Iterator[int]:
    """``number``, its half, and so on down to 1."""
    while number:
        yield number
        number //= 2


def sampling_width(shape: Shape, longest: int, free: float, kind: str) -> int:
    """How many sequences of ``longest`` tokens transformers samples together."""
    return max(1, min(MOST_SEQUENCES[kind], int(0.8 * free / sequence(shape, longest))))


def sequence(shape: Shape, longest: int) -> float:
    """Bytes of one sequence being sampled: its keys and values in 16 bits, with a fifth for growing them, and its
    distribution over the vocabulary in the several forms that sampling needs (28 bytes a token of it)."""
    return 1.2 * longest * kv_token(shape) + 28.0 * shape.vocabulary


def kv_token(shape: Shape) -> int:
    """Bytes of one token's keys and values in 16 bits."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head


def llama_cpp(shape: Shape, bits: float) -> float:
    """Bytes of llama.cpp with a model: its weights, of ``bits`` each; its KV cache; the logits of a batch, computed and
    copied, with their exponentials."""
    from kit.decoder import BATCH, CELLS
    from kit.llama import WIDTH

    return shape.parameters * bits / 8 + (WIDTH + 1) * CELLS * kv_token(shape) + 4 * 4 * BATCH * shape.vocabulary


def requirements(exp: Experiment, device: Device) -> list[tuple[str, float, str]]:
    """What each stage of ``exp`` needs: the ``table`` of its model."""
    from kit import prepare

    bits = prepare.BITS[prepare.weight_type()] if is_gguf(exp.model) else Q4_K_M
    return table(exp, Shape.of(find_config(exp.model)), bits, device)


def table(exp: Experiment, shape: Shape, bits: float, device: Device) -> list[tuple[str, float, str]]:
    """A row per stage: its name, the bytes it needs, and what they are. ``bits``: of a weight in llama.cpp.

    Raises KitError where the model does not fit the GPU.
    """
    nf4, rank, batch = exp.student.base == "nf4", exp.student.rank, exp.student.batch_size
    overhead = GPU_OVERHEAD if device.kind == "cuda" else CPU_OVERHEAD
    evaluation = llama_cpp(shape, bits) + CPU_OVERHEAD
    runs = "llama.cpp: weights, KV cache, logits"
    rows = []
    if exp.teacher.endpoint is not None:
        rows.append(("teaching", CPU_OVERHEAD, "at the endpoint"))
    elif exp.teacher.engine == "torch":
        longest = PROMPT + exp.teacher.max_tokens
        fixed = weights(shape, True, device) + overhead
        _refuse_small(device, fixed + sequence(shape, longest))
        width = sampling_width(shape, longest, device.free - fixed, device.kind)
        parts = f"NF4 weights {_gib(weights(shape, True, device))}, {width} sequences together"
        rows.append(("teaching", fixed + width * sequence(shape, longest), parts))
    else:
        rows.append(("teaching", evaluation, runs))
    fixed = weights(shape, nf4, device) + adapter(shape, rank) + overhead
    if device.kind == "cuda":
        _refuse_small(device, fixed)
    room = device.free - fixed if device.kind == "cuda" else max(device.free - fixed, GIB)
    plan = fit_training(shape, rank, batch, LENGTH, SHARED, batch * LABELS, room, device)
    parts = (
        f"{'NF4' if nf4 else 'full'} weights {_gib(weights(shape, nf4, device))}, adapter and optimiser "
        f"{_gib(adapter(shape, rank))}, {plan.micro} x {LENGTH} tokens {_gib(plan.activations)}"
        + (f", {-(-batch // plan.micro)} steps accumulated" if plan.micro < batch else "")
        + (", gradient checkpointing" if plan.checkpointing else "")
    )
    rows.append(("training", fixed + plan.activations, parts))
    return [*rows, ("evaluation", evaluation, runs)]


@dataclass(frozen=True)
class Pace:
    """How many times as long as the embedded model's on two cores an engine's work takes."""

    torch: float
    llama_cpp: float

    def of(self, engine: str) -> float:
        return self.torch if engine == "torch" else self.llama_cpp


def pace(shape: Shape, device: Device) -> Pace:
    """The pace of a model on this machine: by parameters and cores, and by a guess for GPUs."""
    import llama_cpp

    size, cores = shape.parameters / 134.5e6, cpu_threads() / 2
    offloaded = llama_cpp.llama_supports_gpu_offload()
    return Pace(size / (GPU_SPEED if device.kind == "cuda" else cores), size / (GPU_SPEED if offloaded else cores))


def _refuse_small(device: Device, needed: float) -> None:
    if device.kind == "cuda" and needed > device.free:
        raise KitError(
            f"{device.name}: {_gib(device.free)} are free and the model needs at least {_gib(needed)}. Close what else "
            "uses the GPU, or choose a smaller model with --model or a smaller --preset."
        )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
