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
/// ControllerRevision nor Deployment exists. A route without a stable revision, where no other copy names one, is a copy too: it says
/// that there was none. Where no revision is left at all, nothing can be moved or deleted by mistake.
pub(super) fn resolve(wishes: &Wishes, situation: &Situation) -> Result<Known, Standstill> {
    let exists = |name: &String| situation.revisions.contains_key(name);
    match &situation.stable {
        StableRecord::Named(name) if exists(name) => {
            return Ok(Known { revision: Some(name.clone()), record: None });
        }
        StableRecord::None => return Ok(first_ready(wishes, situation, None)),
        StableRecord::Named(_) | StableRecord::Missing => {}
    }
    let copies = &situation.copies;
    let copy =
        [&copies.route, &copies.status, &copies.promotion].into_iter().flatten().find(|name| exists(name));
    if let Some(name) = copy {
        let record = Record { revision: name.clone(), cause: RecordCause::Recovered };
        return Ok(Known { revision: Some(name.clone()), record: Some(record) });
    }
    let none_named = [&copies.route, &copies.status, &copies.promotion].into_iter().all(Option::is_none);
    if situation.route.is_some() && none_named {
        return Ok(first_ready(wishes, situation, Some(RecordCause::Recovered)));
    }
    if situation.revisions.is_empty() {
        let record = Record { revision: String::new(), cause: RecordCause::Begin };
        return Ok(Known { revision: None, record: Some(record) });
    }
    Err(Standstill::StableUnknown { candidates: situation.revisions.keys().cloned().collect() })
}

/// The first revision that has a ready pod is stable from then on: T, or a former T that became ready before it was replaced. Until
/// then the record is empty, and is to be written for this cause where it does not say so.
fn first_ready(wishes: &Wishes, situation: &Situation, empty: Option<RecordCause>) -> Known {
    let is_ready = |name: &&String| situation.revisions.get(*name).is_some_and(|view| !view.ready.is_empty());
    let first = [&wishes.target].into_iter().chain(situation.revisions.keys()).find(is_ready);
    let first_record = first.map(|name| Record { revision: name.clone(), cause: RecordCause::First });
    let record = first_record.or_else(|| empty.map(|cause| Record { revision: String::new(), cause }));
    Known { revision: first.cloned(), record }
}
