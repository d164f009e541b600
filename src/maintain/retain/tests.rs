use super::*;
use words::{DAY, at, check, check_noted, keeps, notes, policy, survey};

mod simulated;
mod words;

#[test]
fn all_points_of_the_window_stay_and_what_its_start_means() {
    let one = ["snap@1 seg@2-50 seg@51-60"];
    keeps(&one, "all=10", 60, "50 windowstart; 51-60 10 recent");
    keeps(&one, "all=11", 60, "49 windowstart; 50-60 11 recent");
    keeps(&one, "all=100", 60, "1-60 60 recent");
    keeps(&one, "all=0", 60, "60 windowstart");
    keeps(&one, "all=10", 65, "55 windowstart; 56-60 5 recent");
}

#[test]
fn of_each_hour_and_day_the_last_point_stays() {
    let one = ["snap@1 seg@2-320"];
    // Six points an hour: the last one of the first hour is 5.
    let hours = "296 windowstart; 299 hourly; 305 hourly; 311 hourly; 317 hourly; 320 hourly";
    keeps(&one, "hourly=4h", 320, hours);
    keeps(&one, "daily=3d", 320, "143 daily; 287 daily; 320 daily");
    keeps(
        &one,
        "daily=1d",
        320,
        "176 windowstart; 287 daily; 320 daily",
    );
    // What is the last of its hour and of its day is named once.
    keeps(
        &one,
        "all=2 hourly=2h daily=2d",
        320,
        "32 windowstart; 143 daily; 287 daily; 308 windowstart; 311 hourly; 317 hourly; \
         318 windowstart; 319-320 2 recent",
    );
}

#[test]
fn the_newest_point_stays_however_old_it_is() {
    let one = ["snap@1 seg@2-50 seg@51-60"];
    let thin = "thin seg@2-50 to 50; thin seg@51-60 to 60";
    check(&one, "all=1d", 400 * DAY, thin);
    keeps(&one, "all=1d", 400 * DAY, "60 windowstart");
    check(&["snap@1 seg@2-50 snap@50"], "all=1d", 400 * DAY, "");
    // Nor does the policy matter.
    keeps(&one, "", 400 * DAY, "60 newest");
}

#[test]
fn a_point_in_the_future_stays() {
    keeps(
        &["snap@1 seg@2-6"],
        "all=1",
        3,
        "2 windowstart; 3-6 4 recent",
    );
    keeps(&["snap@1 seg@2-6"], "", 3, "4-6 3 recent");
    let two = ["1: snap@1 seg@2-6", "2<1/6+3: snap@7 seg@8-9"];
    keeps(&two, "", 5, "6-6 1 recent; 2/7-2/9 3 recent");
}

#[test]
fn only_what_can_be_opened_is_kept() {
    keeps(&["snap@7/1 seg@2-5 seg@6-9"], "all=1d", 9, "7-9 3 recent");
    keeps(&["snap@1 seg@2-5 seg@7-9"], "all=1d", 9, "1-5 5 recent");
    keeps(
        &["snap@1 seg@2-5 mark@6 snap@6! seg@7-9"],
        "daily=1d",
        9,
        "5 daily; 9 daily",
    );
    keeps(&["snap@1 seg@2-5 mark@6 seg@7-9"], "daily=1d", 9, "5 daily");
    keeps(&["seg@2-9"], "all=1d", 9, "");
}

#[test]
fn a_segment_goes_when_no_kept_point_needs_it() {
    let one = ["snap@1 seg@2-10 seg@11-20 snap@20 seg@21-30 seg@31-40"];
    // The start means 20, which is the snapshot's own.
    check(&one, "all=20", 40, "seg@2-10 expired; seg@11-20 expired");
    // The start means 19, so all that leads there is needed.
    check(&one, "all=21", 40, "thin seg@2-10 to 10");
    // It means 10: what lies behind that is not.
    let cut = ["snap@1 seg@2-10 snap@20 seg@21-30"];
    check(&cut, "all=15", 30, "thin seg@2-10 to 10");
}

