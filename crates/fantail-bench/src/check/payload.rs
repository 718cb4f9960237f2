//! The content of an item: made from its channel and id, so that whoever gets it sees what it is, whether it is whole,
//! and whether it belongs there.

use sha1_smol::Sha1;

use super::history::Id;

/// One line without line breaks: `item/CHANNEL/ID/SHA1/` and padding.
pub(crate) fn make(channel: &str, id: Id) -> String {
    let digest = Sha1::from(format!("{channel}/{id}")).digest().to_string();
    let size = size_of(&digest);
    let mut text = format!("item/{channel}/{id}/{digest}/");
    while text.len() < size {
        text.push_str(&digest);
    }
    text
}

/// The channel and the id, if it is exactly what was made for them.
pub(crate) fn read(text: &str) -> Option<(&str, Id)> {
    let (channel, rest) = text.strip_prefix("item/")?.split_once('/')?;
    let id = rest.split('/').next()?.parse().ok()?;
    (make(channel, id) == text).then_some((channel, id))
}

/// Mostly some hundred bytes; one in 16 some thousand, one in 256 more than most buffers.
fn size_of(digest: &str) -> usize {
    let byte =
        |at: usize| digest.get(at..at + 2).and_then(|hex| usize::from_str_radix(hex, 16).ok()).unwrap_or(0);
    match byte(0) {
        0 => 20_000 + byte(2) * 64,
        1..16 => 2_000 + byte(2) * 16,
        _ => 60 + byte(2) * 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_not_read() {
        let mut longest = 0;
        for number in 1..1000 {
            let id = Id { publisher: 2, number };
            let text = make("logged-1", id);
            longest = longest.max(text.len());
            assert_eq!(read(&text), Some(("logged-1", id)));
            assert_eq!(read(&text[..text.len() - 1]), None);
            assert_eq!(read(&text.replace("logged-1", "logged-2")), None);
            assert_eq!(read(&text.replacen("/2.", "/3.", 1)), None);
        }
        assert!(longest > 20_000);
        assert_eq!(read("item/"), None);
    }
}
