"""The mirror speaks the hub's protocol as the hub's own client expects, and serves only the bundle."""

import contextlib
import hashlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from small_bundle import COMMIT, FILES, MODELS, OTHER, VARIANTS, make_bundle, write_files

from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleVariant, Index, read_index, write_index
from tourkit.errors import NotSo, UsageError
from tourkit.mirror.repos import repos
from tourkit.net import interface_addresses

REPO = "org/tiny-GGUF"
BIG = FILES["models/tiny/Q8_0/tiny-Q8_0.gguf"]
IN_REPO = {
    "README.md": FILES["models/tiny/Q8_0/README.md"],
    "onnx/a config.json": FILES["models/tiny/F16/onnx/a config.json"],
    "tiny-F16.gguf": FILES["models/tiny/F16/tiny-F16.gguf"],
    "tiny-Q8_0.gguf": BIG,
}


@contextlib.contextmanager
def serving(root: Path, log: Path) -> Iterator[str]:
    """Run the mirror in its own process, and yield its URL. It must end without output when it is terminated."""
    code = """
import sys
from pathlib import Path
from tourkit.mirror.app import serve
serve(Path(sys.argv[1]), "127.0.0.1", 0, lambda urls: print(urls.here, flush=True))
"""
    command = [sys.executable, "-c", code, str(root)]
    with log.open("wb") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err) as child:
        assert child.stdout is not None
        url = child.stdout.readline().decode().strip()
        try:
            assert url.startswith("http://127.0.0.1:"), log.read_text()
            yield url
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def url(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(root, log) as address:
        yield address
    assert "Traceback" not in log.read_text()


@pytest.fixture
def api(url: str) -> HfApi:
    return HfApi(endpoint=url, token=False)


def ask(
    url: str, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request exactly as written: a client library would normalise the path."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
    try:
        connection.request(method, target, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.starts
def test_the_command_prints_loopback_and_the_addresses_that_other_machines_can_use(root: Path) -> None:
    command = [sys.executable, "-m", "tourkit", "mirror", str(root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        child.terminate()

    here = re.search(r" at http://127\.0\.0\.1:(\d+) ", line)
    assert here, line
    urls = [f"http://{address}:{here[1]}" for address in interface_addresses()] or [f"http://127.0.0.1:{here[1]}"]
    assert f"(on the clients: HF_ENDPOINT={urls[0]}" in line
    assert all(url in line for url in urls)


# ---- metadata, through huggingface_hub ---------------------------------------------------------------


def test_model_info_gives_the_commit_and_the_licence(api: HfApi) -> None:
    info = api.model_info(REPO)

    assert (info.id, info.sha, info.author) == (REPO, COMMIT, "org")
    assert info.gated is False
    assert info.private is False
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    assert info.tags == ["gguf", "license:apache-2.0"]
    assert info.siblings is not None
    assert [sibling.rfilename for sibling in info.siblings] == list(IN_REPO)


def test_model_info_with_file_metadata(api: HfApi) -> None:
    siblings = api.model_info(REPO, files_metadata=True, revision=COMMIT).siblings

    assert siblings is not None
    for sibling in siblings:
        data = IN_REPO[sibling.rfilename]
        assert sibling.size == len(data)
        assert sibling.lfs is not None
        assert sibling.lfs.sha256 == hashlib.sha256(data).hexdigest()


def test_model_info_with_expand_gives_that_alone(api: HfApi) -> None:
    info = api.model_info(REPO, expand=["sha", "usedStorage"])

    assert info.sha == COMMIT
    assert info.used_storage == sum(map(len, IN_REPO.values()))
    assert info.siblings is None


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_the_tree_holds_every_file_with_its_sha256(api: HfApi, revision: str | None) -> None:
    entries = list(api.list_repo_tree(REPO, recursive=True, revision=revision))
    files = {entry.path: entry for entry in entries if hasattr(entry, "size")}

    assert sorted(entry.path for entry in entries) == sorted([*IN_REPO, "onnx"])
    for path, data in IN_REPO.items():
        entry = files[path]
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        assert entry.size == len(data)
        assert entry.lfs.sha256 == sha256
        assert entry.lfs.pointer_size == len(pointer)
        assert entry.blob_id == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


def test_the_tree_goes_one_level_deep_unless_asked(api: HfApi) -> None:
    top = [entry.path for entry in api.list_repo_tree(REPO)]
    below = [entry.path for entry in api.list_repo_tree(REPO, "onnx", expand=True)]

    assert top == ["README.md", "onnx", "tiny-F16.gguf", "tiny-Q8_0.gguf"]
    assert below == ["onnx/a config.json"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "additional_chat_templates"))


def test_paths_info_as_a_form_and_as_json(api: HfApi, url: str) -> None:
    found = api.get_paths_info(REPO, ["tiny-F16.gguf", "onnx", "ghost", "onnx/a config.json"])
    body = json.dumps({"paths": ["README.md"], "expand": True}).encode()
    headers = {"content-type": "application/json"}
    _, _, answer = ask(url, "POST", f"/api/models/{REPO}/paths-info/main", headers, body)

    assert [entry.path for entry in found] == ["tiny-F16.gguf", "onnx", "onnx/a config.json"]
    assert [entry["path"] for entry in json.loads(answer)] == ["README.md"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"paths": [1]}', b"\xff"])
def test_a_broken_paths_info_question_is_refused(url: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    status, _, answer = ask(url, "POST", f"/api/models/{REPO}/paths-info/main", headers, body)

    assert status == 400
    assert "paths" in json.loads(answer)["error"]


def test_the_references_are_the_revisions_that_are_answered(api: HfApi) -> None:
    assert [(ref.name, ref.target_commit) for ref in api.list_repo_refs(REPO).branches] == [("main", COMMIT)]
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs("plain").branches} == {
        "v1": COMMIT,
        "refs/pr/2": OTHER,
    }


def test_the_list_of_models(api: HfApi) -> None:
    assert [model.id for model in api.list_models()] == [REPO, "plain"]
    assert [model.id for model in api.list_models(search="GGUF")] == [REPO]
    assert [model.id for model in api.list_models(author="org")] == [REPO]
    assert len(list(api.list_models(limit=1))) == 1


def test_files_and_repositories_can_be_asked_for(api: HfApi) -> None:
    assert api.repo_exists(REPO)
    assert not api.repo_exists("org/ghost")
    assert api.file_exists(REPO, "README.md")
    assert not api.file_exists(REPO, "ghost.json")
    assert api.revision_exists("plain", "v1")
    assert not api.revision_exists("plain", "main")


# ---- revisions ---------------------------------------------------------------------------------------


def test_a_recorded_revision_may_hold_slashes(api: HfApi, tmp_path: Path) -> None:
    path = api.hf_hub_download("plain", "model.safetensors", revision="refs/pr/2", local_dir=tmp_path)

    assert api.model_info("plain", revision="refs/pr/2").sha == OTHER
    assert Path(path).read_bytes() == FILES["models/old-2/BF16/model.safetensors"]


def test_main_is_not_guessed_between_two_commits(api: HfApi) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.model_info("plain")
    assert api.model_info("plain", revision="v1").sha == COMMIT


@pytest.mark.parametrize("revision", ["dev", COMMIT[:7], "0" * 40, "mai", "main2"])
def test_an_unknown_or_short_revision_is_told_from_other_errors(api: HfApi, revision: str, tmp_path: Path) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision=revision)
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO, revision=revision))
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "README.md", revision=revision, local_dir=tmp_path)


