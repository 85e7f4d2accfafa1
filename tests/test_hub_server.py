"""The test server in place of the Hub: stock clients get the same from it as from the Hub."""

import hashlib
import http.client
import json
import random
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_server import HubServer, hub_environment

FILES = {
    "config.json": b'{"ends": "in a carriage return"}\r\n',
    "empty.txt": b"",
    "sub/gr\u00fcn & 100%.txt": "Stra\u00dfe \U0001f43c".encode(),
    "sub/deeper/every-byte.bin": bytes(range(256)) * 3,
    "model.safetensors": random.Random(0).randbytes(400_000),
}
PREAMBLE = """
import json, sys
from pathlib import Path

said = {}

def note(name, call):
    try:
        said[name] = {"value": call()}
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said[name] = {"error": type(error).__name__, "status": status, "message": str(error)}
"""
API = """
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

api, model = HfApi(), "user/model"

def read(repo=model, path="config.json", **options):
    return Path(hf_hub_download(repo, path, **options)).read_bytes().decode()

def add(content, path="config.json", repo=model, **options):
    return api.upload_file(repo_id=repo, path_or_fileobj=content, path_in_repo=path, **options).oid

def commit(*operations):
    return api.create_commit(model, operations, commit_message="several").oid

def lfs_files():
    files = [entry for entry in api.list_repo_tree(model, recursive=True) if getattr(entry, "lfs", None)]
    return {file.path: file.lfs.sha256 for file in files}

note("who", lambda: api.whoami()["name"])
note("create", lambda: api.create_repo(model))
note("create twice", lambda: api.create_repo(model))
note("create, exist_ok", lambda: api.create_repo(model, exist_ok=True).repo_id)
note("create, no namespace", lambda: api.create_repo("mine").repo_id)
note("create a dataset", lambda: api.create_repo("user/data", repo_type="dataset"))

note("upload", lambda: api.upload_folder(repo_id=model, folder_path="source", commit_message="all").oid)
first = api.model_info(model).sha
note("upload again", lambda: api.upload_folder(repo_id=model, folder_path="source").oid)
note("snapshot", lambda: snapshot_download(model))
note("into a folder", lambda: snapshot_download(model, local_dir="local"))
note("info", lambda: [sibling.rfilename for sibling in api.model_info(model).siblings])
note("sizes", lambda: {file.rfilename: file.size for file in api.model_info(model, files_metadata=True).siblings})
note("sha256", lfs_files)
note("tree", lambda: [entry.path for entry in api.list_repo_tree(model)])
note("tree of sub", lambda: [entry.path for entry in api.list_repo_tree(model, "sub", recursive=True)])
note("tree of nothing", lambda: list(api.list_repo_tree(model, "nothing")))
note("paths", lambda: [entry.path for entry in api.get_paths_info(model, ["config.json", "sub", "nothing"])])
note("exists", lambda: [api.file_exists(model, name) for name in ("config.json", "nothing")])

note("branch", lambda: api.create_branch(model, branch="try/1"))
note("branch twice", lambda: api.create_branch(model, branch="try/1"))
note("branch, exist_ok", lambda: api.create_branch(model, branch="try/1", exist_ok=True))
note("branch from nothing", lambda: api.create_branch(model, branch="try/2", revision="nothing"))
note("to the branch", lambda: add(b"on the branch", revision="try/1"))
note("from the branch", lambda: read(revision="try/1"))
note("to no branch", lambda: add(b"x", revision="nothing"))
note("refs", lambda: {ref.name: ref.target_commit for ref in api.list_repo_refs(model).branches})

note("same weights elsewhere", lambda: add("source/model.safetensors", "copy.safetensors"))
note("parent", lambda: add(b"new", parent_commit=api.model_info(model).sha))
note("old parent", lambda: add(b"lost", parent_commit=first))
note("new content", read)
note("old content", lambda: read(revision=first))
note("delete", lambda: commit(CommitOperationDelete("copy.safetensors"), CommitOperationDelete("sub/")))
note("delete nothing", lambda: commit(CommitOperationAdd("kept.txt", b"x"), CommitOperationDelete("nothing")))

note("no entry", lambda: read(path="nothing.json"))
note("no revision", lambda: read(revision="nothing"))
note("no repo", lambda: read("user/nothing"))
note("no repo to fill", lambda: add(b"x", repo="user/nothing"))
note("no such dataset", lambda: api.dataset_info(model))

note("create private", lambda: api.create_repo("user/secret", private=True))
note("fill private", lambda: add(b"hidden", "a/x.bin", "user/secret"))
note("read private", lambda: read("user/secret", "a/x.bin"))
for who, token in (("stranger", False), ("impostor", "hf_wrong")):
    options = {"token": token, "cache_dir": who}
    note(f"{who} info", lambda: api.model_info("user/secret", token=token))
    note(f"{who} file", lambda: read("user/secret", "a/x.bin", **options))
    note(f"{who} snapshot", lambda: snapshot_download("user/secret", **options))
    note(f"{who} creates", lambda: api.create_repo("user/new", token=token))
    note(f"{who} uploads", lambda: add(b"x", "x.bin", token=token))
    note(f"{who} branches", lambda: api.create_branch(model, branch="x", token=token))
note("stranger reads public", lambda: read(token=False, cache_dir="public"))
note("impostor asks", lambda: api.whoami(token="hf_wrong"))

def card(metadata):
    return f"---\\nlicense: mit\\npipeline_tag: image-classification\\n{metadata}\\n---\\n# A model\\n"

def result(metric):
    dataset = "dataset: {type: digits, name: Digits}"
    return f"model-index: [{{name: x, results: [{{task: {{type: a}}, {dataset}, metrics: [{metric}]}}]}}]"

good = card(result("{type: accuracy, value: 0.5}"))
cards = {"good": good, "local base": card("base_model: /home/me/model"), "no value": card(result("{type: accuracy}"))}
for name, text in cards.items():
    note(f"{name} uploaded", lambda: add(text.encode(), "README.md"))
note("good validated", ModelCard(good).validate)
note("local base validated", ModelCard(cards["local base"]).validate)
note("broken uploaded", lambda: add(card("tags: [").encode(), "README.md"))
note("pushed card", lambda: ModelCard(good).push_to_hub("user/mine"))
note("loaded card", lambda: ModelCard.load("user/mine").data.eval_results[0].metric_value)
note("task", lambda: api.model_info("user/mine").pipeline_tag)
print(json.dumps(said, default=str))
"""
FAULTS = """
import time
from huggingface_hub import HfApi, hf_hub_download

waits = []
time.sleep = waits.append  # the clients wait for seconds before they try again
api = HfApi()

def noting(name, call):
    waits.clear()
    note(name, call)
    said[name]["waits"] = list(waits)

def upload(case):
    Path(f"{case}.bin").write_bytes(case.encode() * 100_000)
    api.create_repo(f"user/{case}")
    file = {"path_or_fileobj": f"{case}.bin", "path_in_repo": "x.bin"}
    noting(case, lambda: api.upload_file(repo_id=f"user/{case}", **file).oid)

noting("create-401", lambda: api.create_repo("user/a"))
noting("create-403", lambda: api.create_repo("user/b"))
noting("create-500", lambda: api.create_repo("user/c"))
noting("create-cut", lambda: api.create_repo("user/d"))
for case in sys.argv[1:]:
    upload(case)
noting("download-429", lambda: Path(hf_hub_download("user/upload-cut", "x.bin")).stat().st_size)
noting("download-403", lambda: hf_hub_download("user/upload-429", "x.bin"))
noting("download-cut", lambda: Path(hf_hub_download("user/upload-500", "x.bin")).stat().st_size)
print(json.dumps(said, default=str))
"""
TRANSFORMERS = """
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

torch.manual_seed(0)
Auto = AutoModelForImageClassification

def same(model, other, size=16):
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        return type(other).__name__, torch.equal(model.eval()(images).logits, other.eval()(images).logits)

convnet = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)
note("convnet", lambda: convnet.push_to_hub("user/convnet").oid)
note("its processor", lambda: AutoImageProcessor.from_pretrained(sys.argv[1]).push_to_hub("user/convnet").oid)
note("convnet again", lambda: same(convnet, Auto.from_pretrained("user/convnet", trust_remote_code=True), size=8))
note("without trust", lambda: Auto.from_pretrained("user/convnet", trust_remote_code=False))

config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16, num_labels=2)
vit = ViTForImageClassification(config)
note("vit", lambda: vit.push_to_hub("user/vit", private=True, revision="try/1").oid)
note("vit again", lambda: same(vit, Auto.from_pretrained("user/vit", revision="try/1")))
note("vit on main", lambda: Auto.from_pretrained("user/vit"))

rows = [{"pixel_values": torch.rand(3, 16, 16), "labels": i % 2} for i in range(4)]
args = TrainingArguments("out", push_to_hub=True, hub_model_id="user/trained", hub_strategy="end", max_steps=2,
                         use_cpu=True, disable_tqdm=True, save_strategy="no")
trainer = Trainer(vit, args, train_dataset=rows, processing_class=ViTImageProcessor(size={"height": 16, "width": 16}))
trainer.train()
note("trained", lambda: trainer.push_to_hub().oid)
note("trained again", lambda: same(vit, Auto.from_pretrained("user/trained")))
note("the processor", lambda: AutoImageProcessor.from_pretrained("user/trained").size["height"])
note("nothing", lambda: Auto.from_pretrained("user/nothing"))
print(json.dumps(said, default=str))
"""


