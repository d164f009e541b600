//! Applications that write with real SQLite, and what their transactions wrote.

use super::made::{Commit, PAGE_BYTES};
use crate::program::LONG;
use crate::writer::Dice;
use rusqlite::{Connection, params};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CUSTOMERS: i64 = 150_000;
const ORDERS: i64 = 250_000;
const LEDGER: i64 = 250_000;
const WORDS: i64 = 4096;
/// Transactions between two looks at the `-wal`.
const AT_ONCE: usize = 500;

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// A shop: new orders, changes of recent ones, customers of whom few come often.
    Skewed,
    /// Rows anywhere, each as often as another.
    Uniform,
}

/// A database and who writes it.
pub(super) struct Application {
    path: PathBuf,
    connection: Connection,
    dice: Dice,
    words: Vec<String>,
    /// How often the first so many words, customers and orders are meant.
    words_share: Vec<f64>,
    share: Vec<f64>,
    orders: i64,
    keys: Keys,
}

impl Application {
    /// A database of about 90 MB; its pages compress about as those of real ones were measured to.
    pub(super) fn new(path: &Path, keys: Keys) -> Self {
        let connection = Connection::open(path).unwrap();
        let schema = "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL;
             PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF;
             CREATE TABLE customers(id INTEGER PRIMARY KEY, name, email, address, balance, note);
             CREATE TABLE orders(id INTEGER PRIMARY KEY, customer, placed, status, total, items);
             CREATE INDEX orders_by_customer ON orders(customer, placed);
             CREATE TABLE ledger(id INTEGER PRIMARY KEY, customer, amount, booked, note);
             CREATE INDEX ledger_by_customer ON ledger(customer);";
        connection.execute_batch(schema).unwrap();
        let mut application = Self {
            path: path.to_owned(),
            connection,
            dice: Dice(20_260_101),
            words: Vec::new(),
            words_share: zipf(WORDS, 1.0),
            share: zipf(CUSTOMERS, 0.99),
            orders: 0,
            keys,
        };
        application.words = (0..WORDS).map(|_| application.word()).collect();
        application.fill();
        application.empty_wal();
        application
    }

    fn word(&mut self) -> String {
        let letters = 3 + self.roll(7);
        (0..letters)
            .map(|_| char::from(b'a' + self.roll(26) as u8))
            .collect()
    }

