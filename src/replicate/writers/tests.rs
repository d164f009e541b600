use super::*;
use crate::format::container::Parent;
use crate::format::ids::DatabaseId;

/// What a segment of the tests goes on from, and whose commits it holds.
///
/// `2-4` is an upload of our own commits that goes on from the hash before txid 2; `m2-8` a merged
/// one. `!` behind it: of another writer's commits, which lie on no chain of ours. `?`: it cannot
/// be read. `#`: it goes on from another hash. `*`: the object that waits to be sent. `+`: its end
/// lies on our chain with one commit more than it says.
fn found(text: &str) -> Found {
    let (rest, mark) = match text.find(['!', '?', '#', '*', '+']) {
        Some(at) => (&text[..at], &text[at..]),
        None => (text, ""),
    };
    let level = u8::from(rest.starts_with('m'));
    let (first, last) = rest.trim_start_matches('m').split_once('-').unwrap();
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let frame = last as u32 + u32::from(mark == "+");
    let salt = if mark == "!" { 66 } else { 1 };
    let inside = Inside {
        hash: hash(last, if mark == "*" { 7 } else { level }),
        level,
        first: txid(first),
        previous: hash(first - 1, if mark == "#" { 9 } else { 0 }),
        hands_on: hash(last, 0),
        writer: WriterId([2; 8]),
        ending: Ending {
            end: end(salt, frame),
            ..ending(last)
        },
        snapshot: None,
    };
    Found {
        key: text.to_owned(),
        level,
        first: txid(first),
        last: txid(last),
        inside: (mark != "?").then_some(inside),
    }
}

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn hash(txid: u64, kind: u8) -> ObjectHash {
    let mut hash = [kind; 32];
    hash[..8].copy_from_slice(&txid.to_le_bytes());
    ObjectHash(hash)
}

fn end(salt: u32, frame: u32) -> WalEnd {
    WalEnd {
        salts: [salt, salt],
        frame,
        checksum: [frame, salt],
    }
}

fn ending(last: u64) -> Ending {
    Ending {
        txid: txid(last),
        time: Timestamp::from_micros(last as i64),
        upper_bound: false,
        pages: 1,
        end: end(1, last as u32),
        page_size: PageSize::new(512).unwrap(),
        sqlite_version: 0,
    }
}

/// The generation starts at number 100 of the spool, and txid n ends at frame n.
const BASE: u64 = 100;

fn seq_of(end: &WalEnd) -> Option<u64> {
    let is_ours = end.salts == [1, 1] && end.checksum == [end.frame, 1] && end.frame <= 50;
    is_ours.then(|| BASE + u64::from(end.frame) - 1)
}

/// Our position is txid 10.
#[track_caller]
fn check(what: &str, expect: &str) {
    let known = Known {
        next: txid(11),
        base: BASE,
        last_hash: hash(10, 0),
        waiting: Some(hash(12, 7)),
    };
    let found: Vec<Found> = what.split_whitespace().map(found).collect();
    let names = |indexes: &[usize]| -> String {
        let names = indexes
            .iter()
            .map(|&index| format!(" {}", found[index].key));
        names.collect()
    };
    let verdict = match judge(&known, &found, &seq_of) {
        Verdict::GoOn { adopted } if adopted.is_empty() => "go on".to_owned(),
        Verdict::GoOn { adopted } => format!("adopt{}", names(&adopted)),
        Verdict::NewGeneration { adopted, other } => {
            let shared = adopted.last().map_or(txid(10), |&index| found[index].last);
            let shared = shared.get();
            format!("new generation, shared {shared}, for{}", names(&[other]))
        }
    };
    assert_eq!(verdict, expect, "{what}");
}

#[test]
fn where_nothing_is_found_the_generation_goes_on() {
    check("", "go on");
    // Merged from what we stored.
    check("m2-8", "go on");
    check("m2-10", "go on");
}

#[test]
fn our_own_object_is_a_lost_reply() {
    check("11-12*", "adopt 11-12*");
    // Not at another place.
    check("11-11 12-12*", "adopt 11-11 12-12*");
    check("11-12* 13-14!", "new generation, shared 12, for 13-14!");
}

#[test]
fn segments_of_our_own_commits_are_adopted_as_far_as_they_go() {
    check("11-11", "adopt 11-11");
    check("11-13 14-14 15-20", "adopt 11-13 14-14 15-20");
    check("15-20 11-13 14-14", "adopt 11-13 14-14 15-20");
}

