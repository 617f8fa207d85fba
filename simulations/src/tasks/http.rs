//! HTTP/1.1 as simple as it gets, for callers and applications that must not share the node's own code.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// A message: its first line, fields and body.
#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    pub(super) first: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// The value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Reads an answer; none at the end. Without a length its body reaches to the end, and that to a HEAD has none.
pub(super) async fn read_answer(from: &mut (impl AsyncBufRead + Unpin), bare: bool) -> io::Result<Option<Message>> {
    if bare { head(from).await } else { read(from, true).await }
}

async fn head(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    if from.read_line(&mut message.first).await? == 0 {
        return Ok(None);
    }
    message.first = message.first.trim_end().to_owned();
    loop {
        let mut line = String::new();
        from.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        message.fields.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Some(message))
}

/// Reads a message; none at the end. Without a length the body of an answer reaches to the end.
pub(super) async fn read(from: &mut (impl AsyncBufRead + Unpin), answer: bool) -> io::Result<Option<Message>> {
    let Some(mut message) = head(from).await? else { return Ok(None) };
    let length = message.field("content-length").and_then(|length| length.parse::<usize>().ok());
    let chunked = message.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    match length {
        _ if chunked => loop {
            let mut line = String::new();
            from.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut part = vec![0; size + 2];
            from.read_exact(&mut part).await?;
            message.body.extend_from_slice(&part[..size]);
            if size == 0 {
                break;
            }
        },
        Some(length) => {
            message.body = vec![0; length.min(LENGTH_MAX)];
            from.read_exact(&mut message.body).await?;
        }
        None if answer => {
            from.take(LENGTH_MAX as u64).read_to_end(&mut message.body).await?;
        }
        None => {}
    }
    Ok(Some(message))
}

/// Most bytes of a body.
const LENGTH_MAX: usize = 16 << 20;