#[test]
fn what_leads_from_a_snapshot_to_a_kept_point_stays() {
    let one = ["snap@1 seg@2-140 seg@141-150 seg@151-160 snap@160 seg@161-300"];
    check(
        &one,
        "all=1 daily=3d",
        300,
        "thin seg@2-140 to 140; thin seg@141-150 to 143,150; \
         seg@151-160 expired",
    );
}

#[test]
fn what_cannot_be_opened_stays_as_long_as_it_is_new() {
    // It may be a fault that ends; behind the last snapshot nothing goes at all.
    let gap = ["snap@1 seg@2-5 seg@7-9 snap@20 seg@21-30"];
    check(&gap, "all=26", 30, "");
    check(&gap, "all=22", 30, "thin seg@2-5 to 5");
    check(&gap, "all=21", 30, "thin seg@2-5 to 5; seg@7-9 expired");
    let open = ["snap@1 seg@2-5 seg@7-9"];
    check(&open, "all=1", 900, "thin seg@2-5 to 5");
    let early = ["snap@70/1 seg@2-5 seg@6-9"];
    check(&early, "all=1", 900, "");
}

#[test]
fn a_segment_that_was_not_read_stays_with_all_that_leads_to_it() {
    let one = ["snap@1 seg@2-10 seg@11-20? snap@20 seg@21-30 seg@31-40?"];
    // Its points are older than one that the start means.
    check(&one, "all=15", 40, "seg@2-10 expired; seg@11-20 expired");
    keeps(
        &one,
        "all=22",
        40,
        "10 windowstart; 20-30 11 recent and 2 not read",
    );
    check(&one, "all=22", 40, "thin seg@2-10 to 10");
    // The end of the first hour may lie in what was not read.
    let hours = ["snap@1 seg@2-4 seg@5-5? seg@6-20"];
    keeps(
        &hours,
        "hourly=1d",
        20,
        "4 hourly; 11 hourly; 17 hourly; 20 hourly; ?-? 0 recent and 1 not read",
    );
    check(
        &["snap@1 seg@2-4 seg@5-?"],
        "all=1",
        900,
        "thin seg@2-4 to 4",
    );
}

#[test]
fn a_segment_of_old_points_is_thinned_when_half_of_them_may_go() {
    let one = ["snap@1 seg@2-19 seg@20-60"];
    check(&one, "all=20 hourly=1d", 60, "thin seg@2-19 to 5,11,17,19");
    // Not while one of its points is in the window of all commits.
    check(&one, "all=42 hourly=1d", 60, "");
    check(&one, "all=41 hourly=1d", 60, "thin seg@2-19 to 5,11,17,19");
    let few = |segment: &str, expect: &str| {
        let objects = format!("snap@1 {segment} seg@20-60");
        check(&[objects.as_str()], "all=20 hourly=1d", 60, expect);
    };
    few("seg1@2-19:5,11,17", "");
    few("seg1@2-19:5,11,16,17", "");
    few("seg1@2-19:5,9,11,15,17", "");
    few("seg1@2-19:5,9,10,11,15,17", "thin seg1@2-19 to 5,11,17,19");
    few("seg15@2-19", "");
}

#[test]
fn the_last_entry_of_a_thinned_segment_is_not_counted() {
    check(&["snap@1 seg1@2-8:5 seg@9-60"], "all=20 hourly=1d", 60, "");
    check(
        &["snap@1 seg@2-3 seg@4-60"],
        "all=20 hourly=1d",
        60,
        "thin seg@2-3 to 3",
    );
    check(&["snap@1 seg@2-2 seg@3-60"], "all=20 hourly=1d", 60, "");
}

