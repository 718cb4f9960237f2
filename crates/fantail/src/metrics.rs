//! Counters, and the one table that says what each is called. A shard owns one [`Counters`], written
//! with relaxed atomics by its thread alone and read when somebody asks; [`Process`] is shared by the
//! control runtime. No label is made of what a client or publisher sent, so the number of series is
//! fixed by the number of shards.

mod exposition;

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

pub use exposition::{Exposition, expose};

#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// Follows a total that is counted elsewhere and never falls.
    pub fn set(&self, total: u64) {
        self.0.store(total, Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
    fn sample(&self) -> Sample<'_> {
        Sample::Count(self.get())
    }
}

#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
    fn sample(&self) -> Sample<'_> {
        Sample::Gauge(self.get())
    }
}

/// How long something took, in the buckets of [`LATENCY_BOUNDS`].
#[derive(Debug, Default)]
pub struct Latency {
    /// Not cumulative; the last holds what is over every bound.
    pub buckets: [Count; LATENCY_BOUNDS.len() + 1],
    pub sum_us: Count,
}

impl Latency {
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(LATENCY_BOUNDS.len());
        self.buckets[bucket].add(1);
        self.sum_us.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
    fn sample(&self) -> Sample<'_> {
        Sample::Latency(self)
    }
}

/// Upper bounds of the buckets of [`Latency`], in seconds; one more holds the rest.
pub const LATENCY_BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// One metric of `/metrics`, without the prefix `fantail_` and, for a [`Count`], without `_total`.
#[derive(Debug)]
struct Family<T: 'static> {
    name: &'static str,
    help: &'static str,
    members: &'static [Member<T>],
}

/// One field: its label, if the family has more than one, and where it is.
#[derive(Debug)]
struct Member<T: 'static> {
    label: Option<(&'static str, &'static str)>,
    read: fn(&T) -> Sample<'_>,
}

#[derive(Debug)]
enum Sample<'a> {
    Count(u64),
    Gauge(i64),
    Latency(&'a Latency),
}

