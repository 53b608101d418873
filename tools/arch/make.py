"""Make tiny random models and their reference answers: `python -m tools.arch.make build/architectures [NAME…]`.

Each folder has safetensors/ in the layout of the published models, and reference.json with the results of transformers.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tools.arch import vocabularies
from tools.arch.families import BY_NAME, TINY
from tools.arch.kinds import KINDS
from tools.arch.tiny import Tiny

MESSAGES = [{"role": "user", "content": "Anna paid 1200 rubles on 2025-03-14. Write what happened, in words."}]
TEXTS = ["the name and the date", "Счёт № 42 на сумму 1 200,50 ₽", "emoji 🙂, I've 12345...  a", " x\n\n  y"]
# The prompt with which Qwen3-Reranker was trained.
QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
ANSWER = 12  # tokens of the reference's answer
_CLEAR = 0.05  # the least lead of each token in log probability: rounding must not change the answer
_SEEDS = 200
_SPREAD = 0.15  # standard deviation of the weights: large enough that attention matters


def make(tiny: Tiny, folder: Path) -> Path:
    """Make the model again, and return its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "safetensors"
    target.mkdir(parents=True)
    kind = KINDS[tiny.vocabulary]
    n_tokens = vocabularies.write(kind, target, tiny.template)
    config = _config(tiny, target, n_tokens)
    reference = _made(tiny, config, n_tokens, target)
    if tiny.published:
        _publish(tiny, target)
    (folder / "reference.json").write_text(json.dumps(reference, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder


def _made(tiny: Tiny, config: Any, n_tokens: int, target: Path) -> dict[str, Any]:
    """Save the weights. Return the reference results."""
    if tiny.pooling == "rank":
        return _reranker(tiny, config, target)
    return _embedder(tiny, config, target) if tiny.pooling else _writer(config, n_tokens, target)


def _config(tiny: Tiny, target: Path, n_tokens: int) -> Any:
    """Return the configuration of the model."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = getattr(transformers, tiny.config)(
        **tiny.fields | ids, vocab_size=-(-n_tokens // tiny.padding) * tiny.padding
    )
    config.architectures = None
    return config


def _random(model: Any, seed: int, n_tokens: int) -> None:
    """Make every weight random, biases and norms too, so that a missing or swapped weight changes the answer.

    The weights of the vocabulary's padding are 0: some stacks count the padding as tokens, some do not, and trained
    models give it almost no probability.
    """
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=_SPREAD)
            else:
                weights.add_(torch.randn_like(weights) * _SPREAD)
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            layer.weight[n_tokens:] = 0


# --- models that write ----------------------------------------------------------------------------------------------


def _writer(config: Any, n_tokens: int, target: Path) -> dict[str, Any]:
    """Save the first random model with a clear greedy answer. Return the answer and the tokens of the texts."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    written = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    prompt = tokenizer(text, add_special_tokens=not written).input_ids
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    plain = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    for seed in range(_SEEDS):
        _random(model, seed, n_tokens)
        answer, logprobs = _greedy(model, prompt, plain)
        words = tokenizer.decode(answer)
        if len(answer) == ANSWER and "\ufffd" not in words and words.strip() == words:
            model.save_pretrained(target)
            shutil.rmtree(target / ".cache", ignore_errors=True)
            return {
                "prompt_tokens": len(prompt),
                "answer": words,
                "logprobs": logprobs,
                "eos": tokenizer.eos_token_id,
                "texts": _tokens(target),
            }
    raise SystemExit(f"{target}: none of {_SEEDS} random models answers clearly")


def _tokens(target: Path) -> dict[str, list[int]]:
    """Tokenize with tokenizer.json alone: transformers 5 treats a leading space differently for Llama."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    return {text: tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS}


def _greedy(model: Any, prompt: list[int], plain: set[int]) -> tuple[list[int], list[float]]:
    """Return the likeliest tokens and their log probabilities, up to one that is unclear or no plain text."""
    import torch

    answer: list[int] = []
    logprobs: list[float] = []
    with torch.inference_mode():
        while len(answer) < ANSWER:
            likely = model(torch.tensor([prompt + answer]), use_cache=False).logits[0, -1].log_softmax(-1).topk(2)
            best = int(likely.indices[0])
            if likely.values[0] - likely.values[1] < _CLEAR or best not in plain:
                break
            logprobs.append(round(float(likely.values[0]), 5))
            answer.append(best)
    return answer, logprobs


# --- models that embed ----------------------------------------------------------------------------------------------


def _embedder(tiny: Tiny, config: Any, target: Path) -> dict[str, Any]:
    """Save a random encoder in the layout of sentence-transformers. Return the vectors of some texts."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    model = transformers.AutoModel.from_config(config).float().eval()
    _random(model, 0, config.vocab_size)
    model.save_pretrained(target)
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_mean_tokens": tiny.pooling == "mean",
        "pooling_mode_cls_token": tiny.pooling == "cls",
        "pooling_mode_lasttoken": tiny.pooling == "last",
    }
    pooled = {"mean": lambda states: states.mean(0), "cls": lambda states: states[0], "last": lambda states: states[-1]}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    (target / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    vectors = []
    with torch.inference_mode():
        for text in TEXTS:
            states = model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0]
            vector = torch.nn.functional.normalize(pooled[tiny.pooling](states), dim=0)
            vectors.append([round(float(x), 6) for x in vector])
    return {"vectors": vectors}


def _reranker(tiny: Tiny, config: Any, target: Path) -> dict[str, Any]:
    """Save a random reranker. Return its scores of the other texts for the first one."""
    import torch
    import transformers

    encoder = tiny.architecture == "xlm-roberta"
    kind = transformers.AutoModelForSequenceClassification if encoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config).float().eval()
    _random(model, 0, config.vocab_size)
    model.save_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    query, *documents = TEXTS
    scores = []
    with torch.inference_mode():
        for document in documents:
            if encoder:
                logit = model(**tokenizer(query, document, return_tensors="pt")).logits[0, 0]
            else:
                asked = tokenizer(QWEN3_RERANKER.format(query=query, document=document), return_tensors="pt")
                last = model(asked.input_ids).logits[0, -1]
                yes, no = (last[tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
                logit = yes - no
            scores.append(round(float(torch.sigmoid(logit)), 6))
    return {"scores": scores}


# --- published names ------------------------------------------------------------------------------------------------


def _publish(tiny: Tiny, target: Path) -> None:
    """Replace the names of the class by the names in the published files."""
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | tiny.published
    config = {key: value for key, value in config.items() if value is not None or key not in tiny.published}
    if tiny.name == "internlm2":
        config.pop("head_dim", None)
        _as_internlm2(target, config)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _as_internlm2(target: Path, config: dict[str, Any]) -> None:
    """Rename and merge: InternLM2 is a Llama with other names, and q, k and v of a group in one matrix."""
    import torch
    from safetensors.torch import load_file, save_file

    file = target / "model.safetensors"
    tensors = load_file(file)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    names = {"model.embed_tokens.weight": "model.tok_embeddings.weight", "lm_head.weight": "output.weight"}
    made = {names.get(name, name): tensor for name, tensor in tensors.items() if ".layers." not in name}
    parts = {
        "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
    }  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        made |= {f"{layer}.{new}.weight": tensors[f"{layer}.{old}.weight"] for new, old in parts.items()}
        q, k, v = (tensors[f"{layer}.self_attn.{x}_proj.weight"].reshape(groups, -1, size, q_in) for x, q_in in
                   (("q", heads * size), ("k", heads * size), ("v", heads * size)))  # fmt: skip
        made[f"{layer}.attention.wqkv.weight"] = torch.cat([q, k, v], dim=1).reshape(-1, heads * size).contiguous()
    save_file(made, file, metadata={"format": "pt"})


def main() -> None:
    root, names = Path(sys.argv[1]), sys.argv[2:]
    for tiny in [BY_NAME[name] for name in names] or TINY:
        print(make(tiny, root / tiny.name))


if __name__ == "__main__":
    main()
