//! What several writers made of one replica: every restore point against what SQLite showed each of
//! them, and every time against the rule by which times are resolved.

use crate::exact::{Reader, check_names};
use crate::machine::{Machine, REPLICA};
use crate::oracle::ImageHash;
use crate::world::World;
use sqlrepl::error::ErrorKind;
use sqlrepl::format::claim::Claim;
use sqlrepl::format::container::Parent;
use sqlrepl::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use sqlrepl::format::moment::Moment;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::{fmt, fs};

/// One generation, read whole.
pub(crate) struct Generation {
    pub(crate) id: GenerationId,
    pub(crate) claim: Claim,
    /// Ascending.
    pub(crate) points: Vec<RestorePoint>,
}

/// All that a replica holds.
pub(crate) struct Lineage {
    reader: Reader,
    /// Ascending; those without a restore point do not exist for readers.
    pub(crate) generations: Vec<Generation>,
    images: HashMap<(GenerationId, Txid), ImageHash>,
}

/// Checks all that a replica promises whoever wrote it: no restore point is wrong, none that was
/// durable on one of these machines is gone, and each time resolves within the past of the machine
/// that writes the highest generation; now to that machine's last durable commit, or a later one.
/// Each generation goes on from the last restore point of its past.
#[track_caller]
pub(crate) fn check(world: &World, machines: &[&Machine]) -> Lineage {
    let lineage = check_unproved(world, machines);
    lineage.check_parents(machines);
    lineage
}

/// The same where a daemon may have found no proof of what it stored last: then a generation goes
/// on from an earlier restore point.
#[track_caller]
pub(crate) fn check_unproved(world: &World, machines: &[&Machine]) -> Lineage {
    let lineage = Lineage::read(&world.path(REPLICA));
    lineage.check_images(machines);
    lineage.check_durable(machines);
    lineage.check_times(machines);
    let restored = world.path("now.db");
    world.restore("now.db", "");
    let image = ImageHash::of(&fs::read(&restored).unwrap());
    assert_eq!(image, lineage.newest(), "not the last commit");
    fs::remove_file(restored).unwrap();
    lineage
}

impl Lineage {
    /// Why each generation began.
    pub(crate) fn reasons(&self) -> Vec<&str> {
        let claims = self.generations.iter().map(|generation| &generation.claim);
        claims.map(|claim| claim.reason.as_str()).collect()
    }

    /// Each state that SQLite showed this machine, from the first restore point of all on, is a
    /// restore point.
    #[track_caller]
    pub(crate) fn check_moments(&self, machine: &Machine) {
        let stored: HashSet<_> = self.images.values().collect();
        let first = self.image(&self.generations[0].points[0]);
        let shown = machine.images();
        let since = shown.iter().skip_while(|image| **image != first);
        let lost = since.filter(|image| !stored.contains(image)).count();
        assert_eq!(lost, 0, "of {} states; {self}", shown.len());
    }

    fn read(replica: &Path) -> Self {
        let reader = Reader::new(replica);
        let points = reader.generations();
        let mut generations = Vec::new();
        for info in reader.replica.generations() {
            let of_it = |points: &&Vec<RestorePoint>| points[0].generation == info.id;
            let Some(points) = points.iter().find(of_it) else {
                continue;
            };
            check_names(points);
            generations.push(Generation {
                id: info.id,
                claim: info.claim.expect("each generation has its claim"),
                points: points.clone(),
            });
        }
        assert!(!generations.is_empty(), "the replica has no restore point");
        let all = generations.iter().flat_map(|generation| &generation.points);
        let images = all
            .map(|point| ((point.generation, point.txid), reader.hash(point)))
            .collect();
        Self {
            reader,
            generations,
            images,
        }
    }

    fn image(&self, point: &RestorePoint) -> ImageHash {
        self.images[&(point.generation, point.txid)]
    }

    /// The last commit of the highest generation.
    fn newest(&self) -> ImageHash {
        let points = &self.generations.last().unwrap().points;
        self.image(points.last().unwrap())
    }

    /// The machine that writes the highest generation.
    #[track_caller]
    fn writer<'m, 'w>(&self, machines: &[&'m Machine<'w>]) -> &'m Machine<'w> {
        let newest = self.newest();
        let goes_on = |machine: &&Machine| {
            let shown = machine.images();
            let place = |image| shown.iter().rposition(|one| *one == image);
            let durable = machine.durable.last().map(|last| place(*last));
            place(newest).is_some_and(|newest| durable.flatten() <= Some(newest))
        };
        let writer = machines.iter().find(|machine| goes_on(machine));
        writer.unwrap_or_else(|| {
            panic!("no machine has the newest point and nothing durable behind it; {self}")
        })
    }

