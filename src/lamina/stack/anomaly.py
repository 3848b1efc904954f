"""What is strange about a layer's weights: sizes, spectra, and what its recipe could have made.

dW is never formed: everything comes from the factors and their singular values.

References:
    Kingma and Ba, arXiv:1412.6980, section 2.1: Adam's steps are bounded by the learning rate.
    Meng et al., arXiv:2202.05262: one fact is written into a model by one direction in one MLP;
    hence the look at updates that are nearly one direction.
    Roy and Vetterli, EUSIPCO 2007: effective rank, exp of the entropy of the singular values.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lamina.core.manifests import LayerConfig
from lamina.core.recipe import Recipe
from lamina.lowrank.maths import LayerFactors, squared_norm
from lamina.lowrank.squash import spectrum

LARGER_THAN_WEIGHTS = 1.0
"""|dW| / |W| of a linear from which the update is no update but another weight."""
FAR_MORE = 20.0
"""Times its even share of |dW|^2 from which one linear stands out."""
ONE_DIRECTION = 0.95
"""Share of a linear's |dW|^2 in its first singular value from which it is nearly one direction."""
SISTERS = 4.0
"""Times the largest other layer over the same base from which a layer is large."""
_ROUNDING = 1.001


@dataclass(frozen=True)
class Oddity:
    """Something strange."""

    refused: bool
    """Whether no honest training makes that. Otherwise: worth a look."""
    text: str


@dataclass(frozen=True)
class ModuleFacts:
    """One linear's update."""

    module: str
    norm: float
    """|dW|_F."""
    relative: float
    """|dW|_F / |W|_F of the weights that it changes."""
    share: float
    """Of the layer's |dW|^2."""
    first: float
    """Share of |dW|^2 in the first singular value; 0 for an update that is zero."""
    effective_rank: float
    rank: int
    largest_b: float
    """max |B|, where training starts from zero."""


@dataclass(frozen=True)
class LayerFacts:
    """A layer's updates, one linear after the other by name."""

    modules: tuple[ModuleFacts, ...]
    norm: float

    @property
    def effective_rank(self) -> float:
        """Mean over the linears."""
        return statistics.fmean(each.effective_rank for each in self.modules)

    def worst(self, what: str) -> ModuleFacts:
        """The linear with the largest of one of the facts."""
        return max(self.modules, key=lambda each: getattr(each, what))


def facts_of(layer: LayerFactors, linears: Mapping[str, nn.Linear]) -> LayerFacts:
    """Measure a layer that fits these linears (`lowrank.attach.layer_faults`). Mutates nothing."""
    total = sum(squared_norm(factors) for factors in layer.values())
    found = []
    for module, factors in sorted(layer.items()):
        sigma_R = spectrum([factors]).sigma_R.square()
        squared = float(sigma_R.sum())
        p_R = sigma_R.sqrt() / sigma_R.sqrt().sum() if squared else sigma_R
        weight = float(linears[module].weight.detach().float().norm())
        found.append(
            ModuleFacts(
                module=module,
                norm=math.sqrt(squared),
                relative=math.sqrt(squared) / weight if weight else math.inf,
                share=squared / total if total else 0.0,
                first=float(sigma_R[0]) / squared if squared else 0.0,
                effective_rank=math.exp(-float((p_R * p_R.log()).sum())) if squared else 0.0,
                rank=factors.rank,
                largest_b=float(factors.b_OR.abs().max()),
            )
        )
    return LayerFacts(tuple(found), math.sqrt(total))


def most_of_b(recipe: Recipe) -> float | None:
    """The largest entry that B can have after training from zero; None where the recipe is open.

    AdamW moves a number by at most lr c a step, c = (1 - b1) / sqrt((1 - b2)(1 - b1^2 / b2)) by
    Cauchy and Schwarz over the moments (2.3 for 0.9 and 0.99), and decay only makes it smaller.
    """
    b1, b2 = recipe.betas
    if recipe.steps is None or b1**2 >= b2 or b2 >= 1:
        return None
    step = max(1.0, (1 - b1) / math.sqrt((1 - b2) * (1 - b1**2 / b2)))
    return recipe.lr * recipe.lr_ratio * recipe.steps * step


def oddities(
    facts: LayerFacts, config: LayerConfig, layer: LayerFactors, sisters: Sequence[float]
) -> tuple[Oddity, ...]:
    """Everything strange. `sisters`: |dW| of other layers over the same base."""
    return (
        *_not_as_stated(config, layer),
        *_sizes(facts, sisters),
        *_beyond_its_recipe(facts, config),
        *_spectra(facts),
    )


def _not_as_stated(config: LayerConfig, layer: LayerFactors) -> list[Oddity]:
    """Where the payload is another than the config says."""
    found = []
    if set(config.modules) != set(layer):
        found.append("its payload touches other linears than its config says")
    if config.parameters != sum(factors.parameters for factors in layer.values()):
        found.append("its payload has another number of parameters than its config says")
    recipe = config.recipe
    if config.origin in ("trained", "updated", "distilled") and recipe is not None:
        stated = recipe.scale
        if off := [m for m, f in layer.items() if abs(f.scale - stated) > 1e-6 * stated]:
            worst = max(off, key=lambda module: abs(layer[module].scale - stated))
            found.append(
                f"its recipe says scale {stated:g}, its payload says {layer[worst].scale:g} "
                f"({len(off)} linears)"
            )
    return [Oddity(True, text) for text in found]


def _sizes(facts: LayerFacts, sisters: Sequence[float]) -> list[Oddity]:
    if not facts.norm:
        return [Oddity(False, "its weights change nothing")]
    found = []
    large = facts.worst("relative")
    if large.relative >= LARGER_THAN_WEIGHTS:
        found.append(
            Oddity(
                True,
                f"{large.module}: the update is {large.relative:.1f} times as large as the weights "
                "that it changes",
            )
        )
    if sisters and facts.norm > SISTERS * max(sisters):
        times = facts.norm / max(sisters)
        found.append(
            Oddity(False, f"it is {times:.0f} times as large as any other layer over this base")
        )
    even = 1 / len(facts.modules)
    most = facts.worst("share")
    if len(facts.modules) > FAR_MORE and most.share > FAR_MORE * even:
        found.append(
            Oddity(False, f"{most.module} has {most.share:.0%} of the update, {even:.1%} were even")
        )
    return found


def _beyond_its_recipe(facts: LayerFacts, config: LayerConfig) -> list[Oddity]:
    """Where training as stated could not have come to these numbers."""
    if config.origin != "trained" or config.recipe is None:
        return []
    most = most_of_b(config.recipe)
    worst = facts.worst("largest_b")
    if most is None or worst.largest_b <= _ROUNDING * most:
        return []
    return [
        Oddity(
            True,
            f"{worst.module}: an entry of {worst.largest_b:.2g}, but its recipe (rate "
            f"{config.recipe.lr:g}, {config.recipe.steps} steps) moves none beyond {most:.2g}: the "
            "weights were changed after training, or the recipe is not theirs",
        )
    ]


def _spectra(facts: LayerFacts) -> list[Oddity]:
    """Linears whose update is nearly one direction and that weigh more than others."""
    even = 1 / len(facts.modules)
    found = [
        each.module
        for each in facts.modules
        if each.rank >= 4 and each.first > ONE_DIRECTION and each.share > 2 * even
    ]
    if not found or len(found) > len(facts.modules) / 4:
        return []  # where all are alike, it is how this layer was trained
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return [Oddity(False, f"the update of {shown} is large and nearly one direction")]
