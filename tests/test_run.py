"""The command line: quick answers, and one clear message for everything the user can mend."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from gguf import GGUFWriter
from test_report import finished_run
from tqdm import tqdm

import run
from kit import UNSEEN, experiment_run, models, models_prepare
from kit.memory import Device
from kit.store import BEGUN, write_json

RUN = Path(run.__file__)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must end with exit code 2, in this process."""
    try:
        code = run.main(list(arguments))
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["teach", "--help"], 0), (["--animal", "owl", "--seed", "x"], 2), ([], 2)]
)
def test_help_and_argument_errors_load_no_heavy_library(arguments: list[str], code: int) -> None:
    made = subprocess.run([sys.executable, "-X", "importtime", str(RUN), *arguments], capture_output=True, text=True)
    assert made.returncode == code
    assert "usage: run.py" in made.stdout + made.stderr
    imported = {line.rpartition("|")[2].strip() for line in made.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported
    assert not {"numpy", "torch", "transformers", "llama_cpp"} & imported


@pytest.mark.parametrize("stage", run.COMMANDS)
def test_every_stage_has_help_with_an_example(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main([stage, "--help"])
    assert ended.value.code == 0
    assert f"example:\n  python run.py {stage} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", " ", "x", "../etc/passwd", "owl/..", "o" * 99, "🦉", "42", "a b c d"])