#[test]
fn of_two_segments_for_one_range_the_higher_one_is_thinned() {
    let two = ["snap@1 seg1@2-19 seg2@2-19:5,11,17^60 seg@20-60"];
    check(&two, "all=20 hourly=1d", 60, "");
    check(
        &two,
        "all=20 hourly=1d",
        66,
        "seg1@2-19 merged into seg2@2-19",
    );
}

#[test]
fn what_is_cut_by_another_segment_or_was_not_read_is_not_thinned() {
    check(
        &["snap@1 seg1@2-19 seg2@15-25 seg@26-60"],
        "all=20 daily=1d",
        60,
        "thin seg2@15-25 to 25",
    );
    check(&["snap@1 seg@2-19? seg@20-60"], "all=20 hourly=1d", 60, "");
}

#[test]
fn a_mark_is_never_thinned_and_goes_when_it_is_not_needed() {
    let one = ["snap@1 seg@2-5 mark@6 snap@6>snap@1 seg@7-60"];
    check(
        &one,
        "all=20 hourly=1d",
        60,
        "thin seg@2-5 to 5; mark@6 expired",
    );
    check(
        &["snap@1 seg@2-5 mark@6 snap@6>snap@1"],
        "all=1",
        900,
        "seg@2-5 expired",
    );
}

#[test]
fn the_inputs_of_a_merge_go_when_its_output_was_there_for_an_hour() {
    let one = ["snap@1 seg@2-5 seg@6-9 seg1@2-9^30 seg@10-40"];
    let merged = "seg@2-5 merged into seg1@2-9; seg@6-9 merged into seg1@2-9";
    check(&one, "all=9d", 35, "");
    check(&one, "all=9d", 36, merged);
    // Whether they were read does not matter.
    let unread = ["snap@1 seg@2-5? seg@6-9? seg1@2-9?^30 seg@10-40"];
    check(&unread, "all=9d", 36, merged);
    let limits = Limits {
        merged_grace: Duration::from_secs(1200),
    };
    let retained = retain(
        &survey(&one),
        &BTreeMap::new(),
        &policy("all=9d"),
        &limits,
        at(32),
    );
    assert_eq!(words::said(&retained), merged);
}

#[test]
fn what_is_spread_over_several_segments_or_goes_on_behind_them_stays() {
    check(
        &["snap@1 seg1@2-9 seg2@2-5 seg2@6-9 seg@10-40"],
        "all=9d",
        80,
        "",
    );
    check(&["snap@1 seg@6-12 seg1@2-9 seg@10-40"], "all=9d", 80, "");
    check(&["snap@1 seg@6-? seg1@2-9"], "all=9d", 80, "");
}

#[test]
fn what_a_segment_hides_goes_with_it() {
    let one = ["snap@1 seg@2-5 seg@6-9 seg1@2-9^60 snap@9 seg@10-60"];
    check(
        &one,
        "all=20",
        60,
        "seg@2-5 expired; seg@6-9 expired; seg1@2-9 expired",
    );
    // Another history would come out over that which is kept.
    let late = ["snap@1 seg@6-12 seg1@2-9 snap@9 seg@10-60"];
    check(&late, "all=20", 60, "");
    // Here it would not: merged ones come before it.
    let spread = ["snap@1 seg@6-12 seg1@2-9 snap@9 seg1@10-60"];
    check(&spread, "all=20", 60, "seg1@2-9 expired");
}

#[test]
fn a_snapshot_goes_a_day_after_it_was_first_not_needed() {
    let one = ["snap@1 seg@2-300 snap@300 seg@301-600 snap@600 seg@601-700"];
    let gone = "seg@2-300 expired; seg@301-600 expired";
    check(&one, "all=50", 700, gone);
    notes(&one, "", "all=50", 700, "1/snap@1^700 1/snap@300^700");
    let noted = "snap@1^556 snap@300^557";
    check_noted(
        &one,
        noted,
        "all=50",
        700,
        &format!("{gone}; snap@1 unneeded since 556"),
    );
    notes(&one, noted, "all=50", 700, "1/snap@1^556 1/snap@300^557");
    // The second is needed again, and a third one is not there any more.
    let again = "snap@1^556 snap@300^557 snap@9^1";
    notes(&one, again, "all=200", 700, "1/snap@1^556");
    // A clock that ran ahead when it noted.
    notes(
        &one,
        "snap@1^900 snap@300^700",
        "all=50",
        700,
        "1/snap@1^700 1/snap@300^700",
    );
}

