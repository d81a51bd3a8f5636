# Written by hand; tests/test_stub.py compares it with the module that csrc/bindings.cpp makes.
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, final

from torch import Tensor
from typing_extensions import Self, Unpack

# Keywords of a GenerationConfig; all may be left out.
class _AllButMaxNewTokens(TypedDict, total=False):
    max_length: int | None
    min_length: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    typical_p: float | None
    do_sample: bool
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    num_return_sequences: int
    pad_token_id: int | None
    eos_token_id: int | list[int] | None
    min_new_tokens: int | None
    min_p: float | None
    repetition_context_size: int | None
    penalize_prompt: bool
    no_repeat_ngram_size: int | None
    logit_bias: dict[int, float] | None
    bad_token_ids: list[int] | None
    stop_token_ids: list[int] | None
    seed: int | list[int] | None
    use_cache: bool
    speculate: str | None
    max_draft_tokens: int
    stop: str | list[str] | None
    include_stop: bool
    stop_at: str | None
    stop_on_repetition: int | None
    repetition_min_tokens: int
    trim_repetition: bool
    top_logprobs: int | None
    top_logprobs_mode: str
    prompt_logprobs: bool
    entropy: bool

class _Options(_AllButMaxNewTokens, total=False):
    max_new_tokens: int | None

class GenerationConfig:
    """The options of a generation; `demiurgic.options()` gives each one's meaning, default and range.

    Raises:
        TypeError: an unknown option (the nearest is named), or a value of a wrong type.
        ValueError: a value out of range, or options that contradict each other.
    """

    max_new_tokens: int | None
    max_length: int | None
    min_length: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    typical_p: float | None
    do_sample: bool
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    num_return_sequences: int
    pad_token_id: int | None
    eos_token_id: int | list[int] | None
    min_new_tokens: int | None
    min_p: float | None
    repetition_context_size: int | None
    penalize_prompt: bool
    no_repeat_ngram_size: int | None
    logit_bias: dict[int, float] | None
    bad_token_ids: list[int] | None
    stop_token_ids: list[int] | None
    seed: int | list[int] | None
    use_cache: bool
    speculate: str | None
    max_draft_tokens: int
    stop: str | list[str] | None
    include_stop: bool
    stop_at: str | None
    stop_on_repetition: int | None
    repetition_min_tokens: int
    trim_repetition: bool
    top_logprobs: int | None
    top_logprobs_mode: str
    prompt_logprobs: bool
    entropy: bool

    def __init__(self, **options: Unpack[_Options]) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]  # it can be changed
    @classmethod
    def greedy(cls, max_new_tokens: int | None = None, **overrides: Unpack[_AllButMaxNewTokens]) -> Self: ...
    @classmethod
    def balanced_code(cls, max_new_tokens: int | None = None, **overrides: Unpack[_AllButMaxNewTokens]) -> Self: ...
    @classmethod
    def precise_code(cls, max_new_tokens: int | None = None, **overrides: Unpack[_AllButMaxNewTokens]) -> Self: ...
    @classmethod
    def creative_code(cls, max_new_tokens: int | None = None, **overrides: Unpack[_AllButMaxNewTokens]) -> Self: ...
    @classmethod
    def natural_text(cls, max_new_tokens: int | None = None, **overrides: Unpack[_AllButMaxNewTokens]) -> Self: ...
    @classmethod
    def completion_fim(cls, max_new_tokens: int | None = None, **overrides: Unpack[_AllButMaxNewTokens]) -> Self: ...
    def replace(self, **options: Unpack[_Options]) -> GenerationConfig:
        """A copy with the given options changed."""
    def validate(self) -> None:
        """Raises ValueError where two options contradict each other."""
    def to_dict(self) -> dict[str, Any]:
        """Keywords for generate: always the same fourteen, then the others that differ from their defaults."""
    @staticmethod
    def from_dict(options: dict[str, Any]) -> GenerationConfig:
        """The inverse of to_dict; missing options take their defaults."""
    def to_json(self) -> str: ...
    @staticmethod
    def from_json(text: str) -> GenerationConfig:
        """The inverse of to_json."""

def options() -> list[dict[str, Any]]:
    """Every option: name, type, default, range and doc, from the one table in the core."""

def presets() -> dict[str, str]:
    """The presets of GenerationConfig and what each is for."""

def derive_seed(seed: int, i: int) -> int:
    """The 64-bit seed of the i-th of the rows that share `seed`; the 0-th has `seed` itself."""

def kernels_info(device: str, exact: bool = True) -> dict[str, str]:
    """Which implementation serves each entry of the kernel table on a device."""

def isa_names() -> list[str]:
    """The instruction sets that this build has CPU kernels for and this CPU can run, fastest first; DEMIURGIC_KERNELS
    forces one."""

class LayerConfig:
    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        activation: str,
        gated: bool,
    ) -> None:
        """The shapes and variants of one decoder layer; `activation` is silu, gelu or relu."""

class ModelConfig:
    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        rms_norm_eps: float,
        rotary_frequencies: Sequence[float],
        rotary_scaling: float,
        layers: Sequence[LayerConfig],
    ) -> None:
        """The shapes and variants of a decoder; `rotary_frequencies` [head_dim / 2] in radians per position."""

class Weights:
    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor]) -> None:
        """References to the live parameters by Hugging Face's names of Llama, never copies."""

class Hooks:
    def __init__(
        self,
        *,
        process: Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor] | None,
        stop: Callable[[Tensor, Tensor, Tensor, Sequence[int]], list[bool]] | None,
        prompt_width: int,
        padding: int,
    ) -> None:
        """What a call asks at every position, with input_ids int64 [R, T], scores float32 [R, V], row numbers int64 [R]
        and lengths [R]; on any thread."""

