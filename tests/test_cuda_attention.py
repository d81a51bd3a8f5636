"""On a GPU: attention by our kernels is near the reference, and a token's bits depend on its own context alone."""

import pytest
import torch
from models import tiny_model

from demiurgic import _C, score

pytestmark = pytest.mark.cuda

TEXT = torch.randint(97, (700,), generator=torch.Generator().manual_seed(0)).tolist()  # three pieces of 256 positions
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODELS = {
    "a head each, 64": {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2},
    "grouped, 80": {"hidden_size": 480, "num_attention_heads": 6, "num_key_value_heads": 2},
    "one key head, 128": {"hidden_size": 640, "num_attention_heads": 5, "num_key_value_heads": 1},
}
# (most, mean) distance of a log-probability from the reference's. In float32 the order of sums alone differs. In the
# narrow dtypes the reference rounds every activation to them, our kernels only what their products and the cache need.
DISTANCE = {torch.float32: (1e-4, 6e-6), torch.bfloat16: (0.6, 0.06), torch.float16: (0.08, 0.008)}


def model_of(name, dtype):
    return tiny_model(max_position_embeddings=1024, **MODELS[name]).to(dtype).cuda()


def test_the_entry_is_ours():
    assert _C.kernels_info("cuda")["attend"] == "cuda"


@pytest.mark.parametrize("most", [512, 1, 20], ids=["prefill", "decode", "between"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_near_the_reference(monkeypatch, name, dtype, most):
    model = model_of(name, dtype)
    ours = score(model, TEXT, max_step_tokens=most)[0]
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    distance = (ours - score(model, TEXT)[0]).abs()
    largest, mean = DISTANCE[dtype]
    assert distance.max() <= largest and distance.mean() <= mean


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_a_row_alone(name, dtype):
    model = model_of(name, dtype)
    alone = score(model, TEXT)[0]
    for most in (1, 20, 255, 256, 257):
        assert torch.equal(score(model, TEXT, max_step_tokens=most)[0], alone), f"{most} tokens a step"
    # Few rows are computed in pieces side by side, many each by one block.
    for others in (3, 40, 300):
        rows = [TEXT, *([token % 97] * (1 + token % 40) for token in range(others))]
        batch = score(model, rows, max_running=512)[0, 1 - len(TEXT) :]
        assert torch.equal(batch, alone), f"{others} others"
