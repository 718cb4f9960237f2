//! Every key of `pushpin.conf` that some version of Pushpin reads (spec 9.2–9.5), and what it is in Fantail. The
//! table is all there is to know of a key that becomes one key; the rest is put together in the module above.

/// One key, by all the names that it has had.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Row {
    pub(in crate::config) section: &'static str,
    /// The current name first; then those of earlier versions, which count when it is not there.
    pub(in crate::config) names: &'static [&'static str],
    pub(in crate::config) meaning: Meaning,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum Meaning {
    /// It becomes this key. With the text that Pushpin goes by when the key is not set, where that is not
    /// Fantail's default.
    Becomes(&'static str, Form, Option<&'static str>),
    /// It is a part of what becomes these keys, if it becomes any.
    PartOf(&'static [&'static str]),
    /// It has no meaning in Fantail, for this reason.
    Nothing(&'static str),
}

/// How the text of a value is read, and as what it is written.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum Form {
    Text,
    /// The elements that are not empty.
    List,
    /// The elements as one text.
    Joined,
    /// A secret, or `file:` and a path from the folder of the file.
    Key,
    Truth,
    Number,
    Seconds,
    Milliseconds,
    /// What becomes of `X-Forwarded-Proto`: any other word is off.
    Protocol,
}

pub(in crate::config) const ROWS: &[Row] = &[
    row("global", &["include"], PartOf(&[])),
    row("global", &["libdir"], PartOf(&[])),
    row("global", &["rundir"], PartOf(&[])),
    row("global", &["ipc_prefix"], PartOf(&[])),
    row("global", &["port_offset"], PartOf(&[])),
    row("global", &["stats_connection_ttl"], Becomes("stats.connection_ttl", Seconds, None)),
    row("global", &["stats_connection_send"], Becomes("stats.connections", Truth, None)),
    row("runner", &["rundir"], PartOf(&[])),
    row("runner", &["services"], Nothing(ONE_PROCESS)),
    row("runner", &["http_port"], PartOf(&["server.listen"])),
    row("runner", &["https_ports"], PartOf(&["server.tls_listen", "tls.folder"])),
    row("runner", &["local_ports"], PartOf(&["server.listen"])),
    row("runner", &["logdir"], Nothing(ONE_LOG)),
    row("runner", &["log_level"], PartOf(&["logging.level"])),
    row("runner", &["client_buffer_size"], Becomes("client.head_bytes", Number, Some("8192"))),
    row("runner", &["client_maxconn"], Becomes("client.connections", Number, Some("50000"))),
    row("runner", &["allow_compression"], Becomes("websocket.deflate", Truth, None)),
    row("runner", &["condure_bin", "connmgr_bin"], Nothing(ONE_PROCESS)),
    row("runner", &["mongrel2_bin"], Nothing(ONE_PROCESS)),
    row("runner", &["m2sh_bin"], Nothing(ONE_PROCESS)),
    row("runner", &["zurl_bin"], Nothing(ONE_PROCESS)),
    row("proxy", &["routesfile"], PartOf(&["routes.file"])),
    row(
        "proxy",
        &["workers"],
        Nothing("server.shards says how many threads there are, one a core by default"),
    ),
    row("proxy", &["max_open_requests"], Nothing("client.connections limits connections, and so requests")),
    row("proxy", &["debug"], Becomes("proxy.debug", Truth, None)),
    row("proxy", &["accept_x_forwarded_protocol"], Becomes("proxy.accept_x_forwarded_protocol", Truth, None)),
    row(
        "proxy",
        &["set_x_forwarded_protocol"],
        Becomes("proxy.set_x_forwarded_protocol", Protocol, Some("false")),
    ),
    row("proxy", &["x_forwarded_for"], Becomes("proxy.x_forwarded_for", Joined, None)),
    row("proxy", &["x_forwarded_for_trusted"], Becomes("proxy.x_forwarded_for_trusted", Joined, None)),
    row("proxy", &["orig_headers_need_mark"], Becomes("proxy.orig_headers_need_mark", List, None)),
    row("proxy", &["accept_pushpin_route"], Becomes("proxy.accept_pushpin_route", Truth, None)),
    row("proxy", &["cdn_loop"], Becomes("proxy.cdn_loop", Text, None)),
    row("proxy", &["log_from"], Becomes("logging.from", Truth, Some("false"))),
    row("proxy", &["log_user_agent"], Becomes("logging.user_agent", Truth, Some("false"))),
    row("proxy", &["sig_iss"], Becomes("proxy.sig_iss", Text, None)),
    row("proxy", &["sig_key"], Becomes("proxy.sig_key", Key, Some(""))),
    row("proxy", &["upstream_key"], Becomes("proxy.upstream_key", Key, None)),
    row("proxy", &["stats_connections_max_ttl"], Nothing(ONE_PROCESS)),
    row("proxy", &["stats_report_interval"], Nothing(OTHER_SECTION)),
    row("proxy", &["prometheus_port"], Nothing(OTHER_SECTION)),
    row("proxy", &["prometheus_prefix"], Nothing(OTHER_SECTION)),
    row("proxy", &["ipc_file_mode"], Nothing(ONE_PROCESS)),
    row("proxy", &["auto_cross_origin"], Becomes("proxy.auto_cross_origin", Truth, None)),
    row("proxy", &["sockjs_url"], Becomes("sockjs.url", Text, None)),
    row("proxy", &["updates_check"], Nothing(NO_CALLS)),
    row("proxy", &["organization_name"], Nothing(NO_CALLS)),
    row("handler", &["push_in_http_addr"], PartOf(&["control.listen", "control.open"])),
    row("handler", &["push_in_http_port"], PartOf(&["control.listen"])),
    row("handler", &["push_in_http_max_headers_size"], Becomes("control.head_bytes", Number, None)),
    row("handler", &["push_in_http_max_body_size"], Becomes("control.body_bytes", Number, None)),
    row("handler", &["message_wait"], Becomes("hub.order_wait", Milliseconds, None)),
    row("handler", &["id_cache_ttl"], Becomes("hub.id_ttl", Seconds, Some("0"))),
    row(
        "handler",
        &["update_on_first_subscription"],
        Becomes("grip.update_on_first_subscription", Truth, None),
    ),
    row("handler", &["connection_subscription_max"], Becomes("grip.subscriptions", Number, None)),
    row("handler", &["ipc_file_mode"], Becomes("zeromq.ipc_file_mode", Text, None)),
    row("handler", &["push_in_spec"], Becomes("zeromq.pull", List, None)),
    row("handler", &["push_in_sub_specs"], PartOf(&["zeromq.sub"])),
    row("handler", &["push_in_sub_spec"], PartOf(&["zeromq.sub"])),
    row("handler", &["push_in_sub_connect"], Becomes("zeromq.sub_connect", Truth, None)),
    row("handler", &["stats_spec"], Becomes("stats.socket", Text, None)),
    row("handler", &["command_spec"], Becomes("zeromq.command", Text, None)),
    row("handler", &["message_rate"], Nothing(NO_RATE)),
    row("handler", &["message_hwm"], Nothing(NO_DROPS)),
    row("handler", &["message_block_size"], Becomes("stats.block_bytes", Number, None)),
    row("handler", &["subscription_linger"], Becomes("hub.linger", Seconds, None)),
    row("handler", &["stats_subscription_ttl"], Becomes("stats.subscription_ttl", Seconds, None)),
    row("handler", &["stats_report_interval"], Becomes("stats.report_every", Seconds, None)),
    row("handler", &["stats_format"], Becomes("stats.format", Text, None)),
    row("handler", &["prometheus_port"], PartOf(&["stats.prometheus"])),
    row("handler", &["prometheus_prefix"], Becomes("stats.prometheus_prefix", Text, None)),
    row("handler", &["state_spec"], Becomes("zeromq.session", Text, None)),
    row("handler", &["share_all"], Becomes("proxy.share_requests", Truth, None)),
];

