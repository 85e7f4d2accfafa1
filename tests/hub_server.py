"""A server on 127.0.0.1 that speaks the Hub's protocol, for tests with the stock clients.

    with HubServer() as hub:
        hub.fail(times=1, status=500, method="POST", path=r"/commit/")
        subprocess.run([sys.executable, "-c", SCRIPT], env=hub_environment(hub, tmp_path))
        hub.repos["user/name"].files()

It supports model repositories: create, branches, uploads (plain and by LFS), commits, listings and downloads. A new
repository holds a `.gitattributes`, as on the Hub. The one token may write to every namespace. There are no datasets,
spaces, tags, pull requests, Xet storage or multipart uploads.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import yaml

LFS_PATTERNS = ["*.7z", "*.arrow", "*.bin", "*.ckpt", "*.gz", "*.h5", "*.joblib", "*.msgpack", "*.npy", "*.npz",
                "*.onnx", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt", "*.pth", "*.safetensors", "*.tar",
                "*.tflite", "*.tgz", "*.xz", "*.zip", "*.zst", "*tfevents*"]  # fmt: skip
LARGEST_PLAIN_FILE = 10_000_000  # bytes


def hub_environment(hub: "HubServer", cache: Path) -> dict[str, str]:
    """The environment of a subprocess that uses `hub`, with all caches in the folder `cache`."""
    theirs = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
    }


@dataclass(frozen=True)
class StoredFile:
    """A file of a revision."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        """The name of the content in LFS storage."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The content that git itself stores for an LFS file."""
        about = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return f"version https://git-lfs.github.com/spec/v1\n{about}".encode()

    @cached_property
    def blob_id(self) -> str:
        """git's name for the file, or for its pointer."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        """The value that shows a client whether the content has changed."""
        return self.sha256 if self.lfs else self.blob_id


class Commit(NamedTuple):
    """A commit: its name, its summary, and the branch it was made on."""

    sha: str
    message: str
    revision: str


class Repo:
    """A model repository."""

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private
        self.commits: list[Commit] = []
        self.branches: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}  # the LFS storage, by SHA-256
        self._trees: dict[str, dict[str, StoredFile]] = {}
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        self.commit({".gitattributes": StoredFile(attributes.encode(), lfs=False)}, "initial commit", "main")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file of a branch or commit; KeyError if there is no such revision."""
        return {path: file.content for path, file in self.tree(revision).items()}

    def tree(self, revision: str) -> dict[str, StoredFile]:
        """The files of a branch or commit, by path; KeyError if there is no such revision."""
        return self._trees[self.branches.get(revision, revision)]

    def commit(self, files: dict[str, StoredFile], message: str, branch: str) -> str:
        """Make `files` the head of `branch`; returns the commit's name."""
        listing = sorted((path, file.blob_id) for path, file in files.items())
        about = [self.name, self.branches.get(branch), len(self.commits), message, listing]
        sha = hashlib.sha1(json.dumps(about).encode()).hexdigest()
        self._trees[sha] = files
        self.branches[branch] = sha
        self.commits.append(Commit(sha, message, branch))
        return sha


@dataclass
class _Fault:
    times: int
    method: str | None
    path: str
    status: int | None  # None cuts the connection
    headers: dict[str, str]


@dataclass
class _Request:
    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    authorization: str | None
    signed_in: bool = False
    names: dict[str, str] = field(default_factory=dict)  # the groups of the route's pattern

    def json(self) -> Any:
        return json.loads(self.body)


