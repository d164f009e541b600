//! The rules of the capture as tables: what is seen, and what follows.

use super::*;
use crate::format::wal::WordOrder;

const SIZE: PageSize = PageSize::new(4096).unwrap();
const FRAME: u64 = 4096 + 24;

struct Case {
    seen: Seen,
    done: WalEnd,
    limits: Limits,
}

fn end(salt: u32, frame: u32) -> WalEnd {
    WalEnd {
        salts: [salt, 77],
        frame,
        checksum: [frame, salt],
    }
}

fn index(salt: u32, frame: u32, backfilled: u32) -> Index {
    Index {
        end: end(salt, frame),
        pages: 9,
        page_size: Some(SIZE),
        order: WordOrder::Little,
        backfilled,
    }
}

fn ms(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap())
}

/// Words that change a quiet scene: on a mark at frame 10 of which 4 are backfilled, all copied, a
/// commit 20 ms ago.
fn case(words: &str) -> Case {
    let mut case = Case {
        seen: Seen {
            index: index(5, 10, 4),
            pin: Pin::Mark,
            files: Files::Same,
            rest: Rest::No,
            mark: u32::MAX,
            pin_age: Duration::from_millis(20),
            waited_for: None,
            idle: Duration::from_millis(20),
            since_event: Duration::MAX,
            wal_is_empty: false,
            tries: Tries {
                failed: 0,
                last: TryEnd::Done,
                since_last: Duration::MAX,
                since_lock: Duration::MAX,
            },
            since_empty: Duration::MAX,
            spool_fails: false,
            clock_stepped_back: false,
            spool_bytes: 0,
        },
        done: end(5, 10),
        limits: Limits {
            wal_bytes: 1000 * FRAME,
            writer_lock: true,
            budget_bytes: 10_000 * FRAME,
            monitor: Duration::from_secs(1),
            timing: Timing::default(),
        },
    };
    for word in words.split_whitespace() {
        word_of(&mut case, word);
    }
    case
}

fn word_of(case: &mut Case, word: &str) {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    let number = || value.parse::<u32>().unwrap();
    let seen = &mut case.seen;
    match name {
        "fresh" => seen.pin = Pin::Fresh,
        "mark" => seen.pin = Pin::Mark,
        "lock0" => seen.pin = Pin::Lock0,
        "unknown" => seen.pin = Pin::Unknown,
        "frames" => {
            seen.index.end = end(seen.index.end.salts[0], number());
            seen.index.backfilled = seen.index.backfilled.min(number());
        }
        "backfilled" => seen.index.backfilled = number(),
        "salt" => seen.index.end = end(number(), seen.index.end.frame),
        "checksum" => seen.index.end.checksum[0] = number(),
        "done" => case.done = end(case.done.salts[0], number()),
        "page-size" => seen.index.page_size = PageSize::new(number()),
        "gone" => seen.files = Files::Gone,
        "replaced" => seen.files = Files::Replaced,
        "wal-replaced" => seen.files = Files::WalReplaced,
        "noted" => seen.rest = Rest::Noted,
        "changed" => seen.rest = Rest::Changed,
        "unchanged" => seen.rest = Rest::Unchanged(ms(value)),
        "wal-empty" => seen.wal_is_empty = true,
        "mark-at" => seen.mark = number(),
        "pin-age" => seen.pin_age = ms(value),
        "waited" => seen.waited_for = Some(ms(value)),
        "idle" => seen.idle = ms(value),
        "event" => seen.since_event = ms(value),
        "failed" => seen.tries.failed = number(),
        "busy" => (seen.tries.last, seen.tries.since_last) = (TryEnd::Busy, ms(value)),
        "behind" => (seen.tries.last, seen.tries.since_last) = (TryEnd::Behind, ms(value)),
        "reader" => (seen.tries.last, seen.tries.since_last) = (TryEnd::OtherReader, ms(value)),
        "locked" => seen.tries.since_lock = ms(value),
        "emptied" => seen.since_empty = ms(value),
        "spool-fails" => seen.spool_fails = true,
        "spool" => seen.spool_bytes = u64::from(number()) * FRAME,
        "clock-back" => seen.clock_stepped_back = true,
        "no-writer-lock" => case.limits.writer_lock = false,
        _ => panic!("unknown word {word}"),
    }
}

