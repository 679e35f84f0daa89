#!/usr/bin/env python3
"""What nobody should send: malformed JSON, HTTP that is none, endless bodies, requests changed at random. The server refuses each and
goes on. Needs nothing but Python."""
import concurrent.futures
import json
import os
import random
import unittest

from harness import Server

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                     {"role": "assistant", "content": None, "reasoning_content": "r",
                      "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
                     {"role": "tool", "tool_call_id": "1", "content": "5"}],
        "max_tokens": 4, "temperature": 0.5, "n": 2, "stop": ["x"], "seed": 1, "logit_bias": {"5": 1}, "logprobs": True, "top_logprobs": 2,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}],
        "tool_choice": "auto", "stream": False, "stream_options": {"include_usage": True}, "response_format": {"type": "text"}}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": ["D", [1, 2]], "max_tokens": 4, "echo": True, "logprobs": 1, "suffix": ""},
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"type": "reasoning", "summary": []},
                                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                                {"type": "function_call_output", "call_id": "1", "output": "5"}], "max_output_tokens": 4,
                      "tools": [{"type": "function", "name": "f"}], "text": {"format": {"type": "text"}}, "instructions": "b"},
    "/v1/messages": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                                  {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"},
                                                                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
                                  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "5"}]}],
                     "max_tokens": 4, "system": [{"type": "text", "text": "s"}], "thinking": {"type": "enabled", "budget_tokens": 2},
                     "tools": [{"name": "f", "input_schema": {}}], "stop_sequences": ["x"]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
    "/completion": {"prompt": ["a", 5], "n_predict": 4, "n_probs": 1, "response_fields": ["content", "timings/prompt_n"], "logit_bias": [[5, 1]]},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "input_extra": [{"filename": "f", "text": "t"}], "n_predict": 4},
    "/tokenize": {"content": "a", "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": [{"role": "user", "content": "a"}], "tools": [], "enable_thinking": True},
}
ODD = [None, True, False, 0, -1, 1, 2**31, 2**63, -2**63, 1e308, 0.5, "", "a", "\0", "\ud800", "<|im_end|>", "é" * 500, [], [[]], [None], {}, {"": {}},
       {"a": None}, "{", "../../etc/passwd", "%s%n", [1] * 300]


def changed(value, chance):
    """The value with something in it replaced, left out or doubled."""
    if chance.random() < 0.12:
        return chance.choice(ODD)
    if isinstance(value, dict):
        made = {k: changed(v, chance) for k, v in value.items() if chance.random() > 0.05}
        if chance.random() < 0.1 and value:
            made[chance.choice(list(value)) + "x"] = chance.choice(ODD)
        return made
    if isinstance(value, list):
        made = [changed(v, chance) for v in value if chance.random() > 0.05]
        return made * 2 if chance.random() < 0.05 else made
    return value


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--body-limit", "1000000", "--header-limit", "16384", "--idle-time", "1", "--answer-tokens", "8").__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None)

    def tearDown(self):
        self.assertEqual(self.server.ask("GET", "/health")[0], 200)

    def test_bodies_that_are_no_json(self):
        bodies = [b"", b"{", b"}", b"[]", b"null", b"5", b'"text"', b"{'a': 1}", b"{\"a\": 1,}", b"{\"a\": NaN}", b"\xff\xfe", b"{\"\xc3\x28\": 1}",
                  b"{\"prompt\": \"\\u0000\"}", b"{\"prompt\": \"\\ud800\"}", b"{\"prompt\": 1e999}", b"[" * 400000, b"{\"a\":" * 100000,
                  b"{\"messages\": " + b"[" * 3000 + b"]" * 3000 + b"}", b"{\"prompt\": " + b"9" * 400 + b"}"]
        for path in BODIES:
            for body in bodies:
                status, _, data = self.server.ask("POST", path, body)
                self.assertEqual(status, 400, (path, body[:40], data))
                self.assertTrue(data["error"]["message"])

    def test_deep_but_allowed(self):
        """Depth in members that are looked at and in those that are not."""
        deep = b'{"a":[' * 1000 + b"1" + b"]}" * 1000
        tools = b'[{"type":"function","function":{"name":"f","parameters":' + deep + b"}}]"
        chat = b'{"messages":[{"role":"user","content":"a"}],"enable_thinking":false,"tools":'
        self.assertEqual(self.server.post("/v1/completions", b'{"prompt":"H","unknown":' + deep + b"}")[0], 200)
        self.assertEqual(self.server.post("/v1/completions", b'{"prompt":' + deep + b"}")[0], 400)
        self.assertIn(self.server.post("/v1/chat/completions", chat + tools + b"}")[0], (200, 400))
        self.assertIn(self.server.post("/v1/chat/completions", chat + b'[{"function":' + deep + b"}]}")[0], (200, 400))

    def test_no_http(self):
        chance = random.Random(2)
        requests = [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nHost\r\n\r\n",
                    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
                    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
                    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
                    *[bytes(chance.randrange(256) for _ in range(200)) + b"\r\n\r\n" for _ in range(5)]]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for data, got in zip(requests, pool.map(lambda data: self.server.raw(data, 7), requests)):
                self.assertNotIn(b" 200 ", got[:20], data[:60])

    def test_too_much(self):
        for head in [b"X: " + b"a" * 40000 + b"\r\n", b"".join(b"X%d: a\r\n" % i for i in range(5000))]:
            got = self.server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
            self.assertRegex(got[:20], rb"^(HTTP/1.1 4|$)")
        self.assertRegex(self.server.raw(b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")[:20], rb"^(HTTP/1.1 4|$)")
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
        self.assertIn(b" 413 ", self.server.raw(head + b"Content-Length: 1000001\r\n\r\n")[:20])
        chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        self.assertIn(b" 413 ", self.server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 16 + b"0\r\n\r\n")[:20])
        self.assertNotIn(b" 200 ", self.server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 100)[:20])  # no end to it
        large = json.dumps({"content": "a" * 900000})
        self.assertEqual(self.server.post("/tokenize", large.encode())[0], 200)

    def test_many_requests_at_once(self):
        one = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n{\"content\":\"a\"}"
        got = self.server.raw(one * 50 + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        self.assertIn(b"200 OK", got)

    def test_requests_changed_at_random(self):
        chance, connection = random.Random(int(os.environ.get("SEED", "1"))), self.server.connect()
        statuses = set()
        for i in range(400):
            path = chance.choice(list(BODIES))
            body = json.dumps(changed(BODIES[path], chance)).encode()
            if chance.random() < 0.1:
                at = chance.randrange(len(body))
                body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1:]
            connection.request("POST", path, body)
            reply = connection.getresponse()
            data = reply.read()
            statuses.add(reply.status)
            self.assertIn(reply.status, (200, 400, 501), (path, body, data))
            if reply.headers.get_content_type() == "application/json":
                json.loads(data)
        connection.close()
        self.assertEqual(statuses & {200, 400}, {200, 400})


if __name__ == "__main__":
    unittest.main()
