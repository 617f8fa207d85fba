//! The answer to a request, and what comes before it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::client::ResponseFuture;
use http::Response;
use weft_proto::wire::exchange::ResponseHead;

use super::{Fault, Source};
use crate::quic::head;
use crate::quic::stream::{Code, Receiver, StreamError};

/// The answer to a request, on its way. Dropped before it is there the request is given up.
#[derive(Debug)]
pub(crate) enum Answering {
    Http2(ResponseFuture),
    Quic(Option<Receiver>),
}

/// What comes in answer to a request.
pub(crate) enum Heard {
    /// An informational answer; others follow.
    Interim(Response<()>),
    /// The answer.
    Final(Response<Source>),
}

impl Answering {
    /// The next of what comes; the last of it is the answer.
    pub(crate) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Result<Heard, Fault>> {
        match self {
            Self::Http2(response) => {
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    return Poll::Ready(Ok(Heard::Interim(interim)));
                }
                let response = ready!(Pin::new(response).poll(cx))?;
                Poll::Ready(Ok(Heard::Final(response.map(Source::Http2))))
            }
            Self::Quic(place) => {
                let receiver = place.as_mut().expect("polled after its end");
                let head = ready!(receiver.poll_head::<ResponseHead>(cx))?;
                let head = head.ok_or(StreamError::Malformed("an answer without a head"))?;
                let ends = head.ends;
                let response = head::to_response(head)?;
                if response.status().is_informational() && !ends {
                    return Poll::Ready(Ok(Heard::Interim(response)));
                }
                let mut receiver = place.take().expect("it was there just now");
                if ends {
                    receiver.end();
                }
                Poll::Ready(Ok(Heard::Final(response.map(|()| Source::Quic(receiver)))))
            }
        }
    }
}

impl Future for Answering {
    type Output = Result<Response<Source>, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Heard::Final(response) = ready!(self.poll_heard(cx))? {
                return Poll::Ready(Ok(response));
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Self::Quic(Some(receiver)) = self {
            receiver.stop(Code::Cancelled);
        }
    }
}
