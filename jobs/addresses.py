"""Where the service may send requests that its users ask for: to the internet, and to nothing beside it.

A name says nothing about where it leads, and may lead elsewhere a moment later. So names are resolved right before each
request, every address that comes back is checked, and the connection goes to a checked address.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx2

from jobs.errors import InvalidParameter

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

HOST_NAME = re.compile(r"(?=.*[a-z])[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
LOWEST_FREE_PORT = 1024
HIGHEST_PORT = 65535
WEB_PORTS = {"http": 80, "https": 443}
UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")


class UnsafeAddress(InvalidParameter):
    """A URL that leads, or may lead, to where the service must not send anything."""

    code = "unsafe_address"


def check_url(url: str, allow_private: bool, param: str | None = None) -> httpx2.URL:
    """The URL, if it can be judged safe without a look at the network; raises UnsafeAddress."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UnsafeAddress(f"'{url}' is not a URL.", param) from error
    if parsed.scheme != "https" and not (allow_private and parsed.scheme == "http"):
        schemes = "https:// or http://" if allow_private else "https://"
        raise UnsafeAddress(f"'{url}' must begin with {schemes}.", param)
    if parsed.userinfo:
        raise UnsafeAddress("The URL must not hold a user name or a password; use the signature instead.", param)
    port = port_of(parsed)
    if port not in WEB_PORTS.values() and not LOWEST_FREE_PORT <= port <= HIGHEST_PORT:
        raise UnsafeAddress(f"Port {port} is none that webhooks may use: 80, 443, or one from 1024 to 65535.", param)
    host = host_of(parsed)
    literal = _literal(host)
    if literal is None and not HOST_NAME.fullmatch(host):
        raise UnsafeAddress(f"'{host}' is neither a host name nor an address.", param)
    is_local = host.rstrip(".").endswith("localhost")
    if not (allow_private if is_local else literal is None or is_allowed(literal, allow_private)):
        raise UnsafeAddress(f"'{host}' is not a public address; this service sends to public ones only.", param)
    return parsed


async def safe_addresses(url: httpx2.URL, allow_private: bool, resolve: Resolver) -> list[str]:
    """Where the URL leads now; raises UnsafeAddress when any of it is not public, OSError when it leads nowhere."""
    found = await resolve(host_of(url), port_of(url))
    if not all(is_allowed(ip_address(address), allow_private) for address in found):  # which ones is nobody's business
        raise UnsafeAddress(f"'{host_of(url)}' leads to an address that is not public.")
    return found


async def resolve(host: str, port: int) -> list[str]:
    """By the system's resolver; each address once, the best first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_allowed(address: Address, allow_private: bool) -> bool:
    """Public, or private where that is allowed; link-local addresses, where clouds keep their secrets, never are."""
    inner = _inside(address)
    if allow_private:
        return not (inner.is_link_local or inner.is_multicast or inner.is_unspecified)
    unicast = isinstance(inner, IPv4Address) or inner in UNICAST
    return inner.is_global and unicast and not inner.is_multicast


def host_of(url: httpx2.URL) -> str:
    """In ASCII, as resolvers and certificates have it."""
    return url.raw_host.decode("ascii")


def port_of(url: httpx2.URL) -> int:
    return WEB_PORTS[url.scheme] if url.port is None else url.port


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 address wraps, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _literal(host: str) -> Address | None:
    """The address that a host spells out, in any of the ways that C libraries read, such as 127.1 or 0x7f000001."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None
