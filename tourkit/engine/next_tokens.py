"""The next tokens of a sequence: one token is drawn; tokens that must follow it need no draw.

A grammar forces tokens, and so does the end of thinking.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tourkit.engine.logprobs import log_softmax, token_logprob
from tourkit.generation import Finish

if TYPE_CHECKING:
    from tourkit.engine.runner import Runner
    from tourkit.engine.scheduler import Chunk
    from tourkit.engine.sequence import Sequence
    from tourkit.grammar.matcher import Matcher


def next_tokens(runner: Runner, seq: Sequence, row: int) -> list[int]:
    """Draw a token from a row of logits and return it with the tokens that the grammar forces after it.

    Never more tokens than the sequence may still generate. Raises RequestError if a grammar hits its limits,
    EngineError if it fails.
    """
    matcher = seq.grammar
    thinks = seq.thinking is not None and seq.thinking.is_thinking
    raw = log_softmax(runner.logits(row)) if seq.top_logprobs is not None and not thinks else None
    token = seq.sampler.sample(row) if matcher is None else _constrained(runner, seq, matcher, row)
    if raw is not None and token not in runner.eog:
        found = token_logprob(raw, token, seq.top_logprobs or 0, runner.piece, seq.scored)
        (seq.logprobs.append if seq.thinking is None else seq.thinking.score)(found)
    if matcher is None or token in runner.eog:
        return [token]
    matcher.accept([token])
    # The model gives no logits for a forced token, so there is no probability to report.
    return [token] if matcher.done or raw is not None else [token, *forced_tokens(seq, taken=1)]


def take_scores(runner: Runner, chunk: Chunk, rows: list[int]) -> list[int]:
    """Give the rows of logits of a prompt's tokens to its scores. Return the other rows."""
    scores, tokens = chunk.sequence.scores, chunk.sequence.tokens
    if scores is None:
        return rows
    wanted = [pos for pos in range(chunk.start, chunk.end) if scores.wants(pos)]
    for pos, row in zip(wanted, rows, strict=False):
        scores.add(runner, tokens, pos, row)
    return rows[len(wanted) :]


def forced_tokens(seq: Sequence, taken: int = 0) -> list[int]:
    """Return the tokens that the grammar forces now. The grammar and the sampler have accepted them.

    `taken`: new tokens that are not yet in the sequence; they count against its limit.
    """
    if seq.grammar is None:
        return []
    forced = seq.grammar.forced()[: seq.n_left - taken]
    if forced:
        seq.grammar.accept(forced)
        for token in forced:
            seq.sampler.accept(token)
    return forced


def append(runner: Runner, seq: Sequence, new: list[int], *, strip_first_space: bool) -> Finish | None:
    """Append tokens, and those that must follow them, and send their text.

    Return why the sequence ends; None if it goes on. `strip_first_space`: the first token of an answer normally begins
    with a space that does not belong to it. Raises RequestError if a grammar hits its limits, EngineError if it fails.
    """
    line = deque(new or due_tokens(seq))
    while line:
        token = line.popleft()
        piece = runner.piece(token)
        if seq.thinking is not None and not line:
            # Thinking ends, by the model's will or by its end token, and the content must follow a grammar.
            ends = token in runner.eog and seq.thinking.must_answer
            line += _accepted(seq, seq.thinking.give_up() if ends else seq.thinking.instead(piece))
            if line:
                continue
        if token in runner.eog:
            return Finish.STOP
        first = seq.n_generated == 0
        seq.tokens.append(token)
        seq.take(token, piece.removeprefix(b" ") if first and strip_first_space else piece)
        if seq.text.stopped:
            return Finish.STOP
        if seq.n_left <= 0:
            break
        if not line:
            line += due_tokens(seq)
    if seq.grammar is not None and seq.grammar.done:
        return Finish.STOP
    return Finish.LENGTH if seq.n_left <= 0 else None


def due_tokens(seq: Sequence) -> list[int]:
    """Return the tokens that must come now because thinking ends, or because a grammar begins after it."""
    thinking = seq.thinking
    if thinking is None or thinking.answering:
        return []
    due = _accepted(seq, thinking.due(seq.n_left, seq.matcher.reserve if seq.matcher is not None else 0))
    # The model gives no logits for a forced token, so there is no probability to report.
    return due if due or seq.top_logprobs is not None else forced_tokens(seq)


def _accepted(seq: Sequence, tokens: tuple[int, ...]) -> list[int]:
    """Return the tokens, which the sampler has accepted."""
    for token in tokens:
        seq.sampler.accept(token)
    return list(tokens)


def _constrained(runner: Runner, seq: Sequence, matcher: Matcher, row: int) -> int:
    logits = runner.logits(row)
    if seq.n_left <= matcher.reserve and matcher.must_close:
        return matcher.closing_token(logits)
    token = seq.sampler.propose(row, matcher.allows)
    if token is not None:  # much cheaper than computing and applying the mask
        seq.sampler.accept(token)
        return token
    matcher.mask(logits)
    return seq.sampler.sample(row)
