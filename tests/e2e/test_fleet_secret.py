"""Two nodes over mutual TLS get another fleet secret and other certificates while they serve."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pool.wire.fleet_secret import load_secrets, rotate
from pool.wire.handshake import HandshakeFailed, Secrets
from pool.wire.peer import Address, dial
from registry_sync.leader import look
from tests.support.certificates import Authority, common_name
from tests.support.load import Load
from tests.support.models import identity
from tests.support.nodes import Fleet, running_fleet
from tests.support.processes import private_text, tidepool
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rule("SEC-7"),
    # asyncio's own loop ends before all that it closes is closed; processes run on uvloop.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CA = Authority.make()
INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
TAKEN_S = 4.0  # for every process to look at its files, and for connections to be made anew


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("tls")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        patch.delenv("TIDEPOOL_FLEET_SECRET", raising=False)
        url = f"s3://{BUCKET}/{folder.name}"
        with running_fleet(
            *(folder, url, seaweed.environment), edges=2, workers=2, authority=CA
        ) as fleet:
            fleet.publish("echo", identity(folder / "1.onnx"))
            until(lambda: fleet.infer("echo", INPUT).status == 200, 40.0, "it serves")
            yield fleet


def addresses(fleet: Fleet) -> list[str]:
    """Return where the controller and the workers are dialled."""
    record = look(fleet.store).record
    assert record is not None
    log = fleet.pools[0].log()
    found = {word for word in log.replace('"', " ").split() if word.startswith("tls://")}
    return [record.url, *sorted(found)]


def shown(address: str, secrets: Secrets) -> str:
    """Return whom the certificate names that a new connection sees."""

    async def look() -> str:
        gone = asyncio.Event()
        try:
            peer = await dial(Address.parse(address), secrets)
            peer.on_lost = lambda _: gone.set()
            seen = common_name(peer.certificate())
            peer.close()
            await asyncio.wait_for(gone.wait(), 10.0)
            return seen
        finally:
            await asyncio.sleep(0.1)  # for the loop to close what is closing

    return asyncio.run(look())


def held(folder: Path) -> Secrets:
    found = load_secrets(folder)
    assert found is not None
    return found


def test_all_that_goes_over_tcp_goes_over_mutual_tls(fleet: Fleet, tmp_path: Path) -> None:
    found = addresses(fleet)
    assert len(found) == 3
    assert all(address.startswith("tls://") for address in found)
    assert [shown(address, held(fleet.data)) for address in found] == ["a", "b", "b"]
    # The secret alone is not enough: whoever has stolen it still has no certificate.
    private_text(tmp_path / "secrets", (fleet.data / "secrets").read_text())
    for address in found:
        with pytest.raises((HandshakeFailed, OSError)):
            shown(address, held(tmp_path))


def test_secret_and_certificates_are_changed_without_a_failed_request(fleet: Fleet) -> None:
    first, *others = [*fleet.nodes.values(), fleet.data]
    old = Secrets(held(first).current, tls=held(fleet.data).tls)
    load = Load(fleet.url, fleet.key, "echo", threads=4, pause_s=0.01)
    with load:
        load.more(50)
        done = tidepool("keys", "fleet", "rotate", "--data", str(first), env=fleet.env)
        assert done.code == 0, done
        load.more(50)
        for folder in others:
            rotate(folder, (first / "secrets").read_text())
        for name, folder in fleet.nodes.items():
            CA.issue(folder / "wire-tls", f"{name}, renewed", with_ca=True)
        time.sleep(TAKEN_S)
        load.more(50)
        assert [shown(address, old) for address in addresses(fleet)] == [
            *("a, renewed", "b, renewed", "b, renewed")
        ]
        for folder in (first, *others):
            done = tidepool("keys", "fleet", "retire", "--data", str(folder), env=fleet.env)
            assert done.code == 0, done
        time.sleep(TAKEN_S)
        load.more(50)
        for address in addresses(fleet):
            with pytest.raises(HandshakeFailed):
                shown(address, old)
        fleet.status()  # the controller is there, and so are the workers
        assert len(fleet.status()["workers"]) == 2
    load.assert_clean()
    # Who had to be cut off did not dial anew in time: nobody.
    for said in ("worker_lost", "was retired"):
        assert said not in fleet.log_text()


def test_node_with_another_secret_stays_outside(fleet: Fleet, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    shutil.copytree(fleet.data / "wire-tls", stranger / "wire-tls")
    private_text(stranger / "secrets", "the secret of another fleet")
    for address in addresses(fleet):
        with pytest.raises(HandshakeFailed):
            shown(address, held(stranger))
