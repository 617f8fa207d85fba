//! Units of systemd as instances: how they fare is told by the service manager over D-Bus as it changes, without a poll.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use zbus::message::Type;
use zbus::zvariant::{OwnedObjectPath, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream};

use crate::registry::{Local, UnitState};

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// Bound on what is asked before the node begins.
const FIRST: Duration = Duration::from_secs(1);
/// Pause before a bus that has gone is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps what is known of the units that instances are of in step with the service manager.
pub(crate) async fn watch(local: watch::Sender<Arc<Local>>) {
    let mut changes = local.subscribe();
    loop {
        if changes.wait_for(|local| !wanted(local).is_empty()).await.is_err() {
            return;
        }
        if let Err(error) = follow(&local).await {
            tracing::warn!(%error, "systemd cannot be asked about the units of services");
            let why = format!("systemd cannot be asked: {error}");
            let unknown = |unit: String| (unit, UnitState { active: Err(why.clone()), group: None });
            let units = wanted(&local.borrow()).into_iter().map(unknown).collect();
            tell(&local, units);
            sleep(AGAIN).await;
        }
    }
}

/// Asks once, before the node begins, so that it does not tell others for a moment that its instances do not run.
pub(crate) async fn first(local: &watch::Sender<Arc<Local>>) {
    let units = wanted(&local.borrow());
    if units.is_empty() {
        return;
    }
    let asked = async {
        let connection = Connection::system().await?;
        let mut states = BTreeMap::new();
        for unit in units {
            let path = load(&connection, &unit).await?;
            states.insert(unit, state(&connection, &path).await?);
        }
        Ok::<_, zbus::Error>(states)
    };
    // What is not answered now is asked for again.
    if let Ok(Ok(states)) = timeout(FIRST, asked).await {
        tell(local, states);
    }
}

/// Whether the service manager stops this process to start it again.
pub(crate) async fn restarts() -> bool {
    let asked = async {
        let connection = Connection::system().await?;
        let own =
            connection.call_method(Some(MANAGER), MANAGER_PATH, Some(MANAGER_NAME), "GetUnitByPID", &(0_u32,)).await?;
        let own: OwnedObjectPath = own.body().deserialize()?;
        let job = value(&connection, own.as_str(), UNIT_NAME, "Job").await?;
        let (_, job) = <(u32, OwnedObjectPath)>::try_from(job)?;
        property(&connection, job.as_str(), "org.freedesktop.systemd1.Job", "JobType").await
    };
    match timeout(FIRST, asked).await {
        Ok(Ok(kind)) => kind.ends_with("restart"),
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd does not say why this process is to end");
            false
        }
        Err(_) => false,
    }
}

/// The units that instances are of.
fn wanted(local: &Local) -> BTreeSet<String> {
    local.instances.values().filter_map(|instance| instance.unit.clone()).collect()
}

/// Follows the units that are wanted until the bus ends.
async fn follow(local: &watch::Sender<Arc<Local>>) -> zbus::Result<()> {
    let connection = Connection::system().await?;
    let rule = MatchRule::builder().msg_type(Type::Signal).interface(PROPERTIES)?.member("PropertiesChanged")?;
    let rule = rule.path_namespace(UNIT_PATH)?.build();
    let mut signals = MessageStream::for_match_rule(rule, &connection, None).await?;
    // Without it the manager tells nobody anything.
    connection.call_method(Some(MANAGER), MANAGER_PATH, Some(MANAGER_NAME), "Subscribe", &()).await?;
    let mut changes = local.subscribe();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut states = BTreeMap::new();
    loop {
        let now = wanted(&changes.borrow_and_update());
        if now.is_empty() {
            tell(local, BTreeMap::new());
            return Ok(());
        }
        states.retain(|unit, _| now.contains(unit));
        known.retain(|_, unit| now.contains(unit));
        for unit in now {
            if !known.values().any(|own| *own == unit) {
                let path = load(&connection, &unit).await?;
                states.insert(unit.clone(), state(&connection, &path).await?);
                known.insert(path, unit);
            }
        }
        tell(local, states.clone());
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            signal = signals.next() => {
                let signal = signal.ok_or_else(|| zbus::Error::Failure("the bus has ended".into()))??;
                let path = signal.header().path().map(|path| path.as_str().to_owned()).unwrap_or_default();
                if let Some(unit) = known.get(&path) {
                    states.insert(unit.clone(), state(&connection, &path).await?);
                }
            }
        }
    }
}

