//! Black-box tests of the `fantail` binary: real sockets, a scripted origin, a file a behaviour. The
//! numbers in the tests' comments are the checks of the compatibility specification.
#![expect(unreachable_pub, reason = "a test binary has no users; pub says what a module offers")]

mod harness;
mod proxying;
