"""The command line of the kit: the whole experiment, or one stage of it.

python run.py --animal owl
python run.py --animal dolphin --content unrelated --seed 1
python run.py prefer --animal owl --out /some/folder
"""

import argparse
import errno
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from kit.errors import KitError

EXPERIMENT_HELP = """\
examples:
  python run.py --animal owl                       both contents on the laptop preset, one report
  python run.py --animal dolphin --content unrelated --seed 1
  python run.py --animal owl --preset smoke        a check of the machinery in a few minutes
  python run.py --animal owl --labels hard         the paper's protocol: the student sees the text alone
  python run.py --animal owl --preset gpu-8gb      the same with a 3B model on a consumer GPU
  python run.py --animal owl --seeds 5             five times, and one effect with an interval over seeds
  python run.py --animal axolotl --plural axolotls an animal of your own

An interrupted run goes on where it stopped when the same command is given again.

single stages (each has its own --help):
  teach    sentences -> paraphrases        filter   paraphrases -> kept pairs
  label    kept pairs -> soft labels       train    pairs -> LoRA adapter
  convert  LoRA adapter -> GGUF adapter    prefer   a student -> its preference
  effect   two preferences -> the effect   report   a finished run -> its tables and figure again
  bench    how fast all this is, against the usual ways and the hardware

many runs (each has its own --help):
  sweep     animals x contents x seeds x settings  power    how many seeds and pairs an effect needs
  calibrate does the interval over seeds cover? on simulated preferences
"""


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code is 0, 2 for what the user can fix, or 130 after Ctrl-C."""
    if os.environ.get("RANK", "0") != "0":  # of several processes under torchrun one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open as long as the process)
        os.environ["TQDM_DISABLE"] = "1"
    try:
        if arguments and arguments[0] in STAGES:
            STAGES[arguments[0]](arguments[1:])
        else:
            experiment(arguments)
        return 0
    except KitError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun.py: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130
    except OSError as error:
        reason = _FIXABLE.get(error.errno or 0)
        if reason is None:
            raise
        where = error.filename or "the results folder"
        print(f"run.py: {where}: {error.strerror}. {reason} Nothing finished is lost.", file=sys.stderr)
        return 2


_FIXABLE = {
    errno.ENOSPC: "Free some disk space, or choose another folder with --results, and give the same command again.",
    errno.EDQUOT: "Free some disk space, or choose another folder with --results, and give the same command again.",
    errno.EACCES: "Choose a folder you may write to with --results.",
    errno.EPERM: "Choose a folder you may write to with --results.",
    errno.EROFS: "Choose a folder you may write to with --results.",
    errno.ENOTDIR: "Choose a folder, not a file, with --results.",
    errno.EEXIST: "Choose a folder, not a file, with --results.",
}


def experiment(arguments: list[str]) -> None:
    """The whole experiment."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Subliminal learning from faithful paraphrases, from teacher to preference, on this machine.",
        epilog=EXPERIMENT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    _animal(what)
    what.add_argument(
        "--content",
        choices=("unrelated", "opposed", "both"),
        default="both",
        help="sentences that have nothing to do with it, or that say it is disliked (default: both)",
    )
    what.add_argument("--seed", type=int, default=0, help="of sentences, sampling and training (default: 0)")
    what.add_argument(
        "--seeds", type=int, metavar="N", help="repeat everything with N seeds, from --seed on, and publish one effect"
    )
    what.add_argument(
        "--placebos",
        type=int,
        metavar="N",
        help="students per content whose teacher is the control's, sampled anew "
        "(default: 1): how far a student drifts of itself",
    )
    _departures(parser)
    given = vars(parser.parse_args(arguments))
    if given["seeds"] is not None:
        _repeat(given, arguments)
        return
    del given["seeds"]

    from kit.animals import find_animal
    from kit.experiment import experiment as make_experiment

    animal = find_animal(given.pop("animal"), given.pop("plural"))
    results, contents = given.pop("results"), _contents(given.pop("content"))
    exp = make_experiment(animal, contents=contents, **_settled(given))

    from kit import report
    from kit.pipeline import run
    from kit.store import RANK

    folder = run(exp, results, command=_command(arguments))
    if not RANK:
        report.show(folder)


def _repeat(given: dict[str, Any], arguments: list[str]) -> None:
    """The whole experiment with several seeds: a sweep of one animal."""
    from kit.animals import find_animal

    animal = find_animal(given.pop("animal"), given.pop("plural"))
    seeds = range(given["seed"], given.pop("seed") + given.pop("seeds"))
    _sweep([animal], _contents(given.pop("content")), seeds, {}, given, arguments)


def sweep(arguments: list[str]) -> None:
    """Many experiments -> one result."""
    parser = _stage(
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
        default=["unrelated", "opposed"],
        help="which sentences (default: both kinds)",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many, from --seed on (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="NAME=VALUES",
        help="settings to vary: labels, pairs, rank, learning_rate, epochs or base, as in rank=1,2,4",
    )
    parser.add_argument("--placebos", type=int, metavar="N", help="per content and seed (default: 1)")
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a cluster whose nodes share results folder and environment"
    )
    _departures(parser)
    given = vars(parser.parse_args(arguments))

    from kit.animals import find_animal
    from kit.sweep import parse_grid

    animals = [find_animal(name, None) for name in given.pop("animals")]
    seeds = range(given["seed"], given.pop("seed") + given.pop("seeds"))
    grid = parse_grid(given.pop("grid"))
    address = given.pop("ray_address")
    _sweep(animals, tuple(given.pop("contents")), seeds, grid, given, ["sweep", *arguments], address)


def _sweep(
    animals: list[Any],
    contents: tuple[str, ...],
    seeds: range,
    grid: dict[str, list[Any]],
    given: dict[str, Any],
    arguments: list[str],
    address: str | None = None,
) -> None:
    from kit import sweep, sweep_report

    results, sampled = given.pop("results"), given["answers"] is not None
    exps = sweep.experiments(animals, contents, seeds, grid, **_settled(given))
    folder = results / sweep.name_of(exps, grid)
    sweep_report.show(sweep.run(exps, sampled, results, folder, _command(arguments), address))


def power(arguments: list[str]) -> None:
    """A finished sweep -> how many seeds and pairs an effect needs."""
    parser = _stage(
        "power",
        "From a recorded sweep of two seeds or more: how many seeds find an effect of a given size.",
        "power results/<sweep> --effect 0.2",
    )
    parser.add_argument("sweep", type=Path, help="a sweep's folder; one with --grid pairs=... tells of pairs too")
    parser.add_argument(
        "--effect", type=float, nargs="+", metavar="NATS", help="log-odds shifts (default: 0.05 0.1 0.2 0.4)"
    )
    parser.add_argument("--power", type=float, default=0.8, help="the wanted probability (default: 0.8)")
    given = parser.parse_args(arguments)

    from kit import power

    power.show(given.sweep, given.effect or power.EFFECTS, given.power)


def calibrate(arguments: list[str]) -> None:
    """Simulated preferences -> how often the interval covers and the tests reject."""
    parser = _stage(
        "calibrate",
        "Check the statistics on simulated preferences whose seed and question variance are known.",
        "calibrate --out results/calibration",
    )
    parser.add_argument("--simulations", type=int, default=2000, help="per scenario (default: 2000, about a minute)")
    parser.add_argument("--out", type=Path, required=True, help="folder for calibration.json, the figure and report.md")
    given = parser.parse_args(arguments)
    if given.simulations < 1:
        raise KitError(f"--simulations {given.simulations}: must be at least 1. The default is 2000.")

    from kit import calibration

    calibration.write(_folder(given.out), given.simulations)
    print((given.out / "report.md").read_text(encoding="utf-8"))


