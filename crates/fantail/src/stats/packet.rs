//! A packet of the statistics socket (spec 9.11): `TYPE SP` and a map, as TNetString or JSON.

use bytes::Bytes;
use fantail_proto::tnetstring::{self, Value};
use serde_json::Value as Json;

use crate::config::StatsFormat;

/// What a member says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Member<'p> {
    Text(&'p str),
    Number(u64),
    Truth(bool),
}

impl From<u64> for Member<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<'p> From<&'p str> for Member<'p> {
    fn from(text: &'p str) -> Self {
        Self::Text(text)
    }
}

pub(super) fn encode(kind: &str, members: &[(&str, Member<'_>)], format: StatsFormat) -> Bytes {
    let mut out = format!("{kind} ").into_bytes();
    match format {
        StatsFormat::TNetString => {
            let map = members.iter().map(|(name, member)| {
                let value = match *member {
                    Member::Text(text) => Value::Bytes(text.as_bytes()),
                    Member::Number(number) => Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)),
                    Member::Truth(truth) => Value::Bool(truth),
                };
                (name.as_bytes(), value)
            });
            out.push(b'T');
            tnetstring::encode(&Value::Map(map.collect()), &mut out);
        }
        StatsFormat::Json => {
            let value = |member: &Member<'_>| match *member {
                Member::Text(text) => Json::from(text),
                Member::Number(number) => Json::from(number),
                Member::Truth(truth) => Json::from(truth),
            };
            let map = members.iter().map(|(name, member)| ((*name).to_owned(), value(member)));
            out.extend_from_slice(format!("J{}", Json::Object(map.collect())).as_bytes());
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let members = [("ttl", 60.into()), ("channel", "t".into()), ("unavailable", Member::Truth(true))];
        let packet = |format| encode("sub", &members, format);
        assert_eq!(
            packet(StatsFormat::TNetString),
            "sub T47:3:ttl,2:60#7:channel,1:t,11:unavailable,4:true!}"
        );
        assert_eq!(packet(StatsFormat::Json), r#"sub J{"channel":"t","ttl":60,"unavailable":true}"#);
    }
}
