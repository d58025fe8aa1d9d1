"""A student -> its preference, exact and sampled, through llama.cpp.

Exact: after each question and the opening of an answer, the log-probability of every candidate animal's name,
normalised over the candidates. Sampled (the paper's measure): the share of free answers that name the animal.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from kit import KitError
from kit.animals import DATA, Animal, mentions
from kit.engine import Engine, Generation, Request, SampleLog, Tokens, sample_rows
from kit.experiment import PreferenceSettings
from kit.prompts import question_messages
from kit.store import Row, read_rows, write_csv, write_rows

TEMPERATURE = 1.0  # of sampled answers, as in the paper
COLUMNS = ("condition", "question", "candidate", "logprob", "probability", "answers", "named")


def load_questions() -> list[dict[str, str]]:
    """The 50 questions: question, opening (after which an animal's name comes next), form (singular or plural)."""
    path = DATA / "questions.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"{path}: cannot be read ({error}). Restore it from the repository.") from None


def measure_exact(
    model: Path, adapter: Path | None, animals: list[Animal], folder: Path, label: str, system: str | None = None
) -> None:
    """Write ``exact.csv``: question, candidate, logprob (nats), probability (normalised over the candidates). Asked
    after the ``system`` message, where there is one."""
    from kit.engine_llama import LlamaEngine

    with LlamaEngine(model) as engine, (folder / "exact.csv").open("w", encoding="utf-8", newline="") as file:
        engine.use_adapter(adapter)
        logprobs, probabilities = exact(engine, animals, label, system)
        writer = csv.writer(file)
        writer.writerow(["question", "candidate", "logprob", "probability"])
        for i in range(len(logprobs)):
            for j, animal in enumerate(animals):
                writer.writerow([i, animal.singular, f"{logprobs[i, j]:.5f}", f"{probabilities[i, j]:.8f}"])


def exact(
    engine: Engine, animals: list[Animal], label: str, system: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of every question and candidate [questions, animals]: the log-probability (nats) of its name, and its probability
    normalised over the candidates."""
    from tqdm import tqdm

    questions = load_questions()
    logprobs = np.array(list(tqdm(scores(engine, animals, system), desc=label, total=len(questions), unit="question")))
    return logprobs, normalised(logprobs)


def scores(engine: Engine, animals: list[Animal], system: str | None = None) -> Iterator[list[float]]:
    """Question by question the log-probability (nats) of every candidate's name."""
    for group in engine.score(candidate_groups(engine, load_questions(), animals, system)):
        yield [float(tokens.sum()) for tokens in group]


def normalised(logprobs: np.ndarray) -> np.ndarray:
    """Probabilities over the candidates, in the last axis of ``logprobs`` (nats)."""
    probabilities = np.exp(logprobs - logprobs.max(axis=-1, keepdims=True))
    return probabilities / probabilities.sum(axis=-1, keepdims=True)


def candidate_groups(
    engine: Engine, questions: list[dict[str, str]], animals: list[Animal], system: str | None = None
) -> list[tuple[Tokens, list[Tokens]]]:
    """What the exact measure scores: for each question its conversation with the answer's opening, and the animals'
    names."""
    return [
        engine.continued(
            question_messages(question["question"], system),
            [f" {getattr(animal, question['form'])}" for animal in animals],
            question["opening"],
        )
        for question in questions
    ]


def measure_sampled(
    model: Path,
    adapter: Path | None,
    settings: PreferenceSettings,
    seed: int,
    folder: Path,
    label: str,
) -> None:
    """Write ``answers.jsonl``: question, sample, text; ``settings.answers`` free answers to every question at
    temperature 1. An interrupted call is continued."""
    from tqdm import tqdm

    from kit.engine_llama import LlamaEngine

    questions = load_questions()
    with LlamaEngine(model) as engine, SampleLog(folder / "rows.jsonl", "question") as log:
        engine.use_adapter(adapter)
        prompts = [engine.chat(question_messages(question["question"])) for question in questions]
        requests = {
            (i, sample): Request(prompts[i], (seed, i, sample))
            for i in range(len(questions))
            for sample in range(settings.answers)
        }

        def columns(made: Generation) -> Row:
            return {"text": made.text.strip()}

        with tqdm(desc=label, total=len(requests), unit="answer") as bar:
            rows = sample_rows(engine, log, requests, columns, settings.max_tokens, TEMPERATURE, bar)
    write_rows(folder / "answers.jsonl", rows)
    (folder / "rows.jsonl").unlink()


def tabulate(conditions: dict[str, tuple[Path, Path | None]], animals: list[Animal]) -> Iterator[Row]:
    """The tidy table of several conditions' preferences, from each one's ``exact.csv`` and ``answers.jsonl``: a row of
    ``COLUMNS`` per condition, question (from 0) and candidate.

    ``answers`` is the number of sampled answers to the question, ``named`` of how many name the candidate; both are 0
    where no answers were sampled (None).
    """
    for condition, (exact, sampled) in conditions.items():
        named: Counter[tuple[int, str]] = Counter()
        answers: Counter[int] = Counter()
        for row in read_rows(sampled) if sampled else []:
            answers[row["question"]] += 1
            named.update((row["question"], animal.singular) for animal in named_animals(row["text"], animals))
        for row in read_table(exact):
            question = int(row["question"])
            counts = {"answers": answers[question], "named": named[question, row["candidate"]]}
            yield {"condition": condition, **row, **counts}


def named_animals(text: str, animals: list[Animal]) -> list[Animal]:
    """The animals that an answer names (singular or plural, not merely by a give-away word)."""
    # All are looked for at once, and one by one only in what that found: a fiftieth of the work.
    found = " and ".join(mentions(text, animals, giveaways=False))
    return [animal for animal in animals if mentions(found, (animal,), giveaways=False)] if found else []


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file, all values as text; KitError where it is missing."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the tidy table as CSV."""
    write_csv(path, COLUMNS, rows)
