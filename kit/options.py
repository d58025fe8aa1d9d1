"""The options that several commands of ``run.py`` share."""

import argparse
import shlex
from pathlib import Path

Options = argparse._ArgumentGroup | argparse.ArgumentParser


def command(arguments: list[str]) -> str:
    """The command line that a result names as what made it."""
    return shlex.join(["python", "run.py", *arguments])


def departures(parser: argparse.ArgumentParser) -> None:
    """--labels, --preset, --model, --results, and what departs from the preset."""
    parser.add_argument("--labels", help="hard: the paper's protocol; soft: the teacher's distributions (see README)")
    parser.add_argument(
        "--preset",
        help="the scale: smoke, laptop, paper, gpu-8gb, gpu-12gb or gpu-24gb (default: what fits the free memory of "
        "the CUDA GPU; laptop without one)",
    )
    model(parser)
    results(parser)
    dials = parser.add_argument_group("departures from the preset")
    dials.add_argument(
        "--placebos",
        type=int,
        metavar="N",
        help="students per content and seed whose teacher is the control's, sampled anew: how far a student drifts of "
        "itself (default: 1)",
    )
    dials.add_argument("--pairs", type=int, help="kept pairs per student")
    dials.add_argument("--rank", type=int, help="LoRA rank")
    dials.add_argument("--learning-rate", type=float)
    dials.add_argument("--epochs", type=int)
    dials.add_argument(
        "--base", help="gguf: train on the evaluated weights (default for a GGUF); nf4: bitsandbytes 4-bit"
    )
    dials.add_argument("--answers", type=int, help="sampled answers per question (of many runs: none unless given)")
    teacher(parser.add_argument_group("the teacher (default: llama.cpp; torch in the gpu presets)"))


def animal(parser: Options) -> None:
    """--animal and --plural."""
    parser.add_argument("--animal", required=True, metavar="NAME", help="the animal that the teacher loves")
    parser.add_argument("--plural", metavar="NAMES", help="its plural, where it is not listed and not regular")


def model(parser: Options) -> None:
    """--model and --gguf."""
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


def engine(parser: Options) -> None:
    """--engine."""
    parser.add_argument("--engine", help="llama.cpp: on the GGUF; torch: transformers with 4-bit weights")


def teacher(parser: Options) -> None:
    """--engine, --teacher-url and --teacher-model."""
    engine(parser)
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


def results(parser: Options) -> None:
    """--results."""
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where everything is written (default: results)",
    )


def command_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of one command, with an example in its help."""
    return argparse.ArgumentParser(
        prog=f"run.py {name}",
        description=description,
        epilog=f"example:\n  python run.py {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
