"""Short keys: for unique constraints, where the same parts give the same key on every machine and database; and random
ones for calls to the outside."""

from __future__ import annotations

import secrets
from hashlib import blake2b

KEY_LENGTH = 32


def new_call_key() -> str:
    """Return 32 random hex digits: what a row's ``idempotency_key`` is made of.

    Not its primary key, which comes again in other databases and after a backup was restored: a payment provider would
    then take another charge for one that it has made.
    """
    return secrets.token_hex(KEY_LENGTH // 2)


def digest(*parts: object) -> str:
    """Return 32 hex digits for ``parts`` (128 bits: no two of a billion rows collide).

    Hashed, because MariaDB compares text without regard to case and limits the length of an index.
    """
    # With their lengths, so that no text in one part can pass for the border between two.
    text = "".join(f"{len(each)}:{each}" for each in map(str, parts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_LENGTH // 2).hexdigest()