    /// Each generation is a piece of what one machine's SQLite showed, in order and without gaps.
    #[track_caller]
    fn check_images(&self, machines: &[&Machine]) {
        let shown: Vec<_> = machines.iter().map(|machine| machine.images()).collect();
        for Generation { id, points, .. } in &self.generations {
            let mut seen: Vec<_> = points.iter().map(|point| self.image(point)).collect();
            // A transaction may write pages and change nothing.
            seen.dedup();
            let is_a_piece =
                |shown: &Vec<ImageHash>| shown.windows(seen.len()).any(|piece| piece == seen);
            if shown.iter().any(is_a_piece) {
                continue;
            }
            let place = |image| {
                let at = |shown: &Vec<ImageHash>| shown.iter().position(|one| one == image);
                shown.iter().map(at).collect::<Vec<_>>()
            };
            let places: Vec<_> = seen.iter().map(place).collect();
            panic!("{id} is no piece of any machine's history: {places:?}; {self}");
        }
    }

    #[track_caller]
    fn check_durable(&self, machines: &[&Machine]) {
        let stored: HashSet<_> = self.images.values().collect();
        for machine in machines {
            for (number, image) in machine.durable.iter().enumerate() {
                let path = machine.path("");
                assert!(
                    stored.contains(image),
                    "durable image {number} of {} is gone",
                    path.display()
                );
            }
        }
    }

    /// Each generation goes on from the last point of its past that is stored: no time resolves to
    /// what lies behind an earlier one. A parent without a restore point says nothing.
    #[track_caller]
    fn check_parents(&self, machines: &[&Machine]) {
        let shown: Vec<_> = machines.iter().map(|machine| machine.images()).collect();
        for (at, Generation { id, claim, points }) in self.generations.iter().enumerate() {
            let parent = claim.parent.map(|parent| (parent.generation, parent.txid));
            let Some(parent) = parent.and_then(|parent| self.images.get(&parent)) else {
                continue;
            };
            let before = self.generations[..at].iter().flat_map(|it| &it.points);
            let first = self.image(&points[0]);
            let goes_on = |shown: &Vec<ImageHash>| {
                let place = |image: &ImageHash| shown.iter().position(|one| one == image);
                let (first, parent) = (place(&first)?, place(parent)?);
                let places = before.clone().filter_map(|point| place(&self.image(point)));
                Some(places.filter(|place| *place <= first).max() == Some(parent))
            };
            let mut each = shown.iter().filter_map(goes_on).peekable();
            let is_known = each.peek().is_some();
            assert!(
                !is_known || each.any(|goes_on| goes_on),
                "{id} goes on from an earlier point than the last of its past; {self}"
            );
        }
    }

    /// At the time of every restore point, and just before it.
    #[track_caller]
    fn check_times(&self, machines: &[&Machine]) {
        let writer = self.writer(machines);
        let shown = writer.images();
        let place = |point: &RestorePoint| {
            let image = self.image(point);
            let place = shown.iter().rposition(|one| *one == image);
            place.unwrap_or_else(|| {
                panic!(
                    "txid {} of {} is not in the past of {}, which readers follow; {self}",
                    point.txid,
                    point.generation,
                    writer.path("").display()
                )
            })
        };
        let all = self
            .generations
            .iter()
            .flat_map(|generation| &generation.points);
        let mut times: Vec<i64> = all.map(|point| point.time.micros()).collect();
        times.extend(times.clone().iter().map(|time| time - 1));
        times.sort_unstable();
        let mut earliest = 0;
        for time in times.into_iter().map(Timestamp::from_micros) {
            let resolved = match self.reader.replica.resolve(Moment::At(time)) {
                Ok(point) => Some(point),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => panic!("{time}: {e}; {self}"),
            };
            assert_eq!(resolved, self.expected_at(time), "{time}; {self}");
            if let Some(point) = resolved {
                let place = place(&point);
                assert!(place >= earliest, "at {time} the history goes back; {self}");
                earliest = place;
            }
        }
        let latest = self.reader.replica.resolve(Moment::Latest).unwrap();
        assert_eq!(self.image(&latest), self.newest());
    }

    /// The rule, once more: from the highest generation down its parents, in each of which nothing
    /// counts behind the txid that both share.
    fn expected_at(&self, time: Timestamp) -> Option<RestorePoint> {
        let mut generation = self.generations.last()?;
        let mut shared = None;
        loop {
            let is_before = |point: &&RestorePoint| {
                point.time <= time && shared.is_none_or(|shared| point.txid <= shared)
            };
            if let Some(point) = generation.points.iter().rev().find(is_before) {
                return Some(*point);
            }
            let parent = generation.claim.parent?;
            shared = Some(parent.txid);
            let is_parent = |other: &&Generation| other.id == parent.generation;
            generation = self.generations.iter().find(is_parent)?;
        }
    }
}

/// For messages: who began which generation, from what, and why.
impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the replica has:")?;
        for Generation { id, claim, points } in &self.generations {
            let (path, reason) = (&claim.path, &claim.reason);
            let (first, last) = (points[0], points[points.len() - 1]);
            write!(f, "\n  {id} of {path}, ")?;
            match claim.parent {
                Some(Parent { generation, txid }) => write!(f, "behind {txid} of {generation}")?,
                None => f.write_str("without a parent")?,
            }
            write!(
                f,
                ": {} at {} to {} at {} ({reason})",
                first.txid, first.time, last.txid, last.time
            )?;
        }
        Ok(())
    }
}
