"""The model as a trainable `nn.Module` of the Llama family (arXiv:2302.13971).

It is what optimizers train, what checkpoints hold, and the readable oracle of the C++ decoder, which
generates from these parameters in place. Shapes in comments: B batch, T new tokens, S all tokens (cached and
new), H hidden_size, V vocab_size, h query heads, kv key/value heads, d head_dim.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from demiurgic.config import DemiurgicConfig
from demiurgic.rotary import rotary_frequencies

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

    from demiurgic.streaming import Stream

KeyValue = tuple[Tensor, Tensor]  # rotated keys and values of one layer, each [B, kv, S, d]


class DecoderOutput(NamedTuple):
    """What DemiurgicModel returns, always four fields."""

    last_hidden_state: Tensor  # [B, T, H], normed
    past_key_values: tuple[KeyValue, ...] | None
    hidden_states: tuple[Tensor, ...] | None  # layers + 1 of [B, T, H]: embeddings, after each layer, the last normed
    attentions: tuple[Tensor, ...] | None  # per layer [B, h, T, S]


class CausalLMOutput(NamedTuple):
    """What DemiurgicForCausalLM returns, always five fields."""

    loss: Tensor | None  # scalar
    logits: Tensor  # float32 [B, T, V]
    past_key_values: tuple[KeyValue, ...] | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv:1910.07467) over the last dimension, in float32 for any input."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        # The weight may be kept in float32 beside narrower matrices; the stream keeps its own dtype.
        return (normed.to(x.dtype) * self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: DemiurgicConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: KeyValue | None,
        weighed: bool,
    ) -> tuple[Tensor, KeyValue, Tensor | None]:
        """x [B, T, H] -> (output [B, T, H], keys and values [B, kv, S, d], `weighed`: weights [B, h, T, S]).

        `mask` is bool [B or 1, 1, T, S], True where a query may look; None means plain causal without a past.
        """
        batch, new = x.shape[:2]
        query = rotate(self.q_proj(x).view(batch, new, -1, self.head_dim).transpose(1, 2), *rotation)
        key = rotate(self.k_proj(x).view(batch, new, -1, self.head_dim).transpose(1, 2), *rotation)
        value = self.v_proj(x).view(batch, new, -1, self.head_dim).transpose(1, 2)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)

        group = query.shape[1] // key.shape[1]  # consecutive query heads share a key/value head
        dropout = self.dropout if self.training else 0.0
        weights = None
        if mask is None and not weighed:
            mixed = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=group > 1
            )
        else:  # with a mask CUDA's fused kernels know no groups, so keys are repeated: [B, h, S, d]
            keys, values = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
            if weighed:
                mixed, weights = attend_with_weights(query, keys, values, mask, dropout)
            else:
                mixed = F.scaled_dot_product_attention(query, keys, values, mask, dropout)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, new, -1)), (key, value), weights


def attend_with_weights(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention written out: also gives its weights [B, h, T, S], as before dropout."""
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)  # scaled first: float16 overflows early
    weights = scores.float().masked_fill(~mask, -torch.inf).softmax(dim=-1).to(value.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ value, weights


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """bool [new, total], True where a query may look: the new tokens are the last `new` of `total`."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(diagonal=total - new)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in half form, computed in float32, of x's dtype.

    x is [B, heads, T, d]; cos and sin are float32 [B or 1, 1, T, d].
    """
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # the exact one, by erf
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) for "swiglu" (arXiv:2002.05202), fc2(activation(fc1(x))) for the others."""

    def __init__(self, config: DemiurgicConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = config.activation_function
        if self.activation == "swiglu":
            self.gate_proj = nn.Linear(hidden, inner, bias=bias)
            self.up_proj = nn.Linear(hidden, inner, bias=bias)
            self.down_proj = nn.Linear(inner, hidden, bias=bias)
        else:
            self.fc1 = nn.Linear(hidden, inner, bias=bias)
            self.fc2 = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))
        return cast(Tensor, self.fc2(_ACTIVATIONS[self.activation](self.fc1(x))))

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DemiurgicConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: KeyValue | None,
        weighed: bool,
    ) -> tuple[Tensor, KeyValue, Tensor | None]:
        """As Attention.forward, for the whole layer."""
        mixed, key_value, weights = self.self_attn(self.input_layernorm(x), rotation, mask, past, weighed)
        x = x + F.dropout(mixed, self.dropout, self.training)
        x = x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)
        return x, key_value, weights


class DemiurgicPreTrainedModel(nn.Module):
    """What DemiurgicModel and DemiurgicForCausalLM share: initialisation, embeddings, checkpoints.

    Raises:
        TypeError: `config` is not a DemiurgicConfig.
        ValueError: the config, whose fields may have changed since its construction, describes no model.
    """

    def __init__(self, config: DemiurgicConfig) -> None:
        super().__init__()
        if not isinstance(config, DemiurgicConfig):
            raise TypeError(f"A model is built from a DemiurgicConfig, not {type(config).__name__}.")
        config.validate()
        self.config = config
        self.register_load_state_dict_pre_hook(_accept_other_names)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """Number of token ids, V."""
        return self.config.vocab_size

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of parameters; a tied one counts once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, weight [V, H]."""
        raise NotImplementedError

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the token embedding; a tied head follows."""
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head, weight [V, H]; None for a model without one."""
        return None

    def set_output_embeddings(self, head: nn.Linear) -> None:
        """Replace the head; a tied embedding follows."""
        raise TypeError(f"{type(self).__name__} has no head to set.")

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Give embedding and head `new_num_tokens` rows: the first are kept, new ones are initialised.

        The weights are new parameters, so build the optimizer afterwards. `config.vocab_size` follows.

        Returns:
            The embedding.
        Raises:
            ValueError: not a positive integer, or too few for the pad id.
        """
        pad = self.config.pad_token_id
        least = 1 if pad is None else pad + 1
        if not isinstance(new_num_tokens, int) or new_num_tokens < least:
            raise ValueError(
                f"new_num_tokens must be an integer of at least {least} (pad_token_id is {pad}), "
                f"not {new_num_tokens!r}."
            )
        embedding, head = self.get_input_embeddings(), self.get_output_embeddings()
        embedding.weight = self._resized(embedding.weight, new_num_tokens)
        embedding.num_embeddings = new_num_tokens
        if head is not None:
            tied = self.config.tie_word_embeddings
            head.weight = embedding.weight if tied else self._resized(head.weight, new_num_tokens)
            head.out_features = new_num_tokens
        self.config.vocab_size = new_num_tokens
        return embedding

    @torch.no_grad()
    def _resized(self, weight: Tensor, rows: int) -> nn.Parameter:
        resized = weight.new_empty(rows, weight.shape[1]).normal_(0.0, self.config.initializer_range)
        kept = min(rows, len(weight))
        resized[:kept] = weight[:kept]
        return nn.Parameter(resized, requires_grad=weight.requires_grad)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each layer's input in training and recompute the rest in backward (arXiv:1604.06174)."""
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep every activation again."""
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, enabled: bool) -> None:
        for module in self.modules():
            if isinstance(module, DemiurgicModel):
                module.gradient_checkpointing = enabled

    def save_pretrained(self, save_directory: str | os.PathLike[str], max_shard_size: int | str = "5GB") -> None:
        """Write config.json and model.safetensors to a folder, in shards above `max_shard_size`.

        See demiurgic.checkpoint.save_pretrained.
        """
        from demiurgic.checkpoint import save_pretrained

        save_pretrained(self, save_directory, max_shard_size)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | int | None = None,
    ) -> Self:
        """The model a folder holds, in eval mode: one of ours, of the origin, or a Hugging Face Llama.

        See demiurgic.checkpoint.from_pretrained.
        """
        from demiurgic.checkpoint import from_pretrained

        return from_pretrained(cls, folder, dtype, device)

    @torch.no_grad()
    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)


class DemiurgicModel(DemiurgicPreTrainedModel):
    """Embedding, decoder layers and the final norm: token ids to hidden states."""

    def __init__(self, config: DemiurgicConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.apply(self._initialize)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.embed_tokens = embeddings
        self.config.vocab_size = embeddings.num_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: tuple[KeyValue, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DecoderOutput:
        """Hidden states of the new tokens, given those already cached.

        Args:
            input_ids: integer [B, T], or instead
            inputs_embeds: [B, T, H].
            attention_mask: [B, S], S = cached + T; bool, integer or float, 1 where a token counts, 0 where it
                is padding. Default: all count.
            position_ids: integer [B, T] or [1, T], each below S. Default: the S - T that come next.
            past_key_values: what an earlier call returned: per layer keys and values [B, kv, S - T, d].
            use_cache: return keys and values. None: `config.use_cache`, but not in train mode.
            output_attentions, output_hidden_states: return these as well.
            return_dict: accepted; the result is a named tuple in any case.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds; a shape that does not fit.
            IndexError: an id outside the vocabulary, a position outside [0, S).
            TypeError: ids or positions that are not integers.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, not both and not neither.")
        if input_ids is not None:
            _check_ids("input_ids", input_ids, self.embed_tokens.num_embeddings)
            inputs_embeds = self.embed_tokens(input_ids)
        x = cast(Tensor, inputs_embeds)  # [B, T, H]
        if x.dim() != 3 or x.shape[-1] != self.config.hidden_size or not x.shape[1]:
            raise ValueError(
                f"inputs_embeds must be [batch, tokens, {self.config.hidden_size}] with at least one token, "
                f"not {list(x.shape)}."
            )
        cached = self._cached_length(past_key_values, x.shape[0])
        mask = attention_pattern(attention_mask, x.shape[0], x.shape[1], cached, x.device)
        rotation = self._rotation(position_ids, x, cached)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        x = F.dropout(x, self.config.embedding_dropout, self.training)

        pasts, states, weights = [], [x], []
        for index, layer in enumerate(self.layers):
            arguments = (
                rotation,
                mask,
                past_key_values[index] if past_key_values else None,
                bool(output_attentions),
            )
            if self.gradient_checkpointing and self.training:
                x, key_value, weight = checkpoint(layer, x, *arguments, use_reentrant=False)
            else:
                x, key_value, weight = layer(x, *arguments)
            # Appended only on request: a kept reference would keep the whole layer's activations alive.
            if use_cache:
                pasts.append(key_value)
            if output_hidden_states:
                states.append(x)
            if output_attentions:
                weights.append(weight)
        x = self.norm(x)
        return DecoderOutput(
            x,
            tuple(pasts) if use_cache else None,
            (*states[: len(self.layers)], x) if output_hidden_states else None,
            tuple(weights) if output_attentions else None,
        )

    def _cached_length(self, past: tuple[KeyValue, ...] | None, batch: int) -> int:
        if not past:
            return 0
        if not isinstance(past, (tuple, list)) or len(past) != len(self.layers):
            raise ValueError(
                f"past_key_values must hold a (keys, values) pair for each of the {len(self.layers)} layers, "
                "as forward returned it."
            )
        cached = past[0][0].shape[2]
        fitting = [batch, self.config.kv_heads, cached, self.config.head_dim]
        for index, tensors in enumerate(past):
            for tensor in tensors:
                if list(tensor.shape) != fitting:
                    raise ValueError(f"past_key_values[{index}] must be {fitting}, not {list(tensor.shape)}.")
        return cached

    def _rotation(self, position_ids: Tensor | None, x: Tensor, cached: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the new tokens' rotary angles: float32 [B or 1, 1, T, d].

        Computed anew in every call, never kept as buffers: nothing for `.to(bfloat16)` to round, nothing to
        extend past max_position_embeddings, and the config's present values count.
        """
        total = cached + x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(cached, total, device=x.device)[None]  # [1, T]
        elif (
            position_ids.dim() != 2
            or position_ids.shape[0] not in (1, x.shape[0])
            or position_ids.shape[1] != x.shape[1]
        ):
            raise ValueError(f"position_ids must be {[x.shape[0], x.shape[1]]}, not {list(position_ids.shape)}.")
        else:
            _check_ids("position_ids", position_ids, total)
        frequencies, scale = rotary_frequencies(self.config)
        angles = position_ids[:, None, :, None].float() * frequencies.to(x.device)  # [B or 1, 1, T, d/2]
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * scale, angles.sin() * scale


def attention_pattern(
    attention_mask: Tensor | None, batch: int, new: int, cached: int, device: torch.device
) -> Tensor | None:
    """bool [B or 1, 1, new, cached + new], True where a query may look; None: plain causal without a past."""
    total = cached + new
    if attention_mask is not None:
        if list(attention_mask.shape) != [batch, total]:
            raise ValueError(
                f"attention_mask must be {[batch, total]}, one entry for each cached and new token, "
                f"not {list(attention_mask.shape)}."
            )
        counts = attention_mask.to(device) != 0
        if not torch.compiler.is_compiling() and not counts.is_meta:
            if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
                raise ValueError(
                    "attention_mask must be 1 where a token counts and 0 where it is padding, nothing else."
                )
            if bool(counts.all()):
                attention_mask = None
    if attention_mask is None:
        return causal_mask(new, total, device)[None, None] if cached else None
    looks = causal_mask(new, total, device) & counts[:, None, None, :]  # [B, 1, new, total]
    # A padding query may look at itself, so that no row of the softmax is empty (NaN); nobody else sees it.
    itself = torch.arange(total, device=device) == torch.arange(cached, total, device=device)[:, None]
    return looks | itself


def _check_ids(name: str, ids: Tensor, end: int) -> None:
    """Refuse what would be an unrecoverable assertion on a GPU: ids that are no integers of [0, end)."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, not {ids.dtype}.")
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"{name} must be [batch, tokens] with at least one token, not {list(ids.shape)}.")
    if torch.compiler.is_compiling() or ids.is_meta:
        return
    low, high = (int(edge) for edge in ids.aminmax())
    if low < 0 or high >= end:
        raise IndexError(f"{name} must be at least 0 and below {end}; the given ones range from {low} to {high}.")


