//! What everybody's database does.

use crate::replicate::tests::world::{Image, World};

#[test]
fn every_commit_is_captured_and_rebuilds_to_sqlites_own_image() {
    let world = World::new();
    let mut app = world.app_with_table();
    let running = world.capture();
    let mut pin = running.pin();
    assert!(pin.is_exact());
    let mut image = Image::read(&mut *pin);
    assert_eq!(image.hash(), app.hash());
    let mut expected = Vec::new();
    for row in 0..200 {
        app.sql(&format!(
            "insert into t values({row}, randomblob({}))",
            row * 37
        ));
        expected.push(app.hash());
    }
    let seq = running.barrier();
    assert_eq!(seq, pin.seq() + 200);
    let mut seen = Vec::new();
    image.replay(&running.spool, pin.run(), pin.seq(), |_, image| {
        seen.push(image.hash());
    });
    assert_eq!(seen, expected);
    running.stop();
}

#[test]
fn a_clean_restart_goes_on_in_the_same_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    let running = world.capture();
    let mut image = Image::read(&mut *running.pin());
    let seq = running.barrier();
    app.sql("insert into t values(1, 'before')");
    running.stop();
    assert_eq!(world.wal_bytes(), 0);
    app.sql("insert into t values(2, 'while down')");
    let running = world.capture();
    assert_eq!(running.barrier(), seq + 2);
    app.sql("insert into t values(3, 'after')");
    assert_eq!(running.barrier(), seq + 3);
    assert_eq!(running.run(), 1);
    let mut bounds = Vec::new();
    image.replay(&running.spool, 1, seq, |commit, _| {
        bounds.push(commit.upper_bound);
    });
    assert_eq!(bounds, [false, true, false]);
    assert_eq!(image.hash(), app.hash());
}
