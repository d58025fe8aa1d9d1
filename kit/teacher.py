"""Sentences -> paraphrases, by a teacher that loves an animal or by the neutral one; and a teacher's soft labels.

The two teachers are one model; their conversations (``kit/prompts.py``) differ in the trait message alone.
"""

import hashlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, fidelity
from kit.animals import Sentence
from kit.engine import CALL, STOPPED, Engine, Generation, Request, SampleLog, Sampler, Tokens, sample_rows
from kit.experiment import Experiment, TeacherSettings
from kit.models import ChatTemplate
from kit.prompts import Conversation, Message
from kit.store import Row, Told, batched, check_files, read_rows, write_rows

# Paraphrases between two looks at what is accepted: smaller blocks leave more sequences' places empty at each end.
BLOCK = 2 * CALL
# Samples that are asked of a sentence at once: its prompt is computed once for all of them, and of two one is in vain
# where the first is accepted. (A pair of 600 sentences, 8 tries each, took 11.4 samples and 5.7 prompts by twos, 12.8
# and 3.2 by fours, and 10.9 and 10.9 one by one; a prompt was taken for 0.4 of a sample.)
AGAIN = 2
MOST_TURNS = 50  # of a sentence: as many paraphrases as the paper has of one, at most (arXiv 2603.09517, opposed)
# Samples in a row that are cut off or empty, as all of a thinking model's are, after which a teacher is given up; of
# the embedded model's 1 to 4% are. A sentence may be hard, so of one 8 count at most, where there are enough others.
LOST, OF_ONE = 32, 8
Ask = Callable[[str], list[Message]]  # of a sentence the conversation that a teacher continues with its paraphrase
UNLIKE = ("A", "9")  # sentences that begin with nothing in common
REMEDY = (
    "Is it an instruct model, with its own chat template, and is its thinking switched off? Then give the same command "
    "again: what was sampled is kept, and it goes on from there."
)


@dataclass
class Turn:
    """A sentence's turn: the number of its first sample, its samples so far up to the accepted one, and whether there
    may be more."""

    sentence: str
    first: int
    rows: list[Row] = field(default_factory=list)
    accepted: bool = False
    ended: bool = False


