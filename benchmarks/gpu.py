"""The training step on a GPU at several sizes, beside its peers: tokens a second, and memory.

Models of llama's shape with random weights (speed does not depend on them) at the sizes of 135M, 1B
and 8B parameters (`135m_2k`: in steps of lamina's default 2,048 tokens); rows of random tokens,
half of them supervised; rank 16 on all linears, bfloat16.

- `lamina`: the loop's own step with its fused decoder.
- `peft`: PEFT's layers in transformers' model, SDPA, all logits, in a bare loop.
- `liger`: the same with Liger-Kernel's fused layers and loss.
- `trl`: TRL's SFTTrainer as it comes (gradient checkpointing); `trl_tuned`: without checkpointing.
- `unsloth`: Unsloth's patched model with its own LoRA, where it can be loaded.

One process each. `mfu`: useful arithmetic a second (4 x the linears' parameters a token, 4 x the
head's a supervised one) over the fastest bfloat16 product measured in the same run. `peak_bytes`:
the most that torch held on the GPU. A contestant that fails says why.
"""

import json
import subprocess
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import ROOT, emit, parser, say
from lamina.bases import families
from lamina.core.recipe import Recipe
from lamina.lowrank.attach import Attachment
from lamina.tokens.batch import Batch, collate
from lamina.tokens.mask import Encoded
from lamina.train.fused import fuse
from lamina.train.graphs import graphs_of
from lamina.train.job import fresh_factors
from lamina.train.passes import backward

RANK, RATE, WARM = 16, 3e-4, 4


class Shape(NamedTuple):
    """A model of llama's kind."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    tokens: int
    """In one step."""
    row: int
    """Tokens of a row."""


SHAPES = {
    "pico": Shape(64, 128, 2, 2, 1, 256, 64, 16),
    "135m": Shape(576, 1536, 30, 9, 3, 49152, 16384, 512),
    "135m_2k": Shape(576, 1536, 30, 9, 3, 49152, 2048, 256),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, 8192, 512),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, 8192, 1024),
}


def model_of(shape: Shape, device: str) -> Any:
    """Random weights in bfloat16, made where they are used."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys, tie_word_embeddings=shape.hidden < 4096,
        max_position_embeddings=4096,
    )  # fmt: skip
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def rows_of(shape: Shape) -> list[Encoded]:
    """Rows of one length, the second half of each supervised."""
    draw = np.random.default_rng(0)
    mask = np.arange(shape.row) >= shape.row // 2
    return [
        Encoded(draw.integers(shape.vocabulary, size=shape.row, dtype=np.int32), mask, str(index))
        for index in range(shape.tokens // shape.row)
    ]


def batch_of(shape: Shape) -> Batch:
    """The same rows as tensors."""
    return collate(rows_of(shape), 0)


def labels_of(batch: Batch) -> torch.Tensor:
    """As transformers wants them: -100 where nothing is supervised."""
    labels = torch.full_like(batch.ids, -100)
    labels.view(-1)[batch.positions + 1] = batch.targets
    return labels


# -- contestants: from a shape to seconds a step ---------------------------------------------------


def lamina(shape: Shape, device: str, steps: int) -> float:
    """One step of the loop's own kind."""
    model, rows = model_of(shape, device), rows_of(shape)
    linears = families.linears(model)
    attachment = Attachment(model, fresh_factors(linears, Recipe(rank=RANK)), linears)
    decoder, why = fuse(model)
    assert decoder is not None, why
    say(f"kernels: {decoder.kernels}")
    optimiser = torch.optim.AdamW([attachment.flat], lr=RATE, fused=True)
    graphs, labels = graphs_of(decoder), [None] * len(rows)

    def step() -> None:
        attachment.zero_grad()
        backward(decoder, rows, labels, 0, shape.tokens, graphs=graphs)
        torch.nn.utils.clip_grad_norm_([attachment.flat], 1.0)
        optimiser.step()

    return seconds(step, device, steps)


def peft(shape: Shape, device: str, steps: int, liger: bool = False) -> float:
    """PEFT's layers in a bare loop."""
    from peft import get_peft_model

    model = model_of(shape, device)
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    return bare_loop(get_peft_model(model, _lora()), shape, steps)


def liger(shape: Shape, device: str, steps: int) -> float:
    """PEFT's layers, Liger's kernels."""
    return peft(shape, device, steps, liger=True)


def bare_loop(found: Any, shape: Shape, steps: int) -> float:
    """A model with its own loss, trained as it stands."""
    parameters = [p for p in found.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    device, batch = parameters[0].device, batch_of(shape)
    ids, labels = batch.ids.to(device), labels_of(batch).to(device)
    found.train()

    def step() -> None:
        optimiser.zero_grad()
        found(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return seconds(step, device.type, steps)


def trl(shape: Shape, device: str, steps: int, **changes: Any) -> float:
    """TRL's trainer; the clock runs from the end of one step to the end of the next."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **given: Any) -> None:
            _wait(device)
            ends.append(time.perf_counter())

    batch = batch_of(shape)
    rows = zip(batch.ids.tolist(), labels_of(batch).tolist(), strict=True)
    one = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=steps + WARM, report_to="none", save_strategy="no",
            logging_strategy="no", learning_rate=RATE, bf16=device == "cuda",
            use_cpu=device == "cpu", disable_tqdm=True, per_device_train_batch_size=len(one),
            dataset_kwargs={"skip_prepare_dataset": True}, max_length=shape.row, **changes,
        )  # fmt: skip
        SFTTrainer(
            model=model_of(shape, device), args=config, train_dataset=Dataset.from_list(one),
            processing_class=_tokenizer(shape), peft_config=_lora(), callbacks=[Watch()],
        ).train()  # fmt: skip
    return median(b - a for a, b in zip(ends[WARM - 1 :], ends[WARM:], strict=False))


def trl_tuned(shape: Shape, device: str, steps: int) -> float:
    """Without gradient checkpointing."""
    return trl(shape, device, steps, gradient_checkpointing=False)


def unsloth(shape: Shape, device: str, steps: int) -> float:
    """Unsloth loads from a folder: the same random weights are saved for it."""
    import tempfile

    from unsloth import FastLanguageModel  # first: it patches what is imported after it

    with tempfile.TemporaryDirectory() as folder:
        model_of(shape, device).save_pretrained(folder)
        _tokenizer(shape).save_pretrained(folder)
        model, _ = FastLanguageModel.from_pretrained(
            folder, dtype=torch.bfloat16, load_in_4bit=False, max_seq_length=shape.row
        )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, target_modules=names, lora_dropout=0,
        use_gradient_checkpointing=False,
    )  # fmt: skip
    return bare_loop(found, shape, steps)


CONTESTANTS = {
    "lamina": lamina, "peft": peft, "liger": liger, "trl": trl, "trl_tuned": trl_tuned,
    "unsloth": unsloth,
}  # fmt: skip


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0)


def _tokenizer(shape: Shape) -> Any:
    """Words that are numbers: trainers want some tokenizer, these rows need none."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(min(shape.vocabulary, 1000))}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")),
        pad_token="0", eos_token="1", bos_token="2", unk_token="0",
    )  # fmt: skip


