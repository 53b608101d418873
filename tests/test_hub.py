"""The requests to the hub, the messages for its refusals, and where tokens and connections go."""

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_hub import COMMIT, REPO, Fault, FaultyHub

from tourkit.errors import HubError, Unreachable, WrongContent
from tourkit.fetch.http import Patience
from tourkit.fetch.hub import Hub
from tourkit.fetch.stream import PassingError
from tourkit.manifest.models import HubFile, Source

QUICK = Patience(attempts=3, delay_s=0.01, longest_s=0.02, retry_after_s=1.0, stall_s=20.0)
FILES = {"tiny-Q4_K_M.gguf": b"w" * 200_000, "config.json": b"{}\n", "sub/файл a+b%.txt": b"unusual name\n"}


@pytest.fixture
def server() -> Iterator[FaultyHub]:
    with FaultyHub(FILES) as server:
        yield server


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def hub(server: FaultyHub, notes: list[str]) -> Iterator[Hub]:
    made = Hub(server.url, patience=QUICK, note=notes.append)
    yield made
    made.close()


def body(hub: Hub, path: str, start: int = 0) -> bytes:
    data = bytearray(1 << 20)
    filled = 0
    with hub.open(Source(REPO, COMMIT, path), start=start) as stream:
        assert stream.start == start
        while got := stream.readinto(memoryview(data)[filled:]):
            filled += got
    return bytes(data[:filled])


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---- questions ---------------------------------------------------------------------------------------


def test_info_gives_the_commit_the_gate_and_the_licence(hub: Hub, server: FaultyHub) -> None:
    info = hub.info(REPO, "main")
    assert (info.commit, info.gated, info.license) == (COMMIT, False, "apache-2.0")
    server.gated = "hf_x"
    assert hub.info(REPO, COMMIT).gated is True


def test_tree_tells_lfs_files_from_git_files(hub: Hub) -> None:
    files = {file.path: file for file in hub.tree(REPO, COMMIT)}
    assert files.keys() == FILES.keys()
    assert {path: file.size for path, file in files.items()} == {path: len(data) for path, data in FILES.items()}
    weights, config = files["tiny-Q4_K_M.gguf"], files["config.json"]
    assert (len(weights.sha256 or ""), weights.blob_id) == (64, None)
    assert (config.sha256, len(config.blob_id or "")) == (None, 40)


def test_read_gives_small_files_whatever_their_name(hub: Hub) -> None:
    for file in hub.tree(REPO, COMMIT):
        assert hub.read(REPO, COMMIT, file) == FILES[file.path]


def test_read_refuses_bytes_that_the_tree_does_not_name(hub: Hub, server: FaultyHub) -> None:
    [file] = [file for file in hub.tree(REPO, COMMIT) if file.path == "config.json"]
    server.files["config.json"] = b"[]\n"
    with pytest.raises(WrongContent, match=r"config\.json"):
        hub.read(REPO, COMMIT, file)
    server.files["config.json"] = b"{}\n and more"
    with pytest.raises(WrongContent):
        hub.read(REPO, COMMIT, file)


def test_read_goes_on_asking_when_the_line_breaks(hub: Hub, server: FaultyHub, notes: list[str]) -> None:
    [file] = [file for file in hub.tree(REPO, COMMIT) if file.sha256]
    server.faults[file.path] = Fault("truncated", times=2, at=1000)
    assert hub.read(REPO, COMMIT, file) == FILES[file.path]
    assert len(notes) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503),
        Fault("status", status=500, body=b"<html>oops</html>"),
        Fault("status", status=429, headers={"Retry-After": "0"}),
        Fault("reset"),
    ],
    ids=["503", "500", "429", "reset"],
)
def test_info_asks_again_where_huggingface_hub_does_not(
    hub: Hub, server: FaultyHub, notes: list[str], fault: Fault
) -> None:
    server.api_faults = [replace(fault), replace(fault)]
    assert hub.info(REPO, "main").commit == COMMIT
    assert len(notes) == 2


def test_info_gives_up_after_the_attempts_it_was_given(hub: Hub, server: FaultyHub) -> None:
    server.api_faults = [Fault("status", status=503) for _ in range(9)]
    with pytest.raises(HubError, match="HTTP 503") as error:
        hub.info(REPO, "main")
    assert error.value.exit_code == 3
    assert server.url in one_line(error.value)
    assert len(server.api_log) == QUICK.attempts


def test_a_tree_is_asked_for_again(hub: Hub, server: FaultyHub) -> None:
    server.api_faults = [Fault("status", status=503)]
    assert len(hub.tree(REPO, COMMIT)) == len(FILES)


