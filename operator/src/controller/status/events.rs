//! Every transition as an event: which ones (pure), and their publication. `Ready` comes last and ends with a command that calls
//! the model, so that `kubectl describe` ends with it.

use kube::Resource;
use kube::runtime::events::{Event, EventType};
use serin_crds::inference_service::FailureInfo;
use serin_crds::{InferenceService, InferenceServiceStatus, Share, reasons};

use super::{Outcome, View};
use crate::causes::causes;
use crate::context::Context;
use crate::controller::apply::{Applied, is_ending};
use crate::controller::plan::RecordCause;

/// The API server refuses longer notes.
const LONGEST_NOTE: usize = 1000;

/// One event to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Something is wrong.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub note: String,
}

fn normal(reason: &str, note: impl Into<String>) -> News {
    News { warning: false, reason: reason.to_owned(), note: note.into() }
}

fn warning(reason: &str, note: impl Into<String>) -> News {
    News { warning: true, reason: reason.to_owned(), note: note.into() }
}

/// What is new between the last status and this one, and what was done in between. Pure.
pub fn news(
    view: &View<'_>,
    outcome: Outcome<'_>,
    applied: &Applied,
    now: &InferenceServiceStatus,
) -> Vec<News> {
    let mut all = of_acts(applied);
    let promoting = matches!(outcome, Outcome::Planned(plan) if plan.rollout.asked == Share::ALL);
    if let Outcome::Planned(plan) = outcome {
        let new_generation =
            view.before().and_then(|before| before.observed_generation) != now.observed_generation;
        if plan.rollout.nothing_to_split && new_generation {
            all.push(normal(
                reasons::events::NOTHING_TO_SPLIT,
                format!(
                    "{} is the stable revision; canaryTrafficPercent waits for the next change of the model",
                    plan.rollout.target
                ),
            ));
        }
    }
    all.extend(of_failure(view, now));
    all.extend(
        of_conditions(view, now)
            .into_iter()
            .filter(|news| !promoting || news.reason != reasons::CANARY_SERVING),
    );
    all
}

/// A router's end is so long overdue that nobody waits for it any more.
pub fn router_gone(pod: &str) -> News {
    let note = format!("router {pod} should have ended more than 60 s ago; nothing waits for it any more");
    warning(reasons::events::ROUTER_PRESUMED_GONE, note)
}

fn of_acts(applied: &Applied) -> Vec<News> {
    let mut all: Vec<News> = applied
        .created
        .iter()
        .map(|name| normal(reasons::events::REVISION_CREATED, format!("revision {name} is made")))
        .collect();
    if let Some((before, after)) = &applied.route {
        let share = |canary: &Option<String>, share: u16| canary.as_ref().map(|name| (name.clone(), share));
        let old = before.as_ref().and_then(|before| share(&before.canary, before.share));
        let new = share(&after.canary, after.share);
        // A canary that has become stable is told by the record.
        let promoted = new.is_none() && old.as_ref().map(|(name, _)| name) == after.stable.as_ref();
        if old != new && after.stable.is_some() && !promoted {
            all.push(normal(reasons::events::SHARE_CHANGED, shares(old.as_ref(), new.as_ref())));
        }
    }
    if let Some(record) = &applied.recorded {
        let note = match record.cause {
            RecordCause::First => Some(format!("{} is stable: its first pod is ready", record.revision)),
            RecordCause::Promoted => Some(format!("{} is promoted and stable now", record.revision)),
            RecordCause::Recovered => {
                Some(format!("{} is stable, by a copy of the lost record", record.revision))
            }
            RecordCause::Begin => None,
        };
        all.extend(note.map(|note| normal(reasons::events::STABLE_RECORDED, note)));
    }
    let deleted = applied.deleted.iter();
    all.extend(deleted.map(|name| {
        normal(
            reasons::events::REVISION_DELETED,
            format!("revision {name} is out of traffic; its pods are removed"),
        )
    }));
    all
}

fn shares(old: Option<&(String, u16)>, new: Option<&(String, u16)>) -> String {
    let percent = |share: u16| Share::from_parts(share).to_string();
    match (old, new) {
        (Some((before, old)), Some((after, new))) if before == after => {
            format!("canary {after}: {} % -> {} %", percent(*old), percent(*new))
        }
        (_, Some((after, new))) => format!("canary {after}: {} %", percent(*new)),
        (Some((before, _)), None) => format!("{before} is no canary any more"),
        (None, None) => String::new(),
    }
}

