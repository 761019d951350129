"""Mutations by seed: of bytes, of JSON by its structure, of npy headers, of tar headers and of index arrays."""

from __future__ import annotations

import json
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.forgery import Forgery, seal_manifest

CANARY = Path("/tmp/dynaclr-wds-canary-of-the-hostile-set")
"""What every hostile payload would make, if it were ever run."""


class Bomb:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(CANARY)!r}, 'w').close()",)


PICKLE = pickle.dumps(Bomb())
CODE = f"__import__('os').system('touch {CANARY}')"

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, -7, 255, 256, 1 << 15, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32, 1 << 40, (1 << 62) + 1),
    *((1 << 63) - 1, -(1 << 63), 1 << 63, 1 << 64, 10**30, 10**400, -(10**400)),
    *(0.5, -0.5, 1e-300, 1e300, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
)
TEXTS = (
    *(
        "",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "C:\\x",
        "\\\\host\\x",
        "~",
        "a\0b",
        "\ud800",
    ),
    *("x" * 300, "x" * 100_000, "a/" * 400 + "b", "pipe:touch x", "file:///etc/passwd", "s3://bucket/x", "%2e%2e/x"),
    *(
        "!!python/object/apply:os.system [x]",
        "{0.__class__}",
        "$(touch x)",
        "`touch x`",
        "\x1b[2J",
        "e\u0301",
        "experiment0",
    ),
    *(
        "O",
        "|O",
        "<u2",
        ">u2",
        "(2,)i4",
        "i4,f8",
        "V8",
        "<M8[s]",
        "(" * 300,
        "9" * 5000 + "i4",
        "[('a', 'O')]",
        CODE,
        "NaN",
    ),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": []}})


def draw_value(rng: random.Random) -> Any:
    """Draw a value that nobody should trust."""
    return rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS)))


