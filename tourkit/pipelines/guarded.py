"""Takes this process offline for a run: the guard, and the way to the one server that it asks."""

from __future__ import annotations

from urllib.parse import urlsplit

from tourkit import net, offline
from tourkit.errors import UsageError
from tourkit.isolation import guard, outlet
from tourkit.isolation.guard import NAMESPACE, Held, Needs


def go_offline(url: str, wish: str = "") -> Held:
    """Keep this process and its children from every connection but those to the server at `url`, for good.

    Templates use the same URL as before. `wish`: the guard that is forced, "" for the strongest. The process must have
    one thread. Raises LocalError if the wish cannot be had, or if nobody answers at the URL.
    """
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    if host is None:
        raise UsageError(f"{url!r} is not a server address: write it like http://127.0.0.1:8000")
    addresses = outlet.addresses_of(host, port)
    name = "" if host == "localhost" or net.is_address(host) else host
    needs, allowed = Needs(loopback=True, mounts=bool(name)), {host, *(address for address, _ in addresses)}
    if guard.available(needs, wish).name != NAMESPACE:
        return offline.isolate(needs, wish, allowed)
    way = outlet.start(addresses[0])
    held = offline.isolate(needs, wish, allowed)
    way.open(name)
    return held
