//! `serin-bench`.
fn main() {}
