"""Whatever the kernels of inference are called with: a result or an error, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.ops import native
from tests.draws import SOAK, scaled
from tests.ops import fuzzing, test_native

if not native.available():
    pytest.skip("narrows was installed without kernels", allow_module_level=True)

CALLS = 3000 if SOAK else 400


@settings(max_examples=scaled(2))
@given(st.integers(0, 2**32))
def test_arguments_that_do_not_fit_are_refused(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Shapes, dtypes, memory that is not contiguous or lies at odd addresses, numbers that are huge or not numbers,
    blocks and tokens that there are none of; in a process of its own, which says what it was about to call."""
    log = tmp_path_factory.mktemp("fuzz") / "call"
    command = [sys.executable, "-m", "tests.ops.fuzzing", str(seed), str(CALLS), str(log)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nthe last call: {log.read_text()[:3000]}"


def test_every_entry_of_inference_is_called() -> None:
    """What the module gains takes its place here, or among the ops of training in test_native.py."""
    called = {"Matrix", "Network", "History", *(op.__name__ for op in fuzzing.OPS)}
    given_nothing = {"instruction_sets", "instruction_set", "use", "rest", "VERSION"}  # or told, which is tested there
    assert called == {*test_native.OTHERS} - given_nothing
    assert {name for name in dir(native.kernels.Network) if name[0] != "_"} == {*fuzzing.METHODS}


def computed_by_a_process(code: str, **environment: str) -> str:
    """What `code` prints; it must end by itself and well."""
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.ops.fuzzing import *\n{code}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout


STEP = """
import os, signal, threading, time
made = sound(Precision.BF16)
def step(network, threads):
    out = torch.zeros(30, 4, HIDDEN)
    tokens, segments = torch.arange(30) % VOCAB, torch.tensor([[20, 0, 1], [6, 0, 0], [4, 0, 2]])
    positions = torch.cat([torch.arange(rows) for rows in (20, 6, 4)])
    network.network.step(tokens, positions, segments, network.history, threads, out)
    return out
alone = step(made, 1)
"""


def test_a_forked_child_computes_the_same_bits() -> None:
    """It has none of the pool's threads, and makes its own; so does its child."""
    said = computed_by_a_process(
        STEP
        + """
assert torch.equal(step(made, 3), alone)
for sleep in (0.0, 0.05):  # while they still wait in a loop, and while they sleep
    time.sleep(sleep)
    child = os.fork()
    if child == 0:
        fine = torch.equal(step(made, 3), alone)
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if torch.equal(step(made, 2), alone) else 1)
        os._exit(0 if fine and os.waitpid(grandchild, 0)[1] == 0 else 1)
    print(os.waitpid(child, 0)[1])
    assert torch.equal(step(made, 3), alone)
"""
    )
    assert said.split() == ["0", "0"]


def test_a_child_forked_during_a_step_computes_the_same_bits() -> None:
    """Of a step that another thread was in, it inherits neither a lock nor anything half done."""
    said = computed_by_a_process(
        STEP
        + """
stop = False
def work():
    while not stop: step(made, 2)
worker = threading.Thread(target=work)
worker.start()
statuses = set()
for _ in range(20):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if torch.equal(step(made, 2), alone) else 1)
    statuses.add(os.waitpid(child, 0)[1])
stop = True
worker.join()
print(*statuses)
"""
    )
    assert said.split() == ["0"]


def test_more_threads_than_cores_compute_the_same_bits() -> None:
    """Fewer again after more, and more than are ever made."""
    computed_by_a_process(
        STEP
        + """
for count in (2, 17, 3, 5, 1, 2, 64, 300, 4):
    assert torch.equal(step(made, count), alone), count
"""
    )


def test_python_threads_take_turns() -> None:
    """Two networks at once, and one network from two threads, whose steps are in the same memory."""
    computed_by_a_process(
        STEP
        + """
other = sound(Precision.BF16)
failed = []
def work(network, threads):
    for _ in range(60):
        if not torch.equal(step(network, threads), alone):
            failed.append(threads)
workers = [threading.Thread(target=work, args=given) for given in ((made, 2), (other, 3), (other, 1))]
for worker in workers: worker.start()
for worker in workers: worker.join()
assert not failed
"""
    )


def test_a_process_ends_while_the_pool_waits() -> None:
    """Its threads are nobody's to join: at once, while they wait in a loop, and when they sleep."""
    computed_by_a_process(STEP + "step(made, 4)")
    computed_by_a_process(STEP + "step(made, 4); time.sleep(0.05)")


@pytest.mark.skipif(sys.platform != "linux", reason="how many threads a user may have is limited otherwise")
def test_threads_that_the_system_does_not_give_are_done_without() -> None:
    computed_by_a_process(
        STEP
        + """
import resource
assert torch.equal(step(made, 2), alone)
# A thread's stack is as much address space; there is none left for another.
kept = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (kept + (1 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    assert torch.equal(step(made, 9), alone)
"""
    )
