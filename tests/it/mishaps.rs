//! Random days of several machines on one replica: they crash, are cloned, lose their state, come
//! back from yesterday, stand still, and believe in wrong clocks.

use crate::lineage::{self, Lineage};
use crate::machine::{Clock, HOUR, Machine, STATE};
use crate::world::World;
use crate::writer::Dice;
use crate::{seed, soak};
use std::fs;
use std::time::Duration;

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
    println!("a day with SQLREPL_SEED={seed}");
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

struct Day<'w> {
    world: &'w World,
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

    /// Ends the daemon in one way or another.
    fn end(&mut self, how: u64) {
        self.go_on();
        match (self.runs, how) {
            (true, 0) => self.machine.stop(),
            (true, 1) => self.machine.kill(),
            _ => self.machine.crash(),
        }
        self.runs = false;
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
            dice: Dice(seed),
            lives: vec![life],
            gone: Vec::new(),
            image: None,
            copies: 0,
        }
    }

    /// The next thing that happens.
    fn go_on(&mut self) {
        let number = usize::try_from(self.dice.roll(self.lives.len() as u64)).unwrap();
        let what = self.dice.roll(28);
        println!("m{number}: {what}");
        let life = &mut self.lives[number];
        match what {
            0..8 => life.machine.commit(self.dice.roll(30) + 1),
            8..13 => {
                life.go_on();
                life.start();
                life.machine.commit_each(self.dice.roll(4));
            }
            13..16 => life.end(what - 13),
            16..18 => {
                let mode = self.dice.pick(&["PASSIVE", "TRUNCATE"]);
                let checkpoint = format!("checkpoint {mode} 200");
                life.machine.writer().ask(&checkpoint);
            }
            18 | 19 => {
                life.start();
                life.machine.daemon().signal(libc::SIGSTOP);
                life.stands = true;
            }
            20 | 21 => self.set_clock(number),
            22 | 23 => self.clone_machine(number),
            24 | 25 => self.go_back(number),
            _ => self.lose_state(number),
        }
    }

    fn set_clock(&mut self, number: usize) {
        let clock = &self.lives[number].clock;
        match self.dice.roll(4) {
            0 => clock.set_back(HOUR),
            1 => clock.set_back(HOUR * 3),
            2 => clock.set_ahead(HOUR * 24 * 365 * 73),
            _ => clock.set_ahead(Duration::ZERO),
        }
    }

    fn clone_machine(&mut self, number: usize) {
        if self.lives.len() == 3 {
            return;
        }
        let name = format!("m{}", self.lives.len());
        let life = &mut self.lives[number];
        life.end(2);
        let machine = life.machine.clone_to(&name);
        let mut clone = Life::new(self.world, machine, &name);
        clone.has_copy = life.has_copy;
        self.lives.push(clone);
    }

    /// Takes an image of the machine; or puts the one that there is in the place of that machine.
    fn go_back(&mut self, number: usize) {
        self.copies += 1;
        match self.image.take() {
            None => {
                let life = &mut self.lives[number];
                life.end(2);
                let image = life.machine.clone_to(&format!("image{}", self.copies));
                self.image = Some((number, image));
            }
            Some((number, image)) => {
                let life = &mut self.lives[number];
                life.end(2);
                let replaced = format!("gone{}", self.copies);
                self.gone.push(life.machine.replace_by(&image, &replaced));
                life.has_copy = image.path("yesterday").exists();
            }
        }
    }

    /// Copies the state directory aside; or puts the copy back, or what is left of it: where other
    /// machines write too, nothing says whose past a database without any state has.
    fn lose_state(&mut self, number: usize) {
        let alone = self.lives.len() == 1 && self.gone.is_empty();
        let life = &mut self.lives[number];
        life.end(1);
        let (state, copy) = (
            life.machine.text_path(STATE),
            life.machine.text_path("yesterday"),
        );
        if !fs::exists(&state).unwrap() {
            return;
        }
        if alone && self.dice.once_in(2) {
            fs::remove_dir_all(&state).unwrap();
        } else if std::mem::take(&mut life.has_copy) {
            fs::remove_dir_all(&state).unwrap();
            self.world.run("mv", &[&copy, &state]).ok();
        } else {
            self.world.run("cp", &["-a", &state, &copy]).ok();
            life.has_copy = true;
        }
    }

    /// All go on, and all becomes durable; then everything must be right.
    fn end(&mut self) -> Lineage {
        for life in &mut self.lives {
            life.go_on();
            life.start();
            life.machine.commit_each(2);
        }
        let running = self.lives.iter().map(|life| &life.machine);
        let machines: Vec<_> = running.chain(&self.gone).collect();
        lineage::check(self.world, &machines)
    }
}
