//! `services.d/`: one YAML file an instance, read again when it changes. `weft service add` writes such a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use weft_proto::service::{InstanceId, InstanceName, ServiceName};

use crate::api::schema::ServiceSpec;
use crate::registry::{Local, LocalInstance, Registered, Registry, parse};

/// How often the directory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Most files read.
const FILES_MAX: usize = 4096;
/// Longest file: 64 KiB.
const FILE_LENGTH_MAX: u64 = 64 << 10;

/// The directory and what was last read from it.
#[derive(Clone)]
pub struct ServicesDirectory {
    path: PathBuf,
    local: watch::Sender<Arc<Local>>,
}

type Stamp = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

impl ServicesDirectory {
    /// Makes the directory if need be and reads it.
    pub fn open(path: PathBuf, local: watch::Sender<Arc<Local>>) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        let directory = Self { path, local };
        directory.read();
        Ok(directory)
    }

    /// Looks for changes until the node stops.
    pub async fn watch(self) {
        let mut seen = self.stamp();
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            ticks.tick().await;
            let now = self.stamp();
            if now != seen {
                seen = now;
                self.read();
            }
        }
    }

    /// Writes an instance's file, after checking that it would be taken.
    pub fn add(&self, spec: &ServiceSpec) -> Result<InstanceId, Vec<String>> {
        let instance = parse(spec, &super::NAMES)?;
        if let Some(why) = self.registered().contradiction(&instance) {
            return Err(vec![why]);
        }
        let text = serde_saphyr::to_string(spec).map_err(|error| vec![error.to_string()])?;
        let path = self.holder(&instance.id).unwrap_or_else(|| self.path.join(file_name(&instance.id)));
        write_whole(&path, &text).map_err(|error| vec![format!("{}: {error}", path.display())])?;
        self.read();
        Ok(instance.id)
    }

    /// Removes the files that hold a service's instances, or one of them; tells which that were.
    pub fn remove(&self, service: &ServiceName, only: Option<&InstanceName>) -> Result<Vec<InstanceId>, String> {
        let held = self.files().into_iter().filter_map(|path| Some((read_file(&path).ok()?.id, path)));
        let meant = |id: &InstanceId| id.service == *service && only.is_none_or(|name| id.name == *name);
        let mut removed = BTreeSet::new();
        for (id, path) in held.filter(|(id, _)| meant(id)) {
            fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            removed.insert(id);
        }
        self.read();
        Ok(removed.into_iter().collect())
    }

    fn holder(&self, id: &InstanceId) -> Option<PathBuf> {
        let holds = |path: &PathBuf| read_file(path).is_ok_and(|instance| instance.id == *id);
        self.files().into_iter().find(holds)
    }

    fn registered(&self) -> Registered {
        let mut registered = Registered::default();
        for path in self.files() {
            let source = path.display().to_string();
            match read_file(&path) {
                Ok(instance) => registered.add(&source, instance),
                Err(faults) => faults.iter().for_each(|fault| registered.fault(&source, fault)),
            }
        }
        registered
    }

    fn read(&self) {
        let registered = self.registered();
        for fault in registered.faults() {
            tracing::warn!(fault, "an instance is not registered");
        }
        Registry::<super::HostWorld>::set(&self.local, registered);
    }

    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
            .take(FILES_MAX)
            .collect();
        files.sort();
        files
    }

    fn stamp(&self) -> Stamp {
        let stamp = |path: PathBuf| {
            let metadata = fs::metadata(&path).ok();
            let at = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
            (path, (at, metadata.map_or(0, |metadata| metadata.len())))
        };
        self.files().into_iter().map(stamp).collect()
    }
}

fn file_name(id: &InstanceId) -> String {
    let (name, namespace) = (id.service.name(), id.service.namespace());
    match id.name.is_default() {
        true => format!("{name}.{namespace}.yaml"),
        false => format!("{name}.{namespace}.{}.yaml", id.name),
    }
}

fn read_file(path: &Path) -> Result<LocalInstance, Vec<String>> {
    let length = fs::metadata(path).map_err(|error| vec![error.to_string()])?.len();
    if length > FILE_LENGTH_MAX {
        return Err(vec![format!("{length} bytes; at most {FILE_LENGTH_MAX}")]);
    }
    let text = fs::read_to_string(path).map_err(|error| vec![error.to_string()])?;
    let spec: ServiceSpec = serde_saphyr::from_str(&text).map_err(|error| vec![error.without_snippet().to_string()])?;
    parse(&spec, &super::NAMES)
}

/// Writes beside and renames, so that a reader sees the old file or the new one.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