@pytest.mark.parametrize("repo", ["org/ghost", "ghost", "org", "tiny-GGUF", "ORG/tiny-gguf"])
def test_an_unknown_repository_is_told_from_other_errors(api: HfApi, repo: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(repo)
    with pytest.raises(RepositoryNotFoundError):
        list(api.list_repo_tree(repo))
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download(repo, "README.md", local_dir=tmp_path)


@pytest.mark.parametrize("path", ["ghost.json", "onnx", "models/tiny/Q8_0/tiny-Q8_0.gguf", "START_HERE.md"])
def test_an_unknown_file_is_told_from_other_errors(api: HfApi, path: str, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, path, local_dir=tmp_path)


# ---- downloads, through huggingface_hub --------------------------------------------------------------


@pytest.mark.parametrize("revision", [COMMIT, "main", None])
def test_a_snapshot_is_the_bundle_s_bytes(url: str, tmp_path: Path, revision: str | None) -> None:
    snapshot_download(REPO, revision=revision, endpoint=url, local_dir=tmp_path, token=False)

    for path, data in IN_REPO.items():
        assert (tmp_path / path).read_bytes() == data


def test_a_snapshot_by_patterns_into_a_cache(url: str, tmp_path: Path) -> None:
    folder = snapshot_download(REPO, endpoint=url, cache_dir=tmp_path, allow_patterns=["*.md", "onnx/*"], token=False)

    held = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert held == {"README.md", "onnx/a config.json"}


def test_a_repository_without_an_owner(url: str, tmp_path: Path) -> None:
    path = hf_hub_download("plain", "model.safetensors", revision="v1", endpoint=url, local_dir=tmp_path, token=False)
    empty = hf_hub_download("plain", "empty.txt", revision="v1", endpoint=url, local_dir=tmp_path, token=False)

    assert Path(path).read_bytes() == FILES["models/old/BF16/model.safetensors"]
    assert Path(empty).read_bytes() == b""


def test_the_client_s_own_verification_agrees(api: HfApi, url: str, tmp_path: Path) -> None:
    snapshot_download(REPO, revision=COMMIT, endpoint=url, local_dir=tmp_path, token=False)
    good = api.verify_repo_checksums(REPO, local_dir=tmp_path, revision=COMMIT)
    (tmp_path / "README.md").write_bytes(b"changed")
    bad = api.verify_repo_checksums(REPO, local_dir=tmp_path, revision=COMMIT)

    assert good.checked_count == len(IN_REPO)
    assert not good.mismatches
    assert not good.missing_paths
    assert [mismatch["path"] for mismatch in bad.mismatches] == ["README.md"]


def test_hf_download_from_the_command_line(url: str, tmp_path: Path) -> None:
    """People set HF_ENDPOINT and run the `hf` command, nothing else."""
    program = Path(sys.executable).with_name("hf")
    command = [str(program), "download", REPO, "README.md", "--local-dir", str(tmp_path / "out")]
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "PATH": str(program.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "README.md").read_bytes() == IN_REPO["README.md"]


# ---- bytes, ranges, methods --------------------------------------------------------------------------

BIG_PATH = f"/{REPO}/resolve/main/tiny-Q8_0.gguf"
ETAG = f'"{hashlib.sha256(BIG).hexdigest()}"'


def test_head_has_what_the_client_reads(url: str) -> None:
    status, headers, body = ask(url, "HEAD", BIG_PATH)

    assert (status, body) == (200, b"")
    assert headers["content-length"] == headers["x-linked-size"] == str(len(BIG))
    assert headers["etag"] == headers["x-linked-etag"] == ETAG
    assert headers["x-repo-commit"] == COMMIT
    assert headers["accept-ranges"] == "bytes"
    assert "content-encoding" not in headers


SIZE = len(BIG)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=1000-", 1000, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=5-{SIZE + 10}", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 7}", 0, SIZE),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_range_is_answered_with_exactly_its_bytes(url: str, asked: str, start: int, end: int, method: str) -> None:
    status, headers, body = ask(url, method, BIG_PATH, {"range": asked})

    assert status == 206
    assert headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert headers["content-length"] == str(end - start)
    assert body == (BIG[start:end] if method == "GET" else b"")


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=99999999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_416(url: str, asked: str) -> None:
    status, headers, body = ask(url, "GET", BIG_PATH, {"range": asked})

    assert (status, body) == (416, b"")
    assert headers["content-range"] == f"bytes */{SIZE}"


