//! Calls the fuzz targets' own functions with every input that is checked in, so that what fuzzing
//! found once is tested always. Fuzzing itself needs cargo-fuzz: `cargo fuzz run TARGET fuzz/seeds/TARGET`.

use std::{fs, path::Path};

#[path = "../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a crate of its own for cargo-fuzz, a module here")]
mod targets;

#[test]
fn control() {
    replay("control", targets::control);
}

#[test]
fn events() {
    replay("events", targets::events);
}

#[test]
fn grip_headers() {
    replay("grip_headers", targets::grip_headers);
}

#[test]
fn instruct() {
    replay("instruct", targets::instruct);
}

#[test]
fn item_record() {
    replay("item_record", targets::item_record);
}

#[test]
fn items() {
    replay("items", targets::items);
}

#[test]
fn journal() {
    replay("journal", targets::journal);
}

#[test]
fn links() {
    replay("links", targets::links);
}

#[test]
fn routes() {
    replay("routes", |data| targets::routes(&String::from_utf8_lossy(data)));
}

#[test]
fn webhook() {
    replay("webhook", |data| targets::webhook(&String::from_utf8_lossy(data)));
}

#[test]
fn sockjs() {
    replay("sockjs", targets::sockjs);
}

#[test]
fn websocket() {
    replay("websocket", targets::websocket);
}

#[test]
fn xmpp() {
    replay("xmpp", targets::xmpp);
}

#[test]
fn zhttp() {
    replay("zhttp", targets::zhttp);
}

fn replay(target: &str, run: impl Fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut count = 0;
    for seed in fs::read_dir(&seeds).expect("checked in") {
        let path = seed.expect("a directory that can be read").path();
        println!("{}", path.display());
        run(&fs::read(&path).expect("a file that can be read"));
        count += 1;
    }
    assert!(count > 0, "no seeds in {}", seeds.display());
}
