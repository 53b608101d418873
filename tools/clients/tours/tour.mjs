// Shared by all tours on Node: the address of the server, the questions, and the loop that runs the checks. A tour calls
// `check(name, function)` for each check and `await run()` at its end. Each check prints one line of JSON: `check`,
// `result` (passed, failed or skipped), `seconds` and `detail`, as in tour.py.

import assert from "node:assert/strict";

export const ROOT = process.env.TOURKIT_URL; // without /v1
export const URL = `${ROOT}/v1`;
export const MODEL = "brain";
export const KEY = "unused"; // most clients want one; the server asks for none
export const QUESTION = "Which city is the capital of France?";
export const NOBODY = "no-such-model"; // a model that the server does not have
export const WEATHER_SCHEMA = {
  type: "object",
  properties: {
    city: { type: "string", enum: ["Oslo", "Paris", "Lima"] },
    days: { type: "integer", minimum: 1, maximum: 14 },
  },
  required: ["city", "days"],
  additionalProperties: false,
};

const checks = [];

class Skip extends Error {}

export function check(name, run) {
  checks.push([name, run]);
}

// Return the answer of the tours' tool. Its arguments must follow the schema.
export function weather({ city, days }) {
  assert.ok(["Oslo", "Paris", "Lima"].includes(city), `the city ${city} is not in the schema`);
  assert.ok(Number.isInteger(days), `days is ${days}`);
  return JSON.stringify({ city, rain: true });
}

// Return the role of the embedding model. Throws Skip if the server has none.
export async function embedder() {
  const models = await (await fetch(`${URL}/models`)).json();
  if (!models.data.some((model) => model.id === "embed")) throw new Skip("the server has no embedding model");
  return "embed";
}

// Return the error that `call` rejects with. It must be of the class `kind` and have all `words` in its message.
export async function raised(kind, call, ...words) {
  let result;
  try {
    result = await call();
  } catch (error) {
    if (!(error instanceof kind)) throw error;
    for (const word of words) assert.ok(error.message.includes(word), `${word} is not in ${error.message}`);
    return error;
  }
  throw new Error(`no ${kind.name} was thrown; the result is ${JSON.stringify(result)}`);
}

export async function run() {
  const wanted = process.argv.slice(2);
  let failed = false;
  for (const [name, body] of checks) {
    if (wanted.length && !wanted.includes(name)) continue;
    const start = performance.now();
    const line = { check: name, result: "passed", seconds: 0, detail: "" };
    try {
      line.detail = (await body()) ?? "";
    } catch (error) {
      const skipped = error instanceof Skip;
      failed ||= !skipped;
      line.result = skipped ? "skipped" : "failed";
      line.detail = skipped ? error.message : `${error.name}: ${error.message}`;
      if (process.env.TOUR_TRACEBACK) console.error(error);
    }
    line.seconds = Math.round((performance.now() - start) / 10) / 100;
    console.log(JSON.stringify(line));
  }
  process.exit(failed ? 1 : 0);
}
