"""How much memory a process may use, and when a file is too large for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrows.checkpoints import memory
from narrows.checkpoints.memory import prefetch_bytes, usable_memory

GIB = 1 << 30


@pytest.mark.parametrize(
    ("file", "of", "wanted", "expected"),
    [
        (12 * GIB, 16 * GIB, None, 0),
        (12 * GIB + 1, 16 * GIB, None, GIB),
        (150 * GIB, 16 * GIB, None, GIB),
        (1, 16 * GIB, True, GIB),
        (150 * GIB, 16 * GIB, False, 0),
        (100, 2, None, 1),
    ],
)
def test_a_file_is_asked_for_ahead_where_it_does_not_fit(
    file: int, of: int, wanted: bool | None, expected: int
) -> None:
    assert prefetch_bytes(file, of, wanted=wanted) == expected


def system(root: Path, groups: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """A process's groups and these limits, as files -> what stands for /proc and for /sys/fs/cgroup."""
    for name, content in {
        "proc/self/cgroup": groups,
        **{f"cgroup/{name}": limit for name, limit in limits.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, 64 * GIB),
        ("0::/\n", {}, 64 * GIB),
        ("0::/\n", {"memory.max": f"{GIB}\n"}, GIB),  # a container, whose group is its root
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "max\n"}, 64 * GIB),
        ("0::/a/b\n", {"a/b/memory.max": f"{3 * GIB}\n", "a/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/a\n", {"a/memory.max": f"{3 * GIB}\n", "a/memory.high": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/a\n", {"a/memory.max": f"{128 * GIB}\n"}, 64 * GIB),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ("4:cpu,memory:/a:b\n", {"memory/a:b/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),  # its own path is not there to see
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64 * GIB),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": f"{GIB}\n"}, 64 * GIB),
    ],
)
def test_the_lowest_limit_on_the_path_holds(
    groups: str, limits: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_physical", lambda: 64 * GIB)
    assert usable_memory(*system(tmp_path, groups, limits)) == expected


def test_this_machine_has_memory() -> None:
    assert 1 << 20 < usable_memory() < 1 << 62
