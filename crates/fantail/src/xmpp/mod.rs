//! Fantail as a component of an XMPP server (XEP-0114): the subscriptions of XMPP entities, what they get, and what
//! becomes of what they say. It lives on a thread of its own, as a shard does: nothing of it is shared, and others
//! speak to it through [`Desk`].

mod answers;
mod copies;
mod desk;
mod entity;
mod gaps;
mod inbox;
mod link;
mod origin;
mod outbox;
mod places;
mod presence;
mod questions;
mod subscribers;
mod window;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt, io,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, mpsc::RecvTimeoutError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use fantail_proto::xmpp::{
    CLIENT,
    answer::{self, Condition},
    jid::{self, Jid},
    xml::Element,
};
use hashbrown::{HashMap, hash_map::Entry};
use tokio::{
    runtime,
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
    time::{Instant, interval, sleep},
};

use crate::{
    config::{self, Config, Secret},
    hub::{Hub, Outpost, RealmId},
    metrics::{Counters, Process},
    publish::Publisher,
    snapshot::Snapshot,
    store::{OpenError, Store, StoreError},
    upstream::{Upstream, Workers},
};

use copies::World;
pub use desk::{Desk, Page, Refused, Subscription};
use desk::{Order, condition};
use inbox::Lanes;
use origin::Permits;
use outbox::Outbox;
use presence::Presences;
use subscribers::{Interest, Subscribers};
pub use subscribers::{Place, Terms};

/// What the component is made of.
#[derive(Debug)]
pub struct Parts {
    pub hub: Arc<Hub>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub publisher: Arc<Publisher>,
    pub counts: Arc<Process>,
    pub workers: Arc<Workers>,
}

/// Everything is read, and nothing is connected.
#[derive(Debug)]
pub struct Xmpp {
    config: config::Xmpp,
    secret: Hidden,
    store: Store,
    orders: mpsc::Receiver<Order>,
}

