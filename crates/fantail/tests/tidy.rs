//! What no lint checks: the direction between the rooms, the size and opening of files, words that say
//! nothing, and where threads and tasks may begin. Reads the sources; runs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Which rooms a room may use, beyond the closets. `server` puts all together.
const ARROWS: [(&str, &[&str]); 18] = [
    ("cli", &["sign", "snapshot", "upstream"]),
    ("admin", &["hub", "publish", "webhook", "xmpp"]),
    ("webhook", &["hub", "publish", "realm", "snapshot", "upstream"]),
    ("xmpp", &["hub", "log", "proxy", "publish", "route", "sign", "snapshot", "upstream"]),
    ("publish", &["hub", "log", "realm", "snapshot"]),
    ("listen", &["client", "hold", "proxy", "shard", "snapshot"]),
    ("proxy", &["client", "hold", "route", "shard", "snapshot", "upstream"]),
    ("shard", &["client", "hold", "hub", "sign", "snapshot", "upstream"]),
    ("hold", &["client", "hub", "log", "route"]),
    ("snapshot", &["certificate", "realm", "route", "sign", "upstream"]),
    ("route", &["hub", "realm", "sign"]),
    ("realm", &["hub", "sign"]),
    ("certificate", &[]),
    ("client", &[]),
    ("hub", &["log"]),
    ("log", &[]),
    ("sign", &[]),
    ("upstream", &[]),
];

/// Rooms that every room may use, and what they use themselves.
const CLOSETS: [(&str, &[&str]); 10] = [
    ("channel", &[]),
    ("config", &["logging"]),
    ("drain", &[]),
    ("error", &["upstream"]),
    ("logging", &["config"]),
    ("metrics", &[]),
    ("session", &[]),
    ("stats", &["channel", "config", "metrics"]),
    ("store", &[]),
    ("tcp", &[]),
];

/// Arrows against the direction, each with its reason.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "proxy/conversation.rs",
    "listen",
    "the state that a connection's guard shares with the conversation over it",
)];

/// Where threads and tasks begin; each keeps the handle, or the task ends with the connection it drives.
const SPAWNS: [&str; 24] = [
    "fantail/src/admin/mod.rs",
    "fantail/src/admin/prometheus.rs",
    "fantail/src/listen/connection.rs",
    "fantail/src/log/journal.rs",
    "fantail/src/logging.rs",
    "fantail/src/proxy/inquiry.rs",
    "fantail/src/proxy/link.rs",
    "fantail/src/proxy/native.rs",
    "fantail/src/proxy/over_http.rs",
    "fantail/src/publish/zeromq.rs",
    "fantail/src/publish/zeromq/socket.rs",
    "fantail/src/route/watch.rs",
    "fantail/src/server.rs",
    "fantail/src/store.rs",
    "fantail/src/upstream/workers.rs",
    "fantail/src/upstream/workers/exchange.rs",
    "fantail/src/upstream/workers/websocket.rs",
    "fantail/src/upstream/workers/wire.rs",
    "fantail/src/webhook/desk.rs",
    "fantail/src/webhook/desk/tries.rs",
    "fantail/src/webhook/mod.rs",
    "fantail/src/webhook/names.rs",
    "fantail/src/xmpp/inbox.rs",
    "fantail/src/xmpp/mod.rs",
];

/// Words that say nothing about the thing they name.
const EMPTY_WORDS: [&str; 7] = ["manager", "engine", "handler", "service", "context", "helper", "util"];

const MOST_LINES: usize = 600;
const MOST_LINES_OF_MAIN: usize = 100;

struct Source {
    path: PathBuf,
    /// Without the unit tests at its end; empty for a file that is all tests.
    code: String,
    text: String,
}

impl Source {
    /// Its path below `crates/`.
    fn name(&self) -> String {
        self.path.strip_prefix(crates()).expect("below crates/").to_string_lossy().into_owned()
    }

    /// The code's lines without their comments, numbered from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(n, line)| (n + 1, line.split("//").next().unwrap_or(line)))
    }
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/").to_path_buf()
}

