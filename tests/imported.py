"""Everything that a run of run.py imports, for ``processes.py``: nothing here runs a model or starts a thread."""

import importlib

NAMES = """
bitsandbytes gguf huggingface_hub jinja2 llama_cpp matplotlib.pyplot peft rich.table safetensors.numpy safetensors.torch
scipy.stats sentence_transformers sklearn.linear_model torch transformers vaderSentiment.vaderSentiment
transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
transformers.models.llama.modeling_llama transformers.modeling_gguf_pytorch_utils
run kit.report kit.report_sweep kit.experiment_run kit.sweep kit.defences kit.student kit.student_gguf kit.teacher
kit.engine_torch kit.engine_endpoint kit.inspection
"""

for name in NAMES.split():
    importlib.import_module(name)
