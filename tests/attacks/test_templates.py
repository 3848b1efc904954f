# ruff: noqa: E501, PT017
"""Chat templates that reach for Python, never end, or make more than memory holds."""

import resource
import subprocess
import sys
import time

import pytest

from lamina.core.errors import DataError
from lamina.tokens.meter import SECONDS
from lamina.tokens.render import Renderer
from tests.tokens.formats import tokenizer_of

MESSAGES = [{"role": "user", "content": "hello"}]
DOUBLED = (
    "{% set ns = namespace(v=START) %}{% for i in range(60) %}{% set ns.v = STEP %}{% endfor %}"
)


def doubled(start, step, use="{{ ns.v }}"):
    return DOUBLED.replace("START", start).replace("STEP", step) + use


REACHING = {
    "class": "{{ ''.__class__.__mro__ }}",
    "attr filter": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).__mro__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format of a map": "{{ '{a.__init__.__globals__}'.format_map({'a': cycler}) }}",
    "globals of a global": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "of the loop": "{% for x in [1] %}{{ loop._iterator.gi_frame.f_globals['x'] }}{% endfor %}",
    "of a generator": "{{ ([1]|map('string')).gi_frame.f_back.f_globals['x'] }}",
    "self": "{{ self._TemplateReference__context.environment.globals['x'] }}",
    "dict": "{{ dict.__class__.__mro__ }}",
    "namespace": "{{ namespace(__class__=1) }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "mutating": "{{ messages.append(1) }}",
    "mutating a message": "{{ messages[0].update(role='system') }}",
    "clearing": "{{ messages.clear() }}",
    "bytes": "{{ 'x'.encode() }}",
    "of a number": "{{ (1).to_bytes(10000000000, 'big') }}",
    "translate": "{{ 'x'.translate({120: 'y' }) }}",
}
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a large range": "{% for a in range(10**15) %}{% endfor %}",
    "a loop that calls itself": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "wide recursion": (
        "{% for a in range(99) recursive %}{% if loop.depth < 9 %}{{ loop(range(99)) }}{% endif %}"
        "{% endfor %}"
    ),
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "blocks": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "filters": "{% for i in range(99999) %}{{ range(99999)|list|sort|length }}{% endfor %}",
    "lazy filters": "{{ range(99999)|map('string')|map('upper')|batch(1)|map('join')|sum(start='') }}",
    "sum of lists": "{{ ([range(9999)|list] * 9999)|sum(start=[])|length }}",
    "comparing": doubled("[]", "[ns.v, ns.v]", "{{ ns.v == ns.v|list }}"),
    "searching": (
        "{% set s = 'a' * 3000000 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}"
        "{% endfor %}"
    ),
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": doubled("3", "ns.v * ns.v", "{{ ns.v > 0 }}"),
    "rounding": "{{ 1.5|round(1000000000, 'ceil') }}",
}
LARGE = {
    "a product": "{{ 'a' * 10000000000 }}",
    "a product the other way": "{{ 10000000000 * 'a' }}",
    "a list": "{{ [0] * 10000000000 }}",
    "doubling by +": doubled("'ab'", "ns.v + ns.v"),
    "doubling by ~": doubled("'ab'", "ns.v ~ ns.v"),
    "doubling by format": doubled("'ab'", "'%s%s' % (ns.v, ns.v)"),
    "doubling by str.format": doubled("'ab'", "'{0}{0}'.format(ns.v)"),
    "doubling by the filter": doubled("'ab'", "'%s%s'|format(ns.v, ns.v)"),
    "doubling by join": doubled("'ab'", "[ns.v, ns.v]|join"),
    "doubling by str.join": doubled("'ab'", "''.join([ns.v, ns.v])"),
    "doubling by replace": doubled("'aa'", "ns.v.replace('a', 'aa')"),
    "doubling by the filter replace": doubled("'aa'", "ns.v|replace('a', 'aa')"),
    "doubling by replace of nothing": doubled("'aa'", "ns.v.replace('', 'aa')"),
    "doubling a list": doubled("[1]", "ns.v + ns.v"),
    "nested lists": doubled("[1]", "[ns.v, ns.v]"),
    "nested tuples": doubled("(1,)", "(ns.v, ns.v)"),
    "nested dicts": doubled("{'a': 1}", "{'a': ns.v, 'b': ns.v}"),
    "nested dict()": doubled("dict(a=1)", "dict(a=ns.v, b=ns.v)"),
    "nested as JSON": doubled("[1]", "[ns.v, ns.v]", "{{ ns.v|tojson|length }}"),
    "nested by batch": doubled("[1]", "([ns.v, ns.v]|batch(2)|list)"),
    "nested namespaces": doubled("1", "namespace(a=ns.v, b=ns.v)", "{{ ns.v }}" + "a" * 5_000_000),
    "nested by a set block": (
        "{% set ns = namespace(v='ab') %}{% for i in range(60) %}"
        "{% set x %}{{ ns.v }}{{ ns.v }}{% endset %}{% set ns.v = x %}{% endfor %}"
    ),
    "nested by a filter block": (
        "{% set ns = namespace(v='ab') %}{% for i in range(60) %}"
        "{% set x %}{% filter upper %}{{ ns.v }}{{ ns.v }}{% endfilter %}{% endset %}"
        "{% set ns.v = x %}{% endfor %}"
    ),
    "much text": "{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}",
    "much text in a macro": (
        "{% macro m() %}{% for i in range(99999) %}"
        + "a" * 9999
        + "{% endfor %}{% endmacro %}{{ m() }}"
    ),
    "much text in a block of its own": (
        "{% set x %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}{% endset %}{{ x }}"
    ),
    "many outputs": "{% set s = 'a' * 99999 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "a format's width": "{{ '%10000000000d' % 1 }}",
    "a format's precision": "{{ '%.10000000000f' % 1 }}",
    "a computed width": "{{ '%*d' % (10000000000, 1) }}",
    "a width of str.format": "{{ '{:>10000000000}'.format(1) }}",
    "a computed width of str.format": "{{ '{:{w}}'.format(1, w=10000000000) }}",
    "many fields of one argument": (
        "{% set s = 'a' * 99999 %}{{ '" + "{0}" * 9999 + "'.format(s)|length }}"
    ),
    "many fields of a map": "{% set s = 'a' * 99999 %}{{ '"
    + "{a}" * 9999
    + "'.format_map({'a': s})|length }}",
    "many fields of one name": (
        "{% set s = 'a' * 99999 %}{{ '" + "%(a)s" * 9999 + "' % {'a': s} }}"
    ),
    "many fields of the filter": (
        "{% set s = 'a' * 99999 %}{{ '" + "%(a)s" * 9999 + "'|format(a=s) }}"
    ),
    "many fields of the filter, nested": (
        "{% set s = ['a' * 99999] %}{{ '" + "%(a)s" * 9999 + "'|format(a=s) }}"
    ),
    "the filter format": "{{ '%10000000000d'|format(1) }}",
    "center": "{{ 'a'|center(10000000000) }}",
    "str.center": "{{ 'a'.center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "rjust": "{{ 'a'.rjust(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t\t'.expandtabs(1000000000) }}",
    "a center by name": "{{ 'a'|center(width=10000000000) }}",
    "indent": "{{ 'a\nb'|indent(10000000000) }}",
    "tojson": "{{ [1, 2]|tojson(indent=10000000000) }}",
    "batch": "{{ [1]|batch(10000000000, 'a')|list }}",
    "slice": "{{ [1]|slice(10000000000)|list }}",
    "list of a range": "{{ range(10000000000)|list }}",
    "many copies": "{% set s = 'a' * 1000000 %}{{ [" + ", ".join(["s[1:]"] * 9000) + "]|length }}",
    "lorem ipsum": "{{ lipsum(n=100000) }}",
    "a long template": "{# " + "a" * 300_000 + " #}",
    "deep": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "deep lists": "{{ " + "[" * 20_000 + "1" + "]" * 20_000 + " }}",
    "deep loops": "{% for a in [1] %}" * 5_000 + "{% endfor %}" * 5_000,
}


def render(template):
    return Renderer(tokenizer_of("smol"), template)(list(MESSAGES), (), prompt=True)


@pytest.mark.parametrize("name", REACHING)
def test_a_template_cannot_reach_for_python(name):
    messages = [dict(message) for message in MESSAGES]
    try:
        found = Renderer(tokenizer_of("smol"), REACHING[name])(messages, (), prompt=True)
    except DataError as error:
        assert "the chat template refuses" in error.message
    else:
        assert found.strip() == ""  # jinja's way of saying that there is no such attribute
    assert messages == MESSAGES


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
@pytest.mark.slow
def test_a_template_cannot_run_for_ever_or_fill_the_memory(name):
    begun = time.thread_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="the chat template refuses"):
        render({**ENDLESS, **LARGE}[name])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kB
    assert grown < 300_000
    assert time.thread_time() - begun < SECONDS + 5


@pytest.mark.parametrize("name", ["loops in loops", "searching"])
def test_the_process_goes_on_after_such_a_template(name):
    """In a process of its own, with a limit on its memory that nothing may hit."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from tests.attacks.test_templates import ENDLESS, render\n"
        f"try: render(ENDLESS[{name!r}])\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(render('{{ 1 + 1 }}'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["DataError", "2"]
