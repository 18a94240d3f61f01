"""A chat endpoint on loopback that judges by a rule, and fails as real ones do."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RESPONSES = re.compile(r"\[Response A\]\n(.*)\n\n\[Response B\]\n(.*)\n\nWhich", re.DOTALL)

Rule = Callable[[str, str], str]


def longer(first: str, second: str) -> str:
    """Prefer the longer response."""
    if len(first) == len(second):
        return "[[tie]]"
    return "[[A]]" if len(first) > len(second) else "[[B]]"


def always_first(first: str, second: str) -> str:
    """Prefer what is shown first, whatever it is."""
    return "[[A]]"


@dataclass
class JudgeServer:
    """A running server: its address, the bodies and headers it was sent, how busy it was."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0


@contextmanager
def judge_server(
    rule: Rule = longer,
    failures: Sequence[Any] = (),
    seconds: float = 0.0,
    reply: Callable[[str], str] | None = None,
) -> Iterator[JudgeServer]:
    """Serve `POST /v1/chat/completions` with OpenAI's JSON, answering by `rule`.

    reply:    answers the whole question instead
    failures: what the first requests get: a status, (status, headers), text for a body that is no
              completion, or seconds of silence as a float
    seconds:  that every answer takes
    """
    script, lock = list(failures), threading.Lock()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                found.bodies.append(body)
                found.headers.append({"path": self.path, **dict(self.headers.items())})
                failure = script.pop(0) if script else None
                busy += 1
                found.at_once = max(found.at_once, busy)
            time.sleep(failure if isinstance(failure, float) else seconds)
            with lock:
                busy -= 1
            if isinstance(failure, tuple):
                self.send(failure[0], {"error": {"message": "later"}}, failure[1])
            elif isinstance(failure, int):
                self.send(failure, {"error": {"message": "no"}}, {})
            elif isinstance(failure, str):
                self.send(200, failure, {})
            else:
                question = body["messages"][0]["content"]
                text = reply(question) if reply else rule(*_RESPONSES.search(question).groups())
                message = {"role": "assistant", "content": text}
                self.send(200, {"choices": [{"index": 0, "message": message}]}, {})

        def send(self, status: int, body: Any, headers: dict[str, str]) -> None:
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = JudgeServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