class DemiurgicForCausalLM(DemiurgicPreTrainedModel):
    """The decoder with a head over the vocabulary: what is trained, saved and generated from."""

    def __init__(self, config: DemiurgicConfig) -> None:
        super().__init__(config)
        self.model = DemiurgicModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self._initialize(self.lm_head)
        self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]

    def tie_weights(self) -> None:
        """Where the config ties them, make head and embedding share one Parameter under both names."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.model.set_input_embeddings(embeddings)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, head: nn.Linear) -> None:
        self.lm_head = head
        if self.config.tie_word_embeddings:
            self.model.embed_tokens.weight = head.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: tuple[KeyValue, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        """Logits of the token that follows each new token, and the loss if `labels` are given.

        Args:
            labels: integer [B, T], the token ids themselves: they are shifted here. -100 is no target. The
                loss is the mean cross-entropy of the targets (nan if there is none).
            use_cache: None is `config.use_cache`, but False in train mode or with labels.
            The rest is as in DemiurgicModel.forward.

        Raises:
            As DemiurgicModel.forward; labels of another shape are a ValueError, ids outside the vocabulary an
            IndexError.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        hidden, past, states, attentions = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        logits = self.lm_head(hidden).float()
        loss = None if labels is None else shifted_cross_entropy(logits, labels)
        return CausalLMOutput(loss, logits, past, states, attentions)

    def generate(
        self, input_ids: Any, max_new_tokens: int | str | None = None, *, attention_mask: Any = None, **options: Any
    ) -> Any:
        """Continue prompts with the C++ engine, from the weights as they are now: demiurgic.generate.

        Args:
            input_ids: integer [B, T] or [T], or a list of prompts of any lengths.
            max_new_tokens: how many tokens to add at most; also positional. "auto": by what each prompt asks for.
            attention_mask: [B, T], 1 where a token counts, 0 where it is padding at the row's edges.
            options: any option of GenerationConfig by name, and those of demiurgic.generate.

        Returns:
            int64 [B * num_return_sequences, T + new]; with `return_dict_in_generate=True` the whole result.
        """
        from demiurgic.engine import generate

        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return generate(self, input_ids, attention_mask, **options)

    def stream(
        self, input_ids: Any, max_new_tokens: int | str | None = None, *, attention_mask: Any = None, **options: Any
    ) -> Stream:
        """Continue prompts as `generate` does, token by token as they come: demiurgic.stream.

        Args:
            input_ids: integer [B, T] or [T], or a list of prompts of any lengths.
            max_new_tokens: how many tokens to add at most; also positional. "auto": by what each prompt asks for.
            attention_mask: [B, T], 1 where a token counts, 0 where it is padding at the row's edges.
            options: any option of GenerationConfig by name, and those of demiurgic.stream; `tokenizer=` gives texts.

        Returns:
            An iterator over StreamEvent; breaking out of the loop ends the generation.
        """
        from demiurgic.streaming import stream

        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return stream(self, input_ids, attention_mask, **options)

    def score(self, input_ids: Any, attention_mask: Any = None, **keywords: Any) -> Tensor:
        """Log-probabilities of given tokens by the C++ engine, with the weights as they are now: demiurgic.score.

        Args:
            input_ids: integer [B, T] or [T], or a list of rows of any lengths (padded on the left to the longest).
            attention_mask: [B, T], 1 where a token counts, 0 where it is padding at the row's edges.
            keywords: max_running, cache_bytes, max_step_tokens, exact of demiurgic.score.

        Returns:
            float32 [B, T - 1]: `[b, t]` is of token t + 1 after those up to t; nan where either is padding.
        """
        from demiurgic.engine import score

        return score(self, input_ids, attention_mask, **keywords)

    def session(
        self, cache_bytes: int | None = None, *, max_step_tokens: int | None = None, exact: bool | None = None
    ) -> Any:
        """Calls that keep what they have computed for others that begin as they do: demiurgic.session.

        Args:
            cache_bytes: most memory of the session's cache in bytes.
            max_step_tokens: most prompt tokens computed at a time.
            exact: as in demiurgic.generate, for all calls of the session.

        Returns:
            demiurgic.Session, to be used with `with`: generate, stream, score, prefill, save_prefix, load_prefix, info.
        """
        from demiurgic.sessions import session

        return session(self, cache_bytes, max_step_tokens=max_step_tokens, exact=exact)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `.to_empty()` and friends may give each module a new Parameter: what was one stays one.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tie_weights()
        return self


