//! The floor that the server is measured against: one model run in a bare loop on one thread, on generated input.
//!
//! `cargo run --release -p serin-runtime --example session_loop -- MODEL [RUNS] [THREADS]` prints p50 and p99 of a run
//! and the runs per second, as one line of JSON. ONNX Runtime is taken from `ORT_DYLIB_PATH`.

use serin_runtime::model::onnx::{Library, SessionOptions};
use serin_runtime::model::{Model, example};
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model =
        arguments.next().ok_or_else(|| anyhow::anyhow!("usage: session_loop MODEL [RUNS] [THREADS]"))?;
    let runs: usize = arguments.next().map_or(Ok(10_000), |runs| runs.parse())?;
    let threads: usize = arguments.next().map_or(Ok(1), |threads| threads.parse())?;
    let library = std::env::var_os("ORT_DYLIB_PATH").unwrap_or_else(|| "libonnxruntime.so".into());

    let mut model =
        Library::load(Path::new(&library))?.open(Path::new(&model), &SessionOptions::new(threads))?;
    let inputs = example::inputs(model.signature());
    let outputs = model.signature().all_outputs();
    for _ in 0..runs.div_ceil(10) {
        model.run(&inputs, &outputs)?;
    }
    let mut times: Vec<Duration> = Vec::with_capacity(runs.max(1));
    for _ in 0..runs.max(1) {
        let started = Instant::now();
        model.run(&inputs, &outputs)?;
        times.push(started.elapsed());
    }
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    let microseconds = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    let per_second = times.len() as f64 / total.as_secs_f64();
    let (p50, p99) = (microseconds(0.5), microseconds(0.99));
    println!(r#"{{"p50_us":{p50:.1},"p99_us":{p99:.1},"runs_per_s":{per_second:.0}}}"#);
    Ok(())
}
