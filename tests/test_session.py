"""Sessions: what is reused, what is dropped when weights change, what is written to files and refused from them.

That reuse changes no bit under any instruction set is in test_exactness.py; the index itself is tested in tests/cpp.
"""

import copy
import gc
import pickle
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from models import tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from same_bits import check_same_bits
from test_guest import WRITES

import demiurgic
from demiurgic import _C, GenerationConfig, generate, score
from demiurgic.engine import Generation
from demiurgic.live_weights import live_weights

BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the cache of tiny_model: k and v, layers, tokens, heads, head_dim, float32
NEW = 5
OPTIONS = {"max_new_tokens": NEW, "seed": 3, "return_dict_in_generate": True}


def text(length, seed=0):
    return random.Random(f"{length} {seed}").choices(range(97), k=length)


LONG = text(100)


def check_same(found, expected):
    assert found.completions == expected.completions
    check_same_bits(found.logprobs, expected.logprobs)


def check_as_without(session, model, prompts, **options):
    """The call gives what it gives without a session; returns it, and how many tokens it did and did not compute."""
    before, options = session.info, OPTIONS | options
    found = session.generate(prompts, **options)
    check_same(found, generate(model, prompts, **options))
    now = session.info
    return found, now.computed_tokens - before.computed_tokens, now.reused_tokens - before.reused_tokens


def check_scores_as_without(session, model, prompts, **keywords):
    found, own = session.score(prompts, **keywords), score(model, prompts)
    check_same_bits(found, own)


def under_way(model, session):
    """A call with OPTIONS that has made its first step."""
    config = GenerationConfig(max_new_tokens=NEW, seed=3)
    call = Generation(model, [LONG], config=config, want_logprobs=True, session=session)
    call.advance()
    return call


# ---- reuse ----------------------------------------------------------------------------------------------------------


def test_a_turn_computes_only_what_is_new():
    model = tiny_model()
    with demiurgic.session(model) as session:
        chat = LONG[:37]
        found, computed, reused = check_as_without(session, model, [chat])
        assert (computed, reused) == (37 + NEW - 1, 0)
        for turn in range(4):
            known = len(chat) + NEW - 1  # what was sampled last has not gone through the model
            chat = chat + found.completions[0] + text(3 + 9 * turn, turn)
            found, computed, reused = check_as_without(session, model, [chat])
            assert (computed, reused) == (len(chat) - known + NEW - 1, known)
        assert session.info.hits == 4 and session.info.drops == session.info.evictions == 0


@pytest.mark.parametrize("shared", [0, 1, 15, 16, 17, 31, 32, 33, 48, 60])
def test_the_longest_common_prefix_is_reused_to_the_token(shared):
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG[:60])
        other = LONG[:shared] + [(token + 1) % 97 for token in LONG[shared:70]]
        _, computed, reused = check_as_without(session, model, [other])
        assert (computed, reused) == (70 - shared + NEW - 1, shared)


def test_the_last_token_of_a_prompt_is_always_computed():
    model = tiny_model()
    with demiurgic.session(model) as session:
        for length in (48, 48, 47, 33, 32, 1):
            _, computed, _ = check_as_without(session, model, [LONG[:length]])
            assert computed == (48 if session.info.hits == 0 else 1) + NEW - 1


def test_rows_of_one_call_share_what_the_first_ones_have_computed():
    model = tiny_model()
    prompts = [LONG + text(4, row) for row in range(30)]
    with demiurgic.session(model, max_step_tokens=64) as session:
        _, computed, reused = check_as_without(session, model, prompts)
        assert computed + reused == 30 * (104 + NEW - 1)
        assert computed < 2 * 104 + 30 * (8 + 4 + NEW)  # two begin before there is anything to find


def test_copies_of_a_prompt():
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG[:50])
        for copies in (1, 3):
            _, computed, _ = check_as_without(session, model, [LONG[:50]], num_return_sequences=copies)
            assert computed == copies * (1 + NEW - 1)


def test_a_cancelled_row_leaves_what_it_has_computed():
    model = tiny_model()
    with demiurgic.session(model, max_step_tokens=20) as session:
        with Generation(model, [LONG], config=GenerationConfig(seed=0), session=session) as generation:
            generation.advance()
            generation.advance()
        assert session.info.tokens == 40
        _, _, reused = check_as_without(session, model, [LONG])
        assert reused == 40


