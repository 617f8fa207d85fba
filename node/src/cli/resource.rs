//! `weft apply`, `weft get` and `weft delete`: documents, and waiting for them to be in force.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use weft_proto::Index;
use weft_proto::document::{self, TEXT_LENGTH_MAX};
use weft_proto::kinds::Kinds;
use weft_proto::resource::ResourceKey;
use weft_proto::service::DEFAULT_NAMESPACE;

use super::table::{count, table};
use super::{Context, Done, Ended, NOT_ENFORCED, Output, Stopped, json, values};
use crate::api::schema::{Applied, ApplyRequest, Enforced, Text};

/// Most files that one command takes.
const FILES_MAX: usize = 1000;
/// Pause before a node that did not answer is asked again.
const ASK_AGAIN_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// A file, a directory of .yaml, .yml and .json files, or - for standard input; may be repeated
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Say what would change, and change nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Wait until every live node enforces the change; exit with 3 if one does not
    #[arg(long)]
    wait: bool,
    /// How long to wait, at most 10m
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = values::wait)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Get {
    #[arg(help = kinds_help(), value_parser = values::kind)]
    kind: String,
    /// One document; all unless given
    #[arg(value_parser = values::document)]
    name: Option<String>,
    /// Namespace [default: all, or `default` with a name]
    #[arg(short, long, value_parser = values::name)]
    namespace: Option<String>,
    /// First wait until this node has every change that was acknowledged anywhere before; needs a majority of voters
    #[arg(long)]
    consistent: bool,
    /// How documents are printed
    #[arg(short = 'o', value_enum, value_name = "FORMAT")]
    format: Option<Format>,
}

fn kinds_help() -> String {
    format!("{}, in any case, singular, plural or short", Kinds::ALL.names())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As `weft apply` takes it
    Yaml,
    /// For programs
    Json,
    /// A line a document
    Table,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    #[arg(help = kinds_help(), value_parser = values::kind, required_unless_present = "file", requires = "name")]
    kind: Option<String>,
    /// The document
    #[arg(value_parser = values::document)]
    name: Option<String>,
    /// Namespace
    #[arg(short, long, default_value = DEFAULT_NAMESPACE, value_parser = values::name)]
    namespace: String,
    /// Delete it only if this is its version, as `weft get` prints it
    #[arg(long, value_name = "VERSION", conflicts_with = "file")]
    expected: Option<Index>,
    /// Delete the documents that these files name
    #[arg(short, long = "file", value_name = "FILE", conflicts_with_all = ["kind", "name"])]
    file: Vec<PathBuf>,
    #[command(flatten)]
    wait: Wait,
}

/// What a change did, and who enforces it where that was asked for.
#[derive(Debug, Serialize)]
struct Changed {
    #[serde(flatten)]
    applied: Applied,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforced: Option<Enforced>,
}

impl Apply {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let request = ApplyRequest { texts: read_all(&self.file)? };
        let mut applied = context.client.apply(&request, self.dry_run).await?;
        if self.dry_run {
            applied.changes.iter_mut().for_each(|change| change.push_str(" (dry run)"));
        }
        self.wait.finish(context, applied).await
    }
}

impl Get {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let namespace = self.namespace.as_deref().or(self.name.as_ref().map(|_| DEFAULT_NAMESPACE));
        if self.consistent {
            context.client.index().await?;
        }
        let format = self.format.unwrap_or(if context.output == Output::Json { Format::Json } else { Format::Table });
        let status = format != Format::Table;
        let documents = context.client.resources(&self.kind, namespace, self.name.as_deref(), status).await?;
        let text = match (format, documents.as_slice()) {
            (Format::Json, [document]) if self.name.is_some() => json(document)?,
            (Format::Json, documents) => json(&documents)?,
            (Format::Yaml, documents) => serde_saphyr::to_string_multiple(documents).map_err(Stopped::failed)?,
            (Format::Table, []) => format!("there is no {}\n", self.kind),
            (Format::Table, documents) => document_table(documents),
        };
        Ok(Done::text(text))
    }
}

