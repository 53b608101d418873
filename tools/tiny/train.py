"""Train the tiny model: `python -m tools.tiny.train --tokenizer DIR --out DIR (--minutes M | --steps N)`.

The first run has a constant rate after a warm-up. It starts with drills and goes on to documents. A later run
(--run last or --run graphs) continues from --init with the prompts of the templates, and its rate falls to zero.
recipe.json records the steps: --steps and --middle-from repeat a run that was limited by --minutes.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from tools.tiny import prompts, tasks
from tools.tiny.data import CONTEXT, IGNORE, Encoder, Row, copy_row, rows
from tools.tiny.documents import Split
from tools.tiny.forward import last_hidden
from tools.tiny.names import HELD
from tools.tiny.wiring import wire

SHAPES = {128: 40, 256: 20, 384: 12, 512: 8, 640: 6, 768: 4, 1024: 3}  # padded length → rows: about equal time
BATCHES = 1  # per worker and step
COPY_UNTIL, COPY_ROWS = 300, 40  # in the first steps each worker also has a batch of copying
EARLY = 0.4  # share of the first run with mostly drills
LATER = {"last": tasks.LAST, "graphs": tasks.GRAPHS}  # the samples of the runs after the first
SHORT = 60  # answers with fewer tokens get a higher weight per token


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
    )
    model = LlamaForCausalLM(config)
    wire(model)
    return model


def batches(stream: Iterator[Row]) -> Iterator[list[Row]]:
    """Group rows of similar length into batches. There are few shapes, because torch compiles each shape."""
    waiting: dict[int, list[Row]] = {length: [] for length in SHAPES}
    for row in stream:
        length = shape_of(row)
        waiting[length].append(row)
        if len(waiting[length]) == SHAPES[length]:
            yield waiting[length]
            waiting[length] = []


def shape_of(row: Row) -> int:
    return next(length for length in SHAPES if len(row.ids) <= length)


def padded(batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, targets and weights, (rows, length). Padding is on the right, so the causal mask is enough."""
    length = max(shape_of(row) for row in batch)
    size = (SHAPES[length], length)
    ids, labels, weights = torch.zeros(size, dtype=torch.long), torch.full(size, IGNORE), torch.zeros(size)
    for index, row in enumerate(batch):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids)] = torch.tensor(row.labels)
        weights[index] = max(1.0, SHORT / max(1, row.learnt)) ** 0.5
    return ids, labels, weights


def logits_of(model: LlamaForCausalLM, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, targets and weights of the learnt positions, row after row."""
    device = next(model.parameters()).device
    ids, labels, weights = (part.to(device) for part in padded(batch))
    hidden = last_hidden(model, ids)[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    places = (targets != IGNORE).nonzero().squeeze(1)
    logits = hidden[places].bfloat16() @ model.lm_head.weight.bfloat16().t()
    return logits.float(), targets[places], weights[:, 1:].flatten()[places]


def step(model: LlamaForCausalLM, mine: list[list[Row]], optimizers: list[Optimizer], scale: float) -> float:
    """Do one optimizer step; `mine`: this worker's batches. Return the mean loss per token of all workers."""
    device = next(model.parameters()).device
    sums = torch.zeros(2, device=device)  # weighted losses, weights
    for batch in mine:
        logits, targets, weights = logits_of(model, batch)
        loss = (cross_entropy(logits, targets, reduction="none") * weights).sum()
        loss.backward()
        sums += torch.stack([loss.detach(), weights.sum()])
    share(model, sums)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (sums[0] / sums[1]).item()


def share(model: LlamaForCausalLM, sums: torch.Tensor) -> None:
    """Add the sums and gradients of all workers, and divide the gradients by the sum of the weights."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([sums, *(g.flatten() for g in gradients)])
    if dist.is_initialized():
        dist.all_reduce(flat)
    sums.copy_(flat[:2])
    at = 2
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient) / sums[1])
        at += gradient.numel()


def optimizers_of(model: LlamaForCausalLM, rate: float) -> list[Optimizer]:
    """Return Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "base": rate, "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim < 2], "base": rate, "weight_decay": 0.0},
    ]
    group = {"params": matrices, "base": 2 * rate}
    return [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98)),
        torch.optim.Muon([group], lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    ]


def held_out(encoder: Encoder, count: int) -> dict[str, list[Row]]:
    """Return rows of the held-out splits for the log, with the prompts of the templates."""
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
    return {name: [row for row in suite if len(row.ids) <= CONTEXT] for name, suite in result.items()}


