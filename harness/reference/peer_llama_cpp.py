#!/usr/bin/env python3
"""A peer for `orcd bench --peer`: llama.cpp through llama-cpp-python, on one thread, over the same file and the same token ids.

orcd bench decode --peer "python3 harness/reference/peer_llama_cpp.py"

What is asked for comes in the environment; see harness/src/bench/peer.rs. PEER_THREADS and PEER_GPU_LAYERS change what their names say. Two
runs are made in one process and the second counts: the first brings the file into memory.
"""

import json
import os
import time

from llama_cpp import Llama

BATCH = 512


def main():
    decode = os.environ["ORCD_BENCH"] == "decode"
    ids = [int(id) for id in os.environ["ORCD_IDS"].split(",")]
    depth = int(os.environ["ORCD_DEPTH"])
    threads = int(os.environ.get("PEER_THREADS", "1"))
    model = Llama(
        os.environ["ORCD_MODEL"],
        n_ctx=len(ids) + 8,
        n_batch=BATCH,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=int(os.environ.get("PEER_GPU_LAYERS", "0")),
        flash_attn=True,
        verbose=False,
    )
    for _ in range(2):
        model.reset()
        if depth:
            model.eval(ids[:depth])
        begin = time.perf_counter()
        if decode:
            for id in ids[depth:]:
                model.eval([id])
        else:
            model.eval(ids[depth:])
        took = time.perf_counter() - begin
    print(json.dumps({"tok_s": (len(ids) - depth) / took}))


if __name__ == "__main__":
    main()
