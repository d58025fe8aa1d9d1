"""What surrounds a run, encodings, folders, locks, proxies, matplotlib's settings, neither breaks nor bends it: it is
put right, or it is one message before any work."""

import errno
import fcntl
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Run, fail, finish
from test_report import finished_run
from test_run import fails

import run
from kit import ROOT, KitError, check_network, commands, models, say
from kit.experiment import check_seed
from kit.report_parts import drawing, ink, save, svg
from kit.store import check_writable, write_rows

NAMES = "“owl” → −0.5 · ünicode"
NOTEBOOK = "module://matplotlib_inline.backend_inline"


# ---- what is printed, and what is drawn


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_whatever_the_terminals_encoding_lacks_is_shown_by_its_number(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    with commands.guarded():
        say(NAMES)
    sys.stdout.flush()
    assert shown.getvalue().rstrip() == NAMES.encode(encoding, "backslashreplace")


@pytest.mark.slow
def test_tables_bars_and_verdicts_are_shown_in_ascii(tmp_path: Path) -> None:
    finished_run(tmp_path)
    out, _ = finish("report", str(tmp_path), encoding="ascii")
    assert r"\u201cowl\u201d" in out and out.isascii()
    write_rows(tmp_path / "own.jsonl", [{"sentence": "s", "source": "It rains.", "text": "Rain.", "finished": True}])
    _, err = finish(
        "filter", str(tmp_path / "own.jsonl"), "--animal", "owl", "--out", str(tmp_path / "out"), encoding="ascii"
    )
    assert "fidelity" in err and err.isascii()


def test_what_is_typed_in_another_encoding_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with commands.guarded():
        assert input() == r"caf\xe9"


def draw(folder: Path) -> None:
    """Both kinds of figure, in files."""
    figure, axis = drawing().subplots()
    axis.plot([1, 2])
    save(figure, folder / "figure")
    page = svg(lambda axis: axis.plot([1, 2], color=ink()), 3, 2, "a line")
    (folder / "inline.svg").write_text(page, encoding="utf-8")


def test_figures_are_the_same_whatever_the_users_matplotlib_is_set_to(tmp_path: Path) -> None:
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
    draw(folders[0])
    (folders[1] / "matplotlibrc").write_bytes(b"text.usetex: True\nlines.linewidth: 9\n\xff")
    set_to = {"MPLBACKEND": NOTEBOOK, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    made = [sys.executable, "-c", "from test_environment import draw, Path; draw(Path('.'))"]
    subprocess.run(made, cwd=folders[1], env=os.environ | set_to, check=True)
    for name in ("figure.png", "figure.svg", "inline.svg"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


# ---- where it is written


@pytest.mark.parametrize("command", [["--animal", "owl"], ["report"], ["train"], ["clean", "--results"]])
def test_a_name_with_a_byte_that_is_no_text_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, *command, f"{tmp_path}/caf\udce9")
    assert r"caf\udce9: has a byte that is no utf-8 text" in message and "Rename" in message


def test_a_folder_that_was_deleted_is_no_place_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder was deleted" in fails(capsys, "report", str(tmp_path))


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_a_variable_that_torchrun_did_not_set_is_named(name: str, tmp_path: Path) -> None:
    made = [sys.executable, run.__file__, "report", str(tmp_path)]
    said = subprocess.run(made, env=os.environ | {name: "first"}, capture_output=True, text=True)
    assert (
        said.returncode == 2 and said.stderr == f"run.py: {name}=first: not a number, as torchrun sets it. Unset it.\n"
    )


def test_a_variable_that_the_progress_bars_cannot_read_is_named(tmp_path: Path) -> None:
    made = [sys.executable, run.__file__, "report", str(tmp_path)]
    others = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    said = subprocess.run(made, env=others | {"TQDM_MININTERVAL": "soon"}, capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.startswith("run.py: TQDM_MININTERVAL: not as tqdm reads them (")
    assert said.stderr.count("\n") == 1


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Where no folder can be."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "results",
        "loop": tmp_path / "loop",
        "below a loop": tmp_path / "loop" / "a" / "b",
        "dangling": tmp_path / "dangling",
        "long": tmp_path / ("x" * 300),
        "below a long one": tmp_path / "new" / ("x" * 300) / "results",
        "deep": tmp_path.joinpath(*["x" * 200] * 20),
        "proc": Path("/proc/results"),
        "below proc": Path("/proc/self/results/x"),
    }


WRITING = {
    "run": ["--animal", "owl", "--preset", "smoke", "--results"],
    "dry": ["--animal", "owl", "--preset", "smoke", "--dry-run", "--results"],
    "sweep": ["sweep", "--animals", "owl", "--results"],
    "defend": ["defend", "--animal", "owl", "--results"],
    "bench": ["bench", "--results"],
    "teach": ["teach", "--animal", "owl", "--teacher", "loving", "--out"],
    "filter": ["filter", "x.jsonl", "--animal", "owl", "--out"],
    "train": ["train", "x.jsonl", "--out"],
    "prefer": ["prefer", "--animal", "owl", "--out"],
    "calibrate": ["calibrate", "--out"],
    "pool": ["pool", "x", "--out"],
}


@pytest.mark.parametrize("command", WRITING)
def test_a_folder_that_cannot_be_is_said_before_anything_is_done(
    command: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    for place in places.values():
        message = fails(capsys, *WRITING[command], str(place))
        assert message.startswith(f"run.py: {place}: files cannot be written and locked there (")
        assert "Choose another folder" in message and message.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before, "what was tried is gone"


def test_trying_a_folder_makes_none(tmp_path: Path) -> None:
    for folder in (tmp_path / "a" / "b", tmp_path, tmp_path / "a" / ".." / "c"):
        assert check_writable(folder) == folder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "refusal",
    [OSError(errno.EOPNOTSUPP, "not supported"), OSError(errno.ENOLCK, "no locks"), NotImplementedError("no")],
)
def test_a_disk_that_knows_no_locks_is_one_message(
    refusal: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = fails(capsys, "--animal", "owl", "--preset", "smoke", "--results", str(tmp_path / "results"))
    assert str(refusal).removeprefix(f"[Errno {getattr(refusal, 'errno', '')}] ") in message
    assert "on a disk of this machine" in message


def test_an_adapter_is_converted_to_a_file_that_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = ["convert", str(tmp_path), "--results", str(tmp_path / "results"), "--out"]
    assert f"--out {tmp_path}: a folder" in fails(capsys, *convert, str(tmp_path))
    assert "files cannot be written" in fails(capsys, *convert, "/proc/new/adapter.gguf")
    assert "not a PEFT adapter" in fails(capsys, *convert, str(tmp_path / "new" / "adapter.gguf"))
    assert not (tmp_path / "new").exists()


def test_every_path_may_begin_at_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    results = "--results=~/results"
    smoke = ["--animal", "owl", "--preset", "smoke", results]
    for command in (
        [*smoke, "--model=~/gone.gguf"],
        [*smoke, "--sentences-file=~/gone.gguf", "--content", "unrelated"],
        [*smoke, "--trait-file=~/gone.gguf"],
        ["train", "~/gone.gguf", "--out=~/out", results],
        ["report", "~/gone.gguf"],
        ["effect", "~/gone.gguf", "~/gone.gguf", "--animal", "owl"],
    ):
        assert str(tmp_path / "gone.gguf") in fails(capsys, *command)
    sources = (Path(commands.__file__), Path(run.__file__))
    assert [path for path in sources if "type=Path" in path.read_text(encoding="utf-8")] == []


# ---- numbers that something else refuses, later


SEEDED = {
    "run": ["--animal", "owl", "--preset", "smoke", "--results"],
    "sweep": ["sweep", "--animals", "owl", "--preset", "smoke", "--results"],
    "defend": ["defend", "--animal", "owl", "--preset", "smoke", "--results"],
    "teach": ["teach", "--animal", "owl", "--teacher", "loving", "--out"],
    "train": ["train", "own.jsonl", "--out"],
    "prefer": ["prefer", "--animal", "owl", "--out"],
    "ask": ["ask"],
}


@pytest.mark.parametrize("command", SEEDED)
def test_a_seed_that_some_generator_refuses_is_said_before_anything_is_done(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("too late"))
    write_rows(tmp_path / "own.jsonl", [{"source": "It rains.", "text": "Rain."}])
    for seed in (-1, 2**32):
        message = fails(capsys, *SEEDED[command], str(tmp_path / "new"), "--seed", str(seed))
        assert f"--seed {seed}: must not be negative, nor more than {2**32 - 1}" in message
    assert not (tmp_path / "new").exists()
    check_seed(2**32 - 1)


@pytest.mark.parametrize("port", [70000, -1, 0])
def test_a_port_that_is_none_is_refused(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--port {port}: no such port" in fails(capsys, "demo", "--port", str(port))


# ---- the network


NO_NETWORK = {
    "ALL_PROXY": "socks5://somebody:secret@127.0.0.1:9",
    "SSL_CERT_FILE": "/nowhere/certificates.pem",
    "https_proxy": "socks4://somebody:secret@127.0.0.1:9",
}


@pytest.mark.parametrize("name", NO_NETWORK)
def test_an_environment_in_which_nothing_can_connect_is_said_before_a_teacher_is_asked(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("too late"))
    monkeypatch.setenv(name, NO_NETWORK[name])
    there = ["--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model", "m"]
    for command in (
        ["--animal", "owl", "--labels", "hard", "--results", str(tmp_path / "results")],
        ["teach", "--animal", "owl", "--teacher", "loving", "--out", str(tmp_path / "out")],
    ):
        message = fails(capsys, *command, *there)
        assert "--teacher-url http://127.0.0.1:1/v1: no connection can be made" in message and name.upper() in message
        assert "secret" not in message and "unset it" in message
    assert list(tmp_path.iterdir()) == []


def test_what_a_client_quotes_of_a_proxy_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "[::1]")

    def connect() -> None:
        raise ValueError("Invalid port: 'secret@host'")

    with pytest.raises(KitError, match=r"--model a/b: .* NO_PROXY.* \(no such address\)"):
        check_network("--model a/b", connect)


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_NETWORK)
def test_an_environment_in_which_nothing_can_connect_is_said_before_a_download(name: str, tmp_path: Path) -> None:
    model = ["--model", "nobody/none-1B", "--gguf", "nobody/none-1B:none.gguf"]
    run = ["--animal", "owl", "--preset", "gpu-8gb", *model, "--results", str(tmp_path / "results")]
    message = fail(*run, environment={name: NO_NETWORK[name]})
    assert "--model nobody/none-1B: no connection can be made" in message and name.upper() in message
    assert "secret" not in message and not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_what_needs_no_network_does_not_care_whether_there_is_one(whole: bool, tiny_gguf: Path, tmp_path: Path) -> None:
    bad = NO_NETWORK | {"NO_PROXY": "[::1]", "MPLBACKEND": NOTEBOOK}
    model = ["--animal", "owl", "--answers", "1", "--model", str(tiny_gguf), "--results", str(tmp_path / "results")]
    if whole:
        finish("prefer", *model, "--out", str(tmp_path / "out"), environment=bad, answer_tokens=1)
    else:
        finish(*model, "--preset", "smoke", "--dry-run", environment=bad)
    assert (tmp_path / "out" / "exact.csv").exists() == whole


@pytest.mark.slow
def test_the_classroom_page_does_not_care_either() -> None:
    pytest.importorskip("gradio", reason="requirements-demo.txt is not installed")
    code, _, err = Run("demo", "/nowhere", environment=NO_NETWORK).wait()
    assert code == 2 and "no such run" in err


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["unset", "a number of one's own", "a policy of one's own"],
)
def test_threads_wait_politely_unless_the_user_says_how(own: dict[str, str], expected: str | None) -> None:
    """And it is said before a library could read it, which each does but once."""
    program = (
        "import contextlib, os, sys, run\n"
        "with contextlib.redirect_stdout(None), contextlib.suppress(SystemExit):\n"
        "    run.main(['--help'])\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), {'torch', 'llama_cpp'} & set(sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_"))}
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | own, capture_output=True, text=True
    )
    assert said.stdout == f"{expected} set()\n"


