//! `weft listen`: which services are called by their loopback addresses from this host.

use clap::Args;
use weft_proto::kinds::hosts::called;
use weft_proto::service::ServiceName;

use super::{Context, Ended};
use crate::api::schema::{Listen, Listened};

#[derive(Debug, Args)]
pub(super) struct Command {
    /// NAME, NAMESPACE/NAME, or a host outside the mesh; none lists what was asked for
    #[arg(value_parser = called)]
    services: Vec<ServiceName>,
    /// Listen for them no more
    #[arg(long, requires = "services")]
    remove: bool,
}

impl Command {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let services = self.services.iter().map(ToString::to_string).collect();
        let listened = context.client.listen(&Listen { services, remove: self.remove }).await?;
        context.render(&listened, text)
    }
}

fn text(listened: &Listened) -> String {
    let mut text = String::new();
    for service in &listened.services {
        match service.address.as_str() {
            "" => text.push_str(&format!("{} is listened for, and is not in the mesh yet\n", service.name)),
            address => text.push_str(&format!("{} is called at {address} from this host\n", service.name)),
        }
    }
    if listened.captured {
        text.push_str("every service is called at its loopback address from this host; no port is listened on\n");
    } else if text.is_empty() {
        text.push_str("no service was asked for: weft listen SERVICE; `weft status` tells what --loopback says\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::ListenedService;

    #[test]
    fn every_service_is_told_and_how_it_is_called() {
        let service = |name: &str, address: &str| ListenedService { name: name.into(), address: address.into() };
        let services = vec![service("default/db", "127.64.1.1"), service("default/new", "")];
        let told = text(&Listened { services, captured: false });
        assert!(told.contains("default/db is called at 127.64.1.1") && told.contains("default/new is listened for"));
        assert!(text(&Listened { services: vec![], captured: true }).contains("every service"));
        assert!(text(&Listened { services: vec![], captured: false }).contains("weft listen SERVICE"));
    }
}