def mutate_bytes(rng: random.Random, data: bytes, snippets: tuple[bytes, ...] = ()) -> bytes:
    """Flip, cut, repeat, remove, insert or replace bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 2, 8, 64, 512, 4096))
        kind = rng.randrange(7)
        if kind == 0 and out:
            for _ in range(rng.choice((1, 4, 32))):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = out[at : at + size]
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at : at + size] = rng.randbytes(min(size, len(out) - at))
        elif kind == 5:
            out[at : at + size] = bytes([rng.choice((0, 255, 32, 57))]) * min(size, len(out) - at)
        else:
            piece = rng.choice(snippets or (PICKLE, b"\x80\x04.", b"../../", b"NaN", b"-1", b"\0" * 8, b"9" * 30))
            out[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
    return bytes(out)


def list_places(value: Any, rng: random.Random, depth: int = 0) -> tuple[Any, Any] | None:
    """Draw a container of a JSON value and a key of it; small depths as likely as large ones."""
    if not isinstance(value, dict | list) or not value:
        return None
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    deeper = list_places(value[key], rng, depth + 1) if rng.random() < 0.8 else None
    return deeper or (value, key)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Change a JSON value in place: replace, remove, add, repeat, exchange or nest."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = list_places(value, rng)
        if place is None:
            return draw_value(rng)
        parent, key = place
        kind = rng.randrange(9)
        if kind <= 3:
            parent[key] = draw_value(rng)
        elif kind == 4 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] += rng.choice((1, -1, 1 << 31, 1 << 62, -(1 << 62)))
        elif kind == 5:
            del parent[key]
        elif kind == 6:
            if isinstance(parent, list):
                parent.insert(key, json.loads(json.dumps(parent[key])))
            else:
                parent[rng.choice(TEXTS)] = draw_value(rng)
        elif kind == 7:
            other = list_places(value, rng)
            if other is not None:
                parent[key] = json.loads(json.dumps(other[0][other[1]]))
        elif isinstance(parent, list):
            rng.shuffle(parent)
        else:
            parent[key] = [parent[key]]
    return value


JSON_SNIPPETS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'"\\ud800"',
    b"\xff",
    b'"a":1,"a":2',
)


def change_manifest(rng: random.Random, forged: Forgery) -> None:
    """Change the manifest by its structure, with a checksum that fits, or its bytes."""
    kind = rng.random()
    if kind < 0.7:
        changed = mutate_json(rng, forged.manifest)
        forged.raw, forged.sealed = seal_manifest(changed), True
    elif kind < 0.9:
        forged.raw = mutate_bytes(rng, seal_manifest(forged.manifest), JSON_SNIPPETS)
    else:
        text = seal_manifest(forged.manifest).decode()
        key = rng.choice(list(forged.manifest))
        forged.raw = text.replace("{", '{"' + key + '": ' + json.dumps(draw_value(rng)) + ",", 1).encode()


def change_array(rng: random.Random, forged: Forgery) -> None:
    """Change the values of an array of the index, its dtype, order or shape."""
    path = rng.choice([path for path in forged.files if path.endswith(".npy")])
    name = Path(path).stem
    values = forged.array(name)
    kind = rng.randrange(10)
    if kind <= 5:
        flat = values.reshape(-1)
        for _ in range(rng.choice((1, 1, 2, 8, max(len(flat), 1)))):
            if len(flat):
                flat[rng.randrange(len(flat))] = draw_number(rng, values.dtype)
    elif kind == 6:
        values = np.random.default_rng(rng.randrange(1 << 30)).permutation(values)
    elif kind == 7:
        values = rng.choice((values[:-1], values[1:], np.repeat(values, 2, 0), values[::-1].copy(), values[:0]))
    elif kind == 8:
        other = rng.choice(("<f8", ">i4", "<i8", "<u4", "<c16", "|b1", "<U3", "|S2", "O", "<M8[s]", "i4,f8"))
        values = np.zeros(values.shape, other)
    else:
        values = rng.choice((np.asfortranarray(values), values[None], values.reshape(-1, 1), np.array(Bomb(), object)))
    forged.put_array(name, values)


def draw_number(rng: random.Random, dtype: np.dtype[Any]) -> Any:
    """Draw a number that a dtype can hold."""
    if dtype.kind == "f":
        return rng.choice((0.0, -1.0, 1e30, np.nan, np.inf, -np.inf))
    if dtype.kind == "b":
        return rng.random() < 0.5
    limits = np.iinfo(dtype)
    value = rng.choice(
        (0, 1, -1, rng.randrange(100), limits.max, limits.min, limits.max // 2 + 1, limits.max // 2, 512)
    )
    return min(max(value, limits.min), limits.max)


HEADERS = (
    "{{'descr': {d}, 'fortran_order': False, 'shape': {s}, }}",
    "{{'descr': {d}, 'fortran_order': True, 'shape': {s}}}",
    "{{'shape': {s}, 'descr': {d}, 'fortran_order': False}}",
    "{{'descr': {d}, 'fortran_order': 0, 'shape': {s}, 'x': 1}}",
    "{{'descr': {d}, 'fortran_order': False, 'shape': {s}, 'shape': (1,)}}",
    "{c}",
    "{{'descr': {c}, 'fortran_order': False, 'shape': {s}}}",
)
DESCRS = (
    "'<u2'",
    "'|O'",
    "'<i4'",
    "'>i4'",
    "'<f4'",
    "[('a', '|O')]",
    "'<U9999999'",
    "'V2147483647'",
    "('<i4', (1 << 40,))",
    "'i4,'*99",
)
SHAPES = (
    *("(-1,)", "(1 << 62,)", f"({1 << 62}, 4)", "(0,)", "(" + "1," * 40 + ")", "(nan,)", "(1e9,)", "('1',)", "(True,)"),
    *(
        "(" * 3000 + ")" * 3000,
        "[" * 90 + "]" * 90,
        "(9" + "9" * 5000 + ",)",
        "(1,1,8,8)",
        "(4611686018427387904,2,2,2)",
    ),
)
CODES = (
    CODE,
    "-" * 9000 + "1",
    "{" * 9000,
    "[" * 9000,
    "'\\" + "x" * 50,
    "1 if 1 else 2",
    "(lambda: 1)()",
    "\\x00",
    "9" * 6000,
    " " * 60_000,
)


def make_npy(rng: random.Random, data: bytes) -> bytes:
    """Write an npy file whose header says what it should not, before some data."""
    text = rng.choice(HEADERS).format(d=rng.choice(DESCRS), s=rng.choice(SHAPES), c=rng.choice(CODES))
    head = text.encode("latin-1") + b"\n"
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    length = rng.choice((len(head), len(head), len(head), 0, 65535, len(head) + 1))
    size = min(length, 65535).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return (
        rng.choice((b"\x93NUMPY", b"\x93NUMPY", b"\x93NUMPY", b"PK\x03\x04xx", PICKLE[:6]))
        + version
        + size
        + head
        + data
    )


def change_npy(rng: random.Random, forged: Forgery) -> None:
    """Give an array of the index, or a patch of a shard, another header."""
    if rng.random() < 0.6:
        path = rng.choice([path for path in forged.files if path.endswith(".npy")])
        data = forged.files[path]
        forged.put(path, make_npy(rng, data[128:]) if rng.random() < 0.7 else mutate_bytes(rng, data))
        return
    path, members = split_tar(rng, forged)
    number = rng.choice([n for n, (info, _) in enumerate(members) if info.name.endswith(".npy")])
    info, data = members[number]
    members[number] = (info, make_npy(rng, data[128:]))
    forged.put(path, join_tar(members))


def split_tar(rng: random.Random, forged: Forgery) -> tuple[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Choose a shard, and take it apart."""
    path = rng.choice([path for path in forged.files if path.endswith(".tar")])
    data, members, at = forged.files[path], [], 0
    while data[at : at + 512].strip(b"\0"):
        info = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "strict")
        members.append((info, data[at + 512 : at + 512 + info.size]))
        at += 512 + -(-info.size // 512) * 512
    return path, members


def join_tar(members: list[tuple[tarfile.TarInfo, bytes]], size: int | None = None) -> bytes:
    """Put a shard together; sizes of members are those of their data unless `size` is that of the last header."""
    parts = []
    for info, data in members:
        info.size = len(data) if size is None else size
        parts.append(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    whole = b"".join(parts) + bytes(1024)
    return whole + bytes(-len(whole) % 10240)


TYPES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
TYPES += (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_SPARSE,
    tarfile.CONTTYPE,
    b"\xff",
    b"Z",
)
NAMES = (
    "../x.json",
    "/etc/x.json",
    "a/../../x.000.npy",
    "x.pkl",
    "x.pickle",
    "x.pyd",
    "x.pth",
    "x.npz",
    ".json",
    "x",
    "x.json\n",
    "\udcff.json",
)


def change_tar(rng: random.Random, forged: Forgery) -> None:
    """Change a shard: bytes, headers of members (with checksums that fit), members themselves."""
    kind = rng.randrange(8)
    if kind <= 1:
        path = rng.choice([path for path in forged.files if path.endswith(".tar")])
        forged.put(path, mutate_bytes(rng, forged.files[path]))
        return
    path, members = split_tar(rng, forged)
    number = rng.randrange(len(members))
    info = members[number][0]
    if kind == 2:
        info.type, info.linkname = rng.choice(TYPES), rng.choice(("", "/etc/passwd", "../../x"))
    elif kind == 3:
        info.name = rng.choice(NAMES)
    elif kind == 4:
        info.name = info.name.rpartition(".")[0] + rng.choice((".pkl", ".pickle", ".pyd"))
        members[number] = (info, PICKLE)
    elif kind == 5:
        rng.shuffle(members)
    elif kind == 6:
        members = rng.choice((members[:number], members[number:], members[: number + 1] * 2, []))
    else:
        whole = bytearray(join_tar(members))
        at = sum(512 + -(-len(d) // 512) * 512 for _, d in members[:number])
        sizes = (
            b"77777777777\0",
            b"-0000000001\0",
            b"\x80" + bytes(3) + b"\x7f" * 8,
            b"\xff" * 12,
            b"zzzzzzzzzzz\0",
            bytes(12),
        )
        whole[at + 124 : at + 136] = rng.choice(sizes)
        fixed = sum(whole[at : at + 148]) + 8 * 32 + sum(whole[at + 156 : at + 512])
        whole[at + 148 : at + 156] = b"%06o\0 " % fixed
        forged.put(path, bytes(whole))
        return
    forged.put(path, join_tar(members))


def change_clip(rng: random.Random, forged: Forgery) -> None:
    """Change the JSON of a clip, where the index says that it is."""
    path, members = split_tar(rng, forged)
    number = rng.choice([n for n, (info, _) in enumerate(members) if info.name.endswith(".json")])
    info, data = members[number]
    if rng.random() < 0.8:
        changed = json.dumps(mutate_json(rng, json.loads(data))).encode()
    else:
        changed = mutate_bytes(rng, data, JSON_SNIPPETS)
    room = -(-len(data) // 512) * 512
    members[number] = (info, changed.ljust(len(data)) if len(changed) <= room else changed)
    forged.put(path, join_tar(members))


def change_table(rng: random.Random, forged: Forgery) -> None:
    """Change the bytes of a Parquet table."""
    path = rng.choice([path for path in forged.files if path.endswith(".parquet")])
    data = forged.files[path]
    if rng.random() < 0.3:  # of its description, which is at the end
        cut = max(len(data) - 2500, 4)
        forged.put(path, data[:cut] + mutate_bytes(rng, data[cut:-8]) + data[-8:])
    else:
        forged.put(path, mutate_bytes(rng, data))


KINDS: dict[str, Callable[[random.Random, Forgery], None]] = {
    "manifest": change_manifest,
    "array": change_array,
    "npy": change_npy,
    "tar": change_tar,
    "clip": change_clip,
    "table": change_table,
}
"""What is changed → how."""
