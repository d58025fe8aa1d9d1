"""Models, templates and adapters made to hang, to fill the memory or to end in a traceback: each ends at once, at the
door, in one message; and no model's own code is run.

The files are written byte by byte, since no library writes what is refused here. Every family has one that is as it
should be, from which the others differ in one thing.
"""

import ast
import json
import resource
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

import run
from kit import ROOT, KitError, models
from kit.models import ChatTemplate
from kit.prompts import NEUTRAL, teacher_messages
from kit.student_gguf import convert_adapter, read_adapter

SECONDS, MEGABYTES = 10, 200  # that a refusal may take; most take milliseconds, and machines are busy


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[Callable[[], object]], str]:
    """Calls what must end in one ``KitError``, and returns its message."""

    def call(act: Callable[[], object]) -> str:
        before = sorted(tmp_path.rglob("*"))
        memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with warnings.catch_warnings(), pytest.raises(KitError) as caught:
            warnings.simplefilter("error")
            act()
        assert time.monotonic() - started < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES * 1024
        assert sorted(tmp_path.rglob("*")) == before
        assert capfd.readouterr() == ("", "")
        message = str(caught.value)
        assert message.isprintable() and len(message) < 1000 and message.endswith(".")
        return message

    return call


# ---- GGUF files

U8, I32, U32, F32, STRING, ARRAY, U64 = 0, 5, 4, 6, 8, 9, 10  # the types of GGUF


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def field(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return field(key, U32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, values: bytes) -> bytes:
    return field(key, ARRAY, struct.pack("<IQ", kind, count) + values)


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0, count: int | None = None) -> bytes:
    number = len(dims) if count is None else count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", number, *dims, kind, offset)


WORDS = array("tokenizer.ggml.tokens", STRING, 4, b"".join(map(text, ("a", "b", "c", "d"))))
FIELDS = {
    "general.architecture": field("general.architecture", STRING, text("llama")),
    **{
        f"llama.{key}": u32(f"llama.{key}", value)
        for key, value in {
            "block_count": 1,
            "embedding_length": 8,
            "feed_forward_length": 8,
            "attention.head_count": 2,
            "attention.head_count_kv": 2,
        }.items()
    },
    "tokens": WORDS,
    "tokenizer.chat_template": field("tokenizer.chat_template", STRING, text(tiny.STRICT_TEMPLATE)),
}
TENSOR = tensor("output.weight", [8, 4])


def gguf(
    fields: dict[str, bytes],
    tensors: bytes = TENSOR,
    *,
    kv_count: int | None = None,
    tensor_count: int = 1,
    head: bytes = b"GGUF\3\0\0\0",
) -> bytes:
    present = [one for one in (FIELDS | fields).values() if one]
    counts = struct.pack("<QQ", tensor_count, len(present) if kv_count is None else kv_count)
    data = head + counts + b"".join(present) + tensors
    return data + b"\0" * (-len(data) % 32) + b"\0" * 128


def size(key: str, value: bytes, kind: int = U32) -> bytes:
    return gguf({f"llama.{key}": field(f"llama.{key}", kind, value)})


