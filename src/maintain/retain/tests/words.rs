//! Surveys, policies and decisions as words.
//!
//! Time is counted in steps of ten minutes from a midnight: 6 an hour, 144 a day. Transaction `n`
//! is committed at step `n`, and an object is stored at the step of its last transaction.
//!
//! | word | it is |
//! | --- | --- |
//! | `1:`, `2<1/30:` | a generation; one that goes on from 1 and shares up to txid 30 |
//! | `2<1/30+40:` | its transaction `n` is committed at step `40 + n` |
//! | `claim` | a claim; stored at step 0 of its generation |
//! | `snap@10`, `snap@7/1` | a snapshot; one with since 1 |
//! | `snap@10>snap@1,part@1` | it names these, of any generation: `1/snap@1` |
//! | `snap@10!` | it is damaged |
//! | `part@1` | a part with since 1 |
//! | `seg@2-5`, `seg2@2-5` | a segment of level 0; of level 2 |
//! | `seg@2-9:3,6` | with these points, and that of its last transaction |
//! | `seg@2-5?` | it was not read |
//! | `seg@2-?` | nor is its end known |
//! | `mark@6` | a segment without frames |
//! | `...^70` | stored at step 70 |

use super::*;
use crate::format::container::Parent;
use crate::format::ids::{ObjectId, Pgno};
use crate::format::snapshot::Home;
use crate::maintain::survey::{SegmentInside, SnapshotInside, Surveyed, SurveyedSnapshot};
use crate::storage::catalog::{PartListing, SegmentListing, SnapshotListing};

pub(super) const DAY: i64 = 144;

pub(super) fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

pub(super) fn generation(ordinal: u32) -> GenerationId {
    GenerationId { ordinal, random: 7 }
}

pub(super) fn at(step: i64) -> Timestamp {
    Timestamp::from_micros(1_795_132_800_000_000 + step * 600_000_000)
}

fn step(time: Timestamp) -> i64 {
    (time.micros() - at(0).micros()) / 600_000_000
}

pub(super) fn listed(key: &str, stored: Timestamp) -> Listed {
    Listed {
        key: key.to_owned(),
        size: 100,
        modified: stored,
    }
}

/// Keys need not parse here: `1/snap@10` says more.
pub(super) fn survey(lines: &[&str]) -> Survey {
    let mut survey = Survey::default();
    for line in lines {
        let (name, words) = line.split_once(':').unwrap_or(("1", line));
        let (name, words) = match name.parse::<u32>().is_ok() || name.contains('<') {
            true => (name, words),
            false => ("1", *line),
        };
        let (name, offset) = name.split_once('+').unwrap_or((name, "0"));
        let (ordinal, parent) = name.split_once('<').unwrap_or((name, ""));
        let mut surveyed = Surveyed {
            parent: parent.split_once('/').map(|(parent, shared)| Parent {
                generation: generation(parent.parse().unwrap()),
                txid: txid(shared.parse().unwrap()),
            }),
            ..Surveyed::default()
        };
        let reader = Reader {
            ordinal: ordinal.parse().unwrap(),
            offset: offset.parse().unwrap(),
        };
        words
            .split_whitespace()
            .for_each(|word| reader.add(word, &mut surveyed));
        sort(&mut surveyed);
        survey
            .generations
            .insert(generation(reader.ordinal), surveyed);
    }
    survey
}

pub(super) fn sort(surveyed: &mut Surveyed) {
    surveyed.snapshots.sort_by(|a, b| {
        let (a, b) = (&a.listed, &b.listed);
        (a.txid, &a.object.key).cmp(&(b.txid, &b.object.key))
    });
    surveyed.segments.sort_by(|a, b| {
        let (a, b) = (&a.listed, &b.listed);
        (a.first, a.level, &a.object.key).cmp(&(b.first, b.level, &b.object.key))
    });
}

/// Reads the words of one generation.
struct Reader {
    ordinal: u32,
    offset: i64,
}

impl Reader {
    fn time(&self, number: u64) -> Timestamp {
        at(self.offset + number as i64)
    }

