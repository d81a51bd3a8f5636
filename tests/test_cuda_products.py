"""On a GPU: the entries that are products, with its attention: near the reference, and a row's bits are its own."""

import pytest
import torch
from test_kernels import DTYPES, FROM_REFERENCE, MODELS, TEXT, model_of

from demiurgic import _C, score

pytestmark = pytest.mark.cuda

WAYS = {"prefill": {}, "decode": {"max_step_tokens": 1}, "between": {"max_step_tokens": 20}}


def test_the_entries_are_ours():
    ours = {entry for entry, by in _C.kernels_info("cuda").items() if by == "cuda"}
    assert {"embed", "attention_in", "attention_out", "mlp", "head"} <= ours


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_near_the_reference(monkeypatch, name, dtype, way):
    model, text = model_of(name, dtype).cuda(), TEXT[:300]
    ours = score(model, text, **WAYS[way])[0]
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    distance = (ours - score(model, text)[0]).abs()
    most, mean = FROM_REFERENCE["cpu", dtype]  # for the same reasons as there
    assert distance.max() <= most and distance.mean() <= mean


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_same_bits_whatever_is_computed_with_it(name, dtype):
    model, text = model_of(name, dtype).cuda(), TEXT[:150]
    alone = score(model, text, max_step_tokens=1)[0]
    for most in (2, 7, 8, 9, 16, 17, 33, 64, 65, 150):
        assert torch.equal(score(model, text, max_step_tokens=most)[0], alone), f"{most} tokens a step"
    for others in (1, 6, 8, 16, 32, 70):
        rows = [text, *([token] * 30 for token in range(others))]
        assert torch.equal(score(model, rows)[0, 1 - len(text) :], alone), f"{others} others"


def test_weights_that_lie_at_odd_places():
    model, text = model_of("grouped, gated", torch.bfloat16).cuda(), TEXT[:40]
    expected = score(model, text)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                larger = torch.full((parameter.shape[0], parameter.shape[1] + 7), torch.nan).to(parameter)
                place = larger[:, 3:-4]
                parameter.data = place.copy_(parameter)
    assert torch.equal(score(model, text), expected)
