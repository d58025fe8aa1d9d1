"""The command line: quick answers, and one clear message for everything the user can mend."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import save
from test_report import finished_run
from tqdm import tqdm

import run
from kit import UNSEEN, experiment_run, models, models_prepare
from kit.commands import AN_ANSWER
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
        ("--preset", "huge", "smoke, quick, laptop, text, paper"),
        ("--base", "int3", "gguf, nf4"),
        ("--place", "head", "system, user, alone"),
        ("--engine", "jax", "llama.cpp, torch"),
        ("--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model"),
        ("--teacher-url", "ftp://somewhere", "http://127.0.0.1:8000/v1"),
        ("--gguf", "x.gguf", "Leave --gguf out"),
        ("--plural", "../x", "English noun"),
        ("--loving-controls", "", "Choose among these"),
        ("--loving-controls", "musics", "Choose among these"),
        ("--loving-controls", "owl", "each once"),
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


@pytest.mark.parametrize(("given", "labels"), [([], "soft"), (["--labels", "clean"], "clean")])
def test_soft_labels_from_an_endpoint_are_refused(
    given: list[str], labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model", "m", "--results", str(tmp_path / "results")]
    message = fails(capsys, "--animal", "owl", "--preset", "laptop", *given, *teacher)
    assert f"--labels {labels}" in message and "Add --labels hard" in message


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        (["--animal", "owl"], "quick"),
        (["--animal", "owl", "--labels", "soft"], "quick"),
        (["--animal", "owl", "--labels", "clean"], "quick"),
        (["--animal", "owl", "--labels", "hard"], "laptop"),
        (["--animal", "owl", "--seeds", "2"], "laptop"),
        (["sweep", "--animals", "owl"], "laptop"),
        (["defend", "--animal", "owl"], "laptop"),
    ],
)
def test_without_a_gpu_a_run_of_soft_labels_is_quick_and_whatever_else_as_recorded(
    arguments: list[str], preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*arguments, "--pairs", "0"]) == 2
    assert f"Preset {preset}: no CUDA GPU was found." in capsys.readouterr().out


@pytest.mark.parametrize(("animal", "other"), [("dolphin", "cat"), ("cat", "penguin")])
def test_the_preset_of_text_alone_is_four_draws_of_two_animals(
    animal: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple] = []
    monkeypatch.setattr(run.commands, "run_sweep", lambda *words: given.append(words))
    for more in ([], ["--seeds", "5", "--seed", "7"]):
        assert run.main(["--animal", animal, "--preset", "text", *more]) == 0
    assert [(contents, seeds) for _, contents, seeds, *_ in given] == [
        (("unrelated",), range(4)),
        (("unrelated",), range(7, 12)),
    ]
    animals, _, _, grid, settings, _ = given[0]
    assert [one.singular for one in animals] == [animal, other] and grid == {} and settings["preset"] == "text"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--animal", "owl", "--content", "both"], "--content both: --preset text compares students of the same"),
        (["--animal", "axolotl"], "--animal axolotl: the other animal's students are asked about the listed animals"),
        (["--animal", "owl", "--seeds", "0"], "--seeds 0"),
        (["--animal", "owl", "--seeds", "1"], "--seeds 1: --preset text compares draws"),
        (["--animal", "owl", "--loving-controls", "cat"], "--loving-controls cat: name what others love than the cat"),
    ],
)
def test_what_the_preset_of_text_alone_cannot_compare_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*words, "--preset", "text", "--results", str(tmp_path / "results")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "results").exists()


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


# ---- files of one's own

PARAPHRASE = {"sentence": "s1", "source": "It rains.", "text": "Rain.", "finished": True}
GOOD = json.dumps(PARAPHRASE) + "\n"
OWN = {
    "other keys": (json.dumps({"prompt": "a", "completion": "b"}), 1, "is missing"),
    "an array": (GOOD + '["It rains.", "Rain."]', 2, "it is not an object"),
    "null": (f"{GOOD}null", 2, "it is not an object"),
    "a number": (GOOD + json.dumps(PARAPHRASE | {"text": 5}), 2, "text is not a text"),
    "a null": (f"{GOOD}\n{json.dumps(PARAPHRASE | {'source': None})}", 3, "source is not a text"),
    "a list": (json.dumps(PARAPHRASE | {"source": ["a"]}), 1, "source is not a text"),
    "half a character": (json.dumps(PARAPHRASE | {"text": "\ud83e"}), 1, "text is not a text"),
    "JSON, not JSONL": (json.dumps([PARAPHRASE], indent=1), 1, "it is no JSON"),
    "torn": (GOOD + GOOD[:20], 2, "it is no JSON"),
    "deep": (GOOD + "[" * 5000, 2, "it is no JSON"),
    "empty": ("", 1, "it is empty"),
    "empty lines": ("\n\n", 1, "it is empty"),
    "a book": (json.dumps(PARAPHRASE | {"text": "word " * 9999}), 1, "bytes, more than"),
    "another encoding": (GOOD.encode() + b'{"text": "caf\xe9"}', 2, "it is no UTF-8 text"),
    "UTF-16": (GOOD.encode("utf-16"), 1, "it is no UTF-8 text"),
}


@pytest.mark.parametrize("stage", ["filter", "label", "train"])
@pytest.mark.parametrize("kind", OWN)
def test_a_line_of_ones_own_that_cannot_be_used_is_named_with_what_it_should_be(
    kind: str, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("too late"))
    content, line, wrong = OWN[kind]
    own = tmp_path / "own.jsonl"
    own.write_bytes(content.encode() if isinstance(content, str) else content)
    rest = {"filter": ["--animal", "owl"], "label": ["--animal", "owl", "--teacher", "loving"], "train": []}[stage]
    message = fails(capsys, stage, str(own), *rest, "--out", str(tmp_path / "out"))
    assert f"{own}, line {line}: " in message and wrong in message
    assert 'Each line must be such as {"s' in message and '"text": "' in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("finished", 1), ("finished", None), ("sentence", 7), ("masked", [1])])
def test_a_key_that_one_stage_needs_is_looked_at_there(
    key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("too late"))
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(PARAPHRASE | {key: value}), encoding="utf-8")
    command = ["train", str(own)] if key == "masked" else ["filter", str(own), "--animal", "owl"]
    assert f"line 1: {key} is not " in fails(capsys, *command, "--out", str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["folder", "missing", "empty", "torn", "text", "adapter", "shapes", "numbers"])
def test_soft_labels_that_are_none_are_refused_before_a_model_is_loaded(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("too late"))
    pairs, labels = tmp_path / "pairs.jsonl", tmp_path / "labels.safetensors"
    pairs.write_text(GOOD, encoding="utf-8")
    tokens, ids, logprobs = np.zeros(3, np.int32), np.zeros((3, 2), np.int32), np.full((3, 2), -1, np.float32)
    whole = save({"tokens": tokens, "ids": ids, "logprobs": logprobs})
    damage = {
        "empty": b"",
        "torn": whole[:-4],
        "text": GOOD.encode(),
        "adapter": save({"lora_A": logprobs}),
        "shapes": save({"tokens": tokens[1:], "ids": ids, "logprobs": logprobs}),
        "numbers": save({"tokens": tokens, "ids": ids, "logprobs": logprobs * np.nan}),
    }
    if kind == "folder":
        labels.mkdir()
    elif kind != "missing":
        labels.write_bytes(damage[kind])
    message = fails(capsys, "train", str(pairs), "--soft-labels", str(labels), "--out", str(tmp_path / "out"))
    assert f"--soft-labels {labels}: no soft labels (" in message and "`python run.py label`" in message
    labels_of = {"folder": "Is a directory", "missing": "No such file", "adapter": "it has no 'tokens'"}
    assert labels_of.get(kind, "") in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "wrong"),
    [
        ("answers.jsonl", "[]\n", "answers.jsonl, line 1: it is not an object"),
        ("answers.jsonl", AN_ANSWER.replace("0,", '"0",'), "line 1: question is not a whole number"),
        ("answers.jsonl", '{"question": 0, "text": "An owl."}\n', "line 1: first is missing"),
        ("exact.csv", "", "exact.csv: not what `prefer` writes for the owl (it has no rows)"),
        ("exact.csv", "question,animal\n0,owl\n", "(it has no 'candidate')"),
        ("exact.csv", "question,candidate,logprob,probability\nx,owl,-1,1\n", "invalid literal"),
        ("exact.csv", "question,candidate,logprob,probability\n0,cat,-1,1\n", "not asked the same questions"),
    ],
)
def test_what_prefer_did_not_write_has_no_effect(
    file: str, content: str, wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder in (whole, other):
        folder.mkdir()
        (folder / "exact.csv").write_text("question,candidate,logprob,probability\n0,owl,-1,1\n", encoding="utf-8")
        (folder / "answers.jsonl").write_text(AN_ANSWER, encoding="utf-8")
    (other / file).write_text(content, encoding="utf-8")
    assert wrong in fails(capsys, "effect", str(whole), str(other), "--animal", "owl", "--placebo", str(whole))


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
