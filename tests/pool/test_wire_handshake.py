"""Nobody speaks over TCP before both sides have proved that they hold the fleet's secret."""

from __future__ import annotations

import asyncio
import random
import sys
import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.wire import handshake, listening
from pool.wire.frames import PREFIX, encode
from pool.wire.handshake import (
    NONCE_BYTES,
    Accept,
    Challenge,
    HandshakeFailed,
    Proof,
    Secret,
    Secrets,
)
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer, PeerLimits, dial
from tests.support import wire
from tests.support.peers import (
    LOCALHOST,
    OTHER,
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
from tests.support.wire import SUITE, Peak, assert_like

__all__ = ["folder", "run"]  # fixtures

OLD_AND_NEW = Secrets(Secret.of("the secret of tomorrow"), SECRETS.current)
CHALLENGE = Challenge(handshake.WIRE, bytes(NONCE_BYTES))
NONCE = b"c" * NONCE_BYTES
PROOF = handshake.prove(SECRETS.current, CHALLENGE, NONCE)
ACCEPT = handshake.accept(SECRETS, CHALLENGE.nonce, PROOF)
MESSAGES: list[handshake.Message] = [CHALLENGE, PROOF, ACCEPT]
each = pytest.mark.parametrize("message", MESSAGES, ids=["challenge", "proof", "accept"])


def is_refused(data: bytes) -> bool:
    try:
        handshake.decode(data)
    except HandshakeFailed:
        return True
    return False


def proof_is_refused(held: Secrets, server_nonce: bytes, proof: Proof) -> bool:
    try:
        handshake.accept(held, server_nonce, proof)
    except HandshakeFailed:
        return True
    return False


# the messages


@each
def test_round_trip(message: handshake.Message) -> None:
    got = handshake.decode(handshake.encode(message))
    assert got == message
    assert_like(got, message)


def test_messages_are_the_documented_arrays() -> None:
    arrays = [msgpack.unpackb(handshake.encode(message)) for message in MESSAGES]
    assert arrays[0] == [1, 2, bytes(NONCE_BYTES)]
    assert arrays[1] == [2, SECRETS.current.id, NONCE, PROOF.mac, 2]
    assert arrays[2] == [3, ACCEPT.mac]


@each
def test_every_truncation_is_refused(message: handshake.Message) -> None:
    data = handshake.encode(message)
    assert all(is_refused(data[:end]) for end in range(len(data)))


@each
def test_appended_field_is_ignored(message: handshake.Message) -> None:
    array = msgpack.unpackb(handshake.encode(message))
    assert handshake.decode(msgpack.packb([*array, "appended"])) == message


@each
def test_every_wrong_value_in_every_field_is_refused(message: handshake.Message) -> None:
    array = msgpack.unpackb(handshake.encode(message))
    assert [p for p, value, packed in wire.refusals(array) if not is_refused(packed)] == []


@each
def test_long_bytes_are_refused(message: handshake.Message) -> None:
    array = msgpack.unpackb(handshake.encode(message))
    for path in wire.paths(array):
        if type(wire.value_at(array, path)) is bytes:
            assert is_refused(msgpack.packb(wire.replaced(array, path, bytes(65))))


def test_every_frame_of_the_handshake_fits_its_bound() -> None:
    assert max(len(handshake.encode(message)) for message in MESSAGES) < handshake.FRAME_BYTES_MAX


def test_bit_flips_raise_nothing_but_handshake_errors() -> None:
    rng = random.Random(8)
    for turn in range(20_000):
        data = wire.flipped(handshake.encode(MESSAGES[turn % 3]), rng)
        if not is_refused(data):
            message = handshake.decode(data)
            assert_like(message, next(m for m in MESSAGES if type(m) is type(message)))


@pytest.mark.parametrize(
    "data",
    [b"\x94\x01\x01\xc4\x00" + b"\x91" * 1000 + b"\xc0", b"\x91" * 1024, b"\xdd\xff\xff\xff\xff"],
)
def test_hostile_nesting_and_lengths_are_refused(data: bytes) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own; libraries of other tests may have raised it
    try:
        with pytest.raises(HandshakeFailed):
            handshake.decode(data)
    finally:
        sys.setrecursionlimit(before)


if SUITE.exists():

    def test_encodings_of_the_msgpack_suite_raise_nothing_but_handshake_errors() -> None:
        for encoding in wire.suite_encodings():
            for data in wire.as_headers(encoding):
                is_refused(data)


# the secret


def test_repr_of_a_secret_never_shows_the_key() -> None:
    secret = SECRETS.current
    for shown in (repr(secret), str(secret), f"{secret}", repr(SECRETS), repr([SECRETS])):
        assert secret.id in shown
        assert repr(secret.key)[2:10] not in shown
        assert secret.key.hex() not in shown
        assert "key" not in shown


def test_id_of_a_secret_is_not_part_of_its_key() -> None:
    assert SECRETS.current.id not in SECRETS.current.key.hex()


def test_secrets_are_told_apart() -> None:
    assert Secret.of("a" * 16) == Secret.of("a" * 16)
    assert Secret.of("a" * 16).id != Secret.of("a" * 15 + "b").id
    assert Secret.of("a" * 16).key != Secret.of("a" * 15 + "b").key


@pytest.mark.parametrize(
    "text", ["", "x", "a" * 15, ",", "a" * 16 + "," + "b" * 15, "," + "a" * 16]
)
def test_short_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="at least 16 characters") as caught:
        Secrets.parse(text)
    assert "aaaa" not in str(caught.value)


