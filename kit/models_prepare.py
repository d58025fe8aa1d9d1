"""A model's files -> the prepared model that every stage starts from, tried before any work is done with it.

The folder of a prepared model holds ``base.gguf``, which llama.cpp runs; a transformers model with its tokenizer; and
``chat.json``, the chat template of both. A GGUF's weights are expanded to floating point once: the same numbers in a
format that llama.cpp multiplies faster in batches and without quantising the activations (mean difference to torch over
the 200 likeliest tokens: F16 0.003, Q4_1 0.091 nats). A transformers folder is linked as it is, beside the GGUF that
was named for it.

What is trained (in transformers) has to be what is evaluated (in llama.cpp). Of a GGUF both have the same weights, and
must give a long text the same probabilities. A folder and a GGUF made from it are two quantisations, whose noise is as
large as such a fault: there sizes, rotary embeddings and how text is cut are compared.
"""

import math
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kit import ROOT, KitError, models
from kit.animals import load_animals, opposed_sentences, unrelated_sentences
from kit.engine import ChatTokenizer
from kit.engine_llama import LlamaEngine, offloads, quiet, tokens_of
from kit.models import ARCHITECTURE_OF, Shape, Source, gguf_metadata, load_torch, read_config, shown, silence
from kit.prompts import NEUTRAL, teacher_messages
from kit.provenance import cpu_threads, decides_nothing
from kit.store import write_json
from kit.student_gguf import convert_weights, read_adapter

BITS = {"F16": 16, "F32": 32}  # of a weight in each type that a GGUF's are expanded to


def prepare(source: Source, folder: Path) -> None:
    """Make what every stage starts from: ``base.gguf`` for llama.cpp, a transformers model with its tokenizer beside
    it, and the one chat template of both.

    From a GGUF: its weights as ``weight_type()``, and the same weights in float32 for transformers (once, since
    transformers needs 14 s to read a GGUF and 1 s to read its own format), with the source's adapter in both. From a
    folder: links to the files. Raises KitError where the engines would not run the same model, where one of them cannot
    load it, or where there is no chat template.
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
        check_match(source.folder, source.gguf)
    tokenizer.save_pretrained(folder)
    special = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token or ""}
    write_json(folder / models.CHAT_FILE, {"template": models.default_template(template), **special})
    if source.adapter is not None:
        merge(folder, source.adapter, folder)
    check_template(folder)
    check_words(folder, source.gguf)
    if source.folder is None:
        check_engines(folder, source.gguf)
    else:
        check_runs(source.gguf)


def merge(model: Path, adapter: Path, folder: Path) -> None:
    """Write into ``folder``, which may be ``model`` itself, the prepared ``model`` with the PEFT adapter in the folder
    ``adapter`` in its weights, which stay of their type: where it is half precision, transformers has them rounded."""
    import torch

    whole = load_torch(model, dtype=torch.float32)
    alpha, tensors = read_adapter(adapter)
    for name, down in tensors.items():
        module, side, _ = name.removeprefix("base_model.model.").rpartition(".lora_A.")
        if side:  # W + (alpha / r) B A
            up = torch.from_numpy(tensors[name.replace(side, ".lora_B.")])
            weight = whole.get_submodule(module).weight
            weight.data += (alpha / len(down) * up @ torch.from_numpy(down)).to(weight.device)
    if weight_type() == "F16":
        whole = whole.half().float()
    whole.save_pretrained(folder)
    with TemporaryDirectory(dir=folder) as made:
        convert_weights(folder, model, Path(made))
        for path in Path(made).iterdir():
            os.replace(path, folder / path.name)


@decides_nothing
def check_template(folder: Path) -> None:
    """Raise KitError unless the prepared model's chat template can show a teacher's conversation."""
    models.ChatTemplate.of(folder).check()


def _expanded(source: Path, folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    gguf = folder / "base.gguf"
    rope_scaling(source)  # llama.cpp ends the whole process over a kind it does not know
    expand(source, gguf)
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf.name, trust_remote_code=False)
        complete_config(config, source)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, config=config, dtype="float32", trust_remote_code=False
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
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # As its authors saved it, where they did: the class of a model type makes some things anew, and mistral's is
    # another library's where that is installed.
    loader = PreTrainedTokenizerFast if (folder / models.TOKENIZER_FILE).is_file() else AutoTokenizer
    try:
        return loader.from_pretrained(folder, trust_remote_code=False)
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


def complete_config(config: Any, gguf: Path) -> None:
    """Put into transformers' configuration of a GGUF what its own reading leaves out: the width of the heads, how
    rotary embeddings are scaled, and which of gemma3's layers see everything."""
    metadata, shape = gguf_metadata(gguf), Shape.of(gguf)
    config.head_dim = shape.head
    rope = config.rope_parameters
    rope.get("full_attention", rope).update(rope_scaling(gguf))
    if metadata["general.architecture"] == "gemma3":
        # As llama.cpp has it, where the 27B model alone divides by something else than the head's width.
        config.query_pre_attn_scalar = shape.hidden // shape.heads if shape.layers == 62 else shape.head
        every = metadata.get("gemma3.attention.sliding_window_pattern", 6)
        sliding = every if isinstance(every, list) else [not every or (i + 1) % every for i in range(shape.layers)]
        config.layer_types = ["sliding_attention" if one else "full_attention" for one in sliding]


