//! The documents say what the code knows: every key, parameter and header, commands and examples that
//! work, and links that lead somewhere.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fantail::{cli, config::Config};
use fantail_proto::{
    grip::{Hold, Instruct},
    item::WsKind,
    route::Table,
    websocket::{
        control::{Control, Message, Verdict},
        events::{self, Event},
    },
};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// The folder of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The cells of the tables under `## HEADING`, a row each, without rows that begin with no code.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let section = document.split("\n## ").find(|section| section.starts_with(heading)).expect(heading);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().into()).collect()).collect()
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// The first block of this language.
fn block<'d>(document: &'d str, language: &str) -> &'d str {
    let start = format!("```{language}\n");
    let (_, rest) = document.split_once(&start).expect(language);
    rest.split_once("```").expect("a block ends").0
}

/// The texts between double quotes behind `after`, up to `until`.
fn quoted(source: &str, after: &str, until: &str) -> BTreeSet<String> {
    let (_, rest) = source.split_once(after).expect(after);
    let (list, _) = rest.split_once(until).expect(until);
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_reference_has_every_key_with_its_default() {
    let document = read("docs/configuration.md");
    let mut section = "";
    let mut known = BTreeSet::new();
    let defaults = read("crates/fantail/fantail.default.toml");
    for line in defaults.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, default)) = line.split_once(" = ") {
            let row = [code(key), code(default)];
            let rows = rows(&document, &code(section));
            assert!(rows.iter().any(|cells| cells[..2] == row), "{section} {key} = {default}");
            known.insert((code(section), code(key)));
        }
    }
    assert!(known.len() > 40, "{known:?}");
    for section in known.iter().map(|(section, _)| section) {
        for row in rows(&document, section) {
            assert!(known.contains(&(section.clone(), row[0].clone())), "{section} has no {row:?}");
        }
    }
}

#[test]
fn the_reference_has_every_parameter_of_routes() {
    let document = read("docs/routes.md");
    for (heading, file, others) in [
        ("The condition", "condition", &["*"][..]),
        ("Targets", "target", &["HOST:PORT", "zhttp/SPEC", "test"]),
    ] {
        let source = read(&format!("crates/fantail-proto/src/route/{file}.rs"));
        let known = quoted(&source, "KNOWN: &[&str] =", ";");
        let documented: BTreeSet<String> = rows(&document, heading)
            .iter()
            .map(|row| row[0].split('`').nth(1).unwrap().to_owned())
            .filter(|name| !others.contains(&name.as_str()))
            .collect();
        assert_eq!(documented, known, "{heading}");
    }
}

