"""A small Hugging Face Hub on loopback, with faults on demand: what huggingface_hub asks for, answered as the Hub does.

Repositories live in memory and have real histories: commits with ids, branches, tags, pull requests. Large files come
from a second port, as from the Hub's content network, and ``/files/NAME`` is any publisher's plain URL. No Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = ("*.safetensors", "*.bin", "*.onnx", "*.pth", "*.pt", "*.ckpt")  # as .gitattributes has it by default


@dataclass(frozen=True)
class User:
    """Who a token belongs to."""

    name: str
    orgs: tuple[str, ...] = ()
    may_write: bool = True


@dataclass(frozen=True)
class Request:
    """One request that came in; ``host`` is "hub" or "cdn", ``headers`` have small letters."""

    method: str
    path: str
    headers: Mapping[str, str]
    host: str


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether it is kept with the large files."""

    content: bytes
    large: bool

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def id(self) -> str:
        return self.sha256 if self.large else self.git_id


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests (None: with all) whose path fits; ``hits`` counts them."""

    pattern: str
    method: str
    kind: str
    times: int | None = 1
    at: int | None = None
    status: int = 503
    call: Callable[[], object] | None = None
    hits: int = 0
    seen: threading.Event = field(default_factory=threading.Event)


@dataclass
class Repo:
    """A repository: every commit's files, and the names that point to commits."""

    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "refs/heads/main", "refs/tags/v1", "refs/pr/1"

    def find(self, revision: str) -> str | None:
        """The commit's id, by branch, tag, pull request, or full id."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.refs[name]
        return revision if revision in self.commits else None

    def commit(self, changes: Mapping[str, Blob | None], ref: str = "refs/heads/main", title: str = "Change") -> str:
        """A new commit on a ref, from {path: blob, or None to delete}; its id."""
        parent = self.refs.get(ref)
        files = {**self.commits.get(parent or "", {}), **changes}
        kept = {path: blob for path, blob in sorted(files.items()) if blob is not None}
        text = json.dumps([parent, title, len(self.commits), [(path, blob.id) for path, blob in kept.items()]])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit], self.titles[commit], self.refs[ref] = kept, title, commit
        return commit


class Answer(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def refused(status: int, code: str, message: str, **headers: str) -> Answer:
    named = {"X-Error-Code": code} if code else {}
    return Answer(status, {"error": message}, **named, **{"X-Error-Message": message}, **headers)


class Hub:
    """The server; ``with Hub() as hub`` runs it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users = {"hf_alice": User("alice", ("zoo",)), "hf_bob": User("bob"), "hf_reader": User("alice", (), False)}
        self.published: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}  # large files, by sha256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._servers: list[_Server] = []
        self._ports = (0, 0)

    # ---- running

    def start(self) -> None:
        self.over.clear()
        self._servers = [_Server(self, host, port) for host, port in zip(("hub", "cdn"), self._ports)]
        self._ports = (self._servers[0].server_port, self._servers[1].server_port)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Gone, with all its open connections; ``start`` brings it back to the same ports."""
        self.over.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.hang_up()
        self._servers = []

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    # ---- what is there

    def add_repo(self, name: str, *, private: bool = False, gated: bool = False) -> Repo:
        repo = self.repos[name] = Repo(name, private, gated)
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)
        repo.commit({".gitattributes": Blob(attributes.encode(), False)}, title="initial commit")
        return repo

    def add_file(
        self, repo: str, path: str, content: bytes, *, revision: str = "main", large: bool | None = None
    ) -> str:
        """Commit a file to a branch (made from main where it is new); the commit's id."""
        return self.add_files(repo, {path: content}, revision=revision, large=large)

    def add_files(
        self, repo: str, files: Mapping[str, bytes], *, revision: str = "main", large: bool | None = None
    ) -> str:
        place = self.repos.get(repo) or self.add_repo(repo)
        ref = f"refs/heads/{revision}"
        place.refs.setdefault(ref, place.refs["refs/heads/main"])
        return place.commit({path: self.blob(path, content, large) for path, content in files.items()}, ref)

    def add_tag(self, repo: str, tag: str, *, revision: str = "main") -> None:
        place = self.repos[repo]
        commit = place.find(revision)
        assert commit is not None, revision
        place.refs[f"refs/tags/{tag}"] = commit

    def publish(self, name: str, content: bytes) -> str:
        """A file at a publisher's plain URL, which is returned."""
        self.published[name] = content
        return f"{self.url}/files/{quote(name)}"

    def read(self, repo: str, path: str, revision: str = "main") -> bytes:
        """A file's content on the server."""
        commit = self.repos[repo].find(revision)
        assert commit is not None, revision
        return self.repos[repo].commits[commit][path].content

    def blob(self, path: str, content: bytes, large: bool | None = None) -> Blob:
        blob = Blob(content, is_large(path, len(content)) if large is None else large)
        if blob.large:
            self.stored[blob.sha256] = content
        return blob

    # ---- what came in

    def count(self, pattern: str = "*", method: str = "*") -> int:
        """How many requests fit: ``pattern`` is of the path, or of the repository's file that was asked for."""
        return sum(fnmatch(seen.method, method) and self.fits(seen.path, pattern) for seen in list(self.requests))

    def forget(self) -> None:
        self.requests.clear()

    def fits(self, path: str, pattern: str) -> bool:
        route = urlsplit(path)
        named = parse_qs(route.query).get("file", [""])[0]
        names = [unquote(route.path), named]
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", route.path):
            names += [unquote(found[2]), f"{found[1]}/{unquote(found[2])}"]
        if named:
            repo = unquote(route.path).removeprefix("/repos/").rpartition("/")[0]
            names.append(f"{repo}/{named}")
        return any(fnmatch(name, pattern) for name in names)

    # ---- what goes wrong

    def fail(self, pattern: str, status: int = 503, *, times: int | None = 1, method: str = "GET") -> Fault:
        """Answer with an error."""
        return self._fault(Fault(pattern, method, "fail", times, status=status))

    def drop(self, pattern: str, after: int | None = None, *, times: int | None = 1, method: str = "GET") -> Fault:
        """Close the connection after so many bytes of the body, or (None) without an answer."""
        return self._fault(Fault(pattern, method, "drop", times, at=after))

    def corrupt(self, pattern: str, at: int = 0, *, times: int | None = 1) -> Fault:
        """Change one byte of the file (counted from its end where negative); length and ETag stay."""
        return self._fault(Fault(pattern, "GET", "corrupt", times, at=at))

    def truncate(self, pattern: str, to: int, *, times: int | None = 1) -> Fault:
        """Send so many bytes of the body, with a Content-Length that says that this is all."""
        return self._fault(Fault(pattern, "GET", "truncate", times, at=to))

    def stall(self, pattern: str, after: int | None = None, *, times: int | None = 1, method: str = "GET") -> Fault:
        """Never answer, or (``after``) no more after so many bytes; ``seen`` is set when it has come so far."""
        return self._fault(Fault(pattern, method, "stall", times, at=after))

    def before(self, pattern: str, call: Callable[[], object], *, method: str = "GET", times: int | None = 1) -> Fault:
        """Do something just before the answer, which is the usual one."""
        return self._fault(Fault(pattern, method, "call", times, call=call))

    def heal(self) -> None:
        self.faults.clear()

    def _fault(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                due = fault.times is None or fault.hits < fault.times
                if due and fnmatch(method, fault.method) and self.fits(path, fault.pattern):
                    fault.hits += 1
                    return fault
        return None


def is_large(path: str, size: int) -> bool:
    return size > 10 << 20 or any(fnmatch(path.rpartition("/")[2], pattern) for pattern in LARGE)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, host: str, port: int) -> None:
        self.hub, self.host = hub, host
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            self.hub.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    fault: Fault | None

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, self.path, headers, self.server.host))
        self.body = self._read_body()
        self.fault = hub.take_fault(self.command, self.path)
        try:
            if self.fault is not None:
                self._before(self.fault)
            self._route()
        except Answer as answer:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _before(self, fault: Fault) -> None:
        if fault.kind == "call" and fault.call is not None:
            fault.call()
        elif fault.kind == "fail":
            raise Answer(fault.status, {"error": "the server is told to fail"})
        elif fault.kind in ("drop", "stall") and fault.at is None:
            self._leave(fault)

    def _leave(self, fault: Fault) -> None:
        fault.seen.set()
        if fault.kind == "stall":
            self.server.hub.over.wait()
        self.close_connection = True
        raise ConnectionAbortedError("told to")

    def _send(self, answer: Answer) -> None:
        content = answer.body if isinstance(answer.body, bytes) else b""
        if answer.body is not None and not isinstance(answer.body, bytes):
            content = json.dumps(answer.body).encode()
            answer.headers.setdefault("Content-Type", "application/json; charset=utf-8")
        fault = self.fault if self.fault is not None and self.command != "HEAD" and answer.status < 300 else None
        if fault is not None and fault.kind == "truncate":
            content = content[: fault.at]
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind in ("drop", "stall"):
            self.wfile.write(content[: fault.at])
            self._leave(fault)
        self.wfile.write(content)

    # ---- routes

    def _route(self) -> None:
        place = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(place.query).items()}
        for host, methods, pattern, handle in ROUTES:
            found = re.fullmatch(pattern, place.path) if host == self.server.host and self.command in methods else None
            if found:
                handle(self, **{name: unquote(value) for name, value in found.groupdict().items() if value is not None})
        raise refused(404, "", f"no such page: {place.path}")

    def resolve(self, repo: str, revision: str, file: str) -> None:
        place, commit = self._readable(repo, revision)
        blob = place.commits[commit].get(file)
        if blob is None:
            raise refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.id}"', "Accept-Ranges": "bytes"}
        if not blob.large:
            self._file(blob.content, headers)
        location = f"{self.server.hub.cdn}/repos/{repo}/{blob.sha256}?file={quote(file)}&signature=of-the-hub"
        linked = {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.sha256}"'}
        raise Answer(302, b"", **headers, **linked, Location=location)

    def stored(self, sha256: str, **_: str) -> None:
        content = self.server.hub.stored.get(sha256)
        if content is None or self.query.get("signature") != "of-the-hub":
            raise Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        self._file(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"})

    def publication(self, name: str) -> None:
        content = self.server.hub.published.get(name)
        if content is None:
            raise Answer(404, b"<html>Not Found</html>", **{"Content-Type": "text/html"})
        self._file(content, {"Accept-Ranges": "bytes"})

    def _file(self, content: bytes, headers: dict[str, str]) -> None:
        headers["Content-Type"] = "application/octet-stream"
        if self.fault is not None and self.fault.kind == "corrupt" and self.fault.at is not None:
            changed = bytearray(content)
            changed[self.fault.at] ^= 0xFF
            content = bytes(changed)
        if self.command == "HEAD":
            raise Answer(200, b"", **{**headers, "Content-Length": str(len(content))})
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            raise Answer(200, content, **headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            raise Answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        raise Answer(206, content[first : last + 1], **headers)

    # ---- who may do what

    def _user(self) -> User | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.server.hub.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise refused(401, "", "Invalid credentials in Authorization header")
        return user

    def _readable(self, repo: str, revision: str = "main") -> tuple[Repo, str]:
        user, place = self._user(), self.server.hub.repos.get(repo)
        owns = user is not None and repo.partition("/")[0] in (user.name, *user.orgs)
        if place is None or (place.private and not owns):
            raise refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if place.gated and not owns and (user is None or user.name not in place.granted):
            if user is None:
                text = "You must have access to it and be authenticated to access it. Please log in."
                raise refused(401, "GatedRepo", f"Access to model {repo} is restricted. {text}")
            text = f"Visit {self.server.hub.url}/{repo} to ask for access."
            raise refused(
                403, "GatedRepo", f"Access to model {repo} is restricted and you are not in the authorized list. {text}"
            )
        commit = place.find(revision)
        if commit is None:
            raise refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return place, commit

    def _writable(self, repo: str, revision: str = "main", pull: bool = False) -> tuple[Repo, str]:
        place, commit = self._readable(repo, revision)
        user = self._user()
        if user is None:
            raise refused(401, "", "Invalid username or password.")
        owns = repo.partition("/")[0] in (user.name, *user.orgs)
        if not user.may_write or not (owns or pull):
            raise refused(403, "", f"Authorization error: you have no right to write to {repo}")
        return place, commit

    # ---- the API

    def create_repo(self) -> None:
        user, wish = self._user(), json.loads(self.body)
        if user is None:
            raise refused(401, "", "Invalid username or password.")
        owner = wish.get("organization") or user.name
        repo = f"{owner}/{wish['name']}"
        url = f"{self.server.hub.url}/{repo}"
        if not user.may_write or owner not in (user.name, *user.orgs):
            text = f'You don\'t have the rights to create a model under the namespace "{owner}"'
            raise refused(403, "", text)
        if repo in self.server.hub.repos:
            raise Answer(409, {"error": "You already created this model repo", "url": url, "name": repo})
        self.server.hub.add_repo(repo, private=wish.get("private") is True or wish.get("visibility") == "private")
        raise Answer(200, {"url": url, "name": repo})

    def info(self, repo: str, revision: str = "main") -> None:
        place, commit = self._readable(repo, revision)
        siblings = [{"rfilename": path} for path in place.commits[commit]]
        facts = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": place.private, "tags": []}
        raise Answer(200, {**facts, "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, repo: str, revision: str, path: str = "") -> None:
        place, commit = self._readable(repo, revision)
        inside = {name: blob for name, blob in place.commits[commit].items() if not path or name.startswith(f"{path}/")}
        raise Answer(200, [entry(name, blob) for name, blob in inside.items()])

    def paths_info(self, repo: str, revision: str) -> None:
        place, commit = self._readable(repo, revision)
        asked = self._fields().get("paths", [])
        raise Answer(200, [entry(name, blob) for name, blob in place.commits[commit].items() if name in asked])

    def _fields(self) -> dict[str, Any]:
        if "json" in self.headers.get("Content-Type", ""):
            return dict(json.loads(self.body))
        return dict(parse_qs(self.body.decode()))

    def refs(self, repo: str) -> None:
        place, _ = self._readable(repo)
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        listed = {
            kind: [
                {"name": ref.removeprefix(start), "ref": ref, "targetCommit": commit}
                for ref, commit in place.refs.items()
                if ref.startswith(start)
            ]
            for kind, start in kinds.items()
        }
        raise Answer(200, {**listed, "converts": []})

    def new_branch(self, repo: str, branch: str) -> None:
        place, commit = self._writable(repo, (json.loads(self.body or b"{}")).get("startingPoint") or "main")
        if f"refs/heads/{branch}" in place.refs:
            raise refused(409, "", f"Reference already exists: {branch}")
        place.refs[f"refs/heads/{branch}"] = commit
        raise Answer(201, {"success": True})

    def new_tag(self, repo: str, revision: str) -> None:
        place, commit = self._writable(repo, revision)
        tag = json.loads(self.body)["tag"]
        if f"refs/tags/{tag}" in place.refs:
            raise refused(409, "", f"Tag reference exists already: {tag}")
        place.refs[f"refs/tags/{tag}"] = commit
        raise Answer(201, {"success": True})

    def whoami(self) -> None:
        user = self._user()
        if user is None:
            raise refused(401, "", "Invalid username or password.")
        raise Answer(200, {"type": "user", "name": user.name, "orgs": [{"name": name} for name in user.orgs]})

    def check_card(self) -> None:
        import yaml  # huggingface_hub needs it too

        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        if found is None:
            raise Answer(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            facts = yaml.safe_load(found[1])
        except yaml.YAMLError as error:
            raise Answer(400, {"errors": [{"message": f"YAML Error: {error}"}], "warnings": []}) from None
        if not isinstance(facts, dict) or not isinstance(facts.get("license", ""), (str, list)):
            raise Answer(400, {"errors": [{"message": '"license" must be a string'}], "warnings": []})
        raise Answer(200, {"errors": [], "warnings": []})

    def harnesses(self) -> None:
        raise Answer(200, {"standardEnvVars": [], "harnesses": {}})

    # ---- a push

    def preupload(self, repo: str, revision: str) -> None:
        place, commit = self._writable(repo, revision, pull="create_pr" in self.query)
        there, files = place.commits[commit], []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            known = {"oid": there[file["path"]].id} if file["path"] in there else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        raise Answer(200, {"files": files, "commitOid": commit})

    def large_batch(self, repo: str) -> None:
        self._readable(repo)
        if self._user() is None:
            raise refused(401, "", "Invalid username or password.")
        hub, objects = self.server.hub, []
        for wanted in json.loads(self.body)["objects"]:
            facts = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in hub.stored:
                upload = f"{hub.cdn}/upload/{wanted['oid']}?signature=of-the-hub"
                verify = f"{hub.url}/{repo}.git/info/lfs/objects/verify"
                facts["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(facts)
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def large_upload(self, sha256: str) -> None:
        if self.query.get("signature") != "of-the-hub" or hashlib.sha256(self.body).hexdigest() != sha256:
            raise Answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        self.server.hub.stored[sha256] = self.body
        raise Answer(200, b"", ETag=f'"{hashlib.md5(self.body).hexdigest()}"')

    def large_verify(self, repo: str) -> None:
        self._readable(repo)
        told = json.loads(self.body)
        if self._user() is None or len(self.server.hub.stored.get(told["oid"], b"")) != told["size"]:
            raise refused(400, "", "the object was not uploaded")
        raise Answer(200, {"message": "ok"})

    def commit(self, repo: str, revision: str) -> None:
        pull = "create_pr" in self.query
        place, parent = self._writable(repo, revision, pull=pull)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", parent) != parent:
            raise refused(412, "", "A commit has happened since. Please refresh and try again.")
        changes: dict[str, Blob | None] = {}
        for line in lines:
            changes |= self._change(line["key"], line["value"], place.commits[parent])
        hub = self.server.hub
        answer = {"success": True, "hookOutput": ""}
        if pull:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in place.refs)
            ref = f"refs/pr/{number}"
            place.refs[ref] = parent
            answer["pullRequestUrl"] = f"{hub.url}/{repo}/discussions/{number}"
        else:
            ref = f"refs/heads/{revision}" if f"refs/heads/{revision}" in place.refs else revision
        oid = place.commit(changes, ref, header["summary"])
        raise Answer(200, {**answer, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}"})

    def _change(self, key: str, value: dict[str, Any], there: Mapping[str, Blob]) -> dict[str, Blob | None]:
        if key == "file":
            return {value["path"]: Blob(base64.b64decode(value["content"]), False)}
        if key == "lfsFile":
            content = self.server.hub.stored.get(value["oid"])
            if content is None:
                raise refused(400, "", f"the large file {value['path']} was not uploaded")
            return {value["path"]: Blob(content, True)}
        if key == "deletedFile" and value["path"] not in there:
            raise refused(404, "EntryNotFound", "A file with this name doesn't exist")
        if key.startswith("deleted"):
            inside = value["path"].rstrip("/") + "/"
            return {path: None for path in there if path == value["path"] or path.startswith(inside)}
        return {}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """A file as the Hub lists it."""
    facts: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_id}
    if blob.large:
        facts["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return facts


REPO = r"(?P<repo>[^/]+/[^/]+?)"
MODEL = rf"/api/models/{REPO}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, tuple[str, ...], str, Callable[..., None]]] = [
    ("hub", ("GET", "HEAD"), r"/files/(?P<name>.+)", Handler.publication),
    ("hub", ("GET", "HEAD"), rf"/{REPO}/resolve/{REVISION}/(?P<file>.+)", Handler.resolve),
    ("cdn", ("GET", "HEAD"), rf"/repos/{REPO}/(?P<sha256>[0-9a-f]+)", Handler.stored),
    ("cdn", ("PUT",), r"/upload/(?P<sha256>[0-9a-f]+)", Handler.large_upload),
    ("hub", ("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", Handler.large_batch),
    ("hub", ("POST",), rf"/{REPO}\.git/info/lfs/objects/verify", Handler.large_verify),
    ("hub", ("POST",), r"/api/repos/create", Handler.create_repo),
    ("hub", ("POST",), r"/api/validate-yaml", Handler.check_card),
    ("hub", ("GET",), r"/api/whoami-v2", Handler.whoami),
    ("hub", ("GET",), r"/api/agent-harnesses", Handler.harnesses),
    ("hub", ("GET",), rf"{MODEL}(/revision/{REVISION})?", Handler.info),
    ("hub", ("GET",), rf"{MODEL}/tree/{REVISION}(/(?P<path>.+))?", Handler.tree),
    ("hub", ("GET",), rf"{MODEL}/refs", Handler.refs),
    ("hub", ("POST",), rf"{MODEL}/paths-info/{REVISION}", Handler.paths_info),
    ("hub", ("POST",), rf"{MODEL}/branch/(?P<branch>[^/]+)", Handler.new_branch),
    ("hub", ("POST",), rf"{MODEL}/tag/{REVISION}", Handler.new_tag),
    ("hub", ("POST",), rf"{MODEL}/preupload/{REVISION}", Handler.preupload),
    ("hub", ("POST",), rf"{MODEL}/commit/{REVISION}", Handler.commit),
]
