"""How long commands wait for a controller that hangs, and for one that works."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from infra import client
from infra.client import NoController, ask
from infra.commands.options import poke
from infra.stack import Node
from pool.wire import control
from pool.wire.frames import Buffer
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer
from registry_sync.local import LocalStore
from tests.support.control_stack import running_controller


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node whose controller is not to be waited for long."""
    monkeypatch.setattr(client, "HERE_S_MAX", 0.3)
    folder = Path(tempfile.mkdtemp())
    made = Node(folder)
    made.prepare()
    yield made
    shutil.rmtree(folder)


Answering = Callable[[Peer, control.Ask], None]


@asynccontextmanager
async def controller(node: Node, on_ask: Answering) -> AsyncIterator[None]:
    """Something that listens where the controller does."""

    def on_peer(peer: Peer) -> None:
        def on_frame(header: bytes, body: Buffer) -> None:
            message = control.decode(bytes(body))
            assert isinstance(message, control.Ask)
            on_ask(peer, message)

        peer.on_frame = on_frame

    server = await serve(Address.parse(node.control), None, on_peer)
    try:
        yield
    finally:
        await server.close()


async def test_controller_that_hangs_is_not_waited_for(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async with controller(node, lambda peer, message: None):
        async with asyncio.timeout(client.ASK_S_MAX / 2):
            with pytest.raises(NoController, match=r"said nothing for .* hangs or is stopped"):
                await ask(node.control, node.data, "poke")
        await asyncio.sleep(0)
        gc.collect()
    assert not caplog.text  # of an exception that nobody took


async def test_one_that_works_is_given_its_time_also_by_a_release_that_knows_no_here(
    node: Node,
) -> None:
    def on_ask(peer: Peer, message: control.Ask) -> None:
        unknown = control.Answer(False, f"unknown question {message.what!r}", b"", message.id)
        done = control.Answer(True, "done", b"", message.id)
        if message.what == "poke":
            later_s = 2 * client.HERE_S_MAX
            asyncio.get_running_loop().call_later(later_s, peer.send, control.encode(done))
        else:
            peer.send(control.encode(unknown))

    async with controller(node, on_ask):
        assert (await ask(node.control, node.data, "poke")).detail == "done"


async def test_controller_says_that_it_is_here() -> None:
    async with running_controller() as stack:
        member = await stack.join(control.Ask(control.HERE, "", 7))
        assert await member.hear(control.Answer) == control.Answer(True, "", b"{}", 7)


async def test_what_is_written_is_said_where_the_controller_hangs(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(node.data / "registry")
    async with controller(node, lambda peer, message: None):
        assert not await asyncio.to_thread(poke, node.data, store)
    assert (
        "written; no controller could be told (the controller at unix:" in capsys.readouterr().err
    )
