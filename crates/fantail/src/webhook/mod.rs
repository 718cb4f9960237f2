//! Webhooks: items of a channel are posted to the URLs that are subscribed to it, at least once, from a queue on disk.
//! Here is what others may ask for; [`desk`] does the work on a thread of its own. It never looks at who holds a
//! connection.

mod book;
mod courier;
mod desk;
mod endpoint;
pub mod http;
mod ids;
mod letters;
mod lines;
mod names;

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use fantail_proto::{
    address,
    webhook::target::{Host, Target, TargetError},
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    runtime,
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    config,
    hub::Hub,
    metrics::Process,
    realm::Realms,
    snapshot::Snapshot,
    store::{OpenError, Store, StoreError},
    upstream,
};
use book::{Edit, Page, Salt};
use courier::{Challenge, Fault};
use desk::{Desk, Parts};
use endpoint::{Endpoint, Id, Unwanted, Wish, challenge};

/// What the control port asks of webhooks. Cheap to share.
#[derive(Debug)]
pub struct Webhooks {
    store: Store,
    salt: Salt,
    orders: mpsc::Sender<Order>,
    hub: Arc<Hub>,
    /// Changes that go on to their end although who asked may have left.
    changes: Arc<Semaphore>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    config: config::Webhooks,
}

/// The thread that delivers.
#[derive(Debug)]
pub struct Delivering {
    thread: thread::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// Why webhooks do not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("webhooks: {0}")]
    Open(#[from] OpenError),
    #[error("webhooks: {0}")]
    Store(#[from] StoreError),
    #[error("webhooks: {0}")]
    Thread(#[from] io::Error),
}

/// Why something that was asked for was not done; the text is for who asked.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("no such endpoint")]
    Absent,
    #[error("the endpoint is disabled: enable it before its dead letters are replayed")]
    Disabled,
    #[error("{0}")]
    Url(#[from] TargetError),
    #[error("the URL's address is {}: not allowed (webhooks.allow, webhooks.deny)", .0.name())]
    Forbidden(address::Range),
    #[error("{0}")]
    Wish(#[from] Unwanted),
    #[error("there are as many endpoints as there may be (webhooks.endpoints, webhook_endpoints)")]
    Many,
    #[error("the channel has as many endpoints as it may have (webhooks.channel_endpoints)")]
    Crowded,
    #[error("the endpoint was asked and did not answer with the challenge: {0}")]
    Unverified(String),
    #[error("there is no room in the queue: replay when some has been delivered")]
    NoRoom,
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the server is stopping")]
    Stopping,
}

impl From<redb::Error> for Trouble {
    fn from(error: redb::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What the desk is told.
enum Order {
    /// An endpoint of this channel has come or gone.
    Look {
        realm: String,
        channel: String,
        /// The realm's on disk.
        number: u32,
        done: oneshot::Sender<()>,
    },
    Gone {
        id: Id,
    },
    Enabled {
        id: Id,
    },
    Ordered {
        id: Id,
        ordered: bool,
    },
    /// What waits for its next try is tried now.
    Retry {
        id: Id,
    },
    Verify {
        realm: String,
        challenge: Challenge,
        done: oneshot::Sender<Result<bool, Fault>>,
    },
    Replay {
        id: Id,
        one: Option<u64>,
        since: u64,
        done: oneshot::Sender<Result<Replayed, Trouble>>,
    },
}

/// Dead letters that were put back into the queue, and those for which there was no room.
#[derive(Clone, Copy, Debug, Default)]
struct Replayed {
    replayed: usize,
    left: usize,
}

/// Connections that there may be: of tries, of challenges, and those that are kept for the next.
pub fn connections(config: &config::Webhooks) -> usize {
    config.concurrency.saturating_add(desk::CHALLENGES).saturating_add(upstream::MAX_IDLE)
}

/// Opens the queue and starts to deliver, if the configuration has a folder for data. What `begin` makes is dropped when
/// nobody delivers any more, whatever the reason.
///
/// # Errors
/// The file cannot be used.
pub fn start<E>(
    snapshot: &Arc<ArcSwap<Snapshot>>,
    hub: &Arc<Hub>,
    counts: &Arc<Process>,
    begin: impl FnOnce() -> E + Send + 'static,
) -> Result<(Option<Arc<Webhooks>>, Option<Delivering>), StartError> {
    let Some(folder) = snapshot.load().config.server.data_dir.clone() else { return Ok((None, None)) };
    let store = Store::open(&folder.join(FILE), CACHE)?;
    let config = snapshot.load().config.webhooks.clone();
    let (orders, ordered) = mpsc::channel(ORDERS);
    let (stop, stopping) = watch::channel(false);
    let (ready, started) = std::sync::mpsc::channel();
    let parts = Parts {
        store: store.clone(),
        hub: Arc::clone(hub),
        snapshot: Arc::clone(snapshot),
        config: config.clone(),
        counts: Arc::clone(counts),
    };
    let runtime = || runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    let thread = thread::Builder::new().name("webhooks".into()).spawn(move || {
        let _ending = begin();
        let runtime = match runtime() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error.into()))),
        };
        runtime.block_on(async {
            match Desk::open(parts).await {
                Ok(desk) => {
                    drop(ready.send(Ok(desk.salt())));
                    desk.run(ordered, stopping).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        // Look-ups may block their threads for long.
        runtime.shutdown_background();
    })?;
    let ended = || StartError::Thread(io::Error::other("the thread has ended"));
    let salt = started.recv().map_err(|_| ended())??;
    let changes = Arc::new(Semaphore::new(CHANGES));
    let (hub, snapshot) = (Arc::clone(hub), Arc::clone(snapshot));
    let webhooks = Webhooks { store, salt, orders, hub, changes, snapshot, config };
    Ok((Some(Arc::new(webhooks)), Some(Delivering { thread, stop })))
}

impl Delivering {
    /// Lets the tries under way end, for a moment, and waits until all that is known is on disk. Blocks, but not for ever: a
    /// disk that hangs does not keep the process.
    pub fn stop(self) {
        self.stop_within(STOP_WITHIN);
    }

    fn stop_within(self, limit: Duration) {
        self.stop.send_replace(true);
        let until = Instant::now() + limit;
        while !self.thread.is_finished() {
            if Instant::now() >= until {
                tracing::error!(
                    ?limit,
                    "webhooks that were delivered may be delivered again: the disk does not answer"
                );
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
        if self.thread.join().is_err() {
            tracing::error!("the webhooks' thread has failed");
        }
    }
}

impl Webhooks {
    /// To be called before realms that were not configured may publish: their endpoints get all of it. Blocks.
    ///
    /// # Errors
    /// The file has failed.
    pub fn admit(&self, realms: &Realms, before: &Realms) -> Result<(), StoreError> {
        if realms.is_within(before) {
            return Ok(());
        }
        desk::join(&self.hub, &Page::open(&self.store)?, realms, Some(before))?;
        Ok(())
    }

    /// Subscribes a URL to a channel, or changes the endpoint that it is already, which is enabled by that.
    async fn subscribe(
        self: &Arc<Self>,
        realm: &str,
        channel: &str,
        wish: Wish,
    ) -> Result<(Id, Endpoint), Trouble> {
        let target = Target::parse(wish.url.as_deref().unwrap_or_default())?;
        self.judge(&target)?;
        let snapshot = self.snapshot.load_full();
        let own = snapshot.config.realms.iter().find(|one| one.id == realm);
        let (now, overlap) = (now(), self.config.secret_overlap.as_secs());
        let fresh = Endpoint::new(channel, &target, now);
        if own.is_some_and(|own| own.webhook_verify) {
            let mut candidate = match self.find(realm, channel, &target.url()) {
                Ok((_, endpoint, _)) => endpoint,
                Err(Trouble::Absent) => fresh.clone(),
                Err(trouble) => return Err(trouble),
            };
            candidate.wish(&wish, overlap, now)?;
            self.verify(realm, &target, &candidate).await?;
        }
        let limit = own.map(|own| own.webhook_endpoints).filter(|limit| *limit > 0).unwrap_or(u64::MAX);
        let (most, url) = (self.config.endpoints, target.url());
        let (webhooks, realm, channel) = (Arc::clone(self), realm.to_owned(), channel.to_owned());
        self.whole(async move {
            let most_here = webhooks.config.channel_endpoints;
            let edited = webhooks.edit((&realm, &channel, &url), most_here, move |old, own, all| {
                if old.is_none() && (own >= limit || all >= most) {
                    return Err(Trouble::Many);
                }
                let mut endpoint = old.unwrap_or(fresh);
                endpoint.wish(&wish, overlap, now)?;
                endpoint.disabled = None;
                Ok(Some(endpoint))
            });
            let (id, endpoint) = edited.await?;
            webhooks.look(&realm, &channel, id).await?;
            let endpoint = endpoint.ok_or(Trouble::Absent)?;
            webhooks.order(Order::Enabled { id }).await?;
            webhooks.order(Order::Ordered { id, ordered: endpoint.ordered }).await?;
            Ok((id, endpoint))
        })
        .await
    }

    /// Changes an endpoint that is there.
    async fn change(
        &self,
        realm: &str,
        channel: &str,
        url: &str,
        change: impl FnOnce(&mut Endpoint) -> Result<(), Unwanted> + Send + 'static,
    ) -> Result<(Id, Endpoint), Trouble> {
        let url = Target::parse(url).map_err(|_| Trouble::Absent)?.url();
        let edited = self.edit((realm, channel, &url), usize::MAX, move |old, _, _| {
            let mut endpoint = old.ok_or(Trouble::Absent)?;
            change(&mut endpoint)?;
            Ok(Some(endpoint))
        });
        let (id, endpoint) = edited.await?;
        Ok((id, endpoint.ok_or(Trouble::Absent)?))
    }

    /// Changes an endpoint that is there as its owner wishes.
    async fn grant(
        self: &Arc<Self>,
        realm: &str,
        channel: &str,
        url: &str,
        wish: Wish,
    ) -> Result<(Id, Endpoint), Trouble> {
        let webhooks = Arc::clone(self);
        let (realm, channel, url) = (realm.to_owned(), channel.to_owned(), url.to_owned());
        let overlap = self.config.secret_overlap.as_secs();
        self.whole(async move {
            let wish = move |endpoint: &mut Endpoint| endpoint.wish(&wish, overlap, now());
            let (id, endpoint) = webhooks.change(&realm, &channel, &url, wish).await?;
            webhooks.order(Order::Ordered { id, ordered: endpoint.ordered }).await?;
            Ok((id, endpoint))
        })
        .await
    }

    async fn enable(self: &Arc<Self>, realm: &str, channel: &str, url: &str) -> Result<(), Trouble> {
        let enable = |endpoint: &mut Endpoint| {
            endpoint.disabled = None;
            Ok(())
        };
        let webhooks = Arc::clone(self);
        let (realm, channel, url) = (realm.to_owned(), channel.to_owned(), url.to_owned());
        self.whole(async move {
            let (id, _) = webhooks.change(&realm, &channel, &url, enable).await?;
            webhooks.order(Order::Enabled { id }).await
        })
        .await
    }

    /// Has what waits for its next try tried now.
    async fn retry(&self, realm: &str, channel: &str, url: &str) -> Result<(), Trouble> {
        let (id, ..) = self.find(realm, channel, url)?;
        self.order(Order::Retry { id }).await
    }

    /// Removes an endpoint with all that waits for it.
    async fn unsubscribe(self: &Arc<Self>, realm: &str, channel: &str, url: &str) -> Result<(), Trouble> {
        let url = Target::parse(url).map_err(|_| Trouble::Absent)?.url();
        let (webhooks, realm, channel) = (Arc::clone(self), realm.to_owned(), channel.to_owned());
        self.whole(async move {
            let remove = |old: Option<Endpoint>, _, _| old.ok_or(Trouble::Absent).map(|_| None);
            let removed = webhooks.edit((&realm, &channel, &url), usize::MAX, remove);
            let (id, _) = removed.await?;
            webhooks.order(Order::Gone { id }).await?;
            webhooks.look(&realm, &channel, id).await
        })
        .await
    }

    /// Does a change to its end: what is on disk, the desk hears of, even if who asked has left meanwhile.
    async fn whole<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Trouble>> + Send + 'static,
    ) -> Result<T, Trouble> {
        let place = Arc::clone(&self.changes).try_acquire_owned().map_err(|_| StoreError::Full)?;
        let change = async move {
            let _place = place;
            change.await
        };
        tokio::spawn(change).await.map_err(|_| Trouble::Stopping)?
    }

    fn find(&self, realm: &str, channel: &str, url: &str) -> Result<(Id, Endpoint, Page), Trouble> {
        let url = Target::parse(url).map_err(|_| Trouble::Absent)?.url();
        let page = Page::open(&self.store)?;
        let number = page.realm(realm)?.ok_or(Trouble::Absent)?;
        let id = Id::new(number, self.salt.0, channel, &url);
        let found = page.endpoint(id)?.filter(|endpoint| {
            endpoint.channel == channel && endpoint.url == url && !endpoint.has_expired(now())
        });
        Ok((id, found.ok_or(Trouble::Absent)?, page))
    }

    /// Endpoints of a channel or of the whole realm, behind `after`, and where more may come.
    fn list(
        &self,
        realm: &str,
        channel: Option<&str>,
        after: Option<Id>,
        most: usize,
    ) -> Result<(Vec<Value>, Option<Id>), Trouble> {
        let page = Page::open(&self.store)?;
        let nothing = (Vec::new(), None);
        let Some(number) = page.realm(realm)? else { return Ok(nothing) };
        let (mut first, last) = match channel {
            Some(channel) => Id::of_channel(number, self.salt.0, channel),
            None => Id::of_realm(number),
        };
        if let Some(Id(after)) = after {
            first = first.max(Id(after.saturating_add(1)));
        }
        if first > last {
            return Ok(nothing);
        }
        let (some, now) = (page.some((first, last), channel, most)?, now());
        let next = some.last().filter(|_| some.len() == most).map(|(id, _)| *id);
        let some = some.into_iter().filter(|(_, endpoint)| !endpoint.has_expired(now));
        Ok((some.map(|(id, endpoint)| endpoint.shown(id)).collect(), next))
    }

    async fn replay(&self, id: Id, one: Option<u64>, since: u64) -> Result<Replayed, Trouble> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Replay { id, one, since, done }).await?;
        answer.await.map_err(|_| Trouble::Stopping)?
    }

    /// An address in the URL itself is judged now; those of a name whenever it is connected to.
    fn judge(&self, target: &Target) -> Result<(), Trouble> {
        let Host::Address(ip) = target.host else { return Ok(()) };
        self.config.forbids(ip).map_or(Ok(()), |range| Err(Trouble::Forbidden(range)))
    }

    /// As WebSub does: who is there must want it.
    async fn verify(&self, realm: &str, target: &Target, endpoint: &Endpoint) -> Result<(), Trouble> {
        let (answer, channel) = (challenge(), &*endpoint.channel);
        let topic = percent_encoding::utf8_percent_encode(channel, percent_encoding::NON_ALPHANUMERIC);
        let query = format!("hub.mode=subscribe&hub.topic={topic}&hub.challenge={answer}");
        let (target, headers, realm) = (target.clone(), endpoint.headers(), realm.to_owned());
        let challenge = Challenge { target, headers, query, answer };
        let (done, answer) = oneshot::channel();
        self.order(Order::Verify { realm, challenge, done }).await?;
        match answer.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(Trouble::Unverified("it has answered something else".into())),
            Ok(Err(fault)) => Err(Trouble::Unverified(fault.to_string())),
            Err(_) => Err(Trouble::Unverified("too many are asked at once".into())),
        }
    }

    /// Reads and writes one endpoint in one transaction; `each` gets its realm's endpoints and all, too. A new one is
    /// refused if its channel has `most` already.
    async fn edit(
        &self,
        (realm, channel, url): (&str, &str, &str),
        most: usize,
        each: impl FnOnce(Option<Endpoint>, u64, u64) -> Result<Option<Endpoint>, Trouble> + Send + 'static,
    ) -> Result<(Id, Option<Endpoint>), Trouble> {
        let result = Arc::new(Mutex::new(None));
        let told = Arc::clone(&result);
        let (realm, channel, url) = (realm.to_owned(), channel.to_owned(), url.to_owned());
        let salt = self.salt.0;
        let work = Box::new(move |tx: &redb::WriteTransaction| {
            let (number, _) = book::realm(tx, &realm)?;
            let id = Id::new(number, salt, &channel, &url);
            let crowded = book::has_many(tx, Id::of_channel(number, salt, &channel), id, most)?;
            book::edit(tx, &realm, id, now(), |old, own, all| {
                let own_row = |old: &Endpoint| old.channel == channel && old.url == url;
                // Two URLs with one id: as good as never.
                let outcome = match old {
                    Some(old) if !own_row(&old) => Err(Trouble::Many),
                    None if crowded => Err(Trouble::Crowded),
                    old => each(old, own, all),
                };
                let edit = match &outcome {
                    Ok(Some(endpoint)) => Edit::Put(Box::new(endpoint.clone())),
                    Ok(None) => Edit::Remove,
                    Err(_) => Edit::Keep,
                };
                *told.lock() = Some(outcome.map(|endpoint| (id, endpoint)));
                edit
            })
        });
        self.store.write(work).await?;
        let outcome = result.lock().take();
        outcome.unwrap_or(Err(Trouble::Stopping))
    }

    async fn look(&self, realm: &str, channel: &str, id: Id) -> Result<(), Trouble> {
        let (done, answer) = oneshot::channel();
        let (realm, channel, number) = (realm.into(), channel.into(), id.realm());
        self.order(Order::Look { realm, channel, number, done }).await?;
        answer.await.map_err(|_| Trouble::Stopping)
    }

    async fn order(&self, order: Order) -> Result<(), Trouble> {
        self.orders.send(order).await.map_err(|_| Trouble::Stopping)
    }
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

const FILE: &str = "webhooks.redb";
/// Bytes of the file that are kept in memory.
const CACHE: usize = 32 << 20;
/// Requests that wait for the desk.
const ORDERS: usize = 1024;
/// Endpoints that are being changed at once: over it, the disk is too slow.
const CHANGES: usize = 1024;
/// What a disk that hangs may delay the end of the process.
const STOP_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use tokio::task;

    use super::*;
    use crate::{
        config::{Config, Flag, Sources},
        hub::RealmId,
        store::Work,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            task::yield_now().await;
        }
    }

    /// Webhooks that may be posted to loopback.
    fn started(folder: &std::path::Path) -> (Arc<Webhooks>, Delivering, Arc<Hub>) {
        with_ids(folder, 1_000_000)
    }

    fn with_ids(folder: &std::path::Path, most: i64) -> (Arc<Webhooks>, Delivering, Arc<Hub>) {
        counted(folder, most, &Arc::default())
    }

    fn counted(
        folder: &std::path::Path,
        most: i64,
        counts: &Arc<Process>,
    ) -> (Arc<Webhooks>, Delivering, Arc<Hub>) {
        let value = folder.to_string_lossy().as_ref().into();
        let allowed = toml::Value::Array(vec!["127.0.0.1".into()]);
        let flags = vec![
            Flag { name: "--data-dir", key: "server.data_dir", value },
            Flag { name: "--allow", key: "webhooks.allow", value: allowed },
            Flag { name: "--ids", key: "hub.ids", value: most.into() },
        ];
        let config = Config::load(Sources { flags, ..Sources::default() }).unwrap();
        let hub = Arc::new(Hub::new(1, &config.hub));
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::load(config, None).unwrap()));
        let (webhooks, delivering) = start(&snapshot, &hub, counts, || ()).unwrap();
        (webhooks.unwrap(), delivering.unwrap(), hub)
    }

    /// The disk is at work until it is told to go on.
    async fn occupied(store: &Store) -> std::sync::mpsc::Sender<()> {
        let (occupied, is_occupied) = oneshot::channel();
        let (go_on, going_on) = std::sync::mpsc::channel();
        let occupy: Work = Box::new(move |_| {
            _ = occupied.send(());
            _ = going_on.recv();
            Ok(())
        });
        store.submit(occupy, Box::new(drop));
        is_occupied.await.unwrap();
        go_on
    }

    /// Undoes whatever shares its commit.
    fn fail_next(store: &Store) {
        store.submit(Box::new(|_| Err(redb::Error::Corrupted("on purpose".into()))), Box::new(drop));
    }

    /// What has become of webhooks is written when the disk works again.
    #[tokio::test]
    async fn what_is_not_written_is_written_later() {
        use std::io::{Read as _, Write as _};
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = started(folder.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        webhooks.subscribe(config::DEFAULT_REALM, "c", Wish::of_url(url)).await.unwrap();
        let item = serde_json::json!({ "items": [{ "channel": "c", "http-request": { "body": "x" } }] });
        let items = fantail_proto::item::decode(item.to_string().as_bytes(), None).unwrap();
        drop(hub.publish(RealmId::default(), items, false).unwrap());
        let (mut socket, _) = task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
        assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
        let go_on = occupied(&webhooks.store).await;
        fail_next(&webhooks.store);
        socket.write_all(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n").unwrap();
        until("what became of it waits for the disk", || webhooks.store.waiting() == 2).await;
        go_on.send(()).unwrap();
        let shown = || webhooks.list(config::DEFAULT_REALM, Some("c"), None, 1).unwrap().0.remove(0);
        until("it is disabled", || !shown()["disabled"].is_null()).await;
        delivering.stop();
    }

    /// Who is on disk, but cannot be read just then, gets what is published from then on.
    #[tokio::test]
    async fn who_cannot_be_read_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = started(folder.path());
        let (realm, url) = (config::DEFAULT_REALM, "http://endpoint.example/");
        let fresh = Endpoint::new("c", &Target::parse(url).unwrap(), now());
        let put = |_, _, _| Ok(Some(fresh));
        let (id, _) = webhooks.edit((realm, "c", url), usize::MAX, put).await.unwrap();
        // The file is closed, and is not opened again at once.
        let fail: Work = Box::new(|_| Err(redb::Error::Io(io::Error::other("on purpose"))));
        webhooks.store.write(fail).await.unwrap_err();
        webhooks.look(realm, "c", id).await.unwrap();
        until("the file is open again", || webhooks.store.read().is_ok()).await;
        let accepted = hub.publish(RealmId::default(), requests(&["x"]), false).unwrap();
        accepted.kept.expect("webhooks keep it").wait().await.unwrap();
        delivering.stop();
        assert_eq!(Page::open(&webhooks.store).unwrap().queued(id).unwrap(), 1);
    }

    /// Ids that a commit has not written make others go neither from memory nor from the disk.
    #[tokio::test]
    async fn ids_that_are_not_on_disk_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = with_ids(folder.path(), 2);
        let url = "http://endpoint.example/";
        webhooks.subscribe(config::DEFAULT_REALM, "c", Wish::of_url(url.into())).await.unwrap();
        let publish = |id: &str| {
            let mut items = requests(&["x"]);
            items[0].id = Some(id.into());
            hub.publish(RealmId::default(), items, false).unwrap().kept.unwrap()
        };
        publish("1").wait().await.unwrap();
        for id in ["2", "3"] {
            let go_on = occupied(&webhooks.store).await;
            fail_next(&webhooks.store);
            let kept = publish(id);
            until("it waits for the disk", || webhooks.store.waiting() >= 2).await;
            go_on.send(()).unwrap();
            kept.wait().await.unwrap_err();
        }
        publish("4").wait().await.unwrap();
        delivering.stop();
        let mut digests = 0;
        let page = Page::open(&webhooks.store).unwrap();
        page.ids(|_, _, some| digests += some.len()).unwrap();
        assert_eq!(digests, 2, "of the first and the last");
    }

    /// A file that is closed for a moment is waited for, and all that may start then starts.
    #[tokio::test]
    async fn what_cannot_be_read_is_read_soon() {
        use std::io::{Read as _, Write as _};
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = started(folder.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        webhooks.subscribe(config::DEFAULT_REALM, "c", Wish::of_url(url)).await.unwrap();
        // Of one of which nothing is known, only the first is under way.
        let accepted = hub.publish(RealmId::default(), requests(&["first", "second"]), false).unwrap();
        accepted.kept.unwrap().wait().await.unwrap();
        let read = |mut socket: std::net::TcpStream| {
            task::spawn_blocking(move || {
                let mut got = Vec::new();
                while !(got.ends_with(b"first") || got.ends_with(b"second")) {
                    let mut some = [0; 4096];
                    let n = socket.read(&mut some).unwrap();
                    assert!(n > 0);
                    got.extend_from_slice(&some[..n]);
                }
                socket
            })
        };
        let (socket, _) = task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut socket = read(socket).await.unwrap();
        let fail: Work = Box::new(|_| Err(redb::Error::Io(io::Error::other("on purpose"))));
        webhooks.store.write(fail).await.unwrap_err();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        read(socket).await.unwrap();
        delivering.stop();
    }

    /// What is lost on disk is said to be lost.
    #[tokio::test]
    async fn what_is_damaged_is_counted() {
        use std::io::{Read as _, Write as _};
        let folder = tempfile::tempdir().unwrap();
        let counts = Arc::<Process>::default();
        let (webhooks, delivering, hub) = counted(folder.path(), 1_000_000, &counts);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (id, _) = webhooks.subscribe(config::DEFAULT_REALM, "c", Wish::of_url(url)).await.unwrap();
        let accepted = hub.publish(RealmId::default(), requests(&["first", "second"]), false).unwrap();
        accepted.kept.unwrap().wait().await.unwrap();
        let (mut socket, _) = task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
        assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
        let spoil: Work = Box::new(|tx| {
            let mut letters = tx.open_table(redb::TableDefinition::<u64, &[u8]>::new("letters"))?;
            letters.insert(2, &b"?"[..])?;
            Ok(())
        });
        webhooks.store.write(spoil).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        until("it is counted", || counts.webhook_dead_failed.get() == 1).await;
        until("nothing waits", || Page::open(&webhooks.store).unwrap().queued(id).unwrap() == 0).await;
        delivering.stop();
    }

    /// Nobody delivers, or keeps, what cannot be written: the process ends.
    #[tokio::test]
    async fn a_store_that_has_ended_ends_the_desk() {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, _hub) = started(folder.path());
        webhooks.store.submit(Box::new(|_| panic!("on purpose")), Box::new(drop));
        until("the desk has ended", || delivering.thread.is_finished()).await;
    }

    /// A thread that waits for ever, as for a disk that does not answer.
    #[test]
    fn a_disk_that_hangs_does_not_keep_the_process() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (stop, _stopping) = watch::channel(false);
        let thread = thread::spawn(move || held.recv().unwrap_or_default());
        Delivering { thread, stop }.stop_within(Duration::from_millis(20));
        hold.send(()).expect("the thread still waits");
    }

