"""Processes of their own that do the same thing at the same moment.

They are forked from a process that has loaded torch and no more: a fresh interpreter for each
would spend seconds on importing it.
"""

import multiprocessing
from pathlib import Path

SECONDS = 120
"""Longest that any of them may take."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "lamina.flows.job", "lamina.flows.examinee"])


def at_once(task, *arguments):
    """What `task(*each)` returns in a process for each of `arguments`; all begin together."""
    barrier = _CONTEXT.Barrier(len(arguments))
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in arguments]
    started = [
        _CONTEXT.Process(target=_child, args=(barrier, answer, task, each))
        for (_, answer), each in zip(pipes, arguments, strict=True)
    ]
    for process in started:
        process.start()
    for _, answer in pipes:
        answer.close()  # the child's: where it dies, there is an end of file instead of an answer
    try:
        return [_received(question) for question, _ in pipes]
    finally:
        for process, (question, _) in zip(started, pipes, strict=True):
            question.close()
            process.join(SECONDS)
            code = process.exitcode
            process.kill()
            process.join()
            process.close()
            assert code == 0


def _received(question):
    assert question.poll(SECONDS), f"no answer within {SECONDS} seconds"
    return question.recv()


def _child(barrier, answer, task, arguments):
    import torch

    torch.set_num_threads(1)
    barrier.wait(SECONDS)
    answer.send(task(*arguments))


# -- tasks, which a child finds by their names -----------------------------------------------------


def trained(root: Path, rows: str):
    """Layer, name and whether it was there already, of a quick request."""
    from lamina.flows import learn
    from lamina.store.layout import Store
    from tests.flows.world import Said, request

    store, said = Store.open(root, create=False), Said()
    done = learn.execute(store, learn.prepare(store, request(rows), said), said)
    kept = any(text.startswith("nothing changed") for text in said.sentences)
    return [done.layer.digest, str(done.name), kept]


def gone_on_with(root: Path, *ids: str):
    """The name that each of these runs gives, or the error that it ends in."""
    from lamina.core.errors import LaminaError
    from lamina.core.report import Silent
    from lamina.flows import learn, runs
    from lamina.store.layout import Store

    store, found = Store.open(root, create=False), []
    for each in ids:
        try:
            found.append(str(learn.execute(store, runs.find(store, each), Silent()).name))
        except LaminaError as error:
            found.append(f"{type(error).__name__} {error.message}")
    return found
