"""A diffusers pipeline that is loaded already: its own parts, used as they are."""

import weakref
from dataclasses import replace
from typing import Any

from fastrepulse.models.folder import (
    COMPONENTS,
    KINDS,
    SECOND_ENCODER,
    WRAP,
    check_schedule,
    check_unet,
)
from fastrepulse.models.model import Model

_models: "weakref.WeakKeyDictionary[Any, Model]" = weakref.WeakKeyDictionary()


def is_pipeline(model: object) -> bool:
    """Says whether something is a diffusers pipeline."""
    return hasattr(model, "components") and hasattr(model, "save_pretrained")


def of_pipeline(pipe: Any) -> Model:
    """Returns the model that a pipeline's parts make, sharing them, adapters and tokens included.

    Raises:
        ValueError: If it is of another kind, incomplete, or moves its parts between devices.
    """
    kind = type(pipe).__name__
    second = "text_encoder_2" in pipe.components
    for part, accepted in {**COMPONENTS, **(SECOND_ENCODER if second else {})}.items():
        found = _plain(getattr(pipe, part, None))
        if accepted not in [base.__name__ for base in type(found).__mro__]:
            raise ValueError(
                f"model must be a pipeline of {KINDS}, got a {kind} "
                f"whose {part} is a {type(found).__name__}; {WRAP}"
            )
        if hasattr(found, "_hf_hook"):
            raise ValueError(
                f"model must be a pipeline whose parts stay on one device, got a {kind} with "
                "offloading; use remove_all_hooks() and to(device) first"
            )
    check_unet(kind, pipe.unet.config, second)
    check_schedule(kind, {"_class_name": type(pipe.scheduler).__name__})
    now = Model(
        name=_name(pipe),
        unet=_plain(pipe.unet),
        vae=_plain(pipe.vae),
        text_encoder=_plain(pipe.text_encoder),
        tokenizer=pipe.tokenizer,
        scheduler_config=dict(pipe.scheduler.config),
        text_encoder_2=_plain(getattr(pipe, "text_encoder_2", None)),
        tokenizer_2=getattr(pipe, "tokenizer_2", None),
        zeros_for_empty=bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
    )
    before = _models.get(pipe)
    if before is not None and before.unet is now.unet:
        # What was compiled for it
        now = replace(now, forwards=before.forwards)
    _models[pipe] = now
    return now


def _plain(part: Any) -> Any:
    """Returns a part without the shell that torch.compile puts around it."""
    return getattr(part, "_orig_mod", part)


def _name(pipe: Any) -> str:
    """Returns where a pipeline came from, and what was added to it."""
    name = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    adapters = sorted(getattr(pipe.unet, "peft_config", {}))
    return f"{name} with {', '.join(adapters)}" if adapters else name
