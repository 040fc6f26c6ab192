"""A client for worker-orcd: one file, asyncio, nothing but the standard library (Python 3.9 or newer).

    async with await Worker.spawn("model.gguf") as worker:
        answer = await worker.generate(prompt="Once upon a time", max_tokens=32)
        async for token in answer:
            print(token.text, end="", flush=True)
        result = await answer.result()
        print(result["tail"], result["finish_reason"])

A Worker is one process with one model. When it has ended, restart_delay says whether to start another, and
Supervisor does it. Errors that the worker answers with are raised as WorkerError; its end as WorkerEnded.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from typing import Any, AsyncIterator, Callable, Optional, Sequence, Union

__all__ = ["Worker", "Generation", "Token", "Supervisor", "WorkerError", "WorkerEnded", "restart_delay"]

Id = Union[int, str]
Json = dict[str, Any]

# asyncio's reader gives up at 64 KiB; a response with stream=False may be longer.
LINE_BYTES_MAX = 64 * 1024 * 1024

BACKOFF_FIRST = 0.5
BACKOFF_MAX = 30.0


class WorkerError(Exception):
    """The worker answered with an error."""

    def __init__(self, error: Json):
        data = error.get("data") or {}
        self.number: int = error["code"]
        self.code: str = data.get("code", "")
        self.retriable: bool = data.get("retriable", False)
        self.param: Optional[str] = data.get("param")
        self.errors: list[Json] = data.get("errors", [])
        self.details: Json = data.get("details") or {}
        super().__init__(f"{self.code} ({self.number}): {error['message']}")


class WorkerEnded(Exception):
    """The worker has ended. exit_code is None while it is not known, and negative for a signal; fatal holds its last words."""

    def __init__(self, exit_code: Optional[int], fatal: Optional[WorkerError]):
        self.exit_code = exit_code
        self.fatal = fatal
        super().__init__(f"the worker ended with {exit_code}" + (f": {fatal}" if fatal else ""))


def restart_delay(exit_code: Optional[int], failures: int) -> Optional[float]:
    """Seconds to wait before starting a worker again; None: do not.

    exit_code is the code of the worker that ended, None or negative when a signal killed it. failures counts the ends
    in a row before this one with no answered request in between. A lost device (76) is tried again at once, and with
    backoff when it is lost again; a bug (70) or a death by signal with backoff. A bad or missing model, device or
    argument, too little memory and a lost pipe come again as they are, and an end that was asked for is one.
    """
    if exit_code == 76 and failures == 0:
        return 0.0
    if exit_code == 76:
        doublings = failures - 1
    elif exit_code is None or exit_code < 0 or exit_code == 70:
        doublings = failures
    else:
        return None
    return min(BACKOFF_MAX, BACKOFF_FIRST * 2.0 ** min(doublings, 16))


@dataclass(frozen=True)
class Token:
    """A token as it comes. text is whole characters, possibly ""."""

    index: int
    token_id: int
    text: str
    logprob: Optional[float] = None
    top_logprobs: Sequence[Json] = field(default_factory=tuple)


class Generation:
    """A generate request under way: iterate over its tokens, await its result."""

    def __init__(self, worker: "Worker", request_id: Id):
        self.request_id = request_id
        self.started: Optional[Json] = None
        self._worker = worker
        self._tokens: asyncio.Queue[Optional[Token]] = asyncio.Queue()
        self._response: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        # Whoever only iterates gets the error there; that nobody awaits the result is then no mistake.
        self._response.add_done_callback(lambda response: response.cancelled() or response.exception())
        self._response.add_done_callback(lambda _: self._tokens.put_nowait(None))

    async def __aiter__(self) -> AsyncIterator[Token]:
        while (token := await self._tokens.get()) is not None:
            yield token
        # Whoever iterates again is not kept waiting.
        self._tokens.put_nowait(None)
        await self.result()

    async def result(self) -> Json:
        """The result: finish_reason, stop_reason, usage, timings, seed, tail, and text with stream=False.

        Raises WorkerError or WorkerEnded.
        """
        return await asyncio.shield(self._response)

    async def text(self) -> str:
        """The whole text. Only for who does not iterate."""
        pieces = [token.text async for token in self]
        result = await self.result()
        return result.get("text", "".join(pieces)) + result["tail"]

    async def cancel(self) -> bool:
        """Asks that it ends. True promises that result() has finish_reason "cancelled"; False: it has ended already."""
        return await self._worker.cancel(self.request_id)


class Worker:
    """A worker process and the conversation with it. Make one with Worker.spawn."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process
        self.ready: Optional[Json] = None
        self.fatal: Optional[WorkerError] = None
        self._next_id = 1
        self._calls: dict[Id, asyncio.Future[Json]] = {}
        self._generations: dict[Id, Generation] = {}
        self._became_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._became_ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._on_progress: Callable[[Json], None] = lambda progress: None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def spawn(
        cls,
        model: Union[str, os.PathLike[str]],
        *,
        program: Union[str, os.PathLike[str]] = "worker-orcd",
        device: str = "cpu",
        args: Sequence[str] = (),
        env: Optional[dict[str, str]] = None,
        stderr: Optional[int] = None,
        on_progress: Optional[Callable[[Json], None]] = None,
        timeout: Optional[float] = None,
    ) -> "Worker":
        """Starts a worker and waits until its model is loaded.

        It gets a session of its own, so that a terminal's Ctrl-C does not reach it. Raises WorkerEnded with the
        worker's words when it cannot load, and asyncio.TimeoutError.
        """
        process = await asyncio.create_subprocess_exec(
            program, "--model", model, "--device", device, *args,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            env=env, limit=LINE_BYTES_MAX, start_new_session=True,
        )
        worker = cls(process)
        if on_progress:
            worker._on_progress = on_progress
        try:
            await asyncio.wait_for(asyncio.shield(worker._became_ready), timeout)
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def __aenter__(self) -> "Worker":
        return self

    async def __aexit__(self, *error: object) -> None:
        if error[0] is None:
            await self.close()
        else:
            await self.kill()

    async def call(self, method: str, **params: Any) -> Json:
        """Sends a request and waits for its result. Raises WorkerError or WorkerEnded."""
        id = self._take_id()
        response = self._calls[id] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
            return await response
        finally:
            self._calls.pop(id, None)

    async def generate(self, **params: Any) -> Generation:
        """Sends a generate request; params as the protocol names them: prompt or messages, max_tokens, temperature…"""
        id = self._take_id()
        generation = self._generations[id] = Generation(self, id)
        await self._send({"jsonrpc": "2.0", "id": id, "method": "generate", "params": params})
        return generation

    async def cancel(self, request_id: Id) -> bool:
        """Asks that a generation ends; whether it was still queued or running."""
        return (await self.call("cancel", request_id=request_id))["found"]

    async def health(self) -> Json:
        """How the worker is; answered during a generation too."""
        return await self.call("health")

    async def tokenize(self, content: str, **params: Any) -> list[int]:
        """The token ids of a text."""
        return (await self.call("tokenize", content=content, **params))["token_ids"]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return (await self.call("detokenize", token_ids=list(token_ids)))["content"]

    async def apply_template(self, messages: Sequence[Json], **params: Any) -> str:
        """A conversation in the model's words."""
        return (await self.call("apply_template", messages=list(messages), **params))["prompt"]

    async def shutdown(self, mode: str = "drain") -> int:
        """Lets the worker finish ("drain") or cancel ("now") what was sent, and exit; its exit code."""
        await self.call("shutdown", mode=mode)
        return await self.wait()

    async def close(self) -> int:
        """Closes stdin, so that the worker finishes what was sent and exits; its exit code."""
        if self.process.stdin and not self.process.stdin.is_closing():
            self.process.stdin.close()
        return await self.wait()

    async def wait(self) -> int:
        """Waits for the worker's end; its exit code, negative for a signal."""
        await self._reader
        return await self.process.wait()

    async def kill(self) -> int:
        """Kills the worker; its exit code."""
        if self.process.returncode is None:
            try:
                self.process.kill()
            except ProcessLookupError:
                pass
        return await self.wait()

    def _take_id(self) -> int:
        id, self._next_id = self._next_id, self._next_id + 1
        return id

    async def _send(self, request: Json) -> None:
        if self._reader.done():
            raise WorkerEnded(self.process.returncode, self.fatal)
        assert self.process.stdin is not None
        line = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
        try:
            self.process.stdin.write(line.encode() + b"\n")
            await self.process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            # Its last words and its exit code are on the way.
            await asyncio.shield(self._reader)
            raise WorkerEnded(self.process.returncode, self.fatal) from None

    async def _read(self) -> None:
        """Hands on what the worker says, until it says nothing more."""
        assert self.process.stdout is not None
        try:
            while line := await self.process.stdout.readline():
                self._take(json.loads(line))
        except BaseException:
            # It broke its protocol: nothing that it says from now on can be trusted.
            self.process.kill()
            raise
        finally:
            ended = WorkerEnded(await self.process.wait(), self.fatal)
            waiting = [*self._calls.values(), *(g._response for g in self._generations.values()), self._became_ready]
            for future in waiting:
                if not future.done():
                    future.set_exception(ended)
            self._generations.clear()

    def _take(self, message: Json) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method is None:
            self._answer(message)
        elif method == "token":
            if generation := self._generations.get(params.pop("request_id")):
                generation._tokens.put_nowait(Token(**{k: v for k, v in params.items() if k in Token.__dataclass_fields__}))
        elif method == "started":
            if generation := self._generations.get(params["request_id"]):
                generation.started = params
        elif method == "ready":
            self.ready = params
            if not self._became_ready.done():
                self._became_ready.set_result(None)
        elif method == "progress":
            self._on_progress(params)
        elif method == "fatal":
            self.fatal = WorkerError(params["error"])

    def _answer(self, message: Json) -> None:
        id = message.get("id")
        generation = self._generations.pop(id, None)
        future = generation._response if generation else self._calls.get(id)
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(WorkerError(message["error"]))
        else:
            future.set_result(message["result"])


