"""Turn the shipped weights into repositories of a hub: `python -m tools.tiny.package [--lock] [--upstream DIR]`.

--lock writes manifests/tiny.lock.json from the files of weights/tiny. --upstream copies them into a folder that
`tourkit mirror` can serve. The commit of a repository is the SHA-1 of its list of files.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, write_index
from tourkit.files import sha256_of
from tourkit.manifest import lock, manifest
from tourkit.manifest.models import HubFile
from tourkit.manifest.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "manifests" / "tiny.toml"
FOLDERS = {"tourkit/tiny-GGUF": "gguf", "tourkit/tiny": "safetensors", "tourkit/tiny-ONNX": "onnx"}


def files_of(weights: Path, repo: str) -> dict[str, Path]:
    """Return the files of one repository by their path in it."""
    folder = weights / FOLDERS[repo]
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def locked(weights: Path) -> lock.Lock:
    """Return the lock of manifests/tiny.toml for these weights."""
    return resolve(manifest.load(MANIFEST), _Folders(weights)).lock


class _Folders:
    """A stand-in for a hub: the three calls that `resolve` makes, answered from the folders of the weights."""

    def __init__(self, weights: Path) -> None:
        self._weights = weights

    def info(self, repo: str, revision: str) -> "_Info":
        lines = "".join(f"{file.sha256}  {file.path}\n" for file in self.tree(repo, revision))
        return _Info(hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest())

    def tree(self, repo: str, _commit: str) -> tuple[HubFile, ...]:
        files = files_of(self._weights, repo)
        return tuple(HubFile(name, path.stat().st_size, sha256_of(path)) for name, path in files.items())

    def read(self, repo: str, _commit: str, file: HubFile) -> bytes:
        return files_of(self._weights, repo)[file.path].read_bytes()


class _Info:
    def __init__(self, commit: str) -> None:
        self.commit = commit


def upstream(weights: Path, root: Path) -> None:
    """Copy the weights below `root` as a bundle."""
    pinned = locked(weights)
    model = manifest.load(MANIFEST).models["tiny"]
    variants = []
    for variant in pinned.resolved:
        (root / variant.id.folder).mkdir(parents=True, exist_ok=True)
        for file in variant.files:
            shutil.copyfile(files_of(weights, variant.repo)[file.source.path], root / file.path)
        variants.append(
            BundleVariant(variant.model, variant.quant, variant.format, variant.repo, "main", variant.commit)
        )
    models = [BundleModel("tiny", model.repo, model.license, model.context, model.family, model.gated)]
    write_index(root, build_index(root, "tiny-upstream", {"tool": ["tiny"]}, models, variants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "tiny")
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--upstream", type=Path)
    args = parser.parse_args()
    if args.lock:
        lock.write(lock.path_of(MANIFEST), locked(args.weights))
    if args.upstream:
        upstream(args.weights, args.upstream)


if __name__ == "__main__":
    main()