def test_no_range_of_an_empty_file_can_be_had(url: str) -> None:
    assert ask(url, "GET", "/plain/resolve/v1/empty.txt", {"range": "bytes=0-"})[0] == 416
    assert ask(url, "GET", "/plain/resolve/v1/empty.txt")[::2] == (200, b"")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,5-6", "lines=1-2", "bytes=a-b", "junk"])
def test_a_range_that_is_not_understood_gives_the_whole_file(url: str, asked: str) -> None:
    status, headers, body = ask(url, "GET", BIG_PATH, {"range": asked})

    assert status == 200
    assert "content-range" not in headers
    assert body == BIG


def test_if_range_gives_the_whole_file_when_it_is_another_one(url: str) -> None:
    same = ask(url, "GET", BIG_PATH, {"range": "bytes=10-19", "if-range": ETAG})
    other = ask(url, "GET", BIG_PATH, {"range": "bytes=10-19", "if-range": '"other"'})

    assert (same[0], same[2]) == (206, BIG[10:20])
    assert (other[0], other[2]) == (200, BIG)


def test_a_cut_download_goes_on_where_it_stopped(url: str) -> None:
    """prefetch resumes like this: read some bytes, hang up, ask for the rest."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
    connection.request("GET", BIG_PATH)
    first = connection.getresponse().read(100_000)
    connection.close()

    status, _, rest = ask(url, "GET", BIG_PATH, {"range": f"bytes={len(first)}-", "if-range": ETAG})
    assert status == 206
    assert first + rest == BIG


def test_two_ranges_at_once_are_each_right(url: str) -> None:
    spans = [(start, start + 300_000) for start in range(0, 900_000, 100_000)]
    got: dict[tuple[int, int], bytes] = {}

    def fetch(start: int, end: int) -> None:
        got[start, end] = ask(url, "GET", BIG_PATH, {"range": f"bytes={start}-{end - 1}"})[2]

    threads = [threading.Thread(target=fetch, args=span) for span in spans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert got == {(start, end): BIG[start:end] for start, end in spans}


@pytest.mark.parametrize(
    "target",
    [
        f"/{REPO}/resolve/main/../../../../../../etc/passwd",
        f"/{REPO}/resolve/main/..%2f..%2f..%2f..%2fetc%2fpasswd",
        f"/{REPO}/resolve/main/%2e%2e/%2e%2e/bundle.json",
        f"/{REPO}/resolve/main//etc/passwd",
        f"/{REPO}/resolve/main/%2Fetc%2Fpasswd",
        f"/{REPO}/resolve/main/onnx/../README.md",
        f"/{REPO}/resolve/main/./README.md",
        f"/{REPO}/resolve/main/README.md%00",
        f"/{REPO}/resolve/main/README.md/",
        f"/{REPO}/resolve/main/",
        f"/{REPO}/resolve/main",
        f"/{REPO}/resolve/main/%FF%0A",
        "/../../etc/passwd",
        "/bundle.json",
        "/SHA256SUMS",
        "/templates/one/one.py",
        "/models/tiny/Q8_0/tiny-Q8_0.gguf",
        "/docs",
        "/openapi.json",
        f"/{REPO}",
        f"/{REPO}/raw/main/README.md",
        "/api/agent-harnesses",
        "/api/datasets/org/data",
        f"/api/models/{REPO}/discussions",
        f"/api/models/{REPO}/tree/main/..%2f..",
    ],
)
def test_nothing_but_the_index_is_ever_served(url: str, target: str) -> None:
    status, headers, body = ask(url, "GET", target)

    assert status == 404
    assert headers["x-error-code"] in ("EntryNotFound", "RepoNotFound")
    assert json.loads(body)["error"]
    assert b"root:" not in body


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", BIG_PATH),
        ("PUT", BIG_PATH),
        ("DELETE", f"/api/models/{REPO}"),
        ("POST", "/"),
        ("POST", "/api/models"),
        ("POST", f"/api/models/{REPO}/commit/main"),
        ("GET", f"/api/models/{REPO}/paths-info/main"),
        ("PUT", f"/api/models/{REPO}/paths-info/main"),
    ],
)
def test_a_wrong_method_is_405(url: str, method: str, target: str) -> None:
    assert ask(url, method, target, body=b"" if method != "GET" else None)[0] == 405


def test_there_are_no_accounts(url: str) -> None:
    status, _, body = ask(url, "GET", "/api/whoami-v2")

    assert status == 401
    assert "token" in json.loads(body)["error"]


def test_the_sums_of_a_repository_check_a_download(url: str, tmp_path: Path) -> None:
    snapshot_download(REPO, endpoint=url, local_dir=tmp_path, token=False)
    _, _, sums = ask(url, "GET", f"/api/models/{REPO}/sha256sums/main")

    done = subprocess.run(["sha256sum", "--strict", "-c"], input=sums, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") == len(IN_REPO)


# ---- the page ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def test_the_page_tells_how_to_use_it_and_loads_nothing_else(url: str) -> None:
    status, headers, body = ask(url, "GET", "/")
    text = body.decode()
    page = Page(text)

    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert f"HF_ENDPOINT={url}" in text
    assert f"hf download {REPO}" in text
    assert "sha256sum -c" in text
    assert "plain" in text
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert all(link.startswith(url) for link in page.links)


def test_every_link_of_the_page_gives_its_file(url: str) -> None:
    links = Page(ask(url, "GET", "/")[2].decode()).links

    assert len(links) == len(IN_REPO) + 3
    for link in links:
        assert ask(url, "HEAD", link.removeprefix(url))[0] == 200


def test_a_hostile_host_header_is_only_text(url: str) -> None:
    _, _, body = ask(url, "GET", "/", {"host": "x<script>alert(1)</script>"})

    assert b"<script" not in body


# ---- a bundle that changes while it is served --------------------------------------------------------


@pytest.mark.starts
def test_a_file_that_changed_size_is_500_with_its_name_and_a_log_line(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle/models/tiny/F16/tiny-F16.gguf"
    with serving(tmp_path / "bundle", tmp_path / "log") as url:
        target = f"/{REPO}/resolve/main/tiny-F16.gguf"
        path.write_bytes(b"short")
        short = ask(url, "GET", target)
        path.unlink()
        gone = ask(url, "HEAD", target)
        path.symlink_to("/etc/passwd")
        linked = ask(url, "GET", target)
        good = ask(url, "GET", f"/{REPO}/resolve/main/README.md")

    assert (short[0], gone[0], linked[0], good[0]) == (500, 500, 500, 200)
    assert "tiny-F16.gguf" in json.loads(short[2])["error"]
    log = (tmp_path / "log").read_text()
    assert log.count("tiny-F16.gguf") == 3
    assert "Traceback" not in log


@pytest.mark.starts
def test_a_file_cut_off_under_way_breaks_the_connection(tmp_path: Path) -> None:
    """The client must not mistake the received part for the whole file."""
    path = "models/tiny/Q8_0/tiny-Q8_0.gguf"
    write_files(tmp_path / "bundle", {**FILES, path: bytes(64_000_000)})
    write_index(tmp_path / "bundle", build_index(tmp_path / "bundle", "x", {}, MODELS, VARIANTS))
    with serving(tmp_path / "bundle", tmp_path / "log") as url:
        where = urlsplit(url)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
        connection.request("GET", BIG_PATH)
        answer = connection.getresponse()
        answer.read(1000)
        with (tmp_path / "bundle" / path).open("r+b") as file:
            file.truncate(32_000_000)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        connection.close()
        assert ask(url, "GET", f"/{REPO}/resolve/main/README.md")[0] == 200

    log = (tmp_path / "log").read_text()
    assert "were promised" in log
    assert "Traceback" not in log


def test_a_damaged_bundle_is_not_served(tmp_path: Path) -> None:
    from tourkit.mirror.app import serve

    make_bundle(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "models/tiny/Q8_0/README.md").unlink()

    with pytest.raises(NotSo, match=r"README\.md.*tourkit verify"):
        serve(tmp_path, "127.0.0.1", 0, lambda _: None)


def test_a_refusal_to_serve_names_every_file(tmp_path: Path) -> None:
    from tourkit.mirror.app import serve

    make_bundle(tmp_path)
    (tmp_path / "models/tiny/Q8_0/README.md").unlink()
    (tmp_path / "models/tiny/F16/tiny-F16.gguf").write_bytes(b"short")

    with pytest.raises(NotSo, match=r"and 1 more") as caught:
        serve(tmp_path, "127.0.0.1", 0, lambda _: None)

    assert [line.partition(" (")[0] for line in caught.value.details] == [
        "damaged: models/tiny/F16/tiny-F16.gguf",
        "missing: models/tiny/Q8_0/README.md",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "256.1.1.1", "::1%nowhere"])
def test_an_address_that_cannot_be_had_is_local_trouble(url: str, tmp_path: Path, host: str) -> None:
    from tourkit.errors import LocalError
    from tourkit.mirror.app import serve

    make_bundle(tmp_path)
    port = urlsplit(url).port or 0
    with pytest.raises(LocalError, match=rf"^cannot listen on {host} port {port} \(.+\): .* --host or --port$"):
        serve(tmp_path, host, port, lambda _: None)


@pytest.mark.starts
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open sockets")
def test_an_answer_does_not_wait_for_the_clients_acknowledgement(root: Path) -> None:
    """Nagle's algorithm is off on the connections that the mirror accepts (TCP_NODELAY).

    The mirror's process sends itself a request over TCP, finds the server's end of this connection in its open files,
    and prints the option there.
    """
    code = """