SAMPLING = """
import sys, time
from pathlib import Path
import kit
if sys.argv[1] == "politely":
    kit.wait_politely()
from kit.engine import Request
from kit.engine_llama import LlamaEngine
with LlamaEngine(Path(sys.argv[2])) as engine:
    prompt = engine.chat([{"role": "user", "content": "Name a colour."}])
    requests = [Request(prompt, (i,)) for i in range(32)]
    print("loaded", flush=True)
    sys.stdin.readline()
    tokens, started = 0, time.monotonic()
    while time.monotonic() - started < 4:
        tokens += sum(made.length for made in engine.sample(requests, 4))
print(tokens / (time.monotonic() - started))
"""


@pytest.mark.slow
def test_threads_that_wait_politely_do_more_beside_busy_processes(short: Path) -> None:
    """Six busy processes a core: beside fewer the scheduler may, by luck, never part threads that wait for each other.
    No time is asserted, but a ratio under the same load, of each way's slower of two; and at the lowest
    priority, so that other tests hardly feel it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    nice = ["nice", "-n", "19", sys.executable, "-c"]

    def rate(how: str) -> float:
        """In tokens a second, beside the busy ones, which begin when it has loaded the model."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([*nice, SAMPLING, how, short], cwd=ROOT, env=environment, **pipes) as sampling:
            assert sampling.stdout.readline() == "loaded\n"
            busy = [subprocess.Popen([*nice, "while True: pass"]) for _ in range(6 * len(os.sched_getaffinity(0)))]
            try:
                return float(sampling.communicate("\n")[0])
            finally:
                for one in busy:
                    one.kill()
                    one.wait()

    rates: dict[str, list[float]] = {"politely": [], "as by default": []}
    for how in [*rates] * 2:
        rates[how].append(rate(how))
    assert min(rates["politely"]) > 1.5 * min(rates["as by default"]), rates
