//! Facts in parts: what is too long for one value of chitchat, whose messages hold at most 64 KiB, travels as several.
//!
//! A part is headed by what it belongs to. Of a change some parts may arrive before others; until all of one have, what was
//! whole before stays in force.

use std::borrow::Cow;

/// The keys that hold the parts.
pub(super) const KEYS: [&str; 8] =
    ["facts", "facts.1", "facts.2", "facts.3", "facts.4", "facts.5", "facts.6", "facts.7"];
/// Longest value, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = 16 << 10;
/// Longest facts that are carried, in bytes of base64: about 2,000 instances.
pub(super) const FACTS_BYTES_MAX: usize = KEYS.len() * PART_BYTES_MAX;

/// Splits signed facts. The sequence tells one change from another.
pub(super) fn split(sealed: &str, sequence: u64) -> Vec<String> {
    if sealed.len() <= VALUE_BYTES_MAX {
        return vec![sealed.to_owned()];
    }
    let chunks: Vec<&[u8]> = sealed.as_bytes().chunks(PART_BYTES_MAX).collect();
    let part = |(at, chunk): (usize, &&[u8])| {
        let text = String::from_utf8_lossy(chunk);
        format!("{sequence}{MARK}{at}{MARK}{}{MARK}{text}", chunks.len())
    };
    chunks.iter().enumerate().map(part).collect()
}

/// Puts the values of the keys together; none while they are not all of one change.
pub(super) fn join<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Option<Cow<'a, str>> {
    let first = value(KEYS[0])?;
    if !is_part(first) {
        return Some(first.into());
    }
    let (sequence, at, count, text) = read(first)?;
    let mut whole = text.to_owned();
    for (expected, key) in KEYS.iter().enumerate().take(count).skip(1) {
        let (same, at, of, text) = read(value(key)?)?;
        if (same, at, of) != (sequence, expected, count) {
            return None;
        }
        whole.push_str(text);
    }
    (at == 0 && (2..=KEYS.len()).contains(&count)).then(|| whole.into())
}

/// Whether a value is a part of something.
pub(super) fn is_part(value: &str) -> bool {
    value.contains(MARK)
}

fn read(part: &str) -> Option<(u64, usize, usize, &str)> {
    let mut words = part.splitn(4, MARK);
    let (sequence, at, count) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((sequence, at, count, words.next()?))
}

/// Not of the alphabet of base64.
const MARK: char = ':';
/// Bytes of facts in one part, which leave room for its head.
const PART_BYTES_MAX: usize = VALUE_BYTES_MAX - 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[String]) -> Option<String> {
        let at = |key: &str| KEYS.iter().position(|known| *known == key);
        join(|key| parts.get(at(key)?).map(String::as_str)).map(Cow::into_owned)
    }

    #[test]
    fn what_was_split_comes_back_and_parts_of_two_changes_never_do() {
        for length in [0, 1, PART_BYTES_MAX + 1, VALUE_BYTES_MAX, VALUE_BYTES_MAX + 1, FACTS_BYTES_MAX] {
            let sealed: String = (0..length).map(|n| char::from(b'a' + (n / PART_BYTES_MAX) as u8)).collect();
            let parts = split(&sealed, 7);
            assert!(parts.len() <= KEYS.len() && parts.iter().all(|part| part.len() <= VALUE_BYTES_MAX), "{length}");
            assert_eq!(joined(&parts), Some(sealed.clone()), "{length}");
            if parts.len() > 1 {
                assert_eq!(joined(&parts[..parts.len() - 1]), None, "{length}");
                let mut mixed = split(&sealed, 8);
                mixed[1].clone_from(&parts[1]);
                assert_eq!(joined(&mixed), None, "{length}");
                mixed.swap(0, 1);
                assert_eq!(joined(&mixed), None, "{length}");
            }
        }
        for bad in ["7:0:1:x", "7:0:99:x", "7:1:2:x", "x:0:2:y", "7:0"] {
            assert_eq!(joined(&[bad.to_owned(), "7:1:2:y".to_owned()]), None, "{bad}");
        }
    }
}