def test_what_is_kept_twice_is_held_once():
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.generate([LONG, LONG, LONG], **OPTIONS)  # together: none can use what another has computed
        same = (100 + NEW - 1) // 16 * 16
        assert session.info.bytes <= (same // 16 + 3) * BLOCK_BYTES
        assert session._engine.counters()["num_used_blocks"] * BLOCK_BYTES == session.info.bytes


def test_without_the_cache_nothing_is_used_or_kept():
    model = tiny_model()
    with demiurgic.session(model) as session:
        _, _, reused = check_as_without(session, model, [LONG], use_cache=False)
        assert reused == session.info.tokens == session.info.bytes == 0
        session.prefill(LONG)
        assert check_as_without(session, model, [LONG], use_cache=False)[2] == 0


def test_scores_are_those_without_a_session_and_leave_nothing():
    model = tiny_model()
    with demiurgic.session(model) as session:
        for _ in range(2):
            check_scores_as_without(session, model, [LONG, LONG[:40]])
        assert session.info.tokens == 0
        session.prefill(LONG)
        check_scores_as_without(session, model, [LONG])
        assert session.info.tokens == 100 and session.info.reused_tokens == 0


def test_models_and_functions_have_the_same_session():
    model = tiny_model()
    with model.session() as session:
        model.generate([LONG], session=session, seed=0)
        assert torch.equal(
            demiurgic.generate(torch.nn.DataParallel(model), [LONG], session=session, seed=0),
            model.generate([LONG], seed=0),
        )
        assert session.info.hits == 1
        check_same_bits(model.score([LONG], session=session), model.score([LONG]))


def test_on_the_reference_kernels_tokens_are_the_same(monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    model, options = tiny_model(), {"do_sample": False, "return_dict_in_generate": True, "max_new_tokens": NEW}
    with demiurgic.session(model) as session:
        for length in (40, 40, 60):
            found, own = (source(LONG[:length], **options) for source in (session.generate, model.generate))
            assert found.completions == own.completions
            assert torch.allclose(found.logprobs, own.logprobs, atol=1e-5)
        assert session.info.reused_tokens == 39 + 40


def test_a_stream_uses_and_leaves_prefixes():
    model = tiny_model()
    with demiurgic.session(model, max_step_tokens=60) as session:
        own = generate(model, [LONG], **OPTIONS)
        for _ in range(2):
            with session.stream([LONG], seed=3, max_new_tokens=NEW) as events:
                assert [token for event in events for token in event.token_ids] == own.completions[0]
        assert session.info.reused_tokens == 99
        with session.stream([LONG[::-1]], seed=3) as events:
            next(events)
        assert session.info.tokens >= 2 * 100


def test_scored_prompts_are_computed_and_kept():
    model = tiny_model()
    with demiurgic.session(model) as session:
        for copies in (1, 3):
            options = OPTIONS | {"prompt_logprobs": True, "num_return_sequences": copies}
            found, own = session.generate([LONG], **options), generate(model, [LONG], **options)
            check_same(found, own)
            check_same_bits(found.prompt_logprobs, own.prompt_logprobs)
        assert session.info.reused_tokens == 0
        assert check_as_without(session, model, [LONG])[2] == 99


def test_a_session_draws_what_a_call_draws():
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG)
        state = torch.get_rng_state()
        found = session.generate(LONG)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        assert torch.equal(found, model.generate(LONG)) and torch.equal(after, torch.get_rng_state())


# ---- room -----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_makes_room():
    model = tiny_model()
    a, b, c = (text(16 * 4, seed) for seed in "abc")
    with demiurgic.session(model, 12 * BLOCK_BYTES) as session:
        for prompt in (a, b, a):
            session.prefill(prompt)
        session.prefill(c)  # beside a and b there is no room for the token that follows
        session.prefill(text(16 * 4, "d"))
        info = session.info
        assert info.evictions >= 4 and info.bytes <= info.cache_bytes <= 12 * BLOCK_BYTES
        assert check_as_without(session, model, [a])[2] == 63
        assert check_as_without(session, model, [b])[2] == 0


def test_kept_prefixes_take_no_room_from_rows():
    model = tiny_model()
    with demiurgic.session(model, 7 * BLOCK_BYTES) as session:
        for seed in range(6):
            check_as_without(session, model, [text(100, seed)])  # needs all seven blocks
        assert session._engine.counters()["num_preemptions"] == 0
        with pytest.raises(RuntimeError, match=r"needs 0.0328 MB of key/value cache, but cache_bytes allows 0.0287 MB"):
            session.generate(text(110), max_new_tokens=10)


def test_rows_are_preempted_only_when_nothing_is_kept():
    model = tiny_model()
    with demiurgic.session(model, 12 * BLOCK_BYTES) as session:
        session.prefill(text(64, "old"))
        prompts = [text(16, row) for row in range(4)]
        check_as_without(session, model, prompts, max_new_tokens=18)  # three blocks each, twelve in all
        assert session.info.evictions > 0 and session._engine.counters()["num_preemptions"] == 0
        check_as_without(session, model, prompts, max_new_tokens=60)  # five each
        assert session._engine.counters()["num_preemptions"] > 0


def test_clear_gives_the_memory_back():
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG)
        session.clear()
        assert session.info.tokens == session.info.bytes == session.info.cache_bytes == 0
        assert check_as_without(session, model, [LONG])[2] == 0
        with under_way(model, session) as call:
            session.clear()  # while a row uses what is dropped
            assert session.info.cache_bytes > 0
            while call.advance():
                pass
        check_same(call.result(), generate(model, [LONG], **OPTIONS))
        assert session.info.tokens == 0


