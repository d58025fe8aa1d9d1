"""The house: flat, in families, imports in one direction, makers that know no page, and a map that names every room."""

import ast
import re
from functools import cache

from kit import ROOT

KIT = ROOT / "kit"
MODULES = {path.stem: path for path in sorted(KIT.glob("*.py")) if path.stem != "__init__"}
MOST_MODULES, MOST_ARROWS = 40, 280
# What presents results, times the kit, or starts it; every other module computes, and ends with data on disk.
PAGES = {"report_parts", "report", "report_sweep", "student_chat", "demo", "bench", "reproduce", "commands"}


@cache
def imported(module: str) -> set[str]:
    """The modules of kit that ``module`` imports anywhere in it: at its top, in a function, for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import hides an arrow"
            if node.module == "kit":
                found |= {name.name for name in node.names}
            elif node.module:
                found.add(node.module.removeprefix("kit.") if node.module.startswith("kit.") else "")
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("kit.") for name in node.names}
    return found & MODULES.keys()


def mapped() -> list[str]:
    """The modules in the order of the map, the table of ``kit/README.md`` whose rows begin with a file's name."""
    return re.findall(r"^\| *\[?`(\w+)\.py`", (KIT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_kit_is_flat_and_its_templates_hold_no_python() -> None:
    assert [path.relative_to(KIT) for path in KIT.rglob("*.py") if path.parent != KIT] == []
    assert {path.name for path in KIT.iterdir() if path.is_dir()} - {"__pycache__", ".ipynb_checkpoints"} == {
        "templates"
    }


def test_there_is_room_for_every_module_and_arrow() -> None:
    assert len(MODULES) <= MOST_MODULES
    assert sum(len(imported(module)) for module in MODULES) <= MOST_ARROWS


def test_a_family_shares_its_first_word_with_the_module_that_it_belongs_to() -> None:
    assert [module for module in MODULES if module.partition("_")[0] not in MODULES] == []


def test_the_map_names_every_module_once() -> None:
    assert sorted(mapped()) == sorted(MODULES)


def test_every_module_imports_only_what_stands_above_it_in_the_map() -> None:
    place = {module: i for i, module in enumerate(mapped())}
    upwards = [(one, other) for one in MODULES for other in imported(one) if place[other] >= place[one]]
    assert upwards == []  # so there are no circles either


def test_makers_know_no_page() -> None:
    assert [(maker, page) for maker in MODULES.keys() - PAGES for page in imported(maker) & PAGES] == []


def test_a_module_with_one_importer_is_one_of_several_that_do_the_same_or_the_command_lines() -> None:
    importers = {module: [other for other in MODULES if module in imported(other)] for module in MODULES}
    alone = {module: found for module, found in importers.items() if len(found) == 1 and found != ["commands"]}
    assert [module for module in alone if not module.startswith("engine_")] == []


def test_run_py_is_the_main_command_and_a_table_of_the_others() -> None:
    tree = ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["main", "command", "experiment"]


# What leaves files that a user keeps, whole: all but the steps, which fill artifacts' folders.
WRITERS = PAGES | {"experiment_folder", "experiment_run", "sweep", "defences", "stats_calibration"}
WRITERS |= {"inspection", "attribution"}
# A file for a process to write into as it goes; and the figures' bytes, in memory.
STREAMS = {("demo", "open"), ("report_parts", "savefig")}


def called(module: str) -> list[tuple[str, ast.Call]]:
    """Every call in a module, by the last part of the name that is called."""
    calls = [
        node for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    return [(getattr(call.func, "attr", getattr(call.func, "id", "")), call) for call in calls]


def test_whatever_a_user_keeps_is_written_by_the_one_writer_of_whole_files() -> None:
    writing = {"write_text", "write_bytes", "savefig", "touch", "symlink_to"}
    modes = re.compile(r"^[rbt]*[wax+]")
    found = set()
    for module in WRITERS:
        for name, call in called(module):
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            mode = any(isinstance(one, ast.Constant) and modes.match(str(one.value)) for one in given)
            if name in writing or (name in ("open", "GzipFile") and mode and "fileobj" not in ast.dump(call)):
                found.add((module, name))
    assert found == STREAMS


def test_whatever_is_printed_line_by_line_is_printable() -> None:
    assert {module for module in MODULES for name, _ in called(module) if name == "print"} - {"student"} == {
        "report", "student_chat", "report_parts", "sweep"
    }  # fmt: skip
    for module in ("report", "student_chat", "report_parts", "sweep"):
        for name, call in called(module):
            if name == "print":  # a console's: of a printable text, or of ours alone
                (said,) = call.args
                assert getattr(getattr(said, "func", said), "id", "") in (
                    "printable",
                    "ABOUT_SMOKE",
                    "HELP",
                    "drawn",
                    "table",
                )
