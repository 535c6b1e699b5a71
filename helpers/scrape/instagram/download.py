"""Download images from Instagram's media hosts only."""

import ipaddress
import re
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy

from helpers.scrape.items import PermanentRefusal

MEDIA_HOSTS = (".cdninstagram.com", ".fbcdn.net")
PLAIN_HOST = re.compile(r"[a-z0-9.-]+")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
MAX_REDIRECTS = 3
CONNECT_S, READ_S = 10.0, 30.0  # without any data


class UrlExpired(ValueError):
    """Raised if an image is no longer at its URL (HTTP 401, 403, 404 or 410). A newly requested URL may work."""


def fetch(
    url: str, open_session: Callable[[], requests.Session], max_bytes: int, max_s: float
) -> bytes:
    """Return the bytes at a URL of Instagram's media hosts, following redirects within these hosts.

    Raises PermanentRefusal for a URL or size that is not allowed, UrlExpired, or ValueError for a transient error.
    """
    deadline = time.monotonic() + max_s
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with open_session() as session, _get(session, url, max_s) as response:
                if not response.is_redirect:
                    return _read(response, max_bytes, deadline)
                url = urljoin(url, response.headers["location"])
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise ValueError(f"could not be downloaded completely ({type(error).__name__})") from None
    raise PermanentRefusal(f"is redirected more than {MAX_REDIRECTS} times")


def media_host(url: str) -> str:
    """Return the host name in `url`. Raises PermanentRefusal unless it is plain https on an Instagram media host."""
    try:
        parts = urlsplit(url)
        is_https = parts.scheme == "https" and parts.port in (None, 443)
    except ValueError:
        raise PermanentRefusal("its address is malformed") from None
    host = (parts.hostname or "").lower()
    if not is_https or "@" in parts.netloc:
        raise PermanentRefusal("its address is not plain https")
    if not PLAIN_HOST.fullmatch(host) or not host.endswith(MEDIA_HOSTS) or ".." in host:
        raise PermanentRefusal("its address is not on Instagram's media hosts")
    if re.search(r"[\x00-\x20\\\x7f]", url):
        raise PermanentRefusal("its address is malformed")
    return host


def public_address(host: str) -> str:
    """Return a public IP address of `host`, IPv4 first. Raises PermanentRefusal if one of its addresses is private."""
    addresses = {entry[4][0] for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)}
    if not addresses or not all(map(_is_public, addresses)):
        raise PermanentRefusal("its host resolves to an address that is not public")
    return sorted(addresses, key=len)[0]  # the shorter ones are IPv4


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    if found.version == 6:  # it may embed an IPv4 address
        in_nat64 = ipaddress.IPv4Address(int(found) % 2**32) if found in NAT64 else None
        found = found.ipv4_mapped or found.sixtofour or in_nat64 or found
    return found.is_global and not found.is_multicast


class _Pinned(HTTPAdapter):
    """HTTP adapter for URLs with an IP address in place of the host name. The TLS certificate must be for `host`.

    The address was checked before; a second DNS lookup could return another one (DNS rebinding).
    """

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        names = {"server_hostname": self.host, "assert_hostname": self.host}
        super().init_poolmanager(*args, **names, **kwargs)


def _get(session: requests.Session, url: str, max_s: float) -> requests.Response:
    host = media_host(url)
    headers = {"Accept-Encoding": "identity"}
    if not select_proxy(url, get_environ_proxies(url)):  # a proxy resolves the name itself
        address = public_address(host)
        session.mount("https://", _Pinned(host))
        headers["Host"] = host
        netloc = f"[{address}]" if ":" in address else address
        url = urlsplit(url)._replace(netloc=netloc).geturl()
    timeout = (min(CONNECT_S, max_s), min(READ_S, max_s))
    return session.get(url, headers=headers, allow_redirects=False, stream=True, timeout=timeout)


def _read(response: requests.Response, max_bytes: int, deadline: float) -> bytes:
    if response.status_code in (401, 403, 404, 410):
        raise UrlExpired(f"is no longer at its URL ({response.status_code})")
    if response.status_code != 200:
        raise ValueError(f"is not available now ({response.status_code})")
    if response.headers.get("Content-Type", "").startswith(("text/", "application/json")):
        raise ValueError("is a web page instead of an image")
    declared = response.headers.get("Content-Length", "")
    content = bytearray()
    while chunk := response.raw.read1(2**16):  # available data, without waiting for more
        content += chunk
        if len(content) > max_bytes or (declared.isdigit() and int(declared) > max_bytes):
            raise PermanentRefusal(f"is larger than {max_bytes / 1e6:.0f} MB")
        if time.monotonic() > deadline:
            raise ValueError("came too slowly")
    if declared.isdigit() and len(content) < int(declared):
        raise ValueError("was cut off during the download")
    return bytes(content)