def test_a_silent_hub_does_not_hold_a_tree_for_ever(server: FaultyHub) -> None:
    """huggingface_hub itself sets no time limit for a tree."""
    server.api_faults = [Fault("stall")]
    hub = Hub(server.url, patience=replace(QUICK, stall_s=0.3))
    assert len(hub.tree(REPO, COMMIT)) == len(FILES)
    hub.close()


def test_an_unknown_repository_and_an_unknown_revision_are_told_apart(hub: Hub) -> None:
    with pytest.raises(HubError, match="correct `repo`") as error:
        hub.info("acme/nothing", "main")
    one_line(error.value)
    with pytest.raises(HubError, match="correct `revision`") as error:
        hub.info(REPO, "no-such-branch")
    one_line(error.value)
    with pytest.raises(HubError, match="no repository name"):
        hub.info("not//a--repo", "main")


def test_a_gated_answer_names_the_page_to_accept(hub: Hub, server: FaultyHub) -> None:
    server.api_faults = [Fault("status", status=403, headers={"X-Error-Code": "GatedRepo"})]
    with pytest.raises(HubError) as error:
        hub.info(REPO, "main")
    assert f"{server.url}/{REPO}" in one_line(error.value)
    assert "HF_TOKEN" in str(error.value)


@pytest.mark.parametrize("page", [b"<html>log in</html>", b"[]", b'{"a": 1}', b"null"])
def test_an_answer_that_is_no_hubs_is_one_line(hub: Hub, server: FaultyHub, page: bytes) -> None:
    server.api_faults = [Fault("status", status=200, body=page)]
    with pytest.raises(HubError, match="does not answer as a hub") as error:
        hub.info(REPO, "main")
    one_line(error.value)


@pytest.mark.starts
def test_nobody_at_the_endpoint_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        hub = Hub(f"http://127.0.0.1:{taken.getsockname()[1]}", patience=QUICK)
        with pytest.raises(HubError, match="connection was refused") as error:
            hub.info(REPO, "main")
        assert "HF_ENDPOINT" in one_line(error.value)
        with pytest.raises(PassingError, match="connection was refused"), hub.open(Source(REPO, COMMIT, "config.json")):
            pass
        hub.close()


def resolver(monkeypatch: pytest.MonkeyPatch, error: int) -> list[str]:
    """A name service that answers every question with `error`; the names that were asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(error, "said so")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return asked


@pytest.mark.parametrize("error", {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
def test_a_host_that_does_not_exist_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, notes: list[str], error: int
) -> None:
    asked = resolver(monkeypatch, error)
    hub = Hub("https://hugingface.example", patience=QUICK, note=notes.append)

    with pytest.raises(Unreachable, match=r"no host 'hugingface\.example': correct HF_ENDPOINT") as for_lock:
        hub.info(REPO, "main")
    with pytest.raises(Unreachable, match="correct HF_ENDPOINT"), hub.open(Source(REPO, COMMIT, "config.json")):
        pass

    one_line(for_lock.value)
    assert [name if isinstance(name, str) else name.decode() for name in asked] == ["hugingface.example"] * 2
    assert notes == []
    hub.close()


def test_a_name_service_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    asked = resolver(monkeypatch, socket.EAI_AGAIN)
    hub = Hub("https://hugingface.example", patience=QUICK, note=notes.append)

    with pytest.raises(Unreachable, match="still fails after several attempts"):
        hub.info(REPO, "main")
    with pytest.raises(PassingError), hub.open(Source(REPO, COMMIT, "config.json")):
        pass

    assert len(asked) == QUICK.attempts + 1
    assert len(notes) == QUICK.attempts - 1
    hub.close()


def test_a_proxy_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, socket.EAI_NONAME)
    monkeypatch.setenv("HTTPS_PROXY", "http://prxy.example:3128")
    hub = Hub("https://hub.example", patience=QUICK)

    with pytest.raises(Unreachable, match=r"no host 'prxy\.example': correct HTTPS_PROXY"):
        hub.info(REPO, "main")
    hub.close()


def test_an_endpoint_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        Hub("ftp://hub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    assert Hub().endpoint == "http://127.0.0.1:9"


def test_offline_is_kept_but_loopback_is_no_network(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    away, here = Hub("http://hub.invalid", patience=QUICK), Hub(server.url, patience=QUICK)
    for call in (lambda: away.info(REPO, "main"), lambda: away.read(REPO, COMMIT, HubFile("a", 1, None, None))):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            call()
    assert here.info(REPO, "main").commit == COMMIT
    assert body(here, "config.json") == FILES["config.json"]
    here.close()


@pytest.mark.starts
def test_importing_hub_and_prefetch_loads_no_huggingface_hub() -> None:
    code = "import sys, tourkit.fetch.hub, tourkit.fetch.prefetch; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- bytes -------------------------------------------------------------------------------------------


def test_a_file_is_read_from_any_byte(hub: Hub) -> None:
    assert body(hub, "tiny-Q4_K_M.gguf") == FILES["tiny-Q4_K_M.gguf"]
    assert body(hub, "sub/файл a+b%.txt", start=3) == FILES["sub/файл a+b%.txt"][3:]


def test_small_files_of_one_thread_share_a_connection(hub: Hub, server: FaultyHub) -> None:
    for _ in range(5):
        assert body(hub, "config.json") == FILES["config.json"]
    assert len(server.server.clients) == 1


def test_a_connection_closed_while_idle_is_replaced_without_a_word(hub: Hub, server: FaultyHub) -> None:
    assert body(hub, "config.json") == FILES["config.json"]
    server.server.close_clients()
    assert body(hub, "config.json") == FILES["config.json"]


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    hub: Hub, server: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router may have forgotten it: the request would get no answer and wait for the whole stall limit."""
    monkeypatch.setattr("tourkit.fetch.http._IDLE_S", -1.0)
    for _ in range(2):
        assert body(hub, "config.json") == FILES["config.json"]
    assert server.server.accepted == 2