#[test]
fn merged_segments_of_our_own_commits_are_adopted() {
    check("m11-20", "adopt m11-20");
    // It begins within what we stored.
    check("m5-20 21-21", "adopt m5-20 21-21");
    check("m2-10 m11-20", "adopt m11-20");
    // The uploads that it was merged from, and one that came since.
    check("11-12 13-20 m11-20 21-22", "adopt m11-20 21-22");
}

#[test]
fn commits_that_are_not_on_our_chain_are_another_writers() {
    check("11-11!", "new generation, shared 10, for 11-11!");
    check("11-12 13-13!", "new generation, shared 12, for 13-13!");
    check("m5-20!", "new generation, shared 10, for m5-20!");
    check("m11-20! 11-12*", "new generation, shared 10, for m11-20!");
    // Our capture has not got so far.
    check("11-51", "new generation, shared 10, for 11-51");
}

#[test]
fn an_end_on_our_chain_does_not_suffice() {
    // Another number of commits lies before it.
    check("11-12+", "new generation, shared 10, for 11-12+");
    check("m5-12+", "new generation, shared 10, for m5-12+");
    // It goes on from what we do not know.
    check("11-12#", "new generation, shared 10, for 11-12#");
    check("11-12 13-14#", "new generation, shared 12, for 13-14#");
}

#[test]
fn nothing_is_adopted_across_a_gap() {
    check("13-14", "new generation, shared 10, for 13-14");
    check("11-11 13-14 15-15", "new generation, shared 11, for 13-14");
}

#[test]
fn what_cannot_be_read_is_another_writers() {
    check("11-11?", "new generation, shared 10, for 11-11?");
    check("11-11 12-12?", "new generation, shared 11, for 12-12?");
}

#[track_caller]
fn check_unbroken(what: &str, expect: bool) {
    let found: Vec<Found> = what.split_whitespace().map(found).collect();
    assert_eq!(is_unbroken(&found), expect, "{what}");
}

#[test]
fn a_generation_is_taken_up_again_only_if_its_last_segments_are_whole() {
    check_unbroken("", true);
    check_unbroken("15-20 11-14", true);
    check_unbroken("m2-20 21-22 15-20", true);
    check_unbroken("m5-20! 21-22!", true);
    check_unbroken("11-12 15-20", false);
    check_unbroken("11-14 15-20#", false);
    check_unbroken("11-14? 15-20", false);
    check_unbroken("11-14 15-20?", false);
}

#[test]
fn a_segment_under_another_name_than_its_own_is_not_read() {
    let upload = found("11-12").inside.unwrap();
    assert!(upload.is_named(0, txid(11), None));
    assert!(!upload.is_named(0, txid(12), None));
    let merged = found("m11-20").inside.unwrap();
    assert!(merged.is_named(1, txid(11), Some(txid(20))));
    assert!(!merged.is_named(1, txid(11), Some(txid(21))));
    assert!(!merged.is_named(2, txid(11), Some(txid(20))));
}

/// A generation that ends with txid 20, which has this number in the spool.
#[track_caller]
fn check_base(seq: Option<u64>, known: Option<u64>, stepped_back: bool, expect: Option<u64>) {
    assert_eq!(base_if_ours((txid(20), seq), known, stepped_back), expect);
}

#[test]
fn a_generation_whose_end_lies_on_our_chain_goes_on_without_a_state() {
    check_base(Some(BASE + 19), None, false, Some(BASE));
    check_base(None, None, false, None);
}

#[test]
fn an_end_with_another_number_of_commits_before_it_than_our_state_counts_is_not_ours() {
    check_base(Some(BASE + 19), Some(BASE), false, Some(BASE));
    check_base(Some(BASE + 18), Some(BASE), false, None);
    check_base(Some(BASE + 20), Some(BASE), false, None);
}

#[test]
fn a_generation_whose_times_lie_far_ahead_of_the_clock_ends() {
    check_base(Some(BASE + 19), None, true, None);
}

#[test]
fn a_spool_that_counts_fewer_commits_than_the_generation_cannot_follow_it() {
    check_base(Some(18), None, false, None);
    check_base(Some(19), None, false, Some(0));
}

/// A commit as generation, txid, run and number in the spool.
fn place((ordinal, last, run, seq): (u32, u64, u64, u64)) -> Place {
    Place {
        parent: Parent {
            generation: generation(ordinal),
            txid: txid(last),
        },
        time: minutes(0),
        run: (run, 9),
        seq,
        end: end(1, seq as u32),
    }
}

