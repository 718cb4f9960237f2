//! Batches of sends through io_uring: many sockets, one system call.
//! A batch is over when [`Uring::send_all`] returns: no buffer or descriptor is in the kernel's hands between calls.
#![expect(unsafe_code, reason = "a submission holds a raw pointer; each use has its proof")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use io_uring::{IoUring, Probe, opcode, types};
use rustix::io::Errno;

use crate::queue::SEND_FLAGS;

/// Whether this kernel, and whatever confines this process, let it send through io_uring.
#[must_use]
pub fn io_uring_available() -> bool {
    Uring::new().is_ok()
}

pub(crate) struct Uring {
    ring: IoUring,
    results: Box<[Sent; BATCH]>,
}

/// What the kernel made of one send of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// So many bytes were taken; 0 if the socket is full.
    Taken(u32),
    /// The socket is of no more use.
    Failed,
    /// The ring broke before this was tried. It must not be used again.
    Untried,
}

impl Uring {
    /// # Errors
    /// The kernel has no io_uring, forbids it, or cannot send with it.
    pub(crate) fn new() -> io::Result<Self> {
        let entries = BATCH as u32;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_submit_all()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Send::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { ring, results: Box::new([Sent::Untried; BATCH]) })
    }

    /// Offers each socket its bytes, none waiting for another, and returns what each took, in order.
    /// At most [`BATCH`] sends, and no socket twice: the kernel keeps no order among them.
    pub(crate) fn send_all<'a>(
        &mut self,
        sends: impl Iterator<Item = (BorrowedFd<'a>, &'a [u8])>,
    ) -> &[Sent] {
        let mut count = 0;
        let mut queue = self.ring.submission();
        for (socket, bytes) in sends.take(BATCH) {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let send = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), len)
                .flags(SEND_FLAGS.bits() as i32)
                .build()
                .user_data(count as u64);
            // SAFETY: the kernel uses `socket` and reads `bytes` from submission to completion only. Both are
            // borrowed for `'a`, which outlives this call, and `run` returns with no submitted send incomplete.
            // If it leaves sends unsubmitted, their results say so and the caller drops the ring: they never are.
            let pushed = unsafe { queue.push(&send) };
            debug_assert!(pushed.is_ok(), "the queue is empty between calls and has room for a batch");
            count += usize::from(pushed.is_ok());
        }
        drop(queue);
        self.results[..count].fill(Sent::Untried);
        self.run(count);
        &self.results[..count]
    }

    /// Submits what is queued and collects the `count` completions. It returns early only if the kernel refuses
    /// to be entered, and only if all that it took before is complete.
    fn run(&mut self, count: usize) {
        let mut done = 0;
        while done < count {
            let entered = self.ring.submit_and_wait(count - done);
            for entry in self.ring.completion() {
                if let Some(result) = self.results.get_mut(entry.user_data() as usize) {
                    *result = Sent::from_result(entry.result());
                }
                done += 1;
            }
            let interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
            if entered.is_err_and(|error| !interrupted(&error)) {
                // A send with MSG_DONTWAIT completes while it is submitted. Were one still under way, nothing
                // could say when its buffer is free again, and to go on would be unsound.
                if done + self.ring.submission().len() != count {
                    std::process::abort();
                }
                return;
            }
        }
    }
}

impl Sent {
    fn from_result(result: i32) -> Self {
        match u32::try_from(result) {
            Ok(taken) => Self::Taken(taken),
            Err(_) if [Errno::AGAIN, Errno::INTR].contains(&Errno::from_raw_os_error(-result)) => {
                Self::Taken(0)
            }
            Err(_) => Self::Failed,
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

/// Sends in one system call. Its price is well spread by then, what the kernel keeps of them until the last is sent
/// stays in the nearer caches, and others wait no longer for the processor than for a fraction of a millisecond: a
/// kernel that does not preempt itself gives it to nobody meanwhile.
pub(crate) const BATCH: usize = 64;
