"""Adapters made by other tools on the spot, and what became of them here."""

import torch
from peft import LoraConfig, get_peft_model

from lamina.export.parity import logits_of
from lamina.flows.importing import Request, take_in
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.flows.world import Said
from tests.stacks import base_model
from tests.tolerance import TOLERANCE

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]


def trained(store, *, strength=0.2, steps=3, model=None, **fields):
    """A model that PEFT wrapped and trained a little."""
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | fields
    model = base_model(store) if model is None else model
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=strength)
    for _ in range(steps):
        ids = torch.tensor([PROMPTS[0]])
        optimiser.zero_grad()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    return wrapped.eval()


def taken(store, source, on="pico", name="taken", **how):
    """What `take_in` returns, with all that was said."""
    said = Said()
    done = take_in(store, Request(str(source), on, name, **how), said)
    return done | {"said": "\n".join(said.sentences)}


def logits(store, name="taken"):
    compiled = compile_stack(store, resolve(store, name), dtype=torch.float32)
    return logits_of(compiled.model, PROMPTS)


def factors(store, name="taken"):
    from lamina.stack.compile import stored_factors

    return stored_factors(store, resolve(store, name).layers[-1].digest)


def contents(store):
    """Every object and name of a store."""
    blobs = sorted(path.name for path in store.blobs_dir.iterdir())
    return blobs, sorted(store.names()), (store.root / "index.json").read_bytes()


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE[torch.float32])


def difference(found, expected):
    """Largest difference, relative to the largest logit."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )
