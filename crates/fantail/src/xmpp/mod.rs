//! Fantail as a component of an XMPP server (XEP-0114): the subscriptions of XMPP entities, what they get, and what
//! becomes of what they say. It lives on a thread of its own, as a shard does: nothing of it is shared, and others
//! speak to it through [`Desk`].

mod entity;
mod gaps;
mod inbox;
mod link;
mod origin;
mod outbox;
mod presence;
mod subscribers;

use std::{
    cell::RefCell,
    future::Future,
    io,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use fantail_proto::xmpp::{
    CLIENT,
    answer::{self, Condition},
    jid::Jid,
    pubsub::Shows,
    xml::Element,
};
use hashbrown::{HashMap, hash_map::Entry};
use tokio::{
    runtime,
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{interval, sleep},
};

use crate::{
    config::{self, Config, Secret},
    hub::{ChannelKey, Hub, Outpost, RealmId},
    metrics::{Counters, Process},
    publish::Publisher,
    sign::Tokens,
    snapshot::Snapshot,
    store::{OpenError, Store, StoreError},
    upstream::{Upstream, Workers},
};

use gaps::Owed;
use inbox::Lanes;
use outbox::{Outbox, World};
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
    secret: Vec<u8>,
    store: Store,
    orders: mpsc::Receiver<Order>,
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
    #[error("xmpp: {0}")]
    Load(#[from] StoreError),
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
        let (store, set_aside) = Store::open(&folder.join("xmpp.redb"), CACHE_BYTES)?;
        if let Some(aside) = set_aside {
            tracing::error!(
                "subscriptions of XMPP are lost: the file was damaged, and is now {}",
                aside.display()
            );
        }
        let (desk, orders) = mpsc::channel(ORDERS);
        Ok(Some((Self { config: xmpp.clone(), secret, store, orders }, Desk(desk))))
    }

    /// Lives until `stopping` is ready and what waits is written, or the stream cannot be.
    pub fn run(self, parts: Parts, stopping: impl Future<Output = ()>) -> Result<(), XmppError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        let runtime = runtime.map_err(|error| StoreError::Disk(error.to_string().into()))?;
        let Self { config, secret, store, orders } = self;
        let component = Component::new(config, secret, store, parts);
        component.load()?;
        let end = runtime.block_on(async {
            tokio::task::spawn_local(Rc::clone(&component).take_items());
            tokio::task::spawn_local(Rc::clone(&component).take_orders(orders));
            tokio::task::spawn_local(Rc::clone(&component).tidy());
            tokio::select! {
                () = link::keep(&component, stopping) => Ok(()),
                () = component.store.ended() => Err(StoreError::Disk("what writes the file has failed".into())),
            }
        });
        // Look-ups may block their threads for long.
        runtime.shutdown_background();
        Ok(end?)
    }
}

/// Where others leave what they want of the component.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Order>);

#[derive(Debug)]
enum Order {
    Subscribe { place: Place, jid: Jid, shows: Shows, done: oneshot::Sender<Result<(), Refused>> },
    Unsubscribe { place: Place, jid: Jid, done: oneshot::Sender<Result<bool, Refused>> },
    List { place: Place, page: Page, done: oneshot::Sender<Vec<(String, Terms)>> },
}

/// Which subscribers of a channel, in the order of their addresses.
#[derive(Clone, Debug)]
pub enum Page {
    Only(Jid),
    Behind { after: Option<String>, most: usize },
}

/// Why a subscription is as it was before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    #[error("there are {0} subscriptions, and no more are allowed (xmpp.subscriptions)")]
    Full(usize),
    #[error("an address may have {0} subscriptions (xmpp.subscriptions_per_jid)")]
    TooMany(usize),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the server is stopping")]
    Stopping,
}

impl Desk {
    /// From now on the address gets the `xmpp-stanza` items of the channel.
    pub async fn subscribe(&self, place: Place, jid: Jid, shows: Shows) -> Result<(), Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Subscribe { place, jid, shows, done }).await?;
        answer.await.unwrap_or(Err(Refused::Stopping))
    }

    /// False when it was not subscribed.
    pub async fn unsubscribe(&self, place: Place, jid: Jid) -> Result<bool, Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Unsubscribe { place, jid, done }).await?;
        answer.await.unwrap_or(Err(Refused::Stopping))
    }

    pub async fn list(&self, place: Place, page: Page) -> Result<Vec<(String, Terms)>, Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::List { place, page, done }).await?;
        answer.await.map_err(|_| Refused::Stopping)
    }

    async fn order(&self, order: Order) -> Result<(), Refused> {
        self.0.send(order).await.map_err(|_| Refused::Stopping)
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
    secret: Vec<u8>,
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
    tokens: RefCell<Tokens>,
    /// To ask an origin.
    permits: Semaphore,
}

