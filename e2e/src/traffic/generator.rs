//! The open loop: a request is sent when it is due, whatever became of those before it. Does network IO.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

use serin_crds::labels::{HEADER_CAUSE, HEADER_REVISION};

use super::check;
use super::connection::{Connections, Failure};
use super::ledger::{Ledger, Outcome, Ticket};
use super::wire::{Case, LoadReport, LoadSpec, Loss, Protocol};

/// Header that carries the request's id both ways.
pub const HEADER_ID: &str = "x-request-id";
/// How long an address may take to lead somewhere, and how often it is asked.
const REACHABLE_WITHIN: Duration = Duration::from_secs(10);
const REACHABLE_ASKED: Duration = Duration::from_millis(50);
const BODY_SHOWN: usize = 300;

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    spec: LoadSpec,
    ledger: Mutex<Ledger>,
    connections: Arc<Connections>,
    /// Told whenever a request has ended.
    ended: Notify,
    running: watch::Sender<bool>,
}

impl Load {
    /// Starts to send.
    ///
    /// # Errors
    /// The target takes no connections, or the specification makes no sense.
    pub async fn start(spec: LoadSpec) -> Result<Arc<Self>, String> {
        if spec.cases.is_empty() || !(spec.rate > 0.0 && spec.rate <= 20_000.0) || spec.connections == 0 {
            return Err(format!(
                "load {}: expected cases, connections and a rate up to 20000/s, got {} cases, {} connections, {}/s",
                spec.name,
                spec.cases.len(),
                spec.connections,
                spec.rate
            ));
        }
        let connections = Arc::new(Connections::new(&spec.target, spec.connections));
        reachable(&connections).await.map_err(|failure| format!("{}: {}", spec.target, failure.detail))?;
        let load = Arc::new(Self {
            ledger: Mutex::new(Ledger::new(&spec.name, Instant::now())),
            connections,
            ended: Notify::new(),
            running: watch::Sender::new(true),
            spec,
        });
        tokio::spawn(Arc::clone(&load).run());
        Ok(load)
    }

    /// The account, to be read or marked.
    pub fn ledger(&self) -> parking_lot::MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// The account so far.
    pub fn report(&self) -> LoadReport {
        let counts = self.connections.counts();
        let mut ledger = self.ledger.lock();
        ledger.opened = counts.opened.load(Ordering::Relaxed);
        ledger.reopened = counts.closed.load(Ordering::Relaxed);
        ledger.resent = counts.resent.load(Ordering::Relaxed);
        ledger.report(Instant::now())
    }

    /// Waits until `done` says so of the account. Checked whenever a request has ended.
    pub async fn until(&self, done: impl Fn(&Ledger) -> bool) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if done(&self.ledger.lock()) {
                return;
            }
            ended.await;
        }
    }

    /// Sends no more, and waits for what is under way.
    pub async fn stop(&self) {
        self.running.send_replace(false);
        self.until(|ledger| ledger.in_flight() == 0).await;
    }

    async fn run(self: Arc<Self>) {
        let mut due = tokio::time::interval(Duration::from_secs_f64(1.0 / self.spec.rate));
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut running = self.running.subscribe();
        loop {
            tokio::select! {
                biased;
                _ = running.wait_for(|running| !running) => return,
                at = due.tick() => {
                    let ticket = self.ledger.lock().begin(Instant::now(), unix_micros());
                    tokio::spawn(Arc::clone(&self).send(ticket, at.into_std()));
                }
            }
        }
    }

    async fn send(self: Arc<Self>, ticket: Ticket, due: Instant) {
        let cases = self.spec.cases.len() as u64;
        let case = &self.spec.cases[usize::try_from(ticket.number % cases).unwrap_or_default()];
        let id = self.ledger.lock().id(ticket);
        let limit = Duration::from_millis(self.spec.timeout_ms);
        let outcome = match request(case, &self.spec.target, &id) {
            Err(error) => lost("request", error.to_string(), None, &[]),
            Ok(request) => match tokio::time::timeout(limit, self.connections.call(request)).await {
                Ok(Ok(response)) => judge(case, &self.spec.model, &id, &response),
                Ok(Err(Failure { kind, detail, head })) => lost(kind, detail, head.as_ref(), &[]),
                Err(_) => lost("timeout", format!("no complete answer within {limit:?}"), None, &[]),
            },
        };
        let now = Instant::now();
        self.ledger.lock().end(ticket, outcome, now, now.duration_since(due));
        self.ended.notify_waiters();
    }
}

/// Opens the connections. A service may be ready before kube-proxy has led its address anywhere, which nothing reports, so
/// a refusal is asked again for a while; after that, every refusal is a loss.
///
/// # Errors
/// It leads nowhere for ten seconds.
pub async fn reachable(connections: &Connections) -> Result<(), Failure> {
    let (began, mut again) = (Instant::now(), tokio::time::interval(REACHABLE_ASKED));
    loop {
        again.tick().await;
        match connections.open().await {
            Err(failure) if began.elapsed() >= REACHABLE_WITHIN => return Err(failure),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
}

/// Microseconds since 1970: what test process and pod have in common on one machine.
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The request of a case.
///
/// # Errors
/// Path or target cannot stand in an HTTP request.
pub fn request(case: &Case, target: &str, id: &str) -> Result<Request<Full<Bytes>>, http::Error> {
    let body = match case.protocol {
        Protocol::V1 => case.body.clone(),
        Protocol::V2 => case.body.replacen('{', &format!("{{\"id\":\"{id}\","), 1),
    };
    Request::post(&case.path)
        .header(http::header::HOST, target)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(HEADER_ID, id)
        .body(Full::new(body.into()))
}

/// Status, id, revision and content of a complete answer.
pub fn judge(case: &Case, model: &str, id: &str, response: &Response<Bytes>) -> Outcome {
    let (head, body) = (response.headers(), response.body());
    let parts = response.clone().into_parts().0;
    if response.status() != http::StatusCode::OK {
        return lost("status", format!("expected status 200, got {}", response.status()), Some(&parts), body);
    }
    if head.get(HEADER_ID).is_none_or(|got| got != id) {
        return lost(
            "id",
            format!("expected {HEADER_ID} {id}, got {:?}", head.get(HEADER_ID)),
            Some(&parts),
            body,
        );
    }
    let Some(revision) = head.get(HEADER_REVISION).and_then(|value| value.to_str().ok()) else {
        return lost("revision", format!("no header {HEADER_REVISION}"), Some(&parts), body);
    };
    match check::model_of(case, model, id, body) {
        Ok(model) => Outcome::Answered { revision: revision.to_owned(), model: model.to_owned() },
        Err(why) => lost("content", why, Some(&parts), body),
    }
}

fn lost(kind: &str, detail: String, head: Option<&http::response::Parts>, body: &[u8]) -> Outcome {
    let header = |name| {
        let value = head?.headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Outcome::Lost(Box::new(Loss {
        id: String::new(),
        phase: String::new(),
        sent_at: 0,
        took: 0,
        kind: kind.to_owned(),
        detail,
        status: head.map(|head| head.status.as_u16()),
        cause: header(HEADER_CAUSE),
        revision: header(HEADER_REVISION),
        body: String::from_utf8_lossy(&body[..body.len().min(BODY_SHOWN)]).into_owned(),
    }))
}
