//! What a rule changes of a message.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

/// Changes of header fields: removed, overwritten, added, and again removed, in this order.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) remove: Vec<HeaderName>,
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    pub(crate) add: Vec<(HeaderName, HeaderValue)>,
    pub(crate) remove_last: Vec<HeaderName>,
    /// In the place of the authority.
    pub(crate) host: Option<Box<str>>,
}

/// Another path or authority.
#[derive(Debug)]
pub(crate) struct Rewrite {
    pub(crate) authority: Option<Box<str>>,
    pub(crate) path: Option<PathRewrite>,
}

/// Another path.
#[derive(Debug)]
pub(crate) enum PathRewrite {
    /// In the place of the prefix that matched, or else of the whole.
    Matched(Box<str>),
    /// In the place of the whole.
    Whole(Box<str>),
    /// In the place of the segments that matched; without `/` at its end.
    Segments(Box<str>),
    /// Every place where the expression matches; `$1` is its first group.
    Regex(Regex, Box<str>),
}

impl Changes {
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove_last {
            headers.remove(name);
        }
    }
}

impl PathRewrite {
    /// The path then; `prefix` is the one that matched.
    pub(crate) fn apply<'p>(&self, path: &'p str, prefix: Option<&str>) -> Cow<'p, str> {
        match self {
            Self::Matched(new) => match prefix.and_then(|prefix| path.get(prefix.len()..)) {
                Some(rest) => format!("{new}{rest}").into(),
                None => Cow::Owned(new.to_string()),
            },
            Self::Whole(new) => Cow::Owned(new.to_string()),
            Self::Segments(new) => {
                let rest = path.get(prefix.unwrap_or_default().len()..).unwrap_or_default();
                let slash = if rest.starts_with('/') || (rest.is_empty() && !new.is_empty()) { "" } else { "/" };
                format!("{new}{slash}{rest}").into()
            }
            Self::Regex(regex, new) => regex.replace_all(path, &**new),
        }
    }
}