    /// Who is on disk gets its items, although nobody waited for that.
    #[tokio::test]
    async fn a_change_goes_on_without_who_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = started(folder.path());
        let url = "http://endpoint.example/";
        let shows = || webhooks.list(config::DEFAULT_REALM, Some("c"), None, 1).unwrap().0.len() == 1;
        let is_heard = || {
            let item =
                serde_json::json!({ "items": [{ "channel": "c", "http-stream": { "content": "x" } }] });
            let items = fantail_proto::item::decode(item.to_string().as_bytes(), None).unwrap();
            // Full of what is kept.
            hub.publish(RealmId::default(), items, false).map_or(true, |accepted| accepted.kept.is_some())
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut subscribing =
            Box::pin(webhooks.subscribe(config::DEFAULT_REALM, "c", Wish::of_url(url.into())));
        assert!(subscribing.as_mut().poll(&mut context).is_pending());
        until("the endpoint is on disk", shows).await;
        drop(subscribing);
        until("its items are kept", is_heard).await;
        let mut unsubscribing = Box::pin(webhooks.unsubscribe(config::DEFAULT_REALM, "c", url));
        assert!(unsubscribing.as_mut().poll(&mut context).is_pending());
        until("the endpoint is gone", || !shows()).await;
        drop(unsubscribing);
        until("nobody keeps the channel's items", || !is_heard()).await;
        delivering.stop();
    }

