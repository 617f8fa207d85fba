//! The mesh that a run is about: services and where they run, what operators apply, and what must hold of calls.

pub mod assertion;
mod read;

use serde::{Deserialize, Serialize};
use weft_proto::kinds::Spec;
use weft_proto::kinds::authorization_policy::AuthorizationPolicy;
use weft_proto::resource::ResourceKey;

use assertion::{Assertion, Caller, Claim, When};

/// A mesh, as one document of kind `Simulation` and the resources beside it describe it.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Its name.
    pub name: String,
    /// Whether what no policy allows is denied.
    pub deny_by_default: bool,
    /// What runs in it.
    pub services: Vec<Service>,
    /// Hosts whose nodes may not run every service, with those that they may.
    pub admissions: Vec<(usize, Vec<String>)>,
    /// Applied in the beginning, and kept.
    pub fixed: Vec<Document>,
    /// Policies that assertions name in a condition: operators apply and delete them all the time.
    pub switches: Vec<Document>,
    /// What must hold.
    pub assertions: Vec<Assertion>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub hosts: Vec<Place>,
    /// The port that callers use.
    pub port: u16,
    /// What the port speaks.
    pub protocol: Protocol,
    /// What it is.
    #[serde(default)]
    pub role: Role,
}

/// What a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Role {
    /// An application of the mesh.
    #[default]
    Application,
    /// A gateway, at which strangers come in.
    Gateway,
    /// One that takes only callers of the mesh.
    Egress,
    /// A server outside the mesh, `NAME.example`, that stands beside these hosts.
    External,
}

/// Hosts of a service. One that is not there, in a smaller mesh, is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// One host, counted from 0.
    Host(usize),
    /// All of them.
    All,
    /// Those with an odd number.
    Odd,
    /// Those with an even number.
    Even,
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// A line and its answer on an opaque stream.
    Tcp,
}

/// A policy, or settings of a service, as `weft apply` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is called.
    pub key: ResourceKey,
    /// Its text.
    pub text: String,
}

impl Service {
    /// Whether it is a server outside the mesh.
    pub fn is_external(&self) -> bool {
        self.role == Role::External
    }
}

impl Mesh {
    /// Whether the service runs on that host of so many. One without any place runs on the first.
    pub fn runs_on(&self, service: usize, host: usize, hosts: usize) -> bool {
        let on = |host: usize| {
            self.services[service].hosts.iter().any(|place| match place {
                Place::Host(other) => *other == host,
                Place::All => true,
                Place::Odd => host % 2 == 1,
                Place::Even => host.is_multiple_of(2),
            })
        };
        on(host) || (host == 0 && !(0..hosts).any(on))
    }

    /// The services that the host's node may run; none where it may run all.
    pub fn admission(&self, host: usize) -> Option<&[String]> {
        self.admissions.iter().find(|(other, _)| *other == host).map(|(_, services)| services.as_slice())
    }

    /// Whether the host's node was admitted for the service.
    pub fn admits(&self, host: usize, service: usize) -> bool {
        self.admission(host).is_none_or(|services| services.contains(&self.services[service].name))
    }

    /// Hosts that a caller calls from, of so many.
    pub fn hosts_of(&self, caller: Caller, hosts: usize) -> Vec<usize> {
        match caller {
            Caller::Outside | Caller::Stranger => (0..hosts).collect(),
            Caller::Service(service) => {
                (0..hosts).filter(|host| self.runs_on(service, *host, hosts) && self.admits(*host, service)).collect()
            }
        }
    }

    /// Services that the calls of an assertion go to.
    pub fn callees(&self, to: Option<usize>) -> Vec<usize> {
        let called = |at: &usize| !matches!(self.services[*at].role, Role::Gateway | Role::Egress);
        to.map_or_else(|| (0..self.services.len()).filter(called).collect(), |to| vec![to])
    }

    /// The hosts of gateways of a role, of so many.
    pub fn gateways(&self, role: Role, hosts: usize) -> Vec<usize> {
        let of = |host: &usize| {
            let own = |at: usize| self.services[at].role == role && self.runs_on(at, *host, hosts);
            (0..self.services.len()).any(own)
        };
        (0..hosts).filter(of).collect()
    }

    /// Whether it is all of applications.
    pub fn is_plain(&self) -> bool {
        self.services.iter().all(|service| service.role == Role::Application)
    }

    /// All documents: those that are kept, then the switches.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.fixed.iter().chain(&self.switches)
    }

    /// The place of a policy that a condition names among the [documents](Self::documents).
    pub fn place_of(&self, switch: &str) -> usize {
        let found = self.switches.iter().position(|document| document.key.name == switch);
        self.fixed.len() + found.expect("conditions name policies of the mesh")
    }

    /// Moves the policies that conditions name out of those that are kept, and sees to it that operators have
    /// something to do.
    fn sort(&mut self) {
        let named = |document: &Document| {
            self.assertions.iter().any(|assertion| match &assertion.claim {
                Claim::Calls { when: When::While(name) | When::Unless(name), .. }
                | Claim::Share { when: When::While(name) | When::Unless(name), .. } => *name == document.key.name,
                _ => false,
            })
        };
        (self.switches, self.fixed) = std::mem::take(&mut self.fixed).into_iter().partition(named);
        if self.switches.is_empty() {
            let (namespace, name) = ("default".into(), "weft-sim-idle".into());
            let key = ResourceKey { kind: AuthorizationPolicy::KIND.key(), namespace, name };
            self.switches.push(Document { key, text: IDLE.into() });
        }
    }
}

/// A policy that concerns nobody.
const IDLE: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: weft-sim-idle}\nspec: \
                    {action: DENY, rules: [{from: [{source: {namespaces: [weft-sim-nowhere]}}]}]}\n";
