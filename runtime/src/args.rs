//! The command line. Every flag has an environment variable, so that a pod's template needs no arguments.

use crate::cpu_budget;
use clap::{Parser, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Serves ONNX models over HTTP (Open Inference Protocol V2, and V1).
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  serin-runtime serve model.onnx
  serin-runtime serve https://example.org/models/iris.onnx --model-name iris
  AWS_ENDPOINT_URL=http://minio:9000 serin-runtime serve s3://models/iris/";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and serve it until told to stop.
    #[command(after_help = SERVE_HELP)]
    Serve(Box<Serve>),
}

const SERVE_HELP: &str = "\
Where models come from:
  PATH, file://PATH        a file, or a directory with model.onnx (or one other .onnx)
  pvc://CLAIM/PATH         a volume mounted below --pvc-root
  http://..., https://...  a file (a URL that ends in / means model.onnx below it)
  s3://BUCKET/KEY          an object, or all objects below a prefix; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
                           AWS_REGION, AWS_ENDPOINT_URL and AWS_ALLOW_HTTP are honoured, and without
                           credentials the bucket is read anonymously

What is answered on --port:
  GET  /v2/models/NAME              names, types and shapes of inputs and outputs
  POST /v2/models/NAME/infer        {\"inputs\": [{\"name\", \"shape\", \"datatype\", \"data\"}]}
  POST /v1/models/NAME:predict      {\"instances\": [row, ...]} or {\"inputs\": columns}
  GET  /v2/health/ready             200 once the model answers
What is answered on --admin-port:
  GET /livez /readyz /metrics /status, and /example (a request body that fits the model)

Exit status: 0 after a stop signal, 3 when the model can never be loaded, 1 for anything else.";

/// Load a model and serve it until told to stop.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// The model: a path, or a file, pvc, http, https or s3 URI
    #[arg(env = "SERIN_MODEL_URI")]
    pub model: String,

    /// The name in the protocols' paths [default: the file's name without .onnx, or its directory's for model.onnx]
    #[arg(long, env = "SERIN_MODEL_NAME", value_parser = model_name)]
    pub model_name: Option<String>,

    /// Address to listen on [default: all of them, IPv6 and IPv4]
    #[arg(long, env = "SERIN_HOST")]
    pub host: Option<IpAddr>,

    /// Port of the inference protocols; 0 takes a free one, which the line `listening` tells
    #[arg(long, env = "SERIN_PORT", default_value_t = 8080)]
    pub port: u16,

    /// Port of health, metrics and status; 0 takes a free one
    #[arg(long, env = "SERIN_ADMIN_PORT", default_value_t = 8081)]
    pub admin_port: u16,

    /// `namespace/service/revision` that this server is; requests whose Serin-Expect header names another are refused
    #[arg(long, env = "SERIN_IDENTITY")]
    pub identity: Option<String>,

    /// Where downloads go [default: a fresh directory for temporary files, removed at the end]
    #[arg(long, env = "SERIN_MODEL_DIR")]
    pub model_dir: Option<PathBuf>,

    /// Where volumes are mounted, one directory for each claim
    #[arg(long, env = "SERIN_PVC_ROOT", default_value = "/mnt/pvc")]
    pub pvc_root: PathBuf,

    /// Most bytes that a model may have; k, M, G, Ki, Mi, Gi are understood
    #[arg(long, env = "SERIN_MODEL_SIZE_LIMIT", default_value = "20Gi", value_parser = byte_count)]
    pub model_size_limit: u64,

    /// Threads that each instance computes with [default: the CPU limit, else the CPU request, else the cores, divided
    /// among the instances]
    #[arg(long, env = "SERIN_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,

    /// The container's CPU request, as Kubernetes writes it (`500m`, `2`); used where there is no limit
    #[arg(long, env = "SERIN_CPU_REQUEST", value_parser = cpu_budget::parse_quantity)]
    pub cpu_request: Option<f64>,

    /// How many copies of the model run side by side
    #[arg(long, env = "SERIN_INSTANCES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub instances: u16,

    /// How many requests may wait for an instance; more are refused with 429
    #[arg(long, env = "SERIN_QUEUE_SIZE", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub queue_size: u32,

    /// Seconds that a request may take; fractions are allowed
    #[arg(long, env = "SERIN_TIMEOUT", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,

    /// Most bytes that a request's body may have; larger ones are refused with 413
    #[arg(long, env = "SERIN_MAX_REQUEST_BYTES", default_value = "64Mi", value_parser = byte_count)]
    pub max_request_bytes: u64,

    /// Seconds without a request after SIGTERM before the server exits [default: 3 in a pod, else 0]
    #[arg(long, env = "SERIN_DRAIN_IDLE", value_parser = seconds)]
    pub drain_idle: Option<Duration>,

    /// Seconds after SIGTERM at which the server exits in any case
    #[arg(long, env = "SERIN_DRAIN_LIMIT", default_value = "60", value_parser = seconds)]
    pub drain_limit: Duration,

    /// File for the one line that says why the model can never be loaded [default: /dev/termination-log in a pod]
    #[arg(long, env = "SERIN_TERMINATION_LOG")]
    pub termination_log: Option<PathBuf>,

    /// The shared library of ONNX Runtime
    #[arg(long, env = "ORT_DYLIB_PATH", default_value = "/usr/lib/serin/libonnxruntime.so")]
    pub onnxruntime: PathBuf,
}

/// What is taken from the fact that the process runs in a pod.
impl Serve {
    /// How long the server stays idle before it exits after SIGTERM.
    pub fn drain_idle(&self, in_pod: bool) -> Duration {
        self.drain_idle.unwrap_or(Duration::from_secs(if in_pod { 3 } else { 0 }))
    }

    /// Where a permanent failure is written.
    pub fn termination_log(&self, in_pod: bool) -> Option<PathBuf> {
        self.termination_log.clone().or_else(|| in_pod.then(|| "/dev/termination-log".into()))
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("expected seconds such as `60` or `0.5`, got `{text}`"))
}

/// `4096`, `64Mi`, `20G`.
fn byte_count(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(format!("expected bytes such as `4096`, `64Mi` or `20G`, got `{text}`")),
    }
}

/// A model's name is a part of a path: one segment, and without the colon that V1 puts before the verb.
fn model_name(text: &str) -> Result<String, String> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if text.is_empty() || !text.chars().all(allowed) {
        return Err(format!("expected letters, digits, `-`, `_` and `.`, got `{text}`"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn values() {
        assert_eq!(byte_count("64Mi"), Ok(64 << 20));
        assert_eq!(byte_count("20G"), Ok(20_000_000_000));
        assert_eq!(byte_count("7"), Ok(7));
        for wrong in ["", "Mi", "0", "1.5Gi", "1T", "99999999999999999999", "99999999999999Gi"] {
            assert!(byte_count(wrong).is_err(), "{wrong}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("nan").is_err() && seconds("1e30").is_err());
        assert_eq!(model_name("iris-v1.2"), Ok("iris-v1.2".to_owned()));
        assert!(model_name("a/b").is_err() && model_name("a:b").is_err() && model_name("").is_err());
    }

    #[test]
    fn a_pod_drains_longer_than_a_terminal() {
        let Command::Serve(serve) = Args::parse_from(["serin-runtime", "serve", "m.onnx"]).command;
        assert_eq!(
            (serve.drain_idle(true), serve.drain_idle(false)),
            (Duration::from_secs(3), Duration::ZERO)
        );
        assert_eq!(serve.termination_log(false), None);
    }
}
