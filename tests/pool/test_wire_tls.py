"""TLS beneath the wire: nobody reads along, sits in between, or comes without a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop
from cryptography.hazmat.primitives import serialization

from pool.wire import listening
from pool.wire.fleet_secret import TLS_VARIABLE, load_secrets, retire, rotate
from pool.wire.frames import encode
from pool.wire.handshake import HandshakeFailed, Secret, Secrets
from pool.wire.listening import Server
from pool.wire.peer import Address, Peer, dial
from pool.wire.tls import BadTls, WireTls
from tests.support import peers
from tests.support.certificates import Authority, common_name
from tests.support.peers import LOCALHOST, OTHER, SECRETS, Accepted, Ears, Run, stranger
from tests.support.processes import private_text

# What listens runs on uvloop; asyncio's own loop forgets whom it accepts while it closes.
on_uvloop = pytest.mark.parametrize("run", [uvloop.new_event_loop], ids=["uvloop"], indirect=True)

CA = Authority.make()
TLS = Address(host="127.0.0.1", is_tls=True)
SECRET = "the fleet's current secret"
NEXT = "the fleet's secret of tomorrow"


_open: list[Server] = []
_left: list[Peer] = []  # as with servers


async def serve(address: Address, secrets: Secrets, accepted: Accepted) -> Server:
    """Listen until the test ends, however it does: a loop with an open server does not close."""
    server = await listening.serve(address, secrets, accepted)
    _open.append(server)
    return server


@pytest.fixture(
    name="run", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def _run(request: pytest.FixtureRequest) -> Run:
    async def ending(main: Coroutine[Any, Any, None]) -> None:
        try:
            await main
        finally:
            while _left:
                _left.pop().close()
            while _open:
                await _open.pop().close()
            await asyncio.sleep(0.02)  # for the connections that are being closed

    return lambda main: peers.run_on(request.param, ending(main))


def with_tls(folder: Path | None, text: str = SECRET) -> Secrets:
    return Secrets.parse(text, WireTls(folder))


async def said_through(address: Address, secrets: Secrets, accepted: Accepted) -> bytes:
    """Send a frame there and one back; return the certificate that was seen."""
    ears = Ears(await dial(address, secrets))
    _left.append(ears.peer)
    theirs = await accepted.ears.get()
    large = bytes(1 << 20)
    ears.peer.send(encode(b"call", [large]))
    theirs.peer.send(encode(b"reply", [large]))
    assert await theirs.frames.get() == (b"call", large)
    assert await ears.frames.get() == (b"reply", large)
    seen = ears.peer.certificate()
    ears.peer.close()
    await theirs.is_lost.wait()
    return seen


async def is_let_in(address: Address, secrets: Secrets) -> bool:
    try:
        peer = await dial(address, secrets)
    except (HandshakeFailed, OSError):
        return False
    peer.close()
    return True


async def until_shown(server: Server, name: str, secrets: Secrets, accepted: Accepted) -> None:
    async with asyncio.timeout(20):
        while True:
            if common_name(await said_through(server.address, secrets, accepted)) == name:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "CHANGED_S", 0.02)


def test_who_has_no_certificate_speaks_to_one_who_has(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        accepted = Accepted()
        server = await serve(TLS, with_tls(CA.issue(tmp_path, "worker")), accepted)
        assert str(server.address).startswith("tls://127.0.0.1:")
        seen = await said_through(server.address, SECRETS, accepted)
        assert common_name(seen) == "worker"
        with pytest.raises(HandshakeFailed):
            await dial(server.address, OTHER)

    run(main())


def test_what_is_said_cannot_be_read_on_the_way(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        accepted = Accepted()
        server = await serve(TLS, with_tls(CA.issue(tmp_path)), accepted)
        passed = bytearray()
        async with relay(server.address, passed) as address:
            ears = Ears(await dial(address, SECRETS))
            ears.peer.send(encode(b"call", [b"what nobody is to read" * 4]))
            theirs = await accepted.ears.get()
            await theirs.frames.get()
            assert len(passed) > 500
            assert b"nobody is to read" not in passed
            assert SECRETS.current.id.encode() not in passed
            ears.peer.close()

    run(main())


@contextlib.asynccontextmanager
async def relay(
    to: Address,
    passed: bytearray,
    dialled: ssl.SSLContext | None = None,
    shown: ssl.SSLContext | None = None,
):  # type: ignore[no-untyped-def]
    """Pass bytes on to `to`, and keep them; with contexts, as one who opens both TLS sides."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                passed.extend(data)
                writer.write(data)
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(to.host, to.port, ssl=dialled)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_server(between, "127.0.0.1", 0, ssl=shown)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Address(host="127.0.0.1", port=port, is_tls=to.is_tls)
    finally:
        server.close()
        await asyncio.sleep(0.02)


