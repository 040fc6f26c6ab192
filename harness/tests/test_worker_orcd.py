"""Tests of the Python client against the scripted worker: python3 harness/tests/test_worker_orcd.py"""

import asyncio
import json
import os
import sys
import unittest
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "clients" / "python"))
sys.dont_write_bytecode = True

from worker_orcd import Supervisor, Worker, WorkerEnded, WorkerError, restart_delay  # noqa: E402

FAKE = TESTS / "fake_worker.py"


def spawn(faults=None, **options):
    env = {**os.environ, "FAKE_WORKER": json.dumps(faults or {})}
    return Worker.spawn("fake.gguf", program=FAKE, env=env, timeout=20, **options)


class ClientTest(unittest.IsolatedAsyncioTestCase):
    async def test_streams_calls_in_between_and_ends_well(self):
        progress = []
        async with await spawn(on_progress=lambda p: progress.append(p["processed"])) as worker:
            self.assertEqual(progress, [0, 25, 50, 75, 100])
            self.assertEqual(worker.ready["model"]["name"], "Fake")
            answer = await worker.generate(prompt="one two")
            self.assertIn((await worker.health())["status"], ["busy", "ready"])
            texts = [token.text async for token in answer]
            result = await answer.result()
            self.assertEqual("".join(texts) + result["tail"], "You said: one two ")
            self.assertEqual(result["finish_reason"], "stop")
            self.assertEqual(answer.started["prompt_tokens"], 3)
        self.assertEqual(worker.process.returncode, 0)
        with self.assertRaises(WorkerEnded):
            await worker.health()

    async def test_whole_texts_side_by_side(self):
        async with await spawn() as worker:
            streamed = await worker.generate(prompt="a b")
            whole = await worker.generate(prompt="a b", stream=False)
            self.assertEqual(await streamed.text(), "You said: a b ")
            self.assertEqual(await whole.text(), "You said: a b ")

    async def test_a_cancel_ends_a_generation(self):
        async with await spawn() as worker:
            answer = await worker.generate(prompt="long")
            async for token in answer:
                if token.index == 3:
                    self.assertTrue(await answer.cancel())
            result = await answer.result()
            self.assertEqual(result["finish_reason"], "cancelled")
            self.assertLess(result["usage"]["completion_tokens"], 10_000)
            self.assertFalse(await answer.cancel())

    async def test_errors_are_raised_with_their_fields(self):
        async with await spawn() as worker:
            answer = await worker.generate(prompt="x", typo=1)
            with self.assertRaises(WorkerError) as refused:
                await answer.result()
            self.assertEqual((refused.exception.code, refused.exception.number), ("INVALID_PARAMS", -32602))
            self.assertEqual(refused.exception.errors[0]["field"], "typo")
            with self.assertRaises(WorkerError):
                async for _ in answer:
                    pass
            with self.assertRaises(WorkerError):
                await worker.call("sing")
            self.assertEqual(await worker.shutdown(), 0)

    async def test_an_end_is_told_to_everyone_who_waits(self):
        worker = await spawn({"exit": 76})
        first = await worker.generate(prompt="crash")
        second = await worker.generate(prompt="later")
        for answer in (first, second):
            with self.assertRaises(WorkerEnded) as ended:
                await answer.result()
            self.assertEqual((ended.exception.exit_code, ended.exception.fatal.code), (76, "CUDA_ERROR"))
        with self.assertRaises(WorkerEnded) as ended:
            await spawn({"load_exit": 65})
        self.assertEqual((ended.exception.exit_code, ended.exception.fatal.number), (65, 1001))

    async def test_much_in_both_directions_at_once(self):
        async with await spawn({"burst": 3000}) as worker:
            long = "x" * 100_000
            answers = [await worker.generate(prompt=long) for _ in range(20)]
            for answer in answers:
                self.assertEqual(len(await answer.text()), len("You said: ") + len(long) + 1)

    async def test_a_supervisor_starts_another(self):
        waits = []

        async def sleep(seconds):
            waits.append(seconds)

        supervisor = Supervisor(lambda: spawn({"exit": 76}), sleep)
        first = await supervisor.get()
        self.assertIs(await supervisor.get(), first)
        for _ in range(2):
            worker = await supervisor.get()
            with self.assertRaises(WorkerEnded):
                await (await worker.generate(prompt="crash")).result()
            await worker.wait()
        last = await supervisor.get()
        self.assertEqual(waits, [0.0, 0.5])
        supervisor.answered()
        await last.close()
        with self.assertRaises(WorkerEnded):
            await supervisor.get()
        with self.assertRaises(WorkerEnded):
            await Supervisor(lambda: spawn({"load_exit": 65}), sleep).get()

    def test_the_restart_table_holds(self):
        """The same table holds for the Rust client."""
        table = json.loads((TESTS / "restart.json").read_text())
        self.assertGreater(len(table), 10)
        for row in table:
            delay = restart_delay(row["exit_code"], row["failures"])
            self.assertEqual(None if delay is None else round(delay * 1000), row["wait_ms"], row)
        self.assertEqual(restart_delay(-9, 0), 0.5)


if __name__ == "__main__":
    unittest.main()
