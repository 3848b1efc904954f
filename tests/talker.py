"""A pico base that talks: trained on the spot, all of it, on lists and chats of random words.

Its words come in any order, so what it says is readable and hardly ever what was said before. To
a question it gives a short answer that ends; where there is a tool, it calls it. Same arguments,
same weights on one machine.
"""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lamina.bases.load import load
from lamina.data.example import Example, Message, ToolCall
from lamina.tokens.mask import encode_all
from lamina.tokens.template import ChatFormat
from tests.pico import pico_base

WORDS = ("user", "asks", "question", "answers", "short", "capital", "system", "tool", "name")
WORDS += ("call", "function", "right", "return", "result", "plus", "minus", "times", "equals")
TOOL = '{"type":"function","function":{"name":"add","parameters":{"properties":{"a":{},"b":{}}}}}'
CALL = ToolCall(name="add", arguments='{"a":1}')
_LENGTH, _ROWS = 256, 8


def question(chance: random.Random) -> str:
    """Nine to twelve words in any order."""
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(9, 12))) + "?"


def chat(asked: str, answer: str = "fine", **fields) -> Example:
    """A row of one question."""
    return Example(
        messages=(
            Message(role="user", content=asked),
            Message(role="assistant", content=answer, **fields),
        )
    )


def call(asked: str) -> Example:
    """A row that calls the tool."""
    return chat(asked, "", tool_calls=(CALL,)).model_copy(update={"tools": (TOOL,)})


def talking_base(directory: Path, *, steps: int = 140, seed: int = 0) -> Path:
    """Write the base into `directory` and return it; some seconds."""
    source = pico_base(directory, hidden=64, layers=2, seed=seed)
    loaded = load(source, dtype=torch.float32)
    chance = random.Random(seed)
    stream = [token for ids in _sequences(ChatFormat(loaded.tokenizer), chance) for token in ids]
    parameters = [p.requires_grad_() for p in loaded.model.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, (steps - step) / (0.5 * steps))
        starts = [chance.randrange(len(stream) - _LENGTH) for _ in range(_ROWS)]
        ids_BT = torch.tensor([stream[at : at + _LENGTH] for at in starts])
        optimiser.zero_grad()
        loaded.model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        optimiser.step()
    weights = source / "model.safetensors"
    trained = loaded.model.state_dict()
    tensors = {name: trained[name].detach().contiguous() for name in load_file(weights)}
    save_file(tensors, weights, metadata={"format": "pt"})
    return source


def _sequences(fmt: ChatFormat, chance: random.Random) -> list[list[int]]:
    """Lists of questions, and chats that answer one, as the program tokenises them."""
    rows = []
    for _ in range(200):
        for lead in ("", "Functions: add(a, b)\n"):
            listed = "".join(f"{lead}Question: {question(chance)}\n\n" for _ in range(5))
            rows.append(Example(text=listed))
        rows += [chat(question(chance), f"the {chance.choice(WORDS)} is short") for _ in range(4)]
        rows += [call(question(chance)) for _ in range(2)]
    chance.shuffle(rows)
    return [row.ids.tolist() for row in encode_all(rows, fmt, max_length=1024).rows]