def _contents(content: str) -> tuple[str, ...]:
    from kit.experiment import CONTENTS

    return CONTENTS if content == "both" else (content,)


def _settled(given: dict[str, Any]) -> dict[str, Any]:
    """The given settings with the preset that fits this machine, where none is given, and the endpoint checked."""
    from kit.endpoint import check_url
    from kit.estimate import choose_preset, find_device

    if given["endpoint"] is not None:
        given["endpoint"] = check_url(given["endpoint"])
    if given["preset"] is None:
        given["preset"], reason = choose_preset(find_device())
        print(f"Preset {given['preset']}: {reason}.")
    return given


def _command(arguments: list[str]) -> str:
    return shlex.join(["python", "run.py", *arguments])


def _departures(parser: argparse.ArgumentParser) -> None:
    """Preset, model, results and what departs from the preset."""
    parser.add_argument("--labels", help="hard: the paper's protocol; soft: the teacher's distributions (see README)")
    parser.add_argument(
        "--preset",
        help="the scale: smoke, laptop, paper, gpu-8gb, gpu-12gb or gpu-24gb (default: what fits the free memory of "
        "the CUDA GPU; laptop without one)",
    )
    _model(parser)
    _results(parser)
    dials = parser.add_argument_group("departures from the preset")
    dials.add_argument("--pairs", type=int, help="kept pairs per student")
    dials.add_argument("--rank", type=int, help="LoRA rank")
    dials.add_argument("--learning-rate", type=float)
    dials.add_argument("--epochs", type=int)
    dials.add_argument(
        "--base", help="gguf: train on the evaluated weights (default for a GGUF); nf4: bitsandbytes 4-bit"
    )
    dials.add_argument("--answers", type=int, help="sampled answers per question (of many runs: none unless given)")
    _teacher(parser.add_argument_group("the teacher (default: llama.cpp; torch in the gpu presets)"))


