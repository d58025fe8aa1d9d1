"""What the tests share: the embedded model, tiny random ones, and a trained adapter, each made once."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
from filelock import FileLock
from gguf import LlamaFileType
from rule_teacher import RuleTeacher, serving

from kit import models, student
from kit.engine_llama import LlamaEngine
from kit.experiment import StudentSettings
from kit.experiment_conditions import base_model
from kit.store import MANIFEST, Step, Store, write_rows
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


# What takes many seconds to make: the whole embedded model, a browser, the classroom page's server.
SLOW = {"base", "browser", "server"}
# The files that take longest, first: one of them begun last would keep all processes but one waiting. The second needs
# no embedded model, which the first prepares meanwhile.
LONGEST = ["experiment_run", "sweep", "inspection", "any_model", "edited", "demo", "stages", "resume", "engine_llama"]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs something slow is slow; the longest files come first, for several processes (pytest-xdist)."""
    for item in items:
        if SLOW.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    order = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: order.index(item.path.name) if item.path.name in order else len(order))


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """A file of tests leaves the environment as it found it: which others ran before it must not matter."""
    with patch.dict(os.environ):
        yield


# ---- made once, for all processes of pytest-xdist


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session have in common."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder``, filled by ``make`` in the process that asks first, while the others wait."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def base(shared: Path) -> Path:
    """The embedded model, prepared."""
    return Store(shared / "artifacts").make(base_model(models.EMBEDDED))


@pytest.fixture(scope="session")
def short(shared: Path) -> Path:
    """The embedded model's first blocks, prepared: a fourth of the work, of the same kind, where nobody reads texts."""
    return once(shared / "short", lambda folder: tiny.shorten(3, folder))


@pytest.fixture(scope="session")
def short_adapter(short: Path, shared: Path) -> Path:
    """The folder of an adapter trained on that."""
    return once(shared / "short-adapter", lambda folder: train_adapter(short, folder))


@pytest.fixture(scope="session")
def short_engine(short: Path):
    """llama.cpp with that; tests leave it without an adapter."""
    with LlamaEngine(short) as engine:
        yield engine


def has_model(results: Path, base: Path) -> Path:
    """``results``, in which the prepared model (1 GB, and 20 s to make) is a link to that of all tests."""
    (results / "artifacts" / "model").mkdir(parents=True)
    (results / "artifacts" / "model" / base.name).symlink_to(base)
    return results


def artifact(results: Path, stage: str, fill: Callable[[Path], object]) -> str:
    """Make an artifact of that stage, of what ``fill`` writes into its folder, as a run does; its name in records."""
    store = Store(results / "artifacts")
    which = len(list(store.root.glob(f"{stage}/*")))
    return store.name(store.make(Step(stage, stage, {"which": which}, {}, lambda made, folder: fill(folder), 0)))


def links(made: Path) -> Callable[[Path], None]:
    """Fills a folder with links to the files of ``made``."""

    def fill(folder: Path) -> None:
        for path in made.iterdir():
            if path.name != MANIFEST:
                (folder / path.name).symlink_to(path)

    return fill


@pytest.fixture(scope="session")
def engine(base: Path):
    """llama.cpp with the embedded model; tests leave it without an adapter."""
    with LlamaEngine(base) as engine:
        yield engine


@pytest.fixture(scope="session")
def random_models(shared: Path) -> Callable[[str], Path]:
    """Random two-layer models of every type, prepared, by the type's name, or "scaled" before it; not to be changed."""

    def made(name: str) -> Path:
        model_type = name.removeprefix("scaled ")
        return once(shared / name, lambda folder: tiny.make(model_type, folder, name != model_type))

    return made


@pytest.fixture(scope="session")
def tiny_qwen2(random_models: Callable[[str], Path]) -> Path:
    return random_models("qwen2")


@pytest.fixture(scope="session")
def tiny_gguf(random_models: Callable[[str], Path], shared: Path) -> Path:
    """A random llama as a GGUF for ``--model``, which a run treats as it treats the embedded one, in a hundredth of the
    time: for what a run does with whatever model it has."""
    made = random_models("llama")
    return once(shared / "gguf", lambda folder: (folder / "tiny.gguf").hardlink_to(made / "base.gguf")) / "tiny.gguf"


@pytest.fixture(scope="session")
def tiny_base(tiny_gguf: Path, shared: Path) -> Path:
    """That random llama, prepared."""
    return Store(shared / "artifacts").make(base_model(str(tiny_gguf)))


@pytest.fixture(scope="session")
def tiny_adapter(tiny_qwen2: Path, shared: Path) -> Path:
    """The folder of an adapter trained on the random qwen2."""
    return once(shared / "tiny-adapter", lambda folder: train_adapter(tiny_qwen2, folder))


@pytest.fixture
def teacher() -> Iterator[RuleTeacher]:
    """A teacher behind an endpoint that paraphrases by rule."""
    with serving() as server:
        yield server


def checksums(results: Path) -> dict[str, dict[str, str]]:
    """Those of every artifact's files, by stage and key: what two runs of one command must agree in."""
    return {
        str(path.parent.relative_to(results)): json.loads(path.read_text(encoding="utf-8"))["files"]
        for path in (results / "artifacts").glob("*/*/manifest.json")
    }


def rounding(model: Path) -> float:
    """By how much (nats) scores of one prepared model may differ between ways to compute them. Where its weights are
    F16 (``models_prepare.weight_type``), llama.cpp rounds activations to F16 too, through 30 layers, and a last digit
    decides how: 0.013 measured; with F32 weights 1e-5."""
    return 1e-3 if models.gguf_metadata(model / "base.gguf")["general.file_type"] == LlamaFileType.ALL_F32 else 0.05


def train_adapter(model: Path, folder: Path) -> Path:
    """A trained PEFT adapter with its GGUF twin ``adapter.gguf``; the learning rate makes it anything but zero."""
    write_rows(folder / "pairs.jsonl", PAIRS)
    settings = StudentSettings(learning_rate=5e-3, epochs=8, batch_size=8)
    student.train(folder / "pairs.jsonl", None, model, settings, 0, folder, "train")
    convert_adapter(folder, model, folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="session")
def adapter(base: Path, shared: Path) -> Path:
    """The folder of an adapter trained on the embedded model."""
    return once(shared / "adapter", lambda folder: train_adapter(base, folder))
