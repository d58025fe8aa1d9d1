"""A converted adapter says in llama.cpp what it says in torch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from kit import models
from kit.adapter_gguf import convert
from kit.errors import KitError
from kit.llama import LlamaEngine
from kit.prompts import student_messages


@pytest.mark.parametrize(("model", "trained"), [("base", "adapter"), ("tiny_qwen2", "qwen2_adapter")])
def test_a_trained_adapter_gives_the_same_log_probabilities_in_llama_cpp_and_torch(
    model: str, trained: str, request: pytest.FixtureRequest
) -> None:
    gguf, folder = request.getfixturevalue(model), request.getfixturevalue(trained)
    with LlamaEngine(gguf) as engine:
        context = engine.chat(student_messages("The clerk stamped the form twice."))
        continuation = engine.tokenize("Twice the form was stamped by the clerk.")
        engine.use_adapter(folder / "adapter.gguf")
        ids, ours = next(engine.top([(context, [continuation])], 200))[0]
    student = PeftModel.from_pretrained(models.load_torch(gguf), folder)

    def in_torch() -> np.ndarray:
        with torch.no_grad():
            logits = student(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        return np.take_along_axis(torch.log_softmax(logits, -1).numpy(), ids.astype(np.int64), axis=1)

    # Without an adapter the two engines differ by 0.003 nats on average (activations rounded to F16); a wrong head
    # permutation or scale moves these trained adapters by far more.
    assert np.abs(ours - in_torch()).mean() < 0.02
    with student.disable_adapter():
        assert np.abs(ours - in_torch()).mean() > 0.2, "an adapter that does nothing proves nothing"


def test_an_architecture_without_a_conversion_is_refused(adapter: Path, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(KitError, match="mamba.*llama, qwen2"):
        convert(adapter, path, tmp_path / "adapter.gguf")


def test_a_folder_that_holds_no_adapter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="not a PEFT adapter"):
        convert(tmp_path, base, tmp_path / "adapter.gguf")
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(KitError, match="broken"):
        convert(broken, base, tmp_path / "adapter.gguf")


def test_an_adapter_configuration_names_no_path_of_this_machine(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert "/" not in str(config["base_model_name_or_path"] or "")
