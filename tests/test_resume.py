"""A run that was interrupted, and given again, is the run that was not."""

import json
import os
import pty
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import checksums, has_model
from filelock import FileLock
from processes import Run, finish
from test_experiment_run import summary_of

from kit.store import BEGUN as BEGUN_FOLDER

pytestmark = pytest.mark.slow

# Training has six steps, so that it can be killed in its middle.
SIX_STEPS = ["--content", "unrelated", "--preset", "smoke", "--pairs", "6", "--answers", "1", "--epochs", "3"]
FOX = ["--animal", "fox", *SIX_STEPS]
MOMENT = 0.1  # seconds in the filters, so that they can be killed too
# What each stage has written when it has begun.
BEGUN: dict[str, Callable[[Path], bool]] = {
    "model": lambda partial: True,
    "paraphrases": lambda partial: any(path.stat().st_size for path in partial.parents[1].glob("samples/*/*.jsonl")),
    "fidelity": lambda partial: True,
    "labels": lambda partial: True,
    "student": lambda partial: (partial / "checkpoints" / "checkpoint-2" / "complete.json").exists(),
    "exact": lambda partial: (partial / "exact.csv").exists(),
    "sampled": lambda partial: (partial / "rows.jsonl").exists(),
}


def wait_until(stage: str, results: Path, process: Run) -> None:
    """Until a run has begun to write a stage's first artifact."""
    while not any(map(BEGUN[stage], (results / "artifacts" / stage).glob("*.partial"))):
        assert process.poll() is None, f"{stage} ended unseen: {process.wait()}"
        time.sleep(0.002)


def assert_the_same_after_kills(arguments: list[str], whole: Path, results: Path, keep_all_after: float | None) -> None:
    """kill -9 as soon as each stage has begun to write, then the same command again: in ``results`` stands what stands
    in ``whole``, where it was given once."""
    (run,) = whole.glob("fox-*")
    for stage in BEGUN:
        process = Run(*arguments, "--results", str(results), keep_all_after=keep_all_after)
        try:
            wait_until(stage, results, process)
        finally:
            process.kill()
            process.wait()
        assert not (results / run.name / "record.json").exists()
    finish(*arguments, "--results", str(results), keep_all_after=keep_all_after)
    assert summary_of(results / run.name) == summary_of(run)
    assert checksums(results) == checksums(whole)
    left = [path for ending in ("partial", "lock", "json") for path in results.glob(f"artifacts/*/*.{ending}")]
    assert [path for path in left if path.parent.name != BEGUN_FOLDER or path.suffix == ".json"] == []


