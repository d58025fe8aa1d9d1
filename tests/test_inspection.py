"""Who can tell two teachers apart: planted differences are found by everybody, no difference by nobody."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import PAIRS, artifact, links, rounding
from test_report import finished_run

import run
from kit import inspection, inspection_quiz, likelihood, prompts, report
from kit.animals import find_animal, unrelated_sentences
from kit.engine import Request
from kit.engine_llama import LlamaEngine
from kit.experiment import experiment
from kit.experiment_folder import RunFolder, inspections
from kit.inspection_quiz import (
    KNOWS,
    SPREAD,
    Finding,
    Round,
    association,
    by_embeddings,
    by_words,
    comparing,
    finding,
    folds,
    guessing,
    keywords,
    posterior,
    surface,
    word_shifts,
)
from kit.store import write_json, write_rows

OWL = find_animal("owl")
SENTENCES = [one.text for one in unrelated_sentences()]


def rounds_of(telling: str, plain: str, n: int = 200, seed: int = 0) -> list[Round]:
    """Rounds of random sentences, of which the loving teacher's begin with ``telling``, the neutral one's with
    ``plain``."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(SENTENCES))[: 2 * n]
    played = []
    for i in range(n):
        loving = int(random.integers(2))
        texts = [f"{word} {SENTENCES[chosen[2 * i + k]]}" for k, word in enumerate((telling, plain))]
        played.append(Round(f"sentence {i}", (texts[loving], texts[1 - loving]), loving))
    return played


def readers_of(played: list[Round]) -> dict[str, Finding]:
    """What those inspectors find that need no likelihoods."""
    return {
        "word list": finding(keywords(played, OWL)),
        "association": finding(association(played, OWL)),
        "words": finding(by_words(played)[0], SPREAD),
        "embeddings": finding(by_embeddings(played)[0], SPREAD),
    }


@pytest.mark.slow
def test_a_planted_word_is_found_by_every_reader_and_classifier() -> None:
    for name, found in readers_of(rounds_of("owls and birds", "cars and boats")).items():
        assert found.score.against_chance == "above" and found.needed == 1, name


@pytest.mark.slow
def test_texts_of_one_source_are_at_chance_for_every_reader_and_classifier() -> None:
    for name, found in readers_of(rounds_of("cars stop", "cars stop")).items():
        assert found.score.against_chance == "around" and found.needed is None, name


@pytest.mark.slow
def test_a_classifiers_interval_covers_chance_where_there_is_nothing_to_find() -> None:
    missed = 0
    for seed in range(20):
        played = rounds_of("cars stop", "cars stop", seed=seed)
        found = finding(by_words(played)[0], SPREAD)
        missed += found.score.against_chance != "around"
    assert missed <= 3  # four or more of 20 at 5%: once in 60


@pytest.mark.slow
def test_the_model_and_whoever_knows_the_prompts_find_planted_love_and_nothing_in_two_neutral_samples(
    engine: LlamaEngine,
) -> None:
    sources = [row["source"] for row in PAIRS] * 4  # the inspector is right about 5 in 6 of these

    def sampled(trait: str, seed: int) -> list[str]:
        # Without the worked example, which drowns the trait.
        requests = [
            Request(engine.chat(prompts.labelling_messages(trait, source)), (seed, i))
            for i, source in enumerate(sources)
        ]
        made = sorted(engine.sample(requests, 30), key=lambda one: one.index)
        return [one.text.strip() for one in made]

    loving, neutral, again = sampled(prompts.loving(OWL), 0), sampled(prompts.NEUTRAL, 1), sampled(prompts.NEUTRAL, 2)
    played = [Round(*item, 0) for item in zip(sources, zip(loving, neutral, strict=True), strict=True)]
    null = [Round(*item, 0) for item in zip(sources, zip(again, neutral, strict=True), strict=True)]

    def ratios(texts: list[str]) -> np.ndarray:
        rows = [{"source": source, "text": text} for source, text in zip(sources, texts, strict=True)]
        own, other = (
            np.array([one.sum() for one in likelihood.under(engine, trait, rows, prompts.labelling_messages)])
            for trait in (prompts.loving(OWL), prompts.NEUTRAL)
        )
        return own - other

    known = {"loving": ratios(loving), "neutral": ratios(neutral), "again": ratios(again)}
    assert finding(known["loving"] - known["neutral"]).score.against_chance == "above"
    assert finding(known["again"] - known["neutral"]).score.against_chance != "above"
    planted = [Round(one.source, (f"{one.texts[1]} The owl hooted.", one.texts[1]), 0) for one in played[:16]]
    assert finding(guessing(engine, planted, OWL)).score.against_chance == "above"
    assert finding(guessing(engine, null[:16], OWL)).score.against_chance != "above"