impl Component {
    fn new(config: config::Xmpp, secret: Vec<u8>, store: Store, parts: Parts) -> Rc<Self> {
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
            tokens: RefCell::default(),
            permits: Semaphore::new(config.origin_requests),
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
        gaps::load(&self.store, |jid, realm_name, channel, through| {
            let Some(realm) = realms.get(realm_name) else { return };
            let subscribers = self.subscribers.borrow();
            let known = match jid {
                "" => subscribers.wanted(realm, channel) != (0, 0),
                jid => subscribers.get(realm, channel, jid).is_some(),
            };
            if known {
                let channel = ChannelKey { realm, name: channel.into() };
                let owed = Owed { channel, jid: Some(jid).filter(|jid| !jid.is_empty()).map(Into::into) };
                self.outbox.borrow_mut().gaps.restore(owed, through);
            }
        })?;
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
        {
            let (mut outbox, subscribers) = (self.outbox.borrow_mut(), self.subscribers.borrow());
            batch.iter().for_each(|delivery| outbox.deliver(delivery, &subscribers, unix_ms()));
        }
        self.note_gaps();
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
        let asked = self.presences.borrow_mut().doubt();
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
        self.note_gaps();
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

    async fn obey(&self, order: Order) {
        // Who asked may have gone.
        match order {
            Order::Subscribe { place, jid, shows, done } => {
                let outcome = self.change(&place, &jid, |terms| Terms { stanza: true, shows, ..terms }).await;
                drop(done.send(outcome.map(drop)));
            }
            Order::Unsubscribe { place, jid, done } => {
                let outcome = self.change(&place, &jid, |terms| Terms { stanza: false, ..terms }).await;
                drop(done.send(outcome.map(|before| before.stanza)));
            }
            Order::List { place, page, done } => {
                let subscribers = self.subscribers.borrow();
                let Place { realm, channel, .. } = place;
                let found: Vec<_> = match &page {
                    Page::Only(jid) => {
                        let terms = subscribers.get(realm, &channel, jid.as_str());
                        terms.into_iter().map(|terms| (jid.to_string(), terms)).collect()
                    }
                    Page::Behind { after, most } => {
                        let page = subscribers.page(realm, &channel, after.as_deref(), *most);
                        page.map(|(jid, terms)| (jid.to_owned(), terms)).collect()
                    }
                };
                drop(done.send(found));
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
        self.set(place, jid, terms);
        self.note_gaps();
        self.changing.borrow_mut().entry(key.clone()).or_default().writes += 1;
        let written = self.store.write(subscribers::write(place, jid, terms)).await;
        if self.is_settled(key, written.is_err()) {
            // Whoever failed: the disk has the last that did not.
            let kept = subscribers::kept(&self.store, place, jid);
            self.set(place, jid, kept.unwrap_or_else(|_| before.unwrap_or_default()));
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

    fn set(&self, place: &Place, jid: &str, terms: Terms) {
        let mut subscribers = self.subscribers.borrow_mut();
        let interest = subscribers.set(place, jid, terms);
        if terms.is_empty() {
            let channel = (place.realm, &*place.channel);
            self.outbox.borrow_mut().gaps.forget(jid, channel, interest == Interest::Ends);
        }
        match interest {
            Interest::Begins => _ = self.hub.join(self.place, place.realm, &place.channel),
            Interest::Ends => self.hub.leave(self.place, place.realm, &place.channel, false),
            Interest::Stays => {}
        }
        self.counts.xmpp_subscriptions.set(i64::try_from(subscribers.len()).unwrap_or(i64::MAX));
    }

    /// What is to be written to the server now.
    fn wire(&self) -> Bytes {
        let (subscribers, presences) = (self.subscribers.borrow(), self.presences.borrow());
        let (subscribers, presences) = (&*subscribers, &*presences);
        let world = World { subscribers, presences, log: self.hub.log(), now_ms: unix_ms() };
        let wire = self.outbox.borrow_mut().wire(world);
        self.note_gaps();
        wire
    }

    /// Has it written down where subscribers go on in logs. What the disk does not take is forgotten by a restart.
    fn note_gaps(&self) {
        let changes = self.outbox.borrow_mut().gaps.changes();
        if !changes.is_empty() {
            let subscribers = self.subscribers.borrow();
            let work = gaps::write(changes, |realm| subscribers.realm_name(realm).to_owned());
            let failed = |error| tracing::warn!(target: TARGET, %error, "gaps are not on disk");
            self.store.submit(work, Box::new(move |outcome| outcome.unwrap_or_else(failed)));
        }
    }

    /// Whether an address may make one more subscription for itself, or have one made by an origin.
    fn may_subscribe(&self, jid: &Jid) -> Result<(), Refused> {
        let most = self.config.subscriptions_per_jid;
        let kept = subscribers::of(&self.store, jid.bare(), most)?;
        if kept.len() < most { Ok(()) } else { Err(Refused::TooMany(most)) }
    }

    fn send(&self, stanza: &Element) {
        self.outbox.borrow_mut().answer(stanza.to_xml(CLIENT).into_bytes());
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

/// What a refusal is to an entity.
fn condition(refused: &Refused) -> Condition {
    match refused {
        Refused::Full(_) | Refused::Stopping => Condition::ResourceConstraint,
        Refused::TooMany(_) => Condition::PolicyViolation,
        Refused::Store(_) => Condition::InternalServerError,
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Questions that wait for the server at once.
const PROBES: usize = 1000;
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// For the answers, of other servers too: who has not answered by then is not there.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
const TIDY_EVERY: Duration = Duration::from_secs(1);
const TARGET: &str = "fantail::xmpp";
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

    use super::*;
    use crate::config::{Flag, Sources};

    /// A component whose store does only what it is let.
    struct Room {
        component: Rc<Component>,
        _folder: tempfile::TempDir,
    }

    impl Room {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let flag = |key, value: &str| Flag { name: "--key", key, value: value.into() };
            let flags = vec![
                flag("server.data_dir", &folder.path().to_string_lossy()),
                flag("xmpp.server", "127.0.0.1:1"),
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
            let wire = String::from_utf8(component.wire().to_vec()).unwrap();
            component.outbox.borrow_mut().written();
            assert!(wire.contains("type='probe'") && wire.contains("to='a@b'"), "{wire}");
            sleep(PROBE_PATIENCE / 2).await;
        };
        let (from, to) = (Jid::parse("a@b/1").unwrap(), Jid::parse("push.test").unwrap());
        component.presences.borrow_mut().hear(&from, &to, &Element::new(CLIENT, "presence"));
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
}
