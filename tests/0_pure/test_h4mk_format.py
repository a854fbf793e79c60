"""H4MK, pure: the run-length code, the chain of chunks, seek tables, the mask and the cipher."""

from __future__ import annotations

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vfs_h4mk import keys, tables
from vfs_h4mk.chunks import KERNEL, TRANSPORT, Chain, framing_of
from vfs_h4mk.codecs import REFERENCE
from vfs_h4mk.pack import Writer, export_meta, export_seeks
from vfs_h4mk.tables import Entry, Seeks

import vfs
from vfs import ConfigError, Damaged, NoMedia, TooBig, Unsupported

runs = st.lists(st.tuples(st.integers(0, 255), st.integers(1, 700)), max_size=40)
#: Bytes with long runs, as the code is made for, and any bytes.
data = st.one_of(st.binary(max_size=2000), runs.map(lambda r: b"".join(bytes([v]) * n for v, n in r)))


def slow_decode(payload: bytes) -> bytes:
    out = bytearray()
    for at in range(0, len(payload), 2):
        out += bytes([payload[at]]) * payload[at + 1]
    return bytes(out)


@given(data)
def test_decoding_gives_back_what_was_encoded(block: bytes) -> None:
    payload = REFERENCE.encode(block)
    assert REFERENCE.decode(payload, 1 << 20) == block == slow_decode(payload)
    assert REFERENCE.decoded_size(payload) == len(block)
    # Greedy: a run ends where the value changes or at 255.
    pairs = list(zip(payload[::2], payload[1::2], strict=True))
    assert all(run == 255 for (value, run), (other, _) in pairwise(pairs) if value == other)


@given(st.binary(max_size=600))
def test_any_bytes_decode_as_the_loop_does_or_are_damaged(payload: bytes) -> None:
    if len(payload) % 2:
        with pytest.raises(Damaged):
            REFERENCE.decode(payload, 1 << 20)
        return
    assert REFERENCE.decode(payload, 1 << 20) == slow_decode(payload)


def test_a_block_over_the_limit_is_refused_before_it_is_made() -> None:
    with pytest.raises(TooBig):
        REFERENCE.decode(b"\0\xff" * 1000, 1000)


def test_the_variants_are_told_apart() -> None:
    assert framing_of(b"H4MK\0\1\0\0") is TRANSPORT
    assert framing_of(b"H4MK\1\0\0\0") is KERNEL
    for head in (b"", b"H4MK", b"H4MX\0\1\0\0"):
        with pytest.raises(NoMedia):
            framing_of(head)
    with pytest.raises(Unsupported, match="version 2"):
        framing_of(b"H4MK\0\2\0\0")


def packed(blocks: list[bytes]) -> bytes:
    out = io.BytesIO()
    writer = Writer(out)
    for block in blocks:
        writer.block(block)
    writer.finish(export_seeks(writer.sizes, 25.0, 2), export_meta(0, 25.0, 2), {})
    return out.getvalue()


@given(
    st.lists(st.binary(max_size=300), max_size=12), st.lists(st.integers(1, 400), max_size=20), st.booleans()
)
def test_a_chain_is_the_same_however_it_is_fed_and_kept(
    blocks: list[bytes], steps: list[int], keep: bool
) -> None:
    body = packed(blocks)
    chain = Chain(TRANSPORT, len(body))
    for step in steps:
        before = len(chain)
        chain.feed(body[chain.next : chain.next + step], chain.next)
        if keep and len(chain) > before:
            chain = Chain.from_bytes(TRANSPORT, len(body), chain.to_bytes())
    chain.feed(body[chain.next :], chain.next)
    chain.feed(b"", chain.next)
    assert chain.ended
    assert chain.stuck is None
    assert len(chain.cores) == len(blocks)
    assert [c.tag for c in chain][len(blocks) :] == [b"SEEK", b"META", b"SAFE", b"VERI"]
    for index, block in enumerate(blocks):
        chunk = chain.block(index)
        assert REFERENCE.decode(body[chunk.payload : chunk.payload + chunk.size], 1 << 20) == block
        assert TRANSPORT.crc_fits(body[chunk.header : chunk.end])


