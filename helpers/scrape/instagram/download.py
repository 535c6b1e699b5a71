"""Pictures from Instagram's media hosts, and from nowhere else."""

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

from helpers.scrape.items import Final

MEDIA_HOSTS = (".cdninstagram.com", ".fbcdn.net")
PLAIN_HOST = re.compile(r"[a-z0-9.-]+")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
MOST_REDIRECTS = 3
CONNECT_S, READ_S = 10.0, 30.0  # without a sign from the other side


class Expired(ValueError):
    """The address is no longer good; a fresh one may be."""


def fetch(
    url: str, open_session: Callable[[], requests.Session], most_bytes: int, most_s: float
) -> bytes:
    """The content at an address of a media host. Redirects are followed by hand, each looked at like the first.

    Raises Final for an address or a size that is refused, Expired, or ValueError for what may pass.
    """
    deadline = time.monotonic() + most_s
    try:
        for _ in range(MOST_REDIRECTS + 1):
            with open_session() as session, _get(session, url, most_s) as response:
                if not response.is_redirect:
                    return _read(response, most_bytes, deadline)
                url = urljoin(url, response.headers["location"])
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise ValueError(f"could not be fetched whole ({type(error).__name__})") from None
    raise Final(f"is redirected more than {MOST_REDIRECTS} times")


def media_host(url: str) -> str:
    """The host of an address that may be fetched. Raises Final for every other address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Final("its address is malformed") from None
    host = (parts.hostname or "").lower()
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc:
        raise Final("its address is not plain https")
    if not PLAIN_HOST.fullmatch(host) or not host.endswith(MEDIA_HOSTS) or ".." in host:
        raise Final("its address is not on Instagram's media hosts")
    if re.search(r"[\x00-\x20\\\x7f]", url):
        raise Final("its address is malformed")
    return host


def public_address(host: str) -> str:
    """An address of a host. Raises Final if any of them is private, local or otherwise not of the open net."""
    addresses = {entry[4][0] for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)}
    if not addresses or not all(map(_is_public, addresses)):
        raise Final("its host leads to an address that is not public")
    return sorted(addresses, key=len)[0]  # the shorter ones are IPv4


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    if found.version == 6:  # an IPv4 address may be written into it
        in_nat64 = ipaddress.IPv4Address(int(found) % 2**32) if found in NAT64 else None
        found = found.ipv4_mapped or found.sixtofour or in_nat64 or found
    return found.is_global and not found.is_multicast


class _Pinned(HTTPAdapter):
    """Connects to an address already looked at, and speaks TLS for the host that it stands for.

    Were the name looked up a second time, the answer could be another one (DNS rebinding).
    """

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(
            *args, server_hostname=self.host, assert_hostname=self.host, **kwargs
        )


def _get(session: requests.Session, url: str, most_s: float) -> requests.Response:
    host = media_host(url)
    headers = {"Accept-Encoding": "identity"}
    if not select_proxy(url, get_environ_proxies(url)):  # a proxy looks the name up itself
        address = public_address(host)
        session.mount("https://", _Pinned(host))
        headers["Host"] = host
        netloc = f"[{address}]" if ":" in address else address
        url = urlsplit(url)._replace(netloc=netloc).geturl()
    timeout = (min(CONNECT_S, most_s), min(READ_S, most_s))
    return session.get(url, headers=headers, allow_redirects=False, stream=True, timeout=timeout)


def _read(response: requests.Response, most_bytes: int, deadline: float) -> bytes:
    if response.status_code in (401, 403, 404, 410):
        raise Expired(f"is no longer at its address ({response.status_code})")
    if response.status_code != 200:
        raise ValueError(f"is not given out now ({response.status_code})")
    if response.headers.get("Content-Type", "").startswith(("text/", "application/json")):
        raise ValueError("is a web page where a picture should be")
    declared = response.headers.get("Content-Length", "")
    content = bytearray()
    while chunk := response.raw.read1(2**16):  # what has come, without waiting for more
        content += chunk
        if len(content) > most_bytes or (declared.isdigit() and int(declared) > most_bytes):
            raise Final(f"is larger than {most_bytes / 1e6:.0f} MB")
        if time.monotonic() > deadline:
            raise ValueError("came too slowly")
    if declared.isdigit() and len(content) < int(declared):
        raise ValueError("was cut off on its way")
    return bytes(content)