HEADS = "attention.head_count"
WHOLE = gguf({})
GGUFS: dict[str, bytes] = {
    # what says how much there is to read
    "fields without end": gguf({}, kv_count=2**40),
    "more fields than numbers": gguf({}, kv_count=2**64 - 1),
    "tensors without end": gguf({}, tensor_count=2**40),
    "more tensors than the file has": gguf({}, tensor_count=1000),
    **{
        f"a list of {count} of type {kind}": gguf({"x": array("x", kind, count, b"\0" * 64)})
        for kind in (U8, I32, STRING, ARRAY)
        for count in (2**20, 2**40, 2**63)
    },
    "a short list that is not there": gguf({"x": array("x", U64, 1000, b"")}),
    "a list of lists": gguf({"x": array("x", ARRAY, 1, struct.pack("<IQ", U8, 1) + b"\0")}),
    "lists in lists in lists": gguf({"x": array("x", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 5000)}),
    "a list of no type": gguf({"x": array("x", 99, 2000, b"\0" * 9000)}),
    "a field of no type": gguf({"x": field("x", 99, b"\0" * 8)}),
    "a text without end": gguf({"x": field("x", STRING, struct.pack("<Q", 2**40) + b"x")}),
    "a text longer than numbers": gguf({"x": field("x", STRING, struct.pack("<Q", 2**64 - 1) + b"x")}),
    "a key without end": gguf({"x": struct.pack("<Q", 2**62) + b"x"}),
    "a word without end": gguf({"tokens": array("tokenizer.ggml.tokens", STRING, 2000, b"\xff" * 20000)}),
    "more dimensions than the file has": gguf({}, tensor("output.weight", [8, 4], count=2**31)),
    "dimensions whose product is small again": gguf({}, tensor("output.weight", [2**32, 2**32])),
    "a dimension without end": gguf({}, tensor("output.weight", [2**63, 1])),
    "a tensor behind the end": gguf({}, tensor("output.weight", [8, 4], offset=2**40)),
    "a tensor before the beginning": gguf({}, tensor("output.weight", [8, 4], offset=2**64 - 64)),
    "a tensor of no type": gguf({}, tensor("output.weight", [8, 4], kind=999)),
    "one tensor twice": gguf({}, TENSOR + TENSOR, tensor_count=2),
    "no version of GGUF": gguf({}, head=b"GGUF\x63\0\0\0"),
    "another order of bytes": gguf({}, head=b"GGUF\0\0\0\3"),
    "an alignment of nothing": gguf({"a": u32("general.alignment", 0)}),
    "an alignment without end": gguf({"a": u32("general.alignment", 2**31)}),
    "one key twice": gguf({"x": FIELDS["tokens"]}),
    "a key that is no text": gguf({"x": field(b"\xff\xfe", U32, b"\0" * 4)}),
    "a value that is no text": gguf({"x": field("x", STRING, text(b"\xff\xfe"))}),
    **{f"cut at byte {end}": WHOLE[:end] for end in (4, 8, 20, 24, 60, 200, len(WHOLE) // 2, len(WHOLE) - 129)},
    # what it says of the model
    **{f"{key} missing": gguf({f"llama.{key}": b""}) for key in ("block_count", "embedding_length", HEADS)},
    **{
        f"{key} of {value}": size(key, struct.pack("<I", value))
        for key in ("block_count", "embedding_length", "feed_forward_length", HEADS, "attention.head_count_kv")
        for value in (0, 2**31)
    },
    "heads below zero": size(HEADS, struct.pack("<i", -2), I32),
    "heads and a half": size(HEADS, struct.pack("<f", 2.5), F32),
    "heads that are no number": size(HEADS, struct.pack("<f", float("nan")), F32),
    "heads in words": size(HEADS, text("two"), STRING),
    "heads in a list": gguf({f"llama.{HEADS}": array(f"llama.{HEADS}", U32, 2, struct.pack("<II", 2, 2))}),
    "heads that cannot share": size("attention.head_count_kv", struct.pack("<I", 3)),
    "an odd head": size("attention.key_length", struct.pack("<I", 5)),
    "a width that no heads divide": size("embedding_length", struct.pack("<I", 9)),
    "a larger model than the file": size("embedding_length", struct.pack("<I", 2**16)),
    "more experts than llama.cpp counts": size("expert_count", struct.pack("<I", 2**20)),
    "an epsilon that is no number": gguf({"e": field("llama.x", F32, struct.pack("<f", float("nan")))}),
    "no words": gguf({"tokens": b""}),
    "words that are numbers": gguf({"tokens": array("tokenizer.ggml.tokens", U32, 4, b"\0" * 16)}),
    "scores of fewer words": gguf({"s": array("tokenizer.ggml.scores", F32, 1, b"\0" * 4)}),
    "types of words that are bytes": gguf({"t": array("tokenizer.ggml.token_type", U8, 4, b"\0" * 4)}),
    "scores without words": gguf({"tokens": b"", "s": array("tokenizer.ggml.scores", F32, 1, b"\0" * 4)}),
    "no architecture": gguf({"general.architecture": b""}),
    "a number for an architecture": gguf({"general.architecture": u32("general.architecture", 7)}),
    "an architecture that clears the screen": gguf(
        {"general.architecture": field("general.architecture", STRING, text("\x1b[2J\x1b]0;mine\x07" * 500))}
    ),
    "no template": gguf({"tokenizer.chat_template": b""}),
    "a number for a template": gguf({"tokenizer.chat_template": u32("tokenizer.chat_template", 7)}),
    "a template without end": gguf(
        {"tokenizer.chat_template": field("tokenizer.chat_template", STRING, text("{{ 'x' * 10**10 }}"))}
    ),
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE)
    return path


def test_the_gguf_that_the_others_differ_from_is_taken(whole: Path) -> None:
    assert models.find(str(whole)) == models.Source(whole, None)


@pytest.mark.parametrize("kind", GGUFS)
def test_a_hostile_gguf_is_one_message(kind: str, refused, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUFS[kind])
    assert str(path) in refused(lambda: models.find(str(path)))


def test_a_long_file_of_nothing_is_one_message(refused, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(gguf({"tokens": b"", "x": array("tokenizer.ggml.tokens", STRING, 2**29, b"")}))
        file.truncate(2**33)  # takes no room
    assert "a list of 536870912" in refused(lambda: models.find(str(path)))


# ---- transformers folders

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 4,
}


def config(**changed: Any) -> bytes:
    return json.dumps(CONFIG | changed).encode()


def without(key: str) -> bytes:
    return json.dumps({name: value for name, value in CONFIG.items() if name != key}).encode()


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + b"\0" * 64


def entry(**changed: Any) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changed}).encode()


