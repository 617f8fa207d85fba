//! Where the rules of a `VirtualService` apply: within the mesh, or at which gateways.

use super::{HttpRoute, TcpRoute, TlsRoute, VirtualService};

/// How documents name the mesh itself among gateways.
pub const MESH: &str = "mesh";

impl VirtualService {
    /// Whether it applies at a place: [`MESH`], or a gateway as `namespace/name`. `own` is the document's namespace.
    pub fn applies(&self, place: &str, own: &str) -> bool {
        if self.gateways.is_empty() { place == MESH } else { names(&self.gateways, place, own) }
    }

    /// What of it applies at a place; none where nothing does.
    pub fn at(&self, place: &str, own: &str) -> Option<Self> {
        if !self.applies(place, own) {
            return None;
        }
        let here = |gateways: &[String]| gateways.is_empty() || names(gateways, place, own);
        let http = self.http.iter().filter_map(|rule| {
            let matches = left(&rule.matches, |block| here(&block.gateways))?;
            Some(HttpRoute { matches, ..rule.clone() })
        });
        let tls = self.tls.iter().filter_map(|rule| {
            let matches = left(&rule.matches, |block| here(&block.gateways))?;
            Some(TlsRoute { matches, ..rule.clone() })
        });
        let tcp = self.tcp.iter().filter_map(|rule| {
            let matches = left(&rule.matches, |block| here(&block.gateways))?;
            Some(TcpRoute { matches, ..rule.clone() })
        });
        Some(Self { http: http.collect(), tls: tls.collect(), tcp: tcp.collect(), ..self.clone() })
    }

    /// Whether a rule of it applies in a part of the places only.
    pub fn differs_by_place(&self) -> bool {
        self.http.iter().flat_map(|rule| &rule.matches).any(|block| !block.gateways.is_empty())
            || self.tls.iter().flat_map(|rule| &rule.matches).any(|block| !block.gateways.is_empty())
            || self.tcp.iter().flat_map(|rule| &rule.matches).any(|block| !block.gateways.is_empty())
    }
}

/// The blocks of a rule that hold here; none where it had some and none of them does.
fn left<T: Clone>(blocks: &[T], holds: impl Fn(&T) -> bool) -> Option<Vec<T>> {
    let left: Vec<T> = blocks.iter().filter(|block| holds(block)).cloned().collect();
    (blocks.is_empty() || !left.is_empty()).then_some(left)
}

/// Whether a list of gateways in a document of the namespace `own` names a place. `name.namespace...` is an old form.
fn names(gateways: &[String], place: &str, own: &str) -> bool {
    gateways.iter().any(|named| {
        let (namespace, name) = match (named.split_once('/'), named.split_once('.')) {
            _ if named == MESH => return place == MESH,
            (Some((".", name)), _) => (own, name),
            (Some((namespace, name)), _) => (namespace, name),
            (None, Some((name, rest))) => (rest.split('.').next().unwrap_or_default(), name),
            (None, None) => (own, named.as_str()),
        };
        place.split_once('/') == Some((namespace, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_named_in_several_ways() {
        let list = |text: &str| vec![text.to_owned()];
        for (named, place, holds) in [
            ("edge", "shop/edge", true),
            ("edge", "other/edge", false),
            ("infra/edge", "infra/edge", true),
            ("edge.infra.svc.cluster.local", "infra/edge", true),
            ("mesh", MESH, true),
            ("mesh", "shop/mesh", false),
            ("edge", MESH, false),
        ] {
            assert_eq!(names(&list(named), place, "shop"), holds, "{named} at {place}");
        }
    }

    #[test]
    fn a_rule_of_which_nothing_holds_here_is_left_out() {
        let text = r#"{"hosts": ["a.com"], "gateways": ["mesh", "edge"], "http": [
            {"match": [{"gateways": ["edge"]}, {"uri": {"exact": "/x"}, "gateways": ["mesh"]}], "directResponse": {"status": 200}},
            {"match": [{"gateways": ["edge"]}], "directResponse": {"status": 201}},
            {"directResponse": {"status": 202}}]}"#;
        let service: VirtualService = serde_json::from_str(text).expect("good");
        let here = |place: &str| {
            service.at(place, "shop").map(|one| one.http.iter().map(|rule| rule.matches.len()).collect::<Vec<_>>())
        };
        assert_eq!(here(MESH), Some(vec![1, 0]));
        assert_eq!(here("shop/edge"), Some(vec![1, 1, 0]));
        assert_eq!(here("shop/other"), None);
        assert!(service.differs_by_place());
    }
}