def test_secrets_are_parsed_as_current_and_previous() -> None:
    one, two = Secret.of("a" * 16), Secret.of("b" * 16)
    assert Secrets.parse("a" * 16 + "\n") == Secrets(one)
    assert Secrets.parse("a" * 16 + ",") == Secrets(one)
    assert Secrets.parse(" " + "a" * 16 + " , " + "b" * 16 + "\n") == Secrets(one, two)


# the proofs


def test_proof_with_the_current_secret_is_accepted() -> None:
    handshake.check_accept(SECRETS.current, CHALLENGE, NONCE, ACCEPT)


def test_proof_with_the_previous_secret_is_accepted_with_the_previous_secret() -> None:
    accepted = handshake.accept(OLD_AND_NEW, CHALLENGE.nonce, PROOF)
    handshake.check_accept(SECRETS.current, CHALLENGE, NONCE, accepted)


@pytest.mark.rule("SEC-7")
def test_proof_with_another_secret_is_refused() -> None:
    proof = handshake.prove(OTHER.current, CHALLENGE, NONCE)
    assert proof_is_refused(SECRETS, CHALLENGE.nonce, proof)


def test_known_id_with_another_key_is_refused() -> None:
    forged = Secret(SECRETS.current.id, OTHER.current.key)
    proof = handshake.prove(forged, CHALLENGE, NONCE)
    assert proof_is_refused(SECRETS, CHALLENGE.nonce, proof)


def test_unknown_id_is_refused_even_with_the_key_that_stands_in_for_it() -> None:
    forged = Secret("unknown", bytes(32))
    assert proof_is_refused(SECRETS, CHALLENGE.nonce, handshake.prove(forged, CHALLENGE, NONCE))


def test_proof_of_another_challenge_is_refused() -> None:
    assert proof_is_refused(SECRETS, b"\1" * NONCE_BYTES, PROOF)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_nonce_of_another_length_is_refused_even_if_it_is_signed(length: int) -> None:
    proof = handshake.prove(SECRETS.current, CHALLENGE, b"c" * length)
    assert proof_is_refused(SECRETS, CHALLENGE.nonce, proof)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_challenge_of_another_length_is_not_signed(length: int) -> None:
    with pytest.raises(HandshakeFailed, match="wrong length"):
        handshake.prove(SECRETS.current, Challenge(2, bytes(length)), NONCE)


@given(st.integers(0, 31), st.integers(0, 7))
def test_any_flipped_bit_of_a_mac_is_refused(index: int, bit: int) -> None:
    mac = bytearray(PROOF.mac)
    mac[index] ^= 1 << bit
    assert proof_is_refused(SECRETS, CHALLENGE.nonce, Proof(PROOF.secret_id, NONCE, bytes(mac), 2))
    mac = bytearray(ACCEPT.mac)
    mac[index] ^= 1 << bit
    with pytest.raises(HandshakeFailed):
        handshake.check_accept(SECRETS.current, CHALLENGE, NONCE, Accept(bytes(mac)))


@pytest.mark.parametrize("mac", [b"", PROOF.mac[:31], PROOF.mac + b"\0"])
def test_mac_of_another_length_is_refused(mac: bytes) -> None:
    assert proof_is_refused(SECRETS, CHALLENGE.nonce, Proof(PROOF.secret_id, NONCE, mac, 2))


def test_a_clients_mac_sent_back_is_no_acceptance() -> None:
    with pytest.raises(HandshakeFailed, match="server does not hold"):
        handshake.check_accept(SECRETS.current, CHALLENGE, NONCE, Accept(PROOF.mac))


