#!/usr/bin/env python3
"""Load and limits: full queue, clients that go away or read slowly, limits of time, stopping and restarting. Needs nothing but Python."""
import concurrent.futures
import http.client
import json
import signal
import socket
import threading
import time
import unittest

import scripted_model as script
from harness import Server, run_together

LONG = {"prompt": "L", "max_tokens": 150000}  # far more than is computed while a test lasts
SHORT = {"prompt": "H"}
HELLO = "".join(script.HELLO)
WIDE = ("--context", "200000")


def until(condition):
    """Waits for what has to become true; a minute is as good as for ever."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it never came to be")
        time.sleep(0.01)


def alive(server):
    try:
        return server.ask("GET", "/health")[0] == 200
    except OSError:
        return False


class Stream:
    """A stream that can be left open, or closed in the middle."""

    def __init__(self, server, body, path="/v1/completions", receive=None):
        self.socket = socket.socket()
        if receive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", server.port))
        data = json.dumps({**body, "stream": True}).encode()
        self.socket.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    def first(self):
        """Waits for the first piece of text."""
        got = b""
        while b'"text":"' not in got:
            got += self.socket.recv(4096)
        return got

    def rest(self):
        got = b""
        while chunk := self.socket.recv(65536):
            got += chunk
        return got

    def text(self):
        """All of the answer's text; the stream has to be whole."""
        reply = http.client.HTTPResponse(self.socket)
        reply.begin()
        events = [line[6:] for line in reply.read().decode().split("\n") if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])

    def close(self):
        self.socket.close()


