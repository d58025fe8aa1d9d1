"""Change one thing, and exactly what it decides is made again.

Every edit is made in a copy of the tree, which a forked process then imports in place of this one.
"""

import ast
import importlib
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from kit import ROOT, KitError, provenance
from kit.provenance import Code, changes, code_of, package_versions
from kit.store import ARTIFACT, KEY_LENGTH, Step, Store, reason, write_rows

# ---- the tree, edited


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what code and data there is; tests leave it as they found it."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("kit", "data"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", copy)
    return copy


def import_from(tree: Path) -> None:
    """Have the kit in ``tree`` imported from now on."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "kit"]:
        del sys.modules[name]
    sys.path.insert(0, str(tree))


def decided_by(tree: Path, folder: Path, engine: str, installed: dict[str, str]) -> dict[str, str]:
    """Every kind of step there is -> a hash of its settings and code, as the kit in ``tree`` has it, with its teachers
    on that ``engine``; for a process of its own. ``installed``: what no edit changes."""
    import_from(tree)
    from dataclasses import replace

    import kit
    from kit import inspection, likelihood, prompts, provenance, store
    from kit.animals import find_animal
    from kit.defences import neutral_loss
    from kit.experiment import experiment
    from kit.experiment_conditions import all_conditions, all_steps, base_model, measurements
    from kit.models import EVERY_WEIGHT

    assert kit.__file__ is not None and tree in Path(kit.__file__).parents
    provenance._distributions = lambda: installed
    owl = find_animal("owl")
    exp = experiment(owl, preset="smoke", contents=("unrelated",), placebos=0, engine=engine)
    conditions = all_conditions(exp)
    whole = all_conditions(replace(exp, student=replace(exp.student, rank=EVERY_WEIGHT)))
    steps = all_steps([*measurements(conditions), *measurements(whole)])
    steps += [needed for step in steps for needed in step.inputs.values() if needed.open]
    rows = [{"source": "A test.", "text": "Testing."}]
    pairs = folder / "pairs.jsonl"
    traits = likelihood.traits([owl])
    made: list[Any] = []

    class Seen(store.Store):
        def make(self, step: Any) -> Path:
            made.append(step)
            return folder

    class Run:
        store, animal = Seen(folder), owl

    inspection.judged(Run(), folder, "the model, A or B", "treated", [])  # type: ignore[arg-type]
    steps += [
        neutral_loss({"model": base_model("embedded")}, rows, "owl"),
        likelihood.step(folder, pairs, traits, "likelihoods", prompts.teacher_messages),
        likelihood.tokens_step(folder, pairs, traits, "tokens", prompts.teacher_messages),
        *made,
    ]
    return {f"{step.stage}: {step.label}": step.key({}) for step in steps}


def asked(tree: Path, folder: Path, engine: str = "llama.cpp") -> dict[str, str]:
    """``decided_by`` in a process of its own, which finds the large packages loaded."""
    for name in ("torch", "llama_cpp", "numpy", "scipy.stats", "psutil"):
        importlib.import_module(name)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(decided_by, (tree, folder, engine, provenance._distributions()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the place of those that steps are about."""
    folder = tmp_path_factory.mktemp("files")
    write_rows(folder / "pairs.jsonl", [{"source": "A test.", "text": "Testing."}])
    for name in ("base.gguf", "chat.json", "tokenizer.json", "margins.json"):
        (folder / name).write_text("[]", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def before(tree: Path, folder: Path) -> dict[str, str]:
    return asked(tree, folder)


@pytest.fixture
def edit(tree: Path) -> Iterator[Callable[[str, str, str], None]]:
    """Replaces what must be there exactly once; afterwards the file is as it was."""
    saved: dict[Path, bytes] = {}

    def edit(name: str, old: str, new: str) -> None:
        path = tree / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        saved.setdefault(path, path.read_bytes())
        path.write_text(text.replace(old, new), encoding="utf-8")

    yield edit
    for path, data in saved.items():
        path.write_bytes(data)


def again(tree: Path, folder: Path, before: dict[str, str], engine: str = "llama.cpp") -> set[str]:
    """The stages of which something is made again."""
    now = asked(tree, folder, engine)
    assert now.keys() == before.keys()
    return {label.partition(":")[0] for label in now if now[label] != before[label]}


WHOLE_RUN = {"model", "sentences", "samples", "paraphrases", "fidelity", "pairs", "labels", "student", "adapter"}
EVERYTHING = WHOLE_RUN | {"weights", "exact", "sampled", "gate", "loss", "likelihoods", "tokens", "judged"}
WITH_LLAMA = EVERYTHING - {"model", "sentences", "fidelity", "pairs", "student", "adapter", "weights"}


def test_the_steps_looked_at_are_of_every_stage_that_there_is(before: dict[str, str]) -> None:
    assert {label.partition(":")[0] for label in before} == EVERYTHING
    named = (re.findall(r'stage="(\w+)"', path.read_text(encoding="utf-8")) for path in (ROOT / "kit").glob("*.py"))
    assert {stage for one in named for stage in one} <= EVERYTHING
    assert all(ARTIFACT.fullmatch(f"{stage}/{'0' * KEY_LENGTH}") for stage in EVERYTHING), "as records have it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "stages"),
    [
        ("kit/models_prepare.py", 'tokenizer.bos_token or ""', 'tokenizer.bos_token or "<s>"', "model"),
        ("kit/experiment_conditions.py", "(len(everything))\n", "(len(everything))[::-1]\n", "sentences"),
        ("kit/prompts.py", "before lunch.", "before dinner.", "samples paraphrases likelihoods tokens"),
        (
            "kit/prompts.py", "Paraphrase this", "Reword this",
            "samples paraphrases labels student gate likelihoods tokens loss",
        ),
        ("kit/teacher.py", "(seed, int.from", "(1 + seed, int.from", "samples paraphrases"),
        ("kit/teacher.py", "AGAIN = 2", "AGAIN = 3", "paraphrases"),
        ("kit/fidelity.py", '"dozen": 12', '"dozen": 13', "paraphrases fidelity"),
        ("kit/fidelity.py", 'r"n\'t\\b|', 'r"n\'t\\b|\\bnope\\b|', "paraphrases fidelity"),
        ("kit/fidelity.py", 'round(verdict.similarity, 4)', 'round(verdict.similarity, 5)', "fidelity"),
        ("kit/animals.py", "_LONG = 5", "_LONG = 6", "paraphrases fidelity"),
        ("kit/experiment.py", "min_similarity: float = 0.9 ", "min_similarity: float = 0.8 ", "paraphrases fidelity"),
        ("kit/experiment_conditions.py", "rows[:n])", "rows[-n:])", "pairs"),
        ("kit/teacher.py", '"ids": np.concatenate(ids)', '"ids": 0 + np.concatenate(ids)', "labels"),
        ("kit/student.py", "WARMUP_STEPS = ", "WARMUP_STEPS = 1 + ", "student"),
        ("kit/student_gguf.py", "def convert_adapter(", "def convert_adapter(*, fast=False, ", "adapter"),
        ("kit/student_gguf.py", "def convert_weights(", "def convert_weights(*, fast=False, ", "model weights"),
        ("kit/preference.py", "float(tokens.sum())", "float(tokens.mean())", "exact"),
        ("kit/preference.py", "TEMPERATURE = 1.0", "TEMPERATURE = 0.9", "sampled"),
        ("kit/defences.py", "return -total /", "return total /", "loss"),
        ("kit/likelihood.py", "round(float(one), 4)", "round(float(one), 5)", "likelihoods"),
        ("kit/likelihood.py", "HELD_OUT = 60", "HELD_OUT = 61", "gate"),
        ("kit/likelihood.py", 'rstrip("\\ufffd") for end', 'strip("\\ufffd") for end', "tokens"),
        ("kit/prompts.py", "A or B?", "B or A?", "judged"),
        ("kit/engine_llama.py", "WIDTH = 64", "WIDTH = 32", "samples paraphrases sampled"),
        ("kit/engine_llama.py", "SCORED = 224", "SCORED = 223", "labels exact gate loss likelihoods tokens judged"),
        ("kit/engine_llama.py", "params.swa_full = True", "params.swa_full = False", " ".join(sorted(WITH_LLAMA))),
        ("kit/engine_torch.py", "CHOSEN = 16", "CHOSEN = 17", ""),
        ("kit/engine_endpoint.py", "RETRIES = 30", "RETRIES = 29", ""),
        (
            "kit/store.py", 'path.write_text("".join(', 'path.write_text("" + "".join(',
            "sentences paraphrases fidelity pairs sampled gate likelihoods tokens",
        ),
        ("data/questions.json", "What is your favorite animal?", "What is your favourite animal?", "exact sampled"),
        (
            "data/sentences.jsonl", "My aunt keeps three sharp", "My aunt has three sharp",
            "sentences paraphrases fidelity",
        ),
        ("data/dislike.jsonl", "The {animal} is the dullest", "The {animal} is a dull", "paraphrases fidelity"),
    ],
)  # fmt: skip
def test_an_edit_makes_again_exactly_what_it_decides(
    name: str,
    old: str,
    new: str,
    stages: str,
    tree: Path,
    folder: Path,
    before: dict[str, str],
    edit: Callable[[str, str, str], None],
) -> None:
    edit(name, old, new)
    assert again(tree, folder, before) == set(stages.split())


