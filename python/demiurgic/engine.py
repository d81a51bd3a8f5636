"""Python's face of the engine: generate and score, with the live weights of a module."""

from __future__ import annotations

import difflib
import functools
import operator
import threading
import weakref
from collections.abc import Collection
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import torch
from torch import Tensor, nn

from demiurgic import _C
from demiurgic.auto_length import auto_lengths, take_auto_length
from demiurgic.caller import warn_caller
from demiurgic.hooks import Hooks, hooks_in
from demiurgic.live_weights import live_weights, unwrap
from demiurgic.output import GenerationOutput, ScoreError
from demiurgic.progress import ProgressBar
from demiurgic.prompts import Prompts, read_prompts
from demiurgic.reports import event_numbers, read_prompt_logprobs, read_reports, refuse_unreturned
from demiurgic.stock_classes import Surroundings
from demiurgic.stock_criteria import named_eos
from demiurgic.stock_hooks import take_over
from demiurgic.streamer import StreamerFeed, check_streamer, ended_if_refused
from demiurgic.token_bytes import token_bytes

DEFAULT_MAX_RUNNING = 256
DEFAULT_STEP_TOKENS = 512


def generate(
    model: nn.Module,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    generation_config: _C.GenerationConfig | None = None,
    return_dict_in_generate: bool = False,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    progress: bool = False,
    streamer: Any = None,
    max_running: int = DEFAULT_MAX_RUNNING,
    cache_bytes: int | None = None,
    max_step_tokens: int | None = None,
    exact: bool | None = None,
    session: EngineSource | None = None,
    draft_model: nn.Module | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> Tensor | GenerationOutput:
    """Continues prompts with the weights that `model` has now.

    The module is left as it is: its mode, hooks, gradients and the global random state (but one 64-bit draw from
    torch's CPU generator if it samples and no seed is given). Several threads may generate on one model at a time.

    Args:
        model: a DemiurgicForCausalLM, also inside DistributedDataParallel or torch.compile.
        input_ids: integers [B, T] or [T], or a list of prompts of any lengths.
        attention_mask: [B, T], 1 where a token counts, 0 where it is padding at a row's edge. Without it, runs of
            pad_token_id at the edges are padding unless that id is BOS or EOS.
        generation_config: the options; those given beside it win.
        return_dict_in_generate: return a GenerationOutput.
        logits_processor: a callable or a list of them, each called at every position with the live rows of this call,
            in the order of the result: `(input_ids, scores)`, int64 [R, T] padded on the left and float32 [R, V] after
            step 5 of the order of sampling (docs/architecture.md). It returns the scores, changed in place or others,
            float32 [R, V]; temperature and what follows act on them. One that takes a third argument (without a
            default, or called rows) gets the rows' numbers, int64 [R]. Stock classes of Hugging Face become options of
            ours where their order in the list allows it (docs/generation_improvements.md).
        stopping_criteria: the same for ends of rows: called when each row has its new token, with `scores` as the
            processors left them; returns a bool, which is for all rows shown, or bools [R]. A row that it ends has the
            finish reason stop. Hooks run without gradients, on any thread that generates with this model.
        progress: show a bar of finished rows and tokens a second on standard error or in the notebook; nothing is shown
            where standard error is no terminal.
        streamer: an object with Hugging Face's protocol for streams, as its TextStreamer: it gets the prompt, then each
            token, by `put`, and `end()` when the generation ends or is refused, whatever the reason. For one row only.
        max_running: most rows that are computed at a time, 1 or more; the others wait.
        cache_bytes: most memory of the key/value cache in bytes. None: nine tenths of what is free on the device.
        max_step_tokens: most prompt tokens computed at a time, 1 or more; longer prompts go in chunks. None: 512.
        exact: whether a row has the bits that it has alone, whatever is computed with it, as far as the device has
            kernels that promise it. False: products of many rows may be a library's on CUDA (cuBLASLt), which is faster
            for long prompts and large batches; other devices do the same either way. Speculation is refused then. None:
            True.
        session: what demiurgic.session returned for this model: the call uses the prefixes that it keeps, and leaves
            its own there. The session has cache_bytes, max_step_tokens and exact, they are not given here.
        draft_model: a smaller DemiurgicForCausalLM with the same vocabulary on the same device, which guesses the next
            tokens (speculative decoding; Leviathan et al., 2023). Right guesses save steps of `model`; the result is
            the same, whatever it guesses. Its own cache takes what `cache_bytes` leaves.
        tokenizer: the model's, for `texts` of the result and for the options that look at text (stop, stop_at,
            max_new_tokens="auto"): this package's, a tokenizers.Tokenizer, a fast one of transformers or a
            tiktoken.Encoding. What is known of its tokens is made once for each tokenizer object.
        options: any option of GenerationConfig by name. `stop_strings` is another name of `stop`.
            `max_new_tokens="auto"` gives each prompt what demiurgic.text.suggest_max_new_tokens says of it, within the
            context that is left, and min_new_tokens at least; max_length may not be given beside it.

    Returns:
        int64 [B * num_return_sequences, T + new] on the device of `input_ids` (of the model for lists), padded on the
        left, so that `[:, T:]` is the completion of every row.

    Raises:
        TypeError: an unknown option (the nearest is named), a value of a wrong type, something that is not a model.
        ValueError: an option out of range, a bad mask, an empty prompt, a model that cannot be run as it is.
        IndexError: ids outside the vocabulary.
        RuntimeError: no room for the cache, with the numbers.
        GenerationError: a row met logits that are not finite, or had every token forbidden (only without
            return_dict_in_generate; its `result` has all rows).
        Whatever a logits processor or stopping criterion raises.
    """
    with ended_if_refused(streamer):
        _check_flag("return_dict_in_generate", return_dict_in_generate)
        _check_flag("progress", progress)
        auto_length = take_auto_length(options, generation_config)
        config = merged(generation_config, options)
        if not return_dict_in_generate:
            refuse_unreturned(config)
        generation = Generation(
            model,
            input_ids,
            attention_mask,
            config=config,
            given=given_names(generation_config, options),
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            tokenizer=tokenizer,
            auto_length=auto_length,
            want_logprobs=return_dict_in_generate,
            max_running=max_running,
            cache_bytes=cache_bytes,
            max_step_tokens=max_step_tokens,
            exact=exact,
            draft_model=draft_model,
            session=session,
            streamer=streamer,
            interruptible=streamer is not None,
        )
    with generation, StreamerFeed(generation, streamer) as feed, ProgressBar(generation, progress) as bar:
        while generation.advance():
            bar.update()
            feed.update()
    result = generation.result()
    if return_dict_in_generate:
        return result
    result.raise_errors()
    return result.sequences


def score(
    model: nn.Module,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_running: int = DEFAULT_MAX_RUNNING,
    cache_bytes: int | None = None,
    max_step_tokens: int | None = None,
    exact: bool | None = None,
    session: EngineSource | None = None,
) -> Tensor:
    """How probable `model` finds given tokens, with the weights that it has now.

    The log-softmax of the model's logits, without any option of generate; for tokens that generate made, `logprobs`.
    Long rows go in pieces: there are never the logits of more than 128 of their tokens at a time. The module and the
    random state are left as they are. Several threads may score and generate on one model at a time.

    Args:
        model: a DemiurgicForCausalLM, also inside DistributedDataParallel or torch.compile.
        input_ids: integers [B, T] or [T], or a list of rows of any lengths, which are then padded on the left to the
            longest, T, as generate returns them.
        attention_mask: [B, T], 1 where a token counts, 0 where it is padding at a row's edge. Without it, runs of
            the model's pad_token_id at the edges are padding unless that id is BOS or EOS.
        max_running: most rows that are computed at a time, 1 or more; the others wait.
        cache_bytes: most memory of the key/value cache in bytes. None: nine tenths of what is free on the device.
        max_step_tokens: most tokens computed at a time, 1 or more. None: 512.
        exact: as in generate.
        session: what demiurgic.session returned for this model: its cache is used, but every token is computed, since
            its logits are wanted, and nothing is kept.

    Returns:
        float32 [B, T - 1] on the device of `input_ids` (of the model for lists): `[b, t]` is the natural log of the
        probability of token t + 1 of row b after its tokens up to t; nan where either is padding.

    Raises:
        TypeError: a value of a wrong type, something that is not a model.
        ValueError: a bad mask, a keyword out of range, a model that cannot be run as it is.
        IndexError: ids outside the vocabulary.
        RuntimeError: no room for the cache, with the numbers.
        ScoreError: a row met logits that are not finite; its `result` has all rows.
    """
    _check_limits(max_running, cache_bytes, max_step_tokens, exact)
    module = unwrap(model)
    prompts = _prompts(input_ids, attention_mask, _resolved(_C.GenerationConfig(), module.config), module.config)
    engine = _engine_for(module, cache_bytes, max_step_tokens, exact, session)
    _warn_past_context("input_ids has rows of", max(map(len, prompts.ids)), module.config)
    scored = engine.score(prompts.ids, max_running)
    result = torch.full((len(scored), max(prompts.width - 1, 0)), torch.nan, dtype=torch.float32, device="cpu")
    for row, (column, (logprobs, _)) in enumerate(zip(prompts.columns, scored, strict=True)):
        result[row, column : column + len(logprobs)] = torch.tensor(logprobs, dtype=torch.float32, device="cpu")
    result = result.to(prompts.device or next(module.parameters()).device)
    for row, (_, error) in enumerate(scored):
        if error:
            raise ScoreError(f"Row {row} ended in an error: {error}", result)
    return result


def merged(
    config: _C.GenerationConfig | None, options: dict[str, Any], caller: str = "generate"
) -> _C.GenerationConfig:
    """A copy of `config`, or of the defaults, with `options`, given to `caller` (generate or stream), on top."""
    if "stop_strings" in options:  # Hugging Face's name
        if "stop" in options:
            raise TypeError("stop and stop_strings are the same option; give one of them.")
        options = {("stop" if name == "stop_strings" else name): value for name, value in options.items()}
    _check_names(options, caller)
    if config is None:
        return _C.GenerationConfig(**options)
    if not isinstance(config, _C.GenerationConfig):
        raise TypeError(
            f"generation_config is a {type(config).__name__}; give a demiurgic.GenerationConfig "
            "(GenerationConfig.from_dict makes one from a dict)."
        )
    return config.replace(**options)


def given_names(config: _C.GenerationConfig | None, options: dict[str, Any]) -> set[str]:
    """The options that the user chose: those given by name, and those of `config` that differ from the defaults."""
    defaults = _C.GenerationConfig()
    names = [] if config is None else [option["name"] for option in _C.options()]
    named = {"stop" if name == "stop_strings" else name for name in options}
    return {*named, *(name for name in names if getattr(config, name) != getattr(defaults, name))}


class Generation:
    """One call of generate under way: advance it, look at its rows, take the result. Leaving `with` ends it."""

    def __init__(
        self,
        model: nn.Module,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        config: _C.GenerationConfig,
        given: Collection[str] = (),
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        want_logprobs: bool = False,
        max_running: int = DEFAULT_MAX_RUNNING,
        cache_bytes: int | None = None,
        max_step_tokens: int | None = None,
        exact: bool | None = None,
        session: EngineSource | None = None,
        streamer: Any = None,
        draft_model: nn.Module | None = None,
        always_drafts: bool = False,
        tokenizer: Any = None,
        auto_length: bool = False,
        interruptible: bool = True,  # by code of the user's, which may change the weights between two steps
    ) -> None:
        _check_limits(max_running, cache_bytes, max_step_tokens, exact)
        module = unwrap(model)
        processors = hooks_in("logits_processor", logits_processor)
        criteria = hooks_in("stopping_criteria", stopping_criteria)
        config = _resolved(named_eos(criteria, config, given, module.config), module.config)
        self.prompts = _prompts(input_ids, attention_mask, config, module.config)
        around = _surroundings(config, given, self.prompts, module.config)
        around = around._replace(tokenizer=tokenizer, auto_length=auto_length)
        taken = take_over(processors, criteria, around)
        config = config.replace(**taken.options)
        self._config = config
        self.copies: int = config.num_return_sequences
        check_streamer(streamer, num_rows=len(self.prompts.ids) * self.copies)
        self._pad = _padding_id(config)
        self._want_logprobs = want_logprobs
        self._engine = _engine_for(module, cache_bytes, max_step_tokens, exact, session)
        num_prompts = len(self.prompts.ids)
        self._token_bytes = None if tokenizer is None else token_bytes(tokenizer)
        lengths: list[int] = []
        if auto_length:
            lengths = auto_lengths(self.prompts.ids, self._token_bytes, config, module.config)
        request = _C.Request(
            prompts=self.prompts.ids,
            config=config,
            seeds=_seeds(config, num_prompts, drawn=0),
            max_running=max_running,
            want_logprobs=want_logprobs,
            draft_model=_draft_weights(draft_model),
            keeps_if_settled=session is not None and (interruptible or taken.hooks is not None),
            always_drafts=always_drafts,
            interruptible=interruptible,
            hooks=_core_hooks(taken.hooks, self.prompts.width, self._pad),
            max_seconds=taken.seconds,
            token_bytes=self._token_bytes or taken.token_bytes,
            max_new_tokens=lengths,
        )
        if config.seed is None and _samples(config):
            self._engine.check(request)  # a refused call must not draw from the user's generator
            request.seeds = _seeds(config, num_prompts, drawn=_draw())
        self.seeds = request.seeds
        self._call = self._engine.add(request)
        self._device = self.prompts.device or next(module.parameters()).device
        if not auto_length:
            _warn_of_growth(self.prompts.ids, config, module.config)

    @property
    def num_rows(self) -> int:
        return len(self.seeds)

    def advance(self) -> bool:
        """Computes until this call has got on by a step, or, not interruptible, for a tenth of a second.

        False once every row has ended.
        """
        more = self._call.advance()
        if not more:
            self._call.settle()
        return more

    def tokens(self, row: int, start: int = 0) -> list[int]:
        """The generated ids of a row from the `start`-th on, so far."""
        return self._call.tokens(row, start)

    def settled(self, row: int) -> tuple[int, int]:
        """How many of the generated ids of a row, and bytes of their text, stay, whatever comes.

        The others are part of what may become a stop string, or a cycle that is trimmed, and may be taken back.
        """
        return self._call.settled(row)

    def text(self, row: int, start: int = 0) -> bytes:
        """UTF-8 of a row's generated text from the `start`-th byte on, as far as it is settled; needs a tokenizer."""
        return self._call.text(row, start)

    def finish_reason(self, row: int) -> str:
        """none while the row is under way, else eos | stop | length | repetition | error | cancelled."""
        return self._call.finish_reason(row)

    def stop_reason(self, row: int) -> str | int | None:
        """The stop string, the value of stop_at or the stop id that ended the row."""
        return self._call.stopped_by(row)

    @property
    def has_text(self) -> bool:
        """Whether there is a tokenizer whose bytes are known, and so `text`."""
        return self._token_bytes is not None

    def error(self, row: int) -> str | None:
        """The message where the row ended in an error."""
        return self._call.error(row) or None

    def timings(self) -> dict[str, float]:
        """Seconds so far: prefill and decode."""
        return self._call.timings()

    def numbers(self, row: int, start: int, count: int) -> dict[str, Any]:
        """Log-probabilities, and what else the options ask for, of `count` generated tokens from the `start`-th on."""
        return event_numbers(self._call, self._config, row, start, count)

    def cancel(self) -> None:
        """Ends the rows that are under way."""
        self._call.cancel()
        self._call.settle()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def result(self) -> GenerationOutput:
        """What has been generated; to be asked once the call is finished or cancelled."""
        rows = range(self.num_rows)
        completions = [self._call.tokens(row) for row in rows]
        lengths = [len(completion) for completion in completions]
        prompts = [self.prompts.ids[row // self.copies] for row in rows]
        width, new = self.prompts.width, max(lengths)
        sequences = torch.full((self.num_rows, width + new), self._pad, dtype=torch.int64, device="cpu")
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            ids = torch.tensor(prompt + completion, dtype=torch.int64, device="cpu")
            sequences[row, width - len(prompt) : width + len(completion)] = ids
        timings = self._call.timings()
        seconds = timings["prefill"] + timings["decode"]
        return GenerationOutput(
            sequences=sequences.to(self._device),
            completions=completions,
            prompt_lengths=[len(prompt) for prompt in prompts],
            lengths=lengths,
            finish_reasons=[self._call.finish_reason(row) for row in rows],
            errors=[self._call.error(row) or None for row in rows],
            logprobs=self._padded([self._call.logprobs(row) for row in rows], new),
            processed_logprobs=self._padded([self._call.processed_logprobs(row) for row in rows], new),
            seeds=self.seeds,
            drafted=[self._call.drafts(row)[0] for row in rows],
            accepted=[self._call.drafts(row)[1] for row in rows],
            timings={**timings, "tokens_per_second": sum(lengths) / seconds if seconds else 0.0},
            texts=None if self._token_bytes is None else [self._text(row) for row in rows],
            stop_reasons=[self.stop_reason(row) for row in rows],
            prompt_logprobs=self._prompt_logprobs(prompts),
            **read_reports(self._call, self._config, new, self._device),
        )

    def _text(self, row: int) -> str:
        return self._call.text(row).decode("utf-8", errors="replace")

    def _prompt_logprobs(self, prompts: list[list[int]]) -> Tensor | None:
        if not self._config.prompt_logprobs:
            return None
        return read_prompt_logprobs(self._call, [len(p) for p in prompts], self.prompts.width, self._device)

    def _padded(self, values: list[list[float]], width: int) -> Tensor:
        """float32 [rows, width], nan after the end of each row."""
        padded = torch.full((len(values), width), torch.nan, dtype=torch.float32, device="cpu")
        for row, numbers in enumerate(values):
            padded[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float32, device="cpu")
        return padded.to(self._device)


def _draft_weights(model: nn.Module | None) -> _C.Weights | None:
    """The live weights of a draft model; what is wrong with it is said of `draft_model`."""
    if model is None:
        return None
    try:
        return live_weights(unwrap(model))
    except (TypeError, ValueError) as error:
        raise type(error)(f"draft_model cannot be used: {error}") from error


def _surroundings(
    config: _C.GenerationConfig, given: Collection[str], prompts: Prompts, model_config: Any
) -> Surroundings:
    rows = [prompt for prompt in prompts.ids for _ in range(config.num_return_sequences)]
    return Surroundings(config, given, prompts.width, rows, model_config.vocab_size)


def _core_hooks(hooks: Hooks | None, prompt_width: int, padding: int) -> _C.Hooks | None:
    """Without processors or without criteria the step does not ask for them."""
    if hooks is None:
        return None
    return _C.Hooks(
        process=hooks.process if hooks.processors else None,
        stop=hooks.stop if hooks.criteria else None,
        prompt_width=prompt_width,
        padding=padding,
    )


# Engines under way, by module: calls of several threads on one model share one. An engine lives as long as a call.
_engines: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[_C.Engine]] = weakref.WeakKeyDictionary()
_engines_lock = threading.Lock()


@runtime_checkable
class EngineSource(Protocol):
    """What a call takes its engine from instead of sharing that of the module: a demiurgic.sessions.Session."""

    def engine_for(self, module: nn.Module) -> _C.Engine:
        """The engine of a call that begins now."""


def _engine_for(
    module: nn.Module,
    cache_bytes: int | None,
    max_step_tokens: int | None,
    exact: bool | None,
    session: EngineSource | None,
) -> _C.Engine:
    if session is not None:
        limits = {"cache_bytes": cache_bytes, "max_step_tokens": max_step_tokens, "exact": exact}
        return _engine_of_session(module, limits, session)
    weights, max_step_tokens = live_weights(module), max_step_tokens or DEFAULT_STEP_TOKENS
    exact = exact is not False
    with _engines_lock:
        engines = _engines.setdefault(module, weakref.WeakSet())
        for engine in engines:
            if engine.serves(weights, cache_bytes, max_step_tokens, exact):
                return engine
        engine = _C.Engine(weights, cache_bytes, max_step_tokens, exact=exact)
        engines.add(engine)
        return engine


def _engine_of_session(module: nn.Module, limits: dict[str, int | None], session: EngineSource) -> _C.Engine:
    if not isinstance(session, EngineSource):
        raise TypeError(f"session is a {type(session).__name__}; give what demiurgic.session returned.")
    for name, given in limits.items():
        if given is not None:
            raise ValueError(
                f"{name} is given to a call of a session, whose calls share one cache; give it to demiurgic.session."
            )
    return session.engine_for(module)


# Keywords of generate and stream that are no options of GenerationConfig.
_KEYWORDS = (
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "max_running",
    "cache_bytes",
    "max_step_tokens",
    "exact",
    "draft_model",
    "session",
    "tokenizer",
    "stop_strings",
)


# Those of generate alone, and what a stream has instead.
_OF_GENERATE = {
    "return_dict_in_generate": "its events have the numbers, and Stream.result() returns all of them",
    "streamer": "its events are what a streamer is given",
    "progress": "its events say how far the rows are",
}


@functools.cache
def _option_names() -> tuple[str, ...]:
    return tuple(option["name"] for option in _C.options())


def _check_names(options: dict[str, Any], caller: str) -> None:
    """Refuses a misspelt keyword of `caller`; GenerationConfig does it for misspelt options."""
    known = _option_names()
    keywords = [*_KEYWORDS, *(_OF_GENERATE if caller == "generate" else ())]
    for name in options:
        if name in _OF_GENERATE:  # it is no keyword of `caller`, else it would not be among the options
            raise TypeError(f"{caller} has no keyword '{name}': {_OF_GENERATE[name]}; leave it out, or call generate.")
        if name in known:
            continue
        nearest = difflib.get_close_matches(name, [*known, *keywords], n=1)
        if nearest and nearest[0] in keywords:
            raise TypeError(f"{caller} has no keyword '{name}'; did you mean '{nearest[0]}'?")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, but must be True or False.")


def _check_limits(max_running: Any, cache_bytes: Any, max_step_tokens: Any, exact: Any) -> None:
    _check_count("max_running", max_running)
    check_engine_limits(cache_bytes, max_step_tokens, exact)


def check_engine_limits(cache_bytes: Any, max_step_tokens: Any, exact: Any) -> None:
    """TypeError or ValueError where one is neither None nor an integer of 1 or more, or for `exact` a bool."""
    if exact is not None:
        _check_flag("exact", exact)
    for name, count in (("max_step_tokens", max_step_tokens), ("cache_bytes", cache_bytes)):
        if count is not None:
            _check_count(name, count)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {value!r}, but must be an integer.")
    if not 1 <= operator.index(value) < 2**63:
        raise ValueError(f"{name} is {value}, but must be 1 or more and fit 64 bits.")


def _samples(config: _C.GenerationConfig) -> bool:
    return bool(config.do_sample and config.temperature)


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _resolved(config: _C.GenerationConfig, model_config: Any) -> _C.GenerationConfig:
    """The config with the model's ids where it names none; IndexError for ids that the model does not have."""
    for name, ids in (("eos_token_id", _as_list(config.eos_token_id)), ("pad_token_id", _as_list(config.pad_token_id))):
        if any(token >= model_config.vocab_size for token in ids):
            raise IndexError(
                f"{name} is {getattr(config, name)}, but the vocabulary has the ids 0 to {model_config.vocab_size - 1}."
            )
    given: dict[str, Any] = {}
    if config.eos_token_id is None:
        given["eos_token_id"] = _as_list(model_config.eos_token_id)
    if config.pad_token_id is None:
        given["pad_token_id"] = model_config.pad_token_id
    return config.replace(**given)


def _prompts(input_ids: Any, attention_mask: Any, config: _C.GenerationConfig, model_config: Any) -> Prompts:
    special = {model_config.bos_token_id, *_as_list(config.eos_token_id)}
    return read_prompts(input_ids, attention_mask, config.pad_token_id, special)


def _padding_id(config: _C.GenerationConfig) -> int:
    if config.pad_token_id is not None:
        return config.pad_token_id
    return next(iter(_as_list(config.eos_token_id)), 0)


def _draw() -> int:
    """64 random bits: one draw from torch's CPU generator, whatever the default device is."""
    drawn = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=torch.default_generator)
    return int(drawn)


def _seeds(config: _C.GenerationConfig, num_prompts: int, drawn: int) -> list[int]:
    """One 64-bit seed a row, from the option `seed`, or from `drawn` where it is None."""
    copies, seed = config.num_return_sequences, config.seed
    num_rows = num_prompts * copies
    if seed is None or isinstance(seed, int):
        first = drawn if seed is None else seed
        return [_C.derive_seed(first, i) for i in range(num_rows)]
    if len(seed) == num_rows:
        return list(seed)
    if len(seed) == num_prompts:
        return [_C.derive_seed(first, copy) for first in seed for copy in range(copies)]
    raise ValueError(
        f"seed is a list of {len(seed)}, but must have one entry a prompt ({num_prompts}) or one a row ({num_rows})."
    )


def _warn_of_growth(prompts: list[list[int]], config: _C.GenerationConfig, model_config: Any) -> None:
    longest = max(len(prompt) for prompt in prompts)
    limit = config.max_length if config.max_length is not None else longest + (config.max_new_tokens or 0)
    if longest < limit:
        _warn_past_context("Rows may grow to", limit, model_config)


def _warn_past_context(rows: str, length: int, model_config: Any) -> None:
    context = model_config.max_position_embeddings
    if length > context:
        warn_caller(
            f"{rows} {length} tokens, but max_position_embeddings is {context}: rotary angles go on past "
            "what the model was trained on."
        )
