#!/usr/bin/env python3
"""What every path answers, by plain HTTP; needs nothing but Python."""
import concurrent.futures
import json
import math
import os
import re
import subprocess
import unittest

import scripted_model as script
from harness import Server

HELLO, ANSWER = "".join(script.HELLO), [{"role": "user", "content": "Say hello."}]
NO_THOUGHTS = {"messages": ANSWER, "enable_thinking": False}


def read(path):
    with open(os.path.join(os.path.dirname(__file__), "../..", path)) as file:
        return file.read()


class Basic(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None)

    def ok(self, path, body):
        status, data = self.server.post(path, body)
        self.assertEqual(status, 200, data)
        return data

    def refused(self, path, body, status=400, words=""):
        got, data = self.server.post(path, body)
        self.assertEqual(got, status, data)
        self.assertRegex(data["error"]["message"], words)
        return data

    # ---- chat ----

    def test_chat(self):
        data = self.ok("/v1/chat/completions", NO_THOUGHTS)
        choice, usage = data["choices"][0], data["usage"]
        self.assertEqual(choice["message"]["content"], HELLO)
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertNotIn("reasoning_content", choice["message"])
        prompt = self.ok("/apply-template", NO_THOUGHTS)["prompt"]
        tokens = self.ok("/tokenize", {"content": prompt})["tokens"]
        self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"]), (len(tokens), len(script.HELLO) + 1))

    def test_marks_in_what_a_user_says(self):
        """They are text: each of their characters counts, where a mark would be one token."""
        def tokens(content):
            return self.ok("/v1/chat/completions", {**NO_THOUGHTS, "messages": [{"role": "user", "content": content}]})["usage"]["prompt_tokens"]
        self.assertEqual(tokens("<|im_end|>") - tokens("x"), len(self.ok("/tokenize", {"content": "<|im_end|>", "parse_special": False})["tokens"]) - 1)

    def test_thoughts(self):
        data = self.ok("/v1/chat/completions", {"messages": ANSWER, "logit_bias": script.bias(script.THOUGHTS[0])})
        message = data["choices"][0]["message"]
        self.assertEqual((message["reasoning_content"], message["content"]), ("".join(script.THOUGHTS), HELLO))
        self.assertEqual(data["usage"]["completion_tokens_details"]["reasoning_tokens"], len(script.THOUGHTS))

    def test_thoughts_cut(self):
        data = self.ok("/v1/chat/completions", {"messages": ANSWER, "logit_bias": script.bias(script.FOREVER), "thinking_budget": 5,
                                                "max_tokens": 40})
        self.assertEqual(data["choices"][0]["message"]["reasoning_content"].strip(), (script.FOREVER * 5).strip())

    def calls_of(self, first, stream):
        body = {**NO_THOUGHTS, "logit_bias": script.bias(first), "tools": [
            {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
                "city": {"type": "string"}, "days": {"type": "integer"}}}}},
            {"type": "function", "function": {"name": "get_time"}}]}
        if not stream:
            choice = self.ok("/v1/chat/completions", body)["choices"][0]
            return choice["message"]["content"], [c["function"] for c in choice["message"]["tool_calls"]], choice["finish_reason"], []
        content, calls, finish, pieces = "", [], None, []
        for _, data in self.server.events("/v1/chat/completions", {**body, "stream": True}):
            if data == "[DONE]":
                break
            choice = data["choices"][0]
            finish = choice["finish_reason"] or finish
            content += choice["delta"].get("content") or ""
            for part in choice["delta"].get("tool_calls", []):
                if "id" in part:
                    calls.append({"name": part["function"]["name"], "arguments": ""})
                self.assertEqual(part["index"], len(calls) - 1)
                calls[-1]["arguments"] += part["function"]["arguments"]
                pieces.append(part["function"]["arguments"])
        return content or None, calls, finish, pieces

    def test_call(self):
        for stream in False, True:
            with self.subTest(stream=stream):
                content, calls, finish, pieces = self.calls_of(script.CALL[0], stream)
                self.assertEqual((content, finish, len(calls)), (None, "tool_calls", 1))
                self.assertEqual(calls[0]["name"], "get_weather")
                self.assertEqual(json.loads(calls[0]["arguments"]), {"city": "Paris", "days": 3})
                if stream:
                    self.assertEqual(pieces[0], "")  # with the name

    def test_two_calls(self):
        for stream in False, True:
            with self.subTest(stream=stream):
                content, calls, finish, _ = self.calls_of(script.TWO_CALLS[0], stream)
                self.assertEqual((content, finish), ("I look.", "tool_calls"))
                self.assertEqual([(c["name"], json.loads(c["arguments"])) for c in calls],
                                 [("get_time", {"zone": "UTC"}), ("get_weather", {"city": "Rome"})])

    def test_cut_call(self):
        data = self.ok("/v1/chat/completions", {**NO_THOUGHTS, "logit_bias": script.bias(script.CALL[0]), "max_tokens": 1})
        choice = data["choices"][0]
        self.assertEqual((choice["message"]["content"], choice["finish_reason"]), (script.CALL[0], "length"))

    def test_stream(self):
        text, finish, usage, roles = "", [], None, []
        last = None
        for _, data in self.server.events("/v1/chat/completions", {**NO_THOUGHTS, "stream": True, "stream_options": {"include_usage": True}}):
            last = data
            if data == "[DONE]":
                continue
            usage = data.get("usage", usage)
            for choice in data["choices"]:
                text += choice["delta"].get("content", "")
                roles += [choice["delta"]["role"]] if "role" in choice["delta"] else []
                finish += [choice["finish_reason"]] if choice["finish_reason"] else []
        self.assertEqual((text, finish, roles, last), (HELLO, ["stop"], ["assistant"], "[DONE]"))
        self.assertEqual(usage["completion_tokens"], len(script.HELLO) + 1)

    def test_logprobs(self):
        body = {"prompt": "D", "max_tokens": 6, "logprobs": 2, "temperature": 1, "top_k": 0, "seed": 3}
        choice = self.ok("/v1/completions", body)["choices"][0]
        logprobs = choice["logprobs"]
        self.assertEqual("".join(logprobs["tokens"]), choice["text"])
        for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertAlmostEqual(value, math.log(0.5), places=4)  # two tokens, equally likely; the others have e^-40 of that
            self.assertEqual(set(top), set(script.BITS))
        chat = self.ok("/v1/chat/completions", {**NO_THOUGHTS, "logprobs": True, "top_logprobs": 1})["choices"][0]
        self.assertEqual([t["token"] for t in chat["logprobs"]["content"]], script.HELLO)
        self.assertEqual(bytes(chat["logprobs"]["content"][1]["bytes"]).decode(), script.HELLO[1])

    def test_n_and_seed(self):
        body = {"prompt": "D", "max_tokens": 24, "temperature": 1, "top_k": 0, "n": 4, "seed": 5}
        first, second = ([c["text"] for c in self.ok("/v1/completions", body)["choices"]] for _ in range(2))
        self.assertEqual(first, second)
        self.assertEqual(len(set(first)), 4)
        self.assertEqual([c["index"] for c in self.ok("/v1/completions", body)["choices"]], [0, 1, 2, 3])
        one = self.ok("/v1/completions", {**body, "n": 1, "seed": 7})["choices"][0]["text"]
        self.assertEqual(one, first[2])  # the third answer's seed
        streamed = [""] * 4
        for _, data in self.server.events("/v1/completions", {**body, "stream": True}):
            if data != "[DONE]":
                for choice in data["choices"]:
                    streamed[choice["index"]] += choice["text"]
        self.assertEqual(streamed, first)

    def test_stop(self):
        data = self.ok("/v1/chat/completions", {**NO_THOUGHTS, "stop": ["wör", "never"]})
        self.assertEqual((data["choices"][0]["message"]["content"], data["choices"][0]["finish_reason"]), ("Hello, ", "stop"))

    def test_budget(self):
        data = self.ok("/v1/chat/completions", {**NO_THOUGHTS, "max_tokens": 2})
        self.assertEqual((data["choices"][0]["message"]["content"], data["choices"][0]["finish_reason"]), ("Hello, wörld", "length"))

    def test_cached(self):
        long = "x" * 300
        first = self.ok("/v1/completions", {"prompt": long + "H"})["usage"]["prompt_tokens_details"]["cached_tokens"]
        again = self.ok("/v1/completions", {"prompt": long + "zH"})["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertEqual(first, 0)
        self.assertGreaterEqual(again, 290)

    def test_prompts(self):
        data = self.ok("/v1/completions", {"prompt": ["H", [script.token("H")], "xH"], "echo": True})
        self.assertEqual([c["text"] for c in data["choices"]], ["H" + HELLO, HELLO, "xH" + HELLO])
        self.assertEqual(data["usage"]["prompt_tokens"], 4)

    # ---- constrained answers ----

    def test_json(self):
        """Whatever the model would like to say, it is a document that fits."""
        schema = {"type": "object", "properties": {"age": {"type": "integer"}, "name": {"enum": ["Ann", "Bob"]}},
                  "required": ["age", "name"], "additionalProperties": False}
        def fits(text):
            value = json.loads(text)
            self.assertEqual(set(value), {"age", "name"}, text)
            self.assertIsInstance(value["age"], int)
            self.assertIn(value["name"], ("Ann", "Bob"))
        budget = {"max_tokens": 60}
        named = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
        reply = self.ok("/v1/chat/completions", {**NO_THOUGHTS, **budget, "response_format": named})["choices"][0]
        fits(reply["message"]["content"])
        self.assertEqual(reply["finish_reason"], "stop")
        fits(self.ok("/v1/responses", {"input": "Hi", "reasoning": {"effort": "none"}, "max_output_tokens": 60, "text": {
            "format": {"type": "json_schema", "name": "person", "schema": schema}}})["output"][0]["content"][0]["text"])
        fits(self.ok("/v1/messages", {"messages": ANSWER, **budget, "output_config": {"format": {
            "type": "json_schema", "schema": schema}}})["content"][0]["text"])
        fits(self.ok("/completion", {"prompt": "H", "n_predict": 60, "json_schema": schema})["content"])
        any_object = self.ok("/v1/chat/completions", {**NO_THOUGHTS, **budget, "response_format": {"type": "json_object"}})
        self.assertIsInstance(json.loads(any_object["choices"][0]["message"]["content"]), dict)
        self.assertEqual(self.ok("/completion", {"prompt": "H", "n_predict": 9, "grammar": 'root ::= "yes" | "yes, so"'})["content"][:3], "yes")
        self.refused("/v1/chat/completions", {**NO_THOUGHTS, "response_format": {"type": "json_schema", "json_schema": {
            "schema": {"type": "nonsense"}}}}, words="type")
        self.refused("/v1/chat/completions", {**NO_THOUGHTS, "response_format": {"type": "xml"}}, words="json_object")
        self.refused("/completion", {"prompt": "H", "grammar": 'root ::= "a'}, words="grammar")

    def test_strict_calls(self):
        """The arguments of a call fit the tool, though the model is made to begin with others; and a call can be asked for."""
        parameters = {"type": "object", "properties": {"place": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
                      "required": ["place", "days"], "additionalProperties": False}
        strict = {"type": "function", "function": {"name": "get_weather", "parameters": parameters, "strict": True}}
        other = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
        def fits(name, arguments):
            self.assertEqual(name, "get_weather")
            self.assertIn(arguments["place"], ("Rome", "Oslo"))
            self.assertIsInstance(arguments["days"], int)
        for more in ({"logit_bias": script.bias(script.CALL[0])}, {"tool_choice": "required", "parallel_tool_calls": False},
                     {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "tools": [strict, other]}):
            with self.subTest(**more):
                reply = self.ok("/v1/chat/completions", {**NO_THOUGHTS, "max_tokens": 200, "tools": [strict], **more})["choices"][0]
                for call in reply["message"]["tool_calls"]:
                    fits(call["function"]["name"], json.loads(call["function"]["arguments"]))
                self.assertEqual(reply["finish_reason"], "tool_calls")
        reply = self.ok("/v1/messages", {"messages": ANSWER, "max_tokens": 200, "tool_choice": {"type": "any"}, "tools": [
            {"name": "get_weather", "input_schema": parameters, "strict": True}]})
        fits(reply["content"][-1]["name"], reply["content"][-1]["input"])
        reply = self.ok("/v1/responses", {"input": "Hi", "reasoning": {"effort": "none"}, "max_output_tokens": 200, "tool_choice": "required",
                                          "tools": [{"type": "function", "name": "get_weather", "parameters": parameters, "strict": True}]})
        fits(reply["output"][-1]["name"], json.loads(reply["output"][-1]["arguments"]))
        none = self.ok("/v1/chat/completions", {**NO_THOUGHTS, "tools": [strict], "tool_choice": "none"})["choices"][0]
        self.assertEqual(none["message"]["content"], HELLO)

    # ---- the other interfaces ----

    def test_responses(self):
        data = self.ok("/v1/responses", {"input": "Hi", "reasoning": {"effort": "none"}})
        self.assertEqual((data["status"], data["output"][0]["content"][0]["text"]), ("completed", HELLO))
        conversation = [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]},
                        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                        {"type": "function_call_output", "call_id": "1", "output": "5"}]
        self.ok("/v1/responses", {"input": conversation, "instructions": "Be brief.", "reasoning": {"effort": "none"}})
        self.refused("/v1/responses", {"input": [{"type": "computer_call"}]}, words="computer_call")
        self.refused("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, words="stores no responses")

    def test_messages(self):
        body = {"max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
        data = self.ok("/v1/messages", body)
        self.assertEqual((data["content"], data["stop_reason"]), ([{"type": "text", "text": HELLO}], "end_turn"))
        count = self.ok("/v1/messages/count_tokens", body)["input_tokens"]
        self.assertEqual(data["usage"]["input_tokens"] + data["usage"]["cache_read_input_tokens"], count)
        got = self.refused("/v1/messages", {"max_tokens": 5, "messages": [{"role": "robot", "content": "Hi"}]}, words="role")
        self.assertEqual((got["type"], got["error"]["type"]), ("error", "invalid_request_error"))

    def test_tokens(self):
        self.assertEqual(self.ok("/tokenize", {"content": "H<think>"})["tokens"], [script.token("H"), script.token("<think>")])
        self.assertEqual(len(self.ok("/tokenize", {"content": "<think>", "parse_special": False})["tokens"]), 7)
        pieces = self.ok("/tokenize", {"content": "é", "with_pieces": True})["tokens"]
        self.assertEqual([p["piece"] for p in pieces], [[0xC3], [0xA9]])
        self.assertEqual(self.ok("/detokenize", {"tokens": [script.token(t) for t in script.HELLO]})["content"], HELLO)
        self.refused("/detokenize", {"tokens": [10**9]}, words="id of 0 to")

    def test_system_messages(self):
        prompt = self.ok("/apply-template", {"messages": [{"role": "developer", "content": "A"}, {"role": "system", "content": "B"}, *ANSWER]})
        self.assertTrue(prompt["prompt"].startswith("<|im_start|>system\nA\n\nB<|im_end|>\n<|im_start|>user\n"), prompt)

    # ---- editors ----

    def test_infill(self):
        """The request of llama.vim: fields chosen, inner ones by path."""
        fields = ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "tokens_cached", "none/such"]
        body = {"input_prefix": "def f():\n", "input_suffix": "\n", "prompt": "", "n_predict": 64, "stop": [], "n_indent": 4, "top_k": 40,
                "top_p": 0.9, "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True, "t_max_prompt_ms": 500,
                "t_max_predict_ms": 3000, "input_extra": [{"text": "x = 1\n", "time": 5, "filename": "a.py"}], "response_fields": fields}
        data = self.ok("/infill", body)
        self.assertEqual(set(data), set(fields) - {"none/such"})
        self.assertEqual((data["content"], data["truncated"]), (HELLO, False))
        # A line that is indented by less ends it.
        cut = self.ok("/infill", {"input_prefix": "x", "n_predict": 1, "n_indent": 4, "logit_bias": {str(script.token(script.MARKDOWN[0])): 99}})
        self.assertEqual(cut["content"], "## Title")
        warm = self.ok("/infill", {**body, "n_predict": 0, "input_prefix": "", "input_suffix": "", "response_fields": None})
        self.assertEqual((warm["content"], warm["tokens_predicted"]), ("", 0))

    def test_completion(self):
        data = self.ok("/completion", {"prompt": "H", "n_predict": 50, "n_probs": 1})
        self.assertEqual((data["content"], data["stop_type"], data["tokens_predicted"]), (HELLO, "eos", 4))
        self.assertEqual([t["token"] for t in data["completion_probabilities"]], script.HELLO)
        parts = [d for _, d in self.server.events("/completion", {"prompt": ["x", script.token("H")], "stream": True})]
        self.assertEqual("".join(p["content"] for p in parts[:-1]), HELLO)
        self.assertTrue(parts[-1]["stop"])

    # ---- what surrounds it ----

    def test_refusals(self):
        chat = "/v1/chat/completions"
        self.refused(chat, {}, words="messages")
        self.refused(chat, {"messages": []}, words="messages")
        self.refused(chat, {**NO_THOUGHTS, "temperature": "hot"}, words="temperature")
        self.refused(chat, {**NO_THOUGHTS, "temperature": -1}, words="temperature")
        self.refused(chat, {**NO_THOUGHTS, "n": 99}, words="\"n\"")
        self.refused(chat, {**NO_THOUGHTS, "max_tokens": 0}, words="at least 1")
        self.refused(chat, {**NO_THOUGHTS, "stop": 5}, words="stop")
        self.refused(chat, {**NO_THOUGHTS, "logit_bias": {"x": 1}}, words="logit_bias")
        self.refused(chat, {**NO_THOUGHTS, "logit_bias": {"99999999": 1}}, words="99999999")
        self.refused(chat, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, words="not text")
        self.refused(chat, {**NO_THOUGHTS, "tool_choice": "required"}, words="no tools")
        got = self.refused("/v1/completions", {"prompt": "x" * 3000}, words="3000 tokens.*2048")
        self.assertEqual(got["error"]["code"], "context_length_exceeded")
        self.refused("/v1/completions", {"prompt": ""}, words="empty")

    def test_paths(self):
        self.assertEqual(self.server.ask("GET", "/v1/models")[2]["data"][0]["id"], "scripted")
        self.assertEqual(self.server.ask("GET", "/health")[2]["status"], "ok")
        self.assertIn(b"<!DOCTYPE html>", self.server.ask("GET", "/")[2])
        for path in "/nope", "/../etc/passwd", "/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd":
            self.assertEqual(self.server.ask("GET", path)[0], 404, path)
        status, headers, _ = self.server.ask("GET", "/v1/completions")
        self.assertEqual((status, headers["Allow"]), (405, "POST"))
        self.assertEqual(self.server.ask("HEAD", "/health")[0], 200)

    def test_foreign_pages(self):
        own = f"http://127.0.0.1:{self.server.port}"
        self.assertEqual(self.server.ask("GET", "/health", headers={"Origin": own})[0], 200)
        self.assertEqual(self.server.ask("GET", "/health", headers={"Origin": "http://evil.example"})[0], 403)
        self.assertEqual(self.server.ask("GET", "/health", headers={"Host": "evil.example"})[0], 403)
        self.assertEqual(self.server.ask("GET", "/health", headers={"Host": f"localhost:{self.server.port}"})[0], 200)

    def test_description_is_whole(self):
        described = self.server.ask("GET", "/openapi.json")[2]["paths"]
        routes = set(re.findall(r'\{ "(/[^"]*)", ROUTE_', read("examples/server/routes.c")))
        self.assertEqual(set(described), routes)


class Settings(unittest.TestCase):
    def test_key(self):
        with Server("--api-key", "secret", "--alias", "name", "--allow-origin", "http://page.example") as server:
            self.assertEqual(server.ask("GET", "/v1/models")[0], 401)
            for wrong in "secre", "secret2", "Secret", "":
                self.assertEqual(server.ask("GET", "/v1/models", headers={"Authorization": "Bearer " + wrong})[0], 401)
            self.assertEqual(server.ask("GET", "/v1/models", headers={"Authorization": "Bearer secret"})[2]["data"][0]["id"], "name")
            self.assertEqual(server.ask("GET", "/v1/models", headers={"X-Api-Key": "secret"})[0], 200)
            self.assertEqual(server.ask("GET", "/health")[0], 200)
            status, headers, _ = server.ask("OPTIONS", "/v1/models", headers={"Origin": "http://page.example"})
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (204, "http://page.example"))

    def test_command_line(self):
        def run(*arguments):
            return subprocess.run([os.environ["QWENMOE_SERVER"], *arguments], capture_output=True, text=True)
        self.assertRegex(run("--version").stdout, r"^qwenmoe-server \d+\.\d+\.\d+\n$")
        for wrong in ["--nope"], ["--port", "70000"], ["--port", "x"], ["word"], ["--api-key", ""]:
            self.assertEqual(run(*wrong).returncode, 2, wrong)
        self.assertEqual(run("-m", "/no/such/file").returncode, 1)
        shown = run("--help").stdout
        manual = read("examples/server/qwenmoe-server.1").replace("\\-", "-")
        flags = re.findall(r"^ +(?:-\w, )?--([\w-]+)", shown, re.M)
        self.assertGreater(len(flags), 40)
        for name in flags:
            self.assertRegex(manual, rf"--{name}\b")

    def test_64_clients(self):
        """Many clients at once, each with its own answer."""
        with Server("--parallel", "16") as server:
            def ask(i):
                first = ["Hello", script.FOREVER][i % 2]
                data = server.post("/v1/chat/completions", {**NO_THOUGHTS, "max_tokens": 3 + i % 5, "logit_bias": script.bias(first)})[1]
                return first, data["choices"][0]["message"]["content"], 3 + i % 5
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                for first, text, count in pool.map(ask, range(64)):
                    self.assertEqual(text, script.FOREVER * count if first == script.FOREVER else HELLO)


if __name__ == "__main__":
    unittest.main()