/// Makes a struct of counters and its `FAMILIES`, so that no field can be without a name and a text.
/// A row is `NAME: "HELP" { FIELD [LABEL = VALUE]: TYPE, … }`; members of a row share one type.
macro_rules! families {
    (
        $(#[$attribute:meta])*
        pub struct $table:ident {
            $( $name:ident: $help:literal {
                $( $(#[$doc:meta])* $field:ident $([$label:ident = $value:ident])?: $kind:ident ),+ $(,)?
            } )+
        }
    ) => {
        $(#[$attribute])*
        pub struct $table {
            $( $( #[doc = $help] $(#[$doc])* pub $field: $kind, )+ )+
        }

        impl $table {
            const FAMILIES: &[Family<Self>] = &[ $( Family {
                name: stringify!($name),
                help: $help,
                members: &[ $( Member {
                    label: families!(@label $($label $value)?),
                    read: |table| table.$field.sample(),
                } ),+ ],
            } ),+ ];
        }
    };
    (@label) => { None };
    (@label $label:ident $value:ident) => { Some((stringify!($label), stringify!($value))) };
}

families! {
    /// One shard's counters.
    #[derive(Debug, Default)]
    #[repr(align(128))]
    pub struct Counters {
        connections: "Client connections open, pins included." { connections: Gauge }
        connections_accepted: "Client connections accepted." { accepted: Count }
        connections_refused: "Client connections closed at once, because their address had too many." {
            crowded: Count,
        }
        accept_pauses: "Times that accepting paused, at the limit of connections or of descriptors." {
            accept_pauses: Count,
        }
        tls_handshakes: "TLS handshakes of clients, by result." {
            tls_full [result = full]: Count,
            /// From a session ticket.
            tls_resumed [result = resumed]: Count,
            /// There is no certificate for the name.
            tls_no_certificate [result = no_certificate]: Count,
            /// No version, cipher or protocol in common.
            tls_incompatible [result = incompatible]: Count,
            /// Not TLS, or broken TLS.
            tls_malformed [result = malformed]: Count,
            /// The client left, or refused us.
            tls_client [result = client]: Count,
            /// Not done within `client.head_timeout`.
            tls_timeout [result = timeout]: Count,
        }
        requests: "Requests that were well-formed and within the limits." { requests: Count }
        requests_refused: "Requests refused before routing, by cause." {
            /// Malformed.
            refused_malformed [cause = malformed]: Count,
            /// Over a limit: head, target, body.
            refused_limit [cause = limit]: Count,
            /// Closed for a time-out before or in a request.
            refused_timeout [cause = timeout]: Count,
            /// Closed for less than `client.least_rate`.
            refused_slow [cause = slow]: Count,
        }
        pins: "Held connections, by kind." {
            pins_stream [kind = stream]: Gauge,
            pins_poll [kind = poll]: Gauge,
            pins_websocket [kind = websocket]: Gauge,
            /// Sessions, over whatever.
            pins_sockjs [kind = sockjs]: Gauge,
            /// Requests that get what such a session is sent.
            pins_receiver [kind = receiver]: Gauge,
        }
        channels: "Channels with a subscriber on this shard." { channels: Gauge }
        subscriptions: "Subscriptions of pins to channels." { subscriptions: Gauge }
        subscriptions_refused: "Channels that connections did not get, because they had `grip.subscriptions`." {
            subscriptions_refused: Count,
        }
        deliveries: "Items written whole to a client, by kind of pin." {
            delivered_stream [kind = stream]: Count,
            delivered_poll [kind = poll]: Count,
            delivered_websocket [kind = websocket]: Count,
            delivered_sockjs [kind = sockjs]: Count,
        }
        deliveries_queued: "Items that had to wait in a connection's queue." { queued: Count }
        deliveries_filtered: "Items kept from a subscriber by a filter." { filtered: Count }
        deliveries_left_to_log: "Items that a log gives later to a subscriber that is behind." { left_to_log: Count }
        deliveries_passed_over: "Items that had to wait for a slow client and gave way to newer ones." {
            passed_over: Count,
        }
        deliveries_dropped: "Items that never reached a subscriber, by cause." {
            /// The client left before they were written.
            dropped_gone [cause = gone]: Count,
            /// The queue was over `client.queue_bytes`, and the connection was closed.
            dropped_overflow [cause = overflow]: Count,
            /// A filter of the subscriber's could not be applied, or the content was written for others.
            filter_errors [cause = filter]: Count,
        }
        filter_questions: "Requests to origins about items, for filters that ask, by answer." {
            questions_kept [result = kept]: Count,
            questions_skipped [result = skipped]: Count,
            questions_replaced [result = replaced]: Count,
            /// No answer, or none that means something.
            questions_failed [result = failed]: Count,
        }
        filter_waiting: "Items that wait for a subscriber because one is asked about." { filter_waiting: Gauge }
        pins_slow: "Times that a client was found to be too slow for its queue and not closed, by what it gets." {
            /// Its log has the say, until it has caught up.
            slow_repaired [policy = repair]: Count,
            /// Only the newest items, until it has taken what waits.
            slow_newest [policy = newest]: Count,
        }
        pins_ended: "Pins that ended, by cause." {
            ended_client [cause = client]: Count,
            ended_overflow [cause = overflow]: Count,
            ended_stalled [cause = stalled]: Count,
            ended_close [cause = close]: Count,
            ended_answered [cause = answered]: Count,
            ended_timeout [cause = timeout]: Count,
            /// A WebSocket's client broke the protocol or a limit.
            ended_violation [cause = violation]: Count,
            /// A stream had missed an item, and nothing could repair that.
            ended_gap [cause = gap]: Count,
            /// A stream's next link could not be followed, or led to what is no page.
            ended_link [cause = link]: Count,
            /// A WebSocket's origin left, or could not be understood.
            ended_origin [cause = origin]: Count,
        }
        updates: "Holds whose origins are asked again, by cause." {
            /// An item showed that another was missed.
            updates_gap [cause = gap]: Count,
            /// What the origin said last is not what was published last.
            updates_contradiction [cause = contradiction]: Count,
            updates_hint [cause = hint]: Count,
            /// `/recover`.
            updates_recover [cause = recover]: Count,
            /// Their channel had got its first subscription a second before.
            updates_first [cause = first]: Count,
            /// The time of a next link.
            updates_timer [cause = timer]: Count,
        }
        link_fetches: "Requests for next links, retries included." { link_fetches: Count }
        link_retries: "Next links that were not answered, or not with a page, and are asked for again." {
            link_retries: Count,
        }
        gone_links: "Holds that are gone, by whether their gone link was told." {
            gone_told [result = told]: Count,
            gone_failed [result = failed]: Count,
            /// Too many were waiting to be told.
            gone_dropped [result = dropped]: Count,
        }
        websocket_messages: "Messages on WebSockets, by who sent them; what was published is under deliveries." {
            messages_client [from = client]: Count,
            messages_origin [from = origin]: Count,
        }
        websocket_refused: "WebSocket handshakes refused by Fantail itself, by cause." {
            handshakes_invalid [cause = invalid]: Count,
            /// The page's Origin is not in `websocket.origins`.
            handshakes_origin [cause = origin]: Count,
            /// Its origin did not make up its mind within `websocket.handshake_timeout`.
            handshakes_late [cause = timeout]: Count,
        }
        websocket_limits: "WebSockets closed because a client's message was over a limit." {
            over_message_bytes [limit = message_bytes]: Count,
            over_fragments [limit = fragments]: Count,
            over_message_timeout [limit = message_timeout]: Count,
        }
        websocket_farewells: "WebSockets over HTTP whose clients are gone, by whether their origins were told." {
            farewells_told [result = told]: Count,
            /// It did not answer.
            farewells_failed [result = failed]: Count,
            /// Too many were to be told at once.
            farewells_dropped [result = dropped]: Count,
        }
        websocket_dropped: "Messages of origins that reached nobody: no prefix, or an invalid control message." {
            messages_dropped: Count,
        }
        log_fills: "Subscriptions and slow clients that were to be given items of a log, by whether it had all of them." {
            fills_proven [result = proven]: Count,
            fills_unproven [result = unproven]: Count,
        }
        log_fill_items: "Items of logs given to them; they are deliveries, too." { fill_items: Count }
        log_reads: "Stretches of logs that were read and rendered, each for all who need the same." { fill_reads: Count }
        keep_alives: "Keep-alives written to streams." { keep_alives: Count }
        pushed_bytes: "Bytes written to pins." { bytes_pushed: Count }
        origin_requests: "Requests sent to origins." { origin_requests: Count }
        origin_connects: "Connections opened to origins." { origin_connects: Count }
        origin_connect_failures: "Connections to origins that failed." { origin_connect_failures: Count }
        origin_errors: "Answers of origins that were cut or malformed." { origin_errors: Count }
        origin_timeouts: "Requests that an origin did not answer in time." { origin_timeouts: Count }
        instruct_errors: "Answers of origins whose GRIP instructions were refused." { instruct_errors: Count }
        origin_latency_seconds: "From a request's last byte towards the origin to the first of its answer." {
            origin_latency: Latency,
        }
    }
}

families! {
    /// What belongs to no shard.
    #[derive(Debug, Default)]
    pub struct Process {
        items: "Items published, by result." {
            items_accepted [result = accepted]: Count,
            /// The id was seen within `hub.id_ttl`.
            items_duplicate [result = duplicate]: Count,
            /// It came before its predecessor, and there was no room for it to wait.
            items_dropped [result = dropped]: Count,
            /// Well-formed, but over a limit or more than the hub could take.
            items_refused [result = refused]: Count,
        }
        items_early: "Items that came before their predecessors, by what became of them." {
            early_in_turn [result = in_turn]: Count,
            /// They went out without them, after `hub.order_wait`.
            early_late [result = late]: Count,
            /// There was no room for them to wait, or nobody left who subscribed.
            early_dropped [result = dropped]: Count,
        }
        items_waiting: "Items that wait for their predecessors." { items_waiting: Gauge }
        publishes: "Publish requests, by result." {
            publishes_accepted [result = accepted]: Count,
            /// The publisher's fault: malformed or over a limit.
            publishes_invalid [result = invalid]: Count,
            /// Without a good token.
            publishes_denied [result = denied]: Count,
            /// Answered 503: a mailbox stayed full, or the control port was busy.
            publishes_overload [result = overload]: Count,
            /// The body did not arrive in time, or broke off.
            publishes_cut [result = cut]: Count,
        }
        publish_latency_seconds: "From a publish request's last byte to its acceptance by the hub." {
            publish_latency: Latency,
        }
        zeromq_messages: "Messages on ZeroMQ inputs, by result." {
            zeromq_accepted [result = accepted]: Count,
            /// No item, or not one message part (two on SUB).
            zeromq_malformed [result = malformed]: Count,
            /// An item over a limit.
            zeromq_refused [result = refused]: Count,
        }
        zeromq_waits: "Times that ZeroMQ publishers had to wait for a full mailbox." { zeromq_waits: Count }
        zeromq_unkept: "Batches of ZeroMQ publishers of which some could not be kept as promised." {
            zeromq_unkept: Count,
        }
        zeromq_commands: "Requests on the command socket, by result." {
            commands_done [result = done]: Count,
            commands_failed [result = failed]: Count,
            /// Not understood, and so not answered.
            commands_malformed [result = malformed]: Count,
        }
        zeromq_peers: "Connections of ZeroMQ peers." { zeromq_peers: Gauge }
        zeromq_peers_refused: "ZeroMQ peers that were disconnected: no handshake, a broken protocol or limit, or too slow." {
            zeromq_peers_refused: Count,
        }
        log_items: "Items in the logs of channels." { log_items: Gauge }
        log_bytes: "Bytes of the items in the logs of channels." { log_bytes: Gauge }
        log_channels: "Channels whose log holds an item." { log_channels: Gauge }
        log_disk_bytes: "Bytes of the files of logs." { log_disk_bytes: Gauge }
        log_writes: "Writes to the files of logs, of one item or more." { log_writes: Count }
        log_syncs: "Times that files of logs were synced to the disk." { log_syncs: Count }
        log_failures: "Times that the files of logs could not be written or synced." { log_failures: Count }
        log_damaged: "Damaged files of logs that were found at start and set aside." { log_damaged: Count }
        webhook_tries: "Tries to deliver a webhook, by result." {
            webhook_delivered [result = delivered]: Count,
            /// Answered with a status that is no success.
            webhook_status [result = status]: Count,
            /// Answered 410.
            webhook_gone [result = gone]: Count,
            /// Answered with a redirect that was not followed.
            webhook_redirected [result = redirect]: Count,
            webhook_timeout [result = timeout]: Count,
            /// Not connected, or no TLS.
            webhook_unreachable [result = unreachable]: Count,
            /// The connection ended without an answer.
            webhook_broken [result = broken]: Count,
            /// The name has no address.
            webhook_name [result = name]: Count,
            /// Its address is not allowed.
            webhook_forbidden [result = forbidden]: Count,
        }
        webhook_dead_letters: "Webhooks that were given up, by cause." {
            /// All tries failed, or the endpoint was disabled.
            webhook_dead_failed [cause = failed]: Count,
            /// The endpoint's queue was full.
            webhook_dead_overflow [cause = overflow]: Count,
        }
        webhook_skipped: "Items that an endpoint did not get, by cause." {
            webhook_filtered [cause = filter]: Count,
            webhook_dropped_disabled [cause = disabled]: Count,
        }
        webhook_refused: "Items refused because a queue of webhooks was full." { webhook_refused: Count }
        webhook_endpoints_disabled: "Endpoints of webhooks that were disabled." { webhook_disabled: Count }
        webhook_endpoints: "Endpoints of webhooks." { webhook_endpoints: Gauge }
        webhook_queue_bytes: "Bytes on disk of what waiting webhooks say." { webhook_queue_bytes: Gauge }
        webhook_queue: "Webhooks that wait for delivery, those under way included." { webhook_queued: Gauge }
        webhook_in_flight: "Webhooks under way." { webhook_flying: Gauge }
        webhook_latency_seconds: "From the start of a try to its result." { webhook_latency: Latency }
        stats_dropped: "Notes for the statistics socket, and packets of it, that were dropped." {
            stats_dropped: Count,
        }
        xmpp_connected: "Whether the XMPP server has taken the component: 1 or 0." { xmpp_connected: Gauge }
        xmpp_connects: "Attempts to join the XMPP server, by result." {
            xmpp_joined [result = joined]: Count,
            /// The server did not take the component: its secret, or its address.
            xmpp_denied [result = denied]: Count,
            /// Not reached, or no XMPP.
            xmpp_unreached [result = failed]: Count,
        }
        xmpp_received: "Stanzas from the XMPP server." { xmpp_received: Count }
        xmpp_refused: "Stanzas from the XMPP server that nothing was done with, by cause." {
            /// No sender, an address that is none, or that is not the component's.
            xmpp_misaddressed [cause = address]: Count,
            /// Bytes, depth, elements, attributes.
            xmpp_oversize [cause = limit]: Count,
            /// Its sender, or all, had too many waiting.
            xmpp_crowded [cause = busy]: Count,
            /// An error that answers what was sent.
            xmpp_bounced [cause = bounce]: Count,
            /// Items of who is no admin.
            xmpp_forbidden [cause = admin]: Count,
        }
        xmpp_sent: "Stanzas written to the XMPP server, by kind." {
            xmpp_delivered [kind = item]: Count,
            xmpp_answered [kind = answer]: Count,
        }
        xmpp_repeated: "Stanzas written once more, because the stream broke before the XMPP server had acknowledged them." {
            xmpp_repeated: Count,
        }
        xmpp_unacknowledged_bytes: "Bytes that the XMPP server was given and has not acknowledged." {
            xmpp_unacknowledged: Gauge,
        }
        xmpp_filled: "Of the copies of items, those that were read from a log, because the server or the subscriber was away." {
            xmpp_filled: Count,
        }
        xmpp_dropped: "Items and answers that were dropped before they were written, because too many waited or the log had let them go, and what ended two streams, with all copies of an item." {
            xmpp_dropped: Count,
        }
        xmpp_unsent: "What was longer than the XMPP server takes, or was no stanza, by whose it was." {
            xmpp_unsent_item [of = item]: Count,
            xmpp_unsent_origin [of = origin]: Count,
            xmpp_unsent_answer [of = answer]: Count,
        }
        xmpp_queued: "Items that wait for the XMPP server." { xmpp_queued: Gauge }
        xmpp_absent: "Items kept from a subscriber who is not present, as it wished." { xmpp_absent: Count }
        xmpp_subscriptions: "Subscriptions of XMPP entities." { xmpp_subscriptions: Gauge }
        xmpp_ended: "Subscriptions that have ended because a server has said that there is nobody at the address." {
            xmpp_ended: Count,
        }
        xmpp_origin_requests: "Stanzas given to an origin, by result." {
            xmpp_origin_answered [result = answered]: Count,
            xmpp_origin_failed [result = failed]: Count,
        }
        hub_channels: "Channels with a subscriber on any shard." { hub_channels: Gauge }
        control_connections: "Connections to the control port." { control_connections: Gauge }
        log_lines_dropped: "Log lines dropped because writing them was too slow." { log_lines_dropped: Count }
        uptime_seconds: "Whole seconds since the start." { uptime_seconds: Gauge }
    }
}
