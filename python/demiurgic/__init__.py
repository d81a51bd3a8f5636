"""Demiurgic: text generation from a PyTorch model's live weights, in a C++ engine inside your process."""

import sys as _sys
from importlib.metadata import version as _version

from demiurgic.build_check import check_build as _check_build

# `python -m demiurgic.info` is there to report a broken installation, so it must not fail on one.
if not (_sys.argv[:1] == ["-m"] and "demiurgic.info" in _sys.orig_argv):
    _check_build()
    __version__ = _version("demiurgic")
    from demiurgic._C import GenerationConfig, options
    from demiurgic.config import (
        DemiurgicConfig,
        get_1b_config,
        get_7b_config,
        get_10m_config,
        get_13b_config,
        get_70b_config,
        get_100m_config,
        get_350m_config,
    )
    from demiurgic.display import show
    from demiurgic.engine import generate, score
    from demiurgic.html_view import HtmlView, html_view
    from demiurgic.loading import load
    from demiurgic.model import DemiurgicForCausalLM, DemiurgicModel, DemiurgicPreTrainedModel
    from demiurgic.output import GenerationError, GenerationOutput, ScoreError
    from demiurgic.sessions import Session, SessionInfo, session
    from demiurgic.streaming import Stream, StreamEvent, stream
    from demiurgic.text import CODE_STOPS

    __all__ = [
        "CODE_STOPS",
        "DemiurgicConfig",
        "get_10m_config",
        "get_100m_config",
        "get_350m_config",
        "get_1b_config",
        "get_7b_config",
        "get_13b_config",
        "get_70b_config",
        "DemiurgicForCausalLM",
        "DemiurgicModel",
        "DemiurgicPreTrainedModel",
        "GenerationConfig",
        "GenerationError",
        "GenerationOutput",
        "ScoreError",
        "Session",
        "SessionInfo",
        "HtmlView",
        "generate",
        "html_view",
        "load",
        "options",
        "score",
        "session",
        "show",
        "Stream",
        "StreamEvent",
        "stream",
    ]
