"""Steps launched before the tokens of the step before are read: results are those of one step after the other."""

import threading

import pytest
import torch
from models import tiny_model

from demiurgic import GenerationConfig, GenerationError, generate
from demiurgic.engine import Generation

PROMPTS = [[5, 6, 7], [8] * 20, list(range(30, 45)), [9, 10], [50] * 16, [3]]
ENDS = list(range(0, 97, 12))
OPTIONS = {
    "greedy": {"do_sample": False},
    "sampled": {"top_k": 20, "top_p": 0.9},
    "ends": {"eos_token_id": ENDS, "top_k": 0},
    "no end yet": {"eos_token_id": ENDS, "stop_token_ids": [7, 8], "min_new_tokens": 9, "min_length": 12},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "penalties of what is new": {"frequency_penalty": 0.7, "presence_penalty": 0.9, "penalize_prompt": False},
    "bias and bans": {"logit_bias": {5: 3.0, 9: -2.0}, "bad_token_ids": [5, 11, 12], "eos_token_id": [9]},
    "typical, min_p": {"typical_p": 0.8, "min_p": 0.01, "temperature": 1.3},
    "a repetition": {"do_sample": False, "stop_on_repetition": 3, "trim_repetition": True},
    "copies": {"num_return_sequences": 3},
    # These need the host between two tokens.
    "n-grams": {"no_repeat_ngram_size": 2},
    "a window": {"repetition_penalty": 1.2, "repetition_context_size": 4},
    "reports": {"top_logprobs": 2, "entropy": True},
    "no cache": {"use_cache": False, "max_new_tokens": 6},
}
ALONE = {"n-grams", "a window", "reports", "no cache"}


@pytest.fixture
def ahead(monkeypatch):
    monkeypatch.setenv("DEMIURGIC_STEPS", "ahead")


def run(model, prompts, *, interruptible=False, limits=None, **options):
    """The result of a call, and its engine's counters."""
    config = GenerationConfig(**{"max_new_tokens": 30, "seed": 3, "eos_token_id": []} | options)
    keywords = {"config": config, "want_logprobs": True, "interruptible": interruptible, **(limits or {})}
    with Generation(model, prompts, **keywords) as generation:
        while generation.advance():
            pass
        return generation.result(), generation._engine.counters()


