"""Processes that torch.distributed joins over this machine's own interface.

Forked from a process that has loaded torch and no more. A task is a function of a module, called
with its worker's rank and the same plain values everywhere.
"""

import multiprocessing
import os
import traceback
from datetime import timedelta

SECONDS = 300
"""Longest that any of them may take."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "lamina.flows.job", "torch.distributed.fsdp"])


def joined(size, folder, task, *arguments):
    """What `task(rank, *arguments)` returns in each of `size` workers; AssertionError with what was
    raised, where one of them raises."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    started, pipes = [], []
    for rank in range(size):
        question, answer = _CONTEXT.Pipe(duplex=False)
        given = (answer, rank, size, str(meeting), task, arguments)
        started.append(_CONTEXT.Process(target=_child, args=given))
        started[-1].start()
        answer.close()  # the child's: where it dies, there is an end of file instead of an answer
        pipes.append(question)
    found = []
    try:
        for question in pipes:
            assert question.poll(SECONDS), f"no answer within {SECONDS} seconds"
            found.append(question.recv())
    finally:
        for process in started:
            if len(found) < size:
                process.kill()
            process.join(SECONDS)
            process.kill()
            process.join()
            process.close()
    for fault, _ in found:
        assert not fault, fault
    return [answer for _, answer in found]


def _child(pipe, rank, size, meeting, task, arguments):
    import torch
    import torch.distributed as distributed

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size,
        timeout=timedelta(seconds=SECONDS),
    )  # fmt: skip
    try:
        pipe.send(("", task(rank, *arguments)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    distributed.destroy_process_group()
