from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same seed, and none leaves a trace in torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
