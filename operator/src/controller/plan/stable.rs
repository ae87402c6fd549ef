//! Which revision is stable: the annotation, else its copies, else nobody knows. Pure.

use super::{Record, RecordCause, Standstill};
use crate::controller::situation::{Situation, StableRecord, Wishes};

/// S, and the write that the record needs before anything else.
pub(super) struct Known {
    /// S; None: no revision has been stable yet.
    pub(super) revision: Option<String>,
    /// The write that makes the record say so.
    pub(super) record: Option<Record>,
}

/// Reads the record. Copies are used, in their order, only where the record is missing or names a revision of which neither
/// ControllerRevision nor Deployment exists.
pub(super) fn resolve(wishes: &Wishes, situation: &Situation) -> Result<Known, Standstill> {
    let exists = |name: &String| situation.revisions.contains_key(name);
    match &situation.stable {
        StableRecord::Named(name) if exists(name) => return Ok(Known { revision: Some(name.clone()), record: None }),
        StableRecord::None => return Ok(first_ready(wishes, situation)),
        StableRecord::Named(_) | StableRecord::Missing => {}
    }
    let copies = &situation.copies;
    let copy = [&copies.route, &copies.status, &copies.promotion].into_iter().flatten().find(|name| exists(name));
    if let Some(name) = copy {
        let record = Record { revision: name.clone(), cause: RecordCause::Recovered };
        return Ok(Known { revision: Some(name.clone()), record: Some(record) });
    }
    if situation.revisions.is_empty() && situation.route.is_none() {
        let record = Record { revision: String::new(), cause: RecordCause::Begin };
        return Ok(Known { revision: None, record: Some(record) });
    }
    Err(Standstill::StableUnknown { candidates: situation.revisions.keys().cloned().collect() })
}

/// The first revision that has a ready pod is stable from then on: T, or a former T that became ready before it was replaced.
fn first_ready(wishes: &Wishes, situation: &Situation) -> Known {
    let is_ready = |name: &&String| situation.revisions.get(*name).is_some_and(|view| !view.ready.is_empty());
    let first = [&wishes.target].into_iter().chain(situation.revisions.keys()).find(is_ready);
    let record = first.map(|name| Record { revision: name.clone(), cause: RecordCause::First });
    Known { revision: first.cloned(), record }
}
