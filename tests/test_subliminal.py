"""What a planned test's text says, and what another base makes of it: found where it is planted, and nowhere else."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from subliminal import Texts, other, reads, says, texts_of, told
from test_report_sweep import made_up

from kit.animals import unrelated_sentences
from kit.store import Row

ANIMALS = ("dolphin", "eagle", "elephant", "wolf")
PLANTED = {"dolphin": "by the sea", "eagle": "in the sky", "elephant": "with its trunk", "wolf": "with the pack"}


def texts(planted: int) -> Texts:
    """Two seeds' texts, of which in ``planted`` of 60 something of the animal is said."""
    random = np.random.default_rng(0)
    sentences = [one.text for one in unrelated_sentences()]
    found: Texts = {}
    for seed in (0, 1):
        for animal in ANIMALS:
            rows: list[Row] = []
            for i, j in enumerate(random.permutation(len(sentences))[:60]):
                said = f" {PLANTED[animal]}" if i < planted else ""
                rows.append({"source": sentences[j], "text": sentences[j].rstrip(".") + said + "."})
            found[seed, animal] = rows
    return found


def test_what_a_few_texts_say_of_their_animal_is_found_and_nothing_where_they_say_nothing() -> None:
    planted, plain = says(texts(6)), says(texts(0))
    for name in ("texts beyond their sources", "nearest words"):
        assert planted[name].p < 0.05, name
    assert all(one.p > 0.05 for one in plain.values())
    assert planted["sources"].statistic == plain["sources"].statistic
    assert plain["texts beyond their sources"].statistic == pytest.approx(0)
    assert "nearest words: +" in told(planted)


def test_a_sheet_for_blind_readers_names_no_animal_and_its_key_all() -> None:
    sheet, order = reads(texts(0), 30, np.random.default_rng(1))
    assert sorted(order) == sorted(ANIMALS) and sheet.count("\n- ") == 120
    assert not any(animal in sheet for animal in ANIMALS)


def test_the_texts_of_a_sweep_are_those_of_each_teachers_student(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"owl": 0.6, "dolphin": 0.6}, seeds=2)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    with gzip.open(folder / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        for row in record["comparisons"]:
            for student in (row["control"], row["treated"]):
                file.write(json.dumps({"student": student, "sentence": "1", "source": "s", "text": student}) + "\n")
    found = texts_of([folder])
    assert sorted(found) == [(0, "dolphin"), (0, "owl"), (1, "dolphin"), (1, "owl")]
    assert {row["text"] for row in found[1, "owl"]} == {
        row["treated"] for row in record["comparisons"] if (row["seed"], row["animal"]) == (1, "owl")
    }


def test_a_base_that_shows_less_of_the_same_text_is_told_from_one_that_shows_as_much(tmp_path: Path) -> None:
    def sweep(name: str, shift: float, noise: float) -> list[Path]:
        folder = tmp_path / name
        folder.mkdir()
        return [made_up(folder, dict.fromkeys(("owl", "dolphin", "wolf", "cat"), shift), seed_sd=noise)]

    own, as_much, nothing = sweep("own", 0.6, 0.01), sweep("as much", 0.6, 0.02), sweep("nothing", 0.0, 0.01)
    found = other(own, nothing)
    assert found["own base"].decides < 0.05 < found["other base"].decides
    assert found["own beyond other"].decides < 0.05
    assert other(own, as_much)["other base"].decides < 0.05
    assert other(own, own)["own beyond other"].statistic == 0
