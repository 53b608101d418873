"""The engine thread: it admits sequences into slots, packs batches, samples, and ends every sequence exactly once.

waiting.py decides which sequence gets a slot next. scheduler.py decides which tokens a batch carries. placement.py
decides which slot a prompt gets. slots.py keeps the slots. A Runner holds the model. The backend handles text and chat
templates.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter, deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from tourkit.engine.logprobs import PromptScores
from tourkit.engine.meter import WorkMeter
from tourkit.engine.next_tokens import append, forced_tokens, next_tokens, take_scores
from tourkit.engine.placement import common_prefix
from tourkit.engine.prompt_lookup import PromptLookup
from tourkit.engine.scheduler import Chunk, next_batches, victim
from tourkit.engine.sequence import Sequence, Status
from tourkit.engine.slots import SlotTable
from tourkit.engine.stop_strings import TextStream
from tourkit.engine.thinking import Thinking, ThinkingPlan
from tourkit.engine.waiting import WaitingLine, may_wait
from tourkit.errors import EngineDead, EngineError, QueueFull, TourkitError
from tourkit.generation import Activity, Emit, EngineStats, Finish, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Sequence as Seq

    from tourkit.engine.run_store import RunStore
    from tourkit.engine.runner import Runner
    from tourkit.grammar.matcher import Matcher

_REST_AFTER = 0.3  # seconds without work


class BatchEngine:
    """Continuous batching over one Runner. `submit` and `abort` may be called from any thread.

    `max_waiting`: sequences that may queue for a slot; `submit` raises QueueFull for more.
    `speculate`: guess tokens by prompt lookup.
    `deterministic`: one sequence a call and no shared KV cells, so that no answer depends on other requests.
    `prompt_cache`: bytes of RAM for the cells of ended prompts, 0 for none, None for the default. `store`: their disk.
    `warm_up`: called first; its errors are raised here. It returns how many tokens it computed.
    `at_rest`: called once, at the first pause without work.
    `release`: called last, after an error too; by default it closes the runner.
    The engine's thread calls all three, because OpenMP is slower once two threads have computed (docs/architecture.md).
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_waiting: int = 256,
        strip_leading_space: bool = False,
        speculate: bool = True,
        deterministic: bool = False,
        prompt_cache: int | None = None,
        store: RunStore | None = None,
        warm_up: Callable[[], int] = lambda: 0,
        at_rest: Callable[[], None] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        self._runner = runner
        self._at_rest = at_rest
        self._release_runner = release or runner.close
        self._deterministic = deterministic
        self._meter = meter = WorkMeter()
        self._slots = SlotTable(runner, meter.prefill_rate, prompt_cache, store, sharing=not deterministic)
        self.prefix_sharing = self._slots.sharing_text
        self._speculate = speculate and runner.partial_kv  # the cells of wrong guesses must be dropped again
        self._max_waiting = max_waiting
        self._strip_leading_space = strip_leading_space
        self._ids = itertools.count(1)
        self._counts: Counter[str] = Counter()  # the counters of EngineStats, by field
        # Shared with other threads; _gate guards it:
        self._gate = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._aborted: set[int] = set()
        self._closing = False
        self._dead: EngineDead | None = None
        # Only the engine thread uses it:
        self._waiting = WaitingLine()
        self._running: list[Sequence] = []
        self._short_of_cells = False  # while it is set: admit no sequence and guess no token; cleared by an ending
        warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(warm_up, warm), name="tourkit-engine", daemon=True)
        self._thread.start()
        try:
            warm.result()
        except BaseException:
            self._thread.join()  # the thread closes the runner before it ends
            raise

    # --- called from any thread -----------------------------------------------------------------------------

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        max_tokens: int,
        emit: Emit,
        matchers: Seq[Matcher | None] = (None,),
        *,
        thinking: ThinkingPlan | None = None,
        pieces: Mapping[int, bytes] | None = None,
        whole: bool = False,
        client: str = "",
    ) -> int:
        """Queue one sequence per matcher and return the submission's id. Raises QueueFull, EngineDead.

        `thinking`: None if no answer can think. `pieces`: the text of control tokens that mark calls of tools. `whole`
        and `client`: as in Request.
        """
        seed = params.seed if params.seed is not None else random.getrandbits(31)
        scores = PromptScores(self._runner, tokens, params.top_logprobs) if params.prompt_logprobs else None
        submission = next(self._ids)
        with self._gate:
            if self._dead or self._closing:
                raise self._dead or EngineDead("the engine is shut down")
            waiting = Counter(seq.client for seq in (*self._inbox, *self._waiting))
            if not may_wait(client, len(matchers), waiting, self._max_waiting):
                raise QueueFull(f"{self._max_waiting} sequences are already waiting: try again later")
            for index, matcher in enumerate(matchers):
                self._inbox.append(
                    Sequence(
                        submission=submission,
                        index=index,
                        tokens=list(tokens),
                        n_prompt=len(tokens),
                        max_tokens=max_tokens,
                        emit=emit,
                        sampler=self._runner.sampler(params, (seed + index) % 2**32, constrained=matcher is not None),
                        text=TextStream(params.stop),
                        matcher=matcher,
                        thinking=None if thinking is None else Thinking(thinking),
                        pieces=pieces or {},
                        top_logprobs=params.top_logprobs,
                        scored=params.scored,
                        scores=scores if index == 0 else None,
                        whole=whole,
                        client=client,
                        lookup=PromptLookup() if self._speculate else None,
                    )
                )
            self._gate.notify()
        return submission

    def abort(self, submission: int) -> None:
        with self._gate:
            self._aborted.add(submission)
            self._gate.notify()

    def stats(self) -> EngineStats:
        waiting = len(self._inbox) + len(self._waiting)
        return EngineStats(running=len(self._running), waiting=waiting, **self._counts, **self._slots.cache_stats())

    def activity(self) -> Activity:
        return self._meter.activity()

    def close(self) -> None:
        """End every sequence with ABORT, stop the thread, and free the model."""
        with self._gate:
            self._closing = True
            self._gate.notify()
        self._thread.join()

    # --- the engine thread ----------------------------------------------------------------------------------

    def _run(self, warm_up: Callable[[], int], warm: Future[None]) -> None:
        error: EngineDead | None = None
        try:
            self._meter.advance(0, 0)
            self._meter.advance(warm_up(), 0)
            self._meter.rest()
            warm.set_result(None)
            while self._take_inbox():
                self._admit()
                self._step()
            for seq in list(self._running):
                self._end(seq, Finish.ABORT)
            self._slots.rest()
        except Exception as exc:  # noqa: BLE001 - thread boundary: every caller must get the error
            error = EngineDead(f"the engine thread died: {exc!r}")
            if not warm.done():
                warm.set_exception(exc)
        finally:
            with self._gate:
                self._dead = error or EngineDead("the engine is shut down")
                left = [*self._running, *self._waiting, *self._inbox]
            for seq in left:
                seq.finish(Finish.ERROR if error else Finish.ABORT, error)
            self._slots.close()
            self._release_runner()

    def _take_inbox(self) -> bool:
        """Wait for work and take in new sequences and aborts. Return False if the engine must stop."""
        if self._running and not (self._inbox or self._aborted or self._closing):
            return True  # mostly nothing is new between two tokens, and locking the gate costs as much as all the rest
        self._meter.rest()
        rest_is_due = self._at_rest is not None or self._slots.rest_is_due
        with self._gate:
            idle = not self._gate.wait_for(self._has_work, timeout=_REST_AFTER if rest_is_due else None)
            if self._closing:
                return False
            new = list(self._inbox)
            for seq in new:
                self._waiting.add(seq)
            self._inbox.clear()
            aborted, self._aborted = self._aborted, set()
        self._meter.advance(0, 0)
        if idle:
            self._rest()
        for seq in new:
            self._open(seq)
        if aborted:
            for seq in [*self._running, *self._waiting]:
                if seq.submission in aborted:
                    self._end(seq, Finish.ABORT)
        for seq in self._waiting if new or aborted else ():
            if seq.status is not Status.WAITING:
                self._waiting.remove(seq, served=False)
        return True

    def _rest(self) -> None:
        """Do the work that is best done while no request waits."""
        self._slots.rest()
        if self._at_rest is not None:
            self._at_rest()
            self._at_rest = None

    def _has_work(self) -> bool:
        return bool(self._closing or self._inbox or self._aborted or self._running or self._waiting)

    def _open(self, seq: Sequence) -> None:
        """Begin the answer with the tokens that are known: what its grammar forces, and the end of thinking of none.

        They are computed together with the prompt, once for all `n` samples.
        """
        if seq.thinking is None and (seq.matcher is None or seq.top_logprobs is not None):
            return
        ending: Finish | None
        error = None
        try:
            forced = [] if seq.top_logprobs is not None else forced_tokens(seq)
            ending = append(self._runner, seq, forced, strip_first_space=self._strip_leading_space)
        except TourkitError as exc:
            ending, error = Finish.ERROR, exc
        self._count(generated_tokens=seq.n_generated, forced_tokens=seq.n_generated)
        if ending is not None:
            self._end(seq, ending, error)

    def _admit(self) -> None:
        """Give free slots to waiting sequences in turn. Skip one if another slot is prefilling its prefix now."""
        if self._short_of_cells and self._running:
            return
        for seq in self._waiting:
            if self._slots.all_taken:
                return
            choice = self._slots.place(seq)
            if choice is not None:
                self._running.append(seq)  # before it leaves the queue: if a step here fails, it still gets its ending
                self._waiting.remove(seq, served=True)
                self._slots.take(choice, seq)
                seq.begin()
                self._count(prompt_tokens=len(seq.tokens), cached_tokens=seq.n_kv)

    def _step(self) -> None:
        """Run one batch; run two if prompts are best computed apart from sequences that generate."""
        if not self._running:
            return
        turn = self._turn()
        for seq in turn:
            seq.draft = self._guess(seq)
        for chunks in next_batches(turn, self._runner.n_batch, apart=self._runner.prompts_apart):
            if not self._compute(chunks):
                return

    def _compute(self, chunks: list[Chunk]) -> bool:
        """Run a batch and process its tokens. Return False if the KV cache had no room; then only make room."""
        rows = [self._fill(chunk) for chunk in chunks]
        n_tokens = sum(chunk.end - chunk.start + len(chunk.draft) for chunk in chunks)
        self._meter.advance(0, n_tokens)
        decoded = self._runner.decode()
        self._meter.advance(n_tokens if decoded else 0, 0)
        if not decoded:
            if any(chunk.draft for chunk in chunks):
                self._short_of_cells = True  # try the same again without guesses: they are given up first
            else:
                self._make_room()
            return False
        self._count(decode_steps=1)
        for chunk in chunks:
            self._slots.computed(chunk.sequence, chunk.end)
        for chunk, logits in zip(chunks, rows, strict=True):
            if logits := take_scores(self._runner, chunk, logits):
                self._advance(chunk, logits)
        return True

    def _turn(self) -> list[Sequence]:
        """Return the sequences of the next batch: all, or one at a time in turn, so that no rounding differs."""
        if not self._deterministic:
            return self._running
        self._running.append(self._running.pop(0))
        return self._running[-1:]

    def _guess(self, seq: Sequence) -> list[int]:
        """Guess the next tokens. Empty if guessing is off, or if the next batch ends before the sequence does."""
        if seq.lookup is None or self._short_of_cells or seq.n_pending > self._runner.n_batch:
            return []
        return seq.lookup.propose(seq.tokens, seq.n_left - 1)

    def _fill(self, chunk: Chunk) -> list[int]:
        """Put a chunk into the batch. Return the rows of its logits: first of its last token, then of each guess."""
        seq, rows = chunk.sequence, []
        if seq.slot is None:
            raise EngineError("a running sequence has no slot")
        tokens = [*seq.tokens[chunk.start : chunk.end], *chunk.draft]
        for pos, token in enumerate(tokens, chunk.start):
            row = self._runner.add(token, pos, seq.slot, logits=chunk.needs_logits(pos))
            if row is not None:
                rows.append(row)
        return rows

    def _make_room(self) -> None:
        """Free KV cells because the cache is full: drop idle prefixes first, then preempt the youngest sequence."""
        if self._slots.forget_oldest():
            return
        seq = victim(self._running)
        if seq is None:
            full = EngineError("the KV cache is full: serve with a larger --context")
            self._end(self._running[0], Finish.ERROR, full)
            return
        self._release(seq, keep=False)
        seq.status, seq.n_kv = Status.WAITING, 0
        self._waiting.put_back(seq)
        self._short_of_cells = True
        self._count(preemptions=1)

    def _advance(self, chunk: Chunk, rows: list[int]) -> None:
        """Sample row by row while the guesses are right, then drop the cells of the wrong guesses."""
        seq, draft, right = chunk.sequence, chunk.draft, 0
        ending = None
        while ending is None:
            before = len(seq.tokens)
            ending = self._extend(seq, rows[right])
            if not draft:
                break
            new = seq.tokens[before:]
            known = common_prefix(new, list(draft[right:]), len(new))
            right += known
            seq.n_kv += known
            if known < len(new):
                break
        if draft:
            self._check_draft(seq, len(draft), right)
        if ending is not None:
            self._end(seq, *ending)

    def _check_draft(self, seq: Sequence, guessed: int, right: int) -> None:
        """Drop the cells of wrong guesses, and adapt the length of the next guess to this result."""
        self._count(drafted_tokens=guessed, accepted_tokens=right)
        if seq.lookup is not None:
            seq.lookup.learn(guessed, right, len(seq.tokens))
        if right < guessed and seq.slot is not None and not self._runner.truncate(seq.slot, seq.n_kv):
            seq.n_kv, seq.lookup = 0, None  # this model can only drop all of its cells: make no more guesses

    def _extend(self, seq: Sequence, row: int) -> tuple[Finish, TourkitError | None] | None:
        """Sample one token, append it and the tokens that must follow it.

        Return why the sequence ends; None if it goes on.
        """
        before = seq.n_generated
        try:
            new = next_tokens(self._runner, seq, row)
            ending = append(self._runner, seq, new, strip_first_space=self._strip_leading_space)
        except TourkitError as exc:
            return Finish.ERROR, exc
        count = max(len(new), seq.n_generated - before)
        self._count(generated_tokens=count, forced_tokens=count - 1)
        return None if ending is None else (ending, None)

    def _end(self, seq: Sequence, reason: Finish, error: TourkitError | None = None) -> None:
        if seq.slot is not None:
            self._release(seq, keep=True)
            self._short_of_cells = False
        seq.finish(reason, error)

    def _release(self, seq: Sequence, *, keep: bool) -> None:
        self._slots.give_back(seq, keep=keep)
        self._running.remove(seq)

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number
