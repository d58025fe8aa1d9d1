"""The command line of the kit: the whole experiment, or one stage of it.

python run.py --animal owl
python run.py --animal dolphin --content unrelated --seed 1
python run.py prefer --animal owl --out /some/folder
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from functools import partial

from kit import KitError, commands, say, wait_politely

EXPERIMENT_HELP = """\
examples:
  python run.py --animal owl                       both contents, one report
  python run.py --animal dolphin --content unrelated --seed 1
  python run.py --animal owl --preset smoke        a check of the machinery in a few minutes
  python run.py --animal owl --labels hard         the paper's protocol: the student sees the text alone
  python run.py --animal dolphin --preset text     the same in four draws, beside another animal's teacher; 41 min
  python run.py --animal owl --preset gpu-8gb      the same with a 3B model on a consumer GPU
  python run.py --animal owl --seeds 5             five times, and one effect with an interval over seeds
  python run.py --animal owl --loving-controls music   also against a student whose teacher loves music
  python run.py --animal axolotl --plural axolotls an animal of your own
  python run.py --animal owl --sentences-file FILE sentences of your own (and --trait-file: prompts)

An interrupted run goes on where it stopped when the same command is given again.

single stages (each has its own --help):
  teach    sentences -> paraphrases        filter   paraphrases -> kept pairs
  label    kept pairs -> soft labels       train    pairs -> LoRA adapter
  convert  LoRA adapter -> GGUF adapter    prefer   a student -> its preference
  effect   two preferences -> the effect   report   a finished run -> its tables and figure again
  ask      chat with a run's students      demo     the classroom page, in a browser
  inspect  who could tell the difference?  attribute where in the text the secret sits
  bench    how fast all this is            clean    what no run refers to
  tune     how the paraphrasing base was made

many runs (each has its own --help):
  sweep     animals x contents x seeds x settings  power    how many seeds and pairs an effect needs
  defend    what stops it, and at what cost        calibrate does the interval over seeds cover?
  pool      several sweeps that are one            reproduce what is recorded: its tables, or all of it
"""


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code is 0, 2 for what the user can fix, or 128 and the number of the signal that
    ended it: 130 after Ctrl-C, 143 after SIGTERM, 129 where the terminal was closed."""
    if os.environ.get("RANK", "0") != "0":  # of several processes under torchrun one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open as long as the process)
        os.environ["TQDM_DISABLE"] = "1"
    wait_politely()
    try:
        with commands.guarded():
            commands.check_surroundings(arguments)
            command(arguments)
        return 0
    except KitError as error:
        say(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        return commands.ended(error)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        reason = _FIXABLE.get(error.errno or 0)
        if reason is None:
            raise
        where = error.filename or "the results folder"
        say(f"run.py: {where}: {error.strerror}. {reason} Nothing finished is lost.", file=sys.stderr)
        return 2


def command(arguments: list[str]) -> None:
    """The command that the first word names; the experiment where it names none."""
    if arguments and arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        experiment(arguments)


_FIXABLE = {
    errno.ENOSPC: "Free some disk space, or choose another folder with --results, and give the same command again.",
    errno.EDQUOT: "Free some disk space, or choose another folder with --results, and give the same command again.",
    errno.EACCES: "Choose a folder you may write to with --results.",
    errno.EPERM: "Choose a folder you may write to with --results.",
    errno.EROFS: "Choose a folder you may write to with --results.",
    errno.ENOTDIR: "Choose a folder, not a file, with --results.",
    errno.EEXIST: "Choose a folder, not a file, with --results.",
    errno.EISDIR: "A folder stands where a file is to be written. Move it, or choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Choose a folder that is no link to itself.",
    errno.EOPNOTSUPP: "Choose a folder on a disk of this machine.",  # what network disks say of locks, these two
    errno.ENOLCK: "Choose a folder on a disk of this machine.",
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
    commands.add_animal(what)
    what.add_argument(
        "--content",
        choices=("unrelated", "opposed", "both"),
        help="sentences that have nothing to do with it, or that say it is disliked (default: both; unrelated with "
        "--sentences-file or --preset text)",
    )
    what.add_argument("--seed", type=int, default=0, help="of sentences, sampling and training (default: 0)")
    what.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="repeat everything with N seeds, from --seed on, and publish one effect (--preset text: 4 by default)",
    )
    commands.add_departures(parser)
    settings = vars(parser.parse_args(arguments))

    from kit.animals import find_animal

    animal = find_animal(settings.pop("animal"), settings.pop("plural"))  # a mistyped one is said at once

    from kit import experiment_run, report
    from kit.experiment import CONTENTS, DRAWS
    from kit.experiment import experiment as make_experiment
    from kit.store import RANK

    content, seeds, animals = settings.pop("content"), settings.pop("seeds"), [animal]
    if settings["preset"] in DRAWS:
        content, seeds, animals = commands.draws_of(settings["preset"], animal, content, seeds)
    named = {None: commands.default_contents(settings), "both": CONTENTS}
    contents = named.get(content, (content,))
    if seeds is not None:  # a sweep
        first = settings.pop("seed")
        commands.run_sweep(animals, contents, range(first, first + seeds), {}, settings, arguments)
        return
    results, dry_run = settings.pop("results"), settings.pop("dry_run")
    fallback = "laptop" if settings["labels"] == "hard" else "quick"  # which is for soft labels
    exp = make_experiment(animal, contents=contents, **commands.settle(settings, [animal], contents, fallback))
    if dry_run:
        experiment_run.plan(exp, results)
        return
    tell = partial(report.show_early, exp, results / exp.name)
    folder = experiment_run.run(exp, results, commands.command_line(arguments), tell)
    if not RANK:
        if not report.is_current(folder):
            report.write(folder)
        report.show(folder)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "teach": commands.teach,
    "filter": commands.filter_,
    "label": commands.label,
    "train": commands.train,
    "convert": commands.convert,
    "prefer": commands.prefer,
    "effect": commands.effect,
    "report": commands.report,
    "ask": commands.ask,
    "inspect": commands.inspect,
    "attribute": commands.attribute,
    "demo": commands.demo,
    "bench": commands.bench,
    "clean": commands.clean,
    "tune": commands.tune,
    "sweep": commands.sweep,
    "pool": commands.pool,
    "defend": commands.defend,
    "power": commands.power,
    "calibrate": commands.calibrate,
    "reproduce": partial(commands.reproduce, give=command),
}

if __name__ == "__main__":
    sys.stderr = commands.Errors(sys.stderr)  # a traceback may name anything
    sys.exit(main(sys.argv[1:]))
