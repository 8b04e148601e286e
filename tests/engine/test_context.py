"""Which files a completion reads beside its own."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.engine.context import context_tokens, imported_files, sources_around, texts_of
from narrows.errors import UsageError
from narrows.text.tokenizer import EOS
from tests.training.corpora import TOKENIZER

FILES = {
    "shop/__init__.py": "",
    "shop/money.py": "CENTS = 100\n",
    "shop/basket.py": "from shop.money import CENTS\nfrom .goods import Good\n",
    "shop/goods.py": "from .units import KILO\n",
    "shop/units.py": "KILO = 1000\n",
    "shop/till.py": "import os\nfrom shop import basket\n",
    "other/__init__.py": "",
    "other/money.py": "",
    "script.py": "",
    "helper.py": "import other.money\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def found(tree: Path, name: str, text: str) -> list[str]:
    return [path.relative_to(tree).as_posix() for path in imported_files(tree / name, text)]


def test_what_a_file_names_comes_first_then_what_that_imports(tree: Path) -> None:
    assert found(tree, "shop/till.py", FILES["shop/till.py"]) == [
        "shop/basket.py",
        "shop/money.py",
        "shop/goods.py",
        "shop/units.py",
    ]


def test_an_unfinished_file_is_read_by_its_lines(tree: Path) -> None:
    text = "from shop.money import (\n    CENTS,\n)\n\ndef pay(:\n    from .goods import\n    from . import units\n"
    assert found(tree, "shop/till.py", text) == ["shop/money.py", "shop/units.py"]


def test_a_script_sees_its_folder_and_the_packages_in_it(tree: Path) -> None:
    assert found(tree, "script.py", "import helper, json, shop.units\n") == [
        "helper.py",
        "shop/units.py",
        "other/money.py",
    ]


def test_what_is_no_text_is_passed_over(tree: Path) -> None:
    (tree / "shop/basket.py").write_bytes(b"\xff\xfe import shop.money\n")
    assert found(tree, "shop/till.py", FILES["shop/till.py"]) == ["shop/basket.py"]


def test_circles_end(tree: Path) -> None:
    (tree / "shop/money.py").write_text("import shop.till\nimport shop.basket\n")
    assert found(tree, "shop/till.py", "import shop.money\n") == [
        "shop/money.py",
        "shop/basket.py",
        "shop/goods.py",
        "shop/units.py",
    ]


@given(st.lists(st.text("ab\n", min_size=1, max_size=40), max_size=4), st.integers(0, 60))
def test_context_fills_its_room_with_what_is_nearest(texts: list[str], room: int) -> None:
    whole = context_tokens(TOKENIZER, texts, 10_000)
    assert TOKENIZER.decode(whole) == "".join(text + EOS for text in reversed(texts))
    tokens = context_tokens(TOKENIZER, texts, room)
    assert tokens == whole[len(whole) - min(room, len(whole)) :]


@given(
    st.lists(st.text("ab\n", min_size=1, max_size=40), min_size=1, max_size=4), st.integers(0, 60), st.integers(1, 9)
)
def test_what_is_cut_is_cut_in_steps_so_that_little_growth_moves_nothing(
    texts: list[str], room: int, step: int
) -> None:
    exact, tokens = (context_tokens(TOKENIZER, texts, room, each) for each in (1, step))
    assert tokens == exact[len(exact) - len(tokens) :]
    assert len(exact) - len(tokens) < step
    cuts = {tuple(context_tokens(TOKENIZER, texts, smaller, step)) for smaller in range(room - step, room)}
    assert len(cuts) <= 2 + len(texts)


folders = st.lists(st.sampled_from("abc"), max_size=3).map("/".join)
paths = st.tuples(folders, st.sampled_from(["x.py", "y.py", "z.pyi"])).map(lambda parts: "/".join(filter(None, parts)))


@given(st.sets(paths, min_size=1, max_size=12), paths, st.sampled_from(["", "a", "a/b"]))
def test_sources_stand_in_the_order_of_their_distance(names: set[str], place: str, tree: str) -> None:
    """Whether the file lies in the tree or not; relpath says how far it is to each."""
    with tempfile.TemporaryDirectory() as root:
        for name in (*names, place, f"{tree}/x.py".lstrip("/")):
            Path(root, name).parent.mkdir(parents=True, exist_ok=True)
            Path(root, name).write_text("x = 1\n")
        found = sources_around(Path(root, place), Path(root, tree))
        wanted = {
            file for file in Path(os.path.realpath(root), tree).rglob("*.py*") if not file.samefile(f"{root}/{place}")
        }
        assert set(found) == wanted
        assert len(found) == len(wanted)
        start = Path(os.path.realpath(root), place).parent

        def nearness(file: Path) -> tuple[int, str]:
            steps = os.path.relpath(file.parent, start)
            return (0 if steps == "." else len(steps.split("/"))), str(file)

        assert found == sorted(found, key=nearness)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("near.py", True),
        ("deep/er/stub.pyi", True),
        ("build/__init__.py", True),  # a package that happens to be called so
        ("site/build.py", True),
        ("notes.txt", False),
        ("module.pyc", False),
        ("no_suffix", False),
        (".hidden/a.py", False),
        ("deep/.hidden/er/a.py", False),
        ("__pycache__/a.py", False),
        ("node_modules/gyp/a.py", False),
        ("build/lib/a.py", False),
        ("deep/dist/a.py", False),
        ("env/pyvenv.cfg", False),
        ("env/lib/a.py", False),
        ("out/CACHEDIR.TAG", False),
        ("out/a.py", False),
    ],
)
def test_what_a_tree_offers(tmp_path: Path, name: str, read: bool) -> None:
    for each in (name, "env/pyvenv.cfg", "out/CACHEDIR.TAG"):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).write_text("x = 1\n")
    found = sources_around(tmp_path / "work.py", tmp_path)
    assert found == ([Path(os.path.realpath(tmp_path)) / name] if read else [])


def test_a_named_folder_is_read_whatever_it_is(tmp_path: Path) -> None:
    tree = tmp_path / ".venv" / "build"
    tree.mkdir(parents=True)
    (tree / "pyvenv.cfg").touch()
    (tree / "a.py").touch()
    assert [file.name for file in sources_around(tmp_path / "work.py", tree)] == ["a.py"]


def test_another_suffix_comes_beside_python(tmp_path: Path) -> None:
    for name in ("a.rs", "b.py", "c.js", "d"):
        (tmp_path / name).touch()
    for place, wanted in (("work.rs", ["a.rs", "b.py"]), ("work", ["b.py"]), ("work.py", ["b.py"])):
        assert [file.name for file in sources_around(tmp_path / place, tmp_path)] == wanted


def test_links_lead_nowhere_and_the_file_itself_stays_out(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for folder in (tree / "a", outside):
        folder.mkdir(parents=True)
    (outside / "far.py").write_text("FAR = 1\n")
    (tree / "a" / "near.py").write_text("NEAR = 1\n")
    (tree / "work.py").write_text("WORK = 1\n")
    (tree / "out").symlink_to(outside)
    (tree / "far.py").symlink_to(outside / "far.py")
    (tree / "a" / "round").symlink_to(tree)
    (tree / "again.py").symlink_to("a/near.py")
    (tree / "gone.py").symlink_to("nowhere")
    (tree / "itself.py").symlink_to("itself.py")
    (tree / "alias.py").symlink_to("work.py")
    os.link(tree / "work.py", tree / "other_name.py")
    os.mkfifo(tree / "pipe.py")
    (tmp_path / "link.py").symlink_to(tree / "work.py")
    (tmp_path / "to_tree").symlink_to(tree)
    for path in (
        tree / "work.py",
        tree / "a" / ".." / "work.py",
        tmp_path / "link.py",
        tmp_path / "to_tree" / "work.py",
    ):
        for root in (tree, tmp_path / "to_tree", tree / "a" / "round"):
            assert list(texts_of(sources_around(path, root), path)) == ["NEAR = 1\n"]
    # Imports may come under such names as well.
    named = [tree / name for name in ("alias.py", "again.py", "a/near.py")]
    assert list(texts_of(named, tree / "work.py")) == ["NEAR = 1\n"]


def test_texts_are_texts(tmp_path: Path) -> None:
    contents = {
        "latin.py": b"# \xe9\n",
        "empty.py": b"",
        "large.py": b"#" * ((1 << 20) + 1),
        "largest.py": b"#" * (1 << 20),
        "a.py": "é = 1\n".encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in (*contents, "absent.py")]
    assert list(texts_of(files, tmp_path / "work.py")) == ["#" * (1 << 20), "é = 1\n"]


def test_a_tree_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").touch()
    for name in ("a.py", "absent", "a.py/below"):
        with pytest.raises(UsageError, match=f"{name} is no directory; name the folder that holds the sources"):
            sources_around(tmp_path / "work.py", tmp_path / name)
    with pytest.raises(UsageError, match=r"cannot be read \(File name too long\); name a folder that can"):
        sources_around(tmp_path / "work.py", tmp_path / ("n" * 300))
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(folder: Path) -> object:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [file.name for file in sources_around(tmp_path / "work.py", tmp_path)] == ["a.py"]
    with pytest.raises(UsageError, match=r"closed cannot be read \(Permission denied\); name a folder that can"):
        sources_around(tmp_path / "work.py", tmp_path / "closed")