def test_close_gives_everything_back_and_refuses():
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG)
        engine = weakref.ref(session._engine)
    gc.collect()
    assert session.closed and engine() is None
    assert session.info.computed_tokens == 100 and session.info.cache_bytes == 0
    session.close()  # again: nothing happens
    for refused in (
        lambda: session.generate(LONG),
        lambda: session.score(LONG),
        lambda: session.prefill(LONG),
        lambda: session.save_prefix("file", LONG),
        lambda: session.load_prefix("file"),
        lambda: generate(model, LONG, session=session),
        session.clear,
        session.__enter__,
    ):
        with pytest.raises(RuntimeError, match="The session is closed; make another one"):
            refused()


def test_a_call_under_way_outlives_its_session():
    model = tiny_model()
    session = demiurgic.session(model)
    with under_way(model, session) as call:
        session.close()
        while call.advance():
            pass
    check_same(call.result(), generate(model, [LONG], **OPTIONS))


# ---- weights that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch")
def test_changed_weights_drop_what_is_kept(write):
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.generate([LONG[:50]], **OPTIONS)
        WRITES[write](model)
        _, computed, reused = check_as_without(session, model, [LONG[:50]])
        assert (computed, reused) == (50 + NEW - 1, 0)
        assert session.info.drops == 1
        assert check_as_without(session, model, [LONG[:50]])[2] == 49


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_drops_what_is_kept(dtype):
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG)
        model.to(dtype)
        assert check_as_without(session, model, [LONG])[2] == 0
        model.float()
        assert check_as_without(session, model, [LONG])[2] == 0
        assert session.info.drops == 2


def test_other_kernels_drop_what_is_kept(monkeypatch):
    model = tiny_model()
    with demiurgic.session(model) as session:
        for name in ("portable", "reference"):
            session.prefill(LONG)
            monkeypatch.setenv("DEMIURGIC_KERNELS", name)
            assert check_as_without(session, model, [LONG])[2] == 0


def test_a_merged_adapter_and_its_removal_are_seen():
    model = tiny_model()
    weight = model.model.layers[1].mlp.down_proj.weight
    adapter = torch.full((32, 2), 0.1) @ torch.ones(2, 48)
    with demiurgic.session(model) as session:
        for sign in (1, -1, 1):
            session.prefill(LONG)
            weight.data += sign * adapter
            assert check_as_without(session, model, [LONG])[2] == 0
        assert session.info.drops == 3


def test_what_is_not_changed_is_kept():
    model = tiny_model()
    with demiurgic.session(model) as session:
        session.prefill(LONG)
        model.train()
        model(torch.tensor([LONG])).logits.sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
        assert check_as_without(session, model, [LONG])[2] == 99 and session.info.drops == 0


def fingerprint(model):
    return _C.Engine(live_weights(model), None, 512, keep_prefixes=True).fingerprint()


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def model(request):
    return tiny_model(vocab_size=301).to(request.param)


