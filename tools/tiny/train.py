"""Trains the tiny model: `python -m tools.tiny.train --tokenizer DIR --out DIR (--minutes M | --steps N)`.

Warm-up, a constant rate, then a linear decay over the last quarter. With --minutes the decay starts by the clock, and
recipe.json records the steps, so that --steps and --decay-from repeat the run.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from tools.tiny import tasks
from tools.tiny.data import IGNORE, Encoder, Row, copy_row, rows
from tools.tiny.documents import Split
from tools.tiny.names import HELD
from tools.tiny.wiring import wire

BATCH, MICRO = 24, 3
WARM_UP = 60  # steps
COPY_UNTIL, COPY_ROWS = 600, 4  # the first steps also have some rows of plain copying
DECAY = 0.25  # share of the run
EARLY = 0.5  # share of the run with mostly short prompts


def plain_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: object, **_: object
) -> tuple[torch.Tensor, None]:
    """Causal attention as three matrix products: in bfloat16 on a CPU three times as fast as torch's own."""
    length = query.shape[-2]
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    hidden = torch.full((length, length), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    return ((scores + hidden).softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", plain_attention)
ATTENTION = "sdpa" if torch.cuda.is_available() else "plain"


def build(vocabulary: int, width: int, layers: int, heads: int, feed: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation=ATTENTION,
    )
    model = LlamaForCausalLM(config)
    wire(model)
    return model


def padded(batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = -(-max(len(row.ids) for row in batch) // 64) * 64  # few shapes: each new one costs a kernel build
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest), IGNORE)
    for index, row in enumerate(batch):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids)] = torch.tensor(row.labels)
    return ids, labels