def test_who_sits_in_between_with_a_certificate_of_its_own_is_found_out(
    run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        accepted = Accepted()
        server = await serve(TLS, with_tls(CA.issue(tmp_path / "worker")), accepted)
        # Nobody has a CA here, and the one in between passes the handshake on as it is.
        shown = WireTls(Authority.make().issue(tmp_path / "rogue")).server()
        assert shown is not None
        passed = bytearray()
        async with relay(server.address, passed, WireTls(None).client(), shown.context) as address:
            with pytest.raises(HandshakeFailed):
                await dial(address, SECRETS)
            assert SECRETS.current.id.encode() in passed, "it saw the handshake"
        assert accepted.ears.empty()

    run(main())


def test_who_is_led_to_a_plain_address_is_not_let_in_to_a_tls_one(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        accepted = Accepted()
        server = await serve(TLS, with_tls(CA.issue(tmp_path)), accepted)
        opened = WireTls(None).client()
        async with relay(server.address, bytearray(), opened) as address:
            with pytest.raises(HandshakeFailed):
                await dial(Address(host=address.host, port=address.port), SECRETS)
        assert accepted.ears.empty()

    run(main())


@pytest.mark.rule("SEC-7")
def test_with_a_ca_both_sides_must_show_a_certificate_by_it(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        accepted = Accepted()
        ours = with_tls(CA.issue(tmp_path / "a", "worker", with_ca=True))
        server = await serve(TLS, ours, accepted)
        same = with_tls(CA.issue(tmp_path / "b", "edge", with_ca=True))
        await said_through(server.address, same, accepted)
        stranger_ca = Authority.make()
        by_another = stranger_ca.issue(tmp_path / "c", with_ca=True)
        (by_another / "ca.crt").write_bytes(CA.pem)  # trusts us, but has nothing of ours to show
        for refused in (SECRETS, with_tls(CA.issue(tmp_path / "d") and None), with_tls(by_another)):
            with pytest.raises((HandshakeFailed, OSError)):
                await dial(server.address, refused)
        await server.close()
        # And the other way round: a listener whose certificate is not of this CA.
        server = await serve(TLS, with_tls(stranger_ca.issue(tmp_path / "e")), accepted)
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(server.address, same)
        await server.close()
        assert accepted.ears.empty()

    run(main())


def test_with_a_ca_nothing_goes_plain(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        mutual = with_tls(CA.issue(tmp_path, with_ca=True))
        with pytest.raises(ValueError, match="listen on tls://"):
            await serve(LOCALHOST, mutual, Accepted())
        server = await serve(LOCALHOST, SECRETS, Accepted())
        with pytest.raises(HandshakeFailed, match="dials only tls://"):
            await dial(server.address, mutual)

    run(main())


def test_older_tls_and_no_tls_are_refused(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        accepted = Accepted()
        server = await serve(TLS, with_tls(CA.issue(tmp_path)), accepted)
        port = server.address.port
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)
        async with stranger(Address(host="127.0.0.1", port=port)) as one:
            one.say(b"GET / HTTP/1.1\r\n\r\n")
            assert await one.is_cut_off()
        with pytest.raises((HandshakeFailed, ConnectionError)):
            await dial(Address(host="127.0.0.1", port=port), SECRETS, s_max=0.3)
        assert accepted.ears.empty()

    run(main())


def test_silent_stranger_at_a_tls_port_is_cut_off(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S_MAX", 0.2)

    async def main() -> None:
        server = await serve(TLS, with_tls(CA.issue(tmp_path)), Accepted())
        async with stranger(Address(host="127.0.0.1", port=server.address.port)) as one:
            assert await one.is_cut_off()

    run(main())


@on_uvloop
def test_renewed_certificate_is_shown_without_a_restart(
    run: Run, tmp_path: Path, quick: None
) -> None:
    async def main() -> None:
        accepted = Accepted()
        server = await serve(TLS, with_tls(CA.issue(tmp_path, "first")), accepted)
        open_before = Ears(await dial(server.address, SECRETS))
        theirs = await accepted.ears.get()
        await until_shown(server, "first", SECRETS, accepted)
        CA.issue(tmp_path, "second")
        await until_shown(server, "second", SECRETS, accepted)
        (tmp_path / "tls.key").write_text("half a file")
        await asyncio.sleep(0.1)
        await until_shown(server, "second", SECRETS, accepted)
        CA.issue(tmp_path, "third")
        await until_shown(server, "third", SECRETS, accepted)
        theirs.peer.send(encode(b"still", []))
        assert await open_before.frames.get() == (b"still", b"")
        open_before.peer.close()

    run(main())


@on_uvloop
def test_new_ca_counts_without_a_restart(run: Run, tmp_path: Path, quick: None) -> None:
    async def main() -> None:
        accepted = Accepted()
        ours, theirs = tmp_path / "a", tmp_path / "b"
        server = await serve(TLS, with_tls(CA.issue(ours, with_ca=True)), accepted)
        old = with_tls(CA.issue(tmp_path / "old", with_ca=True))
        await said_through(server.address, old, accepted)
        other = Authority.make("the next CA")
        other.issue(ours, with_ca=True)
        new = with_tls(other.issue(theirs, with_ca=True))
        while True:
            with contextlib.suppress(OSError, HandshakeFailed):
                await said_through(server.address, new, accepted)
                break
            await asyncio.sleep(0.01)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await dial(server.address, old)

    run(main())


def test_files_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CA.issue(tmp_path / "wire-tls")
    private_text(tmp_path / "secrets", SECRET)
    assert load_secrets(tmp_path) is not None
    CA.issue(tmp_path / "other")
    (folder / "tls.key").write_bytes((tmp_path / "other" / "tls.key").read_bytes())
    with pytest.raises(BadTls, match=r"tls\.key"):
        load_secrets(tmp_path)
    for name in ("tls.key", "tls.crt"):
        CA.issue(folder)
        (folder / name).unlink()
        with pytest.raises(BadTls, match=rf"^\S*/{name}: No such file"):
            load_secrets(tmp_path)
    CA.issue(folder)
    key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"words"),
        )
    )
    with pytest.raises(BadTls, match="the key is encrypted"):
        load_secrets(tmp_path)
    CA.issue(folder)
    (folder / "ca.crt").write_text("nothing")
    with pytest.raises(BadTls, match=r"ca\.crt"):
        load_secrets(tmp_path)
    monkeypatch.setenv(TLS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(BadTls, match="no folder"):
        load_secrets(tmp_path)
    monkeypatch.setenv(TLS_VARIABLE, str(tmp_path / "other"))
    found = load_secrets(tmp_path)
    assert found is not None
    assert found.tls.server() is not None


@on_uvloop
@pytest.mark.rule("SEC-7")
def test_fleet_with_a_ca_never_opens_when_a_file_is_gone(
    run: Run, tmp_path: Path, quick: None
) -> None:
    async def main() -> None:
        accepted = Accepted()
        ours = with_tls(CA.issue(tmp_path / "a", "first", with_ca=True))
        same = with_tls(CA.issue(tmp_path / "b", with_ca=True))
        server = await serve(TLS, ours, accepted)
        with structlog.testing.capture_logs() as said:
            (tmp_path / "a" / "ca.crt").unlink()
            CA.issue(tmp_path / "a", "second")
            await asyncio.sleep(0.2)
            assert not await is_let_in(server.address, SECRETS)
            assert ours.tls.is_mutual
            assert common_name(await said_through(server.address, same, accepted)) == "first"
            assert not await is_let_in(Address(host="127.0.0.1", port=server.address.port), ours)
        warned = [entry for entry in said if entry["event"] == "wire_certificate_not_taken"]
        assert warned
        assert warned[-1]["log_level"] == "warning"
        assert "ca.crt" in warned[-1]["error"]
        CA.issue(tmp_path / "a", "third", with_ca=True)
        await until_shown(server, "third", same, accepted)
        assert not await is_let_in(server.address, SECRETS)

    run(main())


@on_uvloop
def test_listener_outlives_whatever_files_do(
    run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        accepted = Accepted()
        private_text(tmp_path / "secrets", SECRET)
        folder = CA.issue(tmp_path / "wire-tls", "first")
        held = load_secrets(tmp_path)
        assert held is not None
        server = await serve(TLS, held, accepted)
        old = Ears(await dial(server.address, SECRETS))
        _left.append(old.peer)
        theirs = await accepted.ears.get()
        for name in ("tls.crt", "tls.key"):
            (folder / name).unlink()
        (tmp_path / "secrets").unlink()
        await asyncio.sleep(0.1)
        await until_shown(server, "first", SECRETS, accepted)
        (folder / "tls.key").mkdir()
        (folder / "tls.crt").write_bytes(b"\xff\0")
        await asyncio.sleep(0.1)
        (folder / "tls.key").rmdir()
        # Nor is a listener that cannot be made the last try.
        failed = asyncio.Event()

        async def fail(*args: object, **options: object) -> None:
            failed.set()
            raise OSError("too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(listening._Doorman, "_listen", fail)
            CA.issue(folder, "second")
            await asyncio.wait_for(failed.wait(), 20)
        await until_shown(server, "second", SECRETS, accepted)
        private_text(tmp_path / "secrets", NEXT)
        assert isinstance(await theirs.lost(), HandshakeFailed)
        await old.lost()

    run(main())


def test_tls_without_a_certificate_cannot_be_listened_on(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"tls\.crt and tls\.key"):
            await serve(TLS, SECRETS, Accepted())

    run(main())


# the fleet secret


def node(folder: Path, text: str) -> Secrets:
    """Return what a process of the node holds, whose file says `text` as yet."""
    folder.mkdir()
    private_text(folder / "secrets", text)
    found = load_secrets(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("first", ["dialler", "listener"])
def test_secret_is_rotated_node_by_node_in_any_order(
    run: Run, tmp_path: Path, quick: None, first: str
) -> None:
    async def main() -> None:
        accepted = Accepted()
        folders = {name: tmp_path / name for name in ("dialler", "listener")}
        dialler, listener = (node(folder, SECRET) for folder in folders.values())
        server = await serve(LOCALHOST, listener, accepted)
        leftover = Ears(await dial(server.address, dialler))
        at_ours = await accepted.ears.get()
        second = next(name for name in folders if name != first)
        for name in (first, second):
            rotate(folders[name], NEXT)
            await said_through(server.address, dialler, accepted)
        assert not at_ours.is_lost.is_set()
        for name in (first, second):
            retire(folders[name])
            await said_through(server.address, dialler, accepted)
        # Who only knows the retired one is cut off, and not let in again.
        assert isinstance(await at_ours.lost(), HandshakeFailed)
        await leftover.lost()
        with pytest.raises(HandshakeFailed):
            await dial(server.address, SECRETS)

    run(main())


def test_who_is_connected_with_the_current_secret_stays(
    run: Run, tmp_path: Path, quick: None
) -> None:
    async def main() -> None:
        accepted = Accepted()
        listener = node(tmp_path / "a", SECRET)
        rotate(tmp_path / "a", NEXT)
        server = await serve(LOCALHOST, listener, accepted)
        ears = Ears(await dial(server.address, Secrets.parse(NEXT)))
        theirs = await accepted.ears.get()
        assert ears.peer.secret_id == theirs.peer.secret_id == Secret.of(NEXT).id
        retire(tmp_path / "a")
        await asyncio.sleep(0.2)
        assert not theirs.is_lost.is_set()
        ears.peer.close()

    run(main())


@pytest.mark.rule("SEC-7")
@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o666])
def test_secret_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    held = node(tmp_path / "a", SECRET)
    path = tmp_path / "a" / "secrets"
    rotate(tmp_path / "a", NEXT)
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"chmod 600 {path}"):
        load_secrets(tmp_path / "a")
    assert held.current == Secret.of(SECRET), "a process that runs keeps what was good"
    path.chmod(0o640)  # a group's, as of a service or of Kubernetes' fsGroup
    assert held.current == Secret.of(NEXT)
    assert load_secrets(tmp_path / "a") == held


@pytest.mark.rule("SEC-7")
def test_wire_key_that_others_can_change_is_refused_and_one_they_can_read_is_warned_of(
    tmp_path: Path,
) -> None:
    key = CA.issue(tmp_path) / "tls.key"
    for mode in (0o666, 0o620, 0o602):
        key.chmod(mode)
        with pytest.raises(BadTls, match=f"others can change it .*chmod 600 {key}"):
            WireTls(tmp_path)
    key.chmod(0o644)
    with structlog.testing.capture_logs() as said:
        assert WireTls(tmp_path).server() is not None
    assert [entry["event"] for entry in said] == ["wire_key_readable_by_others"]
    key.chmod(0o600)
    with structlog.testing.capture_logs() as said:
        WireTls(tmp_path)
    assert said == []


def test_file_that_does_not_fit_leaves_the_last_good_secrets(tmp_path: Path) -> None:
    held = node(tmp_path / "a", SECRET)
    private_text(tmp_path / "a" / "secrets", "short")
    assert held.current == Secret.of(SECRET)
    (tmp_path / "a" / "secrets").unlink()
    assert held.current == Secret.of(SECRET)
    private_text(tmp_path / "a" / "secrets", f"{NEXT},{SECRET}")
    assert held.held == (Secret.of(NEXT), Secret.of(SECRET))
