"""A writer with an oracle: logs a hash of SQLite's own image of every state, in order.

    python3 writer.py DATABASE LOG SEED DEADLINE

One writer at a time holds a lock of the test, so that the log has the order of the commits. What
it logs, one entry a line: a hash; `(` before a burst of commits that are not hashed; `)N` behind
one of N commits. A writer that is killed in a burst leaves no `)`: any number of states may lie
there.
"""
import fcntl, os, random, sqlite3, struct, sys, time, zlib

path, log_path, seed, deadline = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
rnd = random.Random(seed)
log = open(log_path, "a+b", buffering=0)


def connect():
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    connection.execute("pragma synchronous=%s" % rnd.choice(["normal", "normal", "full", "off"]))
    connection.execute("pragma cache_size=%d" % rnd.choice([5, 100, 2000]))
    if rnd.random() < 0.5:
        connection.execute("pragma wal_autocheckpoint=%d" % rnd.choice([0, 1, 10, 100]))
    if rnd.random() < 0.4:
        connection.execute("pragma journal_size_limit=%d" % rnd.choice([0, 5000, 40000, 200000]))
    return connection


def state_hash():
    image = connection.serialize()
    size = struct.unpack(">H", image[16:18])[0]
    size = 65536 if size == 1 else size
    total = 0
    for index in range(len(image) // size):
        page = image[index * size : (index + 1) * size]
        total += (zlib.crc32(page, index + 1) << 32 | zlib.adler32(page)) * 0x9E3779B97F4A7C15
    return b"%016x:%d" % (total & 0xFFFFFFFFFFFFFFFF, len(image) // size)


def last_entry():
    end = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), 80, max(0, end - 80)).split(b"\n")[-2:-1]


def say(entry):
    os.write(log.fileno(), entry + b"\n")


def log_state():
    entry = state_hash()
    if last_entry() != [entry]:
        say(entry)


def insert():
    connection.execute("insert into t(x) values(randomblob(?))", (int(rnd.random() ** 4 * 9000),))


def rows():
    return connection.execute("select count(*) from t").fetchone()[0]


def transaction(end, count):
    connection.execute("begin immediate")
    for _ in range(count):
        insert()
    connection.execute("update t set x = randomblob(50) where id % 7 = ?", (rnd.randrange(7),))
    connection.execute(end)


def checkpoint():
    mode = rnd.choice(["passive", "passive", "full", "restart", "truncate"])
    connection.execute("pragma busy_timeout=%d" % rnd.choice([0, 50, 1000]))
    try:
        connection.execute("pragma wal_checkpoint(%s)" % mode).fetchall()
    except sqlite3.OperationalError:
        pass
    connection.execute("pragma busy_timeout=20000")


def burst():
    say(b"(")
    count = rnd.randrange(2, 150)
    for _ in range(count):
        insert()
    say(b")%d" % count)


def one():
    kind = rnd.random()
    if kind < 0.5:
        insert()
    elif kind < 0.62:
        transaction("commit", rnd.randrange(1, 30))
    elif kind < 0.70:
        transaction("rollback", rnd.randrange(1, 60))
    elif kind < 0.80:
        burst()
    elif kind < 0.90 and rows() > 60:
        some = "(select id from t order by random() limit ?)"
        connection.execute("delete from t where id in " + some, (rows() // 2,))
    elif kind < 0.93:
        connection.execute("vacuum")
    elif kind < 0.96:
        connection.execute("pragma incremental_vacuum(%d)" % rnd.randrange(1, 9)).fetchall()
    else:
        connection.execute("pragma user_version=%d" % rnd.randrange(1 << 30))


connection = connect()
while time.time() < deadline:
    fcntl.flock(log, fcntl.LOCK_EX)
    log_state()
    one()
    log_state()
    fcntl.flock(log, fcntl.LOCK_UN)
    if rnd.random() < 0.10:
        checkpoint()
    if rnd.random() < 0.03:
        connection.close()
        connection = connect()
    pause = rnd.random()
    if pause < 0.02:
        time.sleep(rnd.random() * 1.2)
    elif pause < 0.2:
        time.sleep(rnd.random() * 0.01)