def run(script: str, hub: HubServer, folder: Path, *arguments: object) -> dict:
    """The results of a client in a process that uses `hub`, with files in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        env=hub_environment(hub, folder / "cache"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def read(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, without the client's own."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {path.as_posix(): (folder / path).read_bytes() for path in paths if path.parts[0] != ".cache"}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The results of huggingface_hub; the server; the folder in which it ran."""
    folder = tmp_path_factory.mktemp("api")
    for path, content in FILES.items():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes(content)
    with HubServer() as hub:
        yield run(API, hub, folder), hub, folder


def test_repositories_are_created(api):
    said, hub, _ = api
    assert said["who"]["value"] == hub.user
    assert said["create"]["value"] == f"{hub.url}/user/model"
    assert said["create twice"]["status"] == 409
    assert said["create, exist_ok"]["value"] == "user/model" and said["create, no namespace"]["value"] == "user/mine"
    assert said["create a dataset"]["status"] == 400
    assert set(hub.repos) == {"user/model", "user/mine", "user/secret"}
    assert hub.repos["user/secret"].private and not hub.repos["user/model"].private


def test_files_come_back_byte_for_byte(api):
    said, hub, folder = api
    sha = said["upload"]["value"].rsplit("/")[-1]
    held = hub.repos["user/model"].files(sha)
    attributes = held.pop(".gitattributes")
    assert held == FILES and b"*.safetensors filter=lfs" in attributes
    for place in (Path(said["snapshot"]["value"]), folder / "local"):
        assert read(place) == {".gitattributes": attributes, **FILES}
    assert hub.repos["user/model"].objects.keys() == {
        hashlib.sha256(FILES[name]).hexdigest() for name in ("model.safetensors", "sub/deeper/every-byte.bin")
    }


