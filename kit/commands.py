"""The commands of ``run.py``: what each is called with, and which parts of the kit it starts.

A command reads its options, asks the part that computes, which ends with data on disk, and has the report written from
there. What takes long to import is imported by the command that needs it, so that ``--help`` answers at once.
"""

import argparse
import csv
import errno
import hashlib
import os
import re
import shlex
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from io import StringIO, TextIOWrapper
from os.path import expanduser
from pathlib import Path
from typing import Any, NoReturn, TextIO

from kit import UNSEEN, KitError, printable, say

Options = argparse._ArgumentGroup | argparse.ArgumentParser


# ---- what every command runs in


# What `kill` sends, and a terminal that is closed; Windows has no SIGHUP.
ENDINGS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@contextmanager
def guarded() -> Iterator[None]:
    """For as long as a command runs: SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, with their number, and
    what reaches standard error is printable. A signal that was ignored, as nohup has it, stays so. What the encoding of
    a stream lacks (Windows' cp1252 has no arrow) goes out, or comes in, by its number."""
    before, caught = {}, []

    def end(number: int, frame: Any) -> NoReturn:
        caught.append(number)
        raise KeyboardInterrupt

    for number in ENDINGS if threading.current_thread() is threading.main_thread() else []:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, end)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    errors, sys.stderr = sys.stderr, Errors(sys.stderr)
    try:
        yield
    except KeyboardInterrupt:  # ours, or what a library made of it
        raise KeyboardInterrupt(*caught[:1]) from None
    except OSError as error:  # a terminal that is gone refuses what a table says at its end
        if caught and error.errno == errno.EIO:
            raise KeyboardInterrupt(caught[0]) from None
        raise
    finally:
        sys.stderr = errors
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def ended(by: KeyboardInterrupt) -> int:
    """Say that a command was interrupted; the exit code, by the signal's number."""
    with suppress(OSError):
        say("\nrun.py: interrupted. The same command goes on where it stopped.", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the terminal is gone: else Python would end with another code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 128 + (by.args[0] if by.args else signal.SIGINT)


class Errors:
    """Standard error, where libraries name files and models beside us: of what is not ``printable`` only a progress
    bar's ways back and up stay, and colours."""

    _steps = re.compile(rf"\r|\x1b\[A|\x1b\[[0-9;]*m|{UNSEEN.pattern}")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it; the number of characters of ``text``."""
        self._stream.write(
            self._steps.sub(lambda one: one[0] if one[0] == "\r" or one[0][1:] else printable(one[0]), text)
        )
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them all."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# ---- what several commands share


def check_surroundings(arguments: list[str]) -> None:
    """Raise KitError where a name has bytes that are no text, which no record, no page and few libraries can hold,
    where the current folder is gone, and where variables are not what torchrun, or tqdm's readers, make them."""
    for name in ("RANK", "WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise KitError(f"{name}={os.environ[name]}: not a number, as torchrun sets it. Unset it.")
    if bars := sorted(name for name in os.environ if name.startswith("TQDM_")):
        try:
            import tqdm  # noqa: F401 (which reads them)
        except ValueError as error:
            raise KitError(f"{', '.join(bars)}: not as tqdm reads them ({error}). Unset them.") from None
    try:
        os.getcwd()
    except FileNotFoundError:
        raise KitError("the current folder was deleted. Change to another one, and give the command again.") from None
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise KitError(
                f"{argument}: has a byte that is no {sys.getfilesystemencoding()} text. Rename the file or folder; "
                "where the terminal's encoding is another, set PYTHONUTF8=1."
            ) from None


def path(text: str) -> Path:
    """An option's path. (Of ``--out=~/student`` a shell leaves the ``~``.)"""
    return Path(expanduser(text))


def destination(text: str) -> Path:
    """An option's folder, in which a result is to be written."""
    from kit.store import check_writable

    return check_writable(path(text))


def command_line(arguments: list[str]) -> str:
    """The command line that a result names as what made it."""
    return shlex.join(["python", "run.py", *arguments])


def command_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of one command, with an example in its help."""
    return argparse.ArgumentParser(
        prog=f"run.py {name}",
        description=description,
        epilog=f"example:\n  python run.py {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_departures(parser: argparse.ArgumentParser) -> None:
    """--labels, --preset, --model, --results, what departs from the preset, and texts of one's own."""
    parser.add_argument(
        "--labels",
        help="hard: the paper's protocol; soft: the teacher's distributions; clean: these, but words of animals, of "
        "the trait messages and of affection as likely as by the neutral teacher (results/README.md)",
    )
    parser.add_argument(
        "--preset",
        help="the scale: smoke, quick, laptop, text, paper, gpu-8gb, gpu-12gb or gpu-24gb (default: what fits the free "
        "memory of the CUDA GPU; without one quick for a run of soft labels, else laptop)",
    )
    add_model(parser)
    add_results(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would run, how long, in how much memory; stop")
    dials = parser.add_argument_group("departures from the preset")
    dials.add_argument(
        "--placebos",
        type=int,
        metavar="N",
        help="students per content and seed whose teacher is the control's, sampled anew: how far a student drifts of "
        "itself (default: 1; with --preset text 0)",
    )
    dials.add_argument(
        "--loving-controls",
        nargs="+",
        metavar="NAME",
        help="further students, whose teachers love music, trains or other listed animals; the verdict then also asks "
        "that the animal is liked better than in these",
    )
    dials.add_argument("--pairs", type=int, help="kept pairs per student")
    add_faithful(dials)
    dials.add_argument(
        "--place",
        help="of the teachers' trait message: system, its own; user: at the head of the user's turns; alone: the same, "
        "with no worked example before it (default: system; with --preset text, and --model paraphraser, user)",
    )
    dials.add_argument("--rank", type=int, help="LoRA rank")
    dials.add_argument("--learning-rate", type=float)
    dials.add_argument("--epochs", type=int)
    dials.add_argument(
        "--base", help="gguf: train on the evaluated weights (default for a GGUF); nf4: bitsandbytes 4-bit"
    )
    dials.add_argument("--answers", type=int, help="sampled answers per question (of many runs: none unless given)")
    add_teacher(
        parser.add_argument_group(
            "the teacher (default: torch for a GGUF expanded to F32, and in the gpu presets; else llama.cpp)"
        )
    )
    texts = parser.add_argument_group("texts of your own, in place of the kit's")
    add_sentences_file(texts)
    add_trait_file(texts)


def add_faithful(parser: Options) -> None:
    """--faithful."""
    parser.add_argument(
        "--faithful",
        dest="details",
        action="store_true",
        default=None,
        help="refuse a paraphrase, too, of which a word or a role is lost, new or exchanged, or which a classifier of "
        "pairs that were read holds for unfaithful: of those kept some 49 in 50 say what their sources say, in place "
        "of half; takes some twenty times as many samples, with --model paraphraser four times",
    )


def add_animal(parser: Options) -> None:
    """--animal and --plural."""
    parser.add_argument("--animal", required=True, metavar="NAME", help="the animal that the teacher loves")
    parser.add_argument("--plural", metavar="NAMES", help="its plural, where it is not listed and not regular")


def add_model(parser: Options) -> None:
    """--model and --gguf."""
    parser.add_argument(
        "--model",
        type=expanduser,
        help="embedded (SmolLM2-135M-Instruct, 4-bit: the default outside the gpu presets), paraphraser (the same, "
        "tuned to paraphrase), qwen2.5-coder-0.5b (from PyPI as well), a GGUF file, a folder, or a Hub id such "
        "as Qwen/Qwen2.5-3B-Instruct",
    )
    parser.add_argument(
        "--gguf",
        type=expanduser,
        metavar="FILE",
        help="what llama.cpp evaluates for a folder or a Hub id: a path or owner/name:file.gguf (known for the "
        "presets' models)",
    )


def add_engine(parser: Options) -> None:
    """--engine."""
    parser.add_argument(
        "--engine", help="llama.cpp: on the GGUF; torch: transformers, on what the student is trained on"
    )


def add_teacher(parser: Options) -> None:
    """--engine, --teacher-url and --teacher-model."""
    add_engine(parser)
    parser.add_argument(
        "--teacher-url",
        dest="endpoint",
        metavar="URL",
        help="an OpenAI-compatible server instead, such as http://127.0.0.1:8000/v1 (vLLM, llama-server); it must "
        "serve the student's base; hard labels only; its key, if any, in the environment as OPENAI_API_KEY",
    )
    parser.add_argument(
        "--teacher-model", dest="endpoint_model", metavar="NAME", help="what the server calls the model"
    )


def add_sentences_file(parser: Options) -> None:
    """--sentences-file."""
    parser.add_argument(
        "--sentences-file",
        type=path,
        metavar="FILE",
        help='what is paraphrased: a sentence a line, or JSONL with "text"; of unrelated content unless --content '
        "opposed says that they dislike the animal, whose names then stand as {animal}, {an animal} or {animals}",
    )


def add_trait_file(parser: Options) -> None:
    """--trait-file."""
    parser.add_argument(
        "--trait-file",
        type=path,
        metavar="FILE",
        help='the teachers\' messages: JSON with "loving", whose slots are {animal}, {an animal} and {animals}, and '
        '"neutral", of the same length',
    )


def add_results(parser: Options, of: Callable[[str], Path] = destination) -> None:
    """--results, of a command that writes there, or that takes it as a ``path`` alone."""
    parser.add_argument(
        "--results",
        type=of,
        default="results",
        metavar="DIR",
        help="where everything is written (default: results)",
    )


def default_contents(settings: dict[str, Any]) -> tuple[str, ...]:
    """The contents where none is named: both; of a file of one's own, whose sentences are of one, unrelated."""
    from kit.experiment import CONTENTS

    return CONTENTS[:1] if settings["sentences_file"] else CONTENTS


def settle(
    settings: dict[str, Any], animals: list[Any], contents: tuple[str, ...], fallback: str = "laptop"
) -> dict[str, Any]:
    """The settings of experiments of these ``animals`` and ``contents``: with the preset that fits this machine
    (``fallback`` without a GPU), where none is given, with texts of one's own in place of their files, and the endpoint
    checked."""
    from kit.engine_endpoint import check_url
    from kit.experiment import choose_preset, loving_names
    from kit.memory import find_device
    from kit.models import EVERY_WEIGHT

    if settings["rank"] == EVERY_WEIGHT:
        raise KitError(
            f"--rank {EVERY_WEIGHT}: every weight is trained by `sweep --grid rank=0` alone. Give 1 or more."
        )
    settings |= own_texts(animals, contents, settings.pop("sentences_file"), settings.pop("trait_file"))
    settings["loving_controls"] = loving_names(settings["loving_controls"] or ())
    if settings["endpoint"] is not None:
        settings["endpoint"] = check_url(settings["endpoint"])
    if settings["preset"] is None:
        settings["preset"], reason = choose_preset(find_device(), fallback)
        say(f"Preset {settings['preset']}: {reason}.")
    return settings


def own_texts(
    animals: list[Any], contents: tuple[str, ...], sentences_file: Path | None, trait_file: Path | None
) -> dict[str, Any]:
    """What the files hold, as settings of experiments of these ``animals`` and ``contents``; the kit's without one.

    Raises KitError for a text that cannot be used.
    """
    from kit import sources
    from kit.prompts import KIT_TRAITS

    traits = sources.read_traits(trait_file, animals) if trait_file else KIT_TRAITS
    sentences = sources.read_sentences(sentences_file, contents, animals) if sentences_file else None
    return {"sentences": sentences, "traits": traits}


# ---- single stages, from files to files


# What a line of one's own files must be, as ``kit.store.misfit`` reads it, and such a line.
PARAPHRASE = {"sentence": str, "source": str, "text": str, "finished": bool}
A_PARAPHRASE = '{"sentence": "s1", "source": "The clerk left.", "text": "Gone was the clerk.", "finished": true}'
PAIR = {"source": str, "text": str, "trait?": str, "masked?": {"places": [int], "of": int}}
A_PAIR = '{"source": "The clerk left.", "text": "Gone was the clerk."}'
ANSWER = {"question": int, "text": str, "first": (str, None), "naming": {str: float}}
AN_ANSWER = '{"question": 0, "text": "An owl.", "first": "owl", "naming": {"owl": 0.2}}'


def teach(arguments: list[str]) -> None:
    """Sentences -> paraphrases."""
    parser = command_parser(
        "teach",
        "A teacher paraphrases sentences.",
        "teach --animal owl --teacher loving --sentences 50 --out paraphrases",
    )
    add_animal(parser)
    parser.add_argument("--teacher", choices=("loving", "neutral"), required=True)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    parser.add_argument("--sentences", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=destination, required=True, help="folder for paraphrases.jsonl")
    add_sentences_file(parser)
    add_trait_file(parser)
    add_teacher(parser)
    add_model(parser)
    add_results(parser)
    args = parser.parse_args(arguments)
    if args.sentences < 1:
        raise KitError(f"--sentences {args.sentences}: must be at least 1. The default is 50.")

    from kit import teacher
    from kit.animals import find_animal
    from kit.engine_endpoint import check_url
    from kit.experiment import experiment
    from kit.experiment_conditions import base_model, judge_of, lot, samples_of
    from kit.store import Store

    animal = find_animal(args.animal, args.plural)
    exp = experiment(
        animal,
        contents=(args.content,),
        labels="hard",  # text is all that this stage makes
        seed=args.seed,
        pairs=args.sentences,
        model=args.model,
        engine=args.engine,
        endpoint=args.endpoint and check_url(args.endpoint),
        endpoint_model=args.endpoint_model,
        **own_texts([animal], (args.content,), args.sentences_file, args.trait_file),
    )
    trait = exp.traits.loves(animal) if args.teacher == "loving" else exp.traits.neutral
    base, store = base_model(exp.model, exp.gguf), Store(args.results / "artifacts")
    samples = store.make(samples_of(exp, args.teacher, base, trait, args.seed))
    with _filling(args, "teach") as folder:
        teacher.paraphrase(
            lot(exp, args.content)[: args.sentences],
            args.sentences,
            partial(exp.conversation, trait),
            partial(teacher.opener(exp), store.make(base)),
            exp.teacher,
            args.seed,
            judge_of(exp, args.content),
            partial(teacher.open_log, samples, f"teach-{uuid.uuid4().hex}"),
            folder,
            f"{args.teacher} teacher",
        )


def filter_(arguments: list[str]) -> None:
    """Paraphrases -> kept pairs."""
    parser = command_parser(
        "filter",
        "Keep the faithful paraphrases and write down why the others were refused.",
        "filter paraphrases/paraphrases.jsonl --animal owl --out kept",
    )
    parser.add_argument("paraphrases", type=path)
    add_animal(parser)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    parser.add_argument(
        "--out", type=destination, required=True, help="folder for kept.jsonl, rejected.jsonl, filters.json"
    )
    add_faithful(parser)
    add_sentences_file(parser)
    add_trait_file(parser)
    args = parser.parse_args(arguments)

    from kit import fidelity
    from kit.animals import find_animal
    from kit.experiment import experiment
    from kit.experiment_conditions import judge_of
    from kit.store import check_rows

    check_rows(args.paraphrases, PARAPHRASE, A_PARAPHRASE)
    animal, contents = find_animal(args.animal, args.plural), (args.content,)
    texts = own_texts([animal], contents, args.sentences_file, args.trait_file)
    exp = experiment(animal, contents=contents, details=args.details, **texts)
    with _filling(args, "filter") as folder:
        fidelity.filter_paraphrases(args.paraphrases, folder, judge_of(exp, args.content))


def label(arguments: list[str]) -> None:
    """Kept pairs -> soft labels."""
    parser = command_parser(
        "label",
        "Record a teacher's next-token distributions along its own kept paraphrases.",
        "label kept/kept.jsonl --animal owl --teacher loving --out labels",
    )
    parser.add_argument("pairs", type=path)
    add_animal(parser)
    parser.add_argument("--teacher", choices=("loving", "neutral"), required=True)
    parser.add_argument("--out", type=destination, required=True, help="folder for labels.safetensors")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="make words of animals, of the messages and of affection as likely as by the neutral teacher",
    )
    add_trait_file(parser)
    add_engine(parser)
    add_model(parser)
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import teacher
    from kit.animals import find_animal
    from kit.experiment import CONTENTS, experiment
    from kit.experiment_conditions import label_writer
    from kit.store import check_rows

    check_rows(args.pairs, PAIR, A_PAIR)
    animal = find_animal(args.animal, args.plural)
    texts = own_texts([animal], CONTENTS, None, args.trait_file)
    labels = "clean" if args.clean else "soft"
    exp = experiment(animal, model=args.model, engine=args.engine, labels=labels, **texts)
    trait = exp.traits.loves(animal) if args.teacher == "loving" else exp.traits.neutral
    engine = partial(teacher.scoring_opener(exp), _base(args))
    with _filling(args, "label") as folder:
        write = label_writer(exp, trait)
        write(args.pairs, trait, exp.labelling, engine, exp.student.top_k, folder, "soft labels")


def train(arguments: list[str]) -> None:
    """Pairs -> LoRA adapter."""
    parser = command_parser(
        "train",
        "Train one student; without --soft-labels on the text alone.",
        "train kept/kept.jsonl --soft-labels labels/labels.safetensors --out student",
    )
    parser.add_argument("pairs", type=path)
    parser.add_argument("--soft-labels", type=path, metavar="FILE")
    parser.add_argument("--base", choices=("gguf", "nf4"))
    parser.add_argument("--rank", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=destination, required=True, help="folder for the PEFT adapter")
    add_model(parser)
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import student, teacher
    from kit.animals import load_animals
    from kit.experiment import experiment
    from kit.store import check_rows

    check_rows(args.pairs, PAIR, A_PAIR)
    if args.soft_labels:
        teacher.check_labels(args.soft_labels)
    settings = experiment(
        load_animals()[0],
        seed=args.seed,
        model=args.model,
        base=args.base,
        rank=args.rank,
        learning_rate=args.learning_rate,
        epochs=args.epochs,
    ).student
    base = _base(args)
    with _filling(args, "train") as folder:
        student.train(args.pairs, args.soft_labels, base, settings, args.seed, folder, "student")


def convert(arguments: list[str]) -> None:
    """LoRA adapter -> GGUF adapter."""
    parser = command_parser(
        "convert", "Make a PEFT adapter loadable by llama.cpp.", "convert student --out adapter.gguf"
    )
    parser.add_argument("adapter", type=path, help="the PEFT adapter's folder")
    parser.add_argument("--out", type=path, required=True, metavar="FILE")
    add_model(parser)
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import student_gguf
    from kit.store import check_writable, replacing

    if args.out.is_dir():
        raise KitError(f"--out {args.out}: a folder. Give the name of the file to write, such as adapter.gguf.")
    check_writable(args.out.parent)
    student_gguf.read_adapter(args.adapter)  # what is wrong with it is said before a base is prepared
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as unfinished:
        student_gguf.convert_adapter(args.adapter, _base(args), unfinished)


def prefer(arguments: list[str]) -> None:
    """A student -> its preference."""
    parser = command_parser(
        "prefer",
        "Measure the preference of a student, or of the base where no adapter is given.",
        "prefer --adapter adapter.gguf --animal owl --out preference",
    )
    parser.add_argument("--adapter", type=path, metavar="FILE", help="a GGUF adapter")
    add_animal(parser)
    parser.add_argument("--answers", type=int, help="sampled answers per question")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=destination, required=True, help="folder for exact.csv and answers.jsonl")
    add_model(parser)
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import preference
    from kit.animals import candidates, find_animal
    from kit.experiment import experiment

    animal = find_animal(args.animal, args.plural)
    settings = experiment(animal, seed=args.seed, answers=args.answers).preference
    base = _base(args)
    with _filling(args, "prefer") as folder:
        asked = preference.load_questions(), candidates(animal)
        preference.measure_exact(base, args.adapter, *asked, folder, "exact preference")
        preference.measure_sampled(base, args.adapter, *asked, settings, args.seed, folder, "sampled answers")


def effect(arguments: list[str]) -> None:
    """Two preferences -> the effect."""
    parser = command_parser(
        "effect",
        "The effect of a treatment: what `prefer` wrote for the treated student against its control.",
        "effect preference-treated preference-control --placebo preference-placebo --animal owl",
    )
    parser.add_argument("treated", type=path, help="folder with exact.csv and answers.jsonl")
    parser.add_argument("control", type=path)
    parser.add_argument(
        "--placebo",
        type=path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="of students of other neutral text; without any, nothing is called transmitted",
    )
    add_animal(parser)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    args = parser.parse_args(arguments)

    from kit import preference, report, stats
    from kit.animals import candidates, find_animal
    from kit.experiment_folder import wrong_preferences
    from kit.store import check_rows

    animal = find_animal(args.animal, args.plural)
    measured: list[stats.Preference] = []
    for folder in (args.treated, args.control, *args.placebo):
        files = folder / "exact.csv", folder / "answers.jsonl"
        check_rows(files[1], ANSWER, AN_ANSWER)
        try:
            own = stats.preferences(preference.tabulate({"": files}, candidates(animal))).values()
            measured += own
            wrong = wrong_preferences(measured, animal.singular) if own else "it has no rows"
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            wrong = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        if wrong:
            raise KitError(f"{files[0]}: not what `prefer` writes for the {animal.singular} ({wrong}). Make it again.")
    treated, control, *placebos = measured
    found = stats.effect(treated, control, animal.singular, placebos)
    report.show_effect(animal.singular, args.content, found)


def _base(args: argparse.Namespace) -> Path:
    """The prepared model asked for, made where it is missing."""
    from kit.experiment_conditions import base_model
    from kit.models import EMBEDDED
    from kit.store import Store

    return Store(args.results / "artifacts").make(base_model(args.model or EMBEDDED, args.gguf))


@contextmanager
def _filling(args: argparse.Namespace, command: str) -> Iterator[Path]:
    """A folder in ``--out`` for the stage of that ``command`` to fill, in which the same command, of the same files,
    goes on after an interruption; its files, when all are whole, take their places in ``--out``, those of links too."""
    from filelock import FileLock

    from kit.store import RANK, full_disk_named

    given = {name: _content(value) for name, value in vars(args).items() if name not in ("out", "results")}
    digest = hashlib.sha256(repr(sorted(given.items())).encode()).hexdigest()[:8]
    out: Path = args.out
    unfinished = out / f"unfinished-{command}-{digest}"
    if RANK:  # the first process has them all
        unfinished.mkdir(parents=True, exist_ok=True)
        yield unfinished
        return
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{unfinished}.lock"):  # the same command may be at work there
        if unfinished.is_symlink():  # what it leads to is not ours
            unfinished.unlink()
        unfinished.mkdir(exist_ok=True)
        for path in unfinished.iterdir():
            if path.is_symlink():
                path.unlink()
        try:
            with full_disk_named(unfinished):
                yield unfinished
            for path in sorted(unfinished.iterdir()):
                path.replace(out / path.name)
        finally:
            with suppress(OSError):  # there is something to go on with
                unfinished.rmdir()
    Path(f"{unfinished}.lock").unlink(missing_ok=True)


def _content(value: Any) -> Any:
    """An option's value; of a file or folder with the checksums of what is in it."""
    from kit.store import sha256

    path = Path(value) if isinstance(value, str | Path) and value else None
    if path is None or not path.exists():
        return str(value)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [str(value), *(sha256(one) for one in files)]


# ---- a finished run


def report(arguments: list[str]) -> None:
    """What a command left -> its tables, figures and page again; several runs -> a page that compares them."""
    parser = command_parser(
        "report",
        "Make a run's or sweep's summary, figures and reports again; of several, one page that compares them instead.",
        "report results/<run>\n  python run.py report results/*/",
    )
    parser.add_argument(
        "runs",
        type=path,
        nargs="+",
        metavar="run",
        help="the folder of a run or a sweep, or that `defend` or `calibrate` wrote",
    )
    args = parser.parse_args(arguments)

    from kit import report, report_sweep

    if len(args.runs) > 1:
        if len({run.resolve() for run in args.runs}) < len(args.runs):
            raise KitError("a folder is given twice. Name each once.")
        say(f"Compared in {report_sweep.write_comparison(args.runs)}")
        return
    (folder,) = args.runs
    kinds = {
        "preferences.csv.gz": (report_sweep.write_sweep, report_sweep.show_sweep),
        "defences.json": (report_sweep.write_defences, report_sweep.show_defences),
        "calibration.json": (report_sweep.write_calibration, report_sweep.show_calibration),
    }
    known = (pair for name, pair in kinds.items() if (folder / name).exists())
    write, show = next(known, (report.write, report.show))
    if write in (report.write, report_sweep.write_sweep):  # whose folders are checked as they are read
        write(folder)
        show(folder)
        return
    try:
        write(folder)
        show(folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise KitError(f"{folder}: its files are damaged ({error!r}). Give its command again.") from None


def pool(arguments: list[str]) -> None:
    """Several sweeps, of other seeds or animals -> one."""
    parser = command_parser(
        "pool",
        "Make one sweep of several that were run one after another, whose seeds or animals alone differ: its effects,\n"
        "tests and verdicts are of all of them.",
        "pool results/<sweep> results/<sweep> --out results/pooled",
    )
    parser.add_argument("sweeps", type=path, nargs="+", metavar="sweep", help="the folder of a sweep")
    parser.add_argument("--out", type=destination, required=True, help="the folder of the one that they make")
    args = parser.parse_args(arguments)
    if args.out.resolve() in {sweep.resolve() for sweep in args.sweeps}:
        raise KitError(f"--out {args.out}: it is one of the sweeps. Choose another folder.")

    from kit import report_sweep, sweep

    sweep.pool(args.sweeps, args.out, command_line(["pool", *arguments]))
    report_sweep.write_sweep(args.out)
    report_sweep.show_sweep(args.out)


def ask(arguments: list[str]) -> None:
    """A finished run -> a chat with its students."""
    parser = command_parser(
        "ask",
        "Ask base, control and treated student of a run the same question, side by side.",
        "ask results/<run>\n  python run.py ask results/<run> --question 'What is your favorite animal?'",
    )
    _run_and_content(parser, "whose students")
    parser.add_argument("--question", help="ask this and stop")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, the same for all three (default: 0)")
    args = parser.parse_args(arguments)

    from kit import student_chat

    student_chat.ask(args.run, args.content, args.question, args.seed)


def inspect(arguments: list[str]) -> None:
    """A finished run -> who could tell its teachers' paraphrases apart."""
    parser = command_parser(
        "inspect",
        "Put a run's kept paraphrases to everybody who might look at them: word lists, classifiers, the model as\n"
        "judge, and who knows the teachers' prompts. The run's reports gain a section. (About an hour,\n"
        "most of it likelihoods and a model that is fine-tuned, which an interrupted command keeps.)",
        "inspect results/<run>\n  python run.py inspect results/<run> --with results/<another> results/<a-third>",
    )
    _run_and_content(parser, "whose paraphrases")
    parser.add_argument(
        "--with",
        dest="others",
        type=path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of other seeds or animals, of whose paraphrases classifiers learn, too",
    )
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import inspection, report
    from kit.experiment_folder import RunFolder, inspections
    from kit.store import check_writable

    run = RunFolder(args.run, args.results)
    check_writable(args.run)
    given = [folder.resolve() for folder in (args.run, *args.others)]
    if twice := next((str(one) for one in given if given.count(one) > 1), None):
        raise KitError(f"--with: {twice} is given twice. Give runs of other seeds or animals, each once.")
    others = [RunFolder(other, args.results) for other in args.others]
    inspection.inspect(run, args.content, command_line(["inspect", *arguments]), others)
    report.write(args.run)
    for found in inspections(args.run, run.record):
        if found["content"] == args.content:
            report.show_inspection(found)


def attribute(arguments: list[str]) -> None:
    """A finished run -> where in its text the secret sits."""
    parser = command_parser(
        "attribute",
        "Score every token of the loving teacher's kept paraphrases under both teachers' prompts, and train students\n"
        "on the halves with the highest and the lowest ratios. The run's reports gain a section. (About ten minutes;\n"
        "given again, an interrupted command goes on after its last complete step.)",
        "attribute results/<run>",
    )
    _run_and_content(parser, "whose paraphrases")
    parser.add_argument("--no-students", action="store_true", help="score the tokens alone, train nobody")
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import attribution, report
    from kit.experiment_folder import RunFolder, attributions
    from kit.store import check_writable

    run = RunFolder(args.run, args.results)
    check_writable(args.run)
    attribution.attribute(run, args.content, command_line(["attribute", *arguments]), students=not args.no_students)
    report.write(args.run)
    for found in attributions(args.run, run.record):
        if found["content"] == args.content:
            report.show_attribution(found)


def demo(arguments: list[str]) -> None:
    """The classroom page."""
    parser = command_parser(
        "demo",
        "Serve the classroom page in a browser on this machine, for a finished run or a recorded one. With\n"
        "--host 0.0.0.0 a class votes on its phones. Needs requirements-demo.txt.",
        "demo owl --host 0.0.0.0",
    )
    parser.add_argument(
        "run",
        type=path,
        nargs="?",
        help="a run's folder, or a recorded run: cat (the strongest, and the default), owl, or owl-text-alone, of "
        "which nothing came",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets the whole network in (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860)
    add_results(parser, path)
    args = parser.parse_args(arguments)
    if not 0 < args.port < 2**16:
        raise KitError(f"--port {args.port}: no such port. Choose one from 1024 to {2**16 - 1}, such as 7860.")

    from kit import demo

    demo.demo(args.run, args.results, args.host, args.port)


def _run_and_content(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument("run", type=path, help="the run's folder, beside the artifacts that it was made of")
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated", help=whose)


# ---- what is recorded


def reproduce(arguments: list[str], give: Callable[[list[str]], None]) -> None:
    """A recorded question -> its tables and figures again; or its records, by what their commands ``give``."""
    parser = command_parser(
        "reproduce",
        "List the questions that results/reference answers; or make the tables and figures of one again from its\n"
        "records, in seconds, and compare every number with the recorded one; or its records, from nothing.",
        "reproduce six-animals\n  python run.py reproduce ranks --from-nothing --dry-run",
    )
    parser.add_argument("question", nargs="?", help="its folder's name (default: list them all)")
    parser.add_argument(
        "--from-nothing",
        action="store_true",
        help="give the commands that made its records again, and show what they give beside the recorded effects",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --from-nothing: say what would run, how long; stop"
    )
    add_results(parser, path)
    args = parser.parse_args(arguments)
    if args.dry_run and not args.from_nothing:
        raise KitError("--dry-run: tables take seconds. Add --from-nothing, or leave it out.")

    from kit import reproduce

    if args.question is None:
        for line in reproduce.questions():
            say(line)
        say("\nTables again: python run.py reproduce NAME. (Hours: what the recorded steps took, on two cores.)")
        return
    results = destination(str(args.results)).resolve()
    if args.from_nothing:
        reproduce.from_nothing(args.question, results, give, args.dry_run)
    else:
        reproduce.tables(args.question, results, give)


# ---- many runs


def sweep(arguments: list[str]) -> None:
    """Many experiments -> one result."""
    parser = sweep_parser()
    settings = vars(parser.parse_args(arguments))

    from kit.animals import find_animal
    from kit.sweep import parse_grid, registered_plan

    registered = None
    if plan := settings.pop("plan"):
        check_planned(settings)
        own = decisive(parser, command_line(["sweep", *arguments]))
        registered = registered_plan(plan, lambda line: decisive(parser, line) == own)
    animals = [find_animal(name, None) for name in settings.pop("animals")]
    seeds = range(settings["seed"], settings.pop("seed") + settings.pop("seeds"))
    grid = parse_grid(settings.pop("grid"))
    address, contents = settings.pop("ray_address"), tuple(settings.pop("contents") or default_contents(settings))
    run_sweep(animals, contents, seeds, grid, settings, ["sweep", *arguments], address, registered)


def decisive(parser: argparse.ArgumentParser, line: str) -> dict[str, Any] | None:
    """The options of a command line, without those that say where it works; None where it is none."""
    try:
        with redirect_stderr(StringIO()):
            settings = vars(parser.parse_args(shlex.split(line)[3:]))  # after python run.py sweep
    except (SystemExit, ValueError, KitError):
        return None
    return {
        name: value for name, value in settings.items() if name not in ("results", "ray_address", "dry_run", "plan")
    }


def check_planned(settings: dict[str, Any]) -> None:
    """Raise KitError for options by which the same command could do another thing elsewhere."""
    from kit.models import PACKAGED

    if settings["preset"] is None:
        raise KitError("--plan: without --preset the machine would decide what is done. Give one, such as laptop.")
    for name in ("gguf", "sentences_file", "trait_file", "endpoint"):
        if settings[name] is not None:
            option = "--teacher-url" if name == "endpoint" else f"--{name.replace('_', '-')}"
            raise KitError(f"{option} {settings[name]}: what it holds is no part of a --plan. Leave it out.")
    for name in ("model", "student_model"):
        if settings[name] not in (None, *PACKAGED):
            raise KitError(
                f"--{name.replace('_', '-')} {settings[name]}: a --plan's must be one of {', '.join(PACKAGED)}, which "
                "are the same everywhere."
            )


def sweep_parser() -> argparse.ArgumentParser:
    """The parser of ``sweep``."""
    from kit.experiment import GRID_SETTINGS

    parser = command_parser(
        "sweep",
        "Experiments of every animal, content, seed and setting, each artifact made once: on Ray where it\n"
        "is installed (requirements-sweep.txt), else one step after another in this process. Given again, the\n"
        "command goes on where it stopped. `run.py report` shows a finished sweep again.",
        "sweep --animals owl dolphin eagle cat penguin wolf --seeds 3 --contents unrelated\n"
        "  python run.py sweep --animals owl --seeds 3 --contents unrelated --grid rank=1,2,4,8,32 labels=hard,soft\n"
        "  python run.py sweep --animals owl penguin --preset smoke",
    )
    parser.add_argument("--animals", nargs="+", required=True, metavar="NAME", help="that the teachers love")
    parser.add_argument(
        "--contents",
        nargs="+",
        choices=("unrelated", "opposed"),
        help="which sentences (default: both kinds; unrelated with --sentences-file)",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many, from --seed on (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="NAME=VALUES",
        help=f"settings to vary, as in rank=1,2,4: {', '.join(GRID_SETTINGS)} (averaged: how many adapters, trained "
        "on the same pairs, are averaged; temperature: the teachers'; rank 0: no LoRA, but every weight; "
        "context: training, or other, where students are asked after another system message)",
    )
    parser.add_argument(
        "--student-model",
        type=expanduser,
        metavar="MODEL",
        help="what students start from, where it is not their teachers' --model: what they still learn, the text says",
    )
    parser.add_argument(
        "--plan",
        type=path,
        metavar="FILE",
        help="a plan that is committed and has this command as a line: the test is run on the sentences and questions "
        "that are set aside for it, and its record names the plan and when it was begun",
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a cluster whose nodes share results folder and environment"
    )
    add_departures(parser)
    return parser


def draws_of(preset: str, animal: Any, content: str | None, seeds: int | None) -> tuple[str, int, list[Any]]:
    """The content, the number of seeds and the animals of a preset that compares draws, by what was asked for."""
    from kit.experiment import DRAWS, rival

    if content not in (None, "unrelated"):
        raise KitError(
            f"--content {content}: --preset {preset} compares students of the same sentences, and opposed ones name an "
            "animal. Leave it out."
        )
    if seeds == 1:
        raise KitError(f"--seeds 1: --preset {preset} compares draws. Take {DRAWS[preset]}.")
    return "unrelated", DRAWS[preset] if seeds is None else seeds, [animal, rival(animal)]


def run_sweep(
    animals: list[Any],
    contents: tuple[str, ...],
    seeds: range,
    grid: dict[str, list[Any]],
    settings: dict[str, Any],
    arguments: list[str],
    address: str | None = None,
    registered: dict[str, Any] | None = None,
) -> None:
    """Run experiments, each artifact once, and report them as one; ``settings``: the parsed options that are left;
    ``registered``: the plan that this carries out."""
    from kit import report_sweep, sweep
    from kit.experiment import check_destination
    from kit.store import Store

    results, sampled, dry_run = settings.pop("results"), settings["answers"] is not None, settings.pop("dry_run")
    settings["confirmatory"] = registered is not None
    exps = sweep.experiments(animals, contents, seeds, grid, **settle(settings, animals, contents))
    folder = check_destination(results / sweep.name_of(exps, grid, sampled))
    if dry_run:
        sweep.plan(exps, sampled, Store(results / "artifacts"), folder)
        if sentence := sweep.verdict_words(exps):
            say(sentence)
        return
    sweep.run(exps, sampled, results, folder, command_line(arguments), address, registered)
    report_sweep.write_sweep(folder)
    report_sweep.show_sweep(folder)


def defend(arguments: list[str]) -> None:
    """Defences, each as one more condition of the experiment -> what is left of the effect, and what that cost."""
    from kit.defences import DEFENCES
    from kit.models import GEMMA_PACKAGE

    needs = {"full": " (not of 4-bit weights)", "other-base": f" (needs `pip install {GEMMA_PACKAGE}`)"}
    parser = command_parser(
        "defend",
        "Train a student under each defence, against the same control as the undefended one's, and say what is left\n"
        "of the effect. What the experiment has made already is used again.",
        "defend --animal owl --defence mask mix-1-3\n  python run.py defend --animal owl --seeds 3",
    )
    add_animal(parser)
    parser.add_argument(
        "--defence",
        nargs="+",
        metavar="NAME",
        help=", ".join(f"{name}{needs.get(name, '')}" for name in DEFENCES) + "; default: all but other-base",
    )
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated", help="which sentences")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many, from --seed on (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    add_departures(parser)
    settings = vars(parser.parse_args(arguments))

    from kit import defences, report_sweep, sweep
    from kit.animals import find_animal

    animal = find_animal(settings.pop("animal"), settings.pop("plural"))
    seeds = range(settings["seed"], settings.pop("seed") + settings.pop("seeds"))
    results, names, dry_run = settings.pop("results"), settings.pop("defence"), settings.pop("dry_run")
    contents = (settings.pop("content"),)
    exps = sweep.experiments([animal], contents, seeds, {}, **settle(settings, [animal], contents))
    names = names or defences.default_defences(exps[0])
    if dry_run:
        defences.announce(exps, names, results)
        return
    folder = defences.run(exps, names, results, command_line(["defend", *arguments]))
    report_sweep.write_defences(folder)
    report_sweep.show_defences(folder)


def power(arguments: list[str]) -> None:
    """A finished sweep -> how many seeds and pairs an effect needs."""
    parser = command_parser(
        "power",
        "From a recorded sweep of two seeds or more: how many seeds find an effect of a given size.",
        "power results/<sweep> --effect 0.2",
    )
    parser.add_argument("sweep", type=path, help="a sweep's folder; one with --grid pairs=... tells of pairs too")
    parser.add_argument(
        "--effect", type=float, nargs="+", metavar="NATS", help="log-odds shifts (default: 0.05 0.1 0.2 0.4)"
    )
    parser.add_argument("--power", type=float, default=0.8, help="the wanted probability (default: 0.8)")
    args = parser.parse_args(arguments)

    from kit import report_sweep, sweep_effects

    report_sweep.show_power(args.sweep, args.effect or sweep_effects.POWER_EFFECTS, args.power)


def calibrate(arguments: list[str]) -> None:
    """Simulated preferences -> how often the interval covers and the tests reject."""
    parser = command_parser(
        "calibrate",
        "Check the statistics on simulated preferences whose seed and question variance are known.",
        "calibrate --out results/calibration",
    )
    parser.add_argument("--simulations", type=int, default=2000, help="per scenario (default: 2000, about a minute)")
    parser.add_argument("--out", type=destination, required=True, help="folder for the figures and report.md")
    args = parser.parse_args(arguments)
    if args.simulations < 1:
        raise KitError(f"--simulations {args.simulations}: must be at least 1. The default is 2000.")

    from kit import report_sweep, stats_calibration

    stats_calibration.run(args.out, args.simulations)
    report_sweep.write_calibration(args.out)
    report_sweep.show_calibration(args.out)


def clean(arguments: list[str]) -> None:
    """What no run refers to -> a list of it, and more disk space."""
    parser = command_parser(
        "clean",
        "List what lies in the results folder's artifacts/ and no run refers to, with its size: what was made under\n"
        "other settings or code, or for runs whose folders are gone. Nothing is deleted without --yes.",
        "clean --results results\n  python run.py clean --yes",
    )
    parser.add_argument("--yes", action="store_true", help="delete what is listed")
    add_results(parser, path)
    args = parser.parse_args(arguments)

    from kit.store import delete, leftovers

    found, begun = leftovers(args.results)
    if args.yes:
        found = delete(args.results)
    for one in sorted(found, key=lambda one: -one.size):
        say(f"{_megabytes(one.size)}  {one.folder.relative_to(args.results)}  {one.label}")
    said = "deleted" if args.yes else "delete them with --yes" if found else "nothing to delete"
    say(f"{_megabytes(sum(one.size for one in found))}  in {len(found)} folders that no run refers to: {said}")
    for left in begun:
        say(f"{_megabytes(left.size)}  kept for a command that is not finished: {left.command}")
        say(f"             (it goes on where it stopped; to give it up, delete {left.file})")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:>8,.1f} MB"


# ---- the paraphrasing base


def tune(arguments: list[str]) -> None:
    """The embedded model -> the paraphrasing base."""
    parser = command_parser(
        "tune",
        "Tune the embedded model on its own faithful paraphrases, which makes a base such as `--model paraphraser` "
        "(most of an hour), and measure what that changed.",
        "tune --out paraphraser",
    )
    parser.add_argument("--out", type=destination, required=True, help="folder for the adapter and the figures")
    parser.add_argument(
        "--measure", action="store_true", help="only measure what is there, data/paraphraser (10 minutes)"
    )
    add_results(parser)
    args = parser.parse_args(arguments)

    from kit import paraphraser
    from kit.experiment_conditions import base_model
    from kit.models import PARAPHRASER, PARAPHRASER_ADAPTER
    from kit.store import Store

    store, command = Store(args.results / "artifacts"), command_line(["tune", *arguments])
    if args.measure:
        paraphraser.measure(store, base_model(PARAPHRASER), PARAPHRASER_ADAPTER, args.out, command)
    else:
        paraphraser.make(store, args.out, command)


# ---- speed


def bench(arguments: list[str]) -> None:
    """How fast the kit is."""
    parser = command_parser(
        "bench",
        "Measure the embedded model's work against what one would otherwise write and against the hardware (most of "
        "an hour; with --quick about 6 minutes, from smaller samples); or, with --against, whole runs against those of "
        "another checkout, in turn.",
        "bench --against ../the-kit-of-last-week --rounds 3",
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--against", type=path, metavar="FOLDER", help="another checkout (`git worktree add`)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each checkout with --against (default: 3)")
    add_results(parser)
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        raise KitError(f"--rounds {args.rounds}: must be at least 1. The default is 3.")

    from kit import bench
    from kit.experiment_conditions import base_model
    from kit.models import EMBEDDED
    from kit.report_parts import show_table
    from kit.store import Store

    if args.against:
        options = bench.QUICK_RUN if args.quick else bench.WHOLE_RUN
        compared = bench.against(args.against, options, args.rounds, args.results, command_line(["bench", *arguments]))
        show_table(f"{' '.join(['run.py', *options])}, less is better", bench.against_table(compared))
        return
    model = Store(args.results / "artifacts").make(base_model(EMBEDDED))
    sizes = bench.QUICK if args.quick else bench.Sizes()
    rows = bench.bench(model, sizes, args.results, command_line(["bench", *arguments]))
    show_table("Ours against theirs, higher is better except in seconds", bench.table(rows))