import http.client, os, signal, socket, sys, threading
from pathlib import Path
from urllib.parse import urlsplit
from tourkit.mirror.app import serve

def own_end(client):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            end = socket.socket(fileno=os.dup(fd))
            if end.getpeername() == client.getsockname():
                return end
        except OSError:  # not a socket, or not connected
            continue

def look(url):
    try:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("GET", "/")
        connection.getresponse().read()
        print(own_end(connection.sock).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

serve(Path(sys.argv[1]), "127.0.0.1", 0, lambda urls: threading.Thread(target=look, args=(urls.here,)).start())
"""
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)

    assert done.stdout == "1\n", done.stderr


# ---- the repositories of an index --------------------------------------------------------------------


@pytest.mark.starts
def test_more_than_a_page_of_files_is_listed_whole(tmp_path: Path) -> None:
    files = {f"models/old/BF16/part/{number:04}.txt": str(number).encode() for number in range(2100)}
    write_files(tmp_path / "bundle", files)
    write_index(tmp_path / "bundle", build_index(tmp_path / "bundle", "x", {}, MODELS, VARIANTS[2:3]))
    with serving(tmp_path / "bundle", tmp_path / "log") as url:
        first = ask(url, "GET", "/api/models/plain/tree/main?recursive=true")
        entries = list(HfApi(endpoint=url, token=False).list_repo_tree("plain", recursive=True))

    assert len(json.loads(first[2])) == 1000
    assert 'rel="next"' in first[1]["link"]
    assert [entry.path for entry in entries] == ["part", *(f"part/{number:04}.txt" for number in range(2100))]


def test_variants_of_one_commit_are_one_snapshot(root: Path) -> None:
    held = repos(read_index(root))

    assert list(held) == [REPO, "plain"]
    assert list(held[REPO].snapshots[COMMIT].files) == list(IN_REPO)
    assert set(held["plain"].snapshots) == {COMMIT, OTHER}


def indexed(root: Path, *variants: BundleVariant) -> Index:
    folders = {f"models/{variant.model}/{variant.quant}/a.txt": variant.quant.encode() for variant in variants}
    write_files(root, folders)
    return build_index(root, "x", {}, MODELS, variants)


def test_one_place_with_two_contents_is_refused(tmp_path: Path) -> None:
    index = indexed(
        tmp_path,
        BundleVariant("tiny", "A", "gguf", "o/r", "main", COMMIT),
        BundleVariant("tiny", "B", "gguf", "o/r", "main", COMMIT),
    )

    with pytest.raises(UsageError, match=r"a\.txt"):
        repos(index)


def test_a_name_that_two_commits_claim_is_not_answered(tmp_path: Path) -> None:
    index = indexed(
        tmp_path,
        BundleVariant("tiny", "A", "gguf", "o/r", "main", COMMIT),
        BundleVariant("tiny", "B", "gguf", "o/r", "main", OTHER),
    )

    assert set(repos(index)["o/r"].names) == {COMMIT, OTHER}


def test_the_only_commit_is_main_beside_its_own_name(tmp_path: Path) -> None:
    index = indexed(tmp_path, BundleVariant("tiny", "A", "gguf", "o/r", "v2", COMMIT))

    assert repos(index)["o/r"].names == {"main": COMMIT, "v2": COMMIT, COMMIT: COMMIT}
