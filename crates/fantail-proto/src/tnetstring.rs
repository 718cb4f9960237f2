//! TNetStrings (spec appendix A): a length, `:`, so many bytes, and a letter that says what they are. Decoding borrows,
//! is strict, and goes no deeper than [`MAX_DEPTH`]; encoding makes what decoding reads.

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'v> {
    Bytes(&'v [u8]),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Null,
    List(Vec<Self>),
    /// In the order in which they came; keys may repeat.
    Map(Vec<(&'v [u8], Self)>),
}

/// Bytes that are no TNetString, or one that is too deep.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a TNetString")]
pub struct Malformed;

/// The first value; what stands behind it is ignored, as Pushpin does.
///
/// # Errors
/// It is malformed.
pub fn decode(bytes: &[u8]) -> Result<Value<'_>, Malformed> {
    read(bytes, MAX_DEPTH).map(|(value, _)| value).ok_or(Malformed)
}

/// Writes a value behind what is in `out`.
pub fn encode(value: &Value<'_>, out: &mut Vec<u8>) {
    let mut data = Vec::new();
    let (data, letter) = match value {
        Value::Bytes(bytes) => (*bytes, b','),
        Value::Integer(number) => (text(number, &mut data), b'#'),
        Value::Float(number) => (text(number, &mut data), b'^'),
        Value::Bool(flag) => (text(flag, &mut data), b'!'),
        Value::Null => (&data[..], b'~'),
        Value::List(list) => {
            list.iter().for_each(|value| encode(value, &mut data));
            (&data[..], b']')
        }
        Value::Map(map) => {
            for (key, value) in map {
                encode(&Value::Bytes(key), &mut data);
                encode(value, &mut data);
            }
            (&data[..], b'}')
        }
    };
    text(&data.len(), out);
    out.push(b':');
    out.extend_from_slice(data);
    out.push(letter);
}

fn text<'o>(value: &impl ToString, out: &'o mut Vec<u8>) -> &'o [u8] {
    out.extend_from_slice(value.to_string().as_bytes());
    out
}

/// A value and what stands behind it.
fn read(bytes: &[u8], depth: usize) -> Option<(Value<'_>, &[u8])> {
    let colon = bytes.iter().take(MAX_DIGITS + 1).position(|byte| *byte == b':')?;
    let (length, rest) = (&bytes[..colon], &bytes[colon + 1..]);
    let digits =
        length.iter().all(u8::is_ascii_digit) && (length.len() == 1 || length.first() != Some(&b'0'));
    let length: usize = number(length).filter(|_| digits)?;
    let (data, rest) = rest.split_at_checked(length)?;
    let (letter, rest) = rest.split_first()?;
    let value = match letter {
        b',' => Value::Bytes(data),
        b'#' => Value::Integer(number(data)?),
        b'^' => Value::Float(number(data).filter(|number: &f64| number.is_finite())?),
        b'!' if data == b"true" => Value::Bool(true),
        b'!' if data == b"false" => Value::Bool(false),
        b'~' if data.is_empty() => Value::Null,
        b']' => Value::List(list(data, depth.checked_sub(1)?)?),
        b'}' => Value::Map(map(data, depth.checked_sub(1)?)?),
        _ => return None,
    };
    Some((value, rest))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    str::from_utf8(text).ok()?.parse().ok()
}

fn list(mut data: &[u8], depth: usize) -> Option<Vec<Value<'_>>> {
    let mut list = Vec::new();
    while !data.is_empty() {
        let (value, behind) = read(data, depth)?;
        list.push(value);
        data = behind;
    }
    Some(list)
}

fn map(mut data: &[u8], depth: usize) -> Option<Vec<(&[u8], Value<'_>)>> {
    let mut map = Vec::new();
    while !data.is_empty() {
        let (Value::Bytes(key), behind) = read(data, depth)? else { return None };
        let (value, behind) = read(behind, depth)?;
        map.push((key, value));
        data = behind;
    }
    Some(map)
}

/// Lists and maps inside of each other.
pub const MAX_DEPTH: usize = 16;
/// Of a length: more than any message has.
const MAX_DIGITS: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values() {
        for (text, value) in [
            ("0:,", Value::Bytes(b"")),
            ("3:a:b,", Value::Bytes(b"a:b")),
            ("2:-7#", Value::Integer(-7)),
            ("3:1.5^", Value::Float(1.5)),
            ("4:true!", Value::Bool(true)),
            ("5:false!", Value::Bool(false)),
            ("0:~", Value::Null),
            ("0:]", Value::List(vec![])),
            ("8:1:1#1:a,]", Value::List(vec![Value::Integer(1), Value::Bytes(b"a")])),
            ("8:1:k,1:1#}", Value::Map(vec![(b"k", Value::Integer(1))])),
        ] {
            assert_eq!(decode(text.as_bytes()), Ok(value.clone()), "{text}");
            let mut out = Vec::new();
            encode(&value, &mut out);
            assert_eq!(out, text.as_bytes());
        }
        assert_eq!(decode(b"0:~behind"), Ok(Value::Null));
    }

    #[test]
    fn malformed() {
        for text in [
            "",
            ":",
            "1",
            "1:",
            "1:a",
            "2:a,",
            "+1:a,",
            "01:a,",
            "-1:a,",
            "1:a?",
            "1:a#",
            "3:nan^",
            "1:t!",
            "1:a~",
            "4:1:1#}",
            "8:1:1#1:1#}",
            "99999999999:a,",
            "2:ab]",
            ":a,",
        ] {
            assert_eq!(decode(text.as_bytes()), Err(Malformed), "{text}");
        }
        let nested = |depth| {
            (0..depth).fold(b"0:~".to_vec(), |inner, _| {
                let mut out = format!("{}:", inner.len()).into_bytes();
                out.extend(inner);
                out.push(b']');
                out
            })
        };
        assert!(decode(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(decode(&nested(MAX_DEPTH + 1)), Err(Malformed));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_and_read_again(bytes in "[0-9]{1,2}:[0-9:,#\\]}~a]{0,20}[,#\\]}~]") {
            if let Ok(value) = decode(bytes.as_bytes()) {
                let mut out = Vec::new();
                encode(&value, &mut out);
                prop_assert_eq!(decode(&out), Ok(value));
            }
        }

        #[test]
        fn any_bytes_survive(bytes in prop::collection::vec(any::<u8>(), 0..100), number in any::<i64>()) {
            let value = Value::Map(vec![(&bytes, Value::List(vec![Value::Bytes(&bytes), Value::Integer(number)]))]);
            let mut out = Vec::new();
            encode(&value, &mut out);
            prop_assert_eq!(decode(&out), Ok(value));
        }

        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            drop(decode(&bytes));
        }
    }
}
