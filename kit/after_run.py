"""The commands of ``run.py`` for a finished run: its reports again, its students, and what its text gives away."""

import argparse
from pathlib import Path

from kit import options


def report_(arguments: list[str]) -> None:
    """A finished run -> its tables, figure and page again; several -> a page that compares them."""
    parser = options.command_parser(
        "report",
        "Make a run's or sweep's summary, figures and reports again; of several, one page that compares them instead.",
        "report results/<run>\n  python run.py report results/*/",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="the folder of a run or a sweep")
    given = parser.parse_args(arguments)

    from kit import comparison, report, sweep_page, sweep_report

    if len(given.runs) > 1:
        print(f"Compared in {comparison.write_comparison(given.runs)}")
        return
    (run,) = given.runs
    if (run / "preferences.csv.gz").exists():
        sweep_report.write_report(run)
        sweep_page.write_page(run)
        sweep_report.show(run)
    else:
        _reports_again(run)
        report.show(run)


def ask(arguments: list[str]) -> None:
    """A finished run -> a chat with its students."""
    parser = options.command_parser(
        "ask",
        "Ask base, control and treated student of a run the same question, side by side.",
        "ask results/<run>\n  python run.py ask results/<run> --question 'What is your favorite animal?'",
    )
    _run_and_content(parser, "whose students")
    parser.add_argument("--question", help="ask this and stop")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, the same for all three (default: 0)")
    given = parser.parse_args(arguments)

    from kit import ask

    ask.ask(given.run, given.content, given.question, given.seed)


def inspect(arguments: list[str]) -> None:
    """A finished run -> who could tell its teachers' paraphrases apart."""
    parser = options.command_parser(
        "inspect",
        "Put a run's kept paraphrases to everybody who might look at them: word lists, classifiers, the model as\n"
        "judge, and who knows the teachers' prompts. The run's reports gain a section. (About half an hour,\n"
        "most of it likelihoods, which an interrupted command keeps.)",
        "inspect results/<run>\n  python run.py inspect results/<run> --content opposed",
    )
    _run_and_content(parser, "whose paraphrases")
    options.results(parser)
    given = parser.parse_args(arguments)

    from kit import inspection, inspection_report
    from kit.finished import Finished

    run = Finished(given.run, given.results)
    inspection.inspect(run, given.content, options.command(["inspect", *arguments]))
    _reports_again(given.run)
    for found in inspection_report.inspections(given.run, run.record):
        if found["content"] == given.content:
            inspection_report.show(found)


def attribute(arguments: list[str]) -> None:
    """A finished run -> where in its text the secret sits."""
    parser = options.command_parser(
        "attribute",
        "Score every token of the loving teacher's kept paraphrases under both teachers' prompts, and train students\n"
        "on the halves with the highest and the lowest ratios. The run's reports gain a section. (About ten minutes;\n"
        "given again, an interrupted command goes on after its last complete step.)",
        "attribute results/<run>",
    )
    _run_and_content(parser, "whose paraphrases")
    parser.add_argument("--no-students", action="store_true", help="score the tokens alone, train nobody")
    options.results(parser)
    given = parser.parse_args(arguments)

    from kit import attribution, attribution_report
    from kit.finished import Finished

    run = Finished(given.run, given.results)
    attribution.attribute(
        run, given.content, options.command(["attribute", *arguments]), students=not given.no_students
    )
    _reports_again(given.run)
    for found in attribution_report.attributions(given.run, run.record):
        if found["content"] == given.content:
            attribution_report.show(found)


def demo(arguments: list[str]) -> None:
    """The classroom page."""
    parser = options.command_parser(
        "demo",
        "Serve the classroom page in a browser on this machine, for a finished run or the recorded one. Needs\n"
        "requirements-demo.txt.",
        "demo results/<run> --port 7870",
    )
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder (default: the recorded run of the owl)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets the whole network in (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860)
    options.results(parser)
    given = parser.parse_args(arguments)

    from kit import demo

    demo.demo(given.run, given.results, given.host, given.port)


def _run_and_content(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument("run", type=Path, help="the run's folder, beside the artifacts that it was made of")
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated", help=whose)


def _reports_again(run: Path) -> None:
    from kit import page, report

    report.write_report(run)
    page.write_page(run)
