//! A scripted day on S3 in which one call to the store goes wrong: the daemon is killed before it
//! or after it, or its answer is lost. For every call of the day.

use crate::lineage;
use crate::machine::Machine;
use crate::program::{LONG, wait_until};
use crate::s3_server::{Fault, Hold, Server, Stop};
use crate::world::World;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Days that are lived at a time: most of a day is waiting.
const AT_A_TIME: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Wrong {
    KilledBefore,
    KilledAfter,
    LostReply,
}

/// README: "What `sqlrepl sync` called durable is there after the daemon was killed, however hard."
#[test]
fn a_daemon_killed_before_any_call_to_its_store_goes_on() {
    each_call_of_a_day(Wrong::KilledBefore);
}

#[test]
fn a_daemon_killed_after_any_call_to_its_store_goes_on() {
    each_call_of_a_day(Wrong::KilledAfter);
}

#[test]
fn a_lost_reply_to_any_call_changes_nothing() {
    each_call_of_a_day(Wrong::LostReply);
}

fn each_call_of_a_day(wrong: Wrong) {
    let calls = {
        let world = World::on_s3();
        let mut day = Day::new(&world);
        day.live();
        usize::try_from(day.server().requests()).unwrap()
    };
    assert!((25..=80).contains(&calls), "{calls} calls in a day");
    std::thread::scope(|scope| {
        let each = (1..=AT_A_TIME).map(|first| {
            scope.spawn(move || {
                for number in (first..=calls).step_by(AT_A_TIME) {
                    println!("{wrong:?}: call {number} of {calls}");
                    let world = World::on_s3();
                    let mut day = Day::new(&world);
                    day.go_wrong(wrong, number);
                    day.live();
                    day.end(wrong);
                }
            })
        });
        for one in each.collect::<Vec<_>>() {
            one.join().expect("a day failed; its message stands above");
        }
    });
}

/// One day of one machine.
struct Day<'w> {
    world: &'w World,
    machine: Machine<'w>,
    hold: Option<Hold>,
}

/// The daemon was killed.
struct Killed;

impl<'w> Day<'w> {
    fn new(world: &'w World) -> Self {
        Self {
            world,
            machine: Machine::new(world, "one", 0),
            hold: None,
        }
    }

    fn server(&self) -> &'w Server {
        self.world.server()
    }

    /// The call with this number will go wrong.
    fn go_wrong(&mut self, wrong: Wrong, number: usize) {
        let calls = AtomicUsize::new(0);
        let is_it = move || calls.fetch_add(1, Ordering::Relaxed) + 1 == number;
        self.hold = match wrong {
            Wrong::KilledBefore => Some(self.server().hold(Stop::Before, move |_| is_it())),
            Wrong::KilledAfter => Some(self.server().hold(Stop::Done, move |_| is_it())),
            Wrong::LostReply => {
                let lose = move |_: &_| is_it().then_some(Fault::LoseReply);
                self.server().set_rule(lose);
                None
            }
        };
    }

    /// Lives until a call goes wrong that the daemon does not survive, or until the end of the day,
    /// when it is killed, too.
    fn live(&mut self) {
        let whole = self.script().is_ok();
        println!("{}", if whole { "a whole day" } else { "killed" });
        self.machine.kill();
    }

    fn script(&mut self) -> Result<(), Killed> {
        self.start()?;
        for _ in 0..6 {
            self.commit()?;
        }
        self.stop()?;
        self.machine.commit(2);
        self.start()?;
        for _ in 0..4 {
            self.commit()?;
        }
        self.machine.kill();
        self.machine.commit(1);
        self.start()?;
        self.commit()
    }

    /// Starts the daemon, and waits until all is durable.
    fn start(&mut self) -> Result<(), Killed> {
        self.machine.start("");
        self.sync()
    }

    fn commit(&mut self) -> Result<(), Killed> {
        self.machine.commit(1);
        self.sync()
    }

    fn sync(&mut self) -> Result<(), Killed> {
        let hold = &self.hold;
        let is_held = || hold.as_ref().is_some_and(Hold::is_reached);
        match self.machine.sync_unless(is_held) {
            true => Ok(()),
            false => Err(Killed),
        }
    }

    fn stop(&mut self) -> Result<(), Killed> {
        let daemon = self.machine.daemon();
        daemon.signal(libc::SIGTERM);
        let is_held = || self.hold.as_ref().is_some_and(Hold::is_reached);
        wait_until(LONG, "the end of the daemon", || {
            is_held() || !daemon.is_running()
        });
        if daemon.is_running() {
            return Err(Killed);
        }
        assert_eq!(daemon.wait_exit(), 0);
        Ok(())
    }

    /// The next start, without faults; then all must be right.
    fn end(mut self, wrong: Wrong) {
        self.hold = None;
        self.server().heal();
        self.machine.replicate("");
        self.machine.commit_each(2);
        let lineage = lineage::check(self.world, &[&self.machine]);
        if let Wrong::LostReply = wrong {
            // A lost reply is no other writer. The kill in the script may end a generation.
            for reason in &lineage.reasons()[1..] {
                assert!(reason.starts_with("the WAL was restarted"), "{reason}");
            }
        }
    }
}
