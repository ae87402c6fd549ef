//! One request from its head to the first byte of its answer: place it, send it, and where nothing was lost or can be
//! repeated, place it again. The hot path is one pass through [`exchange`] without any of its detours.

pub mod attempt;
pub mod hold;
pub mod place;
pub mod response;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::{timeout, timeout_at};

use self::attempt::{Answer, Broken, Head};
use self::hold::Hold;
use self::place::{Placed, Visit, Wish};
use self::response::{Passing, Refusal, ResponseBody};
use crate::endpoint::{Load, Moment};
use crate::error::Failure;
use crate::headers;
use crate::in_flight::Tables;
use crate::metrics::RetryReason;
use crate::replay::{BodyError, HeldMemory, Payload};
use crate::select::Tried;
use crate::table::{Route, Table};

/// How often one request that was sent may be lost and sent again: a request that kills its server must not go
/// through all of them.
const LOSSES_PER_REQUEST: u32 = 3;

/// What every request of the process shares.
#[derive(Debug)]
pub struct Context {
    /// The table in use.
    pub tables: Tables<Table>,
    /// Request bodies held for a repetition.
    pub memory: Arc<HeldMemory>,
    /// Bounds of a request.
    pub limits: Limits,
    /// Set when the router is about to end: connections are to be closed after their next response.
    pub closing: AtomicBool,
}

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body in bytes.
    pub max_body: u64,
    /// How long a body that is read before it is sent may take to arrive.
    pub body_timeout: Duration,
    /// Requests of one service that may wait for an endpoint.
    pub max_waiting: usize,
}

/// Answers one request that came on the port of a route. Never fails: a failure is a response.
pub async fn handle(context: &Context, port: u16, request: Request<Incoming>) -> Response<ResponseBody> {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let grpc = headers::is_grpc(&parts.headers);
    let request_id = parts.headers.get(headers::REQUEST_ID).cloned();
    let passage = async {
        headers::check(&parts.method, &parts.headers)?;
        let payload = receive(context, &parts.headers, body).await?;
        let wish = Wish::new(parts.headers.get(headers::REVISION).cloned());
        let head = Head::new(parts);
        exchange(context, port, arrived, wish, head, payload).await
    };
    match passage.await {
        Ok(response) => response,
        Err(failure) => {
            if let Some(route) = context.tables.load().by_port(port) {
                route.state.metrics.errors.add_one();
            }
            tracing::debug!(port, cause = failure.cause(), "{failure}");
            let mut response = failure.into_response(grpc).map(ResponseBody::local);
            if let Some(id) = request_id {
                response.headers_mut().insert(headers::REQUEST_ID, id);
            }
            response
        }
    }
}

async fn receive(context: &Context, headers: &http::HeaderMap, body: Incoming) -> Result<Payload, Failure> {
    let limits = &context.limits;
    let taking = Payload::take(body, headers::content_length(headers), &context.memory, limits.max_body);
    match timeout(limits.body_timeout, taking).await {
        Ok(taken) => taken.map_err(body_failure),
        Err(_) => Err(Failure::BodyTimeout(limits.body_timeout.as_secs())),
    }
}

fn body_failure(error: BodyError) -> Failure {
    match error {
        BodyError::TooLarge(limit) => Failure::BodyTooLarge(limit),
        BodyError::Broken(source) => Failure::BodyBroken(source),
        BodyError::Superseded => Failure::Malformed("the body was read twice"),
    }
}

/// What a request remembers over its attempts.
struct Course {
    wish: Wish,
    tried: Tried,
    /// Why the next attempt is a repetition.
    again: Option<RetryReason>,
    losses: u32,
    /// When the revision's timeout is over; set when the request is placed for the first time.
    deadline: Option<Instant>,
    hold: Option<Hold>,
    /// The last answer that said "nothing executed": passed on when nobody else can answer.
    refusal: Option<Refusal>,
    arrived: Instant,
}

async fn exchange(
    context: &Context,
    port: u16,
    arrived: Instant,
    wish: Wish,
    mut head: Head,
    payload: Payload,
) -> Result<Response<ResponseBody>, Failure> {
    let mut course = Course {
        wish,
        tried: Tried::default(),
        again: None,
        losses: 0,
        deadline: None,
        hold: None,
        refusal: None,
        arrived,
    };
    loop {
        let now = Moment::now();
        let (visit, load) =
            match context.tables.enter(|table| course.wish.place(table, port, &course.tried, now)) {
                Placed::Go { visit, load } => (visit, load),
                Placed::Nowhere(route) => match course.refusal.take() {
                    Some(refusal) => return Ok(refusal.into_response(arrived)),
                    None => {
                        course.wait(context, &route).await?;
                        continue;
                    }
                },
                Placed::Fail(failure) => return Err(failure),
            };
        let deadline = course.placed(&visit);
        let sending = attempt::send(load.endpoint(), &mut head, &visit, &payload);
        match timeout_at(deadline.into(), sending).await {
            Ok(Ok(answer)) => match answer.refusal() {
                None => {
                    load.endpoint().answered(answer.took, Moment::now());
                    if payload.is_unheld() {
                        visit.route().state.metrics.unheld.add_one();
                    }
                    return Ok(Passing::response(answer, visit, load, arrived, deadline));
                }
                Some(reason) => {
                    if let Some(response) = course.refused(reason, answer, visit, load, &payload).await? {
                        return Ok(response);
                    }
                }
            },
            Ok(Err(broken)) => course.broken(broken, visit, &load, &payload)?,
            Err(_) => {
                visit.failed(arrived);
                let timeout = visit.revision().timeout.as_secs();
                return Err(Failure::Timeout {
                    revision: visit.revision().name.to_string(),
                    seconds: timeout,
                });
            }
        }
    }
}

