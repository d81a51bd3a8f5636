"""How much memory does generate take beyond the weights and the key/value cache?

    python benchmarks/overhead.py
    python benchmarks/overhead.py --batch 1 --new 64

A get_100m_config model with random float32 weights on the CPU, sampled with the preset balanced_code, EOS off. The peak
is of the process's resident memory during a call, so everything counts: activations, logits, the sampler's tensors, the
rows, what torch and the allocator keep. Subtracted are what was resident before the call (the weights among it) and the
cache that the call needs. It is the first call of its process, so it also pays for torch's own buffers and for the code
of its libraries that is paged in ("code"); a later call finds those there. Linux only: the peak is VmHWM of
/proc/self/status.
"""

from __future__ import annotations

import gc
import json
import math
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

import demiurgic
from demiurgic import DemiurgicConfig, DemiurgicForCausalLM, GenerationConfig

BLOCK_SIZE = 16  # positions in a block of the cache
MEGABYTE = 1e6


def resident(field: str) -> int:
    """VmRSS (now), RssFile (of it, mapped files) or VmHWM (the most since `forget_peak`), in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def cache_bytes(config: DemiurgicConfig, batch: int, length: int) -> int:
    """Keys and values of `batch` rows of `length` tokens, float32; the last token is never looked at."""
    positions = math.ceil((length - 1) / BLOCK_SIZE) * BLOCK_SIZE
    return batch * positions * config.num_hidden_layers * 2 * config.kv_heads * config.head_dim * 4


def main(
    batch: Annotated[int, typer.Option(help="Rows.", min=1)] = 8,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = 16,
    new: Annotated[int, typer.Option(help="New tokens of each row.", min=1)] = 512,
) -> None:
    torch.manual_seed(0)
    model = DemiurgicForCausalLM(demiurgic.get_100m_config()).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    cache = cache_bytes(model.config, batch, prompt + new)
    ids = torch.randint(6, model.config.vocab_size, (batch, prompt))
    options = GenerationConfig.balanced_code(new, seed=0, eos_token_id=[])

    gc.collect()
    before, code_before = resident("VmRSS"), resident("RssFile")
    forget_peak()
    out = demiurgic.generate(model, ids, generation_config=options)
    overhead, code = resident("VmHWM") - before - cache, resident("RssFile") - code_before
    assert out.shape == (batch, prompt + new)

    print(f"{batch} rows of {prompt} + {new} tokens, get_100m_config, float32, CPU, {torch.get_num_threads()} threads")
    sizes = {"weights": weights, "cache": cache, "overhead": overhead, "code": code}
    for name, size in sizes.items():
        print(f"{name:10}{size / MEGABYTE:8.1f} MB" + (", part of the overhead" if name == "code" else ""))
    report = {"benchmark": "overhead", "batch": batch, "prompt": prompt, "new": new, "dtype": "float32"}
    print(json.dumps(report | {f"{name}_mb": size / MEGABYTE for name, size in sizes.items()}))


if __name__ == "__main__":
    typer.run(main)
