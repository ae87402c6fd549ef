//! What is remembered of a revision's pods: absence is not an order. Pure.
//!
//! | seen | then |
//! |---|---|
//! | in a slice | as its conditions say |
//! | vanished from the slices after it was seen terminating | dropped |
//! | vanished from slices that are there, not seen terminating | last resort for 60 s |
//! | every slice of the revision is gone | as it was for 60 s: nobody said that the pod is |

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::endpoint::Endpoint;

/// How long what vanished without a word stays in use.
pub const GONE_AFTER: Duration = Duration::from_secs(60);

/// How a pod was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Ready: it counts.
    Ready,
    /// Neither ready nor terminating: starting, or it failed its probe.
    Unready,
    /// Being deleted, and still serving.
    Terminating,
    /// Being deleted, and not serving.
    Ended,
}

/// A pod of a revision.
#[derive(Clone, Debug)]
pub struct Member {
    /// The pod.
    pub endpoint: Arc<Endpoint>,
    /// How it was last seen.
    pub standing: Standing,
    /// Since when it is not in any slice.
    pub gone_since: Option<Instant>,
    /// It vanished while other slices of the revision were there.
    pub last_resort: bool,
}

/// A pod as the slices show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    address: SocketAddr,
    standing: Standing,
}

/// The members of a revision now, from its slices and the members before; `make` makes an endpoint not met before.
pub(super) fn update(
    slices: &[&EndpointSlice],
    before: &[Member],
    now: Instant,
    make: impl Fn(&str, SocketAddr) -> Arc<Endpoint>,
) -> Vec<Member> {
    if slices.is_empty() {
        return keep_all(before, now);
    }
    let seen = sightings(slices);
    let known = |uid: &str, address| {
        before.iter().find(|member| &**member.endpoint.uid() == uid && member.endpoint.address() == address)
    };
    let mut members: Vec<Member> = seen
        .iter()
        .map(|(uid, sighting)| Member {
            endpoint: match known(uid, sighting.address) {
                Some(member) => member.endpoint.clone(),
                None => make(uid, sighting.address),
            },
            standing: sighting.standing,
            gone_since: None,
            last_resort: false,
        })
        .collect();
    members.extend(before.iter().filter(|member| !seen.contains_key(&**member.endpoint.uid())).filter_map(
        |member| {
            let stays = member.standing == Standing::Ready && !is_over(member.gone_since, now);
            stays.then(|| Member {
                gone_since: member.gone_since.or(Some(now)),
                last_resort: true,
                ..member.clone()
            })
        },
    ));
    members
}

/// Without any slice nothing is known: what was good stays, what was seen terminating is gone.
fn keep_all(before: &[Member], now: Instant) -> Vec<Member> {
    before
        .iter()
        .filter(|member| matches!(member.standing, Standing::Ready | Standing::Unready))
        .filter(|member| !is_over(member.gone_since, now))
        .map(|member| Member { gone_since: member.gone_since.or(Some(now)), ..member.clone() })
        .collect()
}

fn is_over(since: Option<Instant>, now: Instant) -> bool {
    since.is_some_and(|since| now >= since + GONE_AFTER)
}

/// Every pod in the slices, by uid. While the slice controller moves a pod, two slices may show it: terminating is
/// never taken back, so that sighting is the newer one; otherwise the better one counts.
fn sightings(slices: &[&EndpointSlice]) -> BTreeMap<String, Sighting> {
    let mut seen: BTreeMap<String, Sighting> = BTreeMap::new();
    for slice in slices {
        let Some(port) = port(slice) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let address = SocketAddr::new(address, port);
            let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
            let sighting = Sighting { address, standing: standing(endpoint.conditions.as_ref()) };
            seen.entry(uid.unwrap_or_else(|| address.to_string()))
                .and_modify(|other| *other = newer(*other, sighting))
                .or_insert(sighting);
        }
    }
    seen
}

fn newer(one: Sighting, other: Sighting) -> Sighting {
    let leaving = |sighting: &Sighting| sighting.standing >= Standing::Terminating;
    match (leaving(&one), leaving(&other)) {
        (true, false) => one,
        (false, true) => other,
        _ => {
            if one.standing <= other.standing {
                one
            } else {
                other
            }
        }
    }
}

/// A missing condition reads as the API says: ready and serving unless told otherwise.
fn standing(conditions: Option<&k8s_openapi::api::discovery::v1::EndpointConditions>) -> Standing {
    let Some(conditions) = conditions else { return Standing::Ready };
    let ready = conditions.ready.unwrap_or(true);
    match (conditions.terminating.unwrap_or(false), conditions.serving.unwrap_or(ready)) {
        (true, true) => Standing::Terminating,
        (true, false) => Standing::Ended,
        (false, _) if ready => Standing::Ready,
        (false, _) => Standing::Unready,
    }
}

/// The port named `http`, else the first.
fn port(slice: &EndpointSlice) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some("http"));
    named.or(ports.first())?.port.and_then(|port| u16::try_from(port).ok())
}
