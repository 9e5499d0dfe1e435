"""The expected values in stages/src/rng.rs: needs `pip install blake3`; ChaCha8 is written out here."""
import math
import struct

import blake3

CONTEXT = "itpipe 2026-11 stages random stream 1"
MASK = 0xFFFFFFFF


def block(key, counter):
    state = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key))
    state += [counter & MASK, counter >> 32, 0, 0]
    w = state[:]

    def quarter(a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            w[x] = (w[x] + w[y]) & MASK
            v = w[z] ^ w[x]
            w[z] = ((v << n) | (v >> (32 - n))) & MASK

    for _ in range(4):
        for q in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(*q)
        for q in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(*q)
    return [(a + b) & MASK for a, b in zip(w, state)]


class Stream:
    def __init__(self, seed, purpose, epoch, index):
        p = purpose.encode()
        name = struct.pack("<QQ", seed, len(p)) + p + struct.pack("<QQ", epoch, index)
        self.key = blake3.blake3(name, derive_key_context=CONTEXT).digest()
        self.counter, self.words = 0, []

    def bits(self):
        if not self.words:
            self.words = block(self.key, self.counter)
            self.counter += 1
        low, high = self.words[0], self.words[1]
        self.words = self.words[2:]
        return low | high << 32

    def uniform(self):
        return (self.bits() >> 11) * 2.0**-53

    def normal(self):
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(math.tau * self.uniform())

    def below(self, n):
        while True:
            product = self.bits() * n
            if product % 2**64 >= 2**64 % n:
                return product >> 64

    def permutation(self, n):
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    def draw(self, weights, n):
        out = []
        for _ in range(n):
            at = self.uniform() * sum(weights)
            end = 0.0
            for k, weight in enumerate(weights):
                end += weight
                if at < end:
                    out.append(k)
                    break
        return out


if __name__ == "__main__":
    s = Stream(0, "init", 0, 0)
    print("bits a", [s.bits() for _ in range(3)])
    s = Stream(7, "shuffle", 3, 11)
    b = [s.bits() for _ in range(20)]
    print("bits b", b[:3], "20th", b[19])
    s = Stream(1, "u", 0, 0)
    print("uniform", [s.uniform() for _ in range(2)])
    print("permutation", Stream(1, "p", 0, 0).permutation(10))
    print("draw", Stream(1, "d", 0, 0).draw([0, 1, 2, 5], 12))
    s = Stream(1, "n", 0, 0)
    normal = [s.normal() for _ in range(3)]
    print("normal", normal, struct.unpack("<Q", struct.pack("<d", normal[0]))[0])
