"""Write the locks of role sets from a file of facts about model repositories, without a hub.

    python tools/locks_from_facts.py tools/facts/models.json [MANIFEST]...

The facts are a list of objects with `repo_id`, `revision` (a commit or null) and `files`: objects with `path`, `size`
and `sha256` (null if not known); tools/facts/README.md has more. MANIFEST defaults to the built-in sets whose files are
on a hub.
A value goes into the lock only if the facts prove it for the commit that the manifest names. All other values stay
null until `tourkit lock` asks the hub.
"""

import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

from tourkit.errors import ManifestError
from tourkit.manifest import asset_pins, lock, manifest, models

SETS = (
    "chinese",
    "code",
    "cpu-16gb",
    "cpu-16gb-2026",
    "gpu-40gb",
    "gpu-8gb",
    "multilingual",
    "tour-20gb",
    "tour-20gb-2026",
)

# Hashes that were seen, but not proved for the commit of the facts: repository -> files.
UNPROVED = {
    "google/gemma-2-9b-it": ("*",),  # from the upload of June 2024
    "bartowski/gemma-2-9b-it-GGUF": ("*-Q2_K.*", "*-Q3_K_S.*", "*-Q5_K_S.*", "*-Q6_K.*", "*-Q8_0.*"),
    "MaziyarPanahi/Mistral-7B-Instruct-v0.3-GGUF": ("*",),  # two generations of hashes, one commit
    "microsoft/Phi-3-mini-4k-instruct-gguf": ("*-fp16.gguf",),  # seen at a download path only
}


def main(argv: list[str]) -> int:
    if not argv:
        print("usage: locks_from_facts.py FACTS.json [MANIFEST]...", file=sys.stderr)
        return 2
    facts = {row["repo_id"]: row for row in json.loads(Path(argv[0]).read_text(encoding="utf-8"))}
    for ref in argv[1:] or SETS:
        try:
            wanted = manifest.load(ref)
            pinned = lock_of(wanted, facts)
            lock.check_current(wanted, pinned)
        except ManifestError as exc:
            print(f"locks_from_facts: {exc}", file=sys.stderr)
            return exc.exit_code
        path = lock.path_of(wanted.path)
        lock.write(path, pinned)
        print(f"{path}: {len(pinned.resolved)} of {len(pinned.variants)} variants resolved")
    return 0


def lock_of(wanted: models.Manifest, facts: dict[str, dict[str, Any]]) -> lock.Lock:
    """Return the lock of a manifest, as far as `facts` (rows by repository) prove it."""
    variants = [entry_of(id_, variant, facts.get(variant.repo, {})) for id_, variant in wanted.variants.items()]
    pins, _ = asset_pins.pins_for(wanted.assets, None, (), print)
    return lock.new(wanted.name, wanted.digest, variants, pins)


def entry_of(id_: models.VariantId, variant: models.Variant, row: dict[str, Any]) -> lock.UnresolvedVariant:
    """Return one variant, as far as it is known. Only facts at the manifest's own commit count.

    The variant is complete if every pattern is the name of a known file.
    """
    pinned = row.get("revision") is not None and row["revision"] == variant.revision
    known = row["files"] if pinned else []
    files = tuple(
        lock.UnresolvedFile(fact["path"], fact["size"], proved_sha256(row, index))
        for index, fact in enumerate(known)
        if variant.takes(fact["path"])
    )
    paths = {file.path for file in files}
    return lock.UnresolvedVariant(
        model=id_.model,
        quant=id_.quant,
        format=variant.format,
        repo=variant.repo,
        revision=variant.revision,
        commit=variant.revision if pinned else None,
        files=files,
        complete=paths.issuperset(variant.files),  # a pattern with wildcards is not a file name
    )


def proved_sha256(row: dict[str, Any], index: int) -> str | None:
    """Return the SHA-256 of a row's file; None if it is from another source or its commit is in doubt."""
    fact = row["files"][index]
    elsewhere = "sha256_source" in fact or f"files[{index}].sha256" in row.get("field_sources", {})
    doubts = UNPROVED.get(row["repo_id"], ())
    if elsewhere or any(fnmatch.fnmatchcase(fact["path"], doubt) for doubt in doubts):
        return None
    sha256: str | None = fact["sha256"]
    return sha256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
