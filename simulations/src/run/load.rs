//! The load: callers, and operators who apply and delete policies and wait until it is so everywhere.

use weft::api::schema::{ApplyRequest, Text};

use super::{Run, Told};
impl Run {
    /// A call from somewhere.
    pub(super) fn call_somewhere(&mut self) {
        let number = self.load.draw(&mut self.dice, self.network.now());
        number.into_iter().for_each(|number| self.make(number));
    }

    /// A call from that host.
    pub(super) fn call_from(&mut self, host: usize) {
        let number = self.load.draw_from(&mut self.dice, self.network.now(), host);
        number.into_iter().for_each(|number| self.make(number));
    }

    /// Makes the call of that number.
    pub(super) fn make(&mut self, number: u64) {
        if let Some(call) = self.load.get(number) {
            self.hosts[call.host].call(number, call);
        }
    }

    /// An operator changes a policy somewhere, and now and then waits until it is in force everywhere.
    pub(super) fn decide(&mut self) {
        let host = self.dice.below(self.hosts.len());
        let switch = self.dice.below(self.setup.mesh.switches.len());
        let how = (self.dice.chance(2), self.dice.chance(3));
        self.decide_at(host, switch, how);
    }

    /// An operator reads somewhere what has been decided everywhere.
    pub(super) fn read(&mut self) {
        let host = self.dice.below(self.hosts.len());
        self.read_at(host);
    }

    pub(super) fn read_at(&self, host: usize) {
        let Some(node) = self.hosts[host].node() else { return };
        let (wanted, told) = (self.reads.begin(), self.told.clone());
        self.hosts[host].spawn(async move {
            if node.api_index().await.is_ok() {
                told.lock().push(Told::Read { host, wanted, index: node.state().index });
            }
        });
    }

    pub(super) fn decide_at(&mut self, host: usize, switch: usize, (present, wait): (bool, bool)) {
        let Some(node) = self.hosts[host].node() else { return };
        let (document, told) = (self.setup.mesh.switches[switch].clone(), self.told.clone());
        self.durability.began(&document.key, present);
        self.hosts[host].spawn(async move {
            let key = document.key;
            let outcome = if present {
                let request = ApplyRequest { texts: vec![Text { source: "simulation".into(), text: document.text }] };
                node.api_apply(request, false).await
            } else {
                node.api_delete(&key.kind.name, &key.namespace, &key.name, None).await
            };
            let index = match outcome {
                Ok(applied) => applied.index,
                Err(failure) => {
                    // Only what was refused by the decision itself has surely not happened.
                    let refused = matches!(failure.status.as_u16(), 404 | 409);
                    told.lock().push(if refused { Told::Refused { switch, present } } else { Told::Nothing });
                    return;
                }
            };
            told.lock().push(Told::Acknowledged { switch, present, index });
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
