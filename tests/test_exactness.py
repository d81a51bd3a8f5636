"""The bits of every token and log-probability are the row's own: whatever computes it, in whatever company.

Compared with `torch.equal`, without tolerance, under each instruction set that this machine has. The logits are what is
tested: a raw log-probability takes in all logits of its row, and each sampled token is a draw from them.
"""

import threading
from functools import cache

import pytest
import torch
from models import tiny_model

from demiurgic import _C, GenerationConfig, generate, score
from demiurgic.engine import Generation

ISAS = _C.isa_names()

# A chunk of attention has 256 positions, a block of the cache 16, and a step 512 tokens.
LENGTHS = (1, 15, 16, 17, 255, 256, 257, 511, 700)
PROMPTS = [torch.randint(4, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
SEEDS = list(range(40, 40 + len(PROMPTS)))
NEW = 4

# Sizes that fit no vector, tile or block, and K above and below where lanes are parked (1024). A head's K of 3 steps of
# AMX and more: two in another order would give the same bits, and what a layer adds is rounded before one sees it.
KINDS = {
    "float32, multi-head": {"num_key_value_heads": 4},
    "float32, multi-query, long K": {
        "hidden_size": 36,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 1101,
        "attention_bias": True,
        "mlp_bias": True,
        "num_hidden_layers": 1,
    },
    "bfloat16, grouped": {"dtype": torch.bfloat16, "hidden_size": 104, "intermediate_size": 160},
    "bfloat16, multi-query, odd": {
        "dtype": torch.bfloat16,
        "norms": torch.float32,
        "hidden_size": 50,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "intermediate_size": 1061,
        "attention_bias": True,
        "activation_function": "relu",
        "vocab_size": 301,
    },
    "float16, grouped, odd": {
        "dtype": torch.float16,
        "hidden_size": 42,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "attention_head_dim": 22,
        "intermediate_size": 37,
        "mlp_bias": True,
        "activation_function": "gelu",
    },
}


def kinds_of(isa):
    """AMX and AVX-512 BF16 have bfloat16 of their own and share the rest with AVX-512; plain C++ is slow."""
    if isa in ("amx", "avx512_bf16"):
        return [kind for kind in KINDS if "bfloat16" in kind]
    if isa == "portable":
        return ["float32, multi-query, long K", "bfloat16, multi-query, odd"]
    return list(KINDS)


@cache
def model_of(kind):
    config = {"max_position_embeddings": 1024} | KINDS[kind]
    dtype, norms = config.pop("dtype", torch.float32), config.pop("norms", None)
    model = tiny_model(**config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += torch.linspace(-0.5, 0.5, parameter.numel())
            parameter.data = parameter.data.to(norms if norms and "norm" in name else dtype)
    return model


@pytest.fixture(params=[(isa, kind) for isa in ISAS for kind in kinds_of(isa)], ids=" ".join)
def case(request, monkeypatch):
    """An instruction set, in force, and the name of a model."""
    monkeypatch.setenv("DEMIURGIC_KERNELS", request.param[0])
    return request.param


@pytest.fixture
def threads():
    """Sets torch's number of threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def rows_of(result):
    """(tokens, log-probabilities) of each row."""
    lengths = map(len, result.completions)
    logprobs = [row[:n] for row, n in zip(result.logprobs, lengths, strict=True)]
    return list(zip(result.completions, logprobs, strict=True))


def rows(model, prompts, seeds, mask=None, **options):
    options = {"max_new_tokens": NEW, "top_k": 0, "top_p": 1, "return_dict_in_generate": True} | options
    return rows_of(generate(model, prompts, mask, seed=seeds, **options))


@cache
def alone(isa, kind, index, new=NEW):
    """What every other way to compute a row is compared with: its own call, the prompt in one piece where it can be."""
    return rows(model_of(kind), [PROMPTS[index]], [SEEDS[index]], max_new_tokens=new, max_step_tokens=1024)[0]


def check(found, case, indices, new=NEW):
    check_same(found, [alone(*case, index, new) for index in indices])


def check_same(found, expected):
    for (tokens, logprobs), (own_tokens, own_logprobs) in zip(found, expected, strict=True):
        assert tokens == own_tokens
        assert torch.equal(logprobs, own_logprobs)


def run(model, indices, *, new=NEW, keywords=None, **options):
    """Rows, and the engine's counters when they have ended."""
    config = GenerationConfig(max_new_tokens=new, top_k=0, top_p=1, seed=[SEEDS[i] for i in indices], **options)
    prompts = [PROMPTS[i] for i in indices]
    with Generation(model, prompts, config=config, want_logprobs=True, **(keywords or {})) as generation:
        while generation.advance():
            pass
        return rows_of(generation.result()), generation._engine.counters()


def block_bytes(model):
    """Of a block of the cache: 16 tokens."""
    head_dim, kv_heads = model.model.layers[0].self_attn.head_dim, model.config.kv_heads
    return 2 * len(model.model.layers) * 16 * kv_heads * head_dim * model.lm_head.weight.element_size()


ALL = list(range(len(PROMPTS)))
SHORT = [0, 1, 2, 3]  # 1 to 17 tokens


# ---- company ---------------------------------------------------------------------------------------------------


def test_in_a_batch_of_other_lengths(case):
    for indices in (ALL, ALL[::-1], [8, 0], [6, 6, 5]):
        found, _ = run(model_of(case[1]), indices)
        check(found, case, indices)


def test_in_batches_of_any_size(case):
    # Products take rows in tiles of up to 4, blocks of 16 and 32, and pack more than 8 of them together.
    for size in (2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33):
        indices = [SHORT[i % 4] for i in range(size)]
        found, _ = run(model_of(case[1]), indices)
        check(found, case, indices)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded(case, side):
    indices = [0, 3, 4, 6]
    width = max(LENGTHS[i] for i in indices) + 3
    ids, mask = torch.full((4, width), 2), torch.zeros(4, width, dtype=torch.int64)
    for row, index in enumerate(indices):
        place = slice(width - LENGTHS[index], None) if side == "left" else slice(LENGTHS[index])
        ids[row, place], mask[row, place] = torch.tensor(PROMPTS[index]), 1
    check(rows(model_of(case[1]), ids, [SEEDS[i] for i in indices], mask), case, indices)


# ---- pieces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "indices"), [(1, [0, 3, 4]), (7, [1, 2, 6]), (64, ALL), (512, [8, 3, 7])])
def test_in_chunks(case, size, indices):
    found, counters = run(model_of(case[1]), indices, keywords={"max_step_tokens": size})
    check(found, case, indices)
    assert counters["num_steps"] >= sum(LENGTHS[i] for i in indices) // size


def test_without_the_cache(case):
    indices = [0, 2, 6]
    found, counters = run(model_of(case[1]), indices, use_cache=False)
    check(found, case, indices)
    assert counters["num_computed_tokens"] == sum(LENGTHS[i] + done for i in indices for done in range(NEW))


def test_with_a_shared_prompt(case):
    for index in (0, 3, 5, 6):
        seeds = [SEEDS[index], 7, 8]
        copies = rows(model_of(case[1]), [PROMPTS[index]], seeds, num_return_sequences=3)
        own = [rows(model_of(case[1]), [PROMPTS[index]], [seed])[0] for seed in seeds]
        check_same(copies, own)


def test_preempted(case):
    model, indices, new = model_of(case[1]), [4, 3, 0, 2, 1, 5], 18
    block = block_bytes(model)
    for blocks in (19, 21):  # 18 for the longest
        found, counters = run(model, indices, new=new, keywords={"cache_bytes": blocks * block})
        assert counters["num_preemptions"] > 0
        check(found, case, indices, new)


# ---- in a session ----------------------------------------------------------------------------------------------


def test_with_kept_prefixes(case):
    model = model_of(case[1])
    with model.session() as session:
        for indices in ([6], ALL, ALL[::-1], [8]):
            check(
                rows(model, [PROMPTS[i] for i in indices], [SEEDS[i] for i in indices], session=session), case, indices
            )
        assert session.info.hits >= len(PROMPTS) and session.info.reused_tokens > sum(LENGTHS)
        # Another turn, whose first tokens were computed in a decode step; and one that departs within a block.
        before = rows(model, [PROMPTS[3]], [SEEDS[3]], session=session)[0][0]
        turns = [PROMPTS[3] + before + PROMPTS[2][:7], PROMPTS[5][:300] + PROMPTS[4][:2], PROMPTS[8][:-1]]
        own = [rows(model, [turn], [SEEDS[0]], max_step_tokens=1024)[0] for turn in turns]
        check_same([rows(model, [turn], [SEEDS[0]], session=session)[0] for turn in turns], own)


def test_with_kept_prefixes_in_a_small_cache(case):
    model, indices = model_of(case[1]), [4, 3, 0, 2, 1, 5, 4, 3]
    for blocks in (18, 21):
        with model.session(blocks * block_bytes(model), max_step_tokens=100) as session:
            for _ in range(2):
                given = [PROMPTS[i] for i in indices], [SEEDS[i] for i in indices]
                check(rows(model, *given, session=session), case, indices)
            assert session.info.evictions > 0 and session.info.hits > 0


def test_with_a_prefix_from_a_file(case, tmp_path):
    model, file = model_of(case[1]), tmp_path / "prefix"
    with model.session() as session:
        session.save_prefix(file, PROMPTS[6])
    with model.session() as session:
        assert session.load_prefix(file).tolist() == PROMPTS[6]
        check(rows(model, [PROMPTS[6]], [SEEDS[6]], session=session), case, [6])
        assert session.info.computed_tokens == 1 + NEW - 1


# ---- not asked for ---------------------------------------------------------------------------------------------


def test_without_exact_the_cpu_does_the_same(case):
    model, indices = model_of(case[1]), [6, 0, 4]
    found, _ = run(model, indices, keywords={"exact": False})
    check(found, case, indices)
    rows = [PROMPTS[i] for i in indices]
    assert torch.equal(score(model, rows, exact=False).nan_to_num(1), score(model, rows).nan_to_num(1))
    with model.session(exact=False) as session:
        for _ in range(2):
            check(run(model, indices, keywords={"session": session})[0], case, indices)
        assert session.info.hits == 2  # a prompt of one token is computed again


def test_a_call_without_exact_shares_no_engine_with_one_that_speculates():
    model = tiny_model()
    config = GenerationConfig(seed=1, max_new_tokens=20)
    with Generation(model, [PROMPTS[2]], config=config, exact=False) as loose:
        assert loose.advance()
        expected = generate(model, [PROMPTS[2]], seed=1, max_new_tokens=20)
        again = generate(model, [PROMPTS[2]], seed=1, max_new_tokens=20, speculate="ngram")
        assert torch.equal(again, expected)
        while loose.advance():
            pass
    assert torch.equal(loose.result().sequences, expected)


# ---- order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_running", [1, 2, 5])
def test_some_at_a_time(case, max_running):
    indices = [3, 6, 0, 4, 2, 1]
    found, _ = run(model_of(case[1]), indices, keywords={"max_running": max_running})
    check(found, case, indices)


def test_added_while_others_run(case):
    model, waiting, calls = model_of(case[1]), [6, 0, 3, 4, 2, 8], []
    while waiting or any(under_way for _, _, under_way in calls):
        if waiting:
            index = waiting.pop(0)
            config = GenerationConfig(max_new_tokens=NEW, top_k=0, top_p=1, seed=[SEEDS[index]])
            generation = Generation(model, [PROMPTS[index]], config=config, want_logprobs=True, max_step_tokens=200)
            calls.append((index, generation.__enter__(), True))
        calls = [(index, call, under_way and call.advance()) for index, call, under_way in calls]
    assert len({id(call._engine) for _, call, _ in calls}) == 1
    for index, call, _ in calls:
        check(rows_of(call.result()), case, [index])
        call.__exit__(None, None, None)


def test_called_from_threads(case, threads):
    """Callers whose numbers of threads differ: each step has the number of whoever runs it."""
    found, errors = {}, []

    def work(number):
        try:
            torch.set_num_threads(1 + number % 3)
            for indices in ([number, 5], [6, number], [0]):
                found[number, tuple(indices)] = run(model_of(case[1]), indices)[0]
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    threads(1)
    assert errors == [] and len(found) == 12
    for (_, indices), result in found.items():
        check(result, case, list(indices))


# ---- threads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3])
def test_with_more_threads(case, threads, number):
    for index in ALL:
        alone(*case, index)  # before, so on one thread
    threads(number)
    found, _ = run(model_of(case[1]), ALL)
    check(found, case, ALL)
    # A single row of several chunks: the threads share its chunks, where its key heads are too few for them.
    for index in (8, 6, 0):
        found, _ = run(model_of(case[1]), [index], keywords={"max_step_tokens": 90})
        check(found, case, [index])
    assert torch.get_num_threads() == number


# ---- scores ----------------------------------------------------------------------------------------------------


def scores_of(model, given, **keywords):
    """The log-probabilities of each row, without what stands for padding."""
    found = score(model, given, **keywords)
    return [row[len(row) - len(ids) + 1 :] for row, ids in zip(found, given, strict=True)]


def test_scores_are_what_generate_reported(case):
    model = model_of(case[1])
    given = [prompt + alone(*case, index)[0] for index, prompt in enumerate(PROMPTS)]
    for index, found in enumerate(scores_of(model, given)):
        assert torch.equal(found[-NEW:], alone(*case, index)[1])


def test_scores_however_they_are_computed(case, threads):
    # All tokens of a row are looked at here, where generate's log-probabilities begin behind the prompt.
    model, given = model_of(case[1]), [PROMPTS[i] for i in (8, 3, 6, 1)]
    own = [scores_of(model, [ids])[0] for ids in given]
    ways = [
        scores_of(model, given),
        scores_of(model, given[::-1], max_step_tokens=33)[::-1],
        scores_of(model, given, max_running=2, max_step_tokens=100),
    ]
    threads(3)
    ways += [scores_of(model, given), [scores_of(model, [ids], max_step_tokens=64)[0] for ids in given]]
    for found in ways:
        assert all(torch.equal(one, other) for one, other in zip(found, own, strict=True))
    # score stops at 128 tokens a step; a single token each time is the other end.
    assert torch.equal(scores_of(model, given[1:2], max_step_tokens=1)[0], own[1])


# ---- what must not get across ----------------------------------------------------------------------------------


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_not_a_number_stays_in_its_row(isa, dtype, poison):
    model, bad, clean = tiny_model(max_position_embeddings=512).to(dtype), 3, [PROMPTS[3], PROMPTS[5], PROMPTS[1]]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad, :4] = torch.tensor([poison, poison, -poison, -poison])
    options = {"max_new_tokens": NEW, "top_k": 0, "top_p": 1, "bad_token_ids": [bad]}
    expected = rows(model, clean, [1, 2, 3], **options)
    mixed = [clean[0], [bad] * 20, clean[1], [5] * 300 + [bad], clean[2], [bad]]
    config = GenerationConfig(seed=[1, 0, 2, 0, 3, 0], **options)
    with Generation(model, mixed, config=config, want_logprobs=True) as generation:
        while generation.advance():
            pass
        result = generation.result()
        assert result.finish_reasons == ["length", "error", "length", "error", "length", "error"]
        check_same([rows_of(result)[row] for row in (0, 2, 4)], expected)
        # On the same engine: blocks of the cache that held the keys and values of the bad rows are used again.
        before = generation._engine.counters()["num_steps"]
        check_same(rows(model, clean, [1, 2, 3], **options), expected)
        assert generation._engine.counters()["num_steps"] > before


def test_the_callers_treatment_of_subnormals_does_not_matter(isa, threads):
    """torch.set_flush_denormal sets the calling thread alone; the team's others would go on without."""
    model = tiny_model(rms_norm_eps=1e-45, max_position_embeddings=512)
    with torch.no_grad():
        # Squares below 2^-126: flushed to zero, the first norm would divide by zero.
        model.model.embed_tokens.weight.mul_(1e-21)
    prompts, seeds = [PROMPTS[3], PROMPTS[4], PROMPTS[1]], [1, 2, 3]
    expected = rows(model, prompts, seeds)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        assert torch.tensor([1e-42]).mul(1.0).item() == 0  # it is in force here
        for number in (1, 3):
            threads(number)
            check_same(rows(model, prompts, seeds), expected)
        assert torch.tensor([1e-42]).mul(1.0).item() == 0  # and still is
    finally:
        torch.set_flush_denormal(False)