    /// Whose time is over is not there any more, whoever has looked: subscribed again, it begins anew.
    #[tokio::test]
    async fn what_is_over_can_be_subscribed_again() {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, _hub) = started(folder.path());
        let (realm, url) = (config::DEFAULT_REALM, "http://endpoint.example/");
        let over = async || {
            let target = Target::parse(url).unwrap();
            let mut endpoint = Endpoint::new("c", &target, 1);
            let wish: Wish = serde_json::from_str(r#"{ "ttl": 1, "description": "old" }"#).unwrap();
            endpoint.wish(&wish, 10, 1).unwrap();
            webhooks.edit((realm, "c", url), 10, move |_, _, _| Ok(Some(endpoint))).await.unwrap();
        };
        over().await;
        assert!(matches!(webhooks.find(realm, "c", url), Err(Trouble::Absent)));
        assert!(webhooks.list(realm, None, None, 10).unwrap().0.is_empty());
        over().await;
        assert!(matches!(webhooks.enable(realm, "c", url).await, Err(Trouble::Absent)));
        over().await;
        let alone = webhooks.edit((realm, "c", url), 1, |old, _, _| Ok(old)).await;
        assert!(matches!(alone, Ok((_, None))), "it takes nobody's place");
        over().await;
        let (id, endpoint) = webhooks.subscribe(realm, "c", Wish::of_url(url.into())).await.unwrap();
        let shown = endpoint.shown(id);
        assert_eq!((&shown["expires"], &shown["description"]), (&Value::Null, &Value::from("")));
        assert_eq!(webhooks.list(realm, None, None, 10).unwrap().0, [shown]);
        let all = Page::open(&webhooks.store).unwrap().endpoints().unwrap();
        assert_eq!(all, 1);
        delivering.stop();
    }