#[test]
fn what_a_live_snapshot_names_stays_and_so_does_a_young_one() {
    let one = ["snap@1 part@1 part@2 snap@600>snap@1,part@1"];
    check_noted(
        &one,
        "snap@1^1 part@1^1 part@2^1",
        "all=1",
        1200,
        "part@2 orphan",
    );
    let young = ["snap@1^1100 snap@600"];
    check_noted(&young, "snap@1^1", "all=1", 1243, "");
    check_noted(&young, "snap@1^1", "all=1", 1244, "snap@1 unneeded since 1");
    let other = ["1: snap@1", "2<1/1: snap@2>1/snap@1"];
    check_noted(&other, "snap@1^1", "all=1", 1200, "");
}

#[test]
fn what_no_complete_snapshot_names_goes_after_a_week() {
    let one = ["snap@1 part@5 snap@9>part@7 seg@2-1100"];
    check_noted(&one, "part@5^800 snap@9^800", "all=9d", 1012, "");
    check_noted(
        &one,
        "part@5^800 snap@9^800",
        "all=9d",
        1013,
        "part@5 orphan",
    );
    let both = "snap@9 orphan; part@5 orphan";
    check_noted(&one, "part@5^800 snap@9^800", "all=9d", 1017, both);
    check_noted(
        &one,
        "part@5^900 snap@9^800",
        "all=9d",
        1017,
        "snap@9 orphan",
    );
    // Once a complete one named it, it does not wait that long.
    let two = ["snap@1>part@5 part@5 snap@9 seg@10-300"];
    check_noted(
        &two,
        "snap@1^20 part@5^20",
        "all=9",
        300,
        "snap@1 unneeded since 20; part@5 unneeded since 20",
    );
}

#[test]
fn a_damaged_snapshot_may_be_read_again() {
    let only = ["1: snap@1! part@1 seg@2-9", "2: snap@1"];
    check(&only, "all=1", 9000, "thin seg@2-9 to 9");
    // It opens what is behind it as well as the one before it does.
    let one = ["snap@1 seg@2-9 snap@9! seg@10-600 snap@600 seg@601-700"];
    check_noted(
        &one,
        "snap@1^1 snap@9^1",
        "daily=9d",
        700,
        "thin seg@2-9 to 9; thin seg@10-600 to 143,287,431,575,600; thin seg@601-700 to 700",
    );
    // What it may name stays too.
    let homes = ["part@1 snap@1! part@2 seg@2-600"];
    check_noted(
        &homes,
        "part@1^1 part@2^1 snap@1^1",
        "all=9d",
        1300,
        "part@2 orphan",
    );
    // Until nothing needs it any more.
    let old = ["part@1 snap@1! seg@2-9 snap@9 seg@10-600"];
    check_noted(
        &old,
        "part@1^1 snap@1^1",
        "all=1",
        1300,
        "thin seg@10-600 to 600; seg@2-9 expired; snap@1 orphan; part@1 orphan",
    );
}

