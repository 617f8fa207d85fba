//! What would happen to a call from outside, at a gateway.

use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::service::ServiceName;

use super::rules::Asked;
use super::{Explanation, Spoken, go, judge};
use crate::call::{Addresses, Guest, Parties};
use crate::decide::Question;
use crate::decide::relation::{Ground, Relation};
use crate::path;

/// A call of a host, or a stream that asks for it, at a port of a gateway that this node serves.
pub(crate) fn enter(
    ground: Ground<'_>,
    (gateway, port): (&ServiceName, Option<u16>),
    (host, from): (&str, IpAddr),
    spoken: Spoken<'_>,
) -> Result<Explanation, String> {
    let service = ground.table.service(gateway).ok_or_else(|| format!("there is no service {gateway}"))?;
    let host = path::host(host);
    let http = matches!(spoken, Spoken::Http { .. });
    let found = ground.table.gateways.find(gateway, port, &host).filter(|one| one.routes.is_some() == http);
    let entrance = found.max_by_key(|one| one.scheme == "https").ok_or_else(|| {
        let port = port.map(|port| format!(" at its port {port}")).unwrap_or_default();
        format!("this node serves nothing for {host} as {gateway}{port}: it is answered with 404, or refused")
    })?;
    let parties = Parties {
        entrance: Some(entrance.key.clone()),
        guest: Some(Guest::Outside),
        ..Parties::of_caller(service.identity.clone(), gateway, entrance.port.port)
    };
    let relation = Arc::new(Relation::new(ground, &parties, service, entrance.port));
    // A stream of TLS that is passed on asks for the host.
    let spoken = match spoken {
        Spoken::Stream { server_name: None } => Spoken::Stream { server_name: Some(&host) },
        spoken => spoken,
    };
    Ok(go(ground, relation, (&host, Some(from)), spoken))
}

/// Whether the policies of the gateway let it in.
pub(super) fn passes(
    (relation, host): (&Arc<Relation>, &str),
    from: IpAddr,
    asked: Option<&Asked>,
    explanation: &mut Explanation,
) -> bool {
    let addresses = Addresses { source: from, destination: relation.own_ip, remote: from };
    let question = Question { relation, addresses, sni: host, http: asked.map(Asked::call) };
    judge(&question, explanation);
    let passes = explanation.verdict == "allowed";
    let port = relation.port.port;
    explanation.caller = format!("{from}, outside");
    explanation.gateway = Some(format!("{} at its port {port}, {}", relation.service.name, relation.scheme));
    if !passes {
        explanation.reason = format!("the gateway lets it not in: {}", explanation.reason);
    }
    passes
}
