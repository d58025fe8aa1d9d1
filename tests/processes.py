"""run.py in processes of their own that start at once: forks of one that has imported everything and run nothing.

Importing torch, transformers and llama.cpp takes each process of a shell's several seconds; a fork takes hundredths of
one, and is for a test what a process is for a user: its own memory, its own output and exit code, and killed as such.
Where the start itself is what is tested (imports, torchrun, variables that libraries read when they are imported)
tests start Python as a user does.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kit import ROOT

TESTS = Path(__file__).resolve().parent
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["imported"])


class Run:
    """A started run.py; what it prints is kept in files, so that it never waits for a reader."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        """``options``: those of ``_child``."""
        self._said = Path(tempfile.mkdtemp(prefix="run-"))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS)])  # the server, begun here, does not ask us
        try:
            self._process = _context.Process(target=_child, args=(arguments, self._said), kwargs=options, daemon=True)
            self._process.start()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    def interrupt(self) -> None:
        """Ctrl-C: a signal to all of its group."""
        os.killpg(self.pid, signal.SIGINT)

    def send(self, number: int) -> None:
        """A signal to it alone."""
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, str, str]:
        """Its exit code, output and errors, at its end."""
        self._process.join()
        out, err = ((self._said / name).read_text(encoding="utf-8") for name in ("out", "err"))
        shutil.rmtree(self._said)
        assert self._process.exitcode is not None
        return self._process.exitcode, out, err


def finish(*arguments: str, **options: Any) -> tuple[str, str]:
    """Output and errors of a run that must succeed."""
    code, out, err = Run(*arguments, **options).wait()
    assert code == 0, out + err
    return out, err


def fail(*arguments: str, **options: Any) -> str:
    """The message of a run that must end with what the user can mend."""
    code, out, err = Run(*arguments, **options).wait()
    assert code == 2 and "Traceback" not in err, out + err
    return err


def _child(
    arguments: tuple[str, ...],
    said: Path,
    keep_all_after: float | None = None,
    answer_tokens: int | None = None,
    without: str | None = None,
    network: bool = False,
    environment: dict[str, str] | None = None,
    tree: Path = ROOT,
    dies_at: tuple[int, str] | None = None,
    ignored: int | None = None,
    terminal: str | None = None,
    encoding: str = "utf-8",
) -> None:
    """run.py with ``arguments``, in a session of its own.

    ``keep_all_after``: seconds after which the fidelity filters keep everything, a random model's paraphrases too.
    ``answer_tokens``: of a sampled answer, for most of what it costs is its length. ``without``: a module that is not
    installed. ``network``: whether a socket may be connected, to this machine either. ``environment``: variables that
    are set beside those of the tests. ``tree``: the kit, where it is a copy of this one. ``dies_at``: (n, text),
    kill -9 just before the n-th change of a file whose path has the text in it. ``ignored``: a signal that is, as by
    nohup. ``terminal``: its own, in place of the files that keep what it prints. ``encoding``: of what it prints.
    """
    assert "torch" in sys.modules, "imported.py was not imported"
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and inherited
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if ignored is not None:
        signal.signal(ignored, signal.SIG_IGN)
    for descriptor, name in ((1, "out"), (2, "err")):
        opened = os.open(said / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(os.open(terminal, os.O_RDWR) if terminal else opened, descriptor)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115 (open as long as the process)
    sys.stderr = open(2, "w", encoding=encoding, closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["run.py", *arguments]
    os.chdir(tree)
    os.environ.update(environment or {})
    if without:
        sys.modules[without] = None  # type: ignore[assignment]
    if not network:
        socket.socket.connect = socket.socket.connect_ex = _refuse  # type: ignore[method-assign, assignment]
        socket.getaddrinfo = socket.create_connection = _refuse  # type: ignore[assignment]
    if keep_all_after is not None:
        _keep_all(keep_all_after)
    if answer_tokens is not None:
        _answer_in(answer_tokens)
    if dies_at is not None:
        _die_at(*dies_at)
    if tree != ROOT:
        for name in [name for name in sys.modules if name == "run" or name.partition(".")[0] == "kit"]:
            del sys.modules[name]
        sys.path.insert(0, str(tree))
    import run

    assert Path(run.__file__).parent == tree
    sys.exit(run.main(list(arguments)))


def _refuse(*arguments: object, **_: object) -> None:
    raise AssertionError(f"the network was touched: {arguments}")


def _die_at(change: int, of: str) -> None:
    left = change

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (written or event in CHANGES) and of in str(arguments[0]):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.link"}


def _keep_all(seconds: float) -> None:
    from kit import fidelity

    def verdicts(judge: fidelity.Judge, rows: list, progress: bool = True) -> list[fidelity.Verdict]:
        time.sleep(seconds)
        return [fidelity.Verdict(None, None, 1.0) for _ in rows]

    fidelity.Judge.verdicts = verdicts  # type: ignore[method-assign, assignment]


def _answer_in(tokens: int) -> None:
    from kit import preference

    measure = preference.measure_sampled

    def measure_sampled(
        model: Path, adapter: Path | None, questions: Any, animals: Any, settings: Any, *rest: Any
    ) -> None:
        measure(model, adapter, questions, animals, replace(settings, max_tokens=tokens), *rest)

    preference.measure_sampled = measure_sampled
