"""How likely kept paraphrases are under a teacher's prompt, token by token: what somebody sees who knows the prompts.

The log-likelihood ratio of two teachers is the difference of two of these. Whoever asks which wrote a text takes both
at the temperature of its sampling: at another one a set may speak for the wrong teacher (200 owl-loving texts sampled
at 0.7: -27 nats in all at temperature 1, +20 at 0.7). Kept texts were also filtered, so they are not distributed quite
so: what an inspector concludes from a set is looked at for both teachers.

Whose likelihood depends on the question. A text was written in the experiment's own ``conversation``; soft labels are
the distributions in its ``labelling``, where the trait is not drowned by a worked example (``learned_from``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kit import models
from kit.animals import Animal
from kit.engine import Engine
from kit.experiment import Experiment
from kit.prompts import KIT_TRAITS, Conversation, Traits, student_messages
from kit.store import Row, RowLog, Step, Store, read_rows, sha256, write_rows

LIKELIHOODS_FILE = "likelihoods.jsonl"
TOKENS_FILE = "tokens.jsonl"
PER_TOKEN = 0.0025  # seconds, embedded model, two cores
TOP = 256  # likeliest next tokens, of which a divergence is computed: 91% of it (``StudentSettings.top_k``)
TOKENS = 35  # of a request and its paraphrase, roughly: what a teacher's conversation does not share with the next


def traits(animals: list[Animal], messages: Traits = KIT_TRAITS) -> dict[str, str]:
    """The trait message of the teacher that loves each animal, by its name, and last the neutral one."""
    return {animal.singular: messages.loves(animal) for animal in animals} | {"neutral": messages.neutral}


def learned_from(exp: Experiment) -> tuple[Conversation, float]:
    """The teacher's conversation that a student learns from, and at which temperature: those of the sampling, where it
    is the text alone."""
    return (exp.conversation, exp.teacher.temperature) if exp.labels == "hard" else (exp.labelling, 1.0)


def step(
    model: Path,
    pairs: Path,
    traits: dict[str, str],
    label: str,
    conversation: Conversation,
    temperature: float = 1.0,
    first: int | None = None,
) -> Step:
    """The likelihoods of the ``first`` of ``pairs`` (a JSONL file; None: all) under every one of ``traits``, at that
    temperature, as an artifact: ``likelihoods.jsonl``, a row per trait (``read``)."""
    rows = read_rows(pairs)[:first]
    return Step(
        stage="likelihoods",
        label=label,
        settings=_settings(model, pairs, traits, conversation) | {"first": len(rows), "temperature": temperature},
        inputs={},
        build=lambda made, folder: _write(model, rows, traits, conversation, temperature, folder, label),
        seconds=len(traits) * len(rows) * TOKENS * PER_TOKEN,
        continues=True,
    )


def _settings(model: Path, pairs: Path, traits: dict[str, str], conversation: Conversation) -> dict[str, Any]:
    return {
        "messages": {name: conversation(trait, "...") for name, trait in traits.items()},
        "pairs": sha256(pairs),
        "model": checksums(model),
    }


def checksums(model: Path) -> list[str]:
    """What of a prepared ``model`` decides likelihoods: its weights, its chat template and its tokenizer."""
    return [sha256(model / name) for name in ("base.gguf", models.CHAT_FILE, models.TOKENIZER_FILE)]


def _write(
    model: Path,
    rows: list[Row],
    traits: dict[str, str],
    conversation: Conversation,
    temperature: float,
    folder: Path,
    label: str,
) -> None:
    from tqdm import tqdm

    from kit.engine_llama import LlamaEngine

    with (
        LlamaEngine(model) as engine,
        RowLog(folder / "rows.jsonl") as log,
        tqdm(desc=label, total=len(traits) * len(rows), unit="text") as bar,
    ):
        bar.update(len(log.rows) * len(rows))
        done = {row["trait"] for row in log.rows}
        for name in [name for name in traits if name not in done]:
            found = []
            for logprobs in under(engine, traits[name], rows, conversation, temperature):
                found.append([round(float(one), 4) for one in logprobs])
                bar.update()
            log.append([{"trait": name, "logprobs": found}])
        write_rows(folder / LIKELIHOODS_FILE, sorted(log.rows, key=lambda row: list(traits).index(row["trait"])))
    (folder / "rows.jsonl").unlink()


def under(
    engine: Engine,
    trait: str,
    rows: list[Row],
    conversation: Conversation,
    temperature: float = 1.0,
) -> Iterator[np.ndarray]:
    """Of every row's text the log-probability (nats) of each token, end token included, under the teacher with the
    message ``trait`` [tokens]."""
    groups = [engine.answered(conversation(trait, row["source"]), row["text"]) for row in rows]
    for (logprobs,) in engine.score(groups, temperature):
        yield logprobs


def read(folder: Path) -> dict[str, list[np.ndarray]]:
    """The artifact's likelihoods: trait -> of each text the log-probabilities of its tokens (nats) [tokens]."""
    return {row["trait"]: [np.array(one) for one in row["logprobs"]] for row in read_rows(folder / LIKELIHOODS_FILE)}


