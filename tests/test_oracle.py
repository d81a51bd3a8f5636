"""The engine against a plain PyTorch loop over `forward`: each variant of the decoder, each dtype, HF's Llama."""

import copy

import pytest
import torch
from models import tiny_model
from plain_loop import float64_logits, greedy, prompts_without_ties

from demiurgic import DemiurgicForCausalLM, generate

pytestmark = pytest.mark.usefixtures("isa")

LENGTHS = (1, 2, 15, 16, 17, 40)  # of prompts: around the ends of a cache block, which holds 16 tokens
NEW = 24
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ODD = {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 37}

VARIANTS = {
    "multi-head": {"num_key_value_heads": 4},
    "grouped-query": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "mlp bias, plain": {"mlp_bias": True, "activation_function": "relu"},
    "all biases, tied": {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
    "swiglu": {"activation_function": "swiglu"},
    "silu": {"activation_function": "silu"},
    "swish": {"activation_function": "swish"},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "theta": {"rope_theta": 300.0},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}},
    "yarn": {"rope_scaling": YARN},
    "yarn, attention factor": {"rope_scaling": YARN | {"attention_factor": 0.7}},
    "head_dim above": {"attention_head_dim": 12},
    "head_dim below": {"attention_head_dim": 2},
    "eps": {"rms_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    "five layers": {"num_hidden_layers": 5},
    "odd sizes": ODD | {"vocab_size": 101},
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("mps", marks=pytest.mark.mps)]


def varied(model):
    """Moves norms and biases off the ones and zeros of a new model, with which a missing one would not be seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += torch.linspace(-0.5, 0.5, parameter.numel())
    return model


def check_against_the_loop(model, prompts, new):
    expected = [greedy(model, prompt, new) for prompt in prompts]
    result = generate(model, prompts, do_sample=False, max_new_tokens=new, return_dict_in_generate=True)
    assert result.completions == [tokens for tokens, _, _ in expected]
    logprobs = torch.tensor([logprobs for _, logprobs, _ in expected])
    torch.testing.assert_close(result.logprobs.cpu(), logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_the_plain_loop(variant):
    model = varied(tiny_model(**VARIANTS[variant]))
    check_against_the_loop(model, prompts_without_ties(model, LENGTHS, NEW), NEW)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_greedy_tokens_on_other_devices(device):
    model = varied(tiny_model(attention_bias=True)).to(device)
    check_against_the_loop(model, prompts_without_ties(model, LENGTHS, NEW), NEW)


@pytest.mark.parametrize("scaling", [None, YARN, LLAMA3])
@pytest.mark.filterwarnings("ignore:Rows may grow to")
def test_past_max_position_embeddings(scaling):
    model = tiny_model(max_position_embeddings=8, rope_scaling=scaling)
    check_against_the_loop(model, prompts_without_ties(model, (1, 7, 20), NEW), NEW)


# Most distance of a log-probability by the engine from one by forward. float32: the order of sums alone differs; seen
# on these models: 1.2e-5. The narrow dtypes: forward rounds every activation, the reference kernels too but at other
# places, the CPU's own only keys and values (and what its instructions multiply), so logits of up to 8 differ by a few
# units in the last place, 2^-5 in bfloat16 and 2^-8 in float16; seen: 0.09 and 0.010 by the reference. CUDA and MPS sum
# in orders of their own, and MPS's float32 exp and sin are less exact. tests/test_kernels.py has the distances from
# float64.
TOLERANCES = {
    ("cpu", torch.float32): 1e-4,
    ("cpu", torch.bfloat16): 0.2,
    ("cpu", torch.float16): 0.025,
    ("cuda", torch.float32): 1e-4,
    ("cuda", torch.bfloat16): 0.2,
    ("cuda", torch.float16): 0.025,
    ("mps", torch.float32): 1e-3,
    ("mps", torch.bfloat16): 0.2,
    ("mps", torch.float16): 0.025,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "norms"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize("variant", ["grouped-query", "gelu", "all biases, tied"])
def test_logprobs_within_tolerance(device, dtype, norms, variant):
    model = varied(tiny_model(**VARIANTS[variant])).to(device)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(norms if "norm" in name else dtype)
    prompts, tolerance = [[5], list(range(3, 43))], TOLERANCES[device, dtype]
    sampled = generate(model, prompts, seed=3, top_k=0, top_p=1, max_new_tokens=NEW, return_dict_in_generate=True)
    best = generate(model, prompts, do_sample=False, max_new_tokens=NEW, return_dict_in_generate=True)
    for row, prompt in enumerate(prompts):
        for result in (sampled, best):
            completion = result.completions[row]
            exact = float64_logits(copy.deepcopy(model).cpu(), prompt + completion)[len(prompt) - 1 : -1]
            expected = exact.log_softmax(-1).float()
            chosen = expected.gather(1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(result.logprobs[row].cpu(), chosen, rtol=0, atol=tolerance)
        # What the engine took as the best token is the best by forward too, but for rounding.
        assert (expected.max(1).values - chosen).max() <= 2 * tolerance


LLAMAS = {
    "grouped, llama3": {"num_key_value_heads": 2, "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}},
    "biases, head_dim": {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
    "tied, yarn": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
}


@pytest.mark.parametrize("variant", LLAMAS)
def test_a_folder_of_hugging_face(tmp_path, variant):
    transformers = pytest.importorskip("transformers")
    settings = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    rope = {"rope_theta": 10000.0} | LLAMAS[variant].get("rope_parameters", {"rope_type": "default"})
    config = transformers.LlamaConfig(**(settings | LLAMAS[variant] | {"rope_parameters": rope}))
    llama = varied(transformers.LlamaForCausalLM(config).eval())
    llama.save_pretrained(tmp_path)
    model = DemiurgicForCausalLM.from_pretrained(tmp_path)

    prompts = prompts_without_ties(model, (1, 16, 30), NEW)
    result = generate(model, prompts, do_sample=False, max_new_tokens=NEW, return_dict_in_generate=True)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            theirs = llama.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )[0]
            assert result.completions[row] == theirs[len(prompt) :].tolist()
            logits = llama(theirs[None]).logits
            torch.testing.assert_close(model(theirs[None]).logits, logits, rtol=0, atol=1e-4)
            logprobs = logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, theirs[len(prompt) :, None])[:, 0]
            torch.testing.assert_close(result.logprobs[row], logprobs, rtol=0, atol=1e-4)
