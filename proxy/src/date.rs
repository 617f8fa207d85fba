//! The `Date` of answers (RFC 9110, 6.6.1), written once a second.

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;
use weft_proto::UnixMillis;

/// The date of this second.
#[derive(Debug, Default)]
pub(crate) struct Dates(Mutex<Option<(Instant, HeaderValue)>>);

impl Dates {
    /// The date at a moment, or less than a second before.
    pub(crate) fn at(&self, moment: Instant, clock: &dyn Fn() -> UnixMillis) -> HeaderValue {
        let mut known = self.0.lock();
        match &*known {
            Some((until, date)) if moment < *until => date.clone(),
            _ => known.insert((moment + SECOND, written(clock()))).1.clone(),
        }
    }
}

fn written(now: UnixMillis) -> HeaderValue {
    let text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_millis(now));
    HeaderValue::from_str(&text).expect("letters, digits, blanks and colons")
}

const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_written_once_a_second() {
        let (dates, now) = (Dates::default(), Instant::now());
        assert_eq!(dates.at(now, &|| 784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(dates.at(now + SECOND / 2, &|| 0), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(dates.at(now + SECOND, &|| 784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}
