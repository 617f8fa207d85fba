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
    /// What the command line has told of.
    told: Arc<[LocalInstance]>,
    local: watch::Sender<Arc<Local>>,
}

type Stamp = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

impl ServicesDirectory {
    /// Makes the directory if need be and reads it; `told` are instances that stand in no file.
    pub fn open(path: PathBuf, told: &[ServiceSpec], local: watch::Sender<Arc<Local>>) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        let told: Result<Vec<LocalInstance>, _> = told.iter().map(|spec| parse(spec, &super::NAMES)).collect();
        let told = told.map_err(|faults| io::Error::new(io::ErrorKind::InvalidInput, faults.join("; ")))?;
        let directory = Self { path, told: told.into(), local };
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
        let path = self.holder(&instance.id).unwrap_or_else(|| self.free(&file_name(&instance.id)));
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

    /// A path that no file has: whatever lies there already is somebody's.
    fn free(&self, name: &str) -> PathBuf {
        let numbered = (2..).map(|number: usize| self.path.join(format!("{name}.{number}.yaml")));
        let mut paths = std::iter::once(self.path.join(format!("{name}.yaml"))).chain(numbered);
        paths.find(|path| !path.exists()).expect("there are more numbers than files")
    }

    /// What is registered stays when another file contradicts it; else the file that was written first counts.
    fn registered(&self) -> Registered {
        let mut registered = Registered::default();
        self.told.iter().for_each(|instance| registered.add("the command line", instance.clone()));
        let current = self.local.borrow().clone();
        let rank = |path: &PathBuf| {
            let stands = read_file(path).is_ok_and(|read| current.instances.get(&read.id) == Some(&read));
            let written = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            (!stands, written, path.clone())
        };
        let mut files = self.files();
        files.sort_by_cached_key(rank);
        for path in files {
            let source = path.display().to_string();
            match read_file(&path) {
                Ok(instance) => registered.add(&source, instance),
                Err(faults) => faults.iter().for_each(|fault| registered.fault(&source, fault)),
            }
        }
        registered
    }

    /// Takes up what the files say.
    pub(crate) fn read(&self) {
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
        true => format!("{name}.{namespace}"),
        false => format!("{name}.{namespace}.{}", id.name),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, ServicesDirectory) {
        let place = tempfile::tempdir().expect("a directory");
        let local = watch::channel(Arc::new(Local::default())).0;
        let directory = ServicesDirectory::open(place.path().to_owned(), &[], local).expect("made");
        (place, directory)
    }

    fn registered(directory: &ServicesDirectory) -> Vec<String> {
        directory.read();
        let local = directory.local.borrow();
        local.instances.values().map(|one| format!("{} as {} {:?}", one.id, one.account.name(), one.labels)).collect()
    }

    const WEB: &str = "name: web\nports: [{port: 80}]\n";

    #[test]
    fn what_is_registered_stays_whatever_contradicts_it() {
        let (place, directory) = directory();
        fs::write(place.path().join("web.yaml"), WEB).expect("written");
        fs::write(place.path().join("v2.yaml"), format!("{WEB}instance: v2\nlabels: {{version: v2}}\n"))
            .expect("written");
        let before = registered(&directory);
        assert_eq!(before, ["default/web as web {}", "default/web@v2 as web {\"version\": \"v2\"}"]);
        for text in [
            format!("{WEB}instance: v3\nserviceAccount: other\n"),
            "name: web\ninstance: v3\nports: [{port: 80, protocol: http}, {port: 80}]\n".to_owned(),
            format!("{WEB}instance: v2\nlabels: {{version: other}}\n"),
        ] {
            fs::write(place.path().join("aaa.yaml"), &text).expect("written");
            assert_eq!(registered(&directory), before, "{text}");
            assert_eq!(directory.local.borrow().faults.len(), 1, "{text}");
        }
    }

    #[test]
    fn no_file_of_another_service_is_written_over() {
        let (place, directory) = directory();
        let taken = place.path().join("web.default.v2.yaml");
        for there in ["name: precious\nports: [{port: 80}]\n", "no service at all"] {
            fs::write(&taken, there).expect("written");
            let spec = ServiceSpec { instance: Some("v2".into()), ..serde_saphyr::from_str(WEB).expect("a service") };
            directory.add(&spec).expect("added");
            assert_eq!(fs::read_to_string(&taken).expect("readable"), there);
            assert!(registered(&directory).contains(&"default/web@v2 as web {}".to_owned()));
        }
    }
}
