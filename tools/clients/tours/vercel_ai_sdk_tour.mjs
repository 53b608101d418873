// The Vercel AI SDK: text, streams, structured output, tools with a loop, an agent, errors; with @ai-sdk/openai-compatible
// (chat completions), and with @ai-sdk/openai (responses, and chat completions).

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, isStepCount, Output, streamText, tool, ToolLoopAgent } from "ai";
import { z } from "zod";
import { check, embedder, KEY, MODEL, NOBODY, QUESTION, raised, run, URL, weather } from "./tour.mjs";

const compatible = createOpenAICompatible({
  name: "tourkit",
  baseURL: URL,
  apiKey: KEY,
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const openai = createOpenAI({ baseURL: URL, apiKey: KEY });
const MODELS = {
  compatible: (name = MODEL) => compatible(name),
  "openai chat": (name = MODEL) => openai.chat(name),
  "openai responses": (name = MODEL) => openai.responses(name),
};
const limits = { prompt: QUESTION, maxOutputTokens: 60, maxRetries: 0 };
const Trip = z.object({ city: z.enum(["Oslo", "Paris", "Lima"]), days: z.number().int() });
const get_weather = tool({ description: "The weather forecast of a city.", inputSchema: Trip, execute: weather });
// The first step must call the tool, later ones may not: a small model does not end by itself.
const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });

for (const [name, model] of Object.entries(MODELS)) {
  check(`chat, ${name}`, async () => {
    const { text, usage } = await generateText({ model: model(), ...limits });
    assert.ok(text);
    assert.ok(usage.outputTokens > 0);
  });

  check(`stream, ${name}`, async () => {
    const result = streamText({ model: model(), ...limits });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    assert.ok(text);
    assert.ok((await result.usage).outputTokens > 0);
  });

  check(`structured, ${name}`, async () => {
    const { output } = await generateText({ model: model(), ...limits, output: Output.object({ schema: Trip }) });
    weather(output);
  });

  check(`structured stream, ${name}`, async () => {
    const result = streamText({ model: model(), ...limits, output: Output.object({ schema: Trip }) });
    let last;
    for await (const partial of result.partialOutputStream) last = partial;
    weather(last);
  });

  check(`choice, ${name}`, async () => {
    const output = Output.choice({ options: ["yes", "no"] });
    assert.ok(["yes", "no"].includes((await generateText({ model: model(), ...limits, output })).output));
  });

  check(`tools loop, ${name}`, async () => {
    const tools = { get_weather };
    const options = { model: model(), ...limits, tools, prepareStep, stopWhen: isStepCount(3) };
    const { steps, text } = await generateText(options);
    assert.equal(steps.length, 2);
    assert.equal(steps[0].finishReason, "tool-calls");
    assert.ok(steps[0].toolResults.length > 0);
    assert.ok(text);
  });

  check(`tools loop streamed, ${name}`, async () => {
    const tools = { get_weather };
    const result = streamText({ model: model(), ...limits, tools, prepareStep, stopWhen: isStepCount(3) });
    const kinds = new Set();
    for await (const part of result.fullStream) kinds.add(part.type);
    for (const kind of ["tool-input-delta", "tool-call", "tool-result", "text-delta"]) assert.ok(kinds.has(kind), kind);
  });

  check(`agent, ${name}`, async () => {
    const agent = new ToolLoopAgent({ model: model(), tools: { get_weather }, prepareStep, maxOutputTokens: 60 });
    assert.ok((await agent.generate({ prompt: QUESTION })).text);
  });

  check(`errors, ${name}`, async () => {
    const error = await raised(APICallError, () => generateText({ model: model(NOBODY), ...limits }), NOBODY);
    assert.equal(error.statusCode, 404);
    await raised(APICallError, () => generateText({ model: model(), ...limits, temperature: 9 }), "temperature");
  });
}

check("embeddings", async () => {
  const name = await embedder();
  for (const model of [compatible.embeddingModel(name), openai.embedding(name)]) {
    assert.equal((await embedMany({ model, values: ["one", "two"], maxRetries: 0 })).embeddings.length, 2);
  }
});

await run();
