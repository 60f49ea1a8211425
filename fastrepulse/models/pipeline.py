"""Uses the parts of a loaded diffusers pipeline, without copying or changing them."""

import weakref
from dataclasses import replace
from typing import Any

from fastrepulse.models.folder import (
    COMPONENTS,
    SECOND_ENCODER,
    SUPPORTED,
    WRAPPER_HINT,
    check_autoencoder,
    check_schedule,
    check_unet,
    zeros_for_empty,
)
from fastrepulse.models.model import Model

_models: "weakref.WeakKeyDictionary[Any, Model]" = weakref.WeakKeyDictionary()


def is_pipeline(model: object) -> bool:
    return hasattr(model, "components") and hasattr(model, "save_pretrained")


def model_of_pipeline(pipe: Any) -> Model:
    """Returns a model that shares a pipeline's parts, with their adapters and added tokens."""
    kind = type(pipe).__name__
    second = "text_encoder_2" in pipe.components
    for part, accepted in {**COMPONENTS, **(SECOND_ENCODER if second else {})}.items():
        found = _unwrapped(getattr(pipe, part, None))
        if not {base.__name__ for base in type(found).__mro__} & set(accepted):
            raise ValueError(
                f"model must be a pipeline of {SUPPORTED}, got a {kind} "
                f"whose {part} is a {type(found).__name__}; {WRAPPER_HINT}"
            )
        if hasattr(found, "_hf_hook"):
            raise ValueError(
                f"model must be a pipeline whose parts stay on one device, got a {kind} with "
                "offloading; use remove_all_hooks() and to(device) first"
            )
    check_unet(kind, pipe.unet.config, second)
    check_autoencoder(kind, pipe.vae.config, pipe.unet.config)
    check_schedule(kind, {"_class_name": type(pipe.scheduler).__name__})
    name = str(getattr(pipe, "name_or_path", None) or kind)
    adapters = sorted(getattr(pipe.unet, "peft_config", {}))
    model = Model(
        name=f"{name} with {', '.join(adapters)}" if adapters else name,
        unet=_unwrapped(pipe.unet),
        vae=_unwrapped(pipe.vae),
        text_encoder=_unwrapped(pipe.text_encoder),
        tokenizer=pipe.tokenizer,
        scheduler_config=dict(pipe.scheduler.config),
        text_encoder_2=_unwrapped(getattr(pipe, "text_encoder_2", None)),
        tokenizer_2=getattr(pipe, "tokenizer_2", None),
        zeros_for_empty=zeros_for_empty(pipe.config),
    )
    before = _models.get(pipe)
    if before is not None and before.unet is model.unet:
        # The compiled forward passes stay valid
        model = replace(model, forwards=before.forwards)
    _models[pipe] = model
    return model


def _unwrapped(part: Any) -> Any:
    """Returns a part without the wrapper of torch.compile."""
    return getattr(part, "_orig_mod", part)
