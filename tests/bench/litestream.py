"""A database through Litestream's VFS, or as a file: asks it, and says how long that took."""

import sqlite3
import sys
import time


def load():
    """Brings the VFS; what it shows is the replica that the environment names."""
    import litestream_vfs

    litestream_vfs.load(sqlite3.connect(":memory:"))
    return "file:app.db?vfs=litestream"


def fill(plain):
    """Makes the replica hold the pages of a database."""
    # Opened first: once the extension is there it wants to be in every connection.
    source = sqlite3.connect(f"file:{plain}?mode=ro", uri=True)
    replica = sqlite3.connect(load(), uri=True)
    source.backup(replica)
    replica.close()


def ask(file, what, numbers):
    """Seconds from opening to the last row."""
    if file == "vfs":
        file = load()
    start = time.monotonic()
    database = sqlite3.connect(file, uri=True)
    queries = {
        "points": "SELECT length(v) FROM t WHERE id = ?",
        "scan": "SELECT sum(length(v)) FROM t WHERE id <= ?",
    }
    for number in numbers:
        (length,) = database.execute(queries[what], [number]).fetchone()
        assert length > 0
    return time.monotonic() - start


command, *arguments = sys.argv[1:]
if command == "fill":
    fill(*arguments)
else:
    file, what, *numbers = arguments
    print(ask(file, what, map(int, numbers)))
