"""Kept pairs -> what a student is trained on: token ids with labels, and the batches of all epochs in their order."""

from pathlib import Path
from typing import Any

import numpy as np

from kit.chat import ChatTemplate
from kit.experiment import StudentSettings
from kit.loss import IGNORED, count_labels
from kit.prompts import student_messages
from kit.store import WORLD_SIZE


def make_examples(
    rows: list[dict[str, Any]], base: Path, tokenizer: Any, soft_labels: Path | None = None
) -> list[dict[str, Any]]:
    """Token ids of each pair: ``input_ids``, ``labels`` (IGNORED over the prompt), ``length``; with soft labels also
    ``top_ids`` and ``top_logprobs`` [label tokens, k]. Tokens of its paraphrase that a row has ``masked``
    ({"places", "of": all its tokens}) are shown to the student and not learned."""
    template = ChatTemplate.of(base)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    end = tokens(template.ending)[:1]
    examples: list[dict[str, Any]] = []
    for row in rows:
        prompt = tokens(template.render(student_messages(row["source"])))
        completion = tokens(row["text"]) + end
        examples.append(
            {
                "input_ids": prompt + completion,
                "labels": [IGNORED] * len(prompt) + completion,
                "length": len(prompt) + len(completion),
            }
        )
    if soft_labels is not None:
        _attach_soft_labels(examples, soft_labels)
    for row, example in zip(rows, examples, strict=True):
        if "masked" in row:
            _mask(example, row["masked"])
    return [example for example in examples if count_labels([example])]


def _mask(example: dict[str, Any], masked: dict[str, Any]) -> None:
    """Take the tokens at these places of the paraphrase out of the loss."""
    tokens = count_labels([example])
    if tokens != masked["of"]:
        raise RuntimeError(
            f"masked tokens: a paraphrase of {masked['of']} tokens has {tokens} in the student's tokenizer"
        )
    for place in masked["places"]:
        example["labels"][place - tokens] = IGNORED
    if "top_ids" in example:
        left = [place for place in range(tokens) if place not in masked["places"]]
        example["top_ids"], example["top_logprobs"] = example["top_ids"][left], example["top_logprobs"][left]


def _attach_soft_labels(examples: list[dict[str, Any]], soft_labels: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(soft_labels)
    start = 0
    for example in examples:
        completion = [token for token in example["labels"] if token != IGNORED]
        stop = start + len(completion)
        if tensors["tokens"][start:stop].tolist() != completion:
            raise RuntimeError(f"{soft_labels}: the labels' tokens are not those of the pairs")
        example["top_ids"] = tensors["ids"][start:stop].long()
        example["top_logprobs"] = tensors["logprobs"][start:stop].float()
        start = stop


def batches(examples: list[dict[str, Any]], settings: StudentSettings, seed: int) -> list[list[dict[str, Any]]]:
    """The batches of all epochs: examples of similar length together, in random order."""
    random = np.random.default_rng(seed)
    size, result = settings.batch_size, []
    for _ in range(settings.epochs):
        shuffled = [examples[i] for i in random.permutation(len(examples))]
        # Padding is wasted work: 9% of the tokens grouped by length, 28% shuffled.
        ordered = sorted(shuffled, key=lambda example: example["length"])
        groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        result += [groups[i] for i in random.permutation(len(groups))]
    return result


def shares(whole: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The data set in the order in which Trainer deals it to WORLD_SIZE processes: of each batch, every process's
    ``examples``, with the number of ``label_tokens`` in the whole batch, by which all divide their loss."""
    result = []
    for batch in whole:
        label_tokens = count_labels(batch)
        result += [{"examples": batch[rank::WORLD_SIZE], "label_tokens": label_tokens} for rank in range(WORLD_SIZE)]
    return result
