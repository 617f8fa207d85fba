//! Documents to compiled policies.

use http::header::{HOST, HeaderName};
use weft_proto::kinds::authorization_policy::{APP_LABEL, Condition, Operation, ROOT_NAMESPACES, Source, header_name};
use weft_proto::resource::ResourceKey;
use weft_proto::service::ServiceName;

use super::pattern::{Blocks, Form, Paths, Texts};
use super::rule::{Check, Group, Rule, Test};
use super::{Policy, PolicyDescription, PolicyId};

/// Most rules of one policy.
pub const RULES_MAX: usize = 1000;
/// Most values in all fields of one policy together.
pub const PATTERNS_MAX: usize = 10_000;
/// Longest value in bytes; an identity has 2048 at most, and a `*`.
pub const PATTERN_LENGTH_MAX: usize = 4096;

/// A policy that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{policy}: {path}: {message}")]
pub struct CompileError {
    /// The policy.
    pub policy: Box<ResourceKey>,
    /// The field, such as `spec.rules[0].to[0].operation.paths[1]`.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Whether the policy is about the service.
pub(super) fn selects<'l>(
    description: &PolicyDescription,
    service: &ServiceName,
    label: &impl Fn(&str) -> Option<&'l str>,
) -> bool {
    let (key, policy) = (&description.key, &description.policy);
    let near = key.namespace == service.namespace();
    if !near && !ROOT_NAMESPACES.contains(&key.namespace.as_str()) {
        return false;
    }
    let labelled = |(name, value): (&String, &String)| match name.as_str() {
        APP_LABEL => value == service.name(),
        name => label(name) == Some(value.as_str()),
    };
    let targeted = policy.targets().any(|target| near && target.means(service.name()));
    (policy.targets().next().is_none() || targeted)
        && policy.selector.as_ref().is_none_or(|selector| selector.match_labels.iter().all(labelled))
}

/// Compiles one policy.
pub(super) fn policy(description: &PolicyDescription) -> Result<Policy, CompileError> {
    let (key, policy) = (&description.key, &description.policy);
    let mut compiler = Compiler { key, patterns: 0 };
    if policy.rules.len() > RULES_MAX {
        return Err(compiler.error("spec.rules", format!("{} rules; at most {RULES_MAX}", policy.rules.len())));
    }
    let name = format!("{}/{}", key.namespace, key.name);
    let mut rules = Vec::with_capacity(policy.rules.len());
    for (r, rule) in policy.rules.iter().enumerate() {
        let at = format!("spec.rules[{r}]");
        let from = rule.from.iter().enumerate();
        let to = rule.to.iter().enumerate();
        let when = rule.when.iter().enumerate();
        rules.push(Rule::new(
            PolicyId(format!("{name}[{r}]").into()),
            from.map(|(i, from)| compiler.source(&format!("{at}.from[{i}].source"), &from.source))
                .collect::<Result<_, _>>()?,
            to.map(|(i, to)| compiler.operation(&format!("{at}.to[{i}].operation"), &to.operation))
                .collect::<Result<_, _>>()?,
            when.map(|(i, condition)| compiler.condition(&format!("{at}.when[{i}]"), condition))
                .collect::<Result<_, _>>()?,
        ));
    }
    Ok(Policy { id: PolicyId(name.into()), action: policy.action, dry_run: description.dry_run, rules })
}

struct Compiler<'p> {
    key: &'p ResourceKey,
    /// Values so far.
    patterns: usize,
}

