"""Where webhooks may lead: to public addresses, however private ones are spelled, named or hidden."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import httpx2
import pytest

from jobs.addresses import UnsafeAddress, check_url, is_allowed, resolve, safe_addresses

PUBLIC = ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822")
NOT_PUBLIC = {
    "loopback": "127.0.0.1",
    "loopback 6": "::1",
    "unspecified": "0.0.0.0",  # noqa: S104
    "unspecified 6": "::",
    "private": "10.1.2.3",
    "private 172": "172.16.0.1",
    "private 192": "192.168.1.1",
    "unique local": "fd00:ec2::254",
    "metadata": "169.254.169.254",
    "link-local": "fe80::1",
    "site-local": "fec0::1",
    "shared": "100.64.0.1",
    "benchmarks": "198.18.0.1",
    "documentation": "2001:db8::1",
    "multicast": "224.0.0.1",
    "multicast 6": "ff0e::1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "mapped": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:169.254.169.254",
    "compatible": "::127.0.0.1",
    "6to4": "2002:7f00:1::",
    "NAT64": "64:ff9b::a9fe:a9fe",
    "local NAT64": "64:ff9b:1::a00:1",
    "Teredo": "2001:0:4136:e378:8000:63bf:80ff:fffe",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ip_address(address), allow_private=False)


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_no_other_address_is_allowed(address: str) -> None:
    assert not is_allowed(ip_address(address), allow_private=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "fd00::1", "93.184.216.34"])
def test_private_addresses_are_allowed_on_demand(address: str) -> None:
    assert is_allowed(ip_address(address), allow_private=True)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "::", "224.0.0.1"])
def test_the_metadata_of_clouds_is_never_reached(address: str) -> None:
    assert not is_allowed(ip_address(address), allow_private=True)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "127.0.0.1.", "0x7f000001", "0x7f.1", "0177.1", "2130706433", "017700000001", "0"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::7f00:1]"),
        *("127。0。0。1", "localhost", "LOCALHOST", "localhost.", "api.localhost", "169.254.169.254", "0xa9fea9fe"),
    ],
)
def test_a_private_address_is_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(UnsafeAddress) as refusal:
        check_url(f"https://{host}/hook", allow_private=False, param="url")
    assert refusal.value.param == "url"
    assert "public" in refusal.value.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("//example.com/", "https://"),
        ("example.com", "https://"),
        ("https://user:password@example.com/", "password"),
        ("https://user@example.com/", "password"),
        ("https://example.com:22/", "Port 22"),
        ("https://example.com:0/", "Port 0"),
        ("https://example.com:65536/", "Port 65536"),
        ("https:///hook", "neither"),
        ("https://exa mple.com/", "neither"),
        ("https://a..b/", "neither"),
        ("https://127.0.0.1.1/", "neither"),
        ("https://[::1/", "not a URL"),
        ("https://0177.0.0.1/", "not a URL"),
        ("https://example.com/\n", "not a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(url: str, said: str) -> None:
    with pytest.raises(UnsafeAddress, match=said):
        check_url(url, allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://example.com/hook?key=1",
            "https://EXAMPLE.com:8443",
            "https://münchen.de/",
            "https://93.184.216.34/",
        ),
        *("https://my_host.example.com./", "https://[2606:2800:220:1::1]:443/", "https://3com.com"),
    ],
)
def test_a_public_url_is_accepted(url: str) -> None:
    check_url(url, allow_private=False)


def test_a_private_service_may_use_http_and_names_of_its_own() -> None:
    for url in ("http://127.0.0.1:9000/", "http://receiver:8080/hook", "https://localhost/"):
        check_url(url, allow_private=True)


@pytest.mark.parametrize("answer", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:10.0.0.1"]])
def test_a_name_is_refused_when_any_of_its_addresses_is_private(answer: list[str]) -> None:
    async def resolve_so(host: str, port: int) -> list[str]:
        return answer

    with pytest.raises(UnsafeAddress, match="not public") as refusal:
        asyncio.run(safe_addresses(httpx2.URL("https://inside.example.com/"), False, resolve_so))
    assert not any(address in refusal.value.message for address in answer), "it would tell what lies inside"


def test_the_systems_resolver_reads_local_names_and_odd_spellings() -> None:
    assert "127.0.0.1" in asyncio.run(resolve("localhost", 80)) + asyncio.run(resolve("0x7f000001", 80))
    with pytest.raises(UnsafeAddress):
        asyncio.run(safe_addresses(httpx2.URL("https://localhost/"), False, resolve))
