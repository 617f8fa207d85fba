//! Heads of exchanges on QUIC streams, between HTTP's types and their messages.

use bytes::Bytes;
use h2::ext::Protocol;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use weft_proto::wire::exchange::{Field, RequestHead, ResponseHead, Trailers};

use super::stream::StreamError;

/// The message of a request's head.
pub(crate) fn of_request(parts: &Parts, ends: bool) -> RequestHead {
    let protocol = parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().to_owned());
    RequestHead {
        method: parts.method.as_str().to_owned(),
        authority: parts.uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default(),
        path: parts.uri.path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default(),
        protocol: protocol.unwrap_or_default(),
        fields: fields(&parts.headers),
        ends,
    }
}

/// The request whose head the message is.
pub(crate) fn to_request(head: RequestHead) -> Result<Request<()>, StreamError> {
    let RequestHead { method, authority, path, protocol, fields, ends: _ } = head;
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_3;
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| malformed("the method is none"))?;
    *request.headers_mut() = headers(fields)?;
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(Authority::try_from(authority).map_err(|_| malformed("the authority is none"))?);
    if !path.is_empty() {
        uri.scheme = Some(Scheme::HTTP);
        uri.path_and_query = Some(PathAndQuery::try_from(path).map_err(|_| malformed("the path is none"))?);
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| malformed("the target is none"))?;
    if !protocol.is_empty() && request.method() != Method::CONNECT {
        return Err(malformed("only CONNECT has a protocol"));
    }
    if !protocol.is_empty() {
        request.extensions_mut().insert(Protocol::from(protocol.as_str()));
    }
    Ok(request)
}

/// The message of a response's head.
pub(crate) fn of_response(response: &Response<()>, ends: bool) -> ResponseHead {
    ResponseHead { status: response.status().as_u16().into(), fields: fields(response.headers()), ends }
}

/// The response whose head the message is.
pub(crate) fn to_response(head: ResponseHead) -> Result<Response<()>, StreamError> {
    let status = u16::try_from(head.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_3;
    *response.status_mut() = status.ok_or(malformed("the status is none"))?;
    *response.headers_mut() = headers(head.fields)?;
    Ok(response)
}

/// The message of trailers.
pub(crate) fn of_trailers(trailers: &HeaderMap) -> Trailers {
    Trailers { fields: fields(trailers) }
}

/// The trailers whose message it is.
pub(crate) fn to_trailers(trailers: Trailers) -> Result<HeaderMap, StreamError> {
    headers(trailers.fields)
}

fn fields(headers: &HeaderMap) -> Vec<Field> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| Field {
        name: Bytes::copy_from_slice(name.as_str().as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    headers.iter().map(field).collect()
}

fn headers(fields: Vec<Field>) -> Result<HeaderMap, StreamError> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for Field { name, value } in fields {
        let name = HeaderName::from_lowercase(&name).map_err(|_| malformed("a field's name is none"))?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| malformed("a field's value is none"))?;
        headers.try_append(name, value).map_err(|_| malformed("there are too many fields"))?;
    }
    Ok(headers)
}

fn malformed(why: &'static str) -> StreamError {
    StreamError::Malformed(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_as_they_went() {
        let mut request = Request::builder()
            .method("CONNECT")
            .uri("http://web.mesh:8080/a?b=c")
            .header("x-a", "1")
            .header("x-a", "2");
        request.extensions_mut().expect("valid so far").insert(Protocol::from("websocket"));
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        let back = to_request(of_request(&parts, false)).expect("read");
        assert_eq!((back.method(), back.uri(), back.headers()), (&parts.method, &parts.uri, &parts.headers));
        assert_eq!(back.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        let response = Response::builder().status(404).header("x-b", "3").body(()).expect("valid");
        let back = to_response(of_response(&response, true)).expect("read");
        assert_eq!((back.status(), back.headers()), (response.status(), response.headers()));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let good =
            RequestHead { method: "GET".into(), authority: "web.mesh".into(), path: "/".into(), ..Default::default() };
        assert!(to_request(good.clone()).is_ok());
        for bad in [
            RequestHead { method: "G ET".into(), ..good.clone() },
            RequestHead { authority: "a b".into(), ..good.clone() },
            RequestHead { authority: String::new(), ..good.clone() },
            RequestHead { path: "/\r\n".into(), ..good.clone() },
            RequestHead { protocol: "websocket".into(), ..good.clone() },
            RequestHead { fields: vec![Field { name: "X-A".into(), value: "1".into() }], ..good.clone() },
            RequestHead { fields: vec![Field { name: "x-a".into(), value: "1\r\n".into() }], ..good.clone() },
            RequestHead { fields: vec![Field { name: ":path".into(), value: "/".into() }], ..good },
        ] {
            assert!(to_request(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(to_response(ResponseHead { status: 99, ..Default::default() }).is_err());
        assert!(to_response(ResponseHead { status: 70_000, ..Default::default() }).is_err());
    }
}
