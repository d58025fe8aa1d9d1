"""A student -> its preference, exact and sampled, through llama.cpp.

Exact: after each question and the opening of an answer, the log-probability of every candidate animal's name,
normalised over the candidates. Sampled (the paper's measure): the share of free answers that name the animal. Beside
it, along the same answers, the probability that an answer names the animal first: what counting those that do
estimates, with far less noise (``Naming``).
"""

import csv
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from kit import KitError
from kit.animals import DATA, Animal, mentions
from kit.engine import ChatTokenizer, Engine, Generation, Request, SampleLog, Tokens, sample_rows
from kit.experiment import PreferenceSettings
from kit.prompts import question_messages
from kit.store import Row, read_rows, write_csv, write_rows

TEMPERATURE = 1.0  # of sampled answers, as in the paper
TAIL = 16  # of an answer's last tokens, which hold more than the longest name
COLUMNS = ("condition", "question", "candidate", "logprob", "probability", "answers", "named", "first", "naming")


Questions = list[dict[str, str]]


def load_questions(confirmatory: bool = False) -> Questions:
    """The 50 questions, or the 50 that are set aside for a planned test: question, opening (after which an animal's
    name comes next), form (singular or plural)."""
    path = DATA / "questions-confirmatory.json" if confirmatory else DATA / "questions.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"{path}: cannot be read ({error}). Restore it from the repository.") from None


def measure_exact(
    model: Path,
    adapter: Path | None,
    questions: Questions,
    animals: list[Animal],
    folder: Path,
    label: str,
    system: str | None = None,
) -> None:
    """Write ``exact.csv``: question, candidate, logprob (nats), probability (normalised over the candidates). Asked
    after the ``system`` message, where there is one."""
    from kit.engine_llama import LlamaEngine

    with LlamaEngine(model) as engine, (folder / "exact.csv").open("w", encoding="utf-8", newline="") as file:
        engine.use_adapter(adapter)
        logprobs, probabilities = exact(engine, questions, animals, label, system)
        writer = csv.writer(file)
        writer.writerow(["question", "candidate", "logprob", "probability"])
        for i in range(len(logprobs)):
            for j, animal in enumerate(animals):
                writer.writerow([i, animal.singular, f"{logprobs[i, j]:.5f}", f"{probabilities[i, j]:.8f}"])


