"""The hpack library as an oracle. `encode SEED`: random header lists, with its own choices of tables, indexing and
Huffman code; a line each, the block in hex and then what it holds. `decode FILE`: lines with a new limit of the table,
or `-`, and a block; a line each with what it holds."""

import random, sys

import hpack


def text(data):
    return data.hex() or "-"


def encode(seed):
    random.seed(int(seed))
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
        print(text(block), *(f"{text(n.encode())}:{text(v.encode())}" for n, v in fields))


def decode(path):
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    for line in open(path):
        limit, block = line.split()
        if limit != "-":
            decoder.max_allowed_table_size = int(limit)
        print(*(f"{text(n)}:{text(v)}" for n, v in decoder.decode(bytes.fromhex(block), raw=True)))


{"encode": encode, "decode": decode}[sys.argv[1]](sys.argv[2])
