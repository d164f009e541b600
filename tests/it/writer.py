"""An application that writes to a database: the commands and the ledger of writer.rs and oracle.rs,
with the SQLite of the system."""

import fcntl, hashlib, json, os, random, sqlite3, sys, time

LINE = 80
setup = json.loads(sys.argv[1])
dice = random.Random(setup["seed"])


def connect():
    connection = sqlite3.connect(setup["database"], timeout=30, isolation_level=None)
    connection.execute("PRAGMA synchronous = " + setup["synchronous"])
    return connection


class Ledger:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)

    def line(self, number):
        return os.pread(self.fd, LINE, number * LINE)

    def append(self, kind, digest, size):
        os.write(self.fd, b"%s %s %12d\n" % (kind, digest, size))

    def settle(self):
        image = judge.serialize()
        digest = hashlib.sha256(image).hexdigest().encode()
        number = os.fstat(self.fd).st_size // LINE
        last = b""
        while number > 0 and not last.startswith(b"C"):
            number -= 1
            last = self.line(number)
        same = last.startswith(b"C") and last[2:66] == digest
        self.append(b"A" if same else b"C", digest, len(image))

    def look(self):
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        self.settle()
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def commit(self, work):
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            count = os.fstat(self.fd).st_size // LINE
            if count and self.line(count - 1).startswith(b"B"):
                self.settle()
            self.append(b"B", b"-" * 64, 0)
            try:
                work()
            finally:
                self.settle()
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)


def change(page_bytes):
    """SQL that changes something, at random."""
    table = dice.choice(["t0", "t1", "t2"])
    size = dice.randrange(min(page_bytes, 4096) * 2)
    few, many = dice.randrange(1, 21), dice.randrange(100, 500)

    def insert(rows, blob):
        return (
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
            f" INSERT INTO {table}(a, b) SELECT random(), randomblob({blob}) FROM n"
        )

    some = f"(SELECT id FROM {table} ORDER BY random() LIMIT {few})"
    kind = dice.randrange(10)
    if kind < 4:
        return insert(few, size)
    if kind < 6:
        return f"UPDATE {table} SET a = random(), b = randomblob({size}) WHERE id IN {some}"
    if kind == 6:
        return f"DELETE FROM {table} WHERE id % 2 = {few % 2}"
    if kind == 7:
        return insert(many, min(size, 1000))
    if kind == 8:
        return f"CREATE TABLE IF NOT EXISTS x{few}(a)"
    return f"DROP TABLE IF EXISTS x{few}"


def transaction():
    main.execute("BEGIN IMMEDIATE")
    try:
        pages, page_bytes = (
            main.execute("PRAGMA " + name).fetchone()[0] for name in ("page_count", "page_size")
        )
        if pages * page_bytes > 1500000:
            main.execute("DELETE FROM t0")
            main.execute("DELETE FROM t1 WHERE id % 3 > 0")
        for _ in range(dice.randrange(1, 5)):
            main.execute(change(page_bytes))
        if dice.randrange(12) == 0:
            return
        main.execute("UPDATE tick SET n = n + 1")
        commit(lambda: main.execute("COMMIT"))
    finally:
        if main.in_transaction:
            main.execute("ROLLBACK")


def between():
    """What an application does between two transactions."""
    kind = dice.randrange(24)
    if kind < 2:
        mode = dice.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        main.execute(f"PRAGMA busy_timeout = {dice.choice([0, 50])}")
        main.execute(f"PRAGMA wal_checkpoint({mode})")
        main.execute("PRAGMA busy_timeout = 30000")
    elif kind == 2:
        main.execute(f"PRAGMA journal_size_limit = {dice.choice([-1, 0, 32768])}")
    elif kind == 3:
        main.execute(f"PRAGMA cache_size = {dice.choice([5, 2000])}")
    elif kind == 4 and dice.randrange(4) == 0:
        main.execute("PRAGMA busy_timeout = 0")
        commit(lambda: main.execute("VACUUM"))
        main.execute("PRAGMA busy_timeout = 30000")


def run_random(count):
    global main
    failed = 0
    for _ in range(count):
        try:
            between()
            transaction()
        except sqlite3.OperationalError as error:
            # A fault in a sync, or a lock that somebody else has.
            if not any(word in str(error) for word in ("disk I/O error", "locked")):
                raise
            failed += 1
            main.close()
            main = connect()
    return {"failed": failed}


def run_updates(count, rate):
    stop = os.path.join(os.path.dirname(setup["database"]), "stop")
    start = time.monotonic()
    done = 0
    for n in range(count):
        if rate:
            time.sleep(max(0, start + n / rate - time.monotonic()))
        value = f"{setup['seed']}:python:{start}:{n}"
        row = dice.randrange(1, 101)
        commit(lambda: main.execute("UPDATE t SET v = ? WHERE id = ?", (value, row)))
        done += 1
        if n % 16 == 0 and os.path.exists(stop):
            break
    return {"commits": done}


def obey(command):
    verb, _, rest = command.partition(" ")
    if verb == "random":
        return run_random(int(rest))
    if verb == "updates":
        return run_updates(*map(int, rest.split()))
    raise SystemExit(f"no such command: {command}")


main, judge = connect(), connect()
ledger = Ledger(setup["ledger"]) if setup["ledger"] else None
commit = ledger.commit if ledger else lambda work: work()
if ledger:
    # Recovery may have brought back a commit that was written but never published.
    ledger.look()
for line in sys.stdin:
    print(">", json.dumps(obey(line.strip())), flush=True)