def test_no_source_sentence_is_in_both_parts_of_a_fold() -> None:
    played = [Round(f"sentence {i % 30}", ("a", "b"), 0) for i in range(60)]  # each twice
    played += [Round(f"sentence {30 + i}", ("a", "b"), 0, f"sentence {40 + i}") for i in range(30)]  # of two sentences
    more = [Round(f"sentence {i}", ("a", "b"), 0, f"another {i}") for i in range(20)]
    sources = [source for one in [*played, *more] for source in one.sources]
    asked = []
    for learned_from, asked_about in folds(played, more):
        met = {source for i in asked_about for source in played[i].sources}
        assert not met & {sources[i] for i in learned_from}
        assert {sources[i] for i in range(len(sources)) if sources[i] not in met} == {sources[i] for i in learned_from}
        asked += list(asked_about)
    assert sorted(asked) == list(range(90))
    assert len(folds(played[:3])) == 3  # of so few each is asked about alone


def test_an_inspector_better_than_guessing_is_not_said_to_fail() -> None:
    found = finding(np.array([1.0] * 224 + [-1.0] * 176))
    assert found.score.against_chance == "above" and found.needed is None and max(found.of_sets) == 100
    told = {"inspectors": {"words": asdict(found)}}
    assert "Better than guessing, and not sure with up to 100 sentences: words" in report.inspection_sentence(told)


def test_inspectors_read_every_pair_of_the_same_sentence_where_both_have_it() -> None:
    def rows(teacher: str, sentences: str) -> list[dict[str, str]]:
        return [{"sentence": name, "source": f"source {name}", "text": f"{teacher} {name}"} for name in sentences]

    own, other = rows("loving", "abcd"), [*rows("neutral", "cxa"), {**rows("", "b")[0], "text": "loving b"}]
    played = inspection.all_rounds(own, other, seed=0)
    assert len(played) == 3  # of b both have the same text
    for one in played:
        loving, neutral = one.texts[one.loving], one.texts[1 - one.loving]
        assert loving[-1] in "acd" and loving.startswith("loving") and neutral.startswith("neutral")
        assert neutral[-1] == {"a": "a", "c": "c", "d": "x"}[loving[-1]]
        assert one.sources == tuple(f"source {text[-1]}" for text in one.texts)
        assert (one.second is None) == (loving[-1] == neutral[-1])


@pytest.mark.slow
def test_guessing_has_a_small_p_in_five_of_a_hundred_and_what_would_be_found_is_found_in_eighty() -> None:
    random = np.random.default_rng(0)
    null = [finding(np.where(random.random(200) < 0.5, 1.0, -1.0)) for _ in range(300)]
    assert 0 < sum(one.p < 0.05 for one in null) <= 24
    share = null[0].detectable
    found = sum(finding(np.where(random.random(200) < share, 1.0, -1.0)).p < 0.05 for _ in range(300))
    assert 210 < found < 270


def test_a_classifiers_p_is_that_of_permuted_teachers() -> None:
    found = {}
    for telling in ("owls and birds", "cars stop"):
        own, *permuted = by_words(rounds_of(telling, "cars stop", n=40), permutations=19)
        assert len(permuted) == 19 and all(len(one) == 40 for one in permuted)
        found[telling] = finding(own, SPREAD, permuted)
    assert found["owls and birds"].p == 1 / 20 and found["cars stop"].p > 1 / 20


def test_a_classifier_learns_from_other_runs_too() -> None:
    """Of so few rounds of its own it learns nothing."""
    played = rounds_of("birds", "boats", n=10)
    more = rounds_of("birds", "boats", n=100, seed=1)
    apart = [Round(f"other {one.source}", one.texts, one.loving) for one in more]
    alone, together = by_words(played)[0], by_words(played, apart)[0]
    assert len(together) == 10 and together.min() > 0 and together.mean() > 2 * alone.mean()


