//! Cross-origin sharing: which origins may, and what they are told (the Fetch standard, 3.2).

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN,
};
use http::{HeaderMap, HeaderName, Method};

use super::matching::Text;

/// Who may share, and what.
#[derive(Debug)]
pub(crate) struct Cors {
    pub(super) origins: Vec<Text>,
    pub(super) methods: Allowed,
    pub(super) headers: Allowed,
    pub(super) expose: Option<HeaderValue>,
    pub(super) age: Option<Duration>,
    pub(super) credentials: bool,
    /// Whether a preflight of another origin is answered all the same, without allowing anything.
    pub(super) answers_others: bool,
}

/// What is allowed.
#[derive(Debug)]
pub(super) enum Allowed {
    /// What is asked for.
    Asked,
    These(HeaderValue),
    Nothing,
}

impl Allowed {
    pub(super) fn of<T: AsRef<str>>(names: &[T]) -> Self {
        match names {
            [] => Self::Nothing,
            [only] if only.as_ref() == "*" => Self::Asked,
            names => joined(names).map_or(Self::Nothing, Self::These),
        }
    }
}

/// With commas between them.
pub(super) fn joined<T: AsRef<str>>(names: &[T]) -> Option<HeaderValue> {
    let joined = names.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",");
    Some(joined).filter(|joined| !joined.is_empty()).and_then(|joined| HeaderValue::from_str(&joined).ok())
}

/// What becomes of a preflight.
pub(crate) enum Preflight {
    /// It is answered with these fields.
    Answered(HeaderMap),
    /// It is none, or it is for the application.
    Forwarded,
}

impl Cors {
    /// The origin of a request, where it may share.
    pub(crate) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().ok()?;
        let fits = |one: &Text| matches!(one, Text::Exact(any) if &**any == "*") || one.fits(text);
        self.origins.iter().any(fits).then(|| origin.clone())
    }

    /// What becomes of a request that may be a preflight.
    pub(crate) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Preflight {
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let Some(asked) = asked.filter(|_| *method == Method::OPTIONS && headers.contains_key(ORIGIN)) else {
            return Preflight::Forwarded;
        };
        let Some(origin) = self.origin(headers) else {
            return if self.answers_others { Preflight::Answered(HeaderMap::new()) } else { Preflight::Forwarded };
        };
        let mut fields = HeaderMap::new();
        self.allow(origin, &mut fields);
        let asked_headers = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
        let told: [(HeaderName, &Allowed, Option<&HeaderValue>); 2] = [
            (ACCESS_CONTROL_ALLOW_METHODS, &self.methods, Some(asked)),
            (ACCESS_CONTROL_ALLOW_HEADERS, &self.headers, asked_headers),
        ];
        for (name, allowed, asked) in told {
            let value = match allowed {
                Allowed::Asked => asked.cloned(),
                Allowed::These(these) => Some(these.clone()),
                Allowed::Nothing => None,
            };
            fields.extend(value.map(|value| (name, value)));
        }
        fields.extend(self.age.map(|age| (ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age.as_secs()))));
        Preflight::Answered(fields)
    }

    /// Tells the origin of a request that it may have the answer.
    pub(crate) fn share(&self, origin: HeaderValue, fields: &mut HeaderMap) {
        self.allow(origin, fields);
        if let Some(expose) = &self.expose {
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allow(&self, origin: HeaderValue, fields: &mut HeaderMap) {
        fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            fields.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}
