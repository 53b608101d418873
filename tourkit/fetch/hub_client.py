"""huggingface_hub as tourkit uses it: nothing is sent unasked, no lines of its own, no wait without an end.

What is asked with it is the business of tourkit/fetch/hub.py.
"""

import logging
import os
from typing import TYPE_CHECKING, Any

from tourkit import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRUE = {"1", "ON", "YES", "TRUE"}  # how huggingface_hub's variables say yes


def new_api(endpoint: str, stall_s: float, *, trust_env: bool) -> "HfApi":
    """A client for questions to `endpoint`, each of at most `stall_s` seconds; proxies only with `trust_env`."""
    for name in ("TELEMETRY", "XET", "UPDATE_CHECK", "PROGRESS_BARS"):
        os.environ.setdefault(f"HF_HUB_DISABLE_{name}", "1")
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as hf_logging

    def limit(request: Any) -> None:  # list_repo_tree asks for no time limit at all
        if not any((request.extensions.get("timeout") or {}).values()):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), stall_s)

    hf_logging.set_verbosity(logging.ERROR)
    # Without the client's own hook: HF_HUB_OFFLINE is ours to judge, a mirror on loopback is no network.
    set_client_factory(
        lambda: httpx.Client(follow_redirects=True, trust_env=trust_env, event_hooks={"request": [limit]})
    )
    return HfApi(endpoint=endpoint, library_name="tourkit", library_version=__version__)


def close() -> None:
    """Close the connections of every client; the next question opens new ones."""
    from huggingface_hub import close_session

    close_session()


def default_token() -> str | None:
    """The token of HF_TOKEN, else the one that `hf auth login` stored, unless that is turned off."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in TRUE:
        return None
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import get_token

    return get_token()
