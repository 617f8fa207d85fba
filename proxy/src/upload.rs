//! A request's body on its way to where it is sent, perhaps more than once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use crate::body::{Body, BodyError};
use crate::copied::{self, Tee};
use crate::hold::Hold;
use crate::interim::{Abandoned, AtGate, Gate};

/// A request body on its way. It keeps what it has given out, up to a bound, so that it can be given out again.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    body: Body,
    /// What it waits at, where the caller waits to be told to send it.
    at_gate: Option<AtGate>,
    /// Told how many bytes passed; none for an empty body.
    hold: Option<Arc<Hold>>,
    kept: Vec<Bytes>,
    kept_length: usize,
    /// How many of `kept` have been given out in this try.
    given: usize,
    /// Whether to keep what is given out.
    replay: bool,
    /// Whether something that was given out is no longer there.
    lost: bool,
    /// Where it is copied to while it is read.
    tees: Option<Box<[Tee]>>,
    /// What is kept beside it, for a try after one that has taken the body away.
    spare: Option<Arc<Mutex<Spare>>>,
}

/// What was given out of a body.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    bytes: Vec<Bytes>,
    length: usize,
    /// Whether that is all of it.
    whole: bool,
}

impl Upload {
    /// `replay` keeps what was given out.
    pub(crate) fn new(body: Body, hold: &Arc<Hold>, replay: bool) -> Self {
        let hold = (!body.is_end_stream()).then(|| hold.clone());
        Self { body, hold, replay, ..Self::default() }
    }

    /// Keeps what it gives out beside it too: a try may take it away and another one follow all the same.
    pub(crate) fn spare(&mut self) -> Arc<Mutex<Spare>> {
        let spare = Spare { whole: self.body.is_end_stream(), ..Spare::default() };
        self.spare.insert(Arc::new(Mutex::new(spare))).clone()
    }

    /// A copy of it, which is filled while it is read.
    pub(crate) fn copy(&mut self) -> Body {
        match &self.body {
            Body::Empty => Body::Empty,
            Body::Full(whole) => Body::Full(whole.clone()),
            _ => {
                let (tee, copied) = copied::copy();
                let tees = self.tees.take().map(Vec::from).unwrap_or_default();
                self.tees = Some(tees.into_iter().chain([tee]).collect());
                Body::Copied(copied)
            }
        }
    }

    /// All of it has been read.
    fn read_through(&mut self) {
        self.tees.take().iter().flat_map(|tees| tees.iter()).for_each(Tee::end);
    }

    /// Makes it from what was kept, if that is all of it.
    pub(crate) fn of(spare: &Arc<Mutex<Spare>>) -> Option<Self> {
        let kept = spare.lock();
        kept.whole.then(|| Self { kept: kept.bytes.clone(), kept_length: kept.length, replay: true, ..Self::default() })
    }

    /// Whether a try has taken it away.
    pub(crate) fn is_gone(&self) -> bool {
        self.hold.is_none() && self.kept.is_empty() && self.body.is_end_stream()
    }

    /// Waits until it is wanted.
    pub(crate) fn wait(&mut self) -> Arc<Gate> {
        self.at_gate.insert(AtGate::new()).gate().clone()
    }

    /// Starts again from the first byte; false if that is no longer possible.
    pub(crate) fn rewind(&mut self) -> bool {
        self.given = 0;
        !self.lost
    }

    /// Gives up what was kept, since no other try will follow.
    fn forget(&mut self) {
        self.replay = false;
        self.lost = true;
        self.kept = Vec::new();
        self.given = 0;
    }

    fn keep(&mut self, data: &Bytes) {
        if let Some(hold) = &self.hold {
            hold.request_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        if let Some(tees) = &self.tees {
            tees.iter().for_each(|tee| tee.push(data));
            if self.body.is_end_stream() {
                self.read_through();
            }
        }
        self.kept_length += data.len();
        if let Some(spare) = &self.spare {
            spare.lock().keep(data, self.body.is_end_stream());
        }
        if !self.replay || self.kept_length > REPLAY_MAX {
            return self.forget();
        }
        self.kept.push(data.clone());
        self.given = self.kept.len();
    }
}

impl Spare {
    fn keep(&mut self, data: &Bytes, end: bool) {
        self.length += data.len();
        if self.length > REPLAY_MAX {
            self.bytes = Vec::new();
            return;
        }
        if !data.is_empty() {
            self.bytes.push(data.clone());
        }
        self.whole = end;
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(at_gate) = &mut this.at_gate {
            match ready!(at_gate.poll(cx)) {
                Ok(()) => this.at_gate = None,
                Err(Abandoned) => return Poll::Ready(Some(Err(BodyError::Unwanted))),
            }
        }
        if let Some(data) = this.kept.get(this.given) {
            this.given += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => this.keep(data),
                // Trailers are not kept.
                None => {
                    this.read_through();
                    this.forget();
                    this.spare = None;
                }
            },
            Some(Err(error)) => {
                this.lost = true;
                if let Some(hold) = &this.hold {
                    hold.request_broke(error.reject());
                }
            }
            None => {
                this.read_through();
                if let Some(spare) = &this.spare {
                    spare.lock().keep(&Bytes::new(), true);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.given >= self.kept.len() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.kept.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// Most bytes of a request body that are kept for another try.
const REPLAY_MAX: usize = 64 << 10;
