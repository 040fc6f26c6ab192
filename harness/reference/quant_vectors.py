"""Makes tests/data/quant_vectors.txt: stored blocks and the weights they stand for, by the `gguf` package's own decoders
(but for Q8_K, which it has none for: there a weight is the block's single times a byte, as numpy multiplies singles).

    python3 -m venv venv && venv/bin/pip install -r harness/reference/requirements.txt
    venv/bin/python harness/reference/quant_vectors.py > tests/data/quant_vectors.txt

A line "type" for each tensor type there is: its number in files, its name, weights and bytes of a block.
Then one line a vector: the type, the stored bytes in hex, and the weights as little-endian 32-bit floats in hex ("nan" stands for
any weight that is not a number, since the bits of those differ between machines). The output is the same on every run.
"""

import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Halves where decoders go wrong: both zeros, the smallest and the largest subnormal, the smallest normal, one, neighbours of one
# (their products with a quant have the most significant bits), the largest and the infinities.
SCALES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x3C01, 0x3BFF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00]
# Halves as minima: those that the addition must round against a large product, and those that cancel it.
MINIMA = [0x0000, 0x8000, 0x0001, 0x83FF, 0xC800, 0x2E66, 0xFBFF, 0x7C00]


# Of them those that a superblock is tried with, beside scales for each of its groups.
SUPER_SCALES = [0x8000, 0x0001, 0x83FF, 0x3C01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00]


def half(bits: int) -> bytes:
    return int(bits).to_bytes(2, "little")


def nibbles(rng: np.random.Generator) -> bytes:
    """16 bytes in which both halves of a byte take all 16 values, in an order of their own each."""
    low, high = rng.permutation(16), rng.permutation(16)
    return (low | high << 4).astype(np.uint8).tobytes()


def random_half(rng: np.random.Generator) -> bytes:
    """A finite half, any of them."""
    while True:
        bits = int(rng.integers(0, 1 << 16))
        if bits & 0x7C00 != 0x7C00:
            return half(bits)


def q4_0(rng):
    for scale in SCALES:
        yield half(scale) + nibbles(rng)
    for value in range(16):
        yield half(0x2E66) + bytes([value | value << 4]) * 16
    for _ in range(8):
        yield random_half(rng) + rng.bytes(16)


def q4_1(rng):
    for scale in SCALES:
        for minimum in MINIMA if scale in (0x8000, 0x8001, 0x3C01, 0x7BFF) else MINIMA[:2]:
            yield half(scale) + half(minimum) + nibbles(rng)
    for _ in range(24):
        yield random_half(rng) + random_half(rng) + rng.bytes(16)


def q8_0(rng):
    every_byte = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for quants in every_byte:
        yield half(0x3C01) + quants.tobytes()
    extremes = bytes([0x80, 0x81, 0xFF, 0x00, 0x01, 0x7F, 0x40, 0xC0]) * 4
    for scale in SCALES:
        yield half(scale) + extremes
    for _ in range(8):
        yield random_half(rng) + rng.bytes(32)


def f16(rng):
    values = SCALES + [0x3555, 0x7BFE, 0x0200, 0x8200] + [int(x) for x in rng.integers(0, 0x7C00, 364) | rng.integers(0, 2, 364) << 15]
    for start in range(0, len(values), 32):
        yield b"".join(half(x) for x in values[start : start + 32])


def f32(_):
    values = [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x3F800001, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000]
    yield b"".join(x.to_bytes(4, "little") for x in values)


def bf16(rng):
    values = [0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x3F80, 0x3F81, 0xBF7F, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x387F]
    yield b"".join(half(x) for x in values + [int(x) for x in rng.integers(0, 1 << 16, 370)])


def five_bits(rng: np.random.Generator) -> bytes:
    """The fifth bits and the nibbles of 32 quants in which all values occur once."""
    quants = rng.permutation(32).astype(np.uint8)
    return np.packbits(quants >> 4, bitorder="little").tobytes() + (quants[:16] & 15 | (quants[16:] & 15) << 4).tobytes()


def q5_0(rng):
    for scale in SCALES:
        yield half(scale) + five_bits(rng)
    for _ in range(64):
        yield random_half(rng) + five_bits(rng)


def q5_1(rng):
    for scale in SCALES:
        for minimum in MINIMA if scale in (0x8000, 0x8001, 0x3C01, 0x7BFF) else MINIMA[:2]:
            yield half(scale) + half(minimum) + five_bits(rng)
    for _ in range(64):
        yield random_half(rng) + random_half(rng) + five_bits(rng)


def every_byte(rng: np.random.Generator, n: int):
    """Pieces of n bytes in which all 256 bytes occur."""
    all_bytes = rng.permutation(256).astype(np.uint8).tobytes() + rng.bytes(-256 % n)
    return [all_bytes[start : start + n] for start in range(0, len(all_bytes), n)]