def test_listings(api):
    said = {name: answer.get("value") for name, answer in api[0].items()}
    everything = sorted([".gitattributes", *FILES])
    assert said["info"] == everything
    assert said["sizes"] == {name: said["sizes"][name] for name in everything}
    assert all(said["sizes"][name] == len(content) for name, content in FILES.items())
    assert said["sha256"] == {name: hashlib.sha256(FILES[name]).hexdigest()
                              for name in ("model.safetensors", "sub/deeper/every-byte.bin")}  # fmt: skip
    assert sorted(said["tree"]) == [".gitattributes", "config.json", "empty.txt", "model.safetensors", "sub"]
    assert set(said["tree of sub"]) == {"sub/deeper", *(name for name in FILES if name.startswith("sub/"))}
    assert set(said["paths"]) == {"config.json", "sub"} and said["exists"] == [True, False]
    assert api[0]["tree of nothing"]["error"] == "RemoteEntryNotFoundError"


def test_existing_content_is_not_sent_again(api):
    said, hub, _ = api
    assert said["upload again"]["value"] == said["upload"]["value"]
    assert [message for _, message, _ in hub.repos["user/model"].commits].count("all") == 1
    weights = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert sum(method == "PUT" and weights in path for method, path in hub.requests) == 1
    copied = hub.repos["user/model"].files(said["same weights elsewhere"]["value"])
    assert copied["copy.safetensors"] == FILES["model.safetensors"]


