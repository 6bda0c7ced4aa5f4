"""A proxy before a store, which breaks what it is told to break."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
Rule = Callable[[str], bool]


class Proxy:
    """Forward to ``port`` of this machine. Rules are patterns of ``METHOD /path``, each with a fault."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: list[str] = []
        self._rules: list[list[Any]] = []
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return where clients find it."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def on(self, pattern: str, fault: str, times: int = 10**9, *, each: bool = False) -> None:
        """Break requests that match: ``500``, ``503``, ``403``, ``drop``, ``cut`` or ``flip``.

        ``each``: as often for every request of its own, rather than in all.
        """
        self._rules.append([re.compile(pattern), fault, times, each, {}])

    def clear(self) -> None:
        """Break nothing any more."""
        self._rules.clear()
        self.seen.clear()

    def fault(self, request: str) -> str:
        """Return what is to happen to a request."""
        with self._lock:
            self.seen.append(request)
            for pattern, fault, times, each, counts in self._rules:
                if pattern.search(request):
                    key = request if each else ""
                    counts[key] = counts.get(key, 0) + 1
                    if counts[key] <= times:
                        return str(fault)
        return ""

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self._body()
            fault = proxy.fault(f"{self.command} {self.path}")
            if fault == "drop":
                self.close_connection = True
                return
            if fault.isdigit():
                code = {"403": "AccessDenied", "503": "SlowDown"}.get(fault, "InternalError")
                self._answer(int(fault), [("Content-Type", "text/xml")], _ERROR.format(code, "no").encode())
                return
            client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
            headers = {
                key: value for key, value in self.headers.items() if key.lower() != "transfer-encoding"
            }
            client.request(self.command, self.path, body, headers)
            response = client.getresponse()
            data = response.read()
            kept = [
                (key, value)
                for key, value in response.getheaders()
                if key.lower() not in {"transfer-encoding", "connection", "date", "server"}
            ]
            client.close()
            if fault == "flip" and data:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            self._answer(response.status, kept, data, len(data) // 2 if fault == "cut" else None)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(
            self, status: int, headers: list[tuple[str, str]], data: bytes, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in headers:
                if key.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(key, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler
