//! Which policies are about which instances of a service.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::service::Labels;

use super::super::authz::{Authorization, CompileError, PolicyDescription};
use super::super::description::ServiceDescription;
use super::Service;

/// Instances of a service by the policies that their labels select.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    /// The policies of each group, by name.
    pub(super) selected: Vec<Vec<Arc<PolicyDescription>>>,
    /// The group of instances with these labels of their own.
    by_labels: BTreeMap<Labels, usize>,
}

impl Groups {
    /// The first group is that of instances without labels.
    pub(super) fn new(policies: &[Arc<PolicyDescription>], service: &ServiceDescription) -> Self {
        let mut groups = Self { selected: Vec::new(), by_labels: BTreeMap::new() };
        groups.group(&Labels::new(), policies, service);
        groups
    }

    /// The group of an instance with these labels of its own.
    pub(super) fn group(
        &mut self,
        labels: &Labels,
        policies: &[Arc<PolicyDescription>],
        service: &ServiceDescription,
    ) -> usize {
        if let Some(known) = self.by_labels.get(labels) {
            return *known;
        }
        let selected = select(service, labels, policies);
        let group = self.selected.iter().position(|known| same(known, selected.iter().copied()));
        let group = group.unwrap_or_else(|| {
            self.selected.push(selected.into_iter().cloned().collect());
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
        let known = |group: &Vec<Arc<PolicyDescription>>| {
            let before = before?;
            let at = before.groups.selected.iter().position(|known| same(known, group.iter()))?;
            Some(before.authorizations[at].clone())
        };
        let compiled: Vec<Arc<Authorization>> = self
            .selected
            .iter()
            .map(|group| match known(group) {
                Some(known) => Ok(known),
                None => Authorization::of(group, deny_by_default).map(Arc::new),
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
