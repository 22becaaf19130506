// The Vercel AI SDK with its provider for compatible APIs, unmodified; prints JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const provider = createOpenAICompatible({ name: "triton", baseURL: process.argv[2] });
const asked = { model: provider("quick"), prompt: "one two three", maxOutputTokens: 5, maxRetries: 0 };

const whole = await generateText(asked);
let streamed = "";
for await (const part of streamText(asked).textStream) streamed += part;
console.log(
  JSON.stringify({
    whole: whole.text,
    finish: whole.finishReason,
    tokens: whole.usage.outputTokens,
    streamed,
  }),
);