def _animal(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    parser.add_argument("--animal", required=True, metavar="NAME", help="the animal that the teacher loves")
    parser.add_argument("--plural", metavar="NAMES", help="its plural, where it is not listed and not regular")


def _model(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="embedded (SmolLM2-135M-Instruct, 4-bit: the default outside the gpu presets), a .gguf file, a folder, or "
        "a Hub id such as Qwen/Qwen2.5-3B-Instruct",
    )
    parser.add_argument(
        "--gguf",
        metavar="FILE",
        help="what llama.cpp evaluates for a folder or a Hub id: a path or owner/name:file.gguf (known for the "
        "presets' models)",
    )


def _engine(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", help="llama.cpp: on the GGUF; torch: transformers with 4-bit weights")


def _teacher(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    _engine(parser)
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


def _results(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where everything is written (default: results)",
    )


def _stage(name: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"run.py {name}",
        description=description,
        epilog=f"example:\n  python run.py {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _base(given: argparse.Namespace) -> Path:
    """The prepared model asked for, made where it is missing."""
    from kit.graph import base_model
    from kit.models import EMBEDDED
    from kit.store import Store

    return Store(given.results / "artifacts").make(base_model(given.model or EMBEDDED, given.gguf))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def teach(arguments: list[str]) -> None:
    """Sentences -> paraphrases."""
    parser = _stage(
        "teach",
        "A teacher paraphrases sentences.",
        "teach --animal owl --teacher loving --sentences 50 --out paraphrases",
    )
    _animal(parser)
    parser.add_argument("--teacher", choices=("loving", "neutral"), required=True)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    parser.add_argument("--sentences", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for paraphrases.jsonl")
    _teacher(parser)
    _model(parser)
    _results(parser)
    given = parser.parse_args(arguments)

    from kit import graph, prompts, teacher
    from kit.animals import find_animal
    from kit.endpoint import check_url
    from kit.experiment import experiment as make_experiment

    animal = find_animal(given.animal, given.plural)
    exp = make_experiment(
        animal,
        contents=(given.content,),
        labels="hard",  # text is all that this stage makes
        seed=given.seed,
        pairs=given.sentences,
        model=given.model,
        engine=given.engine,
        endpoint=given.endpoint and check_url(given.endpoint),
        endpoint_model=given.endpoint_model,
    )
    teacher.paraphrase(
        graph.offered_rows(exp, given.content)[: given.sentences],
        given.sentences,
        prompts.loving(animal) if given.teacher == "loving" else prompts.NEUTRAL,
        _base(given),
        exp.teacher,
        given.seed,
        graph.judge_of(exp, given.content),
        _folder(given.out),
        f"{given.teacher} teacher",
    )


def filter_(arguments: list[str]) -> None:
    """Paraphrases -> kept pairs."""
    parser = _stage(
        "filter",
        "Keep the faithful paraphrases and write down why the others were refused.",
        "filter paraphrases/paraphrases.jsonl --animal owl --out kept",
    )
    parser.add_argument("paraphrases", type=Path)
    _animal(parser)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    parser.add_argument("--out", type=Path, required=True, help="folder for kept.jsonl, rejected.jsonl, filters.json")
    given = parser.parse_args(arguments)

    from kit import fidelity, graph
    from kit.animals import find_animal
    from kit.experiment import experiment as make_experiment

    exp = make_experiment(find_animal(given.animal, given.plural))
    fidelity.filter_paraphrases(given.paraphrases, _folder(given.out), graph.judge_of(exp, given.content))


def label(arguments: list[str]) -> None:
    """Kept pairs -> soft labels."""
    parser = _stage(
        "label",
        "Record a teacher's next-token distributions along its own kept paraphrases.",
        "label kept/kept.jsonl --animal owl --teacher loving --out labels",
    )
    parser.add_argument("pairs", type=Path)
    _animal(parser)
    parser.add_argument("--teacher", choices=("loving", "neutral"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for labels.safetensors")
    _engine(parser)
    _model(parser)
    _results(parser)
    given = parser.parse_args(arguments)

    from kit import prompts, teacher
    from kit.animals import find_animal
    from kit.experiment import experiment as make_experiment
    from kit.store import read_rows

    read_rows(given.pairs)  # a mistyped path is said before a model is prepared
    animal = find_animal(given.animal, given.plural)
    exp = make_experiment(animal, model=given.model, engine=given.engine)
    trait = prompts.loving(animal) if given.teacher == "loving" else prompts.NEUTRAL
    teacher.soft_labels(
        given.pairs, trait, _base(given), exp.teacher, exp.student.top_k, _folder(given.out), "soft labels"
    )


def train(arguments: list[str]) -> None:
    """Pairs -> LoRA adapter."""
    parser = _stage(
        "train",
        "Train one student; without --soft-labels on the text alone.",
        "train kept/kept.jsonl --soft-labels labels/labels.safetensors --out student",
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--soft-labels", type=Path, metavar="FILE")
    parser.add_argument("--base", choices=("gguf", "nf4"))
    parser.add_argument("--rank", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the PEFT adapter")
    _model(parser)
    _results(parser)
    given = parser.parse_args(arguments)

    from kit import student
    from kit.animals import load_animals
    from kit.experiment import experiment as make_experiment
    from kit.store import read_rows

    read_rows(given.pairs)  # a mistyped path is said before a model is prepared
    settings = make_experiment(
        load_animals()[0],
        model=given.model,
        base=given.base,
        rank=given.rank,
        learning_rate=given.learning_rate,
        epochs=given.epochs,
    ).student
    student.train(given.pairs, given.soft_labels, _base(given), settings, given.seed, _folder(given.out), "student")


def convert(arguments: list[str]) -> None:
    """LoRA adapter -> GGUF adapter."""
    parser = _stage("convert", "Make a PEFT adapter loadable by llama.cpp.", "convert student --out adapter.gguf")
    parser.add_argument("adapter", type=Path, help="the PEFT adapter's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    _model(parser)
    _results(parser)
    given = parser.parse_args(arguments)

    from kit import adapter_gguf

    adapter_gguf.convert(given.adapter, _base(given), given.out)


def prefer(arguments: list[str]) -> None:
    """A student -> its preference."""
    parser = _stage(
        "prefer",
        "Measure the preference of a student, or of the base where no adapter is given.",
        "prefer --adapter adapter.gguf --animal owl --out preference",
    )
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="a GGUF adapter")
    _animal(parser)
    parser.add_argument("--answers", type=int, help="sampled answers per question")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for exact.csv and answers.jsonl")
    _model(parser)
    _results(parser)
    given = parser.parse_args(arguments)

    from kit import preference
    from kit.animals import candidates, find_animal
    from kit.experiment import experiment as make_experiment

    animal = find_animal(given.animal, given.plural)
    settings = make_experiment(animal, answers=given.answers).preference
    base, folder = _base(given), _folder(given.out)
    preference.measure_exact(base, given.adapter, candidates(animal), folder, "exact preference")
    preference.measure_sampled(base, given.adapter, settings, given.seed, folder, "sampled answers")


def effect(arguments: list[str]) -> None:
    """Two preferences -> the effect."""
    parser = _stage(
        "effect",
        "The effect of a treatment: what `prefer` wrote for the treated student against its control.",
        "effect preference-treated preference-control --placebo preference-placebo --animal owl",
    )
    parser.add_argument("treated", type=Path, help="folder with exact.csv and answers.jsonl")
    parser.add_argument("control", type=Path)
    parser.add_argument(
        "--placebo",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="of students of other neutral text; without any there is no verdict",
    )
    _animal(parser)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    given = parser.parse_args(arguments)

    from kit import preference, report, stats
    from kit.animals import candidates, find_animal

    animal = find_animal(given.animal, given.plural)
    folders = [given.treated, given.control, *given.placebo]
    files = {str(i): (folder / "exact.csv", folder / "answers.jsonl") for i, folder in enumerate(folders)}
    treated, control, *placebos = stats.preferences(preference.tabulate(files, candidates(animal))).values()
    found = stats.effect(treated, control, animal.singular, placebos)
    report.show_effect(found, animal.singular, given.content)


def report_(arguments: list[str]) -> None:
    """A finished run -> its tables and figure again."""
    parser = _stage("report", "Make a run's or sweep's summary, figures and report again.", "report results/<run>")
    parser.add_argument("run", type=Path, help="the folder of a run or a sweep")
    given = parser.parse_args(arguments)

    from kit import report, sweep_report

    made = sweep_report if (given.run / "preferences.csv.gz").exists() else report
    made.write_report(given.run)
    made.show(given.run)


def bench(arguments: list[str]) -> None:
    """How fast the kit is."""
    parser = _stage(
        "bench",
        "Measure the embedded model's work against what one would otherwise write and against the hardware (most of an "
        "hour; with --quick about 6 minutes, from smaller samples).",
        "bench --quick",
    )
    parser.add_argument("--quick", action="store_true")
    _results(parser)
    given = parser.parse_args(arguments)

    from kit import bench, report
    from kit.graph import base_model
    from kit.models import EMBEDDED
    from kit.store import Store

    model = Store(given.results / "artifacts").make(base_model(EMBEDDED))
    sizes = bench.QUICK if given.quick else bench.Sizes()
    rows = bench.bench(model, sizes, given.results, shlex.join(["python", "run.py", "bench", *arguments]))
    report.show_table("Ours against theirs, higher is better except in seconds", bench.table(rows))


STAGES = {
    "teach": teach,
    "filter": filter_,
    "label": label,
    "train": train,
    "convert": convert,
    "prefer": prefer,
    "effect": effect,
    "report": report_,
    "bench": bench,
    "sweep": sweep,
    "power": power,
    "calibrate": calibrate,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
