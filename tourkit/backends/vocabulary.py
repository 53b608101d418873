"""The vocabulary of a model folder in Hugging Face's layout: tokens, their bytes, end tokens, chat template.

The `tokenizers` package reads tokenizer.json. llama.cpp reads the same facts from a GGUF. So a model has the same
tokens on every stack.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tourkit.backends.control_tokens import ControlTokens, is_marker
from tourkit.errors import LocalError

# Tokens that always end an answer, as in llama.cpp: some configurations do not list their end tokens. Those between the
# files of a code repository are not in an answer, so they end it too.
_ENDS = set(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|eom_id|> <EOT> _<EOT> [EOT] "
    "<|end_of_text|> <end_of_utterance> "
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> "
    "<|file_sep|>".split()
)
_HARMONY = {"<|return|>", "<|call|>", "<|end|>"}  # together only in gpt-oss
_SECRET = 8  # characters of a secret, each of 16 bits
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class Vocabulary:
    """The tokens of one model. `n_vocab`: how many logits the model gives; added tokens with higher ids are left out.

    `source`: a tokenizer's JSON; given if the folder has no tokenizer.json. Raises LocalError if a file is invalid.
    """

    def __init__(self, folder: Path, n_vocab: int, source: str | None = None) -> None:
        self.n_vocab = n_vocab
        self._folder = folder
        self._config = read_json(folder / "tokenizer_config.json")
        tokenizer = _known(_whole(_parsed(folder, source), self._config), n_vocab)
        self._source = json.dumps(tokenizer)
        self._plain, self._special = self._tokenizer(self._source), self._tokenizer(self._source)
        self._plain.encode_special_tokens = True  # so <|end|> in a text is plain text
        self._guarded: Any = None
        self._lock = threading.Lock()
        self._kind = _kind(tokenizer, folder)
        self._added: dict[int, Any] = self._special.get_added_tokens_decoder()
        self._pieces = self._all_pieces()
        self.special_tokens = {name: self._special_text(name) for name in ("bos_token", "eos_token")}
        self.eog = self._ends()
        self.control_tokens = ControlTokens(
            {
                added.content: id_
                for id_, added in self._added.items()
                if added.special or id_ in self.eog or is_marker(added.content)
            }
        )
        self._prefix = self._bos()
        self.chat_template = self._template()

    @property
    def adds_bos(self) -> bool:
        return bool(self._prefix)

    @property
    def starts_with_space(self) -> bool:
        """True for SentencePiece vocabularies: their answers normally begin with a space."""
        return self._kind == "sentencepiece"

    @property
    def n_known(self) -> int:
        """The first id that is padding of the weights: this id and higher ones occur in no text."""
        return len(self._pieces)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokenizer = self._special if parse_special else self._plain
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *ids] if add_special else list(ids)

    def tokenize_parts(self, parts: Sequence[str | int], *, add_special: bool) -> list[int]:
        """Return the tokens of texts and control tokens in order, as `tokenize` does with `parse_special`.

        Control tokens that a text spells are text. The first call reads the tokenizer once more.
        """
        with self._lock:
            if self._guarded is None:
                self._guarded, self._names, self._ids = self._guard()
        text = "".join(self._names[part] if isinstance(part, int) else part for part in parts)
        ids = (self._ids.get(token, token) for token in self._guarded.encode(text, add_special_tokens=False).ids)
        return [*self._prefix, *ids] if add_special else list(ids)

    def _guard(self) -> tuple[Any, dict[int, str], dict[int, int]]:
        """Make the tokenizer of `tokenize_parts`, in which each control token has a name that nobody can guess.

        Return it, the names by the tokens' ids, and the ids that it gives to these tokens → their own.
        """
        secret = "".join(chr(0xF0000 + secrets.randbelow(0xFFFD)) for _ in range(_SECRET))
        names = {text: secret + text for text in self.control_tokens.ids}
        tokenizer = json.loads(self._source)
        tokenizer["model"] = _renamed(tokenizer["model"], names)
        for added in tokenizer["added_tokens"]:
            if added["content"] in names:
                added |= {"content": names[added["content"]], "normalized": False, "special": True}
        made = self._tokenizer(json.dumps(tokenizer))
        ids = {made.token_to_id(names.get(added.content, added.content)): id_ for id_, added in self._added.items()}
        return made, {id_: names[text] for text, id_ in self.control_tokens.ids.items()}, ids

    @cached_property
    def longest_piece(self) -> int:
        """Bytes of the longest token, control tokens included."""
        return max(
            max(map(len, self._pieces)), max((len(text.encode()) for text in self.control_tokens.ids), default=0)
        )

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token's text; empty for control tokens and padding."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def grammar_tokenizer(self) -> Any:
        """Make llguidance's tokenizer of this vocabulary. It takes about a second for 128k tokens: call it once."""
        from llguidance import LLTokenizer

        return LLTokenizer(self._source, n_vocab=self.n_vocab, eos_token=sorted(self.eog))

    def _tokenizer(self, source: str) -> Any:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(source)
        except Exception as exc:  # tokenizers raises nothing narrower
            raise LocalError(
                f"{self._folder / 'tokenizer.json'}: not a tokenizer ({exc}): run `tourkit verify`"
            ) from exc

    def _all_pieces(self) -> list[bytes]:
        texts = {id_: text for text, id_ in self._special.get_vocab(with_added_tokens=True).items()}
        count = max(texts) + 1
        if count > self.n_vocab:
            raise LocalError(
                f"{self._folder}: the tokenizer has {count} tokens but the model has {self.n_vocab}: "
                "they do not belong together"
            )
        alphabet = {char: byte for byte, char in byte_alphabet().items()}
        return [self._piece(id_, texts.get(id_, ""), alphabet) for id_ in range(count)]

    def _piece(self, id_: int, text: str, alphabet: dict[str, int]) -> bytes:
        added = self._added.get(id_)
        if added is not None:
            return b"" if added.special else added.content.encode()
        if self._kind == "bytes":
            return bytes(alphabet[char] for char in text) if all(c in alphabet for c in text) else text.encode()
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace(_SPACE, " ").encode()

    def _special_text(self, name: str) -> str:
        """Return bos_token or eos_token as text: named in tokenizer_config.json, or given by id in config.json."""
        for config in (self._config, read_json(self._folder / "special_tokens_map.json")):
            value = config.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                return text
        ids = _ids(read_json(self._folder / "config.json").get(f"{name}_id"))
        return str(self._special.id_to_token(ids[0]) or "") if ids else ""

    def _ends(self) -> frozenset[int]:
        """Return every end-of-generation token: those named in the folder's files, and those in _ENDS."""
        genai = read_json(self._folder / "genai_config.json").get("model", {})
        files = [read_json(self._folder / name) for name in ("generation_config.json", "config.json")]
        found = {token for config in (*files, genai) for token in _ids(config.get("eos_token_id"))}
        eos = self._special.token_to_id(self.special_tokens["eos_token"])
        found |= {eos} if eos is not None else set()
        ends = _ENDS
        if {added.content for added in self._added.values()} >= _HARMONY:
            ends = ends - {"<|end|>"}  # in gpt-oss it ends a message of the answer, and another message follows
        found |= {id_ for id_, added in self._added.items() if added.content in ends}
        return frozenset(token for token in found if token < self.n_vocab)

    def _bos(self) -> list[int]:
        """Return the first tokens of every prompt, from tokenizer_config.json or the tokenizer's post-processor."""
        bos = self._special.token_to_id(self.special_tokens["bos_token"])
        wanted = self._config.get("add_bos_token")
        if isinstance(wanted, bool):
            return [bos] if wanted and bos is not None else []
        plain, marked = (self._special.encode("a", add_special_tokens=special).ids for special in (False, True))
        return list(marked[: marked.index(plain[0])]) if plain and plain[0] in marked else []

    def _template(self) -> str | None:
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8")
            except UnicodeDecodeError as exc:
                raise LocalError(f"{file}: not UTF-8 text: run `tourkit verify` on the bundle") from exc
        found = read_json(self._folder / "chat_template.json").get("chat_template", self._config.get("chat_template"))
        if isinstance(found, list):  # several templates with names
            found = {each.get("name"): each.get("template") for each in found}.get("default")
        return found if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if the file does not exist. Raises LocalError if it is something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise LocalError(f"{path}: not JSON ({exc}): run `tourkit verify` on the bundle") from exc
    if not isinstance(value, dict):
        raise LocalError(f"{path}: not a JSON object: run `tourkit verify` on the bundle")
    return value


