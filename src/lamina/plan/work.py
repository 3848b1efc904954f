"""What a model's configuration alone says of the work on it: parameters, bytes, arithmetic.

Pure: the keys of a Hugging Face `config.json` in, numbers out; no weights, no torch. A decoder is a
stack of equal layers of linears between an embedding and a head; families differ in a few switches
(`_FAMILIES`). Parameters are counted to the last one; the tests compare with what transformers
builds from the same keys.

Arithmetic counts a multiplication and an addition as two operations, and what is useful only: what
any implementation has to do, as `benchmarks/train.py` counts it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import UsageError
from lamina.core.recipe import ALL_LINEAR
from lamina.plan.memory import Linear, Shapes

FORWARD_AND_BACK = 4
"""Operations a weight and token of a frozen linear: 2 forward, 2 for the gradient of its inputs."""
FULL = 6
"""The same where the weight is trained: 2 more for its own gradient (Kaplan et al.,
arXiv:2001.08361, section 2.1: C = 6 N D)."""
ADAM_BYTES = 16
"""Bytes a parameter of mixed-precision training with Adam: weight 2, gradient 2, and in float32 the
weight and two moments 12 (Rajbhandari et al., arXiv:1910.02054, section 3.1)."""
HALF = 2
"""Bytes of a number in float16 or bfloat16."""


# -- arithmetic ------------------------------------------------------------------------------------


def useful_flops(linears: int, head: int, tokens: int, supervised: int) -> int:
    """Operations of training a layer over a frozen base: forward, and back to the inputs.

    `linears`, `head`: their parameters. `tokens` go through the decoder, `supervised` of them
    through the head. The layer's own products (6 a factor's parameter and token) are not counted:
    they are what a cheaper layer would do without.
    """
    return FORWARD_AND_BACK * (linears * tokens + head * supervised)


def full_flops(linears: int, head: int, tokens: int) -> int:
    """Operations of training every weight, every token supervised: C = 6 N D."""
    return FULL * (linears + head) * tokens


# -- architectures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A linear that every decoder layer has."""

    name: str
    """The last part of its module's name."""
    inputs: int
    outputs: int
    bias: bool
    source: str
    """Which tensor it reads; linears that read one share it."""

    @property
    def parameters(self) -> int:
        """Weights, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Architecture:
    """A decoder as its configuration describes it."""

    family: str
    layers: int
    hidden: int
    wide: int
    queries: int
    keys: int
    head: int
    """Channels of an attention head."""
    vocabulary: int
    tied: bool
    parts: tuple[Part, ...]
    norms: int
    """Parameters of a layer's norms."""
    normed: int
    """Norms of a layer over the hidden channels."""
    head_norms: bool
    outside: int
    """Parameters beside layers, embedding and head: last norm, learned positions."""
    context: int | None = None
    """Longest sequence that it is said to take."""

    @property
    def linears(self) -> int:
        """Weights of all linears of the decoder."""
        return self.layers * sum(part.parameters for part in self.parts)

    @property
    def embedding(self) -> int:
        """Weights of the embedding; as many as the head's."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Every parameter; a head that is the embedding counts once."""
        biases = self.layers * sum(part.outputs for part in self.parts if part.bias)
        ends = self.embedding * (1 if self.tied else 2)
        return self.linears + biases + self.layers * self.norms + ends + self.outside

    def chosen(self, targets: Sequence[str] = (ALL_LINEAR,)) -> tuple[Part, ...]:
        """The linears that a recipe's targets name, by the last part of their names.

        Raises UsageError for targets that name nothing.
        """
        names = {part.name for part in self.parts}
        last = {target.rpartition(".")[2] for target in targets if target != ALL_LINEAR}
        if unknown := sorted(last - names):
            raise UsageError(
                "no linear of the base is named by these targets",
                faults=[repr(each) for each in unknown],
                hint=f"use {ALL_LINEAR!r} or suffixes such as {', '.join(sorted(names))}",
            )
        every = ALL_LINEAR in targets
        return tuple(part for part in self.parts if every or part.name in last)

    def trainable(self, rank: int, targets: Sequence[str] = (ALL_LINEAR,), above: float = 0) -> int:
        """Parameters of a layer of this rank: r (in + out) a linear. Raises UsageError."""
        layers = self.layers - int(above * self.layers)
        return layers * sum(rank * (part.inputs + part.outputs) for part in self.chosen(targets))

    def shapes(self, rank: int, targets: Sequence[str] = (ALL_LINEAR,), above: float = 0) -> Shapes:
        """For `plan.memory`, as lamina's own decoder trains it in torch. Raises UsageError."""
        first = int(above * self.layers)
        chosen = {part.name for part in self.chosen(targets)}
        linears = tuple(
            Linear(
                f"layers.{layer}.{part.name}",
                part.inputs,
                part.outputs,
                rank if layer >= first and part.name in chosen else 0,
                f"layers.{layer}.{part.source}",
            )
            for layer in range(self.layers)
            for part in self.parts
        )
        return Shapes(
            parameters=self.parameters,
            layers=self.layers,
            trained_layers=self.layers - first,
            hidden=self.hidden,
            wide=self.wide,
            queries=self.queries,
            keys=self.keys,
            head=self.head,
            vocabulary=self.vocabulary,
            linears=linears,
            head_norms=self.head_norms,
            fused=True,
            native=False,
            native_head=False,
            normed=self.normed,
        )


