//! A JSON value that borrows from its input, keeps the order of members and finds the last of
//! repeated ones. For parsers that must say which member is wrong; nothing here writes JSON.
