//! New certificates.

use tokio::time::Instant;

use super::{Mesh, STEADY_CALLS, Told, until};
use crate::client::Client;
use crate::demo::stage::{Node, Stage};
use crate::demo::traffic::Load;
use crate::demo::words::{measured, milliseconds, step, text};

impl Mesh {
    /// 9: new certificates under load.
    pub(super) async fn renew(&self, stage: &Stage) -> Told<()> {
        step(9, "Node b renews its certificates under load.");
        let [a, b, _] = &stage.nodes;
        let before = expiry(&a.client, b).await?;
        let load = Load::start(self.proxy, &self.uri("db", "/")?);
        let steady = async |calls: u64| {
            until("traffic is steady", async || {
                let tally = load.tally();
                if tally.served_in_a_row >= calls { Ok(tally) } else { Err(tally.failures_text()) }
            })
            .await
        };
        let calls = steady(STEADY_CALLS).await?.served_in_a_row;
        let start = Instant::now();
        let renewed = b.client.renew_certificates().await.map_err(text)?;
        let took = milliseconds(start.elapsed());
        let renewed = renewed.get("renewed").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if renewed == 0 {
            return Err("no certificate was renewed".to_owned());
        }
        let after = until("the mesh hears of the new certificates", async || {
            let after = expiry(&a.client, b).await?;
            if after > before { Ok(after) } else { Err("their end has not moved".to_owned()) }
        })
        .await?;
        steady(calls + STEADY_CALLS).await?;
        let tally = load.stop().await;
        if tally.failed > 0 {
            return Err(format!(
                "{} of {} calls failed: {}",
                tally.failed,
                tally.served + tally.failed,
                tally.failures_text()
            ));
        }
        let moved = (after - before) / 1000;
        measured(&format!(
            "{renewed} new certificates after {took:.0} ms, valid {moved} s longer; {} calls, none failed",
            tally.served
        ));
        Ok(())
    }
}

async fn expiry(client: &Client, node: &Node) -> Told<u64> {
    let members = client.members().await.map_err(text)?;
    let member = members.iter().find(|member| member.name == node.name);
    member.map(|member| member.certificate_expires).ok_or_else(|| format!("node {} is not a member", node.name))
}
