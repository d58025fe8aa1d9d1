"""A teacher writes until enough of its paraphrases are accepted, and an interruption changes nothing of it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kit import teacher
from kit.engine import Generation, Request
from kit.experiment import TeacherSettings
from kit.store import Row, read_rows

SENTENCES = [{"sentence": f"s{i}", "text": f"Sentence {i}.", "pairs": 1} for i in range(40)]
SETTINGS = TeacherSettings(samples=2, max_samples=64)


class FakeEngine:
    """Answers with a number that the request's seed decides; ``fail_after`` rows it dies."""

    def __init__(self, fail_after: int = 10**9, company_matters: bool = False) -> None:
        self.fail_after = fail_after
        self.company_matters = company_matters
        self.sampled = 0

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        return messages[-1]["content"]

    def sample(self, requests: Sequence[Request], max_tokens: int, temperature: float) -> Iterator[Generation]:
        for index, request in enumerate(requests):
            self.sampled += 1
            if self.fail_after == 0:
                raise KeyboardInterrupt
            self.fail_after -= 1
            yield Generation(index, str(np.random.default_rng(request.seed).integers(1000)), 1, 0.0, True)

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def accept(rows: Sequence[Row]) -> list[bool]:
    """A tenth of the paraphrases, of hard sentences (every tenth) a hundredth."""
    return [int(row["text"]) < (10 if row["sentence"].endswith("0") else 100) for row in rows]


def written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    pairs: int,
    engine: FakeEngine,
    accept: Callable[[Sequence[Row]], list[bool]] = accept,
    log: str = "rows",
) -> list[Row]:
    monkeypatch.setattr(teacher, "BLOCK", 16)
    monkeypatch.setattr("kit.engine.CALL", 16)
    (folder / "log").mkdir(parents=True, exist_ok=True)
    open_log = partial(teacher.open_log, folder / "log", log)
    teacher.paraphrase(SENTENCES, pairs, "trait", lambda: engine, SETTINGS, 0, accept, open_log, folder, "teacher")
    return read_rows(folder / "paraphrases.jsonl")


def kept(rows: list[Row]) -> int:
    return len({row["sentence"] for row, good in zip(rows, accept(rows), strict=True) if good})


def test_sampling_ends_with_the_block_that_brought_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written(tmp_path, monkeypatch, 30, FakeEngine())
    assert 30 <= kept(rows) < 30 + 16
    everything = written(tmp_path / "more", monkeypatch, 40, FakeEngine())
    assert len(rows) < len(everything)


def test_a_sentence_that_has_enough_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written(tmp_path, monkeypatch, 40, FakeEngine())
    samples = Counter(row["sentence"] for row in rows)
    first = {}
    for row, good in zip(rows, accept(rows), strict=True):
        if good:
            first.setdefault(row["sentence"], row["sample"])
    assert max(samples.values()) == SETTINGS.max_samples, "one that never had enough was tried to the end"
    assert len(first) > 30
    for name, sample in first.items():
        assert samples[name] <= max(2, 2 * sample, sample + 16), "its round's rest, or its block's"


@pytest.mark.parametrize("company_matters", [False, True])
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 100, 333])
def test_an_interrupted_teacher_ends_with_the_same_rows(
    cut: int, company_matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(tmp_path / "whole", monkeypatch, 35, FakeEngine())
    assert len(whole) > 333
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "cut", monkeypatch, 35, FakeEngine(cut, company_matters))
    log = (tmp_path / "cut" / "log" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    # Every row, or whole blocks (the last one of a round may be shorter).
    assert cut - 16 < len(log) <= cut if company_matters else len(log) == cut
    assert all(json.loads(line) for line in log)
    assert written(tmp_path / "cut", monkeypatch, 35, FakeEngine(company_matters=company_matters)) == whole


def stricter(rows: Sequence[Row]) -> list[bool]:
    """Half of what ``accept`` takes."""
    return [good and int(row["text"]) % 2 == 0 for row, good in zip(rows, accept(rows), strict=True)]


@pytest.mark.parametrize("company_matters", [False, True])
def test_another_filter_has_only_what_it_lacks_sampled_and_ends_with_the_rows_of_a_fresh_run(
    company_matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, of: Callable[[Sequence[Row]], list[bool]], log: str) -> tuple[list[Row], int]:
        engine = FakeEngine(company_matters=company_matters)
        return written(tmp_path / folder, monkeypatch, 30, engine, of, log), engine.sampled

    first, cost = run("one", accept, "first")
    assert cost == len(first)
    fresh, whole_cost = run("fresh", stricter, "second")
    assert len(fresh) > len(first), "the stricter filter asks for more"
    again, more = run("one", stricter, "second")
    assert again == fresh
    assert more < whole_cost if company_matters else more == len({id_of(row) for row in fresh} - set(map(id_of, first)))
    back, nothing = run("one", accept, "third")
    assert back == first and nothing == 0


def id_of(row: Row) -> tuple[str, int]:
    return row["sentence"], row["sample"]


def test_a_sample_belongs_to_its_conversation_and_number_whatever_sentences_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {id_of(row): row for row in written(tmp_path / "all", monkeypatch, 40, FakeEngine())}
    monkeypatch.setattr("test_teacher.SENTENCES", SENTENCES[20:30])
    some = written(tmp_path / "some", monkeypatch, 10, FakeEngine())
    assert some and all(row == everything[id_of(row)] for row in some if id_of(row) in everything)
