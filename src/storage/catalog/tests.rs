use super::*;

const TIME: &str = "20261120T174512.345678Z";

/// A listing from words: `claim`, `snap@5`, `part@1:7`, `l0@2`, `l1@2-9`, `l1@2-9:ab` (its hash8);
/// anything else is a key as it stands. All of them are of generation 1.
fn listing(words: &str) -> Vec<Listed> {
    words
        .split_whitespace()
        .map(|word| listed(&key(word)))
        .collect()
}

fn listed(key: &str) -> Listed {
    Listed {
        key: key.to_string(),
        size: 100,
        modified: Timestamp::from_micros(0),
    }
}

fn key(word: &str) -> String {
    let Some((kind, rest)) = word.split_once('@') else {
        return match word {
            "claim" => "generations/00000001-00000000/claim".to_string(),
            _ => word.to_string(),
        };
    };
    let (range, hash8) = rest.split_once(':').unwrap_or((rest, "1"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let [first, last] = [first, last].map(|n| n.parse::<u64>().unwrap());
    let below = match kind {
        "snap" => format!("snapshots/{first:016x}-{TIME}-{hash8:0>8}.snapshot"),
        "part" => format!("pages/{first:016x}-{hash8:0>8}-00000001.pages"),
        "l0" => format!("wal/0/{first:016x}.wal"),
        _ => {
            let level = &kind[1..];
            format!("wal/{level}/{first:016x}-{last:016x}-{TIME}-{hash8:0>8}.wal")
        }
    };
    format!("generations/00000001-00000000/{below}")
}

fn only_generation(words: &str) -> GenerationListing {
    let catalog = Catalog::new(listing(words));
    assert_eq!(catalog.unknown, [] as [&str; 0]);
    catalog.generations.into_values().next().unwrap_or_default()
}

fn explain(segment: &SegmentListing) -> String {
    let last = segment
        .last
        .map_or("?".to_string(), |last| last.get().to_string());
    let hash8 = match segment.hash8 {
        None | Some(1) => String::new(),
        Some(hash8) => format!(":{hash8:x}"),
    };
    format!("l{:x}@{}-{last}{hash8}", segment.level, segment.first.get())
}

#[track_caller]
fn check_segments(objects: &str, expect: &str) {
    let generation = only_generation(objects);
    let seen: Vec<String> = generation.segments.iter().map(explain).collect();
    assert_eq!(seen.join(" "), expect, "{objects}");
}

#[test]
fn every_object_finds_its_place_and_what_is_not_ours_is_kept_apart() {
    let mut objects = listing("snap@9 README part@1:8 l0@2 claim snap@1 part@1:7 l1@2-9");
    objects.push(listed("generations/00000003-0000000a/claim"));
    objects.push(listed("generations/0123456789abcdef/claim"));
    let catalog = Catalog::new(objects);

    assert_eq!(
        catalog.unknown,
        ["README", "generations/0123456789abcdef/claim"]
    );
    let names: Vec<String> = catalog
        .generations
        .keys()
        .map(|id| id.to_string())
        .collect();
    assert_eq!(names, ["00000001-00000000", "00000003-0000000a"]);
    let first = &catalog.generations.values().next().unwrap();
    assert_eq!(first.claim.as_ref().unwrap().key, key("claim"));
    let txids: Vec<u64> = first.snapshots.iter().map(|s| s.txid.get()).collect();
    assert_eq!(txids, [1, 9]);
    let pages: Vec<u32> = first.parts.iter().map(|p| p.first.get()).collect();
    assert_eq!(pages, [7, 8]);
    assert_eq!(first.segments.len(), 2);
    assert_eq!(first.segments[1].time.unwrap().compact(), TIME);
}

#[test]
fn the_highest_ordinal_is_that_of_the_last_generation_even_if_it_has_only_a_claim() {
    let catalog = Catalog::new(listing(
        "claim generations/0000000b-00000000/claim generations/0000000c/claim",
    ));
    assert_eq!(catalog.highest_ordinal(), 11);
    assert_eq!(Catalog::default().highest_ordinal(), 0);
}

#[test]
fn a_level_0_segment_ends_before_the_next_and_the_newest_has_no_known_end() {
    check_segments("l0@7 l0@2 l0@5", "l0@2-4 l0@5-6 l0@7-?");
    check_segments("l0@2 l1@2-9 l0@5", "l0@2-4 l1@2-9 l0@5-?");
    check_segments("l0@3 l1@2-9", "l1@2-9 l0@3-?");
    check_segments("l2@2-9:b l2@2-9:a l1@2-3", "l1@2-3 l2@2-9:a l2@2-9:b");
}

#[test]
fn a_level_0_segment_is_ended_by_one_of_its_own_generation_only() {
    let mut objects = listing("l0@2");
    objects.push(listed(
        "generations/00000002-00000000/wal/0/0000000000000005.wal",
    ));
    let catalog = Catalog::new(objects);
    for generation in catalog.generations.values() {
        assert_eq!(generation.segments[0].last, None);
    }
}

#[track_caller]
fn check_standing(objects: &str, expect: &str) {
    let generation = only_generation(objects);
    let seen: Vec<String> = generation.standing().map(explain).collect();
    assert_eq!(seen.join(" "), expect, "{objects}");
}

#[test]
fn an_upload_whose_beginning_a_merged_segment_holds_stands_for_nothing() {
    check_standing("l0@2 l0@5", "l0@2-4 l0@5-?");
    check_standing("l0@2 l0@5 l1@2-7 l0@8", "l1@2-7 l0@8-?");
    // Nobody knows how far it goes: merging takes whole uploads, so it is not of this history.
    check_standing("l1@2-7 l0@6", "l1@2-7");
    check_standing("l2@2-20 l1@2-7 l0@8 l0@21", "l1@2-7 l2@2-20 l0@21-?");
    check_standing("l0@2 l1@5-7 l0@8", "l0@2-7 l1@5-7 l0@8-?");
}
