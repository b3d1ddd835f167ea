"""S3 is touched inside the configured bucket and prefix alone: seen by what arrives over HTTP."""

from __future__ import annotations

import contextlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pool.registry_watch import RegistryWatch
from registry_sync import audit, catalog, documents, endpoints, keys, leader, plan_catalog
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.plan_store import bring_plan, put_plan
from registry_sync.publish import publish
from registry_sync.stores import BadStore, NotFound, Store, StoreError
from registry_sync.sync import FetchError, fetch
from tests.support import models
from tests.support.artifacts import manifest_of
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.made_plans import KEYS, SECRET, add, key_of
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.rule("SEC-6", "SEC-14")

HOSTILE = (
    *("..", "../x", "../../keys", "a/../../b", "/etc/passwd", "//x", "a//b", "./a", "a/.", "..\\x"),
    *("%2e%2e", "%2e%2e/x", "..%2fx", "a#b", "a?b=c", "a&prefix=", "s3://other/x", "a:b", "@b"),
    *("http://127.0.0.1/x", "file:///etc/passwd", "\u2025/x", "a\nb", "a\0", " ", "", "A" * 2000),
    *("\ud800", "a\u202eb", "~", "$(id)", "`id`", "{x}", "*", "'", '"', "a b", "a;b", "..;/x"),
)


@pytest.fixture
def proxy(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FaultyS3, str]]:
    """What stands between us and S3, and a registry two folders down in the bucket."""
    with faulty_s3(seaweed.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running, f"{s3_url}/deep"


def outside(requests: list[str], url: str) -> list[str]:
    """Return the requests that touch anything but the registry."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found = []
    for request in requests:
        method, _, target = request.partition(" ")
        parts = urllib.parse.urlsplit(target)
        path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        listed = query.get("prefix", [""])[0]
        is_list = method == "GET" and path.rstrip("/") == f"/{bucket}"
        is_inside = listed.startswith(f"{prefix}/") if is_list else False
        is_inside = is_inside or path.startswith(f"/{bucket}/{prefix}/")
        if not is_inside or ".." in path.split("/") or ".." in listed.split("/"):
            found.append(request)
    return found


def test_the_check_sees_what_is_outside() -> None:
    url = "s3://b/p/deep"
    for request in (
        *("GET /b/p/other", "GET /b/p/deeper/x", "PUT /c/p/deep/x", "GET /", "DELETE /b/p/deep"),
        *("GET /b?list-type=2&prefix=", "GET /b?prefix=p%2F", "GET /b/p/deep/%2e%2e/x"),
        *("GET /b?prefix=p/deep/../x", "PUT /b?prefix=p/deep/x"),
    ):
        assert outside([request], url) == [request]
    assert not outside(["GET /b/p/deep/x", "GET /b?list-type=2&prefix=p%2Fdeep%2Fx"], url)


def test_nothing_that_we_do_leaves_the_prefix(proxy: tuple[FaultyS3, str], tmp_path: Path) -> None:
    running, url = proxy
    with contextlib.closing(open_store(url)) as store:
        models.identity(tmp_path / "m.onnx")
        publish(store, "m", tmp_path / "m.onnx")
        big = tmp_path / "big"
        big.write_bytes(bytes(17 << 20))
        store.put_file_new(catalog.blob_key("ab" * 32), big)  # in parts
        fetch(store, LocalStore(tmp_path / "node"), "m", "1")
        spec, _ = endpoints.get_spec(store, "m")
        endpoints.set_spec(store, spec)
        endpoints.history(store, "m")
        key, record = keys.make_key("t", ("infer:*",))
        keys.add_key(store, record)
        keys.revoke_key(store, record.id)
        catalog.models(store)
        leader.look(store)
        RegistryWatch(store).poll()
        plans = LocalPlans(tmp_path / "plans")
        add(plans, b"plan")
        put_plan(store, plans, key_of(), SECRET[0], "2026-11-26")
        bring_plan(store, LocalPlans(tmp_path / "more"), key_of(), (SECRET[0],))
        plan_catalog.plans(store, KEYS)
        audit.note(store, audit.Actor("cli", "me"), "key.create", "x")
        now = datetime.now(UTC)
        audit.page(store, audit.Query(now - timedelta(hours=1), now), limit=10)
        store.list("")
        store.delete("keys.json")
        assert key not in " ".join(running.requests)
    assert len(running.requests) > 40
    assert outside(running.requests, url) == []


def test_no_name_or_key_leads_out_of_it(proxy: tuple[FaultyS3, str], tmp_path: Path) -> None:
    running, url = proxy
    local = LocalStore(tmp_path / "node")
    with contextlib.closing(open_store(url)) as store:
        for name in HOSTILE:
            for act in (
                lambda name=name: catalog.load_manifest(store, name, "1"),
                lambda name=name: catalog.load_manifest(store, "m", name),
                lambda name=name: catalog.versions(store, name),
                lambda name=name: store.get(catalog.blob_key(name)),
                lambda name=name: fetch(store, local, name, "1"),
                lambda name=name: fetch(store, local, "m", name),
                lambda name=name: endpoints.get_spec(store, name),
                lambda name=name: endpoints.history(store, name),
                lambda name=name: keys.revoke_key(store, name),
                lambda name=name: RegistryWatch(store).resolve(name, name),
                lambda name=name: store.get(name),
                lambda name=name: store.get(f"models/{name}/1/manifest.json"),
                lambda name=name: store.put_new(name, b""),
                lambda name=name: store.read(name, 0, 1),
                lambda name=name: store.size(name),
                lambda name=name: store.list(name),
                lambda name=name: store.delete(name),
            ):
                with contextlib.suppress(ValueError, StoreError, FetchError, keys.NoSuchKey):
                    act()
    assert outside(running.requests, url) == []


def test_digest_that_is_none_never_reaches_the_store(proxy: tuple[FaultyS3, str]) -> None:
    running, url = proxy
    with contextlib.closing(open_store(url)) as store:
        manifest = documents.write(manifest_of({"f": b"x"}))
        for bad in (b"../../../keys.json", b"AB" * 32, b"ab" * 31):
            digest = manifest.split(b'"sha256":"')[1][:64]
            with pytest.raises(documents.BadDocument, match="sha256"):
                documents.read_manifest(manifest.replace(digest, bad))
        with pytest.raises(BadName):
            store.get(catalog.blob_key("../x"))
    assert not running.requests


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirection_is_followed(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    heard: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"evil")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Redirecting(Elsewhere):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", f"http://127.0.0.1:{there.server_address[1]}/evil")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

    with _served(Elsewhere) as there, _served(Redirecting) as here:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{here.server_address[1]}")
        with contextlib.closing(open_store(s3_url)) as store:
            with pytest.raises(StoreError) as caught:
                _read(store)
            assert not isinstance(caught.value, NotFound)
    assert not heard


@contextlib.contextmanager
def _served(
    handler: type[http.server.BaseHTTPRequestHandler],
) -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _read(store: Store) -> None:
    store.get("keys.json")


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///p",
        "s3://b/../x",
        "s3://b/a/../../x",
        "s3://u:p@b/x",
        "s3://b?x",
        "http://b/x",
    ],
)
def test_registry_url_that_is_none_opens_nothing(url: str) -> None:
    with pytest.raises(BadStore):
        open_store(url)
