//! What all questions to the kernel by netlink have in common.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};

/// A socket that speaks to the kernel alone and waits for at most so long.
pub(super) fn open(protocol: isize, time_max: Duration) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let options = socket2::SockRef::from(&socket);
    options.set_read_timeout(Some(time_max))?;
    options.set_write_timeout(Some(time_max))?;
    Ok(socket)
}

/// What a message of kind `NLMSG_ERROR` says; it is an acknowledgement where that is nothing.
pub(super) fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}
