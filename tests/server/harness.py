"""Starts the server for a test and asks it by plain HTTP. The program's path is in the environment variable QWENMOE_SERVER."""
import atexit
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

import scripted_model

WORK = tempfile.mkdtemp(prefix="qwenmoe-server-")
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
SCRIPTED = os.path.join(WORK, "scripted.gguf")
MAKING = threading.Lock()
FAST = ["--threads", "1", "--pin", "0", "--temperature", "0"]


class Server:
    """A running server. Without a model: the scripted one."""

    def __init__(self, *arguments, model=None):
        if model is None:
            model = SCRIPTED
            with MAKING:
                if not os.path.exists(SCRIPTED):
                    scripted_model.write_model(SCRIPTED)
            arguments = ("--chat-format", "qwen3.5", "--context", "2048", *arguments)
        self.process = subprocess.Popen([os.environ["QWENMOE_SERVER"], "-m", model, "--port", "0", *FAST, *arguments],
                                        stderr=subprocess.PIPE, text=True)
        self.messages, self.stopped = [], False
        for line in self.process.stderr:
            self.messages.append(line)
            found = re.search(r"at http://(\S+):(\d+)$", line)
            if found:
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(self.messages))
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        died = self.process.poll() is not None and not self.stopped
        code = self.stop()
        if code != 0 or died:
            raise RuntimeError(f"the server ended with {code}{' by itself' if died else ''}: {self.rest}")

    def stop(self, how=signal.SIGTERM):
        """Its exit code."""
        self.stopped = True
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.rest = self.process.communicate(timeout=60)[1]
        return self.process.returncode

    def connect(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, data): data is parsed if it is JSON."""
        connection = self.connect()
        try:
            text = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
            connection.request(method, path, text, headers or {})
            reply = connection.getresponse()
            data = reply.read()
            if data and reply.headers.get_content_type() == "application/json":
                data = json.loads(data)
            return reply.status, reply.headers, data
        finally:
            connection.close()

    def post(self, path, body, headers=None):
        return self.ask("POST", path, body, headers)[::2]

    def events(self, path, body):
        """The events of a stream: (name or None, data)."""
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body))
            reply = connection.getresponse()
            assert reply.status == 200, reply.read()
            assert reply.headers.get_content_type() == "text/event-stream"
            name = None
            for line in reply:
                line = line.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    yield name, line[6:] if line == "data: [DONE]" else json.loads(line[6:])
                    name = None

    def raw(self, data, timeout=20):
        """Sends bytes; all that comes back until the server closes the connection, or nothing more comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            got = b""
            try:
                connection.sendall(data)
            except OSError:
                pass  # it did not want to hear it all
            try:
                while chunk := connection.recv(65536):
                    got += chunk
                    head, _, body = got.partition(b"\r\n\r\n")
                    length = re.search(rb"(?i)content-length: (\d+)", head)
                    if length and len(body) >= int(length[1]):
                        break
            except OSError:
                pass
            return got

    def metric(self, name):
        text = self.ask("GET", "/metrics")[2].decode()
        return float(re.search(rf"^qwenmoe_{name} (\S+)$", text, re.M)[1])


def run_together(case):
    """Runs the tests of a class at the same time: those that mostly wait, each with a server of its own. Exits with 1 if one failed."""
    def run(test):
        result = unittest.TestResult()
        test.run(result)
        return result
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        results = list(pool.map(run, unittest.defaultTestLoader.loadTestsFromTestCase(case)))
    failures = [failure for result in results for failure in result.failures + result.errors]
    for test, text in failures:
        print(f"{test}\n{text}", file=sys.stderr)
    print(f"{len(results)} tests, {len(failures)} failed", file=sys.stderr)
    sys.exit(1 if failures or not results else 0)
