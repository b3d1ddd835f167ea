"""Between hosts no frame is taken whose bytes are not those that were sent."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
import uvloop

from pool.wire import handshake
from pool.wire.frames import FrameReader, WireError, encode, summed
from pool.wire.handshake import Challenge, HandshakeFailed, Proof, Secret, Secrets
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer, dial
from pool.wire.tls import WireTls
from tests.support.certificates import Authority
from tests.support.cpu_time import least_s
from tests.support.peers import (
    LOCALHOST,
    SECRETS,
    Accepted,
    Ears,
    Run,
    Stranger,
    folder,
    rogue_server,
    run,
    serving,
    stranger,
)
from tests.support.toxics import DOWN, UP, Toxics, toxic_proxy
from tests.support.wire import feed, join

__all__ = ["folder", "run"]  # fixtures

pytestmark = pytest.mark.rule("F4")

Frame = tuple[bytes, bytes]
# Small ones, one around the scratch buffer, one with a buffer of its own, one of many parts.
PARTS = [[b""], [b"12345678"], [b"a" * 131_000], [b"b" * 200_000], [b"c" * 70_000, b"", b"d" * 9]]
NONCE = b"c" * handshake.NONCE_BYTES


def sent_and_stream() -> tuple[list[Frame], bytes]:
    frames = [(b"header %d" % n, encode(b"header %d" % n, parts)) for n, parts in enumerate(PARTS)]
    sent = [(header, join(made)[8 + len(header) :]) for header, made in frames]
    return sent, b"".join(join(summed(made)) for _, made in frames)


SENT, STREAM = sent_and_stream()


def taken(stream: bytes, chunk_bytes: int = 1 << 30) -> tuple[list[Frame], str]:
    """Return the frames that a reader delivers, and what it raises."""
    found: list[Frame] = []
    reader = FrameReader(lambda header, body: found.append((header, bytes(body))))
    reader.expect_sums()
    try:
        feed(reader, stream, chunk_bytes)
    except WireError as error:
        return found, str(error)
    return found, ""


def test_summed_frame_is_a_bare_one_with_two_sums_behind_its_lengths() -> None:
    bare = join(encode(b"head", [b"12345678"]))
    made = join(summed([bare]))
    assert made[:8] == bare[:8]
    assert made[24:] == bare[8:]
    # Fixed for ever: other releases read it.
    assert made[8:24].hex() == "126012185f1bf4e25e977853a7898d2f"


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 100_001, 1000, 17, 16, 7])
def test_frames_arrive_in_chunks_of_any_size(chunk_bytes: int) -> None:
    assert taken(STREAM, chunk_bytes) == (SENT, "")


def test_large_parts_are_not_copied() -> None:
    part = bytearray(1_000_000)
    assert any(buffer is part for buffer in summed(encode(b"head", [part])))


def test_every_flipped_bit_is_found_before_its_frame_is_delivered() -> None:
    rng = random.Random(4)
    ends, end = [], 0
    for number, parts in enumerate(PARTS):
        end += len(join(summed(encode(b"header %d" % number, parts))))
        ends.append(end)
    small = ends[1]  # every bit of the first two frames, and a thousand of the others
    places = [*range(small * 8), *(rng.randrange(small * 8, ends[-1] * 8) for _ in range(1000))]
    for place in places:
        damaged = bytearray(STREAM)
        damaged[place // 8] ^= 1 << place % 8
        whole = sum(end <= place // 8 for end in ends)
        found, why = taken(bytes(damaged))
        assert found == SENT[:whole]
        assert "damaged" in why


def test_wrong_length_is_found_without_a_wait_for_the_bytes_that_it_speaks_of() -> None:
    made = bytearray(join(summed(encode(b"head"))))
    made[7] ^= 64  # a body of 64 bytes more
    assert "damaged" in taken(bytes(made[:24]))[1]


def test_swapped_bytes_and_parts_are_found() -> None:
    one, two = b"1" * 4096, b"2" * 4096
    good, other = (join(summed(encode(b"h", parts))) for parts in ([one, two], [two, one]))
    assert "damaged" in taken(good[:24] + other[24:])[1]


def test_sums_cost_a_large_frame_little() -> None:
    made = encode(b"head", [bytes(602_112)])
    took_us = least_s(lambda: summed(made), 20e-6, tries=50) * 1e6
    print(f"the sum of 602 KB takes {took_us:.0f} µs")
    assert took_us < 1000  # 17 on a quiet machine


# what is agreed on


async def pair(address: Address, accepted: Accepted) -> tuple[Ears, Ears]:
    return Ears(await dial(address, SECRETS)), await accepted.ears.get()


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_bit_flipped_between_two_peers_ends_the_connection_and_nothing_else(
    run: Run, direction: str
) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:
            with toxic_proxy((server.address.host, server.address.port)) as proxy:
                ours, theirs = await pair(Address(host=proxy.host, port=proxy.port), accepted)
                sender, receiver = (ours, theirs) if direction == UP else (theirs, ours)
                sender.peer.send(encode(b"whole", [b"x" * 300_000]))
                header, body = await receiver.frames.get()
                assert (header, bytes(body)) == (b"whole", b"x" * 300_000)
                proxy.toxics = Toxics(only=direction, flip_every_bytes=50_000)
                sender.peer.send(encode(b"spoilt", [b"x" * 300_000]))
                assert "damaged" in str(await receiver.lost())
                assert receiver.frames.empty()
                assert proxy.flipped > 0
                await sender.lost()

    run(main())


def test_client_of_the_release_before_speaks_bare_frames(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server, stranger(server.address) as old:
            challenge = await old.message()
            assert isinstance(challenge, Challenge)
            secret = SECRETS.current
            mac = handshake._mac(secret.key, b"client", challenge.nonce, NONCE, handshake.BARE, b"")
            proof = handshake.encode(Proof(secret.id, NONCE, mac, handshake.BARE))
            old.say(join(encode(proof[:1].replace(b"\x95", b"\x94") + proof[1:-1])))
            assert isinstance(await old.message(), handshake.Accept)
            theirs = await accepted.ears.get()
            old.say(join(encode(b"from old", [b"12345678"])))
            assert await theirs.frames.get() == (b"from old", b"12345678")
            theirs.peer.send(encode(b"to old"))
            assert await old.frame() == b"to old"

    run(main())


def test_server_of_the_release_before_is_spoken_to_in_bare_frames(run: Run) -> None:
    async def answer(one: Stranger) -> None:
        challenge = Challenge(handshake.BARE, bytes(handshake.NONCE_BYTES))
        one.tell(challenge)
        proof = await one.message()
        assert isinstance(proof, Proof)
        one.tell(handshake.accept(SECRETS, challenge.nonce, proof))
        assert await one.frame() == b"call"
        one.say(join(encode(b"reply")))
        await one.is_cut_off()

    async def main() -> None:
        async with rogue_server(answer) as address:
            ears = Ears(await dial(address, SECRETS))
            ears.peer.send(encode(b"call"))
            assert await ears.frames.get() == (b"reply", b"")
            ears.peer.close()

    run(main())


@pytest.mark.parametrize("wire", [1, 3, 2**40])
def test_damage_to_what_is_spoken_is_refused(wire: int) -> None:
    challenge = Challenge(handshake.WIRE, bytes(handshake.NONCE_BYTES))
    proof = handshake.prove(SECRETS.current, challenge, NONCE)
    with pytest.raises(HandshakeFailed):
        handshake.accept(SECRETS, challenge.nonce, msgspec.structs.replace(proof, wire=wire))
    accepted = handshake.accept(SECRETS, challenge.nonce, proof)
    bare = msgspec.structs.replace(challenge, wire=handshake.BARE)
    with pytest.raises(HandshakeFailed):
        handshake.check_accept(SECRETS.current, bare, NONCE, accepted)


@pytest.mark.parametrize("wire", [1, 3, 2**40])
def test_offer_that_was_changed_on_its_way_is_refused_before_anything_is_proved(wire: int) -> None:
    nonce = handshake.nonce()
    assert handshake.prove(SECRETS.current, Challenge(handshake.WIRE, nonce), NONCE).wire == 2
    with pytest.raises(HandshakeFailed, match="changed on its way"):
        handshake.prove(SECRETS.current, Challenge(wire, nonce), NONCE)
    # And with what the offer says of itself changed too, the mac is over another nonce.
    forged = nonce[:-1] + b"\1"
    proof = handshake.prove(SECRETS.current, Challenge(1, forged), NONCE)
    with pytest.raises(HandshakeFailed, match="does not hold"):
        handshake.accept(SECRETS, nonce, proof)


def test_dialler_whose_offer_is_changed_by_somebody_in_between_does_not_come_in(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:

            async def between(one: Stranger) -> None:
                async with stranger(server.address) as there:
                    challenge = await there.message()
                    assert isinstance(challenge, Challenge)
                    one.tell(msgspec.structs.replace(challenge, wire=handshake.BARE))
                    await one.is_cut_off()

            async with rogue_server(between) as address:
                with pytest.raises(HandshakeFailed, match="changed on its way"):
                    await dial(address, SECRETS)
            assert accepted.ears.empty()

    run(main())


def test_wire_that_was_not_offered_is_refused_though_it_is_signed() -> None:
    secret = Secret.of("the fleet's current secret")
    nonce = bytes(handshake.NONCE_BYTES)
    mac = handshake._mac(secret.key, b"client", nonce, NONCE, 3, b"")
    with pytest.raises(HandshakeFailed, match="wire 3"):
        handshake.accept(Secrets(secret), nonce, Proof(secret.id, NONCE, mac, 3))


@pytest.mark.parametrize("run", [uvloop.new_event_loop], ids=["uvloop"], indirect=True)
def test_tls_carries_no_sums_but_its_own(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        accepted = Accepted()
        secrets = Secrets.parse(
            "the fleet's current secret", WireTls(Authority.make().issue(tmp_path))
        )
        server = await serve(Address(host="127.0.0.1", is_tls=True), secrets, accepted)
        ours = Ears(await dial(server.address, SECRETS))
        theirs = await accepted.ears.get()
        assert [_is_summed(ours.peer), _is_summed(theirs.peer)] == [False, False]
        ours.peer.close()
        await theirs.lost()
        await server.close()

    run(main())


def test_unix_sockets_carry_no_sums(run: Run, folder: str) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(Address(path=f"{folder}/s"), accepted) as server:
            ours = Ears(await dial(server.address, None))
            theirs = await accepted.ears.get()
            assert [_is_summed(ours.peer), _is_summed(theirs.peer)] == [False, False]
            ours.peer.close()
            await theirs.lost()

    run(main())


def _is_summed(peer: Peer) -> bool:
    return peer._is_summed
