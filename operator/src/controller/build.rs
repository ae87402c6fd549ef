//! What should be: every child of an InferenceService as a whole object. Pure and infallible; nothing here reads or writes.

pub mod budget;
pub mod deployment;
pub mod metadata;
pub mod pod;
pub mod revision;
pub mod route;
pub mod router;
pub mod service;

#[cfg(test)]
mod tests {
    use serin_crds::inference_service::PredictorSpec;

    use super::metadata::Owner;
    use crate::args::Settings;

    pub fn owner() -> Owner {
        Owner { namespace: "ns".to_owned(), name: "iris".to_owned(), uid: "uid-1".to_owned() }
    }

    pub fn settings() -> Settings {
        Settings {
            router_image: "registry.example/serin:v1".to_owned(),
            runtime_image: "registry.example/serin-runtime:v1".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
        }
    }

    pub fn predictor(value: serde_json::Value) -> PredictorSpec {
        serde_json::from_value(value).expect("a predictor")
    }
}
