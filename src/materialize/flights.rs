//! Fetches that several readers wait for: each thing is fetched once at a time.
//!
//! A reader that gives up strands nobody: who has the duty to fetch is not one of those who wait.

use crate::error::{Error, Result};
use crate::materialize::cache::locked;
use crate::materialize::fetch::copy;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

type Landing<V> = Option<Result<V, Error>>;

/// Fetches on their way, by what they bring.
pub(super) struct Flights<K, V> {
    flying: Mutex<HashMap<K, watch::Receiver<Landing<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            flying: Mutex::new(HashMap::new()),
        }
    }
}

/// A reader's place on a flight.
pub(super) enum Seat<V> {
    Landed(V),
    Flying(watch::Receiver<Landing<V>>),
}

/// The duty to fetch something and to land it for all that wait. Dropped without that (a panic, the
/// end of the runtime), those who wait get an error.
pub(super) struct Takeoff<K: Hash + Eq, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
    sender: watch::Sender<Landing<V>>,
    landing: Landing<V>,
}

impl<K: Hash + Eq + Copy, V: Clone> Flights<K, V> {
    /// A seat, and if nobody fetches this yet the duty to do it. `cached` is looked up under the
    /// lock, since a flight enters the cache before it leaves the list.
    pub(super) fn board(
        self: &Arc<Self>,
        key: K,
        cached: impl FnOnce() -> Option<V>,
    ) -> (Seat<V>, Option<Takeoff<K, V>>) {
        let mut flying = locked(&self.flying);
        match flying.entry(key) {
            Entry::Occupied(flight) => (Seat::Flying(flight.get().clone()), None),
            Entry::Vacant(slot) => {
                if let Some(value) = cached() {
                    return (Seat::Landed(value), None);
                }
                let (sender, receiver) = watch::channel(None);
                slot.insert(receiver.clone());
                let takeoff = Takeoff {
                    flights: Arc::clone(self),
                    key,
                    sender,
                    landing: None,
                };
                (Seat::Flying(receiver), Some(takeoff))
            }
        }
    }
}

impl<K: Hash + Eq, V> Takeoff<K, V> {
    pub(super) fn key(&self) -> &K {
        &self.key
    }

    pub(super) fn land(mut self, result: Result<V>) {
        self.landing = Some(result);
    }
}

impl<K: Hash + Eq, V> Drop for Takeoff<K, V> {
    fn drop(&mut self) {
        // First: who learns of a failure and reads again takes off anew.
        locked(&self.flights.flying).remove(&self.key);
        if let Some(result) = self.landing.take() {
            self.sender.send_replace(Some(result));
        }
    }
}

impl<V: Clone> Seat<V> {
    pub(super) async fn landed(self) -> Result<V> {
        let mut receiver = match self {
            Self::Landed(value) => return Ok(value),
            Self::Flying(receiver) => receiver,
        };
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(value))) => Ok(value.clone()),
            Ok(Some(Err(error))) => Err(copy(error)),
            Ok(None) | Err(_) => Err(Error::unavailable("a fetch was stopped before it ended")),
        }
    }
}

/// What all of them bring, or the first failure. That is told only when all have landed: who reads
/// again boards none that failed along with it.
pub(super) async fn all_landed<V: Clone>(seats: Vec<Seat<V>>) -> Result<Vec<V>> {
    let mut landed = Vec::with_capacity(seats.len());
    for seat in seats {
        landed.push(seat.landed().await);
    }
    landed.into_iter().collect()
}
