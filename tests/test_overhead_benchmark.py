"""What benchmarks/overhead.py subtracts for the cache is what the engine allocates."""

import importlib.util
from pathlib import Path

import pytest
from models import tiny_model

from demiurgic import GenerationConfig
from demiurgic.engine import Generation

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "overhead.py"


@pytest.mark.parametrize(("batch", "prompt", "new"), [(1, 2, 15), (1, 2, 16), (3, 16, 40)])
def test_the_cache_is_as_large_as_is_said(batch: int, prompt: int, new: int) -> None:
    spec = importlib.util.spec_from_file_location("overhead", SCRIPT)
    assert spec and spec.loader
    overhead = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overhead)
    model = tiny_model()
    with Generation(model, [[1] * prompt] * batch, config=GenerationConfig(max_new_tokens=new)) as generation:
        allocated = generation._engine.counters()["cache_bytes"]
    assert overhead.cache_bytes(model.config, batch, prompt + new) == allocated
