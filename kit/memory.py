"""How many bytes a model's work takes, before anything is loaded; and what fits: batch, checkpointing, width.

The training estimate counts what autograd keeps for the backward pass, tensor by tensor; on a CPU a test holds it to
within a quarter of torch's own measurement. On a GPU it is the same formula with the sizes of mixed precision, not
measured.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit import KitError
from kit.models import EVERY_WEIGHT, Shape

GIB = 2**30
# The CUDA context and libraries, bitsandbytes' expanded matrix and the allocator's gaps.
GPU_OVERHEAD = 0.9 * GIB
CPU_OVERHEAD = 0.6 * GIB  # python, torch and transformers, once imported
LLAMA_OVERHEAD = 0.3 * GIB  # python and llama.cpp
MOST_SEQUENCES = 256  # sampled together by transformers: matrix products gain little from more rows


@dataclass(frozen=True)
class Device:
    """Where transformers runs: ``kind`` is cuda or cpu; ``free`` and ``total`` bytes of its memory."""

    kind: str
    name: str
    free: int
    total: int


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


@dataclass(frozen=True)
class Training:
    """How a student's batch goes through the model: ``micro`` pairs at a time, with or without gradient checkpointing;
    ``activations`` bytes."""

    micro: int
    checkpointing: bool
    activations: float


def weight_bytes(shape: Shape, nf4: bool, device: Device) -> float:
    """Bytes of the weights in transformers. NF4 with double quantisation: half a byte, an 8-bit scale per 64 and a
    float32 per 256 of those (QLoRA, arXiv 2305.14314, section 3)."""
    full = 2 if device.kind == "cuda" else 4
    return shape.linear * (0.5 + 1 / 64 + 4 / (64 * 256) if nf4 else full) + shape.dense * full


def adapter_bytes(shape: Shape, rank: int) -> float:
    """Bytes that training adds to a model: of a LoRA adapter its weights, gradients and AdamW's two moments in float32;
    where every weight is trained, the last two."""
    return shape.trained(rank) * (12.0 if rank == EVERY_WEIGHT else 16.0)


def activation_bytes(
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
            size = activation_bytes(
                shape, rank, micro, length, shared, -(-labels * micro // batch), checkpointing, device
            )
            if size <= room:
                return Training(micro, checkpointing, size)
    raise KitError(
        f"{device.name}: {device.free / GIB:.1f} GiB are free, and training needs {gib(size - room)} more even "
        "with one pair at a time. Free memory, or choose a smaller model with --model or a smaller --preset."
    )


def halvings(number: int) -> Iterator[int]:
    """``number``, its half, and so on down to 1."""
    while number:
        yield number
        number //= 2


def sampling_width(shape: Shape, room: int, free: float, kind: str) -> int:
    """How many sequences with ``room`` tokens of their own transformers samples together on a cuda or cpu device."""
    return max(1, min(MOST_SEQUENCES, int(0.8 * free / sequence_bytes(shape, room, kind))))


def sequence_bytes(shape: Shape, room: int, kind: str) -> float:
    """Bytes of one sequence being sampled: keys and values of its own tokens, and its distribution over the vocabulary
    in the several forms that sampling needs (20 bytes a token of it)."""
    return room * kv_bytes(shape) * (1 if kind == "cuda" else 2) + 20.0 * shape.vocabulary


def kv_bytes(shape: Shape) -> int:
    """Bytes of one token's keys and values in 16 bits."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head


def llama_cpp_bytes(shape: Shape, bits: float) -> float:
    """Bytes of llama.cpp with a model: its weights, of ``bits`` each; its KV cache; the logits of what is scored
    together, computed and copied, with their exponentials. (Of Qwen2.5-0.5B in F32: 3.2 GiB; evaluation was measured at
    2.8, teaching at 3.4.)"""
    from kit.engine_llama import CELLS, SCORED, WIDTH

    logits = 3 * 4 * SCORED * shape.vocabulary
    return LLAMA_OVERHEAD + shape.parameters * bits / 8 + (WIDTH + 1) * CELLS * kv_bytes(shape) + logits


def gib(size: float) -> str:
    """A number of bytes as a person reads it."""
    return f"{size / GIB:.1f} GiB"
