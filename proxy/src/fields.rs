//! Heads of HTTP/1.1 that have more lines than the library that reads them makes room for: the surplus is read here, so
//! that what limits a head is its length in bytes.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Most fields of a head that the library reads.
pub(crate) const FIELDS_MAX: usize = 90;
/// Longest header section of a message, in bytes.
pub(crate) const HEAD_LENGTH_MAX: usize = 64 << 10;

/// A line that is no field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAField;

/// Takes from a head what is more than the library reads. Fields that frame the message or name its host stay.
pub(crate) fn narrow(head: &[u8]) -> Result<(BytesMut, HeaderMap), NotAField> {
    let (mut kept, mut count, mut surplus) = (BytesMut::with_capacity(head.len()), 0, HeaderMap::new());
    for (at, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let text = line.trim_ascii_end();
        let name = text.split(|byte| *byte == b':').next().unwrap_or_default();
        let stays = at == 0 || text.is_empty() || FRAMING.iter().any(|field| field.eq_ignore_ascii_case(name));
        if stays || count < FIELDS_MAX - FRAMING.len() {
            count += usize::from(!stays);
            kept.extend_from_slice(line);
            continue;
        }
        let (name, value) = field(line)?;
        surplus.try_append(name, value).map_err(|_| NotAField)?;
    }
    Ok((kept, surplus))
}

/// The field of a line.
pub(crate) fn field(line: &[u8]) -> Result<(HeaderName, HeaderValue), NotAField> {
    let end = line.iter().position(|byte| *byte == b':').ok_or(NotAField)?;
    let name = HeaderName::from_bytes(&line[..end]).map_err(|_| NotAField)?;
    let value = HeaderValue::from_bytes(line[end + 1..].trim_ascii()).map_err(|_| NotAField)?;
    Ok((name, value))
}

/// Adds the fields behind those that are there.
pub(crate) fn append(headers: &mut HeaderMap, more: HeaderMap) {
    let mut last = None;
    for (name, value) in more {
        last = name.or(last);
        if let Some(name) = &last {
            headers.append(name, value);
        }
    }
}

/// What the library has to see of a message.
const FRAMING: [&[u8]; 6] = [b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"host"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surplus_is_read_and_what_frames_the_message_stays() {
        let fields: String = (0..500).map(|n| format!("X-{n}: {n}\r\n")).collect();
        let head = format!("GET / HTTP/1.1\r\n{fields}a: 1\r\nA: 2\r\nContent-Length: 5\r\nHost: web\r\n\r\n");
        let (kept, mut surplus) = narrow(head.as_bytes()).expect("sound");
        let kept = String::from_utf8(kept.to_vec()).expect("text");
        assert!(kept.starts_with("GET / HTTP/1.1\r\nX-0: 0\r\n"), "{kept}");
        assert!(kept.ends_with("X-83: 83\r\nContent-Length: 5\r\nHost: web\r\n\r\n"), "{kept}");
        assert_eq!(
            (surplus.len(), &surplus["x-84"], &surplus["x-499"]),
            (418, &"84".parse().unwrap(), &"499".parse().unwrap())
        );
        let mut headers = HeaderMap::from_iter([(HeaderName::from_static("a"), HeaderValue::from_static("0"))]);
        append(&mut headers, std::mem::take(&mut surplus));
        assert_eq!(headers.get_all("a").iter().collect::<Vec<_>>(), ["0", "1", "2"]);
        for bad in [" folded\r\n", "name\r\n", "na me: 1\r\n", "name : 1\r\n", ": 1\r\n", "a: \0\r\n"] {
            assert_eq!(
                narrow(format!("GET / HTTP/1.1\r\n{fields}{bad}\r\n").as_bytes()).err(),
                Some(NotAField),
                "{bad:?}"
            );
        }
    }
}
