//! Tables of what the schedule asks for.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A schedule with one thread, that runs these tasks in turn.
fn with_tasks<const N: usize>(threads_max: usize) -> (Schedule, Instant, Hand, [Id; N]) {
    let now = Instant::now();
    let mut schedule = Schedule::new(threads_max, now);
    let ids = std::array::from_fn(|_| schedule.enter());
    let mut hand = None;
    for id in ids {
        match (schedule.begin(id, now), hand) {
            (Some(Call::Start(started)), None) => hand = Some(started),
            (Some(Call::Wake(woken)), Some(hand)) => assert_eq!(woken, hand),
            (call, _) => panic!("one thread for all: {call:?}"),
        }
        assert_eq!(schedule.take(now), Some((id, false)));
        schedule.lie_down(hand.unwrap());
    }
    let hand = hand.unwrap();
    // It is not idle: it has the last task.
    schedule.idle.clear();
    (schedule, now, hand, ids)
}

#[test]
fn a_short_rest_keeps_the_thread_and_a_long_one_gives_it_back() {
    let (mut schedule, now, hand, [id]) = with_tasks(9);
    assert_eq!(schedule.rest(id, hand, TICK, now), Rest::Doze);
    assert_eq!(schedule.next_due(), None);
    assert!(!schedule.resume(id, now));
    assert_eq!(schedule.rest(id, hand, SECOND, now), Rest::Part);
    assert_eq!(schedule.next_due(), Some(now + SECOND));
    schedule.lie_down(hand);
    assert_eq!(schedule.due(now + SECOND / 2), []);
    assert_eq!(schedule.due(now + SECOND), [Call::Wake(hand)]);
    assert_eq!(schedule.take(now + SECOND), Some((id, false)));
    assert_eq!(schedule.take(now + SECOND), None);
}

#[test]
fn a_change_counts_once_for_each_arming_and_is_never_lost_after_it() {
    let (mut schedule, now, hand, [id]) = with_tasks(9);
    assert_eq!(schedule.change(id, now), None);
    assert_eq!(schedule.rest(id, hand, TICK, now), Rest::Doze);
    assert_eq!(schedule.change(id, now), None);
    assert!(!schedule.is_called(id));
    assert!(!schedule.resume(id, now));

    // Between arming and rest.
    schedule.arm(id);
    assert!(schedule.is_armed(id));
    assert_eq!(schedule.change(id, now), None);
    assert!(!schedule.is_armed(id));
    let again = Rest::Again { changed: true };
    assert_eq!(schedule.rest(id, hand, SECOND, now), again);

    // As it dozes, and as it is parked.
    schedule.arm(id);
    assert_eq!(schedule.rest(id, hand, TICK, now), Rest::Doze);
    assert_eq!(schedule.change(id, now), Some(Call::Wake(hand)));
    assert!(schedule.is_called(id));
    assert!(schedule.resume(id, now));
    schedule.arm(id);
    assert_eq!(schedule.rest(id, hand, SECOND, now), Rest::Part);
    schedule.lie_down(hand);
    assert_eq!(schedule.change(id, now), Some(Call::Wake(hand)));
    assert_eq!(schedule.change(id, now), None);
    assert_eq!(schedule.take(now), Some((id, true)));
    assert_eq!(schedule.next_due(), None);
}

#[test]
fn a_ring_while_a_task_runs_gives_it_one_more_turn() {
    let (mut schedule, now, hand, [id]) = with_tasks(9);
    assert_eq!(schedule.ring(id, now), None);
    assert_eq!(schedule.ring(id, now), None);
    let again = Rest::Again { changed: false };
    assert_eq!(schedule.rest(id, hand, SECOND, now), again);
    assert_eq!(schedule.rest(id, hand, SECOND, now), Rest::Part);
    assert!(schedule.leave(id));
    assert_eq!(schedule.ring(id, now), None);
}

#[test]
fn one_wake_up_is_for_all_whose_time_is_near() {
    let (mut schedule, now, hand, ids) = with_tasks::<200>(9);
    for (id, later) in ids.iter().zip(0..) {
        let later = now + Duration::from_micros(later * 1000);
        assert_eq!(schedule.rest(*id, hand, SECOND, later), Rest::Part);
    }
    schedule.lie_down(hand);
    let woken = schedule.next_due().unwrap();
    assert_eq!(woken, now + SECOND);
    assert_eq!(schedule.due(woken), [Call::Wake(hand)]);
    let taken: Vec<_> = std::iter::from_fn(|| schedule.take(woken)).collect();
    assert_eq!(taken.len(), 200);
    // From now on they are in step.
    for (id, _) in taken {
        schedule.rest(id, hand, SECOND, woken);
    }
    assert_eq!(schedule.next_due(), Some(woken + SECOND));
    assert_eq!(schedule.due(woken + SECOND * 9 / 10), []);
    // What happens to one does not call the others.
    schedule.ring(ids[0], woken + SECOND * 9 / 10);
    assert_eq!(schedule.ready.len(), 1);
}

