"""Storage engines that are one `pip install` away: SQLite, LevelDB, LMDB, RocksDB, diskcache, ZODB (specs/crashtest.md section 7)."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from headway.crashtest.histories import prefix_of_history
from headway.crashtest.markers import ack, begin
from headway.crashtest.oracle import Verdict
from headway.crashtest.targets.target import Target


# ---- SQLite ----------------------------------------------------------------------------------------------------------------
def _sqlite(journal: str, synchronous: str, rows: int = 6) -> Callable[[Path], None]:
    def run(directory: Path) -> None:
        connection = sqlite3.connect(directory / "db.sqlite", isolation_level=None)
        connection.execute(f"pragma journal_mode={journal}")
        connection.execute(f"pragma synchronous={synchronous}")
        connection.execute("create table log (n integer primary key, value text)")
        for n in range(1, rows + 1):
            begin(str(n))
            connection.execute("insert into log values (?, ?)", (n, f"{n}" * 900))
            ack(str(n))
        connection.close()

    return run


def _sqlite_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    connection = sqlite3.connect(directory / "db.sqlite")
    try:
        ((report,),) = connection.execute("pragma integrity_check(1)").fetchall()
        if report != "ok":
            return f"integrity_check: {report}"
        has_table = connection.execute("select count(*) from sqlite_master where name = 'log'").fetchone()[0]
        rows = connection.execute("select n, value from log order by n").fetchall() if has_table else []
    finally:
        connection.close()
    if any(value != f"{n}" * 900 for n, value in rows):
        return "a row holds another value than was written"
    return prefix_of_history([n for n, _ in rows], acks, begun)


# ---- LevelDB ---------------------------------------------------------------------------------------------------------------
def leveldb_value(n: int) -> bytes:
    return b"%06d" % n * 340


def leveldb(puts: int) -> Callable[[Path], None]:
    """The workload of specs/crashtest.md section 7: 2 KB values, every 6th put with sync, a write buffer of 70,000 bytes."""

    def run(directory: Path) -> None:
        import plyvel

        db = plyvel.DB(str(directory / "db"), create_if_missing=True, write_buffer_size=70_000)
        for n in range(1, puts + 1):
            begin(str(n))
            synced = n % 6 == 0
            db.put(b"%06d" % n, leveldb_value(n), sync=synced)
            if synced:
                ack(str(n))
        db.close()

    return run


def leveldb_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    import plyvel

    db = plyvel.DB(str(directory / "db"), create_if_missing=True)
    try:
        found = [(int(key), value) for key, value in db]
    finally:
        db.close()
    if any(value != leveldb_value(n) for n, value in found):
        return "a key holds another value than was written"
    return prefix_of_history([n for n, _ in found], acks, begun)


def leveldb_opens(directory: Path) -> Verdict:
    """Only that the database in `directory` itself opens and can be read through: the checker of Pathfinder's LevelDB traces."""
    import plyvel

    db = plyvel.DB(str(directory), create_if_missing=True)
    try:
        for _ in db:
            pass
    finally:
        db.close()
    return None


# ---- LMDB ------------------------------------------------------------------------------------------------------------------
def _lmdb(sync: bool) -> Callable[[Path], None]:
    def run(directory: Path) -> None:
        import lmdb

        environment = lmdb.open(str(directory / "db"), map_size=1 << 20, sync=sync, metasync=sync)
        for n in range(1, 6):
            begin(str(n))
            with environment.begin(write=True) as transaction:
                transaction.put(b"%06d" % n, b"%d" % n * 500)
            ack(str(n))
        environment.close()

    return run


def _lmdb_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    import lmdb

    environment = lmdb.open(str(directory / "db"), map_size=1 << 20)
    try:
        with environment.begin() as transaction:
            found = [(int(key), bytes(value)) for key, value in transaction.cursor()]
    finally:
        environment.close()
    if any(value != b"%d" % n * 500 for n, value in found):
        return "a key holds another value than was written"
    return prefix_of_history([n for n, _ in found], acks, begun)


# ---- RocksDB ---------------------------------------------------------------------------------------------------------------
def _rocksdb(directory: Path) -> None:
    from rocksdict import Options, Rdict, WriteOptions

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_max_background_jobs(1)
    db = Rdict(str(directory / "db"), options)
    synced = WriteOptions()
    synced.sync = True
    for n in range(1, 9):
        begin(str(n))
        db.put(b"%06d" % n, b"%d" % n * 500, write_opt=synced)
        ack(str(n))
    db.close()


