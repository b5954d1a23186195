"""Which blocks of each file hold data already: a write into them may reach the disk apart from the file's new size."""

from headway.core.errors import CapacityError
from headway.crashtest.micro import BLOCK_BYTES
from headway.crashtest.tree import MAX_TREE_BYTES, File, Tree


class Blocks:
    """Allocated blocks by inode. Files larger than what the simulation can hold raise CapacityError."""

    def __init__(self, initial: Tree) -> None:
        self._held = {inode: _around(0, len(node.data)) for inode, node in initial.nodes.items() if isinstance(node, File)}

    def any(self, inode: int) -> bool:
        """Whether a file has a block."""
        return bool(self._held.get(inode))

    def pieces(self, inode: int, start: int, end: int) -> list[tuple[int, int, bool]]:
        """[start, end) as runs (start, end, allocated before)."""
        held = self._held.get(inode, set())
        found: list[tuple[int, int, bool]] = []
        for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            first, last, old = max(start, block * BLOCK_BYTES), min(end, (block + 1) * BLOCK_BYTES), block in held
            if found and found[-1][2] == old:
                found[-1] = (found[-1][0], last, old)
            else:
                found.append((first, last, old))
        return found

    def allocate(self, inode: int, start: int, end: int) -> None:
        """Every block that [start, end) touches."""
        _refuse_large(end)
        self._held.setdefault(inode, set()).update(_around(start, end))

    def release(self, inode: int, start: int, end: int) -> None:
        """Every block that lies within [start, end), as a punched hole."""
        self._held.setdefault(inode, set()).difference_update(range(-(-start // BLOCK_BYTES), end // BLOCK_BYTES))

    def cut(self, inode: int, size: int) -> None:
        """Every block behind `size` bytes."""
        _refuse_large(size)
        self._held[inode] = {block for block in self._held.get(inode, ()) if block * BLOCK_BYTES < size}


def _around(start: int, end: int) -> set[int]:
    return set(range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)))


def _refuse_large(size_bytes: int) -> None:
    if size_bytes > MAX_TREE_BYTES:
        raise CapacityError(
            f"a file grows to {size_bytes} bytes, the simulation holds files of up to {MAX_TREE_BYTES}; trace a smaller workload",
            needed=size_bytes,
            capacity=MAX_TREE_BYTES,
        )
