"""Generation without the engine: a plain PyTorch loop over `forward`, one row at a time, no cache, no padding."""

import copy
import random

import pytest
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


@torch.no_grad()
def float64_logits(model: DemiurgicForCausalLM, ids: list[int]) -> Tensor:
    """Logits [len(ids), V] of the same weights computed in float64 throughout; only rotary cosines are float32's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)  # what forward computes in float32 for any dtype
        return copy.deepcopy(model).double()(torch.tensor([ids]), use_cache=False).logits[0]


def logprobs_of(logits: Tensor, ids: list[int]) -> Tensor:
    """Log-probabilities [len(ids) - 1] of the tokens after the first, by `logits` [len(ids), V]."""
    return logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
