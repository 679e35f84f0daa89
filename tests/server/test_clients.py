#!/usr/bin/env python3
"""The server as the clients of OpenAI and Anthropic meet it; needs both from PyPI."""
import asyncio
import json
import math
import unittest

import anthropic
import openai

import scripted_model as script
from harness import Server

HELLO, USER = "".join(script.HELLO), [{"role": "user", "content": "Say hello."}]
NO_THOUGHTS = {"extra_body": {"enable_thinking": False}}
WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"],
    "additionalProperties": False}}
PARIS = {"city": "Paris", "days": 3}


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "secret", "--parallel", "16").__enter__()
        cls.openai = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="secret", max_retries=0)
        cls.anthropic = anthropic.Anthropic(base_url=cls.server.url, api_key="secret", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.openai.close()
        cls.anthropic.close()
        cls.server.__exit__(None)


class OpenAI(Clients):
    def chat(self, **more):
        return self.openai.chat.completions.create(model="any", messages=USER, **{**NO_THOUGHTS, **more})

    def test_models(self):
        self.assertEqual([m.id for m in self.openai.models.list()], ["scripted"])

    def test_chat(self):
        reply = self.chat()
        self.assertEqual((reply.choices[0].message.content, reply.choices[0].finish_reason), (HELLO, "stop"))
        self.assertEqual(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens)
        self.assertGreaterEqual(self.chat().usage.prompt_tokens_details.cached_tokens, 0)

    def test_thoughts(self):
        reply = self.chat(reasoning_effort="high", logit_bias=script.bias(script.THOUGHTS[0]), extra_body={})
        self.assertEqual((reply.choices[0].message.reasoning_content, reply.choices[0].message.content), ("".join(script.THOUGHTS), HELLO))
        self.assertEqual(self.chat(reasoning_effort="none", extra_body={}).choices[0].message.content, HELLO)

    def test_stream(self):
        text = ""
        with self.chat(stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=1) as stream:
            chunks = list(stream)
        for chunk in chunks:
            for choice in chunk.choices:
                text += choice.delta.content or ""
        tokens = [t.token for c in chunks for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
        self.assertEqual((text, tokens), (HELLO, script.HELLO))
        self.assertEqual(chunks[-1].usage.completion_tokens, 4)

    def test_stream_helper_and_tools(self):
        """The client's own accumulation of a streamed call."""
        tools = [{"type": "function", "function": WEATHER}]
        with self.openai.chat.completions.stream(model="any", messages=USER, tools=tools, logit_bias=script.bias(script.CALL[0]),
                                                 **NO_THOUGHTS) as stream:
            done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
            message = stream.get_final_completion().choices[0].message
        self.assertEqual(len(done), 1)
        self.assertEqual((done[0].name, json.loads(done[0].arguments)), ("get_weather", PARIS))
        self.assertEqual(json.loads(message.tool_calls[0].function.arguments), PARIS)
        history = USER + [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sun."}]
        reply = self.openai.chat.completions.create(model="any", messages=history, tools=tools, **NO_THOUGHTS)
        self.assertEqual(reply.choices[0].message.content, HELLO)

    def test_n_and_logprobs(self):
        reply = self.openai.completions.create(model="any", prompt="D", n=3, seed=1, temperature=1, max_tokens=12, logprobs=2,
                                               extra_body={"top_k": 0})
        self.assertEqual(len({c.text for c in reply.choices}), 3)
        for choice in reply.choices:
            self.assertTrue(all(math.isclose(p, math.log(0.5), abs_tol=1e-4) for p in choice.logprobs.token_logprobs))

    def test_responses(self):
        reply = self.openai.responses.create(model="any", input="Hi", instructions="Be brief.", reasoning={"effort": "none"})
        self.assertEqual((reply.output_text, reply.status), (HELLO, "completed"))
        cut = self.openai.responses.create(model="any", input="Hi", reasoning={"effort": "none"}, max_output_tokens=1)
        self.assertEqual((cut.status, cut.incomplete_details.reason), ("incomplete", "max_output_tokens"))

    def test_responses_stream(self):
        body = {"logit_bias": script.bias(script.THOUGHTS[0])}
        with self.openai.responses.stream(model="any", input="Hi", extra_body=body) as stream:
            events = list(stream)
            reply = stream.get_final_response()
        self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.reasoning_text.delta"), "".join(script.THOUGHTS))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), HELLO)
        self.assertEqual([item.type for item in reply.output], ["reasoning", "message"])
        self.assertEqual(reply.output_text, HELLO)

    def test_responses_tools(self):
        tools = [{"type": "function", **WEATHER, "strict": False}]
        asked = {"model": "any", "tools": tools, "reasoning": {"effort": "none"}}
        with self.openai.responses.stream(input="Hi", extra_body={"logit_bias": script.bias(script.CALL[0])}, **asked) as stream:
            events = list(stream)
            reply = stream.get_final_response()
        call = reply.output[0]
        self.assertEqual((call.type, call.name, json.loads(call.arguments)), ("function_call", "get_weather", PARIS))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.function_call_arguments.delta"), call.arguments)
        history = [{"role": "user", "content": "Hi"}, *reply.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Sun."}]
        self.assertEqual(self.openai.responses.create(input=history, **asked).output_text, HELLO)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=-1)
        self.assertIn("temperature", caught.exception.message)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.openai.completions.create(model="any", prompt="x" * 3000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.server.url + "/v1", api_key="wrong", max_retries=0).models.list()

    def test_64_clients(self):
        async def all_at_once():
            async with openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key="secret") as client:
                async def one(i):
                    stream = await client.chat.completions.create(
                        model="any", messages=USER, stream=True, max_tokens=20 + i, logit_bias=script.bias([script.FOREVER, "Hello"][i % 2]),
                        **NO_THOUGHTS)
                    return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
                return await asyncio.gather(*map(one, range(64)))
        for i, text in enumerate(asyncio.run(all_at_once())):
            self.assertEqual(text, HELLO if i % 2 else script.FOREVER * (20 + i))


class Anthropic(Clients):
    def test_message(self):
        reply = self.anthropic.messages.create(model="any", max_tokens=50, messages=USER, system="Be brief.")
        self.assertEqual((reply.content[0].text, reply.stop_reason), (HELLO, "end_turn"))
        count = self.anthropic.messages.count_tokens(model="any", messages=USER, system="Be brief.").input_tokens
        self.assertEqual(reply.usage.input_tokens + reply.usage.cache_read_input_tokens, count)
        stopped = self.anthropic.messages.create(model="any", max_tokens=50, messages=USER, stop_sequences=["wör"])
        self.assertEqual((stopped.content[0].text, stopped.stop_reason), ("Hello, ", "stop_sequence"))

    def test_stream_with_thoughts(self):
        # The interface has no biases; the body may.
        with self.anthropic.messages.stream(model="any", max_tokens=2000, messages=USER, thinking={"type": "enabled", "budget_tokens": 1024},
                                            extra_body={"logit_bias": script.bias(script.THOUGHTS[0])}) as stream:
            text = "".join(stream.text_stream)
            reply = stream.get_final_message()
        self.assertEqual(text, HELLO)
        self.assertEqual([(b.type, getattr(b, "thinking", None) or b.text) for b in reply.content],
                         [("thinking", "".join(script.THOUGHTS)), ("text", HELLO)])
        self.assertEqual(reply.usage.output_tokens, 7)

    def test_tools(self):
        asked = {"model": "any", "max_tokens": 100, "tools": [{"name": "get_weather", "input_schema": WEATHER["parameters"]}]}
        with self.anthropic.messages.stream(messages=USER, extra_body={"logit_bias": script.bias(script.CALL[0])}, **asked) as stream:
            reply = stream.get_final_message()
        call = reply.content[-1]
        self.assertEqual((reply.stop_reason, call.name, call.input), ("tool_use", "get_weather", PARIS))
        history = [*USER, {"role": "assistant", "content": [b.model_dump() for b in reply.content]},
                   {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Sun."}]}]}]
        self.assertEqual(self.anthropic.messages.create(messages=history, **asked).content[0].text, HELLO)

    def test_errors(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.anthropic.messages.create(model="any", max_tokens=5, messages=USER, extra_body={"temperature": -1})
        with self.assertRaises(anthropic.AuthenticationError):
            anthropic.Anthropic(base_url=self.server.url, api_key="wrong", max_retries=0).messages.count_tokens(model="any", messages=USER)


del Clients  # only what is made from it is run

if __name__ == "__main__":
    unittest.main()
