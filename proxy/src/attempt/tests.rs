//! Which instance gets a call, and what follows where it fails, as golden scripts: `tests/scripts/calls/`.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weft_proto::identity::Identity;
use weft_proto::kinds::Spec;
use weft_proto::kinds::destination_rule::DestinationRule;
use weft_proto::kinds::service::ServiceSettings;
use weft_proto::resource::ResourceKey;
use weft_proto::service::{DEFAULT_NAMESPACE, InstanceName, Protocol, ServiceName, ServicePort};

use crate::balance::Flight;
use crate::call::{Addresses, End, Parties};
use crate::connect::link::LinkError;
use crate::decide::relation::{Ground, Place, Relation};
use crate::decide::{Decision, Question, decide};
use crate::golden::{self, Line, Told};
use crate::lane::Lanes;
use crate::record::Recorder;
use crate::table::Table;
use crate::table::description::{Calls, Description, EndpointDescription, Intercepts, ServiceDescription};
use crate::table::peers::PeersDescription;
use crate::table::routes::SubsetDocument;
use crate::upstream::Upstreams;

use super::*;

/// What an instance makes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Answers(Duration),
    Fails(u16),
    Refuses,
    Unreachable,
    NoInstance,
    Lost,
    Breaks,
}

/// The instances of a service as one core of a caller's node calls them.
struct Script {
    instances: BTreeMap<InstanceName, (EndpointDescription, Manner)>,
    settings: ServiceSettings,
    rule: Option<DestinationRule>,
    table: Option<Table>,
    lanes: Lanes,
    upstreams: Upstreams,
    recorder: Recorder,
    open: Vec<Option<Flight>>,
}

impl Default for Script {
    fn default() -> Self {
        let recorder = Recorder::new(mpsc::channel(1).0, 0.0, 7);
        let (instances, settings) = (BTreeMap::new(), ServiceSettings::default());
        let (lanes, upstreams) = (Lanes::default(), Upstreams::default());
        Self { instances, settings, rule: None, table: None, lanes, upstreams, recorder, open: Vec::new() }
    }
}