def test_a_hub_that_was_closed_can_still_be_used(hub: Hub, server: FaultyHub) -> None:
    assert body(hub, "config.json") == FILES["config.json"]
    hub.close()
    assert body(hub, "config.json") == FILES["config.json"]
    assert server.server.accepted == 2


def test_what_came_before_the_line_broke_is_handed_over_first(hub: Hub, server: FaultyHub) -> None:
    server.faults["tiny-Q4_K_M.gguf"] = Fault("truncated", at=100_000)
    data = memoryview(bytearray(1 << 20))
    filled = 0
    with hub.open(Source(REPO, COMMIT, "tiny-Q4_K_M.gguf")) as stream:
        while filled < 100_000:
            filled += stream.readinto(data[filled:])
        for _ in range(2):
            with pytest.raises(PassingError, match="body ended 100000 bytes early"):
                stream.readinto(data[filled:])
    assert data[:filled] == FILES["tiny-Q4_K_M.gguf"][:100_000]


@pytest.mark.parametrize("begun", [False, True], ids=["for an answer", "for bytes"])
@pytest.mark.starts
def test_an_interrupt_wakes_a_thread_that_waits(begun: bool) -> None:
    """The server stays silent. Without the interrupt, the thread would end with "no answer in time"."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hub = Hub(f"http://127.0.0.1:{listener.getsockname()[1]}", patience=QUICK)
        told: list[str] = []

        def ask() -> None:
            with pytest.raises(PassingError) as error:
                body(hub, "config.json")
            told.append(str(error.value))

        thread = threading.Thread(target=ask)
        thread.start()
        client, _ = listener.accept()
        with client:
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += client.recv(4096)
            if begun:
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            hub.interrupt()
            thread.join()
        hub.close()
    assert "in time" not in told[0]


def test_a_file_that_is_left_half_read_does_not_spoil_the_next(hub: Hub) -> None:
    with hub.open(Source(REPO, COMMIT, "tiny-Q4_K_M.gguf")) as stream:
        assert stream.readinto(memoryview(bytearray(10))) == 10
    assert body(hub, "config.json") == FILES["config.json"]


def test_redirects_end_somewhere(hub: Hub, server: FaultyHub) -> None:
    """The hub redirects to itself without end."""
    server.refuse = (302, {"Location": f"/{REPO}/resolve/{COMMIT}/config.json"})
    with pytest.raises(HubError, match="redirects"), hub.open(Source(REPO, COMMIT, "config.json")):
        pass
    assert len(server.paths) == 6
    server.refuse = (302, {"Location": "file:///etc/passwd"})
    with pytest.raises(HubError, match="file:// instead of http"), hub.open(Source(REPO, COMMIT, "config.json")):
        pass


def test_the_token_of_the_environment_is_used_and_an_argument_beats_it(
    server: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    for token, expected in ((None, "Bearer hf_env"), ("hf_arg", "Bearer hf_arg"), ("", None)):
        hub = Hub(server.url, token, patience=QUICK)
        body(hub, "config.json")
        hub.close()
        assert server.log[-1].authorization == expected


class Proxy:
    """A proxy that answers CONNECT with 403 and records it."""

    def __init__(self) -> None:
        self.asked = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        client, _ = self.listener.accept()
        with client:
            while b"\r\n\r\n" not in self.asked:
                self.asked += client.recv(4096)
            client.sendall(b"HTTP/1.1 403 Not here\r\nContent-Length: 0\r\n\r\n")

    @property
    def url(self) -> str:
        return f"http://user:p%40ss@127.0.0.1:{self.listener.getsockname()[1]}"

    def close(self) -> None:
        self.thread.join()
        self.listener.close()


@pytest.mark.starts
def test_https_goes_through_the_proxy_as_a_tunnel_that_sees_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    hub = Hub("https://hub.invalid", "hf_secret", patience=QUICK)
    with pytest.raises(PassingError, match="403") as error, hub.open(Source(REPO, COMMIT, "config.json")):
        pass
    proxy.close()
    hub.close()
    assert proxy.asked.startswith(b"CONNECT hub.invalid:443")
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.asked
    assert b"hf_secret" not in proxy.asked
    assert "p@ss" not in one_line(error.value)


def test_http_goes_through_the_proxy_but_not_where_no_proxy_says(
    server: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test hub also accepts whole URLs in the request line, so it can act as a proxy."""
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.delenv("http_proxy", raising=False)
    hub = Hub("http://hub.invalid", "hf_x", patience=QUICK)
    assert body(hub, "config.json") == FILES["config.json"]
    assert server.paths[-1].startswith(f"http://hub.invalid/{REPO}/resolve/")
    hub.close()
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    with pytest.raises(HubError, match=r"hub\.invalid"), hub.open(Source(REPO, COMMIT, "config.json")):
        pass
    hub.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_socks_proxy_is_refused_in_one_line(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "socks5://127.0.0.1:1")
    hub = Hub("http://hub.invalid", patience=QUICK)
    with pytest.raises(HubError, match=r"socks5.*HTTP_PROXY") as error, hub.open(Source(REPO, COMMIT, "config.json")):
        pass
    assert not isinstance(error.value, PassingError)
    one_line(error.value)


