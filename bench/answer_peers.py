"""Ask llama-server through instructor, outlines, or with a plain prompt. bench/answers.py runs this file.

It runs in the peers' own environment, and needs nothing of tourkit. `answer_peers.py PEER URL`: each line of stdin is a
JSON list of questions, {"messages", "schema", "max_tokens"}. It prints one JSON line for each list: {"seconds",
"texts"}, with an empty text for a question without an answer. All questions of a list are asked at once.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

Ask = Callable[[dict[str, Any]], str]
MODEL = "bench"


def by_instructor(client: openai.OpenAI) -> Ask:
    """JSON_SCHEMA mode, with instructor's own retries: it sends the errors of validation back, three times at most."""
    import instructor
    import jsonschema
    from instructor.core.exceptions import InstructorError
    from pydantic import RootModel, model_validator

    patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)

    def model_of(schema: dict[str, Any]) -> type[RootModel[dict[str, Any]]]:
        class Record(RootModel[dict[str, Any]]):
            @classmethod
            def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
                return schema

            @model_validator(mode="after")
            def follows(self) -> Record:
                error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(self.root))
                if error is not None:
                    raise ValueError(f"{error.json_path}: {error.message}")
                return self

        return Record

    def ask(question: dict[str, Any]) -> str:
        try:
            found = patched.create(
                response_model=model_of(question["schema"]),
                messages=question["messages"],
                model=MODEL,
                temperature=0,
                max_tokens=question["max_tokens"],
            )
        except InstructorError as error:
            return failed("instructor", error)
        return json.dumps(found.root, ensure_ascii=False)

    return ask


def by_outlines(client: openai.OpenAI) -> Ask:
    import outlines
    from outlines.exceptions import OutlinesError
    from outlines.inputs import Chat
    from outlines.types import JsonSchema

    model = outlines.from_openai(client, MODEL)

    def ask(question: dict[str, Any]) -> str:
        output = JsonSchema(json.dumps(question["schema"]))
        try:
            return str(model(Chat(question["messages"]), output, temperature=0, max_tokens=question["max_tokens"]))
        except OutlinesError as error:
            return failed("outlines", error)

    return ask


def by_prompt(client: openai.OpenAI) -> Ask:
    """No constraint: the JSON is what stands between the first and the last brace of the answer."""

    def ask(question: dict[str, Any]) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=question["messages"], temperature=0, max_tokens=question["max_tokens"]
        )
        found = re.search(r"\{.*\}", answer.choices[0].message.content or "", re.DOTALL)
        return found[0] if found else ""

    return ask


def failed(peer: str, error: Exception) -> str:
    """Return no answer. One example: llama-server answers 500 for an object that max_tokens cuts off."""
    print(f"{peer}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
    return ""


PEERS = {"instructor": by_instructor, "outlines": by_outlines, "plain prompt": by_prompt}


def main() -> None:
    peer, url = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=1200, max_retries=0)
    ask = PEERS[peer](client)
    print("ready", flush=True)
    for line in sys.stdin:
        questions = json.loads(line)
        started = time.perf_counter()
        with ThreadPoolExecutor(len(questions)) as pool:
            texts = list(pool.map(ask, questions))
        print(json.dumps({"seconds": time.perf_counter() - started, "texts": texts}), flush=True)


if __name__ == "__main__":
    main()
