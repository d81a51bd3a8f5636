"""A plain PyTorch loop with a key/value cache: what one writes by hand for a decoder of the Llama family.

It reads a folder of Hugging Face's format and needs torch and safetensors alone, so that it runs in any environment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class TorchLoop:
    """Weights, and room in the cache for `batch` rows of `context` tokens."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any], batch: int, context: int) -> None:
        self.weights, self.layers, self.eps = weights, config["num_hidden_layers"], config["rms_norm_eps"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config["hidden_size"] // self.heads
        self.dtype, self.device = weights["lm_head.weight"].dtype, weights["lm_head.weight"].device
        shape = (self.layers, 2, batch, self.kv_heads, context, self.head_dim)
        self.cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        angles = torch.outer(torch.arange(context, dtype=torch.float32), config["rope_theta"] ** -exponents)
        angles = torch.cat([angles, angles], dim=-1)  # [context, head_dim]
        self.cos, self.sin = (table.to(self.device, self.dtype) for table in (angles.cos(), angles.sin()))

    @classmethod
    def from_folder(cls, folder: Path, batch: int, context: int) -> TorchLoop:
        config = json.loads((folder / "config.json").read_text())
        weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        return cls(weights, config, batch, context)

    @torch.inference_mode()
    def generate(self, ids: Tensor, new: int) -> Tensor:
        """int64 [B, T] to the `new` likeliest tokens, [B, new]."""
        tokens, position = [], 0
        for _ in range(new):
            ids, position = self.forward(ids, position).argmax(-1, keepdim=True), position + ids.shape[1]
            tokens.append(ids)
        return torch.cat(tokens, dim=1)

    @torch.inference_mode()
    def forward(self, ids: Tensor, position: int) -> Tensor:
        """The logits [B, V] that follow `ids` [B, T], whose first token is at `position`; T is 1 or position is 0."""
        batch, length = ids.shape
        end = position + length
        cos, sin = self.cos[position:end], self.sin[position:end]
        hidden = F.embedding(ids, self.weights["model.embed_tokens.weight"])  # [B, T, H]
        grouped = self.heads != self.kv_heads
        for i in range(self.layers):
            q, k, v = self._qkv(hidden, i, cos, sin)
            self.cache[i, 0, :batch, :, position:end], self.cache[i, 1, :batch, :, position:end] = k, v
            k, v = self.cache[i, 0, :batch, :, :end], self.cache[i, 1, :batch, :, :end]
            x = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=grouped)
            hidden = self._after_attention(hidden, x, i)
        return self._linear(self._norm(hidden[:, -1], "model.norm"), "lm_head")

    def _qkv(self, hidden: Tensor, layer: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, H] to queries [B, heads, T, D], keys and values [B, kv_heads, T, D], rotated."""
        prefix = f"model.layers.{layer}."
        x = self._norm(hidden, f"{prefix}input_layernorm")
        q = rotate(self._heads(x, f"{prefix}self_attn.q_proj", self.heads), cos, sin)
        k = rotate(self._heads(x, f"{prefix}self_attn.k_proj", self.kv_heads), cos, sin)
        return q, k, self._heads(x, f"{prefix}self_attn.v_proj", self.kv_heads)

    def _after_attention(self, hidden: Tensor, attended: Tensor, layer: int) -> Tensor:
        """The rest of a layer; attended is [B, heads, T, D]."""
        prefix = f"model.layers.{layer}."
        hidden = hidden + self._linear(attended.transpose(1, 2).flatten(2), f"{prefix}self_attn.o_proj")
        x = self._norm(hidden, f"{prefix}post_attention_layernorm")
        x = F.silu(self._linear(x, f"{prefix}mlp.gate_proj")) * self._linear(x, f"{prefix}mlp.up_proj")
        return hidden + self._linear(x, f"{prefix}mlp.down_proj")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _heads(self, x: Tensor, name: str, heads: int) -> Tensor:
        return self._linear(x, name).unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
