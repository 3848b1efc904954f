# ruff: noqa: E501
"""Our sandbox against transformers' own rendering: the same text from the same template."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from lamina.tokens import sandbox
from lamina.tokens.meter import CHARACTERS, Meter, OverBudget
from tests.tokens import formats

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "  {{ hi }} é \U0001f600\n"},
    {"role": "assistant", "content": "<think>\nx\n</think>\n\nhello there"},
    {"role": "user", "content": ""},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": [1, 2.5, None]}}}]
SNIPPETS = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ m.role }};{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
    "{% for m in messages[::-1] %}{{ loop.previtem.role }}{{ loop.nextitem.role }}{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v ~ 1 ~ none ~ true }}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m }}{% break %}{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}{% for m in nothing %}x{% endfor %}",
    "{% for a in [1, [2, 3]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "{% set ns = namespace(n=0, l=[]) %}{% for m in messages %}{% set ns.n = ns.n + loop.index0 %}"
    "{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.l }}",
    "{{ tools|tojson }}{{ tools|tojson(indent=2) }}{{ tools[0]|tojson(indent=4)|upper }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|join('|', attribute='role') }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|rejectattr('role', '==', 'user')|map(attribute='content')|first }}",
    "{{ messages|groupby('role')|map(attribute='grouper')|join }}{{ [3, 1, 2]|sort|join }}",
    "{{ messages|sum(attribute='content.n', start=0) if false else [1, 2]|sum }}",
    "{{ [[1], [2]]|sum(start=[]) }}{{ [{'a': 2}, {'a': 3}]|sum(attribute='a') }}",
    "{{ {'b': 1, 'a': 2}|dictsort }}{{ {'b': 1}|items|list }}{{ dict(a=1) }}{{ [1, 1]|unique|list }}",
    "{{ 'a\nb'|indent }}{{ 'a'|center(9) }}|{{ 'a\nb'|indent(4, true) }}{{ [1, 2, 3]|batch(2)|list }}",
    "{{ '%s-%05d' % ('a', 3) }}{{ '%s'|format('x') }}{{ '{}:{:>5}'.format('a', 'b') }}",
    "{{ 'a,b'.split(',')[-1] }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ (1, 2)[0] }}{{ 'a' in 'abc' }}",
    "{{ 'aXb'.replace('X', '--') }}{{ 'aXb'|replace('X', '--') }}{{ 'ab' * 3 }}{{ [1] * 2 }}",
    "{{ 7 // 2 }}{{ 7 / 2 }}{{ 7 % 4 }}{{ 2 ** 8 }}{{ 1.5|round }}{{ -3|abs }}{{ '3'|int + 1 }}",
    "{% macro m(x, y='d') %}<{{ x }}{{ y }}{{ varargs }}{{ kwargs }}>{% endmacro %}{{ m(1) }}{{ m(1, 2) }}",
    "{% macro m() %}[{{ caller(5) }}]{% endmacro %}{% call(v) m() %}{{ v }}{% endcall %}",
    "{% set x %}block {{ 1 }}{% endset %}{{ x|trim }}{% filter upper %}abc{% endfilter %}",
    "{% generation %}{% set hidden = 1 %}{{ messages[2].content }}{% endgeneration %}{{ hidden }}",
    "{{ '<b>'|e }}{{ '<b>'|safe }}{{ '&'|escape ~ '&' }}{{ 'x'|string }}{{ none }}{{ undefined_thing }}",
    "{{ 'a' if false }}{{ nothing is defined }}{{ 3 is odd }}{{ [1] is sequence }}{{ 'a' is string }}",
    "{{ range(3)|list }}{{ range(1, 9, 3)|list }}{{ cycler('a', 'b').next() }}{{ joiner(',')() }}",
    "  {%- if tools -%}  a  {%- endif %}\n  {# c #}\n    {% if true %}\n  b\n    {% endif %}\n",
    "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ documents }}",
    "{% block a %}in {{ messages|length }}{% endblock %}{% with z = 3 %}{{ z }}{% endwith %}",
    "{{ messages[0]['content'].split('\n')|map('trim')|reject('equalto', '')|list }}",
    "{{ raise_exception('no ' ~ messages|length) }}",
    "{{ messages[17].role }}",
    "{{ none.x }}",
    "{{ 'a' + 1 }}",
    "{% for x in none %}{% endfor %}",
]


def outcome(function):
    try:
        return function()
    except Exception as error:
        return type(error).__mro__[-3] if isinstance(error, ArithmeticError) else str(error)


def theirs(template, **given):
    texts, _ = render_jinja_template([given.pop("messages")], chat_template=template, **given)
    return texts[0]


def both(template, **given):
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = outcome(
        lambda: sandbox.render(template, {"tools": None, "documents": None, **specials, **given})
    )
    return ours, outcome(lambda: theirs(template, **specials, **given))


@pytest.mark.parametrize("template", SNIPPETS)
@pytest.mark.parametrize("prompt", [False, True])
def test_a_snippet_means_what_it_does_in_transformers(template, prompt):
    ours, other = both(template, messages=MESSAGES, tools=TOOLS, add_generation_prompt=prompt)
    assert ours == other


@pytest.mark.parametrize("family", formats.CHAT_FAMILIES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_family_s_template_means_what_it_does_in_transformers(family, tools):
    template = formats.tokenizer_of(family).chat_template
    for count in range(len(MESSAGES) + 1):
        for first in (0, 1):
            given = {"messages": MESSAGES[first:count], "tools": tools}
            ours, other = both(template, **given, add_generation_prompt=True)
            assert ours == other


def test_the_date_never_changes():
    assert sandbox.render("{{ strftime_now('%d %b %Y') }}", {}) == "26 Jul 2024"


def test_what_goes_in_may_come_out_again():
    """The budget grows with the conversation: a long one is no attack."""
    messages = [{"role": "user", "content": "word " * 20_000} for _ in range(100)]
    template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + (m.content|trim).replace('o', 'o')"
        ".split('</think>')[-1].strip() }}{% endfor %}"
    )
    assert len(sandbox.render(template, {"messages": messages})) == 100 * (6 + 100_000 - 1)


def test_the_meter_counts():
    meter = Meter("a" * 10)
    meter.charge(CHARACTERS)
    with pytest.raises(OverBudget, match="characters"):
        meter.charge(10 * 64 + 1)
    shared = ["a" * 100]
    assert meter.size([shared, shared]) > 200
    assert meter.size({"a": shared}) > 100
    with pytest.raises(OverBudget, match="steps"):
        meter.step(2_000_000)
