//! Who calls whom, with all that follows from it and a table alone.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;
use weft_proto::identity::Identity;
use weft_proto::service::{Labels, ServicePort};

use super::asked::{Which, labels, namespace, routes, stream_routes};
use super::hash::{self, Keyed};
use super::localities::{self, Site, Spread};
use super::peer;
use crate::call::{Addresses, Asked, Bounds, End, Guest, Parties};
use crate::reject::Reject;
use crate::table::authz::Caller;
use crate::table::destinations::{Asker, Treatment};
use crate::table::endpoints::Slot;
use crate::table::routes::{Routes, StreamRoutes};
use crate::table::{Service, Table};
use crate::tls::Target;
use crate::upstream::{Host, Outcome, Outliers, Upstream, Upstreams};

/// Who calls whom. One core makes it once for a table and shares it between its connections.
#[derive(Debug)]
pub(crate) struct Relation {
    pub(crate) end: End,
    pub(crate) caller: Caller,
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
    /// By what port it is called, which is another one where that is a further name's.
    pub(crate) called: u16,
    /// Name under which policies know what is asked for.
    pub(crate) server_name: Box<str>,
    /// Where this node is reached, for policies.
    pub(crate) own_ip: IpAddr,
    /// Indices of the endpoints that may be chosen, own node included.
    pub(crate) candidates: Vec<usize>,
    /// At the callee's node: which of its instances is called; none where it has not the one that is asked for.
    pub(crate) instance: Option<usize>,
    /// What the instance is told of both ends.
    pub(crate) forwarded: Option<HeaderValue>,
    /// Which of the instances are meant.
    which: Which,
    /// The rules that count for these calls, at the caller's node: those that stand first of what it sees.
    pub(crate) routes: Option<Arc<Routes>>,
    /// The same for opaque streams.
    pub(crate) stream_routes: Option<Arc<StreamRoutes>>,
    /// How it is called.
    pub(crate) treatment: Treatment,
    /// The candidates by where they are.
    pub(crate) spread: Spread,
    /// Where keys lead.
    pub(crate) keyed: Option<Keyed>,
    /// At the caller's node: what its cores know together of these calls, and of each endpoint.
    pub(crate) upstream: Option<Arc<Upstream>>,
    hosts: Vec<Arc<Host>>,
    /// How far each group of the spread can serve, and when that was looked at.
    loads: Mutex<(Option<Instant>, Arc<[f64]>)>,
    /// Whose turn it is where they are chosen one after the other.
    pub(crate) turn: AtomicUsize,
    /// The caller's labels, where a rule asks for them.
    pub(crate) labels: Labels,
    /// How callers speak: `http`, or `https` where TLS ends at a gateway.
    pub(crate) scheme: &'static str,
    /// Who comes in, where that is not a caller of the mesh by a link, or a process of this host.
    guest: Option<Guest>,
    /// Whether it is a gateway that is entered: from there calls go on as the gateway's own.
    is_gate: bool,
    /// Whether it comes in plain text, and not only as if it did.
    plain: bool,
    place: Place,
}

/// A core among those of its node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) core: usize,
    pub(crate) cores: usize,
}

/// What relations are made from, besides who calls whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) table: &'a Table,
    pub(crate) place: Place,
    pub(crate) upstreams: &'a Upstreams,
}

/// An exchange that is open.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) relation: Arc<Relation>,
    pub(crate) addresses: Addresses,
    /// None on an opaque stream.
    pub(crate) asked: Option<Asked>,
    /// What the request's body broke off with.
    pub(crate) request_fault: Option<Reject>,
    /// Which of the relation's own instances serves it; none where another node's does, or none has been chosen yet.
    pub(crate) instance: Option<usize>,
    /// By what it has passed a gateway.
    pub(crate) gate: Option<Box<Current>>,
}