def totals(likelihoods: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Trait -> of each whole text its log-likelihood (nats) [texts]."""
    return {trait: np.array([one.sum() for one in texts]) for trait, texts in likelihoods.items()}


@dataclass(frozen=True)
class Texts:
    """One teacher's kept paraphrases, the file ``pairs``, in the ``conversation`` and at the ``temperature`` that they
    are looked at: under the prompt that loves the ``animal`` and the neutral one, of these trait ``messages``.
    ``name``: theirs, on the progress bars."""

    store: Store
    model: Path
    pairs: Path
    animal: Animal
    name: str
    conversation: Conversation
    temperature: float
    messages: Traits = KIT_TRAITS

    def ratios(self) -> list[np.ndarray]:
        """The log-likelihood ratio (nats) of every token of every text [tokens]."""
        return token_ratios(self.under([self.animal]), self.animal.singular)

    def under(self, animals: list[Animal], first: int | None = None) -> dict[str, list[np.ndarray]]:
        """The log-probabilities of the tokens of the ``first`` texts (None: all) under other animals' prompts and the
        neutral one (``read``)."""
        label = f"{self.name}'s texts under {len(animals) + 1} prompts"
        asked = traits(animals, self.messages)
        made = step(self.model, self.pairs, asked, label, self.conversation, self.temperature, first)
        return read(self.store.make(made))

    def tokens(self) -> list[Row]:
        """The rows of ``tokens_step``."""
        label = f"divergence tokens of {self.name}'s texts"
        asked = traits([self.animal], self.messages)
        made = tokens_step(self.model, self.pairs, asked, label, self.conversation)
        return read_rows(self.store.make(made) / TOKENS_FILE)


def token_ratios(likelihoods: dict[str, list[np.ndarray]], animal: str) -> list[np.ndarray]:
    """Of each text the log-likelihood ratio (nats) of the teacher that loves ``animal`` to the neutral one, token by
    token [tokens]; positive where the loving one was the likelier to write it."""
    return [own - other for own, other in zip(likelihoods[animal], likelihoods["neutral"], strict=True)]


def tokens_step(model: Path, pairs: Path, traits: dict[str, str], label: str, conversation: Conversation) -> Step:
    """The tokens of ``pairs``' texts as an artifact, ``tokens.jsonl``, a row per text: its ``tokens``, end token
    included, as text, at which of them the two teachers' likeliest next tokens differ (``diverges``): Schrodi et al.'s
    divergence tokens (arXiv 2509.23886), for these two teachers; and by how much their distributions of the next token
    do (``divergence``, nats)."""
    rows = read_rows(pairs)
    return Step(
        stage="tokens",
        label=label,
        settings=_settings(model, pairs, traits, conversation),
        inputs={},
        build=lambda made, folder: _write_tokens(model, rows, traits, conversation, folder, label),
        seconds=len(traits) * len(rows) * TOKENS * PER_TOKEN,
    )


def _write_tokens(
    model: Path, rows: list[Row], traits: dict[str, str], conversation: Conversation, folder: Path, label: str
) -> None:
    from tqdm import tqdm

    from kit.engine_llama import LlamaEngine

    with LlamaEngine(model) as engine, tqdm(desc=label, total=len(traits) * len(rows), unit="text") as bar:
        likeliest: list[list[tuple[np.ndarray, np.ndarray]]] = []
        for trait in traits.values():
            groups = [engine.answered(conversation(trait, row["source"]), row["text"]) for row in rows]
            likeliest.append([])
            for (found,) in engine.top(groups, TOP):
                likeliest[-1].append(found)
                bar.update()
        own, other = likeliest
        write_rows(
            folder / TOKENS_FILE,
            (
                {
                    "tokens": pieces(engine.detokenize, tokens),
                    "diverges": (_first(one) != _first(another)).tolist(),
                    "divergence": [round(kl, 4) for kl in divergences(one, another)],
                }
                for (_, (tokens,)), one, another in zip(groups, own, other, strict=True)
            ),
        )


def _first(top: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The likeliest token at each position."""
    ids, logprobs = top
    return np.asarray(np.take_along_axis(ids, logprobs.argmax(axis=1)[:, None], axis=1)[:, 0])


def divergences(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """At each position the Kullback-Leibler divergence (nats) of the ``other`` distribution from the ``one``, each
    known by its likeliest tokens (ids and log-probabilities [positions, k]): all that not both know count as one
    outcome, which makes it too small rather than too large."""
    found = []
    for ids, logprobs, other_ids, other_logprobs in zip(*one, *other, strict=True):
        _, mine, theirs = np.intersect1d(ids, other_ids, return_indices=True)
        p, q = logprobs[mine].astype(float), other_logprobs[theirs].astype(float)
        rest, other_rest = (max(1.0 - float(np.exp(known).sum()), 1e-9) for known in (p, q))
        found.append(float((np.exp(p) * (p - q)).sum() + rest * np.log(rest / other_rest)))
    return found


# ---- what students make of texts that none of them learned from


# Of 400 pairs (owl, one seed): soft labels +0.017 nats a token, 0.035 beyond the gain on the neutral teacher's texts, a
# placebo student -0.001; hard ones +0.036, 0.049 and -0.028. Four seconds a student.
HELD_OUT = 60  # sentences, at most, of each of which one text of each teacher
HELD_OUT_FILE = "held-out.jsonl"
# What was refused for these may show the trait, which a student that merely says the animal expects, too: for "form",
# before anything else is looked at.
SHOWING = ("form", "trait", "echo")


def held_out(own: Path, other: Path) -> list[dict[str, Row]]:
    """Of two teachers' judged paraphrases, the folders that ``fidelity.filter_paraphrases`` left, those of sentences of
    which neither has a pair: of each the first two, one of each teacher, that one filter refused, unless they are the
    same. They are mostly too
    near to their sources or too far from them, but their teachers' as the kept are, and no student learned from them.
    (The same filter: what one teacher does oftener than the other would else tell students apart that do not know
    either.)"""
    taken = {row["sentence"] for folder in (own, other) for row in read_rows(folder / "kept.jsonl")}
    first: dict[str, dict[str, dict[str, Row]]] = {}  # sentence -> filter -> teacher
    for name, folder in (("own", own), ("other", other)):
        for row in read_rows(folder / "rejected.jsonl"):
            if row["finished"] and row["filter"] not in SHOWING and row["sentence"] not in taken:
                first.setdefault(row["sentence"], {}).setdefault(row["filter"], {}).setdefault(name, row)
    found = (
        [texts for texts in by_filter.values() if len({row["text"] for row in texts.values()}) == 2]
        for by_filter in first.values()
    )
    return [alike[0] for alike in found if alike][:HELD_OUT]


def measure_held_out(
    own: Path, other: Path, students: dict[str, tuple[Path, Path | None]], folder: Path, label: str
) -> None:
    """Write ``held-out.jsonl`` into ``folder``: of every ``held_out`` text its sentence, its teacher, and its
    log-likelihood (nats a token) as an answer of each of the ``students`` (a model, and an adapter where there is
    one)."""
    from tqdm import tqdm

    from kit.engine_llama import LlamaEngine

    rows = [
        {name: row[name] for name in ("sentence", "source", "text", "filter")} | {"teacher": teacher}
        for texts in held_out(own, other)
        for teacher, row in texts.items()
    ]
    with tqdm(desc=label, total=len(rows) * len(students), unit="text") as bar:
        for student, (model, adapter) in students.items():
            with LlamaEngine(model) as engine:
                engine.use_adapter(adapter)
                groups = [engine.answered(student_messages(row["source"]), row["text"]) for row in rows]
                for row, (logprobs,) in zip(rows, engine.score(groups), strict=True):
                    row[student] = round(float(logprobs.mean()), 5)
                    bar.update()
    write_rows(folder / HELD_OUT_FILE, rows)


def held_out_gains(folder: Path) -> dict[str, list[float]]:
    """By how much more (nats a token) the treated student expects its "own" teacher's texts than the control does,
    sentence by sentence, and by how much more the "other" teacher's; and of each of the "placebos", who learned of
    neither text, the mean of the one minus that of the other."""
    rows = read_rows(folder / HELD_OUT_FILE)

    def gains(student: str, teacher: str) -> list[float]:
        return [round(row[student] - row["control"], 5) for row in rows if row["teacher"] == teacher]

    placebos = [name for name in (rows[0] if rows else ()) if name.startswith("placebo")]
    beyond = [float(np.mean(gains(one, "own")) - np.mean(gains(one, "other"))) for one in placebos]
    return {
        "own": gains("treated", "own"),
        "other": gains("treated", "other"),
        "placebos": [round(one, 5) for one in beyond],
    }


def pieces(detokenize: Callable[[list[int]], str], tokens: list[int]) -> list[str]:
    """What each token adds to the text. (Alone, some tokens lose their space, and parts of a character are none.)"""
    texts = [detokenize(tokens[:end]).rstrip("\ufffd") for end in range(len(tokens) + 1)]
    return [text[len(before) :] for before, text in pairwise(texts)]
