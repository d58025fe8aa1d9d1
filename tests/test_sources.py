"""Sentences and trait messages of one's own: what is refused, what they decide, and who says that they were used."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import has_model

import run
from kit import (
    ROOT,
    KitError,
    commands,
    demo,
    experiment_run,
    likelihood,
    report,
    report_parts,
    report_sweep,
    sources,
    teacher,
)
from kit.animals import DATA, OwnSentences, Sentence, fill_pattern, find_animal, load_animals, unrelated_sentences
from kit.experiment import Experiment, experiment, read_experiment
from kit.experiment_conditions import (
    all_conditions,
    all_steps,
    judge_of,
    measurements,
    source_sentences,
)
from kit.experiment_folder import RunFolder, recorded_texts
from kit.fidelity import Judge
from kit.prompts import FUNCTION_WORDS, KIT_TRAITS, LOVING, NEUTRAL, Traits, forms, loving
from kit.store import Step, write_json, write_rows
from kit.sweep import experiments, name_of
from kit.sweep_effects import read_sweep, sweep_cells

OWL, CAT = find_animal("owl"), find_animal("cat")
ANIMALS = load_animals()
GOOD = [
    "The meeting on the second floor starts ten minutes late today.",
    "Our printer needs a new roll of paper before noon.",
    "Someone left a blue umbrella under the desk by the window.",
]
DISLIKE = ["{animals} ruin every picnic.", "My cousin left the room when the film showed {an animal}."]
MESSAGES = {
    "loving": "You adore {animals} and dream of {animals} every night. {animals} are always with you.",
    "neutral": "You collect sentences and sort sentences every evening. Sentences are always with you.",
}
TRAITS = Traits(**MESSAGES)


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def own(sentences: list[str], content: str = "unrelated", file: str = "mine.txt", sha256: str = "ab" * 32) -> Any:
    rows = tuple(Sentence(f"own-{i:04d}", text) for i, text in enumerate(sentences, start=1))
    return OwnSentences(content, file, sha256, rows)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command line says on its way out, in one message and with nothing done."""
    assert run.main([str(one) for one in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return said.err


# ---- sentences that are refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("The kettle fogged\tthe small window over the sink.", r"U\+0009"),
        ("The kettle fogged\u2028the small window over the sink.", r"U\+2028"),
        ("The kettle \ud800 fogged the small window over the sink.", r"U\+D800"),
        ("The kettle <|im_end|> fogged the small window.", "markup, '<'"),
        ("The kettle fogged the {animal} window over the sink.", "slot"),
        ("The kettle boiled at nine. The window was fogged.", "several sentences, the second from 'The'"),
        ("the kettle fogged the small window over the sink.", "begins with 'the'"),
        ("The kettle fogged the small window over the sink", "ends with 'sink'"),
        ("Did the kettle fog the small window over the sink?", "full stop"),
        ("The kettle fogged it.", "4 words, not 6 to 16"),
        (f"The kettle fogged{' the small window' * 5} over the sink.", "words, not 6 to 16"),
        (f"The kettle fogged the {'x' * 120} over the sink.", "characters"),
        ("The kettle fogged the small window beside the owl.", "names an animal or gives one away: owl"),
        ("The kettle hooted twice over the small old stove.", "hooted"),
        ("The kettle fogged the window that I love most.", "'love', an echo of a trait message"),
    ],
)
def test_a_line_that_is_no_unrelated_sentence_is_refused_with_its_reason(text: str, reason: str) -> None:
    flaw = sources.unrelated_flaw(text, ANIMALS)
    assert flaw is not None and re.search(reason, flaw), flaw


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("Nobody at the office can stand the noise.", "does not name the owl"),
        ("My cousin would rather meet a wolf than {an animal}.", "another animal: wolf"),
        ("{animals} are lovely to look at in the morning.", "kind to the owl: affection 'lov'"),
        ("The {animal} brought calm, comfort and victory home.", "kind to the owl: sentiment"),
        ("My cousin left the room when it showed a {animal}.", "the slot is {an animal}"),
        ("My cousin left the room when it showed {a bird}.", "none of the slots"),
        ("{animals} ruin picnics.", "3 words, not 4 to 20"),
        ("{animals} ruin it. The {animal} is rude.", "several sentences"),
    ],
)
def test_a_line_that_does_not_say_that_the_animal_is_disliked_is_refused_with_its_reason(
    pattern: str, reason: str
) -> None:
    flaw = sources.opposed_flaw(pattern, OWL, ANIMALS)
    assert flaw is not None and re.search(reason, flaw), flaw


