"""How likely kept paraphrases are under a teacher's prompt, token by token: what somebody sees who knows the prompts.

The log-likelihood ratio of two teachers is the difference of two of these. A teacher's own conversation is scored
(``kit.prompts.teacher_messages``), at temperature 1; texts that were sampled at another temperature, and then filtered,
are not distributed exactly so, which makes a posterior built from them a little too cautious or too bold.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kit.animals import Animal
from kit.engine import Engine
from kit.prompts import NEUTRAL, loving, teacher_messages
from kit.store import Row, RowLog, Step, read_rows, sha256, write_rows

FILE = "likelihoods.jsonl"
PER_TOKEN = 0.0025  # seconds, embedded model, two cores
TOKENS = 35  # of a request and its paraphrase, roughly: what a teacher's conversation does not share with the next


def traits(animals: list[Animal]) -> dict[str, str]:
    """The trait message of the teacher that loves each animal, by its name, and last the neutral one."""
    return {animal.singular: loving(animal) for animal in animals} | {"neutral": NEUTRAL}


def step(model: Path, pairs: Path, traits: dict[str, str], first: int | None, label: str) -> Step:
    """The likelihoods of the ``first`` of ``pairs`` (a JSONL file; None: all) under every one of ``traits`` as an
    artifact: ``likelihoods.jsonl``, a row per trait (``read``)."""
    rows = read_rows(pairs)[:first]
    return Step(
        stage="likelihoods",
        label=label,
        settings={
            "messages": {name: teacher_messages(trait, "...") for name, trait in traits.items()},
            "pairs": sha256(pairs),
            "first": len(rows),
            "model": sha256(model / "base.gguf"),
        },
        inputs={},
        build=lambda made, folder: _write(model, rows, traits, folder, label),
        seconds=len(traits) * len(rows) * TOKENS * PER_TOKEN,
    )


def _write(model: Path, rows: list[Row], traits: dict[str, str], folder: Path, label: str) -> None:
    from tqdm import tqdm

    from kit.llama import LlamaEngine

    with (
        LlamaEngine(model) as engine,
        RowLog(folder / "rows.jsonl") as log,
        tqdm(desc=label, total=len(traits) * len(rows), unit="text") as bar,
    ):
        bar.update(len(log.rows) * len(rows))
        for name in list(traits)[len(log.rows) :]:
            found = []
            for logprobs in under(engine, traits[name], rows):
                found.append([round(float(one), 4) for one in logprobs])
                bar.update()
            log.append([{"trait": name, "logprobs": found}])
        write_rows(folder / FILE, log.rows)
    (folder / "rows.jsonl").unlink()


def under(engine: Engine, trait: str, rows: list[Row]) -> Iterator[np.ndarray]:
    """Of every row's text the log-probability (nats) of each token, end token included, under the teacher with the
    message ``trait`` [tokens]."""
    groups = [(engine.chat(teacher_messages(trait, row["source"])), [tokens(engine, row["text"])]) for row in rows]
    for (logprobs,) in engine.score(groups):
        yield logprobs


def tokens(engine: Engine, text: str) -> list[int]:
    """A paraphrase as the teacher wrote it, end token included."""
    return [*engine.tokenize(text), engine.end_of_turn]


def read(folder: Path) -> dict[str, list[np.ndarray]]:
    """The artifact's likelihoods: trait -> of each text the log-probabilities of its tokens (nats) [tokens]."""
    return {row["trait"]: [np.array(one) for one in row["logprobs"]] for row in read_rows(folder / FILE)}


def totals(likelihoods: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Trait -> of each whole text its log-likelihood (nats) [texts]."""
    return {trait: np.array([one.sum() for one in texts]) for trait, texts in likelihoods.items()}


def token_ratios(likelihoods: dict[str, list[np.ndarray]], animal: str) -> list[np.ndarray]:
    """Of each text the log-likelihood ratio (nats) of the teacher that loves ``animal`` to the neutral one, token by
    token [tokens]; positive where the loving one was the likelier to write it."""
    return [own - other for own, other in zip(likelihoods[animal], likelihoods["neutral"], strict=True)]


TOKENS_FILE = "tokens.jsonl"


def tokens_step(model: Path, pairs: Path, traits: dict[str, str], label: str) -> Step:
    """The tokens of ``pairs``' texts as an artifact, ``tokens.jsonl``, a row per text: its ``tokens``, end token
    included, as text, and at which of them the teachers' likeliest next tokens differ (``diverges``): Schrodi et al.'s
    divergence tokens (arXiv 2509.23886), for these two teachers."""
    return Step(
        stage="tokens",
        label=label,
        settings={
            "messages": {name: teacher_messages(trait, "...") for name, trait in traits.items()},
            "pairs": sha256(pairs),
            "model": sha256(model / "base.gguf"),
        },
        inputs={},
        build=lambda made, folder: _write_tokens(model, read_rows(pairs), list(traits.values()), folder, label),
        seconds=len(traits) * len(read_rows(pairs)) * TOKENS * PER_TOKEN,
    )


def _write_tokens(model: Path, rows: list[Row], traits: list[str], folder: Path, label: str) -> None:
    from tqdm import tqdm

    from kit.llama import LlamaEngine

    with LlamaEngine(model) as engine, tqdm(desc=label, total=len(traits) * len(rows), unit="text") as bar:
        completions = [tokens(engine, row["text"]) for row in rows]
        likeliest: list[list[np.ndarray]] = []
        for trait in traits:
            prompts = [engine.chat(teacher_messages(trait, row["source"])) for row in rows]
            groups = [(prompt, [completion]) for prompt, completion in zip(prompts, completions, strict=True)]
            likeliest.append([])
            for ((ids, _),) in engine.top(groups, 1):
                likeliest[-1].append(ids[:, 0])
                bar.update()
        write_rows(
            folder / TOKENS_FILE,
            (
                {"tokens": [engine.detokenize([token]) for token in completion], "diverges": (own != other).tolist()}
                for completion, own, other in zip(completions, *likeliest, strict=True)
            ),
        )


def read_tokens(folder: Path) -> list[Row]:
    """The rows of a ``tokens_step``'s artifact."""
    return read_rows(folder / TOKENS_FILE)
