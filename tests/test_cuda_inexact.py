"""On a GPU: exact=False. Products of many rows may be cuBLASLt's: near the reference, few rows as ever."""

import pytest
import torch
from models import tiny_model
from test_kernels import DTYPES, FROM_REFERENCE, MODELS, TEXT, model_of

from demiurgic import _C, generate, score, session

pytestmark = pytest.mark.cuda

FEW = 64  # rows that our own kernels compute
GREEDY = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True}


@pytest.fixture(autouse=True)
def with_cublaslt():
    if "cuBLASLt" not in _C.kernels_info("cuda", exact=False)["mlp"]:
        pytest.skip("this build has no cuBLASLt")


def test_exact_is_the_default():
    assert _C.kernels_info("cuda") == _C.kernels_info("cuda", exact=True)
    assert not any("cuBLASLt" in by for by in _C.kernels_info("cuda").values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_near_the_reference(monkeypatch, name, dtype):
    model, text = model_of(name, dtype).cuda(), TEXT[:300]
    found = score(model, text, exact=False)[0]
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    distance = (found - score(model, text)[0]).abs()
    most, mean = FROM_REFERENCE["cpu", dtype]
    assert distance.max() <= most and distance.mean() <= mean


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_have_the_bits_of_exact(dtype):
    model, text = model_of("grouped, gated", dtype).cuda(), TEXT[:150]
    for most in (1, 20, FEW):
        found = score(model, text, exact=False, max_step_tokens=most)
        assert torch.equal(found, score(model, text, max_step_tokens=most)), f"{most} tokens a step"


def wide_model():
    """Products that a library does in pieces of K, not in the order of a single sum."""
    return tiny_model(hidden_size=512, intermediate_size=1536, num_attention_heads=8, attention_head_dim=64).cuda()


def test_many_rows_are_the_library_s():
    model, text = wide_model(), TEXT[:300]
    assert not torch.equal(score(model, text, exact=False), score(model, text))


@pytest.mark.parametrize("rows", [FEW + 1, 200])  # steps that are captured for 128 and for 256 rows
def test_decoding_many_rows(rows):
    model = wide_model()
    prompts = [[row % 97, *TEXT[: row % 7]] for row in range(rows)]
    exact, found = generate(model, prompts, **GREEDY), generate(model, prompts, exact=False, **GREEDY)
    alike = [i for i in range(rows) if exact.completions[i] == found.completions[i]]
    assert len(alike) >= 0.9 * rows  # float32: near-ties are rare
    for i in alike:
        torch.testing.assert_close(found.logprobs[i], exact.logprobs[i], rtol=0, atol=1e-4, equal_nan=True)


def test_captured_steps_see_weights_that_moved():
    """A library's captured launches hold addresses of weights, which those of ours look up."""
    model, prompts = wide_model(), [[row % 97] for row in range(FEW + 1)]
    with session(model, exact=False) as kept:
        before = kept.generate(prompts, **GREEDY)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data = parameter.data * 0.5 if parameter.dim() == 2 else parameter.data.clone()
        after, fresh = kept.generate(prompts, **GREEDY), generate(model, prompts, exact=False, **GREEDY)
    assert after.completions == fresh.completions != before.completions


def test_prefixes_of_the_other_kind_are_refused(tmp_path):
    model, file = wide_model(), tmp_path / "prefix"
    with session(model, exact=False) as loose, session(model) as exact:
        for saves, loads in ((loose, exact), (exact, loose)):
            saves.save_prefix(file, TEXT[:100])
            saves.load_prefix(file)
            with pytest.raises(ValueError, match="cuBLASLt"):
                loads.load_prefix(file)


def test_speculation_is_refused():
    with pytest.raises(ValueError, match="exact=False gives them up"):
        generate(wide_model(), [1, 2], exact=False, speculate="ngram")


def test_the_allocator_is_back_at_its_level():
    model, prompts = wide_model(), [TEXT[:100] for _ in range(FEW + 1)]
    generate(model, prompts, exact=False, **GREEDY)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        generate(model, prompts, exact=False, **GREEDY)
        assert torch.cuda.memory_allocated() == before
