"""An application with one connection: reads SQL, one statement a line, answers with one line.

    python3 app.py DATABASE

`.hash` answers with a hash of SQLite's own image of the database, `.close` closes and opens again.
"""
import sqlite3, struct, sys, zlib

path = sys.argv[1]


def connect():
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    connection.execute("pragma synchronous=normal")
    return connection


def state_hash(connection):
    """The sum of a hash of each page: who changes a page need not hash the others again."""
    image = connection.serialize()
    size = struct.unpack(">H", image[16:18])[0]
    size = 65536 if size == 1 else size
    total = 0
    for index in range(len(image) // size):
        page = image[index * size : (index + 1) * size]
        total += (zlib.crc32(page, index + 1) << 32 | zlib.adler32(page)) * 0x9E3779B97F4A7C15
    return "%016x:%d" % (total & 0xFFFFFFFFFFFFFFFF, len(image) // size)


connection = connect()
for line in sys.stdin:
    line = line.strip()
    try:
        if line == ".hash":
            answer = state_hash(connection)
        elif line == ".close":
            connection.close()
            connection = connect()
            answer = "ok"
        else:
            rows = connection.execute(line).fetchall()
            answer = ";".join(",".join(str(v) for v in row) for row in rows)
    except sqlite3.Error as e:
        answer = "error: %s" % e
    print(answer, flush=True)