@given(st.binary(max_size=200))
@example(b"\x00\x00\x00\x010")  # a head that is JSON, and no object
@example(b"\x0d\x00\x00\x00" + b'{"lengths":1}')
def test_a_kept_chain_that_is_none_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError):
        Chain.from_bytes(TRANSPORT, 1000, junk)


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=30),
    st.integers(0, 2**64),
)
def test_a_seek_finds_the_last_entry_at_or_before(rows: list[tuple[int, int]], t: int) -> None:
    payload = struct.pack(">I", len(rows)) + b"".join(struct.pack(">QQ", *row) for row in rows) + b"tail"
    seeks = tables.parse_seek(payload)
    assert seeks is not None
    assert [(e.pts_us, e.offset) for e in seeks.entries] == rows
    found = seeks.at(t)
    if not rows:
        assert found is None
        return
    assert found is not None
    entry, before = found
    older = [(pts, n) for n, (pts, _) in enumerate(rows) if pts <= t]
    if older:
        assert (entry.pts_us, entry.index, before) == (*max(older), False)
    else:
        assert (entry.index, before) == (min(range(len(rows)), key=lambda n: rows[n][0]), True)


def test_a_table_that_says_more_than_it_holds_is_none() -> None:
    assert tables.parse_seek(struct.pack(">I", 0xFFFFFFFF) + bytes(64)) is None
    assert tables.parse_seek(b"\0\0") is None


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=12), st.integers(0, 60))
def test_offsets_map_to_the_first_block_with_bytes_there(sizes: list[int], offset: int) -> None:
    import numpy as np

    known = sizes[: sizes.index(-1)] if -1 in sizes else sizes
    mapped = (
        tables.map_offsets(Seeks((Entry(0, 0, offset),)), np.array(sizes, np.int64), {}, len(sizes))
        .entries[0]
        .block
    )
    starts = [sum(known[:n]) for n in range(len(known))]
    expected = [n for n, size in enumerate(known) if starts[n] <= offset < starts[n] + size]
    assert mapped == (expected[0] if expected else None)


@pytest.mark.parametrize("text", [b"[]", b"\xff\xfe", b"{" * 100_000, b"1e999", b""])
def test_json_that_is_none_is_told_by_its_length(text: bytes) -> None:
    value = tables.parse_json(text)
    assert tables.is_raw(value) or value in ([], float("inf"))


# -- keys ---------------------------------------------------------------------------------------------------


def test_hkdf_is_that_of_rfc_5869() -> None:
    """Test case 3 of the RFC: no salt, no info."""
    made = keys.hkdf(bytes([0x0B]) * 22, b"", 42)
    assert made.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def encrypted(plain: bytes, ratchet: keys.Ratchet, index: int) -> bytes:
    """A block as the cipher writes it."""
    import hashlib

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    header = keys.CIPHER_MAGIC + struct.pack(">Q", index) + bytes(32)
    header += b"\1" + bytes(32) if index % 4 == 0 else b"\0"
    key = ratchet.message_key(index)
    nonce = keys.hkdf(key, b"nonce|" + struct.pack(">Q", index), 12)
    temp = hashlib.sha256(b"temp").hexdigest()
    aad = f"H4MK|unknown|unknown|{temp}|unknown|0|{index}".encode() + header
    return header + AESGCM(key).encrypt(nonce, plain, aad)


@pytest.mark.parametrize("index", [0, 1, 4, 255, 256, 1000])
def test_an_encrypted_block_opens_with_its_key_alone(index: int) -> None:
    secret = b"obviously a fake"
    payload = encrypted(b"plain bytes", keys.Ratchet(secret), index)
    assert keys.is_encrypted(payload)
    assert keys.decrypt(payload, keys.Ratchet(secret), index, {}) == b"plain bytes"
    with pytest.raises(Damaged, match="does not decrypt"):
        keys.decrypt(payload, keys.Ratchet(b"another fake key"), index, {})
    with pytest.raises(Damaged):
        keys.decrypt(payload[:-1], keys.Ratchet(secret), index, {})
    with pytest.raises(Damaged, match="no cipher header"):
        keys.decrypt(payload[:50], keys.Ratchet(secret), index, {})


