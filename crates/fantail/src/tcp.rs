//! When the other side of a TCP connection counts as lost: what the kernel is told of that. It watches nothing itself.

use std::{io, time::Duration};

use socket2::{Socket, TcpKeepalive};

/// After `lost` of silence, or as long without an acknowledgement of what was sent, the connection fails. Linux does not
/// probe while something is unacknowledged, and goes on trying for a quarter of an hour: it takes both options.
pub fn lose_after(socket: &Socket, lost: Duration) -> io::Result<()> {
    let (after, every) = ((lost / 2).max(SECOND), (lost / 8).max(SECOND));
    let probes = TcpKeepalive::new().with_time(after).with_interval(every).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(lost))
}

/// In the second half of the time.
const PROBES: u32 = 4;
/// The kernel counts in these.
const SECOND: Duration = Duration::from_secs(1);
