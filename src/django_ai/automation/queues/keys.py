"""Short keys for unique constraints: the same parts give the same key on every machine and database."""

from __future__ import annotations

from hashlib import blake2b

KEY_LENGTH = 32


def digest(*parts: object) -> str:
    """Return 32 hex digits for ``parts`` (128 bits: no two of a billion rows collide).

    Hashed, because MariaDB compares text without regard to case and limits the length of an index.
    """
    text = "\x1f".join(str(part) for part in parts)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_LENGTH // 2).hexdigest()
