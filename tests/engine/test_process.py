"""What becomes of engines when their process ends, or forks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import narrows
from narrows.ops import native

LEFT_OPEN = """
import sys, threading, time
import narrows

model = narrows.load("embedded")
engine = narrows.Engine(model.network, model.tokenizer, narrows.Limits(memory=1 << 28))
request = engine.submit([0, 5, 6], narrows.SamplingParameters(max_tokens=100_000))
if "thread" in sys.argv:
    def compute():
        while True: model.logits([0, 5, 6] * 20)
    threading.Thread(target=compute, daemon=True).start()
time.sleep(0.2)
sys.exit(4)
"""
FORKED = """
import os
import narrows

model = narrows.load("embedded")
text = model.generate("import ", max_tokens=8).text
child = os.fork()
if child == 0:
    same = model.generate("import ", max_tokens=8).text == text
    os._exit(0 if same else 1)
print(os.waitpid(child, 0)[1])
with narrows.Engine(model.network, model.tokenizer, narrows.Limits(memory=1 << 28)) as engine:
    child = os.fork()
    if child == 0:
        try:
            engine.submit([0, 5], narrows.SamplingParameters())
        except narrows.NarrowsError as error:
            print(error, flush=True)
        engine.close()
        os._exit(0)
    os.waitpid(child, 0)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("threads", [[], ["thread"]])
def test_a_process_ends_as_it_means_to_with_an_engine_at_work(threads: list[str]) -> None:
    """Without a word, with or without a thread of the user's own within a kernel."""
    for _ in range(5):
        done = run(LEFT_OPEN, *threads)
        assert (done.returncode, done.stdout, done.stderr) == (4, "", "")


def test_a_forked_process_makes_an_engine_of_its_own() -> None:
    """A model does so by itself; an engine of the parent's says whose it is."""
    done = run(FORKED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0",
        "this engine belongs to the process that was forked; make another in this one.",
    ]


@pytest.mark.skipif(not native.available(), reason="narrows was installed without kernels")
def test_the_environment_names_an_instruction_set() -> None:
    code = "from narrows.ops import native; print(native.kernels.instruction_set())"
    assert run(code, NARROWS_KERNELS="portable").stdout == "portable\n"
    refused = run("import narrows.cli.main as cli; cli.main()", "inspect", "embedded", NARROWS_KERNELS="sse")
    assert refused.returncode in (0, 2)  # inspect may need no kernels
    refused = run("import narrows.cli.main as cli; cli.main()", "generate", "x", NARROWS_KERNELS="sse")
    assert refused.returncode == 2
    assert "no instruction set 'sse'; choose " in refused.stderr


def test_parameters_are_counted_alike_by_kernels_and_reference() -> None:
    counts = {narrows.load("embedded", precision=one).network.parameter_count for one in ("float32", "official")}
    assert len(counts) == 1
