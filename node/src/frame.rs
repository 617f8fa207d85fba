//! Messages on a control link: a four-byte big-endian length, then a protobuf message.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest message: 64 MiB, the bound of a snapshot.
pub const FRAME_LENGTH_MAX: usize = 64 << 20;
/// Longest message from someone who has shown no certificate: 64 KiB.
pub const STRANGER_FRAME_LENGTH_MAX: usize = 64 << 10;
const HEAD_LENGTH: usize = 4;

/// Writes one message and flushes it.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let length = message.encoded_len();
    if length > FRAME_LENGTH_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {length} bytes is too long")));
    }
    let mut frame = Vec::with_capacity(HEAD_LENGTH + length);
    frame.extend_from_slice(&u32::try_from(length).expect("bounded above").to_be_bytes());
    message.encode(&mut frame).expect("the vector grows as needed");
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads one message; none when the other side closed the stream between messages.
pub async fn read<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
    length_max: usize,
) -> io::Result<Option<M>> {
    let mut head = [0; HEAD_LENGTH];
    match stream.read_exact(&mut head[..1]).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    stream.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length > length_max {
        let text = format!("a message of {length} bytes; at most {length_max} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = Vec::new();
    let taken = stream.take(length as u64).read_to_end(&mut body).await?;
    if taken < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    M::decode(body.as_slice()).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
