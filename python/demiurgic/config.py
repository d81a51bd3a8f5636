"""DemiurgicConfig: the shape and the variants of a model, and the sizes that are trained often."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, fields
from typing import Any

ACTIVATIONS = ("swiglu", "silu", "swish", "gelu", "relu")

# Keys of config files that change nothing about the model's mathematics. Anything else unknown is refused.
HARMLESS_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "decoder_start_token_id",
        "dtype",
        "finetuning_task",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "max_sequence_length",
        "output_attentions",
        "output_hidden_states",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unk_token_id",
        "use_bfloat16",
    }
)

_ROPE_SHARED_KEYS = {"rope_type", "type"}
_ROPE_KEYS = {  # what each type reads, beside the name of the type: (required, optional)
    "default": (set[str](), set[str]()),
    "linear": ({"factor"}, set[str]()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        set[str](),
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        },
    ),
}
_ROPE_REFUSED = {
    "dynamic": "a token's rotation would change as the text grows, so nothing cached would stay right",
    "longrope": "a token's rotation would change once the text passes the original length",
}


@dataclass
class DemiurgicConfig:
    """Shape and variants of a decoder of the Llama family.

    The fields are plain and mutable; they are checked on construction and again when a model is built.

    Args:
        vocab_size: number of token ids, V.
        hidden_size: width of the residual stream, H.
        intermediate_size: width inside the MLP, I.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: query heads; they divide `hidden_size` unless `attention_head_dim` is given.
        num_key_value_heads: key and value heads, a divisor of `num_attention_heads` (grouped-query attention,
            arXiv:2305.13245). None: as many as query heads, also when those are set later.
        max_position_embeddings: the context length the model is meant for. Longer texts go on working.
        rms_norm_eps: epsilon of the RMS norms (arXiv:1910.07467).
        initializer_range: standard deviation of the initial weights.
        attention_dropout, hidden_dropout, embedding_dropout: dropout probabilities in [0, 1), in train mode
            only: of the attention weights, of what a block adds to the residual stream, of the embeddings.
        attention_bias: biases on the q, k, v and o projections.
        use_flash_attention_2: accepted for the configs that have it; without effect.
        rope_theta: base of the rotary frequencies (arXiv:2104.09864).
        rope_scaling: None, or a dict with "rope_type" (or "type") "default", "linear", "llama3" or "yarn" and
            that type's numbers, spelled and computed as in Hugging Face transformers.
        activation_function: "swiglu" (gated: down(silu(gate(x)) * up(x))), or "silu" = "swish", "gelu" (erf)
            or "relu" for the plain fc2(act(fc1(x))).
        pad_token_id, bos_token_id: one id, or None where there is none.
        eos_token_id: one id, a list of ids, or None.
        use_cache: whether forward returns keys and values by default (never in train mode or with labels).
        tie_word_embeddings: the head shares the embedding's weight.
        fim_tokens: ids of the fill-in-the-middle marks, keys "prefix", "middle", "suffix".
        attention_head_dim: width of a head where it is not `hidden_size // num_attention_heads`, as in some
            Hugging Face checkpoints; by name only, and in `to_dict` only where set.
        mlp_bias: biases on the projections of the MLP; by name only, and in `to_dict` only where set.
        model_type: accepted because config files have it; only "demiurgic" is allowed.

    Raises:
        TypeError: a name that is not listed here, or a value of another type.
        ValueError: a value out of range, heads that do not divide, an unsupported activation or rope type.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    use_flash_attention_2: bool = True
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    activation_function: str = "swiglu"
    hidden_dropout: float = 0.0
    embedding_dropout: float = 0.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    use_cache: bool = True
    tie_word_embeddings: bool = False
    fim_tokens: dict[str, int] = field(default_factory=lambda: {"prefix": 3, "middle": 4, "suffix": 5})
    attention_head_dim: int | None = field(default=None, kw_only=True)
    mlp_bias: bool = field(default=False, kw_only=True)
    model_type: InitVar[str] = field(default="demiurgic", kw_only=True)

    def __post_init__(self, model_type: str) -> None:
        if str(model_type).lower() != "demiurgic":
            raise ValueError(
                f"model_type is {model_type!r}: these settings describe another model; only 'demiurgic' "
                "fits here; DemiurgicForCausalLM.from_pretrained(folder) reads Hugging Face Llama folders."
            )
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Scripts set num_attention_heads on a finished config: key/value heads never given must follow.
        if name == "num_key_value_heads":
            self.__dict__["_kv_heads_follow"] = value is None
        if name in ("num_attention_heads", "num_key_value_heads") and self.__dict__.get("_kv_heads_follow"):
            super().__setattr__("num_key_value_heads", self.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of one attention head: `attention_head_dim`, or else hidden_size // num_attention_heads."""
        return self.attention_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """`num_key_value_heads` as a number: None never outlives its assignment, see __setattr__."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in their order; `attention_head_dim` and `mlp_bias` only where they are set."""
        settings = {f.name: _copied(getattr(self, f.name)) for f in fields(self)}
        if self.attention_head_dim is None:
            del settings["attention_head_dim"]
        if not self.mlp_bias:
            del settings["mlp_bias"]
        return settings

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> DemiurgicConfig:
        """The config a file's `settings` describe; keys that change nothing (HARMLESS_KEYS) are left out.

        Raises:
            TypeError: any other unknown key, since it may change the mathematics of the model.
            ValueError: a value that is not allowed, see the class.
        """
        known = {f.name for f in fields(cls)} | {"model_type"}
        unknown = [key for key in settings if key not in known and key not in HARMLESS_KEYS]
        if unknown:
            near = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
            named = ", ".join(f"{key!r}" + (f" (near: {near[key][0]!r})" if near[key] else "") for key in unknown)
            raise TypeError(
                f"The config has keys that are not implemented: {named}. They may change the mathematics of "
                "the model, so none is ignored. Remove a key only if the model does not depend on it."
            )
        return cls(**{key: _copied(value) for key, value in settings.items() if key in known})

    def validate(self) -> None:
        """Raise TypeError or ValueError naming the first field that does not describe a model."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ):
            _check_int(name, getattr(self, name), least=1)
        _check_int("num_key_value_heads", self.num_key_value_heads, least=1)
        _check_int("max_position_embeddings", self.max_position_embeddings, least=1)
        _check_number("rms_norm_eps", self.rms_norm_eps, 0)
        _check_number("initializer_range", self.initializer_range, 0)
        _check_number("rope_theta", self.rope_theta, 1, exclusive=True)
        for name in ("attention_dropout", "hidden_dropout", "embedding_dropout"):
            _check_number(name, getattr(self, name), 0, below=1)
        for name in (
            "attention_bias",
            "use_flash_attention_2",
            "use_cache",
            "tie_word_embeddings",
            "mlp_bias",
        ):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        self._validate_heads()
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"Unsupported activation: {self.activation_function!r}; supported: {', '.join(ACTIVATIONS)}."
            )
        self._validate_rope_scaling()
        self._validate_token_ids()

    def _validate_heads(self) -> None:
        if self.attention_head_dim is not None:
            _check_int("attention_head_dim", self.attention_head_dim, least=2)
        elif self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.kv_heads})."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"The head dimension ({self.head_dim}) must be divisible by 2: rotary embeddings turn pairs "
                "of values. Choose another hidden_size or num_attention_heads."
            )

    def _validate_rope_scaling(self) -> None:
        scaling = self.rope_scaling
        if scaling is None:
            return
        if not isinstance(scaling, dict):
            raise TypeError(f"rope_scaling must be None or a dict, not {scaling!r}.")
        rope_type = rope_type_of(scaling)
        if rope_type in _ROPE_REFUSED:
            raise ValueError(f"rope_scaling type {rope_type!r} is not supported: {_ROPE_REFUSED[rope_type]}.")
        if rope_type not in _ROPE_KEYS:
            raise ValueError(f"Unknown rope_scaling type {rope_type!r}; supported are {', '.join(_ROPE_KEYS)}.")
        required, optional = _ROPE_KEYS[rope_type]
        if missing := sorted(required - scaling.keys()):
            raise ValueError(f"rope_scaling of type {rope_type!r} needs {', '.join(missing)}; given is {scaling!r}.")
        if unknown := sorted(scaling.keys() - required - optional - _ROPE_SHARED_KEYS):
            raise ValueError(
                f"rope_scaling of type {rope_type!r} has unknown keys: {', '.join(unknown)}. "
                f"It reads {', '.join(sorted(required | optional)) or 'none'}."
            )
        self._validate_rope_numbers(scaling, required)

    def _validate_rope_numbers(self, scaling: dict[str, Any], required: set[str]) -> None:
        for key, value in scaling.items():
            if key in _ROPE_SHARED_KEYS or (value is None and key not in required):
                continue
            if key == "truncate":
                if not isinstance(value, bool):
                    raise TypeError(f"rope_scaling['truncate'] must be True or False, not {value!r}.")
            elif key in ("mscale", "mscale_all_dim", "attention_factor"):
                _check_number(f"rope_scaling[{key!r}]", value, 0)
            else:
                _check_number(f"rope_scaling[{key!r}]", value, 0, exclusive=True)
        if "low_freq_factor" in scaling and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
            raise ValueError(
                f"rope_scaling['high_freq_factor'] ({scaling['high_freq_factor']}) must be greater than "
                f"rope_scaling['low_freq_factor'] ({scaling['low_freq_factor']})."
            )

    def _validate_token_ids(self) -> None:
        for name in ("pad_token_id", "bos_token_id"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), least=0)
        for token in self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]:
            if token is not None:
                _check_int("eos_token_id", token, least=0)
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"pad_token_id ({self.pad_token_id}) must be below vocab_size ({self.vocab_size}) or None."
            )
        if not isinstance(self.fim_tokens, dict):
            raise TypeError(f"fim_tokens must be a dict of ids, not {self.fim_tokens!r}.")
        for key, token in self.fim_tokens.items():
            _check_int(f"fim_tokens[{key!r}]", token, least=0)


def rope_type_of(scaling: Mapping[str, Any] | None) -> str:
    """The rope type a rope_scaling dict names ("rope_type", in older files "type"); "default" for none."""
    named = {scaling[key] for key in ("rope_type", "type") if scaling.get(key) is not None} if scaling else set()
    if len(named) > 1:
        raise ValueError(f"rope_scaling names two types, {' and '.join(map(repr, sorted(named)))}; keep one.")
    return str(named.pop()) if named else "default"


def _check_int(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")


def _check_number(name: str, value: Any, least: float, *, exclusive: bool = False, below: float = math.inf) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not (least < value if exclusive else least <= value) or not value < below:
        lower = f"greater than {least}" if exclusive else f"at least {least}"
        upper = f" and below {below}" if below < math.inf else " and finite"
        raise ValueError(f"{name} must be {lower}{upper}, not {value}.")


def _copied(value: Any) -> Any:
    """`value`, its dict or list copied, so that no two configs share one."""
    return copy.deepcopy(value) if isinstance(value, (dict, list)) else value


def get_10m_config() -> DemiurgicConfig:
    """6 layers of width 256 (4.7M parameters beside embedding and head), context 2048."""
    return _sized(256, 688, 6, 8, 2048, use_flash_attention_2=False)


def get_100m_config() -> DemiurgicConfig:
    """12 layers of width 768, context 2048."""
    return _sized(768, 2048, 12, 12, 2048, use_flash_attention_2=False)


def get_350m_config() -> DemiurgicConfig:
    """24 layers of width 1024, context 2048."""
    return _sized(1024, 2752, 24, 16, 2048, use_flash_attention_2=False)


def get_1b_config() -> DemiurgicConfig:
    """24 layers of width 2048, context 4096."""
    return _sized(2048, 5504, 24, 16, 4096)


def get_7b_config() -> DemiurgicConfig:
    """32 layers of width 4096, context 8192."""
    return _sized(4096, 11008, 32, 32, 8192)


def get_13b_config() -> DemiurgicConfig:
    """40 layers of width 5120, context 8192."""
    return _sized(5120, 13824, 40, 40, 8192)


def get_70b_config() -> DemiurgicConfig:
    """80 layers of width 8192, 64 query heads over 8 key/value heads, context 8192."""
    return _sized(8192, 22016, 80, 64, 8192, num_key_value_heads=8)


def _sized(hidden: int, intermediate: int, layers: int, heads: int, context: int, **more: Any) -> DemiurgicConfig:
    return DemiurgicConfig(32000, hidden, intermediate, layers, heads, max_position_embeddings=context, **more)
