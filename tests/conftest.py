"""What the tests share: the embedded model as F16, a tiny random qwen2, and one trained adapter of each."""

from pathlib import Path

import numpy as np
import pytest

from kit import models, student
from kit.adapter_gguf import convert
from kit.experiment import StudentSettings
from kit.llama import LlamaEngine
from kit.store import write_rows

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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, prepared."""
    folder = tmp_path_factory.mktemp("base")
    models.prepare(models.find_gguf(models.EMBEDDED), folder)
    return folder / "base.gguf"


@pytest.fixture(scope="session")
def engine(base: Path):
    """llama.cpp with the embedded model; tests leave it without an adapter."""
    with LlamaEngine(base) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny_qwen2(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer qwen2 with the embedded model's vocabulary, prepared."""
    from gguf import GGUFReader, GGUFWriter

    folder = tmp_path_factory.mktemp("qwen2")
    hidden, inner, heads, kv_heads, layers = 64, 96, 4, 2, 2
    fields = GGUFReader(base).fields
    writer = GGUFWriter(folder / "tiny.gguf", "qwen2")
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = fields["tokenizer.ggml.tokens"].contents()
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(fields["tokenizer.chat_template"].contents())
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> None:
        scale = 1.0 if name == "token_embd" else shape[-1] ** -0.5
        writer.add_tensor(f"{name}.weight", rng.normal(0, scale, shape).astype(np.float32))

    def constant(name: str, value: np.ndarray) -> None:
        writer.add_tensor(name, value.astype(np.float32))

    head = hidden // heads
    weight("token_embd", len(tokens), hidden)
    weight("output", len(tokens), hidden)
    constant("output_norm.weight", np.ones(hidden))
    for i in range(layers):
        constant(f"blk.{i}.attn_norm.weight", np.ones(hidden))
        constant(f"blk.{i}.ffn_norm.weight", np.ones(hidden))
        weight(f"blk.{i}.attn_q", hidden, hidden)
        weight(f"blk.{i}.attn_k", kv_heads * head, hidden)
        weight(f"blk.{i}.attn_v", kv_heads * head, hidden)
        for part, width in (("q", hidden), ("k", kv_heads * head), ("v", kv_heads * head)):
            constant(f"blk.{i}.attn_{part}.bias", rng.normal(0, 0.1, width))
        weight(f"blk.{i}.attn_output", hidden, hidden)
        weight(f"blk.{i}.ffn_gate", inner, hidden)
        weight(f"blk.{i}.ffn_up", inner, hidden)
        weight(f"blk.{i}.ffn_down", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    models.prepare(folder / "tiny.gguf", folder)
    return folder / "base.gguf"


def train_adapter(gguf: Path, folder: Path) -> Path:
    """A trained PEFT adapter with its GGUF twin ``adapter.gguf``; the learning rate makes it anything but zero."""
    write_rows(folder / "pairs.jsonl", PAIRS)
    settings = StudentSettings(learning_rate=5e-3, epochs=8, batch_size=8)
    student.train(folder / "pairs.jsonl", None, gguf, settings, 0, folder, "train")
    convert(folder, gguf, folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter trained on the embedded model."""
    return train_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def qwen2_adapter(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter trained on the tiny qwen2."""
    return train_adapter(tiny_qwen2, tmp_path_factory.mktemp("qwen2-adapter"))