fn explain(step: &Step) -> String {
    match step {
        Step::Wait(limit) => format!("wait {} ms", limit.as_millis()),
        Step::Copy => "copy".into(),
        Step::HandOver => "hand over".into(),
        Step::PrepareRestart { with_lock: false } => "prepare restart".into(),
        Step::PrepareRestart { with_lock: true } => "prepare restart with the write lock".into(),
        Step::StepAside => "step aside".into(),
        Step::EmptyWal => "empty the WAL".into(),
        Step::RememberFile => "remember the file".into(),
        Step::NoteRest => "note rest".into(),
        Step::ReadBackSpool => "read back the spool".into(),
        Step::StartRun(why) => format!("new run: {why}"),
        Step::SplitRun(why) => format!("split: {why}"),
        Step::Reopen(why) => format!("reopen: {why}"),
        Step::LetGo(why) => format!("let go: {why}"),
    }
}

#[track_caller]
fn check(seen: &str, expected: &str) {
    let case = case(seen);
    let step = next_step(&case.seen, &case.done, SIZE, &case.limits);
    assert_eq!(explain(&step), expected, "{seen}");
}

#[test]
fn new_frames_are_copied_and_lock_0_is_left_at_the_first() {
    check("mark frames=11", "copy");
    check("lock0 frames=11", "hand over");
    check("unknown frames=11", "hand over");
    check("fresh frames=11", "hand over");
}

#[test]
fn a_mark_moves_every_100_ms_and_at_once_when_a_checkpointer_waits() {
    check("mark-at=10 frames=11 pin-age=99", "copy");
    check("mark-at=10 frames=11 pin-age=100", "hand over");
    check("mark-at=10 frames=11 waited=0", "hand over");
    check("mark-at=9 pin-age=99", "wait 1 ms");
    check("mark-at=9 pin-age=100", "hand over");
    check("mark-at=9 waited=0", "hand over");
    check("frames=11 backfilled=11", "hand over");
}

#[test]
fn what_a_pin_sits_on_shows_only_by_taking_the_next() {
    check("unknown", "hand over");
    check("unknown backfilled=10", "hand over");
    check("fresh", "hand over");
}

#[test]
fn a_mark_moves_to_lock_0_as_soon_as_everything_is_backfilled() {
    check("mark backfilled=10", "hand over");
    check("mark backfilled=9", "wait 180 ms");
}

#[test]
fn a_restart_is_prepared_when_it_is_quiet_or_the_wal_is_large() {
    check("idle=0", "wait 200 ms");
    check("idle=199", "wait 1 ms");
    check("idle=200", "prepare restart");
    check("idle=0 frames=999 done=999", "wait 200 ms");
    check("idle=0 frames=1000 done=1000", "prepare restart");
    // A busy application always has frames that are not copied.
    check("idle=0 frames=1000 done=990", "prepare restart");
    check("lock0 idle=0 frames=1000 done=990", "hand over");
}

#[test]
fn after_a_file_event_we_look_again_until_what_it_announced_is_there() {
    check("idle=20 event=0", "wait 1 ms");
    check("idle=20 event=20", "wait 5 ms");
    check("idle=20 event=100", "wait 8 ms");
    check("idle=199 event=100", "wait 1 ms");
    check("idle=20 event=1000", "wait 180 ms");
    check("lock0 backfilled=10 idle=500 event=0", "wait 1 ms");
    check("lock0 backfilled=10 idle=500 event=100", "wait 25 ms");
    check("lock0 backfilled=10 idle=500 event=1000", "wait 1000 ms");
}

