// openai-node: chat, streams, structured output, tools, the tool runner, responses, errors.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { check, embedder, KEY, MODEL, NOBODY, QUESTION, raised, run, URL, weather, WEATHER_SCHEMA } from "./tour.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const limits = { model: MODEL, max_tokens: 24, temperature: 0 };
const WEATHER = { type: "function", function: { name: "get_weather", parameters: WEATHER_SCHEMA } };
const Trip = z.object({ city: z.enum(["Oslo", "Paris", "Lima"]), days: z.number().int() });

check("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(MODEL));
});

check("chat", async () => {
  const answer = await client.chat.completions.create({ ...limits, messages });
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.total_tokens > 0);
  assert.ok(answer._request_id);
});

check("stream", async () => {
  const options = { stream: true, stream_options: { include_usage: true } };
  let text = "";
  let usage;
  for await (const chunk of await client.chat.completions.create({ ...limits, messages, ...options })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.ok(text);
  assert.ok(usage.completion_tokens > 0);
});

check("stream helper", async () => {
  const stream = client.chat.completions.stream({ ...limits, messages });
  let text = "";
  stream.on("content", (piece) => (text += piece));
  assert.equal(await stream.finalContent(), text);
});

check("stream that is broken off", async () => {
  const stream = await client.chat.completions.create({ ...limits, messages, max_tokens: 500, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk);
    break;
  }
});

check("structured parse", async () => {
  const format = zodResponseFormat(Trip, "trip");
  const answer = await client.chat.completions.parse({ ...limits, messages, max_tokens: 60, response_format: format });
  weather(answer.choices[0].message.parsed);
});

check("tools loop", async () => {
  const tools = { tools: [WEATHER], max_tokens: 80, parallel_tool_calls: false };
  const asked = await client.chat.completions.create({ ...limits, ...tools, messages, tool_choice: "required" });
  const [call] = asked.choices[0].message.tool_calls;
  const result = { role: "tool", tool_call_id: call.id, content: weather(JSON.parse(call.function.arguments)) };
  const turns = [...messages, asked.choices[0].message, result];
  const answer = await client.chat.completions.create({ ...limits, ...tools, messages: turns, tool_choice: "none" });
  assert.ok(answer.choices[0].message.content);
});

check("tools streamed", async () => {
  const tools = { tools: [WEATHER], max_tokens: 80, parallel_tool_calls: false, tool_choice: "required" };
  const stream = client.chat.completions.stream({ ...limits, ...tools, messages });
  const [call] = (await stream.finalMessage()).tool_calls;
  weather(JSON.parse(call.function.arguments));
});

check("tools runner", async () => {
  const done = [];
  const tool = zodFunction({ name: "get_weather", parameters: Trip, function: (trip) => done.push(trip) && weather(trip) });
  const named = { type: "function", function: { name: "get_weather" } }; // the runner then ends after one call
  const runner = client.chat.completions.runTools({ ...limits, max_tokens: 80, messages, tools: [tool], tool_choice: named });
  await runner.done();
  assert.ok(done.length > 0);
});

check("several answers", async () => {
  const answer = await client.chat.completions.create({ ...limits, messages, n: 3, max_tokens: 8, temperature: 1 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
});

check("responses", async () => {
  const answer = await client.responses.create({ model: MODEL, input: QUESTION, max_output_tokens: 24 });
  assert.ok(answer.output_text);
});

check("responses stream", async () => {
  const stream = client.responses.stream({ model: MODEL, input: QUESTION, max_output_tokens: 24 });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  assert.equal(kinds[0], "response.created");
  assert.ok((await stream.finalResponse()).output_text);
});

check("responses parse", async () => {
  const text = { format: zodTextFormat(Trip, "trip") };
  const answer = await client.responses.parse({ model: MODEL, input: QUESTION, max_output_tokens: 60, text });
  weather(answer.output_parsed);
});

check("embeddings", async () => {
  const answer = await client.embeddings.create({ model: await embedder(), input: ["one", "two"] });
  assert.equal(answer.data.length, 2);
  assert.equal(typeof answer.data[0].embedding[0], "number");
});

check("errors", async () => {
  const ask = (fields) => client.chat.completions.create({ ...limits, messages, ...fields });
  await raised(OpenAI.NotFoundError, () => ask({ model: NOBODY }), NOBODY);
  const error = await raised(OpenAI.BadRequestError, () => ask({ temperature: 9 }), "temperature");
  assert.equal(error.param, "temperature");
});

await run();
