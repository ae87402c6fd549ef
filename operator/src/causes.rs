//! An error with everything that caused it, as one line for a log. Pure.

use std::error::Error;

/// `what failed: why: why that`. A cause whose text the one before it ends with is not told twice.
pub fn causes(error: &dyn Error) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !all.ends_with(&text) {
            all = format!("{all}: {text}");
        }
        next = cause.source();
    }
    all
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("failed to read")]
    struct Read(#[source] std::io::Error);

    #[test]
    fn every_cause_is_told_once() {
        let error = Read(std::io::Error::other("no disk"));
        assert_eq!(causes(&error), "failed to read: no disk");
    }
}