#[test]
fn a_generation_that_another_one_continues_goes_when_times_resolve_in_that_one() {
    let two = [
        "1: claim snap@1 seg@2-30",
        "2<1/30+40: claim snap@1 seg@2-60",
    ];
    keeps(&two, "all=1d", 100, "1-30 30 recent; 2/1-2/60 60 recent");
    keeps(&two, "all=60", 100, "30 windowstart; 2/1-2/60 60 recent");
    keeps(&two, "all=59", 100, "2/1 windowstart; 2/2-2/60 59 recent");
    check(&two, "all=59", 100, "seg@2-30 expired");
    // It shares less than all: the rest has nowhere else to be.
    let fork = [
        "1: claim snap@1 seg@2-30",
        "2<1/20+40: claim snap@1 seg@2-60",
    ];
    keeps(
        &fork,
        "all=59",
        100,
        "30 windowstart; 2/1 windowstart; 2/2-2/60 59 recent",
    );
    // Its successor cannot be opened.
    let none = ["1: claim snap@1 seg@2-30", "2<1/30+40: claim seg@2-60"];
    keeps(&none, "all=1", 101, "30 windowstart");
}

#[test]
fn what_a_clock_that_ran_ahead_made_stays_read_or_not() {
    for word in ["seg@2-30", "seg@2-30?"] {
        let parent = format!("1<0/1+100000: claim snap@1 {word}");
        let two = [&parent, "2<1/30+40: claim snap@1 seg@2-60"];
        check(&two, "all=59", 100, "");
    }
    // Not beyond the window, though nobody knows what is in it.
    let two = [
        "1: claim snap@1 seg@2-30?",
        "2<1/30+40: claim snap@1 seg@2-60",
    ];
    check(&two, "all=59", 100, "seg@2-30 expired");
}

#[test]
fn a_past_that_ends_within_a_generation_keeps_the_last_of_its_hour() {
    let fork = ["1: snap@1 seg@2-30", "2<1/14+40: snap@1 seg@2-10"];
    let line = "11 hourly; 14 hourly; 17 hourly; 23 hourly; 29 hourly; 30 hourly";
    keeps(
        &fork,
        "hourly=40",
        50,
        &format!("10 windowstart; {line}; 2/1 hourly; 2/7 hourly; 2/10 hourly"),
    );
    // The start of the window means 14 to those who come from the second one.
    keeps(
        &fork,
        "hourly=12",
        50,
        "14 windowstart; 30 windowstart; 2/1 hourly; 2/7 hourly; 2/10 hourly",
    );
}

#[test]
fn readers_pass_over_a_generation_without_a_snapshot() {
    let three = [
        "1: claim snap@1 seg@2-30",
        "2<1/30+31: claim",
        "3<2/1+40: claim snap@1 seg@2-60",
    ];
    check(&three, "all=59", 100, "seg@2-30 expired");
    keeps(&three, "all=60", 100, "30 windowstart; 3/1-3/60 60 recent");
}

#[test]
fn a_generation_without_a_snapshot_goes_a_week_after_a_higher_one_has_one() {
    let two = [
        "1: claim part@1 snap@5>part@9 seg@2-9",
        "2: claim snap@1>1/part@1",
    ];
    check(&two, "all=1d", 9 + 7 * DAY - 1, "");
    let gone = "snap@5 abandoned; seg@2-9 abandoned";
    check(&two, "all=1d", 9 + 7 * DAY, gone);
    let none = ["1: claim part@1 seg@2-9", "2: claim part@1"];
    check(&none, "all=1d", 9 + 70 * DAY, "");
    let lower = ["1: claim snap@1", "2: claim part@1 seg@2-9"];
    check(&lower, "all=1d", 9 + 70 * DAY, "");
}

#[test]
fn a_claim_goes_last_of_its_generation_and_the_oldest_first() {
    check(&["1: claim", "2: claim snap@1"], "all=1d", 7 * DAY - 1, "");
    check(
        &["1: claim", "2: claim snap@1"],
        "all=1d",
        7 * DAY,
        "claim emptygeneration",
    );
    check(
        &["1: claim snap@1", "2: claim", "3: claim snap@1"],
        "all=1d",
        70 * DAY,
        "",
    );
    check(
        &["1: claim", "2: claim", "3: claim"],
        "all=1d",
        70 * DAY,
        "claim emptygeneration; 2/claim emptygeneration",
    );
    check(&["1: claim"], "all=1d", 70 * DAY, "");
    check(
        &["1: claim seg@2-9", "2: claim snap@1"],
        "all=1d",
        70 * DAY,
        "seg@2-9 abandoned",
    );
}