impl Script {
    async fn run(&mut self, mut line: Line<'_>) -> Told {
        let told = match line.word()? {
            "instance" => self.instance(&mut line)?,
            "retries" => {
                self.settings.retries = Some(line.word()?.parse()?);
                self.build()?
            }
            // `policy {"loadBalancer":{"simple":"ROUND_ROBIN"}}`: as a DestinationRule says it.
            "policy" => {
                let spec = format!(r#"{{"host":"web","trafficPolicy":{}}}"#, line.word()?);
                self.rule = Some(serde_json::from_str(&spec)?);
                self.build()?
            }
            "no-policy" => {
                self.rule = None;
                self.build()?
            }
            "wait" => {
                tokio::time::sleep(milliseconds(line.word()?)?).await;
                String::new()
            }
            // One call after the other: where they went.
            "calls" => {
                let mut shares: BTreeMap<String, usize> = BTreeMap::new();
                for _ in 0..line.word()?.parse::<usize>()? {
                    let tries = self.call(false).await?;
                    *shares.entry(tries.last().cloned().unwrap_or_default()).or_default() += 1;
                }
                shares.iter().map(|(place, count)| format!("{count} x {place}\n")).collect()
            }
            "call" => self.call(false).await?.join("\n") + "\n",
            // Calls that are still open when the next one begins.
            "open" => {
                let mut shares: BTreeMap<String, usize> = BTreeMap::new();
                for _ in 0..line.word()?.parse::<usize>()? {
                    *shares.entry(self.call(true).await?.concat()).or_default() += 1;
                }
                shares.iter().map(|(place, count)| format!("{count} x {place}\n")).collect()
            }
            "close" => {
                self.open.clear();
                String::new()
            }
            other => return Err(format!("there is no command {other}").into()),
        };
        line.end()?;
        Ok(told)
    }

    /// `instance NAME [node=NODE] [weight=N] [zone=ZONE] [MANNER]`
    fn instance(&mut self, line: &mut Line<'_>) -> Told {
        let name: InstanceName = line.word()?.parse()?;
        let node = line.named("node")?.unwrap_or_else(|| format!("n-{name}").parse().expect("a name"));
        let weight = line.named("weight")?.unwrap_or(100);
        let zone = line.named("zone")?.unwrap_or_default();
        let manner = match line.word().unwrap_or("answers") {
            "answers" => Manner::Answers(line.word().map_or(Ok(Duration::from_millis(1)), milliseconds)?),
            "fails" => Manner::Fails(line.word()?.parse()?),
            "refuses" => Manner::Refuses,
            "unreachable" => Manner::Unreachable,
            "no-instance" => Manner::NoInstance,
            "lost" => Manner::Lost,
            "breaks" => Manner::Breaks,
            "gone" => {
                self.instances.remove(&name);
                return self.build();
            }
            other => return Err(format!("no instance {other}").into()),
        };
        let endpoint = EndpointDescription {
            node,
            instance: name.clone(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            address: (Ipv4Addr::new(10, 0, 0, 1), 7946).into(),
            zone,
            ports: vec![PORT.port],
            targets: Vec::new(),
            weight,
            healthy: true,
            gateway: false,
        };
        self.instances.insert(name, (endpoint, manner));
        self.build()
    }

    /// The table as it is now, which takes over what was learned.
    fn build(&mut self) -> Told {
        let service = ServiceDescription {
            name: "web".parse()?,
            account: "web".parse()?,
            labels: BTreeMap::new(),
            address: None,
            listened: Vec::new(),
            ports: vec![PORT],
            settings: Some(Arc::new(self.settings.clone())),
            calls: Calls { subsets: self.rule.iter().map(rule).collect(), ..Calls::default() },
            endpoints: self.instances.values().map(|(endpoint, _)| endpoint.clone()).collect(),
            outside: None,
        };
        let description = Description {
            index: 1,
            trust_domain: "mesh.test".parse()?,
            node: "me".parse()?,
            zone: "r1/z1".into(),
            deny_by_default: false,
            peers: PeersDescription::default(),
            services: vec![Arc::new(service)],
            policies: Vec::new(),
            local: Vec::new(),
            callers: BTreeMap::new(),
            caller_any: None,
            caller_groups: BTreeMap::new(),
            aliases: Vec::new(),
            grants: Vec::new(),
            binds: Vec::new(),
            intercepts: Intercepts::default(),
            gateways: Vec::new(),
            challenges: Vec::new(),
        };
        self.table = Some(Table::build(description, self.table.as_ref())?);
        Ok(String::new())
    }

    fn route(&self) -> Result<Route, Box<dyn Error>> {
        let table = self.table.as_ref().ok_or("there is no instance")?;
        let name: ServiceName = "web".parse()?;
        let caller = Identity::service(table.trust_domain.clone(), "shop".parse()?);
        let parties = Parties {
            end: End::Caller,
            caller,
            service: name.clone(),
            port: PORT.port,
            instance: None,
            subset: None,
            entrance: None,
            guest: None,
            certificate: None,
        };
        let service = table.service(&name).ok_or("there is no service")?;
        let ground = Ground { table, place: Place { core: 0, cores: 1 }, upstreams: &self.upstreams };
        let make = |parties: &Parties| (Relation::new(ground, parties, service, PORT), true);
        let leg = self.lanes.leg(table.generation, parties, &self.recorder, make);
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let addresses = Addresses { source: nowhere, destination: nowhere, remote: nowhere };
        let question = Question { relation: &leg.relation, addresses, sni: "", http: None };
        match decide(&question).0 {
            Decision::Forward(permit) => Ok(Route::new(leg, permit, None)),
            Decision::Refuse(reject) => Err(format!("{reject:?}").into()),
        }
    }

    /// A call, try by try, as [`attempt`] makes it; one that stays open tells only where it went.
    async fn call(&mut self, stays: bool) -> Result<Vec<String>, Box<dyn Error>> {
        let route = self.route()?;
        let (mut tries, mut told, random) = (Tries::new(route.leg(), None), Vec::new(), &self.recorder.random);
        let began = Instant::now();
        loop {
            let tried = |endpoint| tries.tried(endpoint);
            let chosen = match balance::choose(&route.permit, tried, Aim::Any, Instant::now(), random) {
                Ok(chosen) => chosen,
                Err(reject) => {
                    told.push(format!("{}", reject.status()));
                    return Ok(told);
                }
            };
            tries.begin(&chosen);
            let endpoint = chosen.endpoint().ok_or("chosen at the callee's node")?;
            let endpoint = &route.leg().relation.service.endpoints[endpoint].description;
            let (at, name) = (began.elapsed().as_millis(), &endpoint.instance);
            let flight = chosen.flight().ok_or("no flight")?;
            if stays {
                self.open.push(Some(flight));
                return Ok(vec![name.to_string()]);
            }
            let failure = match self.instances[name].1 {
                Manner::Fails(status) => {
                    flight.answered();
                    chosen.ended(Outcome::Status(status));
                    told.push(format!("{name} answers {status}{}", after_ms(at)));
                    return Ok(told);
                }
                Manner::Answers(after) => {
                    tokio::time::sleep(after).await;
                    flight.answered();
                    chosen.ended(Outcome::Status(200));
                    told.push(format!("{name} answers{}", after_ms(at)));
                    return Ok(told);
                }
                Manner::Refuses => Failure { reject: Reject::NoInstance, again: Again::Later },
                Manner::Unreachable => Failure::of_link(LinkError::Unreachable("cut".into())),
                Manner::NoInstance => Failure::of_link(LinkError::NoInstance),
                Manner::Lost => Failure::lost("cut".into()),
                Manner::Breaks => Failure::broken("cut".into()),
            };
            told.push(format!("{name} does not: {:?}{}", failure.again, after_ms(at)));
            let failure = blamed(failure, &chosen, self.instances[name].1 == Manner::NoInstance);
            drop(flight);
            if let Err(reject) = tries.again(failure, random).await {
                told.push(format!("{}{}", reject.status(), after_ms(began.elapsed().as_millis())));
                return Ok(told);
            }
        }
    }
}

fn rule(spec: &DestinationRule) -> Arc<SubsetDocument> {
    let (kind, namespace) = (DestinationRule::KIND.key(), DEFAULT_NAMESPACE.to_owned());
    let key = ResourceKey { kind, namespace, name: "web".into() };
    Arc::new(SubsetDocument { key, created: 1, spec: spec.clone() })
}

fn after_ms(milliseconds: u128) -> String {
    if milliseconds == 0 { String::new() } else { format!(" after {milliseconds} ms") }
}

fn milliseconds(text: &str) -> Result<Duration, Box<dyn Error>> {
    match (text.strip_suffix("ms"), text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(number), ..) => Ok(Duration::from_millis(number.parse()?)),
        (_, Some(number), _) => Ok(Duration::from_secs(number.parse()?)),
        (.., Some(number)) => Ok(Duration::from_mins(number.parse()?)),
        _ => Err(format!("{text} is no time").into()),
    }
}

#[test]
fn calls_go_where_the_scripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/calls");
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    golden::run(&folder, |script: &mut Script, line| runtime.block_on(script.run(line)));
}

const PORT: ServicePort = ServicePort { port: 80, protocol: Protocol::Http };
