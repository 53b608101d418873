"""huggingface_hub set up for tourkit: no telemetry, no output of its own, no wait without a time limit.

tourkit/fetch/hub.py asks the questions.
"""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tourkit import __version__
from tourkit.fetch.stream import MOST_REDIRECTS, redirected

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRUE = {"1", "ON", "YES", "TRUE"}  # the values that huggingface_hub reads as true


def new_api(endpoint: str, stall_s: float, *, trust_env: bool) -> "HfApi":
    """Return a client for `endpoint`. A question takes at most `stall_s` seconds; `trust_env` allows proxies."""
    for name in ("TELEMETRY", "XET", "UPDATE_CHECK", "PROGRESS_BARS"):
        os.environ.setdefault(f"HF_HUB_DISABLE_{name}", "1")
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as hf_logging

    def limit(request: Any) -> None:  # list_repo_tree sets no time limit
        if not any((request.extensions.get("timeout") or {}).values()):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), stall_s)

    def check_redirect(response: Any) -> None:  # httpx would try a malformed address again and again
        if response.has_redirect_location:
            where, location = response.request.url, response.headers["Location"]
            redirected(str(where), location, f"{where.host}{where.path}", server="hub", fix="check HF_ENDPOINT")

    hf_logging.set_verbosity(logging.ERROR)
    # The library's own hook is left out: tourkit itself checks HF_HUB_OFFLINE, and allows a mirror on loopback.
    hooks: dict[str, list[Callable[[Any], None]]] = {"request": [limit], "response": [check_redirect]}
    set_client_factory(
        lambda: httpx.Client(
            follow_redirects=True, max_redirects=MOST_REDIRECTS, trust_env=trust_env, event_hooks=hooks
        )
    )
    return HfApi(endpoint=endpoint, library_name="tourkit", library_version=__version__)


def close() -> None:
    """Close the connections of every client; the next question opens new ones."""
    from huggingface_hub import close_session

    close_session()


def default_token() -> str | None:
    """Return the token of HF_TOKEN, else the one that `hf auth login` stored; None if that is turned off."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in TRUE:
        return None
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import get_token

    return get_token()