class TokenBytes:
    def __init__(
        self, tokens: Sequence[str], special: Sequence[int], spelling: str, leading_blank: str = "kept"
    ) -> None:
        """The bytes that each token stands for.

        `tokens`: as the vocabulary spells them, by id, "" where there is none. `special`: ids without bytes.
        `spelling`: byte_level | pieces | byte_fallback | raw. `leading_blank`: kept | one_dropped | token_dropped, at a
        text's beginning.
        """
    def of(self, token: int) -> bytes:
        """The bytes of one token; none of a special one and of an id outside the vocabulary."""
    def __len__(self) -> int: ...

class Replay:
    def __init__(self, prompt: Sequence[int], config: GenerationConfig, token_bytes: TokenBytes | None = None) -> None:
        """A row that is given its tokens instead of generating them: where it ends, and why."""
    def append(self, token: int) -> str:
        """Takes the next token; returns why the row has ended, or none. Raises ValueError where it had ended."""
    @property
    def tokens(self) -> list[int]: ...
    @property
    def text(self) -> bytes: ...
    @property
    def settled(self) -> tuple[int, int]: ...
    @property
    def stopped_by(self) -> str | int | None: ...

class Request:
    seeds: list[int]
    def __init__(
        self,
        *,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seeds: Sequence[int],
        max_running: int,
        want_logprobs: bool,
        token_bytes: TokenBytes | None = None,
        max_new_tokens: Sequence[int] = [],
        hooks: Hooks | None = None,
        max_seconds: float | None = None,
        draft_model: Weights | None = None,
        keeps_if_settled: bool = False,
        always_drafts: bool = False,
        interruptible: bool = True,
    ) -> None:
        """What a call asks for; one seed a row, 0 to 2**64 - 1; one of max_new_tokens a prompt, or none."""

@final
class Call:
    """The rows of one call of generate, under way or finished; Engine.add makes it."""

    @property
    def num_rows(self) -> int: ...
    def advance(self) -> bool:
        """Runs steps, or waits for another thread's, until the call has got on; False once it is finished."""
    def cancel(self) -> None:
        """Ends the unfinished rows and frees their cache."""
    def settle(self) -> None:
        """Of an ended call with keeps_if_settled: its prefixes are kept if the weights are still the same."""
    def tokens(self, row: int, start: int = 0) -> list[int]:
        """The generated ids of a row from the start-th on."""
    def finish_reason(self, row: int) -> str:
        """none | eos | stop | length | repetition | error | cancelled"""
    def text(self, row: int, start: int = 0) -> bytes:
        """UTF-8 of the generated text of a row from the start-th byte on, as far as it stays; empty without
        token_bytes."""
    def settled(self, row: int) -> tuple[int, int]:
        """How many of the generated ids of a row, and bytes of their text, stay, whatever comes."""
    def stopped_by(self, row: int) -> str | int | None:
        """The stop string, the value of stop_at or the stop id that has ended a row; else None."""
    def error(self, row: int) -> str:
        """The message where the finish reason is error, else an empty string."""
    def logprobs(self, row: int, start: int = 0) -> list[float]:
        """Natural logs of the probabilities of the generated ids from the start-th on by the model; empty unless they
        were asked for."""
    def processed_logprobs(self, row: int, start: int = 0) -> list[float]:
        """The same by what the options left of the distribution."""
    def drafts(self, row: int) -> tuple[int, int]:
        """How many drafts of a row's tokens were verified, and how many of them were accepted."""
    def prompt_logprobs(self, row: int) -> list[float]:
        """Of the prompt's tokens but the first; empty unless they were asked for and are all known."""
    def reports(self, row: int, processed: bool, start: int = 0) -> tuple[list[int], list[float], list[float]]:
        """Of the distributions at the generated ids from the start-th on: the top ids and their log-probabilities, k
        after k, and the entropies; each empty unless it was asked for."""
    def timings(self) -> dict[str, float]:
        """Seconds in steps with prompt tokens of this call (prefill) and in its other steps (decode)."""

class Engine:
    def __init__(
        self,
        weights: Weights,
        cache_bytes: int | None,
        max_step_tokens: int,
        keep_prefixes: bool = False,
        exact: bool = True,
    ) -> None:
        """Generates for all calls that are under way on one model."""
    @property
    def kernels(self) -> str:
        """Device type and kernels, such as 'cpu avx2'."""
    def fingerprint(self) -> int:
        """The present values of all weights, as one number of 64 bits."""
    def keep_prefixes_of(self, fingerprint: int) -> bool:
        """Drops the prefixes that were computed with other weights; whether there were any."""
    def clear_prefixes(self) -> None:
        """Drops all prefixes, and the memory of the cache if no call is under way."""
    def read_prefix(self, tokens: Sequence[int], fingerprint: int) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, kv_heads, T, head_dim] of tokens that are kept."""
    def write_prefix(self, tokens: Sequence[int], keys: Tensor, values: Tensor, fingerprint: int) -> None:
        """Keeps tokens with what read_prefix gave."""
    def check(self, request: Request) -> None:
        """Raises what add would raise for a bad request or for want of room."""
    def add(self, request: Request) -> Call:
        """Adds every prompt num_return_sequences times; nothing is computed before the call is advanced."""
    def score(self, rows: Sequence[Sequence[int]], max_running: int) -> list[tuple[list[float], str]]:
        """For each row the log-probabilities of all its tokens but the first, and ""; or none, and the error."""
    def serves(self, weights: Weights, cache_bytes: int | None, max_step_tokens: int, exact: bool = True) -> bool:
        """Whether calls on these live tensors, with these limits, can share this engine."""
    def counters(self) -> dict[str, int]:
        """Steps, computed tokens, preemptions, used blocks and bytes of the cache so far."""
