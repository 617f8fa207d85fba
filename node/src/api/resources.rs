//! What the API does with documents: reads, applies, deletes.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use weft_consensus::state::State;
use weft_proto::Index;
use weft_proto::command::{Command, Outcome, Proposal, ResourceAction, ResourceChange};
use weft_proto::document;
use weft_proto::identity::NodeName;
use weft_proto::kinds::Spec;
use weft_proto::kinds::secret::Secret;
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::wire::cluster::EnforcedReply;
use weft_proxy::table::Table;
use weft_proxy::tls::check_credential;

use super::operations::{Answered, Failure, refused};
use super::schema::{Applied, ApplyRequest};
use crate::analyze::{Finding, analyze, known};
use crate::compile::{Compiler, Unenforced};
use crate::node::Node;
use crate::world::{World, random};

impl<W: World> Node<W> {
    /// `GET /v1/resources`: documents, with `status=true` as they stand on every live node.
    pub async fn api_resources(&self, query: &BTreeMap<String, String>) -> Answered<Vec<Value>> {
        let kind = query.get("kind").map(|text| self.kind(text)).transpose()?;
        let wanted = |key: &ResourceKey| {
            kind.as_ref().is_none_or(|kind| *kind == key.kind)
                && query.get("namespace").is_none_or(|namespace| *namespace == key.namespace)
                && query.get("name").is_none_or(|name| *name == key.name)
        };
        let state = self.state();
        let found: Vec<_> = state.resources.values().filter(|resource| wanted(&resource.key)).collect();
        if let Some(name) = query.get("name").filter(|_| found.is_empty()) {
            let namespace = query.get("namespace").map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let kind = kind.map(|kind| kind.name).unwrap_or_default();
            return Err(Failure::not_found(format!("there is no {kind} {namespace}{name}")));
        }
        let mut documents: Vec<Value> = found.iter().map(|resource| document::render(resource)).collect();
        if query.get("status").is_some_and(|value| value == "true") {
            let told = self.ask_unenforced().await;
            let all: Vec<Resource> = state.resources.values().map(|one| Resource::clone(one)).collect();
            let findings = analyze(&all, Some(&known(&self.api_services().services)));
            for (document, resource) in documents.iter_mut().zip(&found) {
                let own = resource.key.to_string();
                let own: Vec<&Finding> = findings.iter().filter(|one| one.document == own).collect();
                document["status"] = status(resource, &document::hints(self.site.kinds, resource), &told, &own);
            }
        }
        Ok(documents)
    }

    /// The kind that somebody names: one that is known, or of which there are documents.
    fn kind(&self, text: &str) -> Answered<KindName> {
        let error = match self.site.kinds.named(text) {
            Ok(kind) => return Ok(kind.key()),
            Err(error) => error,
        };
        let state = self.state();
        // A kind that is not known here goes by its name, or by its name and group as documents have them.
        let is_meant = |kind: &&KindName| {
            let (name, group) = text.split_once('.').map_or((text, None), |(name, group)| (name, Some(group)));
            kind.name.eq_ignore_ascii_case(name) && group.is_none_or(|group| kind.group.eq_ignore_ascii_case(group))
        };
        let kept = state.resources.keys().map(|key| &key.kind).find(is_meant);
        kept.cloned().ok_or_else(|| Failure::bad(error))
    }