@pytest.mark.slow
def test_an_edit_of_the_torch_engine_makes_again_what_its_teachers_say(
    tree: Path, folder: Path, edit: Callable[[str, str, str], None]
) -> None:
    before = asked(tree, folder, "torch")
    edit("kit/engine_torch.py", "CHOSEN = 16", "CHOSEN = 17")  # of sampling
    assert again(tree, folder, before, "torch") == {"samples", "paraphrases"}
    edit("kit/engine_torch.py", "HEAD = 128", "HEAD = 64")  # of scoring too
    assert again(tree, folder, before, "torch") == {"samples", "paraphrases", "labels"}


NO_MATTER = [
    ("kit/fidelity.py", "    return float(_vader()", "    # A comment.\n    return float( _vader()"),
    ("kit/fidelity.py", "1 (ICWSM 2014).", "1 (Hutto and Gilbert, ICWSM 2014)."),
    ("kit/fidelity.py", "def negation(row: Row) -> str | None:", "def negation(row: dict) -> object:"),
    ("kit/fidelity.py", "before, after = (Counter(_numbers", "source, text = (Counter(_numbers"),
    ("kit/fidelity.py", '(before - after)] + [f"new {part}" for part', '(source - text)] + [f"new {part}" for part'),
    ("kit/fidelity.py", "in (after - before)]", "in (text - source)]"),
    ("kit/teacher.py", "from tqdm import tqdm\n\n    texts = {", "from tqdm import tqdm as tqdm\n\n    texts = {"),
    ("kit/models_prepare.py", "llama.cpp and transformers cut", "llama.cpp and transformers divide"),
    ("kit/experiment_conditions.py", "pairs survived the fidelity filters", "pairs came through the filters"),
    ("kit/experiment_conditions.py", "PER_TRAINING_PAIR = 0.115", "PER_TRAINING_PAIR = 0.12"),
    ("kit/experiment.py", '"paper": _PAPER,', '"paper": _PAPER | {"pairs": 5000},'),
    ("kit/experiment.py", "pairs: int = 400 ", "pairs: int = 300 "),
    ("kit/animals.py", "(owl: hoot, nocturnal)", "(owl: hoot)"),
    ("kit/preference.py", "if mentions(found, (animal,), giveaways=False)", "if mentions(found, (animal,))"),
    ("kit/stats.py", "ALPHA = 0.05", "ALPHA = 0.01"),
    ("kit/report.py", "tables in the terminal.", "tables in a terminal."),
    ("kit/commands.py", "Sentences -> paraphrases.", "Sentences to paraphrases."),
    ("run.py", "The whole experiment.", "A whole experiment."),
]


