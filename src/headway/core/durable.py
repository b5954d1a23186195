"""The only door to files that must survive a crash: atomic publishing, the journal, the chunk log and the writer's lock.

Standard library only. Contracts: the modules named here; tests/core/test_journal_crash.py tests them against every crash state.
"""

from headway.core.chunklog import ChunkLog, read_chunks
from headway.core.disk import Disk
from headway.core.errors import DurabilityLost, JournalCorrupt, Locked
from headway.core.journal import Journal
from headway.core.publish import WriterLock, make_dirs, publish, publish_dir
from headway.core.segment import read_records

__all__ = [
    "ChunkLog",
    "Disk",
    "DurabilityLost",
    "Journal",
    "JournalCorrupt",
    "Locked",
    "WriterLock",
    "make_dirs",
    "publish",
    "publish_dir",
    "read_chunks",
    "read_records",
]
