"""Chooses free ports on loopback, below those that the system gives to outgoing connections."""

from __future__ import annotations

import contextlib
import random
import socket

_LOWEST, _BEYOND = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """So many different ports of 127.0.0.1 on which nobody listens.

    They are drawn at random, so that test processes that choose at the same time rarely choose the same.
    """
    generator = random.SystemRandom()
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = generator.randrange(_LOWEST, _BEYOND)
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def is_open(port: int) -> bool:
    """Whether somebody accepts connections on a port of 127.0.0.1."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