impl Delete {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let named = |key: ResourceKey| (format!("{}.{}", key.kind, key.kind.group), key.namespace, key.name);
        let keys = match (self.kind, self.name) {
            (Some(kind), Some(name)) => vec![(kind, self.namespace, name)],
            _ => keys(&read_all(&self.file)?)?.into_iter().map(named).collect(),
        };
        let mut total = Applied { index: 0, changes: Vec::new(), warnings: Vec::new() };
        let mut faults = Vec::new();
        for (kind, namespace, name) in &keys {
            match context.client.delete_resource(kind, namespace, name, self.expected).await {
                Ok(applied) => {
                    total.index = total.index.max(applied.index);
                    total.changes.extend(applied.changes);
                }
                Err(error) => faults.push(Stopped::from(error)),
            }
        }
        match faults.first() {
            None => self.wait.finish(context, total).await,
            Some(first) => {
                let code = first.code;
                let mut lines = faults.into_iter().flat_map(|fault| fault.lines).collect::<Vec<_>>();
                lines.extend(total.changes.into_iter().map(|change| format!("done nevertheless: {change}")));
                Err(Stopped { lines, code })
            }
        }
    }
}

impl Wait {
    pub(super) async fn finish(&self, context: &Context, applied: Applied) -> Ended {
        let enforced = if self.wait { Some(self.enforced(context, applied.index).await?) } else { None };
        let lagging = enforced.as_ref().is_some_and(|enforced| !enforced.lagging.is_empty());
        let changed = Changed { applied, enforced };
        let done = context.render(&changed, |changed| {
            let changes = changed.applied.changes.iter().map(|change| format!("{change}\n"));
            let warnings = changed.applied.warnings.iter().map(|warning| format!("! {warning}\n"));
            changes.chain(warnings).chain(changed.enforced.as_ref().map(enforced_text)).collect()
        })?;
        Ok(Done { code: if lagging { NOT_ENFORCED } else { 0 }, ..done })
    }

    /// Asks until every live node enforces the index or the time is over. A node that has died meanwhile stops counting
    /// as live, which is why one answer is not the last.
    async fn enforced(&self, context: &Context, index: Index) -> Result<Enforced, Stopped> {
        let start = Instant::now();
        loop {
            let left = self.timeout.saturating_sub(start.elapsed());
            let mut enforced = context.client.enforced(index, left).await?;
            if enforced.lagging.is_empty() || start.elapsed() + ASK_AGAIN_PAUSE >= self.timeout {
                enforced.took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(enforced);
            }
            sleep(ASK_AGAIN_PAUSE).await;
        }
    }
}

fn enforced_text(enforced: &Enforced) -> String {
    let Enforced { index, nodes, enforced: enforcing, took_ms, .. } = enforced;
    let mut text = match *nodes {
        1 => format!("{enforcing} of 1 node enforces index {index} ({took_ms} ms)\n"),
        nodes => format!("{enforcing} of {nodes} nodes enforce index {index} ({took_ms} ms)\n"),
    };
    for lagging in &enforced.lagging {
        let index = if lagging.enforced == 0 {
            "an index that is not known".into()
        } else {
            format!("index {}", lagging.enforced)
        };
        text.push_str(&format!("{} enforces {index}: {}\n", lagging.node, lagging.why));
    }
    if !enforced.absent.is_empty() {
        let (nodes, names) = (count(enforced.absent.len(), "node"), enforced.absent.join(", "));
        text.push_str(&format!("{nodes} not live: {names}. One that is down enforces it before it is ready again, one that is cut off once it is reached\n"));
    }
    text
}

fn document_table(documents: &[Value]) -> String {
    let text =
        |document: &Value, pointer| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let row = |document: &Value| {
        let about = ["/spec/action", "/spec/selector/matchLabels/app", "/spec/targetRefs/0/name"];
        let about: Vec<String> =
            about.iter().map(|pointer| text(document, pointer)).filter(|word| !word.is_empty()).collect();
        let [namespace, name] = ["/metadata/namespace", "/metadata/name"].map(|pointer| text(document, pointer));
        [namespace, name, text(document, "/metadata/resourceVersion"), about.join(" ")]
    };
    table(["NAMESPACE", "NAME", "VERSION", "ABOUT"], &documents.iter().map(row).collect::<Vec<_>>())
}

/// The documents that the texts name, each once.
fn keys(texts: &[Text]) -> Result<Vec<ResourceKey>, Stopped> {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    for text in texts {
        match document::parse(Kinds::ALL, &text.source, &text.text) {
            Ok(resources) => keys.extend(resources.into_iter().map(|resource| resource.key)),
            Err(found) => faults.extend(found.iter().map(ToString::to_string)),
        }
    }
    if !faults.is_empty() {
        return Err(Stopped {
            lines: std::iter::once("nothing was deleted".to_owned()).chain(faults).collect(),
            code: 1,
        });
    }
    if keys.is_empty() {
        return Err(Stopped::failed("there is no document in what was given"));
    }
    keys.sort();
    keys.dedup();
    Ok(keys)
}

