"""`lamina serve`: stacks behind the OpenAI API."""

import contextlib
import json as json_module
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_text
from lamina.core.errors import MissingPartError, UsageError
from lamina.core.sizes import parse_size

if TYPE_CHECKING:
    from lamina.flows.handover import GgufHandover
    from lamina.store.layout import Store
    from lamina.web.settings import Settings

ENGINES = ("lamina", "vllm", "llamacpp")
OTHERS = {
    "vllm": ("vLLM", "pip install vllm (a GPU machine)"),
    "llamacpp": ("llama-server", "install llama.cpp (https://github.com/ggml-org/llama.cpp)"),
}
"""Each other engine's name, and how to get it."""
FORCED = 130
"""Exit code after a second signal."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    stacks: Annotated[
        list[str] | None,
        typer.Argument(metavar="STACK…", help="Serve only these; all that is in the store else."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Serve only what stands on this base.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen (127.0.0.1: this machine alone); wider needs a key.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65535, help="Port (8080); 0 takes any free one."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let pages of this origin read answers: https://example.org; repeat for more.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.1, help="Longest that an answer may take (600)."),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="How long answers may go on after SIGTERM (30)."
        ),
    ] = None,
    body_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest body of a request (4MB).")
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=16,
            help="Tokens whose keys and values are kept, of all requests together (65536).",
        ),
    ] = None,
    layer_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory for layers that are kept for the next request (no limit)."
        ),
    ] = None,
    layer_bits: Annotated[
        int | None,
        typer.Option(
            metavar="16|8",
            help="Keep layers in bfloat16 (16), or in bytes: half the memory, slightly rounded.",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Answer with so many processes of a Ray cluster; one for each machine where only "
            "--ray is given (needs lamina[ray]).",
        ),
    ] = None,
    ray: options.RayAddress = None,
    log_contents: Annotated[
        bool, typer.Option("--log-contents", help="Log prompts and answers too.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            metavar="lamina|vllm|llamacpp",
            help="Serve with lamina's own engine, or hand exported stacks to another one.",
        ),
    ] = "lamina",
) -> None:
    """Serve stacks over the OpenAI API: any stack is a model, all of them from one base in memory.
    Pages about stacks, runs and exams stand at the same address.

    \b
    lamina serve
    lamina serve support agent --port 9000
    lamina serve --host 0.0.0.0     (needs a key: lamina access add NAME)
    lamina serve --ray 10.0.0.1:6379 --replicas 8

    \b
    curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"model": "support", "messages": [{"role": "user", "content": "Hello"}]}'

    Models are names (support), versions (support:v2), bases and digests, as they stand when a
    request arrives. Requests are logged to stderr, a line of JSON each, without what was said.
    SIGTERM lets running answers finish; a second one does not. See docs/serving.md.

    With replicas this command listens, and each stack is asked where its layers and the beginnings
    of its texts are in memory already; options for memory hold for each replica. Machines share the
    store: a folder mounted at the same place. Answers of a replica that dies go on in another one.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine!r}: known are {', '.join(ENGINES)}")
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "cors": tuple(cors) if cors else None,
        "timeout_seconds": timeout,
        "drain_seconds": drain_seconds,
        "body_bytes": None if body_size is None else parse_size(body_size),
        "log_contents": log_contents or None,
    }
    spread = replicas is not None or ray is not None
    if spread and engine != "lamina":
        raise UsageError(
            f"--engine {engine} answers by itself: --replicas and --ray are for lamina's own",
            hint="leave them out, or --engine",
        )
    store = environment.open_store()
    try:
        from lamina.web.keys import FILE
        from lamina.web.settings import Settings
    except ImportError as error:
        raise _without(error) from None
    settings = Settings(
        keys_file=store.root / FILE,
        log=_log,
        **{name: value for name, value in given.items() if value is not None},
    )
    if engine != "lamina":
        _hand_over(engine, store, list(stacks or ()), base, settings)
        return
    if layer_bits not in (None, 8, 16):
        raise UsageError(f"--layer-bits {layer_bits}: 16 or 8")
    limits = {
        "layer_bits": layer_bits,
        "cache_tokens": cache_tokens,
        "layer_bytes": None if layer_memory is None else parse_size(layer_memory),
    }
    crew = (replicas, environment.ray_address(ray)) if spread else None
    _serve(store, list(stacks or ()), base, settings, limits, crew)


