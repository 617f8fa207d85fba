//! `weft cert`: certificates for gateways, and when all certificates end.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;
use weft_proto::service::ServiceName;

use super::resource::Wait;
use super::table::{moment, table};
use super::{Context, Ended, Stopped};
use crate::api::schema::{ApplyRequest, Certificate, Text};

#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    /// Give gateways a certificate with its key, as the Secret of that name; one of the same name is replaced
    Add {
        /// NAME or NAMESPACE/NAME; the namespace is that of the gateway
        name: ServiceName,
        /// File with the certificate and those between it and its authority, PEM
        #[arg(long, value_name = "FILE", requires = "key")]
        cert: Option<PathBuf>,
        /// File with its key, PEM
        #[arg(long, value_name = "FILE", requires = "cert")]
        key: Option<PathBuf>,
        /// File with the authorities of callers, PEM
        #[arg(long, value_name = "FILE", required_unless_present = "cert")]
        ca: Option<PathBuf>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the certificates of gateways, and those of this node and its services, with their ends
    List,
}

impl Cert {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        match self {
            Self::Add { name, cert, key, ca, wait } => {
                let files = [("tls.crt", cert), ("tls.key", key), ("ca.crt", ca)];
                let given = files.into_iter().filter_map(|(name, path)| Some((name, path?)));
                let values = given.map(|(name, path)| Ok((name, read(&path)?))).collect::<Result<Vec<_>, Stopped>>()?;
                let whole = values.iter().any(|(name, _)| *name == "tls.key");
                let data: serde_json::Map<_, _> =
                    values.into_iter().map(|(name, text)| (name.to_owned(), json!(text))).collect();
                let document = json!({
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": { "name": name.name(), "namespace": name.namespace() },
                    "type": if whole { "kubernetes.io/tls" } else { "Opaque" },
                    "stringData": data,
                });
                let text = Text { source: format!("certificate {name}"), text: document.to_string() };
                let applied = context.client.apply(&ApplyRequest { texts: vec![text] }, false).await?;
                wait.finish(context, applied).await
            }
            Self::List => {
                let all = context.client.certificates().await?;
                context.render(&all, |all| list(all, context.now))
            }
        }
    }
}

fn read(path: &Path) -> Result<String, Stopped> {
    fs::read_to_string(path).map_err(|error| Stopped::failed(format!("{}: {error}", path.display())))
}

fn list(all: &[Certificate], now: u64) -> String {
    let row = |one: &Certificate| {
        let end = if one.expires == 0 { "?".to_owned() } else { moment(one.expires, now) };
        let ordered = match one.renews {
            0 if one.kind != "order" => String::new(),
            at if at <= now => "now".to_owned(),
            at => moment(at, now),
        };
        [one.kind.clone(), one.name.clone(), end, ordered, one.names.join(" ")]
    };
    table(["KIND", "NAME", "ENDS", "ORDERED", "NAMES"], &all.iter().map(row).collect::<Vec<_>>())
}
