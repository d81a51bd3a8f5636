"""From a module to the tensors and shapes the C++ engine works on; refuses what it would compute wrongly."""

from __future__ import annotations

from typing import Any

from torch import nn

from demiurgic import _C
from demiurgic.config import DemiurgicConfig
from demiurgic.rotary import rotary_numbers

# The classes whose forward the engine knows: ours, and these of torch. Subclasses may compute something else.
_OUR_MODULE = "demiurgic.model"
_TORCH_CLASSES = frozenset({nn.Linear, nn.Embedding, nn.ModuleList, nn.Dropout, nn.Identity})

_COMPILED = "_orig_mod"  # torch.compile keeps the module it wraps under this name


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile wrappers.

    Raises:
        TypeError: not a DemiurgicForCausalLM, nor a wrapper of one.
        ValueError: the parameters are sharded over processes (FSDP, DeepSpeed ZeRO-3).
    """
    inner = model
    while isinstance(inner, nn.Module):
        if type(inner).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "The model is wrapped in FullyShardedDataParallel: each process holds only a part of every parameter. "
                "Gather them first (FullyShardedDataParallel.summon_full_params) and pass the module inside."
            )
        if isinstance(inner, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = inner.module
        elif _COMPILED in inner._modules:
            inner = getattr(inner, _COMPILED)
        else:
            break
    if not isinstance(inner, nn.Module) or not isinstance(getattr(inner, "config", None), DemiurgicConfig):
        raise TypeError(
            f"The model is a {type(inner).__name__}; demiurgic generates from a DemiurgicForCausalLM "
            "(also inside DistributedDataParallel or torch.compile)."
        )
    if "lm_head" not in inner._modules:
        raise TypeError(
            f"The model is a {type(inner).__name__}, which has no head over the vocabulary; "
            "pass the DemiurgicForCausalLM around it."
        )
    return inner


def live_weights(model: nn.Module) -> _C.Weights:
    """References to the parameters of `model`, which `unwrap` returned, in the roles of the engine.

    Raises:
        ValueError: a part of the decoder has a forward hook or a changed forward, is parametrized, quantized or of
            another class than ours; parameters are sharded, on several devices, on the meta device, of dtypes that
            cannot be mixed, or of shapes that do not fit the config. The message names the part.
    """
    _refuse_changed_forward(model)
    parameters = _C.module_parameters(model, _OUR_MODULE, _TORCH_CLASSES)
    return _C.Weights(model_config(model), parameters)


def model_config(model: nn.Module) -> _C.ModelConfig:
    """The engine's description of the decoder of `model`."""
    config: DemiurgicConfig = model.config  # type: ignore[assignment]
    decoder: Any = model.model
    frequencies, scaling = rotary_numbers(config)
    # Where a layer keeps what it was built with, that counts, as it does in forward; not what config has become.
    built = [(layer.self_attn.head_dim, layer.mlp.activation) for layer in decoder.layers]
    kinds = {kind: _layer_config(*kind, config) for kind in dict.fromkeys(built)}
    return _C.ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        rms_norm_eps=decoder.norm.eps,
        rotary_frequencies=frequencies,
        rotary_scaling=scaling,
        layers=[kinds[kind] for kind in built],
    )


def _layer_config(head_dim: int, activation: str, config: DemiurgicConfig) -> _C.LayerConfig:
    return _C.LayerConfig(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.kv_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        activation={"swiglu": "silu", "swish": "silu"}.get(activation, activation),
        gated=activation == "swiglu",
    )


def _refuse_changed_forward(model: nn.Module) -> None:
    """For the model itself; of the modules inside, module_parameters refuses what has another forward than ours."""
    forward = getattr(type(model), "forward", None)
    if getattr(forward, "__module__", None) != _OUR_MODULE:
        raise ValueError(
            f"{type(model).__name__} has a forward of its own, which generate would not run; "
            "it knows DemiurgicForCausalLM's only."
        )
    hooks = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    if hooks:
        raise ValueError(
            "A forward hook for all modules is registered (torch.nn.modules.module.register_module_forward_hook), "
            "which generate would not run; remove it first."
        )