    /// `POST /v1/resources`
    pub async fn api_apply(&self, request: ApplyRequest, dry_run: bool) -> Answered<Applied> {
        let (mut changes, mut faults): (Vec<ResourceChange>, Vec<String>) = (Vec::new(), Vec::new());
        let mut seen: BTreeMap<ResourceKey, (usize, usize)> = BTreeMap::new();
        let mut warnings = Vec::new();
        let kinds = self.site.kinds;
        for (file, text) in request.texts.iter().enumerate() {
            match document::parse(kinds, &text.source, &text.text) {
                Err(found) => faults.extend(found.iter().map(ToString::to_string)),
                Ok(resources) => {
                    for resource in resources {
                        warnings.extend(document::hints(kinds, &resource));
                        let expected = (resource.version > 0).then_some(resource.version);
                        let key = resource.key.clone();
                        let change = ResourceChange { action: ResourceAction::Put(resource), expected };
                        match seen.get(&key).copied() {
                            None => {
                                seen.insert(key, (file, changes.len()));
                                changes.push(change);
                            }
                            Some((before, _)) if before == file => {
                                faults.push(format!("{}: {key} is given twice", text.source));
                            }
                            // As if one file had been applied after the other.
                            Some((before, at)) => {
                                let before = &request.texts[before].source;
                                warnings.push(format!("{key}: that of {before} gives way to that of {}", text.source));
                                changes[at] = change;
                                seen.insert(key, (file, at));
                            }
                        }
                    }
                }
            }
        }
        if !faults.is_empty() {
            return Err(Failure::faults("nothing was applied", faults));
        }
        if changes.is_empty() {
            return Err(Failure::bad("there is no document in what was given"));
        }
        self.seal(&mut changes).await?;
        Ok(Applied { warnings, ..self.change(changes, dry_run).await? })
    }

    /// Seals what is secret in documents, before anything else sees it.
    async fn seal(&self, changes: &mut [ResourceChange]) -> Answered<()> {
        for change in changes {
            let ResourceAction::Put(resource) = &mut change.action else { continue };
            if resource.key.kind != Secret::KIND.key() {
                continue;
            }
            let refused =
                |why: String| Failure::faults("nothing was applied", vec![format!("{}: {why}", resource.key)]);
            let secret = Secret::of(resource).map_err(&refused)?;
            let (_, private) = secret.values();
            let whole = secret.sealed.is_empty();
            if whole {
                check_credential(&secret.credential(&private)).map_err(&refused)?;
            }
            let sealed = self.vault.seal((&resource.key.namespace, &resource.key.name), &private).await;
            let sealed = sealed.map_err(|why| {
                Failure::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    format!("{} cannot be sealed: {why}", resource.key),
                )
            })?;
            let kept =
                serde_json::to_value(secret.kept(sealed)).map_err(|error| Failure::internal(error.to_string()))?;
            resource.spec = kept.to_string();
        }
        Ok(())
    }

    /// `DELETE /v1/resources/{kind}/{namespace}/{name}`
    pub async fn api_delete(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        expected: Option<&String>,
    ) -> Answered<Applied> {
        let kind = self.kind(kind)?;
        let expected = expected.map(|text| text.parse::<Index>()).transpose();
        let expected = expected.map_err(|_| Failure::bad("expected is a version that `weft get` printed"))?;
        let key = ResourceKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.change(vec![ResourceChange { action: ResourceAction::Delete(key), expected }], false).await
    }

    /// Tries the change on a copy of the state, compiling included; then, unless it is a dry run, proposes it.
    async fn change(&self, changes: Vec<ResourceChange>, dry_run: bool) -> Answered<Applied> {
        let command = Command::ChangeResources(changes);
        let mut trial = State::clone(&self.state());
        let index = trial.index + 1;
        let proposal = Proposal { key: random(&self.world), at: self.world.now(), command: command.clone() };
        let (_, outcome) = weft_consensus::apply::apply(&mut trial, index, &proposal);
        if let Outcome::Refused(refusal) = outcome {
            return Err(refused(refusal.reason, refusal.detail));
        }
        let mut compiler = Compiler::new(self.site.clone());
        let compiled = compiler.compile(&Arc::new(trial), &self.live(), &self.local.borrow().clone());
        let built = compiled.and_then(|description| {
            Table::build(description, Some(&self.plane.table())).map_err(|error| error.to_string())
        });
        let unenforced = compiler.unenforced();
        let fault = unenforced.iter().find(|one| one.version == index);
        let fault = built.err().or_else(|| fault.map(|one| format!("{}: {}", one.key, one.why)));
        if let Some(why) = fault {
            return Err(Failure::bad(format!("nothing was applied, since no node could enforce it: {why}")));
        }
        if dry_run {
            let Outcome::Changed(changes) = outcome else { return Err(Failure::internal("an odd outcome")) };
            return Ok(Applied { index: 0, changes, warnings: Vec::new() });
        }
        match self.decide(command).await? {
            (index, Outcome::Changed(changes)) => Ok(Applied { index, changes, warnings: Vec::new() }),
            (_, other) => Err(Failure::internal(format!("the log answered {other:?}"))),
        }
    }
}

