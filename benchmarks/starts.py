"""Ways to start a layer's factors that `methods.py` compares with the plain one.

Each gives factors of the plain parameters, and where B is not zero at the start, the weights that
are left when s B A is taken out of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lamina.core.recipe import Recipe
from lamina.core.seeds import derive
from lamina.lowrank.attach import attached
from lamina.lowrank.inputs import inputs_of
from lamina.lowrank.maths import Factors, LayerFactors, compose, init_factors
from lamina.tokens.batch import Batch
from lamina.train.fused import fuse
from lamina.train.job import fresh_factors
from lamina.train.objective import predicting, token_losses

OVERSAMPLED = 4
"""Columns of a gradient's sketch, as a multiple of the rank (Halko et al., arXiv:0909.4061)."""
_ROUNDS = 3
"""Of subspace iteration."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run begins."""

    factors: dict[str, Factors]
    weights: dict[str, Tensor] | None = None
    """By name, what stands for the base's weights in training; None: they do."""

    def layer(self, trained: LayerFactors) -> dict[str, Factors]:
        """What training adds to the base's own weights: s (B A - B0 A0) at twice the rank where
        something was taken out of them, exact."""
        if self.weights is None:
            return dict(trained)
        return compose([trained, {n: part.weighted(-1.0) for n, part in self.factors.items()}])


@dataclass(frozen=True, eq=False)
class Given:
    """What a start may look at."""

    model: nn.Module
    linears: Mapping[str, nn.Linear]
    recipe: Recipe
    batches: Sequence[Batch]
    """The first batches that the run will learn from."""


def plain(given: Given) -> Start:
    """A at random, B = 0."""
    return Start(fresh_factors(given.linears, given.recipe))


def inputs(given: Given) -> Start:
    """A along the principal inputs of each linear, B = 0 (EVA, arXiv:2410.07170)."""
    grams: dict[str, Tensor] = {}
    with torch.inference_mode():
        for batch in given.batches:
            real = (torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]).flatten()
            with inputs_of(given.linears) as seen:
                predicting(given.model, batch)
            first: dict[int, str] = {}
            leader = {name: first.setdefault(x.data_ptr(), name) for name, x in seen.items()}
            for name in set(leader.values()):
                x_NI = seen[name][real].float()
                grams[name] = grams.get(name, 0) + x_NI.T @ x_NI
    found = {n: _leading(gram, given.recipe, n) for n, gram in grams.items()}
    return Start(_with_a(given, {name: found[leader[name]] for name in given.linears}))


def gradient(given: Given) -> Start:
    """A along the principal inputs of the first gradient of W, B = 0 (one side of LoRA-GA,
    arXiv:2407.05000)."""
    found = {}
    for name, sketch_KI in sketches(given).items():
        _, _, v_KI = torch.linalg.svd(sketch_KI, full_matrices=False)
        found[name] = v_KI[: given.recipe.rank]
    return Start(_with_a(given, found))


def sketches(given: Given) -> dict[str, Tensor]:
    """name -> (K, I): P G for the gradient G of W (O, I) and random orthonormal rows P (K, O).

    It is what a layer with A = 0 and B = P^T has as A's gradient, so it needs no gradient of W.
    """
    rank = given.recipe.rank
    layer = {}
    for name, linear in given.linears.items():
        generator = torch.Generator().manual_seed(derive(given.recipe.seed, "sketch", name))
        width = min(OVERSAMPLED * rank, linear.out_features)
        b_OK, _ = torch.linalg.qr(torch.randn(linear.out_features, width, generator=generator))
        layer[name] = Factors(torch.zeros(width, linear.in_features), b_OK, 1.0)
    with attached(given.model, layer, given.linears) as attachment:
        decoder = fuse(given.model)[0] or given.model
        for batch in given.batches:
            token_losses(decoder, batch).mean().backward()
        return {n: m.a.grad.clone() for n, m in attachment.modules.items() if m.a.grad is not None}


def gradient_ranks(given: Given) -> Start:
    """Random A, B = 0; ranks by how much of the first gradient each direction holds a parameter,
    as many parameters as plain (AdaLoRA's aim, arXiv:2303.10512, EVA's means)."""
    rank, scored = given.recipe.rank, []
    for name, sketch_KI in sketches(given).items():
        linear = given.linears[name]
        size = linear.in_features + linear.out_features
        values_K = torch.linalg.svdvals(sketch_KI)
        scored += [(float(v) ** 2 / size, name, size) for v in values_K]
    sizes = {name: size for _, name, size in scored}
    budget = rank * sum(sizes.values())
    ranks = dict.fromkeys(sizes, 2)
    budget -= 2 * sum(sizes.values())
    seen: dict[str, int] = {}
    for _, name, size in sorted(scored, reverse=True):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 2 and budget >= size:
            ranks[name], budget = ranks[name] + 1, budget - size
    return Start(_of_ranks(given, ranks))


