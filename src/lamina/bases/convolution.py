"""A convolution as the linear that it is: of the patches of its input."""

from typing import Any

from torch import Tensor, nn


class PatchLinear(nn.Linear):
    """y = W p + b of a patch p (I kh kw,): a convolution's weight (O, I, kh, kw) as a matrix.

    Patches as `nn.functional.unfold` lays them out. Weight and bias are the convolution's own: a
    weight that is set here is set there. In a model stands the convolution, never this.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Raises ValueError for a convolution that is no such linear: see `fault`."""
        if why := fault(convolution):
            raise ValueError(why)
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.convolution = convolution
        self.out_features = convolution.out_channels
        self.in_features = convolution.weight[0].numel()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W (O, I kh kw), sharing memory with the convolution's."""
        return self.convolution.weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(O,), the convolution's."""
        return self.convolution.bias

    def __setattr__(self, name: str, value: Any) -> None:
        """`weight` becomes the convolution's, in its shape; a parameter that nothing trains."""
        if name != "weight":
            super().__setattr__(name, value)
            return
        weight = value.detach().view(self.convolution.weight.shape)
        self.convolution.weight = nn.Parameter(weight, requires_grad=False)


def fault(convolution: nn.Conv2d) -> str | None:
    """Why a convolution takes no layers; None where it does."""
    if convolution.groups != 1:
        return f"a convolution in {convolution.groups} groups takes no layers"
    if tuple(convolution.dilation) != (1, 1):
        return f"a convolution dilated by {tuple(convolution.dilation)} takes no layers"
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return "a convolution whose edges are padded by rule takes no layers"
    return None


def in_model(linear: nn.Linear) -> nn.Module:
    """What stands in a model for a linear of its table: the convolution, or the linear itself."""
    return linear.convolution if isinstance(linear, PatchLinear) else linear
