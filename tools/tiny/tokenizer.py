"""Train the byte-level BPE tokenizer on the generated text: `python -m tools.tiny.tokenizer DIR`.

The pre-tokens are GPT-2's, so llama.cpp splits text the same way. Two rules make copying easy for a small model: digits
are never merged, and a space is never merged with a capital letter. So a name has the same tokens after a space and
after a quotation mark. The bytes of Cyrillic letters are merged first.
"""

import argparse
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from tools.tiny import prompts
from tools.tiny.tasks import pieces, sample
from tourkit.backends.vocabulary import byte_alphabet

VOCABULARY = 2048
SAMPLES = 6000
SEED = 7
_CYRILLIC = "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюяЁё№«»—₽"


def split_words(texts: list[str]) -> Counter[str]:
    """Count the pre-tokens. Spaces before capitals and digits are cut off; digits are left out."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    counts: Counter[str] = Counter()
    for text in texts:
        for _, (start, end) in level.pre_tokenize_str(text):
            word = text[start:end]
            if word.startswith(" ") and (word[1:2].isupper() or word[1:2].isdigit()):
                word = word[1:]
            if word and not word[0].isdigit():
                counts[word] += 1
    return counts


def train(texts: list[str], vocabulary: int = VOCABULARY) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the vocabulary and the merges, in order. Ties are broken by the text, so the result is always the same."""
    table = byte_alphabet()
    tokens = [*prompts.SPECIAL_TOKENS, *(table[byte] for byte in range(256))]
    merges: list[tuple[str, str]] = []
    letters: dict[str, str] = {}
    for letter in _CYRILLIC:
        encoded = [table[byte] for byte in letter.encode()]
        whole = encoded[0]
        for byte in encoded[1:]:
            if whole + byte not in tokens:
                merges.append((whole, byte))
                tokens.append(whole + byte)
            whole += byte
        letters[letter] = whole
    counted = split_words(texts)
    words = [[letters.get(c, "") or c for c in word] for word in sorted(counted)]
    words = [[s for c in w for s in ([c] if c in tokens else [table[b] for b in c.encode()])] for w in words]
    counts = [counted[word] for word in sorted(counted)]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += counts[index]
            where[pair].add(index)
    while len(tokens) < vocabulary and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        tokens.append(best[0] + best[1])
        for index in sorted(where.pop(best)):
            word = words[index]
            for pair in pairwise(word):
                pairs[pair] -= counts[index]
                if pair in where:
                    where[pair].discard(index)
            words[index] = word = _merged(word, best)
            for pair in pairwise(word):
                pairs[pair] += counts[index]
                where[pair].add(index)
        pairs.pop(best, None)
    return tokens, merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
            result.append(word[at] + word[at + 1])
            at += 2
        else:
            result.append(word[at])
            at += 1
    return result


def save(folder: Path, tokens: list[str], merges: list[tuple[str, str]]) -> None:
    """Write tokenizer.json and its config for transformers and onnxruntime-genai."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in prompts.SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|begin|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": prompts.CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    args = parser.parse_args()
    texts = [text for i in range(args.samples) for text, _ in pieces(sample(SEED, i).messages)]
    save(args.folder, *train(texts, args.vocabulary))


if __name__ == "__main__":
    main()
