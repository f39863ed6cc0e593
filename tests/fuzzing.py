"""How many inputs a fuzzer makes, and the usual way to make them."""

import os


def inputs(few):
    """`few`, or the number in VFNET_FUZZ: `make fuzz N=10000`."""
    return int(os.environ.get("VFNET_FUZZ") or few)


def mutated(data, rng):
    """Bytes with one to three changes: a bit, a byte, a part left out or put in.

    Args:
        data: bytes.
        rng: `random.Random`.
    """
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        place, length = rng.randrange(len(data)), rng.choice((1, 2, 8, 40))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            other = rng.randrange(len(data))
            data[place:place] = data[other : other + length]
        else:
            data[place:place] = rng.choice((b"9" * 30, b"[" * 300, b"-", b"e99", b'"'))
    return bytes(data)
