"""DSPy: each adapter, chain of thought, ReAct with a tool, streams, several answers, and errors.

DSPy sends schemas and tools only if it knows that the model takes them. For a model that is not in its list, a program
says so with `register_provider`.
"""

from __future__ import annotations

from typing import Any, Literal

import dspy
from dspy.lm15 import AccessPolicy, ModelSupport, OpenAIChatCompat, ProviderDefinition, register_provider
from dspy.utils.exceptions import AdapterParseError
from tour import KEY, MODEL, NOBODY, QUESTION, URL, check, embedder, raised, run, weather

register_provider(
    ProviderDefinition.chat(AccessPolicy("local", base_url=URL), compat=OpenAIChatCompat.preset("vllm")),
    supports=ModelSupport(function_calling=True, response_schema=True),
)


def model(name: str = MODEL, provider: str = "local", **fields: Any) -> dspy.LM:
    own: Any = {"api_base": URL, "api_key": KEY, "temperature": 0, "max_tokens": 80, "cache": False, "num_retries": 0}
    return dspy.LM(f"{provider}/{name}", **own | fields)


class Trip(dspy.Signature):
    """Name the city, and for how many days to stay."""

    question: str = dspy.InputField()
    city: Literal["Oslo", "Paris"] = dspy.OutputField()
    days: int = dspy.OutputField()


def predict(adapter: Any, signature: Any = Trip, **fields: Any) -> Any:
    with dspy.context(lm=model(**fields), adapter=adapter):
        return dspy.Predict(signature)(question=QUESTION)


@check
def chat() -> None:
    assert model()(QUESTION)[0]
    assert model(provider="openai")(QUESTION)[0]


@check
def structured_json_adapter() -> None:
    """This adapter sends the schema as `response_format`."""
    found = predict(dspy.JSONAdapter())
    assert found.city in ("Oslo", "Paris"), found
    assert type(found.days) is int


@check
def structured_chat_adapter() -> str:
    """This adapter wants headings such as [[ ## city ## ]]. If the model does not write them, it turns to JSON."""
    found = predict(dspy.ChatAdapter())
    assert found.city in ("Oslo", "Paris"), found
    return ""


@check
def structured_xml_adapter() -> str:
    try:
        assert predict(dspy.XMLAdapter()).city in ("Oslo", "Paris")
    except AdapterParseError:
        return "the prompt alone has the form, and the model did not follow it: AdapterParseError"
    return ""


@check
def chain_of_thought() -> None:
    with dspy.context(lm=model(max_tokens=200), adapter=dspy.JSONAdapter()):
        assert dspy.ChainOfThought(Trip)(question=QUESTION).city in ("Oslo", "Paris")


@check
def several_answers() -> None:
    assert len(model(n=3, temperature=1.0)(QUESTION)) == 3


@check
def stream() -> None:
    with dspy.context(lm=model(), adapter=dspy.JSONAdapter()):
        program = dspy.streamify(dspy.Predict(Trip), async_streaming=False)
        pieces = list(program(question=QUESTION))
    assert isinstance(pieces[-1], dspy.Prediction), pieces
    assert len(pieces) > 1


@check
def tools_loop() -> str:
    """ReActV2 uses the API's calls. After its last turn it asks for the call of `submit` by name.

    The older ReAct has arguments that no schema describes, so it needs a model that follows a prompt.
    """
    cities = []

    def get_weather(city: Literal["Oslo", "Paris", "Lima"], days: int) -> str:
        """The weather forecast of a city."""
        cities.append(city)
        return weather(city, days)

    with dspy.context(
        lm=model(max_tokens=200, tool_choice="required"), adapter=dspy.JSONAdapter(use_native_function_calling=True)
    ):
        found = dspy.ReActV2(Trip, tools=[get_weather], max_iters=2)(question=QUESTION)
    assert found.city in ("Oslo", "Paris"), found
    return f"{len(cities)} calls of the tool, {found.termination_reason}"


@check
def tools_native() -> None:
    """Calls of tools as the API has them."""

    def get_weather(city: Literal["Oslo", "Paris", "Lima"], days: int) -> str:
        """The weather forecast of a city."""
        return weather(city, days)

    class Call(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    adapter = dspy.JSONAdapter(use_native_function_calling=True)
    with dspy.context(lm=model(tool_choice="required"), adapter=adapter):
        found = dspy.Predict(Call)(question=QUESTION, tools=[dspy.Tool(get_weather)])
    [call, *_] = found.calls.tool_calls
    weather(**call.args)


@check
def responses() -> None:
    assert model(provider="openai", model_type="responses")(QUESTION)[0]


@check
def completions() -> None:
    assert model(provider="openai", model_type="text")("one two")[0]


@check
def embeddings() -> None:
    model = dspy.Embedder(f"openai/{embedder()}", api_base=URL, api_key=KEY, caching=False)
    assert len(model(["one", "two"])) == 2


@check
def errors() -> None:
    raised(dspy.LMError, lambda: model(NOBODY)(QUESTION), NOBODY)
    raised(dspy.LMError, lambda: model(temperature=9)(QUESTION), "temperature")
    raised(dspy.ContextWindowExceededError, lambda: model(max_tokens=10**6)(QUESTION))


run()
