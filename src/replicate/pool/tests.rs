//! The pool with real threads and files.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

const PATIENCE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(3600);

/// Does one thing again and again; tells how it ended.
struct Repeated<F> {
    wake: Wake,
    step: F,
    ended: Sender<bool>,
}

impl<F: FnMut(&Wake, bool) -> Option<Duration> + Send> Task for Repeated<F> {
    fn step(&mut self, is_changed: bool) -> Option<Duration> {
        (self.step)(&self.wake, is_changed)
    }

    fn end(self: Box<Self>, has_panicked: bool) {
        drop(self.wake);
        // The test may not want to know.
        self.ended.send(has_panicked).ok();
    }
}

fn start(
    pool: &Arc<Pool>,
    step: impl FnMut(&Wake, bool) -> Option<Duration> + Send + 'static,
) -> (Bell, Receiver<bool>) {
    let (wake, bell) = pool.enter().unwrap();
    let (ended, end) = channel();
    let id = wake.id();
    pool.begin(id, Box::new(Repeated { wake, step, ended }));
    (bell, end)
}

/// Lets them all end, and waits for it.
fn end_all(pool: &Pool, is_over: &AtomicBool, tasks: Vec<(Bell, Receiver<bool>)>) {
    is_over.store(true, Ordering::SeqCst);
    drop(tasks);
    until("an empty pool", || pool.state().lookout.is_none());
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn idle_tasks_hold_no_thread_and_each_wakes_when_it_is_rung() {
    let pool = Pool::new(4, Duration::from_millis(50));
    let turns = Arc::new(AtomicUsize::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..300)
        .map(|_| {
            let (turns, is_over) = (Arc::clone(&turns), Arc::clone(&is_over));
            start(&pool, move |_, _| {
                turns.fetch_add(1, Ordering::SeqCst);
                (!is_over.load(Ordering::SeqCst)).then_some(LONG)
            })
        })
        .collect();
    until("the first turns", || turns.load(Ordering::SeqCst) == 300);
    until("the end of all threads", || pool.threads() == 0);
    for (bell, _) in &tasks {
        bell.ring();
    }
    until("another turn each", || turns.load(Ordering::SeqCst) == 600);
    assert!(pool.threads() <= 4);
    end_all(&pool, &is_over, tasks);
}

#[test]
fn a_task_that_panics_ends_alone() {
    let pool = Pool::new(2, LONG);
    let (_bell, ended) = start(&pool, |_, _| panic!("as the test wants it"));
    assert!(ended.recv_timeout(PATIENCE).unwrap());
    let (bell, ended) = start(&pool, {
        let mut turns = 0;
        move |_, _| {
            turns += 1;
            (turns < 3).then_some(LONG)
        }
    });
    until("its end", || {
        bell.ring();
        ended.try_recv().is_ok_and(|has_panicked| !has_panicked)
    });
    until("an empty pool", || pool.state().lookout.is_none());
    // It serves again.
    let (_bell, ended) = start(&pool, |_, _| None);
    assert!(!ended.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn what_happens_between_arming_and_sleep_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"1").unwrap();
    let pool = Pool::new(2, LONG);
    let (_bell, ended) = start(&pool, {
        let mut changes = 0;
        move |wake, is_changed| {
            changes += usize::from(is_changed);
            if changes == 100 {
                return None;
            }
            if !wake.is_armed() {
                wake.arm(&[&path]);
                std::fs::write(&path, b"2").unwrap();
            }
            Some(LONG)
        }
    });
    assert!(!ended.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn more_busy_tasks_than_threads_take_turns() {
    let pool = Pool::new(2, LONG);
    let turns: Vec<_> = (0..6).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = turns
        .iter()
        .map(|turns| {
            let (turns, is_over) = (Arc::clone(turns), Arc::clone(&is_over));
            start(&pool, move |_, _| {
                turns.fetch_add(1, Ordering::SeqCst);
                (!is_over.load(Ordering::SeqCst)).then_some(REST_MIN)
            })
        })
        .collect();
    until("twenty turns each", || {
        turns.iter().all(|turns| turns.load(Ordering::SeqCst) >= 20)
    });
    assert!(pool.threads() <= 2);
    let most = turns.iter().map(|turns| turns.load(Ordering::SeqCst)).max();
    assert!(most.unwrap() < 2000, "{turns:?}");
    end_all(&pool, &is_over, tasks);
}
