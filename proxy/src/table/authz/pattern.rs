//! What fields of rules accept: texts, paths, address blocks. Pure; knows neither calls nor policies.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use weft_proto::kinds::hosts::block;

use crate::path;

/// How many exact texts are compared one by one before sorting pays.
const LINEAR_MAX: usize = 8;
/// Prefix length of the block of IPv4-mapped addresses, `::ffff:0:0/96`.
const MAPPED_PREFIX: u8 = 96;
/// Rule for texts, as people are told it.
const TEXT_RULE: &str = "write an exact value, prefix*, *suffix or *";

/// A set of exact texts, `prefix*`, `*suffix` and `*`.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Sorted.
    exact: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
    suffixes: Vec<Box<[u8]>>,
    /// `*`: present and not empty.
    any: bool,
}

/// What a text is, which says what is equal in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Byte for byte.
    Plain,
    /// Identities; `spiffe://` before one is left away.
    Principal,
    /// Hosts: without port, case and trailing dot.
    Host,
    /// Paths: with percent-encodings in their one form.
    Path,
}

impl Texts {
    /// Adds one text of a document, or says what is wrong with it.
    pub(super) fn add(&mut self, text: &str, form: Form) -> Result<(), &'static str> {
        let text = if form == Form::Principal { text.strip_prefix("spiffe://").unwrap_or(text) } else { text };
        let (prefix, suffix) = (text.strip_suffix('*'), text.strip_prefix('*'));
        let fixed = prefix.or(suffix).unwrap_or(text);
        if text == "*" {
            self.any = true;
            return Ok(());
        }
        if fixed.is_empty() || fixed.contains('*') {
            return Err(TEXT_RULE);
        }
        let goes_on = prefix.is_some() && !(form == Form::Host && has_port(fixed));
        let value = if goes_on && form == Form::Host { fixed.to_ascii_lowercase() } else { form.of(fixed) };
        if value.is_empty() {
            return Err("hosts are compared without port; name the port under ports");
        }
        let list = if goes_on {
            &mut self.prefixes
        } else if suffix.is_some() {
            &mut self.suffixes
        } else {
            &mut self.exact
        };
        list.push(value.into_bytes().into());
        Ok(())
    }

    /// Makes the set ready after the last text.
    pub(super) fn seal(&mut self) {
        self.exact.sort();
        self.exact.dedup();
    }

    pub(super) fn contain(&self, value: &str) -> bool {
        self.contain_bytes(value.as_bytes())
    }

    pub(super) fn contain_bytes(&self, value: &[u8]) -> bool {
        let exact = if self.exact.len() <= LINEAR_MAX {
            self.exact.iter().any(|text| **text == *value)
        } else {
            self.exact.binary_search_by(|text| (**text).cmp(value)).is_ok()
        };
        exact
            || (self.any && !value.is_empty())
            || self.prefixes.iter().any(|prefix| value.starts_with(prefix))
            || self.suffixes.iter().any(|suffix| value.ends_with(suffix))
    }
}

impl Form {
    fn of(self, text: &str) -> String {
        match self {
            Self::Plain | Self::Principal => text.to_owned(),
            Self::Host => path::host(text).into_owned(),
            Self::Path => path::canonical_text(text),
        }
    }
}

/// Whether a port begins within the text, as in `web.mesh:*`. In Istio that means any port; here, where ports aren't
/// compared, it is the host itself and no prefix.
fn has_port(host: &str) -> bool {
    if host.starts_with('[') { host.contains("]:") } else { host.contains(':') }
}

/// A set of texts and of templates with `{*}` and `{**}`.
#[derive(Debug, Default)]
pub(super) struct Paths {
    texts: Texts,
    templates: Vec<Template>,
}

