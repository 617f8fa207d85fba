//! What instances take at their own ports: mutual TLS alone, plain text too, or plain text alone (Istio's `PeerAuthentication`).

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::kinds::authorization_policy::{APP_LABEL, ROOT_NAMESPACES};
use weft_proto::kinds::peer_authentication::{Mode, PeerAuthentication};
use weft_proto::service::ServiceName;

use super::routes::Document;

/// A document, as the mesh keeps it.
pub type PeerDocument = Document<PeerAuthentication>;

/// What documents say of instances with certain labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peers {
    mode: Mode,
    /// By the port at which an instance listens.
    ports: BTreeMap<u16, Mode>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { mode: Mode::Strict, ports: BTreeMap::new() }
    }
}

/// All documents, the oldest first, and what holds where none says anything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeersDescription {
    /// The documents.
    pub documents: Vec<Arc<PeerDocument>>,
    /// What holds for the rest: mutual TLS alone where it is not set.
    pub default: Mode,
}

impl PeersDescription {
    /// What is said of the instances of a service whose labels are told by `label`: by the document that selects them, else
    /// by that of their namespace, else by that of the mesh. Of several the oldest counts.
    pub(crate) fn of<'l>(&self, service: &ServiceName, label: impl Fn(&str) -> Option<&'l str>) -> Peers {
        let near = |one: &&Arc<PeerDocument>| one.key.namespace == service.namespace();
        let selects = |one: &&Arc<PeerDocument>| {
            let mut labels = one.spec.selector.iter().flat_map(|selector| &selector.match_labels);
            one.spec.is_about_some()
                && labels.all(|(name, value)| match name.as_str() {
                    APP_LABEL => value == service.name(),
                    name => label(name) == Some(value.as_str()),
                })
        };
        let wide = |one: &&Arc<PeerDocument>| !one.spec.is_about_some();
        let root = |one: &&Arc<PeerDocument>| ROOT_NAMESPACES.contains(&one.key.namespace.as_str());
        let own = self.documents.iter().filter(near).find(selects);
        let namespace = self.documents.iter().filter(near).find(wide);
        let mesh = self.documents.iter().filter(root).find(wide);
        let said = [own, namespace, mesh].into_iter().flatten();
        let mode = said.fold(Mode::Unset, |mode, one| mode.or(one.spec.mtls.mode)).or(self.default).or(Mode::Strict);
        let port = |(port, said): (&u32, _)| Some((u16::try_from(*port).ok()?, said));
        let ports = own.iter().flat_map(|own| &own.spec.port_level_mtls);
        let ports = ports.filter_map(|(number, said)| port((number, said.mode.or(mode)))).collect();
        Peers { mode, ports }
    }
}

impl Peers {
    /// What is taken at the port at which an instance listens; none: at any that no document names.
    pub(crate) fn mode(&self, port: Option<u16>) -> Mode {
        port.and_then(|port| self.ports.get(&port).copied()).unwrap_or(self.mode)
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::document::parse;
    use weft_proto::kinds::{Kinds, Spec};

    use super::*;

    fn peers(documents: &str, default: Mode) -> PeersDescription {
        let read = parse(Kinds::ALL, "test", documents).expect("good").into_iter();
        let document = |(at, resource): (usize, weft_proto::resource::Resource)| {
            let spec = PeerAuthentication::of(&resource).expect("good");
            Arc::new(Document { key: resource.key, created: at as u64, spec })
        };
        PeersDescription { documents: read.enumerate().map(document).collect(), default }
    }

    fn document(namespace: &str, name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    }

    fn mode(peers: &PeersDescription, service: &str, labels: &[(&str, &str)], port: u16) -> Mode {
        let label = |name: &str| labels.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        peers.of(&service.parse().expect("a name"), label).mode(Some(port))
    }

    #[test]
    fn the_narrowest_counts_and_of_several_the_oldest() {
        let all = [
            document("istio-system", "default", "{mtls: {mode: PERMISSIVE}}"),
            document("foo", "default", "{mtls: {mode: STRICT}}"),
            document("foo", "later", "{mtls: {mode: DISABLE}}"),
            document("foo", "web", "{selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: DISABLE}}}"),
            document("foo", "v2", "{selector: {matchLabels: {version: v2}}, mtls: {mode: DISABLE}}"),
            // In the root namespace a selector is about that alone.
            document("istio-system", "far", "{selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}"),
        ];
        let peers = peers(&all.concat(), Mode::Unset);
        assert_eq!(mode(&peers, "bar/db", &[], 1), Mode::Permissive);
        assert_eq!(mode(&peers, "foo/db", &[], 1), Mode::Strict);
        assert_eq!(mode(&peers, "foo/db", &[("version", "v2")], 1), Mode::Disable);
        assert_eq!(mode(&peers, "foo/web", &[], 80), Mode::Strict, "what is unset comes from the namespace");
        assert_eq!(mode(&peers, "foo/web", &[], 8080), Mode::Disable);
        assert_eq!(mode(&peers, "foo/web", &[("version", "v2")], 8080), Mode::Disable);
    }

    #[test]
    fn where_nobody_says_anything_it_is_mutual_tls_or_what_the_mesh_is_told() {
        assert_eq!(mode(&peers("", Mode::Unset), "foo/web", &[], 80), Mode::Strict);
        assert_eq!(mode(&peers("", Mode::Permissive), "foo/web", &[], 80), Mode::Permissive);
        let none = document("foo", "default", "{}");
        assert_eq!(mode(&peers(&none, Mode::Permissive), "foo/web", &[], 80), Mode::Permissive);
        let wrong = document("foo", "default", "{mtls: {mode: UNSET}}");
        assert_eq!(mode(&peers(&wrong, Mode::Unset), "foo/web", &[], 80), Mode::Strict);
    }
}
