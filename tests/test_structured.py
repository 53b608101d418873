"""Structured answers: checked, repaired by rule, asked for once more, or returned with their errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from idle_engine import IdleEngine
from starlette.requests import Request as HttpRequest

from tourkit.errors import RequestError
from tourkit.generation import Constraint, Delta, Emit, Enforced, EngineInfo, Finish, Request, Submission
from tourkit.grammar.prepared import Prepared
from tourkit.grammar.trial.answers import judge
from tourkit.server.api.generation import complete
from tourkit.server.api.model import Model
from tourkit.server.api.replies import ChatReply, Choice
from tourkit.server.api.requests import Generate
from tourkit.server.api.structured import Checked, ask_again, checked
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 10}, "tags": {"type": "array", "uniqueItems": True}},
    "required": ["n"],
    "not": {"required": ["forbidden"]},
}


def choice(text: str, finish: Finish = Finish.STOP) -> Choice:
    return Choice(text, finish, None)


def check(choice: Choice, *, may_repair: bool = True) -> Checked:
    """Check an answer under SCHEMA, in this process."""
    return checked(choice, judge(json.dumps(SCHEMA), choice.text, may_repair=may_repair))


@pytest.mark.parametrize(
    ("text", "finish", "valid", "repaired", "says"),
    [
        ('{"n": 3}', Finish.STOP, True, False, ""),
        ('{"n": 3, "tags": ["a", "a"]}', Finish.STOP, True, True, ""),
        ('{"n": 99}', Finish.STOP, True, True, ""),
        ('{"n": 3, "forbidden": 1}', Finish.STOP, False, False, "not"),
        ("{}", Finish.STOP, False, False, "n"),
        ('{"n": ', Finish.LENGTH, False, False, "max_tokens"),
        ("hello", Finish.STOP, False, False, "not JSON"),
    ],
)
def test_an_answer_is_valid_or_repaired_by_rule_or_it_is_told_what_is_wrong(
    text: str, finish: Finish, valid: bool, repaired: bool, says: str
) -> None:
    outcome = check(choice(text, finish))

    assert (outcome.valid, bool(outcome.repaired)) == (valid, repaired)
    assert says in " ".join(outcome.errors)


def test_without_repair_the_text_is_left_as_it_was_streamed() -> None:
    outcome = check(choice('{"n": 99}'), may_repair=False)

    assert (outcome.choice.text, outcome.valid) == ('{"n": 99}', False)


def test_what_was_cut_off_is_not_worth_asking_again() -> None:
    assert not check(choice('{"n": ', Finish.LENGTH)).worth_asking_again
    assert check(choice("{}")).worth_asking_again


def test_asking_again_shows_the_answer_and_what_is_wrong_with_it() -> None:
    request = Request(messages=({"role": "user", "content": "Q"},), n=4)

    again = ask_again(request, check(choice("{}")))

    assert (again.n, again.tight) == (1, True)
    assert [turn["role"] for turn in again.messages or ()] == ["user", "assistant", "user"]
    assert "n" in (again.messages or ())[2]["content"]


class Canned(IdleEngine):
    """An Engine that answers from a list of texts, and records the requests."""

    info = EngineInfo("canned", 100, 1, 10)

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)
        self.asked: list[Request] = []

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        self.asked.append(request)
        for index in range(request.n):
            emit(Delta(index, self._texts.pop(0), 5, Finish.STOP))
        return Submission(len(self.asked), 7, Enforced("relaxed", ("/not",)))


def answer_of(engine: Canned, n: int = 1, **kind: Any) -> dict[str, Any]:
    """Return the reply of `complete`."""

    async def never() -> Any:
        await asyncio.Event().wait()

    request = Request(n=n, constraint=Constraint.json_schema(SCHEMA), **kind)
    asked = Generate(model="tool", request=request, stream=False)
    http = HttpRequest({"type": "http", "headers": []}, receive=never)
    response = asyncio.run(complete(Model(engine), asked, ChatReply("id", 0, "tool"), http))
    assert response.headers["x-tourkit-constraint"] == "relaxed"
    return dict(json.loads(response.body))


CHAT: dict[str, Any] = {"messages": ({"role": "user", "content": "Q"},)}


def test_an_answer_that_breaks_the_schema_is_asked_for_once_more_and_the_better_one_given() -> None:
    engine = Canned('{"n": 1, "forbidden": 1}', '{"n": 2}')

    answer = answer_of(engine, **CHAT)

    assert answer["choices"][0]["message"]["content"] == '{"n": 2}'
    assert answer["tourkit"] == {
        "constraint": "relaxed",
        "dropped": ["/not"],
        "choices": [{"index": 0, "valid": True, "repaired": [], "retried": True, "errors": []}],
    }
    details = answer["usage"].pop("prompt_tokens_details")
    assert answer["usage"] == {"prompt_tokens": 14, "completion_tokens": 10, "total_tokens": 24}
    assert details == {"cached_tokens": 0}


def test_an_answer_that_cannot_be_asked_for_again_is_given_out_as_what_it_is() -> None:
    """For example, the conversation with this answer is too long for the context."""

    class Full(Canned):
        def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
            if self.asked:
                raise RequestError("does not fit a context of 100")
            return super().submit(request, emit)

    answer = answer_of(Full('{"n": 1, "forbidden": 1}'), **CHAT)
    outcome = answer["tourkit"]["choices"][0]

    assert (outcome["valid"], outcome["retried"]) == (False, False)
    assert answer["choices"][0]["message"]["content"] == '{"n": 1, "forbidden": 1}'


def test_a_fault_of_ours_is_answered_as_json_and_ends_no_connection() -> None:
    """If the error reached uvicorn, it would close a connection that the gateway keeps for the next request."""

    class Faulty(Canned):
        def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
            raise OverflowError("too large")

    sent: list[Any] = []
    body = json.dumps({"model": "tool", "messages": [{"role": "user", "content": "Q"}]}).encode()
    headers = [(SECRET_HEADER.encode(), b"secret")]
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ModelServer(Faulty(), "secret").app()(scope, receive, send))

    assert sent[0]["status"] == 500
    assert "OverflowError: too large" in json.loads(sent[1]["body"])["error"]["message"]


def test_an_answer_that_stays_wrong_is_never_called_valid() -> None:
    engine = Canned('{"n": 1, "forbidden": 1}', '{"n": 2, "forbidden": 2}')

    answer = answer_of(engine, **CHAT)
    outcome = answer["tourkit"]["choices"][0]

    assert len(engine.asked) == 2
    assert (outcome["valid"], outcome["retried"]) == (False, True)
    assert outcome["errors"]
    assert answer["choices"][0]["message"]["content"] == '{"n": 1, "forbidden": 1}'


def test_only_the_samples_that_are_wrong_are_asked_for_again() -> None:
    engine = Canned('{"n": 1}', "{}", '{"n": 99}', '{"n": 7}')

    answer = answer_of(engine, n=3, **CHAT)

    assert [json.loads(each["message"]["content"])["n"] for each in answer["choices"]] == [1, 7, 10]
    assert [each["retried"] for each in answer["tourkit"]["choices"]] == [False, True, False]
    assert len(engine.asked) == 2


def test_a_plain_prompt_is_not_asked_again_because_there_is_no_conversation_to_go_on_with() -> None:
    engine = Canned("{}")

    answer = answer_of(engine, prompt="Q")

    assert len(engine.asked) == 1
    assert answer["tourkit"]["choices"][0]["valid"] is False