/// Bytes that nothing prints.
struct Hidden(Vec<u8>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum XmppError {
    #[error("xmpp.secret: {}: {source}", path.display())]
    Secret { path: PathBuf, source: io::Error },
    #[error("xmpp.secret: {} is empty", .0.display())]
    NoSecret(PathBuf),
    #[error("xmpp: {0}")]
    Store(#[from] OpenError),
    #[error("xmpp: the subscriptions in {FILE} cannot be read: {0}")]
    Load(StoreError),
    #[error("xmpp: {0}")]
    Thread(#[from] io::Error),
}

impl Xmpp {
    /// `None` without a server in the configuration.
    pub fn open(config: &Config) -> Result<Option<(Self, Desk)>, XmppError> {
        let (Some(xmpp), Some(folder)) = (&config.xmpp, &config.server.data_dir) else { return Ok(None) };
        let secret = match &xmpp.secret {
            Secret::Bytes(bytes) => bytes.clone(),
            Secret::File(path) => {
                let read = std::fs::read(path);
                let read = read.map_err(|source| XmppError::Secret { path: path.clone(), source })?;
                let secret = read.trim_ascii().to_vec();
                if secret.is_empty() {
                    return Err(XmppError::NoSecret(path.clone()));
                }
                secret
            }
        };
        let store = Store::open(&folder.join(FILE), CACHE_BYTES)?;
        let (desk, orders) = mpsc::channel(ORDERS);
        Ok(Some((Self { config: xmpp.clone(), secret: Hidden(secret), store, orders }, Desk(desk))))
    }

    /// Starts the thread, and returns when it has read who is subscribed: from then on no item passes it by. Blocks for
    /// as long as that takes. `ending` is dropped when the thread ends.
    ///
    /// # Errors
    /// What is on disk cannot be read.
    pub fn start<E: Send + 'static>(self, parts: Parts, ending: E) -> Result<Running, XmppError> {
        let (stop, stopping) = watch::channel(false);
        let (loaded, loading) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name("xmpp".into()).spawn(move || {
            let _ending = ending;
            if let Err(error) = self.run(parts, &loaded, stopping) {
                tracing::error!(target: TARGET, %error, "the component has failed");
            }
        })?;
        loop {
            match loading.recv_timeout(SLOW_LOAD) {
                Ok(outcome) => return outcome.map(|()| Running { thread, stop }).map_err(XmppError::Load),
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!(target: TARGET, "{FILE} is still being read: nobody is served before that");
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(XmppError::Thread(io::Error::other("its thread has ended")));
                }
            }
        }
    }

    /// Lives until it is stopped and what waits is written, or the file's thread has ended.
    fn run(
        self,
        parts: Parts,
        loaded: &std::sync::mpsc::Sender<Result<(), StoreError>>,
        stopping: watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let disk = |error: io::Error| StoreError::Disk(error.to_string().into());
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        let runtime = runtime.map_err(disk)?;
        let Self { config, secret, store, orders } = self;
        let component = Component::new(config, secret, store, parts);
        let outcome = component.load();
        let has_failed = outcome.is_err();
        // Who waits for it lives.
        drop(loaded.send(outcome));
        if has_failed {
            return Ok(());
        }
        let end = runtime.block_on(async {
            tokio::task::spawn_local(Rc::clone(&component).take_items());
            tokio::task::spawn_local(Rc::clone(&component).take_orders(orders));
            tokio::task::spawn_local(Rc::clone(&component).tidy());
            tokio::task::spawn_local(Rc::clone(&component).keep_places());
            let end = tokio::select! {
                () = link::keep(&component, stopping) => Ok(()),
                () = component.store.ended() => Err(StoreError::Disk("what writes the file has failed".into())),
            };
            // What is under way is on disk then, too.
            let nothing = Box::new(|_: &redb::WriteTransaction| Ok(()));
            let written = component.write_places().await.and(component.store.write(nothing).await);
            end.and(written)
        });
        // Look-ups may block their threads for long.
        runtime.shutdown_background();
        end
    }
}

/// The component's thread.
#[derive(Debug)]
pub struct Running {
    thread: thread::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Lets what waits be written, for a moment, and waits until the disk has where everybody goes on. Blocks, but not for
    /// ever.
    pub fn stop(self) {
        self.stop.send_replace(true);
        let until = Instant::now() + STOP_WITHIN;
        while !self.thread.is_finished() {
            if Instant::now() >= until {
                return tracing::error!(target: TARGET, "what was sent may be sent again: the disk does not answer");
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// An address and a channel.
type Changed = (RealmId, Box<str>, Box<str>);

/// What of a subscription is on its way to the disk.
#[derive(Clone, Copy, Debug, Default)]
struct Changing {
    writes: usize,
    /// One of them has failed.
    failed: bool,
}

/// The component, on its thread.
#[derive(Debug)]
struct Component {
    config: config::Xmpp,
    secret: Hidden,
    hub: Arc<Hub>,
    /// In the hub.
    place: usize,
    snapshot: Arc<ArcSwap<Snapshot>>,
    publisher: Arc<Publisher>,
    counts: Arc<Process>,
    store: Store,
    subscribers: RefCell<Subscribers>,
    changing: RefCell<HashMap<Changed, Changing>>,
    presences: RefCell<Presences>,
    /// Asks who is still there.
    probing: RefCell<Option<AbortHandle>>,
    outbox: RefCell<Outbox>,
    lanes: RefCell<Lanes>,
    upstream: Upstream,
    /// To ask an origin.
    permits: Permits,
}

impl Component {
    fn new(config: config::Xmpp, secret: Hidden, store: Store, parts: Parts) -> Rc<Self> {
        let Parts { hub, snapshot, publisher, counts, workers } = parts;
        Rc::new(Self {
            place: hub.place(Outpost::Xmpp),
            hub,
            snapshot,
            publisher,
            store,
            secret,
            subscribers: RefCell::default(),
            changing: RefCell::default(),
            presences: RefCell::default(),
            probing: RefCell::default(),
            outbox: RefCell::new(Outbox::new(&config, Arc::clone(&counts))),
            lanes: RefCell::default(),
            upstream: Upstream::new(Arc::new(Counters::default()), workers),
            permits: Permits::new(config.origin_requests, config.realm_origin_requests),
            counts,
            config,
        })
    }

    /// Those of realms that are not configured stay on disk and get nothing.
    fn load(&self) -> Result<(), StoreError> {
        let realms = Arc::clone(&self.snapshot.load().realms);
        let mut strangers = 0;
        subscribers::load(&self.store, |jid, realm_name, channel, terms| match realms.get(realm_name) {
            Some(realm) => {
                let place = Place { realm, realm_name: realm_name.into(), channel: channel.into() };
                self.set(&place, jid, terms);
            }
            None => strangers += 1,
        })?;
        self.load_places()?;
        let subscribers = self.subscribers.borrow();
        self.outbox.borrow_mut().questions.load(&self.store, |bare| subscribers.watches(bare))?;
        if strangers > 0 {
            tracing::warn!(target: TARGET, "{strangers} subscriptions are of realms that are not configured");
        }
        Ok(())
    }

    async fn take_items(self: Rc<Self>) {
        loop {
            self.hub.mail(self.place).await;
            self.take();
        }
    }

    /// Takes a batch of items. False if there is none.
    fn take(&self) -> bool {
        let mut batch = Vec::new();
        self.hub.take(self.place, &mut batch);
        let (mut outbox, subscribers) = (self.outbox.borrow_mut(), self.subscribers.borrow());
        batch.iter().for_each(|delivery| outbox.deliver(delivery, &subscribers, unix_ms()));
        !batch.is_empty()
    }

    async fn take_orders(self: Rc<Self>, mut orders: mpsc::Receiver<Order>) {
        let at_once = Arc::new(Semaphore::new(ORDERS));
        while let Some(order) = orders.recv().await {
            let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else { return };
            let component = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                component.obey(order).await;
                drop(permit);
            });
        }
    }

    /// The stream was away, and may have missed that somebody left: asks about all who are thought to be there.
    fn doubt_presences(self: &Rc<Self>) {
        let mut asked = self.presences.borrow_mut().doubt();
        // Those who let the component see their presence may have come meanwhile, too.
        let subscribers = self.subscribers.borrow();
        let known: BTreeSet<Box<str>> =
            asked.iter().filter(|(from, _)| from.is_none()).map(|(_, bare)| bare.clone()).collect();
        let watched = subscribers.watched().take(PROBED).filter(|bare| !known.contains(*bare));
        asked.extend(watched.map(|bare| (None, bare.into())));
        drop(subscribers);
        if !asked.is_empty() {
            let task = tokio::task::spawn_local(Rc::clone(self).probe(asked));
            self.probing.replace(Some(task.abort_handle()));
        }
    }

    /// There is no stream any more: nobody can answer what was asked on it.
    fn part(&self) {
        self.counts.xmpp_connected.set(0);
        if let Some(probing) = self.probing.take() {
            probing.abort();
        }
        self.outbox.borrow_mut().part();
    }

    async fn probe(self: Rc<Self>, asked: Vec<(Option<Box<str>>, Box<str>)>) {
        let domain = self.config.domain.as_str();
        let written = async || {
            while self.outbox.borrow().has_answers() {
                sleep(PROBE_PAUSE).await;
            }
        };
        for some in asked.chunks(PROBES) {
            // There is room for all of them: who is not asked must not be thought to be silent.
            written().await;
            for (local, bare) in some {
                let from =
                    local.as_ref().map_or_else(|| domain.to_owned(), |local| format!("{local}@{domain}"));
                let probe = Element::new(CLIENT, "presence").with("type", "probe");
                self.send(&probe.with("from", &from).with("to", bare));
            }
        }
        written().await;
        sleep(PROBE_PATIENCE).await;
        self.presences.borrow_mut().settle();
    }

    /// Closes connections to origins that have been idle for too long, and all that are idle after a reload.
    async fn tidy(self: Rc<Self>) {
        let mut every = interval(TIDY_EVERY);
        let mut tidied = self.snapshot.load_full();
        loop {
            every.tick().await;
            let snapshot = self.snapshot.load_full();
            self.upstream.sweep(snapshot.config.origin.keep_alive);
            if !Arc::ptr_eq(&snapshot, &tidied) {
                self.upstream.forget();
                tidied = snapshot;
            }
        }
    }

    /// Changes what an address gets of a channel, in memory at once and on disk when this returns: what it got before.
    async fn change(
        &self,
        place: &Place,
        jid: &Jid,
        change: impl FnOnce(Terms) -> Terms,
    ) -> Result<Terms, Refused> {
        let jid = jid.as_str();
        let before = self.subscribers.borrow().get(place.realm, &place.channel, jid);
        let mut terms = change(before.unwrap_or_default());
        if terms.is_empty() {
            terms = Terms::default();
        }
        let key: Changed = (place.realm, place.channel.as_str().into(), jid.into());
        // What is there already may be on its way to the disk yet: who repeats it waits for that, too.
        if before.unwrap_or_default() == terms && !self.changing.borrow().contains_key(&key) {
            return Ok(terms);
        }
        if before.is_none() && self.subscribers.borrow().len() >= self.config.subscriptions {
            return Err(Refused::Full(self.config.subscriptions));
        }
        if before.is_none() && self.subscribers.borrow().count(place.realm) >= self.config.realm_subscriptions
        {
            return Err(Refused::Crowded(self.config.realm_subscriptions));
        }
        let begun = self.begin(place, terms);
        self.turn(place, jid, terms);
        self.changing.borrow_mut().entry(key.clone()).or_default().writes += 1;
        let question = self.outbox.borrow_mut().questions.row(jid::bare(jid));
        let asked = question.as_ref().map(|(bare, _)| bare.clone());
        let work = places::with(begun, subscribers::write(place, jid, terms));
        let written = self.store.write(questions::with(question, work)).await;
        if written.is_err() {
            self.outbox.borrow_mut().questions.take_back(asked);
        }
        if self.is_settled(key, written.is_err()) {
            // Whoever failed: the disk has the last that did not.
            let kept = subscribers::kept(&self.store, place, jid);
            self.turn(place, jid, kept.unwrap_or_else(|_| before.unwrap_or_default()));
        }
        written?;
        Ok(before.unwrap_or_default())
    }

    /// A change has been written, or not. True when it was the last under way, and one of them has failed.
    fn is_settled(&self, key: Changed, failed: bool) -> bool {
        let mut changing = self.changing.borrow_mut();
        let Entry::Occupied(mut entry) = changing.entry(key) else { return false };
        let change = entry.get_mut();
        change.writes -= 1;
        change.failed |= failed;
        let Changing { writes, failed } = *change;
        if writes == 0 {
            entry.remove();
        }
        writes == 0 && failed
    }

    /// Changes it in memory, and asks for the presence of an address that decides from now on: who agrees need not say it to
    /// us, and can be asked after a loss. Who has no such subscription left need not send it any more.
    fn turn(&self, place: &Place, jid: &str, terms: Terms) {
        let bare = jid::bare(jid);
        let watched = self.subscribers.borrow().watches(bare);
        self.set(place, jid, terms);
        if terms.is_watched() && !watched {
            self.outbox.borrow_mut().want(bare, true);
        } else if watched && !self.subscribers.borrow().watches(bare) {
            self.outbox.borrow_mut().want(bare, false);
        }
    }

    fn set(&self, place: &Place, jid: &str, terms: Terms) {
        let mut subscribers = self.subscribers.borrow_mut();
        let interest = subscribers.set(place, jid, terms);
        let bare = jid::bare(jid);
        self.presences.borrow_mut().watch(bare, subscribers.watches(bare));
        if terms.is_empty() {
            let channel = (place.realm, &*place.channel);
            self.outbox.borrow_mut().gaps.forget(jid, channel, interest == Interest::Ends);
        }
        match interest {
            Interest::Begins => _ = self.hub.join(self.place, place.realm, &place.channel),
            Interest::Ends => self.hub.leave(self.place, place.realm, &place.channel, None),
            Interest::Stays => {}
        }
        self.counts.xmpp_subscriptions.set(i64::try_from(subscribers.len()).unwrap_or(i64::MAX));
    }

    /// What is to be written to the server now.
    fn wire(&self) -> Bytes {
        let (subscribers, presences) = (self.subscribers.borrow(), self.presences.borrow());
        let (subscribers, presences) = (&*subscribers, &*presences);
        let world = World { subscribers, presences, log: self.hub.log(), now_ms: unix_ms() };
        self.outbox.borrow_mut().wire(world)
    }

    /// Whether an address may make one more subscription for itself, or have one made by an origin.
    fn may_subscribe(&self, jid: &Jid) -> Result<(), Refused> {
        let most = self.config.subscriptions_per_jid;
        let kept = subscribers::of(&self.store, jid.bare(), most)?;
        if kept.len() < most { Ok(()) } else { Err(Refused::TooMany(most)) }
    }

    fn send(&self, stanza: &Element) {
        let to = stanza.attr("to").unwrap_or_default();
        if !self.send_xml(to, stanza.to_xml(CLIENT).into_bytes()) {
            self.counts.xmpp_unsent_answer.add(1);
        }
    }

    /// False if the stanza is longer than the server takes: it would end the stream.
    fn send_xml(&self, to: &str, stanza: Vec<u8>) -> bool {
        let fits = stanza.len() <= self.config.stanza_bytes;
        if fits {
            self.outbox.borrow_mut().answer(to, stanza);
        }
        fits
    }

    /// Until the server was given what entities have been told by now.
    async fn told(&self) {
        let (came, mut taken) = self.outbox.borrow().answers.progress();
        // It lives as long as the component.
        _ = taken.wait_for(|taken| *taken >= came).await;
    }

    /// Tells who asked that it was in vain, if that is to be told.
    fn refuse(&self, asked: &Element, condition: Condition, text: &str) {
        if let Some(error) = answer::error(asked, condition, text) {
            self.send(&error);
        }
    }

    /// The realm of this name, if it is configured.
    fn realm(&self, name: &str) -> Option<RealmId> {
        self.snapshot.load().realms.get(name)
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Questions that wait for the server at once.
const PROBES: usize = 1000;
/// Subscriptions whose addresses are asked after a restart.
const PROBED: usize = 100_000;
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// For the answers, of other servers too: who has not answered by then is not there.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
const TIDY_EVERY: Duration = Duration::from_secs(1);
const TARGET: &str = "fantail::xmpp";
const FILE: &str = "xmpp.redb";
/// What is still being read then is told of, and so on.
const SLOW_LOAD: Duration = Duration::from_secs(10);
/// At the end origins may still answer for so long,
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// what waits be written,
const LAST_WORDS: Duration = Duration::from_secs(3);
/// and the disk has the rest of this to take where everybody goes on.
const STOP_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Where everybody goes on in logs is written down so often.
const PLACES_EVERY: Duration = Duration::from_secs(1);
/// Of redb: subscriptions are read once, at the start.
const CACHE_BYTES: usize = 16 << 20;
/// Orders that wait, and that are carried out at a time: they share commits.
const ORDERS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, Sender, channel},
        task::{Context, Waker},
    };

    use fantail_proto::{log, xmpp::pubsub::Shows};

    use super::*;
    use crate::config::{Flag, Sources};

    /// A component whose store does only what it is let.
    struct Room {
        component: Rc<Component>,
        _folder: tempfile::TempDir,
    }

    impl Room {
        fn new() -> Self {
            Self::at("127.0.0.1:1")
        }

        fn at(server: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let flag = |key, value: &str| Flag { name: "--key", key, value: value.into() };
            let flags = vec![
                flag("server.data_dir", &folder.path().to_string_lossy()),
                flag("xmpp.server", server),
                flag("xmpp.domain", "push.test"),
                flag("xmpp.secret", "secret"),
            ];
            let config = Config::load(Sources { flags, ..Sources::default() }).unwrap();
            let (Xmpp { config: own, secret, store, .. }, _) = Xmpp::open(&config).unwrap().unwrap();
            let (hub, counts) = (Arc::new(Hub::new(1, &config.hub)), Arc::new(Process::default()));
            let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::load(config, None).unwrap()));
            let (of, patience) = (Arc::clone(&snapshot), Duration::from_secs(1));
            let publisher = Arc::new(Publisher::new(Arc::clone(&hub), of, Arc::clone(&counts), patience));
            let parts = Parts { hub, snapshot, publisher, counts, workers: Arc::default() };
            Self { component: Component::new(own, secret, store, parts), _folder: folder }
        }

        /// Occupies the store until something is sent; then its commit fails, or not. Returns when it is occupied, or
        /// in line for that.
        fn occupy(&self, fails: bool) -> (Sender<()>, Receiver<()>) {
            let ((go, going), (begun, begins)) = (channel(), channel());
            let work = Box::new(move |_: &redb::WriteTransaction| {
                begun.send(()).unwrap();
                going.recv().unwrap();
                if fails { Err(redb::Error::Corrupted("on purpose".into())) } else { Ok(()) }
            });
            self.component.store.submit(work, Box::new(drop));
            (go, begins)
        }

        fn terms(&self) -> Terms {
            let subscribers = self.component.subscribers.borrow();
            subscribers.get(RealmId::default(), "c", "a@b").unwrap_or_default()
        }
    }

    fn place() -> Place {
        Place { realm: RealmId::default(), realm_name: config::DEFAULT_REALM.into(), channel: "c".into() }
    }

    fn stanza(terms: Terms) -> Terms {
        Terms { stanza: true, ..terms }
    }

    /// Only a stream that lasts can tell who is not there.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_gone_because_the_stream_is() {
        let room = Room::new();
        let component = &room.component;
        let is_there = || component.presences.borrow().allow("a@b", Shows::ANY);
        let join = || {
            component.outbox.borrow_mut().join();
            component.doubt_presences();
        };
        let written = async || {
            tokio::task::yield_now().await;
            let mut wire = String::new();
            // What the stream before may not have read comes first.
            while let Some(more) = Some(component.wire()).filter(|more| !more.is_empty()) {
                wire += str::from_utf8(&more).unwrap();
                component.outbox.borrow_mut().written();
            }
            assert!(wire.contains("type='probe'") && wire.contains("to='a@b'"), "{wire}");
            sleep(PROBE_PATIENCE / 2).await;
        };
        let (from, to) = (Jid::parse("a@b/1").unwrap(), Jid::parse("push.test").unwrap());
        component.presences.borrow_mut().hear(&from, &to, &Element::new(CLIENT, "presence"), true);
        let lived = async {
            join();
            written().await;
            component.part();
            sleep(2 * PROBE_PATIENCE).await;
            assert!(is_there(), "nobody could be asked");
            join();
            written().await;
            assert!(is_there(), "there is time to answer");
            sleep(PROBE_PATIENCE).await;
            assert!(!is_there());
        };
        tokio::task::LocalSet::new().run_until(lived).await;
    }

    /// A server that takes connections and says nothing is tried less and less often, as one that cannot be reached.
    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_no_good_stream() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let room = Room::at(&listener.local_addr().unwrap().to_string());
        let (_stop, stopping) = watch::channel(false);
        let kept = tokio::time::timeout(Duration::from_mins(10), link::keep(&room.component, stopping)).await;
        let tries = room.component.counts.xmpp_unreached.get();
        assert!(kept.is_err() && (8..25).contains(&tries), "{tries}");
    }

    #[tokio::test]
    async fn who_repeats_a_change_waits_for_the_disk_too() {
        let room = Room::new();
        let (place, jid) = (place(), Jid::parse("a@b").unwrap());
        let (go, begins) = room.occupy(false);
        begins.recv().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = Box::pin(room.component.change(&place, &jid, stanza));
        assert!(first.as_mut().poll(&mut context).is_pending());
        let mut second = Box::pin(room.component.change(&place, &jid, stanza));
        assert!(second.as_mut().poll(&mut context).is_pending());
        go.send(()).unwrap();
        assert!(!first.await.unwrap().stanza);
        assert!(second.await.unwrap().stanza);
        assert!(room.component.changing.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_change_that_fails_leaves_a_later_one_alone() {
        let room = Room::new();
        let (place, jid) = (place(), Jid::parse("a@b").unwrap());
        let (go, begins) = room.occupy(false);
        begins.recv().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = Box::pin(room.component.change(&place, &jid, stanza));
        assert!(first.as_mut().poll(&mut context).is_pending());
        // Of the same commit as the first.
        let (fail, fails) = room.occupy(true);
        go.send(()).unwrap();
        fails.recv().unwrap();
        let mut second = Box::pin(room.component.change(&place, &jid, |terms| Terms { node: true, ..terms }));
        assert!(second.as_mut().poll(&mut context).is_pending());
        fail.send(()).unwrap();
        first.await.unwrap_err();
        second.await.unwrap();
        assert!(room.terms().stanza && room.terms().node);

        let (fail, fails) = room.occupy(true);
        fails.recv().unwrap();
        fail.send(()).unwrap();
        let (fail, fails) = room.occupy(true);
        fails.recv().unwrap();
        let mut last = Box::pin(room.component.change(&place, &jid, |_| Terms::default()));
        assert!(last.as_mut().poll(&mut context).is_pending());
        fail.send(()).unwrap();
        last.await.unwrap();
        assert!(room.terms().is_empty());
    }

    #[tokio::test]
    async fn places_that_the_disk_refuses_are_written_the_next_time() {
        let room = Room::new();
        let (component, jid) = (&room.component, Jid::parse("a@b").unwrap());
        component.change(&place(), &jid, stanza).await.unwrap();
        let at = log::Place { epoch: 7, position: 3 };
        component.outbox.borrow_mut().gaps.absent("a@b", (RealmId::default(), "c"), at, false);
        let kept = || {
            let mut kept = Vec::new();
            places::read(&component.store, |jid, realm, channel, through| {
                kept.push(format!("{jid} {realm} {channel} {}", through.position));
            })
            .unwrap();
            kept
        };
        let (go, begins) = room.occupy(false);
        begins.recv().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut write = Box::pin(component.write_places());
        assert!(write.as_mut().poll(&mut context).is_pending());
        let (fail, fails) = room.occupy(true);
        go.send(()).unwrap();
        fails.recv().unwrap();
        fail.send(()).unwrap();
        write.await.unwrap_err();
        assert!(kept().is_empty());
        component.write_places().await.unwrap();
        assert_eq!(kept(), ["a@b default c 2"]);
        // What it got since is not owed again.
        component.change(&place(), &jid, |_| Terms::default()).await.unwrap();
        component.write_places().await.unwrap();
        assert!(kept().is_empty());
    }
}