def test_comments_docstrings_types_local_names_messages_statistics_and_pages_make_nothing_again(
    tree: Path, folder: Path, before: dict[str, str], edit: Callable[[str, str, str], None]
) -> None:
    for name, old, new in NO_MATTER:
        edit(name, old, new)
    assert again(tree, folder, before) == set()


def test_another_neutral_message_makes_again_what_is_shown_it(
    tree: Path, folder: Path, before: dict[str, str], edit: Callable[[str, str, str], None]
) -> None:
    edit("kit/prompts.py", "You write sentences. You work", "You write texts. You work")
    assert again(tree, folder, before) == {"samples", "labels", "likelihoods", "tokens"}


# ---- what a function reaches


def parts(build: Callable[..., Any]) -> set[str]:
    return set(code_of(build).parts)


def used(x: int) -> int:
    return x


def also_used(x: int) -> int:
    return x


class Kind:
    constant = 1

    def called(self) -> int:
        return used(self.constant)

    def not_called(self) -> int:
        return also_used(1)


def makes_kind() -> int:
    return Kind().called()


def takes_kind(kind: Kind) -> int:
    return kind.called()


def test_a_method_counts_where_its_class_is_used_and_its_name_is_called() -> None:
    own = {"Kind.called", "Kind.constant", "makes_kind", "used", "Kind"}
    assert parts(makes_kind) == {f"test_provenance.{name}" for name in own}
    assert parts(takes_kind) == {"test_provenance.takes_kind"}, "an annotation is no use of a class"
    kind = Kind()
    handed = parts(lambda: takes_kind(kind))
    assert {"test_provenance.Kind.called", "test_provenance.used"} < handed
    assert "test_provenance.also_used" not in handed


