"""`lamina access`: keys for `lamina serve`."""

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, table
from lamina.core.errors import UsageError

if TYPE_CHECKING:
    from lamina.web.keys import Keys

app = typer.Typer(
    no_args_is_help=True, help="Keys for `lamina serve`: who may ask, what, how much."
)


def keys() -> "Keys":
    """The keys beside the user's store."""
    from lamina.web.keys import FILE, Keys

    return Keys(environment.open_store().root / FILE)


@app.command("add", no_args_is_help=True)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key, or what for.")],
    role: Annotated[
        str,
        typer.Option(
            metavar="use|admin", help="use: ask stacks. admin: metrics and changes as well."
        ),
    ] = "use",
    stacks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these stacks, and versions of them."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most requests a minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Most tokens a minute, of prompts and answers."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a key. It is shown this once; the store keeps its hash.

    \b
    lamina access add ann
    lamina access add shop --stacks support --tokens-per-minute 20000

    As soon as there is a key, every request to `lamina serve` needs one. Running servers notice.
    """
    from lamina.web.keys import NewKey

    if role not in ("use", "admin"):
        raise UsageError(f"--role {role!r}: known are use and admin")
    allowed = tuple(text.strip() for text in stacks.split(",")) if stacks else ()
    kind = cast(Literal["use", "admin"], role)
    secret = keys().add(NewKey(name, kind, allowed, requests_per_minute, tokens_per_minute))
    if json:
        print_json({"name": name, "role": role, "key": secret})
    else:
        print_text(secret)


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List keys, without the keys themselves."""
    found = keys().all()
    if json:
        shown = [key.model_dump(mode="json", exclude={"sha256"}) for key in found]
        print_json({"keys": shown})
        return
    rows = [
        [
            key.name,
            key.role,
            ", ".join(key.stacks) or "all",
            str(key.requests_per_minute or ""),
            str(key.tokens_per_minute or ""),
            key.created,
        ]
        for key in found
    ]
    head = ["name", "role", "stacks", "requests/min", "tokens/min", "made"]
    print_text(table(head, rows) if rows else "no keys; make one with: lamina access add NAME")


@app.command("rm", no_args_is_help=True)
def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A key's name.")],
    json: options.Json = False,
) -> None:
    """Forget a key: requests with it are refused from now on, on running servers too.

    Without any key left, a server on this machine's own address is open to all on this machine;
    one that listens wider refuses everybody.
    """
    keys().remove(name)
    if json:
        print_json({"removed": name})
    else:
        print_text(f"removed {name}")