/// How the values of one field become a test.
type Maker = fn(&mut Compiler<'_>, &str, &[String]) -> Result<Test, CompileError>;
/// A field's name, whether it is a not-form, its values, and their maker.
type Field<'p> = (&'static str, bool, &'p [String], Maker);

impl Compiler<'_> {
    fn source(&mut self, at: &str, source: &Source) -> Result<Group, CompileError> {
        let principals: Maker = |c, at, values| c.texts(at, values, Form::Principal).map(Test::Principal);
        let namespaces: Maker = |c, at, values| c.texts(at, values, Form::Plain).map(Test::Namespace);
        let blocks: Maker = |c, at, values| c.blocks(at, values).map(Test::SourceIp);
        let remote: Maker = |c, at, values| c.blocks(at, values).map(Test::RemoteIp);
        self.group(
            at,
            &[
                ("principals", false, &source.principals, principals),
                ("notPrincipals", true, &source.not_principals, principals),
                ("namespaces", false, &source.namespaces, namespaces),
                ("notNamespaces", true, &source.not_namespaces, namespaces),
                ("ipBlocks", false, &source.ip_blocks, blocks),
                ("notIpBlocks", true, &source.not_ip_blocks, blocks),
                ("remoteIpBlocks", false, &source.remote_ip_blocks, remote),
                ("notRemoteIpBlocks", true, &source.not_remote_ip_blocks, remote),
            ],
        )
    }

    fn operation(&mut self, at: &str, operation: &Operation) -> Result<Group, CompileError> {
        let hosts: Maker = |c, at, values| c.texts(at, values, Form::Host).map(Test::Host);
        let ports: Maker = |c, at, values| c.ports(at, values).map(Test::DestinationPort);
        let methods: Maker = |c, at, values| c.texts(at, values, Form::Plain).map(Test::Method);
        let paths: Maker = |c, at, values| c.paths(at, values).map(Test::Path);
        self.group(
            at,
            &[
                ("ports", false, &operation.ports, ports),
                ("notPorts", true, &operation.not_ports, ports),
                ("methods", false, &operation.methods, methods),
                ("notMethods", true, &operation.not_methods, methods),
                ("hosts", false, &operation.hosts, hosts),
                ("notHosts", true, &operation.not_hosts, hosts),
                ("paths", false, &operation.paths, paths),
                ("notPaths", true, &operation.not_paths, paths),
            ],
        )
    }

    fn condition(&mut self, at: &str, condition: &Condition) -> Result<Group, CompileError> {
        if condition.values.is_empty() && condition.not_values.is_empty() {
            return Err(self.error(at, "values or notValues must not be empty"));
        }
        let maker: Maker = match condition.key.as_str() {
            "source.ip" => |c, at, values| c.blocks(at, values).map(Test::SourceIp),
            "remote.ip" => |c, at, values| c.blocks(at, values).map(Test::RemoteIp),
            "source.namespace" => |c, at, values| c.texts(at, values, Form::Plain).map(Test::Namespace),
            "source.principal" => |c, at, values| c.texts(at, values, Form::Principal).map(Test::Principal),
            "destination.ip" => |c, at, values| c.blocks(at, values).map(Test::DestinationIp),
            "destination.port" => |c, at, values| c.ports(at, values).map(Test::DestinationPort),
            "connection.sni" => |c, at, values| c.texts(at, values, Form::Host).map(Test::Sni),
            key => return self.header_condition(at, key, condition),
        };
        self.group(
            at,
            &[("values", false, &condition.values, maker), ("notValues", true, &condition.not_values, maker)],
        )
    }

    fn header_condition(&mut self, at: &str, key: &str, condition: &Condition) -> Result<Group, CompileError> {
        let fault = |message: &str| self.error(&format!("{at}.key"), format!("{key:?} {message}"));
        let name = header_name(key).ok_or_else(|| fault("is not supported"))?;
        // HTTP/2 has the host in `:authority` and need not send `host`: both mean the host, as it is judged elsewhere.
        if name.eq_ignore_ascii_case(HOST.as_str()) || name == ":authority" {
            let maker: Maker = |c, at, values| c.texts(at, values, Form::Host).map(Test::Host);
            return self.group(
                at,
                &[("values", false, &condition.values, maker), ("notValues", true, &condition.not_values, maker)],
            );
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| fault("does not name a header"))?;
        let mut checks = Group::new();
        for (field, negated, values) in
            [("values", false, &condition.values), ("notValues", true, &condition.not_values)]
        {
            if !values.is_empty() {
                let texts = self.texts(&format!("{at}.{field}"), values, Form::Plain)?;
                checks.push(Check { field, negated, test: Test::Header(name.clone(), texts) });
            }
        }
        Ok(checks)
    }

    fn group(&mut self, at: &str, fields: &[Field<'_>]) -> Result<Group, CompileError> {
        let mut checks = Group::new();
        for &(field, negated, values, make) in fields {
            if !values.is_empty() {
                checks.push(Check { field, negated, test: make(self, &format!("{at}.{field}"), values)? });
            }
        }
        Ok(checks)
    }

    fn texts(&mut self, at: &str, values: &[String], form: Form) -> Result<Texts, CompileError> {
        let mut texts = Texts::default();
        self.each(at, values, |value| texts.add(value, form))?;
        texts.seal();
        Ok(texts)
    }

    fn paths(&mut self, at: &str, values: &[String]) -> Result<Paths, CompileError> {
        let mut paths = Paths::default();
        self.each(at, values, |value| paths.add(value))?;
        paths.seal();
        Ok(paths)
    }

    fn blocks(&mut self, at: &str, values: &[String]) -> Result<Blocks, CompileError> {
        let mut blocks = Blocks::default();
        self.each(at, values, |value| blocks.add(value))?;
        blocks.seal();
        Ok(blocks)
    }

    fn ports(&mut self, at: &str, values: &[String]) -> Result<Vec<u16>, CompileError> {
        let mut ports = Vec::new();
        self.each(at, values, |value| {
            ports.push(value.parse().ok().filter(|port| *port > 0).ok_or("write a port, 1 to 65535")?);
            Ok(())
        })?;
        ports.sort_unstable();
        Ok(ports)
    }

    fn each(
        &mut self,
        at: &str,
        values: &[String],
        mut add: impl FnMut(&str) -> Result<(), &'static str>,
    ) -> Result<(), CompileError> {
        self.patterns += values.len();
        if self.patterns > PATTERNS_MAX {
            return Err(self.error(at, format!("more than {PATTERNS_MAX} values in one policy; split it")));
        }
        for (i, value) in values.iter().enumerate() {
            if value.len() > PATTERN_LENGTH_MAX {
                return Err(self.error(&format!("{at}[{i}]"), format!("longer than {PATTERN_LENGTH_MAX} bytes")));
            }
            add(value).map_err(|message| self.error(&format!("{at}[{i}]"), format!("{value:?}: {message}")))?;
        }
        Ok(())
    }

    fn error(&self, path: &str, message: impl Into<String>) -> CompileError {
        CompileError { policy: Box::new(self.key.clone()), path: path.to_owned(), message: message.into() }
    }
}