fn sources(below: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
            if entry.is_dir() && !entry.ends_with("target") {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&entry).expect("UTF-8");
                let all_tests = entry.ends_with("tests.rs")
                    || entry.strip_prefix(crates()).is_ok_and(|p| p.iter().any(|p| p == "tests"));
                let end = if all_tests { Some(0) } else { text.find("#[cfg(test)]\nmod tests {") };
                let code = text[..end.unwrap_or(text.len())].to_string();
                found.push(Source { path: entry, code, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty());
    found
}

fn room(name: &str) -> &str {
    let inner = name.strip_prefix("fantail/src/").expect("a room's file");
    inner.split(['/', '.']).next().expect("not empty")
}

/// The rooms named in `crate::…` paths, nested lists included.
fn used(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            rooms.insert(word(rest).to_string());
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    rooms.insert(word(list[start..i].trim()).to_string());
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    rooms.insert(word(list[start..i].trim()).to_string());
                    start = i + 1;
                }
                _ => {}
            }
        }
    }
    rooms.remove("");
    rooms
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Names that strangers choose are hashed with a key that they cannot find out (`channel::ByName`).
#[test]
fn tables_by_names_of_strangers_cannot_be_flooded() {
    let own = [
        // Numbers of ours, and digests with a key.
        "channel.rs",
        "client.rs",
        "hold/fanout.rs",
        "hold/fanout/answering.rs",
        "hold/fanout/slow.rs",
        "hold/fill.rs",
        "hold/mod.rs",
        "hold/sockjs.rs",
        "hold/watch.rs",
        "hub.rs",
        "hub/inherited.rs",
        "hub/unkept.rs",
        "log/rings.rs",
        "session.rs",
        "sign.rs",
        "stats/desk.rs",
        "webhook/ids.rs",
        // Names of operators, origins and the XMPP server.
        "certificate.rs",
        "hold/inquiry.rs",
        "stats.rs",
        "xmpp/",
    ];
    for source in sources(&crates().join("fantail/src")) {
        let name = source.name();
        let file = name.strip_prefix("fantail/src/").unwrap_or(&name);
        let allowed = own.iter().any(|own| file == *own || own.ends_with('/') && file.starts_with(own));
        assert!(
            allowed || !source.code.contains("hashbrown::"),
            "{file}: whose names are the keys of this table?"
        );
    }
}

#[test]
fn rooms_use_only_what_lies_behind_them() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().chain(CLOSETS).collect();
    let closets: BTreeSet<&str> = CLOSETS.iter().map(|(name, _)| *name).collect();
    let mut against = Vec::new();
    let mut exceptions = BTreeSet::from(EXCEPTIONS.map(|(file, to, _)| format!("{file} uses {to}")));
    for source in sources(&crates().join("fantail/src")) {
        let name = source.name();
        let from = room(&name);
        if matches!(from, "main" | "lib" | "server") {
            continue;
        }
        let Some(allowed) = arrows.get(from) else {
            against.push(format!("{name}: the room {from} has no row in ARROWS"));
            continue;
        };
        for to in used(&source.code) {
            let closet = closets.contains(to.as_str()) && !closets.contains(from);
            let file = name.strip_prefix("fantail/src/").unwrap_or(&name);
            if to == from
                || closet
                || allowed.contains(&to.as_str())
                || exceptions.remove(&format!("{file} uses {to}"))
            {
                continue;
            }
            against.push(format!("{name}: {from} uses {to}"));
        }
    }
    assert!(against.is_empty(), "arrows that are not in the table:\n{}", against.join("\n"));
    assert!(exceptions.is_empty(), "exceptions that nothing needs: {exceptions:?}");
}

#[test]
fn the_table_of_rooms_has_no_way_back() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for start in arrows.keys() {
        let (mut seen, mut open) = (BTreeSet::new(), arrows[start].to_vec());
        while let Some(next) = open.pop() {
            assert_ne!(next, *start, "{start} reaches itself");
            if seen.insert(next) {
                open.extend(arrows.get(next).unwrap_or_else(|| panic!("{next} has no row")).iter());
            }
        }
    }
}