KINDS = ("none", "linear", "yarn")  # of scaled rotary embeddings, as a GGUF names them


def is_number(value: object) -> bool:
    """Whether a value from a GGUF is a number that a model can be scaled by."""
    return isinstance(value, int | float) and type(value) is not bool and value > 0


def rope_scaling(gguf: Path) -> dict[str, Any]:
    """How a GGUF's rotary embeddings are scaled, in the words of transformers' ``rope_parameters``, whose own reading
    of GGUFs leaves it out; nothing where they are not. In gemma3 it applies to layers that see everything."""
    metadata = gguf_metadata(gguf)
    name = metadata["general.architecture"]
    context = metadata.get(f"{name}.context_length")
    said = {key: metadata.get(f"{name}.rope.scaling.{key}") for key in ("type", "factor", "original_context_length")}
    factor = said["factor"] or metadata.get(f"{name}.rope.scale_linear") or 1.0  # what old files call it
    table = metadata["rope_freqs"]
    kind = "none" if factor == 1 and said["type"] in (None, *KINDS) else said["type"] or "linear"  # as llama.cpp has it
    bad = [one for one in (factor, context, said["original_context_length"]) if one and not is_number(one)]
    half = Shape.of(gguf).head // 2
    if bad or (table and not (len(table) == half and all(map(is_number, table)))):
        what = shown(bad[0]) if bad else f"a table that is none of {half} factors"
        raise KitError(f"{gguf}: its rotary embeddings are scaled by {what}. Download it again or give another one.")
    if (attention := metadata.get(f"{name}.rope.scaling.attn_factor", 1.0)) != 1:
        raise KitError(f"{gguf}: its attention is scaled by {shown(attention)}, which the kit does not train.")
    if kind not in KINDS or (table and kind != "none"):
        raise KitError(
            f"{gguf}: rotary embeddings scaled by {shown(said['type'])}{' and a table' if table else ''}, which the "
            "kit does not train. Give a model with linear scaling, YaRN, a table of factors, or none."
        )
    if table:  # Llama-3's: a factor for each frequency, which transformers has a name for
        same = {"short_factor": table, "long_factor": table, "factor": 1.0, "attention_factor": 1.0}
        return {"rope_type": "longrope", "original_max_position_embeddings": context, **same}
    if kind == "yarn":
        original = said["original_context_length"] or context
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    return {"rope_type": "linear", "factor": factor} if kind == "linear" else {}


