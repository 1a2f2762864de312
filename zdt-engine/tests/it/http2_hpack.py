"""The hpack library as an oracle: encodes random header lists, with its own choices of tables, indexing and Huffman
code; a line each, the block in hex and then what it holds."""

import random, sys

import hpack

random.seed(int(sys.argv[1]))
encoder = hpack.Encoder()
names = ["x-" + "".join(random.choice("abcdefgh-") for _ in range(random.randrange(1, 12))) for _ in range(12)]
names += [":path", ":method", "cookie", "accept-encoding", "content-type", "authorization"]
for _ in range(2000):
    if random.random() < 0.03:
        encoder.header_table_size = random.choice([0, 64, 300, 1000, 4096])
    fields = []
    for _ in range(random.randrange(0, 12)):
        value = "".join(chr(random.randrange(33, 127)) for _ in range(random.choice([0, 3, 12, 60, 400])))
        if random.random() < 0.5:
            value = random.choice(["GET", "/", "gzip, deflate", "a", "text/html"])
        kind = hpack.NeverIndexedHeaderTuple if random.random() < 0.1 else hpack.HeaderTuple
        fields.append(kind(random.choice(names), value))
    block = encoder.encode(fields, huffman=random.random() < 0.7)
    print(block.hex() or "-", *(f"{n.encode().hex() or '-'}:{v.encode().hex() or '-'}" for n, v in fields))
