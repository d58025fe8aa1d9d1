"""A run's folder may be anybody's: what no run leaves is refused at the door, in one line, before anything is done."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, artifact
from test_report import finished_run

import run
from kit import KitError
from kit.animals import find_animal
from kit.experiment import experiment
from kit.experiment_folder import RECORD, RunFolder, read_run
from kit.store import misfit, read_rows, sha256, write_json
from kit.sweep_effects import RECORD as SWEEP_RECORD
from kit.sweep_effects import read_sweep

SWEEP = ROOT / "results/reference/opposed/unrelated-200-pairs"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("template"))


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "run"))


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """What a command says that must refuse the folder, in one line, and leave all there as it is."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run.main([*(command or ("report",)), str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().split("\n")) == 1
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return err


NESTED = "[" * 200_000
RECORDS = [
    "",
    "{",
    "[]",
    "null",
    "1",
    '"owl"',
    NESTED,
    '{"animal": ' + "9" * 5000 + "}",
    "\ud800",
    "\x00",
    '{"a": "\x1b"}',
]


@pytest.mark.parametrize("text", RECORDS, ids=range(len(RECORDS)))
def test_what_is_no_record_is_refused(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "record.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "its files are damaged" in refused(folder, capsys)


REQUIRED = [name for name in RECORD if not name.endswith("?")]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_record_without_what_every_run_writes_is_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    del record[name]
    write_json(folder / "record.json", record)
    assert f"{name} is missing" in refused(folder, capsys)


@pytest.mark.parametrize("name", [name.removesuffix("?") for name in RECORD])
@pytest.mark.parametrize("wrong", [[["a"]], {"a": {"b": [[]]}}, True])
def test_a_record_of_another_shape_is_refused(
    name: str, wrong: object, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {name: wrong})
    assert name in refused(folder, capsys)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../pairs/0123456789abcdef",
        "pairs/../../0123456789abcdef",
        "pairs/0123456789abcdef/x",
        "pairs/0123",
    ]
    + ["PAIRS/0123456789abcdef", "pairs/0123456789abcdef\n", "pairs\\0123456789abcdef", "~/0123456789abcdef", ""],
)
def test_an_artifact_elsewhere_is_refused(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {"artifacts": {"pairs of treated-unrelated": name}})
    for command in ("report", "ask", "inspect", "attribute", "demo"):
        assert "artifacts.pairs of treated-unrelated is not what it must be" in refused(folder, capsys, command)


@pytest.mark.parametrize(
    "animal", ["", "x", "owls", "Owl", "owl; rm -rf", "owl\x1b[2J", "owl\n$(reboot)", "<b>owl</b>", "okapi"]
)
def test_an_animal_that_the_command_line_would_not_take_is_refused(
    animal: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {"animal": animal})
    said = refused(folder, capsys)
    assert "its files are damaged" in said and "\x1b" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filters", {"treated-unrelated": [{"filter": "form", "entered": 10**400, "rejected": 1}]}),
        ("filters", {"treated-unrelated": [{"filter": "form", "entered": 10, "rejected": -1}]}),
        ("lot", {"treated-unrelated": {"asked": -1, "lacking": 0, "shared": 0}}),
        ("pairs", {"treated-unrelated": -400}),
        ("seed", 10**400),
        ("questions", ["Which?"]),
    ],
)
def test_numbers_that_count_nothing_are_refused(
    name: str, value: object, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {name: value})
    assert "its files are damaged" in refused(folder, capsys)


