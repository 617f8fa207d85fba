//! `services.d/`: one YAML file a service, read again when it changes. `weft service add` writes such a file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use weft_proto::service::ServiceName;

use crate::api::schema::ServiceSpec;
use crate::registry::{Local, LocalService, Registry, parse};

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

    /// Writes a service's file, after checking that it would be taken.
    pub fn add(&self, spec: &ServiceSpec) -> Result<ServiceName, Vec<String>> {
        let service = parse(spec, &super::NAMES)?;
        let text = serde_saphyr::to_string(spec).map_err(|error| vec![error.to_string()])?;
        let path = self.holder(&service.name).unwrap_or_else(|| self.path.join(file_name(&service.name)));
        write_whole(&path, &text).map_err(|error| vec![format!("{}: {error}", path.display())])?;
        self.read();
        Ok(service.name)
    }

    /// Removes the file that holds a service; tells whether there was one.
    pub fn remove(&self, name: &ServiceName) -> Result<bool, String> {
        let Some(path) = self.holder(name) else { return Ok(false) };
        fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        self.read();
        Ok(true)
    }

    fn holder(&self, name: &ServiceName) -> Option<PathBuf> {
        let holds = |path: &PathBuf| read_file(path).is_ok_and(|service| service.name == *name);
        self.files().into_iter().find(holds)
    }

    fn read(&self) {
        let (mut services, mut faults) = (BTreeMap::new(), Vec::new());
        for path in self.files() {
            match read_file(&path) {
                Err(found) => faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", path.display()))),
                Ok(service) if services.contains_key(&service.name) => {
                    faults.push(format!("{}: service {} stands in another file too", path.display(), service.name));
                }
                Ok(service) => drop(services.insert(service.name.clone(), service)),
            }
        }
        for fault in &faults {
            tracing::warn!(fault, "a service is not registered");
        }
        Registry::<super::HostWorld>::set(&self.local, services, faults);
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

fn file_name(name: &ServiceName) -> String {
    format!("{}.{}.yaml", name.name(), name.namespace())
}

fn read_file(path: &Path) -> Result<LocalService, Vec<String>> {
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
