//! Facts to wire messages and back.

use super::{ConvertError, Parsed, each};
use crate::facts::NodeFacts;
use crate::service::{Instance, InstanceId, InstanceName};
use crate::wire::mesh as wire;

impl From<NodeFacts> for wire::NodeFacts {
    fn from(facts: NodeFacts) -> Self {
        Self {
            name: facts.name.to_string(),
            raft_id: facts.raft_id,
            generation: facts.generation,
            sequence: facts.sequence,
            address: facts.address,
            zone: facts.zone,
            version: facts.version,
            refused: facts.refused,
            instances: facts.instances.into_iter().map(Into::into).collect(),
            draining: facts.draining,
            commands: facts.commands,
        }
    }
}

impl TryFrom<wire::NodeFacts> for NodeFacts {
    type Error = ConvertError;

    fn try_from(message: wire::NodeFacts) -> Parsed<Self> {
        Ok(Self {
            name: message.name.parse()?,
            raft_id: message.raft_id,
            generation: message.generation,
            sequence: message.sequence,
            address: message.address,
            zone: message.zone,
            version: message.version,
            refused: message.refused,
            instances: each(message.instances, TryInto::try_into)?,
            draining: message.draining,
            commands: message.commands,
        })
    }
}

fn instance_name(text: &str) -> Parsed<InstanceName> {
    if text.is_empty() { Ok(InstanceName::default()) } else { Ok(text.parse()?) }
}

impl From<Instance> for wire::Instance {
    fn from(instance: Instance) -> Self {
        Self {
            service: instance.id.service.to_string(),
            name: if instance.id.name.is_default() { String::new() } else { instance.id.name.to_string() },
            labels: instance.labels,
            ports: instance.ports.into_iter().map(Into::into).collect(),
            targets: instance.targets.into_iter().map(u32::from).collect(),
            healthy: instance.healthy,
            weight: u32::from(instance.weight),
        }
    }
}

impl TryFrom<wire::Instance> for Instance {
    type Error = ConvertError;

    fn try_from(message: wire::Instance) -> Parsed<Self> {
        Ok(Self {
            id: InstanceId { service: message.service.parse()?, name: instance_name(&message.name)? },
            labels: message.labels,
            ports: each(message.ports, TryInto::try_into)?,
            targets: each(message.targets, |port| u16::try_from(port).map_err(|_| ConvertError::Range("target")))?,
            healthy: message.healthy,
            weight: u16::try_from(message.weight).map_err(|_| ConvertError::Range("weight"))?.max(1),
        })
    }
}
