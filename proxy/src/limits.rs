//! What connections that carry many exchanges may hold, on both ends of them.

/// Exchanges at once on one link.
pub(crate) const LINK_STREAMS_MAX: u32 = 1024;
/// Bytes that may be under way on one stream. What a reader does not take lies at its own node, at most this much.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that may be under way on one link: the windows of all its streams, so that those that nobody reads leave room for
/// those that somebody does.
pub(crate) const CONNECTION_WINDOW: u32 = LINK_STREAMS_MAX * STREAM_WINDOW;
/// Longest frame, in bytes.
pub(crate) const FRAME_LENGTH_MAX: u32 = 64 << 10;
/// Longest header section that is taken from nodes and instances, in bytes as HTTP/2 counts them: each field counts 32
/// beside its own (RFC 9113, 6.5.2), and one of 64 KiB in HTTP/1.1 may have thousands of fields.
pub(crate) const HEADER_LIST_MAX: u32 = 1 << 20;
