//! A copy of a request's body, which is read at its own pace and never holds up the body itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

/// Where a body is copied to.
#[derive(Debug)]
pub(crate) struct Tee(Arc<Mutex<Pending>>);

/// The copy.
#[derive(Debug)]
pub(crate) struct Copied(Arc<Mutex<Pending>>);

/// The copy is not whole: the body broke off, or the copy was read too slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incomplete;

#[derive(Debug, Default)]
struct Pending {
    parts: VecDeque<Bytes>,
    length: usize,
    ended: bool,
    /// Whether nothing follows though it has not ended.
    broken: bool,
    reader: Option<Waker>,
}

/// A copy that is filled by the tee.
pub(crate) fn copy() -> (Tee, Copied) {
    let pending = Arc::new(Mutex::new(Pending::default()));
    (Tee(pending.clone()), Copied(pending))
}

impl Tee {
    pub(crate) fn push(&self, data: &Bytes) {
        let mut pending = self.0.lock();
        if pending.broken || data.is_empty() {
            return;
        }
        pending.length += data.len();
        if pending.length > PENDING_MAX {
            pending.broken = true;
            pending.parts.clear();
        } else {
            pending.parts.push_back(data.clone());
        }
        pending.wake();
    }

    pub(crate) fn end(&self) {
        let mut pending = self.0.lock();
        pending.ended = true;
        pending.wake();
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        let mut pending = self.0.lock();
        pending.broken |= !pending.ended;
        pending.wake();
    }
}

impl Copied {
    /// The next part; none at the end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Incomplete>>> {
        let mut pending = self.0.lock();
        if let Some(data) = pending.parts.pop_front() {
            pending.length -= data.len();
            return Poll::Ready(Some(Ok(data)));
        }
        if pending.broken {
            return Poll::Ready(Some(Err(Incomplete)));
        }
        if pending.ended {
            return Poll::Ready(None);
        }
        pending.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether it has been read to its end.
    pub(crate) fn is_ended(&self) -> bool {
        let pending = self.0.lock();
        pending.ended && !pending.broken && pending.parts.is_empty()
    }
}

impl Pending {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Most bytes of a body that wait for the reader of its copy.
const PENDING_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_copy_is_whole_or_says_that_it_is_not() {
        let (tee, mut copied) = copy();
        let next = |copied: &mut Copied| poll_fn(|cx| copied.poll(cx)).now_or_never();
        assert!(next(&mut copied).is_none());
        tee.push(&Bytes::from_static(b"a"));
        tee.push(&Bytes::from_static(b"b"));
        assert_eq!(next(&mut copied).flatten().expect("a part"), Ok(Bytes::from_static(b"a")));
        tee.end();
        drop(tee);
        assert!(!copied.is_ended());
        assert_eq!(next(&mut copied).flatten().expect("a part"), Ok(Bytes::from_static(b"b")));
        assert!(copied.is_ended() && next(&mut copied).expect("ready").is_none());

        let (tee, mut copied) = copy();
        tee.push(&Bytes::from_static(b"a"));
        drop(tee);
        assert!(next(&mut copied).flatten().expect("a part").is_ok());
        assert_eq!(next(&mut copied).flatten().expect("its end"), Err(Incomplete));

        let (tee, mut slow) = copy();
        tee.push(&Bytes::from(vec![0; PENDING_MAX]));
        tee.push(&Bytes::from_static(b"a"));
        tee.end();
        assert_eq!(next(&mut slow).flatten().expect("its end"), Err(Incomplete));
    }
}
