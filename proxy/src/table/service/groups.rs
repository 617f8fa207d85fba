//! Which policies are about which instances of a service, and what those take at their own ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::service::Labels;

use super::super::authz::{Authorization, CompileError, PolicyDescription};
use super::super::description::ServiceDescription;
use super::super::peers::{Peers, PeersDescription};
use super::Service;

/// Instances of a service by what their labels select.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    pub(super) selected: Vec<Selected>,
    /// The group of instances with these labels of their own.
    by_labels: BTreeMap<Labels, usize>,
}

/// What is about a group.
#[derive(Debug, Clone)]
pub(super) struct Selected {
    /// By name.
    pub(super) policies: Vec<Arc<PolicyDescription>>,
    peers: Peers,
}

/// What is chosen from, and for which service.
pub(super) struct Choice<'a> {
    pub(super) policies: &'a [Arc<PolicyDescription>],
    pub(super) peers: &'a PeersDescription,
    pub(super) service: &'a ServiceDescription,
}

impl Groups {
    /// The first group is that of instances without labels.
    pub(super) fn new(choice: &Choice<'_>) -> Self {
        let mut groups = Self { selected: Vec::new(), by_labels: BTreeMap::new() };
        groups.group(&Labels::new(), choice);
        groups
    }

    /// The group of an instance with these labels of its own.
    pub(super) fn group(&mut self, labels: &Labels, choice: &Choice<'_>) -> usize {
        if let Some(known) = self.by_labels.get(labels) {
            return *known;
        }
        let policies = select(choice.service, labels, choice.policies);
        let peers = peers(choice.peers, choice.service, labels);
        let is_known = |known: &Selected| same(&known.policies, policies.iter().copied()) && known.peers == peers;
        let group = self.selected.iter().position(is_known);
        let group = group.unwrap_or_else(|| {
            self.selected.push(Selected { policies: policies.into_iter().cloned().collect(), peers });
            self.selected.len() - 1
        });
        self.by_labels.insert(labels.clone(), group);
        group
    }

    /// Their authorizations; those of `before` where they are of the same policies.
    pub(super) fn compile(
        &self,
        before: Option<&Arc<Service>>,
        deny_by_default: bool,
    ) -> Result<Arc<Vec<Arc<Authorization>>>, CompileError> {
        let known = |group: &Selected| {
            let before = before?;
            let is = |known: &Selected| same(&known.policies, group.policies.iter()) && known.peers == group.peers;
            let at = before.groups.selected.iter().position(is)?;
            Some(before.authorizations[at].clone())
        };
        let compiled: Vec<Arc<Authorization>> = self
            .selected
            .iter()
            .map(|group| match known(group) {
                Some(known) => Ok(known),
                None => Authorization::of(&group.policies, &group.peers, deny_by_default).map(Arc::new),
            })
            .collect::<Result<_, CompileError>>()?;
        let unchanged = before.filter(|before| same(&before.authorizations, compiled.iter()));
        Ok(unchanged.map_or_else(|| Arc::new(compiled), |before| before.authorizations.clone()))
    }

    /// Whether the policy is about any of them.
    pub(super) fn are_selected_by(&self, policy: &Arc<PolicyDescription>, service: &ServiceDescription) -> bool {
        let one = std::slice::from_ref(policy);
        self.by_labels.keys().any(|labels| !select(service, labels, one).is_empty())
    }

    /// Whether documents say the same of what each of them takes at its own ports.
    pub(super) fn peers_are(&self, documents: &PeersDescription, service: &ServiceDescription) -> bool {
        self.by_labels.iter().all(|(labels, group)| self.selected[*group].peers == peers(documents, service, labels))
    }
}

/// What an instance with these labels of its own takes at its ports. Who calls hosts outside is not asked there.
fn peers(documents: &PeersDescription, service: &ServiceDescription, labels: &Labels) -> Peers {
    match &service.outside {
        Some(_) => Peers::default(),
        None => documents.of(&service.name, label_of(service, labels)),
    }
}

/// The policies about an instance with these labels of its own. Those about hosts outside name the document: others are about who is
/// called, and a host outside does not know of them.
fn select<'p>(
    service: &ServiceDescription,
    labels: &Labels,
    policies: &'p [Arc<PolicyDescription>],
) -> Vec<&'p Arc<PolicyDescription>> {
    let Some(outside) = &service.outside else {
        return Authorization::select(&service.name, label_of(service, labels), policies);
    };
    let about = |one: &&Arc<PolicyDescription>| {
        one.key.namespace == outside.namespace && one.policy.targets().any(|target| target.is_entry(&outside.document))
    };
    let mut chosen: Vec<_> = policies.iter().filter(about).collect();
    chosen.sort_by(|a, b| a.key.cmp(&b.key));
    chosen
}

/// The labels of an instance: its own go before those of its service.
pub(super) fn label_of<'l>(service: &'l ServiceDescription, own: &'l Labels) -> impl Fn(&str) -> Option<&'l str> {
    |name| own.get(name).or_else(|| service.labels.get(name)).map(String::as_str)
}

fn same<'a, T: 'a>(known: &[Arc<T>], others: impl ExactSizeIterator<Item = &'a Arc<T>>) -> bool {
    known.len() == others.len() && known.iter().zip(others).all(|(a, b)| Arc::ptr_eq(a, b))
}
