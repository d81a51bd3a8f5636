"""The module against Hugging Face's Llama, against itself (masks, caches, recomputation), and its surface."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from demiurgic import DemiurgicConfig, DemiurgicForCausalLM, DemiurgicModel
from demiurgic.rotary import rotary_frequencies

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,  # large enough that a wrong rotation or mask moves the logits
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
VARIANTS = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "attention bias": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 0.1},
    "head_dim": {"attention_head_dim": 12, "num_key_value_heads": 2},
    "theta": {"rope_theta": 500.0},
    "default": {"rope_scaling": {"rope_type": "default"}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "linear, old spelling": {"rope_scaling": {"type": "linear", "factor": 2}},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}},
    "llama3, long": {
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 512},
        "attention_head_dim": 32,
    },
    "llama3, no original": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN | {"original_max_position_embeddings": 8}},
    "yarn, no original": {"rope_scaling": YARN, "attention_head_dim": 32},
    "yarn, betas": {"rope_scaling": YARN | {"beta_fast": 4, "beta_slow": 0.5, "truncate": False}},
    "yarn, attention factor": {"rope_scaling": YARN | {"attention_factor": 0.7}},
    "yarn, mscale": {"rope_scaling": YARN | {"mscale": 0.8, "mscale_all_dim": 0.3}},
}


def config_of(**changes):
    return DemiurgicConfig(**(TINY | changes))


def model_of(**changes):
    return DemiurgicForCausalLM(config_of(**changes)).eval()


def some_ids(rows=2, length=20):
    return torch.randint(1, TINY["vocab_size"], (rows, length))


def hugging_face(config):
    """The Llama of transformers that `config` describes, with random weights (norms and biases too)."""
    transformers = pytest.importorskip("transformers")
    settings = config.to_dict()
    for ours_alone in ("activation_function", "fim_tokens", "use_flash_attention_2", "hidden_dropout"):
        del settings[ours_alone]
    del settings["embedding_dropout"]
    settings["head_dim"] = settings.pop("attention_head_dim", None)
    rope = {"rope_theta": settings.pop("rope_theta")} | (settings.pop("rope_scaling") or {})
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, rope_parameters=rope)).eval()
    for name, parameter in llama.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return llama


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_are_those_of_hugging_face(variant):
    model = model_of(**VARIANTS[variant])
    llama = hugging_face(model.config)
    model.load_state_dict(llama.state_dict())
    ids = some_ids(length=48)  # past max_position_embeddings
    expected = llama(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotary_frequencies_are_those_of_hugging_face(variant):
    config = config_of(**VARIANTS[variant])
    rotary = hugging_face(config).model.rotary_emb
    frequencies, scale = rotary_frequencies(config)
    assert frequencies.dtype == torch.float32 and frequencies.shape == (config.head_dim // 2,)
    torch.testing.assert_close(frequencies, rotary.inv_freq, atol=0, rtol=1e-6)
    assert scale == pytest.approx(rotary.attention_scaling, rel=1e-12)


@pytest.mark.parametrize(
    "name, activate",
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        ("relu", lambda x: x * (x > 0)),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
        ("swish", lambda x: x / (1 + torch.exp(-x))),
    ],
)
def test_plain_activations(name, activate):
    mlp = model_of(activation_function=name).model.layers[0].mlp
    x = torch.randn(3, 32)
    torch.testing.assert_close(mlp(x), activate(x @ mlp.fc1.weight.T) @ mlp.fc2.weight.T)


PAIRS = ["multi-head", "grouped", "attention bias", "yarn"]


@pytest.mark.parametrize("variant", PAIRS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(variant, dtype):
    model = model_of(**VARIANTS[variant])
    text, pads = some_ids(1, 9), torch.zeros(1, 4, dtype=torch.int64)
    alone = model(text).logits[0]
    batch = torch.cat([torch.cat([pads, text], 1), torch.cat([text, pads], 1), some_ids(1, 13)])
    mask = torch.ones(3, 13, dtype=dtype)
    mask[0, :4] = mask[1, 9:] = 0
    for output_attentions in (False, True):  # two ways to the same
        logits = model(batch, attention_mask=mask, output_attentions=output_attentions).logits
        assert logits.isfinite().all()
        torch.testing.assert_close(logits[0, 4:], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[1, :9], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[2], model(batch[2:]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", PAIRS)
@pytest.mark.parametrize("chunks", [(20,), (19, 1), (7, 6, 7), (1, 1, 18)])
@torch.no_grad()
def test_cache_changes_nothing(variant, chunks):
    model = model_of(**VARIANTS[variant])
    ids, mask = some_ids(), torch.ones(2, 20)
    mask[0, :3] = 0
    for attention_mask in (None, mask):
        whole = model(ids, attention_mask=attention_mask).logits
        past, pieces, end = None, [], 0
        for length in chunks:
            start, end = end, end + length
            seen = None if attention_mask is None else mask[:, :end]
            out = model(ids[:, start:end], attention_mask=seen, past_key_values=past, use_cache=True)
            past, pieces = out.past_key_values, [*pieces, out.logits]
        shape = (2, model.config.num_key_value_heads, 20, 8)
        assert len(past) == 2 and all(tensor.shape == shape for pair in past for tensor in pair)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_later_tokens_do_not_reach_earlier_ones():
    model, ids = model_of(), some_ids()
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 61
    torch.testing.assert_close(model(ids).logits[:, :12], model(changed).logits[:, :12], atol=1e-6, rtol=0)


@torch.no_grad()
def test_given_positions_count():
    model, ids = model_of(), some_ids()
    positions = torch.arange(20)[None]
    assert torch.equal(model(ids, position_ids=positions).logits, model(ids).logits)
    assert torch.equal(model(ids, position_ids=positions.expand(2, -1)).logits, model(ids).logits)
    assert not torch.allclose(model(ids, position_ids=positions.flip(1)).logits, model(ids).logits)


@torch.no_grad()
def test_all_outputs():
    model, ids = model_of(num_key_value_heads=2), some_ids()
    plain = model(ids)
    assert plain._fields == ("loss", "logits", "past_key_values", "hidden_states", "attentions")
    assert plain.loss is None and plain.hidden_states is None and plain.attentions is None
    full = model(ids, output_attentions=True, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(full.logits, plain.logits, atol=1e-5, rtol=0)
    assert [tuple(a.shape) for a in full.attentions] == [(2, 4, 20, 20)] * 2
    for weights in full.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20))
        assert torch.equal(weights, weights.tril())
    assert [tuple(h.shape) for h in full.hidden_states] == [(2, 20, 32)] * 3
    assert torch.equal(full.hidden_states[0], model.model.embed_tokens(ids))
    torch.testing.assert_close(model.lm_head(full.hidden_states[-1]), full.logits)
    decoder = model.model(ids)
    assert decoder._fields == ("last_hidden_state", "past_key_values", "hidden_states", "attentions")
    assert torch.equal(decoder.last_hidden_state, model(ids, output_hidden_states=True).hidden_states[-1])
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(ids)).logits, plain.logits)


@pytest.mark.parametrize(
    "config, train, labels, asked, cached",
    [
        (True, False, False, None, True),
        (False, False, False, None, False),
        (True, True, False, None, False),
        (True, False, True, None, False),
        (True, True, True, True, True),
        (True, False, False, False, False),
    ],
)
def test_when_keys_and_values_are_returned(config, train, labels, asked, cached):
    model, ids = model_of(use_cache=config).train(train), some_ids()
    out = model(ids, labels=ids if labels else None, use_cache=asked)
    assert (out.past_key_values is not None) == cached


def test_loss_is_the_mean_over_shifted_targets():
    model, ids = model_of(), some_ids()
    labels = ids.clone()
    labels[0, :15] = -100
    out = model(ids, labels=labels)
    log_probabilities = out.logits.log_softmax(-1)
    targets = [(b, t) for b in range(2) for t in range(19) if labels[b, t + 1] != -100]
    expected = -sum(log_probabilities[b, t, labels[b, t + 1]] for b, t in targets) / len(targets)
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_checkpointing_gives_the_same_gradients(dropout):
    model = model_of(attention_dropout=dropout, hidden_dropout=dropout, embedding_dropout=dropout).train()
    ids, mask = some_ids(), torch.ones(2, 20)
    mask[1, :5] = 0

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    kept = gradients()
    model.gradient_checkpointing_enable()
    assert model.model.gradient_checkpointing
    for recomputed, expected in zip(gradients(), kept, strict=True):
        torch.testing.assert_close(recomputed, expected)
    model.gradient_checkpointing_disable()
    assert not model.model.gradient_checkpointing


@pytest.mark.parametrize("field", ["attention_dropout", "hidden_dropout", "embedding_dropout"])
def test_each_dropout_acts_in_train_mode_only(field):
    model, ids = model_of(**{field: 0.5}), some_ids()
    plain = model_of()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert not torch.allclose(model.train()(ids).logits, plain(ids).logits, atol=1e-3)


def test_a_training_loop_learns():
    model, ids = model_of(num_key_value_heads=2, tie_word_embeddings=True).train(), some_ids()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


IDS = torch.ones(2, 5, dtype=torch.int64)
PAST = tuple((torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8)) for _ in range(2))


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({}, ValueError, "either input_ids or inputs_embeds"),
        (
            {"input_ids": IDS, "inputs_embeds": torch.ones(2, 5, 32)},
            ValueError,
            "either input_ids or inputs_embeds",
        ),
        ({"input_ids": IDS * 61}, IndexError, "below 61; the given ones range from 61 to 61"),
        ({"input_ids": -IDS}, IndexError, "at least 0"),
        ({"input_ids": IDS.float()}, TypeError, "input_ids must be integers, not torch.float32"),
        ({"input_ids": IDS[0]}, ValueError, "[batch, tokens]"),
        ({"input_ids": IDS[:, :0]}, ValueError, "at least one token"),
        ({"inputs_embeds": torch.ones(2, 5, 31)}, ValueError, "inputs_embeds must be [batch, tokens, 32]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, ValueError, "attention_mask must be [2, 5]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(5)}, ValueError, "attention_mask must be [2, 5]"),
        ({"input_ids": IDS, "attention_mask": torch.full((2, 5), -1e9)}, ValueError, "0 where it is padding"),
        ({"input_ids": IDS, "attention_mask": IDS, "past_key_values": PAST}, ValueError, "must be [2, 8]"),
        (
            {"input_ids": IDS, "position_ids": IDS * 5},
            IndexError,
            "position_ids must be at least 0 and below 5",
        ),
        ({"input_ids": IDS, "position_ids": IDS[:, :4]}, ValueError, "position_ids must be [2, 5]"),
        ({"input_ids": IDS, "past_key_values": PAST[:1]}, ValueError, "each of the 2 layers"),
        ({"input_ids": IDS[:1], "past_key_values": PAST}, ValueError, "must be [1, 4, 3, 8]"),
        ({"input_ids": IDS, "labels": IDS[:, :4]}, ValueError, "labels must be [2, 5]"),
        ({"input_ids": IDS, "labels": IDS * 61}, IndexError, "labels must be at least 0 and below 61"),
        ({"input_ids": IDS, "no_such": 1}, TypeError, "no_such"),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error) as raised:
        model_of()(**arguments)
    assert words in str(raised.value)


def test_a_config_changed_to_no_model_is_refused():
    config = config_of()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match="must be divisible"):
        DemiurgicModel(config)
    with pytest.raises(TypeError, match="DemiurgicConfig, not dict"):
        DemiurgicForCausalLM(config.to_dict())


# Names, and what loads


def names_of(mlp, *, bias=()):
    layer = [f"self_attn.{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", *bias)]
    layer += [f"mlp.{name}.weight" for name in mlp]
    layer += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    layers = [f"model.layers.{n}.{name}" for n in range(2) for name in layer]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    "changes, names",
    [
        ({}, names_of(("gate_proj", "up_proj", "down_proj"))),
        ({"activation_function": "gelu"}, names_of(("fc1", "fc2"))),
        ({"attention_bias": True}, names_of(("gate_proj", "up_proj", "down_proj"), bias=("bias",))),
        ({"tie_word_embeddings": True}, names_of(("gate_proj", "up_proj", "down_proj"))),
    ],
)
def test_state_dict_names_and_their_order(changes, names):
    assert list(model_of(**changes).state_dict()) == names


def origin_names(state):
    """As the origin saved it, with the rotary buffers that still older files hold."""
    renamed = {
        name.replace(".mlp.", ".mlp.swiglu.") if "_proj" in name else name: value for name, value in state.items()
    }
    return renamed | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "changes, renamed",
    [
        ({}, origin_names),
        ({"activation_function": "relu"}, origin_names),
        ({}, lambda state: state | {"model.rotary_emb.inv_freq": torch.ones(4)}),
        ({"tie_word_embeddings": True}, lambda state: state),
        ({"tie_word_embeddings": True}, lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"}),
        ({"tie_word_embeddings": True}, lambda s: {k: v for k, v in s.items() if "embed_tokens" not in k}),
    ],
)
def test_load_state_dict_takes_other_names(changes, renamed, assign):
    source, target = model_of(**changes), model_of(**changes)
    given = renamed(dict(source.state_dict()))
    before = list(given)
    target.load_state_dict(given, assign=assign)
    assert list(given) == before  # the caller's own dict is left alone
    ids = some_ids()
    assert torch.equal(target(ids).logits, source(ids).logits)
    tied = target.lm_head.weight is target.model.embed_tokens.weight
    assert tied == target.config.tie_word_embeddings


def test_a_wrapped_model_takes_other_names():
    source, wrapped = model_of(), torch.nn.Sequential(model_of())
    wrapped.load_state_dict({f"0.{name}": value for name, value in origin_names(source.state_dict()).items()})
    assert torch.equal(wrapped[0].model.layers[1].mlp.up_proj.weight, source.model.layers[1].mlp.up_proj.weight)


def test_other_differences_are_refused():
    state = model_of().state_dict()
    del state["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight"):
        model_of().load_state_dict(state)


# Numbers, devices, dtypes


def test_initial_values():
    model = DemiurgicForCausalLM(config_of(vocab_size=500, initializer_range=0.02, attention_bias=True))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1).all()
        elif name.endswith("bias"):
            assert parameter.eq(0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.model.embed_tokens.weight[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_narrow_dtypes_do_not_touch_the_rotation(dtype):
    model, ids = model_of(), some_ids(length=64)
    narrow = copy.deepcopy(model).to(dtype)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))  # the same values, in float32
    expected = model(ids).logits
    torch.testing.assert_close(copy.deepcopy(narrow).float()(ids).logits, expected, atol=0, rtol=0)
    logits = narrow(ids).logits
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.05 * expected.std()


@torch.no_grad()
def test_float32_norms_beside_narrow_matrices():
    model = model_of().bfloat16()
    expected = model(IDS).logits
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    out = model(IDS, output_hidden_states=True)
    assert {state.dtype for state in out.hidden_states} == {torch.bfloat16}
    torch.testing.assert_close(out.logits, expected)


@torch.no_grad()
def test_autocast_runs_close_to_float32():
    model, ids = model_of(), some_ids()
    expected = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.05 * expected.std()


@torch.no_grad()
def test_text_past_max_position_embeddings_goes_on():
    short, ids = model_of(max_position_embeddings=8), some_ids(length=100)
    long = model_of(max_position_embeddings=4096)
    long.load_state_dict(short.state_dict())
    assert torch.equal(short(ids).logits, long(ids).logits)


def test_meta_device_and_back():
    with torch.device("meta"):
        model = DemiurgicForCausalLM(config_of(tie_word_embeddings=True))
        assert model(IDS.to("meta")).logits.shape == (2, 5, 61)
    model = model.to_empty(device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    source = model_of(tie_word_embeddings=True)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model(IDS).logits, source(IDS).logits)


def test_compiles_without_a_graph_break():
    model, ids, mask = model_of(num_key_value_heads=2), some_ids(), torch.ones(2, 20, dtype=torch.int64)
    mask[0, :4] = 0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_apart(copied):
    model = model_of(tie_word_embeddings=True)
    twin = copied(model)
    assert torch.equal(twin(IDS).logits, model(IDS).logits)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight is not model.lm_head.weight
    twin.load_state_dict(origin_names(model.state_dict()))


# Embeddings


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [40, 61, 80])
@torch.no_grad()
def test_resizing_keeps_the_first_rows(tied, rows):
    model, ids, kept = model_of(tie_word_embeddings=tied).bfloat16(), some_ids() % 40, min(rows, 61)
    before = model(ids).logits
    model.lm_head.weight.requires_grad_(False)
    assert model.resize_token_embeddings(rows) is model.model.embed_tokens
    after = model(ids).logits
    assert after.shape[-1] == rows == model.vocab_size == model.config.vocab_size
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.lm_head.weight.dtype == torch.bfloat16 and not model.lm_head.weight.requires_grad
    assert DemiurgicForCausalLM(model.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("rows", [0, -1, 2, 1.5, "80"])
def test_resizing_to_nonsense_is_refused(rows):
    with pytest.raises(ValueError, match="at least 4"):
        model_of(pad_token_id=3).resize_token_embeddings(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_read_and_replaced(tied):
    model = model_of(tie_word_embeddings=tied)
    assert model.get_input_embeddings() is model.model.embed_tokens is model.model.get_input_embeddings()
    assert model.get_output_embeddings() is model.lm_head and model.model.get_output_embeddings() is None
    embedding, head = torch.nn.Embedding(61, 32), torch.nn.Linear(32, 61, bias=False)
    model.set_input_embeddings(embedding)
    assert model.model.embed_tokens is embedding
    assert (model.lm_head.weight is embedding.weight) == tied
    model.set_output_embeddings(head)
    assert model.lm_head is head and (model.model.embed_tokens.weight is head.weight) == tied
    with pytest.raises(TypeError, match="has no head"):
        model.model.set_output_embeddings(head)


def test_number_of_parameters():
    tied, apart = model_of(tie_word_embeddings=True), model_of()
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert tied.num_parameters() == 61 * 32 + 2 * layer + 32
    assert apart.num_parameters() == tied.num_parameters() + 61 * 32
    apart.model.embed_tokens.requires_grad_(False)
    assert apart.num_parameters(only_trainable=True) == tied.num_parameters()


def test_generate_hands_over_to_the_engine(monkeypatch):
    calls = []
    monkeypatch.setattr("demiurgic.engine.generate", lambda *given, **options: calls.append((given, options)))
    model = model_of()
    model.generate(IDS)
    model.generate(IDS, 64, attention_mask="mask", top_k=3)
    model.generate(input_ids=IDS, max_new_tokens=7)
    assert calls == [
        ((model, IDS, None), {}),
        ((model, IDS, "mask"), {"max_new_tokens": 64, "top_k": 3}),
        ((model, IDS, None), {"max_new_tokens": 7}),
    ]


def test_loss_matches_torch_in_train_mode():
    model, ids = model_of().train(), some_ids()
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    assert out[0] is out.loss and out[1] is out.logits
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[:, :-1].reshape(-1, 61), ids[:, 1:].reshape(-1)))
