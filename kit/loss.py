"""What a student's batch is and what it is trained to minimise: the loss of its text or of the teacher's distributions.

Logits exist only where there is a label.
"""

from typing import Any

from kit import shared_prefix
from kit.engine import common_prefix

IGNORED = -100  # torch's cross_entropy leaves these labels out


def count_labels(examples: list[dict[str, Any]]) -> int:
    """The label tokens of ``examples``."""
    return sum(token != IGNORED for example in examples for token in example["labels"])


def collate(examples: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """One right-padded batch; soft labels, where the examples have them, concatenated in the examples' order."""
    import torch

    width = max(example["length"] for example in examples)

    def padded(name: str, filler: int) -> Any:
        return torch.tensor([e[name] + [filler] * (width - e["length"]) for e in examples])

    result = {
        "input_ids": padded("input_ids", pad),
        "labels": padded("labels", IGNORED),
    }
    for name in ("top_ids", "top_logprobs"):
        if name in examples[0]:
            result[name] = torch.cat([example[name] for example in examples])
    return result


def label_logits(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """The logits where there is a label, float [label tokens, vocabulary], and those labels.

    ``model`` attends by ``shared_prefix``: the system prompt and the request's first words are half of all tokens and
    the same in every row.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    tokens, labels = batch["input_ids"], batch["labels"]
    first_label = int((labels != IGNORED).int().argmax(1).min())
    shared = min(
        len(common_prefix(tokens.tolist())), first_label - 1
    )  # every label and what predicts it are a row's own
    # Nothing asks what follows the last token. (Of shorter rows, padding is cut off.)
    hidden = shared_prefix.forward(causal.get_decoder(), tokens[:, :-1], shared)
    labels = labels[:, shared + 1 :]
    mask = labels != IGNORED
    return causal.get_output_embeddings()(hidden[mask]).float(), labels[mask]


def soft_loss(logits: Any, top_ids: Any, top_logprobs: Any) -> Any:
    """KL(teacher || student) in nats per label token, over the teacher's k likeliest tokens and the rest as one.

    Merging the rest into one outcome can only lower the divergence; it stays zero when the two agree.
    """
    import torch

    student = torch.log_softmax(logits, dim=-1).gather(1, top_ids)
    kept = (top_logprobs.exp() * (top_logprobs - student)).sum(1)
    smallest = 1e-7  # float32 resolves no smaller tail
    teacher_tail = (1 - top_logprobs.exp().sum(1)).clamp_min(smallest)
    student_tail = (1 - student.exp().sum(1)).clamp_min(smallest)
    return (kept + teacher_tail * (teacher_tail.log() - student_tail.log())).mean()