/// Whether the next generation goes on from what the spool shows, not from what the state knows.
#[track_caller]
fn check_parent(known: (u32, u64, u64, u64), shown: (u32, u64, u64, u64), is_shown: bool) {
    let (known, shown) = (place(known), place(shown));
    let expect = if is_shown { shown } else { known };
    assert_eq!(goes_on_from(Some(known), Some(shown)), Some(expect));
}

#[test]
fn a_generation_goes_on_from_the_last_commit_of_its_past_that_is_stored() {
    assert_eq!(goes_on_from(None, None), None);
    let one = Some(place((1, 5, 1, 14)));
    assert_eq!(goes_on_from(one, None), one);
    assert_eq!(goes_on_from(None, one), one);
    // The state is of yesterday.
    check_parent((1, 5, 1, 14), (1, 20, 2, 15), true);
    check_parent((1, 5, 1, 14), (3, 2, 2, 15), true);
    // Of what was stored before it.
    check_parent((1, 5, 1, 14), (1, 4, 1, 13), false);
    check_parent((1, 5, 1, 14), (1, 5, 2, 15), false);
    check_parent((2, 1, 1, 14), (1, 14, 2, 15), false);
}

#[test]
fn where_a_clone_committed_the_same_the_spool_says_what_is_later() {
    check_parent((1, 7, 1, 16), (2, 2, 1, 15), false);
    check_parent((1, 7, 1, 16), (2, 3, 1, 16), false);
    check_parent((1, 7, 1, 16), (2, 4, 1, 17), true);
}

fn minutes(minutes: i64) -> Timestamp {
    Timestamp::from_micros(minutes * 60_000_000)
}

