//! Authorization: golden scripts under `scripts/authz`, and agreement with a slow evaluator written from the prose.
//!
//! A script is a list of cases. `=== rule` starts one; then settings (`service namespace/name label=value ...`, `mesh
//! denies by default`, `escaped slashes allowed`); `policies:` and documents, whose `apiVersion` and `kind` the runner
//! adds; `calls:` and one call a line. A call names what differs from a plaintext request by 10.0.0.1 to 10.0.0.2:80 with
//! the host `web.mesh`: `caller=`, `from=`, `to=`, `port=`, `sni=`, then `METHOD target` or `tcp`, then `host=` and
//! `header=name:value`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use weft_proto::document;
use weft_proto::kinds::authorization_policy::{
    Action, AuthorizationPolicy, Condition, DRY_RUN_ANNOTATION, From, Operation, Rule, Selector, Source, TargetRef, To,
};
use weft_proto::kinds::service::EscapedSlashes;
use weft_proto::kinds::{Kinds, Spec};
use weft_proto::resource::ResourceKey;
use weft_proto::service::ServiceName;
use weft_proxy::path;
use weft_proxy::table::authz::{
    Authorization, Call, Caller, HttpCall, PATTERNS_MAX, PolicyDescription, Reason, Verdict,
};

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/authz");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    let (mut calls, mut wrong) = (0, Vec::new());
    for file in &files {
        let text = std::fs::read_to_string(file).expect("readable");
        let name = file.file_name().expect("a file").to_string_lossy().into_owned();
        for case in cases(&text) {
            let compiled = case.compile(&name);
            for (line, call, expected) in &case.calls {
                calls += 1;
                let found = judge(&compiled, case.slashes, call);
                let same = if expected.starts_with("400") { found.starts_with(expected) } else { found == *expected };
                if !same {
                    wrong.push(format!(
                        "{name}:{line} ({})\n  {call}\n  expected {expected}\n  found    {found}",
                        case.rule
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(calls > 150, "only {calls} calls were found");
}

#[derive(Default)]
struct Case {
    rule: String,
    service: String,
    denies_by_default: bool,
    slashes: EscapedSlashes,
    policies: String,
    /// Line number, call, what must come out.
    calls: Vec<(usize, String, String)>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut part = "";
    for (number, line) in text.lines().enumerate() {
        if let Some(rule) = line.strip_prefix("=== ") {
            cases.push(Case { rule: rule.to_owned(), service: "default/web".to_owned(), ..Case::default() });
            part = "settings";
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        match (part, line) {
            (_, "policies:") => part = "policies",
            (_, "calls:") => part = "calls",
            ("policies", _) => case.policies.push_str(&format!("{line}\n")),
            (_, "") => {}
            (_, "mesh denies by default") => case.denies_by_default = true,
            (_, "escaped slashes allowed") => case.slashes = EscapedSlashes::Allow,
            ("settings", _) => case.service = line.strip_prefix("service ").expect("a known setting").to_owned(),
            _ => {
                let (call, expected) = line.split_once(" -> ").expect("call -> what must come out");
                case.calls.push((number + 1, call.to_owned(), expected.to_owned()));
            }
        }
    }
    cases
}

impl Case {
    fn compile(&self, source: &str) -> Authorization {
        let mut words = self.service.split(' ');
        let service: ServiceName = words.next().expect("a name").parse().expect("a name");
        let labels = words.map(|word| word.split_once('=').expect("label=value"));
        let labels: BTreeMap<String, String> =
            labels.map(|(label, value)| (label.to_owned(), value.to_owned())).collect();
        let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
        let documents: Vec<String> = self
            .policies
            .split("---\n")
            .filter(|text| !text.trim().is_empty())
            .map(|text| format!("{head}{text}"))
            .collect();
        let resources = document::parse(Kinds::ALL, source, &documents.join("---\n"))
            .unwrap_or_else(|faults| panic!("{}: {faults:?}", self.rule));
        let describe = |resource: &weft_proto::resource::Resource| PolicyDescription {
            key: resource.key.clone(),
            policy: AuthorizationPolicy::of(resource).expect("checked"),
            dry_run: resource.annotations.get(DRY_RUN_ANNOTATION).is_some_and(|value| value == "true"),
        };
        let policies: Vec<_> = resources.iter().map(describe).map(Arc::new).collect();
        Authorization::compile(&service, &labels, &policies, self.denies_by_default).expect("compiles")
    }
}

fn judge(compiled: &Authorization, slashes: EscapedSlashes, line: &str) -> String {
    let (mut caller, mut request, mut host, mut headers) = (None, None, "web.mesh", HeaderMap::new());
    let (mut ends, mut port, mut sni) = (["10.0.0.1", "10.0.0.2"], "80", None);
    let mut words = line.split(' ');
    while let Some(word) = words.next() {
        match word.split_once('=') {
            Some(("caller", id)) => caller = Some(Caller::new(format!("spiffe://{id}").parse().expect("a SPIFFE ID"))),
            Some(("from", address)) => ends[0] = address,
            Some(("to", address)) => ends[1] = address,
            Some(("port", number)) => port = number,
            Some(("sni", name)) => sni = Some(name),
            Some(("host", name)) => host = name,
            Some(("header", text)) => {
                let (name, value) = text.split_once(':').expect("name:value");
                headers.append(
                    name.parse::<HeaderName>().expect("a name"),
                    HeaderValue::from_str(value).expect("a value"),
                );
            }
            _ if word == "tcp" => {}
            _ => request = Some((word, words.next().expect("METHOD target"))),
        }
    }
    let target = match request.map(|(_, target)| path::normalise(target, slashes)).transpose() {
        Ok(target) => target,
        Err(refusal) => return format!("400 {refusal}"),
    };
    let host = path::host(host);
    let http = request.zip(target.as_deref()).map(|((method, _), target)| HttpCall {
        method,
        host: &host,
        path: target.split('?').next().expect("one at least"),
        headers: &headers,
    });
    let [source_ip, destination_ip] = ends.map(|end| end.parse().expect("an address"));
    let destination_port = port.parse().expect("a port");
    let call = Call {
        caller: caller.as_ref(),
        source_ip,
        remote_ip: source_ip,
        destination_ip,
        destination_port,
        sni,
        http,
        plain_at: None,
    };
    let verdict = compiled.decide(&call);
    assert_eq!(compiled.explain(&call).verdict, verdict);
    verdict.to_string()
}

#[test]
fn an_explanation_names_every_policy_rule_and_field() {
    let case = &cases(
        "=== x\npolicies:\nmetadata: {name: d}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n---\n\
         metadata: {name: a}\nspec: {rules: [{from: [{source: {namespaces: [ops]}}, {source: {principals: [m/node/x]}}]}, {}]}\n---\n\
         metadata: {name: w}\nspec: {action: AUDIT, rules: [{when: [{key: 'request.headers[k]', values: [v]}]}]}\ncalls:\n",
    )[0];
    let headers = HeaderMap::from_iter([(HeaderName::from_static("k"), HeaderValue::from_static("hidden"))]);
    let caller = Caller::new("spiffe://m/ns/dev/sa/a".parse().expect("valid"));
    let any = IpAddr::from([10, 0, 0, 1]);
    let http = Some(HttpCall { method: "GET", host: "web", path: "/x", headers: &headers });
    let call = Call {
        plain_at: None,
        caller: Some(&caller),
        source_ip: any,
        remote_ip: any,
        destination_ip: any,
        destination_port: 1,
        sni: None,
        http,
    };
    let expected = "\
allow by default/a[1]
  default/d (deny) does not match
    default/d[0] does not match
      to[0].operation.paths: the path is \"/x\"
  default/a (allow) matches
    default/a[0] does not match
      from[0].source.namespaces: the caller's namespace is \"dev\"
      from[1].source.principals: the caller is \"m/ns/dev/sa/a\"
    default/a[1] matches
  default/w (audit) does not match
    default/w[0] does not match
      when[0].values: the header k has 1 lines
";
    assert_eq!(case.compile("x").explain(&call).to_string(), expected);
    assert!(case.compile("x").needs_http());
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let service = ServiceName::new("default", "web").expect("valid");
    let error = |rule: Rule| {
        let key = ResourceKey { kind: AuthorizationPolicy::KIND.key(), namespace: "default".into(), name: "p".into() };
        let policy = AuthorizationPolicy { rules: vec![Rule::default(), rule], ..AuthorizationPolicy::default() };
        let description = PolicyDescription { key, policy, dry_run: false };
        let error = Authorization::check(&description).expect_err("refused");
        assert_eq!(
            Authorization::compile(&service, &BTreeMap::new(), &[Arc::new(description)], false).expect_err("refused"),
            error
        );
        error.to_string()
    };
    let operation = |operation| Rule { to: vec![To { operation }], ..Rule::default() };
    let key = |key: &str| Rule {
        when: vec![Condition { key: key.into(), values: vec!["x".into()], not_values: vec![] }],
        ..Rule::default()
    };
    let at = "AuthorizationPolicy default/p: spec.rules[1]";
    for (found, expected) in [
        (
            error(operation(Operation { paths: vec!["/a".into(), "a*b".into()], ..Operation::default() })),
            ".to[0].operation.paths[1]: ",
        ),
        (
            error(operation(Operation { not_ports: vec!["0".into()], ..Operation::default() })),
            ".to[0].operation.notPorts[0]: ",
        ),
        (
            error(operation(Operation { hosts: vec!["*:80".into()], ..Operation::default() })),
            ".to[0].operation.hosts[0]: ",
        ),
        (
            error(operation(Operation { methods: vec!["GET".into(); PATTERNS_MAX + 1], ..Operation::default() })),
            ".to[0].operation.methods: ",
        ),
        (error(key("request.headers[:path]")), ".when[0].key: "),
        (error(key("source.ip")), ".when[0].values[0]: "),
        (error(key("request.auth.principal")), ".when[0].key: "),
    ] {
        assert!(found.starts_with(&format!("{at}{expected}")), "{found}");
    }
}

// ---- Agreement with the prose ----------------------------------------------------------------

/// Pairs of policies and call that are compared.
const PAIRS: u32 = 20_000;
/// Least share of each outcome among them, so that the comparison can fail.
const SHARE_MIN: u32 = PAIRS / 200;

#[test]
fn agrees_with_the_prose() {
    let config = Config { cases: PAIRS, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcomes = RefCell::new(BTreeMap::<Reason, u32>::new());
    let bytes = proptest::collection::vec(proptest::num::u8::ANY, 0..240);
    let outcome = runner.run(&bytes, |bytes| {
        let (policies, end) = Choices(&bytes).draw();
        let by_default = end.deny_by_default;
        let compiled = Authorization::compile(
            &end.service,
            &end.labels,
            &policies.iter().cloned().map(Arc::new).collect::<Vec<_>>(),
            by_default,
        )
        .expect("compiles");
        let host = path::host(end.host);
        let http =
            end.http.then_some(HttpCall { method: end.method, host: &host, path: end.path, headers: &end.headers });
        let caller = end.caller.map(|id| Caller::new(format!("spiffe://{id}").parse().expect("valid")));
        let (source_ip, destination_ip) = (end.source.into(), [10, 0, 0, 9].into());
        let call = Call {
            plain_at: None,
            caller: caller.as_ref(),
            source_ip,
            remote_ip: source_ip,
            destination_ip,
            destination_port: end.port,
            sni: end.sni,
            http,
        };
        let verdict = compiled.decide(&call);
        *outcomes.borrow_mut().entry(verdict.reason).or_default() += 1;
        proptest::prop_assert_eq!(
            (verdict.reason, verdict.by.as_ref().map(ToString::to_string)),
            prose::decide(&policies, &end)
        );
        proptest::prop_assert_eq!(verdict.allowed, verdict.reason.allows());
        let explanation = compiled.explain(&call);
        let matched = |action| explanation.policies.iter().any(|p| p.matched && p.action == action && !p.dry_run);
        proptest::prop_assert_eq!(matched(Action::Deny), verdict.reason == Reason::DeniedByPolicy);
        proptest::prop_assert!(verdict.reason != Reason::AllowedByPolicy || matched(Action::Allow));
        proptest::prop_assert_eq!(noted(&verdict), prose::noted(&policies, &end));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let outcomes = outcomes.into_inner();
    assert!(outcomes.len() == 5 && outcomes.values().all(|count| *count > SHARE_MIN), "{outcomes:?}");
}

fn noted(verdict: &Verdict) -> Vec<(String, Action)> {
    verdict.noted.iter().map(|noted| (noted.policy.to_string(), noted.says)).collect()
}

/// The call and the service, as the generator draws them.
#[derive(Debug)]
struct End {
    service: ServiceName,
    labels: BTreeMap<String, String>,
    deny_by_default: bool,
    caller: Option<&'static str>,
    source: [u8; 4],
    port: u16,
    sni: Option<&'static str>,
    http: bool,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: HeaderMap,
}

/// Decisions of the generator, one a byte; after the last one always the first choice.
struct Choices<'b>(&'b [u8]);

impl Choices<'_> {
    fn below(&mut self, bound: u8) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first % bound
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.below(u8::try_from(of.len()).expect("short")))]
    }

    /// Values of one field: most often none.
    fn some(&mut self, of: &[&str]) -> Vec<String> {
        let count = self.one(&[0, 0, 0, 0, 1, 2]);
        (0..count).map(|_| self.one(of).to_owned()).collect()
    }

    fn many<T>(&mut self, counts: &[usize], mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.one(counts)).map(|_| make(self)).collect()
    }

    fn draw(mut self) -> (Vec<PolicyDescription>, End) {
        let mut headers = HeaderMap::new();
        for value in self.many(&[0, 1, 1, 2], |c| c.one(&["a", "b", "ab", ""])) {
            headers.append("t", HeaderValue::from_static(value));
        }
        let end = End {
            service: self.one(&["default/web", "shop/web"]).parse().expect("valid"),
            labels: self.many(&[0, 1], |_| ("tier".to_owned(), "front".to_owned())).into_iter().collect(),
            deny_by_default: self.one(&[false, true]),
            caller: self.one(&[
                None,
                Some("m/ns/shop/sa/a"),
                Some("m/ns/dev/sa/ab"),
                Some("m/node/n"),
                Some("f/ns/shop/sa/x"),
            ]),
            source: self.one(&[[10, 0, 0, 1], [10, 1, 0, 1], [192, 168, 0, 1]]),
            port: self.one(&[80, 443]),
            sni: self.one(&[None, Some("web.mesh"), Some("api.mesh")]),
            http: self.one(&[true, true, false]),
            method: self.one(&["GET", "POST", "get"]),
            host: self.one(&["web.mesh", "WEB.mesh:80", "api.mesh", ""]),
            path: self.one(&["/", "/a", "/a/b", "/a/b/c", "/a/", "/b/c"]),
            headers,
        };
        let policies = self.many(&[1, 2, 3, 0], Self::policy);
        let numbered = policies.into_iter().enumerate().map(|(i, mut policy)| {
            policy.key.name = format!("p{i}");
            policy
        });
        (numbered.collect(), end)
    }

    fn policy(&mut self) -> PolicyDescription {
        let (action, dry_run) = (self.one(&[Action::Allow, Action::Deny, Action::Audit]), self.below(6) == 5);
        let namespace = self.one(&["default", "default", "shop", "weft-system"]).to_owned();
        let label = |c: &mut Self| c.one(&[("app", "web"), ("app", "db"), ("tier", "front")]);
        let labels = self.many(&[0, 0, 1, 1, 2], label).into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let match_labels: BTreeMap<_, _> = labels.collect();
        let target = |c: &mut Self| TargetRef {
            group: String::new(),
            kind: "Service".into(),
            name: c.one(&["web", "db"]).into(),
        };
        let target_refs = if match_labels.is_empty() { self.many(&[0, 0, 0, 1, 2], target) } else { Vec::new() };
        let selector = (!match_labels.is_empty()).then_some(Selector { match_labels });
        let rules = self.many(&[1, 1, 2, 0], Self::rule);
        let key = ResourceKey { kind: AuthorizationPolicy::KIND.key(), namespace, name: String::new() };
        PolicyDescription {
            key,
            policy: AuthorizationPolicy { selector, target_refs, target_ref: None, action, rules },
            dry_run,
        }
    }

    fn rule(&mut self) -> Rule {
        let principals = &["m/ns/shop/sa/a", "m/*", "*/x", "*", "m/ns/dev/sa/a*"];
        let (namespaces, blocks) =
            (&["shop", "d*", "*v", "*"], &["10.0.0.0/8", "10.1.0.1", "0.0.0.0/0", "10.0.0.0/15"]);
        let (hosts, ports) = (&["Web.mesh:80", "*.MESH", "web.*", "*", "api.mesh:*"], &["80", "443"]);
        let (methods, paths) = (
            &["GET", "P*", "*T", "*"],
            &["/a", "/a/*", "*/c", "*", "/{*}/b", "/a/{**}", "/{**}/c", "/{*}/{**}/c", "/a/{*}"],
        );
        let source = |c: &mut Self| Source {
            principals: c.some(principals),
            not_principals: c.some(principals),
            namespaces: c.some(namespaces),
            not_namespaces: c.some(namespaces),
            ip_blocks: c.some(blocks),
            not_ip_blocks: c.some(blocks),
            ..Source::default()
        };
        let operation = |c: &mut Self| Operation {
            hosts: c.some(hosts),
            not_hosts: c.some(hosts),
            ports: c.some(ports),
            not_ports: c.some(ports),
            methods: c.some(methods),
            not_methods: c.some(methods),
            paths: c.some(paths),
            not_paths: c.some(paths),
        };
        let condition = |c: &mut Self| {
            let (key, of): (&str, &[&str]) = c.one(&[
                ("request.headers[T]", &["a", "b*", "*b", "*"]),
                ("connection.sni", &["web.mesh", "*.mesh"]),
                ("source.ip", blocks),
                ("source.namespace", namespaces),
                ("destination.port", ports),
            ]);
            let (mut values, not_values) = (c.some(of), c.some(of));
            if values.is_empty() && not_values.is_empty() {
                values.push(c.one(of).to_owned());
            }
            Condition { key: key.to_owned(), values, not_values }
        };
        Rule {
            from: self.many(&[0, 0, 1, 2], |c| From { source: source(c) }),
            to: self.many(&[0, 1, 2], |c| To { operation: operation(c) }),
            when: self.many(&[0, 0, 1, 2], condition),
        }
    }
}

/// The rules as the manual tells them, sentence by sentence, without regard to speed.
mod prose {
    use super::{Action, Condition, End, PolicyDescription, Reason, Rule};

    pub(super) fn decide(policies: &[PolicyDescription], end: &End) -> (Reason, Option<String>) {
        let live = |action| move |p: &&PolicyDescription| p.policy.action == action && !p.dry_run;
        let selecting = ordered(policies, end);
        if let Some(name) = selecting.iter().copied().filter(live(Action::Deny)).find_map(|p| matching(p, end)) {
            return (Reason::DeniedByPolicy, Some(name));
        }
        if !selecting.iter().any(live(Action::Allow)) {
            return (if end.deny_by_default { Reason::DeniedByDefault } else { Reason::AllowedByDefault }, None);
        }
        match selecting.iter().copied().filter(live(Action::Allow)).find_map(|p| matching(p, end)) {
            Some(name) => (Reason::AllowedByPolicy, Some(name)),
            None => (Reason::DeniedNoAllowMatched, None),
        }
    }

    pub(super) fn noted(policies: &[PolicyDescription], end: &End) -> Vec<(String, Action)> {
        let selecting = ordered(policies, end);
        let allows =
            |p: &&PolicyDescription| p.policy.action == Action::Allow && !p.dry_run && matching(p, end).is_some();
        let allowed = selecting.iter().any(allows);
        let mut noted = Vec::new();
        for p in selecting.iter().filter(|p| p.dry_run || p.policy.action == Action::Audit) {
            match matching(p, end) {
                Some(name) => noted.push((name, p.policy.action)),
                None if p.policy.action == Action::Allow && !allowed => {
                    noted.push((format!("{}/{}", p.key.namespace, p.key.name), Action::Deny));
                }
                None => {}
            }
        }
        noted
    }

    fn ordered<'p>(policies: &'p [PolicyDescription], end: &End) -> Vec<&'p PolicyDescription> {
        let mut list: Vec<_> = policies.iter().filter(|p| selects(p, end)).collect();
        list.sort_by_key(|p| (p.key.namespace.clone(), p.key.name.clone()));
        list
    }

    fn selects(p: &PolicyDescription, end: &End) -> bool {
        let (namespace, spec) = (&p.key.namespace, &p.policy);
        if namespace != "weft-system" && namespace != end.service.namespace() {
            return false;
        }
        let mut labels = end.labels.clone();
        labels.insert("app".to_owned(), end.service.name().to_owned());
        let own = |name: &str| namespace == end.service.namespace() && name == end.service.name();
        let named = spec.target_refs.is_empty() || spec.target_refs.iter().any(|target| own(&target.name));
        named && spec.selector.iter().all(|s| s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }

    fn matching(p: &PolicyDescription, end: &End) -> Option<String> {
        let allow = p.policy.action == Action::Allow;
        let rule = p.policy.rules.iter().position(|rule| rule_matches(rule, end, allow))?;
        Some(format!("{}/{}[{rule}]", p.key.namespace, p.key.name))
    }

    fn rule_matches(rule: &Rule, end: &End, allow: bool) -> bool {
        let header = |c: &Condition| c.key.starts_with("request.headers");
        let http = |list: &Vec<String>| !list.is_empty();
        let needs_http = rule.when.iter().any(header)
            || rule.to.iter().map(|to| &to.operation).any(|o| {
                [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths].into_iter().any(http)
            });
        if allow && needs_http && !end.http {
            return false;
        }
        let from = rule.from.iter().map(|from| &from.source).any(|s| {
            let (id, ns, ip) = (lines(end.caller), lines(namespace(end)), |b: &str| inside(b, end.source));
            pair(&s.principals, &s.not_principals, |t| id.iter().any(|id| text(t, id)))
                && pair(&s.namespaces, &s.not_namespaces, |t| ns.iter().any(|ns| text(t, ns)))
                && pair(&s.ip_blocks, &s.not_ip_blocks, ip)
        });
        let to = rule.to.iter().map(|to| &to.operation).any(|o| {
            let on_request = !end.http
                || (pair(&o.hosts, &o.not_hosts, |t| text(&bare(t), &bare(end.host)))
                    && pair(&o.methods, &o.not_methods, |t| text(t, end.method))
                    && pair(&o.paths, &o.not_paths, |t| path(t, end.path)));
            on_request && pair(&o.ports, &o.not_ports, |t| t == end.port.to_string())
        });
        (rule.from.is_empty() || from)
            && (rule.to.is_empty() || to)
            && rule.when.iter().all(|c| condition(c, end, allow))
    }

    fn condition(c: &Condition, end: &End, allow: bool) -> bool {
        match c.key.as_str() {
            "connection.sni" => pair(&c.values, &c.not_values, |t| end.sni.is_some_and(|sni| text(t, sni))),
            "source.ip" => pair(&c.values, &c.not_values, |t| inside(t, end.source)),
            "source.namespace" => pair(&c.values, &c.not_values, |t| namespace(end).is_some_and(|ns| text(t, ns))),
            "destination.port" => pair(&c.values, &c.not_values, |t| t == end.port.to_string()),
            _ if !end.http => !allow,
            _ => {
                let lines: Vec<&str> = end.headers.get_all("t").iter().map(|v| v.to_str().expect("text")).collect();
                let has = |line: &&str, of: &[String]| of.iter().any(|t| text(t, line));
                let wanted = if allow {
                    !lines.is_empty() && lines.iter().all(|line| has(line, &c.values))
                } else {
                    lines.iter().any(|line| has(line, &c.values))
                };
                let unwanted = if allow {
                    lines.iter().any(|line| has(line, &c.not_values))
                } else {
                    !lines.is_empty() && lines.iter().all(|line| has(line, &c.not_values))
                };
                (c.values.is_empty() || wanted) && (c.not_values.is_empty() || !unwanted)
            }
        }
    }

    fn pair(values: &[String], not_values: &[String], is: impl Fn(&str) -> bool) -> bool {
        (values.is_empty() || values.iter().any(|v| is(v))) && !not_values.iter().any(|v| is(v))
    }

    fn lines(value: Option<&str>) -> Vec<&str> {
        value.into_iter().collect()
    }

    fn namespace(end: &End) -> Option<&'static str> {
        let parts: Vec<&str> = end.caller?.split('/').collect();
        (parts[1] == "ns").then(|| parts[2])
    }

    fn text(pattern: &str, value: &str) -> bool {
        match pattern.split_once('*') {
            _ if pattern == "*" => !value.is_empty(),
            Some((start, rest)) => {
                value.len() >= start.len() + rest.len() && value.starts_with(start) && value.ends_with(rest)
            }
            None => pattern == value,
        }
    }

    fn bare(host: &str) -> String {
        host.to_lowercase().split(':').next().expect("one at least").to_owned()
    }

    fn path(pattern: &str, value: &str) -> bool {
        if !pattern.contains('{') {
            return text(pattern, value);
        }
        let (pattern, value): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), value.split('/').collect());
        segments(&pattern, &value)
    }

    fn segments(pattern: &[&str], value: &[&str]) -> bool {
        match pattern {
            [] => value.is_empty(),
            ["{**}"] => !value.is_empty(),
            ["{**}", rest @ ..] => (0..=value.len()).any(|n| segments(rest, &value[n..])),
            ["{*}", rest @ ..] => value.first().is_some_and(|first| !first.is_empty()) && segments(rest, &value[1..]),
            [exact, rest @ ..] => value.first() == Some(exact) && segments(rest, &value[1..]),
        }
    }

    fn inside(block: &str, address: [u8; 4]) -> bool {
        let (net, length) = block.split_once('/').unwrap_or((block, "32"));
        let net: Vec<u8> = net.split('.').map(|part| part.parse().expect("a byte")).collect();
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        (0..length.parse().expect("a number")).all(|at| bit(&net, at) == bit(&address, at))
    }
}