def logits_of(model: LlamaForCausalLM, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of the learnt positions only. Rows are padded on the right, so causality is mask enough."""
    ids, labels = padded(batch)
    device = next(model.parameters()).device
    ids, labels = ids.to(device), labels.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        places = (targets != IGNORE).flatten().nonzero().squeeze(1)
        spare = places.new_zeros(-len(places) % 256)
        logits = model.lm_head(hidden.flatten(0, 1)[torch.cat([places, spare])])
        return logits[: len(places)].float(), targets.flatten()[places]


def step(
    model: LlamaForCausalLM,
    batch: list[Row],
    optimizers: list[torch.optim.Optimizer],
    scale: float,
    workers: int,
    rank: int,
    even: bool = False,
) -> float:
    """One optimizer step over this worker's share of the batch, in micro-batches of like length.

    Gives the mean loss of a learnt token.
    """
    batch = sorted(batch, key=lambda row: len(row.ids))
    learnt = sum(label != IGNORE for row in batch for label in row.labels)
    mine = batch[rank::workers]
    size = -(-len(mine) // MICRO)
    total = torch.zeros(1)
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        logits, targets = logits_of(model, part)
        losses = cross_entropy(logits, targets, reduction="none")
        if even:  # a short answer counts for more than its few tokens
            losses = losses * torch.tensor([w for row in part for w in weights(row)], device=losses.device)
        loss = losses.sum() / learnt
        loss.backward()
        total += loss.item()
    if workers > 1:
        share(model, total)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total.item()


def weights(row: Row) -> list[float]:
    """The weight of each learnt token: answers of 60 tokens count as they are, shorter ones for more."""
    count = sum(label != IGNORE for label in row.labels[1:])
    return [(60 / count) ** 0.5] * count


def share(model: LlamaForCausalLM, total: torch.Tensor) -> None:
    """Add up gradients and loss over the workers."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([total, *(g.flatten() for g in gradients)])
    dist.all_reduce(flat)
    total.copy_(flat[:1])
    at = 1
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()


def optimizers_of(model: LlamaForCausalLM, kind: str, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers and AdamW for the rest, or AdamW for all."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    if kind == "adamw":
        matrices = []
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "base": rate, "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim < 2], "base": rate, "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
    if matrices:
        group = {"params": matrices, "base": 2 * rate}
        found.append(
            torch.optim.Muon([group], lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
    return found


def held_out(encoder: Encoder, count: int) -> dict[str, list[Row]]:
    """Rows of the held-out splits for the log, in the prompts of the templates."""
    suites = {
        "names": Split(names=HELD),
        "lines": Split(names=HELD, lines=HELD),
        "schemas": Split(names=HELD, schemas=HELD),
    }
    result = {}
    for name, split in suites.items():
        rng = Random(f"log:{name}")
        result[name] = [encoder.row(tasks.json_sample(rng, split, lang=tasks.pick_lang(rng))) for _ in range(count)]
    rng = Random("log:rest")
    split = Split(names=HELD)
    for name, make in {
        "graph": lambda: tasks.graph_sample(rng, split, lang=tasks.pick_lang(rng), full=True),
        "arithmetic": lambda: tasks.arithmetic_sample(rng, Split(), lang=tasks.pick_lang(rng)),
        "cite": lambda: tasks.cite_sample(rng, split, lang=tasks.pick_lang(rng)),
        "classify": lambda: tasks.classify_sample(rng, split, lang=tasks.pick_lang(rng)),
        "repair": lambda: tasks.repair_sample(rng, split, lang=tasks.pick_lang(rng)),
    }.items():
        result[name] = [encoder.row(make()) for _ in range(count)]
    return result


@torch.no_grad()
def exact(model: LlamaForCausalLM, batch: list[Row]) -> float:
    """Share of rows whose every learnt token is the likeliest one: those that greedy decoding writes exactly."""
    right = 0
    batch = sorted(batch, key=lambda row: len(row.ids))
    for start in range(0, len(batch), 8):
        part = batch[start : start + 8]
        logits, targets = logits_of(model, part)
        hits = (logits.argmax(-1) == targets).tolist()
        at = 0
        for row in part:
            count = sum(label != IGNORE for label in row.labels[1:])
            right += all(hits[at : at + count])
            at += count
    return right / len(batch)


def save(model: LlamaForCausalLM, folder: Path, recipe: dict[str, object]) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this model: the last phase, all of it decay")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--stop", type=int, default=0, help="end after this step, whatever --steps planned")
    parser.add_argument("--decay-from", type=int, default=0)
    parser.add_argument("--middle-from", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--feed", type=int, default=512)
    parser.add_argument("--log-every", type=float, default=240.0, help="seconds between held-out scores")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 1 on a GPU")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.workers == 1:
        work(0, args, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, f"{folder}/meet"), args.workers)


def work(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One of the processes that train together: same data, same steps, its own share of every batch."""
    if meeting:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.workers)
    encoder = Encoder(args.tokenizer)
    vocabulary = encoder.size
    model = build(vocabulary, args.width, args.layers, args.heads, args.feed, args.seed)
    if args.init:
        model = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32, attn_implementation=ATTENTION)
    if torch.cuda.is_available():
        model.to("cuda")
    optimizers = optimizers_of(model, args.optimizer, args.rate)
    started = time.monotonic()

    def learn(batch: list[Row], scale: float) -> float:
        return step(model, batch, optimizers, scale, args.workers, rank, even=bool(args.init))

    say = print_now if rank == 0 else (lambda _: None)
    say(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {vocabulary}")
    train(args, model, learn, encoder, started, rank, say)
    if meeting:
        dist.destroy_process_group()


def print_now(text: str) -> None:
    print(text, flush=True)


def clock(started: float, workers: int) -> float:
    """Minutes since the start, the same for all workers."""
    seconds = torch.tensor([time.monotonic() - started])
    if workers > 1:
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item() / 60


def train(
    args: argparse.Namespace,
    model: LlamaForCausalLM,
    learn: Callable[[list[Row], float], float],
    encoder: Encoder,
    started: float,
    rank: int,
    say: Callable[[str], None],
) -> None:
    suites = held_out(encoder, 24) if rank == 0 else {}
    total, decay_from = args.steps, args.decay_from or int(args.steps * (1 - DECAY))
    middle_from = args.middle_from or int(args.steps * EARLY)
    n = tokens = learnt = 0

    def phase() -> tasks.Phase:
        if args.init:
            return tasks.LAST
        if total and n >= decay_from:
            return tasks.LATE
        return tasks.MIDDLE if middle_from and n >= middle_from else tasks.EARLY

    copies = Random(f"copies:{args.seed}")
    stream = rows(encoder, args.seed, phase)
    mean, last_log, last_print = 0.0, time.monotonic(), time.monotonic()
    while (not total or n < total) and (not args.stop or n < args.stop):
        if args.init:
            gone = clock(started, args.workers) / args.minutes if args.minutes else n / args.steps
            scale = 0.9 * min(1.0, (n + 1) / 30) * max(0.01, 1 - gone)
            total = n + 1 if args.minutes and gone >= 1 else total
        elif not total and n % 10 == 0:
            part = clock(started, args.workers) / args.minutes
            if not middle_from and part >= EARLY:
                middle_from = n
                say(f"longer prompts from step {n}")
            if part >= 1 - DECAY:
                decay_from, total = n, n + max(1, int((n - middle_from) * DECAY / (1 - DECAY - EARLY)))
                say(f"decay from step {decay_from} to {total}")
        if not args.init:
            scale = min(1.0, (n + 1) / WARM_UP)
        if not args.init and total and n >= decay_from:
            scale *= max(0.01, (total - n) / max(1, total - decay_from))
        batch = list(islice(stream, BATCH))
        drill = [copy_row(copies, encoder.size) for _ in range(COPY_ROWS if n < COPY_UNTIL and not args.init else 0)]
        loss = learn(batch + drill, scale)
        n += 1
        tokens += sum(len(row.ids) for row in batch)
        learnt += sum(label != IGNORE for row in batch for label in row.labels)
        mean = loss if n == 1 else 0.95 * mean + 0.05 * loss
        now = time.monotonic()
        if now - last_print > 20:
            rate = tokens / (now - started)
            say(f"{now - started:.0f}s step {n} loss {mean:.4f} tokens {tokens} ({rate:.0f}/s) learnt {learnt}")
            last_print = now
        if rank == 0 and (now - last_log > args.log_every or n in (total, args.stop)):
            scores = {name: round(exact(model, suite), 3) for name, suite in suites.items()}
            say(f"exact at {n}: {scores}")
            run = {"steps": n, "decay_from": decay_from, "middle_from": middle_from, "planned_steps": total}
            run |= {"tokens": tokens, "learnt_tokens": learnt, "loss": round(mean, 4), "exact": scores}
            run["minutes_taken"] = round((now - started) / 60, 1)
            save(model, args.out, recipe_of(args, model, run))
            last_log = time.monotonic()
    say("done")


def recipe_of(args: argparse.Namespace, model: LlamaForCausalLM, run: dict[str, object]) -> dict[str, object]:
    """What it takes to repeat the run."""
    import tokenizers
    import transformers

    asked = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    before = (args.init / "recipe.json") if args.init else None
    return {
        "before": json.loads(before.read_text(encoding="utf-8")) if before else None,
        **asked,
        **run,
        "batch": BATCH,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
