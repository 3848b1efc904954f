"""Options that several commands share, each described once."""

from collections.abc import Mapping
from typing import Annotated

import typer

from lamina.core.errors import UsageError
from lamina.core.plain import line_fault


def _one_line(value: str | None) -> str | None:
    fault = line_fault(value) if value else None
    if fault:
        raise UsageError(f"{value!r} {fault}")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Stack = Annotated[
    str,
    typer.Argument(metavar="STACK", help="A stack: support, support:v2, a base's name, @digest."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Train in so many processes of a Ray cluster, each with a share of every step's rows "
        "(needs lamina[ray]).",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="The Ray cluster, such as 10.0.0.1:6379; `local`: one of this machine's own for as "
        "long as it takes (default: $RAY_ADDRESS, else local).",
    ),
]
SpreadOver = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Spread the work over this Ray cluster, such as 10.0.0.1:6379 (needs lamina[ray]); "
        "`local`: over this machine's processors.",
    ),
]
Processors = Annotated[
    int, typer.Option("--processors", metavar="N", min=1, help="Processors of each piece of work.")
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
Proposal = Annotated[
    str,
    typer.Argument(
        metavar="FILE|PLACE", help="A proposal: a file, or oci://host/repository[:tag|@digest]."
    ),
]
Despite = Annotated[
    str | None,
    typer.Option(
        "--despite",
        metavar="WHY",
        help="Go on where a licence forbids it, with leave from its author; recorded.",
    ),
]
Author = Annotated[
    str | None,
    typer.Option(
        "--author",
        metavar="WHO",
        callback=_one_line,
        help="Author recorded in the layer (default: $LAMINA_AUTHOR).",
    ),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", metavar="N", help="Passes over the training rows.")
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", metavar="RATE", help="Peak learning rate.")
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Optimiser steps, instead of --epochs."),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option("--max-minutes", metavar="MINUTES", help="Fit the run into this time."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="Data format; detected and stated by default."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and count them.")]
Licence = Annotated[
    str | None,
    typer.Option("--licence", metavar="SPDX", callback=_one_line, help="Licence of the data."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory to train in, such as 2GB or 1.5GiB; default: what the machine has.",
    ),
]
Place = Annotated[
    str,
    typer.Argument(
        metavar="PLACE",
        help="oci://host/repository[:tag] or hf:org/name[@branch]; to pull also …@digest.",
    ),
]
PlainHttp = Annotated[
    bool,
    typer.Option("--plain-http", help="HTTP without TLS; on this machine it needs no leave."),
]
CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca-file", metavar="FILE", help="Trust these certificate authorities, not the system's."
    ),
]
NoTlsVerify = Annotated[
    bool,
    typer.Option("--no-tls-verify", help="Accept any certificate; only digests are checked then."),
]


def is_hub(place: str) -> bool:
    """Whether a place to push to or pull from is one of the Hub."""
    return place.startswith("hf:")


def refuse_for_hub(place: str, given: Mapping[str, object]) -> None:
    """Raise UsageError for options that were given and mean nothing for the Hub."""
    _refuse(f"{place} is a repository of the Hub", given)


def refuse_for_registry(place: str, given: Mapping[str, object]) -> None:
    """Raise UsageError for options that were given and mean nothing for a registry."""
    _refuse(f"{place} is no repository of the Hub", given)


def _refuse(what: str, given: Mapping[str, object]) -> None:
    named = [name for name, value in given.items() if value]
    if named:
        raise UsageError(f"{what}: {', '.join(named)} can't be used", hint="leave it out")