/// Sockets between Pushpin's processes, in any section.
pub(super) fn is_plumbing(section: &str, key: &str) -> bool {
    let ends = ["_spec", "_specs"].iter().any(|end| key.ends_with(end));
    match section {
        "proxy" => ends,
        "handler" => ends && PLUMBING.iter().any(|begin| key.starts_with(begin)),
        _ => false,
    }
}

pub(super) const BETWEEN_PROCESSES: &str = "Fantail is one process, without sockets between its parts";

use Form::{Joined, Key, List, Milliseconds, Number, Protocol, Seconds, Text, Truth};
use Meaning::{Becomes, Nothing, PartOf};

const fn row(section: &'static str, names: &'static [&'static str], meaning: Meaning) -> Row {
    Row { section, names, meaning }
}

const ONE_PROCESS: &str = "Fantail is one process";
const ONE_LOG: &str = "there is one log, to standard output or --logfile";
const NO_CALLS: &str = "Fantail calls nobody";
const NO_RATE: &str = "nobody is paced; client.queue_bytes limits what waits for a client that is slow";
const NO_DROPS: &str = "nothing is dropped; publishers wait while hub.mailbox_items wait for a shard";
const OTHER_SECTION: &str = "that of [handler] counts for all of Fantail";

/// How names in `[handler]` begin.
const PLUMBING: [&str; 4] = ["proxy_", "connmgr_", "condure_", "m2a_"];
