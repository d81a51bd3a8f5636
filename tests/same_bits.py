"""What is computed together with other things has the bits that it has alone, by native kernels."""

import torch

from demiurgic import _C

CLOSE = 1e-4  # between sums of float32 in another order


def native(device: str = "cpu") -> bool:
    """Whether every kernel up to the logits keeps its bits between batches of any size; the sampler's always do."""
    kernels = _C.kernels_info(device)
    return not any(kernels[entry] == "reference" for entry in kernels.keys() - {"sample", "log_probability"})


def check_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits where native kernels run; the reference's sums may differ with the number of rows."""
    atol = 0 if native(found.device.type) else CLOSE
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, equal_nan=True)
