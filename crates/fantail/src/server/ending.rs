//! Word of a thread that has ended, however it did.

use tokio::sync::mpsc;

/// Says whose thread has ended.
pub(super) struct Ending<T: Copy>(pub(super) T, pub(super) mpsc::Sender<T>);

impl<T: Copy + Send + 'static> Ending<T> {
    /// For a thread that may not begin.
    pub(super) fn later(of: T, lost: &mpsc::Sender<T>) -> impl FnOnce() -> Self + Send + 'static + use<T> {
        let lost = lost.clone();
        move || Self(of, lost)
    }
}

impl<T: Copy> Drop for Ending<T> {
    fn drop(&mut self) {
        // One place a thread: there is room, or nobody listens any more.
        _ = self.1.try_send(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_has_ended() {
        let (lost, mut endings) = mpsc::channel(1);
        let ending = Ending("it", lost);
        let thread = std::thread::spawn(move || {
            let _ending = ending;
            panic!("on purpose");
        });
        assert_eq!(endings.blocking_recv(), Some("it"));
        thread.join().unwrap_err();
    }
}