def test_branches(api):
    said, hub, _ = api
    assert "value" in said["branch"] and "value" in said["branch, exist_ok"] and said["branch twice"]["status"] == 409
    assert said["branch from nothing"]["error"] == said["to no branch"]["error"] == "RevisionNotFoundError"
    repo = hub.repos["user/model"]
    assert said["refs"]["value"] == {"main": said["upload"]["value"], "try/1": said["to the branch"]["value"]}
    assert said["from the branch"]["value"] == "on the branch"
    assert repo.files("try/1") == {**repo.files(said["upload"]["value"]), "config.json": b"on the branch"}
    assert [commit.revision for commit in repo.commits][:3] == ["main", "main", "try/1"]


def test_commits_build_on_each_other(api):
    said, hub, _ = api
    assert said["old parent"]["status"] == 412 and "A commit has happened since" in said["old parent"]["message"]
    assert said["new content"]["value"] == "new"
    assert said["old content"]["value"].encode() == FILES["config.json"]
    files = hub.repos["user/model"].files()
    assert "copy.safetensors" not in files and not any(name.startswith("sub/") for name in files)
    assert said["delete nothing"]["error"] == "RemoteEntryNotFoundError" and "kept.txt" not in files


def test_the_cache_identifies_files_by_their_content(api):
    _, hub, folder = api
    cache = folder / "cache" / "hub" / "models--user--model"
    plain = FILES["config.json"]
    names = {hashlib.sha256(FILES["model.safetensors"]).hexdigest(),
             hashlib.sha1(b"blob %d\0" % len(plain) + plain).hexdigest()}  # fmt: skip
    assert names <= {path.name for path in (cache / "blobs").iterdir()}
    (missing,) = (cache / ".no_exist").glob("*/nothing.json")
    assert missing.parent.name in [commit.sha for commit in hub.repos["user/model"].commits]


def test_missing_repositories_revisions_and_files(api):
    said, _, _ = api
    assert said["no entry"]["error"] == "RemoteEntryNotFoundError"
    assert said["no revision"]["error"] == "RevisionNotFoundError"
    for name in ("no repo", "no repo to fill", "no such dataset"):
        assert (said[name]["error"], said[name]["status"]) == ("RepositoryNotFoundError", 404)


def test_a_private_repository_is_for_its_owner(api):
    said, _, _ = api
    assert said["read private"]["value"] == "hidden"
    for name in ("stranger info", "stranger file", "stranger snapshot"):
        assert (said[name]["error"], said[name]["status"]) == ("RepositoryNotFoundError", 401)
    for name in ("impostor info", "impostor file", "impostor snapshot"):
        assert said[name]["status"] == 401 and "Invalid credentials" in said[name]["message"]
    assert said["stranger reads public"]["value"] == "new"


@pytest.mark.parametrize("who", ["stranger", "impostor"])
def test_no_write_without_the_token(api, who):
    said, hub, _ = api
    for what in ("creates", "uploads", "branches"):
        assert said[f"{who} {what}"]["status"] == 401
    assert "Invalid user token" in said["impostor asks"]["message"]
    assert "user/new" not in hub.repos and "x" not in hub.repos["user/model"].branches
    assert "x.bin" not in hub.repos["user/model"].files()


