"""A wandb server on loopback that speaks as much of its protocol as wandb's own client and wandb-core need here.

    with FakeWandb() as server:
        ... WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key ...

POST /graphql answers the operations in `ANSWERS` by their names; any other is kept in `unknown` and answered with an error,
as is a wrong key (401). POST .../file_stream takes a run's history, summary and console, PUT /storage/... its files.
"""

import base64
import json
import re
import threading
from collections import defaultdict

from tests.loopback import Loopback

ENTITY = "people"


class FakeWandb(Loopback):
    """runs: id -> what was said of it (upsertBucket's variables). history, summary: id -> rows, last summary. files: path
    -> bytes. artifacts: name -> {"type", "run", "digest", "metadata", "state"}. used: (run, artifact) of each edge. views:
    id -> view. operations: names in order."""

    key = "local-" + "0123456789abcdef" * 2 + "01234567"

    def __init__(self):
        super().__init__()
        self.runs, self.history, self.summary = {}, defaultdict(list), {}
        self.files, self.artifacts, self.used, self.views = {}, {}, [], {}
        self.operations, self.unknown = [], []
        self._lock = threading.RLock()

    def reply(self, method: str, path: str, headers, body: bytes) -> tuple[int, dict[str, str], dict]:
        with self._lock:
            status, answer = self.answer(path, headers, body)
        return status, {}, answer

    def answer(self, path: str, headers, body: bytes) -> tuple[int, dict]:
        path = path.split("?")[0]
        if path.startswith("/storage/"):  # a signed address: no key
            self.files[path.removeprefix("/storage/")] = body
            return 200, {}
        if headers.get("Authorization") != "Basic " + base64.b64encode(f"api:{self.key}".encode()).decode():
            return 401, {"errors": [{"message": "user is not logged in"}]}
        if path.endswith("/file_stream"):
            self.stream(path.split("/")[-2], json.loads(body))
            return 200, {}
        asked = json.loads(body) if body else {}
        query = asked.get("query", "")
        name = (re.search(r"\b(?:query|mutation)\s+(\w+)", query) or ["", path])[1]
        self.operations.append(name)
        answer = ANSWERS.get(name)
        if answer is None:
            self.unknown.append((name, query, asked.get("variables")))
            return 200, {"errors": [{"message": f"the fake knows no {name}"}], "data": None}
        return 200, {"data": answer(self, asked.get("variables") or {})}

    def stream(self, run: str, said: dict) -> None:
        for file, chunk in (said.get("files") or {}).items():
            rows = [line for line in chunk["content"] if line]
            if file == "wandb-history.jsonl":
                self.history[run][chunk["offset"] :] = map(json.loads, rows)
            elif file == "wandb-summary.json":
                self.summary[run] = json.loads(rows[-1])


# ------------------------------------------------------------------------------------------ operations, by name


