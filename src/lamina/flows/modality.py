"""What differs between stacks that talk and stacks that draw, in one place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamina.data.example import Message
from lamina.exams.examinee import Examinee
from lamina.export.parity import logits_of
from lamina.flows import painting
from lamina.flows.examinee import StackExaminee
from lamina.flows.questions import carried, probe_prompts
from lamina.stack.compile import Compiled, compile_stack, device_at_hand
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store

Probe = tuple[tuple[Message, ...], tuple[str, ...]] | str
"""What a stack is asked so as to be told from another: a conversation and tools, or a caption."""
PROBE = (Message(role="user", content="Name three colours and one number."),)
"""What a stack that talks is asked in proofs, beside its exams' own questions."""
PROBE_CAPTION = "a red circle on white"
_CAPTIONS_AN_EXAM = 2


def examinee_of(store: Store, stack: ResolvedStack) -> Examinee:
    """A stack, loaded, that can be examined. Images are looked at in float32: their differences
    are small, and so are the models."""
    if stack.draws:
        compiled = compile_stack(store, stack, dtype=torch.float32, device=device_at_hand())
        return painting.PaintingExaminee(compiled)
    return StackExaminee(compile_stack(store, stack, device=device_at_hand()))


def probes_of(store: Store, *stacks: ResolvedStack) -> list[Probe]:
    """What stacks over one base are asked: something, and questions of the exams they carry."""
    found: dict[Probe, None] = {}
    for stack in stacks:
        if stack.draws:
            found[PROBE_CAPTION] = None
            for exam in carried(store, stack.layers):
                for item in (exam.items or ())[:_CAPTIONS_AN_EXAM]:
                    if item.example and item.example.text:
                        found[item.example.text] = None
        else:
            found[PROBE, ()] = None
            found |= dict.fromkeys(probe_prompts(store, stack))
    return list(found)


def sayings(compiled: Compiled, probes: Sequence[Probe]) -> list[Tensor]:
    """What a stack says to each probe, float32 (positions, numbers): logits, or noise."""
    captions = [each for each in probes if isinstance(each, str)]
    if captions:
        return painting.sayings(compiled, captions)
    prompts = [compiled.format.prompt_ids(*each) for each in probes if not isinstance(each, str)]
    return logits_of(compiled.model, prompts)
