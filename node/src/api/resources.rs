//! What the API does with documents: reads, applies, deletes.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use weft_consensus::state::State;
use weft_proto::Index;
use weft_proto::command::{Command, Outcome, Proposal, ResourceAction, ResourceChange};
use weft_proto::document;
use weft_proto::kinds::certificate::Certificate;
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::service_entry::ServiceEntry;
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proxy::table::Table;
use weft_proxy::tls::check_credential;

use super::certificates::standing;
use super::operations::{Answered, Failure, refused};
use super::schema::{Applied, ApplyRequest};
use super::status::{GATEWAYS, on_loopback, serving, status};
use crate::analyze::{Finding, analyze, known};
use crate::compile::Compiler;
use crate::node::Node;
use crate::world::{World, random};

impl<W: World> Node<W> {
    /// `GET /v1/resources`: documents, with `status=true` as they stand on every live node.
    pub async fn api_resources(&self, query: &BTreeMap<String, String>) -> Answered<Vec<Value>> {
        let kinds = query.get("kind").map(|text| self.kinds(text)).transpose()?;
        let wanted = |key: &ResourceKey| {
            kinds.as_ref().is_none_or(|kinds| kinds.contains(&key.kind))
                && query.get("namespace").is_none_or(|namespace| *namespace == key.namespace)
                && query.get("name").is_none_or(|name| *name == key.name)
        };
        let state = self.state();
        let mut found: Vec<_> = state.resources.values().filter(|resource| wanted(&resource.key)).collect();
        // A name is that of one document: of several kinds that share theirs the first is meant.
        if let (Some(kinds), true) = (&kinds, query.contains_key("name")) {
            let first = kinds.iter().find(|kind| found.iter().any(|one| one.key.kind == **kind));
            found.retain(|one| first == Some(&one.key.kind));
        }
        if let Some(name) = query.get("name").filter(|_| found.is_empty()) {
            let namespace = query.get("namespace").map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let kind = kinds.and_then(|kinds| kinds.into_iter().next()).map(|kind| kind.name).unwrap_or_default();
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
                let hints = document::hints(self.site.kinds, resource);
                document["status"] = status(resource, &hints, &told, &own);
                if GATEWAYS.contains(&resource.key.kind.group.as_str()) && resource.key.kind.name == "Gateway" {
                    serving(&mut document["status"], (resource, &all), &self.live());
                }
                if resource.key.kind == ServiceEntry::KIND.key() {
                    on_loopback(&mut document["status"], resource, &self.plane().table());
                }
                if resource.key.kind == Certificate::KIND.key() {
                    standing(&mut document["status"], (&state, resource), self.world.now());
                }
            }
        }
        Ok(documents)
    }

    /// The kinds that somebody may mean: those that are known, or of which there are documents.
    fn kinds(&self, text: &str) -> Answered<Vec<KindName>> {
        let known: Vec<KindName> = self.site.kinds.called(text).into_iter().map(Kind::key).collect();
        if !known.is_empty() {
            return Ok(known);
        }
        let error = self.site.kinds.named(text).err().unwrap_or_default();
        let state = self.state();
        // A kind that is not known here goes by its name, or by its name and group as documents have them.
        let is_meant = |kind: &&KindName| {
            let (name, group) = text.split_once('.').map_or((text, None), |(name, group)| (name, Some(group)));
            kind.name.eq_ignore_ascii_case(name) && group.is_none_or(|group| kind.group.eq_ignore_ascii_case(group))
        };
        let kept = state.resources.keys().map(|key| &key.kind).find(is_meant);
        kept.map(|kind| vec![kind.clone()]).ok_or_else(|| Failure::bad(error))
    }

    /// `POST /v1/resources`
    pub async fn api_apply(&self, request: ApplyRequest, dry_run: bool) -> Answered<Applied> {
        let (mut changes, mut faults): (Vec<ResourceChange>, Vec<String>) = (Vec::new(), Vec::new());
        let mut seen: BTreeMap<ResourceKey, (usize, usize)> = BTreeMap::new();
        let mut warnings = Vec::new();
        let kinds = self.site.kinds;
        for (file, text) in request.texts.iter().enumerate() {
            match document::parse_telling(kinds, &text.source, &text.text) {
                Err(found) => faults.extend(found.iter().map(ToString::to_string)),
                Ok((resources, left)) => {
                    warnings.extend(left);
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
            return Err(match warnings.is_empty() {
                true => Failure::bad("there is no document in what was given"),
                false => Failure::faults("nothing was applied", warnings),
            });
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
        let kinds = self.kinds(kind)?;
        let expected = expected.map(|text| text.parse::<Index>()).transpose();
        let expected = expected.map_err(|_| Failure::bad("expected is a version that `weft get` printed"))?;
        let key = |kind| ResourceKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let mut keys: Vec<ResourceKey> = kinds.into_iter().map(key).collect();
        let there = keys.iter().position(|key| self.state().resources.contains_key(key)).unwrap_or(0);
        let key = keys.swap_remove(there);
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
