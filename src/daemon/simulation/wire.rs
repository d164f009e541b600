//! The line between one machine and the store: what is asked passes here, and may be refused, lose
//! its reply, or stand still for as long as the schedule likes.

use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::storage::fault::Verb;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;
use tokio::sync::{Notify, oneshot};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It works.
    Answered,
    /// Nothing is done.
    Refused,
    /// Nothing is done, and that will not pass: the store does not know us.
    Forbidden,
    /// It is done, and nobody hears of it.
    ReplyLost,
    /// It stands still before it is done.
    HeldBefore,
    /// It is done, and then stands still.
    HeldAfter,
}

/// How a call that stood still goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// As if nothing had happened.
    Answer,
    /// Nothing is heard of it. If it was not done yet, it may be done later.
    Fail,
}

/// Says what becomes of a call, given its verb and key.
type Rule = Box<dyn FnMut(Verb, &str) -> Fate + Send>;

/// A call that stands still.
struct Held {
    what: String,
    release: oneshot::Sender<Release>,
    /// It comes from a thread beside the runtime: time cannot pass before it returns.
    is_beside: bool,
}

/// A put that was sent and given up before the store saw it; it may arrive yet.
pub(super) struct Late {
    pub(super) key: String,
    pub(super) bytes: Bytes,
}

/// One machine's line. The wires of all its daemons, one after the other, lead through it.
pub(super) struct Line {
    state: Mutex<State>,
    /// Rings when a call begins to stand still.
    held: Notify,
}

struct State {
    rule: Rule,
    /// What becomes of the call with a number, whatever the rule says.
    appointed: Option<(u64, Fate)>,
    /// The store ignores `If-None-Match`.
    overwrites: bool,
    /// The daemon is being killed: nothing passes.
    is_hung_up: bool,
    thread: ThreadId,
    calls: u64,
    held: Vec<Held>,
    late: Vec<Late>,
    log: Vec<String>,
}

impl Line {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                rule: Box::new(|_, _| Fate::Answered),
                appointed: None,
                overwrites: false,
                is_hung_up: false,
                thread: std::thread::current().id(),
                calls: 0,
                held: Vec::new(),
                late: Vec::new(),
                log: Vec::new(),
            }),
            held: Notify::new(),
        })
    }

    /// From now on this rule says what becomes of a call.
    pub(super) fn set_rule(&self, rule: impl FnMut(Verb, &str) -> Fate + Send + 'static) {
        self.state().rule = Box::new(rule);
    }

    /// What becomes of the call with this number, counted from 1, whatever the rule says.
    pub(super) fn appoint(&self, number: u64, fate: Fate) {
        self.state().appointed = Some((number, fate));
    }

    /// From now on everything works.
    pub(super) fn heal(&self) {
        self.set_rule(|_, _| Fate::Answered);
        self.state().appointed = None;
    }

    /// From now on the store overwrites what has a key that is put.
    pub(super) fn overwrite(&self) {
        self.state().overwrites = true;
    }

    /// How many calls there were.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Returns when a call stands still.
    pub(super) async fn stands_still(&self) {
        self.held.notified().await;
    }

    pub(super) fn is_held(&self) -> bool {
        !self.state().held.is_empty()
    }

    /// A call stands still in a thread beside the runtime.
    pub(super) fn is_held_beside(&self) -> bool {
        self.state().held.iter().any(|held| held.is_beside)
    }

    /// Lets go on what stands still.
    pub(super) fn release(&self, how: Release) {
        let held = std::mem::take(&mut self.state().held);
        self.go_on(held, how);
    }

    /// The machine's daemon is about to be killed: its threads come to an end.
    pub(super) fn hang_up(&self) {
        let beside = {
            let mut state = self.state();
            state.is_hung_up = true;
            state.held.extract_if(.., |held| held.is_beside).collect()
        };
        self.go_on(beside, Release::Fail);
    }

    /// The daemon was killed; another may come.
    pub(super) fn pick_up(&self) {
        self.state().held.clear();
        self.state().is_hung_up = false;
    }

    fn go_on(&self, held: Vec<Held>, how: Release) {
        for held in held {
            self.log(format!("{} goes on: {how:?}", held.what));
            // Nobody waits for it any more if the daemon was killed.
            let is_heard = held.release.send(how).is_ok();
            tracing::trace!(is_heard, "{how:?}");
        }
    }

    /// Puts whose sender gave them up while they stood still.
    pub(super) fn take_late(&self) -> Vec<Late> {
        std::mem::take(&mut self.state().late)
    }

    /// What passed since the last look.
    pub(super) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    fn log(&self, what: String) {
        self.state().log.push(what);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn judge(&self, verb: Verb, key: &str) -> (u64, Fate) {
        let mut state = self.state();
        state.calls += 1;
        let number = state.calls;
        let appointed = state.appointed.take_if(|(at, _)| *at <= number);
        let fate = match appointed {
            _ if state.is_hung_up => Fate::Refused,
            Some((_, fate)) => fate,
            None => (state.rule)(verb, key),
        };
        (number, fate)
    }

    /// Stands still until the schedule says how it goes on.
    async fn hold(&self, what: &str) -> Result<()> {
        let (release, released) = oneshot::channel();
        {
            let mut state = self.state();
            let is_beside = std::thread::current().id() != state.thread;
            state.log.push(format!("{what} stands still"));
            state.held.push(Held {
                what: what.to_owned(),
                release,
                is_beside,
            });
        }
        self.held.notify_one();
        match released.await {
            Ok(Release::Answer) => Ok(()),
            Ok(Release::Fail) | Err(_) => Err(no_reply(what)),
        }
    }
}

