use super::*;
use crate::storage::conformance::check_store;
use crate::storage::fault::{Fault, FaultStore, Verb, every};
use crate::storage::memory::MemoryStore;
use futures_util::future::join_all;
use std::io;

/// Plays a script of events, each `<seconds> <what>`, and says what each read was told. What a
/// probe fails with is in capitals.
#[track_caller]
fn check(script: &str, expected: &str) {
    let start = Instant::now();
    let at = |seconds: &str| start + Duration::from_secs_f64(seconds.parse().unwrap());
    let mut circuit = Circuit::default();
    let mut told = Vec::new();
    for event in script.split(", ") {
        let (seconds, what) = event.split_once(' ').unwrap();
        let now = at(seconds);
        match what.split_once(' ').unwrap_or((what, "")) {
            ("read", _) => told.push(match circuit.admit(now) {
                Ok(Pass::Plain) => "plain".to_owned(),
                Ok(Pass::Probe) => "probe".to_owned(),
                Err(why) => why,
            }),
            ("ok", _) => drop(circuit.answered(now)),
            ("fails", what) => {
                let (began, why) = what.split_once(' ').unwrap();
                let pass = match why.chars().all(char::is_lowercase) {
                    true => Pass::Plain,
                    false => Pass::Probe,
                };
                circuit.failed(pass, at(began), now, why.to_owned());
            }
            ("waits-since", began) => drop(circuit.overdue(at(began), now, "late".to_owned())),
            ("given-up", began) => circuit.given_up(at(began)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told.join(", "), expected, "{script}");
}

#[tokio::test]
async fn the_circuit_opens_with_two_failures_and_closes_with_an_answer() {
    check("0 read, 1 ok, 2 read", "plain, plain");
    check(
        "0 read, 0 read, 1 fails 0 a, 1 read, 2 fails 0 b, 2 read, 2.9 read",
        "plain, plain, plain, b, b",
    );
    check(
        "0 fails 0 a, 0 fails 0 b, 1 read, 1 read, 2 ok, 2 read",
        "probe, b, plain",
    );
    check("0 fails 0 a, 0 fails 0 b, 0.5 ok, 0.5 read", "plain");
}

#[tokio::test]
async fn one_object_or_one_moment_that_fails_is_not_the_store() {
    check("1 fails 0 a, 2 ok, 4 fails 3 b, 4 read", "plain");
    // Others were answered while these two waited.
    check("2 ok, 4 fails 0 a, 4 fails 1 b, 4 read", "plain");
    check("2 ok, 4 fails 3 a, 4 fails 3 b, 4 read", "b");
}

#[tokio::test]
async fn pauses_double_up_to_ten_seconds_and_begin_anew_after_an_answer() {
    check(
        "0 fails 0 a, 0 fails 0 a, 1 read, 2 fails 1 B, 3.9 read, 4 read, 4 fails 4 C, 7.9 read, \
         8 read, 8 fails 8 D, 15.9 read, 16 read, 16 fails 16 E, 25.9 read, 26 read, \
         26 fails 26 F, 35.9 read, 36 read",
        "probe, B, probe, C, probe, D, probe, E, probe, F, probe",
    );
    check(
        "0 fails 0 a, 0 fails 0 a, 1 read, 1 fails 1 B, 3 ok, 4 fails 4 c, 4 fails 4 c, 5 read",
        "probe, probe",
    );
}

#[tokio::test]
async fn what_was_on_its_way_before_says_nothing_new() {
    check(
        "0 fails 0 a, 0 fails 0 a, 0.9 fails 0 b, 0.9 read, 1 read",
        "a, probe",
    );
}

#[tokio::test]
async fn one_that_waits_long_counts_unless_another_one_was_answered_since() {
    check(
        "0 read, 10 waits-since 0, 10 read, 11 read, 11 read",
        "plain, late, probe, late",
    );
    check("0 read, 5 ok, 10 waits-since 0, 10 read", "plain, plain");
    check("0 ok, 1 read, 11 waits-since 1, 11 read", "plain, late");
    check(
        "0 fails 0 a, 0 fails 0 a, 10 waits-since 0, 10 read",
        "probe",
    );
}

#[tokio::test]
async fn a_probe_that_is_given_up_or_takes_long_makes_room_for_another() {
    check(
        "0 fails 0 a, 0 fails 0 a, 1 read, 2 read, 2 given-up 1, 2 read",
        "probe, a, probe",
    );
    check(
        "0 fails 0 a, 0 fails 0 a, 1 read, 10.9 read, 11 read, 11 read",
        "probe, a, probe, a",
    );
    // The end of the first says nothing about the second.
    check(
        "0 fails 0 a, 0 fails 0 a, 1 read, 11 read, 12 given-up 1, 12 fails 1 B, 13 read",
        "probe, probe, a",
    );
}

#[tokio::test]
async fn the_contract_of_a_store_holds() {
    check_store(|| CircuitStore::new(MemoryStore::new())).await;
}

async fn store() -> (Arc<FaultStore>, Arc<CircuitStore>) {
    let faults = FaultStore::new(MemoryStore::new());
    faults
        .put("key", Body::Bytes(Bytes::from_static(b"abc")))
        .await
        .unwrap();
    (Arc::clone(&faults), CircuitStore::new(faults))
}

/// How many of twenty reads failed, and how long they took all together.
async fn twenty(store: &CircuitStore) -> (usize, Duration) {
    let began = Instant::now();
    let reads = join_all((0..20).map(|_| store.get_range("key", 0, 3))).await;
    (
        reads.iter().filter(|read| read.is_err()).count(),
        began.elapsed(),
    )
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_store_that_is_away_fail_together_and_it_comes_back_by_itself() {
    let (faults, store) = store().await;
    faults.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    assert_eq!(twenty(&store).await.0, 20);
    let calls = faults.counts(Verb::GetRange).calls;
    let (failed, took) = twenty(&store).await;
    assert_eq!((failed, took), (20, Duration::ZERO));
    assert_eq!(faults.counts(Verb::GetRange).calls, calls);
    let error = store.get_range("key", 0, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("refused, as told"), "{error}");
    faults.set_rule(every(Fault::Delay(Duration::from_millis(1))));
    tokio::time::sleep(PAUSE_MIN).await;
    // One finds out; those beside it still fail.
    assert_eq!(twenty(&store).await.0, 19);
    assert_eq!(twenty(&store).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_nothing_is_waited_for_once() {
    let (faults, store) = store().await;
    faults.set_rule(every(Fault::Delay(Duration::from_secs(30))));
    let first = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.get_range("key", 0, 3).await }
    });
    tokio::time::sleep(OVERDUE).await;
    tokio::task::yield_now().await;
    let error = store.get_range("key", 0, 3).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("read memory/key: no answer within 10 s"),
        "{error}"
    );
    // What moves is not given up, and its end closes the circuit.
    assert_eq!(&first.await.unwrap().unwrap()[..], b"abc");
    faults.heal();
    assert_eq!(twenty(&store).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn large_reads_side_by_side_on_a_slow_line_are_no_sign() {
    const LENGTH: u64 = 4 << 20;
    let faults = FaultStore::new(MemoryStore::new());
    let zeros = Body::Bytes(vec![0; LENGTH as usize].into());
    faults.put("key", zeros).await.unwrap();
    let store = CircuitStore::new(faults.clone());
    let together = Duration::from_secs(8 * LENGTH / SLOWEST_LINE);
    faults.set_rule(move |_| Some(Fault::Delay(together)));
    let reads = tokio::spawn({
        let store = Arc::clone(&store);
        async move { join_all((0..8).map(|_| store.get_range("key", 0, LENGTH))).await }
    });
    tokio::time::sleep(together - Duration::from_secs(1)).await;
    faults.heal();
    assert!(store.get_range("key", 0, 3).await.is_ok());
    assert!(reads.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(store.circuit().underway_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_reader_goes_away_holds_up_nobody() {
    let (faults, store) = store().await;
    faults.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    for _ in 0..FAILURES {
        store.get_range("key", 0, 3).await.unwrap_err();
    }
    tokio::time::sleep(PAUSE_MIN).await;
    faults.set_rule(every(Fault::Delay(Duration::from_secs(30))));
    let probe = store.get_range("key", 0, 3);
    tokio::time::timeout(Duration::from_millis(1), probe)
        .await
        .unwrap_err();
    faults.heal();
    assert!(store.get_range("key", 0, 3).await.is_ok());
}

#[tokio::test]
async fn answers_that_are_no_success_do_not_open_it() {
    let (_, store) = store().await;
    for _ in 0..3 {
        let error = store.get_range("other", 0, 3).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn each_replica_of_a_store_has_a_circuit_of_its_own() {
    let (faults, store) = store().await;
    let [away, here] = ["away", "here"].map(|name| store.below(name));
    for store in [&away, &here] {
        let body = Body::Bytes(Bytes::from_static(b"abc"));
        store.put("key", body).await.unwrap();
    }
    faults.set_rule(|call| {
        let refused = Fault::Refuse(ErrorKind::Unavailable);
        call.key.starts_with("away/").then_some(refused)
    });
    for _ in 0..FAILURES {
        away.get_range("key", 0, 3).await.unwrap_err();
    }
    let calls = faults.counts(Verb::GetRange).calls;
    for _ in 0..3 {
        // Asked for before each read, whichever object it is of.
        for key in ["key", "other"] {
            let error = away.get_range(key, 0, 3).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        }
    }
    assert_eq!(faults.counts(Verb::GetRange).calls, calls);
    assert!(here.get_range("key", 0, 3).await.is_ok());
    assert!(store.get_range("key", 0, 3).await.is_ok());
}

/// What is logged, line by line.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_says_once_when_the_store_is_away_and_once_when_it_is_back() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let (faults, store) = store().await;
    faults.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    let mut failed = 0;
    for _ in 0..3 {
        failed += twenty(&store).await.0;
        tokio::time::sleep(PAUSE_MAX).await;
    }
    assert_eq!(failed, 60);
    faults.heal();
    assert_eq!(twenty(&store).await.0, 0);
    assert_eq!(twenty(&store).await.0, 0);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = log.lines().map(str::trim_start).collect();
    let [away, back] = lines.as_slice() else {
        panic!("two lines: {log}");
    };
    let says = "WARN memory is away, reads of it fail at once until it answers: ";
    assert!(
        away.starts_with(says) && away.contains("refused, as told"),
        "{away}"
    );
    assert_eq!(*back, "INFO memory answers again");
}