def viewer(fake, _):
    return {"viewer": {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": None}}


def upsert_bucket(fake, v):
    run = fake.runs.setdefault(v["name"], {})
    run |= {key: value for key, value in v.items() if value is not None}
    project = {"id": "p1", "name": run["project"], "entity": {"id": "e1", "name": ENTITY}}
    bucket = {"id": v["name"], "name": v["name"], "displayName": run.get("displayName"), "description": None}
    return {"upsertBucket": {"bucket": {**bucket, "config": "{}", "sweepName": None, "project": project,
                                        "historyLineCount": len(fake.history[v["name"]])}, "inserted": True}}  # fmt: skip


def resume_status(fake, v):
    """A run that is there is resumed after its last row."""
    run, rows = fake.runs.get(v["name"]), fake.history[v["name"]]
    bucket = run and {
        "id": v["name"], "name": v["name"], "summaryMetrics": json.dumps(fake.summary.get(v["name"], {})),
        "displayName": run.get("displayName"), "logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]", "config": "{}",
        "tags": run.get("tags", []), "notes": None, "wandbConfig": "{}",
    }  # fmt: skip
    return {"model": {"id": "p1", "name": v["project"], "entity": {"id": "e1", "name": ENTITY}, "bucket": bucket}}


def run_files(fake, v):
    files = [{"name": name, "uploadUrl": f"{fake.url}/storage/{v['run']}/{name}"} for name in v["files"]]
    return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}


def create_artifact(fake, v):
    asked = v["input"]
    name = asked["artifactCollectionName"]
    fake.artifacts[name] = {
        "type": asked["artifactTypeName"], "run": asked["runName"], "digest": asked["digest"], "state": "PENDING",
        "metadata": json.loads(asked.get("metadata") or "{}"),
    }  # fmt: skip
    artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": artifact}}


def artifact_manifest(name):
    def answer(fake, v):
        id = v.get("artifactID") or v["artifactManifestID"]
        file = {"id": "f", "uploadUrl": f"{fake.url}/storage/manifests/{id}", "uploadHeaders": []}
        return {name: {"artifactManifest": {"id": id, "file": file}}}

    return answer


def artifact_files(fake, v):
    nodes = []
    for file in v["input"]["artifactFiles"]:
        path = f"artifacts/{file['artifactID']}/{file['name']}"
        nodes.append({"node": {"storagePath": path, "uploadUrl": f"{fake.url}/storage/{path}", "uploadHeaders": [],
                               "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})  # fmt: skip
    return {"createArtifactFiles": {"files": {"edges": nodes}}}


def commit_artifact(fake, v):
    fake.artifacts[v["artifactID"]]["state"] = "COMMITTED"
    return {
        "commitArtifact": {"artifact": {"id": v["artifactID"], "digest": fake.artifacts[v["artifactID"]]["digest"]}}
    }


def use_artifact(fake, v):
    fake.used.append((v["runName"], v["artifactID"]))
    return {"useArtifact": {"artifact": {"id": v["artifactID"]}}}


def artifact_type(fake, v):
    found = fake.artifacts.get(v["name"].split(":")[0])
    return {"project": {"artifact": found and {"artifactType": {"name": found["type"]}}}}


def found_run(fake, v):
    run = fake.runs.get(v["name"])
    nothing = dict.fromkeys(["createdAt", "heartbeatAt", "description", "notes", "commit", "sweepName"])
    found = run and {
        **nothing, "id": v["name"], "name": v["name"], "projectId": "1", "tags": run.get("tags", []), "state": "finished",
        "displayName": run.get("displayName"), "config": run.get("config", "{}"), "group": run.get("groupName"),
        "jobType": run.get("jobType"), "readOnly": False, "historyLineCount": len(fake.history[v["name"]]),
        "summaryMetrics": json.dumps(fake.summary.get(v["name"], {})), "systemMetrics": "{}", "historyKeys": None,
        "user": {"name": ENTITY, "username": ENTITY},
    }  # fmt: skip
    return {"project": {"run": found}}


def membership(fake, v):
    name = v["name"].split(":")[0]
    if name not in fake.artifacts:
        return {"project": {"artifactCollectionMembership": None}}
    project = {"id": "p1", "internalId": "1", "name": v["project"], "entity": {"name": ENTITY}}
    collection = {"__typename": "ArtifactSequence", "name": name, "project": project}
    found = fake.artifacts[name]
    nothing = dict.fromkeys(["description", "historyStep", "commitHash", "updatedAt"])
    artifact = {
        **nothing, "__typename": "Artifact", "id": name, "artifactSequence": collection, "versionIndex": 0, "tags": [],
        "artifactType": {"name": found["type"]}, "metadata": json.dumps(found["metadata"]),
        "ttlIsInherited": False, "ttlDurationSeconds": 0,
        "state": found["state"], "size": 0, "digest": found["digest"], "digestAlgorithm": "MANIFEST_MD5",
        "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z",
        "aliases": [{"__typename": "ArtifactAlias", "id": "a", "alias": "latest", "artifactCollection": collection}],
    }  # fmt: skip
    member = {
        "__typename": "ArtifactCollectionMembership",
        "id": "m",
        "versionIndex": 0,
        "artifactCollection": collection,
    }
    member |= {"createdAt": artifact["createdAt"], "aliases": artifact["aliases"], "artifact": artifact}
    return {"project": {"artifactCollectionMembership": member}}


def upsert_view(fake, v):
    id = v.get("id") or f"view{len(fake.views)}"
    fake.views[id] = {"id": id, **v}
    return {"upsertView": {"view": {"id": id, "name": v["name"]}, "inserted": True}}


def found_view(fake, v):
    nodes = [{"node": view} for view in fake.views.values() if view["name"] == v["viewName"]]
    return {"project": {"allViews": {"edges": nodes}}}


ANSWERS = {
    "Viewer": viewer,
    "GetDefaultEntity": viewer,
    "OrganizationCoreWeaveOrganizationID": lambda fake, v: {"entity": {"organization": None}},
    "ServerFeaturesQuery": lambda fake, v: {"serverInfo": {"features": []}},
    "UpsertBucket": upsert_bucket,
    "RunResumeStatus": resume_status,
    "CreateRunFiles": run_files,
    "ArtifactType": artifact_type,
    "CreateArtifact": create_artifact,
    "CreateArtifactManifest": artifact_manifest("createArtifactManifest"),
    "UpdateArtifactManifest": artifact_manifest("updateArtifactManifest"),
    "CreateArtifactFiles": artifact_files,
    "CommitArtifact": commit_artifact,
    "ArtifactMembershipByName": membership,
    "Run": found_run,
    "UpsertView2": upsert_view,
    "View": found_view,
    "UseArtifact": use_artifact,
}
