//! Who is not a member learns nothing at the port of a node but how TLS refuses.

use super::Breach;

/// Records of TLS that a stranger may see: an alert, and the beginning of a handshake (RFC 8446, 5.1).
const RECORDS: [u8; 2] = [21, 22];

/// A stranger was answered with this first byte, or with none.
pub fn answered(first: Option<u8>) -> Result<(), Breach> {
    match first {
        Some(byte) if !RECORDS.contains(&byte) => {
            let text = format!("a stranger was answered with something that begins with byte {byte}");
            Err(Breach { invariant: "strangers learn nothing", text })
        }
        _ => Ok(()),
    }
}
