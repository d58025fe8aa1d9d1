"""Which weights --model and --gguf mean, and what is refused before any work."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

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
