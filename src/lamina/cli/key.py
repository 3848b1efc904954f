"""`lamina key`: keys to sign with, and whose signatures count."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, table
from lamina.cli.passphrase import File, from_file, new_passphrase
from lamina.core.errors import UsageError

if TYPE_CHECKING:
    from lamina.share.keys import KeyRing, KnownKey

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keys to sign with, and whose signatures count.",
)
Key = Annotated[str, typer.Argument(metavar="KEY", help="A key's name, or its id.")]


def ring() -> "KeyRing":
    """The user's keys."""
    return environment.trust().keys


@app.command("new")
def new(
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose it is, for others (default: $LAMINA_AUTHOR)."),
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase that seals it on disk.")
    ] = False,
    passphrase_file: File = None,
    json: options.Json = False,
) -> None:
    """Make a key to sign with. Its private half never leaves this machine's config folder.

    \b
    lamina key new --name anna@example.org
    lamina key export > anna.pub

    Give the line that `lamina key export` prints to those who are to believe you.
    """
    whose = name or environment.author()
    if not whose:
        raise UsageError("the key needs a name", hint="lamina key new --name anna@example.org")
    given = from_file(passphrase_file) if passphrase_file else None
    made = ring().new(whose, given or (new_passphrase() if passphrase else None))
    if json:
        print_json(_facts(made, mine=True))
    else:
        print_text(f"{made.line}\nid {made.id}")


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List known keys: one's own, those of people who are trusted, and revoked ones."""
    from lamina.core.digest import short  # pydantic: --help starts without

    keys = ring()
    own = keys.owned()
    found = keys.all()
    if json:
        print_json({"keys": [_facts(key, mine=key.id in own) for key in found]})
        return
    rows = [[key.name, short(key.id), _state(key, mine=key.id in own), key.added] for key in found]
    head = ["name", "id", "state", "added"]
    none = "no keys; make one with: lamina key new, or take one in: lamina key trust FILE"
    print_text(table(head, rows) if rows else none)


@app.command("trust", no_args_is_help=True)
def trust(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The line of `lamina key export`; - for stdin.")
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose it is (default: the name in the file)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Take in somebody's public key: from now on their signatures count.

    Compare its id with its owner, by voice or on paper: a file says only what its sender wrote.
    """
    known = ring().trust(_read_line(file), name)
    if json:
        print_json(_facts(known, mine=False))
    else:
        print_text(f"{known.name}'s signatures count now\nid {known.id}")


@app.command("revoke", no_args_is_help=True)
def revoke(
    key: Key,
    retired: Annotated[
        bool,
        typer.Option(
            "--retired", help="Given up by its owner, who alone held it: older signatures count."
        ),
    ] = False,
    reason: Annotated[str, typer.Option(metavar="WHY", help="In words, for the record.")] = "",
    json: options.Json = False,
) -> None:
    """Let a key's signatures count no more, on this machine.

    No signature of a revoked key counts, older ones neither: whoever holds it can write any time
    into a signature. With --retired those from before now still do. Others have to be told: each
    machine keeps its own keys.
    """
    from lamina.core.digest import short  # pydantic: --help starts without

    done = ring().revoke(key, "retired" if retired else "compromised", reason)
    if json:
        print_json(_facts(done, mine=done.id in ring().owned()))
    else:
        older = "; older ones still do" if retired else ", older ones neither"
        print_text(f"signatures of {done.name} ({short(done.id)}) count no more{older}")


@app.command("export")
def export(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Name or id; one's own by default.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print a public key on one line, for others to trust."""
    keys = ring()
    if key is None:
        own = [each for each in keys.all() if each.id in keys.owned() and each.revoked is None]
        if len(own) != 1:
            raise UsageError(
                f"there are {len(own)} keys of your own", hint="name one: lamina key list"
            )
        found = own[0]
    else:
        found = keys.find(key)
    if json:
        print_json(_facts(found, mine=found.id in keys.owned()))
    else:
        print_text(found.line)


@app.command("policy")
def policy(json: options.Json = False) -> None:
    """Show the trust policy: who may sign what, and what happens to what they did not sign.

    It is the file policy.toml in the config folder (LAMINA_CONFIG); `lamina verify STACK` applies
    it to a stack. docs/sharing.md describes it.
    """
    from lamina.share.policy import FILE

    folder = environment.config()
    found = environment.trust().policy
    if json:
        print_json({"file": str(folder / FILE), **found.model_dump(mode="json")})
        return
    here = folder / FILE
    lines = [f"{here}{'' if here.exists() else ' (not there: the default)'}"]
    lines.append(f"asked before: {', '.join(found.check) or 'nothing'}")
    for number, rule in enumerate(found.rules, 1):
        fits = [f"{k} {v}" for k, v in (("name", rule.name), ("source", rule.source)) if v]
        fits += [f"author {rule.author}"] if rule.author else []
        who = ", ".join(rule.signers) if rule.signers else "any trusted key"
        lines.append(
            f"rule {number}: {' and '.join(fits) or 'everything'}: signed by {who}; "
            f"unsigned: {rule.unsigned}"
        )
    lines.append(f"everything else: signed by any trusted key; unsigned: {found.unsigned}")
    print_text("\n".join(lines))


def _read_line(file: Path) -> str:
    if str(file) == "-":
        return typer.get_text_stream("stdin").read(4096)
    try:
        with file.open("rb") as handle:
            return handle.read(4096).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error


def _facts(key: "KnownKey", *, mine: bool) -> dict[str, Any]:
    revoked = key.revoked.model_dump(mode="json") if key.revoked else None
    return {
        "id": key.id,
        "name": key.name,
        "own": mine,
        "added": key.added,
        "revoked": revoked,
        "line": key.line,
    }


def _state(key: "KnownKey", *, mine: bool) -> str:
    if key.revoked is not None:
        note = f": {key.revoked.note}" if key.revoked.note else ""
        return f"{key.revoked.reason} {key.revoked.at}{note}"
    return "own" if mine else "trusted"
