"""Chat templates: what they render, and what a hostile template cannot do."""

from __future__ import annotations

import pytest

from tourkit.backends.chat_template import ChatTemplate
from tourkit.errors import EngineError, RequestError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "Привет <b>"}]


def test_messages_special_tokens_and_the_assistants_turn_are_rendered() -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    source = "{{ bos_token }}" + turns + "{% if add_generation_prompt %}>{% endif %}"

    assert ChatTemplate(source, TOKENS).render(HELLO) == "<s>[user]Привет <b></s>>"


def test_blocks_leave_no_blank_lines() -> None:
    source = "{% for m in messages %}\n    {{ m.content }}\n{% endfor %}\nend"

    assert ChatTemplate(source, {}).render(HELLO) == "    Привет <b>\nend"


def test_json_is_written_as_the_model_was_trained_on_it() -> None:
    assert ChatTemplate("{{ messages | tojson }}", {}).render(HELLO) == '[{"role": "user", "content": "Привет <b>"}]'


def test_loops_may_break() -> None:
    assert ChatTemplate("{% for i in [1, 2, 3] %}{{ i }}{% break %}{% endfor %}", {}).render(HELLO) == "1"


def test_a_template_that_refuses_is_the_callers_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})

    with pytest.raises(RequestError, match="roles must alternate"):
        template.render(HELLO)


def test_a_template_that_is_not_jinja_is_the_models_error() -> None:
    with pytest.raises(EngineError, match="line 2"):
        ChatTemplate("fine\n{% for %}", {})


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append('more') }}",
        "{{ messages[0].update(role='system') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_hostile_template_reaches_nothing(attack: str) -> None:
    """Weights are downloaded, so their template is code that must not be trusted."""
    messages = [dict(HELLO[0])]
    template = ChatTemplate(attack + "|", {})

    try:
        rendered = template.render(messages)
    except RequestError:
        rendered = "|"

    assert rendered == "|"  # the sandbox makes the attribute undefined or refuses it
    assert messages == HELLO