#[test]
fn reasons_are_sentences() {
    let said = |why: Why| why.to_string();
    assert_eq!(said(Why::MergedInto("a/b".to_owned())), "merged into a/b");
    assert_eq!(said(Why::Expired), "no kept restore point needs it");
    assert_eq!(
        said(Why::Unneeded(at(0))),
        "nothing has needed it since 2026-11-20T00:00:00.000000Z"
    );
    assert_eq!(Keep::Daily.to_string(), "the last commit of its day");
}

#[test]
fn a_fuzzy_snapshot_needs_the_segments_from_its_beginning_on() {
    let one = ["snap@7/1 seg@2-5 seg@6-9 snap@9 seg@10-60"];
    check(&one, "all=53", 60, "thin seg@2-5 to 5");
    check(&one, "all=51", 60, "seg@2-5 expired; seg@6-9 expired");
}

#[test]
fn readers_pass_over_what_they_do_not_share() {
    // The third one shares the second one up to txid 5 only, before its snapshot.
    let three = [
        "1: snap@1 seg@2-30",
        "2<1/30+31: snap@10/1 seg@2-20",
        "3<2/5+60: snap@1 seg@2-40",
    ];
    let kept = "30 windowstart; 2/19 windowstart; 2/20-2/20 1 recent; 3/1-3/40 40 recent";
    keeps(&three, "all=50", 100, kept);
}

#[test]
fn the_next_time_is_that_of_the_next_change() {
    #[track_caller]
    fn next(keep: &str, now: i64, expect: Option<i64>) {
        let survey = survey(&["snap@1 seg@2-50 seg@51-60"]);
        let before = BTreeMap::new();
        let decision = retain(&survey, &before, &policy(keep), &Limits::default(), at(now));
        assert_eq!(decision.next, expect.map(at));
    }
    // The start of the window comes to a segment, and leaves it.
    next("all=10", 60, Some(61));
    next("all=10", 61, Some(70));
    next("all=10", 70, None);
    // The last of the hour before last, 53, leaves.
    next("hourly=100", 152, Some(153));
}

#[test]
fn what_others_hide_goes_before_them_and_a_snapshot_before_what_it_names() {
    let folder = "generations/0000000";
    let time = "20261120T174512.345678Z-00c0ffee";
    let old = format!("{folder}1-00000007/snapshots/0000000000000009-{time}.snapshot");
    let new = format!("{folder}1-00000007/snapshots/0000000000000064-{time}.snapshot");
    let child = format!("{folder}2-00000007/snapshots/0000000000000001-{time}.snapshot");
    let part = format!("{folder}1-00000007/pages/0000000000000001-00000001-00c0ffee.pages");
    let claim = format!("{folder}1-00000007/claim");
    let merged = format!("{folder}1-00000007/wal/1/0000000000000002-0000000000000009-{time}.wal");
    let uploads = [2, 5].map(|first| format!("{folder}1-00000007/wal/0/{first:016x}.wal"));
    let expired = |key: &String| Deletion::new(&words::listed(key, words::at(0)), Why::Expired);
    let hidden = |key: &String| Deletion::hidden(&words::listed(key, words::at(0)), Why::Expired);
    let mut gone = [&claim, &part, &old, &child, &merged, &new]
        .map(expired)
        .to_vec();
    gone.extend(uploads.iter().map(hidden));
    let waves = waves(gone);
    let keys: Vec<Vec<&str>> = waves
        .iter()
        .map(|wave| wave.iter().map(|deletion| deletion.key.as_str()).collect())
        .collect();
    assert_eq!(
        keys,
        [
            vec![uploads[0].as_str(), &uploads[1]],
            vec![&merged],
            vec![&child],
            vec![&new],
            vec![&old],
            vec![&part],
            vec![&claim],
        ]
    );
}