/// Every text that the arguments mean, in the order given; the files of a directory by name.
pub(super) fn read_all(arguments: &[PathBuf]) -> Result<Vec<Text>, Stopped> {
    let (mut texts, mut left) = (Vec::new(), TEXT_LENGTH_MAX as u64);
    for argument in arguments {
        let failed = |error: io::Error| Stopped::failed(format!("{}: {error}", argument.display()));
        let files = if argument.is_dir() { directory(argument).map_err(failed)? } else { vec![argument.clone()] };
        if files.is_empty() {
            return Err(Stopped::failed(format!("{}: it holds no .yaml, .yml or .json file", argument.display())));
        }
        for file in files {
            let text = read(&file, left).map_err(|error| Stopped::failed(format!("{}: {error}", file.display())))?;
            left -= text.text.len() as u64;
            texts.push(text);
        }
        if texts.len() > FILES_MAX {
            return Err(Stopped::failed(format!("at most {FILES_MAX} files are taken at once")));
        }
    }
    Ok(texts)
}

fn directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let wanted = path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path, length_max: u64) -> io::Result<Text> {
    let mut text = String::new();
    let (source, from): (_, Box<dyn Read>) = if path.as_os_str() == "-" {
        ("standard input".to_owned(), Box::new(io::stdin()))
    } else {
        (path.display().to_string(), Box::new(fs::File::open(path)?))
    };
    from.take(length_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > length_max {
        return Err(io::Error::other(format!("at most {TEXT_LENGTH_MAX} bytes are taken at once")));
    }
    Ok(Text { source, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::Lagging;

    #[test]
    fn who_lags_and_why_is_named() {
        let lagging = Lagging { node: "c".into(), enforced: 40, why: "it has not received it yet".into() };
        let mut enforced = Enforced { index: 42, nodes: 3, enforced: 3, lagging: vec![], absent: vec![], took_ms: 12 };
        assert_eq!(enforced_text(&enforced), "3 of 3 nodes enforce index 42 (12 ms)\n");
        (enforced.enforced, enforced.lagging, enforced.absent) = (2, vec![lagging], vec!["d".into()]);
        let text = "2 of 3 nodes enforce index 42 (12 ms)\nc enforces index 40: it has not received it yet\n\
                    1 node not live: d. One that is down enforces it before it is ready again, one that is cut off once it \
                    is reached\n";
        assert_eq!(enforced_text(&enforced), text);
    }

    #[test]
    fn directories_are_read_by_name_and_other_files_left() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["b.yaml", "a.json", "c.yml", "d.txt"] {
            fs::write(directory.path().join(name), name).expect("written");
        }
        let texts = read_all(&[directory.path().to_owned()]).expect("readable");
        assert_eq!(texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>(), ["a.json", "b.yaml", "c.yml"]);
        fs::write(directory.path().join("b.yaml"), "x".repeat(TEXT_LENGTH_MAX)).expect("written");
        let stopped = read_all(&[directory.path().to_owned()]).expect_err("too long");
        assert!(stopped.lines[0].contains("b.yaml: at most"), "{stopped:?}");
        assert!(read_all(&[directory.path().join("none")]).is_err());
    }

    #[test]
    fn documents_to_delete_are_found_once_and_faults_all_told() {
        let text = |source: &str, text: &str| Text { source: source.into(), text: text.into() };
        let good = "apiVersion: weft/v1\nkind: Service\nmetadata: {name: web, namespace: prod}\n";
        let found = keys(&[text("x", good), text("y", good)]).expect("good");
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["Service prod/web"]);
        let stopped = keys(&[text("x", "kind: [\n"), text("y", "kind: Gizmo\n")]).expect_err("bad");
        assert_eq!(stopped.lines.len(), 3, "{stopped:?}");
    }

    #[test]
    fn documents_are_listed_a_line_each() {
        let document = serde_json::json!({
            "metadata": { "name": "db", "namespace": "default", "resourceVersion": "7" },
            "spec": { "action": "DENY", "targetRefs": [{ "kind": "Service", "name": "db" }] },
        });
        assert_eq!(document_table(&[document]), "NAMESPACE  NAME  VERSION  ABOUT\ndefault    db    7        DENY db\n");
    }
}
