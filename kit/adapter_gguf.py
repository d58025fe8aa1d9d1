"""PEFT LoRA adapter -> GGUF adapter that llama.cpp loads (architectures: llama, qwen2)."""

import json
from pathlib import Path

from kit.errors import KitError
from kit.models import ARCHITECTURES, gguf_metadata


def convert(adapter: Path, gguf: Path, target: Path) -> None:
    """Write the PEFT adapter in the folder ``adapter``, trained on the model of ``gguf``, as the file ``target``.

    PEFT computes W x + (alpha / r) B A x; llama.cpp does the same from ``lora_a`` [r, in], ``lora_b`` [out, r] and
    ``adapter.lora.alpha``. Raises KitError for an incomplete adapter or an architecture that is not supported.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    metadata = gguf_metadata(gguf)
    architecture = str(metadata["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise KitError(
            f"{gguf}: adapters of the architecture {architecture!r} cannot be converted; "
            f"supported are {', '.join(ARCHITECTURES)}. Choose a model of one of these."
        )
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(adapter / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise KitError(
            f"{adapter}: not a PEFT adapter folder ({error}). Train one with `python run.py train`."
        ) from None

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(MODEL_ARCH(arch), int(metadata[f"{architecture}.block_count"]))
    heads = int(metadata[f"{architecture}.attention.head_count"])
    kv_heads = int(metadata.get(f"{architecture}.attention.head_count_kv", heads))

    writer = GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, tensor in sorted(tensors.items()):
        module, side, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        if architecture == "llama" and side == "lora_B":
            # llama.cpp's converter stores the rows of q and k so that rotary pairs are neighbours.
            if module.endswith("q_proj"):
                tensor = _interleave(tensor, heads)
            elif module.endswith("k_proj"):
                tensor = _interleave(tensor, kv_heads)
        tensor_name = names.get_name(module)
        if tensor_name is None:
            raise KitError(
                f"{adapter}: {module} has no counterpart in a {architecture} GGUF. Train on linear layers only."
            )
        writer.add_tensor(f"{tensor_name}.weight.{side.lower()}", tensor.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(rows, heads: int):  # type: ignore[no-untyped-def]
    """Rows [out, r] from the halves-of-a-head order of transformers to the neighbouring-pairs order of GGUF."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape).copy()
