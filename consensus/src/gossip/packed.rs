//! Messages as they travel: compressed (RFC 8878), since the members of a digest have most of their bytes in common.

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use super::vet::{Fault, MESSAGE_BYTES_MAX};

/// Packs and unpacks messages, one after the other.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
}

impl Packer {
    pub(super) fn new() -> Self {
        let compressor = Compressor::new(LEVEL).expect("the level exists, and there is memory");
        Self { compressor, decompressor: Decompressor::new().expect("there is memory") }
    }

    /// A message of this node's own, as it travels.
    pub(super) fn pack(&mut self, message: &[u8]) -> Bytes {
        self.compressor.compress(message).expect("there is room for the longest form of it").into()
    }

    /// A message of another node, of which no more than an honest one has is taken.
    pub(super) fn unpack(&mut self, packed: &[u8]) -> Result<Vec<u8>, Fault> {
        if packed.len() > MESSAGE_BYTES_MAX {
            return Err(Fault::TooLarge);
        }
        self.decompressor.decompress(packed, MESSAGE_BYTES_MAX).map_err(|_| Fault::Malformed)
    }
}

/// The fastest: what a digest repeats is found at every level.
const LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_and_bounded() {
        let mut packer = Packer::new();
        for length in [0, 1, 1_000, MESSAGE_BYTES_MAX] {
            let message = vec![7; length];
            let packed = packer.pack(&message);
            assert_eq!(packer.unpack(&packed).expect("it is a message"), message);
        }
        let bomb = packer.pack(&vec![0; MESSAGE_BYTES_MAX + 1]);
        assert_eq!(packer.unpack(&bomb), Err(Fault::Malformed));
        assert_eq!(packer.unpack(&vec![0; MESSAGE_BYTES_MAX + 1]), Err(Fault::TooLarge));
        let packed = packer.pack(b"a message");
        for length in 1..packed.len() {
            assert_eq!(packer.unpack(&packed[..length]), Err(Fault::Malformed), "{length}");
        }
    }
}