@pytest.mark.parametrize("loved", ["owl", "unicorn", ""])
def test_a_control_that_loves_the_animal_itself_or_nothing_known_is_refused(
    loved: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = folder / "preferences.csv"
    text = table.read_text(encoding="utf-8").replace("placebo1-unrelated", f"loves {loved}-unrelated")
    table.write_text(text, encoding="utf-8")
    assert "its files are damaged" in refused(folder, capsys)


def without(lines: list[str], pattern: str) -> list[str]:
    return [line for line in lines if not re.search(pattern, line)]


TABLES: dict[str, Callable[[list[str]], list[str]]] = {
    "empty": lambda lines: [],
    "a heading alone": lambda lines: lines[:1],
    "cut": lambda lines: [*lines[:1000], lines[1000][:9]],
    "no base": lambda lines: without(lines, "^base,"),
    "no control": lambda lines: without(lines, "^control-"),
    "no treated": lambda lines: without(lines, "^treated-"),
    "another student": lambda lines: [line.replace("placebo1-unrelated", "../../x") for line in lines],
    "another content": lambda lines: [line.replace("placebo1-unrelated", "placebo1-others") for line in lines],
    "no owl": lambda lines: without(lines, ",owl,"),
    "one owl less": lambda lines: without(lines, "^control.*,3,owl,"),
    "fewer questions": lambda lines: without(lines, "^control-unrelated,[34].,"),
    "no numbers": lambda lines: [re.sub(r"-\d\.\d+", "nan", line) for line in lines],
    "infinite ones": lambda lines: [re.sub(r",-\d\.\d+", ",-inf", line, count=1) for line in lines],
    "more than certain": lambda lines: [re.sub(r",-(\d\.\d+)", r",\1", line, count=1) for line in lines],
    "other questions": lambda lines: [re.sub(r"^(control-unrelated),3,", r"\1,-1,", line) for line in lines],
    "answers beyond number": lambda lines: [re.sub(r",10,(\d+)", rf",{'9' * 400},\1", line) for line in lines],
    "words": lambda lines: [re.sub(r"-\d\.\d+", "many", line) for line in lines],
    "another column": lambda lines: [lines[0].replace("logprob", "logit"), *lines[1:]],
}


@pytest.mark.parametrize("wrong", TABLES)
def test_preferences_that_no_run_leaves_are_refused(
    wrong: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "preferences.csv").read_text(encoding="utf-8").split("\n")[:-1]
    (folder / "preferences.csv").write_text("".join(f"{line}\n" for line in TABLES[wrong](lines)), encoding="utf-8")
    assert "its files are damaged" in refused(folder, capsys)


def test_a_table_that_another_command_wrote_than_the_record_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {"table": sha256(folder / "preferences.csv")})
    assert read_run(folder)
    with (folder / "preferences.csv").open("a", encoding="utf-8") as table:
        table.write("base,0,owl,-1.0,0.5,0,0\n")
    assert "preferences.csv is not what was written with record.json" in refused(folder, capsys)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pairs": 1}', NESTED])
@pytest.mark.parametrize("what", ["inspection", "attribution"])
def test_what_was_found_since_and_cut_off_is_named_with_its_file(
    what: str, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / f"{what}-unrelated.json").write_text(text, encoding="utf-8")
    said = refused(folder, capsys)
    assert f"{what}-unrelated.json" in said and "give its command again" in said


@pytest.mark.parametrize("what", ["inspection", "attribution"])
def test_what_was_found_since_and_has_not_all_that_the_kit_finds_is_refused(
    what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    pairs = "pairs/0123456789abcdef"
    write_json(folder / "record.json", record | {"artifacts": {"pairs of treated-unrelated": pairs}})
    write_json(folder / f"{what}-unrelated.json", {"pairs": pairs, "messages": {}})
    assert "is damaged" in refused(folder, capsys)


RECORDED = ROOT / "results/reference/default-run/laptop"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name.removesuffix("?") for name in RECORD if name.endswith("?")])
def test_a_record_that_lacks_what_some_runs_have_is_reported_or_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("record.json", "preferences.csv"):
        shutil.copy(RECORDED / file, tmp_path)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    record.pop(name, None)
    write_json(tmp_path / "record.json", record)
    assert run.main(["report", str(tmp_path)]) in (0, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": {"transformers": "CPU", "llama.cpp": "CPU", "threads": 1}},
        {"similarities": {"control-unrelated": {"kept": [1], "rejected": []}}},
        {"filters": {"control-unrelated": [], "treated-unrelated": []}},
    ],
)
def test_what_a_report_would_stumble_over_is_refused(
    wrong: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | wrong)
    refused(folder, capsys)


# ---- sweeps