def _rocksdb_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    from rocksdict import Options, Rdict

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    db = Rdict(str(directory / "db"), options)
    try:
        found = [(int(key), bytes(value)) for key, value in db.items()]
    finally:
        db.close()
    if any(value != b"%d" % n * 500 for n, value in found):
        return "a key holds another value than was written"
    return prefix_of_history([n for n, _ in found], acks, begun)


# ---- diskcache -------------------------------------------------------------------------------------------------------------
def _diskcache(directory: Path) -> None:
    from diskcache import Cache

    cache = Cache(str(directory / "cache"))
    for n in range(1, 5):
        begin(str(n))
        cache.set(n, b"%d" % n * 40_000)
        ack(str(n))
    cache.close()


def _diskcache_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    """A cache may forget, but it must not answer with something that was never stored."""
    from diskcache import Cache

    cache = Cache(str(directory / "cache"))
    try:
        for n in list(cache):
            value = cache[n]
            if value != b"%d" % n * 40_000:
                return f"wrong value returned silently: {len(value)} bytes for a key of 40000"
        found = sorted(cache)
    finally:
        cache.close()
    return prefix_of_history(found, acks, begun)


# ---- ZODB ------------------------------------------------------------------------------------------------------------------
def _zodb(directory: Path) -> None:
    import transaction
    import ZODB
    import ZODB.FileStorage

    db = ZODB.DB(ZODB.FileStorage.FileStorage(str(directory / "data.fs")))
    connection = db.open()
    for n in range(1, 5):
        begin(str(n))
        connection.root()[n] = str(n) * 300
        transaction.commit()
        ack(str(n))
    db.close()


def _zodb_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    import ZODB
    import ZODB.FileStorage

    db = ZODB.DB(ZODB.FileStorage.FileStorage(str(directory / "data.fs")))
    connection = db.open()
    found = sorted(connection.root())
    wrong = [n for n in found if connection.root()[n] != str(n) * 300]
    db.close()
    return f"wrong values of {wrong}" if wrong else prefix_of_history(found, acks, begun)


TARGETS = (
    Target("sqlite-full", "SQLite, rollback journal, synchronous FULL", _sqlite("delete", "full"), _sqlite_check, clean=False),
    Target("sqlite-extra", "SQLite, rollback journal, synchronous EXTRA", _sqlite("delete", "extra"), _sqlite_check, clean=True),
    Target("sqlite-off", "SQLite, rollback journal, synchronous OFF", _sqlite("delete", "off"), _sqlite_check, clean=False),
    Target("sqlite-wal-full", "SQLite, WAL, synchronous FULL", _sqlite("wal", "full"), _sqlite_check, clean=True),
    Target("sqlite-wal-normal", "SQLite, WAL, synchronous NORMAL", _sqlite("wal", "normal"), _sqlite_check, clean=False),
    Target("leveldb", "LevelDB (plyvel), 70 puts, every 6th synced", leveldb(70), leveldb_check, clean=False, needs="plyvel"),
    Target("leveldb-200", "LevelDB (plyvel), 200 puts", leveldb(200), leveldb_check, clean=False, needs="plyvel"),
    Target("leveldb-600", "LevelDB (plyvel), 600 puts", leveldb(600), leveldb_check, clean=False, needs="plyvel"),
    Target("lmdb", "LMDB, sync", _lmdb(True), _lmdb_check, clean=True, needs="lmdb", ignore=("lock.mdb",)),
    Target("lmdb-nosync", "LMDB without sync", _lmdb(False), _lmdb_check, clean=False, needs="lmdb", ignore=("lock.mdb",)),
    Target("rocksdb", "RocksDB (rocksdict), synced writes", _rocksdb, _rocksdb_check, clean=True, needs="rocksdict"),
    Target("diskcache", "diskcache, 40 kB values in files", _diskcache, _diskcache_check, clean=False, needs="diskcache"),
    Target("zodb", "ZODB FileStorage", _zodb, _zodb_check, clean=None, needs="ZODB", imports=("ZODB.FileStorage", "transaction")),
)