def q2_k(rng):
    for scales in every_byte(rng, 16):
        yield scales + rng.bytes(64) + half(0x3C01) + half(0x2E66)
    for d in SUPER_SCALES:
        for dmin in (0x0000, 0x3BFF):
            yield rng.bytes(16 + 64) + half(d) + half(dmin)
    for dmin in SUPER_SCALES:
        yield rng.bytes(16 + 64) + random_half(rng) + half(dmin)


def q3_k(rng):
    for scales in every_byte(rng, 12):
        yield rng.bytes(32 + 64) + scales + half(0x3C01)
    for d in SUPER_SCALES:
        yield rng.bytes(32 + 64 + 12) + half(d)


def q4_k(rng, quants=128):
    for scales in every_byte(rng, 12):
        yield half(0x3C01) + half(0x2E66) + scales + rng.bytes(quants)
    for d in SUPER_SCALES:
        yield half(d) + half(0x0000) + rng.bytes(12 + quants)
    for dmin in SUPER_SCALES:
        yield random_half(rng) + half(dmin) + rng.bytes(12 + quants)


def q5_k(rng):
    yield from q4_k(rng, 32 + 128)


def q6_k(rng):
    for scales in every_byte(rng, 16):
        yield rng.bytes(128 + 64) + scales + half(0x3C01)
    for quants in (b"\x00" * 192, b"\xff" * 192):
        yield quants + bytes([0x80, 0x81, 0xFF, 0x00, 0x01, 0x7F, 0x40, 0xC0]) * 2 + half(0xBBFF)
    for d in SUPER_SCALES:
        yield rng.bytes(128 + 64 + 16) + half(d)


def q8_k(rng):
    singles = [0x80000000, 0x00000001, 0x807FFFFF, 0x3F800001, 0xBF7FFFFF, 0x7F7FFFFF, 0x7F800000, 0x2EDBE6FF]
    for d in singles:
        yield d.to_bytes(4, "little") + rng.permutation(256).astype(np.uint8).tobytes() + rng.bytes(32)


def iq4_nl(rng):
    for scale in SCALES:
        yield half(scale) + nibbles(rng)
    for value in range(16):
        yield half(0x2E66) + bytes([value | value << 4]) * 16
    for _ in range(8):
        yield random_half(rng) + rng.bytes(16)


def iq4_xs(rng):
    for scales in every_byte(rng, 6):
        yield half(0x3C01) + scales + rng.bytes(128)
    for d in SUPER_SCALES:
        yield half(d) + rng.bytes(2 + 4 + 128)


def mxfp4(rng):
    for exponent in range(256):
        yield bytes([exponent]) + nibbles(rng)


def weights_of(stored: bytes, tensor_type: T) -> np.ndarray:
    if tensor_type is T.Q8_K:
        blocks = np.frombuffer(stored, dtype=np.uint8).reshape(-1, 292)
        return blocks[:, :4].copy().view("<f4") * blocks[:, 4:260].copy().view(np.int8).astype(np.float32)
    # The package passes F32 and F16 through as arrays of their own type, the others as bytes.
    raw = {T.F32: "<f4", T.F16: "<f2"}.get(tensor_type, np.uint8)
    return dequantize(np.frombuffer(stored, dtype=raw), tensor_type).astype(np.float32)


# In the order in which they draw from the one generator of random numbers.
BLOCKS = {
    T.F32: f32, T.F16: f16, T.Q4_0: q4_0, T.Q4_1: q4_1, T.Q8_0: q8_0, T.BF16: bf16, T.Q5_0: q5_0, T.Q5_1: q5_1, T.Q2_K: q2_k, T.Q3_K: q3_k,
    T.Q4_K: q4_k, T.Q5_K: q5_k, T.Q6_K: q6_k, T.Q8_K: q8_k, T.IQ4_NL: iq4_nl, T.IQ4_XS: iq4_xs, T.MXFP4: mxfp4,
}


def weights_hex(weights: np.ndarray) -> str:
    return "".join("nan" if np.isnan(w) else w.astype("<f4").tobytes().hex() for w in weights)


def main():
    print("# Stored blocks and their weights; made by harness/reference/quant_vectors.py, which says how to read it.")
    for tensor_type, (block_len, block_bytes) in GGML_QUANT_SIZES.items():
        # The package still has the block of a version of Q8_1 that is gone: with two singles; now they are two halves.
        print("type", int(tensor_type), tensor_type.name, block_len, 36 if tensor_type is T.Q8_1 else block_bytes)
    np.seterr(all="ignore")
    rng = np.random.default_rng(20250101)
    for tensor_type, blocks in BLOCKS.items():
        block_bytes = GGML_QUANT_SIZES[tensor_type][1]
        for stored in blocks(rng):
            assert len(stored) % block_bytes == 0
            weights = weights_of(stored, tensor_type)
            print(tensor_type.name, stored.hex(), weights_hex(weights.ravel()))


if __name__ == "__main__":
    sys.exit(main())
