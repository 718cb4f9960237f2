//! Whether a subscriber gets an item, and with which content (spec section 6). Decisions and rendering as values;
//! who asks the origin about an item is not here.

pub mod question;
pub mod template;

use std::borrow::Cow;

use question::Word;
use template::TemplateError;

/// A filter of one subscription, named by the origin on `Grip-Channel`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Filter {
    /// Skips when the subscriber's meta `user` is the item's meta `sender` (6.3).
    SkipSelf,
    /// Skips when the subscriber's meta `user` is in the item's comma-separated `skip_users` (6.4).
    SkipUsers,
    /// Skips when the subscriber is not subscribed to the channel named by the item's `require_sub` (6.5).
    RequireSub,
    /// Writes the ids that the subscriber has into content (6.6).
    BuildId,
    /// Writes the subscriber's meta into content (6.7).
    VarSubst,
    /// Asks the origin whether the subscriber gets the item (6.8).
    HttpCheck,
    /// Asks the origin what the item says to the subscriber, too.
    HttpModify,
}

impl Filter {
    /// A name that is none of a filter is ignored.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "skip-self" => Some(Self::SkipSelf),
            "skip-users" => Some(Self::SkipUsers),
            "require-sub" => Some(Self::RequireSub),
            "build-id" => Some(Self::BuildId),
            "var-subst" => Some(Self::VarSubst),
            "http-check" => Some(Self::HttpCheck),
            "http-modify" => Some(Self::HttpModify),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::SkipSelf => "skip-self",
            Self::SkipUsers => "skip-users",
            Self::RequireSub => "require-sub",
            Self::BuildId => "build-id",
            Self::VarSubst => "var-subst",
            Self::HttpCheck => "http-check",
            Self::HttpModify => "http-modify",
        }
    }

    /// Whether it changes what an item says.
    pub const fn changes_content(self) -> bool {
        matches!(self, Self::BuildId | Self::VarSubst | Self::HttpModify)
    }

    /// Whether the origin is asked.
    pub const fn asks(self) -> bool {
        matches!(self, Self::HttpCheck | Self::HttpModify)
    }

    fn passes(self, sub_meta: &Meta, item_meta: &Meta, subscribed: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::SkipSelf => {
                let user = value(sub_meta, "user");
                user.is_empty() || user != value(item_meta, "sender")
            }
            Self::SkipUsers => {
                let user = value(sub_meta, "user");
                user.is_empty()
                    || value(item_meta, "skip_users").split(',').all(|skipped| skipped.trim() != user)
            }
            Self::RequireSub => {
                let channel = value(item_meta, "require_sub");
                channel.is_empty() || subscribed(channel)
            }
            Self::BuildId | Self::VarSubst | Self::HttpCheck | Self::HttpModify => true,
        }
    }
}

/// Whether content that was written for these filters suits a subscription: exactly those of its filters that
/// change content, in order (6.9). Content that names none suits any.
pub fn suits(written_for: Option<&[String]>, filters: &[Filter]) -> bool {
    let changing = filters.iter().filter(|filter| filter.changes_content()).map(|filter| filter.name());
    written_for.is_none_or(|names| changing.eq(names.iter().map(String::as_str)))
}

