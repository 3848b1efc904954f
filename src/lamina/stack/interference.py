"""Interference: how far two layers' updates lie in each other's way, dW never formed.

With dW = U diag(sigma) V^T of each update, everything is a product of R x R matrices: U_a^T U_b
compares what the updates write, V_a^T V_b what they read.

References:
    Björck and Golub, Mathematics of Computation 27 (1973) 579: principal angles between subspaces,
    from cosines and, where those say little, from sines.
    Hu et al., arXiv:2106.09685, section 7.2: overlap of the subspaces of two low-rank updates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors, LayerFactors
from lamina.lowrank.squash import Spectrum, spectrum


@dataclass(frozen=True)
class Angles:
    """Principal angles between two subspaces, in degrees: 0 the same direction, 90 none shared."""

    smallest: float
    mean: float


@dataclass(frozen=True)
class ModuleInterference:
    """Two updates of one linear."""

    module: str
    norm_a: float
    """Frobenius norm of a's dW."""
    norm_b: float
    inner: float
    """<dW_a, dW_b> = trace(dW_a^T dW_b)."""
    cosine: float
    """`inner` / (norm_a norm_b), -1 to 1; 0 where either update is zero."""
    columns: Angles | None
    """Between the column spaces: what the updates write. None where either update is zero."""
    rows: Angles | None
    """Between the row spaces: what the updates read."""
    overlap_a: float
    """Share of |dW_a|^2 that lies in b's column and row spaces, 0 to 1."""
    overlap_b: float
    """Share of |dW_b|^2 that lies in a's."""


@dataclass(frozen=True)
class Interference:
    """Two layers, module by module and in all."""

    modules: tuple[ModuleInterference, ...]
    """Those that both touch, the smallest inner product (the most that adding cancels) first."""
    only_a: tuple[str, ...]
    """Modules that b does not touch."""
    only_b: tuple[str, ...]
    norm_a: float
    """Over all modules of a, as one long vector; so are the other sums."""
    norm_b: float
    inner: float
    cosine: float
    overlap_a: float
    overlap_b: float


def interference(
    a: LayerFactors,
    b: LayerFactors,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Interference:
    """Compare two layers over the same base. `progress` gets (modules done, modules in all).

    Float64 throughout; mutates nothing. Raises LayerError listing every module whose updates are
    of different linears.
    """
    shared = sorted(set(a) & set(b))
    faults = [
        f"{name}: {_shape(a[name])} and {_shape(b[name])}"
        for name in shared
        if _shape(a[name]) != _shape(b[name])
    ]
    if faults:
        raise LayerError("updates of different linears, (out, in)", faults=faults)
    squares_a = {name: _norm(a[name]) ** 2 for name in sorted(set(a) - set(b))}
    squares_b = {name: _norm(b[name]) ** 2 for name in sorted(set(b) - set(a))}
    modules = []
    for name in shared:
        modules.append(compare(name, a[name], b[name]))
        progress(len(modules), len(shared))
    norm_a = math.sqrt(sum(squares_a.values()) + sum(m.norm_a**2 for m in modules))
    norm_b = math.sqrt(sum(squares_b.values()) + sum(m.norm_b**2 for m in modules))
    inner = sum(m.inner for m in modules)
    return Interference(
        modules=tuple(sorted(modules, key=lambda m: (m.inner, m.module))),
        only_a=tuple(squares_a),
        only_b=tuple(squares_b),
        norm_a=norm_a,
        norm_b=norm_b,
        inner=inner,
        cosine=_ratio(inner, norm_a * norm_b),
        overlap_a=_ratio(sum(m.overlap_a * m.norm_a**2 for m in modules), norm_a**2),
        overlap_b=_ratio(sum(m.overlap_b * m.norm_b**2 for m in modules), norm_b**2),
    )


def compare(module: str, a: Factors, b: Factors) -> ModuleInterference:
    """Two updates of one linear.

    <dW_a, dW_b> = sum_ij sigma_a[i] (U_a^T U_b)_ij (V_a^T V_b)_ij sigma_b[j], and the part of dW_a
    in b's spaces is U_b^T U_a diag(sigma_a) V_a^T V_b. Mutates nothing.
    Raises LayerError when the shapes differ.
    """
    if _shape(a) != _shape(b):
        raise LayerError(f"{module}: updates of different linears {_shape(a)} and {_shape(b)}")
    one, two = spectrum([a]), spectrum([b])
    norm_a, norm_b = float(one.sigma_R.norm()), float(two.sigma_R.norm())
    columns_AB = one.u_OR.T @ two.u_OR
    rows_AB = one.v_IR.T @ two.v_IR
    inner = float(one.sigma_R @ (columns_AB * rows_AB) @ two.sigma_R)
    return ModuleInterference(
        module=module,
        norm_a=norm_a,
        norm_b=norm_b,
        inner=inner,
        cosine=_ratio(inner, norm_a * norm_b),
        columns=_angles(one.u_OR, two.u_OR),
        rows=_angles(one.v_IR, two.v_IR),
        overlap_a=_within(one, columns_AB, rows_AB),
        overlap_b=_within(two, columns_AB.T, rows_AB.T),
    )


def principal_angles(q_NA: Tensor, q_NB: Tensor) -> Tensor:
    """Angles in degrees, rising, between the spaces of two orthonormal bases (Björck and Golub).

    Shapes: (N, A), (N, B) float64 -> (min(A, B),). Cosines are the singular values of Q_a^T Q_b,
    sines those of Q_b - Q_a Q_a^T Q_b; an angle comes from whichever is the smaller, as an arc
    cosine near 1 loses half the digits.
    """
    if q_NA.shape[1] < q_NB.shape[1]:
        q_NA, q_NB = q_NB, q_NA
    product_AB = q_NA.T @ q_NB
    cosine = torch.linalg.svdvals(product_AB).clamp(max=1.0)
    sine = torch.linalg.svdvals(q_NB - q_NA @ product_AB).flip(0).clamp(max=1.0)
    return torch.rad2deg(torch.where(cosine.square() < 0.5, cosine.acos(), sine.asin()))


def _angles(q_NA: Tensor, q_NB: Tensor) -> Angles | None:
    if not (q_NA.shape[1] and q_NB.shape[1]):
        return None
    angles = principal_angles(q_NA, q_NB)
    return Angles(float(angles[0]), float(angles.mean()))


def _within(own: Spectrum, columns_RS: Tensor, rows_RS: Tensor) -> float:
    """Share of |dW|^2 in the other update's spaces; both products have the own side first."""
    part_SS = columns_RS.T @ (own.sigma_R[:, None] * rows_RS)
    return _ratio(float(part_SS.square().sum()), float(own.sigma_R.square().sum()))


def _norm(factors: Factors) -> float:
    return float(spectrum([factors]).sigma_R.norm())


def _shape(factors: Factors) -> tuple[int, int]:
    return factors.b_OR.shape[0], factors.a_RI.shape[1]


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0