class _Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class _Refusal(Exception):
    """An error response. Clients raise by its `code`, and cache from `commit` that a file is missing."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        headers = {"X-Error-Message": ascii(message)[1:-1], "X-Error-Code": code, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in headers.items() if value is not None}


class HubServer:
    """The Hub, while the `with` statement lasts.

    Attributes:
        url: "http://127.0.0.1:<port>".
        user: the owner of `token`, and the default namespace.
        token: the only one that is accepted.
        repos: the repositories by "namespace/name".
        requests: (method, path without the query) of every request so far, as sent, including failed ones.
    """

    user = "user"

    def __init__(self) -> None:
        self.token = "hf_" + secrets.token_hex(16)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self._faults: list[_Fault] = []
        self._uploads: dict[str, tuple[Repo, str, int]] = {}  # by the secret in the URL: repository, SHA-256, size
        self._lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen at a new address, with the repositories kept."""
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cut every connection, and refuse new ones."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(
        self,
        times: int = 1,
        status: int = 500,
        headers: dict[str, str] | None = None,
        method: str | None = None,
        path: str = "",
    ) -> None:
        """Answer the next `times` requests with an error, if method and path (a regular expression) match."""
        self._faults.append(_Fault(times, method, path, status, headers or {}))

    def heal(self) -> None:
        """Cancel all planted faults."""
        self._faults.clear()

    def cut(self, times: int = 1, method: str | None = None, path: str = "") -> None:
        """Close the connection of the next `times` such requests halfway through their body, without an answer."""
        self._faults.append(_Fault(times, method, path, None, {}))

    def _record(self, method: str, path: str) -> _Fault | None:
        """Record a request; returns the fault planted for it."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.times > 0 and fault.method in (None, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _answer(self, request: _Request) -> _Answer:
        method = "GET" if request.method == "HEAD" else request.method
        with self._lock:
            try:
                request.signed_in = request.authorization == f"Bearer {self.token}"
                if request.authorization is not None and not request.signed_in:
                    raise _Refusal(401, "Invalid credentials in Authorization header")
                for route_method, pattern, handler in _ROUTES:
                    if route_method == method and (match := re.fullmatch(pattern, request.path)):
                        request.names = {name: unquote(value or "") for name, value in match.groupdict().items()}
                        return handler(self, request)
                raise _Refusal(404, f"Cannot {request.method} {request.path}")
            except _Refusal as refusal:
                return _json({"error": str(refusal)}, refusal.status, refusal.headers)

    def _repo(self, request: _Request, write: bool = False) -> Repo:
        repo = self.repos.get(request.names["repo"])
        # The answer does not reveal whether a private repository exists.
        if not request.signed_in and (repo is None or repo.private):
            raise _Refusal(401, "Invalid username or password.", "RepoNotFound")
        if repo is None:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        if write:
            self._must_be_signed_in(request)
        return repo

    def _must_be_signed_in(self, request: _Request) -> None:
        if not request.signed_in:
            raise _Refusal(401, "Invalid username or password.")

    def _no_such_repo(self, request: _Request) -> _Answer:
        raise _Refusal(404, "Repository not found", "RepoNotFound")

    def _whoami(self, request: _Request) -> _Answer:
        self._must_be_signed_in(request)
        token = {"displayName": "test", "role": "write"}
        return _json({"type": "user", "name": self.user, "fullname": self.user, "orgs": [],
                      "auth": {"type": "access_token", "accessToken": token}})  # fmt: skip

    def _create(self, request: _Request) -> _Answer:
        self._must_be_signed_in(request)
        asked = request.json()
        if asked.get("type", "model") != "model":
            raise _Refusal(400, "There are only models here")
        name = f"{asked['organization'] or self.user}/{asked['name']}"
        about = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repos:
            return _json({"error": "You already created this model repo", **about}, 409)
        self.repos[name] = Repo(name, private=asked.get("visibility") == "private")
        return _json(about)

    def _create_branch(self, request: _Request) -> _Answer:
        repo, branch = self._repo(request, write=True), request.names["revision"]
        if branch.startswith("refs/"):
            raise _Refusal(400, f"Invalid reference for a branch: {branch}")
        if branch in repo.branches:
            raise _Refusal(409, f"Reference already exists: refs/heads/{branch}")
        sha, _ = _revision(repo, request.json().get("startingPoint", "main"))
        repo.branches[branch] = sha
        return _json({})

    def _preupload(self, request: _Request) -> _Answer:
        repo = self._repo(request, write=True)
        _, tree = _revision(repo, request.names["revision"])
        return _json({"files": [_upload_mode(file, tree.get(file["path"])) for file in request.json()["files"]]})

    def _lfs_batch(self, request: _Request) -> _Answer:
        repo = self._repo(request, write=True)
        objects = []
        for asked in request.json()["objects"]:
            oid, size = asked["oid"], asked["size"]
            objects.append({"oid": oid, "size": size})
            if oid not in repo.objects:
                key = secrets.token_hex(16)
                self._uploads[key] = (repo, oid, size)
                objects[-1]["actions"] = {
                    "upload": {"href": f"{self.url}/lfs-uploads/{repo.name}/{oid}/{key}"},
                    "verify": {"href": f"{self.url}/{repo.name}.git/info/lfs/objects/verify"},
                }
        return _json({"transfer": "basic", "objects": objects})

    def _lfs_upload(self, request: _Request) -> _Answer:
        """Store the body if it is the one that the URL was made for; the secret in the URL is the permission."""
        if request.names["key"] not in self._uploads:
            raise _Refusal(403, "Request has expired")
        repo, oid, size = self._uploads[request.names["key"]]
        if (len(request.body), hashlib.sha256(request.body).hexdigest()) != (size, oid):
            raise _Refusal(400, "The body is not what was announced")
        repo.objects[oid] = request.body
        return _Answer(200, b"", {})

    def _lfs_verify(self, request: _Request) -> _Answer:
        repo, asked = self._repo(request, write=True), request.json()
        if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(404, f"There is no object {asked['oid']} of {asked['size']} bytes")
        return _json({})

    def _commit(self, request: _Request) -> _Answer:
        repo, branch = self._repo(request, write=True), request.names["revision"]
        if "create_pr" in request.query:
            raise _Refusal(403, "Pull requests are disabled for this repository")
        if branch not in repo.branches:
            raise _Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header, *operations = map(json.loads, request.body.splitlines())
        if header["key"] != "header" or not header["value"].get("summary"):
            raise _Refusal(400, "The first line must be a header with a summary")
        if not repo.branches[branch].startswith(header["value"].get("parentCommit", "")):
            raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.tree(branch))
        for operation in operations:
            _apply(repo, files, operation["key"], operation["value"])
        sha = repo.commit(files, header["value"]["summary"], branch)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo.name}/commit/{sha}"})

    def _validate_yaml(self, request: _Request) -> _Answer:
        errors, warnings = _card_problems(request.json()["content"])
        found = {"errors": errors, "warnings": warnings}
        found = {kind: [{"message": message} for message in messages] for kind, messages in found.items()}
        return _json(found, 400 if errors else 200)

    def _model_info(self, request: _Request) -> _Answer:
        repo = self._repo(request)
        sha, tree = _revision(repo, request.names.get("revision", "main"))
        card = _card_metadata(tree["README.md"].content.decode()) if "README.md" in tree else None
        siblings = [{"rfilename": path} for path in sorted(tree)]
        if "blobs" in request.query:
            for sibling in siblings:
                entry = _file_entry(sibling["rfilename"], tree[sibling["rfilename"]])
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    sibling["lfs"] = {"sha256": entry["lfs"]["oid"], **entry["lfs"]}
        about = {"id": repo.name, "modelId": repo.name, "author": repo.name.split("/")[0], "sha": sha,
                 "private": repo.private, "gated": False, "disabled": False, "siblings": siblings, "tags": [],
                 "downloads": 0, "likes": 0}  # fmt: skip
        if card:
            about["cardData"] = card
            about |= {key: card[key] for key in ("pipeline_tag", "library_name", "tags") if key in card}
        return _json(about)

    def _refs(self, request: _Request) -> _Answer:
        branches = self._repo(request).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        return _json({"branches": named, "converts": [], "tags": []})

    def _tree(self, request: _Request) -> _Answer:
        sha, tree = _revision(self._repo(request), request.names["revision"])
        start = f"{request.names['path']}/" if request.names["path"] else ""
        inside = {path: file for path, file in tree.items() if path.startswith(start)}
        if start and not inside:
            raise _Refusal(404, f"{start} does not exist", "EntryNotFound", sha)
        entries = [_folder_entry(path) for path in sorted(_folders(inside)) if path.startswith(start)]
        entries += [_file_entry(path, file) for path, file in sorted(inside.items())]
        if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(start)]
        return _json(entries)

    def _paths_info(self, request: _Request) -> _Answer:
        _, tree = _revision(self._repo(request), request.names["revision"])
        paths, folders = parse_qs(request.body.decode())["paths"], _folders(tree)
        found = [_file_entry(path, tree[path]) for path in paths if path in tree]
        return _json(found + [_folder_entry(path) for path in paths if path in folders])

    def _resolve(self, request: _Request) -> _Answer:
        sha, tree = _revision(self._repo(request), request.names["revision"])
        file = tree.get(request.names["path"])
        if file is None:
            raise _Refusal(404, "Entry not found", "EntryNotFound", sha)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        return _Answer(200, file.content, headers)


_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES: list[tuple[str, str, Callable[[HubServer, _Request], _Answer]]] = [
    ("GET", r"/api/whoami-v2", HubServer._whoami),
    ("POST", r"/api/repos/create", HubServer._create),
    ("POST", r"/api/validate-yaml", HubServer._validate_yaml),
    ("POST", rf"/api/models/{_REPO}/branch/{_REVISION}", HubServer._create_branch),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", HubServer._preupload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", HubServer._commit),
    ("POST", rf"/api/models/{_REPO}/paths-info/{_REVISION}", HubServer._paths_info),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", HubServer._lfs_batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/verify", HubServer._lfs_verify),
    ("PUT", r"/lfs-uploads/.+/(?P<key>\w+)", HubServer._lfs_upload),
    ("GET", rf"/api/models/{_REPO}/refs", HubServer._refs),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", HubServer._model_info),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}(?:/(?P<path>.+))?", HubServer._tree),
    ("GET", rf"/api/models/{_REPO}", HubServer._model_info),
    ("GET", r"/(?:api/)?(?:datasets|spaces)/.+", HubServer._no_such_repo),
    ("GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", HubServer._resolve),
]


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> _Answer:
    body = json.dumps(value, default=str).encode()
    return _Answer(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def _revision(repo: Repo, revision: str) -> tuple[str, dict[str, StoredFile]]:
    """The commit that a branch or commit names, and its files."""
    try:
        return repo.branches.get(revision, revision), repo.tree(revision)
    except KeyError:
        raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None


def _upload_mode(asked: dict, stored: StoredFile | None) -> dict:
    """How to send a file; for an existing path, `oid` shows the client whether the content has changed."""
    name = PurePosixPath(asked["path"]).name
    by_lfs = asked["size"] > LARGEST_PLAIN_FILE or any(fnmatch(name, pattern) for pattern in LFS_PATTERNS)
    mode = {"path": asked["path"], "uploadMode": "lfs" if by_lfs else "regular", "shouldIgnore": False}
    return mode if stored is None else {**mode, "oid": stored.etag}


def _apply(repo: Repo, files: dict[str, StoredFile], key: str, value: dict) -> None:
    """Apply one line of a commit to `files`, which are not published yet."""
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"])
        if path == "README.md" and (errors := _card_problems(content.decode())[0]):
            raise _Refusal(400, f"Invalid metadata in README.md: {errors[0]}")
        files[path] = StoredFile(content, lfs=False)
    elif key == "lfsFile":
        content = repo.objects.get(value["oid"])
        if content is None or value.get("size", len(content)) != len(content):
            raise _Refusal(422, f"An LFS pointer points to a file that does not exist. Offending file: {path}")
        files[path] = StoredFile(content, lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [name for name in files if (name.startswith(folder) if key == "deletedFolder" else name == path)]
        if not gone:
            raise _Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise _Refusal(400, f"There is no operation {key}")


def _folders(paths: dict[str, StoredFile]) -> set[str]:
    return {str(folder) for path in paths for folder in PurePosixPath(path).parents} - {"."}


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def _file_entry(path: str, file: StoredFile) -> dict:
    entry: dict[str, Any] = {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return entry


def _card_metadata(card: str) -> Any:
    """The YAML block at the top of a card; None without one, yaml.YAMLError if it is broken."""
    block = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r?\n|$)", card, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def _card_problems(card: str) -> tuple[list[str], list[str]]:
    """The errors and warnings for a model card: the Hub's, as far as a classifier's card can meet them."""
    try:
        metadata = _card_metadata(card)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ['"value" must be of type object'], []
    bases, models = metadata.get("base_model") or [], metadata.get("model-index", [])
    errors = [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
        for base in (bases if isinstance(bases, list) else [bases])
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base))
    ]
    if not isinstance(models, list):
        return [*errors, '"model-index" must be an array'], []
    for i, model in enumerate(models):
        for j, result in enumerate(model.get("results", [])):
            errors += _result_errors(f"model-index[{i}].results[{j}]", result)
    return errors, []


def _result_errors(where: str, result: dict) -> list[str]:
    """The missing fields in one of a card's results, named `where`."""
    if not isinstance(result.get("metrics"), list):
        return [f'"{where}.metrics" must be an array']
    needed = {
        f"{where}.{part}.{key}": result.get(part, {}).get(key)
        for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name"))
    }
    for k, metric in enumerate(result["metrics"]):
        needed |= {f"{where}.metrics[{k}].{key}": metric.get(key) for key in ("type", "value")}
    return [f'"{name}" is required' for name, value in needed.items() if value is None]


class _Server(ThreadingHTTPServer):
    """One thread per connection; they end with the server, even if clients keep them open."""

    request_queue_size = 64  # a client opens up to eight connections at once

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request, client_address) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it has closed already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that disconnects is not an error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise the body waits 40 ms for the headers' acknowledgement
    server: _Server

    def do_GET(self) -> None:
        hub, (path, _, query) = self.server.hub, self.path.partition("?")
        fault = hub._record(self.command, path)
        length = int(self.headers.get("Content-Length", 0))
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(_json({"error": "Length required"}, 411))
        elif fault is not None and fault.status is None:
            self.rfile.read(length // 2)
            self.close_connection = True
        elif len(body := self.rfile.read(length)) < length:
            self.close_connection = True  # the client disconnected: drop what has arrived
        elif fault is not None:
            error = {"error": f"{HTTPStatus(fault.status).phrase} (planted)"}
            self._send(_json(error, fault.status, fault.headers))
        else:
            request = _Request(self.command, path, parse_qs(query), body, self.headers.get("Authorization"))
            self._send(hub._answer(request))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Do nothing: `HubServer.requests` is the log."""
