//! Names and what is wrong with them.

const LABEL_LENGTH_MAX: usize = 63;
const SUBDOMAIN_LENGTH_MAX: usize = 253;

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: it must be {rule}")]
pub struct NameError {
    /// What kind of name.
    pub what: &'static str,
    /// The text, cut when long.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// Checks a DNS label (RFC 1123): 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'.
pub fn label(text: &str, what: &'static str) -> Result<(), NameError> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !text.is_empty()
        && text.len() <= LABEL_LENGTH_MAX
        && text.chars().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        return Ok(());
    }
    Err(NameError { what, text: shorten(text), rule: "1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'" })
}

/// Checks the name of a document: a DNS subdomain (RFC 1123, as Kubernetes has it), labels with '.' between them, at most 253
/// characters.
pub fn subdomain(text: &str, what: &'static str) -> Result<(), NameError> {
    if text.len() <= SUBDOMAIN_LENGTH_MAX && text.split('.').all(|part| label(part, what).is_ok()) {
        return Ok(());
    }
    let rule = "at most 253 characters: labels of 1 to 63 of a-z, 0-9 and '-', with '.' between them";
    Err(NameError { what, text: shorten(text), rule })
}

pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_the_names_of_kubernetes() {
        for name in ["a", "service-httpbin.default.svc.cluster.local", &"a.".repeat(126)[..251]] {
            subdomain(name, "name").expect(name);
        }
        for name in ["", ".", "a.", ".a", "a..b", "A", "a_b", "-a.b", &"a.".repeat(130)[..255]] {
            assert!(subdomain(name, "name").is_err(), "{name:?} was accepted");
        }
    }
}