impl Paths {
    /// Adds one path of a document, or says what is wrong with it.
    pub(super) fn add(&mut self, text: &str) -> Result<(), &'static str> {
        if !text.contains("{*}") && !text.contains("{**}") {
            return self.texts.add(text, Form::Path);
        }
        self.templates.push(Template::new(text)?);
        Ok(())
    }

    /// Makes the set ready after the last path.
    pub(super) fn seal(&mut self) {
        self.texts.seal();
    }

    pub(super) fn contain(&self, path: &str) -> bool {
        self.texts.contain(path) || self.templates.iter().any(|template| template.matches(path))
    }
}

/// A path by segments. `{*}` is one that is not empty. `{**}` is any number of them, none included, but at the end the
/// slash before it must be there: `/a/{**}` matches `/a/` and `/a/b/c`, not `/a`.
#[derive(Debug)]
struct Template {
    before: Vec<Segment>,
    /// What follows `{**}`, if there is one.
    after: Option<Vec<Segment>>,
}

#[derive(Debug)]
enum Segment {
    Exact(Box<str>),
    One,
}

impl Template {
    fn new(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix('/').ok_or("a path template starts with /")?;
        let (mut before, mut after) = (Vec::new(), None::<Vec<Segment>>);
        for segment in rest.split('/') {
            let segment = match segment {
                "{**}" if after.is_some() => return Err("{**} may stand once"),
                "{**}" => {
                    after = Some(Vec::new());
                    continue;
                }
                "{*}" => Segment::One,
                _ if segment.contains(['*', '{', '}']) => {
                    return Err("{*} and {**} stand for whole segments and do not mix with *");
                }
                _ => Segment::Exact(path::canonical_text(segment).into()),
            };
            after.as_mut().unwrap_or(&mut before).push(segment);
        }
        Ok(Self { before, after })
    }

    fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else {
            return false;
        };
        let mut segments = rest.split('/');
        if !self.before.iter().all(|wanted| segments.next().is_some_and(|segment| wanted.matches(segment))) {
            return false;
        }
        match &self.after {
            None => segments.next().is_none(),
            Some(after) if after.is_empty() => segments.next().is_some(),
            Some(after) => {
                after.iter().rev().all(|wanted| segments.next_back().is_some_and(|segment| wanted.matches(segment)))
            }
        }
    }
}

impl Segment {
    fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *segment,
            Self::One => !segment.is_empty(),
        }
    }
}

/// A set of addresses. An IPv4 address counts as itself when it comes mapped into IPv6.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Disjoint and sorted once sealed.
    nets: Vec<IpNet>,
}

impl Blocks {
    /// Adds one address or block of a document, or says what is wrong with it.
    pub(super) fn add(&mut self, text: &str) -> Result<(), &'static str> {
        self.nets.push(unmapped(block(text).ok_or("write an address or a CIDR block")?));
        Ok(())
    }

    /// Makes the set ready after the last block.
    pub(super) fn seal(&mut self) {
        self.nets = IpNet::aggregate(&self.nets);
        self.nets.sort_by_key(IpNet::network);
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let after = self.nets.partition_point(|net| net.network() <= address);
        after > 0 && self.nets[after - 1].contains(&address)
    }
}