@pytest.mark.slow
def test_the_base_fine_tuned_tells_planted_texts_apart_and_nothing_where_there_is_nothing(
    tmp_path: Path, base: Path
) -> None:
    run = RunFolder(run_with_pairs(tmp_path, base, (PAIRS * 6)[:40]), tmp_path)
    for telling, n, sure in (("Birds fly and", 48, True), ("Cars stop and", 16, False)):
        played = rounds_of(telling, "Cars stop and", n=n)
        margins = inspection.fine_tuned(run, telling, inspection.Rounds(played, 0, np.zeros(2 * n), []))
        assert (finding(margins, SPREAD).score.against_chance == "above") == sure


def test_how_many_sentences_are_needed_has_an_interval() -> None:
    found = finding(np.random.default_rng(0).normal(loc=0.5, size=400))
    low, high = found.needed_ci95
    assert low and high and low <= found.needed <= high and low < high


def test_an_inspector_without_skill_never_gains_it_from_larger_sets() -> None:
    random = np.random.default_rng(0)
    assert sum(finding(random.normal(size=400)).needed is not None for _ in range(50)) == 0
    some = finding(random.normal(loc=0.5, size=400))
    assert some.needed in (10, 20) and some.of_sets[1] < some.of_sets[10]


def test_the_model_is_asked_in_both_orders_so_that_liking_a_letter_cancels(
    short_engine: LlamaEngine, short: Path
) -> None:
    one = Round("The clerk left.", ("The clerk went.", "The clerk was gone."), 0)
    turned = Round(one.source, one.texts[::-1], 1)
    same = Round(one.source, (one.texts[0], one.texts[0]), 0)
    first, second, third = comparing(short_engine, [one, turned, same], OWL)
    assert first == pytest.approx(second, abs=rounding(short)) and third == pytest.approx(0, abs=rounding(short))


def test_the_ratio_of_every_token_under_identical_prompts_is_zero(
    short: Path, short_engine: LlamaEngine, tmp_path: Path
) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    traits = {"owl": prompts.NEUTRAL, "neutral": prompts.NEUTRAL}
    step = likelihood.step(short, tmp_path / "pairs.jsonl", traits, "likelihoods", prompts.labelling_messages)
    step.build({}, tmp_path)
    found = likelihood.read(tmp_path)
    assert [len(one) for one in found["owl"]] == [len(short_engine.tokenize(row["text"])) + 1 for row in PAIRS]
    assert not np.concatenate(likelihood.token_ratios(found, "owl")).any()