#[test]
fn files_open_with_what_they_own_and_stay_small() {
    let mut wrong = Vec::new();
    for source in sources(&crates()) {
        let name = source.name();
        if !source.text.starts_with("//! ") && !name.ends_with("/tests.rs") {
            wrong.push(format!("{name}: does not open with //!"));
        }
        let (lines, most) = (
            source.code.lines().count(),
            if name.ends_with("/main.rs") { MOST_LINES_OF_MAIN } else { MOST_LINES },
        );
        if lines > most && !name.contains("/benches/") {
            wrong.push(format!("{name}: {lines} lines, more than {most}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names that a line of code gives to items.
fn given(line: &str) -> Option<&str> {
    const ITEMS: [&str; 8] = ["struct ", "enum ", "trait ", "type ", "fn ", "mod ", "const ", "static "];
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").or_else(|| line.split_once(") ").map(|(_, l)| l)).unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    ITEMS.iter().find_map(|item| line.strip_prefix(item)).map(word)
}

/// True when `empty` is a part of a name: `FooWord`, `foo_word`, `FOO_WORDS`.
fn has_part(name: &str, empty: &str) -> bool {
    let mut parts = String::new();
    for (i, c) in name.char_indices() {
        if c.is_uppercase() && name[..i].ends_with(|b: char| b.is_lowercase()) {
            parts.push('_');
        }
        parts.extend(c.to_lowercase());
    }
    parts.split('_').any(|part| part == empty || part.strip_suffix('s') == Some(empty))
}

#[test]
fn no_name_is_empty_of_meaning() {
    let mut wrong = Vec::new();
    for source in sources(&crates()) {
        let name = source.name();
        let files = name.split(['/', '.']).map(|part| (0, part));
        let items = source.text.lines().enumerate().filter_map(|(n, line)| given(line).map(|g| (n + 1, g)));
        for (n, given) in files.chain(items) {
            if EMPTY_WORDS.iter().any(|empty| has_part(given, empty)) {
                wrong.push(format!("{name} line {n}: {given}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn errors_have_types() {
    let mut wrong = Vec::new();
    for source in sources(&crates()).iter().filter(|s| !s.code.is_empty()) {
        for (n, line) in source.lines() {
            let stringly =
                line.contains("Result<") && (line.contains(", String>") || line.contains(", &'static str>"));
            if stringly || line.contains(".to_string().contains(") {
                wrong.push(format!("{} line {n}: {}", source.name(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "an error is text:\n{}", wrong.join("\n"));
}

#[test]
fn comments_draw_no_lines_and_cite_no_line_numbers() {
    let mut wrong = Vec::new();
    for source in sources(&crates()) {
        for (n, line) in source.text.lines().enumerate() {
            let Some((_, comment)) = line.split_once("//") else { continue };
            let drawn = comment.trim_start_matches(['/', '!']).trim_start();
            let banner = ["---", "===", "***", "###", "~~~", "___"].iter().any(|b| drawn.starts_with(b));
            let cited = comment
                .match_indices(".rs:")
                .any(|(at, _)| comment[at + 4..].starts_with(|c: char| c.is_ascii_digit()));
            if banner || cited {
                wrong.push(format!("{} line {}: {}", source.name(), n + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tasks_and_threads_begin_in_few_places() {
    let mut wrong = Vec::new();
    let mut needed: BTreeSet<&str> = SPAWNS.into();
    let rooms = ["fantail/src", "fantail-pin/src", "fantail-proto/src"];
    for source in rooms.iter().flat_map(|room| sources(&crates().join(room))) {
        let begins =
            |line: &str| ["spawn(", "spawn_local(", "spawn_blocking("].iter().any(|s| line.contains(s));
        if source.lines().any(|(_, line)| begins(line)) && !needed.remove(source.name().as_str()) {
            wrong.push(source.name());
        }
    }
    assert!(wrong.is_empty(), "not in SPAWNS: {wrong:?}");
    assert!(needed.is_empty(), "SPAWNS names files that spawn nothing: {needed:?}");
}

#[test]
fn protocol_code_knows_no_socket_clock_or_runtime() {
    let mut wrong = Vec::new();
    for source in sources(&crates().join("fantail-proto/src")) {
        for (n, line) in source.lines() {
            for absent in
                ["std::net", "tokio", "std::thread", "Instant::now", "SystemTime", "std::fs", "std::env"]
            {
                let address = line.contains("IpAddr") || line.contains("SocketAddr") || line.contains("Ipv");
                if line.contains(absent) && !(absent == "std::net" && address) {
                    wrong.push(format!("{} line {n}: {absent}", source.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
