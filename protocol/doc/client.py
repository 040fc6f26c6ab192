import json, subprocess, sys

worker = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

def send(message):
    worker.stdin.write(json.dumps(message).encode() + b"\n")
    worker.stdin.flush()

def ask(question):
    """Yields the pieces of the answer as they come."""
    send({"jsonrpc": "2.0", "id": 1, "method": "generate",
          "params": {"messages": [{"role": "user", "content": question}], "max_tokens": 200}})
    for line in worker.stdout:
        message = json.loads(line)
        if message.get("method") == "token":
            yield message["params"]["text"]
        elif message.get("method") == "fatal":
            raise RuntimeError(message["params"]["error"]["message"])
        elif "error" in message:
            raise RuntimeError(message["error"]["message"])
        elif "result" in message:
            yield message["result"]["tail"]
            return
    raise RuntimeError(f"the worker ended with exit code {worker.wait()}")

for piece in ask("What is the capital of France?"):
    print(piece, end="", flush=True)
print()
worker.stdin.close()
sys.exit(worker.wait())