    fn add(&self, word: &str, surveyed: &mut Surveyed) {
        let (word, stored) = match word.split_once('^') {
            Some((word, step)) => (word, Some(at(step.parse().unwrap()))),
            None => (word, None),
        };
        let (kind, place) = word.split_once('@').unwrap_or((word, "0"));
        let number = |text: &str| text.parse::<u64>().unwrap();
        let name = word.trim_end_matches(['!', '?']);
        let name = name.split(['>', ':']).next().unwrap();
        let object = |last: u64| {
            let key = format!("{}/{name}", self.ordinal);
            listed(&key, stored.unwrap_or(self.time(last)))
        };
        match kind {
            "claim" => surveyed.claim = Some(object(0)),
            "part" => surveyed.parts.push(PartListing {
                since: txid(number(place)),
                first: Pgno::FIRST,
                hash8: 0,
                object: object(number(place)),
            }),
            "snap" => {
                let is_damaged = place.ends_with('!');
                let (place, homes) = place.split_once('>').unwrap_or((place, ""));
                let place = place.trim_end_matches('!');
                let (last, since) = place.split_once('/').unwrap_or((place, place));
                let listed = SnapshotListing {
                    txid: txid(number(last)),
                    time: self.time(number(last)),
                    hash8: 0,
                    object: object(number(last)),
                };
                let inside = (!is_damaged).then(|| self.inside(number(since), homes));
                surveyed.snapshots.push(SurveyedSnapshot { listed, inside });
            }
            "mark" => {
                let range = format!("{place}-{place}");
                let mut segment = self.segment(0, &range, &object);
                segment.inside.as_mut().unwrap().is_mark = true;
                surveyed.segments.push(segment);
            }
            _ => {
                let level = kind.strip_prefix("seg").unwrap().parse().unwrap_or(0);
                let segment = self.segment(level, place, &object);
                surveyed.segments.push(segment);
            }
        }
    }

    fn inside(&self, since: u64, homes: &str) -> SnapshotInside {
        let homes = homes.split(',').filter(|home| !home.is_empty());
        let homes = homes.map(|home| Home {
            id: ObjectId([0; 8]),
            key: match home.contains('/') {
                true => home.to_owned(),
                false => format!("{}/{home}", self.ordinal),
            },
            length: 100,
        });
        SnapshotInside {
            since: txid(since),
            stored_pages: 1,
            page_bytes: 4096,
            block_bytes: 0,
            homes: homes.collect(),
        }
    }

    fn segment(&self, level: u8, place: &str, object: &dyn Fn(u64) -> Listed) -> SurveyedSegment {
        let is_read = !place.ends_with('?');
        let (range, points) = place.split_once(':').unwrap_or((place, ""));
        let (first, last) = range.split_once('-').unwrap();
        let first: u64 = first.parse().unwrap();
        let last: Option<u64> = last.trim_end_matches('?').parse().ok();
        let those: Vec<u64> = match points {
            "" => (first..=last.unwrap_or(first)).collect(),
            _ => {
                let points = points.split(',').map(|point| point.parse().unwrap());
                points.chain(last).collect()
            }
        };
        let points = those
            .into_iter()
            .map(|point| (txid(point), self.time(point)));
        SurveyedSegment {
            listed: SegmentListing {
                level,
                first: txid(first),
                last: last.map(txid),
                time: None,
                hash8: None,
                object: object(last.unwrap_or(first)),
            },
            inside: is_read.then(|| SegmentInside {
                is_mark: false,
                points: points.collect(),
                index_bytes: 0,
                block_bytes: 0,
            }),
        }
    }
}

/// `all=2d hourly=12h daily=9d`, also `all=5` steps.
pub(super) fn policy(words: &str) -> Retention {
    let mut policy = Retention::default();
    for word in words.split_whitespace() {
        let (name, length) = word.split_once('=').unwrap();
        let days = length.strip_suffix('d').map(|days| (days, 144));
        let hours = length.strip_suffix('h').map(|hours| (hours, 6));
        let (count, unit) = days.or(hours).unwrap_or((length, 1));
        let steps: u64 = count.parse::<u64>().unwrap() * unit;
        let length = Some(Duration::from_secs(steps * 600));
        match name {
            "all" => policy.all = length,
            "hourly" => policy.hourly = length,
            "daily" => policy.daily = length,
            _ => panic!("{word}"),
        }
    }
    policy
}

