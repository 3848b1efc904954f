"""The cost of a lineage as one SVG, by itself: no script, no font, no style from elsewhere.

Cumulative cost layer by layer as steps, and beside it full fine-tuning each time and one run from
nothing, on a logarithmic axis: they are orders of magnitude apart. Money where all is priced in one
currency, else time. Colours follow the reader's light or dark preference; a title and a
description say in words what the picture shows, and every line is labelled, so colour says nothing
alone (WCAG 2.2, 1.4.1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from lamina.core.plain import shown_in_line
from lamina.core.sizes import number_text, span_text
from lamina.flows.cost_text import sentence
from lamina.flows.spending import Spending

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 92, 186, 56, 64
MOST_LABELS = 12
"""Layers named under the axis; of more, some."""
_STYLE = """
.paper { fill: #fff }
.text { fill: #1f2328; font: 13px system-ui, sans-serif }
.head { font-size: 16px; font-weight: 600 }
.soft { fill: #57606a; font-size: 12px }
.grid { stroke: #d0d7de }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.ours { stroke: #0a6b4f }
.full { stroke: #9a4a00; stroke-dasharray: 7 4 }
.scratch { stroke: #7a3fb0; stroke-dasharray: 2 4 }
.t-ours { fill: #0a6b4f }
.t-full { fill: #9a4a00 }
.t-scratch { fill: #7a3fb0 }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117 }
  .text { fill: #e6edf3 }
  .soft { fill: #9ea7b3 }
  .grid { stroke: #30363d }
  .ours { stroke: #4cc9a0 }
  .full { stroke: #f0a45d }
  .scratch { stroke: #c79bf2 }
  .t-ours { fill: #4cc9a0 }
  .t-full { fill: #f0a45d }
  .t-scratch { fill: #c79bf2 }
}
"""


@dataclass(frozen=True)
class Curves:
    """What is drawn: cumulative values after each layer."""

    unit: str
    """A currency, or 'time'."""
    labels: tuple[str, ...]
    ours: tuple[float, ...]
    full: tuple[float | None, ...]
    scratch: float | None

    def text(self, value: float) -> str:
        """A value with its unit."""
        return span_text(value) if self.unit == "time" else f"{number_text(value)} {self.unit}"


def curves(spent: Spending) -> Curves:
    """Cumulative money where every cost on record has it in one currency, else seconds."""
    made = [item for item in spent.items if item.seconds is not None]
    money = spent.currency is not None and all(item.money is not None for item in made)
    scale = spent.money[spent.currency] / spent.seconds if money and spent.currency else 1.0
    ours, full = 0.0, 0.0
    all_ours, all_full = [], []
    for item in made:
        ours += (item.money if money else item.seconds) or 0.0
        full += (item.full_seconds or 0.0) * scale
        all_ours.append(ours)
        all_full.append(full or None)
    return Curves(
        unit=spent.currency if money and spent.currency else "time",
        labels=tuple(item.versions[0] if item.versions else item.name for item in made),
        ours=tuple(all_ours),
        full=tuple(all_full) if spent.full else (None,) * len(made),
        scratch=spent.scratch.seconds * scale if spent.scratch else None,
    )


def plot(spent: Spending) -> str:
    """The picture. A lineage without any cost on record says so in it."""
    drawn = curves(spent)
    title = f"What {shown_in_line(spent.label)} has cost"
    body = _lines(drawn) if drawn.ours else [_text(LEFT, HEIGHT / 2, "no cost is on record")]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title desc">',
            f'<title id="title">{_escaped(title)}</title>',
            f'<desc id="desc">{_escaped(_described(spent, drawn))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
            _text(24, 28, title, "text head"),
            _text(
                24, 46, "all so far after each layer, logarithmic; dashed lines were not paid for",
                "text soft",
            ),
            *body,
            "</svg>",
            "",
        ]
    )  # fmt: skip


def _described(spent: Spending, drawn: Curves) -> str:
    steps = ", ".join(
        f"{label} {drawn.text(value)}"
        for label, value in zip(drawn.labels, drawn.ours, strict=True)
    )
    return f"{sentence(spent)} All so far after each layer: {steps or 'nothing on record'}."


def _lines(drawn: Curves) -> list[str]:
    known = [v for v in (*drawn.ours, *drawn.full, drawn.scratch) if v is not None and v > 0]
    if not known:
        return [_text(LEFT, HEIGHT / 2, "all of it was free")]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    high = max(high, low + 1)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    step = (right - LEFT) / len(drawn.ours)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - low) / (high - low) * (bottom - TOP - 8)

    found = []
    every = max(1, math.ceil((high - low) / 8))
    for power in range(low, high + 1, every):
        at = y(10.0**power)
        found.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        found.append(_text(LEFT - 8, at + 4, drawn.text(10.0**power), "text soft", "end"))
    apart = math.ceil(len(drawn.labels) / MOST_LABELS)
    for index, label in enumerate(drawn.labels):
        if index % apart == 0:
            x = LEFT + (index + 0.5) * step
            name = shown_in_line(label)
            name = name if len(name) <= 16 else f"{name[:15]}…"
            found.append(
                f'<text class="text soft" text-anchor="end" transform="translate({x:.1f} '
                f'{bottom + 16}) rotate(-28)">{_escaped(name)}</text>'
            )
    ends = []
    ways: list[tuple[str, str, Sequence[float | None]]] = [
        ("ours", "these layers", drawn.ours),
        ("full", "full fine-tuning each time", drawn.full),
        ("scratch", "one run from nothing", [drawn.scratch] * len(drawn.ours)),
    ]
    for kind, name, values in ways:
        if path := _steps(values, step, y):
            last = next(value for value in reversed(values) if value)
            found.append(f'<path class="line {kind}" d="{path}"/>')
            ends.append((y(last), kind, name, drawn.text(last)))
    return [*found, *_labels(ends, right + 10)]


def _steps(values: Sequence[float | None], step: float, at: Callable[[float], float]) -> str:
    """A path that stays level over a layer's width and rises to the next; gaps are left out."""
    path = ""
    for index, value in enumerate(values):
        if value:
            x = LEFT + index * step
            path += f"{'V' if path else f'M{x:.1f} '}{at(value):.1f}H{x + step:.1f}"
    return path


def _labels(ends: list[tuple[float, str, str, str]], x: float) -> list[str]:
    """Names of lines at their ends, moved apart where they would lie over each other."""
    found, lowest = [], -math.inf
    for at, kind, name, value in sorted(ends):
        place = max(at, lowest)
        lowest = place + 36
        found.append(_text(x, place + 1, name, f"text t-{kind}"))
        found.append(_text(x, place + 16, value, "text soft"))
    return found


def _text(x: float, y: float, text: str, kind: str = "text", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{_escaped(text)}</text>"
    )


def _escaped(text: str) -> str:
    """As XML text: control characters are no XML, whatever escapes them."""
    return escape("".join(c for c in text if c in "\t\n" or ord(c) >= 32))
