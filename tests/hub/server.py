"""A Hub on loopback: the requests by which huggingface_hub makes a repository, commits files and downloads them."""

import base64
import hashlib
import http.server
import json
import re
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each with its files by path.

    Attributes:
        repositories: what was committed.
        private: the names of repositories that were made private.
        asked: (method, path) of each request.
        token: what a request that writes must show.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.token = "secret"
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        """Requests are in `asked`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path_asked("POST")
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.json({"error": "Invalid username or password."}, status=401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        name, what = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(preupload|commit)/main", path).groups()
        return self.preupload(json.loads(body)) if what == "preupload" else self.commit(name, body)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        self.server.repositories.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":  # the first in versions below 1
            self.server.private.add(name)
        self.json({"url": f"{self.server.url}/{name}", "name": name})

    def preupload(self, asked):
        files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked["files"]]
        self.json({"files": files})

    def commit(self, name, body):
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[name][line["value"]["path"]] = content
        self.json({"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self):
        path = self.path_asked("GET")
        api = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(revision|tree)/[^/]+)?", path)
        files = self.server.repositories.get(api[1]) if api else None
        if api and files is None:
            return self.json({"error": "Repository not found"}, status=404, code="RepoNotFound")
        if not api:
            return self.file(path)
        if api[2] == "tree":
            tree = [{"type": "file", "path": p, "size": len(c), "oid": etag(c)} for p, c in files.items()]
            return self.json(tree)
        return self.json({"id": api[1], "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]})

    def do_HEAD(self):
        self.do_GET()

    def file(self, path):
        name, wanted = re.fullmatch(rf"/([\w-]+/[\w-]+)/resolve/{COMMIT}/(.+)", path).groups()
        content = self.server.repositories[name][wanted]
        self.answer(content, ETag=f'"{etag(content)}"', **{"X-Repo-Commit": COMMIT})

    def path_asked(self, method):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command or method, path))
        return path

    def json(self, values, status=200, code=None):
        self.answer(
            json.dumps(values).encode(),
            status=status,
            **{"Content-Type": "application/json"},
            **({"X-Error-Code": code} if code else {}),
        )

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(content):
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