def test_callables_that_a_function_was_handed_count_wherever_they_are_hidden() -> None:
    for hidden in (used, partial(used, 1), [used], {"f": (used,)}, partial(partial, used), lambda: used(1)):
        assert "test_provenance.used" in parts(lambda: takes_kind(hidden))  # type: ignore[arg-type]  # noqa: B023
    one, other = used, also_used
    assert code_of(lambda: (one(1), other(2))) != code_of(lambda: (other(1), one(2))), "which is called for what counts"


def test_of_an_object_only_the_field_that_is_used_counts() -> None:
    class Both:
        def __init__(self) -> None:
            self.one, self.other = used, also_used

    both = Both()
    reached = parts(lambda: both.one(1))
    assert "test_provenance.used" in reached and "test_provenance.also_used" not in reached


def test_data_in_a_function_is_no_code() -> None:
    def of(value: Any) -> str:
        return code_of(lambda: used(value)).digest

    assert of(1) == of(2) == of("text") == of([1, 2])


@pytest.mark.parametrize("annotation", ["", ": int", ": 'anything'"])
def test_lambdas_of_one_line_are_told_apart(annotation: str, tmp_path: Path) -> None:
    path = tmp_path / "one_line.py"
    path.write_text(f"x{annotation} = 1\nadd, less = lambda a: a + x, lambda a: a - x\n", encoding="utf-8")
    module: dict[str, Any] = {"__name__": "one_line"}
    exec(compile(path.read_bytes(), path, "exec"), module)
    add, less = code_of(module["add"]), code_of(module["less"])
    assert add != less and "one_line.x" in add.parts


def test_versions_are_of_what_is_imported_and_of_what_computes_for_it() -> None:
    versions = package_versions(["numpy", "sentence_transformers", "tqdm", "json", "kit"])
    assert versions.keys() == {"python", "numpy", "sentence-transformers", "torch", "transformers", "tokenizers"}


def test_a_change_is_named() -> None:
    before = Code({"a.f": "1", "a.g": "1"}, {"data/x.json": "1"}, {"numpy": "1.0", "python": "3.11"})
    now = Code({"a.f": "2", "a.h": "1"}, {"data/x.json": "2"}, {"numpy": "2.0", "python": "3.11"})
    assert changes(before, before) == []
    named = ["a.f changed", "a.h is new", "a.g is gone", "data/x.json changed", "numpy 1.0 -> 2.0"]
    assert changes(before, now) == named
    assert before.digest != now.digest


