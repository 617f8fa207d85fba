//! `weft analyze`: what is wrong with documents though each of them is good.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use weft_proto::document;
use weft_proto::kinds::Kinds;
use weft_proto::resource::{Resource, ResourceKey};

use super::{Context, Done, Ended, FOUND, Output, Stopped, json, resource};
use crate::analyze::{CODES, Finding, Level, analyze, known};

#[derive(Debug, Args)]
pub(super) struct Analyze {
    /// Files, or directories of .yaml, .yml and .json files, or - for standard input: as if they were applied; the mesh as it
    /// is unless given
    #[arg(value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Look at the files alone, without asking a node
    #[arg(long, requires = "file")]
    offline: bool,
    /// List the codes, and what they mean
    #[arg(long, exclusive = true)]
    codes: bool,
}

impl Analyze {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        if self.codes {
            let listed: Vec<Value> = CODES
                .iter()
                .map(|(code, level, meaning)| serde_json::json!({"code": code, "level": level, "meaning": meaning}))
                .collect();
            let line =
                |(code, level, meaning): &(&str, Level, &str)| format!("{code}  {:<7}  {meaning}\n", level.name());
            return context.render(&listed, |_| CODES.iter().map(line).collect());
        }
        let mut documents: BTreeMap<ResourceKey, Resource> = BTreeMap::new();
        let mut services = None;
        if !self.offline {
            services = Some(known(&context.client.services().await?.services));
            for kind in Kinds::ALL.iter() {
                let group = if kind.group.is_empty() { "core" } else { kind.group };
                let named = format!("{}.{group}", kind.plural);
                let answer = context.client.resources(&named, None, None, false).await?;
                for one in answer {
                    let read = document::parse(Kinds::ALL, "the mesh", &one.to_string()).unwrap_or_default();
                    documents.extend(read.into_iter().map(|one| (one.key.clone(), one)));
                }
            }
        }
        let mut own = Vec::new();
        for text in resource::read_all(&self.file)? {
            let read = document::parse(Kinds::ALL, &text.source, &text.text).map_err(|faults| Stopped {
                lines: faults.iter().map(ToString::to_string).collect(),
                code: super::FAILURE,
            })?;
            own.extend(read.iter().map(|one| one.key.to_string()));
            documents.extend(read.into_iter().map(|one| (one.key.clone(), one)));
        }
        let documents: Vec<Resource> = documents.into_values().collect();
        let mut found = analyze(&documents, services.as_ref());
        // Those of other documents stay as they are, with the files or without.
        found.retain(|finding| own.is_empty() || own.contains(&finding.document));
        let code = if found.iter().any(|finding| finding.level != Level::Info) { FOUND } else { 0 };
        let text = match context.output {
            Output::Json => json(&found)?,
            Output::Text => told(&found, documents.len()),
        };
        Ok(Done { text, code })
    }
}

fn told(found: &[Finding], documents: usize) -> String {
    if found.is_empty() {
        return format!("nothing was found in {documents} documents\n");
    }
    let line =
        |one: &Finding| format!("{} {}: {}: {}: {}\n", one.code, one.level.name(), one.document, one.path, one.message);
    found.iter().map(line).collect()
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}
