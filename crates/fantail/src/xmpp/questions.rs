//! Which addresses are to be asked for their presence, or need not send it any more (RFC 6121 3.1 and 3.3): what the server
//! has not taken of that yet, in memory and on disk, a row each. Knows no subscription, and believes no presence.

use std::collections::{BTreeMap, HashSet, VecDeque};

use fantail_proto::xmpp::{CLIENT, xml::Element};
use redb::TableDefinition;

use crate::store::{self, Store, StoreError, Work};

/// What an address is to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Question {
    Subscribe,
    Unsubscribe,
}

/// By bare address. There are never more than there are subscriptions, or were when the server took something: who has not
/// been asked yet is not told of the opposite either.
#[derive(Debug, Default)]
pub(super) struct Questions {
    waiting: BTreeMap<Box<str>, Question>,
    /// In what the server was given and has not read, of each piece.
    given: VecDeque<Vec<Box<str>>>,
    /// Whose row on disk says something else.
    stale: HashSet<Box<str>>,
}

/// What an address is to be told, as it is on disk; nothing any more without a question.
pub(super) type Row = (Box<str>, Option<Question>);

impl Questions {
    /// The presence of an address is wanted from now on, or not any more.
    pub(super) fn want(&mut self, bare: &str, wanted: bool) {
        let question = if wanted { Question::Subscribe } else { Question::Unsubscribe };
        match self.waiting.get(bare) {
            Some(opposite) if *opposite != question => drop(self.waiting.remove(bare)),
            _ => drop(self.waiting.insert(bare.into(), question)),
        }
        self.stale.insert(bare.into());
    }

    /// What is to be written next, as a stanza of `domain`.
    pub(super) fn next(&mut self, domain: &str) -> Option<String> {
        let (bare, question) = self.waiting.pop_first()?;
        let kind = match question {
            Question::Subscribe => "subscribe",
            Question::Unsubscribe => "unsubscribe",
        };
        let presence = Element::new(CLIENT, "presence").with("type", kind);
        let stanza = presence.with("from", domain).with("to", &bare).to_xml(CLIENT);
        if let Some(piece) = self.given.back_mut() {
            piece.push(bare);
        }
        Some(stanza)
    }

    /// What is asked from now on is in another piece.
    pub(super) fn hold(&mut self) {
        self.given.push_back(Vec::new());
    }

    /// Nothing was.
    pub(super) fn pass_on(&mut self) {
        self.given.pop_back();
    }

    /// The oldest piece has become two, of which the second has all that is to be noted.
    pub(super) fn split(&mut self) {
        self.given.push_front(Vec::new());
    }

    /// The server has the oldest piece.
    pub(super) fn release(&mut self) {
        self.stale.extend(self.given.pop_front().into_iter().flatten());
    }

    /// What is to be written down of this address, if anything.
    pub(super) fn row(&mut self, bare: &str) -> Option<Row> {
        let bare = self.stale.take(bare)?;
        let question = self.waiting.get(&bare).copied();
        Some((bare, question))
    }

    /// What is to be written down.
    pub(super) fn rows(&mut self) -> Vec<Row> {
        let stale = std::mem::take(&mut self.stale);
        let row = |bare: Box<str>| {
            let question = self.waiting.get(&bare).copied();
            (bare, question)
        };
        stale.into_iter().map(row).collect()
    }

    /// They could not be written. What there is no room for the next start finds again, and it is told once more, or is of
    /// no use.
    pub(super) fn take_back(&mut self, rows: impl IntoIterator<Item = Box<str>>) {
        let room = UNWRITTEN.saturating_sub(self.stale.len());
        self.stale.extend(rows.into_iter().take(room));
    }

    /// What was written down; `watches`: whose presence is wanted.
    pub(super) fn load(&mut self, store: &Store, watches: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let mut read = || -> Result<(), redb::Error> {
            let transaction = store.read().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            let Some(table) = store::made(transaction.open_table(TABLE))? else { return Ok(()) };
            for row in redb::ReadableTable::iter(&table)? {
                let (bare, subscribes) = row?;
                let (bare, subscribes) = (bare.value(), subscribes.value());
                if subscribes && !watches(bare) {
                    // It may be of a realm that is not configured now.
                    continue;
                }
                if watches(bare) != subscribes {
                    self.stale.insert(bare.into());
                    continue;
                }
                let question = if subscribes { Question::Subscribe } else { Question::Unsubscribe };
                self.waiting.insert(bare.into(), question);
            }
            Ok(())
        };
        Ok(read()?)
    }
}

pub(super) fn write(rows: Vec<Row>) -> Work {
    Box::new(move |transaction| {
        let mut table = transaction.open_table(TABLE)?;
        for (bare, question) in &rows {
            match question {
                Some(question) => drop(table.insert(&**bare, *question == Question::Subscribe)?),
                None => drop(table.remove(&**bare)?),
            }
        }
        Ok(())
    })
}

/// Both, in one commit.
pub(super) fn with(row: Option<Row>, work: Work) -> Work {
    let Some(row) = row else { return work };
    let question = write(vec![row]);
    Box::new(move |transaction| work(transaction).and_then(|()| question(transaction)))
}

/// By bare address: whether it is to be asked.
const TABLE: TableDefinition<'_, &str, bool> = TableDefinition::new("questions");
/// Rows that a disk that fails has not taken.
const UNWRITTEN: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(questions: &mut Questions) -> Vec<String> {
        questions.hold();
        let kind = |stanza: String| stanza.split('\'').nth(1).unwrap_or_default().to_owned();
        let kinds: Vec<String> = std::iter::from_fn(|| questions.next("push.test")).map(kind).collect();
        if kinds.is_empty() {
            questions.pass_on();
        }
        kinds
    }

    #[test]
    fn who_was_not_asked_is_not_told_of_the_opposite() {
        let mut all = Questions::default();
        all.want("a@b", true);
        all.want("a@b", true);
        assert_eq!(all.row("a@b"), Some(("a@b".into(), Some(Question::Subscribe))));
        assert_eq!(all.row("a@b"), None);
        all.want("a@b", false);
        assert_eq!(all.rows(), [("a@b".into(), None)]);
        assert!(kinds(&mut all).is_empty());
        all.want("a@b", true);
        assert_eq!(kinds(&mut all), ["subscribe"]);
        // It may have been asked.
        all.want("a@b", false);
        assert_eq!(all.rows(), [("a@b".into(), Some(Question::Unsubscribe))]);
        all.release();
        assert_eq!(all.rows(), [("a@b".into(), Some(Question::Unsubscribe))]);
        assert_eq!(kinds(&mut all), ["unsubscribe"]);
        assert!(all.rows().is_empty(), "the server has not taken it");
        all.release();
        assert_eq!(all.rows(), [("a@b".into(), None)]);
        all.take_back((0..2 * UNWRITTEN).map(|n| n.to_string().into()));
        assert_eq!(all.rows().len(), UNWRITTEN);
    }
}