/// `snap@1^20 part@1^30`: noted at these steps.
fn noted(words: &str) -> BTreeMap<String, Timestamp> {
    let words = words.split_whitespace().map(|word| {
        let (name, step) = word.split_once('^').unwrap();
        let name = if name.contains('/') {
            name.to_owned()
        } else {
            format!("1/{name}")
        };
        (name, at(step.parse().unwrap()))
    });
    words.collect()
}

/// What a decision does, in words; generation 1 is not named.
pub(super) fn said(decision: &Decision) -> String {
    let name = |key: &str| key.strip_prefix("1/").unwrap_or(key).to_owned();
    let rewrites = decision.rewrites.iter().map(|rewrite| {
        let keep: Vec<String> = rewrite.keep.iter().map(|t| t.get().to_string()).collect();
        format!("thin {} to {}", name(&rewrite.key), keep.join(","))
    });
    let deletions = decision.deletions.iter().map(|deletion| {
        let why = match &deletion.why {
            Why::MergedInto(key) => format!("merged into {}", name(key)),
            Why::Unneeded(since) => format!("unneeded since {}", step(*since)),
            why => format!("{why:?}").to_lowercase(),
        };
        format!("{} {why}", name(&deletion.key))
    });
    let all: Vec<String> = rewrites.chain(deletions).collect();
    all.join("; ")
}

/// The points that are kept, in words.
pub(super) fn kept(decision: &Decision) -> String {
    let name = |generation: GenerationId, txid: Txid| match generation.ordinal {
        1 => txid.get().to_string(),
        ordinal => format!("{ordinal}/{}", txid.get()),
    };
    let kept = decision.kept.iter().map(|kept| {
        let why = format!("{:?}", kept.why).to_lowercase();
        format!("{} {why}", name(kept.generation, kept.txid))
    });
    let recent = decision.recent.iter().map(|recent| {
        let end = |point: Option<(Txid, Timestamp)>| match point {
            Some((txid, _)) => name(recent.generation, txid),
            None => "?".to_owned(),
        };
        let not_read = match recent.not_read {
            0 => String::new(),
            count => format!(" and {count} not read"),
        };
        let (count, first, last) = (recent.points, end(recent.first), end(recent.last));
        format!("{first}-{last} {count} recent{not_read}")
    });
    let all: Vec<String> = kept.chain(recent).collect();
    all.join("; ")
}

/// What is decided at a step, when nothing was noted before.
#[track_caller]
pub(super) fn check(objects: &[&str], keep: &str, now: i64, expect: &str) {
    check_noted(objects, "", keep, now, expect);
}

#[track_caller]
pub(super) fn check_noted(objects: &[&str], before: &str, keep: &str, now: i64, expect: &str) {
    let limits = Limits::default();
    let survey = survey(objects);
    let decision = retain(&survey, &noted(before), &policy(keep), &limits, at(now));
    assert_eq!(said(&decision), expect);
}

/// Which points are kept at a step.
#[track_caller]
pub(super) fn keeps(objects: &[&str], keep: &str, now: i64, expect: &str) {
    let limits = Limits::default();
    let survey = survey(objects);
    let decision = retain(&survey, &BTreeMap::new(), &policy(keep), &limits, at(now));
    assert_eq!(kept(&decision), expect);
}

/// What is noted at a step.
#[track_caller]
pub(super) fn notes(objects: &[&str], before: &str, keep: &str, now: i64, expect: &str) {
    let limits = Limits::default();
    let survey = survey(objects);
    let decision = retain(&survey, &noted(before), &policy(keep), &limits, at(now));
    let notes = decision.unneeded.iter();
    let notes = notes.map(|(key, &time)| format!("{key}^{}", step(time)));
    assert_eq!(notes.collect::<Vec<_>>().join(" "), expect);
}