@dataclass(frozen=True)
class _Family:
    """What the configurations of a family leave unsaid."""

    normed: int = 2
    head_norms: bool = False
    qkv_bias: bool = False
    gated: bool = True
    fused: bool = False
    """Queries, keys and values, and gate and up, are one linear each."""
    wide_norms: bool = False
    """Head norms run over all heads at once."""
    tied: bool = False
    """Whether a configuration that does not say so means tied."""


_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(),
    "ministral": _Family(),
    "smollm3": _Family(tied=True),
    "granite": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(head_norms=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(normed=4, tied=True),
    "gemma3_text": _Family(normed=4, head_norms=True, tied=True),
    "phi3": _Family(fused=True),
    "olmo2": _Family(head_norms=True, wide_norms=True),
}
_OTHER_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
}
"""What GPT-2 calls things."""
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MIXTURES = ("num_local_experts", "num_experts", "n_routed_experts")


def families() -> tuple[str, ...]:
    """The `model_type`s whose configurations are known."""
    return (*sorted(_FAMILIES), "gpt2", "gpt_neox")


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The decoder that the keys of a `config.json` describe.

    Raises UsageError for families that are not known, for what lacks a size or has one that no
    model has, and for mixtures of experts.
    """
    given: Mapping[str, Any] = config
    if isinstance(given.get("text_config"), Mapping) and "hidden_size" not in given:
        given = {**config["text_config"]}  # a model that sees too: its decoder
    family = str(given.get("model_type", "?"))
    known = {_OTHER_NAMES.get(key, key): value for key, value in given.items()}
    if family not in families():
        raise UsageError(
            f"the shapes of {family!r} models are not known from their configuration",
            hint=f"known are {', '.join(families())}",
        )
    faults = [
        f"{key} is {known.get(key)!r}, not a positive number"
        for key in _NEEDED
        if not _size(known.get(key))
    ]
    faults += [
        f"{key}: a mixture of experts takes no layers"
        for key in _MIXTURES
        if (known.get(key) or 0) not in (0, 1)
    ]
    for key in ("intermediate_size", "num_key_value_heads", "head_dim"):
        if known.get(key) is not None and not _size(known[key]):
            faults.append(f"{key} is {known[key]!r}, not a positive number")
    if faults:
        raise UsageError("the configuration describes no model that is known", faults=faults)
    return _older(family, known) if family in ("gpt2", "gpt_neox") else _decoder(family, known)


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32


def _decoder(family: str, given: Mapping[str, Any]) -> Architecture:
    """Of the llama kind: norms without bias, rotary positions, a gated MLP."""
    kind = _FAMILIES[family]
    hidden, queries = given["hidden_size"], given["num_attention_heads"]
    keys = given.get("num_key_value_heads") or queries
    head = given.get("head_dim") or hidden // queries
    wide = given.get("intermediate_size") or 4 * hidden
    bias = bool(given.get("attention_bias", False))
    qkv = bias or kind.qkv_bias
    mlp = bool(given.get("mlp_bias", False))
    q, kv = queries * head, keys * head
    parts: tuple[Part, ...]
    if kind.fused:
        parts = (
            Part("qkv_proj", hidden, q + 2 * kv, qkv, "qkv_proj"),
            Part("o_proj", q, hidden, bias, "o_proj"),
            Part("gate_up_proj", hidden, 2 * wide, mlp, "gate_up_proj"),
            Part("down_proj", wide, hidden, mlp, "down_proj"),
        )
    else:
        parts = (
            Part("q_proj", hidden, q, qkv, "self_attn.in"),
            Part("k_proj", hidden, kv, qkv, "self_attn.in"),
            Part("v_proj", hidden, kv, qkv, "self_attn.in"),
            Part("o_proj", q, hidden, bias, "o_proj"),
            Part("gate_proj", hidden, wide, mlp, "mlp.in"),
            Part("up_proj", hidden, wide, mlp, "mlp.in"),
            Part("down_proj", wide, hidden, mlp, "down_proj"),
        )
    of_heads = (q + kv if kind.wide_norms else 2 * head) if kind.head_norms else 0
    tied = given.get("tie_word_embeddings")
    return Architecture(
        family=family,
        layers=given["num_hidden_layers"],
        hidden=hidden,
        wide=wide,
        queries=queries,
        keys=keys,
        head=head,
        vocabulary=given["vocab_size"],
        tied=kind.tied if tied is None else bool(tied),
        parts=parts,
        norms=kind.normed * hidden + of_heads,
        normed=kind.normed,
        head_norms=kind.head_norms,
        outside=hidden,
        context=given.get("max_position_embeddings"),
    )


def _older(family: str, given: Mapping[str, Any]) -> Architecture:
    """GPT-2 (GPT-3's shape too) and GPT-NeoX: norms and linears with biases, a plain MLP.

    `split_qkv` in the keys, which no library writes, names queries, keys and values one by one, as
    LoRA's paper adapts them (arXiv:2106.09685, section 4.2).
    """
    hidden, queries = given["hidden_size"], given["num_attention_heads"]
    wide = given.get("intermediate_size") or 4 * hidden
    positions = given.get("max_position_embeddings")
    names = ("c_attn", "c_proj", "c_fc", "c_proj")
    if family == "gpt_neox":
        names = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    attention: tuple[Part, ...] = (Part(names[0], hidden, 3 * hidden, True, names[0]),)
    if given.get("split_qkv"):
        attention = tuple(
            Part(name, hidden, hidden, True, "attn.in") for name in ("q_proj", "k_proj", "v_proj")
        )
    tied = given.get("tie_word_embeddings")
    return Architecture(
        family=family,
        layers=given["num_hidden_layers"],
        hidden=hidden,
        wide=wide,
        queries=queries,
        keys=queries,
        head=hidden // queries,
        vocabulary=given["vocab_size"],
        tied=family == "gpt2" if tied is None else bool(tied),
        parts=(
            *attention,
            Part(names[1], hidden, hidden, True, f"attn.{names[1]}"),
            Part(names[2], hidden, wide, True, names[2]),
            Part(names[3], wide, hidden, True, f"mlp.{names[3]}"),
        ),
        norms=4 * hidden,
        normed=2,
        head_norms=False,
        outside=2 * hidden + (positions * hidden if family == "gpt2" and positions else 0),
        context=positions,
    )


EXAMPLES: dict[str, Mapping[str, Any]] = {
    "gpt3-175b": {
        # Brown et al., arXiv:2005.14165, table 2.1; GPT-2's tokenizer, 2,048 positions
        "model_type": "gpt2",
        "n_embd": 12288,
        "n_layer": 96,
        "n_head": 96,
        "n_positions": 2048,
        "vocab_size": 50257,
        "split_qkv": True,
    },
    "llama2-7b": {
        # Touvron et al., arXiv:2307.09288; the released config.json
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "llama3-8b": {
        # Dubey et al., arXiv:2407.21783, table 3; the released config.json
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "gpt-neox-20b": {
        # Black et al., arXiv:2204.06745, table 1; the released config.json
        "model_type": "gpt_neox",
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
"""Shapes that are known by name, without a file."""
