"""The languages that publishers name: of a model, and of a role set."""

from __future__ import annotations

from collections.abc import Sequence

from tourkit.manifest.models import Manifest, Model

MANY = "multilingual"  # the publisher claims more languages without naming them
RUSSIAN = "ru"  # the language of the contest that the sets were made for
_SHOWN = 12  # of a list of languages, for people
_ANSWERING = ("brain", "fast")  # the roles that people read answers of


def speaks(model: Model, language: str) -> bool:
    """Return True if the model's publisher names the language."""
    return language.lower() in model.languages


def may_speak(model: Model, language: str) -> bool:
    """Return True if no source says whether the model speaks the language: it claims many, or nothing at all."""
    open_list = not model.languages or (MANY in model.languages and language.lower() != "code")
    return open_list and not speaks(model, language)


def of_set(manifest: Manifest) -> tuple[str, ...]:
    """Return the languages that brain and fast both have a model for, in the order in which the models state them."""
    named = [role for role in _ANSWERING if role in manifest.roles] or list(manifest.roles)
    models = [[manifest.models[id_] for id_ in manifest.roles[role]] for role in named]
    stated = [[model for model in each if model.languages] for each in models]
    stated = [each for each in stated if each]
    known = dict.fromkeys(language for each in stated for model in each for language in model.languages)
    return tuple(code for code in known if all(any(speaks(model, code) for model in each) for each in stated))


def russian_roles(manifest: Manifest) -> tuple[str, ...]:
    """Return the roles whose first model has a publisher that names Russian."""
    return tuple(role for role, ids in manifest.roles.items() if speaks(manifest.models[ids[0]], RUSSIAN))


def text(languages: Sequence[str]) -> str:
    """Return languages as people read them: a long list is cut."""
    codes = [code for code in languages if code != MANY]
    if len(codes) > _SHOWN + 1:
        return f"{', '.join(codes[:_SHOWN])} and {len(codes) - _SHOWN} more"
    if MANY in languages:
        return f"{', '.join(codes)} and more" if codes else "many, none named"
    return ", ".join(codes) or "not stated"


def russian_text(roles: Sequence[str], russian: Sequence[str]) -> str:
    """Return which of the `roles` of a set have Russian, as people read it."""
    return "every role" if len(russian) == len(roles) else ", ".join(russian) or "-"