    /// Words of about so many letters together.
    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::new();
        while text.len() < bytes {
            let word = chosen(&self.words_share, &mut self.dice);
            text.push_str(&self.words[word]);
            text.push(' ');
        }
        text
    }

    /// A customer of whom some come much more often than others; they stand anywhere.
    fn customer(&mut self) -> i64 {
        let rank = match self.keys {
            Keys::Uniform => self.roll(CUSTOMERS),
            Keys::Skewed => chosen(&self.share, &mut self.dice) as i64,
        };
        rank * 48_271 % CUSTOMERS + 1
    }

    fn fill(&mut self) {
        self.connection.execute_batch("BEGIN").unwrap();
        for id in 1..=CUSTOMERS {
            let (name, address) = (self.text(12), self.text(30));
            let (number, words) = (self.roll(1 << 40), self.text(40));
            let mail = format!("{number:x}@example.org");
            let note = format!("{:016x} {words}", self.dice.roll(u64::MAX));
            let row = params![id, name, mail, address, number, note];
            let sql = "INSERT INTO customers VALUES(?1, ?2, ?3, ?4, ?5, ?6)";
            self.run(sql, row);
        }
        for _ in 0..ORDERS {
            let customer = self.roll(CUSTOMERS) + 1;
            self.order(customer);
        }
        for _ in 0..LEDGER {
            let customer = self.roll(CUSTOMERS) + 1;
            self.book(customer);
        }
        self.connection.execute_batch("COMMIT").unwrap();
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: i64) -> i64 {
        self.dice.roll(sides as u64) as i64
    }

    fn run(&self, sql: &str, row: &[&dyn rusqlite::ToSql]) {
        let mut statement = self.connection.prepare_cached(sql).unwrap();
        assert_eq!(statement.execute(row).unwrap(), 1, "{sql}");
    }

    fn order(&mut self, customer: i64) {
        self.orders += 1;
        let (placed, total) = (1_767_225_600 + self.orders, self.roll(100_000));
        let mut items = String::new();
        for _ in 0..1 + self.roll(4) {
            let (sku, count, price) = (self.roll(1 << 32), self.roll(9) + 1, self.roll(100_000));
            items += &format!("{{\"sku\":\"{sku:08x}\",\"count\":{count},\"price\":{price}}}");
        }
        let row = params![self.orders, customer, placed, "placed", total, items];
        self.run("INSERT INTO orders VALUES(?1, ?2, ?3, ?4, ?5, ?6)", row);
    }

    fn book(&mut self, customer: i64) {
        let (amount, booked) = (self.roll(100_000), self.roll(1 << 32));
        let (reference, words) = (self.dice.roll(u64::MAX), self.text(30));
        let note = format!("payment {reference:016x} {words}");
        let row = params![customer, amount, booked, note];
        self.run("INSERT INTO ledger VALUES(NULL, ?1, ?2, ?3, ?4)", row);
    }

    fn charge(&mut self, customer: i64) {
        let amount = self.roll(100_000);
        let sql = "UPDATE customers SET balance = balance + ?2 WHERE id = ?1";
        self.run(sql, params![customer, amount]);
    }

    fn change_order(&mut self, order: i64) {
        let status = self.dice.pick(&["packed", "sent", "arrived", "returned"]);
        let sql = "UPDATE orders SET status = ?2, total = total + 1 WHERE id = ?1";
        self.run(sql, params![order, status]);
    }

    fn transaction(&mut self) {
        self.connection.execute_batch("BEGIN").unwrap();
        let customer = self.customer();
        match (self.keys, self.roll(20)) {
            (Keys::Uniform, _) => {
                self.charge(customer);
                let order = self.roll(ORDERS) + 1;
                self.change_order(order);
                let order = self.roll(ORDERS) + 1;
                self.change_order(order);
            }
            (Keys::Skewed, 0..9) => {
                self.order(customer);
                self.charge(customer);
                self.book(customer);
            }
            (Keys::Skewed, 9..16) => {
                // The younger an order, the more likely it changes.
                let age = chosen(&self.share, &mut self.dice) as i64;
                self.change_order(self.orders - age);
            }
            (Keys::Skewed, _) => {
                self.charge(customer);
                self.book(customer);
            }
        }
        self.connection.execute_batch("COMMIT").unwrap();
    }

    fn empty_wal(&self) {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: i64 = self
            .connection
            .query_row(sql, [], |row| row.get(0))
            .unwrap();
        assert_eq!(busy, 0);
    }

    /// The database file; its `-wal` is empty.
    pub(super) fn image(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// Writes for a time, with SQLite's own checkpoints; how many transactions.
    pub(super) fn write(&mut self, seconds: u64) -> u64 {
        let checkpoints = "PRAGMA wal_autocheckpoint = 1000";
        let set = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        self.connection.query_row(checkpoints, [], set).unwrap();
        self.connection.busy_timeout(LONG).unwrap();
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(seconds) {
            self.transaction();
            count += 1;
        }
        count
    }

    /// So many transactions: what each wrote, as the `-wal` has it.
    pub(super) fn commit(&mut self, count: usize, mut each: impl FnMut(Commit)) {
        let mut left = count;
        while left > 0 {
            let now = left.min(AT_ONCE);
            for _ in 0..now {
                self.transaction();
            }
            let mut wal = self.path.clone().into_os_string();
            wal.push("-wal");
            let commits = commits(&fs::read(wal).unwrap());
            assert_eq!(commits.len(), now);
            commits.into_iter().for_each(&mut each);
            self.empty_wal();
            left -= now;
        }
    }
}

/// The transactions in a `-wal` that one connection wrote from its beginning.
fn commits(wal: &[u8]) -> Vec<Commit> {
    let mut commits = Vec::new();
    let mut writes: Vec<(u32, Vec<u8>)> = Vec::new();
    for frame in wal[32..].chunks_exact(24 + PAGE_BYTES) {
        let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let (page, pages) = (number(0), number(4));
        writes.retain(|(other, _)| *other != page);
        writes.push((page, frame[24..].to_vec()));
        if pages > 0 {
            let writes = std::mem::take(&mut writes);
            commits.push(Commit { pages, writes });
        }
    }
    commits
}

/// The share of the first one of `count`, of the first two, and so on.
fn zipf(count: i64, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
    let mut sums: Vec<f64> = weights
        .map(|weight| {
            sum += weight;
            sum
        })
        .collect();
    sums.iter_mut().for_each(|part| *part /= sum);
    sums
}

/// One of those with these shares.
fn chosen(shares: &[f64], dice: &mut Dice) -> usize {
    let point = dice.roll(1 << 52) as f64 / (1_u64 << 52) as f64;
    let found = shares.partition_point(|upto| *upto < point);
    found.min(shares.len() - 1)
}
