//! What this host runs, as the data plane knows it.

use std::collections::BTreeMap;

use weft_proto::service::ServiceName;
use weft_proxy::table::description::{self, LocalPort};

use crate::registry::{CallerClaim, Local, LocalInstance};

/// An instance of this host.
pub(super) fn instance(local: &Local, own: &LocalInstance) -> description::LocalInstance {
    let ports = own.ports.iter().map(|port| LocalPort {
        port: port.port.port,
        target: port.target,
        protocol: port.port.protocol,
    });
    description::LocalInstance {
        id: own.id.clone(),
        labels: own.labels.clone(),
        weight: own.weight,
        ports: ports.collect(),
        host: None,
        healthy: local.is_healthy(&own.id),
    }
}

/// As which services the users of this host call, and all others.
pub(super) fn callers(local: &Local) -> (BTreeMap<u32, ServiceName>, Option<ServiceName>) {
    let (mut users, mut any) = (BTreeMap::new(), None);
    for instance in local.instances.values() {
        match instance.caller {
            CallerClaim::User(user) => drop(users.entry(user).or_insert_with(|| instance.id.service.clone())),
            CallerClaim::Any => any = any.or_else(|| Some(instance.id.service.clone())),
            CallerClaim::Nobody => {}
        }
    }
    (users, any)
}

/// Which service the processes of a control group belong to: that of the unit.
pub(super) fn groups(local: &Local) -> BTreeMap<u64, ServiceName> {
    let of = |instance: &LocalInstance| {
        let group = local.units.get(instance.unit.as_ref()?)?.group?;
        Some((group, instance.id.service.clone()))
    };
    local.instances.values().filter_map(of).collect()
}
