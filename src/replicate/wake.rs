//! Which captures a change of which file wakes: the one inotify instance of a pool.
//!
//! Owns the watches. Files are watched only while a capture sleeps, and for one event: a writer in
//! full flight pays nothing for it. Several captures may watch one directory, and then share the
//! kernel's watch. A path is never looked at with a lock held, since its file system may not
//! answer.

use crate::replicate::pool::Id;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// What files are watched for; the removal of one and its renaming too.
const FILE: WatchMask = WatchMask::MODIFY
    .union(WatchMask::ATTRIB)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::ONESHOT);
/// What directories are watched for: anything that may bring a database.
const DIRECTORY: WatchMask = WatchMask::CREATE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MODIFY)
    .union(WatchMask::ONESHOT);

/// The watches of all captures of a pool.
pub(super) struct Watcher {
    watches: Mutex<Watching>,
}

#[derive(Default)]
struct Watching {
    /// `None` if the system has no instance left: then there is the slow poll.
    instance: Option<Watches>,
    /// Whom an event of a watch wakes.
    concerned: HashMap<WatchDescriptor, Vec<Id>>,
    /// How many events were read of watches that concern nobody, or nobody yet.
    strangers: u64,
    /// Whether it was said that the system has no watch left.
    is_said: bool,
}

impl Watcher {
    pub(super) fn new() -> Self {
        Self {
            watches: Mutex::default(),
        }
    }

    /// An instance for events to be read from. `None` if the system has none left.
    pub(super) fn open(&self) -> Option<Inotify> {
        let instance = Inotify::init()
            .inspect_err(|e| {
                tracing::warn!("{}", no_instance(e));
            })
            .ok();
        *self.lock() = Watching {
            instance: instance.as_ref().map(Inotify::watches),
            ..Watching::default()
        };
        instance
    }

    /// Watches for writes to these files, and for their removal or renaming. One that is not there
    /// is left out: the slow poll finds it. True if something may have happened since.
    pub(super) fn watch_files(&self, id: Id, files: &[&Path]) -> bool {
        let watch = |path: &&Path| self.watch_by(id, path, |watches| watches.add(path, FILE));
        files
            .iter()
            .map(watch)
            .fold(false, |one, other| one | other)
    }

    /// Watches a directory for anything that may bring a database into it. True if something may
    /// have happened since.
    pub(super) fn watch_directory(&self, id: Id, dir: &Path) -> bool {
        self.watch_by(id, dir, |watches| watches.add(dir, DIRECTORY))
    }

    /// Watches with what `add` gives, which may take as long as the file system likes: nobody else
    /// waits for it.
    pub(super) fn watch_by(
        &self,
        id: Id,
        path: &Path,
        add: impl FnOnce(&mut Watches) -> io::Result<WatchDescriptor>,
    ) -> bool {
        let (instance, before) = {
            let watching = self.lock();
            (watching.instance.clone(), watching.strangers)
        };
        let Some(mut instance) = instance else {
            return false;
        };
        let added = add(&mut instance);
        let mut watching = self.lock();
        match added {
            // Its first event may have been read while it concerned nobody.
            Ok(watch) if watching.strangers != before => {
                drop(watching);
                remove(&mut instance, watch);
                return true;
            }
            Ok(watch) => {
                let concerned = watching.concerned.entry(watch).or_default();
                if !concerned.contains(&id) {
                    concerned.push(id);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::StorageFull && !watching.is_said => {
                watching.is_said = true;
                tracing::warn!("{}", no_watch(path, &e));
            }
            Err(e) => tracing::debug!("{} is not watched, only polled: {e}", path.display()),
        }
        false
    }

    /// Reads the events that there are: whom they concern. What happened shows in the next look.
    pub(super) fn read(&self, inotify: &mut Inotify) -> HashSet<Id> {
        let mut woken = HashSet::new();
        let mut buffer = [0; 4096];
        while let Ok(events) = inotify.read_events(&mut buffer) {
            let mut watching = self.lock();
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    woken.extend(watching.concerned.drain().flat_map(|(_, ids)| ids));
                }
                // The end of a watch is an event too: one that was armed again may have been about
                // to end.
                match watching.concerned.remove(&event.wd) {
                    Some(ids) => woken.extend(ids),
                    None => watching.strangers += 1,
                }
            }
        }
        woken
    }

    /// Ends the watches that are only for this one.
    pub(super) fn forget(&self, id: Id) {
        let mut watching = self.lock();
        let mut ended = Vec::new();
        watching.concerned.retain(|watch, ids| {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                ended.push(watch.clone());
            }
            !ids.is_empty()
        });
        let instance = watching.instance.clone();
        drop(watching);
        if let Some(mut instance) = instance {
            ended
                .into_iter()
                .for_each(|watch| remove(&mut instance, watch));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watching> {
        self.watches
            .lock()
            .expect("nobody panics with this lock held")
    }
}

fn remove(instance: &mut Watches, watch: WatchDescriptor) {
    if let Err(e) = instance.remove(watch) {
        tracing::trace!("a watch had ended by itself: {e}");
    }
}

fn no_instance(error: &io::Error) -> String {
    format!(
        "changes are polled for, since the system gives no inotify instance: {error}; \
         fs.inotify.max_user_instances limits them"
    )
}

fn no_watch(path: &Path, error: &io::Error) -> String {
    format!(
        "changes of {} and of other databases are polled for, since the system gives no more \
         inotify watches: {error}; fs.inotify.max_user_watches limits them",
        path.display()
    )
}

#[cfg(test)]
mod tests;