SIZES = [key for key in CONFIG if key != "model_type"]
JSONS = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "no text": b"\xff\xfe\0",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a number of many digits": b"1" * 10_000,
    "eleven megabytes": b" " * 11_000_000,
}
FOLDERS: dict[str, tuple[str, bytes]] = {
    **{f"config.json: {kind}": ("config.json", data) for kind, data in JSONS.items()},
    **{f"index: {kind}": ("model.safetensors.index.json", data) for kind, data in JSONS.items()},
    **{f"tokenizer_config.json: {kind}": ("tokenizer_config.json", data) for kind, data in JSONS.items()},
    **{
        f"{key} of {value!r}": ("config.json", config(**{key: value})) for key in SIZES for value in (0, -4, "4", 2**70)
    },
    **{
        f"heads of {value!r}": ("config.json", config(num_attention_heads=value))
        for value in (4.0, True, [4], {"a": 4}, float("nan"), float("inf"))
    },
    **{f"without {key}": ("config.json", without(key)) for key in [*CONFIG] if key != "num_key_value_heads"},
    "heads that cannot share": ("config.json", config(num_key_value_heads=3)),
    "an odd head": ("config.json", config(head_dim=3)),
    "a type that is a list": ("config.json", config(model_type=["llama"])),
    "a type that clears the screen": ("config.json", config(model_type="\x1b[2J" * 1000)),
    "a header without end": ("model.safetensors", safetensors(entry(), 2**60)),
    "a header longer than the file": ("model.safetensors", safetensors(entry(), 1000)),
    "a header that is no JSON": ("model.safetensors", safetensors(b"{{{{")),
    "a deep header": ("model.safetensors", safetensors(b'{"a":' * 50_000)),
    "a tensor behind the end": ("model.safetensors", safetensors(entry(data_offsets=[0, 2**40], shape=[2**38]))),
    "a tensor of another length": ("model.safetensors", safetensors(entry(shape=[2**33, 2**33]))),
    "a tensor of negative length": ("model.safetensors", safetensors(entry(shape=[-4, -4]))),
    "a tensor of no type": ("model.safetensors", safetensors(entry(dtype="PICKLE"))),
    "no weights": ("model.safetensors", b""),
    "an index out of the folder": (
        "model.safetensors.index.json",
        json.dumps({"weight_map": {"x": "../../another/model.safetensors"}}).encode(),
    ),
    "an index of lists": ("model.safetensors.index.json", b'{"weight_map": [["x"]]}'),
    "an index of numbers": ("model.safetensors.index.json", b'{"weight_map": {"x": 5}}'),
    "a template without end": ("chat_template.jinja", b"{% for i in range(99999) %}{% for j in range(99999) %}"),
    "a template that is no text": ("chat_template.jinja", b"\xff\xfe\0"),
    "a template that is a number": ("tokenizer_config.json", b'{"chat_template": 5}'),
    "templates without a name": ("tokenizer_config.json", b'{"chat_template": [{"template": "x"}, 5]}'),
    "a template that divides by zero": ("tokenizer_config.json", b'{"chat_template": "{{ 1 / 0 }}"}'),
}