def shifted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, T, V] at t against labels [B, T] at t + 1; label -100 is no target."""
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels must be {list(logits.shape[:2])} like input_ids, not {list(labels.shape)}.")
    _check_ids("labels", labels.masked_fill(labels == -100, 0), logits.shape[-1])
    targets = labels[:, 1:].to(logits.device, torch.int64)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


def rename_to_current(state_dict: MutableMapping[str, Any]) -> None:
    """Rename, in place, the origin's parameters to ours, and drop the rotary tables of older checkpoints."""
    for name in list(state_dict):
        current = current_name(name)
        if current is None:
            del state_dict[name]
        elif current != name:
            state_dict[current] = state_dict.pop(name)


def current_name(name: str) -> str | None:
    """Our name for a parameter of an older checkpoint; None for a rotary table, which is none."""
    if re.search(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$", name):
        return None
    return name.replace(".mlp.swiglu.", ".mlp.")


def _accept_other_names(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded (see nn.Module.register_load_state_dict_pre_hook)."""
    rename_to_current(state_dict)
    if isinstance(module, DemiurgicForCausalLM) and module.config.tie_word_embeddings:
        embedding, head = prefix + "model.embed_tokens.weight", prefix + "lm_head.weight"
        for missing, present in ((embedding, head), (head, embedding)):
            if missing not in state_dict and present in state_dict:
                state_dict[missing] = state_dict[present]


def _tie_again(module: nn.Module, incompatible_keys: Any) -> None:
    """After a state dict is loaded: `assign=True` gives each name a Parameter of its own."""
    cast(DemiurgicForCausalLM, module).tie_weights()