/// A revision's obstacle, once for each reason.
fn of_failure(view: &View<'_>, now: &InferenceServiceStatus) -> Option<News> {
    let failure = |status: &InferenceServiceStatus| status.model_status.as_ref()?.last_failure_info.clone();
    let new = failure(now)?;
    let old = view.before().and_then(failure);
    let same =
        |old: &FailureInfo| old.reason == new.reason && old.model_revision_name == new.model_revision_name;
    if old.as_ref().is_some_and(same) {
        return None;
    }
    let note = format!("{}: {}: {}", new.model_revision_name, new.reason, new.message);
    Some(warning(reasons::events::REVISION_FAILED, note))
}

/// Conditions that turned, in the order in which they matter least; `Ready` last.
fn of_conditions(view: &View<'_>, now: &InferenceServiceStatus) -> Vec<News> {
    let mut all = Vec::new();
    for condition in now.conditions.iter().rev() {
        let old = view.condition(&condition.type_);
        let same =
            old.is_some_and(|old| (&old.status, &old.reason) == (&condition.status, &condition.reason));
        if same {
            continue;
        }
        let turned = old.is_none_or(|old| old.status != condition.status);
        let text = condition.message.clone();
        match (condition.type_.as_str(), condition.status.as_str()) {
            (reasons::conditions::READY, "True") if turned => {
                all.push(normal(reasons::events::READY, format!("{text}; try: {}", view.example())));
            }
            (reasons::conditions::READY, "False") if turned && old.is_some() => {
                all.push(warning(&condition.reason, format!("cannot serve: {text}")));
            }
            (reasons::conditions::PROGRESSING, "False") | (reasons::conditions::ROUTER_READY, "Unknown") => {
                all.push(warning(&condition.reason, text));
            }
            (reasons::conditions::TRAFFIC_APPLIED, "Unknown") => {
                all.push(warning(reasons::events::ROUTER_SILENT, text));
            }
            (reasons::conditions::CANARY_READY, "True")
                if turned && condition.reason == reasons::CANARY_SERVING =>
            {
                all.push(normal(&condition.reason, text));
            }
            _ => {}
        }
    }
    all
}

/// Publishes events. One that cannot be written is logged and lost: events are for people, nothing depends on them.
pub async fn publish(context: &Context, service: &InferenceService, all: Vec<News>) {
    let reference = service.object_ref(&());
    for news in all {
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            action: action(&news),
            reason: news.reason,
            note: Some(shortened(news.note)),
            secondary: None,
        };
        // In a namespace that is being deleted nobody reads events any more.
        if let Err(error) = context.recorder.publish(&event, &reference).await
            && !is_ending(&error)
        {
            tracing::warn!(error = causes(&error), "failed to publish an event");
        }
    }
}

/// Events of one reason, action and object are counted as one series, with the first one's note: a hash of the note keeps those
/// apart that say different things.
fn action(news: &News) -> String {
    format!("Reconcile-{}", crate::controller::revision::short_hash(&news.note))
}

/// A note that is too long loses its middle: the command stands at its end.
fn shortened(note: String) -> String {
    if note.len() <= LONGEST_NOTE {
        return note;
    }
    let half = LONGEST_NOTE / 2 - 8;
    let head: String = note.chars().take(half / 2).collect();
    let tail: Vec<char> = note.chars().rev().take(half / 2).collect();
    format!("{head} ... {}", tail.into_iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_shares_in_words() {
        let canary = |name: &str, share: u16| (name.to_owned(), share);
        assert_eq!(shares(Some(&canary("b", 1000)), Some(&canary("b", 5000))), "canary b: 10 % -> 50 %");
        assert_eq!(shares(Some(&canary("b", 1000)), Some(&canary("c", 250))), "canary c: 2.5 %");
        assert_eq!(shares(Some(&canary("b", 1000)), None), "b is no canary any more");
    }

    #[test]
    fn a_long_note_keeps_its_end() {
        let note = shortened(format!("{} the end", "é".repeat(2000)));
        assert!(note.len() <= LONGEST_NOTE && note.ends_with("the end"), "{note}");
    }
}
