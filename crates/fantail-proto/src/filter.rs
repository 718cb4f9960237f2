//! Whether a subscriber gets an item (spec section 6: `skip-self`, `skip-users`, `require-sub`).
//! Decisions only; filters that change content or ask the origin are not here.

/// A filter of one subscription, named by the origin on `Grip-Channel`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Filter {
    /// Skips when the subscriber's meta `user` is the item's meta `sender` (6.3).
    SkipSelf,
    /// Skips when the subscriber's meta `user` is in the item's comma-separated `skip_users` (6.4).
    SkipUsers,
    /// Skips when the subscriber is not subscribed to the channel named by the item's `require_sub` (6.5).
    RequireSub,
}

/// What a filter's name means here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Named {
    Known(Filter),
    /// In Pushpin, but not in Fantail yet: leaving it out would show clients what they must not see.
    Absent,
    /// In neither: ignored.
    Unknown,
}

impl Filter {
    pub fn named(name: &str) -> Named {
        match name {
            "skip-self" => Named::Known(Self::SkipSelf),
            "skip-users" => Named::Known(Self::SkipUsers),
            "require-sub" => Named::Known(Self::RequireSub),
            "build-id" | "var-subst" | "http-check" | "http-modify" => Named::Absent,
            _ => Named::Unknown,
        }
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
        }
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
    meta.iter().rev().find(|(key, _)| key == name).map_or("", |(_, value)| value)
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
}
