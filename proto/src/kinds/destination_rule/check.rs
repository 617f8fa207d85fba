//! The rules that a `DestinationRule` keeps beyond its form (Istio's validation).

use super::{
    ConnectionPool, ConsistentHash, DestinationRule, H2UpgradePolicy, LoadBalancer, LocalitySetting, OutlierDetection,
    PortTrafficPolicy, Simple, Tls, TlsMode, TrafficPolicy, Tunnel, Warmup,
};
use crate::kinds::Faults;
use crate::kinds::hosts::is_host_name;
use crate::kinds::istio::{GoDuration, check_export, is_field_name, service_of};
use crate::service::{DEFAULT_NAMESPACE, ServiceName};

pub(super) fn destination_rule(rule: &DestinationRule, faults: &mut Faults) {
    let wide =
        rule.host == "*" || rule.host.strip_prefix("*.").is_some_and(|end| !end.is_empty() && !end.contains('*'));
    if !wide && service_of(&rule.host, DEFAULT_NAMESPACE).is_none() && !is_host_name(&rule.host) {
        let text =
            format!("{:?} is no service: write it like web, web.default, shop.example.com or *.local", rule.host);
        faults.push(("spec.host".into(), text));
    }
    check_export(&rule.export_to, faults);
    if rule.workload_selector.is_some() && rule.export_to.iter().any(|name| name != ".") {
        faults.push(("spec.exportTo".into(), "with a workloadSelector it is '.' or left out".into()));
    }
    if let Some(policy) = &rule.traffic_policy {
        traffic_policy(policy, "spec.trafficPolicy", faults);
    }
    for (at, subset) in rule.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &format!("spec.subsets[{at}].trafficPolicy"), faults);
        }
        let path = format!("spec.subsets[{at}].name");
        if rule.subsets[..at].iter().any(|other| other.name == subset.name) {
            faults.push((path, format!("{} is listed twice", subset.name)));
        } else if ServiceName::new(DEFAULT_NAMESPACE, &subset.name).is_err() {
            faults.push((path, "a DNS label: small letters, digits and '-', at most 63".into()));
        }
    }
}

fn traffic_policy(policy: &TrafficPolicy, path: &str, faults: &mut Faults) {
    if *policy == TrafficPolicy::default() {
        faults.push((path.into(), "it says nothing".into()));
    }
    let blocks = (policy.load_balancer.as_ref(), policy.connection_pool.as_ref(), policy.outlier_detection.as_ref());
    self::blocks(blocks, path, faults);
    if let Some(one) = &policy.tls {
        tls(one, &format!("{path}.tls"), faults);
    }
    if let Some(one) = &policy.tunnel {
        tunnel(one, policy.proxy_protocol.is_some(), &format!("{path}.tunnel"), faults);
    }
    let percent = policy.retry_budget.as_ref().and_then(|budget| budget.percent);
    if percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        faults.push((format!("{path}.retryBudget.percent"), "0 to 100".into()));
    }
    for (at, one) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{at}]");
        if one.port.number == 0 {
            faults.push((format!("{path}.port.number"), "1 to 65535".into()));
        }
        if policy.port_level_settings[..at].iter().any(|other| other.port == one.port) {
            faults.push((format!("{path}.port.number"), format!("{} is listed twice", one.port.number)));
        }
        if *one == (PortTrafficPolicy { port: one.port.clone(), ..PortTrafficPolicy::default() }) {
            faults.push((path.clone(), "it says nothing".into()));
        }
        let blocks = (one.load_balancer.as_ref(), one.connection_pool.as_ref(), one.outlier_detection.as_ref());
        self::blocks(blocks, &path, faults);
        if let Some(one) = &one.tls {
            tls(one, &format!("{path}.tls"), faults);
        }
    }
}

