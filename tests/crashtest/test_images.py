"""Images of subsets of micro-operations: what a file system that lost the others would show."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.crashtest.images import Image, ImageBuilder, apply
from headway.crashtest.micro import Micro, MicroKind
from headway.crashtest.tree import ROOT, Tree

A = 5


def micro(kind: MicroKind, inode: int = A, **fields: object) -> Micro:
    return Micro(0, 0, kind, inode, **fields)  # type: ignore[arg-type]


CREATE = micro("link", parent=ROOT, name="a")
DATA = micro("data", data=b"hello")
SIZE = micro("size", size=5)


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ([], {}),
        ([CREATE], {"a": b""}),
        ([CREATE, DATA], {"a": b""}),
        ([CREATE, SIZE], {"a": bytes(5)}),
        ([CREATE, DATA, SIZE], {"a": b"hello"}),
        ([DATA, SIZE], {}),
    ],
)
def test_name_data_and_size_are_lost_apart(kept: list[Micro], shown: dict[str, bytes]) -> None:
    assert apply(Tree(), kept).files() == shown


def test_data_beyond_the_size_shows_when_a_later_size_covers_it() -> None:
    later = micro("size", size=3)
    assert apply(Tree(), [CREATE, DATA, later]).files() == {"a": b"hel"}


def test_truncated_data_does_not_come_back() -> None:
    cut, grown = micro("trunc", size=1), micro("trunc", size=3)
    assert apply(Tree(), [CREATE, DATA, SIZE, cut, grown]).files() == {"a": b"h\0\0"}
    assert apply(Tree(), [CREATE, DATA, SIZE, grown]).files() == {"a": b"hel"}


def test_a_rename_names_its_inode_even_when_its_link_is_lost() -> None:
    rename = micro("rename", parent=ROOT, name="a", parent2=ROOT, name2="b")
    assert apply(Tree(), [DATA, SIZE, rename]).files() == {"b": b"hello"}
    assert apply(Tree(), [CREATE, DATA, SIZE, rename]).files() == {"b": b"hello"}


def test_an_unlink_removes_only_the_inode_it_meant() -> None:
    tree = apply(Tree(), [CREATE, micro("unlink", inode=A + 1, parent=ROOT, name="a")])
    assert tree.files() == {"a": b""}


def test_a_lost_rename_cannot_put_a_directory_below_itself() -> None:
    make_a, make_b = micro("mkdir", inode=6, parent=ROOT, name="x"), micro("mkdir", inode=7, parent=6, name="y")
    # Between them y was moved to the root, which is lost; then x went into y.
    into = micro("rename", inode=6, parent=ROOT, name="x", parent2=7, name2="x")
    paths = [path for path, _, _ in apply(Tree(), [make_a, make_b, into]).walk()]
    assert paths == ["x", "x/y"]


def test_forks_do_not_see_each_other() -> None:
    base = Image(Tree.of({"f": b"old", "d/g": b"1"}))
    inode = base.tree().lookup("f")
    assert inode is not None
    one, two = base.fork(), base.fork()
    one.apply(micro("data", inode=inode[0], data=b"O"))
    two.apply(micro("unlink", inode=inode[0], parent=ROOT, name="f"))
    base.apply(micro("data", inode=inode[0], offset=2, data=b"D"))
    assert one.tree().files() == {"f": b"Old", "d/g": b"1"}
    assert two.tree().files() == {"d/g": b"1"}
    assert base.tree().files() == {"f": b"olD", "d/g": b"1"}


def history(seed: int, length: int) -> list[Micro]:
    """Micro-operations on a few inodes, names and directories, sensible or not."""
    rng = random.Random(seed)
    micros: list[Micro] = []
    for index in range(length):
        inode, name = rng.randrange(10, 14), rng.choice("abc")
        parent, parent2 = rng.choice([ROOT, 20, 21]), rng.choice([ROOT, 20, 21])
        made: list[Micro] = [
            Micro(index, index, "link", inode, parent, name),
            Micro(index, index, "unlink", inode, parent, name),
            Micro(index, index, "rename", inode, parent, name, parent2, rng.choice("abc")),
            Micro(index, index, "data", inode, offset=rng.randrange(20), data=bytes([65 + index % 26]) * rng.randrange(1, 9)),
            Micro(index, index, "size", inode, size=rng.randrange(30)),
            Micro(index, index, "trunc", inode, size=rng.randrange(30)),
            Micro(index, index, "mkdir", rng.choice([20, 21]), parent, rng.choice("de")),
            Micro(index, index, "rename", rng.choice([20, 21]), parent, "d", parent2, rng.choice("de"), scope="dir"),
            Micro(index, index, "exchange", 20, parent, "d", parent2, "e", 21, scope="dir", allocated=True),
            Micro(index, index, "xattr", inode, name="user.k", data=b"v", size=rng.choice([1, -1])),
            Micro(index, index, "marker", name="ack 1"),
        ]
        micros.append(rng.choice(made))
    return micros


def by_hand(initial: Tree, micros: Sequence[Micro], kept: int) -> Tree:
    return apply(initial, [micro for place, micro in enumerate(micros) if kept >> place & 1])


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 40), st.lists(st.integers(0, (1 << 40) - 1), min_size=1, max_size=12))
def test_a_builder_that_shares_work_gives_what_applying_each_subset_gives(seed: int, length: int, subsets: list[int]) -> None:
    micros, initial = history(seed, length), Tree.of({"a": b"before", "d/x": b"1"})
    builder = ImageBuilder(initial, micros, snapshots=4)
    for kept in [*subsets, subsets[0], subsets[0] ^ 1 << length // 2]:
        kept &= (1 << length) - 1
        assert builder.build(kept).digest() == by_hand(initial, micros, kept).digest()
