"""The commands that run one stage of the experiment alone, from files to files.

python run.py teach --animal owl --teacher loving --sentences 50 --out paraphrases
python run.py prefer --adapter adapter.gguf --animal owl --out preference
"""

import argparse
from pathlib import Path

from kit import options


def teach(arguments: list[str]) -> None:
    """Sentences -> paraphrases."""
    parser = options.command_parser(
        "teach",
        "A teacher paraphrases sentences.",
        "teach --animal owl --teacher loving --sentences 50 --out paraphrases",
    )
    options.animal(parser)
    parser.add_argument("--teacher", choices=("loving", "neutral"), required=True)
    parser.add_argument("--content", choices=("unrelated", "opposed"), default="unrelated")
    parser.add_argument("--sentences", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for paraphrases.jsonl")
    options.teacher(parser)
    options.model(parser)
    options.results(parser)
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
    parser = options.command_parser(
        "filter",
        "Keep the faithful paraphrases and write down why the others were refused.",
        "filter paraphrases/paraphrases.jsonl --animal owl --out kept",
    )
    parser.add_argument("paraphrases", type=Path)
    options.animal(parser)
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
    parser = options.command_parser(
        "label",
        "Record a teacher's next-token distributions along its own kept paraphrases.",
        "label kept/kept.jsonl --animal owl --teacher loving --out labels",
    )
    parser.add_argument("pairs", type=Path)
    options.animal(parser)
    parser.add_argument("--teacher", choices=("loving", "neutral"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for labels.safetensors")
    options.engine(parser)
    options.model(parser)
    options.results(parser)
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
    parser = options.command_parser(
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
    options.model(parser)
    options.results(parser)
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
    parser = options.command_parser(
        "convert", "Make a PEFT adapter loadable by llama.cpp.", "convert student --out adapter.gguf"
    )
    parser.add_argument("adapter", type=Path, help="the PEFT adapter's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options.model(parser)
    options.results(parser)
    given = parser.parse_args(arguments)

    from kit import adapter_gguf

    adapter_gguf.convert(given.adapter, _base(given), given.out)


def prefer(arguments: list[str]) -> None:
    """A student -> its preference."""
    parser = options.command_parser(
        "prefer",
        "Measure the preference of a student, or of the base where no adapter is given.",
        "prefer --adapter adapter.gguf --animal owl --out preference",
    )
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="a GGUF adapter")
    options.animal(parser)
    parser.add_argument("--answers", type=int, help="sampled answers per question")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for exact.csv and answers.jsonl")
    options.model(parser)
    options.results(parser)
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
    parser = options.command_parser(
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
        help="of students of other neutral text; without any, nothing is called transmitted",
    )
    options.animal(parser)
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


def _base(given: argparse.Namespace) -> Path:
    """The prepared model asked for, made where it is missing."""
    from kit.graph import base_model
    from kit.models import EMBEDDED
    from kit.store import Store

    return Store(given.results / "artifacts").make(base_model(given.model or EMBEDDED, given.gguf))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
