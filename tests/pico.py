"""Pico models, built on the spot: a random model of a few 10,000 parameters with a real tokenizer.

How to use it, from any test:

    from tests.pico import pico_base

    @pytest.fixture(scope="session")
    def base(tmp_path_factory):
        return pico_base(tmp_path_factory.mktemp("pico") / "llama")

    loaded = lamina.bases.load.load(base, dtype=torch.float32)

The folder has the files of a pulled base: config.json, generation_config.json, model.safetensors,
tokenizer.json, tokenizer_config.json, chat_template.jinja. Same arguments, same bytes. Builds in
well under a second. The tokenizer is byte-level BPE: any text round-trips; ids 0..4 are
the five SPECIALS; a turn ends at `<|im_end|>` (eos).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>", "<bos>")
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SMALLEST_VOCAB = len(SPECIALS) + 256
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_CORPUS = (
    "the user asks a question and the assistant answers it in one short sentence",
    "what is the capital of France? The capital of France is Paris.",
    'system user assistant tool {"name": "add", "arguments": {"a": 1, "b": 2}}',
    "call the function with the right arguments and return the result of the tool",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 20 30 40 50 100 1000 plus minus times equals is",
)


def pico_base(
    directory: Path,
    *,
    family: str = "llama",
    vocab: int = 384,
    hidden: int = 64,
    layers: int = 2,
    seed: int = 0,
    chat_template: str | None = CHATML,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
    **config: Any,
) -> Path:
    """Write a pico base into `directory` (made, parents too) and return it.

    `family` is one of FAMILIES; `vocab` >= SMALLEST_VOCAB is both the tokenizer's size and the
    embedding's rows; `hidden` a multiple of 16; 4 query heads, 2 key-value heads, MLP 2 x hidden;
    `chat_template=None` leaves the file out; `config` overrides any configuration key.
    Weights are normal(0, 1/sqrt(fan_in)), so logits are far from uniform and differ by position.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, vocab=vocab, chat_template=chat_template)
    model_config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": tied,
            "bos_token_id": SPECIALS.index("<bos>"),
            "eos_token_id": SPECIALS.index("<|im_end|>"),
            "pad_token_id": SPECIALS.index("<pad>"),
        }
        | config,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(model_config)
    _fill(model, seed)
    tied_away = set(model.all_tied_weights_keys) if tied else set()
    tensors = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in sorted(model.state_dict().items())
        if name not in tied_away
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    written = model_config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        written.pop(key, None)
    written |= {
        "architectures": [type(model).__name__],
        "dtype": str(dtype).removeprefix("torch."),
    }
    _write_json(directory / "config.json", written)
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": 4, "eos_token_id": 2, "pad_token_id": 3},
    )
    return directory


def write_tokenizer(directory: Path, *, vocab: int, chat_template: str | None) -> None:
    """Train the byte-level BPE and write tokenizer.json, tokenizer_config.json and the template."""
    if vocab < SMALLEST_VOCAB:
        raise ValueError(f"vocab must be at least {SMALLEST_VOCAB}, not {vocab}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[AddedToken(text, special=True) for text in SPECIALS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            min_frequency=1,
            show_progress=False,
        ),
    )
    spare = range(tokenizer.get_vocab_size(), vocab)
    tokenizer.add_tokens([AddedToken(f"<reserved{i}>", special=True) for i in spare])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<|im_end|>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
        },
    )
    if chat_template is not None:
        (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _fill(model: torch.nn.Module, seed: int) -> None:
    """Draw every matrix from normal(0, 1/sqrt(fan_in)); vectors (norms, biases) stay as made."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 2:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn / parameter.shape[1] ** 0.5)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
