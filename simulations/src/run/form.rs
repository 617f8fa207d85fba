//! The beginning: hosts join, and what the mesh is to have is applied.

use weft::api::schema::{ApplyRequest, Text, TokenRequest};
use weft::config::Start;

use super::{FORMING, Run, Told};
use crate::invariants::Breach;

/// How long what is applied in the beginning may take until it is in force everywhere.
const FURNISHING: u64 = 30_000;

impl Run {
    /// The first node makes the mesh, the others join; ready when all are members.
    pub(super) fn form(&mut self) -> Result<(), Breach> {
        let trust_domain = "mesh.test".parse().expect("a name");
        let deny_by_default = self.setup.mesh.deny_by_default;
        self.hosts[0].start(Start::Found { trust_domain, deny_by_default, unless_done: false });
        let mut wanted: Vec<Vec<String>> = (1..self.hosts.len()).map(|host| self.services_of(host)).collect();
        wanted.sort();
        wanted.dedup();
        let (mut asked, mut renewed) = (false, false);
        while self.network.now() < FORMING {
            self.step()?;
            if !asked && self.hosts[0].node().is_some() {
                asked = true;
                wanted.iter().for_each(|services| self.ask_for_line(0, services.clone()));
            }
            if !renewed && self.network.now() > FORMING / 2 {
                // One that names all voters, for nodes that join anew when the first host is down.
                renewed = true;
                wanted.iter().for_each(|services| self.ask_for_line(self.hosts.len() - 1, services.clone()));
            }
            if self.lines.len() == wanted.len() {
                for host in 1..self.hosts.len() {
                    if !self.hosts[host].is_up() {
                        let line = self.line_of(host);
                        self.hosts[host].start(Start::Join { line });
                    }
                }
            }
        }
        match self.hosts.iter().all(|host| host.node().is_some_and(|node| node.is_ready())) {
            true => Ok(()),
            false => Err(Breach { invariant: "a mesh forms", text: self.shape() }),
        }
    }

    /// What is to be kept is applied, and in force everywhere.
    pub(super) fn furnish(&mut self) -> Result<(), Breach> {
        let mesh = self.setup.mesh.clone();
        let Some(node) = self.hosts[0].node().filter(|_| !mesh.fixed.is_empty()) else { return Ok(()) };
        let told = self.told.clone();
        let text = |text: &String| Text { source: mesh.name.clone(), text: text.clone() };
        let texts = mesh.fixed.iter().map(|document| text(&document.text)).collect();
        self.hosts[0].spawn(async move {
            let outcome = node.api_apply(ApplyRequest { texts }, false).await;
            let outcome = outcome.map(|applied| applied.index).map_err(|failure| format!("{failure:?}"));
            told.lock().push(Told::Furnished(outcome));
        });
        let in_force = |run: &Self| {
            let Some(outcome) = &run.furnished else { return false };
            outcome.as_ref().is_err() || run.claims.settled(false, run.network.now())
        };
        if !self.until(FURNISHING, in_force)? {
            return Err(Breach { invariant: "a mesh forms", text: "what was applied is not in force".into() });
        }
        match self.furnished.take() {
            Some(Err(why)) => Err(Breach { invariant: "a mesh forms", text: why }),
            _ => Ok(()),
        }
    }

    /// The services that a host's node is to be admitted for.
    pub(super) fn services_of(&self, host: usize) -> Vec<String> {
        self.setup.mesh.admission(host).map_or_else(|| vec!["*".to_owned()], <[String]>::to_vec)
    }

    /// The line that a host joins by.
    pub(super) fn line_of(&self, host: usize) -> String {
        self.lines.get(&self.services_of(host)).cloned().unwrap_or_default()
    }

    /// Has a token made for nodes that may run these services.
    pub(super) fn ask_for_line(&self, host: usize, services: Vec<String>) {
        self.ask_for_token(host, (services, 30 * 86_400, 10_000));
    }

    pub(super) fn ask_for_token(&self, host: usize, (services, lifetime_s, uses): (Vec<String>, u64, u32)) {
        let Some(node) = self.hosts[host].node() else { return };
        let told = self.told.clone();
        self.hosts[host].spawn(async move {
            let request = TokenRequest { lifetime_s, uses, services: services.clone() };
            if let Ok(token) = node.api_create_token(request).await {
                told.lock().push(Told::Line { services, line: token.line, id: token.id });
            }
        });
    }
}
