//! A new version of a service, taken up step by step.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::{Mesh, Told, enforced_by_all};
use crate::api::schema::{ApplyRequest, Text};
use crate::client::Client;
use crate::demo::stage::NODES;
use crate::demo::traffic::call_with;
use crate::demo::words::{measured, milliseconds, say, step, text};

/// Calls that make shares worth telling.
const CALLS: usize = 400;
/// api on b is v1, on c v2.
const SUBSETS: &str = r"apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
";
const BY_WEIGHT: &str = r"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route:
    - {destination: {host: api, subset: v1}, weight: 90}
    - {destination: {host: api, subset: v2}, weight: 10}
";
const BY_HEADER: &str = r"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: api, subset: v2}}]
  - route: [{destination: {host: api, subset: v1}}]
";
/// What the rule for jason begins with, and a fault for it.
const JASON: &str = "  - match: [{headers: {end-user: {exact: jason}}}]\n";
const FAULT: &str = "    fault: {abort: {percentage: {value: 100}, httpStatus: 500}}\n";

impl Mesh {
    /// 5: by weight, by header, and a failure that is made.
    pub(super) async fn canary(&self, client: &Client) -> Told<()> {
        step(
            5,
            "api has a new version, v2 on c: a tenth of the calls go there, then those of one user; then they fail.",
        );
        let start = Instant::now();
        apply(client, &format!("{SUBSETS}{BY_WEIGHT}")).await?;
        let took = milliseconds(start.elapsed());
        let shares = self.shares(None).await?;
        measured(&format!("in force on 3 of 3 nodes after {took:.0} ms; of {CALLS} calls {}", told(&shares)));
        apply(client, BY_HEADER).await?;
        let (jason, others) = (self.shares(Some("jason")).await?, self.shares(None).await?);
        if jason.len() != 1 || others.len() != 1 || jason == others {
            return Err(format!("calls of jason: {}; of others: {}", told(&jason), told(&others)));
        }
        measured(&format!("with `end-user: jason` {}, without {}", told(&jason), told(&others)));
        apply(client, &BY_HEADER.replace(JASON, &format!("{JASON}{FAULT}"))).await?;
        let api = self.uri("api", "/")?;
        let fields = [("end-user", "jason")];
        let answer = call_with(self.proxy, Method::GET, &api, &fields).await?;
        if answer.status != StatusCode::INTERNAL_SERVER_ERROR {
            return Err(format!("the fault was not made: {}", answer.status));
        }
        self.expect(Method::GET, &api, StatusCode::OK).await?;
        measured("a fault for jason alone: 500, and 200 for everybody else");
        for (kind, name) in [("VirtualService", "api"), ("DestinationRule", "api")] {
            let removed = client.delete_resource(kind, super::DEFAULT_NAMESPACE, name, None).await.map_err(text)?;
            enforced_by_all(client, removed.index, NODES.len()).await?;
        }
        say("   the rules are deleted again");
        Ok(())
    }

    /// Who answered so many calls.
    async fn shares(&self, user: Option<&str>) -> Told<BTreeMap<String, usize>> {
        let (api, mut seen) = (self.uri("api", "/")?, BTreeMap::new());
        let fields: Vec<(&str, &str)> = user.iter().map(|user| ("end-user", *user)).collect();
        for _ in 0..CALLS {
            let answer = call_with(self.proxy, Method::GET, &api, &fields).await?;
            if answer.status != StatusCode::OK {
                return Err(format!("api answered {}", answer.status));
            }
            *seen.entry(answer.text).or_default() += 1;
        }
        Ok(seen)
    }
}

/// Applies documents, and waits until they are in force everywhere.
pub(super) async fn apply(client: &Client, documents: &str) -> Told<()> {
    let texts = vec![Text { source: "demo".to_owned(), text: documents.to_owned() }];
    let applied = client.apply(&ApplyRequest { texts }, false).await.map_err(text)?;
    enforced_by_all(client, applied.index, NODES.len()).await.map(drop)
}

fn told(shares: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = shares.iter().map(|(instance, count)| format!("{count} to {instance}")).collect();
    parts.join(", ")
}
