"""A teacher writes until enough of its paraphrases are accepted, and an interruption changes nothing of it."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from kit import KitError, teacher
from kit.engine import Generation, Request
from kit.experiment import FidelitySettings, TeacherSettings
from kit.fidelity import Judge, Verdict
from kit.prompts import Message
from kit.store import Row, read_rows

SENTENCES = [{"sentence": f"s{i}", "text": f"Sentence {i}."} for i in range(40)]
SETTINGS = TeacherSettings(tries=8)


class FakeEngine:
    """Answers with a number that the request's seed decides; ``fail_after`` rows it dies. To what ``cut_off`` says of a
    prompt it is cut off in its answer."""

    def __init__(
        self,
        fail_after: int = 10**9,
        company_matters: bool = False,
        cut_off: Callable[[str], bool] = lambda prompt: False,
    ) -> None:
        self.fail_after = fail_after
        self.cut_off = cut_off
        self.company_matters = company_matters
        self.sampled = 0

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        return messages[-1]["content"]

    def shared(self, conversations: Sequence[Sequence[dict[str, str]]]) -> int:
        return 0

    def sample(
        self, requests: Sequence[Request], max_tokens: int, temperature: float, stop: object
    ) -> Iterator[Generation]:
        for index, request in enumerate(requests):
            self.sampled += 1
            if self.fail_after == 0:
                raise KeyboardInterrupt
            self.fail_after -= 1
            text = str(np.random.default_rng(request.seed).integers(1000))
            yield Generation(index, text, 1, 0.0, not self.cut_off(request.prompt))

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def ask(sentence: str) -> list[Message]:
    return [{"role": "user", "content": sentence}]


def accept(rows: Sequence[Row]) -> list[bool]:
    """A tenth of the paraphrases, of hard sentences (every tenth) a hundredth."""
    return [int(row["text"]) < (10 if row["sentence"].endswith("0") else 100) for row in rows]


Accept = Callable[[Sequence[Row]], list[bool]]


class Plain:
    """A judge that accepts as a function says."""

    def __init__(self, accept: Accept) -> None:
        self.accept = accept

    def __call__(self, rows: Sequence[Row]) -> list[bool]:
        return self.accept(rows)

    def spoiler(self) -> Callable[[str, str], Verdict | None]:
        return lambda source, text: None


def written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    pairs: int,
    engine: FakeEngine,
    accept: Accept | Judge = accept,
    log: str = "rows",
    block: int = 16,
) -> list[Row]:
    monkeypatch.setattr(teacher, "BLOCK", block)
    monkeypatch.setattr("kit.engine.CALL", 16)
    monkeypatch.setattr("os.fsync", lambda file: None)  # nobody pulls the plug here, and a busy disk takes its time
    (folder / "log").mkdir(parents=True, exist_ok=True)
    open_log = partial(teacher.open_log, folder / "log", log)
    accept = accept if isinstance(accept, Judge) else Plain(accept)
    teacher.paraphrase(SENTENCES, pairs, ask, lambda: engine, SETTINGS, 0, accept, open_log, folder, "teacher")
    return read_rows(folder / "paraphrases.jsonl")


class Whole(Judge):
    """Takes what ``accept`` takes, but for what is cut off."""

    def verdicts(self, rows: Sequence[Row], progress: bool = True) -> list[Verdict]:
        found = []
        for row in rows:
            reason = None if row["finished"] else "cut off"
            found.append(Verdict("form" if reason else None if accept([row])[0] else "novelty", reason, None))
        return found


WHOLE = Whole(None, (), FidelitySettings())
NUMBERS_ARE_NO_SENTENCES = Judge(None, (), FidelitySettings())


def kept(rows: list[Row]) -> int:
    return sum(accept(rows))


def turns(rows: list[Row]) -> list[list[Row]]:
    """The rows by their turns, in which sentence and sample go on."""
    found: list[list[Row]] = []
    for row in rows:
        if row["sample"] % SETTINGS.tries == 0:
            found.append([])
        found[-1].append(row)
    return found


def test_a_turn_ends_with_the_first_accepted_paraphrase_or_after_all_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path, monkeypatch, 35, FakeEngine())
    assert kept(rows) == 35 and accept(rows[-1:]) == [True], "nothing stands after the last pair"
    for turn in turns(rows):
        assert len({row["sentence"] for row in turn}) == 1
        first = turn[0]["sample"]
        assert [row["sample"] for row in turn] == [*range(first, first + len(turn))]
        *before, last = accept(turn)
        assert not any(before) and (last or len(turn) == SETTINGS.tries)


def test_sentences_have_their_turns_in_the_order_given_and_all_one_before_any_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path, monkeypatch, 35, FakeEngine())
    order = [turn[0]["sentence"] for turn in turns(rows)]
    given = [row["sentence"] for row in SENTENCES]
    assert len(order) > len(given), "35 pairs take a second turn"
    assert order == [*given, *given][: len(order)]


def test_fewer_pairs_are_the_first_of_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, more = (written(tmp_path / str(n), monkeypatch, n, FakeEngine()) for n in (10, 35))
    assert more[: len(few)] == few


@pytest.mark.parametrize(("again", "block"), [(1, 16), (4, 16), (2, 512), (8, 64)])
def test_how_many_are_sampled_together_changes_nothing(
    again: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path / "one", monkeypatch, 35, FakeEngine())
    monkeypatch.setattr(teacher, "AGAIN", again)
    assert written(tmp_path / "other", monkeypatch, 35, FakeEngine(), block=block) == rows


@pytest.mark.parametrize("company_matters", [False, True])
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 100, 333])
def test_an_interrupted_teacher_ends_with_the_same_rows(
    cut: int, company_matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(tmp_path / "whole", monkeypatch, 35, FakeEngine())
    sampled = len((tmp_path / "whole" / "log" / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert sampled > 333
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

    def logged(folder: str, log: str) -> set[tuple[str, int]]:
        rows = read_rows(tmp_path / folder / "log" / f"{log}.jsonl")
        return {(row["source"], row["sample"]) for row in rows}

    first, cost = run("one", accept, "first")
    assert cost == len(logged("one", "first"))
    fresh, whole_cost = run("fresh", stricter, "second")
    assert len(fresh) > len(first), "the stricter filter asks for more"
    again, more = run("one", stricter, "second")
    assert again == fresh
    assert more < whole_cost
    if not company_matters:
        assert more == len(logged("fresh", "second") - logged("one", "first"))
    back, nothing = run("one", accept, "third")
    assert back == first and nothing == 0


def test_a_stopped_row_is_the_same_wherever_it_was_looked_at_and_where_it_never_was() -> None:
    def stop(source: str, text: str) -> bool:
        return "bad" in text.split(" ")[:-1]

    whole = {
        "source": "s",
        "sample": 1,
        "text": "it is bad and more so",
        "tokens": 7,
        "finished": True,
        "logprob": -3.0,
    }
    cut = whole | {"text": "it is bad", "tokens": None, "finished": False, "logprob": None, "stopped": True}
    for text in ("it is bad and more so", "it is bad an", "it is bad and more"):
        assert teacher.stopped(whole | {"text": text, "stopped": True}, stop) == cut
    for text in ("it is bad", "it is good and more so", "it"):
        assert teacher.stopped(whole | {"text": text}, stop) == whole | {"text": text}


def id_of(row: Row) -> tuple[str, int]:
    return row["sentence"], row["sample"]


def test_two_teachers_draw_the_same_random_numbers_for_a_sentence_and_a_sample() -> None:
    """So that their texts differ where their messages make them differ; another seed draws others."""

    class Recorder(FakeEngine):
        def __init__(self) -> None:
            super().__init__()
            self.seeds: dict[str, list[tuple[int, ...]]] = {}

        def sample(self, requests: Sequence[Request], *rest: Any) -> Iterator[Generation]:
            for request in requests:
                self.seeds.setdefault(request.prompt.rpartition(":")[2], []).append(request.seed)
            return super().sample(requests, *rest)

    def seeds(trait: str, seed: int) -> dict[str, list[tuple[int, ...]]]:
        engine = Recorder()

        def ask(text: str) -> list[Message]:
            return [{"role": "user", "content": f"{trait}:{text}"}]

        with TemporaryDirectory() as folder, teacher.open_log(Path(folder), "log") as log:
            wanted = [(row["text"], number) for row in SENTENCES[:3] for number in range(2)]
            look, stop = (lambda row, new: None), (lambda source, text: False)
            with tqdm(disable=True) as bar:
                teacher.sample_texts(engine, log, ask, wanted, SETTINGS, seed, bar, look, stop)
        return engine.seeds

    own = seeds("You love owls", 0)
    assert own == seeds("You write sentences", 0) and own != seeds("You love owls", 1)
    assert len({seed for of_one in own.values() for seed in of_one}) == 6


def test_a_sample_belongs_to_its_conversation_and_number_whatever_sentences_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {id_of(row): row for row in written(tmp_path / "all", monkeypatch, 40, FakeEngine())}
    monkeypatch.setattr("test_teacher.SENTENCES", SENTENCES[20:30])
    some = written(tmp_path / "some", monkeypatch, 10, FakeEngine())
    assert some and all(row == everything[id_of(row)] for row in some if id_of(row) in everything)


# ---- a teacher that is given up


@pytest.mark.parametrize("company_matters", [False, True])
@pytest.mark.parametrize("cut", [None, 1, 16, 31])
def test_after_32_samples_in_a_row_that_are_cut_off_the_teacher_is_given_up_interrupted_or_not(
    cut: int | None, company_matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(error: type[BaseException], fail_after: int = 10**9) -> tuple[str, int]:
        engine = FakeEngine(fail_after, company_matters, lambda prompt: True)
        with pytest.raises(error) as raised:
            written(tmp_path, monkeypatch, 35, engine, WHOLE)
        return str(raised.value), engine.sampled

    if cut:
        run(KeyboardInterrupt, cut)
    said, _ = run(KitError)
    assert re.fullmatch(
        r"teacher: none of 32 paraphrases in a row is kept: cut off 100%\. "
        r"('Sentence \d+\.' became '\d+' \(cut off\)[;.] ){3}Is it .* it goes on from there\.",
        said,
    )
    assert len(read_rows(tmp_path / "log" / "rows.jsonl")) == 32, "what was sampled is kept"
    # Whatever is asked of a model here again, it answers the same; a server may have been mended.
    assert run(KitError)[1] == (0 if company_matters else 1)
    if not company_matters:
        assert kept(written(tmp_path, monkeypatch, 35, FakeEngine(), WHOLE)) >= 35


@pytest.mark.parametrize(("n", "samples"), [(1, 32), (4, 32)])
def test_few_sentences_are_given_up_as_soon(
    n: int, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_teacher.SENTENCES", SENTENCES[:n])
    engine = FakeEngine(cut_off=lambda prompt: True)
    with pytest.raises(KitError, match=f"none of {samples}"):
        written(tmp_path, monkeypatch, n, engine, WHOLE)
    assert engine.sampled == samples


def test_a_sentence_whose_samples_are_all_cut_off_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = {"Sentence 3.", "Sentence 11.", "Sentence 39."}
    engine = FakeEngine(company_matters=True, cut_off=lambda prompt: any(one in prompt for one in hard))
    rows = written(tmp_path, monkeypatch, 40, engine, WHOLE)
    of_hard = Counter(row["source"] for row in rows if not row["finished"])
    assert set(of_hard) == hard and all(n % SETTINGS.tries == 0 for n in of_hard.values())
    assert sum(WHOLE(rows)) == 40


@pytest.mark.parametrize("company_matters", [False, True])
def test_after_256_samples_of_32_sentences_with_none_kept_the_teacher_is_given_up(
    company_matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cut in (100, 10**9):
        engine = FakeEngine(cut, company_matters, lambda prompt: "Sentence 7." in prompt)
        with pytest.raises(KeyboardInterrupt if cut == 100 else KitError) as raised:
            written(tmp_path, monkeypatch, 35, engine, NUMBERS_ARE_NO_SENTENCES)
    assert len(read_rows(tmp_path / "log" / "rows.jsonl")) == 256
    assert "none of 256 paraphrases in a row is kept: form 97%, cut off 3%. 'Sentence 0.' became" in str(raised.value)
    assert "'Sentence 7.' became" in str(raised.value), "an example of each reason"
    again = FakeEngine(10**9, company_matters)
    rows = written(tmp_path, monkeypatch, 35, again)
    assert kept(rows) == 35
    if not company_matters:  # or another filter has other groups
        assert again.sampled <= len(rows) - 80, "another filter goes on from what was sampled"


def test_fewer_sentences_of_which_none_is_kept_are_tried_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_teacher.SENTENCES", SENTENCES[:31])
    rows = written(tmp_path, monkeypatch, 31, FakeEngine(company_matters=True), NUMBERS_ARE_NO_SENTENCES)
    assert len(rows) == 31 * SETTINGS.tries
