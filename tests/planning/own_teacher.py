"""A server of OpenAI's chat completions that says what a test has it say: real HTTP, port 0."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; text is what the model wrote, unless a body says something else."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Asked:
    """A question as it came: all of its words, its pictures decoded, and how it was sent."""

    words: str
    pictures: list[np.ndarray]
    headers: dict[str, str]
    body: dict


@dataclass
class OwnTeacher:
    url: str
    asked: list[Asked]
    models: int = 0


@contextlib.contextmanager
def serve(script: Callable[[Asked, int], Reply | str]) -> Iterator[OwnTeacher]:
    """Answers each question by ``script(question, how many came before)``."""
    import base64

    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            teacher.models += 1
            self.reply(200, {}, json.dumps({"data": [{"id": "scripted"}]}).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = body["messages"][0]["content"]
            words = "\n".join(p["text"] for p in parts if p["type"] == "text")
            urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
            data = [base64.b64decode(u.removeprefix("data:image/jpeg;base64,")) for u in urls]
            pictures = [np.asarray(Image.open(io.BytesIO(d))) for d in data]
            asked = Asked(words, pictures, dict(self.headers), body)
            with lock:
                before = len(teacher.asked)
                teacher.asked.append(asked)
            reply = script(asked, before)
            reply = Reply(reply) if isinstance(reply, str) else reply
            said = {"choices": [{"message": {"role": "assistant", "content": reply.text}}]}
            body = reply.body if reply.body is not None else json.dumps(said).encode()
            self.reply(reply.status, reply.headers, body)

        def reply(self, status, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    teacher = OwnTeacher(f"http://127.0.0.1:{server.server_port}", [])
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield teacher
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
