"""instructor: each mode, async, parallel calls, streams of partial objects and of lists, errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import instructor
import openai
from instructor import Mode
from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel, ConfigDict, ValidationError
from tour import KEY, MODEL, NOBODY, QUESTION, URL, check, raised, run

USER: Any = [{"role": "user", "content": QUESTION}]


class Trip(BaseModel):
    """A trip."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Paris"]
    days: int


class Stay(BaseModel):
    """A stay in a hotel."""

    model_config = ConfigDict(extra="forbid")
    hotel: Literal["Ritz", "Astor"]


def ask(mode: Mode, kind: Any = Trip, **fields: Any) -> Any:
    """Return what a mode makes of an answer. The first answer counts: instructor does not ask again."""
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=mode)
    body = {"model": MODEL, "messages": USER, "max_tokens": 120, "temperature": 0, "max_retries": 0} | fields
    return client.chat.completions.create(response_model=kind, **body)


def enforced(mode: Mode, **fields: Any) -> None:
    """The server enforces the schema in this mode."""
    assert isinstance(ask(mode, **fields), Trip)


def asked_for(mode: Mode) -> str:
    """In this mode the schema is a text in the prompt. A small model may not follow it; then instructor says so."""
    try:
        enforced(mode)
    except InstructorRetryException as error:
        assert "validation error" in str(error), error
        return "the prompt alone has the schema, and the model did not follow it: InstructorRetryException"
    except IncompleteOutputException:
        return "the prompt alone has the schema, and the model wrote up to max_tokens: IncompleteOutputException"
    return ""


@check
def chat() -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0))
    answer = client.chat.completions.create(response_model=None, model=MODEL, messages=USER, max_tokens=24)
    assert answer.choices[0].message.content


@check
def mode_tools() -> None:
    enforced(Mode.TOOLS)


@check
def mode_tools_strict() -> None:
    enforced(Mode.TOOLS_STRICT)


@check
def mode_functions() -> None:
    enforced(Mode.FUNCTIONS)


@check
def mode_json_schema() -> None:
    enforced(Mode.JSON_SCHEMA)


@check
def mode_json() -> str:
    return asked_for(Mode.JSON)


@check
def mode_markdown_json() -> str:
    return asked_for(Mode.MD_JSON)


@check
def mode_parallel_tools() -> str:
    """It sends `tool_choice: auto`, so a small model may answer without a call."""
    try:
        found = list(ask(Mode.PARALLEL_TOOLS, Iterable[Trip | Stay]))
    except (InstructorRetryException, TypeError) as error:
        return f"the model called nothing; instructor raised {type(error).__name__}"
    assert all(isinstance(each, Trip | Stay) for each in found)
    return f"{len(found)} calls"


@check
def mode_responses_tools() -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=Mode.RESPONSES_TOOLS)
    found = client.responses.create(
        response_model=Trip, model=MODEL, input=QUESTION, max_output_tokens=120, max_retries=0
    )
    assert isinstance(found, Trip)


@check
def provider_by_name() -> None:
    client = instructor.from_provider(f"openai/{MODEL}", base_url=URL, api_key=KEY)
    assert isinstance(client.create(response_model=Trip, messages=USER, max_tokens=120), Trip)


@check
async def chat_async() -> None:
    client = instructor.from_openai(openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0))
    assert isinstance(
        await client.chat.completions.create(response_model=Trip, model=MODEL, messages=USER, max_tokens=120), Trip
    )


@check
def simple_types() -> None:
    assert type(ask(Mode.TOOLS, int)) is int
    assert ask(Mode.TOOLS, Literal["yes", "no"]) in ("yes", "no")
    assert ask(Mode.JSON_SCHEMA, Literal["yes", "no"]) in ("yes", "no")


@check
def stream_partial() -> None:
    for mode in (Mode.TOOLS, Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=mode)
        pieces = list(
            client.chat.completions.create_partial(response_model=Trip, model=MODEL, messages=USER, max_tokens=120)
        )
        assert pieces[-1].city in ("Oslo", "Paris"), pieces


@check
def stream_list() -> str:
    """The schema that instructor makes for a list requires nothing, so a small model may write another object."""
    notes = []
    for mode in (Mode.TOOLS, Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=mode)
        found = client.chat.completions.create_iterable(
            response_model=Trip, model=MODEL, messages=USER, max_tokens=200, temperature=0
        )
        try:
            trips = list(found)
        except ValidationError:
            notes.append(f"{mode.name}: another object than the list")
            continue
        assert all(isinstance(trip, Trip) for trip in trips)
        notes.append(f"{mode.name}: {len(trips)} objects")
    return ", ".join(notes)


@check
def errors() -> None:
    raised(InstructorRetryException, lambda: ask(Mode.TOOLS, model=NOBODY), NOBODY)
    raised(InstructorRetryException, lambda: ask(Mode.TOOLS, temperature=9), "temperature")


run()