def check_same(found, expected, tolerance=0.0):
    assert found.completions == expected.completions
    assert found.finish_reasons == expected.finish_reasons
    for ours, its in [(found.logprobs, expected.logprobs), (found.processed_logprobs, expected.processed_logprobs)]:
        torch.testing.assert_close(ours, its, rtol=0.0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("kernels", ["", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_the_result_of_simple_steps(name, kernels, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", kernels)
    model = tiny_model()
    expected, simple = run(model, PROMPTS, **OPTIONS[name])
    monkeypatch.setenv("DEMIURGIC_STEPS", "ahead")
    found, counters = run(model, PROMPTS, **OPTIONS[name])
    # A surplus row is one more for ATen's products, which do not keep the bits of the others.
    ends_at_a_token = "eos_token_id" in OPTIONS[name]
    check_same(found, expected, tolerance=1e-5 if kernels == "reference" and ends_at_a_token else 0.0)
    assert simple["num_steps_ahead"] == 0
    assert (counters["num_steps_ahead"] > 3) == (name not in ALONE)
    # What was computed for nothing leaves no trace.
    for count in ("num_steps", "num_computed_tokens", "num_used_blocks"):
        assert counters[count] == simple[count]


@pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("mps", marks=pytest.mark.mps)]
)
@pytest.mark.parametrize("name", OPTIONS)
def test_devices_run_ahead_with_the_result_of_simple_steps(name, device, monkeypatch):
    model = tiny_model().to(device)
    found, counters = run(model, PROMPTS, **OPTIONS[name])
    monkeypatch.setenv("DEMIURGIC_STEPS", "simple")
    expected, _ = run(model, PROMPTS, **OPTIONS[name])
    check_same(found, expected, tolerance=1e-4)
    assert (counters["num_steps_ahead"] > 3) == (name not in ALONE)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_running": 2},
        {"cache_bytes": 12 * 4096},
        {"max_step_tokens": 5},
        {"cache_bytes": 6 * 4096, "max_running": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernels", ["", "reference"])
def test_rows_that_wait_start_and_blocks_that_run_out(limits, kernels, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", kernels)
    model = tiny_model()
    options = {"eos_token_id": ENDS, "max_new_tokens": 40, "repetition_penalty": 1.1}
    alone = [run(model, [p], seed=[i], **options)[0] for i, p in enumerate(PROMPTS)]
    monkeypatch.setenv("DEMIURGIC_STEPS", "ahead")
    found, counters = run(model, PROMPTS, seed=list(range(len(PROMPTS))), limits=limits, **options)
    assert found.completions == [result.completions[0] for result in alone]
    assert found.finish_reasons == [result.finish_reasons[0] for result in alone]
    assert counters["num_steps_ahead"] > 0 and counters["num_used_blocks"] == 0


def test_nothing_is_computed_past_a_length_that_is_known(ahead):
    result, counters = run(tiny_model(), PROMPTS[:1], max_new_tokens=10)
    assert result.lengths == [10]
    assert counters["num_steps"] == 10
    assert 0 < counters["num_steps_ahead"] <= 8  # the prompt's is not, nor the first of the others, and of a later run


def test_a_call_that_is_interrupted_between_steps_has_none_in_flight(monkeypatch):
    """Its next token comes from the weights as they are when it is asked for, as with simple steps."""
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=[])

    def tokens_with(steps):
        monkeypatch.setenv("DEMIURGIC_STEPS", steps)
        model = tiny_model()
        noise = torch.Generator().manual_seed(5)
        with Generation(model, [PROMPTS[0]], config=config) as generation:
            for _ in range(4):
                generation.advance()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=noise))
            while generation.advance():
                pass
            assert generation._engine.counters()["num_steps_ahead"] == 0
            return generation.tokens(0)

    mixed = tokens_with("ahead")
    assert mixed == tokens_with("simple")
    unchanged, _ = run(tiny_model(), [PROMPTS[0]], max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert mixed[:4] == unchanged.completions[0][:4] and mixed != unchanged.completions[0]


def test_an_unknown_way_of_stepping_is_refused(monkeypatch):
    monkeypatch.setenv("DEMIURGIC_STEPS", "aheda")
    with pytest.raises(ValueError, match="DEMIURGIC_STEPS is 'aheda', but must be 'ahead' or 'simple', or not be set"):
        generate(tiny_model(), PROMPTS, max_new_tokens=2)


def test_a_row_whose_logits_are_not_finite(ahead):
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[11] = float("nan")  # once it is drawn, the row is lost
    options = {"logit_bias": {11: 5.0}, "seed": 1, "max_new_tokens": 40, "eos_token_id": [], "top_k": 0}
    with pytest.raises(GenerationError, match="embed_tokens") as raised:
        generate(model, PROMPTS, **options)
    result = raised.value.result
    assert "error" in result.finish_reasons
    for tokens, reason in zip(result.completions, result.finish_reasons, strict=True):
        assert tokens[-1:] == [11] if reason == "error" else 11 not in tokens


def test_threads_share_a_device_that_runs_ahead(monkeypatch):
    model = tiny_model()
    options = {"max_new_tokens": 60, "eos_token_id": ENDS, "top_k": 0}
    expected = [run(model, [p], seed=[i], **options)[0].completions[0] for i, p in enumerate(PROMPTS)]
    monkeypatch.setenv("DEMIURGIC_STEPS", "ahead")
    found, num_ahead = {}, []

    def call(index):
        for _ in range(5):
            result, counters = run(model, [PROMPTS[index]], seed=[index], interruptible=index % 3 == 0, **options)
            found.setdefault(index, []).append(result.completions[0])
            num_ahead.append(counters["num_steps_ahead"])

    threads = [threading.Thread(target=call, args=[i]) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [tokens] * 5 for i, tokens in enumerate(expected)}
    assert max(num_ahead) > 0


def test_cancelled_while_steps_run_ahead(ahead):
    """By another thread; what is there by then is what there would be."""
    model = tiny_model(max_position_embeddings=1000)
    options = {"max_new_tokens": 600, "eos_token_id": [], "do_sample": False}
    expected = run(model, PROMPTS[:2], **options)[0].completions
    config = GenerationConfig(**options)
    num_cut_short = 0
    for _ in range(5):
        with Generation(model, PROMPTS[:2], config=config, interruptible=False) as generation:
            done = threading.Event()

            def cancel(call=generation._call, engine=generation._engine, done=done):
                while engine.counters()["num_steps_ahead"] == 0 and not done.is_set():
                    pass
                call.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            while generation.advance():
                pass
            done.set()
            thread.join()
            for row in (0, 1):
                tokens, cancelled = generation.tokens(row), generation.finish_reason(row) == "cancelled"
                assert tokens == expected[row][: len(tokens)]
                assert len(tokens) < 600 if cancelled else generation.finish_reason(row) == "length"
                num_cut_short += cancelled
            assert generation._engine.counters()["num_used_blocks"] == 0
    assert num_cut_short > 0  # else every cancel came too late