fn unmapped(net: IpNet) -> IpNet {
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX => mapped(v6.network())
            .and_then(|address| Ipv4Net::new(address, v6.prefix_len() - MAPPED_PREFIX).ok())
            .map_or(net, IpNet::V4),
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_follow_istio() {
        for (template, hits, misses) in [
            ("/foo/{*}", vec!["/foo/bar"], vec!["/foo", "/foo/", "/foo/bar/baz", "/x/bar"]),
            ("/foo/{**}", vec!["/foo/", "/foo/bar", "/foo/bar/baz.txt"], vec!["/foo", "/foobar", "/"]),
            ("/foo/{**}/", vec!["/foo/", "/foo/bar/", "/foo/a/b/"], vec!["/foo", "/foo/bar"]),
            ("/foo/{*}/bar/{**}", vec!["/foo/buzz/bar/", "/foo/buzz/bar/baz"], vec!["/foo/bar/baz", "/foo/buzz/bar"]),
            (
                "/store/{**}/cart",
                vec!["/store/cart", "/store/a/cart", "/store/a/b/cart"],
                vec!["/store/", "/store/cart/", "/cart"],
            ),
            ("/{*}/x/{**}/{*}", vec!["/a/x/b", "/a/x/b/c"], vec!["/a/x/", "/a/x"]),
            ("/{**}", vec!["/", "/a", "/a/b/"], vec!["*", ""]),
            ("/a/{*}/caf%c3%a9", vec!["/a/b/caf%C3%A9"], vec!["/a/b/caf%c3%a9"]),
        ] {
            let mut paths = Paths::default();
            paths.add(template).expect(template);
            paths.seal();
            hits.iter().for_each(|path| assert!(paths.contain(path), "{template} {path}"));
            misses.iter().for_each(|path| assert!(!paths.contain(path), "{template} {path}"));
        }
        for template in ["{*}", "/{*}/*", "/{**}/{**}", "/a{*}", "/{x}/{*}"] {
            assert!(Paths::default().add(template).is_err(), "{template}");
        }
    }

    #[test]
    fn texts_refuse_a_star_in_the_middle() {
        for text in ["", "a*b", "**", "*a*", "***", "a**", "**a"] {
            assert!(Texts::default().add(text, Form::Plain).is_err(), "{text}");
        }
        assert!(Texts::default().add("*:8080", Form::Host).is_err());
        assert!(Texts::default().add("spiffe://", Form::Principal).is_err());
    }

    #[test]
    fn names_are_never_patterns() {
        let names = ["a.b", "a+b", "(a)", "[ab]", "a?", "^a$", "a|b", "\\d", ".", "a", "b", "c", "d"];
        for count in [1, names.len()] {
            let mut texts = Texts::default();
            names[..count].iter().for_each(|name| texts.add(name, Form::Plain).expect("legal"));
            texts.seal();
            for other in ["aXb", "a.bb", "aab", "a1", "", "x", "5"] {
                assert!(!texts.contain(other), "{other}");
            }
            assert!(texts.contain("a.b"));
        }
    }

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        for (text, hits, misses) in [
            ("Web.Mesh:8080", vec!["web.mesh"], vec!["web.mesh.x"]),
            ("web.mesh:*", vec!["web.mesh"], vec!["web.mesh.evil", "web"]),
            ("WEB.*", vec!["web.mesh"], vec!["web", "webx"]),
            ("*.MESH.", vec!["web.mesh"], vec!["mesh", "web.mesh.x"]),
            ("[::A]:*", vec!["[::a]"], vec!["[::b]"]),
        ] {
            let mut texts = Texts::default();
            texts.add(text, Form::Host).expect(text);
            texts.seal();
            hits.iter().for_each(|host| assert!(texts.contain(host), "{text} {host}"));
            misses.iter().for_each(|host| assert!(!texts.contain(host), "{text} {host}"));
        }
    }

    #[test]
    fn blocks_overlap_touch_and_map() {
        let mut blocks = Blocks::default();
        for text in ["10.0.0.0/8", "10.1.0.0/16", "192.168.0.7", "2001:db8::/32", "::ffff:172.16.0.0/108", "10.0.0.9/8"]
        {
            blocks.add(text).expect(text);
        }
        blocks.seal();
        for (address, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.0", false),
            ("192.168.0.7", true),
            ("192.168.0.8", false),
            ("9.255.255.255", false),
            ("::ffff:10.0.0.1", true),
            ("2001:db8:1::", true),
            ("2001:db9::", false),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
        ] {
            assert_eq!(blocks.contain(address.parse().expect(address)), inside, "{address}");
        }
        assert!(blocks.add("10.0.0.0/33").is_err());
    }
}
