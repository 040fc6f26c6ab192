#!/usr/bin/env python3
"""Spawns a worker, asks one question, and prints the answer as it comes. Only the standard library.

    python3 spawn.py MODEL.gguf

$WORKER_ORCD_BIN names the worker; without it, it is the worker-orcd on $PATH.
"""

import json
import os
import subprocess
import sys

if len(sys.argv) != 2:
    sys.exit("usage: spawn.py MODEL.gguf")
program = os.environ.get("WORKER_ORCD_BIN", "worker-orcd")
worker = subprocess.Popen(
    [program, "--model", sys.argv[1], "--device", "cpu"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
)

# Requests may be sent at once; they wait for the model. Closing stdin says: when that is done, exit.
messages = [{"role": "user", "content": "What is the capital of France?"}]
params = {"messages": messages, "max_tokens": 32, "temperature": 0}
request = {"jsonrpc": "2.0", "id": 1, "method": "generate", "params": params}
worker.stdin.write(json.dumps(request) + "\n")
worker.stdin.close()

for line in worker.stdout:
    message = json.loads(line)
    if message.get("method") == "token":
        print(message["params"]["text"], end="", flush=True)
    elif message.get("method") == "fatal":
        sys.exit(message["params"]["error"]["message"])
    elif "error" in message:
        sys.exit(message["error"]["message"])
    elif "result" in message:
        result = message["result"]
        print(result["tail"])
        print(f'({result["finish_reason"]}, {result["usage"]["completion_tokens"]} tokens)')

sys.exit(worker.wait())
