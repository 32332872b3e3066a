"""Who a node is for the other ones: its certificate, and TLS that takes none but those of the cluster's nodes.

Made by certificates.py, which needs `cryptography`; to use one takes Python alone.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

# What is spoken inside, agreed on by ALPN (RFC 7301): a release that changes one changes its name.
REPLICATION = "litefs-django-relay/1"
QUESTION = "litefs-django-question/1"
CONTROL = "litefs-django-control/1"
PROTOCOLS = (REPLICATION, QUESTION, CONTROL)

NODE = "urn:litefs-django:node:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The node `name`: `shown` is its private key and certificate, `accepted` the authorities, all as PEM."""

    name: str
    shown: str = field(repr=False)
    accepted: str

    def listening(self) -> ssl.SSLContext:
        """For whoever connects, whatever of PROTOCOLS they speak."""
        return _context(self, ssl.PROTOCOL_TLS_SERVER, PROTOCOLS)

    def connecting(self, protocol: str) -> ssl.SSLContext:
        """For a connection to a node, whose name is to be compared with `peer_name`."""
        return _context(self, ssl.PROTOCOL_TLS_CLIENT, (protocol,))


# One of each serves all connections, from all threads.
@lru_cache(maxsize=8)
def _context(identity: Identity, side: int, protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # `peer_name` is compared
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.accepted)
    context.set_alpn_protocols([*protocols])
    # Python takes a path alone: this file is in memory.
    descriptor = os.memfd_create("litefs_django certificate", os.MFD_CLOEXEC)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(identity.shown.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


def peer_name(connection: ssl.SSLObject | ssl.SSLSocket) -> str | None:
    """The name of the node at the other end, when the handshake is done; None when it speaks something else."""
    if connection.selected_alpn_protocol() not in PROTOCOLS:
        return None
    shown: Any = connection.getpeercert() or {}
    names: Iterable[tuple[str, str]] = shown.get("subjectAltName", ())
    return next((text.removeprefix(NODE) for kind, text in names if kind == "URI" and text.startswith(NODE)), None)
