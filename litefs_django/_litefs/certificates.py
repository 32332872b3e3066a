"""What the nodes know each other by: TLS certificates made from the cluster's secret, anew at each start.

Each secret is one certificate authority: its key is derived from the secret, so that all nodes have it and no file is
passed around. Each node makes itself a certificate with its name, which lies in RUN_PATH, for its user alone. Nothing
ends by itself: a clock that is wrong must not stop the replication. To end what a secret allows, change the secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from litefs_django._litefs.identity import NODE, Identity
from litefs_django._litefs.keys import derive_key

# "No well-defined expiration date": RFC 5280, 4.1.2.5.
_VALIDITY = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))


@lru_cache(maxsize=4)
def issue(name: str, secrets: Sequence[str]) -> Identity:
    """For the node of this name. The first secret signs its certificate; those of each one are accepted."""
    authorities = [Authority(secret) for secret in secrets]
    accepted = "".join(authority.certificate.public_bytes(Encoding.PEM).decode() for authority in authorities)
    return Identity(name=name, shown=authorities[0].issue(name), accepted=accepted)


class Authority:
    """The certificate authority that a secret is. `validity` is of all its certificates, first and last moment."""

    def __init__(self, secret: str, validity: tuple[datetime, datetime] = _VALIDITY) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derive_key(secret, "relay 1"))
        self._validity = validity
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "litefs_django")])
        self.certificate = (
            self._builder(self._key)
            .subject_name(self._name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, None)
        )

    def issue(self, name: str) -> str:
        """A new key and its certificate for the node of this name, as PEM."""
        key = Ed25519PrivateKey.generate()
        node = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NODE + name)])
        certificate = (
            self._builder(key)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(node, critical=False)
            .sign(self._key, None)
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return (private + certificate.public_bytes(Encoding.PEM)).decode()

    def _builder(self, key: Ed25519PrivateKey) -> x509.CertificateBuilder:
        first, last = self._validity
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            # Which of several authorities has signed: they have one name.
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
