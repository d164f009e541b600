use super::*;
use crate::format::ids::{PageSize, Pgno};
use crate::format::sample::{self, scratch};
use crate::format::segment::{SegmentWriter, TimelineEntry};
use crate::materialize::cache::BlockCache;
use crate::materialize::disk::Identity;
use crate::materialize::model::{Random, Writer};
use crate::storage::Body;
use crate::storage::fault::{FaultStore, Verb};
use crate::storage::memory::MemoryStore;
use std::io::Cursor;

fn fetcher(store: Arc<dyn Store>, cache: u64) -> Arc<Fetcher> {
    let cache = Arc::new(BlockCache::new(cache));
    Arc::new(Fetcher::new(store, cache))
}

#[tokio::test]
async fn segments_for_which_a_merged_one_stands_are_dropped_though_they_are_listed() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 1, 1, 512, 5).await;
    writer.exact_snapshot(false).await;
    for _ in 0..6 {
        writer.commit();
        writer.upload().await;
    }
    let mut loader = Loader::new(fetcher(store, 1 << 20));
    let first = loader.refresh(&Histories::new()).await.unwrap().unwrap();
    assert_eq!(loader.segments.len(), 6);
    writer.merge(0, false, false).await;
    let merged = loader.refresh(&first.histories).await.unwrap().unwrap();
    let listed = merged.catalog.generations[&writer.id].segments.len();
    assert_eq!(listed, 7);
    let history = &merged.histories[&writer.id];
    assert!(history.segments.len() < 6);
    assert_eq!(loader.segments.len(), history.segments.len());
    assert!(loader.refresh(&merged.histories).await.unwrap().is_none());
}

/// Two transactions that wrote `versions` pages here and there: what finds these takes some hundred
/// kilobytes.
async fn large_segment(store: &dyn Store, versions: u32) -> SegmentListing {
    let (first, last) = (sample::txid(2), sample::txid(3));
    let page_size = PageSize::new(512).unwrap();
    let header = sample::header(Kind::Segment, page_size, 2, 3);
    let out = Cursor::new(Vec::new());
    let mut writer = SegmentWriter::new(out, header.object_id, page_size, &scratch).unwrap();
    let mut random = Random::new(1);
    let mut pgno = 0;
    for _ in 0..versions {
        pgno += 1 + random.below(10_000) as u32;
        let txid = if random.percent(50) { first } else { last };
        writer
            .push(Pgno::new(pgno).unwrap(), txid, &[0; 512])
            .unwrap();
    }
    let time = |number: i64| Timestamp::from_micros(1_795_176_000_000_000 + number);
    let timeline = [(first, 1), (last, 2)];
    let timeline = timeline.map(|(txid, number)| TimelineEntry::new(txid, time(number), pgno));
    let (out, _) = writer.finish(&header, &timeline, &[], None).unwrap();
    let key = Key {
        generation: header.generation,
        object: ObjectKey::Upload { first },
    };
    let body = Body::Bytes(out.into_inner().into());
    store.put(&key.to_string(), body).await.unwrap();
    SegmentListing {
        level: 0,
        first,
        last: None,
        time: None,
        hash8: None,
        object: store.list(GENERATIONS, None).await.unwrap().remove(0),
    }
}

/// Reads a segment: how many bytes of it, and whether what finds its pages is kept then.
async fn read(
    store: &FaultStore,
    fetcher: &Arc<Fetcher>,
    listed: &SegmentListing,
    object: &Arc<Object>,
    opening: bool,
) -> (u64, bool) {
    let before = store.counts(Verb::GetRange).bytes;
    let id = sample::header(Kind::Segment, PageSize::new(512).unwrap(), 2, 3).generation;
    let loaded = read_segment(fetcher, id, listed, object, opening).await;
    let Ok(Loaded::Segment(segment, _)) = loaded else {
        panic!("a segment was expected");
    };
    assert_eq!(segment.timeline.count(), 2);
    let has_table = fetcher.cache.table(object.number).is_some();
    (store.counts(Verb::GetRange).bytes - before, has_table)
}

fn object(fetcher: &Fetcher, listed: &SegmentListing) -> Arc<Object> {
    let number = fetcher.cache.number_object();
    Arc::new(Object::new(number, &*MemoryStore::new(), &listed.object))
}

#[tokio::test]
async fn names_of_a_large_segment_are_read_without_what_finds_its_pages() {
    let store = FaultStore::new(MemoryStore::new());
    let listed = large_segment(&*store, 100_000).await;
    let fetcher = fetcher(store.clone(), 64 << 20);
    let object = object(&fetcher, &listed);
    let (bytes, has_table) = read(&store, &fetcher, &listed, &object, false).await;
    assert!(bytes <= 64 << 10, "{bytes} bytes");
    assert!(!has_table);
    let (bytes, has_table) = read(&store, &fetcher, &listed, &object, true).await;
    assert!(bytes > 150 << 10, "{bytes} bytes");
    assert!(has_table);
}

#[tokio::test]
async fn what_comes_along_with_names_pushes_nothing_out() {
    let store = FaultStore::new(MemoryStore::new());
    let listed = large_segment(&*store, 20_000).await;
    // Room for the versions of one and a half of it.
    let fetcher = fetcher(store.clone(), 4 * 30_000 * 16);
    let objects = [object(&fetcher, &listed), object(&fetcher, &listed)];
    let mut kept = Vec::new();
    for object in &objects {
        kept.push(read(&store, &fetcher, &listed, object, false).await.1);
    }
    assert_eq!(kept, [true, false]);
    assert!(fetcher.cache.table(objects[0].number).is_some());
    assert!(read(&store, &fetcher, &listed, &objects[1], true).await.1);
}

#[tokio::test]
async fn an_object_is_called_in_the_disk_cache_as_the_last_listing_has_it() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut loader = Loader::new(fetcher(Arc::clone(&store), 1 << 20));
    let key = "generations/0000000a-9f3c2a7b/wal/0/0000000000000002.wal";
    let listed = |micros| Listed {
        key: key.to_owned(),
        size: 10,
        modified: Timestamp::from_micros(micros),
    };
    loader.forget_unlisted(&Catalog::new(vec![listed(1)]));
    let object = Arc::clone(&loader.objects[key]);
    // What only its writer told has another time than what the store says.
    loader.forget_unlisted(&Catalog::new(vec![listed(2)]));
    assert!(Arc::ptr_eq(&object, &loader.objects[key]));
    let (offset, length) = (0, 10);
    let expected = Identity::new(&*store, &listed(2)).piece(offset, length);
    assert!(object.identity().piece(offset, length) == expected);
}