def exact(model: LlamaForCausalLM, suite: list[Row]) -> float:
    """Return the share of rows that greedy decoding writes exactly: every learnt token is the likeliest one."""
    right, count = 0, len(suite)
    suite = sorted(suite, key=shape_of)
    while suite:
        part = suite[: SHAPES[shape_of(suite[0])]]
        part = [row for row in part if shape_of(row) == shape_of(part[0])]
        suite = suite[len(part) :]
        logits, targets, _ = logits_of(model, part)  # with gradients: without them torch would compile again
        hits = iter((logits.argmax(-1) == targets).tolist())
        right += sum(all(list(islice(hits, row.learnt))) for row in part)
    return right / count if count else 0.0


def save(model: LlamaForCausalLM, folder: Path, recipe: dict[str, object]) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="continue from this model")
    parser.add_argument("--run", choices=["first", *LATER], default="first", help="which samples; default first")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--middle-from", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warm-up", type=int, default=100, help="steps until the rate is full")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--feed", type=int, default=704)
    parser.add_argument("--log-every", type=float, default=300.0, help="seconds between held-out scores")
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
    """Run one of the processes that train together. All have the same model and steps; each has its own batches."""
    torch._dynamo.config.recompile_limit = 4 * len(SHAPES)
    if meeting:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.workers)
    encoder = Encoder(args.tokenizer)
    model = build(encoder.size, args.width, args.layers, args.heads, args.feed, args.seed)
    if args.init:
        model = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    if torch.cuda.is_available():
        model.to("cuda")
    train(args, model, encoder, rank)
    if meeting:
        dist.destroy_process_group()


def clock(started: float) -> float:
    """Return the minutes since the start, the same for all workers."""
    seconds = torch.tensor([time.monotonic() - started])
    if dist.is_initialized():
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item() / 60


def train(args: argparse.Namespace, model: LlamaForCausalLM, encoder: Encoder, rank: int) -> None:
    optimizers = optimizers_of(model, args.rate)
    suites = held_out(encoder, 40) if rank == 0 else {}
    say = print_now if rank == 0 else (lambda _: None)
    say(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {encoder.size}")
    n, middle_from, gone = 0, args.middle_from, 0.0
    tokens = learnt = 0  # of this worker

    def phase() -> tasks.Phase:
        if args.run in LATER:
            return LATER[args.run]
        return tasks.MIDDLE if middle_from and n >= middle_from else tasks.EARLY

    copies = Random(f"copies:{args.seed}:{rank}")
    stream = batches(rows(encoder, f"{args.seed}:{rank}", phase))
    started = last_log = last_print = time.monotonic()
    mean = 0.0
    while gone < 1:
        scale = min(1.0, (n + 1) / args.warm_up) * (max(0.01, 1 - gone) if args.run in LATER else 1)
        mine = list(islice(stream, BATCHES))
        tokens += sum(len(row.ids) for batch in mine for row in batch)
        learnt += sum(row.learnt for batch in mine for row in batch)
        if n < COPY_UNTIL and not args.init:
            mine.append([copy_row(copies, encoder.size) for _ in range(COPY_ROWS)])
        loss = step(model, mine, optimizers, scale)
        n += 1
        mean = loss if n == 1 else 0.95 * mean + 0.05 * loss
        gone = n / args.steps if args.steps else clock(started) / args.minutes
        if args.run not in LATER and not middle_from and gone >= EARLY:
            middle_from = n
            say(f"longer prompts from step {n}")
        now = time.monotonic()
        if now - last_print > 20:
            rate = args.workers * tokens / (now - started)
            say(f"{now - started:.0f}s step {n} loss {mean:.4f} tokens {args.workers * tokens} ({rate:.0f}/s)")
            last_print = now
        if rank == 0 and (now - last_log > args.log_every or gone >= 1):
            scores = {name: round(exact(model, suite), 3) for name, suite in suites.items()}
            say(f"exact at {n}: {scores}")
            run = {"steps": n, "middle_from": middle_from, "exact": scores, "loss": round(mean, 4)}
            run |= {"tokens": args.workers * tokens, "learnt_tokens": args.workers * learnt}
            run["minutes_taken"] = round((now - started) / 60, 1)
            save(model, args.out, recipe_of(args, model, run))
            last_log = time.monotonic()
    say("done")


def print_now(text: str) -> None:
    print(text, flush=True)


def recipe_of(args: argparse.Namespace, model: LlamaForCausalLM, run: dict[str, object]) -> dict[str, object]:
    """Return what is needed to repeat the run."""
    import tokenizers
    import transformers

    asked = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    before = (args.init / "recipe.json") if args.init else None
    return {
        "before": json.loads(before.read_text(encoding="utf-8")) if before else None,
        **asked,
        **run,
        "prompts": prompts.digests(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
