//! Any text is a table or a list of errors with lines; a table's routes make absolute paths.
#![no_main]

use fantail_proto::route::{Asked, Table};

libfuzzer_sys::fuzz_target!(|text: &str| {
    match Table::parse(text) {
        Ok(table) => {
            for route in table.routes() {
                let path =
                    format!("{}rest?query", if route.path_beg.is_empty() { "/" } else { &route.path_beg });
                table.find(Asked { host: "a", path: &path, tls: true, ws: false, id: Some(&route.id) });
                for target in &route.targets {
                    let outgoing = route.outgoing(target, &path, "a");
                    assert!(outgoing.path_and_query.starts_with('/'));
                    assert!(outgoing.path_and_query.ends_with("?query"));
                    assert!(outgoing.host.bytes().all(|b| b.is_ascii_graphic()));
                }
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| (1..=text.lines().count()).contains(&error.line)));
            assert!(errors.iter().all(|error| !error.to_string().contains('\n')));
        }
    }
});
