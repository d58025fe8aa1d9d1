"""A run that was interrupted, and given again, is the run that was not."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import checksums
from test_experiment_run import TINY, finish, start, summary_of

pytestmark = pytest.mark.slow

LONGER = ["--epochs", "3"]  # six steps, so that a training can be killed in its middle


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("uninterrupted")
    finish("--animal", "fox", *TINY, *LONGER, "--results", str(results))
    return results


def test_a_run_killed_in_every_stage_leaves_the_same_artifacts_hash_for_hash(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """kill -9 as soon as each stage has begun to write, then the same command again."""
    arguments = ("--animal", "fox", *TINY, *LONGER, "--results", str(tmp_path))
    run = "fox-unrelated-soft-smoke-pairs6-epochs3-seed0"
    begun: dict[str, Callable[[Path], bool]] = {
        "model": lambda partial: True,
        "paraphrases": lambda partial: (
            (partial / "rows.jsonl").exists() and (partial / "rows.jsonl").stat().st_size > 0
        ),
        "fidelity": lambda partial: True,
        "labels": lambda partial: True,
        "student": lambda partial: (partial / "checkpoints" / "checkpoint-2" / "complete").exists(),
        "exact": lambda partial: (partial / "exact.csv").exists(),
        "sampled": lambda partial: (partial / "rows.jsonl").exists(),
    }
    for stage, has_begun in begun.items():
        process = start(*arguments)
        try:
            while not any(map(has_begun, (tmp_path / "artifacts" / stage).glob("*.partial"))):
                assert process.poll() is None, f"{stage} ended unseen: {process.communicate()}"
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert not (tmp_path / run).exists()
    finish(*arguments)
    assert summary_of(tmp_path / run) == summary_of(uninterrupted / run)
    assert checksums(tmp_path) == checksums(uninterrupted)
    leftovers = [*tmp_path.glob("artifacts/*/*.partial"), *tmp_path.glob("artifacts/*/*.lock")]
    assert not leftovers


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    process = start("--animal", "fox", *TINY, "--results", str(tmp_path), start_new_session=True)
    while not any((tmp_path / "artifacts" / "paraphrases").glob("*.partial/rows.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "goes on where it stopped" in err and "Traceback" not in err
