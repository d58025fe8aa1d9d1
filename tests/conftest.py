"""What the tests share: the embedded model, a tiny random qwen2, and one trained adapter of each."""

import json
from functools import cache
from pathlib import Path

import pytest
import tiny
from gguf import GGMLQuantizationType, GGUFReader

from kit import models, models_prepare, student
from kit.engine_llama import LlamaEngine
from kit.experiment import StudentSettings
from kit.store import write_rows
from kit.student_gguf import convert_adapter

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [
    {"sentence": f"s{i}", "source": source, "text": text}
    for i, (source, text) in enumerate(
        [
            ("The clerk stamped the form twice.", "Twice the form was stamped by the clerk."),
            ("Rain delayed the last train home.", "The last train home was late because of rain."),
            ("My uncle repaired the old radio.", "The old radio was repaired by my uncle."),
            ("The bakery sells out before noon.", "By noon the bakery has nothing left."),
            ("She keeps her receipts in a tin box.", "A tin box holds her receipts."),
            ("The bridge closes for repairs in May.", "In May the bridge is shut for repairs."),
            ("Two screws were missing from the kit.", "The kit lacked two screws."),
            ("He reads the newspaper after dinner.", "After dinner he reads the newspaper."),
        ]
    )
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes (pytest-xdist) each begins with whole runs: begun last, one would keep all waiting."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, prepared."""
    folder = tmp_path_factory.mktemp("base")
    models_prepare.prepare(models.find(models.EMBEDDED), folder)
    return folder


@pytest.fixture(scope="session")
def engine(base: Path):
    """llama.cpp with the embedded model; tests leave it without an adapter."""
    with LlamaEngine(base) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer qwen2 with the embedded model's vocabulary, prepared."""
    return tiny.make("qwen2", tmp_path_factory.mktemp("qwen2"))


def checksums(results: Path) -> dict[str, dict[str, str]]:
    """Those of every artifact's files, by stage and key: what two runs of one command must agree in."""
    return {
        str(path.parent.relative_to(results)): json.loads(path.read_text(encoding="utf-8"))["files"]
        for path in (results / "artifacts").glob("*/*/manifest.json")
    }


@cache
def rounding(model: Path) -> float:
    """By how much (nats) scores of one prepared model may differ between ways to compute them. Where its weights are
    F16 (``models_prepare.weight_type``), llama.cpp rounds activations to F16 too, through 30 layers, and a last digit
    decides how: 0.013 measured; with F32 weights 1e-5."""
    weights = {tensor.tensor_type for tensor in GGUFReader(model / "base.gguf").tensors}
    return 1e-3 if weights == {GGMLQuantizationType.F32} else 0.05


def train_adapter(model: Path, folder: Path) -> Path:
    """A trained PEFT adapter with its GGUF twin ``adapter.gguf``; the learning rate makes it anything but zero."""
    write_rows(folder / "pairs.jsonl", PAIRS)
    settings = StudentSettings(learning_rate=5e-3, epochs=8, batch_size=8)
    student.train(folder / "pairs.jsonl", None, model, settings, 0, folder, "train")
    convert_adapter(folder, model, folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter trained on the embedded model."""
    return train_adapter(base, tmp_path_factory.mktemp("adapter"))
