"""HTTPS on both ports of the edge, and a certificate that is renewed while clients are served."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.client import connect, trusting_only
from tests.support.certificates import Authority, common_name
from tests.support.stack import Stack, running_stack, until

pytestmark = pytest.mark.rule("SEC-7")

KEEP_ALIVE_S = 0.5
READY = "/v2/health/ready"


@dataclass
class Site:
    """A stack that serves HTTPS, and the files of its certificate."""

    stack: Stack
    authority: Authority
    folder: Path

    def renew(self, name: str) -> None:
        self.authority.issue(self.folder, name)

    def shown(self, port: int) -> str:
        """Return whom the certificate names that a new connection sees."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port), 5.0) as plain,
            context.wrap_socket(plain) as one,
        ):
            return common_name(one.getpeercert(binary_form=True) or b"")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("https")
    authority = Authority.make("a CA of our own")
    files = authority.issue(folder / "tls", "first")
    (folder / "ca.pem").write_bytes(authority.pem)
    arguments = (
        *("--tls-cert", str(files / "tls.crt"), "--tls-key", str(files / "tls.key")),
        *("--keep-alive-s", str(KEEP_ALIVE_S)),
    )
    trusted = ssl.create_default_context(cafile=folder / "ca.pem")
    with running_stack(folder / "data", trusted=trusted, arguments=arguments) as stack:
        yield Site(stack, authority, files)


def test_both_ports_speak_https_to_who_trusts_the_ca(site: Site) -> None:
    stack = site.stack
    assert stack.url.startswith("https://")
    assert stack.request("GET", READY).status == 200
    assert stack.request("GET", "/admin/pool", admin=True).status == 200
    assert stack.request("GET", "/admin/pool", admin=True, key=None).status == 401
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(stack.url, 5.0, ssl.create_default_context()).request("GET", READY)


def test_neither_port_speaks_plainly(site: Site) -> None:
    for port in (site.stack.port, site.stack.admin_port):
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
        plain.request("GET", READY)
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
        plain.close()


def test_tls_before_1_2_is_refused_and_1_2_is_not(site: Site) -> None:
    for version, is_served in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        connection = connect(site.stack.url, 5.0, context)
        if is_served:
            connection.request("GET", READY)
            assert connection.getresponse().status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                connection.request("GET", READY)
        connection.close()


@pytest.mark.rule("SEC-22")
def test_http_2_is_not_agreed_on(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", site.stack.port), 5.0) as plain,
        context.wrap_socket(plain) as one,
    ):
        assert one.selected_alpn_protocol() in (None, "http/1.1")


def test_commands_speak_https_and_say_whom_they_do_not_trust(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = site.stack
    url = ("status", "--json", "--url", stack.admin_url)
    monkeypatch.setenv("SSL_CERT_FILE", str(stack.data.parent / "ca.pem"))
    assert '"workers"' in stack.cli(*url)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(AssertionError, match=r"is not trusted.*SSL_CERT_FILE"):
        stack.cli(*url)


def test_one_server_is_trusted_by_its_own_certificate_alone(site: Site, tmp_path: Path) -> None:
    own = trusting_only(site.folder / "tls.crt")
    connection = connect(site.stack.url, 5.0, own)
    connection.request("GET", READY)
    assert connection.getresponse().status == 200
    connection.close()
    other = trusting_only(site.authority.issue(tmp_path, "first") / "tls.crt")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(site.stack.url, 5.0, other).request("GET", READY)


@dataclass
class Clients:
    """Clients on kept connections, who dial again when theirs was closed after an answer."""

    start: Callable[[], http.client.HTTPConnection]
    answers: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    dials: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        connection = self.start()
        while not self.is_over.is_set():
            try:
                if connection.sock is None:
                    self.dials += 1
                connection.request("GET", READY)
                response = connection.getresponse()
                response.read()
                self.answers.append(response.status)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection = self.start()
            time.sleep(0.01)
        connection.close()


def test_renewed_certificate_is_shown_without_a_failed_request(site: Site) -> None:
    stack = site.stack
    trusted = stack.options.trusted
    clients = Clients(lambda: connect(stack.url, 10.0, trusted))
    threads = [threading.Thread(target=clients.run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(clients.answers) > 40)
        before = clients.dials
        # Half of a renewal is not taken, and does no harm.
        key = (site.folder / "tls.key").read_bytes()
        (site.folder / "tls.key").write_text("half a key")
        until(lambda: "certificate_not_taken" in stack.log_text(), 10.0)
        (site.folder / "tls.key").write_bytes(key)
        site.renew("second")
        for port in (stack.port, stack.admin_port):
            until(lambda port=port: site.shown(port) == "second", 15.0)
        until(lambda: clients.dials >= before + 4, 15.0, "each was moved to the new certificate")
        # Once the one before has faded nobody sees it any more.
        time.sleep(KEEP_ALIVE_S + 1.5)
        assert {site.shown(stack.port) for _ in range(20)} == {"second"}
    finally:
        clients.is_over.set()
        for thread in threads:
            thread.join()
    assert clients.failures == []
    assert set(clients.answers) == {200}