def test_cards_are_checked(api):
    said, hub, _ = api
    assert said["good validated"] == {"value": None} and said["loaded card"] == {"value": 0.5}
    assert said["task"]["value"] == "image-classification"
    problems = {
        "local base": '"base_model" with value "/home/me/model" is not valid.',
        "no value": '"model-index[0].results[0].metrics[0].value" is required',
        "broken": "bad YAML",
    }
    for name, problem in problems.items():
        assert said[f"{name} uploaded"]["error"] == "ValueError" and problem in said[f"{name} uploaded"]["message"]
    errors = json.loads(said["local base validated"]["message"])["errors"]
    assert said["local base validated"]["error"] == "ValueError" and problems["local base"] in errors[0]["message"]
    assert hub.repos["user/model"].commits[-1].sha == said["good uploaded"]["value"]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The results of huggingface_hub under faults, planted by repository name; the server."""
    with HubServer() as hub:
        create, batch, put = {"path": "/repos/create", "method": "POST"}, r"{}\.git.*/batch", "/lfs-uploads/user/{}/"
        hub.fail(status=401, **create)
        hub.fail(status=403, **create)
        hub.fail(status=500, **create)
        hub.cut(**create)
        hub.fail(status=409, path="/upload-409/commit/")
        hub.fail(status=403, path="/upload-403/commit/")
        hub.fail(status=500, path="/commit-500/commit/")
        hub.cut(path="/commit-cut/commit/")
        hub.fail(status=429, headers={"Retry-After": "3"}, path="/upload-429/preupload/")
        hub.fail(times=2, status=500, headers={"Retry-After": "0"}, path=batch.format("upload-500"))
        hub.cut(times=2, method="PUT", path=put.format("upload-cut"))
        hub.fail(times=100, status=500, path=put.format("always-500"))
        hub.cut(times=100, path=put.format("always-cut"))
        hub.fail(status=429, path="/upload-cut/resolve/", method="HEAD")
        hub.fail(status=403, path="/upload-429/resolve/", method="HEAD")
        hub.cut(path="/upload-500/resolve/", method="GET")
        cases = ["upload-409", "upload-403", "commit-500", "commit-cut", "upload-429", "upload-500", "upload-cut",
                 "always-500", "always-cut"]  # fmt: skip
        yield run(FAULTS, hub, tmp_path_factory.mktemp("faults"), *cases), hub


@pytest.mark.parametrize(
    "case, status, why",
    [
        ("create-401", 401, "Unauthorized"),
        ("create-403", 403, "Forbidden"),
        ("create-500", 500, "Internal Server Error"),
        ("upload-409", 409, "Conflict"),
        ("upload-403", 403, "Forbidden"),
        ("commit-500", 500, "Internal Server Error"),
    ],
)
def test_errors_that_the_client_does_not_retry(faults, case, status, why):
    said, hub = faults
    assert (said[case]["error"], said[case]["status"], said[case]["waits"]) == ("HfHubHTTPError", status, [])
    assert f"{why} (planted)" in said[case]["message"]
    if not case.startswith("create"):
        repo = hub.repos[f"user/{case}"]
        assert list(repo.files()) == [".gitattributes"] and len(repo.objects) == len(repo.commits) == 1


@pytest.mark.parametrize("case", ["create-cut", "commit-cut"])
def test_a_cut_that_the_client_does_not_retry(faults, case):
    said, hub = faults
    assert said[case]["error"] in ("RemoteProtocolError", "ReadError", "WriteError") and said[case]["waits"] == []
    assert "user/d" not in hub.repos and len(hub.repos["user/commit-cut"].commits) == 1


@pytest.mark.parametrize("case, waits", [("upload-429", [4]), ("upload-500", [1, 1]), ("upload-cut", [1, 2])])
def test_faults_that_the_client_recovers_from(faults, case, waits):
    """It waits a second longer than Retry-After, and all content arrives."""
    said, hub = faults
    assert said[case]["waits"] == waits
    assert hub.repos[f"user/{case}"].files(said[case]["value"])["x.bin"] == case.encode() * 100_000


@pytest.mark.parametrize("case", ["always-500", "always-cut"])
def test_the_client_gives_up_and_leaves_nothing(faults, case):
    said, hub = faults
    assert said[case]["error"] == "RuntimeError" and "Error while uploading 'x.bin'" in said[case]["message"]
    assert said[case]["waits"] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert sum(f"/user/{case}/" in path and method == "PUT" for method, path in hub.requests) == 6
    assert hub.repos[f"user/{case}"].objects == {} and len(hub.repos[f"user/{case}"].commits) == 1


def test_faults_of_downloads(faults):
    said, _ = faults
    assert said["download-429"]["value"] == said["download-cut"]["value"] == 1_000_000
    assert said["download-403"]["error"] == "LocalEntryNotFoundError"
    assert said["download-cut"]["waits"] == [1]


@pytest.fixture(scope="module")
def models(tmp_path_factory, convnet):
    """The results of transformers; the server."""
    with HubServer() as hub:
        yield run(TRANSFORMERS, hub, tmp_path_factory.mktemp("models"), convnet), hub


@pytest.mark.slow
def test_a_model_with_its_own_code(models, convnet):
    said, hub = models
    files = hub.repos["user/convnet"].files()
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= files.keys()
    assert files["modeling_convnet.py"] == (convnet / "modeling_convnet.py").read_bytes()
    assert said["convnet again"]["value"] == ["ConvNetForImageClassification", True]
    assert said["without trust"]["error"] == "ValueError" and "trust_remote_code" in said["without trust"]["message"]


@pytest.mark.slow
def test_a_model_on_a_branch_of_a_private_repository(models):
    said, hub = models
    assert hub.repos["user/vit"].private and list(hub.repos["user/vit"].files()) == [".gitattributes"]
    assert said["vit again"]["value"] == ["ViTForImageClassification", True]
    assert "Unrecognized model in user/vit" in said["vit on main"]["message"]  # there is no config.json


@pytest.mark.slow
def test_the_stock_trainer_pushes(models):
    said, hub = models
    assert said["trained again"]["value"] == ["ViTForImageClassification", True]
    assert said["the processor"]["value"] == 16
    assert hub.repos["user/trained"].commits[-1][:2] == (said["trained"]["value"], "End of training")
    assert said["nothing"]["error"] == "OSError"
    assert "is not a local folder and is not a valid model identifier" in said["nothing"]["message"]


def ask(connection, hub, method, path, *lines):
    """Send JSON lines over a kept connection: the status and the JSON of the answer."""
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    connection.request(method, path, body, {"Authorization": f"Bearer {hub.token}"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.fixture
def server():
    """A Hub of the test's own."""
    with HubServer() as server:
        yield server


