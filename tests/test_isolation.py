"""A process in a namespace with a dead end reaches nobody, and everything that it tries is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tourkit.isolation import trial
from tourkit.isolation.packets import destination

CALLS = str(Path(__file__).with_name("isolated_calls.py"))
QUIET = ("nothing", "loopback", "write_to_a_read_only_folder")
LOUD = ("tcp", "udp", "udp6", "name", "native_code_of_a_child")


def isolated(*arguments: str) -> dict[str, Any]:
    if refusal := trial.refusal():
        pytest.skip(f"no namespaces here: {refusal}")
    done = subprocess.run([sys.executable, CALLS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def with_interface() -> dict[str, Any]:
    answer = isolated()
    if not answer["shows_packets"]:
        pytest.skip("no access to /dev/net/tun: the namespace has no interface that leads nowhere")
    return answer


@pytest.fixture(scope="module")
def without_interface() -> dict[str, Any]:
    return isolated("without-interface")


@pytest.mark.starts
def test_each_attempt_is_counted_with_its_target(with_interface: dict[str, Any]) -> None:
    counted = with_interface["counted"]

    assert list(counted["tcp"]) == ["TCP 203.0.113.7:443"]
    assert counted["udp"] == {"UDP 203.0.113.8:514": 1}
    assert counted["native_code_of_a_child"] == {"UDP 203.0.113.9:9": 1}


@pytest.mark.starts
def test_the_look_up_of_a_name_is_counted_with_the_name(with_interface: dict[str, Any]) -> None:
    if not with_interface["names"]:
        pytest.skip("this system has no /etc/resolv.conf to replace")

    assert list(with_interface["counted"]["name"]) == ["UDP 192.0.2.53:53 (the name hub.example)"]


@pytest.mark.starts
def test_without_an_interface_each_attempt_is_counted_without_its_target(without_interface: dict[str, Any]) -> None:
    assert not without_interface["shows_packets"]
    for call in LOUD:
        assert without_interface["counted"][call], call


@pytest.mark.starts
@pytest.mark.parametrize("kind", ["with_interface", "without_interface"])
def test_what_stays_on_the_machine_is_not_counted(kind: str, request: pytest.FixtureRequest) -> None:
    counted = request.getfixturevalue(kind)["counted"]

    assert {call: counted[call] for call in QUIET} == {call: {} for call in QUIET}


# --- packets ---------------------------------------------------------------------------------------------------------

_IPV6 = bytes.fromhex("60000000 0008 3a ff 20010db8000000000000000000000001 ff020000000000000000000000000002")


@pytest.mark.parametrize(
    ("packet", "where"),
    [
        (bytes.fromhex("45000028 00000000 40060000 c0000201 cb007107 04d2 01bb"), "TCP 203.0.113.7:443"),
        (bytes.fromhex("45000028 00000000 40010000 c0000201 cb007107 0800"), "ICMP 203.0.113.7"),
        (bytes.fromhex("45000028 00000000 40020000 c0000201 e00000fb 1600"), "protocol 2 224.0.0.251"),
        (bytes.fromhex("4500001d 00000000 40110000 c0000201 cb007107 04d2 0035 0009 0000 78"), "UDP 203.0.113.7:53"),
        (_IPV6 + bytes.fromhex("8500"), None),  # the kernel looks for a router
        (_IPV6 + bytes.fromhex("8000"), "ICMP ff02::2"),  # a ping
        (b"\x45\x00", None),
        (b"", None),
    ],
)
def test_a_packet_says_where_it_wanted_to_go(packet: bytes, where: str | None) -> None:
    assert destination(packet) == where