def _serve(
    store: "Store",
    stacks: list[str],
    base: str | None,
    settings: "Settings",
    limits: Mapping[str, int | None],
    crew: tuple[int | None, str | None] | None,
) -> None:
    """With lamina's own engine: in this process, or in replicas (how many, on which cluster)."""
    try:
        from lamina.web.app import create_app
        from lamina.web.server import Server, bind, url_of
    except ImportError as error:
        raise _without(error) from None
    from lamina.flows.hosting import Host, with_limits
    from lamina.flows.replicas import Replicas
    from lamina.serve.engine import Limits
    from lamina.stack.resolve import resolve

    given = Limits(**{name: value for name, value in limits.items() if value is not None})
    replicas = None if crew is None else Replicas(store, given, *crew)
    make = with_limits(given) if replicas is None else replicas.make
    host = Host(store, make, stacks=stacks, base=base, trust=environment.trust())
    names = [model.id for model in host.models()]
    if not names:
        raise UsageError("there is nothing to serve", hint="lamina base pull smollm2-135m")
    draws = resolve(store, names[0]).draws
    out = sys.stdout  # while there are replicas, what is printed goes to stderr
    with bind(settings) as bound, contextlib.ExitStack() as there:
        Terminal().say(f"loading {', '.join(host.sure()) or 'a base when it is first asked'}")
        if replicas is not None:
            watch = there.enter_context(_stopping())
            there.enter_context(replicas.there(host.sure(), Terminal().say, watch))
        host.load_sure()
        if replicas is not None:
            watch()
        url = url_of(bound)

        def ready() -> None:
            with contextlib.redirect_stdout(out):
                print_text(_hello(url, names, draws=draws))
                out.flush()

        orderly = Server(create_app(host, settings), host, settings, ready).serve_on(bound)
        if not orderly:
            if replicas is not None:
                replicas.abandon()
            sys.stderr.flush()
            os._exit(FORCED)  # threads that still answer would be waited for


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM, kept for a call of what this gives, which raises KeyboardInterrupt then:
    raised amid Ray's calls it can get lost there. The server has handlers of its own."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked:
            os._exit(FORCED)
        asked.append(number)

    def watch() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hello(url: str, names: list[str], *, draws: bool) -> str:
    """What people read when it is ready; `draws`: whether the first of the names does."""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    asked = (
        {"prompt": "a red fox"} if draws else {"messages": [{"role": "user", "content": "Hello"}]}
    )
    where = "images/generations" if draws else "chat/completions"
    question = {"model": names[0]} | asked
    return (
        f"serving {shown}\n"
        f"ready: {url}/v1, with pages about it at {url}/\n"
        f"  curl {url}/v1/{where} -H 'content-type: application/json' \\\n"
        f"    -d {shlex.quote(json_module.dumps(question))}"
    )


def _log(record: Mapping[str, Any]) -> None:
    """A line of JSON on stderr."""
    sys.stderr.write(json_module.dumps(record) + "\n")
    sys.stderr.flush()


def _without(error: ImportError) -> MissingPartError:
    return MissingPartError(
        f"serving needs {error.name}, which is not installed", hint="pip install 'lamina[serve]'"
    )


def _hand_over(
    engine: str, store: "Store", stacks: list[str], base: str | None, settings: "Settings"
) -> None:
    """Export, then become the other engine; or say what to run."""
    from lamina.flows import handover

    if not settings.loopback:
        raise UsageError(
            f"{engine} knows nothing of lamina's keys, so it is started for this machine alone",
            hint="leave --host out, and put what you trust before it",
        )
    if engine == "llamacpp":
        files = handover.prepare_gguf(store, stacks, base, Terminal(), environment.trust())
        command = handover.llamacpp_command(files, settings.host, settings.port)
        Terminal().say(_choices(files))
    else:
        given = handover.prepare(store, stacks, base, Terminal(), environment.trust())
        command = handover.vllm_command(given, settings.host, settings.port)
    found = shutil.which(command[0])
    if found is None:
        program, install = OTHERS[engine]
        raise MissingPartError(
            f"{program} is not installed; the stacks are exported, and this would serve them:",
            faults=[shlex.join(command)],
            hint=f"{install}, or leave --engine out",
        )
    Terminal().say(shlex.join(command))
    os.execv(found, command)


def _choices(files: "GgufHandover") -> str:
    """How a request chooses its stack, which llama.cpp does by place and not by model."""
    from lamina.flows.handover import llamacpp_choice

    if not files.adapters:
        return f"serving {files.base_name}"
    ids = [f"  {place}  {name}" for place, (name, _) in enumerate(files.adapters)]
    first = files.adapters[0][0]
    return "\n".join(
        [
            "ids of the stacks:",
            *ids,
            "a request chooses by a scale for every id; one without gets all stacks at once:",
            f'  {first}: "lora": {json_module.dumps(llamacpp_choice(files, 0))}',
            f'  {files.base_name}: "lora": {json_module.dumps(llamacpp_choice(files, None))}',
        ]
    )
