"""How commands speak to a running stack: HTTP to the edge, questions to the controller."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from pool.wire import control
from pool.wire.fleet_secret import load_secrets
from pool.wire.frames import Buffer, WireError
from pool.wire.peer import Address, dial

HERE_S_MAX = 5.0  # a controller that lives shows it at once
ASK_S_MAX = 20.0  # it may wait for edges and for the registry before it answers
_HERE_ID, _ASK_ID = 1, 2


class NoController(Exception):
    """No controller could be asked."""


async def ask(address: str, data: Path, what: str, argument: str = "") -> control.Answer:
    """Ask the controller at `address` one question.

    It is first asked whether it is there, so that one that hangs is not waited for as long as one
    that works; whatever it says to that, an error too, shows that it lives.

    Raises:
        NoController: it cannot be reached, or does not answer.
    """
    answered: asyncio.Future[control.Answer] = asyncio.get_running_loop().create_future()
    here = asyncio.Event()

    def on_frame(header: bytes, body: Buffer) -> None:
        message = control.decode(body)
        here.set()
        if isinstance(message, control.Answer) and message.id == _ASK_ID and not answered.done():
            answered.set_result(message)

    def on_lost(error: Exception | None) -> None:
        here.set()
        if not answered.done():
            answered.set_exception(NoController(f"the controller hung up: {error or 'closed'}"))

    try:
        peer = await dial(Address.parse(address), load_secrets(data), s_max=HERE_S_MAX)
    except (OSError, ValueError, WireError) as error:
        raise NoController(f"{address}: {error}") from None
    peer.on_frame, peer.on_lost = on_frame, on_lost
    try:
        peer.send(control.encode(control.Ask(control.HERE, "", _HERE_ID)))
        peer.send(control.encode(control.Ask(what, argument, _ASK_ID)))
        async with asyncio.timeout(ASK_S_MAX):
            async with asyncio.timeout(HERE_S_MAX):
                await here.wait()
            return await answered
    except TimeoutError:
        if not here.is_set():
            raise NoController(
                f"the controller at {address} has said nothing for {HERE_S_MAX:.0f} s: it hangs or "
                "is stopped; edges and workers go on with what they know"
            ) from None
        raise NoController(
            f"the controller at {address} is there, but has no answer after {ASK_S_MAX:.0f} s"
        ) from None
    finally:
        answered.cancel()  # or its loss would be complained about, now that nobody waits
        peer.close()


class NotTrusted(Exception):
    """The certificate that was shown is not trusted; the text says why, and the way out."""


def connect(
    url: str, timeout_s: float, trusted: ssl.SSLContext | None = None
) -> http.client.HTTPConnection:
    """Return a connection to a URL's host, not dialled yet; over TLS for https.

    Args:
        trusted: whose certificates are; None: the system's CAs, or those of SSL_CERT_FILE.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    context = trusted or ssl.create_default_context()
    return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)


def trusting_only(certificate: Path) -> ssl.SSLContext:
    """Return what trusts one server, by its own certificate, whatever name it is called by.

    Raises:
        ValueError: there is no certificate in the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{certificate}: no certificate in PEM: {error}") from None
    return context


def get(
    url: str,
    headers: dict[str, str] | None = None,
    timeout_s: float = 2.0,
    trusted: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Return status and body of a GET; status 0 if nobody answers.

    Raises:
        NotTrusted: somebody does whose certificate is not trusted; see `connect`.
    """
    parts = urlsplit(url)
    connection = connect(url, timeout_s, trusted)
    try:
        connection.request("GET", parts.path or "/", headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    except ssl.SSLCertVerificationError as error:
        raise NotTrusted(
            f"{url}: its certificate is not trusted: {error.verify_message}; where it is of a CA "
            "of your own, set SSL_CERT_FILE to that CA's file"
        ) from None
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