#[test]
fn we_step_aside_for_a_checkpointer_that_waits_for_the_lock_that_we_sit_on() {
    check("mark-at=10 waited=0", "wait 10 ms");
    check("mark-at=10 waited=9", "wait 1 ms");
    check("mark-at=10 waited=10", "step aside");
    check("mark-at=10 waited=10 frames=11", "hand over");
    check("mark-at=10 waited=10 backfilled=10", "hand over");
    check(
        "mark-at=10 waited=10 idle=300 failed=1 busy=1",
        "step aside",
    );
}

#[test]
fn a_try_that_failed_is_repeated_soon_at_first_and_then_rarely() {
    check("idle=200 failed=1 busy=7", "wait 1 ms");
    check("idle=200 failed=1 busy=8", "prepare restart");
    check("idle=200 failed=1 reader=8", "prepare restart");
    check("idle=200 failed=3 busy=8", "wait 242 ms");
    check("idle=200 failed=3 busy=250", "prepare restart");
}

#[test]
fn the_write_lock_is_taken_past_three_tries_at_most_once_a_second() {
    let large = "frames=1000 done=1000 idle=0";
    let lock = "prepare restart with the write lock";
    check(&format!("{large} failed=2 busy=8"), "prepare restart");
    check(&format!("{large} failed=3 busy=15"), "wait 235 ms");
    check(&format!("{large} failed=3 busy=16"), lock);
    check(&format!("{large} failed=3 behind=16"), lock);
    check(&format!("{large} failed=3 behind=16 done=990"), lock);
    check(
        &format!("{large} failed=3 behind=16 locked=999"),
        "wait 234 ms",
    );
    check(&format!("{large} failed=3 behind=16 locked=1000"), lock);
    check("frames=4100 done=4100 failed=3 behind=16 locked=334", lock);
    check(
        &format!("{large} failed=3 behind=250 no-writer-lock"),
        "prepare restart",
    );
    check("idle=200 failed=3 behind=250", "prepare restart");
}

#[test]
fn another_reader_is_not_helped_by_the_write_lock_and_tried_ever_more_rarely() {
    let large = "frames=1000 done=1000 idle=0";
    check(&format!("{large} failed=3 reader=7"), "wait 1 ms");
    check(&format!("{large} failed=3 reader=8"), "prepare restart");
    check("idle=200 failed=7 reader=100", "wait 28 ms");
    check("idle=200 failed=40 reader=100", "wait 900 ms");
}

#[test]
fn an_idle_database_rests_on_lock_0_and_its_wal_is_emptied_after_two_seconds() {
    check("lock0 backfilled=10 idle=500", "wait 1000 ms");
    check("lock0 backfilled=10 idle=1500", "wait 500 ms");
    check("lock0 backfilled=10 idle=2000", "empty the WAL");
    check("lock0 backfilled=10 idle=9000 emptied=1900", "wait 100 ms");
    check(
        "lock0 backfilled=10 idle=9000 emptied=2000",
        "empty the WAL",
    );
}

#[test]
fn a_wal_that_the_index_calls_empty_is_emptied_too_while_the_file_has_bytes() {
    check("lock0 frames=0 done=0 idle=2000", "empty the WAL");
    check(
        "lock0 frames=0 done=0 idle=2000 wal-empty",
        "remember the file",
    );
    check(
        "lock0 frames=0 salt=6 idle=2000 wal-empty",
        "remember the file",
    );
}

#[test]
fn what_was_taken_for_lock_0_is_left_if_a_checkpointer_waits_all_the_same() {
    check(
        "lock0 backfilled=10 idle=500 waited=10 pin-age=100",
        "hand over",
    );
    check(
        "lock0 backfilled=10 idle=500 waited=10 pin-age=99",
        "wait 1000 ms",
    );
    check(
        "lock0 backfilled=10 idle=500 waited=9 pin-age=100",
        "wait 1000 ms",
    );
}

#[test]
fn lock_0_over_frames_that_are_not_backfilled_is_left() {
    check("lock0 backfilled=4", "hand over");
}