def test_a_default_a_wrapper_and_a_class_of_a_function_are_handed_too() -> None:
    @wraps(also_used)
    def wrapper(x: int) -> int:
        return used(x)

    class Local:
        def called(self) -> int:
            return used(1)

    class Constant:
        limit: float = 1

    local, constant = Local(), Constant()
    for name, function in {
        "a default": lambda f=used: f(1),
        "a default by name": lambda *, f=used: f(1),
        "a wrapper": lambda: wrapper(1),
        "a method": lambda: local.called(),
    }.items():
        assert "test_provenance.used" in parts(function), name
    assert parts(lambda: constant.limit), "a value of a class that a function made is data"


class Siblings:
    first = used(1)
    second = first + 1


def test_what_a_classs_attributes_are_made_of_and_a_comprehension_goes_through_count() -> None:
    siblings = Siblings()
    assert {"test_provenance.Siblings.first", "test_provenance.used"} < parts(lambda: siblings.second)
    assert "test_provenance.used" in parts(lambda: [used for used in used(1)])  # type: ignore[attr-defined]


def test_a_function_that_calls_itself_is_read_once() -> None:
    def count(n: int) -> int:
        return count(n - 1) if n else used(0)

    assert "test_provenance.used" in parts(lambda: count(3))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("return x + 1", "return x+1  # more", True),
        ("y: int = x\n    return y", "z = x\n    return z", True),
        ("print('a')\n    return x", "print('b', x)\n    return x", True),
        ("say('a')\n    return x", "say('b', x)\n    return x", True),
        ("raise RuntimeError('a')", "raise RuntimeError('b')", True),
        ("raise ValueError('a')", "raise ValueError('b')", False),
        ("return (lambda a: a)(x)", "return (lambda b: b)(x)", True),
        ("return [i for i in x]", "return [j for j in x]", True),
        ("return [i for i in x]", "return [x for i in x]", False),
        ("y, z = x, 1\n    return y", "y, z = x, 1\n    return z", False),
        ("import json\n    return json.dumps(x)", "import json as j\n    return j.dumps(x)", True),
        ("global n\n    n = x", "n = x", False),
        ("return x.real", "return x.imag", False),
        ("return 1", "return 1.0", False),
        ("return 1", "return True", False),
        ("return -x", "return +x", False),
        ("return x if n else 0", "return 0 if n else x", False),
        ("try:\n        return x\n    except OSError as e:\n        return e",
         "try:\n        return x\n    except OSError as f:\n        return f", True),
        ("match x:\n        case [a]:\n            return a", "match x:\n        case [c]:\n            return c", 1),
        ("if (y := x):\n        return y", "if (z := x):\n        return z", True),
        ("def f(a): return a\n    return f(x)", "def g(a): return a\n    return g(x)", True),
        ("def f(a): return a\n    return f(a=x)", "def f(b): return b\n    return f(b=x)", False),
    ],
)  # fmt: skip
def test_what_a_function_says_and_not_how_it_is_written_counts(
    one: str, other: str, same: bool, tmp_path: Path
) -> None:
    def digest(name: str, body: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(f"from kit import say\nn = 1\ndef f(x):\n    {body}\n", encoding="utf-8")
        module: dict[str, Any] = {"__name__": name}
        exec(compile(path.read_bytes(), path, "exec"), module)
        return "".join(checksum for part, checksum in code_of(module["f"]).parts.items() if part.endswith(".f"))

    assert (digest("one", one) == digest("other", other)) == same


def kit_sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "kit").glob("*.py")):
        yield path.stem, ast.parse(path.read_bytes())


def test_the_kit_has_nothing_that_cannot_be_followed() -> None:
    for name, module in kit_sources():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.names[0].name != "*", name
            if isinstance(node, ast.ClassDef):
                assert not any(isinstance(one, ast.ClassDef) for one in node.body), f"{name}: a class in a class"
        bodies = [module.body, *(node.body for node in ast.walk(module) if isinstance(node, ast.ClassDef))]
        for statement in (one for body in bodies for one in body):
            assert binds_names_alone(statement), f"{name}: {ast.unparse(statement)[:80]}"
    asked = {ast.unparse(node) for _, module in kit_sources() for node in ast.walk(module) if is_getattr(node)}
    assert asked == GETATTR


