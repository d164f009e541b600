//! Random days of several machines on one replica: they crash, are cloned, lose their state, come
//! back from yesterday, stand still, and believe in wrong clocks.

use crate::lineage::{self, Lineage};
use crate::machine::{Clock, HOUR, Machine, STATE};
use crate::world::World;
use crate::writer::Dice;
use crate::{seed, soak};
use std::fs;
use std::time::Duration;

/// Where a state directory is copied to.
const YESTERDAY: &str = "yesterday";

#[test]
fn random_days_of_machines_that_share_a_replica_leave_every_moment_right() {
    let seed = seed();
    let days = 4 * soak();
    let found = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || {
                let seeds = (half..days).step_by(2).map(|n| seed.wrapping_add(n));
                seeds.map(live_a_day).collect::<Vec<_>>()
            })
        });
        halves.map(|half| half.join().expect("a day failed; its message stands above"))
    });
    println!("restore points, generations and machines: {found:?}");
}

/// Goes through one day; what there was in the end.
fn live_a_day(seed: u64) -> (usize, usize, usize) {
    let world = World::new();
    let mut day = Day::new(&world, seed);
    for _ in 0..25 {
        day.go_on();
    }
    let lineage = day.end();
    let points = lineage.generations.iter().map(|one| one.points.len());
    let machines = day.lives.len() + day.gone.len();
    (points.sum(), lineage.generations.len(), machines)
}

/// A machine in use.
struct Life<'w> {
    machine: Machine<'w>,
    /// Its daemon's.
    clock: Clock,
    /// The daemon was started and not ended.
    runs: bool,
    /// The daemon stands still.
    stands: bool,
    /// The state directory was copied aside.
    has_copy: bool,
}

/// How a daemon ends, or the whole machine.
#[derive(Clone, Copy)]
enum End {
    Stop,
    Kill,
    Crash,
}

struct Day<'w> {
    world: &'w World,
    seed: u64,
    dice: Dice,
    lives: Vec<Life<'w>>,
    /// Those in whose place an image was put.
    gone: Vec<Machine<'w>>,
    /// An image of one of them.
    image: Option<(usize, Machine<'w>)>,
    copies: usize,
}

impl<'w> Life<'w> {
    fn new(world: &'w World, mut machine: Machine<'w>, name: &str) -> Self {
        let clock = Clock::new(world, name);
        machine.environment = clock.environment();
        Self {
            machine,
            clock,
            runs: false,
            stands: false,
            has_copy: false,
        }
    }

    fn start(&mut self) {
        if !self.runs {
            self.machine.replicate("");
            self.runs = true;
        }
    }

    fn go_on(&mut self) {
        if std::mem::take(&mut self.stands) {
            self.machine.daemon().signal(libc::SIGCONT);
        }
    }

    /// Ends the daemon, or the whole machine.
    fn end(&mut self, how: End) {
        self.go_on();
        match (self.runs, how) {
            (true, End::Stop) => self.machine.stop(),
            (true, End::Kill) => self.machine.kill(),
            _ => self.machine.crash(),
        }
        self.runs = false;
    }

    /// Crashes, and copies the disk to another folder; with a state of the daemon on it: of two
    /// databases without any, nothing says whose past each of them has.
    fn copy_to(&mut self, folder: &str) -> Machine<'w> {
        if !self.machine.path(STATE).exists() {
            self.start();
        }
        self.end(End::Crash);
        self.machine.clone_to(folder)
    }
}

impl<'w> Day<'w> {
    fn new(world: &'w World, seed: u64) -> Self {
        let mut machine = Machine::new(world, "m0", 20_000);
        machine.writer();
        let mut life = Life::new(world, machine, "m0");
        life.start();
        Self {
            world,
            seed,
            dice: Dice(seed),
            lives: vec![life],
            gone: Vec::new(),
            image: None,
            copies: 0,
        }
    }

    /// Says what happens, for when the day fails. Two days are lived beside each other.
    fn tell(&self, number: usize, what: &str) {
        println!("day {}: m{number} {what}", self.seed);
    }

    /// The next thing that happens.
    fn go_on(&mut self) {
        let number = usize::try_from(self.dice.roll(self.lives.len() as u64)).unwrap();
        match self.dice.roll(28) {
            0..8 => self.commit(number),
            8..13 => self.commit_each(number),
            13 => self.end_daemon(number, End::Stop),
            14 => self.end_daemon(number, End::Kill),
            15 => self.end_daemon(number, End::Crash),
            16 | 17 => self.checkpoint(number),
            18 | 19 => self.stand_still(number),
            20 | 21 => self.set_clock(number),
            22 | 23 => self.clone_machine(number),
            24 | 25 => self.go_back(number),
            _ => self.lose_state(number),
        }
    }

