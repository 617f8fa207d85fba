//! The rules that a `Gateway` keeps beyond its form (the standard's own).

use super::{FromNamespaces, Gateway, Listener, ListenerTls, NAMESPACE_LABEL, ObjectRef, TERMINATE_OPTION};
use crate::kinds::Faults;
use crate::kinds::hosts::is_host_name;

pub(super) fn gateway(gateway: &Gateway, faults: &mut Faults) {
    if !CLASSES.contains(&gateway.gateway_class_name.as_str()) {
        let text = format!("{:?} is none of {}", gateway.gateway_class_name, CLASSES.join(", "));
        faults.push(("spec.gatewayClassName".into(), text));
    }
    if gateway.listeners.is_empty() {
        faults.push(("spec.listeners".into(), "give at least one".into()));
    }
    for (at, one) in gateway.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{at}]");
        if gateway.listeners[..at].iter().any(|other| other.name == one.name) {
            faults.push((format!("{path}.name"), format!("{} is the name of another one", one.name)));
        }
        listener(one, &path, faults);
        validations(gateway, one, &path, faults);
    }
    for (at, address) in gateway.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{at}]");
        match address.r#type.as_str() {
            "Hostname" => {}
            "IPAddress" if address.value.is_empty() || address.value.parse::<std::net::IpAddr>().is_ok() => {}
            "IPAddress" => faults.push((format!("{path}.value"), "an address, such as 192.0.2.1".into())),
            _ => faults.push((format!("{path}.type"), "IPAddress or Hostname".into())),
        }
    }
}

fn listener(listener: &Listener, path: &str, faults: &mut Faults) {
    if listener.port == 0 {
        faults.push((format!("{path}.port"), "1 to 65535".into()));
    }
    if listener.name.is_empty() {
        faults.push((format!("{path}.name"), "give it a name".into()));
    }
    if listener.hostname.as_ref().is_some_and(|name| !name.is_empty() && !is_host_name(name)) {
        let text = "a host is written like shop.example.com or *.example.com";
        faults.push((format!("{path}.hostname"), text.into()));
    }
    let protocol = listener.protocol.as_str();
    match (protocol, &listener.tls) {
        ("HTTP" | "TCP", None) => {}
        ("HTTP" | "TCP", Some(_)) => faults.push((format!("{path}.tls"), format!("it does not go with {protocol}"))),
        ("HTTPS" | "TLS", None) => faults.push((format!("{path}.tls"), "HTTPS and TLS need it".into())),
        ("HTTPS" | "TLS", Some(given)) => tls(given, protocol, &format!("{path}.tls"), faults),
        _ => faults.push((format!("{path}.protocol"), "HTTP, HTTPS, TLS or TCP".into())),
    }
    if let Some(allowed) = &listener.allowed_routes {
        let path = format!("{path}.allowedRoutes");
        for (at, kind) in allowed.kinds.iter().enumerate() {
            if !listener.kinds().contains(&kind.kind.as_str()) {
                let text = format!("{} does not fit; those that do: {}", kind.kind, listener.kinds().join(", "));
                faults.push((format!("{path}.kinds[{at}]"), text));
            }
        }
        let selector = allowed.namespaces.selector.as_ref();
        if allowed.namespaces.from == FromNamespaces::Selector && selector.is_none() {
            faults.push((format!("{path}.namespaces.selector"), "Selector needs one".into()));
        }
        let keys = selector.iter().flat_map(|selector| {
            selector.match_labels.keys().chain(selector.match_expressions.iter().map(|one| &one.key))
        });
        for key in keys.filter(|key| *key != NAMESPACE_LABEL) {
            let text = format!("{key}: namespaces have no label here but {NAMESPACE_LABEL}, their name");
            faults.push((format!("{path}.namespaces.selector"), text));
        }
    }
}

fn tls(tls: &ListenerTls, protocol: &str, path: &str, faults: &mut Faults) {
    let passes = tls.mode == super::ListenerTlsMode::Passthrough;
    if protocol == "HTTPS" && passes {
        faults.push((format!("{path}.mode"), "HTTPS ends here; Passthrough goes with TLS".into()));
    }
    if passes && !tls.certificate_refs.is_empty() {
        faults.push((format!("{path}.certificateRefs"), "what is passed on needs none".into()));
    }
    for (name, value) in &tls.options {
        let modes = ["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL"];
        if name != TERMINATE_OPTION {
            faults.push((format!("{path}.options"), format!("{name} is not known; {TERMINATE_OPTION} is")));
        } else if !modes.contains(&value.as_str()) {
            faults.push((format!("{path}.options"), format!("{name}: one of {}", modes.join(", "))));
        }
    }
    let own = tls.options.get(TERMINATE_OPTION).is_some_and(|mode| mode == "ISTIO_MUTUAL");
    if !passes && !own && tls.certificate_refs.is_empty() {
        faults.push((format!("{path}.certificateRefs"), "name a Secret with a certificate".into()));
    }
    for (at, one) in tls.certificate_refs.iter().enumerate() {
        reference(one, &["Secret"], &format!("{path}.certificateRefs[{at}]"), faults);
    }
}

/// The authorities of callers, wherever they are said.
fn validations(gateway: &Gateway, listener: &Listener, path: &str, faults: &mut Faults) {
    let Some(validation) = gateway.validation(listener).filter(|_| listener.tls.is_some()) else { return };
    let path = format!("{path}.tls.frontendValidation.caCertificateRefs");
    if validation.ca_certificate_refs.is_empty() {
        faults.push((path.clone(), "name at least one".into()));
    }
    for (at, one) in validation.ca_certificate_refs.iter().enumerate() {
        reference(one, &["Secret", "ConfigMap"], &format!("{path}[{at}]"), faults);
    }
}

fn reference(to: &ObjectRef, kinds: &[&str], path: &str, faults: &mut Faults) {
    if !(to.group.is_empty() || to.group == "core") || !kinds.contains(&to.kind.as_str()) {
        faults.push((format!("{path}.kind"), format!("{} of the group \"\"", kinds.join(" or "))));
    }
}

const CLASSES: [&str; 2] = ["weft", "istio"];
