//! Who leads: a Lease in the operator's own namespace, held by one process at a time.
//!
//! In: the lease as read. Out: [`Decision`] (pure), and the writes that it asks for. Each write carries the resourceVersion that was
//! read, so of two that try at once one loses. A holder counts as gone when its lease has not changed for its duration on the
//! reader's own clock: clocks of two machines are never compared.

use std::time::Duration;

use crate::causes::causes;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Name of the lease.
pub const NAME: &str = "serin-operator";
const DURATION_SECONDS: i32 = 15;
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Without a successful renewal for so long, another may lead soon: shorter than the lease's duration by more than one request.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(4);

/// Why this process leads no longer.
#[derive(Debug, Error)]
pub enum Error {
    /// Another process holds the lease.
    #[error("the lease {NAME} is held by {0} now")]
    Lost(String),
    /// The lease could not be renewed in time.
    #[error("the lease {NAME} could not be renewed for {} s", GIVE_UP_AFTER.as_secs())]
    NotRenewed,
}

/// What to do with the lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write it with this process as its holder.
    Take,
    /// Another holds it.
    Wait,
}

/// The lease of this process.
pub struct Leadership {
    api: Api<Lease>,
    identity: String,
    seen: Option<Seen>,
}

/// The lease as it was seen last, and since when it has looked like that.
struct Seen {
    holder: String,
    renewed: Option<Timestamp>,
    since: Instant,
}

impl Leadership {
    /// The lease in a namespace, for a process with this name. A process with the name of the holder takes the lease at once: a
    /// container that is started again in its pod.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Leadership {
        Leadership { api: Api::namespaced(client, namespace), identity: identity.to_owned(), seen: None }
    }

    /// Waits until this process leads. `answered` is called with every answer of the API server.
    pub async fn acquire(&mut self, answered: impl Fn()) {
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match timeout(REQUEST, self.attempt()).await {
                Ok(Ok(decision)) => {
                    answered();
                    if decision == Decision::Take {
                        tracing::info!(identity = self.identity, "leads");
                        return;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = causes(&error), "failed to take the lease")
                }
                Err(_) => tracing::warn!("the API server does not answer about the lease"),
            }
        }
    }

    /// Renews the lease until it is lost.
    pub async fn keep(&mut self) -> Error {
        let mut renewed = Instant::now();
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match timeout(REQUEST, self.attempt()).await {
                Ok(Ok(Decision::Take)) => renewed = Instant::now(),
                Ok(Ok(Decision::Wait)) => {
                    return Error::Lost(
                        self.seen.as_ref().map(|seen| seen.holder.clone()).unwrap_or_default(),
                    );
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = causes(&error), "failed to renew the lease")
                }
                Err(_) => tracing::warn!("the API server does not answer about the lease"),
            }
            if renewed.elapsed() >= GIVE_UP_AFTER {
                return Error::NotRenewed;
            }
        }
    }

    /// Gives the lease back, so that the next process need not wait.
    pub async fn release(&mut self) {
        let Ok(Ok(Some(mut lease))) = timeout(REQUEST, self.api.get_opt(NAME)).await else { return };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        let _ = timeout(REQUEST, self.api.replace(NAME, &PostParams::default(), &lease)).await;
    }

    /// Reads the lease and, where it may, writes it. A write that comes too late is [`Decision::Wait`].
    async fn attempt(&mut self) -> kube::Result<Decision> {
        let found = self.api.get_opt(NAME).await?;
        let unchanged_for = self.look(found.as_ref().and_then(|lease| lease.spec.as_ref()));
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        if decide(spec, &self.identity, unchanged_for) == Decision::Wait {
            return Ok(Decision::Wait);
        }
        let written = match found {
            None => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                    spec: Some(held(None, &self.identity, Timestamp::now())),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(mut lease) => {
                lease.spec = Some(held(lease.spec.as_ref(), &self.identity, Timestamp::now()));
                self.api.replace(&lease.name_any(), &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(Decision::Take),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Decision::Wait),
            Err(error) => Err(error),
        }
    }

    /// For how long the lease has looked as it does now.
    fn look(&mut self, spec: Option<&LeaseSpec>) -> Duration {
        let holder = spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        let same = self.seen.as_ref().filter(|seen| seen.holder == holder && seen.renewed == renewed);
        let since = same.map_or_else(Instant::now, |seen| seen.since);
        self.seen = Some(Seen { holder, renewed, since });
        since.elapsed()
    }
}

/// Whether a process may hold the lease that has looked like this for so long. Pure.
fn decide(spec: Option<&LeaseSpec>, identity: &str, unchanged_for: Duration) -> Decision {
    let Some(spec) = spec else { return Decision::Take };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let over = unchanged_for > Duration::from_secs(duration.unwrap_or(DURATION_SECONDS as u64));
    if holder.is_empty() || holder == identity || over { Decision::Take } else { Decision::Wait }
}

/// The lease as held by a process. Pure.
fn held(before: Option<&LeaseSpec>, identity: &str, now: Timestamp) -> LeaseSpec {
    let same = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(identity));
    let acquired = before.filter(|_| same).and_then(|spec| spec.acquire_time.clone());
    let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions + i32::from(before.is_some() && !same)),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str) -> LeaseSpec {
        held(None, holder, Timestamp::UNIX_EPOCH)
    }

    fn check(spec: Option<&LeaseSpec>, unchanged_for: u64, expect: Decision) {
        assert_eq!(decide(spec, "me", Duration::from_secs(unchanged_for)), expect, "{spec:?}");
    }

    #[test]
    fn a_lease_is_taken_when_nobody_holds_it() {
        check(None, 0, Decision::Take);
        check(Some(&LeaseSpec::default()), 0, Decision::Take);
        check(Some(&spec("")), 0, Decision::Take);
        check(Some(&spec("me")), 0, Decision::Take);
        check(Some(&spec("other")), 15, Decision::Wait);
        check(Some(&spec("other")), 16, Decision::Take);
    }

    #[test]
    fn a_renewal_keeps_the_time_of_the_acquisition() {
        let now = Timestamp::from_second(50).unwrap();
        let renewed = held(Some(&spec("me")), "me", now);
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!((renewed.renew_time, renewed.lease_transitions), (Some(MicroTime(now)), Some(0)));
        let taken = held(Some(&spec("other")), "me", now);
        assert_eq!((taken.acquire_time, taken.lease_transitions), (Some(MicroTime(now)), Some(1)));
    }
}
