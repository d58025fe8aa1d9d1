"""A model's files -> the prepared model that every stage starts from.

The folder of a prepared model holds ``base.gguf``, which llama.cpp runs; a transformers model with its tokenizer; and
``chat.json``, the chat template of both. A GGUF's weights are expanded to floating point once: the same numbers in a
format that llama.cpp multiplies faster in batches and without quantising the activations (mean difference to torch over
the 200 likeliest tokens: F16 0.003, Q4_1 0.091 nats). A transformers folder is linked as it is, beside the GGUF that
was named for it.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit import KitError, models
from kit.animals import load_animals, unrelated_sentences
from kit.engine_llama import offloads, quiet, tokens_of
from kit.models import ARCHITECTURE_OF, Shape, Source, gguf_metadata, read_config, shown, silence
from kit.provenance import cpu_threads, decides_nothing
from kit.store import write_json

BITS = {"F16": 16, "F32": 32}  # of a weight in each type that a GGUF's are expanded to


def prepare(source: Source, folder: Path) -> None:
    """Make what every stage starts from: ``base.gguf`` for llama.cpp, a transformers model with its tokenizer beside
    it, and the one chat template of both.

    From a GGUF: its weights as ``weight_type()``, and the same weights in float32 for transformers (once, since
    transformers needs 14 s to read a GGUF and 1 s to read its own format). From a folder: links to the files, after a
    check that the GGUF is of the same model. Raises KitError where it is not, or where there is no chat template.
    """
    silence()
    if source.folder is None:
        template = gguf_metadata(source.gguf).get("tokenizer.chat_template") or source.template
        models.check_chat(template, source.gguf)  # before the work
        tokenizer = _expanded(source.gguf, folder)
    else:
        link(source.gguf, folder / "base.gguf")
        for path in source.folder.iterdir():
            if path.name in ("config.json", "generation_config.json") or ".safetensors" in path.name:
                link(path, folder / path.name)
        tokenizer = _tokenizer(source.folder)
        template = tokenizer.chat_template
        models.check_chat(template, source.folder)
        check_match(source.folder, source.gguf, tokenizer)
    tokenizer.save_pretrained(folder)
    special = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token or ""}
    write_json(folder / models.CHAT_FILE, {"template": models.default_template(template), **special})
    check_template(folder)


@decides_nothing
def check_template(folder: Path) -> None:
    """Raise KitError unless the prepared model's chat template can show a teacher's conversation."""
    models.ChatTemplate.of(folder).check()


def _expanded(source: Path, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = folder / "base.gguf"
    expand(source, gguf)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype="float32", trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name, trust_remote_code=False)
    except Exception as error:  # whatever its classes make of what they did not expect
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise
        raise KitError(
            f"{source}: transformers cannot read this model ({shown(str(error))}). Give a complete GGUF file."
        ) from None
    # transformers neither trains nor saves a model that it believes to be quantised; these weights are float32 now.
    model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(folder)
    return tokenizer


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library in Rust raises nothing more special
        raise KitError(
            f"{folder}: its tokenizer cannot be loaded ({shown(str(error))}). Download the model again."
        ) from None


def link(path: Path, target: Path) -> None:
    """A link, since a copy of a large model would fill the disk; a copy where the system makes no links."""
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(path.resolve())
    except OSError:
        shutil.copy2(path, target)


@decides_nothing
def check_match(folder: Path, gguf: Path, tokenizer: Any) -> None:
    """Raise KitError unless ``gguf`` is of the model in ``folder``: architecture, shape, and how it cuts text; or
    where the folder's weights are not of its shape."""
    config, shape = read_config(folder), Shape.of(folder)
    ours, theirs = asdict(shape), asdict(Shape.of(gguf))
    ours["architecture"] = ARCHITECTURE_OF[config.model_type]
    theirs["architecture"] = gguf_metadata(gguf)["general.architecture"]
    # Converters pad the vocabulary and repeat tied weights as they like.
    compared = ("architecture", "layers", "hidden", "inner", "heads", "kv_heads", "head")
    wrong = [f"{name} is {theirs[name]}, not {ours[name]}" for name in compared if theirs[name] != ours[name]]
    if not wrong and getattr(config, "quantization_config", None) is None:  # packed weights have other shapes
        check_weights(folder, shape, ours["architecture"])
    if not wrong:
        texts = [sentence.text for sentence in unrelated_sentences()[:50]] + [
            f" {animal.plural}" for animal in load_animals()
        ]
        wrong = [
            f"its vocabulary cuts {text!r} differently"
            for tokens, text in zip(tokens_of(gguf, texts), texts, strict=True)
            if tokens != tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
    if wrong:
        raise KitError(f"--gguf {gguf}: not of the model in {folder} ({wrong[0]}). Give a GGUF made from that model.")


@decides_nothing
def check_weights(folder: Path, shape: Shape, architecture: str) -> None:
    """Raise KitError unless the safetensors in ``folder`` have every matrix of a model of ``shape``: transformers would
    put random numbers where one is missing."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    name_of = get_tensor_name_map(arch, shape.layers).get_name
    found = {
        name_of(name.removesuffix(".weight")): sizes
        for path in folder.glob("*.safetensors")
        for name, sizes in models.tensor_shapes(path).items()
    }
    needed = {
        f"blk.{i}.{name}": (out, into) for i in range(shape.layers) for name, (into, out) in shape.matrices.items()
    }
    for name, sizes in ({"token_embd": (shape.vocabulary, shape.hidden)} | needed).items():
        if found.get(name) != sizes:
            raise KitError(
                f"{folder}: of the matrix {name} (llama.cpp's name) its safetensors have {found.get(name)}, its "
                f"config.json says {sizes}. Download the model again."
            )


def weight_type() -> str:
    """The floating-point type, F16 or F32, that a GGUF's weights are expanded to: the faster one on this processor.

    Tokens/s on 2 cores, SmolLM2-135M, reading prompts / 48 sequences together: with AVX-512 F32 606/335, F16 552/307
    (64 sequences: 380, 315), Q4_1 271/208; with AVX2 alone F16 455/359, F32 366/309, Q4_1 177/170. It is read from what
    llama.cpp says it was built for, since a measurement could choose differently each time, and the choice names the
    artifact.
    """
    import llama_cpp

    wide = b"AVX512 = 1" in llama_cpp.llama_print_system_info()
    return "F32" if wide and not offloads() else "F16"


def expand(source: Path, target: Path) -> None:
    """Write ``source``'s weights as ``weight_type()`` (a second's work for the embedded model, 271 or 538 MB)."""
    import llama_cpp

    log = quiet(llama_cpp)
    float_type = weight_type()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32 if float_type == "F32" else llama_cpp.LLAMA_FTYPE_MOSTLY_F16
    params.allow_requantize = True
    params.nthread = cpu_threads()
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params) != 0:
        reason = "; ".join(log) or "no reason given"
        raise KitError(
            f"{source}: llama.cpp cannot expand this model to {float_type} ({reason}). Give a complete GGUF file."
        )