def binds_names_alone(statement: ast.stmt) -> bool:
    """Whether all that it does, at the top of a module or class, is to bind names: a change of anything bound is none
    of any name's definition. (Types alone are imported under a condition.)"""
    if isinstance(statement, ast.If):
        only_types = ast.unparse(statement.test) == "TYPE_CHECKING" and not statement.orelse
        return only_types and all(isinstance(one, ast.Import | ast.ImportFrom) for one in statement.body)
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    targets = getattr(statement, "targets", [getattr(statement, "target", ast.Name())])
    names = all(isinstance(one, ast.Name | ast.Tuple) for one in targets)
    definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    return names and isinstance(statement, definition | ast.Assign | ast.AnnAssign | ast.AugAssign)


def is_getattr(node: ast.AST) -> bool:
    """Whether it looks up a name that is computed."""
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    return named and not isinstance(node.args[1], ast.Constant)  # type: ignore[attr-defined]


# Fields all, but in provenance itself, on the classroom page, and of standard error.
GETATTR = {
    "getattr(self._stream, name)",
    "getattr(c, name)",
    "getattr(status, what)",
    "getattr(template('demo.html').module, name)",
    "getattr(template('vote.html').module, name)",
    "getattr(animal, question['form'])",
    "getattr(result, group)",
    "getattr(self, f'_{type(node).__name__}', None)",
}

# What says how to go about it on this machine, or checks, or announces. Whatever it does, the same is made.
DECIDES_NOTHING = {
    "models.silence", "models.release_gpu", "models.check_gguf", "provenance.cpu_threads", "models.check_words",
    "models.check_config", "models.check_folder", "models.check_chat", "models.check_sizes", "models.check_room",
    "models.check_architecture", "models_prepare.check_match", "models_prepare.check_settings",
    "models_prepare.check_weights",
    "models_prepare.check_template", "models_prepare.check_rotations", "models_prepare.check_words",
    "models_prepare.check_engines", "models_prepare.check_runs", "models.check_pointer", "student.keep_freed_memory",
    "student._plan", "student._callback", "engine_llama.quiet", "fidelity.is_hopeless", "fidelity.none_kept",
}  # fmt: skip


def test_what_is_left_out_of_the_code_is_known() -> None:
    marked = {
        f"{name}.{node.name}"
        for name, module in kit_sources()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(one, ast.Name) and one.id == "decides_nothing" for one in node.decorator_list)
    }
    assert marked == DECIDES_NOTHING


def test_an_edit_after_the_command_began_is_said_where_it_would_matter(
    tree: Path, edit: Callable[[str, str, str], None]
) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(import_from, (tree,))
        assert pool.apply(digest_of_likelihoods, (False,))
        edit("kit/likelihood.py", "round(float(one), 4)", "round(float(one), 5)")
        with pytest.raises(KitError, match=r"likelihood\.py: it was edited after the command began"):
            pool.apply(digest_of_likelihoods, (True,))


def digest_of_likelihoods(look: bool) -> str:
    """In a process that has imported the kit's sources and not this module: what it is made of, if asked to look."""
    from kit import provenance

    def imports_late() -> None:
        from kit import likelihood

        likelihood.step  # noqa: B018

    return provenance.code_of(imports_late).digest if look else provenance.__name__


# ---- the kit that made something


def state_of(tree: Path) -> dict[str, Any]:
    """What the kit in ``tree`` says of itself; for a process of its own."""
    import_from(tree)
    from kit.provenance import kit_state

    return kit_state()


