//! Requests under way that others wait for, so that concurrent ones for the same become one. A shard
//! has one table; who may share, *proxy* decides.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, response};
use tokio::sync::Notify;

/// A shard's requests under way, by what they ask for.
#[derive(Clone, Debug, Default)]
pub struct Flights(Rc<RefCell<HashMap<Key, Rc<Flight>>>>);

/// What makes two requests the same.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Key {
    /// The address of the route: the request under way keeps it alive.
    pub route: usize,
    pub method: Method,
    pub host: Bytes,
    pub path_and_query: String,
    /// Names and values that an answer may depend on, sorted.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// How a request ended for those who waited.
#[derive(Clone, Debug)]
pub enum Landed {
    Shared {
        head: Box<response::Parts>,
        body: Bytes,
        target: usize,
    },
    /// Its answer is one client's own or too large to keep, or it failed: everybody asks for themselves.
    Alone,
}

#[derive(Debug, Default)]
pub struct Flight {
    landed: RefCell<Option<Landed>>,
    news: Notify,
}

/// The request that others wait for; they are told when it is given up.
#[derive(Debug)]
pub struct Lead {
    flights: Flights,
    key: Key,
    flight: Rc<Flight>,
}

impl Flights {
    pub fn find(&self, key: &Key) -> Option<Rc<Flight>> {
        self.0.borrow().get(key).cloned()
    }

    /// From now on others find this request.
    pub fn lead(&self, key: Key) -> Lead {
        let flight = Rc::new(Flight::default());
        self.0.borrow_mut().insert(key.clone(), Rc::clone(&flight));
        Lead { flights: self.clone(), key, flight }
    }
}

impl Flight {
    pub async fn landing(&self) -> Landed {
        loop {
            let news = self.news.notified();
            if let Some(landed) = &*self.landed.borrow() {
                return landed.clone();
            }
            news.await;
        }
    }
}

impl Lead {
    /// Gives those who wait the answer.
    pub fn land(self, landed: Landed) {
        self.flight.landed.replace(Some(landed));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.0.borrow_mut().remove(&self.key);
        self.flight.landed.borrow_mut().get_or_insert(Landed::Alone);
        self.flight.news.notify_waiters();
    }
}