fn tunnel(tunnel: &Tunnel, beside: bool, path: &str, faults: &mut Faults) {
    if beside {
        faults.push((path.into(), "tunnel and proxyProtocol exclude each other".into()));
    }
    match tunnel.protocol.as_str() {
        "" | "CONNECT" => {}
        "POST" => faults.push((format!("{path}.protocol"), "Weft asks proxies by CONNECT only".into())),
        _ => faults.push((format!("{path}.protocol"), "CONNECT".into())),
    }
    let is_address = tunnel.target_host.parse::<std::net::IpAddr>().is_ok();
    if !is_address && !is_host_name(&tunnel.target_host) {
        faults.push((format!("{path}.targetHost"), "the name of a host, or an IP address".into()));
    }
    if tunnel.target_port == 0 {
        faults.push((format!("{path}.targetPort"), "1 to 65535".into()));
    }
}

fn tls(tls: &Tls, path: &str, faults: &mut Faults) {
    let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates].iter().any(|file| !file.is_empty());
    let own = !tls.client_certificate.is_empty() || !tls.private_key.is_empty();
    if !tls.credential_name.is_empty() && files {
        faults.push((format!("{path}.credentialName"), "files are given too".into()));
    }
    match tls.mode {
        TlsMode::Mutual if tls.credential_name.is_empty() => {
            for (name, file) in [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)] {
                if file.is_empty() {
                    faults.push((format!("{path}.{name}"), "MUTUAL needs it, or a credentialName".into()));
                }
            }
        }
        TlsMode::Simple if own => {
            faults.push((format!("{path}.clientCertificate"), "SIMPLE shows none".into()));
        }
        TlsMode::IstioMutual | TlsMode::Disable if files || !tls.credential_name.is_empty() => {
            faults.push((path.into(), "certificates go with SIMPLE and MUTUAL only".into()));
        }
        _ => {}
    }
    let checks = !tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty();
    if tls.insecure_skip_verify && checks {
        faults.push((format!("{path}.insecureSkipVerify"), "nothing is checked then, and something is given".into()));
    }
}

fn blocks(
    (balancer, pool, outlier): (Option<&LoadBalancer>, Option<&ConnectionPool>, Option<&OutlierDetection>),
    path: &str,
    faults: &mut Faults,
) {
    if let Some(balancer) = balancer {
        load_balancer(balancer, &format!("{path}.loadBalancer"), faults);
    }
    if let Some(pool) = pool {
        connection_pool(pool, &format!("{path}.connectionPool"), faults);
    }
    if let Some(outlier) = outlier {
        outlier_detection(outlier, &format!("{path}.outlierDetection"), faults);
    }
}

fn load_balancer(balancer: &LoadBalancer, path: &str, faults: &mut Faults) {
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            faults.push((format!("{path}.simple"), "simple and consistentHash exclude each other".into()));
        }
        consistent_hash(hash, &format!("{path}.consistentHash"), faults);
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        locality(setting, &format!("{path}.localityLbSetting"), faults);
    }
    if let Some(setting) = &balancer.zone_aware_lb_setting {
        let path = format!("{path}.zoneAwareLbSetting");
        if balancer.locality_lb_setting.is_some() {
            faults.push((path.clone(), "zoneAwareLbSetting and localityLbSetting exclude each other".into()));
        }
        locality(&setting.order(), &path, faults);
    }
    let warms = balancer.warmup.is_some() || balancer.warmup_duration_secs.is_some();
    if warms && (balancer.consistent_hash.is_some() || balancer.simple == Some(Simple::Random)) {
        faults.push((format!("{path}.warmup"), "it goes with ROUND_ROBIN and LEAST_REQUEST only".into()));
    }
    span(balancer.warmup_duration_secs, false, &format!("{path}.warmupDurationSecs"), faults);
    let Some(Warmup { duration, minimum_percent, aggression }) = &balancer.warmup else { return };
    if balancer.warmup_duration_secs.is_some() {
        faults.push((format!("{path}.warmupDurationSecs"), "warmup says it already".into()));
    }
    duration.check(&format!("{path}.warmup.duration"), false, faults);
    if minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        faults.push((format!("{path}.warmup.minimumPercent"), "0 to 100".into()));
    }
    if aggression.is_some_and(|aggression| !(aggression > 0.0 && aggression.is_finite())) {
        faults.push((format!("{path}.warmup.aggression"), "more than 0".into()));
    }
}