@pytest.mark.parametrize("kernels", ["", "reference"])
def test_a_fingerprint_sees_every_value(model, kernels, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", kernels)
    before, dice = fingerprint(model), random.Random(0)
    seen = {before}
    for parameter in model.parameters():
        bits = parameter.data.view(-1).view(torch.int32 if parameter.element_size() == 4 else torch.int16)
        for place in {0, bits.numel() - 1, dice.randrange(bits.numel())}:
            bits[place] ^= 1
            seen.add(fingerprint(model))
            bits[place] ^= 1
    assert len(seen) > 3 * len(list(model.parameters())) - 3
    assert fingerprint(model) == before
    for change in (lambda p: p.data.neg_(), lambda p: p.data.copy_(p.data.flip(0)), lambda p: p.data.zero_()):
        for parameter in list(model.parameters())[:4]:
            change(parameter)
            seen.add(fingerprint(model))
    for parameter in model.parameters():
        parameter.data.copy_(torch.zeros_like(parameter))
    assert fingerprint(model) not in seen and before in seen


def test_a_fingerprint_is_of_values_not_of_their_place(model):
    before = fingerprint(model)
    for name, parameter in model.named_parameters():
        wide = torch.zeros(*parameter.shape[:-1], parameter.shape[-1] + 3, dtype=parameter.dtype)
        wide[..., :-3] = parameter.data
        parameter.data = wide[..., :-3] if "norm" not in name else parameter.data.clone()
    assert not model.lm_head.weight.is_contiguous()
    assert fingerprint(model) == before == fingerprint(copy.deepcopy(model))


def test_a_fingerprint_does_not_depend_on_the_number_of_threads():
    model, before = tiny_model(vocab_size=20_000), torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.add(fingerprint(model))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("write", ["in place", "new parameters"])
def test_calls_under_way_while_weights_change_leave_nothing_stale(write):
    model = tiny_model()
    with demiurgic.session(model, max_step_tokens=30) as session:
        config = GenerationConfig(seed=0, max_new_tokens=30, num_return_sequences=2)
        with Generation(model, [LONG], config=config, session=session) as early:
            early.advance()
            early.advance()  # 60 tokens by the old weights
            WRITES[write](model)
            check_as_without(session, model, [LONG[:50]])
            while early.advance():
                pass
        check_as_without(session, model, [LONG])
        check_as_without(session, model, [LONG + early.tokens(0)])
        assert session.info.drops <= 1  # nothing, or the full blocks of the first steps


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A model, and a file with the prefix LONG by it."""
    model, file = tiny_model(), tmp_path / "long.safetensors"
    with demiurgic.session(model) as session:
        session.save_prefix(file, LONG)
    return model, file


def test_a_file_holds_keys_and_values_in_the_order_of_positions(saved):
    model, file = saved
    stored = load_file(file)
    assert stored["tokens"].tolist() == LONG
    assert stored["keys"].shape == stored["values"].shape == (2, 2, 100, 8)
    past = model(torch.tensor([LONG]), use_cache=True).past_key_values
    for layer in range(2):
        keys, values = past[layer][:2]
        assert torch.allclose(stored["keys"][layer], keys[0], atol=1e-5)
        assert torch.allclose(stored["values"][layer], values[0], atol=1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_a_loaded_prefix_is_a_computed_one(model, tmp_path, length):
    with demiurgic.session(model) as session:
        session.save_prefix(tmp_path / "file", torch.tensor(LONG[:length]))
        own, _, _ = check_as_without(session, model, [LONG])
    with demiurgic.session(model) as session:
        session.prefill(text(40, "other"))
        tokens = session.load_prefix(tmp_path / "file")
        assert tokens.tolist() == LONG[:length] and session.info.tokens == 40 + length
        _, computed, reused = check_as_without(session, model, [LONG[:length]])
        assert (computed, reused) == (1 + NEW - 1, length - 1)
        found, _, reused = check_as_without(session, model, [LONG])
        assert reused >= length - (length == 100)
        check_same(found, own)
        before = session.info.bytes
        session.load_prefix(tmp_path / "file")  # what is there already is held once
        assert session.info.bytes == before


def refused(model, file, error, message):
    with demiurgic.session(model) as session:
        with pytest.raises(error) as caught:
            session.load_prefix(file)
        assert message in str(caught.value) and str(caught.value).endswith((".", ")."))
        assert session.info.tokens == 0


def scaled(model):
    with torch.no_grad():
        model.model.norm.weight[0] *= 1.0001
    return model


OTHER_MODELS = {
    "weights": (lambda model: scaled(model), "it was computed with other weights (fingerprint "),
    "dtype": (lambda model: model.bfloat16(), "its model has 2 layers, 2 key/value heads of 8, float32, and this one"),
    "layers": (lambda _: tiny_model(num_hidden_layers=3), "and this one 3 layers"),
    "heads": (lambda _: tiny_model(num_key_value_heads=1), "and this one 2 layers, 1 key/value heads of 8"),
    "rope": (lambda model: setattr(model.config, "rope_theta", 7.0) or model, "it was computed with other weights"),
}


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_a_prefix_of_another_model_is_refused(saved, case):
    model, file = saved
    change, message = OTHER_MODELS[case]
    refused(change(model), file, ValueError, message)


@pytest.mark.native
def test_a_prefix_of_other_kernels_is_refused(saved, monkeypatch):
    model, file = saved
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    refused(model, file, ValueError, "and here the kernels are 'cpu reference', which add in another order")


def changed(file, metadata=None, tensors=None):
    with safe_open(file, "pt") as opened:
        stored = opened.metadata()
    save_file({**load_file(file), **(tensors or {})}, file, metadata={**stored, **(metadata or {})})


BAD_FILES = {
    "of a build": (
        lambda f: changed(f, {"build": "demiurgic 0.0"}),
        ValueError,
        "computed by demiurgic 0.0, and this is",
    ),
    "of the future": (
        lambda f: changed(f, {"format": "demiurgic prefix 9"}),
        ValueError,
        "it is of the form 'demiurgic prefix 9', and this version reads 'demiurgic prefix 1'",
    ),
    "a checkpoint": (lambda f: save_file({"a": torch.ones(1)}, f), ValueError, "holds no prefix; give a file that"),
    "other numbers": (lambda f: changed(f, tensors={"keys": torch.zeros(2, 2, 100, 8)}), RuntimeError, "is damaged"),
    "other tokens": (lambda f: changed(f, tensors={"tokens": torch.arange(100)}), RuntimeError, "is damaged"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-9]), RuntimeError, "is not a whole safetensors file"),
    "empty": (lambda f: f.write_bytes(b""), RuntimeError, "(0 bytes) is not a whole safetensors file"),
    "gone": (lambda f: f.unlink(), FileNotFoundError, "is no file; give the path that save_prefix was given"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused(saved, case):
    model, file = saved
    spoil, error, message = BAD_FILES[case]
    spoil(file)
    refused(model, file, error, message)


def test_a_flipped_bit_is_found(saved):
    model, file = saved
    whole = file.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refused(model, file, RuntimeError, "is damaged")


def test_a_crafted_file_is_refused_by_its_shapes(saved):
    from demiurgic import prefix_file

    model, file = saved
    for tensors, message, error in (
        ({"tokens": torch.full((100,), 97)}, "The prefix holds the id 97, but the vocabulary has", IndexError),
        ({"keys": torch.zeros(2, 2, 99, 8)}, "keys or values of shape [2, 2, 99, 8] and type Float", ValueError),
        ({"values": torch.zeros(2, 2, 100, 8, dtype=torch.float64)}, "of type Float", ValueError),
    ):
        stored = load_file(file) | tensors
        changed(file, {"checksum": prefix_file._checksum(stored)}, tensors)
        refused(model, file, error, message)
        with demiurgic.session(model) as session:
            session.save_prefix(file, LONG)


def test_there_must_be_room_for_a_prefix(saved):
    model, file = saved
    with demiurgic.session(model, 6 * BLOCK_BYTES) as session:
        with pytest.raises(RuntimeError, match=r"A prefix of 100 tokens needs 0.0287 MB .* load a shorter one, raise"):
            session.load_prefix(file)
        with pytest.raises(RuntimeError, match="of key/value cache, but cache_bytes allows"):
            session.save_prefix(file, LONG)
        check_as_without(session, model, [LONG[:60]])
    with demiurgic.session(model, 7 * BLOCK_BYTES) as session:
        session.prefill(text(100, "other"))
        session.load_prefix(file)  # drives it out
        assert session.info.tokens == 100 and session.info.evictions == 7


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved, tmp_path):
    model, file = saved
    before = file.read_bytes()
    with demiurgic.session(model) as session:
        with pytest.raises(FileNotFoundError, match=r"The folder .*nowhere does not exist; make it before"):
            session.save_prefix(tmp_path / "nowhere" / "file", LONG)
        with pytest.raises(ValueError, match="input_ids has 2 rows, but a file holds one prefix"):
            session.save_prefix(file, [LONG, LONG])
        with pytest.raises(IndexError):
            session.save_prefix(file, [97])
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [file.name]


# ---- bad use --------------------------------------------------------------------------------------------------------


BAD_USE = [
    (lambda m, s: s.generate(LONG, cache_bytes=9), ValueError, "cache_bytes is given to a call of a session, whose"),
    (lambda m, s: s.score(LONG, max_step_tokens=9), ValueError, "max_step_tokens is given to a call of a session"),
    (lambda m, s: s.generate(LONG, exact=True), ValueError, "exact is given to a call of a session, whose calls share"),
    (lambda m, s: generate(m, LONG, session="s"), TypeError, "session is a str; give what demiurgic.session returned"),
    (lambda m, s: generate(tiny_model(), LONG, session=s), ValueError, "The session is of another model than the one"),
    (lambda m, s: s.generate(LONG, sesion=s), TypeError, "generate has no keyword 'sesion'; did you mean 'session'?"),
    (lambda m, s: demiurgic.session(m, 0), ValueError, "cache_bytes is 0, but must be 1 or more"),
    (lambda m, s: demiurgic.session(m, "1 GB"), TypeError, "cache_bytes is '1 GB', but must be an integer"),
    (lambda m, s: demiurgic.session(m, max_step_tokens=0), ValueError, "max_step_tokens is 0, but must be 1 or more"),
    (lambda m, s: demiurgic.session(m, exact=1), TypeError, "exact is 1, but must be True or False"),
    (lambda m, s: demiurgic.session(m.model), TypeError, "which has no head over the vocabulary"),
    (lambda m, s: s.prefill([]), ValueError, "input_ids is empty"),
    (lambda m, s: s.prefill([97]), IndexError, "input_ids holds the id 97"),
    (lambda m, s: pickle.dumps(s), TypeError, "cannot be copied or pickled; make another one"),
    (lambda m, s: copy.copy(s), TypeError, "cannot be copied or pickled; make another one"),
]


@pytest.mark.parametrize(("use", "error", "message"), BAD_USE, ids=[case[2][:40] for case in BAD_USE])
def test_bad_use_is_refused(use, error, message):
    model = tiny_model()
    with demiurgic.session(model) as session:
        with pytest.raises(error) as caught:
            use(model, session)
        assert message in str(caught.value)
        check_as_without(session, model, [LONG])


def test_a_session_says_what_it_holds():
    with demiurgic.session(tiny_model()) as session:
        session.prefill(LONG)
        assert "tokens=100, bytes=28672" in repr(session)
    assert repr(session) == "<demiurgic session: closed>"


# ---- anything -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_any_calls_in_a_session_are_as_without(seed):
    dice = random.Random(seed)
    model = tiny_model()
    texts = [text(dice.randrange(1, 90), seed) for _ in range(3)]
    blocks = dice.choice([None, 8, 14, 40])
    with demiurgic.session(
        model, blocks and blocks * BLOCK_BYTES, max_step_tokens=dice.choice([7, 64, 512])
    ) as session:
        for _ in range(25):
            prompts = []
            for _ in range(dice.randrange(1, 4)):
                base = dice.choice(texts)
                prompts.append(base[: dice.randrange(1, len(base) + 1)] + text(dice.randrange(4), dice.random()))
            match dice.randrange(10):
                case 0:
                    dice.choice([WRITES["in place"], WRITES["new parameters"], WRITES["one value"]])(model)
                case 1:
                    check_scores_as_without(session, model, prompts, max_running=2)
                case 2:
                    config = GenerationConfig(seed=0, max_new_tokens=8, num_return_sequences=2)
                    with Generation(model, prompts, config=config, session=session) as generation:
                        for _ in range(dice.randrange(6)):
                            generation.advance()
                case 3:
                    session.prefill(prompts)
                case _:
                    found, *_ = check_as_without(
                        session,
                        model,
                        prompts,
                        num_return_sequences=dice.choice([1, 1, 3]),
                        max_new_tokens=dice.randrange(1, 20),
                        repetition_penalty=dice.choice([1.0, 1.3]),
                        use_cache=dice.random() < 0.9,
                        max_running=dice.choice([1, 2, 256]),
                    )
                    texts.append((prompts[0] + found.completions[0])[:100])
        assert session.info.reused_tokens > 0


def test_threads_of_one_session():
    model, errors = tiny_model(), []
    with demiurgic.session(model, 40 * BLOCK_BYTES) as session:

        def work(number):
            try:
                for turn in range(6):
                    prompts = [[*LONG[: 20 * turn + 1], number]]
                    check_same(session.generate(prompts, **OPTIONS), generate(model, prompts, **OPTIONS))
                    if turn == 3:
                        session.score([LONG])
                        assert session.info.cache_bytes > 0
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == [] and session.info.hits > 4
        assert session._engine.counters()["num_used_blocks"] * BLOCK_BYTES == session.info.bytes


def test_weights_that_another_thread_writes_crash_nothing():
    model, stop, errors = tiny_model(), threading.Event(), []
    with demiurgic.session(model, 30 * BLOCK_BYTES) as session:

        def train():
            weight = model.lm_head.weight.detach().numpy()
            while not stop.is_set():
                weight[3] *= np.float32(-1)

        def call():
            try:
                for length in range(1, 100, 9):
                    session.generate(LONG[:length], **OPTIONS)
            except BaseException as error:
                errors.append(error)

        writer = threading.Thread(target=train)
        callers = [threading.Thread(target=call) for _ in range(2)]
        for thread in (writer, *callers):
            thread.start()
        for thread in callers:
            thread.join()
        stop.set()
        writer.join()
        assert errors == []
        check_as_without(session, model, [LONG])  # once they are left alone


@pytest.mark.native
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.2}], ids=str)
def test_speculation_keeps_what_was_accepted(options):
    model, chat = tiny_model(), LONG[:20] * 3
    with demiurgic.session(model) as session:
        for turn in range(4):
            found, _, reused = check_as_without(session, model, [chat], max_new_tokens=30, speculate="ngram", **options)
            assert reused >= (0 if turn == 0 else 60)
            chat = chat + found.completions[0]


@pytest.mark.parametrize("events", [0, 5])
@pytest.mark.parametrize("closed", [False, True], ids=["to the end", "closed"])
def test_a_stream_over_changed_weights_leaves_nothing(events, closed):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with demiurgic.session(model) as session:
        stream = session.stream([LONG], max_new_tokens=20, seed=3)
        for _ in range(events):
            next(stream)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        next(stream)
        if closed:
            stream.close()
        else:
            list(stream)
        model.load_state_dict(before)
        _, _, reused = check_as_without(session, model, [LONG])
        assert reused == 0


def test_a_stream_leaves_its_prefix_and_one_that_is_lost_none():
    model = tiny_model()
    with demiurgic.session(model) as session:
        list(session.stream([LONG], max_new_tokens=NEW, seed=3))
        assert check_as_without(session, model, [LONG])[2] == len(LONG) - 1
        session.clear()
        lost = session.stream([LONG], max_new_tokens=NEW, seed=3)
        next(lost)
        del lost
        assert check_as_without(session, model, [LONG])[2] == 0


def test_what_a_stream_left_goes_where_there_is_no_room():
    model = tiny_model()
    block = 16 * 2 * model.config.num_hidden_layers * model.config.kv_heads * model.config.head_dim * 4
    with demiurgic.session(model, cache_bytes=9 * block) as session:
        open_stream = session.stream([LONG[:60], LONG[1:21]], max_new_tokens=40, seed=3, max_running=1)
        found = [[], []]
        for event in open_stream:
            found[event.row] += event.token_ids
        expected = generate(model, [LONG[:60], LONG[1:21]], max_new_tokens=40, seed=3, return_dict_in_generate=True)
        assert found == expected.completions


def test_a_hook_may_ask_the_session_that_another_thread_clears():
    model, entered = tiny_model(), threading.Event()
    with demiurgic.session(model) as session:

        def ask(input_ids, scores):
            entered.set()
            session.info  # noqa: B018
            return scores

        thread = threading.Thread(
            target=lambda: session.generate([LONG], max_new_tokens=20, logits_processor=ask), daemon=True
        )
        thread.start()
        assert entered.wait(timeout=60)
        for _ in range(5):
            session.clear()
        thread.join(timeout=60)
        assert not thread.is_alive()
