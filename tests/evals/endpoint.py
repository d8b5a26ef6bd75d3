"""A server on the loopback that speaks like an OpenAI-compatible endpoint, and misbehaves on request."""

import contextlib
import functools
import json
import socket
import struct
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "judge-1"
# What the judge asks at its start to learn how the server answers.
TRIAL = "How many legs does a cat have?"
USED = (100, 10)


def completion(text, logprobs=None, usage=USED, model=MODEL, **message):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}
    if logprobs is not None:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


def says(text, **more):
    return lambda handler: handler.send(200, json.dumps(completion(text, **more)).encode())


def weighs(logprobs):
    return says("A", logprobs=logprobs)


def status(code, message="no", **headers):
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda handler: handler.send(code, body, headers)


def body(content):
    return lambda handler: handler.send(200, content)


def slow(seconds, then):
    def answer(handler):
        time.sleep(seconds)
        then(handler)

    return answer


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def dripping(seconds):
    """A body that never stands still for long and never ends."""

    def answer(handler):
        handler.start(200, 10_000)
        while not handler.server.ending.wait(seconds):
            handler.wfile.write(b" ")

    return answer


def endless(handler):
    """A valid beginning and then text for as long as the reader reads, up to 64 MiB."""
    begun = b'{"choices": [{"message": {"content": "[[A]]'
    handler.start(200, len(begun) + (64 << 20))
    handler.wfile.write(begun)
    for _ in range(64):
        handler.wfile.write(b"x" * (1 << 20))
        handler.server.sent += 1 << 20


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def start(self, code, length, headers=()):
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, code, content, headers=()):
        self.start(code, len(content), headers)
        self.wfile.write(content)

    def do_GET(self):
        if self.server.offers is None:
            self.send(404, b"{}")
        else:
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in self.server.offers]
            self.send(200, json.dumps({"object": "list", "data": data}).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            trial = TRIAL in request["messages"][0]["content"]
            (server.trials if trial else server.requests).append(request)
            server.times.append(time.monotonic())
            queue = server.trial if trial else server.script
            answer = queue.popleft() if queue else server.otherwise
            if server.by_content is not None and not trial:
                answer = functools.partial(server.by_content, request=request)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            answer(self) if callable(answer) else answer
        finally:
            with server.lock:
                server.at_once -= 1


class Stub(ThreadingHTTPServer):
    """Replies from `script` in turn, then `otherwise`; to the judge's first trial from `trial`; or as `by_content` says.

    `requests` and `trials` hold the bodies of the requests, `most_at_once` the most that were under way together.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.trial, self.otherwise = deque(), deque(), says("[[A]]")
        self.requests, self.trials, self.times, self.keys = [], [], [], set()
        self.by_content = None
        self.offers, self.sent, self.at_once, self.most_at_once = [MODEL], 0, 0, 0
        self.lock, self.ending = threading.Lock(), threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """A client that hangs up is what some tests are about."""


@contextlib.contextmanager
def serving():
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()
