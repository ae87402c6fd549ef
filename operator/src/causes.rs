//! An error with everything that caused it, as one line for a log. Pure.

use std::error::Error;

/// `what failed: why: why that`. A cause whose text the one before it ends with is not told twice.
///
/// Of an answer of the API server only its message is told, not the whole object.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    if let Some(answer) = answer(error) {
        return answer;
    }
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(answer) = answer(cause) {
            return format!("{all}: {answer}");
        }
        let text = cause.to_string();
        if !all.ends_with(&text) {
            all = format!("{all}: {text}");
        }
        next = cause.source();
    }
    all
}

fn answer(error: &(dyn Error + 'static)) -> Option<String> {
    let boxed = error.downcast_ref::<Box<kube::Error>>().map(|boxed| &**boxed);
    match boxed.or_else(|| error.downcast_ref())? {
        kube::Error::Api(status) => Some(format!("{} ({})", status.message, status.code)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("failed to read")]
    struct Read(#[source] std::io::Error);

    #[derive(Debug, Error)]
    #[error("failed to write")]
    struct Write(#[source] Box<kube::Error>);

    #[test]
    fn an_answer_of_the_api_server_is_its_message() {
        let status = kube::core::Status::failure("no such place", "NotFound").with_code(404);
        let error = Write(Box::new(kube::Error::Api(Box::new(status))));
        assert_eq!(causes(&error), "failed to write: no such place (404)");
    }

    #[test]
    fn every_cause_is_told_once() {
        let error = Read(std::io::Error::other("no disk"));
        assert_eq!(causes(&error), "failed to read: no disk");
    }
}
