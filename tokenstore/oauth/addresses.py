"""Which network a host is on: this machine, the local network, or the internet."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_INTERNET = "internet"
_WITH_IPV4 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("::/96"))


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
    networks = _networks(host, resolve=resolve) - {_INTERNET}
    if not networks:
        return None
    known = _networks(own, resolve=resolve)
    if _INTERNET in known:  # whatever other addresses it gives itself
        known = set()
    return None if "loopback" in known else min(networks - known, default=None)


def _networks(host: str, *, resolve: bool) -> set[str]:
    """Return the networks on which a host has an address."""
    if is_loopback(host) or host.endswith(".localhost"):
        return {"loopback"}
    addresses = [host]
    try:
        ip_address(host)
    except ValueError:
        addresses = _resolved(host) if resolve else []
    return {_network(ip_address(each)) for each in addresses}


def _resolved(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


def _network(address: IPv4Address | IPv6Address) -> str:
    """Return the name of the network of an address."""
    if isinstance(address, IPv6Address) and not address.is_loopback:
        address = address.ipv4_mapped or address.sixtofour or _translated(address) or address
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return _INTERNET if address.is_global and not address.is_multicast else "private"


def _translated(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that a NAT64 (RFC 6052, RFC 8215) or an old form stands for."""
    if any(address in network for network in _WITH_IPV4):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def host_of(url: str | None) -> str:
    """Return the host of *url*, for messages, without a user name or password in it."""
    try:
        return urlsplit(url or "").netloc.rpartition("@")[2] or "?"
    except ValueError:
        return "?"
