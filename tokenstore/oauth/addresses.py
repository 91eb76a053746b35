"""Which network a host is on: this machine, the local network, or the internet."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ipaddress import IPv4Address


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address is this machine, without a DNS lookup."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def foreign_network(issuer: str, url: str, *, resolve: bool) -> str | None:
    """Return the network that an issuer has no business to name in its metadata, or None.

    Metadata from the internet must not direct requests, and what they contain, to this machine or
    to the local network. An issuer on the local network may name others there, and one on this
    machine any.

    Args:
        issuer: The URL of the issuer.
        url: A URL in its metadata.
        resolve: Whether to look host names up. One that cannot be resolved counts as public: if
            there is a proxy, it alone may know them.
    """
    try:
        own, host = urlsplit(issuer).hostname or "", urlsplit(url).hostname or ""
    except ValueError:  # reported when it is used
        return None
    if host == own:
        return None
    networks = _networks(host, resolve=resolve)
    if not networks:
        return None
    known = _networks(own, resolve=resolve)
    return None if "loopback" in known else min(networks - known, default=None)


def _networks(host: str, *, resolve: bool) -> set[str]:
    """Return the networks, other than the internet, on which a host has an address."""
    if is_loopback(host) or host.endswith(".localhost"):
        return {"loopback"}
    addresses = [host]
    try:
        ip_address(host)
    except ValueError:
        addresses = _resolved(host) if resolve else []
    return {network for each in addresses if (network := _network(ip_address(each)))}


def _resolved(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


def _network(address: IPv4Address | IPv6Address) -> str | None:
    """Return the name of the network of an address, None for the internet."""
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return None if address.is_global and not address.is_multicast else "private"