fn no_reply(what: &str) -> Error {
    Error::unavailable(format!("{what}: no reply, as told"))
}

/// A store at the end of a line.
pub(super) struct Wire {
    pub(super) store: Arc<dyn Store>,
    pub(super) line: Arc<Line>,
}

/// Puts a body among those that may arrive late, unless the put came to an end.
struct Sent<'a> {
    line: &'a Line,
    late: Option<Late>,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if let Some(late) = self.late.take() {
            self.line.state().late.push(late);
        }
    }
}

impl Wire {
    async fn pass<T>(
        &self,
        verb: Verb,
        key: &str,
        late: Option<Late>,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (number, fate) = self.line.judge(verb, key);
        let what = format!("call {number}: {verb:?} {key}");
        let mut sent = Sent {
            line: &self.line,
            late: None,
        };
        match fate {
            Fate::Refused => {
                self.line.log(format!("{what}: refused"));
                return Err(Error::unavailable(format!("{what}: refused, as told")));
            }
            Fate::Forbidden => return Err(Error::refused(format!("{what}: forbidden, as told"))),
            Fate::HeldBefore => {
                sent.late = late;
                self.line.hold(&what).await?;
                sent.late = None;
            }
            Fate::Answered | Fate::ReplyLost | Fate::HeldAfter => {}
        }
        let result = call.await;
        let outcome = if result.is_ok() { "done" } else { "failed" };
        self.line.log(format!("{what}: {outcome}, {fate:?}"));
        match fate {
            Fate::ReplyLost => Err(no_reply(&what)),
            Fate::HeldAfter => self.line.hold(&what).await.and(result),
            _ => result,
        }
    }
}

#[async_trait]
impl Store for Wire {
    fn location(&self) -> &str {
        self.store.location()
    }

    fn server(&self) -> &str {
        self.store.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(Self {
            store: self.store.below(name),
            line: Arc::clone(&self.line),
        })
    }

    fn date(&self) -> Option<Timestamp> {
        self.store.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        let bytes = match &body {
            Body::Bytes(bytes) => bytes.clone(),
            Body::File(path) => std::fs::read(path)
                .map_err(|e| Error::disk(format!("read {}", path.display()), e))?
                .into(),
        };
        let late = Late {
            key: key.to_owned(),
            bytes: bytes.clone(),
        };
        let overwrites = self.line.state().overwrites;
        let put = async {
            if overwrites {
                self.store.delete(&[key.to_owned()]).await?;
            }
            self.store.put(key, Body::Bytes(bytes)).await
        };
        self.pass(Verb::Put, key, Some(late), put).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let get = self.store.get_range(key, offset, length);
        self.pass(Verb::GetRange, key, None, get).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        let list = self.store.list(prefix, start_after);
        self.pass(Verb::List, prefix, None, list).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        let list = self.store.list_folder(prefix);
        self.pass(Verb::ListFolder, prefix, None, list).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let first = keys.first().map_or("", String::as_str);
        let delete = self.store.delete(keys);
        self.pass(Verb::Delete, first, None, delete).await
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let abort = self.store.abort_unfinished(prefix, before);
        let what = format!("{prefix} before {before}");
        self.pass(Verb::AbortUnfinished, &what, None, abort).await
    }
}
