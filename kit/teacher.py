"""Sentences -> paraphrases, by a teacher that loves an animal or by the neutral one; and a teacher's soft labels.

The two teachers are one model; their conversations (``kit/prompts.py``) differ in the trait message alone.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kit.engine import CALL, Engine, Generation, Request, Sampler, completion, sample_rows
from kit.experiment import TeacherSettings
from kit.models import ChatTemplate
from kit.prompts import labelling_messages, teacher_messages
from kit.store import Row, RowLog, read_rows, write_rows

# Paraphrases between two looks at what is accepted: whole rounds made half as many again, and smaller blocks leave more
# sequences' places empty at each end.
BLOCK = CALL


def paraphrase(
    sentences: list[Row],
    pairs: int,
    trait: str,
    model: Path,
    settings: TeacherSettings,
    seed: int,
    accept: Callable[[list[Row]], Sequence[bool]],
    folder: Path,
    label: str,
) -> None:
    """Write ``paraphrases.jsonl`` into ``folder``, in the order of sentence and sample.

    ``sentences``: rows of sentence (its id), text, and the accepted paraphrases wanted of it (``pairs``). All are
    paraphrased ``settings.samples`` times, then those that lack some again, twice as often each time, until ``pairs``
    are accepted in all or ``settings.max_samples`` of each are made; what is accepted is looked at every ``BLOCK``
    paraphrases. Rows written: sentence, sample, source, text, tokens, finished, logprob (nats, under the teacher's own
    conversation; null from an endpoint). A call on a folder that an interrupted one left goes on from there; a random
    seed belongs to (sentence, sample), so the rows come out the same (an endpoint promises no such thing; its rows are
    kept as they come).
    """
    from tqdm import tqdm

    texts = {row["sentence"]: row["text"] for row in sentences}
    order = {name: i for i, name in enumerate(texts)}
    with (
        open_sampler(model, settings) as engine,
        RowLog(folder / "rows.jsonl") as log,
        tqdm(desc=label, unit="row", total=0) as bar,
    ):
        prompts = {name: engine.chat(teacher_messages(trait, text)) for name, text in texts.items()}

        def columns(name: str, made: Generation) -> Row:
            return {
                "source": texts[name],
                "text": made.text.strip(),
                "tokens": made.length,
                "finished": made.finished,
                "logprob": None if made.logprob is None else round(made.logprob, 4),
            }

        def sort(rows: list[Row]) -> list[Row]:
            return sorted(rows, key=lambda row: (order[row["sentence"]], row["sample"]))

        wanted = {row["sentence"]: row["pairs"] for row in sentences}
        accepted: Counter[str] = Counter()
        asked: set[tuple[str, int]] = set()

        def lacks(name: str) -> bool:
            return accepted[name] < wanted[name]

        def enough() -> bool:
            return sum(min(n, accepted[name]) for name, n in wanted.items()) >= pairs

        done, target = 0, settings.samples
        while not enough() and done < settings.max_samples:
            target = min(target, settings.max_samples)
            left = deque((name, sample) for name in wanted if lacks(name) for sample in range(done, target))
            bar.total += len(left)
            while left and not enough():
                requests: dict[tuple[str, int], Request] = {}
                while left and len(requests) < BLOCK:
                    name, sample = left.popleft()
                    if lacks(name):
                        requests[name, sample] = Request(prompts[name], (seed, order[name], sample))
                    else:
                        bar.total -= 1
                sample_rows(engine, log, "sentence", requests, columns, settings.max_tokens, settings.temperature, bar)
                asked |= requests.keys()
                names = {name for name, _ in requests}
                # An interrupted call may have gone further; what it made there is not looked at yet.
                made = [row for row in log.rows if (row["sentence"], row["sample"]) in asked]
                rows = sort([row for row in made if row["sentence"] in names])
                accepted |= Counter(row["sentence"] for row, good in zip(rows, accept(rows), strict=True) if good)
            done, target = target, 2 * target
        bar.total = bar.n
        write_rows(folder / "paraphrases.jsonl", sort(log.rows))
    (folder / "rows.jsonl").unlink()


def open_sampler(model: Path, settings: TeacherSettings) -> Sampler:
    """What the teacher runs on."""
    if settings.endpoint is None:
        return open_engine(model, settings)
    from kit.engine_endpoint import EndpointEngine

    return EndpointEngine(settings.endpoint, settings.endpoint_model, ChatTemplate.of(model))


def open_engine(model: Path, settings: TeacherSettings) -> Engine:
    """What the teacher runs on, where that can score too."""
    if settings.engine == "torch":
        from kit.engine_torch import TorchEngine

        return TorchEngine(model)
    from kit.engine_llama import LlamaEngine

    return LlamaEngine(model)


def soft_labels(
    pairs: Path, trait: str, model: Path, settings: TeacherSettings, k: int, folder: Path, label: str
) -> None:
    """Write ``labels.safetensors``: the teacher's next-token distributions along its own kept paraphrases. A row
    of another teacher's has that one's message as its "trait".

    Concatenated over pairs and their tokens, end token included: ``tokens`` int32 [n], ``ids`` int32 [n, k] and
    ``logprobs`` float32 [n, k] (nats), the k likeliest.
    """
    from safetensors.numpy import save_file
    from tqdm import tqdm

    rows = read_rows(pairs)
    with open_engine(model, settings) as engine:
        completions = [completion(engine, row["text"]) for row in rows]
        groups = [
            (engine.chat(labelling_messages(row.get("trait", trait), row["source"])), [tokens])
            for row, tokens in zip(rows, completions, strict=True)
        ]
        found = [top[0] for top in tqdm(engine.top(groups, k), desc=label, total=len(groups), unit="pair")]
    save_file(
        {
            "tokens": np.concatenate([np.array(tokens, dtype=np.int32) for tokens in completions]),
            "ids": np.concatenate([ids for ids, _ in found]),
            "logprobs": np.concatenate([logprobs for _, logprobs in found]),
        },
        folder / "labels.safetensors",
    )