def mlp_ranks(given: Given) -> Start:
    """Random A, B = 0; a quarter of the rank for queries and keys, what that saves for up and
    down."""
    rank = given.recipe.rank
    groups: dict[str, list[str]] = {"less": [], "more": [], "same": []}
    kinds = {"q_proj": "less", "k_proj": "less", "up_proj": "more", "down_proj": "more"}
    for name in given.linears:
        groups[kinds.get(name.rpartition(".")[2], "same")].append(name)
    size = {n: lin.in_features + lin.out_features for n, lin in given.linears.items()}
    saved = (rank - rank // 4) * sum(size[n] for n in groups["less"])
    more = rank + saved // sum(size[n] for n in groups["more"])
    by = {"less": rank // 4, "more": more, "same": rank}
    return Start(_of_ranks(given, {n: by[kind] for kind, ns in groups.items() for n in ns}))


def pissa(given: Given) -> Start:
    """s B A the best approximation of W at this rank (PiSSA, arXiv:2404.02948)."""
    recipe, factors = given.recipe, {}
    for name, linear in given.linears.items():
        torch.manual_seed(derive(recipe.seed, "svd", name))
        u_OR, s_R, v_IR = torch.svd_lowrank(linear.weight.data.float(), recipe.rank + 8, niter=4)
        root_R = (s_R[: recipe.rank] / recipe.scale).sqrt()
        a_RI = (v_IR[:, : recipe.rank] * root_R).T.contiguous()
        factors[name] = Factors(a_RI, (u_OR[:, : recipe.rank] * root_R).contiguous(), recipe.scale)
    return _taken_out(given, factors)


def olora(given: Given) -> Start:
    """B and A the first columns and rows of W = Q R (OLoRA, arXiv:2406.01775)."""
    recipe, factors = given.recipe, {}
    for name, linear in given.linears.items():
        q_OK, r_KI = torch.linalg.qr(linear.weight.data.float())
        a_RI, b_OR = r_KI[: recipe.rank].contiguous(), q_OK[:, : recipe.rank].contiguous()
        factors[name] = Factors(a_RI, b_OR, recipe.scale)
    return _taken_out(given, factors)


def _taken_out(given: Given, factors: dict[str, Factors]) -> Start:
    weights = {}
    for name, part in factors.items():
        weight_OI = given.linears[name].weight.data
        left_OI = weight_OI.float() - part.scale * part.b_OR @ part.a_RI
        weights[name] = left_OI.to(weight_OI.dtype)
    return Start(factors, weights)


def _of_ranks(given: Given, ranks: Mapping[str, int]) -> dict[str, Factors]:
    """Plain factors of other ranks, scaled as plain ones are."""
    recipe, factors = given.recipe, {}
    for name, linear in given.linears.items():
        generator = torch.Generator().manual_seed(derive(recipe.seed, "init", name))
        factors[name] = init_factors(
            linear.in_features, linear.out_features, ranks[name], recipe.scale, generator
        )
    return factors


def _with_a(given: Given, directions: Mapping[str, Tensor]) -> dict[str, Factors]:
    """B = 0 and A along orthonormal rows (R, I), as long as random ones are: 1/sqrt(3)."""
    factors = {}
    for name, linear in given.linears.items():
        a_RI = directions[name].contiguous() / 3**0.5
        b_OR = torch.zeros(linear.out_features, len(a_RI))
        factors[name] = Factors(a_RI, b_OR, given.recipe.scale)
    return factors


def _leading(gram_II: Tensor, recipe: Recipe, name: str) -> Tensor:
    """(R, I): the leading eigenvectors, by subspace iteration."""
    generator = torch.Generator().manual_seed(derive(recipe.seed, "inputs", name))
    basis_IK = torch.randn(len(gram_II), 2 * recipe.rank, generator=generator)
    for _ in range(_ROUNDS):
        basis_IK, _ = torch.linalg.qr(gram_II @ basis_IK)
    _, vectors_KK = torch.linalg.eigh(basis_IK.T @ gram_II @ basis_IK)
    return (basis_IK @ vectors_KK[:, -recipe.rank :]).T.contiguous()