    fn commit(&mut self, number: usize) {
        let count = self.dice.roll(30) + 1;
        self.tell(number, &format!("commits {count} times"));
        self.lives[number].machine.commit(count);
    }

    fn commit_each(&mut self, number: usize) {
        let count = self.dice.roll(4);
        self.tell(
            number,
            &format!("has {count} commits made durable one by one"),
        );
        let life = &mut self.lives[number];
        life.go_on();
        life.start();
        life.machine.commit_each(count);
    }

    fn end_daemon(&mut self, number: usize, how: End) {
        let what = match (self.lives[number].runs, how) {
            (true, End::Stop) => "has its daemon stopped",
            (true, End::Kill) => "has its daemon killed",
            _ => "crashes",
        };
        self.tell(number, what);
        self.lives[number].end(how);
    }

    fn checkpoint(&mut self, number: usize) {
        let mode = self.dice.pick(&["PASSIVE", "TRUNCATE"]);
        self.tell(
            number,
            &format!("has its application run a {mode} checkpoint"),
        );
        let checkpoint = format!("checkpoint {mode} 200");
        self.lives[number].machine.writer().ask(&checkpoint);
    }

    fn stand_still(&mut self, number: usize) {
        self.tell(number, "has its daemon stand still");
        let life = &mut self.lives[number];
        life.start();
        life.machine.daemon().signal(libc::SIGSTOP);
        life.stands = true;
    }

    fn set_clock(&mut self, number: usize) {
        let how = self.dice.roll(4);
        let clock = &self.lives[number].clock;
        let what = match how {
            0 => {
                clock.set_back(HOUR);
                "sets its clock back an hour"
            }
            1 => {
                clock.set_back(HOUR * 3);
                "sets its clock back three hours"
            }
            2 => {
                clock.set_ahead(HOUR * 24 * 365 * 73);
                "sets its clock ahead 73 years"
            }
            _ => {
                clock.set_ahead(Duration::ZERO);
                "puts its clock right"
            }
        };
        self.tell(number, what);
    }

    fn clone_machine(&mut self, number: usize) {
        if self.lives.len() == 3 {
            return;
        }
        let name = format!("m{}", self.lives.len());
        self.tell(number, &format!("crashes and is cloned to {name}"));
        let life = &mut self.lives[number];
        let mut clone = Life::new(self.world, life.copy_to(&name), &name);
        clone.has_copy = life.has_copy;
        self.lives.push(clone);
    }

    /// Takes an image of the machine; or puts the one that there is in the place of that machine.
    fn go_back(&mut self, number: usize) {
        self.copies += 1;
        match self.image.take() {
            None => {
                self.tell(number, "crashes, and an image of it is taken");
                let image = self.lives[number].copy_to(&format!("image{}", self.copies));
                self.image = Some((number, image));
            }
            Some((number, image)) => {
                let replaced = format!("gone{}", self.copies);
                self.tell(
                    number,
                    &format!("is put back to its image; it was {replaced}"),
                );
                let life = &mut self.lives[number];
                life.end(End::Crash);
                self.gone.push(life.machine.replace_by(&image, &replaced));
                life.has_copy = image.path(YESTERDAY).exists();
            }
        }
    }

    /// Copies the state directory aside; or puts the copy back, or what is left of it: where other
    /// machines write too, nothing says whose past a database without any state has.
    fn lose_state(&mut self, number: usize) {
        let alone = self.lives.len() == 1 && self.gone.is_empty();
        self.end_daemon(number, End::Kill);
        let life = &mut self.lives[number];
        let (state, copy) = (
            life.machine.text_path(STATE),
            life.machine.text_path(YESTERDAY),
        );
        if !fs::exists(&state).unwrap() {
            return;
        }
        let what = if alone && self.dice.once_in(2) {
            fs::remove_dir_all(&state).unwrap();
            "loses its daemon's state"
        } else if std::mem::take(&mut life.has_copy) {
            fs::remove_dir_all(&state).unwrap();
            self.world.run("mv", &[&copy, &state]).ok();
            "has its daemon's state of yesterday put back"
        } else {
            self.world.run("cp", &["-a", &state, &copy]).ok();
            life.has_copy = true;
            "has its daemon's state copied aside"
        };
        self.tell(number, what);
    }

    /// All go on, and all becomes durable; then everything must be right.
    fn end(&mut self) -> Lineage {
        for number in 0..self.lives.len() {
            self.tell(number, "goes on, and has two last commits made durable");
            let life = &mut self.lives[number];
            life.go_on();
            life.start();
            life.machine.commit_each(2);
        }
        let running = self.lives.iter().map(|life| &life.machine);
        let machines: Vec<_> = running.chain(&self.gone).collect();
        lineage::check_unproved(self.world, &machines)
    }
}