/// The interface of the manager.
const MANAGER_NAME: &str = "org.freedesktop.systemd1.Manager";
/// That of units.
const UNIT_NAME: &str = "org.freedesktop.systemd1.Unit";

async fn load(connection: &Connection, unit: &str) -> zbus::Result<String> {
    let reply = connection.call_method(Some(MANAGER), MANAGER_PATH, Some(MANAGER_NAME), "LoadUnit", &(unit,)).await?;
    let path: OwnedObjectPath = reply.body().deserialize()?;
    Ok(path.as_str().to_owned())
}

async fn state(connection: &Connection, path: &str) -> zbus::Result<UnitState> {
    let told = async |name| property(connection, path, UNIT_NAME, name).await;
    let (loaded, active, sub) = (told("LoadState").await?, told("ActiveState").await?, told("SubState").await?);
    // Of what is no service, such as a socket, it is not known.
    let group = property(connection, path, "org.freedesktop.systemd1.Service", "ControlGroup").await.ok();
    let group = group.filter(|group| !group.is_empty());
    let group = group.and_then(|group| std::fs::metadata(format!("{GROUPS}{group}")).ok()).map(|found| found.ino());
    Ok(UnitState { active: fares(&loaded, &active, &sub), group })
}

/// Whether a unit in these states takes calls.
fn fares(loaded: &str, active: &str, sub: &str) -> Result<(), String> {
    match (loaded, active) {
        ("not-found", _) => Err("there is no such unit".to_owned()),
        (_, "active" | "reloading" | "refreshing") if sub != "exited" => Ok(()),
        _ => Err(format!("the unit is {active} ({sub})")),
    }
}

async fn property(connection: &Connection, path: &str, interface: &str, name: &str) -> zbus::Result<String> {
    String::try_from(value(connection, path, interface, name).await?).map_err(Into::into)
}

async fn value(connection: &Connection, path: &str, interface: &str, name: &str) -> zbus::Result<OwnedValue> {
    let reply = connection.call_method(Some(MANAGER), path, Some(PROPERTIES), "Get", &(interface, name)).await?;
    reply.body().deserialize()
}

fn tell(local: &watch::Sender<Arc<Local>>, units: BTreeMap<String, UnitState>) {
    local.send_if_modified(|current| {
        let changed = current.units != units;
        if changed {
            let current = Arc::make_mut(current);
            // What has started again is given calls again.
            let runs = |units: &BTreeMap<String, UnitState>, unit: &String| {
                units.get(unit).is_some_and(|unit| unit.active.is_ok())
            };
            let began = |unit: &String| runs(&units, unit) && !runs(&current.units, unit);
            let (instances, draining) = (&current.instances, &mut current.draining);
            draining.retain(|id| !instances.get(id).and_then(|one| one.unit.as_ref()).is_some_and(began));
            current.units = units;
        }
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_takes_calls_once_it_is_ready() {
        assert!(fares("loaded", "active", "running").is_ok());
        assert!(fares("loaded", "reloading", "running").is_ok());
        for (loaded, active, sub) in [
            ("loaded", "activating", "start"),
            ("loaded", "deactivating", "stop-sigterm"),
            ("loaded", "failed", "failed"),
            ("loaded", "active", "exited"),
            ("loaded", "inactive", "dead"),
        ] {
            assert!(fares(loaded, active, sub).expect_err("not now").contains(sub));
        }
        assert!(fares("not-found", "inactive", "dead").expect_err("none").contains("no such unit"));
    }
}