def seconds(step: Any, device: str, steps: int) -> float:
    """Median time of a step, after some to warm up."""
    times = []
    for number in range(steps + WARM):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        if number >= WARM:
            times.append(time.perf_counter() - began)
    return median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# -- the run ---------------------------------------------------------------------------------------


def peak_rate(device: str, size: int) -> float:
    """Operations a second of the fastest of three bfloat16 products of this size."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device, 5) for _ in range(3))


def useful(shape: Shape) -> float:
    """Operations of one step that a frozen base cannot do without."""
    model, batch = model_of(shape, "meta"), batch_of(shape)
    inside = sum(linear.weight.numel() for linear in families.linears(model).values())
    head = families.head(model).weight.numel()
    return 4.0 * (inside * int(batch.lengths.sum()) + head * len(batch.targets))


def measured(name: str, device: str, given: Any, rate: float) -> dict[str, Any]:
    """Every contestant on one shape, each in a process of its own."""
    shape, row = SHAPES[name], {}
    work = useful(shape)
    for contestant in given.contestants.split(","):
        result = _run(contestant, name, device, given.steps)
        if "seconds" in result:
            took = result["seconds"]
            result = {
                "tokens_per_second": round(shape.tokens / took, 1),
                "mfu": round(work / took / rate, 4),
                "peak_bytes": result["peak_bytes"],
            }
        row[contestant] = result
        say(f"{name} {contestant}: {result}")
    ours = row["lamina"].get("tokens_per_second")
    speed = {
        f"speed_vs_{other}": round(ours / result["tokens_per_second"], 2)
        for other, result in row.items()
        if ours and other != "lamina" and "tokens_per_second" in result
    }
    return row | speed


def _run(contestant: str, shape: str, device: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--contestant", contestant]
    command += ["--shapes", shape, "--steps", str(steps), "--device", device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["died without a word"]
        return {"failed": lines[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure and print; or be one contestant."""
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="a pico model, on any device")
    arguments.add_argument("--shapes", default="135m_2k,135m,1b,8b")
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--contestants", default=",".join(CONTESTANTS))
    arguments.add_argument("--contestant", choices=CONTESTANTS, help="inside: run one")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = arguments.parse_args()
    device: str = given.device
    if given.contestant:
        took = CONTESTANTS[given.contestant](SHAPES[given.shapes], device, given.steps)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        print(json.dumps({"seconds": took, "peak_bytes": peak}))
        return
    if device == "cpu" and not given.quick:
        raise SystemExit("there is no GPU here; --quick runs a pico model on the processor")
    if given.quick:
        given.shapes, given.steps, given.contestants = "pico", 2, "lamina,peft"
    rate = peak_rate(device, 256 if given.quick else 8192)
    on = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    for name in given.shapes.split(","):  # a row each: GPUs are rented by the minute
        shapes = {name: measured(name, device, given, rate)}
        emit("gpu", {"device": on, "product_flops": rate, "shapes": shapes}, keep=given.keep)


if __name__ == "__main__":
    main()
