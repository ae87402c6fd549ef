//! The paths of V2 and V1 and what answers them.

use super::reply::{Failure, json};
use super::{App, Received};
use crate::model::Tensor;
use crate::protocol::{v1, v2};
use crate::repository::Served;
use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{StatusCode, Uri};
use serde_json::json as object;
use std::sync::Arc;
use std::time::Instant;

type Answer = Result<Response, Failure>;

pub(super) fn router(app: App) -> axum::Router {
    let v2 = axum::Router::new()
        .route("/", get(server_metadata))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/models/{model}", get(model_metadata))
        .route("/models/{model}/ready", get(model_ready))
        .route("/models/{model}/infer", post(infer))
        .route("/models/{model}/versions/{version}", get(model_metadata))
        .route("/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/models/{model}/versions/{version}/infer", post(infer));
    let v1 = axum::Router::new()
        .route("/models", get(v1_models))
        .route("/models/{model}", get(v1_model).post(predict));
    axum::Router::new()
        .nest("/v2", v2)
        .nest("/v1", v1)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn no_such_path(State(app): State<App>, uri: Uri) -> Failure {
    let model = app.0.repository.name();
    Failure::not_found(format!(
        "no such path `{}`: there are GET /v2/models/{model}, POST /v2/models/{model}/infer and \
         POST /v1/models/{model}:predict",
        uri.path()
    ))
}

async fn wrong_method(request: Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("method {method} is not allowed on `{path}`"))
}

async fn server_metadata() -> Response {
    let metadata =
        object!({ "name": "serin-runtime", "version": env!("CARGO_PKG_VERSION"), "extensions": [] });
    json(StatusCode::OK, metadata.to_string())
}

async fn live() -> Response {
    json(StatusCode::OK, r#"{"live":true}"#)
}

async fn ready(State(app): State<App>) -> Response {
    let ready = app.0.repository.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let phase = app.0.repository.phase().name();
    json(status, object!({ "ready": ready, "phase": phase }).to_string())
}

/// The path's model, and its version where the path has one.
#[derive(serde::Deserialize)]
struct Named {
    model: String,
    version: Option<String>,
}

impl App {
    /// Makes sure that the name is this server's model.
    fn check_name(&self, named: &Named) -> Result<(), Failure> {
        let (asked, name) = (&named.model, self.0.repository.name());
        if asked != name {
            return Err(Failure::not_found(format!(
                "model `{asked}` is not served here: this server has `{name}`"
            )));
        }
        match named.version.as_deref() {
            None | Some(v2::MODEL_VERSION) => Ok(()),
            Some(version) => Err(Failure::not_found(format!(
                "model `{name}` has no version `{version}`: it has `{}`",
                v2::MODEL_VERSION
            ))),
        }
    }

    fn served(&self, named: &Named) -> Result<Arc<Served>, Failure> {
        self.check_name(named)?;
        self.0.repository.served().ok_or_else(|| {
            let (name, phase) = (self.0.repository.name(), self.0.repository.phase().name());
            Failure::unavailable(format!("model `{name}` is not ready: {phase}"))
        })
    }
}

async fn model_metadata(State(app): State<App>, Path(named): Path<Named>) -> Answer {
    let served = app.served(&named)?;
    let metadata = v2::metadata(app.0.repository.name(), &served.signature);
    Ok(axum::Json(metadata).into_response())
}

async fn model_ready(State(app): State<App>, Path(named): Path<Named>) -> Answer {
    app.check_name(&named)?;
    let ready = app.0.repository.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(json(status, object!({ "name": named.model, "ready": ready }).to_string()))
}

async fn v1_models(State(app): State<App>) -> Response {
    json(StatusCode::OK, object!({ "models": [app.0.repository.name()] }).to_string())
}

/// KServe and TensorFlow Serving answer this path differently; one object has the fields of both.
async fn v1_model(State(app): State<App>, Path(named): Path<Named>) -> Answer {
    app.check_name(&named)?;
    let ready = app.0.repository.is_ready();
    let (status, state) =
        if ready { (StatusCode::OK, "AVAILABLE") } else { (StatusCode::SERVICE_UNAVAILABLE, "LOADING") };
    let version = object!({
        "version": v2::MODEL_VERSION,
        "state": state,
        "status": { "error_code": "OK", "error_message": "" },
    });
    let body = object!({ "name": named.model, "ready": ready, "model_version_status": [version] });
    Ok(json(status, body.to_string()))
}

async fn infer(
    State(app): State<App>,
    Path(named): Path<Named>,
    Extension(Received { body, deadline }): Extension<Received>,
) -> Answer {
    let served = app.served(&named)?;
    let request = beside(body.len(), || v2::read_request(&body, &served.signature))?;
    drop(body);
    let tensors = run(&app, &served, request.inputs, request.outputs.clone(), deadline).await?;
    let answer = beside(size(&tensors), || {
        v2::write_response(
            app.0.repository.name(),
            request.id.as_deref(),
            &served.signature,
            &request.outputs,
            &tensors,
        )
    });
    Ok(json(StatusCode::OK, answer))
}

/// `POST /v1/models/{model}:predict`; the verb is a part of the path's last segment.
async fn predict(
    State(app): State<App>,
    Path(segment): Path<String>,
    Extension(Received { body, deadline }): Extension<Received>,
) -> Answer {
    let Some((model, verb)) = segment.rsplit_once(':') else {
        return Err(Failure::not_found(format!("expected POST /v1/models/{segment}:predict")));
    };
    let served = app.served(&Named { model: model.to_owned(), version: None })?;
    if verb != "predict" {
        return Err(Failure::not_found(format!("`:{verb}` is not served: expected `:predict`")));
    }
    let request = beside(body.len(), || v1::read_request(&body, &served.signature))?;
    drop(body);
    let outputs = served.signature.all_outputs();
    let tensors = run(&app, &served, request.inputs, outputs, deadline).await?;
    let answer = beside(size(&tensors), || v1::write_response(request.form, &served.signature, &tensors))?;
    Ok(json(StatusCode::OK, answer))
}

async fn run(
    app: &App,
    served: &Served,
    inputs: Vec<Tensor>,
    outputs: Vec<usize>,
    deadline: Instant,
) -> Result<Vec<Tensor>, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let result = served.instances.infer(inputs, outputs, left).await;
    if let Err(error) = &result {
        tracing::debug!(model = app.0.repository.name(), "no answer: {error}");
    }
    Ok(result?)
}

fn size(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.data().len() * 8).sum()
}

/// Large bodies take milliseconds to read and write; other connections should not wait for that.
fn beside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes > 256 << 10 { tokio::task::block_in_place(work) } else { work() }
}