def _parsed(folder: Path, source: str | None) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if source is not None:
        return dict(json.loads(source))
    if not path.is_file():
        raise LocalError(f"{folder}: no tokenizer.json: this stack needs one next to the weights")
    return read_json(path)


def _whole(tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer with the added tokens that only tokenizer_config.json has."""
    added = list(tokenizer.get("added_tokens") or [])
    there = {token["id"] for token in added}
    more = {int(id_): about for id_, about in (config.get("added_tokens_decoder") or {}).items()}
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added += [usual | about | {"id": id_} for id_, about in more.items() if id_ not in there]
    # Prompts must never be truncated or padded, even if the tokenizer was saved with these settings.
    return tokenizer | {"added_tokens": sorted(added, key=_id), "truncation": None, "padding": None}


def _known(tokenizer: dict[str, Any], n_vocab: int) -> dict[str, Any]:
    """Return the tokenizer without added tokens that have no logits. Some fine-tunes have one for padding."""
    return tokenizer | {"added_tokens": [token for token in tokenizer["added_tokens"] if token["id"] < n_vocab]}


def _renamed(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a tokenizer's model with other names for its control tokens, so that no text can become one of them."""
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # pieces of a unigram model, with their scores
        return model | {"vocab": [[names.get(text, text), score] for text, score in vocab]}
    if not isinstance(vocab, dict):
        return model
    unknown = model.get("unk_token")
    merges = [merge for merge in model.get("merges") or () if not _is_named(merge, names)]
    return model | {
        "vocab": {names.get(text, text): id_ for text, id_ in vocab.items()},
        "unk_token": names.get(unknown, unknown) if unknown else unknown,
        **({"merges": merges} if "merges" in model else {}),
    }


def _is_named(merge: str | list[str], names: dict[str, str]) -> bool:
    """Whether a merge makes or takes one of the named tokens."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _id(token: dict[str, Any]) -> int:
    return int(token["id"])


def _ids(value: Any) -> list[int]:
    """Return the token ids in a configuration's value: a number, a list, or nothing."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]


def _kind(tokenizer: dict[str, Any], folder: Path) -> str:
    """Return "bytes" if tokens are written in GPT-2's byte alphabet, "sentencepiece" if a space is U+2581."""
    decoder = json.dumps(tokenizer.get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return "bytes"
    if _SPACE in decoder or '"Metaspace"' in decoder:
        return "sentencepiece"
    raise LocalError(f"{folder}: tokenizer.json has an unsupported kind of tokenizer: use the GGUF of this model")


def byte_alphabet() -> dict[int, str]:
    """Return GPT-2's byte-to-character table: printable bytes map to themselves, the others to U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table
