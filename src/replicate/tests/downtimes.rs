//! What happens while nothing is captured, and what of it is proved afterwards.

use crate::format::wal::{Chain, FRAME_HEADER_BYTES, WalHeader, checksum};
use crate::replicate::spool::Spool;
use crate::replicate::tests::world::{App, Image, PATIENCE, Running, World};
use std::fs;
use std::time::{Duration, Instant};

/// Ends a capture as SIGKILL does, as far as files go.
fn kill(world: &World, running: Running<'_>) {
    drop(running);
    let start = Instant::now();
    while Spool::open(&world.settings.meta_path, std::sync::Arc::default()).is_err() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A world whose `-wal` file has old frames far beyond the end of the present WAL, so that the end
/// of the latter can be told; captured up to there.
fn world_with_old_frames() -> (World, App) {
    let mut world = World::new();
    // So that the capture leaves the WAL as it is.
    world.timing.quiet = Duration::from_secs(3600);
    world.timing.rest = Duration::from_secs(3600);
    let mut app = world.app_with_table();
    app.sql("pragma wal_autocheckpoint=0");
    for row in 0..40 {
        app.sql(&format!("insert into t values({row}, randomblob(3000))"));
    }
    app.sql("pragma wal_checkpoint(restart)");
    app.sql("insert into t(x) values('the first of a new WAL')");
    (world, app)
}

fn wal(world: &World) -> Vec<u8> {
    fs::read(format!("{}-wal", world.database().display())).unwrap()
}

fn check_last(running: &Running<'_>, image: &mut Image, seq: u64, app: &mut App) {
    running.barrier();
    let run = running.run();
    image.replay(&running.spool, run, seq, |_, _| {});
    assert_eq!(image.hash(), app.hash());
}

#[test]
fn a_wal_that_was_restarted_once_is_followed_to_its_proved_end() {
    let (world, mut app) = world_with_old_frames();
    let running = world.capture();
    let mut pin = running.pin();
    let mut image = Image::read(&mut *pin);
    let seq = pin.seq();
    drop(pin);
    kill(&world, running);
    for row in 100..105 {
        app.sql(&format!("insert into t values({row}, 'while down')"));
    }
    app.sql("pragma wal_checkpoint(restart)");
    app.sql("insert into t values(200, 'in the next WAL')");

    let running = world.capture();
    assert_eq!(running.barrier(), seq + 6);
    assert_eq!(running.run(), 1);
    check_last(&running, &mut image, seq, &mut app);
    running.stop();
}

#[test]
fn an_end_that_may_have_been_cut_begins_a_run() {
    let (world, mut app) = world_with_old_frames();
    kill(&world, world.capture());
    app.sql("insert into t values(100, 'while down')");
    app.sql("pragma wal_checkpoint(restart)");
    app.sql("pragma journal_size_limit=0");
    app.sql("insert into t values(200, 'cuts the file')");
    let running = world.capture();
    assert_eq!(running.run(), 2);
    assert_eq!(
        running.spool.runs().pop().unwrap().reason,
        "the WAL was restarted while nothing was captured, and its end may be lost"
    );
    running.stop();
}

/// Appends a commit that never happened: what a writer leaves that is killed between its last write
/// and the change of the index, while the application keeps the index alive so that nothing
/// recovers it. It has one frame, of page `pgno` or of the page of the last frame.
fn append_phantom(world: &World, pgno: Option<u32>) {
    let mut bytes = wal(world);
    let mut chain = Chain::of_header(&WalHeader::parse(&bytes).unwrap());
    while chain.advance(&bytes[chain.offset() as usize..]).is_ok() {}
    let at = chain.offset() as usize;
    let size = FRAME_HEADER_BYTES + 4096;
    let mut frame = bytes[at - size..at].to_vec();
    if let Some(pgno) = pgno {
        frame[..4].copy_from_slice(&pgno.to_be_bytes());
    }
    frame[size - 100..].fill(0x77);
    let sum = checksum(chain.order, chain.end.checksum, &frame[..8]);
    let sum = checksum(chain.order, sum, &frame[FRAME_HEADER_BYTES..]);
    frame[16..20].copy_from_slice(&sum[0].to_be_bytes());
    frame[20..24].copy_from_slice(&sum[1].to_be_bytes());
    bytes[at..at + size].copy_from_slice(&frame);
    assert!(chain.advance(&bytes[at..]).unwrap().commit.is_some());
    fs::write(format!("{}-wal", world.database().display()), bytes).unwrap();
}

/// A downtime in which a commit failed and the WAL was restarted; expects this run behind it.
#[track_caller]
fn check_phantom(pgno: Option<u32>, run: u64) {
    let (world, mut app) = world_with_old_frames();
    let running = world.capture();
    let mut pin = running.pin();
    let mut image = Image::read(&mut *pin);
    let seq = pin.seq();
    drop(pin);
    kill(&world, running);
    app.sql("insert into t values(100, 'while down')");
    append_phantom(&world, pgno);
    app.sql("pragma wal_checkpoint(restart)");
    app.sql("insert into t values(200, 'in the next WAL')");

    let running = world.capture();
    let end = running.barrier();
    assert_eq!(running.run(), run);
    if run == 1 {
        assert_eq!(end, seq + 2);
        check_last(&running, &mut image, seq, &mut app);
    } else {
        assert!(running.spool.batch(1, seq, 1).unwrap().is_none());
        assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    }
    running.stop();
}

#[test]
fn a_commit_that_was_never_published_is_left_out() {
    check_phantom(Some(5), 1);
}

#[test]
fn a_commit_of_which_nothing_tells_whether_it_was_published_begins_a_run() {
    check_phantom(None, 2);
}

#[test]
fn ten_clean_stops_all_go_on_in_the_same_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    app.sql("pragma wal_autocheckpoint=0");
    let running = world.capture();
    let mut pin = running.pin();
    let mut image = Image::read(&mut *pin);
    let seq = pin.seq();
    running.stop();
    for round in 0..10 {
        for _ in 0..round * 7 {
            app.sql("insert into t(x) values(randomblob(300))");
        }
        world.capture().stop();
    }
    let running = world.capture();
    assert_eq!(running.run(), 1);
    check_last(&running, &mut image, seq, &mut app);
    running.stop();
}

#[test]
fn a_kill_at_rest_costs_nothing() {
    let world = World::new();
    let mut app = world.app_with_table();
    let running = world.capture();
    let mut pin = running.pin();
    let mut image = Image::read(&mut *pin);
    let seq = pin.seq();
    drop(pin);
    app.sql("insert into t values(1, 'before')");
    running.until("a note of the rest", || {
        world.settings.meta_path.join("capture.json").exists()
    });
    kill(&world, running);
    app.sql("insert into t values(2, 'while down')");
    let running = world.capture();
    assert_eq!(running.barrier(), seq + 2);
    assert_eq!(running.run(), 1);
    check_last(&running, &mut image, seq, &mut app);
    running.stop();
}

#[test]
fn a_run_of_a_spool_made_anew_is_told_from_the_last_one_with_its_number() {
    let world = World::new();
    let _app = world.app_with_table();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let running = world.capture();
        runs.extend(running.spool.runs());
        kill(&world, running);
        fs::remove_dir_all(&world.settings.meta_path).unwrap();
    }
    assert_eq!((runs[0].id, runs[0].base), (runs[1].id, runs[1].base));
    assert_ne!(runs[0].token, runs[1].token);
}
