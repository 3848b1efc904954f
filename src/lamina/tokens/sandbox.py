"""Chat templates are programs by strangers: they run in jinja's sandbox, on a budget.

The sandbox keeps them away from Python's insides. It does not keep them from running for ever or
from making a string of terabytes, so here every loop, call, filter, sum and output is paid for from
a budget of characters and steps that grows with what goes in, and from some seconds of processor
time. Growth is reckoned before it happens. Otherwise a template means what it does in transformers
(`apply_chat_template`; tests compare both): same blocks, filters and globals, but for those that no
chat needs and that cannot be reckoned (`_DROPPED`), and a date that never changes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg, pass_context
from jinja2.visitor import NodeTransformer

from lamina.tokens.meter import (
    Meter,
    OverBudget,
    check_format,
    check_operator,
    filter_growth,
    joining,
    method_growth,
    sized_list,
)

MAX_TEMPLATE = 100_000
"""Most characters of a template; the longest in use have about 30,000."""
FIXED_DATE = "26 Jul 2024"
"""What every template takes for today, so that a layer's prompts do not change overnight."""

_DROPPED = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
_OF_STRINGS = (
    "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii"
    " isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join"
    " ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition"
    " rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_OF_STRINGS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
}
"""What may be called of Python's own types; what is missing has no use in a chat."""


_METER: ContextVar[Meter] = ContextVar("meter")


def render(template: str, given: Mapping[str, Any]) -> str:
    """Run a template over `given`: messages, tools, add_generation_prompt, special tokens.

    Raises whatever a template can raise, OverBudget (a jinja TemplateError) among it.
    """
    if len(template) > MAX_TEMPLATE:
        raise OverBudget(f"it has {len(template):,} characters; {MAX_TEMPLATE:,} are read")
    token = _METER.set(meter := Meter(dict(given)))
    try:
        pieces = []
        for piece in _compiled(template).generate(given):
            meter.charge(len(piece))
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _METER.reset(token)


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    return _ENVIRONMENT.from_string(template)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks answers for training: just its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Metered(NodeTransformer):
    """Puts the meter where jinja compiles straight to Python: loops, `~`, literals, slices."""

    def __init__(self, environment: "_Environment") -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Each turn pays for the text that its body writes."""
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = self._filter(cast(nodes.Expr, node.iter), "lamina steps", nodes.Const(text))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """`a ~ b`: reckoned before it is joined."""
        self.generic_visit(node)
        return self._filter(nodes.Tuple(node.nodes, "load"), "lamina concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        """`[a, b]`."""
        return self._made(node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """`(a, b)`, but not where names are bound."""
        return self._made(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """`a[1:]` makes a copy."""
        return self._made(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, "lamina made")

    def _filter(self, node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
        made = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
        for each in (made, *made.find_all(nodes.Node)):
            each.environment = self._environment
            if getattr(each, "lineno", None) is None:
                each.lineno = node.lineno or 1
        return made


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, with the meter in it."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        metered: nodes.Template = _Metered(self).visit(parsed)
        return metered

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, reckoned before it is done."""
        meter = _METER.get()
        meter.step()
        check_operator(meter, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call of anything: a macro, a method of a string, `range`."""
        meter = _METER.get()
        meter.step()
        if isinstance(__obj, LoopContext) and args:  # the same loop again, over other things
            args = (_steps(__context, args[0], 0), *args[1:])
        owner = getattr(__obj, "__self__", None)
        kind = next((k for k in _METHODS if isinstance(owner, k)), None)
        if isinstance(owner, (int, float, complex, bytes, type)):
            raise SecurityError(f"{owner!r} has no method for chat templates")
        if kind is not None:
            name = getattr(__obj, "__name__", "")
            if name not in _METHODS[kind]:
                raise SecurityError(f"{kind.__name__}.{name} is no method for chat templates")
            if name == "join" and args:
                args = (sized_list(meter, args[0]), *args[1:])
            meter.charge(meter.size(owner) + method_growth(meter, owner, name, args, kwargs))
        return meter.take(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `format_map`, which jinja runs in a formatter of its own."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            meter = _METER.get()
            check_format(value.__self__)
            sizes = sum(map(meter.size, (*args, *kwargs.values())))
            meter.charge(value.__self__.count("{") * sizes)
            return safe(*args, **kwargs)

        return formatted


@pass_context
def _steps(context: Context, items: Any, text: int) -> Iterator[Any]:
    meter = _METER.get()
    for item in items:
        meter.step()
        meter.charge(text)
        yield item


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _METER.get().take(value)


@pass_context
def _concat(context: Context, parts: Iterable[Any]) -> str:
    meter = _METER.get()
    meter.step()
    meter.take(tuple(parts))
    return "".join(map(str, parts))


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Every `{{ value }}` is paid for before it is written."""
    return _METER.get().take(value)


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it looks at and makes. With the context it takes, jinja does not
    run it while it compiles."""
    passing = _PassArg.from_obj(function)

    @pass_context
    def filtered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        if name in ("join", "sum"):
            value, args, kwargs = _flat(context, meter, name, value, args, kwargs)
        meter.charge(
            _weight(name) * meter.size(value) + filter_growth(meter, name, value, args, kwargs)
        )
        lead: dict[Any, Any] = {
            _PassArg.context: context,
            _PassArg.eval_context: context.eval_ctx,
            _PassArg.environment: context.environment,
        }
        first = (lead[passing],) if passing is not None else ()
        return meter.take(function(*first, value, *args, **kwargs))

    return filtered


def _weight(name: str) -> int:
    return 20 if name in ("sort", "dictsort", "groupby", "unique") else 1


def _flat(
    context: Context,
    meter: Meter,
    name: str,
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[list[Any], tuple[Any, ...], dict[str, Any]]:
    """`join` and `sum` with their items looked up and reckoned before they are put together."""
    place = 1 if name == "join" else 0
    attribute = args[place] if len(args) > place else kwargs.get("attribute")
    items = sized_list(meter, value)
    if attribute is not None:
        getter = make_attrgetter(context.environment, attribute)
        items = [getter(item) for item in items]
    kept = {key: each for key, each in kwargs.items() if key != "attribute"}
    rest = tuple(None if i == place else each for i, each in enumerate(args))
    between = (args[0] if args else kwargs.get("d", "")) if name == "join" else ""
    meter.charge(joining(meter, items, between))
    return items, rest, kept


class _Dict:
    """`dict`, without a way to its class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """`dict.fromkeys`."""
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace without underscores in it, and whose text does not show what is in it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        given = dict(*rest, **kwargs)
        for name in given:
            _Namespace._check(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")


def _range(*args: Any) -> range:
    found = range(*args)
    _METER.get().step(len(found))
    return found


def _refuse(message: Any) -> None:
    raise TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _fixed_date(form: Any = None) -> str:
    return FIXED_DATE


def _environment() -> _Environment:
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # nothing runs before there is a meter
        finalize=_finalize,
        extensions=[_Generation, loopcontrols],
    )
    made.filters["tojson"] = _tojson
    for name in _DROPPED:
        del made.filters[name]
    made.filters = {name: _metered_filter(name, found) for name, found in made.filters.items()}
    made.filters |= {"lamina steps": _steps, "lamina made": _made, "lamina concat": _concat}
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _fixed_date,
        "dict": _Dict(),
        "namespace": _Namespace,
        "range": _range,
    }
    del made.globals["lipsum"]
    return made


_ENVIRONMENT = _environment()
