"""PEFT LoRA adapter -> GGUF adapter that llama.cpp loads, for every architecture in ``models.ARCHITECTURES``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.estimate import Shape
from kit.models import ARCHITECTURES, gguf_metadata


def convert(adapter: Path, model: Path, target: Path) -> None:
    """Write the PEFT adapter in the folder ``adapter``, trained on the prepared model in the folder ``model``, as the
    file ``target``.

    PEFT computes W x + (alpha / r) B A x; llama.cpp does the same from ``lora_a`` [r, in], ``lora_b`` [out, r] and
    ``adapter.lora.alpha``. Raises KitError for an incomplete adapter, one of another model, one that is more than a
    plain LoRA of the blocks' linear layers, and an architecture that is not supported.
    """
    from gguf import GGUFWriter
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    gguf = model / "base.gguf"
    architecture, shape, name_of = naming(gguf)
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        alpha = float(config["lora_alpha"])
        tensors = load_file(adapter / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise KitError(
            f"{adapter}: not a PEFT adapter folder ({error}). Train one with `python run.py train`."
        ) from None
    for option in ("use_rslora", "alpha_pattern"):
        if config.get(option):
            raise KitError(
                f"{adapter}: {option} scales by something else than alpha / r, which a GGUF cannot say. "
                "Train without it."
            )

    # The output layer is none of these: where it shares its weights with the embeddings, llama.cpp has no name for it.
    layers = shape.matrices

    writer = GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in sorted(tensors.items()):
        module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        tensor_name = name_of(module) or ""
        layer = tensor_name.rpartition(".")[2]
        if layer not in layers or side not in ("lora_A", "lora_B"):
            raise KitError(
                f"{adapter}: {name} has no counterpart in the model's {architecture} GGUF. "
                "Train a plain LoRA on the linear layers of the model's own blocks only."
            )
        into, out = layers[layer]
        width, needed = (tensor.shape[1], into) if side == "lora_A" else (tensor.shape[0], out)
        if width != needed:
            raise KitError(
                f"{adapter}: {name} has the width {width}, {gguf} needs {needed}: the adapter was trained on another "
                "model. Give the model it was trained on."
            )
        if side == "lora_B":
            tensor = rows_for_gguf(tensor, architecture, layer, shape)
        writer.add_tensor(f"{tensor_name}.weight.{side.lower()}", tensor.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def naming(gguf: Path) -> tuple[str, Shape, Callable[[str], str | None]]:
    """A GGUF's architecture and shape, and what it calls a module of transformers'. KitError where the architecture is
    not supported."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = str(gguf_metadata(gguf)["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise KitError(
            f"{gguf}: adapters of the architecture {architecture!r} cannot be converted; "
            f"supported are {', '.join(ARCHITECTURES)}. Choose a model of one of these."
        )
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    shape = Shape.of(gguf)
    return architecture, shape, get_tensor_name_map(arch, shape.layers).get_name


def rows_for_gguf(rows: Any, architecture: str, layer: str, shape: Shape) -> Any:
    """Rows [out, width] of a layer from transformers' order to the GGUF's: those of q and k of a llama, where the two
    numbers that a rotary embedding turns together are neighbours and not half a head apart.

    llama.cpp's converter does so to llama and mistral (one architecture in GGUF), not to qwen and gemma.
    """
    if architecture != "llama" or layer not in ("attn_q", "attn_k"):
        return rows
    return rows.reshape(-1, 2, shape.head // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
