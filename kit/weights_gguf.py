"""A model whose every weight was trained -> the model that llama.cpp loads in the base's place."""

import shutil
from pathlib import Path
from typing import Any

from kit import chat
from kit.adapter_gguf import naming, rows_for_gguf


def convert_weights(trained: Path, model: Path, folder: Path) -> None:
    """Write ``base.gguf`` and ``chat.json`` into ``folder``: those of the prepared model in the folder ``model`` with
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
    shutil.copy2(model / chat.FILE, folder / chat.FILE)


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: values for path in sorted(folder.glob("*.safetensors")) for name, values in load_file(path).items()}
