//! Pages that shards fetch for each other (spec 4.4): when many streams have missed the same, their origin is asked once.
//! Owns the fetches under way and, for a moment, what came of them; asks nobody.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::response;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// All shards' fetches, by what makes them the same.
#[derive(Debug, Default)]
pub struct Pages(Mutex<Fetches>);

#[derive(Debug, Default)]
struct Fetches {
    entries: HashMap<String, Entry>,
    /// Of the last fetch of all: one that was forgotten is not taken for the next of its key.
    number: u64,
}

#[derive(Debug)]
struct Entry {
    news: watch::Receiver<Option<Landed>>,
    /// When it was answered.
    landed: Option<Instant>,
    number: u64,
}

/// An answer that fits into memory.
#[derive(Debug)]
pub struct Page {
    pub head: response::Parts,
    pub body: Bytes,
}

/// What came of a fetch, for those who waited.
#[derive(Clone, Debug)]
pub enum Landed {
    Page(Arc<Page>),
    /// It is too large to be kept, or whoever fetched it has stopped: everybody fetches for themselves.
    Alone,
    Failed,
}

/// Who asks.
#[derive(Debug)]
pub enum Seat {
    Lead(Lead),
    Wait(Waiting),
}

/// The one who asks for all.
#[derive(Debug)]
pub struct Lead {
    pages: Arc<Pages>,
    key: String,
    number: u64,
    tell: watch::Sender<Option<Landed>>,
}

/// One who waits for another's answer.
#[derive(Debug)]
pub struct Waiting(watch::Receiver<Option<Landed>>);

impl Pages {
    /// Who fetches this. `fresh`: what was asked for before does not count.
    pub fn board(self: &Arc<Self>, key: &str, fresh: bool) -> Seat {
        let mut pages = self.0.lock();
        if !fresh
            && let Some(entry) = pages.entries.get(key)
            && entry.is_good()
        {
            return Seat::Wait(Waiting(entry.news.clone()));
        }
        let (tell, news) = watch::channel(None);
        pages.number += 1;
        let number = pages.number;
        pages.entries.insert(key.to_owned(), Entry { news, landed: None, number });
        Seat::Lead(Lead { pages: Arc::clone(self), key: key.to_owned(), number, tell })
    }

    /// Forgets what was answered a moment ago.
    pub fn sweep(&self) {
        self.0.lock().entries.retain(|_, entry| entry.is_good());
    }
}

impl Entry {
    fn is_good(&self) -> bool {
        self.landed.is_none_or(|landed| landed.elapsed() < KEPT)
    }
}

impl Lead {
    /// Gives those who wait the answer, and those who come at once after it.
    pub fn land(self, landed: Landed) {
        let keep = matches!(landed, Landed::Page(_));
        // Perhaps nobody waits.
        self.tell.send_replace(Some(landed));
        let mut pages = self.pages.0.lock();
        if keep
            && let Some(entry) = pages.entries.get_mut(&self.key)
            && entry.number == self.number
        {
            entry.landed = Some(Instant::now());
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let pages = &mut self.pages.0.lock().entries;
        if pages.get(&self.key).is_some_and(|entry| entry.number == self.number && entry.landed.is_none()) {
            pages.remove(&self.key);
        }
    }
}

impl Waiting {
    pub async fn landing(mut self) -> Landed {
        match self.0.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(Landed::Alone),
            Err(_) => Landed::Alone,
        }
    }
}

/// A page answers those whose shard found a little later that they miss the same. If it is older than what they miss,
/// they see that it is, and ask again.
const KEPT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_late_lead_is_not_taken_for_its_successor() {
        let pages = Arc::new(Pages::default());
        let lead = |fresh| match pages.board("key", fresh) {
            Seat::Lead(lead) => lead,
            Seat::Wait(_) => panic!("somebody else leads"),
        };
        let late = lead(false);
        let head = http::Response::new(()).into_parts().0;
        lead(true).land(Landed::Page(Arc::new(Page { head, body: Bytes::new() })));
        tokio::time::advance(KEPT).await;
        pages.sweep();
        let next = lead(false);
        drop(late);
        assert!(matches!(pages.board("key", false), Seat::Wait(_)), "the next is still under way");
        drop(next);
    }
}
