#!/usr/bin/env python3
"""A scripted worker for the harness's own tests: it speaks the protocol and knows no model.

It answers a prompt with "You said: <prompt>", one token per word, and the prompt "long" with 10,000 tokens. FAKE_WORKER
in the environment is a JSON object of faults: load_exit (exit code before ready), exit (exit code after the first token
of the prompt "crash"), idle_exit (exit code soon after ready), token_ms, load_ms, log (a line for stderr), burst (that many bytes of notifications at start).
"""

import json
import os
import select
import sys
import time

FAKE = json.loads(os.environ.get("FAKE_WORKER", "{}"))
NAMES = {-32700: "PARSE_ERROR", -32600: "INVALID_REQUEST", -32601: "METHOD_NOT_FOUND", -32602: "INVALID_PARAMS",
         -32603: "INTERNAL", 1001: "MODEL_LOAD_FAILED", 1003: "CONTEXT_OVERFLOW", 1006: "CUDA_ERROR"}
FIELDS = {"prompt", "messages", "stream", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
          "seed", "stop", "logprobs", "ignore_eos"}
SAMPLING = {"max_tokens": 100, "min_tokens": 0, "temperature": 1.0, "top_k": 0, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "penalty_last_n": -1, "logit_bias_tokens": 0,
            "ignore_eos": False}
START = time.monotonic()

queue, active, steps, seeds = [], None, 0, 0
draining = False


