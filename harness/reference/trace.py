"""A fixture's logits as a trace (harness/TRACE.md), to hold a worker's trace against: python3 harness/reference/trace.py FIXTURE [PROMPT]

FIXTURE is a folder of tests/data/fixtures, PROMPT the number of one of its prompts, 0 if it is left out. The trace goes to stdout and tells of the
head alone: that is what the reference computed in double precision and what is kept of it. The standard library is enough.
"""

import array
import json
import math
import pathlib
import sys

SAMPLES = 16
TOP = 8


def logits(folder, meta, prompt):
    """Rows of logits of a prompt, one a token."""
    width = meta["n_vocab"]
    values = array.array("f", (folder / "logits.f32").read_bytes())
    if sys.byteorder == "big":
        values.byteswap()
    first = prompt["first_row"]
    return [values[(first + i) * width : (first + i + 1) * width] for i in range(len(prompt["tokens"]))]


def line(position, row):
    """The line of the head at a position."""
    stride = math.ceil(len(row) / SAMPLES)
    top = sorted(range(len(row)), key=lambda token: (-row[token], token))[:TOP]
    return {
        "op": "head",
        "position": position,
        "width": len(row),
        "l2": math.sqrt(math.fsum(v * v for v in row)),
        "min": min(row),
        "max": max(row),
        "stride": stride,
        "samples": list(row[::stride]),
        "top": [[token, row[token]] for token in top],
    }


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    meta = json.loads((folder / "meta.json").read_text())
    prompt = meta["prompts"][int(sys.argv[2]) if len(sys.argv) == 3 else 0]
    header = {"trace": 1, "model": meta["name"], "device": f"reference, {meta['precision']}", "tokens": prompt["tokens"]}
    print(json.dumps(header))
    for position, row in enumerate(logits(folder, meta, prompt)):
        print(json.dumps(line(position, row)))


if __name__ == "__main__":
    main()