/// How a document stands, as the conditions of the Gateway API (its type `PolicyStatus` and those of routes). Its routes have
/// them for each parent too, and what is found in other documents is told with them.
fn status(resource: &Resource, hints: &[String], told: &[(NodeName, EnforcedReply)], findings: &[&Finding]) -> Value {
    let (mut lacking, mut enforcing) = (Vec::new(), 0);
    for (node, reply) in told {
        let unenforced = reply.unenforced.iter().cloned().map(Unenforced::from);
        match unenforced.into_iter().find(|one| one.key == resource.key) {
            Some(one) => lacking.push(format!("node {node}: {}", one.why)),
            None if reply.enforced >= resource.version => enforcing += 1,
            None if reply.lacks.is_empty() => lacking.push(format!("node {node} enforces index {}", reply.enforced)),
            None => lacking.push(format!("node {node}: {}", reply.lacks)),
        }
    }
    let accepted = match hints {
        [] => "the mesh keeps it".to_owned(),
        hints => hints.join("; "),
    };
    let count = format!("{enforcing} of {} live nodes enforce it", told.len());
    let (programmed, reason, message) = match lacking.as_slice() {
        [] => ("True", "Programmed", count),
        lacking => ("False", "NotEnforced", format!("{count}; {}", lacking.join("; "))),
    };
    let condition = |kind: &str, status: &str, reason: &str, message: String| {
        let generation = resource.version;
        json!({ "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": generation })
    };
    let programmed = condition("Programmed", programmed, reason, message);
    if resource.key.kind.group != ROUTES {
        let accepted = condition("Accepted", "True", "Accepted", accepted);
        let mut status = json!({ "conditions": [accepted, programmed] });
        if !findings.is_empty() {
            status["validationMessages"] = json!(findings);
        }
        return status;
    }
    let find = |code: &str, parents: bool| {
        findings.iter().find(|one| one.code == code && one.path.starts_with("spec.parentRefs") == parents)
    };
    let accepted = match find("WFT101", true).or_else(|| find("WFT103", true)) {
        Some(lacks) => condition("Accepted", "False", "NoMatchingParent", lacks.message.clone()),
        None => condition("Accepted", "True", "Accepted", accepted),
    };
    let refused = find("WFT105", false).map(|lacks| ("RefNotPermitted", lacks));
    let lacks = refused.or_else(|| find("WFT101", false).map(|lacks| ("BackendNotFound", lacks)));
    let resolved = match lacks {
        Some((reason, lacks)) => {
            condition("ResolvedRefs", "False", reason, format!("{}: {}", lacks.path, lacks.message))
        }
        None => condition("ResolvedRefs", "True", "ResolvedRefs", "every backend is there".into()),
    };
    let conditions = json!([accepted, resolved, programmed]);
    let spec: Value = serde_json::from_str(&resource.spec).unwrap_or_default();
    let parent =
        |parent: &Value| json!({ "parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions });
    let parents: Vec<Value> = spec["parentRefs"].as_array().into_iter().flatten().map(parent).collect();
    json!({ "conditions": conditions, "parents": parents })
}

/// The group of routes.
const ROUTES: &str = "gateway.networking.k8s.io";
/// Whose conditions they are.
const CONTROLLER: &str = "weft.mesh/node";
