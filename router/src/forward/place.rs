//! Where a request goes: the revision by pin or by split, the endpoint by load. Runs under the table's epoch, so it neither waits nor logs.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;

use crate::endpoint::{Load, Moment};
use crate::error::Failure;
use crate::metrics::Outcome;
use crate::select::{Point, Sequence, Tried};
use crate::table::{Revision, Route, Table};

/// What the request wants, and what it was given so far.
#[derive(Debug)]
pub struct Wish {
    pin: Option<HeaderValue>,
    /// Its place in the split, and which sequence gave it (an address, compared only).
    point: Option<(Point, usize)>,
    /// It has been placed before: another placing keeps to the same point.
    placed: bool,
    fell_back: bool,
    /// The revision of the attempt before; a repetition prefers it.
    stay: Option<Arc<str>>,
    /// A pod had no room for it: what stable cannot take must not spill over onto the canary.
    crowded: bool,
}

/// Where [`Wish::place`] puts the request.
#[derive(Debug)]
pub enum Placed {
    /// To this endpoint; counted on the revision until `visit` is dropped.
    Go {
        /// The revision.
        visit: Visit,
        /// The endpoint.
        load: Load,
    },
    /// No endpoint is left for it.
    Nowhere(Arc<Route>),
    /// It is answered with this.
    Fail(Failure),
}

impl Wish {
    /// The wish of a request with this `Serin-Revision` header.
    pub fn new(pin: Option<HeaderValue>) -> Wish {
        Wish { pin, point: None, placed: false, fell_back: false, stay: None, crowded: false }
    }

    /// The pin, where there is one.
    pub fn pin(&self) -> Option<&HeaderValue> {
        self.pin.as_ref()
    }

    /// Whether the last placing took another revision than the one chosen.
    pub fn fell_back(&self) -> bool {
        self.fell_back
    }

    /// Chooses by this table and counts the request there. Called again when the table changed meanwhile.
    pub fn place(&mut self, table: &Table, port: u16, tried: &Tried, now: Moment) -> Placed {
        let Some(route) = table.by_port(port) else { return Placed::Fail(Failure::NoRoute(port)) };
        let preferred = match (&self.stay, &self.pin) {
            (Some(name), _) => route.position(name),
            (None, Some(pin)) => match route.pinned(pin.as_bytes()) {
                Some(revision) => Some(revision),
                None => return Placed::Fail(unknown(route, pin)),
            },
            (None, None) => {
                let point = self.point(&route.sequence);
                route.chosen(point)
            }
        };
        let go = |index: usize| {
            let endpoint = route.revisions[index].usable.pick(tried, now)?;
            Some(Placed::Go { visit: Visit::new(route, index), load: endpoint.begin() })
        };
        self.fell_back = false;
        if self.pin.is_some() {
            return preferred.and_then(go).unwrap_or_else(|| Placed::Nowhere(route.clone()));
        }
        let spills = |index: usize| self.crowded && Some(index) == route.canary && Some(index) != preferred;
        for index in route.candidates(preferred).filter(|index| !spills(*index)) {
            if let Some(placed) = go(index) {
                self.fell_back = Some(index) != preferred;
                return placed;
            }
        }
        Placed::Nowhere(route.clone())
    }

    /// The request's point: drawn once. A table that came in between may have begun a new sequence; then the request is
    /// counted in the new one.
    fn point(&mut self, sequence: &Arc<Sequence>) -> Point {
        let source = Arc::as_ptr(sequence) as usize;
        match self.point {
            Some((point, from)) if self.placed || from == source => point,
            _ => {
                let point = sequence.draw();
                self.point = Some((point, source));
                point
            }
        }
    }

    /// A pod refused it for want of room.
    pub fn was_crowded_out(&mut self) {
        self.crowded = true;
    }

    /// The request was sent to this revision: the next attempt prefers it.
    pub fn stay_with(&mut self, visit: &Visit) {
        self.placed = true;
        if self.stay.as_deref() != Some(&*visit.revision().name) {
            self.stay = Some(visit.revision().name.clone());
        }
    }
}

#[cold]
fn unknown(route: &Route, pin: &HeaderValue) -> Failure {
    let mut known: Vec<&str> = route.revisions.iter().map(|revision| &*revision.name).collect();
    known.extend(route.stable.map(|_| "stable"));
    known.extend(route.canary.map(|_| "canary"));
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Failure::UnknownRevision { asked: String::from_utf8_lossy(pin.as_bytes()).into_owned(), known }
}

/// A request on a revision, counted until it is dropped.
#[derive(Debug)]
pub struct Visit {
    route: Arc<Route>,
    index: usize,
}

impl Visit {
    fn new(route: &Arc<Route>, index: usize) -> Visit {
        route.revisions[index].state.enter();
        Visit { route: route.clone(), index }
    }

    /// The route, of the generation by which the request was placed.
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// The revision.
    pub fn revision(&self) -> &Revision {
        &self.route.revisions[self.index]
    }

    /// Counts the request, which arrived then, as ended like this.
    pub fn ended(&self, outcome: Outcome, arrived: Instant) {
        self.revision().state.metrics.ended(outcome, arrived.elapsed());
    }

    /// Counts the request as one that the router answers with an error.
    pub fn failed(&self, arrived: Instant) {
        self.ended(Outcome::Class(5), arrived);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.revision().state.leave();
    }
}