def test_all_proxy_names_the_proxy_where_no_other_does(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", server.url)
    hub = Hub("http://hub.invalid", patience=QUICK)
    assert body(hub, "config.json") == FILES["config.json"]
    assert server.paths[-1].startswith("http://hub.invalid/")
    hub.close()


def test_a_hub_on_this_machine_is_asked_without_a_proxy(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    hub = Hub(server.url, patience=QUICK)
    assert body(hub, "config.json") == FILES["config.json"]
    assert hub.info(REPO, "main").commit == COMMIT
    hub.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", str(tmp_path / "own.pem")]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "own.pem").read_bytes())
    return path


@pytest.mark.starts
def test_a_certificate_nobody_vouches_for_is_refused_and_one_that_is_trusted_works(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyHub(FILES) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        url = f"https://localhost:{server.server.server_address[1]}"
        stranger = Hub(url, patience=QUICK)
        with (
            pytest.raises(HubError, match="SSL_CERT_FILE") as error,
            stranger.open(Source(REPO, COMMIT, "config.json")),
        ):
            pass
        one_line(error.value)
        assert not isinstance(error.value, PassingError)
        with pytest.raises(HubError, match="SSL_CERT_FILE"):
            stranger.info(REPO, "main")
        stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        friend = Hub(url, patience=QUICK)
        assert body(friend, "tiny-Q4_K_M.gguf", start=7) == FILES["tiny-Q4_K_M.gguf"][7:]
        friend.close()


# ---- patience ----------------------------------------------------------------------------------------


def test_pauses_double_up_to_a_limit_and_the_servers_wish_is_capped() -> None:
    patience = Patience(delay_s=1, longest_s=30, retry_after_s=300)
    for failures, middle in ((1, 1), (2, 2), (3, 4), (6, 30), (60, 30)):
        assert 0.75 * middle <= patience.pause_s(failures, None) <= 1.25 * middle
    assert patience.pause_s(1, 12) == 12
    assert patience.pause_s(1, 9999) == 300
    assert patience.pause_s(1, -5) == 0


def test_a_chunked_answer_has_no_size_but_all_its_bytes(server: FaultyHub, hub: Hub) -> None:
    """A hub may send a small file in chunks, without a length."""
    real = server.server.RequestHandlerClass

    class Chunked(real):  # type: ignore[misc, valid-type]
        def do_GET(self) -> None:  # noqa: N802 - http.server's name
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in (b"{}", b"\n"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

    server.server.RequestHandlerClass = Chunked
    with hub.open(Source(REPO, COMMIT, "config.json")) as stream:
        assert stream.total is None
    assert body(hub, "config.json") == FILES["config.json"]