class Supervisor:
    """Keeps one worker alive: get() gives it, started again after an end where restart_delay says so.

    start is called without arguments and returns an awaitable Worker, e.g. lambda: Worker.spawn("model.gguf").
    """

    def __init__(self, start: Callable[[], Any], sleep: Callable[[float], Any] = asyncio.sleep):
        self._start = start
        self._sleep = sleep
        self._worker: Optional[Worker] = None
        self._failures = 0
        self._lock = asyncio.Lock()

    def answered(self) -> None:
        """To be called when a request was answered: the next end is the first in a row again."""
        self._failures = 0

    async def get(self) -> Worker:
        """A worker that lives. Raises WorkerEnded when another would end as the last one did."""
        async with self._lock:
            while True:
                if self._worker is None:
                    try:
                        self._worker = await self._start()
                    except WorkerEnded as ended:
                        await self._after(ended.exit_code, ended)
                        continue
                if not self._worker._reader.done():
                    return self._worker
                worker, self._worker = self._worker, None
                code = await worker.wait()
                await self._after(code, WorkerEnded(code, worker.fatal))

    async def _after(self, exit_code: Optional[int], ended: WorkerEnded) -> None:
        delay = restart_delay(exit_code, self._failures)
        if delay is None:
            raise ended
        self._failures += 1
        await self._sleep(delay)