#[test]
fn the_reference_has_every_option_of_publish() {
    let document = read("docs/control-api.md");
    let (_, section) = document.split_once("\n### From a shell\n").unwrap();
    let section = section.split("\n### ").next().unwrap();
    let command =
        std::process::Command::new(env!("CARGO_BIN_EXE_fantail")).args(["publish", "--help"]).output();
    let help = String::from_utf8(command.unwrap().stdout).unwrap();
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| c.is_whitespace() || "`,()[]".contains(c));
        words
            .filter(|word| word.starts_with('-') && word.len() > 1 && !word.starts_with("---"))
            .map(str::to_owned)
            .collect()
    };
    let options = words(
        &help
            .lines()
            .filter(|line| line.trim_start().starts_with('-'))
            .map(|line| line.trim_start().split("  ").next().unwrap_or_default().to_owned() + " ")
            .collect::<String>(),
    );
    assert!(options.len() > 20, "{help}");
    let others = ["-h", "--help", "-V", "--version"].map(str::to_owned);
    let missing: Vec<_> = options
        .iter()
        .filter(|option| !others.contains(option))
        .filter(|option| !section.contains(&format!("`{option}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let unknown: Vec<_> = words(section).into_iter().filter(|word| !options.contains(word)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_reference_has_every_grip_header() {
    let document = read("docs/grip.md");
    let sources = ["grip", "forward"].map(|file| read(&format!("crates/fantail-proto/src/{file}.rs")));
    let names: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.split('"').skip(1))
        .filter(|text| text.starts_with("grip-") && text.len() > "grip-".len())
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        .collect();
    assert!(names.len() >= 11, "{names:?}");
    for name in names {
        let title: Vec<String> = name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        assert!(document.contains(&format!("\n| `{}` |", title.join("-"))), "{name}");
    }
    let features = fantail_proto::forward::FEATURES;
    assert!(document.contains(&code(features.to_str().unwrap())), "Grip-Feature");
}

#[test]
fn examples_of_the_references_are_good() {
    let routes = Table::parse(block(&read("docs/routes.md").replacen("```\n", "", 2), "")).unwrap();
    assert_eq!(routes.routes().len(), 3);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grip-instruct"));
    let body = block(&read("docs/grip.md"), "json").to_owned();
    let instruct = Instruct::parse(200, "OK", &headers, Bytes::from(body)).unwrap();
    assert!(matches!(instruct.hold, Some(Hold::Response { .. })), "{instruct:?}");
    assert_eq!((instruct.channels.len(), instruct.reply.code), (1, 200));
}

#[test]
fn the_readme_has_good_events() {
    let readme = read("README.md");
    let (_, block) = readme.split_once("```\nOPEN\n").expect("events");
    let (lines, _) = block.split_once("```").expect("a block ends");
    let body = Bytes::from(format!("OPEN\n{lines}").replace('\n', "\r\n"));
    let events = events::decode(&body).unwrap();
    let [Event::Open, Event::Message(WsKind::Text, content)] = &events[..] else { panic!("{events:?}") };
    let message = Message { kind: WsKind::Text, content: content.clone(), fragmented: false };
    let verdict = message.classify(Some(b"m:"));
    assert!(matches!(verdict, Verdict::Control(Control::Subscribe { .. })), "{verdict:?}");
}

#[test]
fn the_readme_has_the_commands_of_the_banner() {
    let config = Config::default();
    let routes = Table::parse(&config.routes.lines.join("\n")).unwrap();
    let banner = cli::banner(&config, [&config.server.listen, &[]], config.control.listen, &routes);
    let readme = read("README.md");
    let commands: Vec<&str> = banner.lines().map(str::trim).filter(|line| line.starts_with("curl")).collect();
    assert_eq!(commands.len(), 2, "{banner}");
    for command in commands {
        assert!(readme.contains(&format!("```sh\n{command}\n```")), "{command}");
    }
}

#[test]
fn a_difference_has_an_id_of_its_own() {
    let document = read("docs/differences.md");
    let ids: Vec<&str> =
        document.lines().filter_map(|line| line.strip_prefix("| D")?.split(' ').next()).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert!(ids.len() > 80 && ids.iter().all(|id| id.parse::<u16>().is_ok()), "{ids:?}");
    assert_eq!(unique.len(), ids.len(), "{ids:?}");
    for row in document.lines().filter(|line| line.starts_with("| D")) {
        assert_eq!(row.split(" | ").count(), 4, "{row}");
    }
}

#[test]
fn differences_stand_in_tables() {
    let document = read("docs/differences.md");
    let sections: Vec<&str> = document.split("\n## ").skip(1).collect();
    assert!(sections.len() > 10, "{sections:?}");
    for section in sections {
        let (heading, rest) = section.split_once('\n').unwrap();
        let is_row = |line: &&str| line.starts_with('|');
        let mut table = rest.lines().skip_while(|line| !is_row(line));
        let head = table.next().unwrap_or_else(|| panic!("{heading} has no table"));
        let columns = head.split(" | ").count();
        assert!(!head.starts_with("| D") && columns > 1, "{heading} begins with {head}");
        assert_eq!(table.next(), Some(format!("|{}", " --- |".repeat(columns)).as_str()), "{heading}");
        let rows: Vec<&str> = table.by_ref().take_while(is_row).collect();
        assert!(!rows.is_empty(), "{heading}");
        for row in rows {
            let has_columns = row.split(" | ").count() == columns && row.ends_with(" |");
            assert!(has_columns && !row.contains("---") && !row.starts_with("| id "), "{heading}: {row}");
        }
        assert_eq!(table.find(is_row), None, "{heading} has a row outside of its table");
    }
    assert!(!document.split("\n## ").next().unwrap().contains("\n|"), "a row before the first heading");
}

#[test]
fn links_lead_somewhere() {
    let folder = |path: &str| root().join(path).read_dir().unwrap().map(|entry| entry.unwrap().path());
    let is_document = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let documents: Vec<PathBuf> = folder("").chain(folder("docs")).filter(is_document).collect();
    assert!(documents.len() > 10, "{documents:?}");
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if !file.contains("://") && !file.is_empty() {
                let path = document.parent().unwrap().join(file);
                assert!(path.exists(), "{}: {target}", document.display());
            }
        }
    }
}