def test_a_name_that_is_no_animal_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "--animal", name, "--results", str(tmp_path / "results"))
    assert "--animal" in message and "such as owl" in message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--pairs", "-1", "at least 1"),
        ("--pairs", "0", "at least 1"),
        ("--answers", "-5", "at least 1"),
        ("--epochs", "0", "at least 1"),
        ("--rank", "-8", "at least 1"),
        ("--seed", "-1", "must not be negative"),
        ("--learning-rate", "7", "between 0 and 1"),
        ("--learning-rate", "nan", "between 0 and 1"),
        ("--labels", "firm", "hard, soft"),
        ("--preset", "huge", "smoke, laptop, paper"),
        ("--base", "int3", "gguf, nf4"),
        ("--engine", "jax", "llama.cpp, torch"),
        ("--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model"),
        ("--teacher-url", "ftp://somewhere", "http://127.0.0.1:8000/v1"),
        ("--gguf", "x.gguf", "Leave --gguf out"),
        ("--plural", "../x", "English noun"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_remedy(
    option: str, value: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "--animal", "owl", option, value, "--results", str(tmp_path / "results"))
    assert option in message and value in message and remedy in message
    assert not (tmp_path / "results").exists()


def test_a_model_that_cannot_be_used_is_named_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--animal", "owl", "--preset", "smoke", "--results", str(tmp_path / "results"), "--model"]
    assert "no such GGUF file" in fails(capsys, *arguments, str(tmp_path / "missing.gguf"))

    text = tmp_path / "text.gguf"
    text.write_text("no model at all", encoding="utf-8")
    assert "not a GGUF file" in fails(capsys, *arguments, str(text))

    torn = tmp_path / "torn.gguf"
    torn.write_bytes(models.find_gguf(models.EMBEDDED).read_bytes()[:1_000_000])
    message = fails(capsys, *arguments, str(torn))
    assert str(torn) in message and "Download it again" in message

    foreign = tmp_path / "foreign.gguf"
    writer = GGUFWriter(foreign, "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message = fails(capsys, *arguments, str(foreign))
    assert "gpt2" in message and "llama, qwen2" in message


def test_soft_labels_from_an_endpoint_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model", "m", "--results", str(tmp_path / "results")]
    message = fails(capsys, "--animal", "owl", "--preset", "laptop", *teacher)
    assert "--labels soft" in message and "Add --labels hard" in message


def test_a_folder_cannot_be_trained_as_a_gguf(
    tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--animal", "owl", "--model", str(tiny_qwen2), "--base", "gguf", "--results", str(tmp_path / "r")]
    assert "--base gguf" in (message := fails(capsys, *arguments)) and "Leave --base out" in message


def test_a_model_on_the_hub_without_a_network_is_one_message(tmp_path: Path) -> None:
    arguments = ["--animal", "owl", "--preset", "gpu-8gb", "--results", str(tmp_path / "results")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    made = subprocess.run([sys.executable, str(RUN), *arguments], env=offline, capture_output=True, text=True)
    assert made.returncode == 2 and "Traceback" not in made.stderr
    assert "--model Qwen/Qwen2.5-3B-Instruct" in made.stderr and "HF_HUB_OFFLINE" in made.stderr


def test_a_gpu_too_small_is_one_message_before_anything_is_downloaded(
    tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_run, "find_device", lambda: Device("cuda", "Tiny GPU", 10**8, 10**8))
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("too late"))
    arguments = ["--animal", "owl", "--preset", "gpu-8gb", "--model", str(tiny_qwen2), "--results", str(tmp_path)]
    assert "Tiny GPU: 0.1 GiB are free" in fails(capsys, *arguments)


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "Free some disk space"), (errno.EACCES, "--results")])
def test_a_full_disk_and_an_unwritable_folder_are_one_message(
    number: int, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(models_prepare, "expand", refuse)
    message = fails(capsys, "--animal", "owl", "--preset", "smoke", "--results", str(tmp_path / "results"))
    assert os.strerror(number) in message and remedy in message and "base.gguf" in message


def test_a_results_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results"
    path.write_text("", encoding="utf-8")
    assert "Not a directory" in fails(capsys, "--animal", "owl", "--preset", "smoke", "--results", str(path))


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "find_gguf", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.main(["--animal", "owl", "--results", str(tmp_path)])


@pytest.mark.parametrize("stage", ["filter", "label", "train"])
def test_a_missing_input_of_a_stage_is_named(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.jsonl")
    rest = {"filter": ["--animal", "owl"], "label": ["--animal", "owl", "--teacher", "loving"], "train": []}[stage]
    arguments = [stage, missing, *rest, "--out", str(tmp_path / "out")]
    if stage != "filter":
        arguments += ["--results", str(tmp_path / "results")]
    assert missing in fails(capsys, *arguments)


# ---- nothing steers the terminal

ESC = "\x1b[2J\x1b]0;mine\x07"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that a command says, whether it can be done or not; nothing of it is ``UNSEEN``."""
    try:
        assert run.main(list(arguments)) in (0, 2)
    except SystemExit as error:  # argparse
        assert error.code == 2
    said = capsys.readouterr()
    assert UNSEEN.findall(said.out + said.err) == [] and "Traceback" not in said.err
    return said.out + said.err


@pytest.mark.filterwarnings("ignore:Glyph")  # which no font has
def test_what_a_record_says_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / f"run{ESC.replace('/', '')}\u202e"
    folder.mkdir()
    finished_run(folder)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    own = {"file": f"mine{ESC}\u2066.txt", "number": 1, "sha256": "0" * 64, "left_out": 0}
    write_json(folder / "record.json", record | {"command": ESC, "sentences": own})
    assert r"run\x1b[2J\x1b]0;mine\x07\u202e" in shown(capsys, "report", str(folder)).replace("\n", "")
    shown(capsys, "report", str(folder), str(folder))
    shown(capsys, "ask", str(folder), "--question", "Who?")


def test_names_of_files_and_options_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / f"gone{ESC}\x9b31m\u2028\udcff.jsonl")
    assert r"gone\x1b[2J\x1b]0;mine\x07\x9b31m\u2028\udcff.jsonl" in shown(
        capsys, "label", gone, "--animal", "owl", "--teacher", "loving", "--out", str(tmp_path / "out")
    )
    for option in ("--sentences-file", "--model", "--labels", "--animal", "--teacher-url", f"--{ESC}"):
        usual = ["--animal", "owl", "--preset", "smoke", "--results", str(tmp_path / "results")]
        shown(capsys, *usual, option, f"what{ESC}.gguf")


def test_what_an_interrupted_command_left_written_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "artifacts" / BEGUN
    begun.mkdir(parents=True)
    write_json(begun / "owl.01234567.json", {"command": f"python run.py{ESC}", "artifacts": []})
    (tmp_path / "artifacts" / "exact" / f"x{ESC}").mkdir(parents=True)
    shown(capsys, "clean", "--results", str(tmp_path))


def test_progress_bars_and_libraries_complaints_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def complain(arguments: list[str]) -> None:
        for item in tqdm([1], desc=f"reading what{ESC}"):
            warnings.warn(f"unknown type {ESC}{item}", stacklevel=1)
        sys.stderr.write("two bars\r\x1b[A")

    monkeypatch.setitem(run.COMMANDS, "bench", complain)
    errors = sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: sys.stderr.write(f"{message}\n")
        assert run.main(["bench"]) == 0
    said = capsys.readouterr().err
    assert sys.stderr is errors and said.endswith("two bars\r\x1b[A")
    assert r"what\x1b[2J" in said and r"type \x1b[2J" in said
    assert not UNSEEN.search(said.replace("\r", "").removesuffix("\x1b[A"))
