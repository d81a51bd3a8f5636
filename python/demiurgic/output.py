"""What generate returns, and the errors that carry it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class GenerationOutput:
    """What a call of generate made. Rows are prompt-major: the copies of a prompt follow each other.

    Attributes:
        sequences: int64 [B * n, T + new], padded on the left and after each row's end; `[:, T:]` are the completions.
        completions: the generated ids of each row, its EOS or stop id included, no padding.
        prompt_lengths: tokens of each row's prompt, without padding.
        lengths: generated tokens of each row.
        finish_reasons: eos | stop | length | repetition | error | cancelled, of each row.
        errors: the message where the reason is error, else None.
        logprobs: float32 [B * n, new], natural log of each token's probability by the model's raw logits; nan after the
            end.
        processed_logprobs: the same by what the options left of the distribution.
        seeds: each row's 64-bit seed; the row alone with `seed=[it]` draws the same tokens.
        timings: prefill and decode in seconds, tokens_per_second over both.
        drafted: with speculate or draft_model, the drafts of each row that went through the model; else 0. How many is
            decided by the clock, so it differs from run to run, though the tokens do not.
        accepted: of them, those that were the tokens that came.
        texts: the text of each row's generated tokens, where a tokenizer was given; else None. It ends before the stop
            string to the byte, also inside of a token that `completions` then lacks. Bytes that are no UTF-8, a
            character cut in half by the length for instance, become U+FFFD.
        stop_reasons: where the reason is stop, the stop string, the value of stop_at or the stop id that ended the row;
            else None.
        top_logprobs: float32 [B * n, new, k] with the option `top_logprobs=k`: log-probabilities of the k most likely
            tokens at each position, the most likely first, the lowest id on ties. nan after the end, and where fewer
            than k tokens have a chance.
        top_logprob_ids: int64 [B * n, new, k], their ids; -1 where top_logprobs is nan.
        entropies: float32 [B * n, new] with `entropy=True`, in nats: -sum p ln p; nan after the end.
        top_logprobs_mode: which distribution those three are of: "raw", the model's; "processed", what the options
            left of it; "both", the model's, and the next three are of what the options left.
        processed_top_logprobs, processed_top_logprob_ids, processed_entropies: the same with the mode "both".
        prompt_logprobs: float32 [B * n, T] with `prompt_logprobs=True`, by the model's raw logits, the bits of `score`;
            nan at padding, at each row's first token, and in rows that ended before their prompt was computed.
    """

    sequences: Tensor
    completions: list[list[int]]
    prompt_lengths: list[int]
    lengths: list[int]
    finish_reasons: list[str]
    errors: list[str | None]
    logprobs: Tensor
    processed_logprobs: Tensor
    seeds: list[int]
    timings: dict[str, float]
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    texts: list[str] | None = None
    stop_reasons: list[str | int | None] | None = None
    top_logprobs: Tensor | None = None
    top_logprob_ids: Tensor | None = None
    entropies: Tensor | None = None
    top_logprobs_mode: str = "raw"
    processed_top_logprobs: Tensor | None = None
    processed_top_logprob_ids: Tensor | None = None
    processed_entropies: Tensor | None = None
    prompt_logprobs: Tensor | None = None

    def raise_errors(self) -> None:
        """GenerationError of the first row that ended in an error, if there is one."""
        for row, error in enumerate(self.errors):
            if error is not None:
                raise GenerationError(f"Row {row} ended in an error: {error}", self)


class GenerationError(RuntimeError):
    """A row ended in an error; the others are finished. `result` is the whole GenerationOutput."""

    def __init__(self, message: str, result: GenerationOutput) -> None:
        super().__init__(message)
        self.result = result


class ScoreError(RuntimeError):
    """The model gave a row logits that are no distribution; the others are finished.

    `result` is what score would have returned, with nan in all of that row.
    """

    def __init__(self, message: str, result: Tensor) -> None:
        super().__init__(message)
        self.result = result