    /// Who subscribes what another has just removed gets what is published from then on.
    #[tokio::test]
    async fn what_is_subscribed_again_keeps_what_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = started(folder.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        // Nobody answers: all that is published waits.
        let subscribe = || webhooks.subscribe(config::DEFAULT_REALM, "c", Wish::of_url(url.clone()));
        let (id, _) = subscribe().await.unwrap();
        let remove = |_, _, _| Ok(None);
        webhooks.edit((config::DEFAULT_REALM, "c", &url), usize::MAX, remove).await.unwrap();
        subscribe().await.unwrap();
        let accepted = hub.publish(RealmId::default(), requests(&["x"]), false).unwrap();
        accepted.kept.unwrap().wait().await.unwrap();
        webhooks.order(Order::Gone { id }).await.unwrap();
        webhooks.look(config::DEFAULT_REALM, "c", id).await.unwrap();
        delivering.stop();
        assert_eq!(Page::open(&webhooks.store).unwrap().queued(id).unwrap(), 1);
    }

    /// What is in the mailbox when all publishers have left is on disk in the end.
    #[tokio::test]
    async fn an_orderly_end_takes_all() {
        const MANY: usize = 5;
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, delivering, hub) = started(folder.path());
        let (realm, url) = (config::DEFAULT_REALM, "http://endpoint.example/");
        let (id, _) = webhooks.subscribe(realm, "c", Wish::of_url(url.into())).await.unwrap();
        let go_on = occupied(&webhooks.store).await;
        // Three of them are as much as may wait for the disk.
        let large = "x".repeat(6 << 20);
        for _ in 0..MANY {
            drop(hub.publish(RealmId::default(), requests(&[&large]), false).unwrap());
        }
        until("the desk waits for the disk", || webhooks.store.waiting() == 3).await;
        delivering.stop.send_replace(true);
        go_on.send(()).unwrap();
        delivering.stop();
        assert_eq!(Page::open(&webhooks.store).unwrap().queued(id).unwrap(), MANY);
    }

    fn requests(bodies: &[&str]) -> Vec<fantail_proto::item::Item> {
        let item = |body| serde_json::json!({ "channel": "c", "http-request": { "body": body } });
        let items = serde_json::json!({ "items": bodies.iter().map(item).collect::<Vec<_>>() });
        fantail_proto::item::decode(items.to_string().as_bytes(), None).unwrap()
    }
}