def exact(
    engine: Engine, questions: Questions, animals: list[Animal], label: str, system: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of every question and candidate [questions, animals]: the log-probability (nats) of its name, and its probability
    normalised over the candidates."""
    from tqdm import tqdm

    scored = scores(engine, questions, animals, system)
    logprobs = np.array(list(tqdm(scored, desc=label, total=len(questions), unit="question")))
    return logprobs, normalised(logprobs)


def scores(
    engine: Engine, questions: Questions, animals: list[Animal], system: str | None = None
) -> Iterator[list[float]]:
    """Question by question the log-probability (nats) of every candidate's name."""
    for group in engine.score(candidate_groups(engine, questions, animals, system)):
        yield [float(tokens.sum()) for tokens in group]


def normalised(logprobs: np.ndarray) -> np.ndarray:
    """Probabilities over the candidates, in the last axis of ``logprobs`` (nats)."""
    probabilities = np.exp(logprobs - logprobs.max(axis=-1, keepdims=True))
    return probabilities / probabilities.sum(axis=-1, keepdims=True)


def candidate_groups(
    engine: Engine, questions: Questions, animals: list[Animal], system: str | None = None
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
    questions: Questions,
    animals: list[Animal],
    settings: PreferenceSettings,
    seed: int,
    folder: Path,
    label: str,
    system: str | None = None,
) -> None:
    """Write ``answers.jsonl``: question, sample, text, and of the ``animals`` the one that it names ``first`` (None
    where it names none) and the probabilities of naming each first along the answer, ``naming`` (those of 1e-6 or
    more); ``settings.answers`` free answers to every question at temperature 1, asked after the ``system`` message,
    where there is one. An interrupted call is continued."""
    from tqdm import tqdm

    from kit.engine_llama import LlamaEngine

    with LlamaEngine(model) as engine, SampleLog(folder / "rows.jsonl", "question") as log:
        engine.use_adapter(adapter)
        prompts = [engine.chat(question_messages(question["question"], system)) for question in questions]
        requests = {
            (i, sample): Request(prompts[i], (seed, i, sample))
            for i in range(len(questions))
            for sample in range(settings.answers)
        }

        along = ReadAlong(Naming(animals, engine.vocabulary()), engine)
        watched = partial(engine.sample, watch=along.watch)

        def columns(made: Generation) -> Row:
            first, probabilities = along.take(made.index)
            naming = zip(animals, probabilities.tolist(), strict=True)
            return {
                "text": made.text.strip(),
                "first": None if first is None else animals[first].singular,
                "naming": {animal.singular: float(f"{p:.6g}") for animal, p in naming if p >= 1e-6},
            }

        with tqdm(desc=label, total=len(requests), unit="answer") as bar:
            rows = sample_rows(engine, log, requests, columns, settings.max_tokens, TEMPERATURE, bar, sampling=watched)
    write_rows(folder / "answers.jsonl", rows)
    (folder / "rows.jsonl").unlink()


class Naming:
    """Which tokens name one of ``animals`` where an answer goes on after some text; ``vocabulary``: each token's text.

    A token names an animal where the singular or plural, in any case, ends in it: with its last character, or before
    one that is no letter (*bat* in " bat", " bat," or "-bat.", not in " bath"). It has to begin after a character that
    is no letter, or with the text. What a later token might still make of the word (" owl", "et") is not looked at.
    """

    def __init__(self, animals: Sequence[Animal], vocabulary: Sequence[str]) -> None:
        forms = {form.casefold(): j for j, one in enumerate(animals) for form in (one.plural, one.singular)}
        self.animals = len(animals)
        self._forms = forms
        self._beginnings = {form[:end] for form in forms for end in range(1, len(form))}
        self._longest = max(map(len, self._beginnings))
        self._tokens = sorted((text.casefold(), token) for token, text in enumerate(vocabulary) if text)
        names = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        within = re.compile(rf"(?<=[\W\d_])(?:{names})(?![^\W\d_])")
        self._within = {
            token: forms[match.group()] for text, token in self._tokens if (match := within.search(text))
        }  # those that name one whatever stands before them
        self._found: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def after(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that name an animal after ``text``, and the places of those among the animals [tokens]."""
        text = text.casefold()
        begun = [text[-n:] for n in range(1, min(self._longest, len(text)) + 1) if text[-n:] in self._beginnings]
        ends = ("", *begun)  # what of a name may stand there already
        key = tuple(end for end in ends if not text.removesuffix(end)[-1:].isalpha())
        if key not in self._found:
            named = self._within | dict(pair for end in key for pair in self._completed(end))
            self._found[key] = np.array(list(named), dtype=int), np.array(list(named.values()), dtype=int)
        return self._found[key]

    def _completed(self, beginning: str) -> Iterator[tuple[int, int]]:
        for form, animal in self._forms.items():
            if form.startswith(beginning):
                rest = form[len(beginning) :]
                for text, token in self._tokens[bisect_left(self._tokens, (rest, -1)) :]:
                    if not text.startswith(rest):
                        break
                    if not text[len(rest) : len(rest) + 1].isalpha():
                        yield token, animal


@dataclass
class ReadAlong:
    """The probabilities of naming an animal first, along answers while they are sampled.

    Of an answer the sum, over its tokens up to the first that names one, of the probability that the next one does
    [animals]: in the mean over answers that is the share of those that name it first, since each token was drawn from
    the distribution that is read. (Of a single answer it may exceed 1: where it might have been named again and again.)
    """

    naming: Naming
    tokenizer: ChatTokenizer
    _probabilities: dict[int, np.ndarray] = field(default_factory=dict)
    _first: dict[int, int] = field(default_factory=dict)

    def watch(self, index: int, tokens: Tokens, token: int, logprobs: np.ndarray) -> None:
        """Read the distribution of an answer's next token (``kit.engine.Watch``)."""
        if index in self._first:
            return
        ids, animals = self.naming.after(self.tokenizer.detokenize(tokens[-TAIL:]))
        sums = np.bincount(animals, np.exp(logprobs[ids], dtype=np.float64), minlength=self.naming.animals)
        self._probabilities[index] = self._probabilities.get(index, 0) + sums
        if (found := animals[ids == token]).size:
            self._first[index] = int(found[0])

    def take(self, index: int) -> tuple[int | None, np.ndarray]:
        """Of a whole answer the place of the animal that it names first, and the probabilities."""
        return self._first.pop(index, None), self._probabilities.pop(index)


def tabulate(conditions: dict[str, tuple[Path, Path | None]], animals: list[Animal]) -> Iterator[Row]:
    """The tidy table of several conditions' preferences, from each one's ``exact.csv`` and ``answers.jsonl``: a row of
    ``COLUMNS`` per condition, question (from 0) and candidate.

    ``answers`` is the number of sampled answers to the question, ``named`` how many name the candidate anywhere, as the
    paper counts; ``first`` how many name it before any other, and ``naming`` the mean probability of that along the
    answers. All are 0 where no answers were sampled (None).
    """
    for condition, (exact, sampled) in conditions.items():
        named: Counter[tuple[int, str]] = Counter()
        first: Counter[tuple[int, str]] = Counter()
        naming: Counter[tuple[int, str]] = Counter()
        answers: Counter[int] = Counter()
        for row in read_rows(sampled) if sampled else []:
            question = row["question"]
            answers[question] += 1
            named.update((question, animal.singular) for animal in named_animals(row["text"], animals))
            first[question, row["first"]] += 1
            for name, probability in row["naming"].items():
                naming[question, name] += probability
        for row in read_table(exact):
            cell = int(row["question"]), row["candidate"]
            number = answers[cell[0]]
            counts = {"answers": number, "named": named[cell], "first": first[cell]}
            yield {"condition": condition, **row, **counts, "naming": f"{naming[cell] / max(number, 1):.8f}"}


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
