"""The contenders of gpu.py, all on the same tensors in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from compiled_loop import CompiledLoop
from sizes import SIZES, llama_config, model_on
from torch import Tensor

import demiurgic

Prompts = list[list[int]]


class Contender(Protocol):
    def generate(self, prompts: Prompts, new: int) -> Prompts:
        """The `new` likeliest tokens after each prompt, whatever they are; done when it returns."""


class Demiurgic:
    def __init__(self, weights: dict[str, Tensor], model: str, **_: Any) -> None:
        self.model = model_on(weights, SIZES[model])

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "eos_token_id": []}
        out = demiurgic.generate(self.model, prompts, **options)
        return [row[-new:] for row in out.tolist()]


class HuggingFace:
    """generate() as it is called by default: eager, a cache that grows."""

    def __init__(self, weights: dict[str, Tensor], model: str, **_: Any) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        self.settings: dict[str, Any] = {}
        some = weights["lm_head.weight"]
        config = LlamaConfig(**llama_config(SIZES[model], str(some.dtype).removeprefix("torch.")))
        with some.device:
            self.model = LlamaForCausalLM(config).eval()
        self.model.load_state_dict(weights, assign=True)
        self.device = some.device

    def options(self, new: int) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0, **self.settings)

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        ids = torch.tensor(prompts, device=self.device)
        mask = torch.ones_like(ids)
        tokens: Prompts = self.model.generate(ids, attention_mask=mask, generation_config=self.options(new)).tolist()
        return [row[-new:] for row in tokens]


class HuggingFaceStatic(HuggingFace):
    """generate() with a static cache, whose step transformers compiles by itself on a GPU."""

    def __init__(self, weights: dict[str, Tensor], model: str, compiles: bool = True, **_: Any) -> None:
        super().__init__(weights, model)
        self.settings = {"cache_implementation": "static", "disable_compile": not compiles}


class HuggingFaceBatching(HuggingFace):
    """generate_batch(), with a manager that stays from call to call and a third of the free memory."""

    def __init__(self, weights: dict[str, Tensor], model: str, **_: Any) -> None:
        super().__init__(weights, model)
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        from transformers import ContinuousBatchingConfig

        found = self.model.generate_batch(
            inputs=prompts,
            generation_config=self.options(new),
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=0.3),
            max_new_tokens=new,
            persistent_manager=True,
        )
        results = list(found.values())
        for result in results:
            if result.error is not None:
                raise RuntimeError(result.error)
        if len(results) < len(prompts):
            raise RuntimeError(f"of {len(prompts)} requests {len(results)} came to an end")
        return [list(result.generated_tokens) for result in results]


class Compiled:
    def __init__(
        self, weights: dict[str, Tensor], model: str, batch: int, context: int, compiles: bool = True, **_: Any
    ) -> None:
        some = weights["lm_head.weight"]
        config = llama_config(SIZES[model], str(some.dtype).removeprefix("torch."))
        self.loop, self.device = CompiledLoop(weights, config, batch, context, compiles), some.device

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        tokens: Prompts = self.loop.generate(torch.tensor(prompts, device=self.device), new).tolist()
        return tokens


OURS = "demiurgic"
CONTENDERS: dict[str, Callable[..., Contender]] = {
    OURS: Demiurgic,
    "compiled": Compiled,
    "hf": HuggingFace,
    "hf-static": HuggingFaceStatic,
    "hf-batching": HuggingFaceBatching,
}
UNEVEN = (OURS, "hf-batching")  # those that take prompts of many lengths without padding
