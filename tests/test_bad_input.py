"""What generate refuses: a clear exception before any work, the model and the process untouched."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from models import fixed_logits_model, tiny_model
from torch import nn

from demiurgic import DemiurgicModel, GenerationConfig, generate

IDS = [[1, 2, 3]]


def state_of(model):
    """All that a refused call must leave alone."""
    tensors = {
        name: (id(p), p.device, p.dtype, p.requires_grad, p.grad, None if p.is_meta else p.detach().clone())
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    modes = [module.training for module in model.modules()]
    return tensors, modes, torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def check_refused(model, error, words, *arguments, **keywords):
    before = state_of(model) if isinstance(model, nn.Module) else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=re.escape(words)) as caught:
            generate(model, *arguments, **keywords)
    assert caught.type is error
    assert "\n" not in str(caught.value) and str(caught.value)[-1] in ".?"
    if before is not None:
        assert same(state_of(model), before)


# ---- ids and masks -----------------------------------------------------------------------------------------

ONES = torch.ones(1, 3)
# input_ids, attention_mask, error, a telling piece of the message
INPUTS = [
    ([], None, ValueError, "input_ids is empty"),
    ([[]], None, ValueError, "The prompt of row 0 is empty"),
    ([[1], [], [2]], None, ValueError, "The prompt of row 1 is empty"),
    (torch.zeros(1, 0, dtype=torch.int64), None, ValueError, "input_ids has the shape [1, 0]"),
    (torch.zeros(0, 3, dtype=torch.int64), None, ValueError, "input_ids has the shape [0, 3]"),
    (torch.zeros(0, dtype=torch.int64), None, ValueError, "input_ids has the shape [0]"),
    (torch.ones(1, 2, 3, dtype=torch.int64), None, ValueError, "input_ids has the shape [1, 2, 3]; give [B, T] or [T]"),
    (torch.tensor(3), None, ValueError, "input_ids has the shape []"),
    (3, None, ValueError, "input_ids has the shape []"),
    ([[[1]]], None, ValueError, "Row 0 of input_ids has the shape [1, 1]"),
    ([[1, 2], 3], None, ValueError, "Row 1 of input_ids has the shape []"),
    ([[97]], None, IndexError, "the id 97 in row 0, but the vocabulary has the ids 0 to 96"),
    ([[1], [2, -1]], None, IndexError, "the id -1 in row 1, but the vocabulary has the ids 0 to 96"),
    ([2**62], None, IndexError, "4611686018427387904"),
    (torch.tensor([[1.0, 2.0]]), None, TypeError, "input_ids is of torch.float32; give integers"),
    ([[1.0, 2.0]], None, TypeError, "input_ids is of torch.float32; give integers"),
    ([[1, 2.5]], None, TypeError, "input_ids is of torch.float32"),
    (torch.tensor([[True, False]]), None, TypeError, "input_ids is of torch.bool; give integers"),
    (torch.tensor([[1j]]), None, TypeError, "input_ids is of torch.complex64"),
    (torch.ones(1, 2, dtype=torch.int64, device="meta"), None, ValueError, "input_ids is on the meta device"),
    (np.array([[1.5]]), None, TypeError, "input_ids is of torch.float64"),
    (np.array(["a"]), None, TypeError, "input_ids is of type ndarray"),
    ("def f():", None, TypeError, "input_ids is of type str"),
    (b"def", None, TypeError, "input_ids is of type bytes"),
    (None, None, TypeError, "input_ids is of type NoneType"),
    ({"input_ids": IDS}, None, TypeError, "input_ids is of type dict"),
    ({1, 2}, None, TypeError, "input_ids is of type set"),
    (["def", "f"], None, TypeError, "Row 0 of input_ids is of type list"),
    ([[1], None], None, TypeError, "Row 1 of input_ids is of type NoneType"),
    ([[1], "f"], None, TypeError, "Row 1 of input_ids is of type str"),
    ([[2**64]], None, TypeError, "Row 0 of input_ids is of type list"),
    (IDS, torch.ones(1, 2), ValueError, "attention_mask has the shape [1, 2], but input_ids is [1, 3]"),
    (IDS, torch.ones(2, 3), ValueError, "attention_mask has the shape [2, 3], but input_ids is [1, 3]"),
    (IDS, torch.ones(1, 1, 3), ValueError, "attention_mask has the shape [1, 1, 3]"),
    (IDS, torch.ones(0), ValueError, "attention_mask has the shape [1, 0]"),
    ([[1], [2, 3]], torch.ones(2, 2), ValueError, "prompts of several lengths"),
    ([[1], [2, 3]], [[1], [1, 1]], ValueError, "attention_mask has rows of several lengths"),
    (IDS, [[1, 0, 1]], ValueError, "attention_mask has a hole in row 0"),
    ([[1, 2, 3]] * 2, [[1, 1, 1], [1, 0, 1]], ValueError, "attention_mask has a hole in row 1"),
    (IDS, [[2, 1, 1]], ValueError, "attention_mask must hold 1 where a token counts and 0"),
    (IDS, [[-1, 1, 1]], ValueError, "attention_mask must hold 1"),
    (IDS, ONES * 0.5, ValueError, "attention_mask must hold 1"),
    (IDS, ONES * torch.nan, ValueError, "attention_mask must hold 1"),
    (IDS, (1 - ONES) * -3.4e38, ValueError, "The prompt of row 0 is empty"),  # what HF adds to scores, here -0
    (IDS, [[0, 0, 0]], ValueError, "The prompt of row 0 is empty"),
    (IDS, ONES.to("meta"), ValueError, "attention_mask is on the meta device"),
    (IDS, "111", TypeError, "attention_mask is of type str"),
    (IDS, {}, TypeError, "attention_mask is of type dict"),
]


@pytest.mark.parametrize(("ids", "mask", "error", "words"), INPUTS)
def test_ids_and_masks(ids, mask, error, words):
    check_refused(tiny_model(), error, words, ids, mask)


# ---- options and keywords ----------------------------------------------------------------------------------

OPTIONS = [
    ({"temprature": 1}, TypeError, "There is no generation option 'temprature'; did you mean 'temperature'?"),
    ({"topk": 5}, TypeError, "did you mean 'top_k'?"),
    ({"max_runing": 5}, TypeError, "generate has no keyword 'max_runing'; did you mean 'max_running'?"),
    ({"progres": True}, TypeError, "generate has no keyword 'progres'; did you mean 'progress'?"),
    ({"attention_masks": [[1]]}, TypeError, "did you mean 'attention_mask'?"),
    ({"return_dict": True}, TypeError, "did you mean 'return_dict_in_generate'?"),
    ({"num_beams": 4}, TypeError, "There is no generation option 'num_beams'"),
    ({"max_new_tokens": "5"}, TypeError, "max_new_tokens is '5' of type str, but must be"),
    ({"max_new_tokens": 5.0}, TypeError, "max_new_tokens is 5.0 of type float"),
    ({"max_new_tokens": True}, TypeError, "max_new_tokens is True of type bool"),
    ({"max_new_tokens": -1}, ValueError, "max_new_tokens is -1, but must be an integer of 0 or more"),
    ({"max_new_tokens": None}, ValueError, "max_new_tokens and max_length are both None"),
    ({"max_length": 0}, ValueError, "max_length is 0"),
    ({"temperature": -0.5}, ValueError, "temperature is -0.5, but must be 0 (greedy) or from 0.0001 to 10000"),
    ({"temperature": torch.nan}, ValueError, "temperature is nan"),
    ({"top_p": 1.5}, ValueError, "top_p is 1.5, but must be from 0 to 1"),
    ({"top_k": -1}, ValueError, "top_k is -1"),
    ({"typical_p": -1}, ValueError, "typical_p is -1"),
    ({"min_p": 2}, ValueError, "min_p is 2"),
    ({"repetition_penalty": 0}, ValueError, "repetition_penalty is 0"),
    ({"num_return_sequences": 0}, ValueError, "num_return_sequences is 0"),
    ({"do_sample": 1}, TypeError, "do_sample is 1 of type int"),
    ({"min_new_tokens": 6, "max_new_tokens": 5}, ValueError, "min_new_tokens is 6, but must be at most"),
    ({"logit_bias": {97: 1.0}}, IndexError, "logit_bias names the id 97, but the vocabulary has the ids 0 to 96"),
    ({"bad_token_ids": [97]}, IndexError, "bad_token_ids names the id 97"),
    ({"stop_token_ids": [5, 97]}, IndexError, "stop_token_ids names the id 97"),
    ({"eos_token_id": 97}, IndexError, "97, but the vocabulary has the ids 0 to 96"),
    ({"pad_token_id": 97}, IndexError, "97, but the vocabulary has the ids 0 to 96"),
    ({"eos_token_id": -1}, ValueError, "eos_token_id"),
    ({"seed": -1}, ValueError, "seed is -1, but must be from 0 to 2**64 - 1"),
    ({"seed": 2**64}, ValueError, "seed is 18446744073709551616"),
    ({"seed": 1.0}, TypeError, "seed is 1.0"),
    ({"seed": []}, ValueError, "seed is a list of 0, but must have one entry a prompt (1) or one a row (1)"),
    ({"seed": [1, 2]}, ValueError, "seed is a list of 2, but must have one entry a prompt (1) or one a row (1)"),
    ({"seed": [1, 2], "num_return_sequences": 3}, ValueError, "one entry a prompt (1) or one a row (3)"),
    ({"generation_config": {"top_k": 5}}, TypeError, "generation_config is a dict; give a demiurgic.GenerationConfig"),
    ({"return_dict_in_generate": 1}, TypeError, "return_dict_in_generate is 1, but must be True or False"),
    ({"max_running": 0}, ValueError, "max_running is 0, but must be 1 or more"),
    ({"max_running": 2.0}, TypeError, "max_running is 2.0, but must be an integer"),
    ({"max_running": True}, TypeError, "max_running is True, but must be an integer"),
    ({"max_running": None}, TypeError, "max_running is None, but must be an integer"),
    ({"max_step_tokens": 0}, ValueError, "max_step_tokens is 0, but must be 1 or more"),
    ({"max_step_tokens": "a"}, TypeError, "max_step_tokens is 'a', but must be an integer"),
    ({"exact": 1}, TypeError, "exact is 1, but must be True or False"),
    ({"exact": "no"}, TypeError, "exact is 'no', but must be True or False"),
    ({"exakt": False}, TypeError, "generate has no keyword 'exakt'; did you mean 'exact'?"),
    ({"exact": False, "speculate": "ngram"}, ValueError, "at once. exact=False gives them up. Leave it out."),
    ({"cache_bytes": 0}, ValueError, "cache_bytes is 0, but must be 1 or more"),
    ({"cache_bytes": -5}, ValueError, "cache_bytes is -5, but must be 1 or more"),
    ({"cache_bytes": 1e9}, TypeError, "cache_bytes is 1000000000.0, but must be an integer"),
    # 3 + 100 - 1 tokens are 7 blocks of 16, each of 2 layers x 16 tokens x 2 heads x 8 x (k and v) x 4 bytes = 4096.
    ({"cache_bytes": 4096}, RuntimeError, "3 prompt tokens that may grow to 103 needs 0.0287 MB of key/value cache"),
    ({"cache_bytes": 4096}, RuntimeError, "cache_bytes allows 0.0041 MB; lower max_new_tokens or raise cache_bytes"),
    ({"cache_bytes": 7 * 4096 - 1}, RuntimeError, "cache_bytes allows 0.0246 MB"),
    ({"max_new_tokens": 10**12}, RuntimeError, "but the device has room for"),
    ({"max_new_tokens": 2**63 - 1}, RuntimeError, "but the device has room for"),
    ({"max_running": 2**63}, ValueError, "max_running"),
    ({"cache_bytes": 2**63}, ValueError, "cache_bytes"),
    ({"max_step_tokens": 2**63}, ValueError, "max_step_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "words"), OPTIONS)
def test_options_and_keywords(options, error, words):
    check_refused(tiny_model(), error, words, IDS, **options)


# ---- models ------------------------------------------------------------------------------------------------


def cast(part, dtype):
    def spoil(model):
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.requires_grad_(False).data = parameter.data.to(dtype)

    return spoil


def to_meta(part):
    def spoil(model):
        model.get_submodule(part).to("meta")

    return spoil


def configured(**settings):
    def spoil(model):
        for name, value in settings.items():
            setattr(model.config, name, value)

    return spoil


# how the model is spoilt, error, a telling piece of the message
MODELS = {
    "meta": (lambda m: m.to("meta"), ValueError, "embed_tokens.weight is on the meta device and holds no numbers"),
    "one on meta": (to_meta("model.layers.1.mlp"), ValueError, "layers.1.mlp.gate_proj.weight is on the meta device"),
    "float64": (lambda m: m.double(), ValueError, "is of Double; float32, bfloat16 and float16 are supported"),
    "integers": (cast("embed", torch.int8), ValueError, "model.embed_tokens.weight is of Char"),
    "mixed dtypes": (
        cast("layers.0", torch.bfloat16), ValueError,
        "layers.0.input_layernorm.weight is of BFloat16 and model.embed_tokens.weight of Float; all parameters must"),
    "narrow norm": (cast("norm", torch.float16), ValueError, "norm.weight is of Half and model.embed_tokens.weight of"),
    "narrow head": (cast("lm_head", torch.float16), ValueError, "lm_head.weight is of Half"),
    "wide bias": (
        lambda m: (m.to(torch.bfloat16), cast("bias", torch.float32)(m)), ValueError, "q_proj.bias is of Float"),
    "vocab_size": (
        configured(vocab_size=98), ValueError, "embed_tokens.weight has the shape [97, 32], but the model's"),
    "hidden_size": (configured(hidden_size=64), ValueError, "has the shape [97, 32]"),
    "heads": (configured(num_key_value_heads=4), ValueError, "layers.0.self_attn.k_proj.weight has the shape [16, 32]"),
    "no norm": (lambda m: delattr(m.model.norm, "weight"), ValueError, "The model has no parameter model.norm.weight"),
    "sparse": (
        lambda m: setattr(m.lm_head, "weight", nn.Parameter(m.lm_head.weight.data.to_sparse())), ValueError,
        "The parameter lm_head.weight is torch.sparse_coo"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models(case):
    spoil, error, words = MODELS[case]
    model = tiny_model(attention_bias=True)
    with torch.no_grad():
        spoil(model)
    if case == "sparse":  # its values cannot be compared as dense ones are
        with pytest.raises(error, match=words):
            generate(model, IDS)
    else:
        check_refused(model, error, words, IDS)


def test_not_a_model():
    cases = {
        "str": "gpt2",
        "NoneType": None,
        "Linear": nn.Linear(2, 2),
        "OrderedDict": tiny_model().state_dict(),
        "type": type(tiny_model()),
        "GenerationConfig": GenerationConfig(),
    }
    for name, not_a_model in cases.items():
        check_refused(
            not_a_model, TypeError, f"The model is a {name}; demiurgic generates from a DemiurgicForCausalLM", IDS
        )


def test_a_model_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 10,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    check_refused(
        llama, TypeError, "The model is a LlamaForCausalLM; demiurgic generates from a DemiurgicForCausalLM", IDS
    )


def test_a_decoder_without_a_head():
    decoder = DemiurgicModel(tiny_model().config)
    check_refused(decoder, TypeError, "The model is a DemiurgicModel, which has no head over the vocabulary", IDS)


# ---- what sounds bad and is not ----------------------------------------------------------------------------


def test_large_and_other_integers_are_allowed():
    model = tiny_model()
    expected = generate(model, IDS, seed=0)
    for number in (2**63 - 1, np.int64(2**40), np.uint8(255), torch.tensor(10**6)):
        assert torch.equal(generate(model, IDS, seed=0, max_running=number, max_step_tokens=number), expected)
    assert torch.equal(generate(model, IDS, seed=0, cache_bytes=2**63 - 1), expected)


def test_top_k_above_the_vocabulary_keeps_all():
    model = tiny_model()
    all_of_it = generate(model, IDS, seed=0, top_k=0)
    for top_k in (97, 98, 10**9, 2**63 - 1):
        assert torch.equal(generate(model, IDS, seed=0, top_k=top_k), all_of_it)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"max_new_tokens": 6}, 9),
        ({"max_length": 12}, 12),
        ({"max_new_tokens": 6, "num_return_sequences": 3}, 9),
        ({"max_new_tokens": 5}, None),
        ({"max_length": 8}, None),
        ({"max_new_tokens": 6, "max_length": 4}, None),
    ],
)
@pytest.mark.parametrize("door", ["generate", "model.generate"])
def test_past_max_position_embeddings_goes_on_with_one_warning(door, options, limit):
    model = tiny_model(max_position_embeddings=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if door == "generate":
            out = generate(model, [[1, 2, 3], [4]], seed=0, **options)
        else:
            out = model.generate([[1, 2, 3], [4]], seed=0, **options)
    assert out.shape[1] >= (limit or 4)
    assert len(caught) == (limit is not None)
    for warning in caught:
        assert f"grow to {limit} tokens, but max_position_embeddings is 8" in str(warning.message)
        assert warning.category is UserWarning and warning.filename == __file__


@pytest.mark.parametrize("length", [1, 8])
def test_nothing_to_generate_warns_of_nothing(length):
    model = tiny_model(max_position_embeddings=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, [1] * length, max_new_tokens=0).shape == (1, length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_norms_beside_narrow_matrices_are_allowed(dtype):
    model = tiny_model().to(dtype)
    narrow = generate(model, IDS, seed=0, max_new_tokens=5)
    cast("norm", torch.float32)(model)
    assert torch.equal(generate(model, IDS, seed=0, max_new_tokens=5), narrow)


def test_a_head_with_a_bias_is_used():
    model = fixed_logits_model([3.0, 2.0, 1.0])
    head = nn.Linear(4, 3, bias=True)
    head.load_state_dict({"weight": model.lm_head.weight.data, "bias": torch.tensor([0.0, 5.0, 0.0])})
    model.set_output_embeddings(head)
    assert generate(model, [[0]], do_sample=False, max_new_tokens=2).tolist() == [[0, 1, 1]]


def test_layers_count_as_the_module_has_them():
    # Layers added to or taken from the module are run as forward runs them, whatever the config says.
    for change in (lambda layers: layers.append(copy.deepcopy(layers[0])), lambda layers: layers.pop(0)):
        model = tiny_model()
        before = generate(model, IDS, do_sample=False, max_new_tokens=4)
        change(model.model.layers)
        after = generate(model, IDS, do_sample=False, max_new_tokens=4)
        with torch.no_grad():
            ids = torch.tensor(IDS)
            for _ in range(4):
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(after, ids) and not torch.equal(after, before)


def test_the_next_call_after_a_refused_one_works():
    model = tiny_model()
    expected = generate(model, IDS, seed=0, max_new_tokens=5)
    for ids, mask, error, _ in INPUTS:
        with pytest.raises(error):
            generate(model, ids, mask)
    assert torch.equal(generate(model, IDS, seed=0, max_new_tokens=5), expected)
