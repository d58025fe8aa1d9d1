"""What was trained -> what llama.cpp loads: a PEFT LoRA adapter, for every architecture in ``models.ARCHITECTURES``,
or a model whose every weight was trained, in the base's place.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit import KitError, models
from kit.models import Shape, check_architecture, gguf_metadata, shown

MOST_RANK = 2**16  # of an adapter, and its alpha; many times the largest in use
# What a PEFT configuration may say without changing what the tensors compute. Whatever else it says, now or in a later
# version of peft, is another kind of adapter.
SAYS_NOTHING = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r"),
    *("lora_alpha", "lora_dropout", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "ensure_weight_tying"),
    "modules_to_save",  # what it names is among the tensors
}
PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}


def convert_adapter(adapter: Path, model: Path, target: Path) -> None:
    """Write the PEFT adapter in the folder ``adapter``, trained on the prepared model in the folder ``model``, as the
    file ``target``, in F16: half the size, and what every measurement of a student is of.

    PEFT computes W x + (alpha / r) B A x; llama.cpp does the same from ``lora_a`` [r, in], ``lora_b`` [out, r] and
    ``adapter.lora.alpha``. Raises KitError for an incomplete adapter, one of another model, one that is more than a
    plain LoRA of the blocks' linear layers, and an architecture that is not supported.
    """
    from gguf import GGUFWriter

    gguf = model / "base.gguf"
    architecture, shape, name_of = naming(gguf)
    alpha, tensors = read_adapter(adapter)

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
                f"{adapter}: {shown(name)} has no counterpart in the model's {architecture} GGUF. "
                "Train a plain LoRA on the linear layers of the model's own blocks only."
            )
        into, out = layers[layer]
        width, needed = (tensor.shape[1], into) if side == "lora_A" else (tensor.shape[0], out)
        if width != needed:
            raise KitError(
                f"{adapter}: {shown(name)} has the width {width}, {gguf} needs {needed}: the adapter was trained on "
                "another model. Give the model it was trained on."
            )
        if side == "lora_B":
            tensor = rows_for_gguf(tensor, architecture, layer, shape)
        writer.add_tensor(f"{tensor_name}.weight.{side.lower()}", _half(tensor, adapter, name))
    for name in tensors:
        if (twin := name.replace(".lora_A.", ".lora_B.")) not in tensors:
            raise KitError(f"{adapter}: {shown(name)} is there without {shown(twin)}. Train or download it again.")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _half(tensor: Any, adapter: Path, name: str) -> Any:
    """The tensor in F16. KitError where a number is too large for it; the largest of three recorded students' is 0.06,
    and 0.6% of theirs lose digits (below 6e-5)."""
    import numpy as np

    if (np.abs(tensor) > np.finfo(np.float16).max).any():
        raise KitError(f"{adapter}: {shown(name)} has a number too large for half precision. Train it again.")
    return tensor.astype(np.float16)


def read_adapter(adapter: Path) -> tuple[float, dict[str, Any]]:
    """The alpha and the tensors by name (float32) of the PEFT adapter in the folder ``adapter``. Raises KitError where
    the one is no scale, the others are not matrices of finite numbers, their rank is not what the adapter says, or it
    is more than its tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = models.read_object(adapter / "adapter_config.json")
        for option, value in sorted(config.items(), key=lambda one: one[0] != "peft_type"):  # which says most
            if (value not in PLAIN[option]) if option in PLAIN else (value and option not in SAYS_NOTHING):
                raise KitError(
                    f"{adapter}: with {option}={shown(value)} it is more than a plain LoRA of the base's own weights, "
                    "scaled by alpha / r, which is all that a GGUF can say. Train without it."
                )
        alpha, rank = config["lora_alpha"], config["r"]
        if type(rank) is not int or not 1 <= rank <= MOST_RANK:
            raise ValueError(f"its r is {shown(rank)}")
        if type(alpha) not in (int, float) or not 0 < alpha <= MOST_RANK:
            raise ValueError(f"its lora_alpha is {shown(alpha)}")
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name, tensor in tensors.items():
            if tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{shown(name)} is no matrix of finite numbers")
            own = tensor.shape[0] if ".lora_A." in name else tensor.shape[1] if ".lora_B." in name else rank
            if own != rank and not config.get("rank_pattern"):
                raise ValueError(f"{shown(name)} has the rank {own}, and its r is {rank}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise KitError(
            f"{adapter}: not a PEFT adapter folder ({shown(str(error))}). Train one with `python run.py train`."
        ) from None
    return float(alpha), {name: tensor.float().numpy() for name, tensor in tensors.items()}


def naming(gguf: Path) -> tuple[str, Shape, Callable[[str], str | None]]:
    """A GGUF's architecture and shape, and what it calls a module of transformers'. KitError where the architecture is
    not supported."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    check_architecture(gguf_metadata(gguf).get("general.architecture"), gguf)
    architecture = str(gguf_metadata(gguf)["general.architecture"])
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


# ---- a model whose every weight was trained


def convert_weights(trained: Path, model: Path, folder: Path) -> None:
    """Write into ``folder`` what an engine needs of the prepared model in the folder ``model``, its ``base.gguf`` with
    the weights of the transformers model in the folder ``trained``, each in F16 where the base's is, else in F32."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

    architecture, shape, name_of = naming(model / "base.gguf")
    weights = {}
    for name, values in _weights(trained).items():
        module, _, kind = name.rpartition(".")
        tensor_name = name_of(module) or ""
        if kind == "weight":
            values = rows_for_gguf(values, architecture, tensor_name.rpartition(".")[2], shape)
        if architecture == "gemma3" and module.endswith("norm"):
            values = values + 1  # transformers adds it in the forward pass
        weights[f"{tensor_name}.{kind}"] = values

    reader = GGUFReader(model / "base.gguf")
    different = {tensor.name for tensor in reader.tensors} ^ set(weights)
    if different - {"rope_freqs.weight"}:  # a table, no weight
        raise RuntimeError(f"{trained}: its weights and those of {model} are not the same: {sorted(different)}")
    writer = GGUFWriter(folder / "base.gguf", architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in reader.tensors:
        half = tensor.tensor_type == GGMLQuantizationType.F16
        values = weights.get(tensor.name, tensor.data)
        writer.add_tensor(tensor.name, values.astype("float16" if half else "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in (models.CHAT_FILE, models.TOKENIZER_FILE):
        shutil.copy2(model / name, folder / name)


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: values for path in sorted(folder.glob("*.safetensors")) for name, values in load_file(path).items()}