/// What filters make of content.
#[derive(Debug, Eq, PartialEq)]
pub enum Applied<'c> {
    Content(Cow<'c, [u8]>),
    /// The origin keeps the item from the subscriber.
    Skipped,
    /// This filter asks the origin about an item with this content, and has had no answer.
    Asks(Filter, Cow<'c, [u8]>),
}

/// What a subscriber's filters make of content. `ids`: of its channels by their unprefixed names, as they are
/// with this item. `words`: what the origin has said to those that ask, in their order.
///
/// # Errors
/// The subscriber does not get the item.
pub fn apply<'c, 'i>(
    filters: &[Filter],
    words: &[Word],
    content: &'c [u8],
    sub_meta: &Meta,
    ids: impl Fn(&str) -> Option<&'i str>,
) -> Result<Applied<'c>, TemplateError> {
    let mut content = Cow::Borrowed(content);
    let mut words = words.iter();
    for filter in filters {
        content = match filter {
            Filter::BuildId => {
                Cow::Owned(template::build_ids(&content, &id(sub_meta, &ids)?, hex(sub_meta)?)?)
            }
            Filter::VarSubst => Cow::Owned(template::substitute(&content, |name| find(sub_meta, name))?),
            Filter::SkipSelf | Filter::SkipUsers | Filter::RequireSub => content,
            Filter::HttpCheck | Filter::HttpModify => match words.next() {
                None => return Ok(Applied::Asks(*filter, content)),
                Some(Word::Skip) => return Ok(Applied::Skipped),
                Some(Word::Replace(new)) => Cow::Owned(new.to_vec()),
                Some(Word::Keep) => content,
            },
        };
    }
    Ok(Applied::Content(content))
}

/// What an origin's own body becomes for a connection whose channels have these filters: of those that change content
/// only `build-id` is for bodies, and no ids are known yet (6.6, 6.10).
///
/// # Errors
/// The client does not get the body.
pub fn apply_to_body<'c>(
    filters: &[Filter],
    body: &'c [u8],
    sub_meta: &Meta,
) -> Result<Cow<'c, [u8]>, TemplateError> {
    let builds: Vec<Filter> = filters.iter().copied().filter(|filter| *filter == Filter::BuildId).collect();
    match apply(&builds, &[], body, sub_meta, |_| None)? {
        Applied::Content(body) => Ok(body),
        // Only filters that ask do that.
        Applied::Skipped | Applied::Asks(..) => Ok(Cow::Borrowed(body)),
    }
}

/// All that [`apply`] reads of a subscriber for this content: subscribers of whom that is equal share what it makes.
pub fn class<'i>(
    filters: &[Filter],
    content: &[u8],
    sub_meta: &Meta,
    ids: impl Fn(&str) -> Option<&'i str>,
) -> Vec<u8> {
    let mut class = Vec::new();
    let mut add = |part: &[u8]| {
        class.extend_from_slice(&part.len().to_ne_bytes());
        class.extend_from_slice(part);
    };
    let changing = filters.iter().filter(|filter| filter.changes_content());
    let alone = changing.clone().count() == 1;
    for filter in changing {
        add(filter.name().as_bytes());
        match filter {
            Filter::VarSubst if alone => {
                for name in template::names(content) {
                    add(find(sub_meta, &name).map_or(b"\0", str::as_bytes));
                }
            }
            // What the filter before makes may name anything.
            Filter::VarSubst => {
                for (name, value) in sub_meta {
                    add(name.as_bytes());
                    add(value.as_bytes());
                }
            }
            // What it reads is asked about by whoever asks.
            Filter::HttpModify => {}
            _ => {
                match id(sub_meta, &ids) {
                    Ok(Ok(id)) => add(&id),
                    Ok(Err(error)) | Err(error) => add(format!("\0{error}").as_bytes()),
                }
                add(match hex(sub_meta) {
                    Ok(false) => &b"plain"[..],
                    Ok(true) => b"hex",
                    Err(_) => b"neither",
                });
            }
        }
    }
    class
}

/// The id that `build-id` writes. An error of the inner kind matters only where the id is wanted.
fn id<'i>(
    sub_meta: &Meta,
    ids: impl Fn(&str) -> Option<&'i str>,
) -> Result<Result<Vec<u8>, TemplateError>, TemplateError> {
    let format = find(sub_meta, "id_format").ok_or(TemplateError::NoIdFormat)?;
    Ok(template::substitute(format.as_bytes(), ids))
}

/// Whether `build-id` writes in hexadecimal: only if the origin asks for it.
fn hex(sub_meta: &Meta) -> Result<bool, TemplateError> {
    match find(sub_meta, "id_encoding") {
        None => Ok(false),
        Some("hex") => Ok(true),
        Some(_) => Err(TemplateError::Encoding),
    }
}

