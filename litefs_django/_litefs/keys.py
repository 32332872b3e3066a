"""Keys from the cluster's secret, one for each purpose."""

from __future__ import annotations

import hmac


def derive_key(secret: str, purpose: str) -> bytes:
    """32 bytes by HKDF-SHA256 (RFC 5869) with no salt: one block is enough for them."""
    extracted = hmac.digest(bytes(32), secret.encode(errors="surrogatepass"), "sha256")
    return hmac.digest(extracted, f"litefs_django {purpose}".encode() + b"\x01", "sha256")