@pytest.fixture
def folder(whole: Path) -> Path:
    path = whole.parent / "folder"
    path.mkdir()
    (path / "config.json").write_bytes(config())
    (path / "model.safetensors").write_bytes(safetensors(entry()))
    (path / "chat_template.jinja").write_text(tiny.STRICT_TEMPLATE, encoding="utf-8")
    whole.rename(path / "base.gguf")
    return path


def test_the_folder_that_the_others_differ_from_is_taken(folder: Path) -> None:
    assert models.find(str(folder)) == models.Source(folder / "base.gguf", folder)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hostile_folder_is_one_message(kind: str, folder: Path, refused) -> None:
    name, data = FOLDERS[kind]
    if name == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    if name == models.INDEX:  # of a model in parts
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / name).write_bytes(data)
    assert str(folder) in refused(lambda: models.find(str(folder)))


def test_a_folder_with_a_hostile_gguf_is_one_message(folder: Path, refused) -> None:
    (folder / "base.gguf").write_bytes(GGUFS["a list of 1099511627776 of type 8"])
    assert "base.gguf" in refused(lambda: models.find(str(folder)))


# ---- chat templates

DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x OP n.x %}{% endfor %}{{ n.x }}"
NESTED = "{% set n = namespace(x=['ab']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
TEMPLATES = {
    # loops
    "a loop in a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that writes": "{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}",
    "a range without end": "{% for i in range(10**12) %}{% endfor %}",
    "a loop over a product": "{% for i in 'x' * 10**9 %}{% endfor %}",
    "filters in a loop": "{% for i in range(99999) %}{{ range(99999)|map('string')|join }}{% endfor %}",
    "a test of every pair": "{% for i in range(99999) %}{{ range(99999)|select('gt', 5)|list|length }}{% endfor %}",
    "a recursive loop": "{% for i in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "comparisons of long texts": "{% set a = 'a' * 90000 %}{% for i in range(99999) %}{{ a ~ 'b' in a }}{% endfor %}",
    # recursion
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}"
    ),
    "a macro that writes twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) * 2 }}{% else %}ab{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "macros that call each other": (
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}"
    ),
    "a block that shows itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a namespace in itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    "many parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many sums": "{{ " + "1 + " * 15_000 + "1 }}",
    "many ifs": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "many lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    # arithmetic
    "a division by zero": "{{ 1 / 0 }}",
    "a remainder by zero": "{{ 1 % 0 }}",
    "a tower of powers": "{{ 9**(9**(9**9)) }}",
    "a power in a loop": "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x ** 9 %}{% endfor %}",
    "squares in a loop": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a number of many digits": "{{ 10 ** 9000 }}",
    "a rounding to many digits": "{{ 1.5|round(10**9, 'ceil') }}",
    "a number of many bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    # texts and lists without end
    "a text times a number": "{{ 'x' * 10**11 }}",
    "a list times a number": "{{ [0] * 10**11 }}",
    "texts joined twice": DOUBLED.replace("OP", "~"),
    "texts added twice": DOUBLED.replace("OP", "+"),
    "lists added twice": DOUBLED.replace("OP", "+").replace("'ab'", "['ab']"),
    "a list of lists shown": NESTED + "{{ n.x }}",
    "a list of lists as text": NESTED + "{{ (n.x|string)[:9] }}",
    "lists of lists compared": NESTED + NESTED.replace("n.x", "m.x").replace("set n =", "set m =") + "{{ n.x == m.x }}",
    "a block that is set twice": (
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
        "{% set n.x = y %}{% endfor %}{{ n.x }}"
    ),
    **{f"a long {name}": f"{{{{ 'x'.{name}(10000000000) }}}}" for name in ("center", "ljust", "rjust", "zfill")},
    "long tabs": "{{ '\t'.expandtabs(2000000000) }}",
    "a long center by filter": "{{ 'x'|center(10000000000) }}",
    "a long indent": "{{ ('x\n' * 9000)|indent(100000000) }}",
    "a number in many places": "{{ '%9999999999d' % 1 }}",
    "a number in starred places": "{{ '%*d' % (2000000000, 1) }}",
    "a number in formatted places": "{{ '{:9999999999}'.format(1) }}",
    "a number in nested places": "{{ '{:{}}'.format(1, 2000000000) }}",
    "a number in many places by filter": "{{ '%9999999999d'|format(1) }}",
    "a replacement": "{{ ('x' * 90000).replace('x', 'y' * 90000) }}",
    "a replacement by filter": "{{ ('x' * 90000)|replace('x', 'y' * 90000) }}",
    "a long separator": "{{ ('y' * 90000).join('x' * 90000) }}",
    "a long separator by filter": "{{ ('x' * 90000)|join('y' * 90000) }}",
    "a translation": "{{ ('x' * 90000).translate({120: 'y' * 90000}) }}",
    "a sum of lists": "{{ ([[1]] * 30000)|sum(start=[1] * 30000) }}",
    "a slow encoding": "{{ ('ä' * 90000).encode('punycode') }}",
    "divisions of long numbers": "{% set a = 9 ** 31000 %}{% set b = 9 ** 15000 %}{{ [" + "a // b," * 9000 + "] }}",
    "a long way to an attribute": "{{ ('x' * 40000)|sum(attribute='" + "0." * 20_000 + "0') }}",
    "a chain of filters": "{{ range(99999)" + "|map('int')" * 90 + "|list }}",
    "a long chain of filters": "{{ range(99999)" + "|map('int')" * 4000 + "|list }}",
    "many slices": "{{ 'x'|slice(10**9)|list }}",
    "a long last batch": "{{ 'x'|batch(10**10, 'y')|list }}",
    "many words": "{{ lipsum(n=10**9) }}",
    "a long source": "x" * 10_000_000,
    # what is no template, or reaches out
    "no end of a block": "{% if 1 %}",
    "no such filter": "{{ 1|no_such_filter }}",
    "another file": "{% include '/etc/passwd' %}",
    "a call of nothing": "{{ nothing() }}",
    "the program around it": "{{ ''.__class__.__mro__ }}",
    "a refusal that clears the screen": "{{ raise_exception('\x1b[2J\x1b]0;mine\x07') }}",
    "a long refusal": "{{ raise_exception('no ' * 30000) }}",
    "a refusal of an answer": "{% if messages[-1].role == 'assistant' %}{{ 1 / 0 }}{% endif %}" + tiny.STRICT_TEMPLATE,
    "an answer without end": (
        "{% if messages[-1].role == 'assistant' %}{{ 'x' * 10**11 }}{% endif %}" + tiny.STRICT_TEMPLATE
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_hostile_template_is_one_message(kind: str, refused) -> None:
    message = refused(lambda: models.check_chat(TEMPLATES[kind] + tiny.STRICT_TEMPLATE, "the model"))
    assert message.startswith("the model: the model's chat template refuses the kit's messages (")
    assert "leaves some out" not in message


@pytest.mark.parametrize("kind", ["a loop in a loop", "texts joined twice", "a tower of powers", "a division by zero"])
def test_a_template_that_behaves_until_it_is_used_is_one_message(kind: str, refused) -> None:
    late = "{% if 'Rain' in messages[-1].content %}" + TEMPLATES[kind] + "{% endif %}" + tiny.STRICT_TEMPLATE
    template = ChatTemplate(late, "", "</s>", "the model")
    template.check()
    for _ in range(2):
        refused(lambda: template.render(teacher_messages(NEUTRAL, "Rain fell.")))
        assert template.render(teacher_messages(NEUTRAL, "Snow fell.")).endswith("assistant\n")


# What the templates of known models are made of, each with loop, filter and namespace as they use them.
HONEST = {
    "strict": tiny.STRICT_TEMPLATE,
    "gemma": models.GEMMA_TEMPLATE,
    "qwen": (
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
        "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
        "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string %}"
        "{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}"
        "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' ~ '\\n' }}"
        "{%- if loop.last or (not loop.last and loop.nextitem.role != message.role) %}{{- '' }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "filters": (
        "{{ bos_token }}{% macro turn(m, n=1) %}[{{ m.role|upper }} {{ '%02d' % n }}]{{ m['content']|trim|indent(2) }}"
        "{{ caller() if caller }}{% endmacro %}"
        "{% if messages|selectattr('role', 'equalto', 'nobody') %}(a generator is true){% endif %}"
        "{% for m in messages if m.role in ['system', 'user', 'assistant'] %}"
        "{% call turn(m, loop.index) %}!{% endcall %}{{ turn(m) }}{{ loop.cycle('a', 'b') }}{{ loop.length }}\n"
        "{% endfor %}"
        "{% set roles = messages|map(attribute='role')|list %}{{ roles|unique|join(', ') }} {{ roles[:1] + ['x'] }}"
        "{{ {'a': 1, 'b': [true, none]}|tojson }}{{ 7 // 2 ** 1 * 3 - 1 }}{{ (1, 2)|sum }}{{ roles|groupby(0)|length }}"
        "{% set c = cycler('o', 'e') %}{{ c.next() }}{{ c.next() }}{% set t %}{{ roles }}{% endset %}{{ t|length }}"
        "{% for k, v in {'a': [1, 2]}.items() recursive %}{{ k }}{{ v }}{% endfor %}{{ '{:>5}'.format('x') ~ nothing }}"
        "{% for x in nothing %}{% else %}none{% endfor %}{% filter upper %}loud{% endfilter %}"
        "{% for x in range(9) %}{% if x > 3 %}{% break %}{% endif %}{{ x }}{{ loop.previtem }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_template_writes_what_it_would_without_limits(kind: str) -> None:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    plain.globals["raise_exception"] = lambda message: 1 / 0
    template = ChatTemplate(HONEST[kind], "<s>", "</s>", "the model")
    for sentence in ("Rain fell.", "Umlaute: ä, 雨, \U0001f989. " * 900):
        messages = template.adapt(teacher_messages(NEUTRAL, sentence))
        settings = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "enable_thinking": False}
        expected = plain.from_string(HONEST[kind]).render(messages=messages, **settings)
        assert template.render(messages) == expected


def test_a_template_of_many_turns_is_rendered_in_milliseconds() -> None:
    template = ChatTemplate(HONEST["qwen"], "<s>", "</s>", "the model")
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 100} for i in range(99)]
    started = time.thread_time()
    assert template.render(messages).count("<|im_end|>") == 99
    assert time.thread_time() - started < 0.1


