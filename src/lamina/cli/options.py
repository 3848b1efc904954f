"""Options that several commands share, each described once."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Stack = Annotated[
    str,
    typer.Argument(metavar="STACK", help="A stack: support, support:v2, a base's name, @digest."),
]
AcceptRegression = Annotated[
    str | None,
    typer.Option(
        "--accept-regression",
        metavar="WHY",
        help="Move the name although an inherited exam got worse; the reason is recorded.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Put layers where they were not trained; recorded in the stack's history."
    ),
]
Author = Annotated[
    str | None,
    typer.Option(
        "--author", metavar="WHO", help="Author recorded in the layer (default: $LAMINA_AUTHOR)."
    ),
]
