// The npm client of OpenAI, unmodified: whole, streamed, models and an error; prints JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "one two three" }];
const asked = { model: "quick", messages, max_tokens: 5 };

const whole = await client.chat.completions.create(asked);
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
let error = null;
try {
  await client.chat.completions.create({ ...asked, model: "none" });
} catch (caught) {
  error = { status: caught.status, code: caught.code };
}
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    finish: whole.choices[0].finish_reason,
    streamed: text,
    tokens: usage.completion_tokens,
    models,
    error,
  }),
);
