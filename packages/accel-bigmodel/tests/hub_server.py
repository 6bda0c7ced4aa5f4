"""A small Hub on this machine: models in memory, the requests of the Hub's library, and faults."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeHub:
    """Serve ``models``: name -> {file: bytes}. ``faults``: name -> what is wrong with it."""

    def __init__(self):
        self.models = {}
        self.faults = {}
        self.facts = {}
        self.requests = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            # Version 1.0 of the protocol: no connection outlives its request.
            def log_message(self, *words):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, request, *, body):
        path = urlsplit(request.path)
        parts = [unquote(part) for part in path.path.strip("/").split("/")]
        sent_range = request.headers.get("range")
        self.requests.append((request.command, path.path, sent_range))
        if parts[:2] == ["api", "models"]:
            revision = None
            if "revision" in parts:
                place = parts.index("revision")
                revision, parts = parts[place + 1], parts[:place]
            name = "/".join(parts[2:])
            if self.refused(request, name, revision):
                return
            about = self.about(name, sizes="blobs" in parse_qs(path.query))
            self.send(request, 200, json.dumps(about).encode(), body=body, kind="application/json")
            return
        if "resolve" not in parts:
            self.send(request, 404, b"")
            return
        place = parts.index("resolve")
        name, file = "/".join(parts[:place]), "/".join(parts[place + 2 :])
        if self.refused(request, name, parts[place + 1]):
            return
        data = self.models[name].get(file)
        if data is None:
            self.send(request, 404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return
        self.file(request, name, data, sent_range, body=body)

    def file(self, request, name, data, sent_range, *, body):
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.commit(name)}
        if not sent_range:
            self.send(request, 200, data, headers, body=body)
            return
        first, last = (int(number) for number in sent_range.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        if self.faults.get(name) == "short ranges":
            part = part[: len(part) // 2]
        if self.faults.get(name) == "breaks off":
            # Promised and not sent: the connection ends in the middle.
            request.send_response(206)
            request.send_header("Content-Length", str(len(part)))
            request.end_headers()
            request.wfile.write(part[: len(part) // 2])
            request.close_connection = True
            return
        self.send(request, 206, part, headers, body=body)

    def refused(self, request, name, revision):
        fault = self.faults.get(name)
        if fault == "gated":
            self.send(
                request,
                403,
                b"",
                {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."},
            )
        elif fault == "unauthorized":
            self.send(request, 401, b"", {"X-Error-Message": "Invalid username or password."})
        elif fault == "broken":
            self.send(request, 500, b"", {"X-Error-Message": "Internal Error"})
        elif name not in self.models:
            self.send(
                request, 404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        elif revision not in (None, "main", self.commit(name)):
            self.send(
                request, 404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev"}
            )
        else:
            return False
        return True

    def about(self, name, *, sizes):
        siblings = [
            {"rfilename": file} | ({"size": len(data)} if sizes else {})
            for file, data in self.models[name].items()
        ]
        return {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": self.commit(name),
            "private": False,
            "tags": [],
            "siblings": siblings,
            **self.facts.get(name, {}),
        }

    def commit(self, name):
        return hashlib.sha1(name.encode()).hexdigest()

    def send(self, request, code, data, headers=(), *, body=True, kind="application/octet-stream"):
        request.send_response(code)
        for key, value in {**dict(headers), "Content-Length": str(len(data)), "Content-Type": kind}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(data)
