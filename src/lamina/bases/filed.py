"""A linear whose weight lies in a file of its base, and what is folded in after the reading."""

import torch
from torch import Tensor, nn

from lamina.bases.shell import TORCH_DTYPES, Files
from lamina.bases.supplied import SuppliedLinear, added


class FiledLinear(SuppliedLinear):
    """A linear that knows where its weight lies, and which frozen layers belong into it."""

    def __init__(
        self,
        files: Files,
        name: str,
        shape_OI: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        """`name`: its weight's. Raises ValueError when the files have none of that shape."""
        super().__init__(shape_OI, bias, dtype)
        if name not in files:
            raise ValueError(f"the files have no {name}")
        entry = files.entries[name]
        if entry.shape != shape_OI:
            raise ValueError(f"the file has {entry.shape}, the architecture {shape_OI}")
        self.name = name
        self.stored_dtype: torch.dtype = TORCH_DTYPES[entry.dtype]
        self.bytes = entry.end - entry.start
        self._update: tuple[Tensor, Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing is folded in."""
        return self._update is None

    def add(self, a_RI: Tensor, b_OR: Tensor) -> None:
        """Fold the update in at every reading, after those that are there."""
        if self._update is not None:
            a_RI = torch.cat([self._update[0], a_RI])
            b_OR = torch.cat([self._update[1], b_OR], dim=1)
        self._update = a_RI, b_OR

    def forget(self) -> None:
        """Let go of what is folded in, by whoever reads the file no more."""
        self._update = None

    def finished(self, raw_OI: Tensor, out: Tensor | None = None) -> Tensor:
        """What was read, with frozen layers folded in, in the compute dtype.

        A float32 file is folded in float32 before it is rounded, so that it is rounded once.
        """
        wide = self.stored_dtype == torch.float32
        weight_OI = raw_OI if wide else raw_OI.to(self.dtype)
        if self._update is not None:
            weight_OI = added(weight_OI, *self._update)
        if out is None:
            return weight_OI.to(self.dtype)
        return out if out.data_ptr() == weight_OI.data_ptr() else out.copy_(weight_OI)
