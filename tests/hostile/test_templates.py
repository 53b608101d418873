"""Chat templates from strangers: none hangs, none takes memory, and each ends in one line.

`HUGE` and the others of its kind ended only with the process, or took all memory, before renders had a budget.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tourkit.backends import template_trial
from tourkit.backends.chat_template import ChatTemplate
from tourkit.backends.template_trial import try_out
from tourkit.errors import EngineError, LocalError, RequestError
from tourkit.launch import Launch

MOST_MEMORY = 200 << 20  # bytes
QUESTION = [{"role": "user", "content": "the name and the date"}]
NESTED = "".join(f"{{% for v{i} in [1, 2] %}}" for i in range(15)) + "x" + "{% endfor %}" * 15
TALL = "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
TALL += "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
DOUBLE = "{% set ns = namespace(s='a', l=[1], n=9) %}{% for i in range(40) %}"
KEPT = "{% set big = 'ы' * 1000000 %}{% set many = [1] * 100000 %}{% set ns = namespace(l=[]) %}"
KEPT += "{% for i in range(3000) %}{% set ns.l = ns.l + [COPY] %}{% endfor %}"

TOO_MUCH = {
    "nested range": "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
    "nested range without output": "{% for i in range(90000) %}{% for j in range(i) if 0 %}{% endfor %}{% endfor %}",
    "power": "{% set n = messages | length %}{{ (n * 10) ** (10 ** 8) }}",
    "power of powers": "{{ 9 ** (9 ** 9) }}",
    "constant power": "{% if 10 ** (10 ** 8) %}{% endif %}",
    "constant power in a text": "{{ 'a' ~ 10 ** (10 ** 8) }}",
    "constant text times": "{{ 'a' * 10 ** 10 }}",
    "text times": "{{ messages[0].content * 10000000000 }}",
    "list times": "{{ [1] * 1000000000 }}",
    "tuple times": "{% set x = (1,) * 1000000000 %}",
    "list of a large text": "{% set t = 'a' * 10000000 %}{{ [t] * 100000 }}",
    "doubling by +": DOUBLE + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by ~": DOUBLE + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by a block": (
        "{% set ns = namespace(s='a') %}{% for i in range(40) %}"
        "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}"
    ),
    "doubling by a macro": (
        "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}"
        "{% set ns = namespace(s='a') %}{% for i in range(40) %}{% set ns.s = m(ns.s) %}{% endfor %}"
    ),
    "doubling a list": DOUBLE + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "doubling a number": DOUBLE + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "escaped doubling": (
        "{% autoescape true %}{% set ns = namespace(s='a'|safe) %}"
        "{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{% endautoescape %}"
    ),
    "much text in a loop": "{% for i in range(100000) %}" + "x" * 10_000 + "{% endfor %}",
    "center": "{{ 'a' | center(10000000000) }}",
    "constant center": "{% set x = 'a' | center(10000000000) %}",
    "center of autoescape": "{% autoescape 'a' | center(10000000000) %}{{ 'a' | center(1000000) }}{% endautoescape %}",
    "method center": "{{ 'a'.center(10000000000) }}",
    "method ljust": "{{ 'a'.ljust(10000000000) }}",
    "method rjust": "{{ 'a'.rjust(10000000000) }}",
    "method zfill": "{{ 'a'.zfill(10000000000) }}",
    "method expandtabs": "{{ '\t\t'.expandtabs(2000000000) }}",
    "method to_bytes": "{{ (5).to_bytes(10000000000, 'big') }}",
    "method of bytes": "{{ 'a'.encode().center(10000000000) }}",
    "method replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "method join": "{% set t = 'a' * 1000000 %}{{ t.join(['x'] * 100000) }}",
    "method translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "method rfind": "{{ ('a' * 8000000).rfind('b' + 'a' * 4000000) }}",
    "format width": "{{ '%10000000000d' % 5 }}",
    "format width by an argument": "{{ '%*d' % (2000000000, 5) }}",
    "format filter": "{{ '%10000000000d' | format(5) }}",
    "format of much": "{{ ('%s' * 10000) % (('a' * 100000,) * 10000) }}",
    "str.format width": "{{ '{:10000000000}'.format(5) }}",
    "str.format width by an argument": "{{ '{:{}}'.format(5, '10000000000') }}",
    "replace": "{{ 'a' * 100000 | replace('a', 'b' * 100000) }}{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace nothing": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "join": "{{ (['a' * 100000] * 1000000) | join('b') }}",
    "join of 10^11": "{{ ['a', 'b'] * 100000 | join('c' * 1000000) }}{{ (['a'] * 100000) | join('c' * 1000000) }}",
    "indent": "{{ ('\n' * 100000) | indent('a' * 100000, true, true) }}",
    "indent by a number": "{{ 'a' | indent(10000000000, true) }}",
    "wordwrap": "{{ ('a' * 1000000) | wordwrap(1) }}",
    "wordwrap by much": "{{ ('a b ' * 5000) | wordwrap(1, true, 'c' * 1000000) }}",
    "urlize": "{{ ('http://a.b ' * 100000) | urlize(target='c' * 100000) }}",
    "batch": "{{ [1] | batch(10000000000, 'a') | list }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "round": "{{ 5 | round(-1000000000) }}",
    "round up": "{{ 5 | round(1000000000, 'ceil') }}",
    "sum": "{{ ([['a'] * 10000] * 10000) | sum(start=[]) }}",
    "tojson": "{% set a = ['a' * 1000000] * 100000 %}{{ a | tojson }}",
    "tojson indent": "{{ [[[[1]]]] | tojson(indent=1000000000) }}",
    "a tall list": TALL + "{{ ns.a }}",
    "a tall list joined": TALL + "{{ ns.a ~ '' }}",
    "a tall list as JSON": TALL + "{{ ns.a | tojson }}",
    "tall lists compared": TALL + "{{ ns.a == ns.b }}",
    "tall lists searched": TALL + "{{ ns.a in [ns.b] }}",
    "tall lists in a test": TALL + "{{ ns.a is eq(ns.b) }}",
    "tall lists in a method": TALL + "{{ [ns.a].count(ns.b) }}",
    "a tall tuple as a key": TALL.replace("[ns.a, ns.a]", "(ns.a, ns.a)").replace("[1]", "1") + "{{ {ns.a: 1} }}",
    "a tall tuple as an index": TALL.replace("[ns.a, ns.a]", "(ns.a, ns.a)").replace("[1]", "1") + "{{ {}[ns.a] }}",
    "a growing namespace": (
        "{% set ns = namespace(s='a') %}{% set l = [ns] %}{{ l | length }}{% set ns.s = 'a' * 10000000 %}"
        "{{ l * 10000 }}"
    ),
    "a namespace": "{% set ns = namespace(s=['a' * 10000000] * 1000) %}{{ ns }}",
    "for nested 15 times and repeated": "{% for i in range(1000) %}" + NESTED + "{% endfor %}",
    "macros that call": (
        "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(40) }}"
    ),
    "a recursive loop": (
        "{% for n in [40] recursive %}{% if n %}{{ loop([n - 1, n - 1]) }}{% endif %}{% endfor %}"
    ),
    "map of a large list": "{% for i in range(10000) %}{% set x = range(1000) | map('string') | list %}{% endfor %}",
    "copies of a text by slices": KEPT.replace("COPY", "big[1:]"),
    "copies of a text by a filter": KEPT.replace("COPY", "big | upper"),
    "copies of a text by a method": KEPT.replace("COPY", "big.lower()"),
    "copies of a list": KEPT.replace("COPY", "many[1:]"),
    "copies of a list by a filter": KEPT.replace("COPY", "range(90000) | list"),
    "parts of a text": KEPT.replace("COPY", "('a b' * 1000000).split()"),
    "characters of a text": KEPT.replace("COPY", "('ы' * 1000000) | list"),
    "copies of a mapping": KEPT.replace("COPY", "dict(many | batch(2) | list)"),
    "a deep tuple as a key": (
        "{% set ns = namespace(t=1) %}{% for i in range(60000) %}{% set ns.t = (ns.t,) %}"
        "{% if ns.t == 1 %}{% endif %}{% endfor %}{{ {ns.t: 1} }}"
    ),
    "a wide date": "{{ strftime_now('%1000000000Y') }}",
}  # fmt: skip

ORDINARY = {
    "division by zero": "{{ 1 / 0 }}",
    "remainder by zero": "{{ 1 % 0 }}",
    "wrong types": "{{ 'a' + 1 }}",
    "a call of a text": "{{ 'a'() }}",
    "a loop over a number": "{% for i in 5 %}{% endfor %}",
    "too many values": "{% for a, b in [1, 2] %}{% endfor %}",
    "an index": "{{ [1].index(2) }}",
    "a key": "{{ '{a}'.format(b=1) }}",
    "an attribute of nothing": "{{ nothing.at.all }}",
    "a range too large": "{% for i in range(1000000000) %}{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a block in itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "a number of 100,000 digits": "{{ ('9' * 4000) | int * ('9' * 4000) | int }}",
    "a lone surrogate": "{{ '\\ud800' }}",
    "not a date": "{{ strftime_now(5) }}",
    "not JSON": "{{ raise_exception | tojson }}",
    "another template": "{% include 'other' %}",
    "a unicode error": "{{ 'ы'.encode('ascii') }}",
    "a value error": "{{ 'a'.index('b') }}",
    "an overflow": "{{ 10.0 ** 1000 }}",
    "a refusal that is a list": "{{ raise_exception(messages) }}",
    "a refusal of much text": "{{ raise_exception('word ' * 100000) }}",
}  # fmt: skip

NOT_COMPILED = {
    "5,000 parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "5,000 if": "{% if true %}" * 5000 + "{% endif %}" * 5000,
    "20,000 elif": "{% if false %}" + "{% elif false %}" * 20_000 + "{% endif %}",
    "for nested 40 times": "".join(f"{{% for v{i} in [1, 2] %}}" for i in range(40)) + "{% endfor %}" * 40,
    "a number of 100,000 digits in the source": "{{ " + "9" * 100_000 + " }}",
    "a filter that nobody has": "{{ 1 | nothing }}",
    "two megabytes": "x" * (2 << 20),
}


def most_memory() -> int:
    """Return the most bytes that this process had so far."""
    resource: Any = pytest.importorskip("resource", reason="this system has no resource module")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def rendered(source: str) -> str:
    """Return the one line that a template ends in."""
    with pytest.raises(RequestError) as refused:
        ChatTemplate(source, {}).render(QUESTION)
    assert refused.value.code == "invalid_messages"
    assert refused.value.param == "messages"
    return str(refused.value)


@pytest.mark.parametrize("source", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_a_template_that_does_too_much_is_stopped_before_it_takes_memory(source: str) -> None:
    before = most_memory()
    line = rendered(source)

    assert "\n" not in line
    assert len(line) < 500
    assert most_memory() - before < MOST_MEMORY


@pytest.mark.parametrize("source", ORDINARY.values(), ids=ORDINARY.keys())
def test_every_exception_of_a_template_is_one_line(source: str) -> None:
    line = rendered(source)

    assert line.startswith("the model's chat template refuses these messages: ")
    assert "\n" not in line
    assert len(line) < 500


@pytest.mark.parametrize("source", NOT_COMPILED.values(), ids=NOT_COMPILED.keys())
def test_a_template_that_cannot_be_compiled_is_the_models_error_in_one_line(source: str) -> None:
    with pytest.raises(EngineError) as refused:
        ChatTemplate(source, {})

    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_nul_in_a_template_is_text() -> None:
    assert ChatTemplate("a\0b{{ '\0' }}", {}).render(QUESTION) == "a\0b\0"


def test_nothing_is_computed_while_a_template_is_compiled() -> None:
    """A template that is never rendered costs nothing, whatever constants it has."""
    ChatTemplate("{% if false %}{{ 10 ** (10 ** 8) }}{{ 'a' | center(10000000000) }}{% endif %}", {}).render(QUESTION)


# --- the process of the first render ----------------------------------------------------------------------------------


@pytest.mark.starts
@pytest.mark.parametrize(
    ("source", "what"),
    [
        (TOO_MUCH["nested range"], "does more than a chat needs"),
        (TOO_MUCH["doubling by ~"], "too much text"),
        (NOT_COMPILED["5,000 parentheses"], "cannot be compiled"),
        ("{% for %}", "not valid Jinja: line 1"),
    ],
)
def test_a_hostile_template_ends_the_load_with_one_line(source: str, what: str) -> None:
    with pytest.raises(LocalError, match=what) as refused:
        try_out(source, {}, Path("model.gguf"))

    assert str(refused.value).startswith("model.gguf: its chat template ")
    assert "\n" not in str(refused.value)


@pytest.mark.starts
@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{{ raise_exception('a tool first') }}", "{{ 1 / 0 }}"]
)
def test_a_template_that_only_refuses_the_messages_of_the_trial_is_used(source: str) -> None:
    try_out(source, {}, Path("model.gguf"))


@pytest.mark.starts
@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["-c", "import os; os.abort()"], r"ends the process that tries it \(exit status -6\)"),
        (["-c", "while True: pass"], "does not end within"),
    ],
)
def test_a_trial_that_crashes_or_hangs_is_one_line(
    command: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_trial, "_COMMAND", command)
    monkeypatch.setattr(template_trial, "_SECONDS", 1)

    with pytest.raises(LocalError, match=what):
        try_out("", {}, Path("model.gguf"))


@pytest.mark.starts
def test_a_gguf_whose_template_is_not_utf_8_is_refused_in_one_line(tiny_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama_cpp is not installed here")
    from tourkit.backends.llama_cpp import load

    path = tmp_path / "bad.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"{% for m in messages %}", b"{% for m in messages \xff}"))

    with pytest.raises(LocalError, match="its chat template is not UTF-8 text") as refused:
        load(Launch("tiny", "llama_cpp", str(path), 1, 256, 1))

    assert "\n" not in str(refused.value)
