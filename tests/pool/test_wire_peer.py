"""A connection delivers what was sent, in order, and ends once, whatever the other side does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
from pathlib import Path

import pytest

from pool.wire import peer as peer_module
from pool.wire.frames import PREFIX, Buffer, WireError, encode
from pool.wire.listening import Server, serve
from pool.wire.peer import BEHIND_BYTES, Address, Peer, PeerLimits, dial
from tests.support.peers import (
    LOCALHOST,
    SECRETS,
    Accepted,
    Ears,
    Run,
    address,
    folder,
    run,
    serving,
)

__all__ = ["address", "folder", "run"]  # fixtures


async def pair(server: Server, accepted: Accepted) -> tuple[Ears, Ears]:
    """Dial `server`; return both ends."""
    ours = Ears(await dial(server.address, None if server.address.path else SECRETS))
    return ours, await accepted.ears.get()


class Caller:
    """Answers each call with its own body, and makes calls of its own on the same connection."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.waiting: dict[bytes, asyncio.Future[bytes]] = {}
        peer.on_frame = self._frame

    def _frame(self, header: bytes, body: Buffer) -> None:
        if header.startswith(b"call"):
            self.peer.send(encode(header.replace(b"call", b"reply"), [body]))
        else:
            self.waiting.pop(header).set_result(bytes(body))

    async def call(self, number: int, body: bytes) -> bytes:
        reply = asyncio.get_running_loop().create_future()
        self.waiting[b"reply %d" % number] = reply
        self.peer.send(encode(b"call %d" % number, [body]))
        return await reply


# addresses


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("unix:/run/a.sock", Address(path="/run/a.sock")),
        ("tcp://127.0.0.1:9000", Address(host="127.0.0.1", port=9000)),
        ("tcp://worker-0.pool:0", Address(host="worker-0.pool", port=0)),
        ("tcp://[::1]:9000", Address(host="::1", port=9000)),
    ],
)
def test_address_is_parsed_and_written_back(text: str, parsed: Address) -> None:
    assert Address.parse(text) == parsed
    assert Address.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "unix", "tcp://", "tcp://x", "tcp://x:", "tcp://:80", "tcp://x:65536",
     "tcp://x:-1", "tcp://x:1x", "http://x:80", "x:80", "/run/a.sock", "tcp:x:80"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected unix:/path, tcp://host:port or tls://host:port"):
        Address.parse(text)


def test_only_tcp_needs_a_secret() -> None:
    assert Address.parse("tcp://127.0.0.1:1").needs_secret
    assert not Address.parse("unix:/run/a.sock").needs_secret


# frames


def test_concurrent_calls_of_any_size_in_both_directions(run: Run, address: Address) -> None:
    rng = random.Random(8)
    sizes = [0, 8, 64, 65528, 65536, 65544, 131048, 131064, 131072, 131080, 1 << 20, 5_000_000]
    bodies = [rng.randbytes(size) for size in [*sizes, *rng.choices(range(0, 200_000, 8), k=20)]]

    async def main() -> None:
        callers: asyncio.Queue[Caller] = asyncio.Queue()
        async with serving(address, lambda peer: callers.put_nowait(Caller(peer))) as server:
            mine = Caller(await dial(server.address, None if address.path else SECRETS))
            both = [mine, await callers.get()]
            calls = [(caller, n) for n in range(len(bodies)) for caller in both]
            rng.shuffle(calls)
            replies = await asyncio.gather(*[caller.call(n, bodies[n]) for caller, n in calls])
            assert replies == [bodies[n] for _, n in calls]
            mine.peer.close()

    run(main())