fn consistent_hash(hash: &ConsistentHash, path: &str, faults: &mut Faults) {
    let keys = [
        !hash.http_header_name.is_empty(),
        hash.http_cookie.is_some(),
        hash.use_source_ip,
        !hash.http_query_parameter_name.is_empty(),
    ];
    if keys.iter().filter(|given| **given).count() != 1 {
        let text = "one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName";
        faults.push((path.into(), text.into()));
    }
    if !hash.http_header_name.is_empty() && !is_field_name(&hash.http_header_name) {
        faults.push((format!("{path}.httpHeaderName"), "it is no name of a header field".into()));
    }
    if let Some(cookie) = &hash.http_cookie {
        if !is_field_name(&cookie.name) {
            faults.push((format!("{path}.httpCookie.name"), "it is no name of a cookie".into()));
        }
        span(cookie.ttl, true, &format!("{path}.httpCookie.ttl"), faults);
        for (at, one) in cookie.attributes.iter().enumerate() {
            let twice = cookie.attributes[..at].iter().any(|other| other.name.eq_ignore_ascii_case(&one.name));
            if !is_field_name(&one.name) || twice || one.value.contains([';', '\r', '\n']) {
                let text = "attributes have a name, each its own, and a value without ';'";
                faults.push((format!("{path}.httpCookie.attributes[{at}]"), text.into()));
            }
        }
        if cookie.path.contains([';', '\r', '\n']) {
            faults.push((format!("{path}.httpCookie.path"), "a path without ';'".into()));
        }
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        faults.push((format!("{path}.maglev"), "ringHash and maglev exclude each other".into()));
    }
    if hash.minimum_ring_size > 0 && (hash.ring_hash.is_some() || hash.maglev.is_some()) {
        faults.push((format!("{path}.minimumRingSize"), "ringHash or maglev stands beside it".into()));
    }
    let sizes = [
        ("minimumRingSize", hash.minimum_ring_size),
        ("ringHash.minimumRingSize", hash.ring_hash.as_ref().map_or(0, |ring| ring.minimum_ring_size)),
    ];
    for (name, size) in sizes {
        if size > RING_SIZE_MAX {
            faults.push((format!("{path}.{name}"), format!("at most {RING_SIZE_MAX}")));
        }
    }
    let table = hash.maglev.as_ref().map_or(0, |maglev| maglev.table_size);
    if table > 0 && (table >= TABLE_SIZE_MAX || !is_prime(table)) {
        faults.push((format!("{path}.maglev.tableSize"), format!("a prime below {TABLE_SIZE_MAX}")));
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|part| part * part <= number).all(|part| !number.is_multiple_of(part))
}

fn locality(setting: &LocalitySetting, path: &str, faults: &mut Faults) {
    let fails_over = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    if fails_over && !setting.distribute.is_empty() {
        faults.push((format!("{path}.failover"), "distribute and failover exclude each other".into()));
    }
    for (at, one) in setting.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{at}]");
        pattern(&one.from, format!("{path}.from"), faults);
        let sum: u64 = one.to.values().map(|weight| u64::from(*weight)).sum();
        if sum != 100 || one.to.values().any(|weight| *weight == 0) {
            faults.push((format!("{path}.to"), format!("weights are 1 to 100, and 100 together: these are {sum}")));
        }
        one.to.keys().for_each(|place| pattern(place, format!("{path}.to"), faults));
        let others: Vec<&String> = one.to.keys().collect();
        for (at, place) in others.iter().enumerate() {
            if let Some(other) = others[..at].iter().find(|other| overlap(other, place)) {
                faults.push((format!("{path}.to"), format!("{other} and {place} overlap")));
            }
        }
        if let Some(other) = setting.distribute[..at].iter().find(|other| overlap(&other.from, &one.from)) {
            faults.push((format!("{path}.from"), format!("{} and {} overlap", other.from, one.from)));
        }
    }
    for (at, one) in setting.failover.iter().enumerate() {
        let path = format!("{path}.failover[{at}]");
        if one.from == one.to {
            faults.push((path.clone(), "from and to are the same".into()));
        }
        for (name, region) in [("from", &one.from), ("to", &one.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                faults.push((format!("{path}.{name}"), "a region, without '/' and '*'".into()));
            }
        }
    }
    let places = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];
    let names_place = |one: &String| places.iter().any(|place| one.split('=').next() == Some(place));
    if !setting.failover.is_empty() && setting.failover_priority.iter().any(names_place) {
        let text = "region, zone and subzone stand there only without failover";
        faults.push((format!("{path}.failoverPriority"), text.into()));
    }
    for (at, one) in setting.failover_priority.iter().enumerate() {
        if one.split('=').next().is_none_or(str::is_empty) || setting.failover_priority[..at].contains(one) {
            let text = "labels, each once: key or key=value";
            faults.push((format!("{path}.failoverPriority[{at}]"), text.into()));
        }
    }
}

