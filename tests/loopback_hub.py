"""A Hugging Face hub on loopback: what the real client asks of it to make, fill, look at and fetch repositories."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_canary0123456789abcdefghijklmnop"


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    seen_public: bool = False  # whether a file ever lay in it while it was public
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()

    def note(self) -> None:
        self.seen_public |= bool(self.files) and not self.private


@dataclass
class Hub:
    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    deaf_to_privacy: bool = False  # makes every repository public, whatever is asked for
    drops: str = ""  # a file that a commit loses
    fails: dict[str, int] = field(default_factory=dict)  # part of a path to an HTTP status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def answer(self, status=200, value=None, content=b"", **headers):
        body = json.dumps(value).encode() if value is not None else content
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, words):
        self.answer(status, {"error": words}, X_Error_Code=code, X_Error_Message=words)

    def serve(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        for part, status in self.hub.fails.items():
            if part in path:
                key = self.headers.get("Authorization")
                return self.refuse(status, "", f"the hub says {status} to {key}")
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                return act(self, body, *match.groups())
        return self.refuse(404, "EntryNotFound", path)

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def repo(self, name):
        """The repository, where it is there and the caller may see it."""
        repo = self.hub.repos.get(name)
        if repo and repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            repo = None
        if repo is None:
            self.refuse(404, "RepoNotFound", "Repository not found")
        return repo

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "", "Invalid username or password.")
        if name in self.hub.repos:
            return self.refuse(409, "", "You already created this dataset repo")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private and not self.hub.deaf_to_privacy)
        return self.answer(value={"url": f"{self.hub.url}/datasets/{name}", "name": name})

    def info(self, _body, name, _revision):
        if repo := self.repo(name):
            siblings = [{"rfilename": path} for path in repo.files]
            self.answer(
                value={"id": name, "private": repo.private, "sha": repo.sha, "siblings": siblings}
            )

    def settings(self, body, name):
        if repo := self.repo(name):
            asked = json.loads(body)
            repo.private = asked.get("visibility", "") == "private" or asked.get("private") is True
            repo.note()
            self.answer(value={})

    def preupload(self, body, name):
        if self.repo(name):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer(value={"files": files})

    def commit(self, body, name):
        if not (repo := self.repo(name)):
            return
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file" and row["value"]["path"] != self.hub.drops:
                repo.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            if row["key"] == "deletedFile":
                del repo.files[row["value"]["path"]]
        repo.commits += 1
        repo.note()
        url = f"{self.hub.url}/datasets/{name}/commit/{repo.sha}"
        self.answer(value={"commitUrl": url, "commitOid": repo.sha})

    def tree(self, _body, name, _revision):
        if repo := self.repo(name):
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
                for path, content in repo.files.items()
            ]
            self.answer(value=rows)

    def resolve(self, _body, name, _revision, path):
        if repo := self.repo(name):
            content = repo.files.get(path)
            if content is None:
                return self.refuse(404, "EntryNotFound", path)
            self.answer(content=content, ETag=f'"{_blob(content)}"', X_Repo_Commit=repo.sha)

    def yaml(self, _body):
        self.answer(value={})


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.yaml),
    ("GET", rf"/api/(?:datasets|models)/{NAME}(?:/revision/(\w+))?", Handler.info),
    ("PUT", rf"/api/(?:datasets|models)/{NAME}/settings", Handler.settings),
    ("POST", rf"/api/(?:datasets|models)/{NAME}/preupload/main", Handler.preupload),
    ("POST", rf"/api/(?:datasets|models)/{NAME}/commit/main", Handler.commit),
    ("GET", rf"/api/(?:datasets|models)/{NAME}/tree/(\w+)", Handler.tree),
    ("GET", rf"(?:/datasets)?/{NAME}/resolve/(\w+)/(.+)", Handler.resolve),
    ("HEAD", rf"(?:/datasets)?/{NAME}/resolve/(\w+)/(.+)", Handler.resolve),
)


@contextmanager
def loopback_hub():
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