impl Course {
    /// The request was placed: counts what that says, and answers when its time is over.
    fn placed(&mut self, visit: &Visit) -> Instant {
        let metrics = &visit.route().state.metrics;
        if let Some(reason) = self.again.take() {
            metrics.retried(reason);
        } else if self.wish.fell_back() {
            metrics.fallbacks.add_one();
        }
        self.wish.stay_with(visit);
        *self.deadline.get_or_insert_with(|| Instant::now() + visit.revision().timeout)
    }

    /// Waits until the route has changed, so that the request can be placed again.
    async fn wait(&mut self, context: &Context, route: &Arc<Route>) -> Result<(), Failure> {
        if let Some(pin) = self.wish.pin() {
            let pin = String::from_utf8_lossy(pin.as_bytes());
            let why = if self.tried.is_empty() { "none is ready" } else { "none can be reached" };
            return Err(Failure::NoEndpoint(format!(
                "no endpoint of `{}` for the pinned revision `{pin}`: {why}; pinned requests go nowhere else",
                route.name
            )));
        }
        let hold = match &mut self.hold {
            Some(hold) => hold,
            // The table is read once more after the hold began to listen, so that no change is missed.
            None => {
                self.hold = Some(Hold::begin(route, context.limits.max_waiting, self.deadline)?);
                return Ok(());
            }
        };
        hold.wait(!self.tried.is_empty()).await?;
        self.tried.clear();
        Ok(())
    }

    /// The runtime says that it executed nothing. Answers with the response where it has to be passed on.
    async fn refused(
        &mut self,
        reason: RetryReason,
        answer: Answer,
        visit: Visit,
        load: Load,
        payload: &Payload,
    ) -> Result<Option<Response<ResponseBody>>, Failure> {
        if reason == RetryReason::Misdirected {
            load.endpoint().suspend(Moment::now());
        }
        self.tried.add(load.endpoint());
        if payload.replayable() {
            self.again = Some(reason);
            let refusal = Refusal::read(answer, visit, &load).await;
            // 421 says nothing to the client: it asked for the right thing.
            if reason == RetryReason::NotExecuted {
                self.wish.was_crowded_out();
                self.refusal = Some(refusal);
            }
            return Ok(None);
        }
        if reason == RetryReason::Misdirected {
            visit.failed(self.arrived);
            return Err(Failure::Misdirected(visit.revision().name.to_string()));
        }
        Ok(Some(Refusal::read(answer, visit, &load).await.into_response(self.arrived)))
    }

    /// No answer came. Says whether another attempt may be made.
    fn broken(
        &mut self,
        broken: Broken,
        visit: Visit,
        load: &Load,
        payload: &Payload,
    ) -> Result<(), Failure> {
        let endpoint = load.endpoint();
        if let Some(error) = payload.take_error() {
            return Err(body_failure(error));
        }
        tracing::debug!(revision = %visit.revision().name, address = %endpoint.address(), "{broken}");
        let reason = match &broken {
            Broken::Connect(_) => {
                endpoint.suspend(Moment::now());
                RetryReason::Connect
            }
            Broken::Unsent => RetryReason::Unsent,
            Broken::Refused => RetryReason::Refused,
            Broken::Lost { .. } => RetryReason::Lost,
        };
        let allowed = match reason {
            RetryReason::Lost => self.may_repeat_lost(&visit, endpoint, payload),
            _ if payload.replayable() => Ok(()),
            _ => Err("its body was too large to be held"),
        };
        if let Err(why) = allowed {
            visit.failed(self.arrived);
            return Err(Failure::Lost { revision: visit.revision().name.to_string(), why });
        }
        match broken {
            // An idle connection that the server closed says nothing about the endpoint; nor do its siblings live on.
            Broken::Lost { reused: true } => endpoint.pool.clear(),
            _ => self.tried.add(endpoint),
        }
        self.again = Some(reason);
        Ok(())
    }

    fn may_repeat_lost(
        &mut self,
        visit: &Visit,
        endpoint: &crate::endpoint::Endpoint,
        payload: &Payload,
    ) -> Result<(), &'static str> {
        let covered = endpoint.lost_one();
        self.losses += 1;
        if !payload.replayable() {
            return Err("its body was too large to be held");
        }
        if self.losses > LOSSES_PER_REQUEST {
            return Err("it was lost several times");
        }
        let route = visit.route();
        if !covered && !route.state.budget.take(route.total_requests(), Instant::now()) {
            route.state.metrics.over_budget.add_one();
            return Err("the budget for repetitions is spent");
        }
        Ok(())
    }
}

/// Whether the client's connection has to be told that it ends after this response: HTTP/2 has GOAWAY for that.
pub fn closes_after_response(context: &Context, version: Version) -> bool {
    version <= Version::HTTP_11 && context.closing.load(std::sync::atomic::Ordering::Relaxed)
}