/// A locality with `*` at most at its end.
fn pattern(text: &str, path: String, faults: &mut Faults) {
    let parts: Vec<&str> = text.split('/').collect();
    let wild = parts.iter().position(|part| part.contains('*'));
    let misplaced = wild.is_some_and(|at| at + 1 < parts.len() || parts[at] != "*");
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) || misplaced {
        faults.push((path, format!("{text:?}: region/zone/subzone, with '*' at most at the end")));
    }
}

/// Whether one covers the other.
fn overlap(one: &str, other: &str) -> bool {
    let parts = one.split('/').zip(other.split('/'));
    let mut parts = parts.take_while(|(a, b)| *a != "*" && *b != "*");
    parts.all(|(a, b)| a == b)
}

fn connection_pool(pool: &ConnectionPool, path: &str, faults: &mut Faults) {
    if *pool == ConnectionPool::default() {
        faults.push((path.into(), "tcp or http".into()));
    }
    if let Some(tcp) = &pool.tcp {
        span(tcp.connect_timeout, false, &format!("{path}.tcp.connectTimeout"), faults);
        span(tcp.idle_timeout, true, &format!("{path}.tcp.idleTimeout"), faults);
        span(tcp.max_connection_duration, false, &format!("{path}.tcp.maxConnectionDuration"), faults);
        if let Some(probes) = &tcp.tcp_keepalive {
            span(probes.time, false, &format!("{path}.tcp.tcpKeepalive.time"), faults);
            span(probes.interval, false, &format!("{path}.tcp.tcpKeepalive.interval"), faults);
        }
    }
    if let Some(http) = &pool.http {
        span(http.idle_timeout, true, &format!("{path}.http.idleTimeout"), faults);
        if let Some(probes) = &http.http2_keep_alive {
            probes.interval.check(&format!("{path}.http.http2KeepAlive.interval"), false, faults);
            probes.timeout.check(&format!("{path}.http.http2KeepAlive.timeout"), false, faults);
        }
        if http.use_client_protocol == Some(true) && http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) {
            let text = "UPGRADE and useClientProtocol exclude each other";
            faults.push((format!("{path}.http.h2UpgradePolicy"), text.into()));
        }
    }
}

fn outlier_detection(outlier: &OutlierDetection, path: &str, faults: &mut Faults) {
    span(outlier.interval, false, &format!("{path}.interval"), faults);
    span(outlier.base_ejection_time, false, &format!("{path}.baseEjectionTime"), faults);
    if outlier.consecutive_local_origin_failures.is_some() && !outlier.split_external_local_origin_errors {
        let text = "it goes with splitExternalLocalOriginErrors only";
        faults.push((format!("{path}.consecutiveLocalOriginFailures"), text.into()));
    }
    for (at, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..600).contains(code) {
            faults.push((format!("{path}.outlierDetectionHttpErrorCodes[{at}]"), "100 to 599".into()));
        }
    }
    let percents =
        [("maxEjectionPercent", outlier.max_ejection_percent), ("minHealthPercent", outlier.min_health_percent)];
    for (name, percent) in percents {
        if percent > 100 {
            faults.push((format!("{path}.{name}"), "0 to 100".into()));
        }
    }
}

fn span(span: Option<GoDuration>, zero: bool, path: &str, faults: &mut Faults) {
    if let Some(span) = span {
        span.check(path, zero, faults);
    }
}

/// Most points of a ring: 16 MiB of memory.
const RING_SIZE_MAX: u64 = 1 << 20;
/// Bound on the places of a table (Envoy's).
const TABLE_SIZE_MAX: u64 = 5_000_011;