# ---- adapters

Q = "base_model.model.model.layers.0.self_attn.q_proj"
MATRICES = {f"{Q}.lora_A.weight": np.ones((2, 8), np.float32), f"{Q}.lora_B.weight": np.ones((8, 2), np.float32)}
LORA = {"r": 2, "lora_alpha": 4, "base_model_name_or_path": "../../another"}


def lora(**changed: Any) -> bytes:
    return json.dumps({key: value for key, value in (LORA | changed).items() if value is not None}).encode()


ADAPTERS: dict[str, dict[str, np.ndarray] | bytes] = {
    **{f"adapter_config.json: {kind}": data for kind, data in JSONS.items()},
    **{
        f"{key} of {value!r}": lora(**{key: value})
        for key in ("r", "lora_alpha")
        for value in (0, -1, "8", 10**12, True, [8], {"q_proj": 8}, float("nan"), float("inf"), None)
    },
    **{  # more than its tensors
        f"{key} of {value!r}": lora(**{key: value})
        for key, value in {
            "use_rslora": True,
            "use_dora": True,
            "lora_bias": True,
            "bias": "all",
            "alpha_pattern": {"q_proj": 4},
            "layer_replication": [[0, 1], [0, 2]],
            "alora_invocation_tokens": [1, 2],
            "peft_type": "IA3",
            "an option of next year": 0.5,
        }.items()
    },
    **{f"a start from {kind}": lora(init_lora_weights=kind) for kind in ("pissa", "pissa_niter_4", "olora", "loftq")},
    "another rank than its matrices": lora(r=3),
    "a rank and a half": lora(r=2.5),
    "a vector": {f"{Q}.lora_A.weight": np.ones(8, np.float32)},
    "a cube": {f"{Q}.lora_A.weight": np.ones((2, 8, 1), np.float32)},
    "no numbers": {f"{Q}.lora_A.weight": np.full((2, 8), np.nan, np.float32)},
    "numbers without end": {f"{Q}.lora_B.weight": np.full((8, 2), np.inf, np.float32)},
    "a number that half precision has not": {f"{Q}.lora_B.weight": np.full((8, 2), 7e4, np.float32)},
    "whole numbers": {f"{Q}.lora_A.weight": np.ones((2, 8), np.int64)},
    "another width": {f"{Q}.lora_A.weight": np.ones((2, 9), np.float32)},
    "another height": {f"{Q}.lora_B.weight": np.ones((9, 2), np.float32)},
    "no second matrix": {f"{Q.replace('q_proj', 'k_proj')}.lora_A.weight": np.ones((2, 8), np.float32)},
    "a block that is not there": {f"{Q.replace('.0.', '.9.')}.lora_A.weight": np.ones((2, 8), np.float32)},
    "a block without end": {f"{Q.replace('.0.', f'.{10**30}.')}.lora_A.weight": np.ones((2, 8), np.float32)},
    "a name that is a path": {"../../../etc/passwd.lora_A.weight": np.ones((2, 8), np.float32)},
    "a name that clears the screen": {"\x1b[2J\x1b]0;mine\x07.lora_A.weight": np.ones((2, 8), np.float32)},
    "a long name": {"x" * 100_000 + ".lora_A.weight": np.ones((2, 8), np.float32)},
    "no name": {"": np.ones((2, 8), np.float32)},
}
TORN = {kind: data for kind, (name, data) in FOLDERS.items() if name == "model.safetensors"}