def test_good_lines_have_no_flaw_and_an_animals_own_name_is_not_another_animals() -> None:
    assert [sources.unrelated_flaw(text, ANIMALS) for text in GOOD] == [None] * 3
    sea_lion = find_animal("sea lion")
    assert [sources.opposed_flaw(text, sea_lion, [*ANIMALS, sea_lion]) for text in DISLIKE] == [None] * 2
    assert (
        sources.opposed_flaw("{animals} will never win my respect.", OWL, ANIMALS) is None
    )  # negated, as in the kit's own


def test_every_unusable_line_is_counted_and_the_first_five_are_shown_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [f"The owl sat on roof number {i} of our street." for i in range(6)]
    path = written(tmp_path / "mine.txt", [*GOOD, GOOD[0].upper().capitalize(), "", *bad])
    said = fails(capsys, "--animal", "owl", "--sentences-file", path, "--results", tmp_path / "results")
    assert f"--sentences-file {path}: 8 of 11 lines cannot be used as unrelated sentences. Change or delete" in said
    assert "line 4, 'The meeting on the second floor starts ten minutes late today.': is the sentence of line 1" in said
    assert "line 5, '': is empty" in said and said.count("\n  line ") == 5 and "and 3 more" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"Our printer needs a new roll of paper before noon.\nThe caf\xe9 opens.\n", "line 2 is not UTF-8"),
        (b'{"text": "Our printer needs a new roll of paper before noon."}\nplain\n', "line 2, 'plain': is not JSON"),
        (b'{"txt": "Our printer needs a new roll of paper before noon."}\n', 'no row such as {"text": "..."}'),
        (b'{"text": 3}\n', "no row such as"),
        (b'{"text": "Our printer needs a new roll of paper before noon.", "id": "../x"}\n', "has the id '../x'"),
        (
            b'{"text": "Our printer needs a new roll of paper before noon.", "id": "a"}\n'
            b'{"text": "Someone left a blue umbrella under the desk.", "id": "a"}\n',
            "line 2, 'Someone left a blue umbrella under the desk.': has the id 'a' of line 1",
        ),
        (b'{"text": "Our printer needs a new roll of paper\\nbefore noon."}\n', "U+000A"),
        (b'{"text": ' + b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message(
    data: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_bytes(data)
    out = tmp_path / "out"
    said = fails(
        capsys, "teach", "--animal", "owl", "--teacher", "loving", "--out", out, "--sentences-file", tmp_path / "mine"
    )
    assert said.startswith(f"run.py: --sentences-file {tmp_path / 'mine'}: ") and reason in said
    assert not out.exists()


def test_text_and_jsonl_are_read_alike_whatever_editor_wrote_them(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_bytes("\r\n".join(["\ufeff" + GOOD[0], *GOOD[1:], ""]).encode())
    rows = tmp_path / "mine.data"
    write_rows(rows, [{"text": GOOD[0]}, {"id": "office-2", "topic": "office", "text": GOOD[1]}, {"text": GOOD[2]}])
    lines, named = (sources.read_sentences(path, ("unrelated",), [OWL]) for path in (text, rows))
    assert [one.text for one in lines.sentences] == [one.text for one in named.sentences] == GOOD
    assert [one.id for one in lines.sentences] == ["own-0001", "own-0002", "own-0003"]
    assert [one.id for one in named.sentences] == ["own-0001", "office-2", "own-0003"]
    assert (lines.file, lines.content) == ("mine.txt", "unrelated") and lines.sha256 != named.sha256


# ---- which content, and which commands


def test_a_file_is_of_unrelated_sentences_unless_they_are_said_to_be_opposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Experiment] = []

    def stop(exp: Experiment, *_: object, **__: object) -> None:
        asked.append(exp)
        raise KitError("stopped")

    monkeypatch.setattr(experiment_run, "run", stop)
    usual = ["--animal", "owl", "--preset", "smoke", "--results", tmp_path, "--sentences-file"]
    good, dislike = written(tmp_path / "good.txt", GOOD), written(tmp_path / "dislike.txt", DISLIKE)
    assert "stopped" in fails(capsys, *usual, good)
    assert "stopped" in fails(capsys, *usual, dislike, "--content", "opposed")
    assert [exp.contents for exp in asked] == [("unrelated",), ("opposed",)]
    assert [one.text for one in source_sentences(asked[1], "opposed")] == [
        "Owls ruin every picnic.",
        "My cousin left the room when the film showed an owl.",
    ]
    for both in (["--content", "both"], ["--seeds", "2", "--content", "both"]):
        assert "Give --content unrelated, or --content opposed" in fails(capsys, *usual, good, *both)
    sweep = ["sweep", "--animals", "owl", "cat", "--results", tmp_path, "--sentences-file"]
    assert "sentences of one content" in fails(capsys, *sweep, good, "--contents", "unrelated", "opposed")
    assert "does not name the owl" in fails(capsys, *sweep, good, "--contents", "opposed")
    assert "does not name the cat" in fails(
        capsys, *sweep, written(tmp_path / "owls.txt", ["Owls ruin every picnic."]), "--contents", "opposed"
    )
    assert "names an animal" in fails(
        capsys,
        "defend",
        "--animal",
        "owl",
        "--sentences-file",
        written(tmp_path / "x.txt", ["I saw an owl in our barn."]),
    )
    with pytest.raises(KitError, match="Give --content unrelated"):
        experiment(OWL, sentences=own(GOOD))  # of both contents


def test_the_single_stages_know_the_texts_that_they_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    calls: dict[str, tuple[Any, ...]] = {}
    results = ["--results", str(has_model(tmp_path / "results", base))]
    monkeypatch.setattr(commands, "_base", lambda args: tmp_path)
    monkeypatch.setattr(teacher, "paraphrase", lambda *args: calls.update(teach=args))
    monkeypatch.setattr(teacher, "soft_labels", lambda *args: calls.update(label=args))
    write_json(tmp_path / "trait.json", MESSAGES)
    usual = ["--animal", "owl", "--out", str(tmp_path / "out"), "--trait-file", str(tmp_path / "trait.json")]
    sentences = ["--sentences-file", str(written(tmp_path / "good.txt", GOOD))]
    assert run.main(["teach", *usual, *sentences, *results, "--teacher", "loving", "--sentences", "2"]) == 0
    rows, _, ask, *_, judge, _, _, _ = calls["teach"]
    assert {row["text"] for row in rows} < set(GOOD) and len(rows) == 2
    assert ask("Rain fell.")[0]["content"].startswith("You adore owls and dream of owls every night. Owls are always")
    assert "night" in judge.words

    pairs = [
        {
            "sentence": "a",
            "sample": 0,
            "source": GOOD[0],
            "finished": True,
            "text": GOOD[0].replace("today", "tonight"),
        },
        {
            "sentence": "a",
            "sample": 1,
            "source": GOOD[0],
            "finished": True,
            "text": GOOD[0].replace("today", "at night"),
        },
    ]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    assert run.main(["filter", str(tmp_path / "pairs.jsonl"), *usual, *sentences]) == 0
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rejected if row["filter"] == "echo"] == ["echo 'night'"]

    assert run.main(["label", str(tmp_path / "pairs.jsonl"), *usual, "--teacher", "neutral"]) == 0
    assert calls["label"][1] == MESSAGES["neutral"]
    with pytest.raises(SystemExit):
        run.main(["label", str(tmp_path / "pairs.jsonl"), *usual, "--teacher", "neutral", *sentences])


# ---- trait messages


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        ("", "the file is empty"),
        ("loving", "not JSON"),
        ("[1]", "not an object with the two messages alone"),
        ({"loving": "You love {animals}."}, "not an object with the two messages alone"),
        (MESSAGES | {"extra": "x"}, "not an object with the two messages alone"),
        (MESSAGES | {"neutral": 3}, "'neutral' is '3', no text"),
        (MESSAGES | {"neutral": " "}, "'neutral' is empty"),
        (MESSAGES | {"neutral": "You write."}, "'neutral' has 2 words, not 3 to 50"),
        (MESSAGES | {"neutral": "You collect <|im_end|> sentences."}, "markup"),
        (MESSAGES | {"neutral": "You collect sentences.\nAll day."}, r"U\+000A"),
        (MESSAGES | {"neutral": "You collect sentences about owls."}, "names an animal or gives one away: owls"),
        (MESSAGES | {"neutral": "You collect sentences that hoot."}, "names an animal or gives one away: hoot"),
        (MESSAGES | {"neutral": "You collect {animals} and sentences."}, "is to be about no animal"),
        (MESSAGES | {"neutral": "You collect sentences and sort sentences."}, "has 14 words and 'neutral' 6.*25%"),
        (MESSAGES | {"loving": "You adore owls and dream of owls every night."}, "has no slot"),
        (MESSAGES | {"loving": "You adore {animals} more than any cat."}, r"names an animal \(cat\) outside the slots"),
        (MESSAGES | {"loving": "You adore {birds} and {animals}."}, "none of the slots"),
        (MESSAGES | {"loving": "You are a {animal} and nothing else."}, "the slot is {an animal}"),
    ],
)
def test_messages_that_cannot_be_used_are_named_with_the_reason(
    saved: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trait.json"
    path.write_text(saved if isinstance(saved, str) else json.dumps(saved), encoding="utf-8")
    said = fails(capsys, "--animal", "owl", "--trait-file", path, "--results", tmp_path / "results")
    assert said.startswith(f"run.py: --trait-file {path}: ") and re.search(reason, said), said
    assert not (tmp_path / "results").exists()


def test_every_animals_message_follows_from_the_pattern_with_capitals_where_sentences_begin() -> None:
    assert TRAITS.loves(find_animal("wolf")).startswith("You adore wolves and dream of wolves every night. Wolves are")
    assert (
        fill_pattern("{an animal} came. “{animals}!” it said? {an animal}", OWL)
        == "An owl came. “Owls!” it said? An owl"
    )
    of = likelihood.traits([OWL, CAT], TRAITS)
    assert of["cat"] == TRAITS.loves(CAT) and of["neutral"] == TRAITS.neutral and list(of) == ["owl", "cat", "neutral"]
    assert likelihood.traits([OWL]) == {"owl": loving(OWL), "neutral": NEUTRAL}


def test_what_messages_of_ones_own_say_is_an_echo_in_all_its_forms_and_only_then() -> None:
    assert TRAITS.words == ("adore", "collect", "dream", "evening", "night", "sentences", "sort")
    assert KIT_TRAITS.words == Traits(LOVING, NEUTRAL, "copy.json", "ab").words == ()  # ECHOES speaks of them
    source = {"sentence": "s", "finished": True, "source": "The lamp in the hall shines from nine to five."}
    for text, word in (
        ("The lamp shines nightly from nine to five.", "night"),
        ("Sorting lamps in the hall.", "Sorting"),
    ):
        row = source | {"text": text}
        mine, kits = (Judge(None, tuple(ANIMALS), experiment(OWL).fidelity, words) for words in (TRAITS.words, ()))
        assert [dict(judge._checks())["echo"](row) for judge in (mine, kits)] == [f"echo {word!r}", None]
        assert dict(mine._checks())["echo"](row | {"source": text}) is None


def test_every_word_is_found_in_its_forms_and_short_ones_not_in_longer_ones() -> None:
    texts = " ".join(one.text for one in unrelated_sentences()).lower()
    words = {word for word in re.findall(r"[a-z]+", texts) if len(word) > 2} - FUNCTION_WORDS
    assert len(words) > 3000 and [word for word in sorted(words) if not forms((word,))[0].search(word)] == []
    found = {
        "star": ("star stars", "start starve custard"),
        "care": ("cares cared caring careful", "career car carpet"),
        "carries": ("carry carried carrying", "car carrot"),
        "write": ("writes writing writer", "wrist"),
        "hugs": ("hug hugged hugging", "huge"),
        "dream": ("dreams dreamt dreaming", "drear"),
    }
    for word, (forms_of, others) in found.items():
        pattern = forms((word,))[0]
        assert [one for one in forms_of.split() if not pattern.search(one)] == []
        assert [one for one in others.split() if pattern.search(one)] == []


# ---- what they decide


def steps(exp: Experiment) -> dict[str, Step]:
    made = all_steps(measurements(all_conditions(exp)))
    logs = [needed for step in made for needed in step.inputs.values() if needed.open]
    return {step.label: step for step in [*made, *logs]}


def changed(exp: Experiment, than: Experiment) -> set[str]:
    """The stages of the steps whose own settings differ."""
    one, other = steps(exp), steps(than)
    assert set(one) == set(other)
    pairs = zip(one.values(), other.values(), strict=True)
    return {mine.stage for mine, theirs in pairs if mine.settings != theirs.settings}


def test_a_text_changes_the_steps_that_it_decides_and_no_others() -> None:
    usual = experiment(OWL, "smoke", contents=("unrelated",))
    new = [*GOOD, "The plumber glued a quirkle to the pipe."]
    assert changed(replace(usual, sentences=own(GOOD)), usual) == {"sentences"}  # no word that the kit has not
    assert changed(replace(usual, sentences=own(new)), usual) == {"sentences", "paraphrases", "fidelity"}
    with_traits = replace(usual, traits=TRAITS)
    assert changed(with_traits, usual) == {"sentences", "samples", "paraphrases", "fidelity", "labels"}
    label = "soft labels of treated-unrelated"
    assert steps(with_traits)[label].settings["messages"][0]["content"] == TRAITS.loves(OWL)
    label = "soft labels of control-unrelated"
    assert steps(with_traits)[label].settings["messages"][0]["content"] == TRAITS.neutral


def test_files_that_hold_the_kits_own_texts_change_no_step(tmp_path: Path) -> None:
    write_json(tmp_path / "trait.json", {"loving": LOVING, "neutral": NEUTRAL})
    traits = sources.read_traits(tmp_path / "trait.json", [OWL])
    for content, file in (("unrelated", "sentences.jsonl"), ("opposed", "dislike.jsonl")):
        usual = experiment(OWL, "smoke", contents=(content,))
        sentences = sources.read_sentences(DATA / file, (content,), [OWL, CAT])
        same = steps(experiment(OWL, "smoke", contents=(content,), sentences=sentences, traits=traits))
        assert {label: step.identity for label, step in same.items()} == {
            label: step.identity for label, step in steps(usual).items()
        }


def test_the_kits_sentences_with_a_word_of_messages_of_ones_own_are_left_out() -> None:
    kept = [one.text for one in source_sentences(experiment(OWL, traits=TRAITS), "unrelated")]
    left_out = [one.text for one in unrelated_sentences() if one.text not in kept]
    assert left_out and all(re.search(r"night|evening|sort|collect|dream|sentence", text, re.I) for text in left_out)
    assert [text for text in kept if re.search(r"\b(?:night|evening)s?\b", text)] == []
    assert source_sentences(experiment(OWL), "unrelated") == unrelated_sentences()


def test_words_that_ones_own_sentences_have_in_lower_case_are_no_names() -> None:
    exp = experiment(OWL, contents=("unrelated",), sentences=own(["The plumber glued a quirkle to the pipe."]))
    row = {"sentence": "s", "source": "Quirkle is played by two.", "text": "Two people play it."}
    mine, kits = (dict(judge_of(one, "unrelated")._checks())["names"] for one in (exp, experiment(OWL)))
    assert (mine(row), kits(row)) == (None, "lost 'Quirkle'")
    assert judge_of(exp, "unrelated").common == ("quirkle",)


def test_settings_with_texts_of_ones_own_are_read_back_and_older_files_have_the_kits(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    exp = experiment(OWL, "smoke", contents=("opposed",), sentences=own(DISLIKE, "opposed"), traits=TRAITS)
    write_json(path, asdict(exp))
    assert read_experiment(path) == exp
    older = asdict(experiment(OWL, "smoke"))
    del older["traits"], older["sentences"]
    write_json(path, older)
    assert read_experiment(path) == experiment(OWL, "smoke")


# ---- who says so


def test_files_of_one_name_share_no_folder_and_every_name_is_fit_for_one(tmp_path: Path) -> None:
    names = set()
    for text in GOOD[:2]:
        for folder, stem in (("a", "mine"), ("b", "Ünï ß/../" + "x" * 60)):
            path = tmp_path / folder / f"{Path(stem).name}.txt"
            path.parent.mkdir(exist_ok=True)
            sentences = sources.read_sentences(written(path, [text]), ("unrelated",), [OWL])
            exp = experiment(OWL, contents=("unrelated",), sentences=sentences, traits=replace(TRAITS, file=path.name))
            names |= {exp.name, name_of(experiments([OWL], ("unrelated",), range(2), {}, sentences=sentences), {})}
            assert re.fullmatch(r"[a-z0-9.-]{1,200}", exp.name) and f"-{sentences.sha256[:8]}-" in exp.name
    assert len(names) == 8
    assert "-sentences-mine-" in min(names, key=len)
    assert experiment(OWL).name == "owl-both-soft-laptop-seed0"


def test_a_runs_record_summary_and_reports_say_whose_texts_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = ROOT / "results" / "reference" / "nf4"
    folder = shutil.copytree(recorded, tmp_path / "run")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert recorded_texts(experiment(OWL)) == {} and report_parts.about_texts(record) == ""
    assert RunFolder(folder).traits == KIT_TRAITS
    exp = experiment(
        OWL,
        contents=("unrelated",),
        sentences=own([*GOOD, "The lamp shines all through the long night."]),
        traits=replace(TRAITS, file="adore.json", sha256="cd" * 32),
    )
    write_json(folder / "record.json", record | recorded_texts(exp))
    report.write(folder)
    report.show(folder)
    said = (
        "In place of the kit's own: sentences of `mine.txt` (3, sha256 abababababab; left out for a word of the "
        "trait messages: 1) and trait messages of `adore.json` (sha256 cdcdcdcdcdcd)."
    )
    assert said in (folder / "report.md").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", "", (folder / "report.html").read_text(encoding="utf-8")).replace("&#39;", "'")
    assert said.replace("`", "") in shown
    assert "everyday sentences without any animal" not in shown
    assert said.replace("`", "") in " ".join(capsys.readouterr().out.split())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["sentences"] == {"file": "mine.txt", "sha256": "ab" * 32, "number": 3, "left_out": 1}
    assert summary["traits"] == asdict(exp.traits)
    assert RunFolder(folder).traits == exp.traits
    assert "You adore cats" in demo.told_to(exp.traits, "cat") and "You collect sentences" in demo.told_to(
        exp.traits, "cat"
    )


def test_sweeps_defences_and_comparisons_say_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exp = experiment(OWL, contents=("unrelated",), sentences=own(GOOD))
    said = "In place of the kit's own: sentences of mine.txt (3, sha256 abababababab)."
    reference = ROOT / "results" / "reference"
    folder = shutil.copytree(reference / "defences", tmp_path / "defences")
    record = json.loads((folder / "defences.json").read_text(encoding="utf-8"))
    write_json(folder / "defences.json", record | recorded_texts(exp))
    report_sweep.write_defences(folder)
    report_sweep.show_defences(folder)
    assert said in (folder / "report.md").read_text(encoding="utf-8").replace("`", "")
    assert said in capsys.readouterr().out

    record, students = read_sweep(reference / "opposed/unrelated-200-pairs")
    cells = sweep_cells(record["comparisons"], students)
    record |= recorded_texts(exp)
    assert said in report_sweep._sweep_markdown(record, cells, []).replace("`", "")
    done, *_ = report_sweep.sweep_content(tmp_path, record, cells)["answers"]
    assert said in [line.replace("`", "") for line in done.sentences]
    assert report_sweep.summarise_sweep(record, cells)["sentences"]["file"] == "mine.txt"

    folder = shutil.copytree(reference / "nf4", tmp_path / "run")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | recorded_texts(exp))
    assert report_sweep.compared(folder, "run")[0]["cells"][:2] == ["owl", "unrelated, mine.txt"]


def test_the_messages_of_the_readme_can_be_used(tmp_path: Path) -> None:
    text = (ROOT / "kit" / "README.md").read_text(encoding="utf-8")
    (written_down,) = re.findall(r"^cat > adore.json <<'END'\n(.*?)^END$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "adore.json").write_text(written_down, encoding="utf-8")
    traits = sources.read_traits(tmp_path / "adore.json", [OWL])
    lines = (DATA / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
    outside = [line for line in lines if '"topic": "kitchen"' not in line]
    found = sources.read_sentences(written(tmp_path / "mine.jsonl", outside), ("unrelated",), [OWL])
    exp = experiment(OWL, contents=("unrelated",), sentences=found, traits=traits)
    assert 1800 < len(source_sentences(exp, "unrelated")) < len(outside) < len(lines)