class Limits(unittest.TestCase):
    def test_full_queue(self):
        with Server(*WIDE, "--parallel", "1", "--queue", "1") as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = Stream(server, LONG)
            running.first()
            waiting = pool.submit(server.post, "/v1/completions", SHORT)
            until(lambda: server.metric("tasks_waiting") == 1)
            status, headers, data = server.ask("POST", "/v1/completions", SHORT)
            self.assertEqual((status, data["error"]["type"]), (429, "rate_limit_error"))
            self.assertGreaterEqual(int(headers["Retry-After"]), 1)
            status, _, data = server.ask("POST", "/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9})
            self.assertEqual((status, data["error"]["type"]), (429, "rate_limit_error"))
            running.close()  # the client has gone: its answer ends and the next one's turn comes
            status, data = waiting.result(60)
            self.assertEqual((status, data["choices"][0]["text"]), (200, HELLO))
            self.assertEqual(server.metric("tasks_gone_total"), 1)
            self.assertEqual(server.metric("tasks_refused_total"), 2)

    def test_gone_while_it_waits_for_a_whole_answer(self):
        with Server(*WIDE) as server:
            data = json.dumps(LONG).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
                until(lambda: server.metric("answers_computing") == 1)
            until(lambda: server.metric("answers_computing") == 0)
            self.assertEqual(server.metric("tasks_gone_total"), 1)

    def test_completions_go_first(self):
        """An editor's completion needs no free place."""
        with Server(*WIDE, "--parallel", "1", "--queue", "1") as server:
            running = Stream(server, LONG)
            running.first()
            status, data = server.post("/infill", {"input_prefix": "x", "input_suffix": "y", "n_predict": 9})
            self.assertEqual((status, data["content"]), (200, HELLO))
            self.assertEqual(server.metric("answers_computing"), 1)
            running.close()

    def test_time_of_an_answer(self):
        """The time ends it long before the context is full."""
        with Server(*WIDE) as server:
            status, data = server.post("/completion", {"prompt": "L", "t_max_predict_ms": 50})
            self.assertEqual((status, data["stop_type"]), (200, "limit"))
            self.assertLess(data["tokens_predicted"], 150000)
            self.assertEqual(data["content"], script.FOREVER * data["tokens_predicted"])

    def test_slow_readers(self):
        with Server(*WIDE, "--parallel", "2") as server:
            # A kilobyte and more for each token: far more than the system keeps for a connection.
            slow = [Stream(server, {"prompt": "L", "max_tokens": 400, "logprobs": 20}, receive=4096) for _ in range(8)]
            # Nobody reads; all are computed all the same, and others have their turn.
            until(lambda: server.metric("answer_tokens_total") == 8 * 400)
            self.assertEqual(server.post("/v1/completions", SHORT)[1]["choices"][0]["text"], HELLO)
            for stream in slow:
                self.assertEqual(stream.text(), script.FOREVER * 400)
                stream.close()

    def test_reader_that_stops(self):
        with Server("--idle-time", "1") as server, socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", server.port))
            data = json.dumps({"content": "a" * 500000}).encode()
            stuck.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            self.assertIn(b"200 OK", stuck.recv(100))
            time.sleep(2)  # it reads nothing more, and the server gives up
            got = 0
            try:
                while chunk := stuck.recv(65536):
                    got += len(chunk)
            except ConnectionResetError:
                pass
            self.assertLess(got, 3 * 500000)  # a token is at least that long in the reply

    def test_time_limits(self):
        with Server(*WIDE, "--parallel", "1", "--time-limit", "2", "--queue-time", "1") as server:
            running = Stream(server, LONG)
            running.first()
            status, headers, data = server.ask("POST", "/v1/completions", SHORT)
            self.assertEqual((status, data["error"]["type"]), (503, "server_error"))
            self.assertIn(b'"finish_reason":"length"', running.rest()[-1000:])
            running.close()
            self.assertEqual(server.metric("answers_timed_out_total"), 2)  # the one that waited too

    def test_answers_longer_than_a_connection_may_be_idle(self):
        with Server(*WIDE, "--time-limit", "3", "--idle-time", "1") as server:
            status, data = server.post("/v1/completions", LONG)
            self.assertEqual((status, data["choices"][0]["finish_reason"]), (200, "length"))

    def test_idle_connections(self):
        with Server("--idle-time", "1") as server:
            for sent in b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le":
                with socket.create_connection(("127.0.0.1", server.port), 30) as client:
                    client.sendall(sent)
                    self.assertNotIn(b"200 OK", client.recv(1000))

    def test_many_connections(self):
        with Server("--connections", "4") as server:
            held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
            for client in held:
                client.close()
            until(lambda: alive(server))

    def test_stop_lets_answers_end(self):
        with Server(*WIDE) as server:
            stream = Stream(server, {"prompt": "L", "max_tokens": 500})
            stream.first()
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            text = stream.rest()
            self.assertIn(b"data: [DONE]", text[-1000:])
            self.assertIn(b'"finish_reason":"length"', text[-1000:])
            stream.close()
            stopping.join()
            self.assertEqual(server.process.returncode, 0)
            with self.assertRaises(OSError):
                server.ask("GET", "/health")

    def test_stop_cuts_long_answers(self):
        with Server(*WIDE, "--parallel", "1", "--stop-time", "1") as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
            stream = Stream(server, LONG)
            stream.first()
            waiting = pool.submit(server.post, "/v1/completions", SHORT)
            until(lambda: server.metric("tasks_waiting") == 1)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(waiting.result(60)[0], 503)
            self.assertIn(b'"error"', stream.rest()[-1000:])
            stream.close()
            self.assertEqual(server.stop(), 0)

    def test_killed_and_started_again(self):
        with Server(*WIDE) as server:
            stream = Stream(server, LONG)
            stream.first()
            server.stop(signal.SIGKILL)
            try:
                self.assertNotIn(b"[DONE]", stream.rest()[-1000:])
            except ConnectionResetError:
                pass
            stream.close()
            with Server("--port", str(server.port)) as again:
                self.assertEqual(again.port, server.port)
                self.assertEqual(again.post("/v1/completions", SHORT)[1]["choices"][0]["text"], HELLO)
            server.process.returncode = 0  # as it was meant to end


if __name__ == "__main__":
    run_together(Limits)