#[test]
fn nobody_waits_long_for_a_thread_that_is_held_up() {
    let (mut schedule, now, hand, ids) = with_tasks::<3>(3);
    for id in ids {
        schedule.rest(id, hand, SECOND, now);
    }
    let mut now = now + SECOND;
    assert!(matches!(schedule.due(now)[..], [Call::Start(_)]));
    assert!(schedule.take(now).is_some());
    assert_eq!(schedule.next_due(), Some(now + TICK));
    // Its first task does not come to an end.
    now += TICK;
    assert!(matches!(schedule.due(now)[..], [Call::Start(_)]));
    assert!(schedule.take(now).is_some());
    now += TICK;
    // There is no third thread to be had for the last one, until one of the two counts no more.
    assert_eq!(schedule.next_due(), Some(now - TICK * 2 + HUNG));
    assert_eq!(schedule.due(now), []);
    assert!(schedule.take(now).is_some());
}

#[test]
fn a_system_without_threads_is_asked_again_after_a_while() {
    let now = Instant::now();
    let mut schedule = Schedule::new(9, now);
    let id = schedule.enter();
    assert!(schedule.begin(id, now).is_some());
    schedule.not_started(now);
    let again = now + NO_THREAD + TICK;
    assert_eq!(schedule.next_due(), Some(again));
    assert!(matches!(schedule.due(again)[..], [Call::Start(_)]));
    assert_eq!(schedule.take(again), Some((id, false)));
}

#[test]
fn where_all_threads_are_taken_everybody_has_a_turn_in_order() {
    let start = Instant::now();
    let mut now = start;
    let mut schedule = Schedule::new(1, now);
    let ids: [Id; 3] = std::array::from_fn(|_| schedule.enter());
    let calls = ids.map(|id| schedule.begin(id, now));
    let [Some(Call::Start(hand)), None, None] = calls else {
        panic!("one thread is the bound: {calls:?}");
    };
    let mut turns = Vec::new();
    while now < start + TICK * 10 {
        let Some((id, _)) = schedule.take(now) else {
            schedule.lie_down(hand);
            now = schedule.next_due().expect("they all rest for a short time");
            assert_eq!(schedule.due(now), [Call::Wake(hand)]);
            continue;
        };
        turns.push(id);
        // Each step takes a while.
        now += TICK / 8;
        schedule.due(now);
        if schedule.rest(id, hand, TICK, now) == Rest::Doze {
            now += TICK;
            schedule.resume(id, now);
            schedule.due(now);
            assert_eq!(schedule.rest(id, hand, TICK, now), Rest::Part);
        }
    }
    let count = |id| turns.iter().filter(|turn| **turn == id).count();
    let counts = ids.map(count);
    assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
}

#[test]
fn threads_that_are_not_needed_end_and_the_last_to_lie_down_is_called_first() {
    let now = Instant::now();
    let mut schedule = Schedule::new(9, now);
    let ids: [Id; 3] = std::array::from_fn(|_| schedule.enter());
    let hands = ids.map(|id| match schedule.begin(id, now) {
        Some(Call::Start(hand)) => hand,
        call => panic!("a thread for each that begins: {call:?}"),
    });
    for (id, hand) in ids.into_iter().zip(hands) {
        assert_eq!(schedule.take(now), Some((id, false)));
        schedule.rest(id, hand, SECOND, now);
        schedule.lie_down(hand);
        schedule.lie_down(hand);
    }
    schedule.arm(ids[0]);
    assert_eq!(schedule.change(ids[0], now), Some(Call::Wake(hands[2])));
    schedule.end(hands[0]);
    assert_eq!(schedule.ring(ids[1], now), Some(Call::Wake(hands[1])));
    assert_eq!(schedule.threads(), 2);
    assert!(matches!(schedule.ring(ids[2], now), Some(Call::Start(_))));
}

#[test]
fn a_thread_that_is_held_up_is_not_missing_to_the_others() {
    let (mut schedule, now, hand, [held_up, other]) = with_tasks(1);
    assert_eq!(schedule.rest(other, hand, SECOND, now), Rest::Part);
    assert_eq!(schedule.ring(other, now), None);
    assert_eq!(schedule.next_due(), Some(now + HUNG));
    assert_eq!(schedule.due(now + HUNG / 2), []);
    let later = now + HUNG;
    let calls = schedule.due(later);
    assert!(matches!(calls[..], [Call::Start(_)]), "{calls:?}");
    assert_eq!(schedule.take(later), Some((other, false)));
    // It goes on, and counts again.
    assert_eq!(schedule.rest(held_up, hand, SECOND, later), Rest::Part);
    assert_eq!(schedule.ring(held_up, later), None);
}
