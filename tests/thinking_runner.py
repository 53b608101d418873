"""A stand-in for a model that thinks: it writes what a script says, in tokens of one byte and control tokens.

Where tokens were forced on it, it goes on behind them with the content of its script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fake_runner import EOG, FakeRunner

from tourkit.backends.control_tokens import ControlTokens

TURN = "[answer]"  # how every prompt ends, before anything that begins the answer
_CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + TURN
_OFF = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
# Short templates in the forms of the families.
TEMPLATES = {
    "think": _CHAT + _OFF + "{% endif %}",
    "think, begun in the prompt": _CHAT + _OFF + "{% else %}<think>\n{% endif %}",
    "granite": "{% if thinking %}Use <think></think> and <response></response>.{% endif %}" + _CHAT,
    "mistral": "Draft in [THINK]your thoughts[/THINK], then answer." + _CHAT,
    "gemma-4": "{% if enable_thinking %}<|think|>\n{% endif %}"
    + _CHAT
    + "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}",
    "gpt-oss": "{# <|channel|>final<|message|> #}Reasoning: {{ reasoning_effort | default('medium') }}\n" + _CHAT,
    "none": _CHAT,
}
CONTROL = ("<|think|>", "<|channel>", "<channel|>", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|end|>")
CONTROL = (*CONTROL, "<|start|>", "<|return|>")


@dataclass(frozen=True, slots=True)
class Script:
    """What the model writes. `answer`: its whole answer, after the prompt's `TURN`. `content`: the last part of it."""

    answer: str
    content: str
    close: str  # the last marker before the content

    def following(self, written: bytes) -> bytes:
        """Return what the model writes next."""
        answer, content = self.answer.encode(), self.content.encode()
        if answer.startswith(written):
            return answer[len(written) :]
        said = written.rpartition(self.close.encode())[2].lstrip(b"\n")
        return content[len(said) :] if content.startswith(said) else b""


class ThinkingRunner(FakeRunner):
    """A TextRunner with a vocabulary of bytes and control tokens. `family`: the name of its template.

    `template`: used instead. `control`: the control tokens.
    """

    special_tokens = {"bos_token": "", "eos_token": ""}  # noqa: RUF012 - as in Tokenizer
    adds_bos = starts_with_space = False
    longest_piece = 40
    context = 4096

    def __init__(
        self,
        family: str,
        script: Script,
        *,
        template: str = "",
        control: tuple[str, ...] = CONTROL,
        **shape: Any,
    ) -> None:
        super().__init__(n_ctx=8192, next_token=self._next, **shape)
        self.n_vocab = EOG + 1 + len(control)
        self.chat_template = template or TEMPLATES[family]
        self._control = control
        self._ids = {text: EOG + 1 + at for at, text in enumerate(control)}
        self._spelled = [*(self.piece(token) for token in range(EOG + 1)), *(text.encode() for text in control)]
        self.control_tokens = ControlTokens(self._ids)
        self._script = script

    def _next(self, history: tuple[int, ...]) -> int:
        return self._token(self._script.following(self.spell(history).rpartition(TURN.encode())[2]))

    def _token(self, following: bytes) -> int:
        """Return the token that a text begins with."""
        control = next((id_ for text, id_ in self._ids.items() if following.startswith(text.encode())), None)
        return control if control is not None else following[0] if following else EOG

    def following(self, tokens: Sequence[int]) -> int:
        """Return the token that the model writes next."""
        return self._next(tuple(tokens))

    def spell(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens, with that of control tokens."""
        return b"".join(map(self._spelled.__getitem__, tokens))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self.tokenize_parts(self.control_tokens.parts(text, "") if parse_special else [text], add_special=False)

    def tokenize_parts(self, parts: Sequence[str | int], *, add_special: bool) -> list[int]:
        return [token for part in parts for token in ([part] if isinstance(part, int) else part.encode())]

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < EOG else b""

    def grammar_tokenizer(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        control = [b"\xff" + text.encode() for text in ("<eog>", *self._control)]

        class Bytes:
            eos_token_id, bos_token_id = EOG, None
            tokens = (*(bytes([byte]) for byte in range(EOG)), *control)
            special_token_ids = tuple(range(EOG, EOG + len(control)))

            def __call__(self, text: bytes) -> list[int]:
                return list(text)

        return LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=self.n_vocab, eos_token=[EOG])
