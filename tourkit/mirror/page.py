"""The mirror's only HTML page: how to use the mirror, and what it holds. No script, no external files."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from tourkit.units import counted, size_text

Listing = Sequence[tuple[str, str | None, Sequence[tuple[str, dict[str, int]]]]]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #8882; padding: .75rem 1rem; overflow-x: auto; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
td { padding: .15rem 1rem .15rem 0; overflow-wrap: anywhere; }
td.size { text-align: right; white-space: nowrap; }
:root { color-scheme: light dark; }
"""


def page(base: str, repos: Listing) -> str:
    """Return the HTML for a mirror at `base`. `repos`: one (id, licence, [(commit, {path: bytes})]) each."""
    example = repos[0][0] if repos else "org/name"
    total = sum(size for _, _, commits in repos for _, files in commits for size in files.values())
    commands = f"""export HF_ENDPOINT={base}
# Windows: $env:HF_ENDPOINT = "{base}"
export HF_HUB_DISABLE_TELEMETRY=1

tourkit prefetch MANIFEST --to bundle       # fetches what the lock names, checks every byte
hf download {example} --local-dir ./model
vllm serve {example}                        # like every program that uses huggingface_hub"""
    check = f"cd ./model\ncurl -s {base}/api/models/{example}/sha256sums/main | sha256sum -c"
    holds = f"{counted(len(repos), 'repository', 'repositories')}, {size_text(total)}"
    sections = "\n".join(_repo(base, *repo) for repo in repos)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>tourkit mirror</title><style>{_STYLE}</style></head><body>
<h1>tourkit mirror</h1>
<p>This server offers a bundle as a Hugging Face hub: {holds}.
No token is needed.</p>
<h2>Use it</h2>
<pre>{escape(commands)}</pre>
<p>Check what was downloaded (every line must say OK):</p>
<pre>{escape(check)}</pre>
<h2>What it holds</h2>
{sections or "<p>Nothing: the bundle has no files from a hub.</p>"}
</body></html>
"""


def _repo(base: str, id_: str, license_: str | None, commits: Sequence[tuple[str, dict[str, int]]]) -> str:
    parts = [f"<h3>{escape(id_)}</h3><p>Licence: {escape(license_ or 'unknown')}</p>"]
    for commit, files in commits:
        rows = "\n".join(_row(f"{base}/{id_}/resolve/{commit}/", path, size) for path, size in files.items())
        summary = f"commit {commit}: {counted(len(files), 'file')}, {size_text(sum(files.values()))}"
        parts.append(f"<details><summary>{summary}</summary><table>{rows}</table></details>")
    return "\n".join(parts)


def _row(folder: str, path: str, size: int) -> str:
    link = escape(folder + quote(path))
    return f'<tr><td><a href="{link}">{escape(path)}</a></td><td class="size">{size_text(size)}</td></tr>'