@pytest.fixture
def connection(server):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    assert ask(connection, server, "POST", "/api/repos/create", {"name": "model", "organization": "user"})[0] == 200
    yield connection
    connection.close()


def upload_address(connection, hub, content):
    asked = {"objects": [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]}
    _, answer = ask(connection, hub, "POST", "/user/model.git/info/lfs/objects/batch", asked)
    return urlsplit(answer["objects"][0]["actions"]["upload"]["href"]).path


def test_errors_keep_the_connection(connection, server):
    before = connection.sock
    for status in (401, 404, 429, 500):
        server.fail(status=status, method="POST")
        assert ask(connection, server, "POST", "/api/models/user/model/commit/main", {"a": "body"})[0] == status
    assert ask(connection, server, "GET", "/api/models/user/nothing")[0] == 404
    assert ask(connection, server, "GET", "/api/whoami-v2")[1]["name"] == "user"
    assert connection.sock is before is not None


def test_a_commit_is_atomic(connection, server):
    header = {"key": "header", "value": {"summary": "half"}}
    plain = {"key": "file", "value": {"path": "plain.txt", "content": "eA==", "encoding": "base64"}}
    missing = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    commits = list(server.repos["user/model"].commits)
    status, answer = ask(connection, server, "POST", "/api/models/user/model/commit/main", header, plain, missing)
    assert status == 422 and "x.bin" in answer["error"]
    assert server.repos["user/model"].commits == commits and "plain.txt" not in server.repos["user/model"].files()
    assert ask(connection, server, "POST", "/api/models/user/model/commit/main", header, plain)[0] == 200
    assert server.repos["user/model"].files()["plain.txt"] == b"x"


def test_only_the_announced_content_is_kept(connection, server):
    address = upload_address(connection, server, b"the content")
    for body, status in ((b"the kontent", 400), (b"the content, and more", 400), (b"the content", 200)):
        assert server.repos["user/model"].objects == {}
        connection.request("PUT", address, body)  # the secret in the URL is the permission
        response = connection.getresponse()
        response.read()
        assert response.status == status
    assert list(server.repos["user/model"].objects.values()) == [b"the content"]
    connection.request("PUT", address[:-1], b"the content")
    assert connection.getresponse().status == 403


def test_a_torn_upload_is_dropped(connection, server):
    address = upload_address(connection, server, b"the content")
    connection.putrequest("PUT", address)
    connection.putheader("Content-Length", "11")
    connection.endheaders(b"the con")
    connection.close()
    assert ask(connection, server, "GET", "/api/whoami-v2")[0] == 200  # on a new connection
    assert server.repos["user/model"].objects == {}


def test_the_server_ends_with_its_block(tmp_path):
    with HubServer() as hub:
        idle = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
        assert ask(idle, hub, "GET", "/api/whoami-v2")[0] == 200
    assert idle.sock.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        ask(idle, hub, "GET", "/api/whoami-v2")
