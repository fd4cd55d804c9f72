"""A model hub on loopback, as much of huggingface.co's API as huggingface_hub needs for a commit.

    with FakeHub() as hub:
        ... HF_ENDPOINT=hub.url, HF_TOKEN=hub.token ...
        hub.repos["ada/friend"]["README.md"]

whoami, a new repository (409 where it is there), validate-yaml, preupload (which says of each file whether it travels in
the commit or by LFS), LFS's batch, its PUT and its verification, and the commit as lines of JSON. Contents are hashed, and
a commit that names an LFS object which was never sent is refused. Not there: Xet, which the real hub prefers for LFS
(HF_HUB_DISABLE_XET=1 turns it off), branches, several parts, private repositories.
"""

import base64
import hashlib
import json

from tests.loopback import Loopback


class FakeHub(Loopback):
    """requests: (method, path) in order. repos: name -> {file: content} after its last commit. fail: path -> status."""

    token = "hf_of-the-tests-alone"
    user = "ada"

    def __init__(self):
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        self.repos: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}

    def reply(self, method: str, path: str, headers, body: bytes) -> tuple[int, dict[str, str], dict]:
        status, answer = self.answer(method, path, headers, body)
        return status, {"X-Error-Message": answer["error"]} if status >= 400 else {}, answer

    def answer(self, method: str, path: str, headers, body: bytes) -> tuple[int, dict]:
        path = path.split("?")[0]
        self.requests.append((method, path))
        for part, status in self.fail.items():
            if part in path:
                return status, {"error": f"refused by the test ({status})"}
        if path.startswith("/storage/"):  # as at the real hub, an address that needs no token
            oid = path.split("/")[-1]
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "the content has another hash"}
            self.objects[oid] = body
            return 200, {}
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": self.user}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            card = json.loads(body)["content"]
            return (200, {"warnings": []}) if card.startswith("---\n") else (400, {"error": "no metadata"})
        repo = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2]).removesuffix(".git")
        if repo not in self.repos:
            return 404, {"error": f"Repository {repo} not found"}
        if path == f"/api/models/{repo}/preupload/main":
            return 200, {"files": [self.mode(file) for file in json.loads(body)["files"]]}
        if path == f"/{repo}.git/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self.upload(repo, o) for o in json.loads(body)["objects"]]}
        if path == f"/{repo}/verify":
            oid = json.loads(body)["oid"]
            return (200, {}) if oid in self.objects else (404, {"error": "no such object"})
        if path == f"/api/models/{repo}/commit/main":
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"the fake hub has no {method} {path}"}

    def create(self, asked: dict) -> tuple[int, dict]:
        owner = asked.get("organization") or self.user
        repo = f"{owner}/{asked['name']}"
        if owner != self.user:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"}
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo] = {}
        self.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
        return 200, {"url": f"{self.url}/{repo}"}

    def mode(self, file: dict) -> dict:
        lfs = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
        return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": None}

    def upload(self, repo: str, asked: dict) -> dict:
        if asked["oid"] in self.objects:
            return asked
        address = {"href": f"{self.url}/storage/{asked['oid']}"}
        return {**asked, "actions": {"upload": address, "verify": {"href": f"{self.url}/{repo}/verify"}}}

    def commit(self, repo: str, lines: list[dict]) -> tuple[int, dict]:
        files = dict(self.repos[repo])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.objects:
                files[value["path"]] = self.objects[value["oid"]]
            else:
                return 400, {"error": f"cannot commit {line}"}
        self.repos[repo] = files
        self.messages.append(message)
        oid = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}
