#!/usr/bin/env python3
"""Stands between orcd conformance and a real worker and breaks one promise, so that the suite can be seen to notice.

    broken_worker.py KIND COMMAND…

KIND is a class below; "Honest" breaks nothing. Lines of the client go through heard(), lines of the worker through said(); each
returns the lines to pass on.
"""

import json
import os
import select
import signal
import subprocess
import sys


class Honest:
    """Breaks nothing."""

    def __init__(self):
        self.generates = {}

    def heard(self, message):
        return [message]

    def said(self, message):
        return [message]

    def exit(self, code):
        return code

    def is_answer(self, message):
        """Whether this is the response to a generate."""
        return "finish_reason" in message.get("result", {})


class DropsResponse(Honest):
    def said(self, message):
        return [] if "token_ids" in message.get("result", {}) else [message]


class AnswersTwice(Honest):
    def said(self, message):
        return [message] * (2 if self.is_answer(message) else 1)


class TokenAfterResponse(Honest):
    last = None

    def said(self, message):
        if message.get("method") == "token":
            self.last = message
        return [message, self.last] if self.is_answer(message) else [message]


class AnswersCancelLate(Honest):
    held = ()

    def said(self, message):
        if "found" in message.get("result", {}):
            self.held = [message]
            return []
        if self.is_answer(message):
            return [message, *self.held]
        return [message]


class SkipsIndex(Honest):
    def said(self, message):
        if message.get("method") == "token" and message["params"]["index"] > 2:
            message["params"]["index"] += 1
        return [message]


class MakesIdsNumbers(Honest):
    def said(self, message):
        if message.get("id") == "1":
            message["id"] = 1
        return [message]


class Chatters(Honest):
    def said(self, message):
        return ["loading the model ...", message] if message.get("method") == "ready" else [message]


class WrongCode(Honest):
    def said(self, message):
        if "error" in message and message["error"]["code"] == -32602:
            message["error"]["code"] = -32603
        return [message]


class LeavesOutLimits(Honest):
    def said(self, message):
        if message.get("method") == "ready":
            del message["params"]["limits"]
        return [message]


class LeavesOutResultField(Honest):
    def said(self, message):
        if self.is_answer(message):
            del message["result"]["usage"]
        return [message]


class PassesOverUnknownFields(Honest):
    def heard(self, message):
        message.get("params", {}).pop("max_token", None)
        return [message]


class TakesNull(Honest):
    def heard(self, message):
        if isinstance(message.get("params"), dict):
            message["params"] = {name: value for name, value in message["params"].items() if value is not None}
        return [message]


class ListsOneFault(Honest):
    def said(self, message):
        if "errors" in message.get("error", {}).get("data", {}):
            del message["error"]["data"]["errors"][1:]
        return [message]


class ExitsWithOne(Honest):
    def exit(self, code):
        return code or 1


class TextIsNotTheStream(Honest):
    def said(self, message):
        if message.get("result", {}).get("text"):
            message["result"]["text"] += " "
        return [message]


class CutsCharacters(Honest):
    def said(self, message):
        if message.get("method") == "token":
            text = message["params"]["text"]
            message["params"]["text"] = "".join(c if ord(c) < 128 else "\N{REPLACEMENT CHARACTER}" * 2 for c in text)
        return [message]


class Interleaves(Honest):
    held = None

    def said(self, message):
        if self.is_answer(message) and self.held is None:
            self.held = message
            return []
        if message.get("method") == "started" and self.held:
            held, self.held = self.held, ""
            return [message, held]
        return [message]


class AnswersHealthLate(Honest):
    held = ()

    def said(self, message):
        if message.get("result", {}).get("status") == "busy":
            self.held = [message]
            return []
        if self.is_answer(message):
            held, self.held = self.held, []
            return [message, *held]
        return [message]


class IgnoresSeed(Honest):
    count = 0

    def heard(self, message):
        if "seed" in message.get("params", {}):
            self.count += 1
            self.generates[message["id"]] = message["params"]["seed"]
            message["params"]["seed"] = self.count
        return [message]

    def said(self, message):
        for part, id in (("params", message.get("params", {}).get("request_id")), ("result", message.get("id"))):
            if id in self.generates and "seed" in message.get(part, {}):
                message[part]["seed"] = self.generates[id]
        return [message]


class StopStringInText(Honest):
    def said(self, message):
        if self.is_answer(message) and message["result"]["finish_reason"] == "stop":
            message["result"]["tail"] += str(message["result"]["stop_reason"])
        return [message]


class NamesTakenId(Honest):
    def said(self, message):
        if "error" in message and message["error"]["code"] == 1010:
            message["id"] = message["error"]["data"]["details"]["id"]
        return [message]


class DropsQueueAtSigterm(Honest):
    ending = False

    def __init__(self):
        super().__init__()
        signal.signal(signal.SIGTERM, self.end)

    def end(self, *_):
        os._exit(0)


def encoded(line):
    if not isinstance(line, str):
        line = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return line.encode() + b"\n"


def changed(line, change):
    """A line, changed where it is a JSON object; as it is otherwise."""
    try:
        message = json.loads(line)
    except ValueError:
        return line
    if not isinstance(message, dict):
        return line
    return b"".join(encoded(line) for line in change(message))


def main():
    kind = globals()[sys.argv[1]]()
    worker = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    inputs = {0: (worker.stdin.fileno(), kind.heard), worker.stdout.fileno(): (1, kind.said)}
    rest = dict.fromkeys(inputs, b"")
    while worker.stdout.fileno() in inputs:
        for source in select.select(list(inputs), [], [])[0]:
            sink, change = inputs[source]
            data = os.read(source, 65536)
            *lines, rest[source] = (rest[source] + data).split(b"\n")
            out = b"".join(changed(line + b"\n", change) for line in lines)
            if not data:
                out += rest[source] and changed(rest[source], change)
                del inputs[source]
            while out:
                out = out[os.write(sink, out):]
            if not data and source == 0:
                worker.stdin.close()
    sys.exit(kind.exit(worker.wait()))


main()