impl Relation {
    pub(crate) fn new(ground: Ground<'_>, parties: &Parties, service: &Arc<Service>, port: ServicePort) -> Self {
        let Ground { table, place, upstreams } = ground;
        let target = Target::Service { service: service.name.clone(), port: Some(port.port) };
        let entrance = parties.entrance.as_ref().and_then(|key| table.gateways.host(key));
        let asking = if parties.entrance.is_some() { &service.identity } else { &parties.caller };
        let alias = parties.subset.as_deref().and_then(|subset| table.alias_of(subset));
        let called = alias.and_then(|(_, called)| called).unwrap_or(port.port);
        let alias = alias.map(|(alias, _)| &**alias);
        let labels = labels(table, (parties, asking), (service, alias));
        let asker = Asker { namespace: namespace(asking), labels: &labels };
        let own = alias.and_then(|alias| alias.treatment(called, asker));
        let instance = peer::instance(parties, service);
        let guest = parties.guest.or_else(|| peer::is_disguised(parties, service, instance).then_some(Guest::Plain));
        let mut relation = Self {
            end: parties.end,
            caller: Caller::new(parties.caller.clone()),
            service: service.clone(),
            port,
            called,
            server_name: match service.name.is_outside() {
                true => service.name.name().into(),
                false => target.server_name().to_str().into(),
            },
            own_ip: table.own_ip(),
            candidates: Vec::new(),
            which: Which::of(parties, (service, alias), asker),
            instance,
            forwarded: peer::forwarded((parties, guest), service),
            routes: match entrance {
                Some(host) => host.routes.clone(),
                None => routes(parties, service, alias),
            },
            stream_routes: match entrance {
                Some(host) => host.stream_routes.clone(),
                None => stream_routes(parties, service, alias),
            },
            treatment: own.unwrap_or_else(|| service.treatment((parties.subset.as_deref(), port.port), asker)),
            spread: Spread::Even,
            keyed: None,
            upstream: None,
            hosts: Vec::new(),
            loads: Mutex::default(),
            turn: AtomicUsize::new(0),
            labels,
            scheme: entrance.map_or("http", |host| host.scheme),
            guest,
            is_gate: parties.entrance.is_some(),
            plain: parties.guest == Some(Guest::Plain),
            place,
        };
        if relation.end == End::Caller {
            let candidate = |index: &usize| relation.serves(*index) && relation.is_in_subset(*index);
            relation.candidates = (0..service.endpoints.len()).filter(candidate).collect();
            relation.prepare(table, upstreams.of(parties));
        }
        relation
    }

    /// What choosing among the candidates takes.
    fn prepare(&mut self, table: &Table, upstream: Arc<Upstream>) {
        let endpoints = &self.service.endpoints;
        let host = |at: &crate::table::endpoints::Endpoint| {
            upstream.outliers.host(&at.description.node, &at.description.instance)
        };
        upstream.outliers.under(&self.treatment.ejection);
        self.hosts = endpoints.iter().map(host).collect();
        self.upstream = Some(upstream);
        let site = |at: usize| {
            let endpoint = &endpoints[at];
            Site { locality: &endpoint.description.zone, here: endpoint.own, labels: &endpoint.description.labels }
        };
        let caller = Site { locality: &table.zone, here: true, labels: &self.labels };
        self.spread = localities::spread(&self.treatment.localities, &caller, &self.candidates, site);
        self.keyed = self.treatment.hash.as_ref().map(|hash| {
            let name = |at: &usize| {
                let one = &endpoints[*at].description;
                (*at, format!("{}/{}", one.node, one.instance), one.weight.max(1))
            };
            Keyed::new(hash.by, &self.candidates.iter().map(name).collect::<Vec<_>>())
        });
    }

    /// The endpoint that a session carries.
    pub(crate) fn of_session(&self, session: u64) -> Option<usize> {
        self.candidates.iter().copied().find(|at| self.session_of(*at) == session)
    }

    /// What a session carries that is for an endpoint.
    pub(crate) fn session_of(&self, endpoint: usize) -> u64 {
        let one = &self.service.endpoints[endpoint].description;
        hash::of(format!("{} {} {}", self.service.name, one.node, one.instance).as_bytes())
    }