@pytest.mark.parametrize("name", [name.removesuffix("?") for name in SWEEP_RECORD])
@pytest.mark.parametrize("wrong", [None, [["a"]], {"a": {"b": [[]]}}])
def test_a_sweeps_record_of_another_shape_is_refused(
    name: str, wrong: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((SWEEP / "record.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "record.json", record | {name: wrong})
    (tmp_path / "preferences.csv.gz").write_bytes(b"never read")
    assert name in refused(tmp_path, capsys)


@pytest.mark.parametrize(
    "harm",
    [
        *("cut", "no gzip", "another student", "another animal", "nothing compared", "pairs in words"),
        *("a control that loves the owl", "a control that loves nothing"),
    ],
)
def test_a_sweep_that_compares_what_is_not_there_is_refused(
    harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((SWEEP / "record.json").read_text(encoding="utf-8"))
    table = (SWEEP / "preferences.csv.gz").read_bytes()
    (first, *_), rows = record["comparisons"], record["comparisons"]
    changed = {
        "another student": [first | {"treated": "../x"}, *rows],
        "another animal": [first | {"animal": "owl; reboot"}, *rows],
        "nothing compared": [],
        "pairs in words": [first | {"pairs": "x"}, *rows[1:]],
        "a control that loves the owl": [first | {"loving": {"owl": first["control"]}}, *rows[1:]],
        "a control that loves nothing": [first | {"loving": {"": first["control"]}}, *rows[1:]],
    }
    write_json(tmp_path / "record.json", record | {"comparisons": changed.get(harm, rows)})
    tables = {"cut": table[: len(table) // 2], "no gzip": b"student,question\n"}
    (tmp_path / "preferences.csv.gz").write_bytes(tables.get(harm, table))
    refused(tmp_path, capsys)


@pytest.mark.slow
def test_what_is_recorded_is_let_in() -> None:
    folders = [path.parent for path in (ROOT / "results" / "reference").rglob("record.json")]
    read = [read_sweep(one) if (one / "preferences.csv.gz").exists() else read_run(one) for one in folders]
    assert len(read) == len(folders) > 5


# ---- artifacts


@pytest.fixture
def whole(folder: Path) -> Path:
    """A run with a model, students and pairs, none of which is to be loaded."""

    def made(stage: str, name: str) -> str:
        return artifact(
            folder.parent,
            stage,
            lambda into: (into / name).write_bytes(b'{"sentence": "s", "source": "a", "text": "a"}\n'),
        )

    exp = experiment(find_animal("owl"), "smoke", contents=("unrelated",))
    write_json(folder / "config.json", asdict(exp))
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    record["artifacts"] = {"prepare embedded": made("model", "base.gguf")}
    for role in ("control", "treated"):
        record["artifacts"][f"convert the adapter of {role}-unrelated"] = made("adapter", "adapter.gguf")
        record["artifacts"][f"pairs of {role}-unrelated"] = made("pairs", "pairs.jsonl")
    write_json(folder / "record.json", record)
    return folder


def test_an_artifact_of_which_one_byte_differs_answers_no_question(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = RunFolder(whole)
    for path in (run_folder.adapter("treated", "unrelated"), run_folder.pairs_file("treated", "unrelated")):
        times, data = path.stat(), bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for command in ("ask", "inspect", "attribute"):
        assert "is not what was written" in refused(whole, capsys, command)


def test_the_settings_of_another_run_are_not_those_of_this_one(whole: Path) -> None:
    assert RunFolder(whole).experiment().animal.singular == "owl"
    for animal, changed in (("cat", {}), ("owl", {"labels": "hard"}), ("owl", {"seed": 9})):
        exp = experiment(find_animal(animal), "smoke", contents=("unrelated",), **changed)
        write_json(whole / "config.json", asdict(exp))
        with pytest.raises(KitError, match="not the settings of this run"):
            RunFolder(whole).experiment()


@pytest.mark.parametrize("name", ["record.json", "preferences.csv", "inspection-unrelated.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert name in refused(folder, capsys)


@pytest.mark.parametrize("wrong", [{"inputs": 1}, {"stage": None}, {"versions": []}, {"seconds": 10**400}])
def test_a_manifest_of_another_shape_is_refused(
    wrong: dict[str, Any], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RunFolder(whole).adapter("treated", "unrelated").with_name("manifest.json")
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | wrong)
    assert "damaged" in refused(whole, capsys, "ask")


def test_a_model_that_only_the_record_names_is_not_fetched(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kit import models

    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("it looked for the model"))
    record = json.loads((whole / "record.json").read_text(encoding="utf-8"))
    del record["artifacts"]["prepare embedded"]
    for model in ("somebody/model-1B-Instruct", "/somewhere/model.gguf"):
        write_json(whole / "record.json", record | {"model": model})
        assert "is not among the artifacts beside it" in refused(whole, capsys, "ask")


def test_what_comes_from_no_run_is_an_error_of_its_caller(whole: Path) -> None:
    with pytest.raises(KitError, match="has no artifact"):
        RunFolder(whole).pairs_file("treated", "opposed")
    assert read_rows(RunFolder(whole).pairs_file("treated", "unrelated")) == [
        {"sentence": "s", "source": "a", "text": "a"}
    ]


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (1, int, None),
        (1, float, None),
        (True, int, "it is not"),
        (True, bool, None),
        ("a", ("a", "b"), None),
        ("c", ("a", "b"), "it is not"),
        (None, (str, None), None),
        ("ab1", re.compile("[a-z]+[0-9]"), None),
        ("ab1\n", re.compile("[a-z]+[0-9]"), "it is not"),
        ({"a": [1, "x"]}, {"a": [int]}, "a.1 is not"),
        ({"b": 1}, {"a": int}, "a is missing"),
        ({"b": 1}, {"a?": int}, None),
        ({"a": {"x": "y"}}, {"a": {str: int}}, "a.x is not"),
        ([], {"a?": int}, "it is not"),
    ],
)
def test_a_misfit_is_named_by_its_place(value: Any, shape: Any, wrong: str | None) -> None:
    found = misfit(value, shape)
    assert found is None if wrong is None else found is not None and found.startswith(wrong)
