//! What a connection speaks, told from its first bytes.

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// SOCKS5.
    Socks5,
    /// Something else.
    Opaque,
}

/// Whether bytes that don't tell yet are worth waiting for the rest of the line: they look like a method, or a method and
/// the start of a target.
pub(crate) fn is_likely(first: &[u8]) -> bool {
    let start = first.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let rest = &first[start.unwrap_or(first.len())..];
    let end = rest.iter().position(|byte| !is_token(*byte)).unwrap_or(rest.len());
    let (word, target) = (&rest[..end], rest[end..].trim_ascii_start());
    let begins = |method: &&[u8]| method.len() >= word.len() && method[..word.len()].eq_ignore_ascii_case(word);
    let method = word.iter().all(u8::is_ascii_uppercase) || METHODS.iter().any(begins);
    match target.first() {
        None => method,
        Some(first) => matches!(first, b'/' | b'*' | b'h' | b'H') || word.eq_ignore_ascii_case(b"CONNECT"),
    }
}

/// What these bytes say; none while more could change it. HTTP/1 is a request line up to its version: nothing less, or a
/// server that knows another protocol would be told of in HTTP. Empty lines before it don't count (RFC 9112, 2.2).
pub(crate) fn told(first: &[u8]) -> Option<Speech> {
    if first.first() == Some(&SOCKS5) {
        return Some(Speech::Socks5);
    }
    if first.starts_with(PREFACE) {
        return Some(Speech::Http2);
    }
    let start = first.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(start) = start else {
        return (first.len() > LINE_LENGTH_MAX).then_some(Speech::Opaque);
    };
    let rest = &first[start..];
    if start == 0 && PREFACE.starts_with(rest) {
        return None;
    }
    let end = rest.iter().position(|byte| *byte == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    if !may_be_request_line(line) {
        return Some(Speech::Opaque);
    }
    match end {
        Some(_) if is_request_line(line) => Some(Speech::Http1),
        Some(_) => Some(Speech::Opaque),
        // A target that is too long is answered in HTTP; long text that is none is something else.
        None if line.len() > LINE_LENGTH_MAX => Some(if is_likely(rest) { Speech::Http1 } else { Speech::Opaque }),
        None => None,
    }
}

/// Whether a line that begins so may become a request line: a method, then text.
fn may_be_request_line(line: &[u8]) -> bool {
    let end = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
    let blank = line.get(end).is_none_or(|byte| matches!(byte, b' ' | b'\t'));
    let method = end > 0 && end <= METHOD_LENGTH_MAX && blank;
    method && line[end..].iter().all(|byte| *byte >= b' ' && *byte != 0x7f || matches!(byte, b'\t' | b'\r'))
}

/// Whether a whole line ends in a version of HTTP. Blanks are taken as servers that are lenient take them: what such a
/// server would serve must not pass for something else.
fn is_request_line(line: &[u8]) -> bool {
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|word| !word.is_empty());
    let (method, last) = (words.next(), words.next_back());
    method.is_some() && last.is_some_and(|word| word.starts_with(b"HTTP/"))
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Methods that are known in small letters too.
const METHODS: [&[u8]; 9] = [b"get", b"head", b"post", b"put", b"delete", b"connect", b"options", b"trace", b"patch"];
/// Longest line that is waited for, in bytes: that of the longest target that is answered with more than its length.
const LINE_LENGTH_MAX: usize = 17 << 10;
/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How every SOCKS5 connection begins (RFC 1928, 3).
const SOCKS5: u8 = 5;
/// Longest method that is taken for one.
const METHOD_LENGTH_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        for (first, expected) in [
            ("", None),
            ("\r\n", None),
            ("GE", None),
            ("GET /", None),
            ("GET / HTTP/1.1\r\n", Some(Speech::Http1)),
            ("\r\n\r\nGET / HTTP/1.1\r\n", Some(Speech::Http1)),
            ("\nGET / HTTP/1.1\n", Some(Speech::Http1)),
            ("GET  /  HTTP/1.0\r\n", Some(Speech::Http1)),
            ("get / HTTP/1.1\r\n", Some(Speech::Http1)),
            ("PRI * HTTP/2.0\r\n", None),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Speech::Http2)),
            ("\x05\x01\x00", Some(Speech::Socks5)),
            ("HELO there\r\n", Some(Speech::Opaque)),
            ("GET key\r\n", Some(Speech::Opaque)),
            ("SET key value\r\n", Some(Speech::Opaque)),
            ("*1\r\n$4\r\nPING\r\n", Some(Speech::Opaque)),
            ("\x16\x03\x01", Some(Speech::Opaque)),
            ("\0\0\0\x08\x04\x12\x16\x2f", Some(Speech::Opaque)),
            ("GET / \0", Some(Speech::Opaque)),
        ] {
            assert_eq!(told(first.as_bytes()), expected, "{first:?}");
        }
        let long = "x".repeat(LINE_LENGTH_MAX);
        assert_eq!(told(format!("GET /{long}").as_bytes()), Some(Speech::Http1));
        assert_eq!(told(format!("put {long}").as_bytes()), Some(Speech::Opaque));
    }
}
