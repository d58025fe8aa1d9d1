"""Tiny random models of every supported type: a transformers folder and, beside it, the same weights for llama.cpp.

    folder = make("gemma3_text", tmp_path)  # a prepared model, and as well a folder for --model

They speak the embedded model's vocabulary. Norm weights and biases are random too, and the heads of qwen3, gemma3 and
mistral are wider than hidden / heads, so that a wrong assumption about any of them shows in the logits.
"""

from functools import cache
from pathlib import Path
from typing import Any

from kit import models
from kit.store import write_json

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 2, 512
EPSILON = 1e-6  # of the norms
WINDOW = 16  # tokens; shorter than any prompt of the kit

# Like gemma's and mistral's own: no system message but the first, which goes into the user's turn, and strict turns.
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


def make(model_type: str, folder: Path) -> Path:
    """Write the random model of ``model_type`` (one of ``models.ARCHITECTURE_OF``) into ``folder``, and return it."""
    from transformers import AutoModelForCausalLM

    fields, tokenizer = _embedded()
    template = fields["tokenizer.chat_template"].contents()
    if model_type in ("gemma3_text", "mistral"):
        template = STRICT_TEMPLATE
    model = AutoModelForCausalLM.from_config(_config(model_type, tokenizer))
    _randomise(model)
    model.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    write_json(
        folder / models.CHAT_FILE, {"template": template, "bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    )
    _write_gguf(model, folder / "base.gguf", template)
    return folder


@cache
def _embedded() -> tuple[dict[str, Any], Any]:
    """The fields of the embedded model's GGUF, and its tokenizer in transformers."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    path = models.find_gguf(models.EMBEDDED)
    return GGUFReader(path).fields, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _config(model_type: str, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    def rope(base: float) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": base}

    settings: dict[str, dict[str, Any]] = {
        "llama": {},
        "mistral": {"head_dim": 32, "sliding_window": None},
        "qwen2": {},
        "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
        "gemma3_text": {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,  # llama.cpp takes the head's width for it (but in the 27B model)
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": WINDOW,
            "rope_parameters": {"sliding_attention": rope(1e4), "full_attention": rope(1e6)},
            "tie_word_embeddings": True,
        },
    }
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPSILON,
        "rope_parameters": rope(1e4),
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(model_type, **{**shared, **settings[model_type]})


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


def _write_gguf(model: Any, path: Path, template: str) -> None:
    """What llama.cpp's convert_hf_to_gguf.py writes, in F32."""
    from gguf import MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType, get_tensor_name_map

    config = model.config
    architecture = models.ARCHITECTURE_OF[config.model_type]
    head = getattr(config, "head_dim", None) or HIDDEN // HEADS
    writer = GGUFWriter(path, architecture)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    if head != HIDDEN // HEADS:
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
    for key, field in _embedded()[0].items():
        if key.startswith("tokenizer.ggml."):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    writer.add_chat_template(template)

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, LAYERS)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            pairs = values.reshape(-1, 2, head // 2, HIDDEN)  # head, half, row of the half
            values = pairs.transpose(0, 2, 1, 3).reshape(values.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        module, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(module)}.{kind}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