@pytest.fixture
def adapter(tmp_path: Path, whole: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_bytes(lora())
    save_file(MATRICES, path / "adapter_model.safetensors")
    whole.rename(tmp_path / "base.gguf")
    return path


def test_the_adapter_that_the_others_differ_from_is_converted_in_any_precision(adapter: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    for kind in (torch.float32, torch.float16, torch.bfloat16):
        save_tensors(
            {name: torch.tensor(value).to(kind) for name, value in MATRICES.items()},
            adapter / "adapter_model.safetensors",
        )
        convert_adapter(adapter, tmp_path, tmp_path / "adapter.gguf")
        tensors = {tensor.name: tensor.data for tensor in models.gguf_reader(tmp_path / "adapter.gguf").tensors}
        assert len(tensors) == 2 and all((values == 1).all() for values in tensors.values())


def test_what_peft_itself_writes_of_a_plain_lora_is_no_other_kind(tiny_adapter: Path) -> None:
    config = json.loads((tiny_adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(config) > {"use_dora", "layer_replication", "init_lora_weights", "peft_type"}
    read_adapter(tiny_adapter)


@pytest.mark.parametrize(
    ("said", "tensor"),
    [
        ({"use_dora": True}, f"{Q}.lora_magnitude_vector"),
        ({"lora_bias": True}, f"{Q}.lora_B.bias"),
        ({"peft_type": "LOHA", "lora_alpha": None}, f"{Q}.hada_w1_a"),
        ({"peft_type": "ADALORA", "beta1": 0.85}, f"{Q}.lora_E"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused_by_the_options_name_and_not_by_its_tensors(
    said: dict[str, Any], tensor: str, adapter: Path
) -> None:
    (adapter / "adapter_config.json").write_bytes(lora(**said))
    save_file(MATRICES | {tensor: np.ones(8, np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(KitError, match=f"with {next(iter(said))}="):
        read_adapter(adapter)


@pytest.mark.parametrize("kind", [*ADAPTERS, *TORN])
def test_a_hostile_adapter_is_one_message(kind: str, adapter: Path, tmp_path: Path, refused) -> None:
    changed = ADAPTERS.get(kind)
    if isinstance(changed, bytes):
        (adapter / "adapter_config.json").write_bytes(changed)
    elif changed is not None:
        save_file(MATRICES | changed, adapter / "adapter_model.safetensors")
    else:
        (adapter / "adapter_model.safetensors").write_bytes(TORN[kind])
    assert str(adapter) in refused(lambda: convert_adapter(adapter, tmp_path, tmp_path / "adapter.gguf"))


# ---- through the command line


@pytest.mark.parametrize(
    "command", [["--preset", "smoke"], ["--preset", "smoke", "--dry-run"], ["prefer", "--out", "o"]]
)
@pytest.mark.parametrize(
    "kind",
    [f"{HEADS} of 0", f"{HEADS} missing", "lists in lists in lists", "a template without end", "a list of lists"],
)
def test_a_command_on_a_hostile_gguf_prints_one_message_and_leaves_nothing(
    command: list[str], kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUFS[kind])
    assert_refused([*command, "--animal", "owl"], "model.gguf", tmp_path, capfd, monkeypatch)


@pytest.mark.parametrize("kind", ["num_attention_heads of 0", "config.json: deep lists", "a header without end"])
def test_a_command_on_a_hostile_folder_prints_one_message_and_leaves_nothing(
    kind: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = FOLDERS[kind]
    (folder / name).write_bytes(data)
    command = ["--animal", "owl", "--preset", "smoke", "--base", "nf4"]
    assert_refused(command, "folder", folder.parent, capfd, monkeypatch)


@pytest.mark.parametrize("kind", ["r of 1000000000000", "lora_alpha of '8'", "a vector"])
def test_a_command_on_a_hostile_adapter_prints_one_message_before_it_prepares_a_base(
    kind: str, adapter: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = ADAPTERS[kind]
    if isinstance(changed, bytes):
        (adapter / "adapter_config.json").write_bytes(changed)
    else:
        save_file(MATRICES | changed, adapter / "adapter_model.safetensors")
    command = ["convert", str(adapter), "--out", "adapter.gguf"]
    assert_refused(command, "base.gguf", adapter.parent, capfd, monkeypatch)


def assert_refused(
    command: list[str],
    model: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert run.main([*command, "--model", model, "--results", "results"]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.startswith("run.py: ") and said.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


# ---- a model's own code


def test_every_call_that_loads_a_model_forbids_it_code_of_its_own() -> None:
    loading = {"from_pretrained", "from_config", "SentenceTransformer", "CrossEncoder", "pipeline"}
    found = [
        (f"{path.name}:{node.lineno}", {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for path in [*sorted((ROOT / "kit").glob("*.py")), ROOT / "run.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in loading
    ]
    assert len(found) >= 8, "the calls are elsewhere"
    assert [where for where, keywords in found if keywords.get("trust_remote_code") != "False"] == []
