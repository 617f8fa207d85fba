//! Rules about destinations: their subsets, and what of their policies has no effect.

use weft_proto::kinds::authorization_policy::APP_LABEL;
use weft_proto::kinds::core_service::CoreService;
use weft_proto::kinds::destination_rule::{DestinationRule, Subset, TrafficPolicy};
use weft_proto::kinds::istio::service_of;
use weft_proto::service::{Labels, ServiceName};

use super::{Findings, Ground, KnownService, Read};

/// Whether a rule is about the service.
pub(super) fn is_about(rule: &Read<'_, DestinationRule>, name: &ServiceName) -> bool {
    rule.spec.services(&rule.resource.key.namespace).contains(name)
}

pub(super) fn rules(ground: &Ground<'_>, findings: &mut Findings) {
    for one in &ground.rules {
        let Some(name) = service_of(&one.spec.host, &one.resource.key.namespace) else { continue };
        if ground.lacks(&name) {
            findings.add("WFT101", one.resource, "spec.host".into(), format!("there is no service {name}"));
            continue;
        }
        let service = ground.service(&name);
        if let Some(policy) = &one.spec.traffic_policy {
            self::policy(one, (policy, "spec.trafficPolicy"), (&name, service), findings);
        }
        for (at, subset) in one.spec.subsets.iter().enumerate() {
            let path = format!("spec.subsets[{at}]");
            if let Some(policy) = &subset.traffic_policy {
                self::policy(one, (policy, &format!("{path}.trafficPolicy")), (&name, service), findings);
            }
            if let Some(service) = service.filter(|service| members(service, &subset.labels) == 0) {
                let count = service.instances.len();
                let text = format!("none of the {count} instances of {name} has its labels: calls of it get 503");
                findings.add("WFT104", one.resource, format!("{path}.labels"), text);
            }
            if subset.traffic_policy.is_some() && !is_named(ground, &name, subset) {
                let text = format!("no route names the subset {}, so that its policy has no effect", subset.name);
                findings.add("WFT304", one.resource, path, text);
            }
        }
    }
}

fn members(service: &KnownService, labels: &Labels) -> usize {
    let has = |own: &&Labels| labels.iter().all(|(name, value)| own.get(name) == Some(value));
    service.instances.iter().filter(has).count()
}

fn is_named(ground: &Ground<'_>, name: &ServiceName, subset: &Subset) -> bool {
    ground.virtual_services.iter().any(|one| {
        let http = one.spec.http.iter().flat_map(|rule| {
            let routes = rule.route.iter().map(|to| &to.destination);
            routes.chain(&rule.mirror).chain(rule.mirrors.iter().map(|mirror| &mirror.destination))
        });
        let tls = one.spec.tls.iter().flat_map(|rule| &rule.route);
        let tcp = one.spec.tcp.iter().flat_map(|rule| &rule.route).chain(tls).map(|to| &to.destination);
        let namespace = &one.resource.key.namespace;
        http.chain(tcp).any(|to| to.subset == subset.name && service_of(&to.host, namespace).as_ref() == Some(name))
    })
}

fn policy(
    one: &Read<'_, DestinationRule>,
    (policy, path): (&TrafficPolicy, &str),
    (name, service): (&ServiceName, Option<&KnownService>),
    findings: &mut Findings,
) {
    if let (Some(outlier), Some(service)) = (&policy.outlier_detection, service) {
        let percent = if outlier.max_ejection_percent == 0 { 10 } else { outlier.max_ejection_percent };
        let count = service.instances.len();
        if count > 0 && count * usize::try_from(percent).unwrap_or(100) < 100 {
            let text = format!("{percent} % of {count} instances of {name} is less than one: none is ever left out");
            findings.add("WFT301", one.resource, format!("{path}.outlierDetection.maxEjectionPercent"), text);
        }
    }
    let setting = policy.load_balancer.as_ref().and_then(|balancer| balancer.locality_lb_setting.as_ref());
    let fails_over = setting.is_some_and(|one| !one.failover.is_empty() || !one.failover_priority.is_empty());
    if fails_over && policy.outlier_detection.is_none() {
        let text = "without outlierDetection it has no effect: all instances are taken alike";
        findings.add("WFT302", one.resource, format!("{path}.loadBalancer.localityLbSetting"), text.into());
    }
    for (at, setting) in policy.port_level_settings.iter().enumerate() {
        let number = setting.port.number;
        if service.is_some_and(|service| service.ports.iter().all(|port| port.port != number)) {
            let text = format!("{name} has no port {number}");
            findings.add("WFT303", one.resource, format!("{path}.portLevelSettings[{at}].port.number"), text);
        }
    }
}

/// Further names of services.
pub(super) fn aliases(ground: &Ground<'_>, findings: &mut Findings) {
    for one in &ground.aliases {
        let key = &one.resource.key;
        let Some(services) = ground.services else { return };
        let Some(meant) = one.spec.service(&key.namespace) else { continue };
        let Ok(own) = ServiceName::new(&key.namespace, &key.name) else { continue };
        if services.contains_key(&own) && own != meant {
            let text = format!("a service {own} is registered, which goes before it");
            findings.add("WFT401", one.resource, "metadata.name".into(), text);
        }
        match services.get(&meant) {
            None => {
                let path = format!("spec.selector.{APP_LABEL}");
                findings.add("WFT101", one.resource, path, format!("there is no service {meant}"));
            }
            Some(service) => instances(one, (&meant, service), findings),
        }
    }
}

fn instances(one: &Read<'_, CoreService>, (meant, service): (&ServiceName, &KnownService), findings: &mut Findings) {
    if members(service, &one.spec.labels()) == 0 {
        let text = format!("none of the {} instances of {meant} has its labels", service.instances.len());
        findings.add("WFT104", one.resource, "spec.selector".into(), text);
    }
}
