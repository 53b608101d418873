"""Which addresses belong to this machine, and the options of every listening socket."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tourkit.errors import LocalError
from tourkit.net import Urls, _command_of, holder_of, interface_addresses, is_loopback, listen, urls_of


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::1%lo", True),
        ("localhost", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:0.0.0.0", True),
        ("::ffff:192.0.2.1", False),
        ("192.168.1.5", False),
        ("169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("2001:db8::1", False),
        ("example.invalid", False),
        ("hub.localhost", False),
        ("localhost.example.invalid", False),
        ("127.0.0.1.example.invalid", False),
    ],
)
def test_this_machine_is_localhost_and_the_loopback_and_unspecified_addresses(host: str, expected: bool) -> None:
    """A name below `localhost` does not count: a resolver may ask the network for it."""
    assert is_loopback(host) is expected


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    """Return a loopback address of each kind that this machine has."""
    address = str(request.param)
    if ":" in address:
        try:
            listen(address, 0).close()
        except LocalError:
            pytest.skip("no IPv6 here")
    return address


@pytest.mark.starts
def test_port_0_is_a_free_port_and_the_url_names_it(host: str) -> None:
    with listen(host, 0) as first, listen(host, 0) as second:
        ports = [sock.getsockname()[1] for sock in (first, second)]

        assert len({*ports, 0}) == 3
        where = f"[{host}]" if ":" in host else host
        assert [urls_of(sock).here for sock in (first, second)] == [f"http://{where}:{port}" for port in ports]
        with socket.create_connection((host, ports[0])):
            pass


@pytest.mark.starts
def test_no_answer_waits_for_a_delayed_acknowledgement(host: str) -> None:
    """asyncio sets TCP_NODELAY only if the protocol is named. Accepted sockets inherit both from their listener."""
    with listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            for sock in (listener, accepted):
                assert sock.proto == socket.IPPROTO_TCP
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.starts
def test_a_port_that_is_taken_is_one_line_with_the_fix() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"127.0.0.1 port {port} .*--port") as error:
            listen("127.0.0.1", port)

    assert "\n" not in str(error.value)


@pytest.mark.starts
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who listens on a port")
def test_a_port_that_is_taken_names_the_process_that_has_it() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=rf"\(.+ by process {os.getpid()}, `.*python.*`\): ") as error:
            listen("127.0.0.1", port)
        assert holder_of(port) in str(error.value)
    assert holder_of(port) == ""


@pytest.mark.parametrize("words", [["--api-key", "secret"], ["--api-key=secret"]])
def test_a_command_line_is_shown_without_its_secrets_and_control_characters(words: list[str], tmp_path: Path) -> None:
    line = "\0".join(["tourkit", "serve", *words, "\x1b[2J", ""])
    (tmp_path / "cmdline").write_bytes(line.encode())

    shown = _command_of(tmp_path)

    assert shown.startswith(", `tourkit serve --api-key")
    assert shown.endswith(" ?[2J`")
    assert "secret" not in shown


def test_a_port_that_cannot_be_is_one_line_with_the_fix() -> None:
    with pytest.raises(LocalError, match=r"port 70000 .*--port") as error:
        listen("127.0.0.1", 70000)

    assert "\n" not in str(error.value)


@pytest.mark.starts
def test_an_address_of_another_machine_is_one_line_with_the_fix() -> None:
    with pytest.raises(LocalError, match=r"192\.0\.2\.1 port 0 .*--host") as error:
        listen("192.0.2.1", 0)

    assert "\n" not in str(error.value)


@pytest.mark.starts
def test_the_addresses_of_interfaces_are_ones_to_listen_on_and_not_loopback() -> None:
    for address in interface_addresses():
        assert not is_loopback(address)
        listen(address, 0).close()


@pytest.mark.starts
def test_a_socket_on_all_addresses_is_named_by_loopback_and_by_every_interface() -> None:
    with listen("0.0.0.0", 0) as sock:
        port = sock.getsockname()[1]

        urls = urls_of(sock)

        elsewhere = tuple(f"http://{address}:{port}" for address in interface_addresses())
        assert urls == Urls(f"http://127.0.0.1:{port}", elsewhere)
        with socket.create_connection(("127.0.0.1", port)):
            pass


@pytest.mark.starts
def test_a_socket_on_one_address_is_named_by_it_alone(host: str) -> None:
    with listen(host, 0) as sock:
        assert urls_of(sock).elsewhere == ()
