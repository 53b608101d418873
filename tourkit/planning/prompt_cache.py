"""How much RAM each model may use for earlier prompts: a part of what all placements leave free. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tourkit.planning.decision import Decision
from tourkit.planning.fallbacks import Fallback
from tourkit.planning.memory import CACHE_BYTES
from tourkit.planning.packing import Budget, SizedOption
from tourkit.planning.plan import PromptCache
from tourkit.stacks import STACKS
from tourkit.units import MIB

_USUAL, _MOST = 1 / 4, 3 / 4  # of what is left: by default, and if the user asks for more
_CHECKPOINT_EVERY = 1024  # tokens of prompts, on average: a prompt of 1,000 tokens has one near its end
_TRIALS = 576 * MIB  # RAM of one worker's trials: 65 MiB of the process, and a trial at its limit (docs/structured.md)


@dataclass(frozen=True, slots=True)
class Shares:
    """The prompt cache, None if no model can use it, and the bytes of each model that can."""

    whole: PromptCache | None
    by_model: Mapping[str, int]


def shares(sized: Mapping[str, SizedOption], resident: frozenset[str], budget: Budget, asked: int | None) -> Shares:
    """Divide the prompt cache so that each loaded model has room for as many tokens as the others.

    `resident`: the models that stay loaded. Only one of the others is loaded at a time, so only the largest of them
    counts, and each of them gets the same bytes. `asked`: as `Limits.prompt_cache`.
    """
    per_token = {id_: size for id_, each in sized.items() if (size := _token_bytes(each))}
    if not per_token:
        return Shares(None, {})
    taken = _loaded({id_: each.ram.total + _trials(each) for id_, each in sized.items()}, resident)
    left = max(0, budget.ram + budget.kept - taken)
    most = int(left * _USUAL) if asked is None else min(asked, int(left * _MOST))
    tokens = most // _loaded(per_token, resident)
    in_turn = max((size for id_, size in per_token.items() if id_ not in resident), default=0)
    by_model = {id_: tokens * (size if id_ in resident else in_turn) for id_, size in per_token.items()}
    return Shares(PromptCache(most, left, tokens, asked), by_model)


def share_of_fallback(decision: Decision, model_id: str, fallback: Fallback, asked: int | None) -> int | None:
    """Return the bytes of a fallback in the place of a model; None if it cannot use a prompt cache."""
    now = fallback.sized.option.model
    sized = {id_: each for id_, each in decision.sized.items() if id_ != model_id} | {now: fallback.sized}
    resident = decision.assignment.resident
    if model_id in resident:
        resident = resident - {model_id} | {now}
    return shares(sized, resident, decision.offer.budget, asked).by_model.get(now)


def _loaded(sizes: Mapping[str, int], resident: frozenset[str]) -> int:
    """Return the sum of all resident models and the largest of the others."""
    in_turn = [size for id_, size in sizes.items() if id_ not in resident]
    return sum(size for id_, size in sizes.items() if id_ in resident) + max(in_turn, default=0)


def _trials(each: SizedOption) -> int:
    return 0 if each.option.shape.embeds else _TRIALS


def _token_bytes(each: SizedOption) -> int:
    """Return the bytes that a token takes in the prompt cache; 0 if the stack cannot keep it, or it has no KV cells.

    These are its KV cells, and its part of a checkpoint if the model has a fixed state too (engine/checkpoints.py).
    """
    shape = each.option.shape
    if not STACKS[each.option.stack].keeps_prompts or shape.embeds or not any(shape.kv):
        return 0
    return round(sum(shape.kv) * CACHE_BYTES[each.cache_type]) + shape.state // _CHECKPOINT_EVERY