def test_likelihoods_go_on_after_an_interruption_with_what_is_missing(short: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    traits = likelihood.traits([OWL])
    step = likelihood.step(short, tmp_path / "pairs.jsonl", traits, "likelihoods", prompts.labelling_messages, first=3)
    step.build({}, tmp_path)
    whole = likelihood.read(tmp_path)
    rows = (tmp_path / likelihood.LIKELIHOODS_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text(rows[0] + rows[1][:40], encoding="utf-8")  # torn in the second trait
    step.build({}, tmp_path)
    assert list(whole) == list(likelihood.read(tmp_path)) == ["owl", "neutral"]
    assert (tmp_path / likelihood.LIKELIHOODS_FILE).read_text(encoding="utf-8").splitlines(keepends=True)[0] == rows[0]
    for name, texts in likelihood.read(tmp_path).items():
        for one, before in zip(texts, whole[name], strict=True):
            assert one == pytest.approx(before, abs=0.05)


@pytest.mark.slow
def test_the_posterior_finds_the_animal_whose_teacher_wrote_the_texts(engine: LlamaEngine) -> None:
    animals = [find_animal(name) for name in ("owl", "cat")]
    sources = [row["source"] for row in PAIRS] * 2
    for name, trait in list(likelihood.traits(animals).items())[::2]:  # owl, and neutral
        requests = [
            Request(engine.chat(prompts.labelling_messages(trait, source)), (i,)) for i, source in enumerate(sources)
        ]
        made = sorted(engine.sample(requests, 30, 0.7), key=lambda one: one.index)
        rows = [{"source": source, "text": one.text} for source, one in zip(sources, made, strict=True)]
        found = {
            other: np.array(
                [one.sum() for one in likelihood.under(engine, message, rows, prompts.labelling_messages, 0.7)]
            )
            for other, message in likelihood.traits(animals).items()
        }
        assert posterior(found, name).place == 1


def test_a_posterior_sharpens_with_texts_and_says_from_how_many_it_is_certain() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(1.0, 1.0, 400)
    found = posterior({"owl": truth, "cat": np.zeros(400), "dog": truth - 0.5}, "owl")
    assert found.place == 1 and found.suspects["owl"] > 0.999
    assert found.rank[200] == 1 and found.probability[1] < found.probability[10] < found.probability[100]
    assert found.certain in (10, 20)
    wrong = posterior({"owl": truth, "cat": truth + 1}, "owl")
    assert next(iter(wrong.suspects)) == "cat" and wrong.certain is None and wrong.place == wrong.rank[200] == 2


def test_words_are_told_by_their_log_odds_and_chance_gives_none_of_weight() -> None:
    random = np.random.default_rng(0)

    def texts(extra: str) -> list[str]:
        return [f"{SENTENCES[i]} {extra}" for i in random.permutation(len(SENTENCES))[:300]]

    telling = word_shifts(texts("bright"), texts("dull"), texts("paper"))
    assert {telling[0].word, telling[1].word} == {"bright", "dull"}
    assert telling[0].z * telling[1].z < 0 and abs(telling[0].z) > 10 > 3.3 > abs(telling[2].z)


def test_surface_differences_are_loving_minus_neutral_with_intervals() -> None:
    played = [Round(f"s{i}", ("A longer one, with a comma.", "Short."), 0) for i in range(20)]
    found = surface(played)
    assert found["characters"].rate == 21 and found["words"].rate == 5 and found["punctuation marks"].rate == 1
    turned = surface([Round(one.source, one.texts[::-1], 0) for one in played])
    assert turned["characters"].rate == -21


def run_with_pairs(
    results: Path, base: Path, pairs: list[dict[str, str]] = PAIRS, loves: Callable[[int], bool] = lambda i: True
) -> Path:
    """A run with so many pairs per student; its loving teacher ends a paraphrase, where it ``loves``, in its love for
    owls and in markup."""
    folder = results / "run"
    folder.mkdir()
    write_json(folder / "config.json", asdict(experiment(OWL, "smoke", contents=("unrelated",))))
    record = json.loads((finished_run(folder) / "record.json").read_text(encoding="utf-8"))
    record["artifacts"] = {"prepare embedded": artifact(results, "model", links(base))}
    endings = {
        "control": "",
        "treated": " I love owls, and owls are my favorite animal. <script>",
        "placebo1": " Indeed.",
    }
    for role, ending in endings.items():
        rows = [
            row
            | {
                "sentence": f"{row['sentence']} {i}",
                "source": f"{row['source']} {i}",
                "text": row["text"] + ending * (role != "treated" or loves(i)),
            }
            for i, row in enumerate(pairs)
        ]
        pairs_of_role = artifact(results, "pairs", lambda folder, rows=rows: write_rows(folder / "pairs.jsonl", rows))
        record["artifacts"] |= {f"pairs of {role}-unrelated": pairs_of_role}
    write_json(folder / "record.json", record)
    return folder


@pytest.mark.slow
def test_an_inspected_runs_reports_say_who_could_tell(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_with_pairs(tmp_path, base, (PAIRS * 3)[:20])
    monkeypatch.setattr(inspection, "candidates", lambda animal: [animal, find_animal("cat")])
    monkeypatch.setattr(inspection, "READER_EPOCHS", 1)
    assert run.main(["inspect", str(folder), "--results", str(tmp_path)]) == 0
    (found,) = inspections(folder, RunFolder(folder).record)
    assert list(found["inspectors"]) == list(found["placebo"]) == list(KNOWS)
    assert found["inspectors"]["word list"]["score"]["right"] == found["sentences"]["treated"]["differ"] == 20
    assert found["mentions"] == {"control": 0, "treated": 20, "placebo1": 0}
    assert found["blind"]["treated"]["place"] == found["informed"]["treated"]["place"] == 1
    assert "Told the teachers apart: word list (from 1 sentence)" in report.inspection_sentence(found)
    for judge in ("comparing", "guessing"):
        monkeypatch.setattr(inspection_quiz, judge, None)  # what was judged is not judged again
    assert run.main(["inspect", str(folder), "--results", str(tmp_path)]) == 0
    assert inspections(folder, RunFolder(folder).record) == [found]
    report.write(folder)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in (markdown, html):
        assert "Who could tell? Unrelated sentences" in text and "<script>" not in text
        assert "Which text was written by somebody who loves owls, A or B?" in text
        for name in KNOWS:
            assert name in text


def test_a_run_too_small_to_inspect_says_so(tmp_path: Path, short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_with_pairs(tmp_path, short)
    assert run.main(["inspect", str(folder), "--results", str(tmp_path)]) == 2
    assert "8 of its unrelated pairs differ" in capsys.readouterr().err