def test_frames_arrive_in_order(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            for number in range(300):
                ours.peer.send(encode(b"%d" % number, [bytes(number % 7 * 20_000)]))
            got = [await theirs.frames.get() for _ in range(300)]
            assert [header for header, _ in got] == [b"%d" % number for number in range(300)]
            ours.peer.close()
            await theirs.lost()

    run(main())


def test_parts_of_every_kind_arrive(run: Run, address: Address) -> None:
    parts = [b"", bytearray(b"x" * 100_000), memoryview(b"y" * 100_000)[8:], b"z", b""]

    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.send(encode(b"head", parts))
            header, body = await theirs.frames.get()
            assert header == b"head"
            assert bytes(body) == b"x" * 100_000 + b"y" * 99_992 + b"z" + bytes(7)
            ours.peer.close()
            await theirs.lost()

    run(main())


def test_what_was_sent_before_close_still_arrives(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.send(encode(b"last", [bytes(5_000_000)]))
            ours.peer.close()
            assert len((await theirs.frames.get())[1]) == 5_000_000
            assert await theirs.lost() is None
            assert await ours.lost() is None

    run(main())


def test_frames_before_anybody_takes_them_wait(run: Run, address: Address) -> None:
    def greet(peer: Peer) -> None:
        for number in range(50):
            peer.send(encode(b"%d" % number, [bytes(number * 8000)]))

    async def main() -> None:
        async with serving(address, greet) as server:
            peer = await dial(server.address, None if address.path else SECRETS)
            await asyncio.sleep(0.05)
            ears = Ears(peer)
            got = [await ears.frames.get() for _ in range(50)]
            assert [(header, len(body)) for header, body in got] == [
                (b"%d" % number, number * 8000) for number in range(50)
            ]
            peer.close()
            await ears.lost()

    run(main())


def test_frames_that_nobody_takes_wait_at_their_sender(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            peer = await dial(server.address, None)
            theirs = await accepted.ears.get()
            for _ in range(1000):
                theirs.peer.send(encode(b"x", [bytes(16_000)]))
            await asyncio.sleep(0.1)
            assert theirs.peer._transport is not None
            assert theirs.peer._transport.get_write_buffer_size() > 8_000_000
            ears = Ears(peer)
            for _ in range(1000):
                await ears.frames.get()
            peer.close()
            await theirs.lost()

    run(main())


def test_what_is_written_is_the_kernels(run: Run, folder: str) -> None:
    """Whoever dies after that was still heard."""

    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted):
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(f"{folder}/s")
                theirs = await accepted.ears.get()
                got: list[bytes] = []

                def read() -> None:
                    got.append(ours.recv(100, socket.MSG_DONTWAIT))

                theirs.peer.send(encode(b"last words"))
                theirs.peer.when_written(read)
                while not got:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                assert got[0].endswith(b"last words")
            theirs.peer.when_written(lambda: got.append(b"nobody can be told"))
            await theirs.lost()
            theirs.peer.when_written(lambda: got.append(b"nobody is there"))
            while len(got) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    run(main())


def test_what_is_not_read_is_not_written(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted):
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(f"{folder}/s")
                theirs = await accepted.ears.get()
                written = asyncio.Event()
                theirs.peer.send(encode(b"much", [bytes(4 << 20)]))
                theirs.peer.when_written(written.set)
                await asyncio.sleep(0.05)
                assert not written.is_set()
                while not written.is_set():
                    with contextlib.suppress(BlockingIOError):
                        ours.recv(1 << 20, socket.MSG_DONTWAIT)
                    await asyncio.sleep(0)
            await theirs.lost()

    run(main())


def test_frames_that_waited_may_change_who_takes_the_next(run: Run, folder: str) -> None:
    def greet(peer: Peer) -> None:
        for number in range(3):
            peer.send(encode(b"%d" % number))

    async def main() -> None:
        got: list[bytes] = []
        async with serving(Address(path=f"{folder}/s"), greet) as server:
            peer = await dial(server.address, None)
            await asyncio.sleep(0.05)

            def first(header: bytes, body: Buffer) -> None:
                got.append(b"first " + header)
                peer.on_frame = lambda header, body: got.append(header)

            peer.on_frame = first
            await asyncio.sleep(0.05)
            assert got == [b"first 0", b"1", b"2"]
            peer.close()

    run(main())


def test_frame_that_waited_and_is_refused_closes_with_that_error(run: Run, folder: str) -> None:
    def refuse(header: bytes, body: Buffer) -> None:
        raise WireError("not this one")

    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            peer = await dial(server.address, None)
            theirs = await accepted.ears.get()
            theirs.peer.send(encode(b"x"))
            await asyncio.sleep(0.05)
            ears = Ears(peer)
            peer.on_frame = refuse
            assert str(await ears.lost()) == "not this one"
            await theirs.lost()

    run(main())


def test_any_error_over_a_frame_that_waited_closes_the_connection(run: Run, folder: str) -> None:
    def fail(header: bytes, body: Buffer) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        reported: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            peer = await dial(server.address, None)
            theirs = await accepted.ears.get()
            theirs.peer.send(encode(b"x"))
            await asyncio.sleep(0.05)
            ears = Ears(peer)
            peer.on_frame = fail
            assert type(await ears.lost()) is ZeroDivisionError
            assert [type(error) for error in reported] == [ZeroDivisionError]
            await theirs.lost()

    run(main())


# the end


def test_both_sides_are_told_once_of_the_end(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.close()
            ours.peer.close()
            assert await theirs.lost() is None
            assert await ours.lost() is None
            assert not ours.peer.is_open
            assert not theirs.peer.is_open

    run(main())


def test_close_with_an_error_is_told_with_the_first_one(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.close(WireError("first"))
            ours.peer.close(WireError("second"))
            assert str(await ours.lost()) == "first"
            await theirs.lost()

    run(main())


def test_peer_that_dies_in_the_middle_of_a_frame_is_lost_once(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.send([PREFIX.pack(4, 1_000_000) + b"head" + bytes(500_000)])
            await asyncio.sleep(0.05)
            ours.peer.close(WireError("killed"))
            await theirs.lost()
            assert theirs.frames.empty()

    run(main())


def test_loss_before_anybody_listens_is_told_to_the_first_who_does(
    run: Run, address: Address
) -> None:
    async def main() -> None:
        async with serving(address, lambda peer: peer.close()) as server:
            peer = await dial(server.address, None if address.path else SECRETS)
            await asyncio.sleep(0.05)
            assert not peer.is_open
            assert await Ears(peer).lost() is None

    run(main())


def test_frames_after_close_are_not_delivered(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            got: list[bytes] = []

            def take_one(header: bytes, body: Buffer) -> None:
                got.append(header)
                theirs.peer.close()

            theirs.peer.on_frame = take_one
            for number in range(10):  # they leave, and come, together
                ours.peer.send(encode(b"%d" % number))
            await theirs.lost()
            assert got == [b"0"]
            await ours.lost()

    run(main())


def test_send_after_close_is_a_no_op(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.close()
            ours.peer.send(encode(b"late"))
            ours.peer.send(encode(b"late", [bytes(100_000)]))
            await theirs.lost()
            theirs.peer.send(encode(b"late"))
            theirs.peer.send(encode(b"late", [bytes(100_000)]))
            assert theirs.frames.empty()
            assert await ours.lost() is None

    run(main())


def test_send_before_the_connection_is_made_is_a_no_op() -> None:
    Peer().send(encode(b"early"))


def test_wire_error_of_a_frame_closes_with_that_error(run: Run, address: Address) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            for body in (b"", bytes(5_000_000)):
                ours, theirs = await pair(server, accepted)

                def refuse(header: bytes, body: Buffer) -> None:
                    raise WireError("not a message of mine")

                theirs.peer.on_frame = refuse
                ours.peer.send(encode(b"x", [body]))
                error = await theirs.lost()
                assert type(error) is WireError
                assert str(error) == "not a message of mine"
                await ours.lost()

    run(main())


def test_length_over_the_limit_closes_with_that_error(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        limits = PeerLimits(header_bytes_max=100, body_bytes_max=1000)
        async with serving(Address(path=f"{folder}/s"), accepted, limits=limits) as server:
            for frame in (encode(b"x" * 101), encode(b"", [bytes(1008)])):
                ours, theirs = await pair(server, accepted)
                ours.peer.send(frame)
                assert "announces" in str(await theirs.lost())
                await ours.lost()

    run(main())


@pytest.mark.parametrize("body_bytes", [0, 60_000, 500_000], ids=["headers", "small", "large"])
def test_peer_that_stopped_reading_is_cut_off(
    run: Run, address: Address, body_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "WRITE_BYTES_MAX", 1 << 20)

    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            assert theirs.peer._transport is not None
            theirs.peer._transport.pause_reading()
            frame = encode(b"h" * 1000, [bytes(body_bytes)])
            sent_bytes = 0
            while ours.peer.is_open:
                ours.peer.send(frame)
                sent_bytes += 1000 + body_bytes
                assert sent_bytes < 64 << 20, "it was never cut off"
                if sent_bytes % (1 << 20) < 1000 + body_bytes:
                    await asyncio.sleep(0)
            assert str(await ours.lost()) == "the peer has stopped reading"
            theirs.peer.close(WireError("enough"))
            await theirs.lost()

    run(main())


def test_slow_peer_within_the_bound_is_not_cut_off(
    run: Run, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "WRITE_BYTES_MAX", 16 << 20)

    async def main() -> None:
        accepted = Accepted()
        async with serving(address, accepted) as server:
            ours, theirs = await pair(server, accepted)
            assert theirs.peer._transport is not None
            theirs.peer._transport.pause_reading()
            for _ in range(10):
                ours.peer.send(encode(b"x", [bytes(1 << 20)]))
            await asyncio.sleep(0.02)
            theirs.peer._transport.resume_reading()
            for _ in range(10):
                assert len((await theirs.frames.get())[1]) == 1 << 20
            ours.peer.close()
            await theirs.lost()

    run(main())


# listening


def test_unix_socket_is_its_users_own(run: Run, folder: str) -> None:
    async def main() -> None:
        async with serving(Address(path=f"{folder}/s"), lambda peer: None):
            assert stat.S_IMODE(os.stat(f"{folder}/s").st_mode) == 0o600

    run(main())


def test_stale_unix_socket_is_replaced(run: Run, folder: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{folder}/s")
        dead.listen()

    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.close()
            await theirs.lost()

    run(main())


def test_live_unix_socket_is_not_stolen(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            with pytest.raises(OSError, match="another process already listens on unix:"):
                await serve(server.address, None, lambda peer: peer.close())
            await (await accepted.ears.get()).lost()  # the other's look whether we live
            ours, theirs = await pair(server, accepted)
            ours.peer.send(encode(b"still ours"))
            assert (await theirs.frames.get())[0] == b"still ours"
            ours.peer.close()
            await theirs.lost()

    run(main())


def test_live_unix_socket_with_a_full_queue_is_not_stolen(run: Run, folder: str) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.bind(f"{folder}/s")
            busy.listen(0)
            waiting.connect(f"{folder}/s")
            with pytest.raises(OSError, match="another process already listens"):
                await serve(Address(path=f"{folder}/s"), None, lambda peer: None)

    run(main())


def test_file_that_is_no_socket_is_not_replaced(run: Run, folder: str) -> None:
    Path(folder, "s").write_text("precious")

    async def main() -> None:
        with pytest.raises(OSError, match=r"(?i)address already in use"):
            await serve(Address(path=f"{folder}/s"), None, lambda peer: None)

    run(main())
    assert Path(folder, "s").read_text() == "precious"


def test_closed_server_leaves_no_socket_and_keeps_its_connections(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            ours, theirs = await pair(server, accepted)
            await server.close()
            assert os.listdir(folder) == []
            with pytest.raises(OSError, match=r".*"):
                await dial(server.address, None)
            ours.peer.send(encode(b"still here"))
            assert (await theirs.frames.get())[0] == b"still here"
            ours.peer.close()
            await theirs.lost()

    run(main())


def test_path_too_long_is_refused(run: Run, folder: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="unix socket path is longer than 100"):
            await serve(Address(path=f"{folder}/" + "x" * 100), None, lambda peer: None)
        with pytest.raises(ValueError, match="unix socket path is longer than 100"):
            await dial(Address(path=f"{folder}/" + "x" * 100), None)

    run(main())


def test_longest_path_is_taken(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        path = f"{folder}/".ljust(100, "x")
        async with serving(Address(path=path), accepted) as server:
            ours, theirs = await pair(server, accepted)
            ours.peer.close()
            await theirs.lost()

    run(main())


def test_nobody_there_is_an_os_error(run: Run, address: Address) -> None:
    async def main() -> None:
        async with serving(address, lambda peer: None) as server:
            pass
        with pytest.raises(OSError, match=r".*"):
            await dial(server.address, SECRETS)

    run(main())


def test_port_taken_is_an_os_error(run: Run) -> None:
    async def main() -> None:
        async with serving(LOCALHOST, lambda peer: None) as server:
            with pytest.raises(OSError, match=r".*"):
                await serve(server.address, SECRETS, lambda peer: None)

    run(main())


def test_port_0_is_told_as_the_port_that_was_found(run: Run) -> None:
    async def main() -> None:
        async with serving(LOCALHOST, lambda peer: None) as server:
            assert server.address.port > 0
            assert server.address.host == "127.0.0.1"

    run(main())


def test_tcp_sends_at_once_and_notices_dead_peers(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:
            ours, theirs = await pair(server, accepted)
            for ears in (ours, theirs):
                assert ears.peer._transport is not None
                raw = ears.peer._transport.get_extra_info("socket")
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            ours.peer.close()
            await theirs.lost()

    run(main())


async def test_a_peer_that_does_not_read_is_behind_until_it_does() -> None:
    there, here = socket.socketpair()
    there.setblocking(False)
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_unix_connection(Peer, sock=here)
    assert peer.behind is None
    peer.send([b"\0" * (BEHIND_BYTES + (4 << 20))])
    await asyncio.sleep(0)
    behind = peer.behind
    assert behind is not None
    while not behind.done():
        await loop.sock_recv(there, 1 << 20)
    assert peer.behind is None
    peer.close(WireError("done"))
    there.close()


async def test_who_waits_for_a_peer_that_is_lost_waits_no_more() -> None:
    there, here = socket.socketpair()
    _, peer = await asyncio.get_running_loop().create_unix_connection(Peer, sock=here)
    peer.send([b"\0" * (BEHIND_BYTES + (4 << 20))])
    await asyncio.sleep(0)
    behind = peer.behind
    there.close()
    assert behind is not None
    async with asyncio.timeout(5):
        await behind