@given(st.binary(max_size=500), st.integers(0, 2**32))
def test_the_mask_is_its_own_inverse_and_another_for_each_block(block: bytes, index: int) -> None:
    key = b"obviously a fake"
    assert keys.unmask(keys.unmask(block, key, index), key, index) == block
    if len(block) > 16:
        assert keys.unmask(block, key, index) != keys.unmask(block, key, index + 1)


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    os.chmod(path, mode)
    return path


def test_keys_are_found_by_pattern(tmp_path: Path) -> None:
    fake = "00" * 16
    found = keys.read_keys(
        key_file(tmp_path, f'["games/*.h4mk"]\nmaster_key = "{fake}"\n["*"]\nshared_secret = "{fake}"\n')
    )
    assert found.of("games/x.h4mk").master_key == bytes(16)
    assert found.of("games/x.h4mk").shared_secret is None
    assert found.of("other.h4mk").shared_secret == bytes(16)
    assert "00000" not in repr(found)
    assert "00000" not in repr(found.of("other.h4mk"))


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("", 0o644, "chmod 600"),
        ("x = ", 0o600, "not a TOML file"),
        ('["a"]\nother = "00"', 0o600, "unknown key other"),
        ('["a"]\nmaster_key = "zz"', 0o600, "not written in hex"),
        ('["a"]\nmaster_key = "00"', 0o600, "less than 16 bytes"),
        ('a = "00"', 0o600, "is no table"),
    ],
)
def test_a_key_file_with_a_mistake_is_refused_without_telling_it(
    tmp_path: Path, text: str, mode: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        keys.read_keys(key_file(tmp_path, text, mode))


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    from vfs_h4mk.options import Options

    def load(**table: object) -> Options:
        return Options.load(vfs.Settings.from_dict({"plugin": {"h4mk": table}}), {})

    assert load().max_block_size == 10 << 20
    assert load(verify_integrity=False).verify_integrity is False
    told = Options.load(vfs.Settings(), {"HARMONY_CACHE_MB": "64", "HARMONY_VERIFY_INTEGRITY": "no"})
    assert (told.block_cache_mb, told.verify_integrity) == (64, False)
    for table, words in (
        ({"max_block_size": "big"}, "not a whole number"),
        ({"verify_integrity": "maybe"}, "neither yes nor no"),
        ({"other": 1}, "unknown key other"),
        ({"keys": str(tmp_path / "none.toml")}, "No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(**table)


def test_the_writers_chunks_are_those_of_the_format() -> None:
    body = packed([b"\1" * 300])
    assert body[:8] == b"H4MK\0\1\0\0"
    assert body[8:20] == b"CORE" + struct.pack(">II", 4, zlib.crc32(b"\1\xff\1\x2d"))


def test_keys_of_blocks_are_asked_for_by_several_threads() -> None:
    """In any order, from any thread, the same as one after the other."""
    secret, wanted = b"obviously a fake", [5000, 3, 2560, 255, 256, 4999, 0, 1, 3000, 512]
    one = keys.Ratchet(secret)
    expected = [one.message_key(index) for index in sorted(wanted)]
    shared = keys.Ratchet(secret)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            made = dict(zip(wanted, threads.map(shared.message_key, wanted), strict=True))
            assert [made[index] for index in sorted(wanted)] == expected


def test_what_a_container_says_of_its_engine_may_be_any_text() -> None:
    payload = encrypted(b"plain", keys.Ratchet(b"obviously a fake"), 0)
    with pytest.raises(Damaged, match="does not decrypt"):
        keys.decrypt(payload, keys.Ratchet(b"obviously a fake"), 0, {"compression": {"engine_id": "\ud800"}})
