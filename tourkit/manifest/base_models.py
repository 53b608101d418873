"""Base models only continue texts. Without a chat template they cannot fill a role whose model answers chats."""

from collections.abc import Iterator, Mapping, Sequence

from tourkit.manifest.models import CHAT_ROLES, Model

FIX = "name its chat or instruct version, or give the model a `chat_template`"


def problems(roles: Mapping[str, Sequence[str]], models: Mapping[str, Model]) -> Iterator[str]:
    """Yield a line for each base model that a chat role names. The base of a LoRA adapter counts too."""
    for role in CHAT_ROLES:
        for index, id_ in enumerate(roles.get(role, ())):
            model = models[id_]
            weights = models[model.adapts] if model.adapts else model
            if weights.base and not model.chat_template:
                yield f"roles.{role}[{index}]: {weights.id} is a base model, which answers no chats: {FIX}"


def chat_models(roles: Mapping[str, Sequence[str]], models: Mapping[str, Model]) -> dict[str, str]:
    """Return the models whose own weights must have a chat template, each with a role that needs it.

    For a LoRA adapter these are the weights of its base. A model with a `chat_template` in the manifest is left out.
    """
    found: dict[str, str] = {}
    for role in CHAT_ROLES:
        for model in (models[id_] for id_ in roles.get(role, ())):
            if not model.chat_template:
                found.setdefault(model.adapts or model.id, role)
    return found