def test_a_run_killed_in_every_stage_leaves_the_same_artifacts_hash_for_hash(
    tiny_gguf: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """With a random model, which takes as many steps; the embedded one: ``python tests/proofs.py kills``."""
    arguments = [*FOX, "--model", str(tiny_gguf)]
    finish(*arguments, "--results", str(has_model(tmp_path / "whole", tiny_base)), keep_all_after=0)
    assert_the_same_after_kills(arguments, tmp_path / "whole", tmp_path / "killed", MOMENT)
    assert assert_the_same_after_random_kills(arguments, tmp_path / "whole", tmp_path / "random", seed=0)


def test_a_model_half_prepared_is_prepared_from_the_beginning(tiny_gguf: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Its tokenizer would come from the half model's files, and lack the tokens that begin and end a text."""
    arguments = [*FOX, "--model", str(tiny_gguf), "--results", str(tmp_path)]
    killed, *_ = Run(*arguments, dies_at=(1, "chat.json")).wait()
    assert killed == -signal.SIGKILL and any(tmp_path.glob("artifacts/model/*.partial/tokenizer.json"))
    Run(*arguments, dies_at=(1, "artifacts/samples")).wait()
    (made,) = tmp_path.glob("artifacts/model/*/manifest.json")
    assert json.loads(made.read_text())["files"] == json.loads((tiny_base / "manifest.json").read_text())["files"]


STAGES = [
    "model",
    "sentences",
    "samples",
    "paraphrases",
    "fidelity",
    "pairs",
    "labels",
    "student",
    "adapter",
    "exact",
    "sampled",
]


def assert_the_same_after_random_kills(arguments: list[str], whole: Path, results: Path, seed: int) -> int:
    """kill -9 before a change of a file, once in every stage, and then the same command to its end: in ``results``
    stands what stands in ``whole``. Returns how many kills there were."""
    random = np.random.default_rng(seed)
    died = 0
    for stage in STAGES:
        dies_at = int(random.integers(1, 13)), str(results / "artifacts" / stage)
        code, out, err = Run(*arguments, "--results", str(results), keep_all_after=0, dies_at=dies_at).wait()
        assert code in (0, -signal.SIGKILL), out + err
        if not code:  # what the stage had left to change was less
            break
        died += 1
    finish(*arguments, "--results", str(results), keep_all_after=0)
    assert checksums(results) == checksums(whole)
    return died


def test_two_commands_at_once_in_one_folder_share_the_work_and_both_end(
    tiny_gguf: Path, tiny_base: Path, tmp_path: Path
) -> None:
    arguments = [*FOX, "--model", str(tiny_gguf), "--results", str(has_model(tmp_path, tiny_base))]
    both = [Run(*arguments, keep_all_after=MOMENT) for _ in range(2)]
    ended = [run.wait() for run in both]
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "another run is at work on: " in "".join(out for _, out, _ in ended)


def test_ctrl_c_ends_with_130_and_one_line(tiny_gguf: Path, tiny_base: Path, tmp_path: Path) -> None:
    has_model(tmp_path, tiny_base)
    process = Run(*FOX, "--model", str(tiny_gguf), "--results", str(tmp_path), keep_all_after=0)
    wait_until("paraphrases", tmp_path, process)
    process.interrupt()
    code, _, err = process.wait()
    assert code == 130
    assert "goes on where it stopped" in err and "Traceback" not in err


def free(results: Path) -> None:
    """Nothing is locked, and a command that works on the same artifacts would not be refused."""
    for path in (results / "artifacts").rglob("*.lock"):
        with FileLock(path).acquire(timeout=0):
            pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_as_ctrl_c_does_with_its_own_code_and_nothing_left_locked(
    number: int, code: int, tiny_gguf: Path, tiny_base: Path, tmp_path: Path
) -> None:
    has_model(tmp_path, tiny_base)
    process = Run(*FOX, "--model", str(tiny_gguf), "--results", str(tmp_path), keep_all_after=0)
    wait_until("paraphrases", tmp_path, process)
    process.send(number)
    ended, _, err = process.wait()
    assert ended == code
    assert err.splitlines()[-1].endswith("The same command goes on where it stopped.") and "Traceback" not in err
    free(tmp_path)


def test_a_signal_that_nohup_ignores_ends_nothing_and_another_does(
    tiny_gguf: Path, tiny_base: Path, tmp_path: Path
) -> None:
    has_model(tmp_path, tiny_base)
    arguments = [*FOX, "--model", str(tiny_gguf), "--results", str(tmp_path)]
    process = Run(*arguments, keep_all_after=0.1, ignored=signal.SIGHUP)
    wait_until("paraphrases", tmp_path, process)
    process.send(signal.SIGHUP)
    wait_until("fidelity", tmp_path, process)
    process.send(signal.SIGTERM)
    assert process.wait()[0] == 143


def test_a_terminal_that_is_closed_ends_with_129_though_nothing_can_be_said(
    tiny_gguf: Path, tiny_base: Path, tmp_path: Path
) -> None:
    has_model(tmp_path, tiny_base)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    arguments = [*FOX, "--model", str(tiny_gguf), "--results", str(tmp_path)]
    process = Run(*arguments, keep_all_after=0, terminal=os.ttyname(theirs))
    while not list((tmp_path / "artifacts" / "paraphrases").glob("*.partial")):
        assert process.poll() is None
        with suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # a terminal that nobody reads would hold it up
        time.sleep(0.01)
    os.close(theirs)
    os.close(ours)
    assert process.wait()[0] == 129
    free(tmp_path)