fn up(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// Minutes since the last answer by uptime and by the clock.
#[track_caller]
fn check_pause(uptime: u64, clock: i64, expect: bool) {
    let contact = Contact {
        uptime: up(1000),
        clock: minutes(5000),
        date: None,
    };
    let was_long_ago = contact.was_long_ago(up(1000 + uptime), minutes(5000 + clock));
    assert_eq!(was_long_ago, expect, "{uptime} {clock}");
}

#[test]
fn after_a_pause_by_either_clock_or_a_clock_set_back_the_store_is_looked_at() {
    check_pause(0, 0, false);
    check_pause(10, 10, false);
    check_pause(11, 11, true);
    check_pause(11, 0, true);
    check_pause(0, 11, true);
    check_pause(0, -10, false);
    check_pause(0, -11, true);
}

/// Minutes since the last answer by the store's clock and by uptime.
#[track_caller]
fn check_doubt(date: i64, uptime: u64, expect: bool) {
    let contact = Contact {
        uptime: up(1000),
        clock: minutes(5000),
        date: Some((minutes(7000), up(1000))),
    };
    let is_doubtful = contact.is_doubtful(minutes(7000 + date), up(1000 + uptime));
    assert_eq!(is_doubtful, expect, "{date} {uptime}");
}

#[test]
fn more_time_in_the_store_than_here_is_a_pause_that_we_did_not_see() {
    check_doubt(1, 1, false);
    check_doubt(10, 0, false);
    check_doubt(11, 0, true);
    check_doubt(60, 60, false);
    check_doubt(60, 49, true);
    // The store's clock was set back, or it is another server.
    check_doubt(-11, 0, true);
    let first = Contact {
        uptime: up(0),
        clock: minutes(0),
        date: None,
    };
    assert!(first.is_doubtful(minutes(0), up(0)));
}

#[test]
fn what_was_stored_counts_after_a_look_if_anything_says_that_time_passed() {
    let last = Contact {
        uptime: up(0),
        clock: minutes(0),
        date: Some((minutes(0), up(0))),
    };
    let check = |date: Option<i64>, passed: u64, expect: bool| {
        let (date, clock) = (date.map(minutes), minutes(passed as i64));
        let is_doubtful = is_doubtful(Some(&last), date, up(passed), clock);
        assert_eq!(is_doubtful, expect, "{date:?} {passed}");
    };
    check(Some(1), 1, false);
    check(Some(11), 0, true);
    check(Some(11), 11, true);
    // It was there before.
    check(None, 1, false);
    check(None, 11, true);
    assert!(is_doubtful(None, Some(minutes(0)), up(0), minutes(0)));
}

fn generation(ordinal: u32) -> GenerationId {
    GenerationId { ordinal, random: 7 }
}

fn claim(ordinal: u32) -> Claim {
    Claim {
        generation: generation(ordinal),
        database_id: DatabaseId([1; 16]),
        writer_id: WriterId([2; 8]),
        parent: Some(Parent {
            generation: generation(1),
            txid: txid(4),
        }),
        host: "db2".into(),
        path: "/srv/app.db".into(),
        started: minutes(0),
        reason: "a test".into(),
    }
}

fn higher(ordinal: u32) -> Higher {
    Higher {
        generation: generation(ordinal),
        is_ours: false,
        claim: Some(claim(ordinal)),
        bare_for: None,
    }
}

#[track_caller]
fn check_superseded(higher: &[Higher], expect: Option<u32>) {
    let by = superseded(higher).map(|by| by.generation.ordinal);
    assert_eq!(by, expect);
}

#[test]
fn the_highest_generation_of_another_writer_supersedes_ours() {
    check_superseded(&[], None);
    check_superseded(&[higher(3), higher(5), higher(4)], Some(5));
    let own = Higher {
        is_ours: true,
        ..higher(6)
    };
    check_superseded(std::slice::from_ref(&own), None);
    check_superseded(&[higher(3), own], Some(3));
}

#[test]
fn a_claim_with_nothing_under_it_counts_for_a_day() {
    let hours = |hours: u64| Higher {
        bare_for: Some(Duration::from_secs(hours * 3600)),
        ..higher(5)
    };
    check_superseded(&[hours(0)], Some(5));
    check_superseded(&[hours(24)], Some(5));
    check_superseded(&[hours(25)], None);
    check_superseded(&[hours(25), higher(4)], Some(4));
}

#[test]
fn a_claim_is_as_old_as_the_clock_of_the_store_says() {
    let hours = |count: u64| Duration::from_secs(count * 3600);
    assert_eq!(age_of_claim(minutes(60), Some(minutes(180))), hours(2));
    assert_eq!(age_of_claim(minutes(60), Some(minutes(0))), hours(0));
    assert_eq!(age_of_claim(minutes(60), None), hours(0));
    let contact = |date| Contact {
        uptime: up(9),
        clock: minutes(9),
        date,
    };
    assert_eq!(contact(None).store_time(up(70)), None);
    let said = contact(Some((minutes(100), up(10))));
    assert_eq!(said.store_time(up(70)), Some(minutes(160)));
}

#[test]
fn a_superseded_daemon_names_the_other_and_the_remedy() {
    let mut other = higher(5);
    assert_eq!(
        superseded_sentence(generation(3), &other),
        "the daemon of /srv/app.db on db2 (writing since 1970-01-01T00:00:00.000000Z) began \
         generation 00000005-00000007 above ours: readers follow that one, this daemon goes on in \
         00000003-00000007; if this is the one to follow, stop the other and start this one once \
         with replicate --take-over"
    );
    other.claim = None;
    let said = superseded_sentence(generation(3), &other);
    assert!(
        said.starts_with("a writer whose claim cannot be read began generation"),
        "{said}"
    );
}

#[test]
fn fencing_is_shown_as_one_word() {
    let shown = [Fencing::Unknown, Fencing::PutIfAbsent, Fencing::None].map(|f| f.to_string());
    assert_eq!(shown, ["unknown", "put-if-absent", "none"]);
}

#[test]
fn an_upload_came_late_if_what_lies_behind_it_was_there_before() {
    let check = |others: &[(&str, i64)], expect: bool| {
        let ours = ("wal/0/0000000000000005.wal", 100);
        let all = others.iter().chain([&ours]).map(|&(name, stored)| Listed {
            key: format!("generations/00000001-00000007/{name}"),
            size: 100,
            modified: Timestamp::from_micros(stored),
        });
        let key = format!("generations/00000001-00000007/{}", ours.0);
        assert_eq!(came_late(&key, &all.collect::<Vec<_>>()), expect);
    };
    let upload = "wal/0/0000000000000009.wal";
    check(&[], false);
    check(&[(upload, 99)], true);
    // Somebody may have gone on behind ours.
    check(&[(upload, 100)], false);
    check(&[(upload, 101)], false);
    check(&[("wal/0/0000000000000004.wal", 99)], false);
    let snapshot = "snapshots/0000000000000008-20261120T164335.429000Z-18a2fef8.snapshot";
    check(&[(snapshot, 99)], true);
    let merged = |last| {
        format!("wal/1/0000000000000002-000000000000000{last}-20261120T164335.429000Z-18a2fef8.wal")
    };
    check(&[(&merged(5), 99)], true);
    check(&[(&merged(4), 99)], false);
    check(&[(upload, 101), (snapshot, 99)], true);
}
