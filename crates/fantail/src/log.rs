//! Log lines and access lines, as text or JSON, to standard output.

mod escape;

pub use escape::Printable;

/// Text for a terminal or a log, with what is not printable escaped.
pub fn printable(text: &str) -> Printable<'_> {
    Printable(text)
}
