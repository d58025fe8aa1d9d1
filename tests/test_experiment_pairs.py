"""Every student trains on the first pairs that its teacher gives of the lot."""

import json
from pathlib import Path

import pytest

from kit import KitError
from kit.experiment_conditions import match_pairs, write_pairs
from kit.store import read_rows, write_rows


def test_too_few_kept_pairs_stop_the_run_with_the_counts_and_the_filter(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    write_rows(kept / "kept.jsonl", [{"sentence": "s1"}, {"sentence": "s1"}, {"sentence": "s3"}])
    table = [{"filter": "form", "entered": 9, "rejected": 2}, {"filter": "meaning", "entered": 7, "rejected": 4}]
    (kept / "filters.json").write_text(json.dumps({"filters": table, "kept": 3}), encoding="utf-8")
    with pytest.raises(KitError, match=r"--pairs 4: only 3 pairs survived .*'meaning' \(4 of 7\)"):
        write_pairs(kept, 4, tmp_path)
    write_pairs(kept, 2, tmp_path)
    assert [row["sentence"] for row in read_rows(tmp_path / "pairs.jsonl")] == ["s1", "s1"]


def test_each_pair_is_matched_with_another_teachers_of_its_sentence_once() -> None:
    own = [{"sentence": name, "text": f"own {i}"} for i, name in enumerate("abba")]
    other = [{"sentence": name, "text": f"other {i}"} for i, name in enumerate("aaabb")]
    assert [row["text"] for row in match_pairs(own, other)] == ["other 0", "other 3", "other 4", "other 1"]


def test_a_pair_whose_sentence_the_other_teacher_lacks_is_matched_with_one_that_is_left() -> None:
    own = [{"sentence": name} for name in "abc"]
    other = [{"sentence": name} for name in "dca"]
    assert "".join(row["sentence"] for row in match_pairs(own, other)) == "adc"
