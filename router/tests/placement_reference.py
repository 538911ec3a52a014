"""Writes placement.tsv: the method of docs/adr/0009-placement.md a second time, in exact integers, so that the answers
are not made by the code that they check. Needs the Python package `xxhash`.

    python3 router/tests/placement_reference.py > router/tests/placement.tsv
"""

import xxhash

FRACTION = 32
SETS = {
    "three": [(f"gateway-{i}", 1) for i in range(3)],
    "weighted": [("a", 1), ("b", 2), ("c", 3), ("d", 20000), ("e", 19998), ("f", 4294967295)],
    "fifty": [(f"gateway-{i}.gateway.live.svc.cluster.local", 1 + i % 2) for i in range(50)],
    "addresses": [("10.0.0.1:8000", 1), ("10.0.0.2:8000", 1), ("[fd00::1]:8000", 1), ("né:1", 1)],
}
KEYS = ["", "a", "room-1", "room-2", "user:42", "8.8.8.8", "2001:db8::1", "grüße", "k" * 300] + [f"key-{i}" for i in range(20)]


def log2(mantissa):
    """Of a number in [1, 2) with 63 bits after the point."""
    log = 0
    for _ in range(FRACTION):
        mantissa = mantissa * mantissa >> 63
        log <<= 1
        if mantissa >> 64:
            log |= 1
            mantissa >>= 1
    return log


TABLE = [log2((256 + i) << 55) for i in range(256)] + [1 << FRACTION]


def negative_log2(value):
    value |= 1
    zeros = 64 - value.bit_length()
    below = (value << zeros) - (1 << 63)  # the mantissa's 63 bits after the point
    cell, inside = below >> 55, below >> 23 & 0xFFFFFFFF
    line = TABLE[cell] + ((TABLE[cell + 1] - TABLE[cell]) * inside >> 32)
    return ((zeros + 1) << FRACTION) - line


def cost(key, name, weight):
    pair = xxhash.xxh3_64_intdigest(key).to_bytes(8, "little") + xxhash.xxh3_64_intdigest(name).to_bytes(8, "little")
    return negative_log2(xxhash.xxh3_64_intdigest(pair)) * ((2**64 - 1) // weight) >> 39


for label, members in SETS.items():
    members = sorted((name.encode(), weight) for name, weight in members)
    for name, weight in members:
        print("member", label, name.decode(), weight, sep="\t")
    for key in KEYS:
        ranks = sorted((cost(key.encode(), name, weight), index) for index, (name, weight) in enumerate(members))
        print("order", label, key, " ".join(str(index) for _, index in ranks[:6]), sep="\t")