#[test]
fn the_file_at_rest_is_noted_once_its_time_is_older_than_the_grain() {
    let rest = "lock0 frames=0 salt=6 wal-empty idle=9000";
    check(&format!("{rest} unchanged=1500"), "wait 500 ms");
    check(&format!("{rest} unchanged=2000"), "note rest");
    check(&format!("{rest} noted"), "wait 1000 ms");
}

#[test]
fn a_file_that_changes_while_its_wal_is_empty_was_replaced_in_place() {
    let replaced = "reopen: the database file was written to while its WAL was empty, as by a copy \
                    over it";
    check("lock0 frames=0 salt=6 wal-empty changed", replaced);
    // A commit came since; its checkpoint cannot have, past our lock.
    check("lock0 frames=1 salt=6 changed", replaced);
    check("unknown frames=1 salt=6 changed", "hand over");
}

#[test]
fn on_lock_0_any_change_of_salts_is_followed_from_frame_1() {
    check("lock0 salt=6 frames=3", "hand over");
    check("lock0 salt=4000 frames=3", "hand over");
    check("unknown salt=6 frames=3", "hand over");
    check("lock0 salt=6 frames=0 idle=500", "wait 1000 ms");
}

#[test]
fn on_a_mark_a_change_of_salts_means_that_our_locks_are_gone() {
    let gone = "new run: the WAL was restarted although we held a read mark: something closed a \
                file of the database and dropped our locks";
    check("mark salt=6 frames=3", gone);
    check("mark salt=6 frames=0", gone);
}

#[test]
fn a_pin_opened_after_a_downtime_protects_nothing_that_was_there_before() {
    let lost = "new run: the WAL was restarted before the capture had caught up";
    check("fresh salt=6 frames=3", lost);
    check("fresh salt=6 frames=0", lost);
}

#[test]
fn the_index_must_lead_to_our_position() {
    let broken = "new run: the frames of the -wal file do not lead to what the wal-index counts \
                  as committed";
    check("frames=9", broken);
    check("frames=10 checksum=1", broken);
    check("lock0 frames=0 done=0 checksum=1 idle=500", "wait 1000 ms");
}

#[test]
fn other_files_are_other_databases() {
    check("gone", "reopen: the database file was replaced");
    check(
        "replaced frames=11",
        "reopen: the database file was replaced",
    );
    check(
        "wal-replaced",
        "reopen: the -wal file was removed or replaced",
    );
    check(
        "page-size=8192",
        "reopen: the page size changed from 4096 to 8192 bytes",
    );
}

#[test]
fn a_full_spool_holds_the_pin_while_the_budget_lasts() {
    check("frames=11 spool=9999", "copy");
    check(
        "frames=12 spool=9999",
        "let go: commits were let go: spool and held-back WAL would exceed 41200000 bytes \
         (max-spool-size)",
    );
    check("frames=11 spool=9999 spool-fails", "read back the spool");
    check("spool-fails", "read back the spool");
}

#[test]
fn a_clock_that_stepped_far_back_splits_the_run_at_the_next_commit() {
    check(
        "clock-back frames=11",
        "split: the clock is more than an hour behind the last commit",
    );
    check("clock-back", "wait 180 ms");
}

#[test]
fn a_pin_is_on_lock_0_only_if_the_index_stood_still_and_was_backfilled() {
    let between = Pin::between;
    assert_eq!(between(&index(5, 10, 10), &index(5, 10, 10)), Pin::Lock0);
    assert_eq!(between(&index(5, 0, 0), &index(5, 0, 0)), Pin::Lock0);
    assert_eq!(between(&index(5, 10, 9), &index(5, 10, 9)), Pin::Mark);
    // Backfilled meanwhile, or written to: it may be either.
    assert_eq!(between(&index(5, 10, 9), &index(5, 10, 10)), Pin::Unknown);
    assert_eq!(between(&index(5, 10, 10), &index(5, 11, 10)), Pin::Unknown);
    assert_eq!(between(&index(5, 10, 9), &index(6, 1, 0)), Pin::Unknown);
    // It never was all backfilled.
    assert_eq!(between(&index(5, 10, 4), &index(5, 12, 9)), Pin::Mark);
}