def say(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def notify(method, **params):
    say({"method": method, "params": params})


def error(code, message, **data):
    return {"code": code, "message": message, "data": {"code": NAMES[code], "retriable": code == 1006, **data}}


def fail(id, code, message, **data):
    say({"id": id, "error": error(code, message, **data)})


def die(status):
    codes = {65: 1001, 70: -32603, 76: 1006}
    notify("fatal", error=error(codes.get(status, -32603), f"the fake ends with {status}"))
    sys.exit(status)


def ready():
    model = {"name": "Fake", "architecture": "fake", "quant_kind": "F32", "parameters": 1, "size_bytes": 4,
             "vocab_size": 9, "tokenizer_kind": "gguf-bpe", "context_length": 64, "context_length_trained": 64,
             "has_chat_template": True, "device": "cpu (fake)"}
    return {"protocol_version": 1,
            "server_info": {"name": "worker-orcd", "version": "0.0.0", "pid": os.getpid()},
            "capabilities": {"methods": ["generate", "cancel", "health"], "generate_fields": sorted(FIELDS),
                             "notifications": ["progress", "ready", "started", "token", "fatal"]},
            "model": model,
            "memory": {"weights_bytes": 4, "kv_bytes": 4, "scratch_bytes": 4, "total_bytes": 12},
            "defaults": {key: value for key, value in SAMPLING.items() if key not in ("max_tokens", "logit_bias_tokens", "ignore_eos")},
            "limits": {"stop_token_ids": 64, "logit_bias": 1024, "line_bytes": 16777216, "queue": 64, "context_length": 64, "max_tokens": 1048576,
                       "logprobs": 20, "stop": 16, "stop_bytes": 256, "tokenize_bytes": 1048576, "token_ids": 1048576}}


def usage(job):
    return {"prompt_tokens": 3, "completion_tokens": job["done"], "total_tokens": 3 + job["done"],
            "prompt_tokens_details": {"cached_tokens": 0}}


def take(line):
    """One request."""
    global draining
    try:
        request = json.loads(line)
    except ValueError as broken:
        return fail(None, -32700, f"not JSON: {broken}")
    id, method, params = request.get("id"), request.get("method"), request.get("params", {})
    if method == "generate":
        unknown = sorted(set(params) - FIELDS)
        if unknown:
            faults = [{"field": f, "constraint": "known", "message": f"unknown field {f}"} for f in unknown]
            return fail(id, -32602, f"unknown field {unknown[0]}", param=unknown[0], errors=faults)
        queue.append({"id": id, "params": params})
    elif method == "cancel":
        cancel(params["request_id"], id)
    elif method == "health":
        say({"id": id, "result": {"status": "busy" if active else "ready", "model": "Fake", "device": "cpu (fake)",
                                  "resident": True, "uptime_seconds": round(time.monotonic() - START, 3),
                                  "active_request": active and active["id"], "queue_depth": len(queue),
                                  "steps_total": steps, "last_step_ms": None}})
    elif method == "shutdown":
        draining = id
    else:
        fail(id, -32601, f"there is no method {method}")


def cancel(target, id):
    waiting = [job for job in queue if job["id"] == target]
    running = active if active and active["id"] == target else None
    if id is not None:
        say({"id": id, "result": {"found": bool(waiting or running)}})
    for job in waiting:
        queue.remove(job)
        job.update(done=0, text="", seed=0)
        finish(job, "cancelled", None)
    if running:
        running["cancelled"] = True


def start(job):
    global seeds
    params = job["params"]
    said = params.get("prompt") or params["messages"][-1]["content"]
    if said == "too long":
        fail(job["id"], 1003, "the prompt has 99 tokens, the context holds 64 and one of them has to be new; shorten the prompt")
        return None
    turns = f" ({len(params['messages'])} messages)" if "messages" in params else ""
    words = ["la "] * 10000 if said == "long" or params.get("ignore_eos") else [w + " " for w in f"You said: {said}{turns}".split(" ")]
    seeds += 1
    job.update(tokens=words, done=0, text="", said=said, seed=params.get("seed", 1000 + seeds + os.getpid()))
    notify("started", request_id=job["id"], prompt_tokens=3, cached_tokens=0, seed=job["seed"], queue_ms=0.1)
    return job


def finish(job, reason, stop_reason):
    timings = {"queue_ms": 0.1, "prefill_ms": 1.5, "ttft_ms": 2.0, "decode_ms": 3.0, "prompt_per_second": 10.0,
               "predicted_per_second": 20.0, "drafted": 0, "accepted": 0}
    result = {"finish_reason": reason, "stop_reason": stop_reason, "usage": usage(job), "timings": timings,
              "seed": job["seed"], "sampling": SAMPLING, "tail": ""}
    if not job["params"].get("stream", True):
        result["text"] = job["text"]
    say({"id": job["id"], "result": result})


def step():
    """One token of the active job, or the start of the next."""
    global active, steps
    if active is None:
        active = start(queue.pop(0)) if queue else None
        return
    job = active
    if job.get("cancelled"):
        active = None
        return finish(job, "cancelled", None)
    if job["done"] == min(len(job["tokens"]), job["params"].get("max_tokens", 1 << 30)):
        active = None
        return finish(job, "stop", "eos") if job["done"] == len(job["tokens"]) else finish(job, "length", "max_tokens")
    text = job["tokens"][job["done"]]
    job["text"] += text
    if job["params"].get("stream", True):
        notify("token", request_id=job["id"], index=job["done"], token_id=job["done"], text=text)
    job["done"] += 1
    steps += 1
    if job["said"] == "crash" and "exit" in FAKE:
        die(FAKE["exit"])
    time.sleep(FAKE.get("token_ms", 1) / 1000)


def main():
    if "log" in FAKE:
        print(FAKE["log"], file=sys.stderr, flush=True)
    if "load_exit" in FAKE:
        die(FAKE["load_exit"])
    for part in range(5):
        notify("progress", phase="load", processed=part * 25, total=100, time_ms=part * 1.5)
        time.sleep(FAKE.get("load_ms", 0) / 5000)
    notify("ready", **ready())
    for number in range(FAKE.get("burst", 0)):
        notify("token", request_id="burst", index=number, token_id=0, text="x" * 1000)
    if "idle_exit" in FAKE:
        time.sleep(0.05)
        die(FAKE["idle_exit"])
    pending, open_ = b"", True
    while open_ or queue or active:
        busy = bool(queue or active)
        if open_ and select.select([0], [], [], 0 if busy else None)[0]:
            chunk = os.read(0, 65536)
            open_ = bool(chunk)
            *lines, pending = (pending + chunk).split(b"\n")
            if not open_ and pending:
                lines.append(pending)
            for line in lines:
                if line.strip():
                    take(line)
        step()
        if draining and not queue and not active:
            say({"id": draining, "result": {}})
            return


main()
