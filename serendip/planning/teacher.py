"""A teacher: who answers prompts with pictures, be it a server or a checkpoint.

A server speaks OpenAI's chat completions, as vLLM's does; pictures go to it as data URLs. A
checkpoint is any that ``Mllm`` opens. Knows no item and no label.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import httpx2
from PIL import Image as Pillow

from serendip.config import TeacherConfig
from serendip.core import CorruptArtifact, InvalidRequest, SerendipError
from serendip.planning.prompt import Image, Prompt

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED_FOR_GOOD = frozenset({401, 403, 404, 405})  # whatever is asked
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_MAX_ANSWER_BYTES = 1 << 20
_SHOWN_CHARS = 200  # of what a server says
_CONNECT_S = 10.0
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        at: which question.
        text: what the teacher wrote, None if it would not.
        reason: why not.
    """

    at: int
    text: str | None
    reason: str = ""


class Teacher(Protocol):
    """Answers questions.

    Attributes:
        name: who it is; another name, other answers.
    """

    name: str

    def ask(self, questions: Sequence[Prompt]) -> Iterator[Answer]:
        """One answer a question, in whatever order they come.

        Raises:
            SerendipError: the teacher cannot be asked at all.
        """
        ...


def open_teacher(source: str, config: TeacherConfig) -> Teacher:
    """The teacher at an address, in a folder or of a hub name (``planner.teacher``).

    A checkpoint is not loaded before it is asked something. A server is asked for its model's name,
    unless ``config.model`` says it.

    Raises:
        InvalidRequest: the address is none, or the environment lacks the key.
        SerendipError: the server does not answer.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source):
        return ServedTeacher(source, config)
    return OpenedTeacher(source, config)


# --- a checkpoint ------------------------------------------------------------------------


class OpenedTeacher:
    """An image-text checkpoint of transformers, which answers greedily."""

    def __init__(self, checkpoint: str, config: TeacherConfig) -> None:
        self.checkpoint = checkpoint
        self.name = f"{checkpoint} {state_of(Path(checkpoint))}".strip()
        self._config = config

    def ask(self, questions: Sequence[Prompt]) -> Iterator[Answer]:
        from serendip.planning.decode import write  # loads torch
        from serendip.planning.head import Head
        from serendip.planning.mllm import Mllm
        from serendip.planning.session import TorchSession
        from serendip.planning.tuning import device_of

        try:
            mllm = Mllm.open(self.checkpoint)
            mllm.model.to(device_of())
        except CorruptArtifact as e:
            raise CorruptArtifact(
                e.message,
                field="planner.teacher",
                value=self.checkpoint,
                remedy="Name a checkpoint, or a server as http://HOST:PORT.",
            ) from e
        head = Head.of(mllm.model)
        for at in range(0, len(questions), self._config.at_once):
            batch = mllm.encode(questions[at : at + self._config.at_once])
            session = TorchSession(mllm.model, head)
            rows = write(session, batch, mllm.end_tokens, self._config.max_tokens)
            for i, tokens in enumerate(rows):
                yield Answer(at + i, mllm.tokenizer.decode(tokens, skip_special_tokens=True))


def state_of(folder: Path) -> str:
    """The names, sizes and times of change of a folder's files, in 8 digits; "" of a hub name."""
    if not folder.is_dir():
        return ""
    files = [(p.name, p.stat()) for p in sorted(folder.iterdir()) if p.is_file()]
    about = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(about.encode()).hexdigest()[:8]


# --- a server ----------------------------------------------------------------------------


class _RefusedError(Exception):
    """The server will not answer this question; says why."""