#[track_caller]
fn check_resume(words: &str, header_salt: Option<u32>, unchanged: Option<bool>, expected: &str) {
    let case = case(words);
    let found = Found {
        index: case.seen.index,
        header: header_salt.map(|salt| WalHeader {
            order: WordOrder::Little,
            page_size: SIZE,
            checkpoints: 0,
            salts: [salt, 77],
            checksum: [0; 2],
        }),
        is_unchanged: unchanged,
    };
    let seen = match resume(&found, &case.done) {
        Resume::FromFirstFrame => "from frame 1".to_string(),
        Resume::VerifyChain => "verify".to_string(),
        Resume::FollowTail => "follow the tail".to_string(),
        Resume::Lost(why) => format!("lost: {why}"),
    };
    assert_eq!(seen, expected, "{words}");
}

#[test]
fn after_a_rest_an_unchanged_file_is_continuity_whatever_the_wal_holds() {
    check_resume("salt=9 frames=3", Some(9), Some(true), "from frame 1");
    check_resume("frames=0 salt=9", None, Some(true), "from frame 1");
    check_resume(
        "",
        Some(5),
        Some(false),
        "lost: the database file changed while nothing was captured",
    );
}

#[test]
fn after_a_downtime_the_salts_say_what_is_to_be_proved() {
    check_resume("frames=10", Some(5), None, "verify");
    check_resume("frames=99", Some(5), None, "verify");
    check_resume(
        "frames=9",
        Some(5),
        None,
        "lost: the WAL was written anew while nothing was captured",
    );
    check_resume("salt=6 frames=3", Some(6), None, "follow the tail");
    let restarted = "lost: the WAL was restarted while nothing was captured, and its end may be \
                     lost";
    check_resume("salt=7 frames=3", Some(7), None, restarted);
    check_resume("salt=6 frames=3 done=0", Some(6), None, restarted);
    let gone = "lost: the WAL was emptied while nothing was captured";
    check_resume("salt=6 frames=0", Some(6), None, gone);
    check_resume("salt=6 frames=3", Some(5), None, gone);
    check_resume("salt=6 frames=3", None, None, gone);
}

#[test]
fn only_a_whole_frame_of_an_older_wal_proves_the_end_of_the_old_one() {
    let slot = |salt: u32, pgno: u32| {
        let mut slot = vec![0; FRAME as usize];
        slot[..4].copy_from_slice(&pgno.to_be_bytes());
        slot[8..12].copy_from_slice(&salt.to_be_bytes());
        slot[12..16].copy_from_slice(&77_u32.to_be_bytes());
        slot
    };
    let whole = |slot: &[u8]| tail_is_whole(slot, SIZE, [5, 77], [6, 77]);
    assert!(
        whole(&slot(5, 1)),
        "a frame of the old WAL that does not chain"
    );
    assert!(whole(&slot(3, 1)), "a frame of an older WAL");
    assert!(!whole(&slot(6, 1)), "the new WAL spilled over it");
    assert!(!whole(&slot(9, 1)), "a later WAL");
    assert!(!whole(&slot(5, 0)), "no frame at all");
    assert!(
        !whole(&slot(5, 1)[..FRAME as usize - 1]),
        "cut in mid-frame"
    );
    assert!(!whole(&[]), "the end of the file");
}

#[test]
fn times_ascend_and_follow_the_clock() {
    let time = Timestamp::from_micros;
    assert_eq!(stamp(time(100), time(50)), time(100));
    assert_eq!(stamp(time(100), time(100)), time(101));
    assert_eq!(stamp(time(100), time(500)), time(501));
    let hour = 3_600_000_000;
    assert!(!clock_stepped_back(time(0), time(hour)));
    assert!(clock_stepped_back(time(0), time(hour + 1)));
    assert!(!clock_stepped_back(time(2 * hour), time(0)));
}
