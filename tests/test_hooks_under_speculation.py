"""Hooks under speculation: position by position, for accepted prefixes only, each row exactly as without."""

import pytest
import torch
from models import table_model, tiny_model

from demiurgic import generate
from demiurgic.engine import Generation, merged

pytestmark = pytest.mark.native

CYCLE = [3, 8, 5, 9]
PROMPTS = [CYCLE * 4, CYCLE * 2 + [3], [8, 5, 9] + CYCLE * 3, [40, 41]]
SEEDS = [1, 2, 3, 4]
SPECULATIONS = [{"speculate": "ngram"}, {"draft": "itself"}, {"draft": "another"}]


def cyclic_model():
    """After each token of the cycle comes the next, mostly; after the others anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        table = torch.randn(97, 97)
    for token, following in zip(CYCLE, CYCLE[1:] + CYCLE[:1], strict=True):
        table[token, following] += 9
    return table_model(table)


def begun(model, speculation, **options):
    keywords = {name: options.pop(name) for name in ("logits_processor", "stopping_criteria") if name in options}
    keywords |= {name: options.pop(name) for name in ("max_running", "max_step_tokens") if name in options}
    draft = {"itself": model, "another": tiny_model()}.get(speculation.get("draft"))
    keywords |= {"draft_model": draft} if draft is not None else {}
    config = merged(None, options | {k: v for k, v in speculation.items() if k == "speculate"})
    return Generation(model, PROMPTS, config=config, want_logprobs=True, always_drafts=bool(speculation), **keywords)


def run(model, speculation, **options):
    generation = begun(model, speculation, **({"seed": SEEDS, "max_new_tokens": 30} | options))
    with generation:
        while generation.advance():
            pass
    return generation.result()


def check_same(one, other):
    assert one.completions == other.completions and one.finish_reasons == other.finish_reasons
    for name in ("sequences", "logprobs", "processed_logprobs"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


class Witness:
    """Takes down what each row is shown, and makes scores depend on its tokens."""

    def __init__(self):
        self.shown = {row: [] for row in range(len(PROMPTS))}

    def __call__(self, input_ids, scores, rows):
        assert rows.tolist() == sorted(rows.tolist())
        for ids, own, row in zip(input_ids, scores.clone(), rows.tolist(), strict=True):
            self.shown[row].append((ids[-len(PROMPTS[row]) :].tolist(), own))
        last = input_ids[:, -1:]
        near = (torch.arange(scores.shape[1]) - last).abs() < 3
        return torch.where(near, scores - 2.5, scores)


@pytest.mark.parametrize("way", [{}, {"max_running": 2}, {"max_step_tokens": 5}])
@pytest.mark.parametrize("speculation", SPECULATIONS, ids=str)
def test_rows_and_hooks_are_as_without(speculation, way):
    model, witnesses, results = cyclic_model(), [], []

    def stop(input_ids, scores, rows):
        return (input_ids[:, -1] == 9) & (input_ids[:, -2] == 5) & (rows == 1) & (input_ids.shape[1] > 24)

    for given in ({}, speculation):
        witnesses.append(Witness())
        results.append(
            run(model, given, logits_processor=witnesses[-1], stopping_criteria=stop, temperature=0.7, **way)
        )
    check_same(*results)
    assert max(results[1].drafted) > 0 and (speculation.get("draft") != "itself" or max(results[1].accepted) > 0)
    for row, plain in witnesses[0].shown.items():
        speculated = witnesses[1].shown[row]
        assert [ids for ids, _ in speculated] == [ids for ids, _ in plain]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(speculated, plain, strict=True))


def test_a_criterion_ends_a_row_between_drafts():
    model = cyclic_model()
    ends = {0: 7, 1: 3, 2: 11, 3: 5}

    def stop(input_ids, scores, rows):
        lengths = [sum(1 for _ in shown) for shown in seen.values()]
        for row in rows.tolist():
            seen[row].append(None)
        return torch.tensor([len(seen[row]) >= ends[row] for row in rows.tolist()]) if lengths else None

    seen = {row: [] for row in range(4)}
    result = run(model, {"speculate": "ngram"}, stopping_criteria=stop)
    assert result.lengths == [7, 3, 11, 5] and result.finish_reasons == ["stop"] * 4
    assert result.completions == [row[:n] for row, n in zip(run(model, {}).completions, ends.values(), strict=True)]
    assert max(result.accepted) > 0


@pytest.mark.parametrize("call", range(2, 12))
def test_what_is_raised_or_interrupted_at_any_round(call):
    model, plain = cyclic_model(), run(cyclic_model(), {})
    for error in (ValueError, KeyboardInterrupt):
        calls = []

        def process(input_ids, scores, error=error, calls=calls):
            calls.append(None)
            if len(calls) == call:
                raise error("mine")
            return scores

        options = {"seed": SEEDS, "max_new_tokens": 30}
        hooked = begun(model, {"speculate": "ngram"}, logits_processor=process, **options)
        other = begun(model, {"speculate": "ngram"}, **options)
        with other:
            more = True
            while more:
                try:
                    more = other.advance()
                except KeyboardInterrupt:
                    assert error is KeyboardInterrupt
        assert other.result().completions == plain.completions
        if error is ValueError:
            with pytest.raises(ValueError, match="mine"):
                hooked.advance()
        else:
            while hooked.advance():
                pass
            check_same(hooked.result(), plain)
        assert hooked._engine.counters()["num_used_blocks"] == 0


def test_stock_processors_that_are_called():
    theirs = pytest.importorskip("transformers.generation.logits_process")
    processors = [lambda input_ids, scores: scores, theirs.RepetitionPenaltyLogitsProcessor(1.2)]
    processors += [theirs.ForcedEOSTokenLogitsProcessor(33, 2), theirs.NoBadWordsLogitsProcessor([[9, 3]])]
    model = cyclic_model()
    results = [run(model, given, logits_processor=processors) for given in ({}, {"speculate": "ngram"})]
    check_same(*results)
    assert max(results[1].drafted) > 0 and results[0].completions != run(model, {}).completions


def test_without_hooks_the_rows_of_the_same_step_are_as_ever():
    model = cyclic_model()
    assert generate(model, PROMPTS, seed=SEEDS, max_new_tokens=30, speculate="ngram").tolist() == (
        generate(model, PROMPTS, seed=SEEDS, max_new_tokens=30).tolist()
    )
