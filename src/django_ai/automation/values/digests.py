"""Short keys: digests for unique constraints, equal on every machine and database, and random keys for calls to
external systems."""

from __future__ import annotations

import secrets
from hashlib import blake2b

KEY_LENGTH = 32


def new_call_key() -> str:
    """Return 32 random hex digits, from which a row's ``idempotency_key`` is built.

    Not the primary key: it repeats in other databases and after a restore of a backup. A payment provider would then
    mistake a new charge for one that it has already made.
    """
    return secrets.token_hex(KEY_LENGTH // 2)


def digest(*parts: object) -> str:
    """Return 32 hex digits for ``parts`` (128 bits: no two of a billion rows collide).

    Hashed, because MariaDB compares strings case-insensitively and limits the length of an index.
    """
    # With their lengths, so that no part can contain the separator between two parts.
    text = "".join(f"{len(each)}:{each}" for each in map(str, parts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_LENGTH // 2).hexdigest()