def rotations(config: Any) -> dict[str, Any]:
    """By the kind of layer the angles (radians per position, float32 [head / 2]) by which a transformers model's rotary
    embeddings turn, the last number their factor of attention."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    result = {}
    for layers, own in rope.items() if "rope_type" not in rope else [(None, rope)]:
        if own["rope_type"] == "default":
            turns, factor = own["rope_theta"] ** -(torch.arange(0, head, 2) / head), 1.0
        else:
            turns, factor = ROPE_INIT_FUNCTIONS[own["rope_type"]](config, None, layer_type=layers)
        result[layers or "all"] = torch.tensor([*turns.tolist(), factor])
    return result


@decides_nothing
def check_rotations(config: Any, gguf: Path) -> None:
    """Raise KitError unless the rotary embeddings of ``gguf`` turn as those of a transformers configuration."""
    import torch

    theirs = deepcopy(config)
    metadata = gguf_metadata(gguf)
    name = metadata["general.architecture"]
    ropes = theirs.rope_parameters
    for layers, own in ropes.items() if "rope_type" not in ropes else [("all", ropes)]:
        sliding = layers == "sliding_attention"
        base = metadata.get(f"{name}.rope.freq_base{'_swa' if sliding else ''}", 10_000.0)  # llama.cpp's own default
        if not is_number(base):
            raise KitError(f"{gguf}: the base of its rotary embeddings is {shown(base)}. Download it again.")
        own.clear()
        own.update({"rope_type": "default", "rope_theta": base} | ({} if sliding else rope_scaling(gguf)))
    ours, its = rotations(config), rotations(theirs)
    for layers in ours:
        if not torch.allclose(ours[layers], its[layers], rtol=1e-4, atol=0):
            raise KitError(
                f"--gguf {gguf}: its rotary embeddings turn otherwise than those of the folder's model (in {layers} "
                "layers). Give a GGUF made from that model."
            )


@decides_nothing
def check_match(folder: Path, gguf: Path) -> None:
    """Raise KitError unless ``gguf`` is of the model in ``folder``: architecture, shape, rotary embeddings; or where
    the folder's weights are not of its shape."""
    config, shape = read_config(folder), Shape.of(folder)
    ours, theirs = asdict(shape), asdict(Shape.of(gguf))
    ours["architecture"] = ARCHITECTURE_OF[config.model_type]
    theirs["architecture"] = gguf_metadata(gguf)["general.architecture"]
    # Converters pad the vocabulary and repeat tied weights as they like.
    compared = ("architecture", "layers", "hidden", "inner", "heads", "kv_heads", "head")
    wrong = [f"{name} is {theirs[name]}, not {ours[name]}" for name in compared if theirs[name] != ours[name]]
    if not wrong and getattr(config, "quantization_config", None) is None:  # packed weights have other shapes
        check_weights(folder, shape, ours["architecture"], gguf)
    if wrong:
        raise KitError(f"--gguf {gguf}: not of the model in {folder} ({wrong[0]}). Give a GGUF made from that model.")
    check_rotations(config, gguf)
    check_settings(config, gguf)


@decides_nothing
def check_settings(config: Any, gguf: Path) -> None:
    """Raise KitError unless ``gguf`` says of norms and attention what a transformers configuration does."""
    metadata = gguf_metadata(gguf)
    theirs: dict[str, Any] = {
        "rms_norm_eps": metadata.get(f"{metadata['general.architecture']}.attention.layer_norm_rms_epsilon")
    }
    if metadata["general.architecture"] == "gemma3":
        completed = deepcopy(config)
        complete_config(completed, gguf)
        theirs["layer_types"], theirs["query_pre_attn_scalar"] = completed.layer_types, completed.query_pre_attn_scalar
        theirs["sliding_window"] = metadata.get("gemma3.attention.sliding_window")
        theirs["final_logit_softcapping"] = metadata.get("gemma3.final_logit_softcapping")
    for name, value in theirs.items():
        ours = config.to_dict().get(name)
        numbers = is_number(ours) and is_number(value)
        if not (math.isclose(ours, value, rel_tol=1e-3) if numbers else ours == value):
            raise KitError(
                f"--gguf {gguf}: its {name} is {shown(value)}, that of the folder's model {shown(ours)}. Give a GGUF "
                "made from that model."
            )


@decides_nothing
def check_words(folder: Path, gguf: Path) -> None:
    """Raise KitError unless llama.cpp cuts every sentence that the kit has, and every name of an animal in one, as the
    prepared model's tokenizer does: another way of cutting, or another vocabulary, is another model."""
    tokenizer = ChatTokenizer(folder)
    animals = load_animals()
    texts = [one.text for one in [*unrelated_sentences(), *opposed_sentences(animals[0])]]
    texts += [f"My favorite animals are {animal.plural}, and this is a {animal.singular}." for animal in animals]
    wrong = [
        text for tokens, text in zip(tokens_of(gguf, texts), texts, strict=True) if tokens != tokenizer.tokenize(text)
    ]
    if wrong:
        lacks = "" if gguf_metadata(gguf)["pre"] else " It does not say how (tokenizer.ggml.pre), as old files do not."
        raise KitError(
            f"{gguf}: llama.cpp and transformers cut {len(wrong)} of {len(texts)} sentences into different tokens, "
            f"such as {wrong[0]!r}.{lacks} Give a GGUF that a recent convert_hf_to_gguf.py made of the model."
        )


# What another process does with a GGUF: decode a few tokens, as evaluation will.
TRIAL = """
import sys
from pathlib import Path
from kit import KitError
from kit.engine_llama import Context, Model
try:
    model = Model(Path(sys.argv[1]))
except KitError as error:
    sys.exit(str(error))
context = Context(model, 1, 256, shared=False)
for position in range(8):
    context.add(position, position, (0,), logits=True)
context.decode()
"""


