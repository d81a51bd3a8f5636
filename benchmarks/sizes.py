"""The models of the benchmarks: four shapes with random weights, and their folders in the format of Hugging Face.

The weights are the same at every run (seeded by size and tensor) and scaled so that every activation is of the order of
1: nothing overflows, nothing is denormal, and greedy tokens are far enough apart that engines with other orders of
summation agree on most of them in float32. bfloat16 weights are the rounded float32 ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch_loop import TorchLoop

from demiurgic import DemiurgicConfig, DemiurgicForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FIRST_WORD = 3  # smaller ids are special tokens
FORMAT = 1  # to be raised with every change of what a folder holds


@dataclass(frozen=True)
class Size:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int = 32000
    context: int = 2048

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter by Hugging Face's name of Llama."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            yield from self.layer_shapes(f"model.layers.{i}.")
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    def layer_shapes(self, prefix: str) -> list[tuple[str, tuple[int, ...]]]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (f"{prefix}input_layernorm.weight", (self.hidden,)),
            (f"{prefix}self_attn.q_proj.weight", (q, self.hidden)),
            (f"{prefix}self_attn.k_proj.weight", (kv, self.hidden)),
            (f"{prefix}self_attn.v_proj.weight", (kv, self.hidden)),
            (f"{prefix}self_attn.o_proj.weight", (self.hidden, q)),
            (f"{prefix}post_attention_layernorm.weight", (self.hidden,)),
            (f"{prefix}mlp.gate_proj.weight", (self.ffn, self.hidden)),
            (f"{prefix}mlp.up_proj.weight", (self.ffn, self.hidden)),
            (f"{prefix}mlp.down_proj.weight", (self.hidden, self.ffn)),
        ]

    @property
    def decode_parameters(self) -> int:
        """Parameters that a step of decoding reads whole: all but the embedding, of which it reads a row a sequence."""
        return sum(math.prod(shape) for name, shape in self.shapes() if "embed_tokens" not in name)

    @property
    def linear_parameters(self) -> int:
        """Parameters of the matrix products of a layer times the layers; the head is not among them."""
        return self.layers * sum(math.prod(shape) for _, shape in self.layer_shapes("") if len(shape) == 2)

    def flops(self, tokens: int, rows: int = 1) -> float:
        """Operations of reading `rows` prompts of `tokens`, with the logits of each last; no masked scores."""
        products = 2 * rows * tokens * self.linear_parameters
        attention = 2 * rows * self.layers * tokens * (tokens + 1) * self.hidden  # q.k and p.v, half of the square
        return products + attention + 2 * rows * self.vocab * self.hidden


SIZES = {
    "XS": Size(layers=6, hidden=256, heads=8, kv_heads=8, ffn=688),  # 10M
    "S": Size(layers=12, hidden=768, heads=12, kv_heads=4, ffn=2048),  # 100M
    "M": Size(layers=24, hidden=1024, heads=16, kv_heads=16, ffn=2816),  # 350M
    "L": Size(layers=22, hidden=2048, heads=32, kv_heads=4, ffn=5632),  # 1.1B
}


def random_weights(size: Size, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in size.shapes():
        values = torch.randn(shape, generator=generator, device=device)
        if len(shape) == 1:
            values = 1 + 0.1 * values
        elif name.endswith(("o_proj.weight", "down_proj.weight")):  # so that the sum of all layers stays near 1
            values *= (2 * size.layers * shape[1]) ** -0.5
        elif name == "lm_head.weight":  # logits of standard deviation 3: few near-ties among the largest
            values *= 3 * shape[1] ** -0.5
        elif "embed_tokens" not in name:
            values *= shape[1] ** -0.5
        weights[name] = values.to(dtype)
    return weights


def folder_of(name: str, dtype: str, work: Path) -> Path:
    """The model's folder under `work`, written if it is not there: Llama's names, made-up words."""
    size = SIZES[name]
    digest = hashlib.sha256(json.dumps([asdict(size), FORMAT]).encode()).hexdigest()[:8]
    folder = work / f"{name}-{dtype}-{digest}"
    if folder.is_dir():
        return folder
    partial = work / f"{folder.name}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        save_file(random_weights(size, DTYPES[dtype]), partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(llama_config(size, dtype), indent=2))
        _write_tokenizer(size, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def random_model(name: str, dtype: str) -> DemiurgicForCausalLM:
    """The model in memory, for benchmarks that compare with nothing that reads a folder."""
    return model_on(random_weights(SIZES[name], DTYPES[dtype]), SIZES[name])


def model_on(weights: dict[str, Tensor], size: Size) -> DemiurgicForCausalLM:
    """A model whose parameters are the given tensors."""
    config = DemiurgicConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.context,
        rms_norm_eps=1e-5,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = DemiurgicForCausalLM(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def torch_loop(model: DemiurgicForCausalLM, name: str, batch: int, context: int) -> TorchLoop:
    """The plain loop on the same tensors as `model`, which is one of `random_model`."""
    weights = {parameter: tensor.detach() for parameter, tensor in model.named_parameters()}
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    return TorchLoop(weights, llama_config(SIZES[name], dtype), batch, context)


def random_prompts(vocab: int, rows: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = torch.randint(FIRST_WORD, vocab, (rows, length), generator=generator).tolist()
    return prompts


def llama_config(size: Size, dtype: str) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "max_position_embeddings": size.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }


def _write_tokenizer(size: Size, folder: Path) -> None:
    """Word t17 has id 17. Nobody tokenizes anything; some converters insist on a tokenizer."""
    words = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(FIRST_WORD, size.vocab))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(words[:FIRST_WORD])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
