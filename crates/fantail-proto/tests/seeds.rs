//! Calls the fuzz targets' own functions with every input that is checked in, so that what fuzzing
//! found once is tested always. Fuzzing itself needs cargo-fuzz: `cargo fuzz run TARGET fuzz/seeds/TARGET`.
//! With `MUTATE_SECONDS` each target also gets mixtures of its seeds for so long, which is less, and needs nothing.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, SystemTime},
};

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
fn request() {
    replay("request", targets::request);
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

/// Each folder of seeds is replayed here, and is a target whose body is shared.
#[test]
fn no_seeds_are_left_out() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    for folder in fs::read_dir(fuzz.join("seeds")).expect("checked in") {
        let name = folder.expect("a directory that can be read").file_name();
        let name = name.to_str().expect("a name of ours");
        assert!(include_str!("seeds.rs").contains(&format!("replay(\"{name}\", ")), "{name} is not replayed");
        let target = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).expect("a target");
        assert!(target.contains(&format!("fantail_fuzz::{name}(")), "{name} has a body of its own");
    }
}

fn replay(target: &str, run: impl Fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut all = Vec::new();
    for seed in fs::read_dir(&seeds).expect("checked in") {
        let path = seed.expect("a directory that can be read").path();
        println!("{}", path.display());
        let seed = fs::read(&path).expect("a file that can be read");
        run(&seed);
        all.push(seed);
    }
    assert!(!all.is_empty(), "no seeds in {}", seeds.display());
    let seconds = std::env::var("MUTATE_SECONDS").map_or(0, |text| text.parse().expect("a number"));
    mutate(target, run, &all, Duration::from_secs(seconds));
}

/// Runs mixtures of the seeds; one that fails is kept in the folder of temporary files.
fn mutate(target: &str, run: impl Fn(&[u8]), seeds: &[Vec<u8>], time: Duration) {
    let begun = SystemTime::now();
    // Never 0, of which nothing else comes.
    let mut random = Random(u64::from(std::process::id()) + 1);
    let mut count = 0_u64;
    while begun.elapsed().is_ok_and(|gone| gone < time) {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(6) {
            random.change(&mut input, seeds);
        }
        if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
            let kept = std::env::temp_dir().join(format!("fantail-{target}-{}", std::process::id()));
            fs::write(&kept, &input).expect("a folder that can be written");
            panic!("kept as {}", kept.display());
        }
        count += 1;
    }
    println!("{target}: {count} mixtures");
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or_default() % end.max(1)
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let (at, long) = (self.below(input.len() + 1), 1 + self.below(16));
        let end = (at + long).min(input.len());
        match self.below(7) {
            0 => input.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << self.below(8)),
            1 => input.get_mut(at).into_iter().for_each(|byte| *byte = BYTES[self.below(BYTES.len())]),
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, input[at..end].repeat(1 + self.below(40)))),
            4 => input.insert(at, BYTES[self.below(BYTES.len())]),
            5 => input.truncate(at),
            _ => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                let upto = (from + self.below(64)).min(other.len());
                drop(input.splice(at..end, other[from..upto].iter().copied()));
            }
        }
    }
}

/// That mean something to some parser.
const BYTES: &[u8] = b"\x00\x01\x7f\x80\xff \t\r\n\"\\',:;=*/%&#!~[]{}()<>-+.09azAZTJ";