/// True when no filter skips the item. `subscribed` tells whether the subscriber has a channel of this
/// unprefixed name.
pub fn passes(
    filters: &[Filter],
    sub_meta: &Meta,
    item_meta: &Meta,
    subscribed: impl Fn(&str) -> bool,
) -> bool {
    filters.iter().all(|filter| filter.passes(sub_meta, item_meta, &subscribed))
}

/// Names and values in the order given; the last of repeated names counts.
pub type Meta = [(String, String)];

fn value<'m>(meta: &'m Meta, name: &str) -> &'m str {
    find(meta, name).unwrap_or_default()
}

fn find<'m>(meta: &'m Meta, name: &str) -> Option<&'m str> {
    meta.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::{Filter::*, *};

    fn meta(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn filters_skip_whom_they_name() {
        type Pairs = &'static [(&'static str, &'static str)];
        let table: [(Filter, Pairs, Pairs, bool); 13] = [
            (SkipSelf, &[("user", "ann")], &[("sender", "ann")], false),
            (SkipSelf, &[("user", "ann")], &[("sender", "bob")], true),
            (SkipSelf, &[("user", "")], &[("sender", "")], true),
            (SkipSelf, &[], &[("sender", "ann")], true),
            (SkipSelf, &[("user", "bob"), ("user", "ann")], &[("sender", "ann")], false),
            (SkipUsers, &[("user", "ann")], &[("skip_users", "bob, ann ,eve")], false),
            (SkipUsers, &[("user", "an")], &[("skip_users", "bob, ann ,eve")], true),
            (SkipUsers, &[], &[("skip_users", "bob,")], true),
            (SkipUsers, &[("user", "ann")], &[], true),
            (RequireSub, &[], &[("require_sub", "room")], true),
            (RequireSub, &[], &[("require_sub", "other")], false),
            (RequireSub, &[], &[("require_sub", "")], true),
            (RequireSub, &[], &[], true),
        ];
        for (filter, sub, item, expected) in table {
            let passed = passes(&[filter], &meta(sub), &meta(item), |channel| channel == "room");
            assert_eq!(passed, expected, "{filter:?} {sub:?} {item:?}");
        }
    }

    #[test]
    fn every_filter_is_asked() {
        let (sub, item) = (meta(&[("user", "ann")]), meta(&[("sender", "ann"), ("skip_users", "eve")]));
        assert!(!passes(&[SkipUsers, RequireSub, SkipSelf], &sub, &item, |_| true));
        assert!(passes(&[SkipUsers, RequireSub], &sub, &item, |_| true));
        assert!(passes(&[], &sub, &item, |_| false));
    }

    #[test]
    fn content_is_changed_in_the_order_of_the_filters() {
        let sub = meta(&[("user", "ann"), ("id_format", "%(room)s-%(news)s")]);
        let ids = |name: &str| match name {
            "room" => Some("4"),
            "news" => Some("n"),
            _ => None,
        };
        let applied =
            |filters: &[Filter], content: &str| match apply(filters, &[], content.as_bytes(), &sub, ids) {
                Ok(Applied::Content(content)) => Ok(String::from_utf8_lossy(&content).into_owned()),
                other => Err(format!("{other:?}")),
            };
        assert_eq!(applied(&[SkipSelf, BuildId], "id: %I %%").as_deref(), Ok("id: 4-n %"));
        assert_eq!(applied(&[VarSubst], "%(user)s %%").as_deref(), Ok("ann %"));
        assert_eq!(applied(&[BuildId, VarSubst], "%I %%(user)s").as_deref(), Ok("4-n ann"));
        assert_eq!(applied(&[VarSubst, BuildId], "%%I %(user)s").as_deref(), Ok("4-n ann"));
        assert_eq!(applied(&[RequireSub], "50%").as_deref(), Ok("50%"));
    }

    #[test]
    fn what_build_id_needs() {
        let none = |_: &str| None;
        let with = |pairs: &[(&str, &str)], content: &str| {
            apply(&[BuildId], &[], content.as_bytes(), &meta(pairs), none).map(|applied| match applied {
                Applied::Content(content) => content.into_owned(),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(with(&[], "x"), Err(TemplateError::NoIdFormat));
        assert_eq!(with(&[("id_format", "x"), ("id_encoding", "base64")], "x"), Err(TemplateError::Encoding));
        assert_eq!(with(&[("id_format", "%(c)s"), ("id_encoding", "hex")], "x"), Ok(b"x".to_vec()));
        assert_eq!(with(&[("id_format", "%(c)s")], "%I"), Err(TemplateError::Undefined("c".into())));
        let sub = meta(&[("id_format", "%(c)s")]);
        let body = apply_to_body(&[VarSubst, BuildId], b"%(start)I %%", &sub);
        assert_eq!(body.as_deref(), Ok(&b"start %"[..]));
    }

    #[test]
    fn those_that_ask_wait_for_words() {
        let sub = meta(&[("user", "ann")]);
        let chain = [HttpCheck, VarSubst, HttpModify, VarSubst];
        let applied = |words: &[Word]| apply(&chain, words, b"%(user)s", &sub, |_| None).unwrap();
        assert_eq!(applied(&[]), Applied::Asks(HttpCheck, Cow::Borrowed(b"%(user)s")));
        assert_eq!(applied(&[Word::Skip]), Applied::Skipped);
        assert_eq!(applied(&[Word::Keep]), Applied::Asks(HttpModify, Cow::Borrowed(b"ann")));
        assert_eq!(applied(&[Word::Keep, Word::Skip]), Applied::Skipped);
        let content = |content: &'static [u8]| Applied::Content(Cow::Borrowed(content));
        assert_eq!(applied(&[Word::Keep, Word::Keep]), content(b"ann"));
        assert_eq!(applied(&[Word::Keep, Word::Replace("%(user)s!".into())]), content(b"ann!"));
        let names: Vec<_> = chain.iter().map(|filter| Filter::named(filter.name())).collect();
        assert_eq!(names, chain.map(Some));
    }

    #[test]
    fn a_class_is_what_the_content_reads() {
        let none = |_: &str| None;
        let (ann, bob) = (meta(&[("user", "ann"), ("at", "x")]), meta(&[("user", "bob"), ("at", "x")]));
        let same = |filters: &[Filter], content: &[u8]| {
            class(filters, content, &ann, none) == class(filters, content, &bob, none)
        };
        assert!(same(&[VarSubst], b"%(at)s"));
        assert!(same(&[SkipSelf], b"%(user)s"));
        assert!(!same(&[VarSubst], b"%(user)s"));
        assert!(!same(&[BuildId, VarSubst], b"%(at)s"));
        let sub = meta(&[("id_format", "%(c)s")]);
        let at = |id: &'static str| class(&[BuildId], b"%I", &sub, move |_| Some(id));
        assert!(at("1") == at("1") && at("1") != at("2"));
        // How an id is written counts where there is none, too: it may be wrong.
        let coded = |coding: &[(&str, &str)]| {
            class(&[BuildId], b"x", &meta(&[&[("id_format", "%(c)s")], coding].concat()), none)
        };
        let all = [coded(&[]), coded(&[("id_encoding", "hex")]), coded(&[("id_encoding", "")])];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    }

    #[test]
    fn content_says_which_filters_it_was_written_for() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(suits(None, &[BuildId]) && suits(None, &[]));
        assert!(suits(Some(&[]), &[SkipSelf]) && !suits(Some(&[]), &[VarSubst]));
        let both = names(&["build-id", "var-subst"]);
        assert!(suits(Some(&both), &[BuildId, SkipSelf, VarSubst]));
        assert!(!suits(Some(&both), &[VarSubst, BuildId]) && !suits(Some(&both), &[BuildId]));
        assert!(!suits(Some(&names(&["other"])), &[]));
    }
}
