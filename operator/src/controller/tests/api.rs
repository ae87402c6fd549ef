//! An API server in memory: enough of it for the operator's own calls. Applies merge, preconditions are checked, every write gets a
//! new resourceVersion, and calls can be made to fail.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The server. Clones share it.
#[derive(Clone, Default)]
pub struct Api {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    calls: Vec<String>,
    events: Vec<String>,
    /// The call with this number, counted from now on, fails with this status.
    fault: Option<(usize, u16)>,
}

impl Api {
    /// A client of it.
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "ns")
    }

    /// Puts an object in, as somebody else would.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", state.version));
        }
        state.objects.insert(path.to_owned(), object);
    }

    /// An object.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Takes an object out, as somebody else would.
    pub fn remove(&self, path: &str) {
        self.state.lock().objects.remove(path);
    }

    /// Paths of all objects.
    pub fn paths(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    /// The calls since the last time, reads and events apart.
    pub fn writes(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state.lock().calls);
        calls.into_iter().filter(|call| !call.starts_with("GET")).collect()
    }

    /// The reasons of the events since the last time.
    pub fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().events)
    }

    /// Makes the call with this number fail, the next being 0.
    pub fn fail(&self, number: usize, status: u16) {
        self.state.lock().fault = Some((number, status));
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = head.uri.path().replace("/apis/", "").replace("/api/", "");
        let manager = head
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .find_map(|pair| pair.strip_prefix("fieldManager="));
        let (status, answer) = self.state.lock().call(&head.method, &path, manager.unwrap_or_default(), body);
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&answer).unwrap()))
            .unwrap()
    }
}

impl State {
    fn call(&mut self, method: &Method, path: &str, manager: &str, body: Value) -> (StatusCode, Value) {
        if path.ends_with("/events") {
            self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
            return (StatusCode::CREATED, body);
        }
        if let Some((number, status)) = self.fault.take() {
            if number == 0 {
                return refuse(status, "injected");
            }
            self.fault = Some((number - 1, status));
        }
        let short =
            path.trim_start_matches("apps/v1/").trim_start_matches("v1/").replace("namespaces/ns/", "");
        self.calls
            .push(format!("{method} {short}{}", if manager.ends_with("scale") { " (scale)" } else { "" }));
        match *method {
            Method::GET => self.read(path),
            Method::PATCH => self.patch(path, manager, body),
            Method::DELETE => self.delete(path, &body),
            _ => refuse(405, "not served here"),
        }
    }

    fn read(&self, path: &str) -> (StatusCode, Value) {
        if let Some(object) = self.objects.get(path) {
            return (StatusCode::OK, object.clone());
        }
        if path.ends_with("/pods") || path.ends_with("/inferenceservices") {
            let below = format!("{path}/");
            let items: Vec<&Value> = self
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(&below))
                .map(|(_, object)| object)
                .collect();
            return (
                StatusCode::OK,
                json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}),
            );
        }
        refuse(404, "not found")
    }

    fn patch(&mut self, path: &str, manager: &str, body: Value) -> (StatusCode, Value) {
        let path = path.trim_end_matches("/status");
        let old = self.objects.get(path).cloned();
        let known = old.as_ref().map(|old| old["metadata"].clone()).unwrap_or_default();
        for key in ["resourceVersion", "uid"] {
            let wanted = &body["metadata"][key];
            if !wanted.is_null() && *wanted != known[key] {
                return refuse(409, "the object has been modified");
            }
        }
        let mut new = old.clone().unwrap_or_else(|| json!({"metadata": {}}));
        merge(&mut new, &body);
        if !manager.ends_with("scale") {
            disown(&mut new, &body);
        }
        if Some(&new) == old.as_ref() {
            return (StatusCode::OK, new);
        }
        self.version += 1;
        let metadata = &mut new["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
            metadata["creationTimestamp"] = json!(Timestamp::now().to_string());
            metadata["managedFields"] = json!([]);
        }
        let managers = metadata["managedFields"].as_array().cloned().unwrap_or_default();
        if !managers.iter().any(|entry| entry["manager"] == manager) {
            let entry = json!({"manager": manager, "operation": "Apply"});
            metadata["managedFields"] = managers.into_iter().chain([entry]).collect();
        }
        if old.as_ref().is_none_or(|old| old["spec"] != new["spec"]) {
            let generation = new["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        self.objects.insert(path.to_owned(), new.clone());
        (StatusCode::OK, new)
    }

    fn delete(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        let Some(object) = self.objects.get(path) else { return refuse(404, "not found") };
        for key in ["resourceVersion", "uid"] {
            let wanted = &body["preconditions"][key];
            if !wanted.is_null() && *wanted != object["metadata"][key] {
                return refuse(409, "the object has been modified");
            }
        }
        self.objects.remove(path);
        (StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
    }
}

fn refuse(code: u16, message: &str) -> (StatusCode, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "code": code
    });
    (StatusCode::from_u16(code).unwrap(), body)
}

/// What an apply no longer names goes. Replicas stay: they have a manager of their own.
fn disown(new: &mut Value, body: &Value) {
    let replicas = new["spec"]["replicas"].clone();
    for part in ["spec", "status"] {
        match body.get(part) {
            Some(value) => new[part] = value.clone(),
            None if new[part].is_null() => drop(new.as_object_mut().unwrap().remove(part)),
            None => {}
        }
    }
    if body.get("spec").is_some() && new["spec"]["replicas"].is_null() && !replicas.is_null() {
        new["spec"]["replicas"] = replicas;
    }
}

/// Objects merge, everything else is replaced; null takes away.
fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(old), Value::Object(new)) = (&mut *into, from) else {
        *into = from.clone();
        return;
    };
    for (key, value) in new {
        if value.is_null() {
            old.remove(key);
        } else {
            merge(old.entry(key.clone()).or_insert(json!({})), value);
        }
    }
}
