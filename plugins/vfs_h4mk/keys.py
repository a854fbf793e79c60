"""Keys from a file of the user, the mask and the cipher they open. Never logged, never in an error.

The file (`[plugin.h4mk] keys`, readable by its owner alone) has a table for each pattern of paths:

    ["games/*.h4mk"]
    master_key = "00112233445566778899aabbccddeeff"
    shared_secret = "..."
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import struct
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from vfs import ConfigError, Damaged

PRODUCT = "HarmonyØ4".encode()
#: "H4LC3", the length of the suite's name, and the name: every encrypted block begins with these.
SUITE = b"H4-LIVING-AESGCM-HKDF-SHA256-v3"
CIPHER_MAGIC = b"H4LC3" + bytes([len(SUITE)]) + SUITE
#: The header of an encrypted block: magic, u64 counter, transcript, u8 flags; and a public key where flag 1.
_HEADER, _PUBLIC = len(CIPHER_MAGIC) + 8 + 32 + 1, 32
_TAG = 16
#: Chain keys are kept at every so many blocks: the way from one to any block is short.
_KEPT_EVERY = 256
LEAST_KEY = 16


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys for one path. Not shown when printed."""

    master_key: bytes | None = field(default=None, repr=False)
    shared_secret: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Keys by pattern of paths, in the order of the file: the first that fits counts."""

    tables: Mapping[str, Keys] = field(default_factory=dict, repr=False)

    def of(self, path: str) -> Keys:
        """The keys for a path; none where no pattern fits."""
        return next((keys for pattern, keys in self.tables.items() if fnmatchcase(path, pattern)), Keys())


def read_keys(path: Path) -> KeyFile:
    """The key file. Raises ConfigError naming file and key, never a value."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{path}: others can read it (mode {mode:04o}): chmod 600 {path}")
            told = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"{path}: not a TOML file") from None
    return KeyFile({pattern: _table(path, pattern, table) for pattern, table in told.items()})


def _table(path: Path, pattern: str, table: Any) -> Keys:
    if not isinstance(table, dict):
        raise ConfigError(f'{path}: {pattern} is no table: write ["{pattern}"] and the keys below it')
    found: dict[str, bytes] = {}
    for name, value in table.items():
        if name not in ("master_key", "shared_secret"):
            raise ConfigError(
                f"{path}: {pattern}: unknown key {name}: master_key and shared_secret are known"
            )
        try:
            found[name] = bytes.fromhex(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{path}: {pattern}: {name} is not written in hex") from None
        if len(found[name]) < LEAST_KEY:
            raise ConfigError(f"{path}: {pattern}: {name} has less than {LEAST_KEY} bytes")
    return Keys(**found)


def hkdf(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt."""
    key = hmac.digest(bytes(32), secret, "sha256")
    made, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        made += block
    return made[:length]


def unmask(data: bytes, master_key: bytes, index: int) -> bytes:
    """The block without its mask, which is put on before compression. A wrong key cannot be noticed."""
    key = hkdf(master_key, PRODUCT + b"|Mask|v1|%d" % index)
    stream = b"".join(hashlib.sha256(key + struct.pack(">I", n)).digest() for n in range(-(-len(data) // 32)))
    mask = np.frombuffer(stream, np.uint8, len(data))
    return np.bitwise_xor(np.frombuffer(data, np.uint8), mask).tobytes()


@dataclass(eq=False)
class Ratchet:
    """The chain of keys of one encrypted container: block k needs k + 1 steps, no other block's bytes.

    Of a late block that is seconds of work: to be asked in threads, of which it serves several.
    """

    secret: bytes = field(repr=False)
    _kept: list[bytes] = field(default_factory=list, repr=False)  # chain keys of blocks 0, _KEPT_EVERY, ...
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def message_key(self, index: int) -> bytes:
        """The key of one block."""
        return hkdf(self._chain_key(index), SUITE + b"|ratchet|mk|" + struct.pack(">Q", index))

    def _chain_key(self, index: int) -> bytes:
        number = index // _KEPT_EVERY
        with self._turn:
            if not self._kept:
                root = hkdf(self.secret, PRODUCT + b"|LivingCipher|v3|root")
                self._kept.append(hkdf(root, PRODUCT + b"|LivingCipher|v3|ck_send"))
            while len(self._kept) <= number:
                last = (len(self._kept) - 1) * _KEPT_EVERY
                self._kept.append(_stepped(self._kept[-1], last, last + _KEPT_EVERY))
            key = self._kept[number]
        return _stepped(key, number * _KEPT_EVERY, index)


def _stepped(key: bytes, at: int, index: int) -> bytes:
    """The chain key of block `index`, from that of block `at` before it."""
    for number in range(at, index):
        key = hkdf(key, SUITE + b"|ratchet|ck|" + struct.pack(">Q", number))
    return key


def is_encrypted(payload: bytes) -> bool:
    """By its first bytes, whatever META says."""
    return payload.startswith(CIPHER_MAGIC)


def decrypt(payload: bytes, ratchet: Ratchet, index: int, meta: Mapping[str, Any]) -> bytes:
    """The run-length code of an encrypted block. Raises Damaged: another key, or another block's bytes."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if not is_encrypted(payload) or len(payload) < _HEADER + _TAG:
        raise Damaged(f"block {index} has no cipher header")
    length = _HEADER + (_PUBLIC if payload[_HEADER - 1] & 1 else 0)
    key = ratchet.message_key(index)
    nonce = hkdf(key, b"nonce|" + struct.pack(">Q", index), 12)
    try:
        return AESGCM(key).decrypt(nonce, payload[length:], _context(meta, index) + payload[:length])
    except InvalidTag:
        raise Damaged(f"block {index} does not decrypt: another key, or damaged bytes") from None


def _context(meta: Mapping[str, Any], index: int) -> bytes:
    """What the tag of a block also covers, besides its header."""
    told = meta.get("compression")
    compression = told if isinstance(told, dict) else {}
    parts = (
        "H4MK",
        compression.get("engine_id", "unknown"),
        compression.get("fingerprint", "unknown"),
        hashlib.sha256(b"temp").hexdigest(),
        meta.get("track_id") or "unknown",
        meta.get("pts_us") or 0,
        index,
    )
    return "|".join(map(str, parts)).encode("utf-8", "surrogatepass")
