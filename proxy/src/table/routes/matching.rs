//! Whether a rule matches a call.

use std::ops::ControlFlow;

use http::{HeaderMap, HeaderName};
use regex::Regex;
use weft_proto::service::Labels;

/// A call as rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) method: &'a str,
    /// In its normal form, without the query.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    /// The Host as it was given, with a port where it has one.
    pub(crate) authority: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// `http`, or `https` where TLS has ended at a gateway.
    pub(crate) scheme: &'a str,
    /// The service's port that is called.
    pub(crate) port: u16,
    /// The caller's namespace; empty for a node.
    pub(crate) namespace: &'a str,
    /// The caller's labels.
    pub(crate) labels: &'a Labels,
}

/// What must hold of a call, all of it.
#[derive(Debug, Default)]
pub(crate) struct Match {
    pub(crate) path: Option<PathMatch>,
    pub(crate) scheme: Option<Text>,
    pub(crate) method: Option<Text>,
    pub(crate) authority: Option<Text>,
    pub(crate) headers: Vec<(HeaderName, Text)>,
    pub(crate) without: Vec<(HeaderName, Text)>,
    pub(crate) query: Vec<(Box<str>, Text)>,
    pub(crate) port: Option<u16>,
    pub(crate) namespace: Option<Box<str>>,
    pub(crate) labels: Labels,
}

/// How a text is compared.
#[derive(Debug)]
pub(crate) enum Text {
    /// It is there.
    Present,
    Exact(Box<str>),
    Prefix(Box<str>),
    /// Its whole segments, without `/` at the end.
    Segments(Box<str>),
    /// Covers the whole.
    Regex(Regex),
    /// What cannot be compiled matches nothing.
    Nothing,
}

/// How a path is compared.
#[derive(Debug)]
pub(crate) struct PathMatch {
    pub(crate) text: Text,
    /// Without regard to case; not for expressions.
    pub(crate) ignores_case: bool,
}

impl Match {
    /// Whether it matches.
    pub(crate) fn fits(&self, asking: &Asking<'_>) -> bool {
        self.fits_caller(asking) && self.unmet(asking, |_, _| ControlFlow::Break(())).is_continue()
    }

    /// What does not depend on what is asked for.
    pub(crate) fn fits_caller(&self, asking: &Asking<'_>) -> bool {
        self.unmet_by_caller(asking, |_, _| ControlFlow::Break(())).is_continue()
    }

    /// What of it does not hold, in the words of the document.
    pub(crate) fn lacks(&self, asking: &Asking<'_>) -> Vec<String> {
        let mut lacks = Vec::new();
        let mut note = |field: &str, name: &str| {
            lacks.push(if name.is_empty() { field.to_owned() } else { format!("{field}.{name}") });
            ControlFlow::Continue(())
        };
        let _ = self.unmet_by_caller(asking, &mut note);
        let _ = self.unmet(asking, note);
        lacks
    }

    /// Tells what the caller does not meet, until that is enough.
    fn unmet_by_caller(
        &self,
        asking: &Asking<'_>,
        mut tell: impl FnMut(&'static str, &str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.port.is_some_and(|port| port != asking.port) {
            tell("port", "")?;
        }
        if self.namespace.as_deref().is_some_and(|namespace| namespace != asking.namespace) {
            tell("sourceNamespace", "")?;
        }
        if !self.labels.iter().all(|(name, value)| asking.labels.get(name) == Some(value)) {
            tell("sourceLabels", "")?;
        }
        ControlFlow::Continue(())
    }

    /// Tells what the request does not meet, until that is enough.
    fn unmet(
        &self,
        asking: &Asking<'_>,
        mut tell: impl FnMut(&'static str, &str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.path.as_ref().is_some_and(|path| !path.fits(asking.path)) {
            tell("uri", "")?;
        }
        let texts = [("method", &self.method, asking.method), ("authority", &self.authority, asking.authority)];
        for (field, text, value) in texts.into_iter().chain([("scheme", &self.scheme, asking.scheme)]) {
            if text.as_ref().is_some_and(|text| !text.fits(value)) {
                tell(field, "")?;
            }
        }
        for (name, text) in &self.headers {
            if !has(asking.headers, name, text) {
                tell("headers", name.as_str())?;
            }
        }
        for (name, text) in &self.without {
            if has_or_lacks(asking.headers, name, text) {
                tell("withoutHeaders", name.as_str())?;
            }
        }
        for (name, text) in &self.query {
            if !asks(asking.query, name, text) {
                tell("queryParams", name)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The prefix of a path that it asks for.
    pub(crate) fn prefix(&self) -> Option<&str> {
        match self.path.as_ref().map(|path| &path.text) {
            Some(Text::Prefix(prefix) | Text::Segments(prefix)) => Some(prefix),
            _ => None,
        }
    }
}

impl Text {
    pub(crate) fn fits(&self, value: &str) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(text) => **text == *value,
            Self::Prefix(text) => value.starts_with(&**text),
            Self::Segments(text) => {
                value.strip_prefix(&**text).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(value),
            Self::Nothing => false,
        }
    }
}

impl PathMatch {
    fn fits(&self, path: &str) -> bool {
        match &self.text {
            Text::Exact(text) if self.ignores_case => text.eq_ignore_ascii_case(path),
            Text::Prefix(text) if self.ignores_case => {
                path.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text))
            }
            text => text.fits(path),
        }
    }
}

/// Whether a field matches; several values count as one with commas between (RFC 9110, 5.3).
fn has(headers: &HeaderMap, name: &HeaderName, text: &Text) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    let Some(second) = values.next() else { return text.fits(&String::from_utf8_lossy(first.as_bytes())) };
    let all = [first, second].into_iter().chain(values).map(|value| String::from_utf8_lossy(value.as_bytes()));
    text.fits(&all.collect::<Vec<_>>().join(","))
}

/// The same for what must not match: a field that is not there counts as an empty one, unless its presence is meant.
fn has_or_lacks(headers: &HeaderMap, name: &HeaderName, text: &Text) -> bool {
    match text {
        Text::Present => headers.contains_key(name),
        text if headers.contains_key(name) => has(headers, name, text),
        text => text.fits(""),
    }
}

/// Whether the first parameter of that name matches. Names and values compare as they are written, as in Envoy.
fn asks(query: Option<&str>, name: &str, text: &Text) -> bool {
    let mut pairs = query.unwrap_or_default().split('&');
    let found = pairs.find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    });
    found.is_some_and(|value| text.fits(value))
}
