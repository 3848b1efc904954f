"""`lamina export`: hand a stack to other tools, with a check that it is the same model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", no_args_is_help=True)(export)


def export(
    stack: options.Stack,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="peft|hf|gguf|gguf-lora|ollama|vllm|mlx|diffusers|kohya|diffusers-base",
            help="peft: one concatenated adapter. hf: merged weights. gguf: merged, for llama.cpp. "
            "gguf-lora: an adapter for llama.cpp. ollama: GGUF and Modelfile. vllm: an adapter of "
            "one rank, and the launch line. mlx: an adapter for mlx-lm. Of image stacks diffusers, "
            "kohya: one LoRA file; diffusers-base: the base's pipeline.",
        ),
    ],
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="f32|f16|q8_0|q4_k",
            help="Number format of a GGUF model. [default: f16]",
            show_default=False,
        ),
    ] = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Keep an export that differs by more than the limit; its certificate says so.",
        ),
    ] = False,
    commercial: Annotated[
        bool,
        typer.Option("--commercial", help="For commercial use: stop where a licence bans that."),
    ] = False,
    despite: options.Despite = None,
    json: options.Json = False,
) -> None:
    """Write a stack for another tool, load it back, and compare it with the stack's own logits.

    \b
    lamina export agent ./agent-adapter --to peft
    lamina export agent ./agent-model --to hf
    lamina export agent ./agent-gguf --to gguf --precision q8_0
    lamina export agent ./agent-ollama --to ollama --precision q4_k

    The folder gets a certificate, lamina.json, that states the difference and the limit. Nothing
    is left behind when the check fails. It also names everybody whose work is in the stack, and
    what their licences ask.
    """
    from lamina.flows.adapters import export as run

    exported = run(
        environment.open_store(),
        stack,
        directory,
        to,
        Terminal(),
        precision=precision,
        accept_loss=accept_loss,
        commercial=commercial,
        despite=despite,
    )
    if json:
        print_json(exported)
        return
    print_text(f"{exported['directory']}: {exported['to']}, {_verdict(exported['parity'])}")
    if "note" in exported:
        print_text(f"  {exported['note']}")
    for line in exported["use"]:
        print_text(f"  {line}")


def _verdict(parity: dict[str, Any]) -> str:
    if parity["ok"] is None:
        return "not proved"
    mean = f", mean {parity['mean']:.1e}" if "mean" in parity else ""
    found = f"{parity['measure']}: {parity['value']:.1e}{mean} (limit {parity['limit']:.0e})"
    return found if parity["ok"] else f"BEYOND THE LIMIT, kept as told: {found}"
