//! An HTTP exchange to where it goes: the request as it is sent, the answer as it comes.

use http::request::Parts;
use http::{HeaderValue, Response};
use weft_proto::service::Protocol;

use super::answer::AnswerBody;
use super::outgoing::{Answer, Outgoing};
use super::{http1, multiplexed};
use crate::balance::Chosen;
use crate::call::Answerer;
use crate::decide::relation::Relation;
use crate::reach::Upstream;
use crate::reject::{REASON_HEADER, broken};
use crate::retry::Failure;
use crate::{headers, upgrade};

/// Sends the request. What was chosen is the proof that it may be sent there. A failure that allows another try leaves the request
/// as it was; `keep` says that one may follow.
pub(crate) async fn send(
    chosen: &Chosen,
    upstream: Upstream,
    outgoing: &mut Outgoing,
    keep: bool,
) -> Result<Answer, Failure> {
    let relation = chosen.relation();
    match upstream {
        Upstream::Link(ticket) => {
            let mark = outgoing.http2 && relation.port.protocol == Protocol::Auto;
            let client = relation.treatment.tells_callers().map(|_| headers::client_value(outgoing.client));
            let mut answer = multiplexed::send(ticket, outgoing, keep, |parts| {
                if mark {
                    parts.headers.insert(headers::HTTP_HEADER, HeaderValue::from_static("2"));
                }
                if let Some(client) = client {
                    parts.headers.insert(headers::CLIENT_HEADER, client);
                }
            })
            .await?;
            multiplexed::refusal(&answer)?;
            if let Some(reason) = answer.response.headers().get(REASON_HEADER) {
                answer.by = Answerer::Node;
                answer.broke = broken(reason);
            }
            clean(&mut answer.response);
            Ok(answer)
        }
        Upstream::InstanceHttp2(ticket) => {
            let mut answer = multiplexed::send(ticket, outgoing, keep, |parts| introduce(parts, relation)).await?;
            clean(&mut answer.response);
            Ok(answer)
        }
        Upstream::Instance(lease) => {
            let mut answer = http1::send(lease, outgoing, keep, |parts| introduce(parts, relation)).await?;
            clean(&mut answer.response);
            Ok(answer)
        }
    }
}

/// Removes from an answer what belongs to the hop that it came over.
fn clean(response: &mut Response<AnswerBody>) {
    upgrade::keep_required(response);
    headers::clean_response(response.headers_mut());
}

/// Tells the instance who calls.
fn introduce(parts: &mut Parts, relation: &Relation) {
    if let Some(forwarded) = &relation.forwarded {
        parts.headers.insert(headers::FORWARDED_CLIENT, forwarded.clone());
    }
}
