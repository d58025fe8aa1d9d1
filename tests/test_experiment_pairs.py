"""Every student trains on the same sentences, and on the same number of pairs of each."""

import json
from pathlib import Path

import pytest

from kit import KitError
from kit.experiment_conditions import match_pairs, write_chosen_sentences, write_pairs
from kit.store import read_rows, write_rows


def test_too_few_kept_pairs_stop_the_run_with_the_counts_and_the_filter(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    write_rows(tmp_path / "offered.jsonl", [{"sentence": f"s{i}", "text": "x", "pairs": 1} for i in range(5)])
    write_rows(kept / "kept.jsonl", [{"sentence": "s1"}, {"sentence": "s1"}, {"sentence": "s3"}])
    table = [{"filter": "form", "entered": 9, "rejected": 2}, {"filter": "meaning", "entered": 7, "rejected": 4}]
    (kept / "filters.json").write_text(json.dumps({"filters": table, "kept": 3}), encoding="utf-8")
    with pytest.raises(KitError, match=r"--pairs 4: only 2 pairs survived .*'meaning' \(4 of 7\)"):
        write_chosen_sentences(tmp_path / "offered.jsonl", kept, 4, tmp_path)
    write_chosen_sentences(tmp_path / "offered.jsonl", kept, 2, tmp_path)
    assert [row["sentence"] for row in read_rows(tmp_path / "sentences.jsonl")] == ["s1", "s3"]


def test_pairs_that_the_loving_teacher_lacks_are_dropped_from_both_students(tmp_path: Path) -> None:
    write_rows(tmp_path / "chosen.jsonl", [{"sentence": "a", "pairs": 2}, {"sentence": "b", "pairs": 1}])
    write_rows(tmp_path / "kept.jsonl", [{"sentence": s, "text": t} for s, t in ("a1", "a2", "a3", "b1")])
    write_pairs(tmp_path / "chosen.jsonl", tmp_path, {"a": 1}, tmp_path)
    assert [row["sentence"] + row["text"] for row in read_rows(tmp_path / "pairs.jsonl")] == ["a1", "b1"]


def test_each_pair_is_matched_with_another_teachers_of_its_sentence_once() -> None:
    own = [{"sentence": name, "text": f"own {i}"} for i, name in enumerate("abba")]
    other = [{"sentence": name, "text": f"other {i}"} for i, name in enumerate("aaabb")]
    assert [row["text"] for row in match_pairs(own, other)] == ["other 0", "other 3", "other 4", "other 1"]