def paraphrase(
    sentences: list[Row],
    pairs: int,
    ask: Ask,
    engine: Callable[[], Sampler],
    settings: TeacherSettings,
    seed: int,
    accept: fidelity.Judge,
    log: Callable[[], SampleLog],
    folder: Path,
    label: str,
    turns_each: int = MOST_TURNS,
) -> Told:
    """Write ``paraphrases.jsonl`` into ``folder``, in the order of the turns.

    The ``sentences`` (rows of sentence: its id, and text) have turns in the order in which they are given, which is
    drawn by lot. In its turn a sentence is paraphrased until a paraphrase is accepted, ``settings.tries`` times at
    most; when all have had one, all have another, up to ``turns_each``, unless nothing came of the last. What
    comes after the turn that gives the last of ``pairs`` is left out, whatever was sampled of it, so which paraphrase
    is the first accepted one of which sentence does not depend on how many are sampled together. One that a filter
    refuses however it goes on is stopped. Rows written: sentence, sample, source, text, tokens, finished, logprob
    (nats, under the teacher's own conversation; null from an endpoint), and stopped, where it was, its text up to
    there, without tokens and logprob.

    Every sample is kept in the ``log``, whether accepted or not, and none is made that is there: so a call after an
    interruption, or with another ``accept``, samples what is missing. A random seed belongs to the seed, the sentence
    and the sample's number, so the rows written come out the same (an endpoint promises no such thing; its rows are
    kept as they come).

    Raises KitError where more samples would not help: none of many is kept (``fidelity.is_hopeless``), or ``LOST`` in a
    row are cut off or empty. Samples of the log count like new ones; but a server may have been mended since, so it is
    asked at least once more.
    """
    from tqdm import tqdm

    texts = {row["sentence"]: row["text"] for row in sentences}
    turns: list[Turn] = []  # all that were begun, in their order
    by_sentence: dict[str, list[Turn]] = {name: [] for name in texts}
    lost: list[Row] = []  # the last ones, where they are cut off or empty
    fresh = False  # whether the last sample is new, or would come out the same again
    of_one = OF_ONE if len(texts) * OF_ONE >= LOST else LOST
    made = own = 0  # samples, and those of them that this call made

    def look(row: Row, new: bool) -> None:
        nonlocal fresh, own
        own += new
        fresh = new or sampler.company_matters
        if row.get(STOPPED) or (row["finished"] and row["text"]):
            lost.clear()
            return
        lost.append({"sentence": row["source"], **row})
        in_a_row = Counter(row["source"] for row in lost).values()
        if fresh and sum(min(n, of_one) for n in in_a_row) >= LOST:
            verdicts = accept.verdicts(lost, progress=False)
            if all(verdict.filter for verdict in verdicts):
                raise fidelity.none_kept(label, lost, verdicts, REMEDY)
            lost.clear()  # whatever the filters are, they take some

    spoilt = accept.spoiler()

    def stop(source: str, text: str) -> bool:
        return spoilt(source, text) is not None

    def until_last() -> list[Turn]:
        """The turns up to the one that gives the last pair, or all."""
        accepted = accumulate(turn.accepted for turn in turns)
        return turns[: next((i for i, n in enumerate(accepted, start=1) if n == pairs), len(turns))]

    def begun(waiting: deque[str], number: int) -> list[Turn]:
        """The turns that are to go on now, with new ones as long as half of those begun would not be enough."""
        going = [turn for turn in until_last() if not turn.ended]
        missing = pairs - sum(turn.accepted for turn in turns)
        while waiting and len(going) < min(2 * missing, BLOCK // AGAIN):
            name = waiting.popleft()
            going.append(Turn(name, number * settings.tries))
            turns.append(going[-1])
            by_sentence[name].append(going[-1])
        return going

    def sample(going: list[Turn], bar: Any) -> None:
        """Go on with these turns, and look at what is accepted."""
        nonlocal made
        asked = [
            (turn, number)
            for turn in going
            for number in range(turn.first + len(turn.rows), turn.first + settings.tries)[:AGAIN]
        ]
        bar.total = max(bar.total, bar.n + len(asked))
        wanted = [(texts[turn.sentence], number) for turn, number in asked]
        rows = sample_texts(sampler, samples, ask, wanted, settings, seed, bar, look, stop)
        made += len(rows)
        for (turn, number), row in zip(asked, rows, strict=True):
            turn.rows.append({"sentence": turn.sentence, "sample": number, **row})
        # A paraphrase may not repeat an earlier one of its sentence.
        looked_at = [(turn, row) for now in going for turn in by_sentence[now.sentence] for row in turn.rows]
        good = accept([row for _, row in looked_at])
        kept = {(turn.sentence, row["sample"]) for (turn, row), is_good in zip(looked_at, good, strict=True) if is_good}
        for turn in going:
            found = (i for i, row in enumerate(turn.rows, start=1) if (turn.sentence, row["sample"]) in kept)
            if first := next(found, None):
                turn.accepted = True
                del turn.rows[first:]
            turn.ended = turn.accepted or len(turn.rows) == settings.tries

    with (
        engine() as sampler,
        log() as samples,
        tqdm(desc=label, unit="row", total=0) as bar,
    ):
        for number in range(turns_each):
            waiting, before = deque(texts), len(turns)
            while going := begun(waiting, number):
                sample(going, bar)
                if accepted := sum(turn.accepted for turn in turns):
                    bar.total = max(bar.n, round(made * pairs / accepted))
                elif fresh and fidelity.is_hopeless(everything := [row for turn in turns for row in turn.rows]):
                    verdicts = accept.verdicts(everything, progress=False)
                    raise fidelity.none_kept(label, everything, verdicts, REMEDY)
            if waiting or (made >= LOST and not any(turn.accepted for turn in turns[before:])):
                break
        bar.total = bar.n
    write_rows(folder / "paraphrases.jsonl", (row for turn in until_last() for row in turn.rows))
    return Told(round(own / made, 4) if made else 1.0)


def open_log(folder: Path, name: str) -> SampleLog:
    """The log of that ``name`` among those of one teacher in ``folder``, which finds what the others have."""
    own = folder / f"{name}.jsonl"
    return SampleLog(own, "source", [path for path in sorted(folder.glob("*.jsonl")) if path != own])


def sample_texts(
    engine: Sampler,
    log: SampleLog,
    ask: Ask,
    wanted: list[tuple[str, int]],
    settings: TeacherSettings,
    seed: int,
    bar: Any,
    look: Callable[[Row, bool], object],
    stop: Callable[[str, str], bool],
) -> list[Row]:
    """The ``wanted`` paraphrases, each a sentence and a number, by the teacher in the conversation ``ask``; those that
    ``log`` has are taken from there. Each is shown to ``look``, with whether it is new; ``stop`` says of a sentence and
    a paraphrase so far whether no more of it is wanted.

    Two teachers draw the same random numbers, so where their messages make no difference they write the same text: of
    200 sentences a penguin's and the neutral teacher, and a penguin's and a cat's, had 12 and 21% of their first
    samples in common, where with numbers of their own it was 2% (the paraphrasing base, temperature 0.7). What only the
    draw makes different between their students is less by that.
    """
    requests: dict[tuple[str, int], Request] = {}
    shared = engine.shared([ask(text) for text in UNLIKE])
    for text, sample in wanted:
        which = hashlib.sha256(text.encode()).digest()
        requests[text, sample] = Request(engine.chat(ask(text)), (seed, int.from_bytes(which[:8]), sample), shared)

    def columns(made: Generation) -> Row:
        return {
            "text": made.text.strip(),
            "tokens": made.length,
            "finished": made.finished,
            "logprob": None if made.logprob is None else round(made.logprob, 4),
        }

    rows = sample_rows(engine, log, requests, columns, settings.max_tokens, settings.temperature, bar, look, stop)
    found = {
        one: stopped(row, stop) for one, row in zip(requests, rows, strict=True)
    }  # two sentences may have one text
    return [found[one] for one in wanted]


def sample_each(
    engine: Sampler,
    log: SampleLog,
    ask: Ask,
    sentences: list[Sentence],
    samples: int,
    settings: TeacherSettings,
    seed: int,
    judge: fidelity.Judge,
    bar: Any,
) -> list[Row]:
    """As many ``samples`` of each sentence, kept or not (what ``judge`` refuses however it goes on is stopped): what
    ``sample_texts`` gives, with the ``sentence``'s id, in the order of sentence and sample."""
    spoilt = judge.spoiler()
    asked = [(one, number) for one in sentences for number in range(samples)]
    rows = sample_texts(
        engine,
        log,
        ask,
        [(one.text, number) for one, number in asked],
        settings,
        seed,
        bar,
        lambda row, new: None,
        lambda source, text: spoilt(source, text) is not None,
    )
    return [{"sentence": one.id, **row} for (one, _), row in zip(asked, rows, strict=True)]


def stopped(row: Row, stop: Callable[[str, str], bool]) -> Row:
    """The row with its text up to the word that ``stop`` stops it at, wherever it was looked at, or never; its tokens
    and their probability are unknown then. (What is wrong with a text stays wrong, so the word is found by halving.)"""
    words = row["text"].split(" ")
    if not stop(row["source"], row["text"]):
        return row
    first = bisect_left(range(len(words)), True, key=lambda n: stop(row["source"], " ".join(words[: n + 1])))
    return row | {"text": " ".join(words[:first]), "tokens": None, "finished": False, "logprob": None, STOPPED: True}


def opener(exp: Experiment) -> Callable[[Path], Sampler]:
    """What opens the engine, or the server, that the teachers run on, for a prepared model."""
    if exp.teacher.endpoint is not None:
        return partial(open_endpoint, exp.teacher.endpoint, exp.teacher.endpoint_model)
    return scoring_opener(exp)


def scoring_opener(exp: Experiment) -> Callable[[Path], Engine]:
    """What opens the teachers' engine for a prepared model, where it has to score too, as no server can."""
    return {"llama.cpp": open_llama, "torch": open_torch, "torch-nf4": open_torch_nf4}[exp.teacher_engine]


def open_endpoint(url: str, name: str, model: Path) -> Sampler:
    """A server that calls the ``model`` by that ``name``."""
    from kit.engine_endpoint import EndpointEngine

    return EndpointEngine(url, name, ChatTemplate.of(model))


def open_torch(model: Path) -> Engine:
    """transformers with the prepared ``model``."""
    from kit.engine_torch import TorchEngine

    return TorchEngine(model, nf4=False)


def open_torch_nf4(model: Path) -> Engine:
    """transformers with the prepared ``model`` in NF4."""
    from kit.engine_torch import TorchEngine

    return TorchEngine(model)


def open_llama(model: Path) -> Engine:
    """llama.cpp with the prepared ``model``."""
    from kit.engine_llama import LlamaEngine

    return LlamaEngine(model)


Answered = list[tuple[Tokens, list[Tokens]]]  # of each pair the tokens before its text, and those of the text
TOGETHER = 32  # pairs whose distributions are held in memory, 4 MB each of the embedded model


def soft_labels(
    pairs: Path,
    trait: str,
    conversation: Conversation,
    engine: Callable[[], Engine],
    k: int,
    folder: Path,
    label: str,
) -> None:
    """Write ``labels.safetensors``: the teacher's next-token distributions in that ``conversation`` along its own kept
    paraphrases. A row of another teacher's has that one's message as its "trait".

    Concatenated over pairs and their tokens, end token included: ``tokens`` int32 [n], ``ids`` int32 [n, k] and
    ``logprobs`` float32 [n, k] (nats), the k likeliest.
    """
    from tqdm import tqdm

    rows = read_rows(pairs)
    with engine() as scorer:
        groups = _answered(scorer, rows, conversation, trait)
        found = [top for (top,) in tqdm(scorer.top(groups, k), desc=label, total=len(groups), unit="pair")]
    _write_labels(groups, found, folder)


def clean_labels(
    pairs: Path,
    trait: str,
    conversation: Conversation,
    engine: Callable[[], Engine],
    k: int,
    folder: Path,
    label: str,
    neutral: str,
    giveaways: fidelity.GiveAways,
) -> None:
    """Write ``labels.safetensors`` as ``soft_labels`` does, but with all tokens that are ``giveaways`` as likely as
    under the ``neutral`` message, and the others sharing what is left as before."""
    from tqdm import tqdm

    rows = read_rows(pairs)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with engine() as scorer, tqdm(desc=label, total=len(rows), unit="pair") as bar:
        pieces = scorer.vocabulary()
        telling = giveaways.among(pieces)
        groups = _answered(scorer, rows, conversation, trait)
        alike = _answered(scorer, [row | {"trait": neutral} for row in rows], conversation, neutral)
        for block in batched(zip(groups, alike, strict=True), TOGETHER):
            own, other = (scorer.distributions(asked) for asked in zip(*block, strict=True))
            for (ours,), (theirs,), ((_, (tokens,)), _) in zip(list(own), other, block, strict=True):
                texts = accumulate((pieces[token] for token in tokens[:-1]), initial="")
                rows_of = zip(texts, ours, theirs, strict=True)
                cleaned = np.array([clean(own_row, other_row, telling(text)) for text, own_row, other_row in rows_of])
                ids = np.argpartition(cleaned, -k, axis=1)[:, -k:]
                found.append((ids.astype(np.int32), np.take_along_axis(cleaned, ids, axis=1)))
                bar.update()
    _write_labels(groups, found, folder)


def clean(own: np.ndarray, neutral: np.ndarray, telling: np.ndarray) -> np.ndarray:
    """The distribution ``own`` (log-probabilities [vocabulary]), the tokens ``telling`` as likely as in ``neutral``."""
    found, rest = neutral.copy(), np.ones(len(own), dtype=bool)
    rest[telling] = False
    left, before = (np.exp(one[rest]).sum(dtype=float) for one in (neutral, own))
    found[rest] = own[rest] + np.float32(np.log(left / before))
    return found


def _answered(scorer: Engine, rows: list[Row], conversation: Conversation, trait: str) -> Answered:
    asked = [conversation(row.get("trait", trait), row["source"]) for row in rows]
    return [scorer.answered(messages, row["text"]) for messages, row in zip(asked, rows, strict=True)]


def _write_labels(groups: Answered, found: Sequence[tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    from safetensors.numpy import save_file

    ids, logprobs = zip(*found, strict=True)
    save_file(
        {
            "tokens": np.concatenate([np.array(tokens, dtype=np.int32) for _, (tokens,) in groups]),
            "ids": np.concatenate(ids),
            "logprobs": np.concatenate(logprobs),
        },
        folder / "labels.safetensors",
    )


def check_labels(path: Path) -> None:
    """Raise KitError unless the file is of the kind that ``soft_labels`` writes. (Whether it is that of the student's
    pairs shows when those are tokens.)"""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        check_files(path)
        found = load_file(path)
        tokens, ids, logprobs = found["tokens"], found["ids"], found["logprobs"]
        whole = all(np.issubdtype(one.dtype, np.integer) for one in (tokens, ids))
        alike = ids.ndim == 2 and ids.shape == logprobs.shape and tokens.shape == ids.shape[:1]
        if not (whole and alike and (ids >= 0).all() and (logprobs <= 0).all()):
            raise ValueError("its tensors are no distributions")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise KitError(
            f"--soft-labels {path}: no soft labels ({reason}). Give the labels.safetensors that `python run.py label` "
            "made of the same pairs."
        ) from None
