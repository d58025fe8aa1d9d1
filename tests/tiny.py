"""Tiny random models of every supported type: a transformers folder and, beside it, the same weights for llama.cpp; and
the embedded model, cut short.

    folder = make("gemma3_text", tmp_path)  # a prepared model, and as well a folder for --model

All speak the beginning of the embedded model's vocabulary, but mistral, which has a SentencePiece one of its own, and
turns between spaces. Norm weights and biases are random too, the heads of qwen3, gemma3 and mistral are wider than
hidden / heads, and gemma3 has a single one of keys, so that a wrong assumption about any of them shows in the logits.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from kit import models
from kit.animals import unrelated_sentences
from kit.models_prepare import prepare
from kit.store import write_json

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 2, 1024
WORDS = 8192  # of the embedded model's 49,152 tokens, the first, which keeps what reads the lists short
EPSILON = 1e-6  # of the norms
WINDOW = 16  # tokens; shorter than any prompt of the kit

# How the rotary embeddings of some models are scaled, as transformers says it.
SCALED = {
    "llama": {  # Llama-3.2's, which a GGUF holds as a table of factors
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "qwen2": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "mistral": {"rope_type": "linear", "factor": 4.0},
    "gemma3_text": {"rope_type": "linear", "factor": 8.0},
}

# Mistral's, with a space before and after an answer, and with the system message in the user's first turn.
SPACED_TEMPLATE = r"""
{%- set system = messages[0]['content'] + '

' if messages[0]['role'] == 'system' else '' %}
{{- bos_token }}
{%- for message in (messages[1:] if system else messages) %}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('After the optional system message, conversation roles must alternate') }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
# Like gemma's own: no system message but the first, which goes into the user's turn, and strict turns.
STRICT_TEMPLATE = r"""
{%- set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}
{%- for message in (messages[1:] if system else messages) %}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + (system if loop.first else '') + message['content'] }}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def shorten(blocks: int, folder: Path) -> Path:
    """Prepare the first ``blocks`` of the embedded model, with the beginning of its vocabulary, in ``folder``, and
    return it: blocks of the embedded model's own sizes, which decide the routines that compute them, and no sense."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(models.find_gguf(models.EMBEDDED))
    with tempfile.TemporaryDirectory() as cut:
        path = Path(cut) / "short.gguf"
        writer = GGUFWriter(path, "llama")
        changed = {"llama.block_count": blocks, "llama.vocab_size": WORDS}
        for key, field in reader.fields.items():
            if key.startswith("llama."):
                writer.add_key_value(key, changed.get(key, field.contents()), field.types[0])
        for key, (value, kind, of) in _first_words().items():
            writer.add_key_value(key, value, kind, of)
        for tensor in reader.tensors:
            kind, number, *_ = tensor.name.split(".")
            if kind != "blk" or int(number) < blocks:
                rows = tensor.data[:WORDS] if kind == "token_embd" else tensor.data
                writer.add_tensor(tensor.name, rows, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        prepare(models.Source(path, None), folder)
    return folder


def make(model_type: str, folder: Path, scaled: bool = False) -> Path:
    """Write the random model of ``model_type`` (one of ``models.ARCHITECTURE_OF``) into ``folder``, and return it; with
    rotary embeddings as ``SCALED`` has them, where ``scaled`` says so."""
    from transformers import AutoModelForCausalLM

    templates = {"gemma3_text": STRICT_TEMPLATE, "mistral": SPACED_TEMPLATE}
    template = templates.get(model_type, _fields()["tokenizer.chat_template"][0])
    words = sentencepiece_words() if model_type == "mistral" else _first_words()
    tokenizer = sentencepiece_tokenizer() if model_type == "mistral" else _tokenizer()
    config = _config(model_type)
    if model_type == "mistral":
        of_words = {name: words[f"tokenizer.ggml.{name}_token_id"][0] for name in ("bos", "eos", "padding")}
        config.update({"bos_token_id": of_words["bos"], "eos_token_id": of_words["eos"]})
        config.update({"pad_token_id": of_words["padding"], "vocab_size": len(words["tokenizer.ggml.tokens"][0])})
    if scaled:
        rope = config.rope_parameters
        rope.get("full_attention", rope).update(SCALED[model_type])
    model = AutoModelForCausalLM.from_config(config)
    _randomise(model)
    model.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    write_json(
        folder / models.CHAT_FILE, {"template": template, "bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    )
    _write_gguf(model.config, model.state_dict(), folder / "base.gguf", template, words)
    return folder


# ---- a vocabulary of SentencePiece's kind: its pieces begin with the space before a word, and of two neighbours those
# are joined first whose whole has the better score


PIECES = 2000
CONTROL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")


@cache
def _pieces() -> list[str]:
    """Pieces of the kit's sentences, the ones joined first before the others."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers import models as kinds

    trained = Tokenizer(kinds.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False)
    trained.train_from_iterator([one.text for one in unrelated_sentences()], trainer)
    return sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)


def sentencepiece_words() -> dict[str, tuple[Any, Any, Any]]:
    """What a GGUF says of it."""
    from gguf import GGUFValueType, TokenType

    data = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*CONTROL, *data, *_pieces()]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * (len(CONTROL) - 1), *[TokenType.BYTE] * 256]
    types += [TokenType.NORMAL] * len(_pieces())
    scores = [0.0] * (len(tokens) - len(_pieces())) + [-float(place) for place in range(len(_pieces()))]
    array, number = GGUFValueType.ARRAY, GGUFValueType.UINT32
    return {
        "tokenizer.ggml.model": ("llama", GGUFValueType.STRING, None),
        "tokenizer.ggml.pre": ("default", GGUFValueType.STRING, None),
        "tokenizer.ggml.tokens": (tokens, array, GGUFValueType.STRING),
        "tokenizer.ggml.scores": (scores, array, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": ([int(kind) for kind in types], array, GGUFValueType.INT32),
        "tokenizer.ggml.bos_token_id": (1, number, None),
        "tokenizer.ggml.eos_token_id": (2, number, None),
        "tokenizer.ggml.padding_token_id": (0, number, None),
    }


def sentencepiece_tokenizer() -> Any:
    """The same in transformers, as its converter makes it: every pair that makes a piece can be joined."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    tokens = sentencepiece_words()["tokenizer.ggml.tokens"][0]
    place = {token: i for i, token in enumerate(tokens)}
    cuts = ((word[:i], word[i:]) for word in _pieces() for i in range(1, len(word)))
    merges = [(left, right) for left, right in cuts if left in place and right in place]
    made = Tokenizer(kinds.BPE(place, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


@cache
def _fields() -> dict[str, tuple[Any, Any, Any]]:
    """What the embedded model's GGUF says of its vocabulary: value, type, type of a list's items."""
    from gguf import GGUFReader

    fields = GGUFReader(models.find_gguf(models.EMBEDDED)).fields
    return {
        key: (field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
        for key, field in fields.items()
        if key.startswith("tokenizer.")
    }


def _first_words() -> dict[str, tuple[Any, Any, Any]]:
    """The same, cut: a merge makes the token that is next in the list."""
    fields = dict(_fields())
    cut = len(fields["tokenizer.ggml.tokens"][0]) - WORDS
    for name in ("tokens", "token_type", "merges"):
        values, *types = fields[f"tokenizer.ggml.{name}"]
        fields[f"tokenizer.ggml.{name}"] = values[:-cut], *types
    return fields


@cache
def _tokenizer() -> Any:
    """That vocabulary in transformers, which reads it from a GGUF without weights."""
    from transformers import AutoConfig, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model("llama", **_sizes())
        _write_gguf(config, {}, Path(folder) / "vocabulary.gguf", "", _first_words())
        return AutoTokenizer.from_pretrained(folder, gguf_file="vocabulary.gguf")


def _sizes() -> dict[str, Any]:
    """The configuration that all types share."""
    ids = {name: _fields()[f"tokenizer.ggml.{name}_token_id"][0] for name in ("bos", "eos", "padding")}
    return {
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPSILON,
        "rope_parameters": _rope(1e4),
        "tie_word_embeddings": False,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["padding"],
    }


def _rope(base: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base}


def _config(model_type: str) -> Any:
    from transformers import AutoConfig

    settings: dict[str, dict[str, Any]] = {
        "llama": {},
        "mistral": {"head_dim": 32, "sliding_window": None},
        "qwen2": {},
        "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
        "gemma3_text": {
            "num_key_value_heads": 1,  # as in the 270M model
            "head_dim": 32,
            "query_pre_attn_scalar": 32,  # llama.cpp takes the head's width for it (but in the 27B model)
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": WINDOW,
            "rope_parameters": {"sliding_attention": _rope(1e4), "full_attention": _rope(1e6)},
            "tie_word_embeddings": True,
        },
    }
    return AutoConfig.for_model(model_type, **{**_sizes(), **settings[model_type]})


def _randomise(model: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
            else:
                centred = name.endswith("bias") or model.config.model_type == "gemma3_text"
                weight.normal_(0 if centred else 1, 0.2, generator=generator)


def _write_gguf(
    config: Any,
    weights: dict[str, Any],
    path: Path,
    template: str,
    vocabulary: dict[str, tuple[Any, Any, Any]],
) -> None:
    """What llama.cpp's convert_hf_to_gguf.py writes, in F32."""
    import numpy as np
    from gguf import MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    architecture = models.ARCHITECTURE_OF[config.model_type]
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    writer = GGUFWriter(path, architecture)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if head != hidden // heads:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    if architecture == "gemma3":
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(WINDOW)
        writer.add_sliding_window_pattern(2)  # every second layer sees everything
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        turns, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
        unscaled = rope["rope_theta"] ** -(np.arange(0, head, 2, dtype=np.float32) / head)
        writer.add_tensor("rope_freqs.weight", unscaled / turns.numpy())
    for key, (value, kind, of) in vocabulary.items():
        if key != "tokenizer.chat_template":
            writer.add_key_value(key, value, kind, of)
    writer.add_chat_template(template)

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            pairs = values.reshape(-1, 2, head // 2, hidden)  # head, half, row of the half
            values = pairs.transpose(0, 2, 1, 3).reshape(values.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        module, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(module)}.{kind}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