    /// Who gets no calls for its failures at the moment.
    pub(crate) fn standing(&self, now: Instant) -> Standing<'_> {
        let outliers = self.upstream.as_ref().map(|upstream| &upstream.outliers).filter(|outliers| outliers.any());
        Standing { relation: self, outliers: outliers.filter(|outliers| !self.panics(outliers, now)), now }
    }

    /// Whether so few instances are left that none is left out.
    fn panics(&self, outliers: &Outliers, now: Instant) -> bool {
        let least = self.treatment.ejection.health_min;
        let there = || self.candidates.iter().filter(|index| !outliers.is_out(&self.hosts[**index], now)).count();
        least > 0 && there() * 100 < least * self.candidates.len()
    }

    /// Whether all get calls since so many are out.
    pub(crate) fn is_panicking(&self, now: Instant) -> bool {
        self.upstream.as_ref().is_some_and(|upstream| self.panics(&upstream.outliers, now))
    }

    /// How much longer an instance is out, and how often it was.
    pub(crate) fn ejected(&self, index: usize, now: Instant) -> Option<(Duration, u32)> {
        self.upstream.as_ref()?.outliers.read(&self.hosts[index], now)
    }

    /// A try begins at an endpoint.
    pub(crate) fn started(&self, endpoint: usize, now: Instant) {
        self.slot(endpoint).start(now);
        if let Some(upstream) = &self.upstream {
            upstream.outliers.started(&self.hosts[endpoint], &self.treatment.ejection, now);
        }
    }

    /// What came of a try.
    pub(crate) fn ended(&self, endpoint: usize, outcome: Outcome, now: Instant) {
        let Some(upstream) = &self.upstream else { return };
        // What fails behind a gateway says nothing of that.
        let gateway = self.service.endpoints[endpoint].description.gateway && self.treatment.ejection.probes;
        let outcome = if gateway && matches!(outcome, Outcome::Status(_)) { Outcome::Status(200) } else { outcome };
        let all = (&self.hosts[..], &self.candidates[..]);
        for (at, span) in upstream.outliers.ended((endpoint, outcome), all, &self.treatment.ejection, now) {
            let one = &self.service.endpoints[at].description;
            tracing::warn!(
                service = %self.service.name, node = %one.node, instance = %one.instance, ?outcome,
                seconds = span.as_secs_f64(), caller = %self.caller.identity(), "an instance is ejected for its failures"
            );
        }
    }

    /// How far each group of the spread can serve, 0 to 1: as much as its share of instances that are well, with something
    /// to spare (Envoy's overprovisioning factor). Looked at ten times a second.
    pub(crate) fn loads(&self, groups: &[&[usize]], now: Instant) -> Arc<[f64]> {
        let mut loads = self.loads.lock();
        if loads.0.is_none_or(|at| now >= at + LOOKED_AT) {
            let standing = self.standing(now);
            let well = |index: &&usize| standing.is_well(**index);
            #[expect(clippy::cast_precision_loss, reason = "numbers of instances")]
            let load = |group: &&[usize]| {
                let share = group.iter().filter(well).count() as f64 / group.len().max(1) as f64;
                (share * OVERPROVISIONING).min(1.0)
            };
            *loads = (Some(now), groups.iter().map(load).collect());
        }
        loads.1.clone()
    }

    /// How much of its share an instance gets that is new.
    pub(crate) fn warmth(&self, index: usize, now: Instant) -> f64 {
        let Some(warmup) = &self.treatment.warmup else { return 1.0 };
        let age = now.saturating_duration_since(self.service.endpoints[index].statistics.since);
        let part = (age.as_secs_f64() / warmup.duration.as_secs_f64().max(1e-3)).min(1.0);
        part.powf(1.0 / warmup.aggression).max(warmup.least)
    }

    /// Bound on reaching an instance.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.treatment.connect_timeout.unwrap_or(self.service.settings.connect_timeout)
    }

    /// How long an opaque stream may be silent, and last.
    pub(crate) fn bounds(&self) -> Bounds {
        let idle = match self.treatment.stream_idle_timeout {
            Some(Duration::ZERO) => None,
            Some(timeout) => Some(timeout),
            None => self.service.settings.idle_timeout,
        };
        Bounds { idle, whole: self.treatment.stream_duration_max }
    }

    /// Whether a gateway is entered.
    pub(crate) fn is_gate(&self) -> bool {
        self.is_gate
    }

    /// Who calls; none where that is somebody of whom nothing is known.
    pub(crate) fn known_caller(&self) -> Option<&Caller> {
        matches!(self.guest, None | Some(Guest::Mesh)).then_some(&self.caller)
    }

    /// Whether somebody calls in plain text at an instance's own port.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Where somebody calls in plain text: the port at which the instance listens.
    pub(crate) fn plain_at(&self) -> Option<u16> {
        let instance = self.instance.filter(|_| self.plain)?;
        self.service.instances[instance].port(self.port.port).map(|port| port.target.port())
    }

    /// As whom calls go on: where a gateway is entered, as that.
    pub(crate) fn onward(&self) -> &Identity {
        if self.is_gate() { &self.service.identity } else { self.caller.identity() }
    }

    /// Whether rules ask what a stream of TLS asks for.
    pub(crate) fn asks_for_names(&self) -> bool {
        self.stream_routes.as_ref().is_some_and(|routes| routes.ask_for_names(self.called))
    }

    /// The caller, as documents about the service ask for it.
    pub(crate) fn asker(&self) -> Asker<'_> {
        Asker { namespace: self.namespace(), labels: &self.labels }
    }

    /// Whether an instance may be called at the port.
    pub(crate) fn serves(&self, index: usize) -> bool {
        let (service, port) = (&self.service, self.port.port);
        let endpoint = &service.endpoints[index];
        let own = || service.instance(&endpoint.description.instance);
        let ready = !endpoint.here || own().is_some_and(|own| service.instances[own].serves(port));
        endpoint.description.healthy && endpoint.description.ports.contains(&port) && ready
    }

    /// Whether an instance is among those that are meant.
    pub(crate) fn is_in_subset(&self, index: usize) -> bool {
        let own = &self.service.endpoints[index].description;
        match &self.which {
            Which::All => true,
            Which::Labelled(labels) => self.service.is_in(&own.labels, labels),
            Which::Called(instance) => own.is_called(instance),
            Which::None => false,
        }
    }

    /// The namespace of whom calls go on as; empty for a node.
    pub(crate) fn namespace(&self) -> &str {
        namespace(self.onward())
    }

    /// What this core has learned about an endpoint.
    pub(crate) fn slot(&self, endpoint: usize) -> &Slot {
        self.service.endpoints[endpoint].statistics.slot(self.place.core, self.place.cores)
    }

    /// Whether another node may serve it.
    pub(crate) fn leads_elsewhere(&self) -> bool {
        self.candidates.iter().any(|index| !self.service.endpoints[*index].here)
    }

    /// Both ends as this node sees them where the call begins here.
    pub(crate) fn own_addresses(&self) -> Addresses {
        Addresses { source: self.own_ip, destination: self.own_ip, remote: self.own_ip }
    }
}

/// Which of a relation's instances are out at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'r> {
    relation: &'r Relation,
    /// None where none is, or all get calls anyway.
    outliers: Option<&'r Outliers>,
    now: Instant,
}

impl Standing<'_> {
    /// Whether an instance gets no calls for its failures.
    pub(crate) fn is_out(&self, index: usize) -> bool {
        self.outliers.is_some_and(|outliers| outliers.is_out(&self.relation.hosts[index], self.now))
    }

    /// Whether nothing speaks against an instance.
    pub(crate) fn is_well(&self, index: usize) -> bool {
        !self.is_out(index) && !self.relation.slot(index).is_avoided(self.now)
    }
}

/// How long what is known of groups counts.
const LOOKED_AT: Duration = Duration::from_millis(100);
/// A group of which so much less is well still serves all.
const OVERPROVISIONING: f64 = 1.4;
