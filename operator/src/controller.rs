//! One pass over one InferenceService: observe → validate → plan → build → apply → status. The steps and their order; each has its own
//! file and its own error.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serin_crds::{InferenceService, reasons};
use thiserror::Error;
use tokio::time::Instant;

use crate::cache::Group;
use crate::context::Context;

pub mod apply;
pub mod build;
pub mod observe;
pub mod plan;
pub mod revision;
pub mod situation;
pub mod status;
#[cfg(test)]
mod tests;
pub mod validate;

use apply::{Applied, Pass, apply};
use observe::{Observed, observe};
use status::events::{news, publish, router_gone};
use status::{Outcome, View};

/// What the controller follows: an object that cannot be read must not stop the watch of the others.
pub type Watched = DeserializeGuard<InferenceService>;

/// Nothing has happened for so long: look once more, should an event have been lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(600);
/// What was read was stale: the event that tells so is on its way.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// Somebody else is at work (the garbage collector).
const LOOK_LATER: Duration = Duration::from_secs(1);

/// Why a pass ended early: one variant for each step.
#[derive(Debug, Error)]
pub enum Error {
    /// The object is no InferenceService that this operator understands.
    #[error("the object cannot be read")]
    Read(#[source] Box<InvalidObject>),
    /// Nothing can be decided yet.
    #[error("failed to observe")]
    Observe(#[source] observe::Error),
    /// The plan was not carried out to its end.
    #[error("failed to apply")]
    Apply(#[source] apply::Error),
    /// The status was not written.
    #[error("failed to report")]
    Status(#[source] status::Error),
    /// A bug.
    #[error("the pass has panicked")]
    Panicked,
}

impl Error {
    /// The kind of the error, for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Error::Read(_) => "read",
            Error::Observe(_) => "observe",
            Error::Apply(error) => error.category(),
            Error::Status(_) => "status",
            Error::Panicked => "panic",
        }
    }
}

/// One pass, counted.
///
/// # Errors
/// See [`Error`]; [`retry`] tells when to try again.
pub async fn reconcile(watched: Arc<Watched>, context: Arc<Context>) -> Result<Action, Error> {
    let began = Instant::now();
    let result = pass(&watched, &context, began).await;
    let category = result.as_ref().err().map_or("ok", Error::category);
    context.metrics.passed(category, began.elapsed().as_secs_f64());
    if result.is_ok() {
        context.failures.reset(&group(&watched));
    }
    result
}

/// When to try again after an error.
pub fn retry(watched: &Watched, error: &Error, context: &Context) -> Action {
    match error {
        // Nothing changes before the object does.
        Error::Read(_) => Action::await_change(),
        Error::Observe(_) => Action::requeue(LOOK_LATER),
        Error::Apply(error) if error.is_waiting() => Action::requeue(LOOK_LATER),
        Error::Apply(error) if error.is_passing() => Action::requeue(LOOK_SOON),
        Error::Apply(_) | Error::Status(_) | Error::Panicked => {
            Action::requeue(context.failures.delay(&group(watched)))
        }
    }
}

fn group(watched: &Watched) -> Group {
    Group::of(&watched.namespace().unwrap_or_default(), &watched.name_any())
}

async fn pass(watched: &Watched, context: &Context, began: Instant) -> Result<Action, Error> {
    let service = watched.0.as_ref().map_err(|invalid| Error::Read(Box::new(invalid.clone())))?;
    if service.meta().deletion_timestamp.is_some() {
        // Its children go with it.
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    // The watch may not have brought the last status yet.
    let remembered = context.told.newer(&group(watched), status::version(service));
    let service = &match remembered {
        Some(status) => InferenceService { status: Some(status), ..service.clone() },
        None => service.clone(),
    };
    // observe (no call of the API)
    let observed = observe(service, &validate::owner(service), context, now).map_err(Error::Observe)?;
    // validate (pure)
    let valid = match validate::validate(service) {
        Ok(valid) => valid,
        Err(refusal) => {
            let report = Report { service, observed: &observed, context, now };
            report.write(Outcome::Refused(&refusal), &Applied::default(), None).await?;
            return Ok(Action::requeue(LOOK_ANYWAY));
        }
    };
    // plan (pure)
    let target = revision::target(&valid.owner.name, &valid.predictor, &observed.known(), observed.stable());
    let report = Report { service, observed: &observed, context, now };
    let plan = match plan::plan(&valid.wishes(&target), &observed.situation, now) {
        Ok(plan) => plan,
        Err(standstill) => {
            report.write(Outcome::Standstill(&standstill), &Applied::default(), None).await?;
            return Ok(Action::requeue(LOOK_ANYWAY));
        }
    };
    // build (pure) and apply (writes)
    let mut applied = Applied::default();
    let pass = Pass { service, valid: &valid, observed: &observed, plan: &plan, context, began };
    let carried_out = apply(&pass, &mut applied).await;
    // status (one write)
    let trouble = carried_out.as_ref().err().and_then(trouble);
    let reported = report.write(Outcome::Planned(&plan), &applied, trouble.as_ref()).await;
    carried_out.map_err(Error::Apply)?;
    reported?;
    Ok(Action::requeue(plan.look_again.unwrap_or(LOOK_ANYWAY)))
}

/// What is told of a pass.
struct Report<'a> {
    service: &'a InferenceService,
    observed: &'a Observed,
    context: &'a Context,
    now: Timestamp,
}

impl Report<'_> {
    /// Writes the status where it differs, and what is new as events.
    async fn write(
        &self,
        outcome: Outcome<'_>,
        applied: &Applied,
        trouble: Option<&(&'static str, String)>,
    ) -> Result<(), Error> {
        let view = View { service: self.service, observed: self.observed, trouble };
        let status = status::status(&view, outcome, self.now);
        let mut news = news(&view, outcome, applied, &status);
        let gone = self.observed.presumed_gone.iter().filter(|pod| self.context.told.is_first_time(pod));
        news.extend(gone.map(|pod| router_gone(pod)));
        // Side by side: the next pass over this object, perhaps a patched percentage, waits for both.
        let (written, ()) = tokio::join!(
            status::write(self.context, self.service, &status),
            publish(self.context, self.service, news)
        );
        written.map_err(Error::Status)?;
        Ok(())
    }
}

/// What a user can do something about.
fn trouble(error: &apply::Error) -> Option<(&'static str, String)> {
    match error {
        apply::Error::Write(error @ apply::writer::Error::NameTaken { .. }) => {
            Some((reasons::NAME_TAKEN, error.to_string()))
        }
        apply::Error::Write(apply::writer::Error::Write { kind, name, source, .. }) => match &**source {
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
                Some((reasons::INVALID_SPEC, format!("{kind} {name} was refused: {}", status.message)))
            }
            _ => None,
        },
        _ => None,
    }
}