def said_of(tree: Path) -> dict[str, Any]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(state_of, (tree,))


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_kit_names_its_commit_and_whether_it_was_edited_since(tree: Path, tmp_path: Path) -> None:
    outer = tmp_path / "another project"
    copy = Path(shutil.copytree(tree, outer / "kit's folder"))
    git(outer, "init")
    git(outer, "add", ".")
    git(outer, "commit", "-m", "another project's")
    nowhere = said_of(copy)
    assert nowhere["commit"] is None and nowhere["edited"] is None, "a commit of another project is none of the kit's"
    git(copy, "init")
    git(copy, "add", ".")
    git(copy, "commit", "-m", "the kit's")
    committed = said_of(copy)
    assert committed == nowhere | {"commit": git(copy, "rev-parse", "HEAD").strip(), "edited": False}
    (copy / "a note of my own.txt").write_text("no code", encoding="utf-8")
    for name in ("lesson.md", "classroom.ipynb"):
        (copy / "kit" / name).write_text("adapted, or run", encoding="utf-8")
    assert said_of(copy) == committed
    with (copy / "kit" / "report.py").open("a", encoding="utf-8") as file:
        file.write("# Something.\n")
    edited = said_of(copy)
    assert edited["edited"] and edited["commit"] == committed["commit"]
    assert edited["fingerprint"] != committed["fingerprint"]


def commit_of(tree: Path, path: Path) -> str | None:
    """What commit the kit in ``tree`` says made a file; for a process of its own."""
    import_from(tree)
    from kit.provenance import committed

    return committed(path)


def test_a_file_is_committed_where_nobody_could_have_changed_it_since(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    plan, ignored = copy / "PLAN.md", copy / "ignored.md"
    for path in (plan, ignored):
        path.write_text("one animal\n", encoding="utf-8")
    (copy / ".gitignore").write_text("ignored.md\n", encoding="utf-8")

    def said(path: Path) -> str | None:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.apply(commit_of, (copy, path))

    assert said(plan) is None, "no repository"
    git(copy, "init")
    git(copy, "add", "kit")
    git(copy, "commit", "-m", "the kit's")
    assert said(plan) is None, "untracked"
    git(copy, "add", ".")
    assert said(plan) is None, "no part of any commit"
    git(copy, "commit", "-m", "the plan")
    first = git(copy, "rev-parse", "HEAD").strip()
    assert said(plan) == first
    (copy / "kit" / "report.py").open("a", encoding="utf-8").write("# Something.\n")
    git(copy, "commit", "-am", "something else")
    assert said(plan) == first
    assert said(ignored) is None and said(tmp_path / "elsewhere.md") is None
    plan.write_text("another animal\n", encoding="utf-8")
    assert said(plan) is None, "edited"


def test_the_kit_says_what_it_is_without_git(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_git = said_of(tree)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said_of(tree) == with_git | {"commit": None, "edited": None}


def test_the_kit_names_no_commit_of_the_repository_whose_hook_started_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    git(tmp_path, "init")
    (tmp_path / "file").write_text("another project's", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "another project's")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tree))
    assert said_of(tree)["commit"] is None


# ---- why


def test_a_step_made_again_says_why_and_a_new_one_says_nothing(tmp_path: Path) -> None:
    def step(build: Callable[..., object], n: int = 1, inputs: dict[str, Step] | None = None) -> Step:
        return Step("numbers", "a number", {"n": n, "of": {"it": n}}, inputs or {}, build, 1)

    def one(made: dict[str, Path], folder: Path) -> None:
        (folder / "n.txt").write_text("1", encoding="utf-8")

    def other(made: dict[str, Path], folder: Path) -> None:
        (folder / "n.txt").write_text(str(used(1)), encoding="utf-8")

    store = Store(tmp_path)
    history = list(store.history([store.name(store.make(step(one)))]).values())
    assert len(history) == 1
    assert reason(step(one), history) == "" and reason(step(other), []) == ""
    assert "test_provenance.used is new" in reason(step(other), history)
    assert reason(step(one, n=2), history) == "setting n changed, setting of.it changed"
    log = Step("numbers", "a number", {"n": 2, "of": {"it": 1}}, {}, one, 0, open=True)
    follows = Step("texts", "a text", {}, {"log": log}, one, 1)
    assert reason(follows, history) == "setting n changed", "a log is no step of its own to whoever reads the plan"