def test_nonces_are_fresh() -> None:
    nonces = {handshake.nonce() for _ in range(100)}
    assert len(nonces) == 100
    assert {len(nonce) for nonce in nonces} == {NONCE_BYTES}


# over real sockets


@pytest.mark.parametrize("held", [SECRETS, OLD_AND_NEW], ids=["current", "previous"])
@pytest.mark.rule("SEC-7")
def test_peers_of_one_fleet_speak(run: Run, held: Secrets) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted, held) as server:
            ears = Ears(await dial(server.address, SECRETS))
            theirs = await accepted.ears.get()
            ears.peer.send(encode(b"call", [b"12345678"]))
            theirs.peer.send(encode(b"reply", [b"87654321"]))
            assert await theirs.frames.get() == (b"call", b"12345678")
            assert await ears.frames.get() == (b"reply", b"87654321")
            ears.peer.close()
            assert await theirs.lost() is None

    run(main())


def test_peer_with_another_secret_is_refused_and_never_handed_over(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:
            with pytest.raises(HandshakeFailed):
                await dial(server.address, OTHER)
            assert accepted.ears.empty()

    run(main())


def test_dialling_with_the_previous_secret_only_works_while_it_is_held(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted, Secrets(OLD_AND_NEW.current)) as server:
            with pytest.raises(HandshakeFailed):
                await dial(server.address, SECRETS)
            assert accepted.ears.empty()

    run(main())


def test_replayed_proof_is_refused(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:
            async with stranger(server.address) as honest:
                challenge = await honest.message()
                assert isinstance(challenge, Challenge)
                proof = handshake.prove(SECRETS.current, challenge, NONCE)
                honest.tell(proof)
                assert isinstance(await honest.message(), Accept)
            await accepted.ears.get()
            async with stranger(server.address) as replayer:
                await replayer.message()
                replayer.tell(proof)
                assert await replayer.is_cut_off()
            assert accepted.ears.empty()

    run(main())


def test_server_without_the_secret_is_refused_by_the_client(run: Run) -> None:
    async def answer(one: Stranger) -> None:
        one.tell(CHALLENGE)
        proof = await one.message()
        assert isinstance(proof, Proof)
        one.tell(Accept(proof.mac))
        await one.is_cut_off()

    async def main() -> None:
        async with rogue_server(answer) as address:
            with pytest.raises(HandshakeFailed, match="server does not hold"):
                await dial(address, SECRETS)

    run(main())


@pytest.mark.parametrize("first", [PROOF, ACCEPT], ids=["proof", "accept"])
def test_server_that_does_not_challenge_is_refused_by_the_client(
    run: Run, first: handshake.Message
) -> None:
    async def answer(one: Stranger) -> None:
        one.tell(first)
        await one.is_cut_off()

    async def main() -> None:
        async with rogue_server(answer) as address:
            with pytest.raises(HandshakeFailed, match="expected a challenge"):
                await dial(address, SECRETS)

    run(main())


def test_second_challenge_is_refused_by_the_client(run: Run) -> None:
    async def answer(one: Stranger) -> None:
        one.tell(CHALLENGE)
        one.tell(CHALLENGE)
        await one.is_cut_off()

    async def main() -> None:
        async with rogue_server(answer) as address:
            with pytest.raises(HandshakeFailed, match="expected an acceptance"):
                await dial(address, SECRETS)

    run(main())


def test_server_that_hangs_up_is_a_failed_handshake(run: Run) -> None:
    async def answer(one: Stranger) -> None:
        return None

    async def main() -> None:
        async with rogue_server(answer) as address:
            with pytest.raises(HandshakeFailed, match="not finished: "):
                await dial(address, SECRETS)

    run(main())


def test_silent_server_is_given_up(run: Run) -> None:
    async def answer(one: Stranger) -> None:
        assert await one.is_cut_off()

    async def main() -> None:
        async with rogue_server(answer) as address:
            with pytest.raises(ConnectionError, match=r"did not answer within 0\.1 s"):
                await dial(address, SECRETS, s_max=0.1)

    run(main())


HUGE = [
    PREFIX.pack(handshake.FRAME_BYTES_MAX + 1, 0),
    PREFIX.pack(0, 1),
    PREFIX.pack(0, 200 << 20),
    PREFIX.pack(0xFFFFFFFF, 0xFFFFFFFF),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("data", HUGE, ids=range(len(HUGE)))
def test_server_with_a_huge_frame_costs_the_client_nothing(run: Run, data: bytes) -> None:
    async def answer(one: Stranger) -> None:
        one.say(data)
        await one.is_cut_off()

    async def main() -> None:
        async with rogue_server(answer) as address:
            with Peak() as peak, pytest.raises(HandshakeFailed):
                await dial(address, SECRETS)
            assert peak.bytes < 2 << 20

    run(main())


NONSENSE = [
    *[b"".join(encode(handshake.encode(message))) for message in (CHALLENGE, PROOF, ACCEPT)],
    *[b"".join(encode(data)) for data in (b"", b"\xc0", b"\x90", b"\x91\x02", b"\x91" * 1024)],
    b"".join(encode(b"\x95\x02\xa0\xc4\x00\xc4\x00" + b"\x91" * 1010 + b"\xc0")),
    *HUGE,
]


@pytest.mark.parametrize("data", NONSENSE, ids=range(len(NONSENSE)))
def test_stranger_with_nonsense_is_cut_off_at_once_and_costs_nothing(run: Run, data: bytes) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server, stranger(server.address) as one:
            await one.message()
            with Peak() as peak:
                one.say(data)
                assert await one.is_cut_off()
            assert peak.bytes < 2 << 20
            assert accepted.ears.empty()

    run(main())


def test_stranger_who_floods_before_reading_is_cut_off(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server, stranger(server.address) as one:
            one.say(b"".join(encode(b"x" * 1000)) * 10_000)
            assert await one.is_cut_off()
            assert accepted.ears.empty()

    run(main())


@pytest.mark.parametrize("said", [b"", b"\0\0\0\x40\0\0\0\0half"], ids=["silent", "half a frame"])
def test_stranger_who_does_not_finish_is_cut_off_in_time(
    run: Run, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S_MAX", 0.2)

    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server, stranger(server.address) as one:
            started_s = time.monotonic()
            one.say(said)
            assert await one.is_cut_off()
            assert 0.15 < time.monotonic() - started_s < 2
            assert accepted.ears.empty()

    run(main())


def test_peer_that_has_proved_itself_is_not_cut_off_later(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S_MAX", 0.1)

    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:
            ears = Ears(await dial(server.address, SECRETS))
            theirs = await accepted.ears.get()
            await asyncio.sleep(0.3)
            assert ears.peer.is_open
            assert theirs.peer.is_open
            ears.peer.close()
            await theirs.lost()

    run(main())


def test_limits_of_the_owner_hold_after_the_handshake_on_both_sides(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        limits = PeerLimits(header_bytes_max=5000, body_bytes_max=5000)
        async with serving(LOCALHOST, accepted, limits=limits) as server:
            for sender in (0, 1):
                pair = [Ears(await dial(server.address, SECRETS, limits))]
                pair.append(await accepted.ears.get())
                pair[sender].peer.send(encode(b"h" * 5000, [b"b" * 5000]))
                assert await pair[1 - sender].frames.get() == (b"h" * 5000, b"b" * 5000)
                pair[sender].peer.send(encode(b"h", [b"b" * 5008]))
                assert "announces" in str(await pair[1 - sender].lost())
                await pair[sender].lost()

    run(main())


def test_server_may_speak_first(run: Run) -> None:
    def greet(peer: Peer) -> None:
        peer.on_frame = lambda header, body: None
        for number in range(20):
            peer.send(encode(b"greeting %d" % number, [b"x" * 8 * number]))

    async def main() -> None:
        async with serving(LOCALHOST, greet) as server:
            ears = Ears(await asyncio.wait_for(dial(server.address, SECRETS), 5))
            got = [await ears.frames.get() for _ in range(20)]
            assert got == [(b"greeting %d" % n, b"x" * 8 * n) for n in range(20)]
            ears.peer.close()

    run(main())


def test_handshakes_of_many_peers_at_once(run: Run) -> None:
    async def main() -> None:
        accepted = Accepted()
        async with serving(LOCALHOST, accepted) as server:
            peers = await asyncio.gather(*[dial(server.address, SECRETS) for _ in range(40)])
            theirs = [await accepted.ears.get() for _ in range(40)]
            for one in peers:
                one.close()
            await asyncio.gather(*[ears.lost() for ears in theirs])

    run(main())


async def test_tcp_without_a_secret_refuses_to_listen() -> None:
    with pytest.raises(ValueError, match="TIDEPOOL_FLEET_SECRET"):
        await serve(LOCALHOST, None, lambda peer: None)


async def test_tcp_without_a_secret_refuses_to_dial() -> None:
    with pytest.raises(HandshakeFailed, match="TIDEPOOL_FLEET_SECRET"):
        await dial(Address(host="127.0.0.1", port=1), None)
