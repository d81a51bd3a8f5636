"""The plain loop as gpt-fast has it (PyTorch Labs, 2023): a static cache, and a step of one token that is compiled once
and replayed as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_loop import TorchLoop


class CompiledLoop(TorchLoop):
    """A step reads and writes the whole cache at a position that lies on the device, so its shapes never change."""

    def __init__(
        self, weights: dict[str, Tensor], config: dict[str, Any], batch: int, context: int, compiles: bool = True
    ) -> None:
        super().__init__(weights, config, batch, context)
        self.batch, self.places = batch, torch.arange(context, device=self.device)
        self.compiled_step: Callable[[Tensor, Tensor], Tensor] = self.step
        if compiles:
            # Else a graph would begin with copies of all weights, since its inputs may be elsewhere the next time.
            for tensor in (*weights.values(), self.cache, self.cos, self.sin, self.places):
                torch._dynamo.mark_static_address(tensor)
            self.compiled_step = torch.compile(self.step, mode="reduce-overhead", fullgraph=True)

    @torch.no_grad()
    def generate(self, ids: Tensor, new: int) -> Tensor:
        """int64 [B, T] to the `new` likeliest tokens, [B, new]; B is the batch that there is room for."""
        tokens = [self.forward(ids, 0).argmax(-1, keepdim=True).clone()]
        position = torch.tensor([ids.shape[1]], device=self.device)
        for _ in range(new - 1):
            tokens.append(self.compiled_step(tokens[-1], position).clone())  # the graph's own output is overwritten
            position += 1
        return torch.cat(tokens, dim=1)

    def step(self, ids: Tensor, position: Tensor) -> Tensor:
        """The likeliest tokens [B, 1] after `ids` [B, 1], which are at `position` [1]."""
        cos, sin = self.cos[position], self.sin[position]
        seen = (self.places <= position)[None, None, None]  # [1, 1, 1, context]
        grouped = self.heads != self.kv_heads
        hidden = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        for i in range(self.layers):
            q, k, v = self._qkv(hidden, i, cos, sin)
            keys, values = self.cache[i, 0], self.cache[i, 1]  # [B, kv_heads, context, D]
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            x = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=grouped)
            hidden = self._after_attention(hidden, x, i)
        logits = self._linear(self._norm(hidden[:, -1], "model.norm"), "lm_head")
        return logits.argmax(-1, keepdim=True)