class ServedTeacher:
    """A server of OpenAI's chat completions; several questions are under way at once.

    What is full, busy, slow or away is tried again after a wait that doubles, or as long as the
    server asks for (Retry-After). The key is sent, and stands in nothing that is said or written.
    """

    def __init__(self, address: str, config: TeacherConfig) -> None:
        self._address = _checked(address)
        self._config = config
        self._key = _key(config.key_env)
        self._stop = Event()
        with self._client() as client:
            model = config.model or self._first_model(client)
        self._model = model
        self.name = f"{self._address} {model}"

    def ask(self, questions: Sequence[Prompt]) -> Iterator[Answer]:
        self._stop.clear()
        with self._client() as client, ThreadPoolExecutor(self._config.at_once) as threads:
            try:
                yield from self._ask(client, threads, questions)
            finally:  # or an interrupted run would wait for retries, and for slow answers
                self._stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                client.close()

    def _ask(
        self, client: httpx2.Client, threads: ThreadPoolExecutor, questions: Sequence[Prompt]
    ) -> Iterator[Answer]:
        left = iter(enumerate(questions))
        under_way: dict[Future[str], int] = {}
        while True:
            for at, question in islice(left, self._config.at_once - len(under_way)):
                under_way[threads.submit(self._complete, client, question)] = at
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                at = under_way.pop(future)
                try:
                    yield Answer(at, future.result())
                except _RefusedError as e:
                    yield Answer(at, None, str(e))

    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            timeout=httpx2.Timeout(self._config.timeout_s, connect=_CONNECT_S),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=self._config.at_once),
        )

    def _first_model(self, client: httpx2.Client) -> str:
        try:
            return str(self._call(client, "GET", "/v1/models")["data"][0]["id"])
        except (_RefusedError, LookupError, TypeError) as e:
            raise InvalidRequest(
                f"does not name its models ({self._said(str(e))})",
                field="planner.teacher",
                value=self._address,
                remedy="Set teacher.model.",
            ) from None

    def _complete(self, client: httpx2.Client, question: Prompt) -> str:
        images = iter(question.images)
        messages = [
            {**message, "content": [_part(part, images) for part in message["content"]]}
            for message in question.messages
        ]
        ask = {"model": self._model, "messages": messages, "temperature": 0,
               "max_tokens": self._config.max_tokens}  # fmt: skip
        answer = self._call(client, "POST", "/v1/chat/completions", ask)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise _RefusedError("an answer without choices") from None
        if not isinstance(text, str):
            raise _RefusedError("an answer without text")
        return text

    def _call(self, client: httpx2.Client, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer.

        Raises:
            _RefusedError: this request, or what came back, is of no use.
            SerendipError: no request is of any.
        """
        wait_s = _FIRST_WAIT_S
        for attempt in range(1, self._config.tries + 1):
            asked = None
            try:
                with client.stream(method, f"{self._address}{path}", json=body) as response:
                    data = _read(response, time.monotonic() + self._config.timeout_s)
            except (httpx2.HTTPError, httpx2.StreamError) as e:
                trouble = f"{type(e).__name__}: {self._said(str(e))}"
            else:
                if response.is_success:
                    return _json(response, data)
                said = f"{response.status_code}: {self._said(data.decode(errors='replace'))}"
                if response.status_code in _REFUSED_FOR_GOOD or response.is_redirect:
                    raise InvalidRequest(
                        f"refuses every request ({said})",
                        field="planner.teacher",
                        value=self._address,
                        remedy="See to the address, teacher.model and the key in the variable "
                        "that teacher.key_env names.",
                    )
                if response.status_code not in _RETRIED:
                    raise _RefusedError(said)
                trouble, asked = said, _retry_after(response)
            if attempt < self._config.tries:
                pause = wait_s * random.uniform(0.5, 1) if asked is None else asked
                if self._stop.wait(min(pause, _LONGEST_WAIT_S)):
                    break
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        raise SerendipError(
            f"did not answer, tried {self._config.tries} times ({trouble})",
            field="planner.teacher",
            value=self._address,
            remedy="Start it, and run the same command again: what it has answered is kept.",
        )

    def _said(self, text: str) -> str:
        """What a server says, short and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return " ".join(text.split())[:_SHOWN_CHARS]


def _checked(address: str) -> str:
    """An address without /v1. Raises InvalidRequest, which does not repeat a password."""
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    wrong = ""
    if url.scheme not in ("http", "https") or not url.host:
        wrong = "is no http:// or https:// address"
    elif url.userinfo or url.query or url.fragment:
        wrong = "holds more than an address"
    if wrong:
        raise InvalidRequest(
            wrong,
            field="planner.teacher",
            value=f"{url.scheme}://{url.host}",
            remedy="Write http://HOST:PORT; a key goes into the variable of teacher.key_env.",
        )
    return str(url).rstrip("/").removesuffix("/v1")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise InvalidRequest(
            "is not set in the environment",
            field="teacher.key_env",
            value=variable,
            remedy="Export the server's key under that name.",
        )
    return key


def _read(response: httpx2.Response, until: float) -> bytes:
    data = b""
    for chunk in response.iter_bytes():
        data += chunk
        if time.monotonic() > until:
            raise httpx2.ReadTimeout("the answer comes too slowly")
        if len(data) > _MAX_ANSWER_BYTES:
            raise _RefusedError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    return data


def _json(response: httpx2.Response, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        kind = response.headers.get("content-type", "nothing")
        raise _RefusedError(f"an answer that is no JSON ({kind})") from None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait; None if it says none in seconds."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _part(part: dict[str, str], images: Iterator[Image]) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    file = io.BytesIO()
    Pillow.fromarray(next(images)).save(file, "JPEG", quality=_JPEG_QUALITY)
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
