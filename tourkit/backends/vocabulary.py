"""The vocabulary of a model folder as Hugging Face lays it out: tokens, their bytes, what ends an answer, the template.

Read from tokenizer.json by the `tokenizers` package, as llama.cpp reads the same facts from a GGUF, so that a model has
the same tokens on every stack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tourkit.errors import LocalError

# What llama.cpp takes for the end of an answer whatever the configuration says: some forget to.
_ENDS = set(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|eom_id|> <EOT> _<EOT> [EOT] "
    "<|end_of_text|> <end_of_utterance>".split()
)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class Vocabulary:
    """Tokens of one model. `n_vocab`: how many logits it gives; ids above them do not count.

    `source`: a tokenizer's JSON where the folder has no tokenizer.json. Raises LocalError when a file is no good.
    """

    def __init__(self, folder: Path, n_vocab: int, source: str | None = None) -> None:
        self.n_vocab = n_vocab
        self._folder = folder
        self._config = read_json(folder / "tokenizer_config.json")
        tokenizer = _known(_whole(_parsed(folder, source), self._config), n_vocab)
        self._source = json.dumps(tokenizer)
        self._plain, self._special = self._tokenizer(), self._tokenizer()
        self._plain.encode_special_tokens = True  # here, <|end|> in a text is only text
        self._kind = _kind(tokenizer, folder)
        self._added: dict[int, Any] = self._special.get_added_tokens_decoder()
        self._pieces = self._all_pieces()
        self.special_tokens = {name: self._special_text(name) for name in ("bos_token", "eos_token")}
        self.eog = self._ends()
        self._prefix = self._bos()
        self.chat_template = self._template()

    @property
    def adds_bos(self) -> bool:
        return bool(self._prefix)

    @property
    def starts_with_space(self) -> bool:
        """True for SentencePiece vocabularies, whose answers naturally begin with a space."""
        return self._kind == "sentencepiece"

    @property
    def n_known(self) -> int:
        """Ids from here up are padding of the weights: no text has them."""
        return len(self._pieces)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokenizer = self._special if parse_special else self._plain
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *ids] if add_special else list(ids)

    def piece(self, token: int) -> bytes:
        """The bytes of a token as text; empty for control tokens and padding."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def grammar_tokenizer(self) -> Any:
        """llguidance's view of this vocabulary; about a second for 128k tokens, so made once."""
        from llguidance import LLTokenizer

        return LLTokenizer(self._source, n_vocab=self.n_vocab, eos_token=sorted(self.eog))

    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self._source)
        except Exception as exc:  # tokenizers raises nothing narrower
            raise LocalError(
                f"{self._folder / 'tokenizer.json'}: not a tokenizer ({exc}): run `tourkit verify`"
            ) from exc

    def _all_pieces(self) -> list[bytes]:
        texts = {id_: text for text, id_ in self._special.get_vocab(with_added_tokens=True).items()}
        count = max(texts) + 1
        if count > self.n_vocab:
            raise LocalError(
                f"{self._folder}: the tokenizer has {count} tokens, the model {self.n_vocab}: they are not of one model"
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
        """bos_token or eos_token as text, from tokenizer_config.json or, by id, from config.json."""
        for config in (self._config, read_json(self._folder / "special_tokens_map.json")):
            value = config.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                return text
        ids = _ids(read_json(self._folder / "config.json").get(f"{name}_id"))
        return str(self._special.id_to_token(ids[0]) or "") if ids else ""

    def _ends(self) -> frozenset[int]:
        """Every end-of-generation token: those the folder's files name, and those that can be nothing else."""
        genai = read_json(self._folder / "genai_config.json").get("model", {})
        files = [read_json(self._folder / name) for name in ("generation_config.json", "config.json")]
        found = {token for config in (*files, genai) for token in _ids(config.get("eos_token_id"))}
        eos = self._special.token_to_id(self.special_tokens["eos_token"])
        found |= {eos} if eos is not None else set()
        found |= {id_ for id_, added in self._added.items() if added.content in _ENDS}
        return frozenset(token for token in found if token < self.n_vocab)

    def _bos(self) -> list[int]:
        """What every prompt begins with: tokenizer_config.json says it, else the tokenizer's own post-processor."""
        bos = self._special.token_to_id(self.special_tokens["bos_token"])
        wanted = self._config.get("add_bos_token")
        if isinstance(wanted, bool):
            return [bos] if wanted and bos is not None else []
        bare, dressed = (self._special.encode("a", add_special_tokens=special).ids for special in (False, True))
        return list(dressed[: dressed.index(bare[0])]) if bare and bare[0] in dressed else []

    def _template(self) -> str | None:
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = read_json(self._folder / "chat_template.json").get("chat_template", self._config.get("chat_template"))
        if isinstance(found, list):  # several by name
            found = {each.get("name"): each.get("template") for each in found}.get("default")
        return found if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file. Raises LocalError when it is something else."""
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
        raise LocalError(f"{folder}: no tokenizer.json: this stack needs one beside the weights")
    return read_json(path)


def _whole(tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with the added tokens that only tokenizer_config.json has."""
    added = list(tokenizer.get("added_tokens") or [])
    there = {token["id"] for token in added}
    more = {int(id_): about for id_, about in (config.get("added_tokens_decoder") or {}).items()}
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added += [usual | about | {"id": id_} for id_, about in more.items() if id_ not in there]
    # Prompts are neither cut nor padded, whatever the tokenizer was saved with.
    return tokenizer | {"added_tokens": sorted(added, key=_id), "truncation": None, "padding": None}


def _known(tokenizer: dict[str, Any], n_vocab: int) -> dict[str, Any]:
    """The tokenizer without added tokens that the model has no logits for: some fine-tunes carry one for padding."""
    return tokenizer | {"added_tokens": [token for token in tokenizer["added_tokens"] if token["id"] < n_vocab]}


def _id(token: dict[str, Any]) -> int:
    return int(token["id"])


def _ids(value: Any) -> list[int]:
    """Token ids as configurations write them: one, several, or none."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]


def _kind(tokenizer: dict[str, Any], folder: Path) -> str:
    """ "bytes" when tokens are spelt in GPT-2's alphabet, "sentencepiece" when a space is U+2581."""
    decoder = json.dumps(tokenizer.get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return "bytes"
    if _SPACE in decoder or '"Metaspace"' in decoder:
        return "sentencepiece"
    raise LocalError(f"{folder}: tokenizer.json is of a kind that is not known here: use the GGUF of this model")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's byte-to-character table: printable bytes stand for themselves, the rest for U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table
