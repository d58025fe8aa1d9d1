"""A model whose every weight was trained -> the model that llama.cpp loads in the base's place."""

import shutil
from pathlib import Path
from typing import Any

from kit import chat
from kit.adapter_gguf import interleave
from kit.estimate import Shape
from kit.models import gguf_metadata


def convert_weights(trained: Path, model: Path, folder: Path) -> None:
    """Write ``base.gguf`` and ``chat.json`` into ``folder``: those of the prepared model in the folder ``model`` with
    the weights of the transformers model in the folder ``trained``, each in F16 where the base's is, else in F32."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, GGUFWriter, get_tensor_name_map

    gguf = model / "base.gguf"
    architecture, shape = str(gguf_metadata(gguf)["general.architecture"]), Shape.of(gguf)
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, shape.layers)
    weights = {}
    for name, values in _weights(trained).items():
        module, _, kind = name.rpartition(".")
        tensor_name = names.get_name(module)
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            values = interleave(values, shape.head)
        if architecture == "gemma3" and module.endswith("norm"):
            values = values + 1  # transformers adds it in the forward pass
        weights[f"{tensor_name}.{kind}"] = values

    reader = GGUFReader(gguf)
    writer = GGUFWriter(folder / "base.gguf", architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in reader.tensors:
        half = tensor.tensor_type == GGMLQuantizationType.F16
        values = weights.get(tensor.name, tensor.data)  # a table of rotary frequencies is no weight
        writer.add_tensor(tensor.name, values.astype("float16" if half else "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shutil.copy2(model / chat.FILE, folder / chat.FILE)


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: values for path in sorted(folder.glob("*.safetensors")) for name, values in load_file(path).items()}
