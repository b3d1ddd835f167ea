"""Whether each tier can do its work with the rights that Terraform gives it, and nothing else.

`policies.json` is what the registry module makes, which its own tests hold.  Here a server that
goes by IAM's policies lets or does not let our own code do what a tier does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pool.learned import Learned
from pool.registry_watch import RegistryWatch
from registry_sync import audit, catalog, documents, endpoints, keys, leader, wishes
from registry_sync.documents import EndpointSpec, EndpointState, File, Variant
from registry_sync.leader import Leadership
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from registry_sync.notifications import Queue
from registry_sync.open import open_store
from registry_sync.plan_store import bring_plan, mark_used, put_plan
from registry_sync.stores import AccessDenied, NotFound, Store
from registry_sync.sync import fetch
from tests.support import published
from tests.support.aws import AwsServer
from tests.support.made_plans import KEYS, SECRET, add, key_of
from tests.support.source import ROOT
from tests.support.terraform import MODULES

POLICIES = json.loads((MODULES / "tests" / "policies.json").read_text())
BUCKET = "prod-registry-123456789012"  # as in the policies
QUEUE = "prod-registry-changes"
URL = f"s3://{BUCKET}"
BLOB = b"the model's bytes"
KEY = key_of()
DAY = "2026-11-26"
WISH = wishes.new_wish("m", "1", "sm_89")


@dataclass
class _Account:
    """The registry on AWS, and a user for each tier."""

    server: AwsServer
    queue_url: str
    monkeypatch: pytest.MonkeyPatch
    users: dict[str, tuple[str, str]]

    @contextlib.contextmanager
    def as_tier(self, tier: str) -> Iterator[Store]:
        """Open the registry with the rights of a tier, which count meanwhile."""
        with self.monkeypatch.context() as patch:
            for name, value in self.server.environment_of(*self.users[tier]).items():
                patch.setenv(name, value)
            with contextlib.closing(open_store(URL)) as store, self.server.enforced():
                yield store


@pytest.fixture
def account(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Account]:
    s3, iam, sqs = aws.client("s3"), aws.client("iam"), aws.client("sqs")
    s3.create_bucket(Bucket=BUCKET)
    queue_url = sqs.create_queue(QueueName=QUEUE)["QueueUrl"]
    users = {}
    for tier, statements in POLICIES.items():
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        # AWS knows no such action: a batch is what a single one is.
        document = document.replace(
            '"sqs:DeleteMessage"', '"sqs:DeleteMessage", "sqs:DeleteMessageBatch"'
        )
        iam.create_user(UserName=tier)
        iam.put_user_policy(UserName=tier, PolicyName="registry", PolicyDocument=document)
        made = iam.create_access_key(UserName=tier)["AccessKey"]
        users[tier] = (made["AccessKeyId"], made["SecretAccessKey"])
    with contextlib.closing(open_store(URL)) as store:
        _fill(store)
    yield _Account(aws, queue_url, monkeypatch, users)
    for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        s3.delete_object(Bucket=BUCKET, Key=entry["Key"])
    s3.delete_bucket(Bucket=BUCKET)
    sqs.delete_queue(QueueUrl=queue_url)
    for tier, (key_id, _) in users.items():
        iam.delete_access_key(UserName=tier, AccessKeyId=key_id)
        iam.delete_user_policy(UserName=tier, PolicyName="registry")
        iam.delete_user(UserName=tier)


def _fill(store: Store) -> None:
    """Put a model, its endpoint, a key and a wish there, as somebody with all rights."""
    digest = hashlib.sha256(BLOB).hexdigest()
    store.put_new(catalog.blob_key(digest), BLOB)
    published.publish(store, "1", files=(File("model.onnx", digest, len(BLOB)),))
    endpoints.create(store, EndpointSpec("m", (Variant("stable", "m", "1", 100),)))
    keys.add_key(store, keys.make_key("team", ["infer:*"])[1])
    wishes.put(store, WISH)


def test_an_edge_finds_the_controller_and_sees_nothing_else(account: _Account) -> None:
    with account.as_tier("edge") as store:
        assert leader.look(store).etag is None
        for key in ("keys.json", "endpoints/m.json", "models/m/1/manifest.json"):
            with pytest.raises(AccessDenied):
                store.get(key)
        with pytest.raises(AccessDenied):
            store.put_new("control/leader.json", b"{}")


def test_the_controller_leads_and_follows_the_registry(account: _Account, tmp_path: Path) -> None:
    sqs = account.server.client("sqs")
    sqs.send_message(QueueUrl=account.queue_url, MessageBody='{"Event": "s3:TestEvent"}')
    with account.as_tier("controller") as store:
        leadership = Leadership("c", "tcp://10.0.0.1:8010")
        leader.step(store, leadership)
        assert leadership.may_act(time.monotonic())
        watch = RegistryWatch(store)
        assert watch.poll(is_asked=True)
        assert set(watch.snapshot.specs) == {"m"}
        assert watch.snapshot.key_bytes
        assert not watch.snapshot.rejected
        assert not watch.wishes.unknown
        assert len(watch.wishes.wishes) == 1
        assert Learned(store, LocalStore(tmp_path)).save(b"learned")
        assert Learned(store, LocalStore(tmp_path)).load() == b"learned"
        endpoints.update_state(store, "m", lambda _: EndpointState("m", 1, {"stable": 100.0}))
        actor = audit.Actor("controller", "epoch 1", "why")
        record = audit.record_at("2026-11-26T05:00:00+00:00", actor, "rollout.step", "m")
        for _ in range(2):
            audit.append_once(store, record, "1")
        leader.resign(store, leadership)
        queue = Queue(account.queue_url, URL, wait_s=0)
        with contextlib.closing(queue):
            queue.delete(queue.receive())
        for key in ("endpoints/m.json", "keys.json", "models/m/2/manifest.json", "blobs/x"):
            with pytest.raises(AccessDenied):
                store.put_new(key, b"{}")
    left = sqs.get_queue_attributes(QueueUrl=account.queue_url, AttributeNames=["All"])
    assert left["Attributes"]["ApproximateNumberOfMessages"] == "0"
    assert left["Attributes"]["ApproximateNumberOfMessagesNotVisible"] == "0"


def test_a_worker_brings_models_and_engines_and_writes_none(
    account: _Account, tmp_path: Path
) -> None:
    plans = LocalPlans(tmp_path / "plans")
    add(plans, b"plan" * 100)
    with account.as_tier("worker") as store:
        assert leader.look(store).etag is None
        manifest = fetch(store, LocalStore(tmp_path / "node"), "m", "1")
        assert manifest.files[0].bytes == len(BLOB)
        assert bring_plan(store, LocalPlans(tmp_path / "other"), KEY, list(KEYS)) is None
        mark_used(store, KEY, DAY)
        mark_used(store, KEY, "2026-11-27")
        with pytest.raises(NotFound):
            fetch(store, LocalStore(tmp_path / "node"), "m", "2")
        with pytest.raises(AccessDenied):
            put_plan(store, plans, KEY, SECRET[0], DAY)
        for key in ("keys.json", "endpoints/m.json", "builds/m/1/sm_89.json"):
            with pytest.raises(AccessDenied):
                store.get(key)
        with pytest.raises(AccessDenied):
            store.put_new("models/m/2/manifest.json", b"{}")


@pytest.mark.parametrize("plan_bytes", [50_000, 9 << 20], ids=["whole", "in parts"])
def test_a_builder_writes_engines_that_a_worker_brings(
    account: _Account, tmp_path: Path, plan_bytes: int
) -> None:
    mine, theirs = LocalPlans(tmp_path / "mine"), LocalPlans(tmp_path / "theirs")
    add(mine, b"p" * plan_bytes)
    with account.as_tier("builder") as store:
        assert put_plan(store, mine, KEY, SECRET[0], DAY)
        with pytest.raises(AccessDenied):
            store.put_new("models/m/2/manifest.json", b"{}")
        with pytest.raises(AccessDenied):
            store.get("keys.json")
    with account.as_tier("worker") as store:
        assert bring_plan(store, theirs, KEY, list(KEYS)) == SECRET[0]


def test_an_edge_with_an_admin_port_changes_documents_and_no_models(account: _Account) -> None:
    with account.as_tier("edge_admin") as store:
        spec, _ = endpoints.get_spec(store, "m")
        assert endpoints.set_spec(store, spec) == 2
        assert {one.revision for one in endpoints.history(store, "m")} == {1, 2}
        endpoints.purge(store, "m")
        keys.add_key(store, keys.make_key("team", ["admin"])[1])
        assert len(keys.list_keys(store)) == 2
        assert audit.note(store, audit.Actor("key", "tp_1", ""), "endpoint.purge", "m") is None
        now = datetime.now(UTC)
        query = audit.Query(now - timedelta(hours=1), now + timedelta(hours=1))
        assert len(audit.page(store, query, limit=10).found) == 1
        assert not wishes.put(store, WISH)
        wishes.withdraw(store, "m", "1", "sm_89")
        assert documents.read_manifest(store.get(catalog.manifest_key("m", "1")).data)
        for key in ("models/m/2/manifest.json", "engines/x/plan", "control/leader.json"):
            with pytest.raises(AccessDenied):
                store.put_new(key, b"{}")
        with pytest.raises(AccessDenied):
            store.delete("endpoints/m.json")


def test_the_controller_may_make_the_launchers_calls_and_no_others() -> None:
    verbs = "Create|Describe|List|Run|Set|Stop|Terminate"
    calls = (ROOT / "pool" / "aws" / "client.py").read_text()
    asked = set(re.findall(rf'"((?:{verbs})[A-Z]\w+)"', calls))
    modules = [(MODULES / "modules" / name / "roles.tf").read_text() for name in ("edge", "pool")]
    blocks = [text.partition("launch_statements = [")[2].partition("\n  ]")[0] for text in modules]
    granted = set(re.findall(r'"(?:autoscaling|ec2|ecs|iam):([A-Z]\w+)"', "".join(blocks)))
    beside_run_task = {"PassRole", "TagResource"}
    names_of_conditions = {"CreateAction", "PassedToService"}
    assert granted - beside_run_task - names_of_conditions == asked
