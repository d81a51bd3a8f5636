"""Generation without the engine: a plain PyTorch loop over `forward`, one row at a time, no cache, no padding."""

import random

import torch
from torch import Tensor

from demiurgic import DemiurgicForCausalLM

NO_TIE = 1e-3  # least distance of the two largest logits: more than another order of summation moves float32 logits


@torch.no_grad()
def greedy(model: DemiurgicForCausalLM, prompt: list[int], new: int) -> tuple[list[int], list[float], float]:
    """The `new` likeliest tokens, their log-probabilities, and the least distance of the two largest logits."""
    ids, logprobs, distance = list(prompt), [], torch.inf
    for _ in range(new):
        logits = model(torch.tensor([ids], device=model.lm_head.weight.device), use_cache=False).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        distance = min(distance, first - second)
        ids.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
    return ids[len(prompt) :], logprobs, distance


@torch.no_grad()
def logprobs_after(model: DemiurgicForCausalLM, prompt: list[int], completion: list[int]) -> Tensor:
    """What forward gives every token at each place of `completion`: float32 [len(completion), V] on the CPU."""
    ids = torch.tensor([prompt + completion], device=model.lm_head.weight.device)
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1).cpu()


def prompts_without_ties(model: DemiurgicForCausalLM, lengths: tuple[int, ...], new: int) -> list[list[int]]:
    """One prompt of each length whose greedy continuation has no near-ties, so that its tokens are beyond doubt."""
    dice, prompts = random.Random(0), []
    for length in lengths:
        for _ in range(50):
            prompt = dice.choices(range(model.config.vocab_size), k=length)
            if greedy(model, prompt, new)[2] > NO_TIE:
                prompts.append(prompt)
                break
        else:
            raise AssertionError(f"no prompt of {length} tokens without near-ties; choose other weights")
    return prompts
