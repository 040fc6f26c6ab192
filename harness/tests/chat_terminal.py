"""Types at `orcd chat` on a pseudo terminal, as a person does. Arguments: orcd, worker."""

import os
import pty
import re
import select
import sys
import time

ORCD, WORKER = sys.argv[1:3]


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm")
            os.execv(command[0], command)
        self.seen = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect(self, pattern, seconds=20):
        """Reads until the pattern comes up; what stood before it is done with."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            if not select.select([self.fd], [], [], max(0, until - time.monotonic()))[0]:
                sys.exit(f"{pattern!r} did not come; seen: {self.seen[-500:]!r}")
            try:
                chunk = os.read(self.fd, 65536)
            except OSError:
                chunk = b""
            if not chunk:
                sys.exit(f"{pattern!r} did not come before the end; seen: {self.seen[-500:]!r}")
            self.seen += chunk.decode()
        self.seen = self.seen[found.end():]

    def exit_code(self):
        """Reads to the end; a pty has one when the program is gone."""
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def chat():
    return Terminal(ORCD, "chat", "--worker", WORKER, "--model", "fake.gguf")


PROMPT = r"\n> $"

terminal = chat()
terminal.expect(r"Ctrl-C cancels.*\n> ")
terminal.type("hello there\n")
terminal.expect(r"You said: hello there \(1 messages\) \r\n.*3 tokens in, 6 out, 20.0 tokens/s.*" + PROMPT)
terminal.type("long\n")
terminal.expect(r"la la la ")
terminal.type("\x03")
terminal.expect(r"cancelled.*" + PROMPT)
# What was said before the cancel belongs to the conversation.
terminal.type("again\n")
terminal.expect(r"You said: again \(5 messages\).*" + PROMPT)
terminal.type("/health\n")
terminal.expect(r'"status": "ready".*' + PROMPT)
terminal.type("/help\n")
terminal.expect(r"/reset .*/quit .*" + PROMPT)
terminal.type("/sing\n")
terminal.expect(r"there is no command /sing.*" + PROMPT)
terminal.type("/reset\n")
terminal.expect(PROMPT)
terminal.type("anew\n")
terminal.expect(r"You said: anew \(1 messages\).*" + PROMPT)
# A terminal would cut this line, so it is not sent.
terminal.type("x" * 5000 + "\n")
terminal.expect(r"a terminal cuts lines at 4095 bytes.*" + PROMPT)
terminal.type("\x03")
terminal.expect(r"Ctrl-C again, or Ctrl-D, leaves.*> $")
terminal.type("still here\n")
terminal.expect(r"You said: still here \(3 messages\).*" + PROMPT)
terminal.type("\x03")
terminal.expect(r"Ctrl-C again, or Ctrl-D, leaves.*> $")
terminal.type("\x03")
assert terminal.exit_code() == 0

terminal = chat()
terminal.expect(r"> $")
terminal.type("\x04")
assert terminal.exit_code() == 0

terminal = chat()
terminal.expect(r"> $")
terminal.type("/quit\n")
assert terminal.exit_code() == 0

# A worker that dies while nobody asks is noticed, and not started again when that cannot help.
os.environ["FAKE_WORKER"] = '{"idle_exit":65}'
terminal = chat()
terminal.expect(r"the worker ended \(exit status: 65\)")
assert terminal.exit_code() == 65