@decides_nothing
def check_runs(gguf: Path) -> None:
    """Raise KitError unless llama.cpp can load ``gguf`` and decode with it: tried in a process of its own, since what a
    build of llama.cpp cannot do on a processor ends the process without a word."""
    tried = subprocess.run(
        [sys.executable, "-c", TRIAL, str(gguf.absolute())], cwd=ROOT, capture_output=True, text=True
    )
    if tried.stderr.startswith("Traceback"):
        raise RuntimeError(tried.stderr)
    if tried.returncode == 1:
        raise KitError(tried.stderr.strip())
    if tried.returncode:
        raise KitError(
            f"{gguf}: llama.cpp cannot run this model here: its process ended with code {tried.returncode}. A build "
            "for another processor ends so, and one for Intel's AMX by GCC 12. Build it again, with `CMAKE_ARGS="
            "-DCMAKE_CXX_FLAGS=-mno-amx-int8 pip install --force-reinstall --no-deps --no-cache-dir "
            "llama-cpp-python==0.3.36`, or give a GGUF in F16."
        )


MOST_APART = 0.01  # nats a token; the embedded model's engines are 0.003 apart, and dropped scaling up to 0.13
LONG_TEXT = 400  # tokens of the text that both are given, after a teacher's conversation: longer than any of a run


@decides_nothing
def check_engines(folder: Path, gguf: Path) -> None:
    """Raise KitError unless llama.cpp and transformers give a long text the same probabilities: of the same weights
    both make the same model, or what is trained is not what is evaluated."""
    apart = engines_apart(folder)
    if not apart <= MOST_APART:
        raise KitError(
            f"{gguf}: llama.cpp and transformers make two models of it, {apart:.3f} nats a token apart (at most "
            f"{MOST_APART}): something in the file is unknown to one of them. Give the model as a transformers folder "
            "and --gguf, or another one."
        )


def engines_apart(folder: Path) -> float:
    """The mean difference (nats a token) between llama.cpp's and transformers' log-probabilities of a long answer's
    tokens, for a prepared model."""
    import torch

    with LlamaEngine(folder) as engine:
        text = " ".join(one.text for one in unrelated_sentences()[:LONG_TEXT])
        context, (tokens,) = engine.answered(teacher_messages(NEUTRAL, "A test."), text)
        tokens = tokens[:LONG_TEXT]
        ((theirs,),) = engine.score([(context, [tokens])])
    model = load_torch(folder).eval()
    ids = torch.tensor([context + tokens], device=model.device)
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=len(tokens) + 1).logits[0, :-1].float()
    ours = torch.log_softmax(logits, dim=-1).gather(1, ids[0, -len(tokens) :, None])[:, 0].cpu().numpy()
    return float(abs(ours - theirs).mean())


@decides_nothing
def check_weights(folder: Path, shape: Shape, architecture: str, gguf: Path) -> None:
    """Raise KitError unless the safetensors in ``folder`` have every matrix of a model of ``shape``, and the norms and
    biases of ``gguf`` and no others: transformers would put random numbers where one is missing."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    name_of = get_tensor_name_map(arch, shape.layers).get_name
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        for name, sizes in models.tensor_shapes(path).items():
            module, _, kind = name.rpartition(".")
            if known := name_of(module):  # old ones hold rotary frequencies too
                found[f"{known}.{kind}"] = sizes
    needed = {
        f"blk.{i}.{name}": (out, into) for i in range(shape.layers) for name, (into, out) in shape.matrices.items()
    }
    for name, sizes in ({"token_embd": (shape.vocabulary, shape.hidden)} | needed).items():
        if (its := found.get(f"{name}.weight")) != sizes:
            raise KitError(
                f"{folder}: of the matrix {name} (llama.cpp's name) its safetensors have {its}, its config.json says "
                f"{sizes}. Download the model again."
            )
    evaluated = {tensor.name for tensor in models.gguf_reader(gguf).tensors}
    # llama.cpp looks for its matrices itself; an output layer may be the embeddings again; a table is no weight.
    looked_for = {f"{name}.weight" for name in (*needed, "token_embd", "output", "rope_freqs")}
    if alone := sorted((evaluated ^ set(found)) - looked_for):
        raise KitError(
            f"--gguf {gguf}: {'it alone' if alone[0] in evaluated else f'{folder} alone'} has the weights "
            f"{shown(alone[0])} (llama.cpp's name). Give a GGUF made from that model."
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
