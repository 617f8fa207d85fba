//! The load: callers, and operators who change policies and wait until they are in force.

use weft::api::schema::{ApplyRequest, Text, TokenRequest};

use super::{PATHS, Run, Told};
use crate::host::Shape;
use crate::invariants::authorization::policy_of;

impl Run {
    /// Has a token made for nodes that may run these services.
    pub(super) fn ask_for_line(&self, host: usize, services: &'static str) {
        self.ask_for_token(host, (services, 30 * 86_400, 10_000));
    }

    pub(super) fn ask_for_token(&self, host: usize, (services, lifetime_s, uses): (&'static str, u64, u32)) {
        let Some(node) = self.hosts[host].node() else { return };
        let told = self.told.clone();
        self.hosts[host].spawn(async move {
            let request = TokenRequest { lifetime_s, uses, services: vec![services.into()] };
            if let Ok(token) = node.api_create_token(request).await {
                told.lock().push(Told::Line { services, line: token.line, id: token.id });
            }
        });
    }

    pub(super) fn call(&mut self) {
        let host = self.dice.below(self.hosts.len());
        let path = PATHS[self.dice.below(PATHS.len())];
        let shape = match self.dice.below(8) {
            0 => Shape::Long,
            1..4 => Shape::Post,
            _ => Shape::Get,
        };
        self.call_from(host, path, shape);
    }

    pub(super) fn call_from(&mut self, host: usize, path: &str, shape: Shape) {
        self.next_call += 1;
        self.hosts[host].call(self.next_call, path, shape);
    }

    /// An operator changes a policy somewhere, and now and then waits until it is in force everywhere.
    pub(super) fn decide(&mut self) {
        let host = self.dice.below(self.hosts.len());
        let path = PATHS[self.dice.below(PATHS.len())];
        let how = (self.dice.chance(2), self.dice.chance(3));
        self.decide_at(host, path, how);
    }

    pub(super) fn decide_at(&mut self, host: usize, path: &str, (present, wait): (bool, bool)) {
        let Some(node) = self.hosts[host].node() else { return };
        let (policy, told) = (policy_of(path), self.told.clone());
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {policy}}}\nspec:\n  action: DENY\n  \
             rules: [{{to: [{{operation: {{paths: [\"{path}\"]}}}}]}}]\n"
        );
        self.durability.began(&policy, present);
        self.hosts[host].spawn(async move {
            let outcome = if present {
                let request = ApplyRequest { texts: vec![Text { source: "simulation".into(), text }] };
                node.api_apply(request, false).await
            } else {
                node.api_delete("AuthorizationPolicy", "default", &policy, None).await
            };
            let index = match outcome {
                Ok(applied) => applied.index,
                Err(failure) => {
                    // Only what was refused by the decision itself has surely not happened.
                    let refused = matches!(failure.status.as_u16(), 404 | 409);
                    told.lock().push(if refused { Told::Refused { policy, present } } else { Told::Nothing });
                    return;
                }
            };
            told.lock().push(Told::Acknowledged { policy, present, index });
            if wait {
                let query = [("index".to_owned(), index.to_string()), ("timeout_ms".to_owned(), "5000".to_owned())];
                if let Ok(enforced) = node.api_enforced(&query.into()).await
                    && enforced.lagging.is_empty()
                {
                    // Those that it did not find live it has named as absent.
                    let all = node.state().nodes.keys().map(ToString::to_string).collect::<Vec<_>>();
                    let tables = all.into_iter().filter(|name| !enforced.absent.contains(name)).collect();
                    told.lock().push(Told::Waited { index, tables });
                }
            }
        });
    }
}
