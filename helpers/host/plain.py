"""Any machine that is no host of its own: a person's computer, a server, a container."""

from helpers.host.interface import Host

HOST = Host("plain", is_here=lambda: True)
